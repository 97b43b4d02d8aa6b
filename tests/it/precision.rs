//! Solves in native precision: large `f32` layers, with both forms of the statistics, compared with
//! the same problem in `f64`.

use crate::common::{cast, gaussian};
use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Rank, Ridge, Solver, TruncatedSvd};
use faer::{Col, Mat, MatRef};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// Returns a random weight, and inputs with a decaying spectrum, a mean, and two constant inputs.
fn problem(m: usize, n: usize, p: usize) -> (Mat<f32>, Mat<f32>) {
    let mut rng = StdRng::seed_from_u64((m * 31 + n * 7 + p) as u64);
    let decay = |i: usize| 0.99_f64.powi(i as i32) + 0.05;
    let mixing = gaussian(&mut rng, n, n);
    let mixing = Mat::from_fn(n, n, |i, j| decay(i) * mixing[(i, j)] / (n as f64).sqrt());
    let mut inputs = gaussian(&mut rng, p, n) * mixing;
    for row in 0..p {
        for (column, constant) in [(3, 0.0), (n - 1, 7.0)] {
            inputs[(row, column)] = constant;
        }
    }
    (cast(gaussian(&mut rng, m, n).as_ref()), cast(inputs.as_ref()))
}

fn stats(inputs: MatRef<'_, f32>) -> ActivationStats<f32> {
    let mut stats = ActivationStats::new(inputs.ncols());
    // The size of the batches leaves some samples in the buffer.
    for start in (0..inputs.nrows()).step_by(300) {
        stats.update(inputs.subrows(start, 300.min(inputs.nrows() - start))).unwrap();
    }
    stats
}

fn wide(matrix: MatRef<'_, f32>) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| f64::from(matrix[(i, j)]))
}

/// Returns the squared error of the replacement relative to the outputs, on the centred inputs, in
/// `f64`, from the factors.
fn squared_error(weight: &Mat<f32>, low: &dalr::LowRankLinear<f32>, inputs: MatRef<'_, f32>) -> f64 {
    let inputs = wide(inputs);
    let mean = Mat::<f64>::ones(1, inputs.nrows()) * &inputs * faer::Scale(1.0 / inputs.nrows() as f64);
    let centred = Mat::from_fn(inputs.nrows(), inputs.ncols(), |i, j| inputs[(i, j)] - mean[(0, j)]);
    let weight = wide(weight.as_ref());
    let difference = &weight - wide(low.up()) * wide(low.down());
    (&centred * difference.transpose()).squared_norm_l2() / (&centred * weight.transpose()).squared_norm_l2()
}

/// Returns the fraction of the energy that the eigenvalues leave out.
fn left(energies: &[f64], total: f64) -> f64 {
    1.0 - energies.iter().sum::<f64>() / total
}

/// Shapes that are solved in native precision, by different algorithms.
const SHAPES: [(usize, usize, usize, usize); 6] = [
    (700, 520, 400, 20),
    (700, 520, 1800, 20),
    (560, 700, 1300, 120),
    (1200, 520, 900, 130),
    (1200, 520, 1800, 130),
    (520, 700, 2600, 130),
];

/// Names of the algorithms that solve `f32` layers in `f32`.
const NATIVE: [&str; 2] = ["block Lanczos", "single precision"];

#[test]
#[ignore = "takes seconds: .ci/nightly runs it"]
fn native_precision_reaches_the_optimum_and_predicts_its_error() {
    for (m, n, p, rank) in SHAPES {
        let (weight, inputs) = problem(m, n, p);
        let layer = Linear::new(weight.clone(), Some(Col::zeros(m))).unwrap();
        let stats = stats(inputs.as_ref());
        for ridge in [Ridge::None, Ridge::Shrinkage, Ridge::Relative(1e-2)] {
            let name = format!("{m} × {n}, {p}, {ridge:?}");
            let method = Dalr::new().with_ridge(ridge);
            let solved = method.decompose(&layer, &stats, rank).unwrap();
            let ours = solved.truncate(rank).unwrap();
            let solver = &ours.report().solver;
            assert!(NATIVE.iter().any(|native| solver.contains(native)), "{name}: {solver}");
            let error = squared_error(&weight, ours.layer(), inputs.as_ref());
            let claimed = ours.report().relative_error().unwrap().powi(2);
            let rounding = 16.0 * f64::from(f32::EPSILON);
            assert!((error - claimed).abs() <= 1e-4 * error + rounding, "{name}: {error} {claimed}");

            // The same problem in f64, from statistics in f64.
            let mut exact = ActivationStats::<f64>::new(n);
            exact.update(wide(inputs.as_ref()).as_ref()).unwrap();
            let exact_layer = Linear::new(wide(weight.as_ref()), Some(Col::zeros(m))).unwrap();
            let optimum = method.with_solver(Solver::DenseEigen).decompose(&exact_layer, &exact, rank).unwrap();
            // With a ridge, the objective is not only the error.
            let (own, least) =
                (left(solved.energies(), solved.total_energy()), left(optimum.energies(), optimum.total_energy()));
            assert!((own - least).abs() <= 1e-4 * least + rounding, "{name}: {own} {least}");
            if ridge == Ridge::None {
                let least = optimum.relative_error(rank).unwrap().powi(2);
                assert!(error <= least * (1.0 + 1e-4) + rounding, "{name}: {error} {least}");
            } else {
                let svd = TruncatedSvd::new().with_bias_correction(true);
                let svd = svd.compress(&layer, &stats, Rank::Fixed(rank)).unwrap();
                let svd_error = squared_error(&weight, svd.layer(), inputs.as_ref());
                assert!(error < svd_error, "{name}: {error} {svd_error}");
                let claimed = svd.report().relative_error().unwrap().powi(2);
                assert!((svd_error - claimed).abs() <= 1e-4 * svd_error + rounding, "{name}: {svd_error} {claimed}");
            }
        }
    }
}
