//! A whole network in one call: the result is within the budget, and equal to that of the separate
//! steps.

use std::sync::Arc;

use dalr::compress::OutputMetric;
use dalr::factors::Form;
use dalr::network::{Allocator, Budget, Choice, LayerProfile, Network, OriginalReason, Sensitivities, Strategy};
use dalr::{ActivationStats, Calibration, Dalr, Error, Linear, LowRankCompressor, TruncatedSvd};
use faer::Mat;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::choices;
use crate::common::gaussian;

const NAMES: [&str; 4] = ["query", "key", "output", "head"];

/// Returns two layers that use the same six directions of a shared input, and two layers with
/// another input.
fn network() -> (Vec<Linear<f64>>, [ActivationStats<f64>; 2]) {
    let mut rng = StdRng::seed_from_u64(12);
    let down = gaussian(&mut rng, 6, 32);
    let mut layers: Vec<Linear<f64>> = Vec::new();
    for outputs in [32, 40] {
        let weight = gaussian(&mut rng, outputs, 6) * &down + gaussian(&mut rng, outputs, 32) * faer::Scale(0.05);
        layers.push(Linear::new(weight, None).unwrap());
    }
    for outputs in [30, 10] {
        let decay = Mat::from_fn(24, 24, |i, j| if i == j { 0.8_f64.powi(i as i32) } else { 0.0 });
        layers.push(Linear::new(gaussian(&mut rng, outputs, 24) * decay, None).unwrap());
    }
    let stats = [32, 24].map(|inputs| crate::common::stats(gaussian(&mut rng, 150, inputs).as_ref()));
    (layers, stats)
}

fn stats_of(index: usize, stats: &[ActivationStats<f64>; 2]) -> &ActivationStats<f64> {
    &stats[usize::from(index > 1)]
}

fn built<'a>(layers: &'a [Linear<f64>], stats: &'a [ActivationStats<f64>; 2]) -> Network<'a, f64> {
    let mut network = Network::new();
    for (index, (name, layer)) in NAMES.into_iter().zip(layers).enumerate() {
        network = network.with_layer(name, layer, stats_of(index, stats));
    }
    network
}

#[test]
fn layers_are_those_of_the_parts_done_one_by_one() {
    let (layers, stats) = network();
    let pivoted = Dalr::new().with_form(Form::Pivoted);
    let methods: [&(dyn LowRankCompressor<f64> + Sync); 3] = [&Dalr::new(), &TruncatedSvd::new(), &pivoted];
    for method in methods {
        let allocator = Allocator::new(Budget::ParameterFraction(0.5))
            .with_strategy(Strategy::Energy)
            .with_rank_multiple(2)
            .with_untouched("head");
        let (plan, compressed) = built(&layers, &stats).compress(method, allocator.clone()).unwrap();
        assert!(plan.parameters_after() as f64 <= 0.5 * plan.parameters_before() as f64);
        assert_eq!(plan.layers[3].reason, Some(OriginalReason::Untouched));
        let mut profiles = Vec::new();
        for (index, layer) in layers.iter().enumerate() {
            let (m, n) = (layer.out_features(), layer.in_features());
            if NAMES[index] == "head" {
                profiles.push(LayerProfile::original("head", (m, n), false).unwrap());
                continue;
            }
            let most = if method.form() == Form::Pivoted { m.min(n) - 1 } else { (m * n - 1) / (m + n) };
            let decomposition = method.solve(layer, stats_of(index, &stats).into(), most).unwrap();
            let decomposition = decomposition.with_form(method.form());
            profiles.push(LayerProfile::new(NAMES[index], &decomposition));
            match plan.layers[index].choice {
                Choice::Rank(rank) => {
                    let alone = decomposition.truncate(rank).unwrap();
                    assert_eq!(&compressed[NAMES[index]], alone.layer());
                }
                _ => assert!(!compressed.contains_key(NAMES[index])),
            }
        }
        assert_eq!(plan, allocator.allocate(&profiles).unwrap());
        assert!(!compressed.contains_key("head") && !compressed.is_empty());
    }
}

/// In pivoted storage a rank costs less the larger it is, so that most of the best ranks lie beside
/// the convex hull of cost and loss.
#[test]
fn plans_of_pivoted_layers_are_the_best_there_are() {
    let (layers, stats) = network();
    let method = Dalr::new().with_form(Form::Pivoted);
    let decompositions: Vec<_> = (0..3)
        .map(|index| {
            let full = layers[index].out_features().min(layers[index].in_features());
            method.decompose(&layers[index], stats_of(index, &stats), full - 1).unwrap()
        })
        .collect();
    let profiles: Vec<LayerProfile> =
        (0..3).map(|index| LayerProfile::new(NAMES[index], &decompositions[index])).collect();
    // Parameters and loss of every rank, and of the original layer.
    let options: Vec<Vec<(u64, f64)>> = profiles
        .iter()
        .map(|profile| {
            let rank = |rank| (profile.report(rank).unwrap().parameters_after as u64, profile.loss(rank).unwrap());
            (1..=profile.max_rank()).map(rank).chain([(profile.parameters(), 0.0)]).collect()
        })
        .collect();
    let all: u64 = profiles.iter().map(LayerProfile::parameters).sum();
    for percent in (20..100).step_by(5) {
        let limit = all * percent / 100;
        let mut best = f64::INFINITY;
        for first in &options[0] {
            for second in &options[1] {
                for third in &options[2] {
                    if first.0 + second.0 + third.0 <= limit {
                        best = best.min(first.1 + second.1 + third.1);
                    }
                }
            }
        }
        let plan =
            Allocator::new(Budget::Parameters(limit)).with_strategy(Strategy::Energy).allocate(&profiles).unwrap();
        assert!(plan.parameters_after() <= limit);
        assert!(plan.objective <= best * (1.0 + 1e-12), "{percent} %: {} where there is {best}", plan.objective);
        assert!(plan.lower_bound <= best && plan.gap() >= plan.objective - best - 1e-15);
    }
}

/// Two layers of the same shape, whose errors count a hundred times more or less.
#[test]
fn output_metrics_allocate_without_measurements() {
    let (layers, stats) = network();
    let metrics = [100.0, 0.01].map(|weight| OutputMetric::diagonal(&vec![weight; 32]).unwrap());
    let profiles: Vec<LayerProfile> = metrics
        .iter()
        .zip(["seen", "unseen"])
        .map(|(metric, name)| {
            let calibration = Calibration::from(&stats[0]).with_output_metric(metric);
            LayerProfile::new(name, &Dalr::new().decompose(&layers[0], calibration, 15).unwrap())
        })
        .collect();
    let allocator = Allocator::new(Budget::ParameterFraction(0.5)).with_strategy(Strategy::OutputMetric);
    let plan = allocator.allocate(&profiles).unwrap();
    let ranks = plan.ranks();
    assert!(plan.choice("seen") == Some(Choice::Original) || ranks["seen"] >= 4 * ranks["unseen"], "{ranks:?}");
    // Absolute losses of layers without a metric cannot be compared.
    let plain = LayerProfile::new("plain", &Dalr::new().decompose(&layers[0], &stats[0], 15).unwrap());
    let error = allocator.allocate(&[plain]).unwrap_err().to_string();
    assert!(error.contains("plain") && error.contains("output metric"), "{error}");
}

#[test]
fn a_shared_input_is_used_where_it_loses_less() {
    let (layers, stats) = network();
    let sensitivities = Sensitivities::new(NAMES.map(|name| (name, 1.0))).unwrap();
    for strategy in [Strategy::Uniform, Strategy::Energy, Strategy::Sensitivity(sensitivities)] {
        let allocator = Allocator::new(Budget::ParameterFraction(0.4)).with_strategy(strategy);
        let apart = built(&layers, &stats).compress(&Dalr::new(), allocator.clone()).unwrap().0;
        let network = built(&layers, &stats).with_shared_input(["query", "key"]);
        let (plan, compressed) = network.compress(&Dalr::new(), allocator.clone()).unwrap();
        let Choice::Shared { group: 0, rank } = plan.layers[0].choice else { panic!("{plan}") };
        assert_eq!(plan.layers[1].choice, plan.layers[0].choice);
        assert!(plan.objective < apart.objective);
        let (query, key) = (&compressed["query"], &compressed["key"]);
        assert_eq!((query.rank(), query.down()), (rank, key.down()));
        let counted = plan.layers[0].parameters_after + plan.layers[1].parameters_after;
        assert_eq!(counted, (rank * (32 + 32 + 40)) as u64);
        for (index, layer) in [query, key].into_iter().enumerate() {
            let error = dalr::relative_output_error(&layers[index], &layer.to_linear().unwrap(), &stats[0]);
            assert!(error.as_ref().is_ok_and(|error| *error < 0.3), "{error:?}");
        }
        // A layer that stays original cannot have a shared `down`.
        let network = built(&layers, &stats).with_shared_input(["query", "key"]);
        let allocator = Allocator::new(Budget::ParameterFraction(0.6)).with_untouched("key");
        let (plan, _) = network.compress(&Dalr::new(), allocator).unwrap();
        assert!(choices(&plan).iter().all(|choice| !matches!(choice, Choice::Shared { .. })));
    }
}

#[test]
fn lazy_layers_become_the_same() {
    let (layers, stats) = network();
    let (here, expected) = built(&layers, &stats)
        .with_shared_input(["query", "key"])
        .compress(&Dalr::new(), Budget::ParameterFraction(0.4))
        .unwrap();
    let mut lazy = Network::new().with_shared_input(["query", "key"]);
    for (index, (name, layer)) in NAMES.into_iter().zip(&layers).enumerate() {
        let stats = Arc::new(stats_of(index, &stats).clone());
        let shape = (layer.out_features(), layer.in_features());
        lazy = lazy.with_lazy_layer(name, shape, stats.samples(), move || Ok((layer.clone(), stats.clone())));
    }
    let (plan, compressed) = lazy.compress(&Dalr::new(), Budget::ParameterFraction(0.4)).unwrap();
    assert_eq!((plan, compressed), (here, expected));
}

#[test]
fn refusals() {
    let (layers, stats) = network();
    let refused = |network: Network<'_, f64>, budget| network.compress(&Dalr::new(), budget).unwrap_err();
    let half = Budget::ParameterFraction(0.5);
    assert!(matches!(refused(Network::new(), half), Error::Empty { .. }));
    let absent = refused(built(&layers, &stats).with_shared_input(["query", "nobody"]), half);
    assert!(absent.to_string().contains("`nobody`"), "{absent}");
    let alone = refused(built(&layers, &stats).with_shared_input(["query"]), half);
    assert!(matches!(alone, Error::Layers { .. }), "{alone}");
    let nobody = refused(built(&layers, &stats).with_shared_input([""; 0]), half);
    assert!(matches!(nobody, Error::Empty { .. }), "{nobody}");
    // The layers have different numbers of inputs.
    let mixed = refused(built(&layers, &stats).with_shared_input(["query", "output"]), half);
    assert!(matches!(mixed, Error::InLayer { .. }), "{mixed}");
    let small = refused(built(&layers, &stats), Budget::ParameterFraction(0.01));
    assert!(small.to_string().contains("smallest feasible"), "{small}");
    let empty = ActivationStats::new(32);
    let Error::InLayer { layer, .. } = refused(Network::new().with_layer("query", &layers[0], &empty), half) else {
        panic!()
    };
    assert_eq!(layer, "query");
}
