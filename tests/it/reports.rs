//! Reports on small layers, compared with numbers computed by hand: names, warnings, resolutions.

use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Rank, Ridge, Warning};
use faer::{Col, Mat, mat};

fn stats(samples: usize, inputs: usize) -> ActivationStats<f64> {
    crate::common::stats(Mat::from_fn(samples, inputs, |i, j| ((i * 11 + j * 7 + i * j) % 13) as f64).as_ref())
}

fn layer(outputs: usize, inputs: usize, bias: Option<Col<f64>>) -> Linear<f64> {
    Linear::new(Mat::from_fn(outputs, inputs, |i, j| ((i * 3 + j * 5) % 7) as f64 - 3.0), bias).unwrap()
}

#[test]
fn as_many_samples_as_inputs_are_not_few() {
    for (samples, few) in [(4, true), (5, false), (6, false)] {
        let compressed = Dalr::new().compress(&layer(3, 5, None), &stats(samples, 5), Rank::Fixed(1)).unwrap();
        let warned = compressed.report().warnings.iter().any(|w| matches!(w, Warning::FewSamples { .. }));
        assert_eq!(warned, few, "{samples}");
    }
}

#[test]
fn methods_are_named_after_ridge_and_bias() {
    let (layer, stats) = (layer(4, 3, Some(Col::zeros(4))), stats(9, 3));
    for (ridge, correct, name) in [
        (Ridge::Paper(1.0), false, "dalr-paper"),
        (Ridge::Paper(1.0), true, "dalr-paper+bc"),
        (Ridge::Exact(1.0), false, "dalr-exact"),
        (Ridge::Exact(1.0), true, "dalr-exact+bc"),
        (Ridge::None, false, "dalr"),
        (Ridge::Shrinkage, true, "dalr"),
        (Ridge::Relative(1.0), true, "dalr"),
    ] {
        let method = Dalr::new().with_ridge(ridge).with_bias_correction(correct);
        let decomposition = method.decompose(&layer, &stats, 2).unwrap();
        assert_eq!(decomposition.truncate(2).unwrap().report().method(), name);
        let shown = format!("{decomposition:?}");
        assert!(shown.contains(name) && shown.contains("shape: (4, 3)") && shown.contains("max_rank: 2"), "{shown}");
    }
}

/// The common part of the inputs is 10⁶ times their difference, and the weight only uses the
/// difference.
#[test]
fn the_resolution_of_an_error_is_rounding_in_the_terms_that_cancel() {
    let layer = Linear::new(mat![[1.0, -1.0], [2.0, -2.0]], None).unwrap();
    let share = |i: usize| if i.is_multiple_of(2) { 1e6 } else { -1e6 };
    let differ = |i: usize, j: usize| if (i / 2 + j).is_multiple_of(2) { 0.5 } else { -0.5 };
    let stats = crate::common::stats(Mat::from_fn(8, 2, |i, j| share(i) + differ(i, j)).as_ref());
    // The energy is 1 + 4. Its terms are Σ_j ‖W_j‖² S_jj = 2 · 5 · 1e12, and the rounding is 4 n ε
    // times these.
    let expected = (8.0 * f64::EPSILON * 10.0 * 1e12 / 5.0_f64).sqrt();
    for ridge in [Ridge::None, Ridge::Exact(0.0)] {
        let method = Dalr::new().with_ridge(ridge).with_bias_correction(false);
        let compressed = method.compress(&layer, &stats, Rank::Fixed(1)).unwrap();
        let found = compressed.report().warnings.iter().find_map(|warning| match warning {
            Warning::BelowResolution { resolution } => Some(*resolution),
            _ => None,
        });
        let found = found.expect("an error of zero");
        assert!((found / expected - 1.0).abs() < 1e-3, "{ridge:?}: {found:e} {expected:e}");
    }
}
