//! The same input on the same number of threads gives the same bits; other numbers of threads agree
//! to rounding.

#[path = "it/common/mod.rs"]
mod common;

use std::sync::Once;

use common::{cast, gaussian, orthogonal, weight_of};
use dalr::{
    ActivationPruning, ActivationStats, Compressed, Dalr, Linear, LowRankCompressor, Rank, Ridge, Scalar, Solver,
    TruncatedSvd, select_ridge,
};
use faer::{Col, Mat, MatRef};
use rand::SeedableRng;
use rand::rngs::StdRng;

const RUNS: usize = 10;

/// Sets two threads, on any machine. Call this before any code starts rayon's pool.
fn two_threads() {
    static POOL: Once = Once::new();
    POOL.call_once(|| rayon::ThreadPoolBuilder::new().num_threads(2).build_global().unwrap());
}

/// Returns the results with one and with two threads, after checking that each is the same in every
/// run.
#[track_caller]
fn repeated<R: PartialEq>(what: &str, run: impl Fn(usize) -> R) -> [R; 2] {
    [1, 2].map(|threads| {
        let first = run(threads);
        assert!((1..RUNS).all(|_| run(threads) == first), "{what}: other bits on {threads} threads");
        first
    })
}

fn bits<'a>(numbers: impl Iterator<Item = &'a f64>) -> Vec<u64> {
    numbers.map(|x| x.to_bits()).collect()
}

fn entries<T: Scalar>(matrix: MatRef<'_, T>) -> Vec<u64> {
    matrix.col_iter().flat_map(|column| column.iter().map(|x| x.to_f64().to_bits()).collect::<Vec<_>>()).collect()
}

/// Returns statistics from uneven batches, with and without weights. One part is merged.
fn gathered<T: Scalar>(inputs: MatRef<'_, T>, threads: usize) -> ActivationStats<T> {
    let (samples, features) = inputs.shape();
    let empty = || ActivationStats::new(features).with_threads(threads);
    let (mut stats, mut shard) = (empty(), empty());
    let cuts = [0, samples / 2, samples / 2 + 3, samples * 3 / 4, samples];
    for (index, cut) in cuts.windows(2).enumerate() {
        let batch = inputs.subrows(cut[0], cut[1] - cut[0]);
        let weights: Vec<f64> = (0..batch.nrows()).map(|row| 1.0 + (row % 3) as f64).collect();
        match index {
            0 => stats.update(batch),
            1 | 3 => stats.update_weighted(batch, &weights),
            _ => shard.update(batch),
        }
        .unwrap();
    }
    stats.merge(&shard).unwrap();
    stats
}

type PerInput<T> = fn(&ActivationStats<T>) -> dalr::Result<Col<f64>>;

/// Returns all results of statistics as one list, and their covariance.
fn said<T: Scalar>(stats: &ActivationStats<T>) -> (Vec<u64>, Mat<f64>) {
    let covariance = stats.covariance().unwrap();
    let columns: [PerInput<T>; 5] = [
        ActivationStats::mean,
        ActivationStats::maximum,
        ActivationStats::minimum,
        ActivationStats::mean_absolute,
        ActivationStats::activation_rates,
    ];
    let mut all = entries(covariance.as_ref());
    columns.iter().for_each(|column| all.extend(bits(column(stats).unwrap().iter())));
    all.extend([stats.total_weight().to_bits(), stats.effective_samples().to_bits(), stats.samples()]);
    (all, covariance)
}

fn check_statistics<T: Scalar>(features: usize, samples: usize, form: &str) {
    two_threads();
    let mut rng = StdRng::seed_from_u64(features as u64);
    let inputs = cast::<T>(gaussian(&mut rng, samples, features).as_ref());
    let what = format!("{features} inputs of {} bytes, {samples} samples", size_of::<T>());
    let [one, two] = repeated(&what, |threads| {
        let stats = gathered(inputs.as_ref(), threads);
        assert!(format!("{stats:?}").contains(form), "{what}: {stats:?}");
        said(&stats)
    });
    // Products of `f32` samples of wide layers are rounded to `f32`.
    let narrow = form == "covariance" && features >= 512;
    let rounding = if narrow { T::EPSILON } else { f64::EPSILON } * (samples as f64).sqrt();
    let spread = |at: (usize, usize)| (one.1[(at.0, at.0)] * one.1[(at.1, at.1)]).sqrt();
    let all = (0..features).flat_map(|i| (0..features).map(move |j| (i, j)));
    let worst = all.map(|at| (one.1[at] - two.1[at]).abs() / spread(at)).fold(0.0, f64::max);
    println!("{what}: threads differ by {:.2e} of √(samples) ε", worst / rounding);
    assert!(worst <= rounding, "{what}: {worst:e} > {rounding:e}");
}

#[test]
fn statistics() {
    check_statistics::<f32>(512, 700, "samples");
    check_statistics::<f32>(512, 1800, "covariance");
    check_statistics::<f32>(200, 900, "covariance");
    check_statistics::<f64>(300, 400, "samples");
    check_statistics::<f64>(300, 700, "covariance");
}

/// A layer and its inputs, whose leading dimensions are much larger than the others, in the weight
/// and in the data.
struct Case<T> {
    layer: Linear<T>,
    inputs: Mat<T>,
}

impl<T: Scalar> Case<T> {
    fn new((m, n, samples): (usize, usize, usize), leading: usize) -> Self {
        two_threads();
        let mut rng = StdRng::seed_from_u64(7);
        let (left, right) = (orthogonal(&mut rng, m, n), orthogonal(&mut rng, n, n));
        let spectrum =
            |j: usize| if j < leading { 2.0 - j as f64 / leading as f64 } else { 0.3 - 0.2 * j as f64 / n as f64 };
        let scaled = |matrix: &Mat<f64>| Mat::from_fn(matrix.nrows(), n, |i, j| matrix[(i, j)] * spectrum(j));
        let weight = scaled(&left) * &right;
        let inputs = scaled(&gaussian(&mut rng, samples, n)) * &right;
        let bias = gaussian(&mut rng, m, 1).col(0).iter().map(|&b| T::from_f64(b)).collect();
        Self { layer: Linear::new(cast(weight.as_ref()), Some(bias)).unwrap(), inputs: cast(inputs.as_ref()) }
    }

    fn stats(&self, form: &str) -> ActivationStats<T> {
        let stats = gathered(self.inputs.as_ref(), 1);
        assert!(format!("{stats:?}").contains(form), "{stats:?}");
        stats
    }
}

/// A compressor with the given number of threads.
type Run<'a, T> = &'a dyn Fn(usize) -> Box<dyn LowRankCompressor<T>>;

fn check_compressor<T: Scalar>(
    what: &str,
    case: &Case<T>,
    stats: &ActivationStats<T>,
    rank: usize,
    method: Run<'_, T>,
) {
    let [one, two] = repeated(what, |threads| {
        let decomposition = method(threads).solve(&case.layer, stats.into(), rank).unwrap();
        let compressed = decomposition.truncate(rank).unwrap();
        let (low, curve) = (compressed.layer(), (1..=rank).filter_map(|rank| decomposition.relative_error(rank)));
        let factors = [entries(low.down()), entries(low.up()), entries(low.bias().unwrap().as_mat())];
        let report = format!("{:?}", compressed.report());
        let numbers = [bits(decomposition.energies().iter()), curve.map(f64::to_bits).collect()];
        Same { parts: (factors, numbers, report), compressed }
    });
    let (one, two) = (one.compressed, two.compressed);
    let weight = weight_of(one.layer());
    let difference = (&weight - weight_of(two.layer())).norm_l2() / weight.norm_l2();
    let [a, b] = [&one, &two].map(|compressed| compressed.report().relative_error().unwrap());
    let size = (case.layer.in_features() + case.layer.out_features()) as f64;
    println!("{what}: {} threads differ by {difference:.1e}, errors by {:.1e}", one.report().solver, (a - b).abs());
    // An iteration stops at this distance from the optimal energy; for single precision it is
    // larger.
    let energy = match one.report().solver.starts_with("block Lanczos") {
        true if T::EPSILON > f64::EPSILON => 5e-5,
        true => 1e-12,
        false => 0.0,
    };
    assert!(difference <= T::EPSILON * size + f64::sqrt(energy), "{what}: {difference:e}");
    assert!((a * a - b * b).abs() <= T::EPSILON * size + energy, "{what}: {a} {b}");
}

/// A result and its bits, which are compared.
struct Same<T> {
    parts: ([Vec<u64>; 3], [Vec<u64>; 2], String),
    compressed: Compressed<T>,
}

impl<T> PartialEq for Same<T> {
    fn eq(&self, other: &Self) -> bool {
        self.parts == other.parts
    }
}

fn check_compressors<T: Scalar>() {
    for (samples, form) in [(150, "samples"), (750, "covariance")] {
        let case = Case::<T>::new((176, 168, samples), 12);
        let stats = case.stats(form);
        let check = |what: &str, method: Run<'_, T>| {
            check_compressor(&format!("{what}, {} bytes, {form}", size_of::<T>()), &case, &stats, 12, method);
        };
        for solver in [Solver::DenseEigen, Solver::BlockLanczos] {
            let with = |dalr: Dalr, threads| Box::new(dalr.with_solver(solver).with_threads(threads));
            check(&format!("svd, {solver:?}"), &|threads| {
                Box::new(TruncatedSvd::new().with_solver(solver).with_threads(threads))
            });
            check(&format!("default, {solver:?}"), &|threads| with(Dalr::new(), threads));
            check(&format!("paper, {solver:?}"), &|threads| with(Dalr::paper(3.0), threads));
        }
        check("svd+bc", &|threads| Box::new(TruncatedSvd::new().with_bias_correction(true).with_threads(threads)));
        for ridge in [Ridge::None, Ridge::Relative(0.1), Ridge::Exact(3.0)] {
            check(&format!("{ridge:?}"), &|threads| Box::new(Dalr::new().with_ridge(ridge).with_threads(threads)));
        }
    }
}

#[test]
fn compressors_and_solvers_in_single_precision() {
    check_compressors::<f32>();
}

#[test]
fn compressors_and_solvers_in_double_precision() {
    check_compressors::<f64>();
}

/// The layers are so large that block Lanczos or the dense algorithm runs in native precision.
#[test]
fn large_layers_in_single_precision() {
    for (samples, form) in [(260, "samples"), (1300, "covariance")] {
        for rank in [12, 70] {
            let case = Case::<f32>::new((320, 300, samples), rank);
            let stats = case.stats(form);
            check_compressor(&format!("rank {rank}, {form}"), &case, &stats, rank, &|threads| {
                Box::new(Dalr::new().with_threads(threads))
            });
        }
    }
}

fn check_choices<T: Scalar>() {
    for (samples, form) in [(150, "samples"), (750, "covariance")] {
        let case = Case::<T>::new((176, 168, samples), 12);
        let (stats, held_out) = (case.stats(form), Case::<T>::new((176, 168, 97), 12).stats("samples"));
        let candidates = [Ridge::None, Ridge::Shrinkage, Ridge::Relative(0.1), Ridge::Relative(1.0)];
        let ridge = || select_ridge(&case.layer, &stats, &held_out, Rank::Fixed(12), &candidates).unwrap();
        let first = ridge();
        assert!((1..RUNS).all(|_| ridge() == first));

        let outputs = gathered(case.layer.forward(case.inputs.as_ref()).unwrap().as_ref(), 2);
        for pruning in [ActivationPruning::mean(), ActivationPruning::max()] {
            let prune = || {
                let inputs = pruning.inputs(&case.layer, &stats, 12).unwrap();
                let run = inputs.forward(case.inputs.as_ref()).unwrap();
                (inputs, pruning.outputs(&case.layer, &outputs, 12).unwrap(), entries(run.as_ref()))
            };
            let first = prune();
            assert!((1..RUNS).all(|_| prune() == first));
        }
        // The default and the requested number of threads give the same bits if the numbers are
        // equal.
        let compress = |threads| {
            let compressed = Dalr::new().with_threads(threads).compress(&case.layer, &stats, Rank::Fixed(12)).unwrap();
            (entries(compressed.layer().down()), entries(compressed.layer().up()))
        };
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert!(compress(2) == compress(0) && compress(1) == alone.install(|| compress(0)));
        let inside = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        assert!(compress(1) == inside.install(|| compress(0)) && compress(2) == inside.install(|| compress(2)));
    }
}

#[test]
fn ridges_selected_inputs_pruned_and_threads_chosen() {
    check_choices::<f32>();
    check_choices::<f64>();
}
