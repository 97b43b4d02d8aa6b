//! Data that determine fewer directions than a layer has.

use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Rank, Ridge, Solver, Warning};
use faer::Mat;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::common::{gaussian, stats};

/// Rank-deficient data in covariance form: in null directions, the covariance is only rounding.
#[test]
fn collapsed_statistics_of_deficient_data_are_solved() {
    let mut rng = StdRng::seed_from_u64(13);
    let (m, n, p) = (120, 540, 1700);
    let inputs: Mat<f32> = crate::common::cast((gaussian(&mut rng, p, 30) * gaussian(&mut rng, 30, n)).as_ref());
    let weight: Mat<f32> = crate::common::cast(gaussian(&mut rng, m, n).as_ref());
    let layer = Linear::new(weight, None).unwrap();
    let stats = stats(inputs.as_ref());
    assert!(format!("{stats:?}").contains("covariance"));
    for solver in [Solver::Auto, Solver::DenseEigen, Solver::BlockLanczos] {
        for rank in [10, 30, 60] {
            let dalr = Dalr::new().with_ridge(Ridge::None).with_solver(solver);
            let compressed = dalr.compress(&layer, &stats, Rank::Fixed(rank)).unwrap();
            let error = compressed.evaluate(&layer, &stats).unwrap();
            // The remaining error is the rounding of a scatter in single precision.
            assert!(error < if rank < 30 { 0.9 } else { 1e-3 }, "{solver:?}, {rank}: {error}");
            let filled = compressed.report().warnings.iter().any(|w| matches!(w, Warning::Filled { .. }));
            assert_eq!(filled, rank > 30, "{solver:?}, {rank}: {}", compressed.report());
        }
    }
}

/// Merging keeps what is known of the rounding in a scatter.
#[test]
fn merged_statistics_of_deficient_data_are_solved() {
    let mut rng = StdRng::seed_from_u64(13);
    let (m, n, p) = (120, 540, 1700);
    let basis = gaussian(&mut rng, 30, n);
    let mut part = || {
        let inputs: Mat<f32> = crate::common::cast((gaussian(&mut rng, p, 30) * &basis).as_ref());
        stats(inputs.as_ref())
    };
    let (first, second) = (part(), part());
    let weight: Mat<f32> = crate::common::cast(gaussian(&mut StdRng::seed_from_u64(14), m, n).as_ref());
    let layer = Linear::new(weight, None).unwrap();
    let mut copy = ActivationStats::new(n);
    copy.merge(&first).unwrap();
    let mut both = first.clone();
    both.merge(&second).unwrap();
    for stats in [&copy, &both] {
        let compressed = Dalr::new().with_ridge(Ridge::None).compress(&layer, stats, Rank::Fixed(60)).unwrap();
        let filled = Warning::Filled { determined: 30, rank: 60 };
        assert!(compressed.report().warnings.contains(&filled), "{}", compressed.report());
    }
}

/// Rows of zeros add nothing to the numerical rank.
#[test]
fn outputs_that_are_always_zero_need_no_rank() {
    let mut rng = StdRng::seed_from_u64(14);
    let (m, n, p) = (20, 540, 1700);
    let inputs: Mat<f32> = crate::common::cast(gaussian(&mut rng, p, n).as_ref());
    let mut weight: Mat<f32> = crate::common::cast(gaussian(&mut rng, m, n).as_ref());
    weight.get_mut(15.., ..).fill(0.0);
    let layer = Linear::new(weight, None).unwrap();
    let dalr = Dalr::new().with_ridge(Ridge::None);
    assert_eq!(dalr.compress(&layer, &stats(inputs.as_ref()), Rank::Energy(1.0)).unwrap().layer().rank(), 15);
}

/// The directions that eight samples leave open are the leading ones of what is left of the weight.
#[test]
fn null_directions_of_large_layers_are_filled_from_the_weight() {
    let mut rng = StdRng::seed_from_u64(3);
    let n = 400;
    let layer = Linear::new(gaussian(&mut rng, n, n), None).unwrap();
    let stats = stats(gaussian(&mut rng, 8, n).as_ref());
    let compressed = Dalr::new().with_ridge(Ridge::None).compress(&layer, &stats, Rank::Fixed(12)).unwrap();
    assert!(compressed.report().warnings.contains(&Warning::Filled { determined: 8, rank: 12 }));
    let up = compressed.layer().up();
    assert!((up.transpose() * up - Mat::<f64>::identity(12, 12)).norm_max() < 1e-12);
    let known = up.subcols(0, 8);
    let rest = layer.weight() - known * (known.transpose() * layer.weight());
    let found = (up.subcols(8, 4).transpose() * &rest).squared_norm_l2();
    let best: f64 = rest.singular_values().unwrap().iter().take(4).map(|value| value * value).sum();
    assert!((found / best - 1.0).abs() < 1e-9, "{found} {best}");
}
