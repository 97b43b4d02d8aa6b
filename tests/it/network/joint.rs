//! Hidden units, shared inputs and factors under one budget, compared with all possible choices.

use dalr::compress::{HiddenUnitSelection, HiddenUnits};
use dalr::convolution::{Conv2d, ConvOptions, PatchStats};
use dalr::factors::Form;
use dalr::network::{
    Allocator, Budget, Choice, Cost, LayerProfile, OriginalReason, Plan, Sensitivities, SharedInput, Strategy,
    UnitProfile,
};
use dalr::{Dalr, Decomposition, Error, Linear, LowRankCompressor, Ridge};
use faer::{Col, Mat};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::common::{gaussian, stats};
use crate::hidden_units::relu;

const NAMES: [&str; 4] = ["gate", "up", "down", "last"];
const WEIGHTS: [f64; 4] = [0.7, 1.3, 2.0, 0.4];
const CALLS: [u64; 4] = [3, 3, 3, 1];
/// Sensitivities to fewer units: those of the second layers, and others of their own.
const UNIT_WEIGHTS: [[f64; 2]; 2] = [[2.0, 0.4], [0.9, 1.1]];

/// Gate and up with a shared input, down behind them, and a last layer behind a ReLU.
struct Example {
    profiles: Vec<LayerProfile>,
    shared: SharedInput,
    units: [UnitProfile; 2],
    hidden: [HiddenUnits<f64>; 2],
}

fn example(seed: u64) -> Example {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut layer = |m: usize, n: usize| {
        let bias = gaussian(&mut rng, m, 1).col(0).to_owned();
        Linear::new(gaussian(&mut rng, m, n), Some(bias)).unwrap()
    };
    let (gate, up, down, last) = (layer(7, 6), layer(7, 6), layer(6, 7), layer(5, 6));
    let inputs = gaussian(&mut rng, 60, 6) * gaussian(&mut rng, 6, 6);
    let (a, b) = (gate.forward(inputs.as_ref()).unwrap(), up.forward(inputs.as_ref()).unwrap());
    let products = Mat::from_fn(60, 7, |i, j| a[(i, j)].max(0.0) * b[(i, j)]);
    let after = relu(&down.forward(products.as_ref()).unwrap());
    let [inputs, products, after] = [inputs, products, after].map(|inputs| stats(inputs.as_ref()));
    let method = Dalr::new();
    let layers = [(&gate, &inputs), (&up, &inputs), (&down, &products), (&last, &after)];
    let profiles: Vec<LayerProfile> = layers
        .iter()
        .zip(NAMES.iter().zip(CALLS))
        .map(|((layer, stats), (name, calls))| {
            let full = layer.out_features().min(layer.in_features());
            LayerProfile::new(*name, &method.decompose(layer, *stats, full).unwrap()).with_calls(calls)
        })
        .collect();
    let sensitivities = sensitivities();
    let members = [(&profiles[0], &gate), (&profiles[1], &up)];
    let (shared, _) = SharedInput::decompose(&members, Some(&sensitivities), &method, &inputs, 6).unwrap();
    let hidden =
        [HiddenUnits::gated(&gate, &up, &down, &products).unwrap(), HiddenUnits::new(&down, &last, &after).unwrap()];
    let units =
        [UnitProfile::new("up", "down", &hidden[0]).with_gate("gate"), UnitProfile::new("down", "last", &hidden[1])];
    Example { profiles, shared, units, hidden }
}

fn sensitivities() -> Sensitivities {
    Sensitivities::new(NAMES.into_iter().zip(WEIGHTS)).unwrap()
}

/// The same with those of the units.
fn with_units([gated, plain]: [f64; 2]) -> Sensitivities {
    let units = [("up + gate + down", gated), ("down + last", plain)];
    Sensitivities::new(NAMES.into_iter().zip(WEIGHTS).chain(units)).unwrap()
}

/// Parameters, multiply–adds, weighted loss, and the largest error of a layer.
#[derive(Clone, Copy)]
struct Way(u64, u64, f64, f64);

impl Way {
    fn and(self, other: Self) -> Self {
        Self(self.0 + other.0, self.1 + other.1, self.2 + other.2, self.3.max(other.3))
    }
}

/// All choices for the layers of the example, from shapes and losses only.
fn all_ways(example: &Example, unit_weights: [f64; 2]) -> Vec<Way> {
    let shapes = [(7, 6), (7, 6), (6, 7), (5, 6)];
    let single = |at: usize| {
        let (m, n) = shapes[at];
        let way =
            |entries: u64, loss: f64, error: f64| Way(entries + m, entries * CALLS[at], WEIGHTS[at] * loss, error);
        let profile = &example.profiles[at];
        let ranks = (1..=profile.max_rank() as u64).filter(|k| k * (m + n) < m * n);
        let rank = |k: u64| {
            let error = profile.relative_error(k as usize).unwrap();
            way(k * (m + n), profile.loss(k as usize).unwrap(), error)
        };
        ranks.map(rank).chain([way(m * n, 0.0, 0.0)]).collect::<Vec<_>>()
    };
    let shared: Vec<Way> = (1..=6_usize)
        .filter(|&k| k * (6 + 14) < 2 * 42)
        .map(|k| {
            let losses = [0, 1].map(|member| example.shared.loss(member, k).unwrap());
            let entries = (k * (6 + 14)) as u64;
            let error = losses[0].max(losses[1]).sqrt();
            Way(entries + 14, entries * 3, WEIGHTS[0] * losses[0] + WEIGHTS[1] * losses[1], error)
        })
        .collect();
    // Two layers of 6 inputs before, and one of 6 outputs behind.
    let gated: Vec<Way> = (1..7_usize)
        .map(|k| {
            let (entries, units) = ((k * (6 + 6 + 6)) as u64, &example.units[0]);
            let biases = (2 * k + 6) as u64;
            Way(
                entries + biases,
                entries * 3,
                unit_weights[0] * units.loss(k).unwrap(),
                units.relative_error(k).unwrap(),
            )
        })
        .collect();
    let plain: Vec<Way> = (1..6_usize)
        .map(|k| {
            let (before, behind, units) = ((k * 7) as u64, (k * 5) as u64, &example.units[1]);
            let parameters = before + behind + k as u64 + 5;
            let loss = unit_weights[1] * units.loss(k).unwrap();
            Way(parameters, before * 3 + behind, loss, units.relative_error(k).unwrap())
        })
        .collect();
    let product = |lists: &[&[Way]]| {
        lists.iter().fold(vec![Way(0, 0, 0.0, 0.0)], |sums, list| {
            sums.iter().flat_map(|sum| list.iter().map(move |way| sum.and(*way))).collect()
        })
    };
    let [gate, up, down, last] = [single(0), single(1), single(2), single(3)];
    [
        product(&[&gate, &up, &down, &last]),
        product(&[&shared, &down, &last]),
        product(&[&gated, &last]),
        product(&[&gate, &up, &plain]),
        product(&[&shared, &plain]),
    ]
    .concat()
}

fn plan(example: &Example, budget: Budget, sensitivities: Sensitivities) -> Result<Plan, Error> {
    Allocator::new(budget).with_strategy(Strategy::Sensitivity(sensitivities)).allocate_joint(
        &example.profiles,
        std::slice::from_ref(&example.shared),
        &example.units,
    )
}

#[test]
fn no_choice_within_the_budget_is_better() {
    let mut chosen = [0; 4];
    for (seed, unit_weights) in (0..6).flat_map(|seed| UNIT_WEIGHTS.map(|weights| (seed, weights))) {
        let example = example(seed);
        let sensitivities = if unit_weights == UNIT_WEIGHTS[0] { sensitivities() } else { with_units(unit_weights) };
        let (by_layer, ways) = (all_ways(&example, UNIT_WEIGHTS[0]), all_ways(&example, unit_weights));
        let least = |budget: Budget, allowed: &dyn Fn(&Way) -> bool, value: &dyn Fn(&Way) -> f64| {
            // The total error is an average with the layers' own weights.
            let ways = if matches!(budget, Budget::TotalError(_)) { &by_layer } else { &ways };
            ways.iter().filter(|way| allowed(way)).map(value).fold(f64::INFINITY, f64::min)
        };
        let mut check = |budget: Budget, allowed: &dyn Fn(&Way) -> bool, value: &dyn Fn(&Way) -> f64| {
            let best = least(budget, allowed, value);
            let Ok(plan) = plan(&example, budget, sensitivities.clone()) else {
                assert!(best.is_infinite(), "{budget}: {best}");
                return;
            };
            assert!((plan.objective - best).abs() <= 1e-9 * best.abs().max(1e-3), "{seed}, {budget}: {best}\n{plan}");
            assert!(plan.lower_bound <= best * (1.0 + 1e-9));
            if let Budget::TotalError(error) = budget {
                assert!(plan.total_error().unwrap() <= error * (1.0 + 1e-12));
            }
            for layer in &plan.layers {
                chosen[match layer.choice {
                    Choice::Original => 0,
                    Choice::Rank(_) => 1,
                    Choice::Shared { .. } => 2,
                    _ => 3,
                }] += 1;
            }
        };
        // The example has 42 + 42 + 42 + 30 weights and 25 biases.
        for parameters in (35..=190_u64).step_by(7) {
            check(Budget::Parameters(parameters), &|way| way.0 <= parameters, &|way| way.2);
        }
        for macs in (50..=420_u64).step_by(31) {
            check(Budget::MultiplyAdds(macs), &|way| way.1 <= macs, &|way| way.2);
        }
        let weight: f64 = WEIGHTS.iter().sum();
        for error in [0.05, 0.2, 0.4, 0.7] {
            check(Budget::TotalError(error), &|way| way.2 <= error * error * weight, &|way| way.0 as f64);
            check(Budget::LayerError(error), &|way| way.3 <= error, &|way| way.0 as f64);
        }
    }
    assert!(chosen.iter().all(|&count| count > 10), "{chosen:?}");
}

/// The losses of factors and of hidden units are those of one problem: no weight of rank `k` loses
/// less than the factors.
#[test]
fn units_lose_at_least_as_much_as_factors_of_the_same_rank() {
    for seed in 0..6 {
        let example = example(seed);
        for (units, second) in example.units.iter().zip(&example.profiles[2..]) {
            let losses: Vec<f64> = (1..=units.units()).map(|k| units.loss(k).unwrap()).collect();
            assert!(losses.is_sorted_by(|a, b| a >= b) && losses[0] < 1.0 && losses[units.units() - 1] == 0.0);
            for rank in 1..=second.max_rank() {
                let factors = second.loss(rank).unwrap();
                assert!(factors <= losses[rank - 1] + 1e-12, "{seed}, {rank}: {factors} {}", losses[rank - 1]);
            }
        }
    }
}

#[test]
fn a_plan_counts_what_its_layers_have() {
    let example = example(1);
    let mut seen = [false; 2];
    for fraction in [0.3, 0.45, 0.6, 0.75, 0.9] {
        let plan = plan(&example, Budget::ParameterFraction(fraction), sensitivities()).unwrap();
        assert!(plan.parameters_after() as f64 <= fraction * plan.parameters_before() as f64);
        for (pair, names) in [["up", "down"], ["down", "last"]].into_iter().enumerate() {
            let Some(Choice::HiddenUnits { pair: at, kept }) = plan
                .choice(names[1])
                .filter(|choice| matches!(choice, Choice::HiddenUnits { pair: at, .. } if *at == pair))
            else {
                continue;
            };
            seen[pair] = true;
            assert_eq!((at, plan.choice(names[0])), (pair, plan.choice(names[1])));
            let smaller = example.hidden[pair].select(kept).unwrap();
            let count = |name: &str| plan.layers.iter().find(|layer| layer.name == name).unwrap();
            assert_eq!(count(names[0]).parameters_after as usize, smaller.first.parameters());
            assert_eq!(count(names[1]).parameters_after as usize, smaller.second.parameters());
            if let Some(gate) = &smaller.gate {
                assert_eq!(count("gate").parameters_after as usize, gate.parameters());
            }
            let calls = CALLS[NAMES.iter().position(|name| *name == names[1]).unwrap()] as usize;
            assert_eq!(count(names[1]).multiply_adds_after as usize, smaller.second.multiply_adds() * calls);
            assert_eq!(count(names[1]).relative_error, smaller.relative_error);
            assert_eq!((count(names[0]).loss, count(names[0]).reason), (0.0, None));
            assert!(plan.to_string().contains(&format!("{kept} hidden units (pair {pair})")));
        }
    }
    assert_eq!(seen, [true, true]);
}

#[test]
fn limits_hold_for_units_too() {
    let example = example(2);
    let allocator = |fraction: f64| {
        Allocator::new(Budget::ParameterFraction(fraction)).with_strategy(Strategy::Sensitivity(sensitivities()))
    };
    let allocate = |allocator: Allocator| {
        allocator.allocate_joint(&example.profiles, std::slice::from_ref(&example.shared), &example.units)
    };
    for fraction in [0.65, 0.75, 0.9] {
        let plan = allocate(allocator(fraction).with_rank_multiple(3)).unwrap();
        for layer in &plan.layers {
            if let Choice::HiddenUnits { kept, .. } = layer.choice {
                assert!(kept.is_multiple_of(3));
            }
        }
        let plan = allocate(allocator(fraction).with_untouched("down")).unwrap();
        assert_eq!(plan.layers[2].reason, Some(OriginalReason::Untouched));
        assert!(plan.layers.iter().all(|layer| !matches!(layer.choice, Choice::HiddenUnits { .. })));
    }
    let ranks = Allocator::new(Budget::Rank(2)).allocate_joint(&example.profiles, &[], &example.units).unwrap();
    assert!(ranks.layers.iter().all(|layer| !matches!(layer.choice, Choice::HiddenUnits { .. })));
    // Layers without factors may have fewer units.
    let mut layers = example.profiles.clone();
    for (layer, shape) in layers.iter_mut().zip([(7, 6), (7, 6), (6, 7), (5, 6)]) {
        *layer = LayerProfile::original(layer.name(), shape, true).unwrap();
    }
    let plan = allocator(0.7).allocate_joint(&layers, &[], &example.units).unwrap();
    assert!(plan.layers.iter().any(|layer| matches!(layer.choice, Choice::HiddenUnits { .. })));
    assert!(plan.objective > 0.0);
    // Uniform keeps to the budget, and may use units.
    let uniform = Allocator::new(Budget::ParameterFraction(0.6));
    let plan = uniform.allocate_joint(&example.profiles, std::slice::from_ref(&example.shared), &example.units);
    let plan = plan.unwrap();
    assert!(plan.parameters_after() as f64 <= 0.6 * plan.parameters_before() as f64);
}

#[test]
fn units_that_do_not_fit_are_refused() {
    let example = example(3);
    let [gated, plain] = &example.units;
    let refused = |layers: &[LayerProfile], units: &[UnitProfile]| {
        let allocator = Allocator::new(Budget::ParameterFraction(0.9));
        allocator.allocate_joint(layers, &[], units).unwrap_err().to_string()
    };
    let profiles = &example.profiles;
    let without_gate = UnitProfile::new("up", "down", &example.hidden[0]);
    assert_eq!(
        refused(profiles, &[without_gate]),
        "Allocator::allocate: expected the name of a gate, got no gate of the units before `down`"
    );
    assert!(refused(profiles, &[plain.clone().with_gate("gate")]).contains("expected no gate"));
    assert!(refused(&profiles[1..], std::slice::from_ref(gated)).contains("some beside `gate`"));
    let same = UnitProfile::new("down", "down", &example.hidden[1]);
    assert!(refused(profiles, &[same]).contains("`down` twice"));
    let other = UnitProfile::new("gate", "last", &example.hidden[1]);
    assert_eq!(
        refused(profiles, &[other]),
        "layer `gate`: Allocator::allocate: expected 6 outputs (one per hidden unit), got 7"
    );

    // A chain of many layers connected by hidden units.
    let chain = |count: usize| {
        let name = |at: usize| format!("fc{at}");
        let layers: Vec<_> = (0..count).map(|at| LayerProfile::original(name(at), (4, 4), false).unwrap()).collect();
        let mut rng = StdRng::seed_from_u64(1);
        let layer = Linear::new(gaussian(&mut rng, 4, 4), None).unwrap();
        let units = HiddenUnits::new(&layer, &layer, &stats(gaussian(&mut rng, 30, 4).as_ref())).unwrap();
        let units: Vec<_> = (1..count).map(|at| UnitProfile::new(name(at - 1), name(at), &units)).collect();
        Allocator::new(Budget::ParameterFraction(0.8)).with_strategy(Strategy::Energy).allocate_joint(
            &layers,
            &[],
            &units,
        )
    };
    assert!(chain(10).unwrap().parameters_after() <= 128);
    let refused = chain(18).unwrap_err().to_string();
    assert!(refused.contains("at most 4096 ways") && refused.contains("18 layers"), "{refused}");
}

#[test]
fn a_form_of_storage_is_set_for_each_layer() {
    let example = example(4);
    let pivoted = example.profiles[0].clone().with_form(Form::Pivoted);
    let layers = [pivoted, example.profiles[2].clone()];
    let ranks = [("gate".to_owned(), 3), ("down".to_owned(), 3)].into();
    let plan = Plan::of_ranks(&layers, &ranks).unwrap();
    let found = plan.layers.iter().map(|layer| layer.parameters_after).collect::<Vec<_>>();
    assert_eq!(found, [3 * (7 + 6 - 3) + 7, 3 * (6 + 7) + 6]);
    let forms = plan.layers.iter().map(|layer| layer.report.as_ref().unwrap().form).collect::<Vec<_>>();
    assert_eq!(forms, [Form::Pivoted, Form::Factors]);
}

/// Decompositions of the groups of a convolution, 2 × 3 to 2 × 5 channels with a 3 × 1 kernel.
fn groups(seed: u64) -> (Conv2d<f64>, Vec<Decomposition<f64>>) {
    let mut rng = StdRng::seed_from_u64(seed);
    let (weight, bias) = (gaussian(&mut rng, 10, 9), Some(Col::zeros(10)));
    let conv = Conv2d::new(weight, bias, (3, 1), ConvOptions::new().with_groups(2)).unwrap();
    let mut inputs = PatchStats::new(&conv, 1.0).unwrap();
    inputs.update(gaussian(&mut rng, 8, 6 * 35).as_ref(), (7, 5)).unwrap();
    let method = Dalr::new().with_ridge(Ridge::Relative(0.1));
    let solve = |(layer, stats)| method.decompose(layer, stats, 5).unwrap();
    let groups = conv.layers().iter().zip(inputs.groups()).map(solve).collect();
    (conv, groups)
}

#[test]
fn groups_of_a_convolution_share_a_rank() {
    let (conv, groups) = groups(5);
    let profile = LayerProfile::of_groups("conv", &groups).unwrap().with_calls(conv.positions((7, 5)).unwrap() as u64);
    assert_eq!((profile.out_features(), profile.in_features()), (10, 18));
    assert_eq!(profile.parameters() as usize, conv.parameters());
    assert_eq!(profile.multiply_adds() as usize, conv.multiply_adds((7, 5)).unwrap());
    let total: f64 = groups.iter().map(Decomposition::total_energy).sum();
    for rank in 1..=5 {
        let lost = |group: &Decomposition<f64>| group.total_energy() - group.energies()[..rank].iter().sum::<f64>();
        let expected = groups.iter().map(lost).sum::<f64>() / total;
        assert!((profile.loss(rank).unwrap() - expected).abs() < 1e-12);
        let layers = groups.iter().map(|group| group.truncate(rank).unwrap().into_layer()).collect();
        let smaller = conv.low_rank(layers).unwrap();
        let report = profile.report(rank).unwrap();
        assert_eq!((report.parameters_after, report.parameters_before), (smaller.parameters(), conv.parameters()));
        let plan = Plan::of_ranks(std::slice::from_ref(&profile), &[("conv".to_owned(), rank)].into()).unwrap();
        assert_eq!(plan.parameters_after() as usize, smaller.parameters());
        assert_eq!(plan.multiply_adds_after() as usize, smaller.multiply_adds((7, 5)).unwrap());
    }
    assert!(matches!(LayerProfile::of_groups::<f64>("none", &[]), Err(Error::Empty { .. })));
    let mut rng = StdRng::seed_from_u64(1);
    let narrow = Linear::new(Mat::<f64>::ones(4, 9), None).unwrap();
    let other = Dalr::new().decompose(&narrow, &stats(gaussian(&mut rng, 30, 9).as_ref()), 2).unwrap();
    let mixed = [groups[0].clone(), other];
    assert!(matches!(LayerProfile::of_groups("mixed", &mixed), Err(Error::Layers { .. })));
    // Hidden units around a convolution of several groups.
    let (before, second) = (Linear::new(Mat::ones(10, 18), None), Linear::new(Mat::ones(2, 10), None));
    let (before, second): (Linear<f64>, Linear<f64>) = (before.unwrap(), second.unwrap());
    let hidden = stats(gaussian(&mut rng, 40, 10).as_ref());
    let units = HiddenUnitSelection::new().solve(&before, &second, &hidden).unwrap();
    let layers = [profile, LayerProfile::original("head", (2, 10), false).unwrap()];
    let pair = UnitProfile::new("conv", "head", &units);
    let refused = Allocator::new(Budget::ParameterFraction(0.9)).allocate_joint(&layers, &[], &[pair]).unwrap_err();
    assert!(refused.to_string().contains("layers of one group around hidden units, got 2 groups"), "{refused}");
}

#[test]
fn costs_of_all_kinds_are_sums_and_products() {
    let linear = Cost::of_linear((8, 6), true);
    assert_eq!(linear, Cost { parameters: 56, multiply_adds: 48, rank: 6 });
    assert_eq!(Cost::of_rank(Form::Factors, 2, (8, 6), true), Cost { parameters: 36, multiply_adds: 28, rank: 2 });
    assert_eq!(Cost::of_rank(Form::Pivoted, 2, (8, 6), false), Cost { parameters: 24, multiply_adds: 24, rank: 2 });
    let conv = linear.in_groups(4).at_positions(100);
    assert_eq!(conv, Cost { parameters: 224, multiply_adds: 19200, rank: 24 });
    assert_eq!([linear, conv].into_iter().sum::<Cost>(), Cost { parameters: 280, multiply_adds: 19248, rank: 30 });
    let huge = Cost::of_linear((usize::MAX, usize::MAX), true).at_positions(u64::MAX);
    assert_eq!(huge.multiply_adds, u64::MAX);
}
