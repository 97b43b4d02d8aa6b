//! Properties of the public types that the compiler checks, so that a change cannot break them
//! unnoticed.

use dalr::adapter::Adapter;
use dalr::compress::{ActivationFunction, HiddenUnitSelection, HiddenUnits, OutputMetric, SelectedUnits};
use dalr::convolution::{Conv2d, ConvOptions, LowRankConv2d, PatchStats};
use dalr::covariance::PairedStats;
use dalr::factors::PrunedLinear;
use dalr::network::{
    Allocator, Budget, Choice, CompressedLayer, Cost, Evaluation, JointSearch, LayerPlan, LayerProfile, Network,
    OriginalReason, Plan, Progress, Sensitivities, SharedInput, Strategy, UnitProfile,
};
use dalr::solver::{Eigenpairs, PsdOperator};
use dalr::{
    ActivationPruning, ActivationStats, Calibration, Compressed, Dalr, Decomposition, Error, Linear, LowRankCompressor,
    LowRankLinear, Rank, Report, Ridge, Scalar, Solver, TruncatedSvd, Warning,
};

/// Accepts types whose values may move to other threads, be shared between them, and outlive every
/// borrow.
const fn shareable<V: Send + Sync + 'static>() {}

/// Accepts types that may be boxed as an error, sent and returned by `main`.
const fn error<E: core::error::Error + Send + Sync + 'static>() {}

/// Accepts types that can be printed for debugging, and cloned.
const fn plain<V: Clone + core::fmt::Debug>() {}

const fn data<T: Scalar>() {
    shareable::<ActivationStats<T>>();
    shareable::<PairedStats<T>>();
    shareable::<Linear<T>>();
    shareable::<LowRankLinear<T>>();
    shareable::<PrunedLinear<T>>();
    shareable::<Adapter<T>>();
    shareable::<Conv2d<T>>();
    shareable::<LowRankConv2d<T>>();
    shareable::<PatchStats<T>>();
    shareable::<Decomposition<T>>();
    shareable::<Calibration<'static, T>>();
    shareable::<HiddenUnits<T>>();
    shareable::<SelectedUnits<T>>();
    shareable::<CompressedLayer<T>>();
    shareable::<Compressed<T>>();
    plain::<ActivationStats<T>>();
    plain::<Adapter<T>>();
    plain::<Conv2d<T>>();
    plain::<LowRankConv2d<T>>();
    plain::<PatchStats<T>>();
    plain::<Linear<T>>();
    plain::<LowRankLinear<T>>();
    plain::<PrunedLinear<T>>();
    plain::<Decomposition<T>>();
    plain::<Compressed<T>>();
    plain::<HiddenUnits<T>>();
    plain::<SelectedUnits<T>>();
    plain::<CompressedLayer<T>>();
    shareable::<Network<'static, T>>();
}

const _: () = {
    data::<f32>();
    data::<f64>();
    shareable::<Dalr>();
    shareable::<HiddenUnitSelection>();
    shareable::<ActivationFunction>();
    shareable::<OutputMetric>();
    shareable::<TruncatedSvd>();
    shareable::<ActivationPruning>();
    shareable::<ConvOptions>();
    shareable::<Rank>();
    shareable::<Ridge>();
    shareable::<Solver>();
    shareable::<Report>();
    shareable::<Warning>();
    shareable::<Eigenpairs>();
    plain::<Dalr>();
    plain::<TruncatedSvd>();
    plain::<ActivationPruning>();
    plain::<ConvOptions>();
    plain::<Rank>();
    plain::<Ridge>();
    plain::<Solver>();
    plain::<Report>();
    plain::<Warning>();
    plain::<Eigenpairs>();
    plain::<Error>();
    error::<Error>();
};

macro_rules! checked {
    ($($name:ty),*) => {
        const _: () = {
            $(shareable::<$name>(); plain::<$name>();)*
        };
    };
}

checked!(Allocator, Budget, Choice, Evaluation, JointSearch, LayerPlan, LayerProfile, OriginalReason, Plan);
checked!(Cost, Progress, Sensitivities, SharedInput, Strategy, UnitProfile);

/// Methods can be chosen at run time, and shared between threads that each compress a layer.
const _: fn(Dalr) -> Box<dyn LowRankCompressor<f32> + Send + Sync> = |method| Box::new(method);
const _: fn(TruncatedSvd) -> Box<dyn LowRankCompressor<f64> + Send + Sync> = |method| Box::new(method);

/// A caller's operator can be a trait object, with or without `Send`.
const _: fn(&dyn PsdOperator<f32>, usize, Solver, usize) -> dalr::Result<Eigenpairs> = dalr::solver::top_eigenpairs;
const _: fn(&dyn PsdOperator<f64>, usize, Solver, usize) -> dalr::Result<Eigenpairs> = dalr::solver::top_eigenpairs;

/// A type that is added to the root must be added here as well.
#[test]
fn no_public_type_is_forgotten() {
    let (root, here) = (include_str!("../../src/lib.rs"), include_str!("api.rs"));
    let exports = root.split("pub use ").skip(1).filter_map(|rest| rest.split(';').next());
    let words = exports.flat_map(|export| export.split(|c: char| !c.is_alphanumeric() && c != '_'));
    let names: Vec<&str> = words.filter(|word| word.starts_with(char::is_uppercase)).collect();
    assert!(names.len() >= 15);
    for name in
        names.into_iter().filter(|name| !["Calibration", "LowRankCompressor", "Result", "Scalar"].contains(name))
    {
        let checked = ["shareable", "error"].iter().any(|check| {
            here.contains(&format!("{check}::<{name}>")) || here.contains(&format!("{check}::<{name}<T>>"))
        });
        assert!(checked, "{name} is not checked");
    }
}

#[test]
fn compressors_are_objects_that_threads_share() {
    let methods: [Box<dyn LowRankCompressor<f64> + Send + Sync>; 2] =
        [Box::new(Dalr::new()), Box::new(TruncatedSvd::new().with_bias_correction(true))];
    let layer = Linear::new(faer::Mat::from_fn(5, 4, |i, j| ((i * 7 + j * 3) % 11) as f64), None).unwrap();
    let mut stats = ActivationStats::new(4);
    stats.update(faer::Mat::from_fn(20, 4, |i, j| ((i * 5 + j * 9) % 13) as f64).as_ref()).unwrap();
    let compress =
        |method: &dyn LowRankCompressor<f64>| method.compress_with(&layer, (&stats).into(), Rank::Fixed(2)).unwrap();
    for method in &methods {
        let here = compress(method.as_ref());
        let there = std::thread::scope(|scope| scope.spawn(|| compress(method.as_ref())).join().unwrap());
        assert_eq!(here.layer(), there.layer());
    }
}

#[test]
fn threads_are_set_beside_everything_else() {
    let dalr = || Dalr::paper(3.0).with_bias_correction(true).with_rank_multiple(4);
    assert_eq!(dalr().with_threads(2).with_threads(0), dalr());
    assert_ne!(dalr().with_threads(2), dalr());
    let svd = || TruncatedSvd::new().with_bias_correction(true).with_rank_multiple(4);
    assert_eq!(svd().with_threads(2).with_threads(0), svd());
    assert_ne!(svd().with_threads(2), svd());
}
