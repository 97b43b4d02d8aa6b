//! Every error with its message, and a check that nothing changes after an error.

use crate::common::Spectrum;
use dalr::{
    ActivationPruning, ActivationStats, Dalr, Error, Linear, LowRankCompressor, LowRankLinear, Rank, Ridge,
    TruncatedSvd, relative_output_error, select_ridge,
};
use faer::{Col, Mat, col, mat};

fn problem() -> (Linear<f64>, ActivationStats<f64>) {
    let recipe = crate::common::Recipe {
        seed: 1,
        out_features: 6,
        in_features: 4,
        samples: 20,
        weight: Spectrum::Arithmetic,
        data: Spectrum::Arithmetic,
        mean: 1.0,
        scale: 1.0,
    };
    let problem = recipe.cook();
    (problem.layer(), problem.stats())
}

#[track_caller]
fn refused<T: core::fmt::Debug>(result: Result<T, Error>, message: &str) {
    assert_eq!(result.unwrap_err().to_string(), message);
}

#[test]
fn layers() {
    let weight = || mat![[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]];
    refused(Linear::new(Mat::<f32>::zeros(0, 3), None), "Linear::new: the weight must not be empty");
    refused(Linear::new(Mat::<f32>::zeros(3, 0), None), "Linear::new: the weight must not be empty");
    refused(
        Linear::new(weight(), Some(col![1.0, 2.0])),
        "Linear::new: expected 3 entries in the bias (one per output), got 2",
    );
    refused(
        Linear::new(weight(), Some(col![1.0, f64::NEG_INFINITY, 2.0])),
        "Linear::new: expected finite numbers in the bias, got -inf at row 1, column 0 (counted from 0)",
    );
    refused(
        Linear::new(mat![[1.0, 2.0], [f32::NAN, f32::INFINITY]], None),
        "Linear::new: expected finite numbers in the weight, got NaN at row 1, column 0 (counted from 0)",
    );
    refused(
        LowRankLinear::new(Mat::<f32>::zeros(2, 3), Mat::zeros(5, 0), None),
        "LowRankLinear::new: the factor `up` must not be empty",
    );
    refused(
        LowRankLinear::new(Mat::<f32>::zeros(2, 3), Mat::zeros(5, 4), None),
        "LowRankLinear::new: expected 2 columns in the factor `up` (one per row of `down`), got 4",
    );
    refused(
        LowRankLinear::new(Mat::<f32>::zeros(2, 3), Mat::zeros(5, 2), Some(Col::zeros(4))),
        "LowRankLinear::new: expected 5 entries in the bias (one per output), got 4",
    );
    let layer = Linear::new(weight(), None).unwrap();
    refused(
        layer.forward(mat![[1.0, 2.0, 3.0]].as_ref()),
        "Linear::forward: expected 2 columns in the inputs (one per input of the layer), got 3",
    );
    refused(layer.forward(Mat::zeros(0, 2).as_ref()), "Linear::forward: the batch of inputs must not be empty");
    refused(
        layer.forward(mat![[0.0, f64::NAN]].as_ref()),
        "Linear::forward: expected finite numbers in the inputs, got NaN at row 0, column 1 (counted from 0)",
    );
    refused(
        layer.forward(mat![[1e308, 1e308]].as_ref()),
        "Linear::forward: the result overflows: use smaller numbers, or a larger type such as `f64`",
    );
}

#[test]
fn statistics() {
    let (_, mut stats) = problem();
    let before = (stats.samples(), stats.mean().unwrap(), stats.covariance().unwrap());
    refused(
        stats.update(Mat::zeros(3, 5).as_ref()),
        "ActivationStats::update: expected 4 columns in the batch (one per input), got 5",
    );
    refused(stats.update(Mat::zeros(0, 4).as_ref()), "ActivationStats::update: the batch must not be empty");
    let mut bad = Mat::zeros(3, 4);
    bad[(2, 1)] = f64::NAN;
    refused(
        stats.update(bad.as_ref()),
        "ActivationStats::update: expected finite numbers in the batch, got NaN at row 2, column 1 (counted from 0)",
    );
    bad[(2, 1)] = f64::INFINITY;
    refused(
        stats.update_weighted(bad.as_ref(), &[0.0, 0.0, 0.0]),
        "ActivationStats::update_weighted: expected finite numbers in the batch, got inf at row 2, column 1 (counted from 0)",
    );
    refused(
        stats.update(Mat::full(1, 4, 1e200).as_ref()),
        "ActivationStats::update: the square of the activations overflows: use smaller numbers, or a larger type such as `f64`",
    );
    refused(
        stats.update_weighted(Mat::zeros(3, 4).as_ref(), &[1.0, 1.0]),
        "ActivationStats::update_weighted: expected 3 weights (one per row of the batch), got 2",
    );
    for (weight, shown) in [(-1.0, "-1"), (f64::NAN, "NaN"), (f64::INFINITY, "inf"), (1e-200, "1e-200")] {
        let shown = if weight == 1e-200 { format!("{weight}") } else { shown.to_string() };
        refused(
            stats.update_weighted(Mat::zeros(3, 4).as_ref(), &[1.0, weight, 1.0]),
            &format!(
                "ActivationStats::update_weighted: expected the weight of sample 1 to be 0 or between 1e-100 and 1e100, got {shown}"
            ),
        );
    }
    refused(
        stats.merge(&ActivationStats::new(5)),
        "ActivationStats::merge: expected 4 inputs in the statistics to merge, got 5",
    );
    refused(
        stats.fraction_gathering(0.0),
        "ActivationStats::fraction_gathering: expected the fraction to be in (0, 1], got 0",
    );
    assert_eq!(before, (stats.samples(), stats.mean().unwrap(), stats.covariance().unwrap()));

    let mut empty = ActivationStats::<f64>::new(0);
    refused(empty.update(Mat::zeros(2, 0).as_ref()), "ActivationStats::update: the layer's inputs must not be empty");
    let none = "expected statistics of at least one sample with a positive weight, got none";
    let mut unfed = ActivationStats::<f64>::new(3);
    unfed.update_weighted(Mat::zeros(2, 3).as_ref(), &[0.0, 0.0]).unwrap();
    refused(unfed.mean(), &format!("ActivationStats::mean: {none}"));
    refused(unfed.covariance(), &format!("ActivationStats::covariance: {none}"));
    refused(unfed.maximum(), &format!("ActivationStats::maximum: {none}"));
    refused(unfed.minimum(), &format!("ActivationStats::minimum: {none}"));
    refused(unfed.max_absolute(), &format!("ActivationStats::max_absolute: {none}"));
    refused(unfed.mean_absolute(), &format!("ActivationStats::mean_absolute: {none}"));
    refused(unfed.activation_rates(), &format!("ActivationStats::activation_rates: {none}"));
    refused(unfed.fraction_gathering(0.5), &format!("ActivationStats::fraction_gathering: {none}"));
}

#[test]
fn memory_limits() {
    let mut stats = ActivationStats::<f32>::new(10).with_memory_limit(2000);
    let batch = Mat::from_fn(7, 10, |i, j| (i * j) as f32);
    stats.update(batch.as_ref()).unwrap();
    let before = stats.covariance().unwrap();
    // 27 samples exceed the limit, and so do 7 samples with the scatter.
    let mut tight = stats.clone().with_memory_limit(900);
    refused(
        tight.update(Mat::zeros(20, 10).as_ref()),
        "ActivationStats::update: needs 1232 bytes, which exceeds the memory limit of 900 bytes",
    );
    refused(
        tight.merge(&{
            let mut other = ActivationStats::new(10);
            other.update(Mat::zeros(20, 10).as_ref()).unwrap();
            other
        }),
        "ActivationStats::merge: needs 1232 bytes, which exceeds the memory limit of 900 bytes",
    );
    assert_eq!(tight.covariance().unwrap(), before);
    stats.update(Mat::zeros(20, 10).as_ref()).unwrap();
    assert_eq!(stats.samples(), 27);
}

#[test]
fn ranks() {
    let (layer, stats) = problem();
    let compress = |rank| Dalr::new().compress(&layer, &stats, rank);
    for rank in [0, 5] {
        refused(
            compress(Rank::Fixed(rank)),
            &format!("LowRankCompressor::compress: expected a rank from 1 to 4 for a 6 × 4 weight, got {rank}"),
        );
        refused(
            Dalr::new().decompose(&layer, &stats, rank),
            &format!("Dalr::solve: expected a rank from 1 to 4 for a 6 × 4 weight, got {rank}"),
        );
    }
    refused(
        compress(Rank::ParameterRatio(1.5)),
        "LowRankCompressor::compress: expected the parameter ratio to be in (0, 1], got 1.5",
    );
    refused(
        compress(Rank::Energy(0.0)),
        "LowRankCompressor::compress: expected the energy fraction to be in (0, 1], got 0",
    );
    refused(
        compress(Rank::RelativeError(f64::NAN)),
        "LowRankCompressor::compress: expected the relative error to be in (0, 1], got NaN",
    );
    refused(
        compress(Rank::ParameterRatio(0.1)),
        "LowRankCompressor::compress: expected a parameter ratio of at least 0.416667, for rank 1 of a \
         6 × 4 weight, got 0.1",
    );
    refused(
        Dalr::new().with_rank_multiple(2).compress(&layer, &stats, Rank::Fixed(3)),
        "LowRankCompressor::compress: expected a rank that is a multiple of 2, got 3",
    );
    refused(
        TruncatedSvd::new().with_rank_multiple(0).compress(&layer, &stats, Rank::Fixed(3)),
        "LowRankCompressor::compress: expected the rank multiple to be at least 1, got 0",
    );
    refused(
        TruncatedSvd::new().compress(&layer, &ActivationStats::new(4), Rank::RelativeError(0.1)),
        "Decomposition::rank_for: expected statistics of at least one sample with a positive weight, got none",
    );
    let partial = Dalr::new().decompose(&layer, &stats, 2).unwrap();
    refused(partial.truncate(3), "Decomposition::truncate: expected a rank from 1 to the 2 solved for, got 3");
    refused(
        partial.rank_for(Rank::Energy(1.0), 1),
        "Decomposition::rank_for: expected a solve up to a rank that explains 1 of the eigenvalues' sum, got one up to rank 2",
    );
    refused(
        partial.rank_for(Rank::Fixed(4), 1),
        "Decomposition::rank_for: expected a rank up to the 2 solved for, got 4",
    );
    // With the paper's ridge, even the full rank does not reproduce the layer.
    let shrunk = Dalr::paper(1e6).compress(&layer, &stats, Rank::RelativeError(0.01)).unwrap_err();
    assert!(matches!(&shrunk, Error::Rank { expected, .. } if expected.ends_with("the smallest of all solved ranks")));
}

#[test]
fn methods() {
    let (layer, stats) = problem();
    for (ridge, shown) in [
        (Ridge::Relative(-1.0), "-1"),
        (Ridge::Relative(f64::NAN), "NaN"),
        (Ridge::Paper(f64::INFINITY), "inf"),
        (Ridge::Exact(-0.5), "-0.5"),
    ] {
        refused(
            Dalr::new().with_ridge(ridge).decompose(&layer, &stats, 2),
            &format!("Dalr::solve: expected the ridge to be finite and not negative, got {shown}"),
        );
    }
    let none = "expected statistics of at least one sample with a positive weight, got none";
    let unfed = ActivationStats::new(4);
    refused(Dalr::new().decompose(&layer, &unfed, 2), &format!("Dalr::solve: {none}"));
    let corrected = TruncatedSvd::new().with_bias_correction(true);
    refused(corrected.decompose(&layer, &unfed, 2), &format!("TruncatedSvd::solve: {none}"));
    assert!(TruncatedSvd::new().decompose(&layer, &unfed, 2).is_ok());
    let narrow = ActivationStats::new(3);
    let width = "expected 4 inputs in the statistics (as the layer has), got 3";
    refused(TruncatedSvd::new().decompose(&layer, &narrow, 2), &format!("TruncatedSvd::solve: {width}"));
    refused(Dalr::new().decompose(&layer, &narrow, 2), &format!("Dalr::solve: {width}"));

    let compressed = Dalr::new().compress(&layer, &stats, Rank::Fixed(2)).unwrap();
    refused(compressed.evaluate(&layer, &unfed), &format!("Compressed::evaluate: {none}"));
    refused(compressed.evaluate(&layer, &narrow), &format!("Compressed::evaluate: {width}"));
    let other = Linear::new(Mat::zeros(5, 4), None).unwrap();
    refused(
        compressed.evaluate(&other, &stats),
        "Compressed::evaluate: expected 6 outputs in the layer (as its replacement has), got 5",
    );
    let other = Linear::new(Mat::zeros(6, 3), None).unwrap();
    refused(
        relative_output_error(&layer, &other, &stats),
        "relative_output_error: expected 3 inputs in the layer (as its replacement has), got 4",
    );
    let mut constant = ActivationStats::new(4);
    constant.update(Mat::ones(10, 4).as_ref()).unwrap();
    refused(
        compressed.evaluate(&layer, &constant),
        "Compressed::evaluate: expected the variance of the original outputs to be positive, so that an error can be \
         relative to it, got 0",
    );
    refused(
        select_ridge(&layer, &stats, &stats, Rank::Fixed(2), &[]),
        "select_ridge: the list of candidates must not be empty",
    );
    refused(
        ActivationPruning::mean().inputs(&layer, &narrow, 1),
        "ActivationPruning::inputs: expected 4 inputs in the statistics (as the layer has), got 3",
    );
    refused(ActivationPruning::mean().inputs(&layer, &unfed, 1), &format!("ActivationPruning::inputs: {none}"));
    refused(
        ActivationPruning::max().outputs(&layer, &stats, 1),
        "ActivationPruning::outputs: expected 6 outputs in the statistics (as the layer has), got 4",
    );
    refused(
        ActivationPruning::max().inputs(&layer, &stats, Rank::Energy(0.9)),
        "ActivationPruning::inputs: expected a rank that sets a parameter budget, `Fixed` or `ParameterRatio`, \
         got Energy(0.9)",
    );
    refused(
        ActivationPruning::max().inputs(&layer, &stats, 0),
        "ActivationPruning::inputs: expected a rank from 1 to 4 for a 6 × 4 weight, got 0",
    );
}

#[test]
fn numbers_out_of_range() {
    let (_, stats) = problem();
    // The weights are finite, but their energies are not.
    let huge = Linear::new(Mat::from_fn(6, 4, |i, j| if i % 4 == j { 1e300 } else { 0.0 }), None).unwrap();
    refused(
        Dalr::new().compress(&huge, &stats, Rank::Fixed(2)),
        "Dalr::solve: the energy of the outputs overflows: use smaller numbers, or a larger type such as `f64`",
    );
    // The inputs are not zero, but their squares underflow. Inputs of zero are allowed.
    let layer = Linear::new(Mat::from_fn(6, 4, |i, j| (i * j) as f64), Some(Col::zeros(6))).unwrap();
    for (base, step) in [(0.0, 1e-170), (0.0, 5e-324), (1e-200, 1e-201)] {
        let mut tiny = ActivationStats::new(4);
        tiny.update(Mat::from_fn(9, 4, |i, j| base + step * ((i + j) % 3) as f64).as_ref()).unwrap();
        let spread = tiny.maximum().unwrap()[0] - tiny.minimum().unwrap()[0];
        refused(
            Dalr::new().compress(&layer, &tiny, Rank::Fixed(2)),
            &format!(
                "Dalr::solve: expected the largest spread of any input to be at least 1e-161 (the squares of \
                 smaller numbers underflow; multiply the inputs by a power of ten), got {spread}"
            ),
        );
        assert!(TruncatedSvd::new().compress(&layer, &tiny, Rank::Fixed(2)).is_err());
    }
    let mut constant = ActivationStats::new(4);
    constant.update(Mat::full(9, 4, 1e-200).as_ref()).unwrap();
    assert!(Dalr::new().compress(&layer, &constant, Rank::Fixed(2)).is_ok());
    assert!(Dalr::paper(1.0).compress(&layer, &constant, Rank::Fixed(2)).is_err());
    // The layer is in the range of `f32`, but its corrected bias is not.
    let layer = Linear::new(mat![[3e38_f32, 0.0], [0.0, 1.0]], Some(col![0.0, 0.0])).unwrap();
    let mut stats = ActivationStats::new(2);
    stats.update(mat![[-10.0_f32, 1e6], [-10.0, -1e6], [-10.0, 1e12]].as_ref()).unwrap();
    let blind = Dalr::new().with_ridge(Ridge::None).decompose(&layer, &stats, 2).unwrap();
    assert!(blind.truncate(2).is_ok());
    refused(
        blind.truncate(1),
        "Decomposition::truncate: the corrected bias overflows: use smaller numbers, or a larger type such as `f64`",
    );
    let layer = Linear::new(Mat::full(2, 2, 3e38_f32), None).unwrap();
    refused(
        TruncatedSvd::new().compress(&layer, &stats, Rank::Fixed(1)),
        "TruncatedSvd::solve: the factor `down` overflows: use smaller numbers, or a larger type such as `f64`",
    );
}

#[test]
fn energies_of_which_only_the_sum_is_too_large() {
    // Each output has an energy of about 1e308.
    let layer = Linear::new(Mat::from_fn(4, 4, |i, j| if i == j { 1e154 } else { 0.0 }), None).unwrap();
    let sign = |i: usize| if i < 4 { 2.0 } else { -2.0 };
    let mut stats = ActivationStats::new(4);
    stats.update(Mat::from_fn(8, 4, |i, j| if i % 4 == j { sign(i) } else { 0.0 }).as_ref()).unwrap();
    for ridge in [Ridge::None, Ridge::Shrinkage, Ridge::Exact(1e-9)] {
        refused(
            Dalr::new().with_ridge(ridge).decompose(&layer, &stats, 2),
            "Dalr::solve: the energy of the outputs overflows: use smaller numbers, or a larger type such as `f64`",
        );
    }
}

/// An error of a library, a file or a caller's function is the source of the crate's error.
#[test]
fn errors_keep_their_source() {
    use std::error::Error as _;

    #[derive(Debug, PartialEq, thiserror::Error)]
    #[error("no device")]
    struct NoDevice;
    let (layer, stats) = problem();
    let decomposition = Dalr::new().decompose(&layer, &stats, 4).unwrap();
    let profiles = [dalr::network::LayerProfile::new("fc", &decomposition)];
    let search = dalr::network::JointSearch::new(0.1);
    let failing = |_: &_| Err(NoDevice);
    let ignore = &mut dalr::network::Progress::ignore;
    let error = search.run(&profiles, &mut Vec::new(), failing, ignore).unwrap_err();
    assert!(matches!(error, Error::Callback { .. }), "{error}");
    assert_eq!(error.source().and_then(|source| source.downcast_ref()), Some(&NoDevice));
    // A clone has the same source.
    assert_eq!(error.clone().source().and_then(|source| source.downcast_ref()), Some(&NoDevice));

    #[cfg(feature = "safetensors")]
    {
        let missing = std::env::temp_dir().join("dalr-no-such-folder").join("stats.safetensors");
        let errors = [stats.save(&missing).unwrap_err(), ActivationStats::<f64>::load(&missing).unwrap_err()];
        for error in errors {
            assert!(matches!(error, Error::Io { .. }), "{error}");
            let source = error.source().and_then(|source| source.downcast_ref::<std::sync::Arc<std::io::Error>>());
            assert_eq!(source.map(|source| source.kind()), Some(std::io::ErrorKind::NotFound));
        }
    }
}
