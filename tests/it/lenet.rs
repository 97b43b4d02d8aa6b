//! End to end on a real network and real data: the claims of `docs/benchmarks.md` about the LeNet.

#[path = "../../examples/lenet_digits/comparison.rs"]
mod comparison;
#[path = "../../examples/lenet_digits/whole_network.rs"]
mod whole_network;

use std::path::Path;
use std::sync::OnceLock;

use crate::lenet_network::{self as network, Data};
use comparison::{Comparison, METHODS, RANKS, UNIT_METHODS, UNIT_RANKS, compare, saves};
use dalr::{ActivationStats, Dalr, LowRankCompressor, Rank, Ridge, TruncatedSvd, Warning, relative_output_error};
use whole_network::compare_budgets;

pub fn data() -> &'static Data {
    static DATA: OnceLock<Data> = OnceLock::new();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/lenet_digits.safetensors");
    DATA.get_or_init(|| Data::load(&path).unwrap())
}

fn results() -> &'static Comparison {
    static RESULTS: OnceLock<Comparison> = OnceLock::new();
    RESULTS.get_or_init(|| compare(data()).unwrap())
}

fn error(layer: &str, method: &str, rank: usize) -> f64 {
    results().find(layer, method, rank).unwrap().relative_error
}

fn accuracy(layer: &str, method: &str, rank: usize) -> f64 {
    results().find(layer, method, rank).unwrap().accuracy
}

#[test]
fn fine_tuning_pays_and_the_network_computes_what_it_did_in_training() {
    // The accuracy that data/train_lenet.py printed.
    assert!((results().source_accuracy - 0.6236).abs() < 1e-4, "{}", results().source_accuracy);
    assert!((results().original_accuracy - 0.9536).abs() < 1e-4, "{}", results().original_accuracy);
}

#[test]
fn every_row_is_there() {
    assert_eq!(results().rows.len(), METHODS.len() * (2 * RANKS.len() + 1));
    for method in METHODS {
        let joint = results().find("all", method, 15).unwrap();
        // The notebook's ranks take a fifth of the parameters. Pruning gets at most as many.
        assert!((0.2..0.2035).contains(&results().fraction(joint)), "{}", results().fraction(joint));
    }
}

#[test]
fn errors_that_count_as_the_layers_behind_see_them_cost_less_accuracy() {
    for (layers, rank, least) in [(1, 4, 0.82_f64), (1, 6, 0.945), (1, 8, 0.95), (2, 6, 0.945)] {
        let row = results().metric_rows.iter().find(|row| (row.layers.len(), row.rank) == (layers, rank)).unwrap();
        assert!(row.metric_accuracy >= least.max(row.plain_accuracy), "{:?}, rank {rank}", row.layers);
    }
}

#[test]
fn refitted_hidden_units_are_better_than_pruned_ones() {
    for rank in UNIT_RANKS {
        let kept = rank * (120 + 84) / 84;
        let row = |method| {
            let mut rows = results().unit_rows.iter().filter(|row| (row.method, row.kept) == (method, kept));
            rows.next().unwrap()
        };
        let [mean, max, refitted] = UNIT_METHODS.map(row);
        assert_eq!(mean.parameters, refitted.parameters);
        let best = mean.relative_error.min(max.relative_error);
        assert!(refitted.relative_error < 0.25 * best, "{kept}: {} {best}", refitted.relative_error);
        assert!(refitted.accuracy > mean.accuracy.max(max.accuracy), "{kept}: {}", refitted.accuracy);
    }
}

#[test]
fn five_layers_of_two_kinds_share_a_budget() {
    let rows = compare_budgets(data()).unwrap();
    assert_eq!(rows.len(), 6);
    for row in rows.iter().filter(|row| row.method == "all kinds") {
        let by_parameters = row.budget.contains("parameters");
        let (cost, most, least) =
            if by_parameters { (row.parameters, 0.15, 0.95) } else { (row.multiply_adds, 0.5, 0.945) };
        assert!(cost <= most && row.accuracy >= least, "{}: {cost}, {}", row.budget, row.accuracy);
        for other in rows.iter().filter(|other| other.budget == row.budget && other.method != row.method) {
            assert!(other.accuracy < row.accuracy - 0.1, "{}, {}: {}", row.budget, other.method, other.accuracy);
        }
    }
}

#[test]
fn dalr_has_the_least_error_on_images_it_never_saw() {
    for layer in ["fc1", "fc2"] {
        for rank in RANKS {
            let dalr = error(layer, "dalr", rank);
            for method in METHODS {
                let other = error(layer, method, rank);
                assert!(dalr <= 1.001 * other, "{layer}, rank {rank}: {dalr} against {other} of {method}");
            }
            let at = RANKS.iter().position(|&r| r == rank).unwrap();
            let optimum = results().optimum[usize::from(layer == "fc2")][at];
            assert!(optimum <= dalr && dalr < 1.3 * optimum, "{layer}, rank {rank}: {dalr}, optimum {optimum}");
        }
    }
}

#[test]
fn accuracy_follows() {
    for (layer, rank) in [("fc1", 4), ("fc1", 6), ("fc2", 3), ("fc2", 4), ("fc2", 6)] {
        let [svd, corrected, dalr] = ["svd", "svd+bc", "dalr"].map(|method| accuracy(layer, method, rank));
        assert!(dalr > corrected && corrected > svd - 0.03, "{layer}, {rank}: {svd} {corrected} {dalr}");
    }
    let joint = ["svd", "pruning-mean", "pruning-max", "dalr"].map(|method| accuracy("all", method, 15));
    assert!(joint[3] >= joint[0] && joint[0] > joint[2] && joint[2] > joint[1], "{joint:?}");
    assert!(joint[3] > results().original_accuracy - 0.01);
}

#[test]
fn what_does_not_pay_is_said() {
    assert_eq!(results().original_parameters, [48120, 10164, 850]);
    assert!(saves(8, &data().target.linear[2]) && !saves(10, &data().target.linear[2]));
    assert!(results().warnings.iter().any(|warning| warning.starts_with("fc3: rank 10 is past break-even (8.9)")));
}

/// The activations are real: batches of an odd size, zeros after a ReLU, inputs that are always
/// zero.
#[test]
fn predicted_errors_hold_on_real_activations() {
    let network = &data().target;
    let features = network.features(data().train.images.as_ref()).unwrap();
    let mut stats = ActivationStats::<f32>::new(400);
    for start in (0..1000).step_by(37) {
        stats.update(features.subrows(start, 37.min(1000 - start))).unwrap();
    }
    let rates = stats.activation_rates().unwrap();
    assert!(rates.iter().all(|rate| (0.0..=1.0).contains(rate)));
    let half = stats.fraction_gathering(0.5).unwrap();
    assert!(half > 0.05 && half < 0.5, "{half}");
    let layer = &network.linear[0];
    let methods: [&dyn LowRankCompressor<f32>; 4] = [
        &Dalr::new(),
        &Dalr::new().with_ridge(Ridge::None),
        &Dalr::paper(10.0),
        &TruncatedSvd::new().with_bias_correction(true),
    ];
    for method in methods {
        for rank in [Rank::Fixed(5), Rank::ParameterRatio(0.3), Rank::Energy(0.95), Rank::RelativeError(0.2)] {
            let compressed = method.compress_with(layer, (&stats).into(), rank).unwrap();
            let predicted = compressed.report().relative_error().unwrap();
            let measured = compressed.evaluate(layer, &stats).unwrap();
            assert!((predicted - measured).abs() < 1e-5 * measured, "{predicted} {measured}");
            if let Rank::RelativeError(goal) = rank {
                assert!(predicted <= goal);
            }
        }
    }
}

/// Eight images for a layer of 400 inputs are allowed, never worse than truncated SVD, and give a
/// warning.
#[test]
fn a_handful_of_samples_does_no_harm() {
    let network = &data().target;
    let gather = |images: &faer::Mat<f32>, count: usize| {
        let features = network.features(images.subrows(0, count)).unwrap();
        let mut stats = ActivationStats::<f32>::new(400);
        stats.update(features.as_ref()).unwrap();
        stats
    };
    let (few, test) = (gather(&data().train.images, 8), gather(&data().test.images, 797));
    let layer = &network.linear[0];
    let held_out = |method: &dyn LowRankCompressor<f32>| {
        let compressed = method.compress_with(layer, (&few).into(), Rank::Fixed(16)).unwrap();
        let warned = compressed.report().warnings.contains(&Warning::FewSamples { samples: 8.0, inputs: 400 });
        (relative_output_error(layer, &compressed.layer().to_linear().unwrap(), &test).unwrap(), warned)
    };
    let (dalr, warned) = held_out(&Dalr::new());
    let (svd, _) = held_out(&TruncatedSvd::new().with_bias_correction(true));
    assert!(warned);
    assert!(dalr <= 1.01 * svd, "{dalr} against {svd}");
}
