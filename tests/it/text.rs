//! Configuration and layers as text, and conversions between layers.

use dalr::{
    ActivationPruning, ActivationStats, Dalr, Error, Linear, LowRankCompressor, LowRankLinear, Rank, Ridge, Solver,
};
use faer::{Col, Mat};

#[test]
fn configuration_is_read_as_it_is_printed() {
    #[track_caller]
    fn check<V>(value: V, text: &str)
    where
        V: core::str::FromStr<Err = Error> + ToString + PartialEq + core::fmt::Debug,
    {
        assert_eq!(value.to_string(), text);
        assert_eq!(text.parse::<V>().unwrap(), value);
    }
    check(Rank::Fixed(64), "64");
    check(Rank::ParameterRatio(0.4), "ratio:0.4");
    check(Rank::Energy(0.1 + 0.2), "energy:0.30000000000000004");
    check(Rank::RelativeError(1e-7), "error:0.0000001");
    check(Ridge::None, "none");
    check(Ridge::Shrinkage, "shrinkage");
    check(Ridge::Relative(0.03), "relative:0.03");
    check(Ridge::Paper(1000.0), "paper:1000");
    check(Ridge::Exact(0.5), "exact:0.5");
    check(Solver::Auto, "auto");
    check(Solver::DenseEigen, "dense-eigen");
    check(Solver::BlockLanczos, "block-lanczos");
    assert_eq!((Ridge::default(), Solver::default()), (Ridge::Shrinkage, Solver::Auto));
    assert_eq!(Dalr::default(), Dalr::new().with_solver(Solver::default()));
}

#[test]
fn other_text_is_refused_with_what_can_be_read() {
    for text in ["", "0.4", "-1", "ratio", "ratio:", "ratio:x", "Ratio:0.4", "error:0.1:2", "64 ", "relative:0.1"] {
        let error = text.parse::<Rank>().unwrap_err();
        assert!(matches!(&error, Error::Text { found, .. } if found == text), "{error}");
    }
    assert_eq!(
        "half".parse::<Rank>().unwrap_err().to_string(),
        "Rank::from_str: expected a number of dimensions, or one of ratio:0.4, energy:0.99, error:0.05, got `half`"
    );
    for text in ["", "None", "none:1", "anchored", "shrinkage:0.1", "paper:λ"] {
        assert!(matches!(text.parse::<Ridge>(), Err(Error::Text { .. })), "{text}");
    }
    assert!(matches!("dense".parse::<Solver>(), Err(Error::Text { .. })));
    // NaN is an error when it is used, with the allowed range.
    let rank = "ratio:nan".parse::<Rank>().unwrap();
    let layer = Linear::new(Mat::<f64>::identity(3, 3), None).unwrap();
    let mut stats = ActivationStats::new(3);
    stats.update(Mat::identity(3, 3).as_ref()).unwrap();
    assert!(matches!(Dalr::new().compress(&layer, &stats, rank), Err(Error::OutOfRange { .. })));
}

#[test]
fn layers_say_their_sizes_and_become_each_other() {
    let layer = Linear::new(Mat::from_fn(9, 6, |i, j| ((i * 5 + j * 3) % 7) as f64), Some(Col::ones(9))).unwrap();
    assert_eq!(layer.to_string(), "6 → 9");
    let mut stats = ActivationStats::new(6);
    stats.update(Mat::from_fn(40, 6, |i, j| ((i * 11 + j * j * 7) % 13) as f64).as_ref()).unwrap();
    let compressed = Dalr::new().compress(&layer, &stats, Rank::Fixed(2)).unwrap();
    let low: LowRankLinear<f64> = compressed.clone().into();
    assert_eq!(&low, compressed.layer());
    assert_eq!(low.to_string(), "6 → 2 → 9");
    assert_eq!(Linear::try_from(&low), low.to_linear());
    let pruned = ActivationPruning::mean().inputs(&layer, &stats, 2).unwrap();
    assert_eq!(Linear::try_from(&pruned), pruned.to_linear());
    let huge = LowRankLinear::new(Mat::full(1, 2, 1e200), Mat::full(2, 1, 1e200), None).unwrap();
    assert!(matches!(Linear::try_from(&huge), Err(Error::Overflow { .. })));
}
