//! Configuration and reports are unchanged after a round trip through JSON.

use std::collections::BTreeMap;

use dalr::compress::{HiddenUnits, OutputMetric};
use dalr::factors::{Form, PivotedLinear};
use dalr::network::{Allocator, Budget, JointSearch, LayerProfile, Progress, Sensitivities, SharedInput, Strategy};
use dalr::{
    ActivationPruning, ActivationStats, Calibration, Compressed, Dalr, Decomposition, Linear, LowRankCompressor,
    LowRankLinear, Rank, Report, Ridge, Scalar, Solver, TruncatedSvd,
};
use faer::{Col, Mat};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

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
    for ridge in [Ridge::None, Ridge::Shrinkage, Ridge::Relative(0.1), Ridge::Paper(10.0), Ridge::Exact(1.0)] {
        round_trip(ridge);
        round_trip(Dalr::new().with_ridge(ridge).with_bias_correction(true).with_solver(Solver::BlockLanczos));
    }
    round_trip(TruncatedSvd::new().with_bias_correction(true).with_rank_multiple(8).with_threads(2));
    round_trip(ActivationPruning::max());

    let layer = Linear::new(Mat::from_fn(6, 4, |i, j| (i * j) as f64 + 1.0), None).unwrap();
    let mut stats = ActivationStats::new(4);
    stats.update(Mat::from_fn(3, 4, |i, j| ((i * 7 + j * 5) % 11) as f64).as_ref()).unwrap();
    let report: Report = Dalr::new().compress(&layer, &stats, Rank::Fixed(3)).unwrap().report().clone();
    assert!(!report.warnings.is_empty());
    round_trip(report);
}

#[test]
fn layers() {
    fn check<T: Scalar + Serialize + DeserializeOwned>() {
        let entry = |i: usize, j: usize| T::from_f64((i * 7 + j * 3) as f64 / 3.0);
        let bias = || Col::from_fn(4, |i| T::from_f64(i as f64 / 7.0));
        round_trip(Linear::new(Mat::from_fn(4, 5, entry), Some(bias())).unwrap());
        round_trip(Linear::new(Mat::from_fn(1, 1, entry), None).unwrap());
        let factors =
            |rank| LowRankLinear::new(Mat::from_fn(rank, 5, entry), Mat::from_fn(4, rank, entry), Some(bias()));
        round_trip(factors(2).unwrap());
        round_trip(factors(2).unwrap().to_pivoted().unwrap());
        round_trip(factors(4).unwrap().to_pivoted().unwrap());
    }
    check::<f32>();
    check::<f64>();
    let layer = Linear::new(faer::mat![[1.0, 2.0, 3.0], [4.0, 5.0, 6.5]], None).unwrap();
    let text = r#"{"out_features":2,"in_features":3,"weight":[1.0,2.0,3.0,4.0,5.0,6.5],"bias":null}"#;
    assert_eq!(serde_json::to_string(&layer).unwrap(), text);

    // Data that every constructor rejects.
    let refused = |text: String| serde_json::from_str::<Linear<f64>>(&text).unwrap_err().to_string();
    let message = refused(text.replace("6.5", "6.5,7.0"));
    assert!(message.starts_with("deserialize: expected 6 numbers in the weight, got 7"), "{message}");
    assert!(refused(text.replace("6.5", "1e999")).contains("number out of range"));
    assert!(refused(text.replace("null", "[1.0]")).contains("expected 2 entries in the bias"));
    assert!(refused(text.replace("\"in_features\":3", "\"in_features\":18446744073709551615")).contains("got 6"));
    assert!(refused(text.replace("bias", "bais")).contains("bais"));
    let nothing = r#"{"out_features":0,"in_features":3,"weight":[],"bias":null}"#;
    assert!(refused(nothing.into()).contains("the weight must not be empty"));
    let most = usize::MAX.to_string();
    assert!(refused(nothing.replace("3", &most)).contains("the weight must not be empty"));
    let text = r#"{"out_features":1,"in_features":2,"rank":1,"down":[1.0,2.0],"up":[3.0],"bias":null}"#;
    assert!(serde_json::from_str::<LowRankLinear<f32>>(text).is_ok());
    let wrong = text.replace("\"rank\":1", "\"rank\":2");
    assert!(serde_json::from_str::<LowRankLinear<f32>>(&wrong).unwrap_err().to_string().contains("`down`"));
    let text = r#"{"out_features":2,"in_features":1,"pivots":[1],"pivot_rows":[1.0],"coefficients":[2.0],"bias":null}"#;
    let pivoted = |text: &str| serde_json::from_str::<PivotedLinear<f32>>(text).map_err(|error| error.to_string());
    assert_eq!(pivoted(text).unwrap().order(), [1, 0]);
    for (from, to, message) in [
        ("[1]", "[2]", "expected a pivot from 0 to 1, got 2"),
        ("[1]", "[]", "numbers in the pivot rows"),
        ("[1]", "[0,1]", "expected 2 numbers in the pivot rows, got 1"),
        ("[2.0]", "[]", "expected 1 numbers in the coefficients, got 0"),
        ("\"out_features\":2", "\"out_features\":0", "expected 0 numbers in the coefficients, got 1"),
        ("\"out_features\":2", "\"out_features\":18446744073709551615", "numbers in the coefficients, got 1"),
    ] {
        let error = pivoted(&text.replace(from, to)).unwrap_err();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn decompositions_and_metrics_compress_as_before() {
    fn check<T: Scalar + Serialize + DeserializeOwned>() {
        let entry = |i: usize, j: usize| T::from_f64(((i * 5 + j * j * 3) % 7) as f64 / 3.0 - 1.0);
        let layer = Linear::new(Mat::from_fn(6, 5, entry), Some(Col::from_fn(6, |i| entry(i, 1)))).unwrap();
        let mut stats = ActivationStats::new(5);
        stats.update(Mat::from_fn(40, 5, |i, j| T::from_f64(((i * 7 + j * 5) % 11) as f64)).as_ref()).unwrap();
        let full = Mat::from_fn(6, 6, |i, j| if i == j { 3.0 } else { 1.0 / (1 + i + j) as f64 });
        let diagonal = OutputMetric::diagonal(&[1.0, 2.0, 0.0, 4.0, 5.0, 6.0]).unwrap();
        for metric in [OutputMetric::new(full.as_ref()).unwrap().with_floor(0.2).unwrap(), diagonal] {
            let text = serde_json::to_string(&metric).unwrap();
            let read: OutputMetric = serde_json::from_str(&text).unwrap();
            let method = Dalr::new().with_form(Form::Pivoted);
            let solve = |metric: &OutputMetric| {
                method.decompose(&layer, Calibration::from(&stats).with_output_metric(metric), 5).unwrap()
            };
            let (one, other) = (solve(&metric), solve(&read));
            let other: Decomposition<T> = serde_json::from_str(&serde_json::to_string(&other).unwrap()).unwrap();
            for rank in 1..=5 {
                let (one, other) = (one.truncate(rank).unwrap(), other.truncate(rank).unwrap());
                let other: Compressed<T> = serde_json::from_str(&serde_json::to_string(&other).unwrap()).unwrap();
                assert_eq!((one.layer(), one.report()), (other.layer(), other.report()));
            }
        }
        let next = Linear::new(Mat::from_fn(3, 6, entry), None).unwrap();
        let mut hidden = ActivationStats::new(6);
        hidden.update(Mat::from_fn(40, 6, |i, j| T::from_f64(((i * 7 + j * 5) % 11) as f64)).as_ref()).unwrap();
        round_trip(HiddenUnits::new(&layer, &next, &hidden).unwrap().select(4).unwrap());
    }
    check::<f32>();
    check::<f64>();

    // Data that would panic later.
    fn refused<V: DeserializeOwned>(mut stored: Value, field: &str, value: Value, message: &str) {
        stored[field] = value;
        let error = serde_json::from_value::<V>(stored).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let metric = serde_json::to_value(OutputMetric::diagonal(&[1.0, 4.0]).unwrap()).unwrap();
    refused::<OutputMetric>(
        metric.clone(),
        "matrix",
        json!([1.0, 4.0, 2.0]),
        "expected 4 numbers in the output metric",
    );
    refused::<OutputMetric>(metric.clone(), "root", json!([1.0, 0.0]), "positive");
    refused::<OutputMetric>(metric, "outputs", json!(0), "output metric");
    let layer = Linear::new(faer::mat![[3.0, 0.0], [0.0, 1.0]], None).unwrap();
    let mut stats = ActivationStats::new(2);
    stats.update(faer::mat![[1.0, 2.0], [3.0, -1.0]].as_ref()).unwrap();
    let stored = serde_json::to_value(Dalr::new().decompose(&layer, &stats, 2).unwrap()).unwrap();
    for (field, value, message) in [
        ("energies", json!([9.0]), "expected 1 numbers by rank"),
        ("energies", json!([]), "a rank from 1 to 2"),
        ("relative_errors", json!([0.5]), "numbers by rank"),
        ("down", json!([1.0, 2.0, 3.0]), "`down`"),
        ("kept_bias", json!([1.0]), "numbers in a bias"),
    ] {
        refused::<Decomposition<f64>>(stored.clone(), field, value, message);
    }
    let mut facts = stored["facts"].clone();
    facts["shape"] = json!([2, u64::MAX]);
    refused::<Decomposition<f64>>(stored, "facts", facts, "`down`");
}

#[test]
fn networks() {
    let mut stats = ActivationStats::new(20);
    stats.update(Mat::from_fn(50, 20, |i, j| ((i * i * 11 + j * 7 + i * j) % 13) as f64).as_ref()).unwrap();
    let layer = |s: usize| Linear::new(Mat::from_fn(20, 20, |i, j| ((i * s + j * j * 3) % 17) as f64), None).unwrap();
    let layers = [layer(5), layer(7)];
    let profile = |(name, layer): (&str, &Linear<f64>)| {
        LayerProfile::new(name, &Dalr::new().decompose(layer, &stats, 20).unwrap())
    };
    let profiles: Vec<LayerProfile> = ["query", "key"].into_iter().zip(&layers).map(profile).collect();
    let members: Vec<_> = profiles.iter().zip(&layers).collect();
    let (joint, _) = SharedInput::decompose(&members, None, &Dalr::new(), &stats, 12).unwrap();
    let sensitivities = Sensitivities::new([("query", 0.5), ("key", 0.1)]).unwrap();
    assert_eq!(serde_json::to_string(&sensitivities).unwrap(), r#"{"key":0.1,"query":0.5}"#);
    assert!(serde_json::from_str::<Sensitivities>(r#"{"key":-0.1}"#).is_err());

    let budgets = [Budget::Parameters(300), Budget::MultiplyAddFraction(0.5), Budget::TotalError(0.4), Budget::Rank(3)];
    for budget in budgets {
        let allocator = Allocator::new(budget)
            .with_strategy(Strategy::Sensitivity(sensitivities.clone()))
            .with_limits("key", 2, 9)
            .with_rank_multiple(1);
        let plan = allocator.allocate_shared(&profiles, std::slice::from_ref(&joint)).unwrap();
        round_trip(plan);
        round_trip(allocator);
    }
    let plan = Allocator::new(Budget::ParameterFraction(0.5)).allocate(&profiles).unwrap();
    let mut evaluations = Vec::new();
    let evaluate = |ranks: &BTreeMap<String, usize>| Ok::<f64, String>(0.1 + 0.2 * ranks.len() as f64);
    let progress = &mut Progress::ignore;
    round_trip(Sensitivities::measure(&profiles, &plan, &mut evaluations, evaluate, progress).unwrap());
    let search = JointSearch::new(0.1).with_step_ranks(4);
    round_trip(search.run(&profiles, &mut evaluations, evaluate, progress).unwrap());
    round_trip(evaluations);
    round_trip(search);
    round_trip(joint);
    round_trip(profiles);
}
