//! Configuration and reports survive a round trip through JSON.
#![cfg(feature = "serde")]

use dalr::{
    ActivationPruning, ActivationStats, Dalr, Linear, LowRankCompressor, Rank, Report, Ridge, Solver, TruncatedSvd,
};
use faer::Mat;
use serde::Serialize;
use serde::de::DeserializeOwned;

#[track_caller]
fn round_trip<V: Serialize + DeserializeOwned + PartialEq + core::fmt::Debug>(value: V) {
    let text = serde_json::to_string(&value).unwrap();
    assert_eq!(serde_json::from_str::<V>(&text).unwrap(), value, "{text}");
}

#[test]
fn configuration_and_reports() {
    for rank in [Rank::Fixed(3), Rank::ParameterRatio(0.4), Rank::Energy(0.9), Rank::RelativeError(0.1)] {
        round_trip(rank);
    }
    for ridge in [Ridge::None, Ridge::Shrinkage, Ridge::Anchored(0.1), Ridge::Paper(10.0), Ridge::Exact(1.0)] {
        round_trip(ridge);
        round_trip(Dalr::new().with_ridge(ridge).with_bias_correction(true).with_solver(Solver::BlockLanczos));
    }
    round_trip(TruncatedSvd::new().with_bias_correction(true).with_rank_multiple(8).with_threads(2));
    round_trip(ActivationPruning::max());

    let layer = Linear::new(Mat::from_fn(6, 4, |i, j| (i * j) as f64 + 1.0), None).unwrap();
    let mut stats = ActivationStats::new(4);
    stats.update(Mat::from_fn(3, 4, |i, j| ((i * 7 + j * 5) % 11) as f64).as_ref()).unwrap();
    let report: Report = Dalr::new().compress(&layer, &stats, Rank::Fixed(3)).unwrap().report().clone();
    assert!(!report.warnings().is_empty());
    round_trip(report);
}
