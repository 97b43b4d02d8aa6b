//! Markdown tables of the cost by the shape of a problem and the number of threads, and of the
//! quality of the solver's choice.
//!
//! `cargo bench --bench cost -- [yardstick] [statistics] [phases] [growth] [threads] [grid]
//! [regression] [units]`; without arguments, all of them. Each time is the best of several runs, but
//! for the hidden units, which are selected once.

use std::cell::Cell;
use std::time::{Duration, Instant};

use dalr::compress::{HiddenUnitSelection, OutputMetric};
use dalr::covariance::PairedStats;
use dalr::solver::{PsdOperator, top_eigenpairs};
use dalr::{ActivationStats, Calibration, Dalr, Linear, LowRankCompressor, Rank, Ridge, Solver};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;

/// Inputs after a ReLU whose spectrum decays: 256 latent directions and a little noise. One sample
/// per row, contiguous.
struct Inputs {
    numbers: Vec<f32>,
    features: usize,
}

impl Inputs {
    fn new(samples: usize, features: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(1);
        let mut gaussian = |rows, columns| Mat::<f32>::from_fn(rows, columns, |_, _| rng.sample(StandardNormal));
        let latent = features.min(256);
        let decay = Mat::from_fn(latent, latent, |i, j| if i == j { (i as f32 + 1.0).powf(-0.8) } else { 0.0 });
        let mixing = decay * gaussian(latent, features);
        let outer = gaussian(samples, latent);
        let small = gaussian(512.min(samples), features);
        let mixed = outer * mixing;
        let entry = |i: usize, j: usize| (mixed[(i, j)] + 0.1 * small[(i % small.nrows(), j)]).max(0.0);
        let numbers = (0..samples * features).map(|at| entry(at / features, at % features)).collect();
        Self { numbers, features }
    }

    fn rows(&self, start: usize, count: usize) -> MatRef<'_, f32> {
        let numbers = &self.numbers[start * self.features..(start + count) * self.features];
        MatRef::from_row_major_slice(numbers, count, self.features)
    }

    fn samples(&self) -> usize {
        self.numbers.len() / self.features
    }

    fn stats(&self, samples: usize, batch: usize, threads: usize) -> ActivationStats<f32> {
        let mut stats = ActivationStats::new(self.features).with_threads(threads);
        for start in (0..samples).step_by(batch) {
            stats.update(self.rows(start, batch.min(samples - start))).expect("finite and as wide as announced");
        }
        stats
    }
}

fn layer(out_features: usize, in_features: usize) -> Linear<f32> {
    let mut rng = StdRng::seed_from_u64(2);
    let weight = Mat::from_fn(out_features, in_features, |_, _| rng.sample(StandardNormal));
    Linear::new(weight, None).expect("finite and not empty")
}

fn seconds(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

/// Returns the shortest time of at least three runs, and of more runs if they fit into 0.2 s.
fn best(mut run: impl FnMut()) -> f64 {
    let started = Instant::now();
    let (mut least, mut runs) = (f64::INFINITY, 0);
    while runs < 3 || started.elapsed() < Duration::from_millis(200) {
        least = least.min(seconds(&mut run));
        runs += 1;
    }
    least
}

fn compress(layer: &Linear<f32>, stats: &ActivationStats<f32>, rank: usize, solver: Solver, threads: usize) -> f64 {
    let method = Dalr::new().with_ridge(Ridge::None).with_solver(solver).with_threads(threads);
    best(|| {
        method.compress(layer, stats, Rank::Fixed(rank)).expect("a layer and statistics that fit");
    })
}

/// The whole job, from inputs and weight to the factors, beside the one product that no exact
/// predicted error can do without.
fn yardstick() {
    println!("\n## Time over that of one product, f32\n");
    println!("`W X` with the samples `X`; `W S` with their second moment `S`. Statistics count as part of the job.\n");
    println!(
        "| problem | shape, samples, rank | `W X` | `W S` | no ridge | / `W X` | / `W S` | default | / no ridge |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for (name, m, n, p, k) in [
        ("fc7", 4096, 4096, 5994, 256),
        ("half fc6", 2048, 12_544, 2997, 128),
        ("fc6", 4096, 25_088, 5994, 256),
        ("LLM up", 11_008, 4096, 16_384, 1024),
        ("LLM down", 4096, 11_008, 16_384, 1024),
    ] {
        let inputs = Inputs::new(p, n);
        let layer = layer(m, n);
        let product_of = |right: MatRef<'_, f32>| {
            let mut result = Mat::<f32>::zeros(m, right.ncols());
            seconds(|| matmul(result.as_mut(), Accum::Replace, layer.weight(), right, 1.0, Par::rayon(0)))
        };
        let solve = |ridge: Ridge| {
            seconds(|| {
                let stats = inputs.stats(p, 512, 0);
                let method = Dalr::new().with_ridge(ridge);
                method.compress(&layer, &stats, Rank::Fixed(k)).expect("a layer and statistics that fit");
            })
        };
        let mut least = [f64::INFINITY; 4];
        // In turn, so that a disturbance of the machine hits all of them.
        for _ in 0..3 {
            let square = inputs.rows(0, n.min(p));
            let per_column = product_of(square.transpose()) / square.nrows() as f64;
            let times = [
                product_of(inputs.rows(0, p).transpose()),
                per_column * n as f64,
                solve(Ridge::None),
                solve(Ridge::Shrinkage),
            ];
            least.iter_mut().zip(times).for_each(|(least, time)| *least = least.min(time));
        }
        let [outputs, moment, none, default] = least;
        println!(
            "| {name} | {m} × {n}, {p}, {k} | {outputs:.2} s | {moment:.2} s | {none:.2} s | {:.2} | {:.2} | {default:.2} s | {:.2} |",
            none / outputs,
            none / moment,
            default / none
        );
    }
}

fn statistics() {
    println!("\n## Statistics of 4096 inputs that have collapsed, f32\n");
    println!("| batch | samples | time | n² p per second |\n|---|---|---|---|");
    let features = 4096;
    let inputs = Inputs::new(16_384, features);
    for batch in [32, 256, 512, 2048, 8192] {
        // The first samples are not timed. After them, the object is in covariance form and no
        // longer grows.
        let mut stats = inputs.stats(8704, 8704, 0);
        let time = best(|| {
            for at in (0..8192).step_by(batch) {
                stats.update(inputs.rows(at, batch)).expect("finite and as wide as announced");
            }
        });
        let rate = (features * features) as f64 * 8192.0 / time;
        println!("| {batch} | 8192 | {time:.3} s | {:.0} G |", rate / 1e9);
    }
}

/// The operator `Z Zᵀ`, which measures the time of its products.
struct Timed<'a> {
    outputs: MatRef<'a, f32>,
    seconds: Cell<f64>,
    vectors: Cell<usize>,
}

fn product(left: MatRef<'_, f32>, right: MatRef<'_, f32>) -> Mat<f32> {
    let mut result = Mat::zeros(left.nrows(), right.ncols());
    matmul(result.as_mut(), Accum::Replace, left, right, 1.0, Par::rayon(0));
    result
}

impl PsdOperator<f32> for Timed<'_> {
    fn dimension(&self) -> usize {
        self.outputs.nrows()
    }

    fn apply(&self, block: MatRef<'_, f32>, mut result: MatMut<'_, f32>) -> dalr::Result<()> {
        let time = seconds(|| {
            result.copy_from(product(self.outputs, product(self.outputs.transpose(), block).as_ref()));
        });
        self.seconds.set(self.seconds.get() + time);
        self.vectors.set(self.vectors.get() + block.ncols());
        Ok(())
    }

    fn trace(&self) -> dalr::Result<f64> {
        Ok(self.outputs.squared_norm_l2().into())
    }
}

fn phases() {
    println!("\n## Where the time goes: 4096 × 4096, 5994 samples, f32\n");
    println!("| phase | time | multiply–adds per second | share of a large product's rate |\n|---|---|---|---|");
    let (n, p, k) = (4096, 5994, 256);
    let inputs = Inputs::new(p, n);
    let weight = layer(n, n).weight().to_owned();
    let square = Mat::<f32>::from_fn(n, n, |i, j| ((i * 7 + j * 5) % 11) as f32 - 5.0);
    let mut result = Mat::<f32>::zeros(n, n);
    let reference = |time: f64| (n as f64).powi(3) / time;
    let whole = reference(best(|| {
        matmul(result.as_mut(), Accum::Replace, square.as_ref(), square.as_ref(), 1.0, Par::rayon(0))
    }));
    let row = |phase: &str, time: f64, work: f64| {
        println!("| {phase} | {time:.3} s | {:.0} G | {:.0} % |", work / time / 1e9, work / time / whole * 100.0);
    };
    row("a product of 4096 × 4096 matrices, the reference", (n as f64).powi(3) / whole, (n as f64).powi(3));
    let size = |a: usize, b: usize, c: usize| a as f64 * b as f64 * c as f64;
    println!("| statistics, samples kept | {:.3} s | | |", best(|| drop(inputs.stats(p, 512, 0))));
    let more = Inputs::new(1024, n);
    let repeated = Mat::<f32>::from_fn(8704, n, |i, j| more.numbers[i % 1024 * n + j]);
    let mut collapsed = ActivationStats::new(n);
    collapsed.update(repeated.as_ref()).expect("finite");
    // A symmetric update has half of the multiply–adds of a product.
    let time = best(|| {
        for _ in 0..4 {
            collapsed.update(more.rows(0, 1024)).expect("finite");
        }
    });
    row("statistics, collapsed: 4096 more samples", time, size(n, n, 4096) / 2.0);
    let mut outputs = Mat::zeros(n, p);
    let form = best(|| {
        matmul(outputs.as_mut(), Accum::Replace, weight.as_ref(), inputs.rows(0, p).transpose(), 1.0, Par::rayon(0));
    });
    row("outputs `Z = W X`", form, size(n, n, p));
    let operator = Timed { outputs: outputs.as_ref(), seconds: Cell::new(0.0), vectors: Cell::new(0) };
    let lanczos = seconds(|| {
        top_eigenpairs(&operator, k, Solver::BlockLanczos, 0).expect("a Gram matrix");
    });
    let vectors = operator.vectors.get();
    row(
        &format!("block Lanczos, {k} pairs: products with {vectors} vectors"),
        operator.seconds.get(),
        size(2 * n, p, vectors),
    );
    let orthogonalising = 4.0 * size(n, vectors, vectors) / 2.0;
    row("block Lanczos: orthogonalisation, Ritz values, tests", lanczos - operator.seconds.get(), orthogonalising);
    let up = Mat::<f32>::from_fn(n, k, |i, j| if i == j { 1.0 } else { 0.0 });
    let factors = best(|| {
        drop(product(up.transpose(), weight.as_ref()));
        drop(product(outputs.transpose(), up.as_ref()));
    });
    row("`down` and the predicted error", factors, size(n, k, n + p));
    let gram = best(|| {
        let outputs = outputs.as_ref();
        let lower = faer::linalg::matmul::triangular::BlockStructure::TriangularLower;
        let full = faer::linalg::matmul::triangular::BlockStructure::Rectangular;
        let target = result.as_mut();
        faer::linalg::matmul::triangular::matmul(
            target,
            lower,
            Accum::Replace,
            outputs,
            full,
            outputs.transpose(),
            full,
            1.0,
            Par::rayon(0),
        );
    });
    row("dense: forming `Z Zᵀ`", gram, size(n, n, p) / 2.0);
    let mut mirrored = result.clone();
    for column in 0..n {
        for row in 0..column {
            mirrored[(row, column)] = mirrored[(column, row)];
        }
    }
    let dense = seconds(|| {
        mirrored.self_adjoint_eigen(faer::Side::Lower).expect("finite");
    });
    row("dense: its eigendecomposition (`6 d³`)", dense, 6.0 * (n as f64).powi(3));
}

fn growth() {
    println!("\n## Growth: time of statistics and of compression, f32, no ridge\n");
    println!("| out | in | samples | rank | statistics | compression |\n|---|---|---|---|---|---|");
    let (out, inputs, samples, rank) = (2048, 2048, 3000, 64);
    let mut shapes = Vec::new();
    shapes.extend([512, 1024, 2048, 4096, 8192].map(|m| (m, inputs, samples, rank)));
    shapes.extend([512, 1024, 2048, 4096, 8192].map(|n| (out, n, samples, rank)));
    shapes.extend([1000, 2000, 4000, 8000, 16_000, 32_000].map(|p| (out, 1024, p, rank)));
    shapes.extend([16, 32, 64, 128, 256, 512].map(|k| (out, inputs, samples, k)));
    let mut made: Option<Inputs> = None;
    for (m, n, p, k) in shapes {
        if made.as_ref().is_none_or(|inputs| inputs.features != n || inputs.samples() < p) {
            made = Some(Inputs::new(if n == 1024 { 32_000.max(p) } else { p }, n));
        }
        let Some(inputs) = &made else { continue };
        let gather = best(|| drop(inputs.stats(p, 512, 0)));
        let stats = inputs.stats(p, 512, 0);
        let solve = compress(&layer(m, n), &stats, k, Solver::Auto, 0);
        println!("| {m} | {n} | {p} | {k} | {gather:.3} s | {solve:.3} s |");
    }
}

fn threads() {
    println!("\n## One and two threads: VGG19's fc7, 4096 × 4096, 5994 samples, rank 256\n");
    println!("| | 1 thread | 2 threads | ratio |\n|---|---|---|---|");
    let inputs = Inputs::new(8192, 4096);
    let layer = layer(4096, 4096);
    let stats = inputs.stats(5994, 512, 0);
    let row = |name: &str, run: &dyn Fn(usize) -> f64| {
        let (one, two) = (run(1), run(2));
        println!("| {name} | {one:.2} s | {two:.2} s | {:.2} |", one / two);
    };
    let square = Mat::<f32>::from_fn(4096, 4096, |i, j| ((i * 7 + j * 5) % 11) as f32 - 5.0);
    let mut result = Mat::<f32>::zeros(4096, 4096);
    let mut gemm = |threads| {
        best(|| matmul(result.as_mut(), Accum::Replace, square.as_ref(), square.as_ref(), 1.0, Par::rayon(threads)))
    };
    let (one, two) = (gemm(1), gemm(2));
    println!("| a product of 4096 × 4096 matrices | {one:.2} s | {two:.2} s | {:.2} |", one / two);
    row("compression", &|threads| compress(&layer, &stats, 256, Solver::Auto, threads));
    let collapsed = inputs.stats(8192, 8192, 0);
    row("statistics, collapsed: 8192 samples", &|threads| {
        let mut stats = collapsed.clone().with_threads(threads);
        stats.update(inputs.rows(0, 1024)).expect("finite");
        best(|| stats.update(inputs.rows(0, 8192)).expect("finite"))
    });
}

fn grid() {
    println!("\n## The solver chosen against the best of those that can be forced, f32, no ridge\n");
    println!("| out | in | samples | rank | auto | dense | Lanczos | auto / best |\n|---|---|---|---|---|---|---|---|");
    let mut worst = 0.0_f64;
    for (n, samples) in [(256, 400), (768, 600), (768, 3000), (1536, 1000), (1536, 6000), (3072, 2000)] {
        let inputs = Inputs::new(samples, n);
        let stats = inputs.stats(samples, 512, 0);
        for m in [256, 768, 3072] {
            let layer = layer(m, n);
            for share in [0.02, 0.1, 0.3] {
                let k = ((m.min(n) as f64 * share) as usize).max(1);
                let [auto, dense, lanczos] =
                    [Solver::Auto, Solver::DenseEigen, Solver::BlockLanczos].map(|s| compress(&layer, &stats, k, s, 0));
                let ratio = auto / dense.min(lanczos);
                worst = worst.max(ratio);
                println!("| {m} | {n} | {samples} | {k} | {auto:.4} s | {dense:.4} s | {lanczos:.4} s | {ratio:.2} |");
            }
        }
    }
    println!("\nWorst: {worst:.2}");
}

/// The price of an output metric and of paired inputs, beside the solve without them.
fn regression() {
    println!("\n## Output metric and paired inputs, f32, relative ridge 0.1\n");
    println!("| out | in | samples | rank | plain | metric / plain | paired / plain | both / plain |");
    println!("|---|---|---|---|---|---|---|---|");
    for (m, n, samples, rank) in [
        (384, 384, 4000, 96),
        (1536, 384, 4000, 96),
        (384, 1536, 4000, 96),
        (2048, 2048, 3000, 512),
        (4096, 4096, 5994, 1024),
    ] {
        let inputs = Inputs::new(samples, n);
        let stats = inputs.stats(samples, 512, 0);
        let original = inputs.rows(0, samples);
        let mut rng = StdRng::seed_from_u64(3);
        let compressed = Mat::from_fn(samples, n, |i, j| {
            let noise: f32 = rng.sample(StandardNormal);
            original[(i, j)] + 0.1 * noise
        });
        let mut paired = PairedStats::new(n);
        paired.update(original, compressed.as_ref()).expect("finite and of the same shape");
        let gradients = Inputs::new(1000, m).stats(1000, 1000, 0);
        let metric = OutputMetric::from_gradients(&gradients).expect("gradients that are not all zero");
        let layer = layer(m, n);
        let method = Dalr::new().with_ridge(Ridge::Relative(0.1));
        let time = |calibration: Calibration<'_, f32>| {
            best(|| {
                method.compress(&layer, calibration, Rank::Fixed(rank)).expect("a layer and statistics that fit");
            })
        };
        let plain = time(Calibration::from(&stats));
        let ratios = [
            Calibration::from(&stats).with_output_metric(&metric),
            Calibration::from(&paired),
            Calibration::from(&paired).with_output_metric(&metric),
        ]
        .map(|calibration| time(calibration) / plain);
        let [metric, paired, both] = ratios;
        println!("| {m} | {n} | {samples} | {rank} | {plain:.4} s | {metric:.2} | {paired:.2} | {both:.2} |");
    }
}

/// Hidden units, half of which are kept: the refit and the errors with every number up to it.
///
/// A selection of one unit after the other would read and write the second moment and the products
/// with the weight for every unit. The rate is that traffic over the time: above the memory's rate,
/// the selection works in blocks.
fn units() {
    println!("\n## Half of the hidden units, f32\n");
    println!(
        "| units | outputs | samples | time | multiply–adds per second | of a product in `f64` | GB/s unblocked |"
    );
    println!("|---|---|---|---|---|---|---|");
    let square = Mat::<f64>::from_fn(2048, 2048, |i, j| ((i * 7 + j * 3) % 11) as f64 - 5.0);
    let mut result = Mat::<f64>::zeros(2048, 2048);
    let product =
        best(|| matmul(result.as_mut(), Accum::Replace, square.as_ref(), square.as_ref(), 1.0, Par::rayon(0)));
    let full_rate = 2048.0_f64.powi(3) / product;
    for (h, m, samples) in [(1536, 384, 10_410), (4096, 1024, 16_384), (11_008, 4096, 22_016)] {
        let stats = Inputs::new(samples, h).stats(samples, 512, 0);
        let (first, second) = (layer(h, 64), layer(m, h));
        let selection = HiddenUnitSelection::new().with_max_units(h / 2);
        let time = seconds(|| {
            selection.solve(&first, &second, &stats).expect("layers and statistics that fit");
        });
        let (h, m, k) = (h as f64, m as f64, h as f64 / 2.0);
        let work = k * h * (h + m) + h * h * m;
        let traffic = 16.0 * k * h * (h + m) / time / 1e9;
        let rate = work / time;
        println!(
            "| {h} | {m} | {samples} | {time:.2} s | {:.1} G | {:.0} % | {traffic:.0} |",
            rate / 1e9,
            100.0 * rate / full_rate
        );
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let parts: [(&str, fn()); 8] = [
        ("yardstick", yardstick),
        ("statistics", statistics),
        ("phases", phases),
        ("growth", growth),
        ("threads", threads),
        ("grid", grid),
        ("regression", regression),
        ("units", units),
    ];
    for (name, part) in parts {
        if arguments.is_empty() || arguments.iter().any(|argument| argument == name) {
            part();
        }
    }
}
