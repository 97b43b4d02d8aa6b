//! One budget for many layers, compared with all possible choices, for every kind of budget and
//! limit.

use crate::common::{SPECTRA, Spectrum};
use dalr::network::{Allocator, Budget, Choice, LayerProfile, OriginalReason, Plan, Sensitivities, Strategy};
use dalr::{ActivationStats, Dalr, Error, LowRankCompressor, TruncatedSvd, Warning};
use proptest::prelude::*;
use proptest::strategy::Strategy as _;

use crate::choices;

/// Returns a layer with these squared singular values.
fn profile(name: &str, shape: (usize, usize), bias: bool, spectrum: Spectrum) -> LayerProfile {
    let mut energies: Vec<f64> = spectrum.values(shape.0.min(shape.1)).iter().map(|value| value * value).collect();
    energies.sort_by(|a, b| b.total_cmp(a));
    LayerProfile::from_energies(name, shape, bias, &energies, energies.iter().sum()).unwrap()
}

/// A layer and its limits, for the oracle.
#[derive(Clone, Debug)]
struct Layer {
    shape: (usize, usize),
    bias: bool,
    spectrum: Spectrum,
    calls: u64,
    weight: f64,
    limits: Option<(usize, usize)>,
    untouched: bool,
}

#[derive(Clone, Debug)]
struct Network {
    layers: Vec<Layer>,
    multiple: usize,
    min_rank: usize,
    max_rank: usize,
}

/// Rank (0 for the original layer), parameters, multiply–adds, weighted loss.
type Way = (usize, u64, u64, f64);

impl Network {
    fn profiles(&self) -> Vec<LayerProfile> {
        let profile = |(index, layer): (usize, &Layer)| {
            profile(&format!("layer{index}"), layer.shape, layer.bias, layer.spectrum).with_calls(layer.calls)
        };
        self.layers.iter().enumerate().map(profile).collect()
    }

    fn allocator(&self, budget: Budget) -> Allocator {
        let weights = self.layers.iter().enumerate().map(|(index, layer)| (format!("layer{index}"), layer.weight));
        let mut allocator = Allocator::new(budget)
            .with_strategy(Strategy::Sensitivity(Sensitivities::new(weights).unwrap()))
            .with_rank_multiple(self.multiple)
            .with_min_rank(self.min_rank)
            .with_max_rank(self.max_rank);
        for (index, layer) in self.layers.iter().enumerate() {
            if let Some((least, most)) = layer.limits {
                allocator = allocator.with_limits(format!("layer{index}"), least, most);
            }
            if layer.untouched {
                allocator = allocator.with_untouched(format!("layer{index}"));
            }
        }
        allocator
    }

    /// Returns all candidates of a layer, from the definitions.
    fn ways(&self, layer: &Layer) -> Vec<Way> {
        let (m, n) = (layer.shape.0 as u64, layer.shape.1 as u64);
        let bias = if layer.bias { m } else { 0 };
        let mut ways = vec![(0, m * n + bias, m * n * layer.calls, 0.0)];
        let (least, most) = layer.limits.unwrap_or((self.min_rank, self.max_rank));
        let energies: Vec<f64> =
            layer.spectrum.values(layer.shape.0.min(layer.shape.1)).iter().map(|v| v * v).collect();
        let total = energies.iter().sum::<f64>();
        for rank in 1..=energies.len() {
            let parameters = rank as u64 * (m + n);
            let allowed = rank % self.multiple == 0 && rank >= least && rank <= most && !layer.untouched;
            if allowed && parameters < m * n {
                let mut sorted = energies.clone();
                sorted.sort_by(|a, b| b.total_cmp(a));
                let tail = sorted[rank..].iter().sum::<f64>();
                ways.push((rank, parameters + bias, parameters * layer.calls, layer.weight * tail / total));
            }
        }
        ways
    }

    /// Returns parameters, multiply–adds and loss of every choice for all layers.
    fn all(&self) -> Vec<(u64, u64, f64)> {
        let mut all = vec![(0, 0, 0.0)];
        for layer in &self.layers {
            let ways = self.ways(layer);
            let more = all.iter().flat_map(|(p, a, l)| ways.iter().map(move |way| (p + way.1, a + way.2, l + way.3)));
            all = more.collect();
        }
        all
    }

    /// Returns the sum of the weights that count: those of layers that can be compressed.
    fn weight(&self) -> f64 {
        self.layers.iter().filter(|layer| self.ways(layer).len() > 1).map(|layer| layer.weight).sum()
    }

    /// Returns the parameters, multiply–adds and loss of a plan, from the definitions, after
    /// checking that its choices are allowed.
    #[track_caller]
    fn check(&self, plan: &Plan) -> (u64, u64, f64) {
        let mut sum = (0, 0, 0.0);
        for ((layer, choice), report) in self.layers.iter().zip(choices(plan)).zip(&plan.layers) {
            let rank = match choice {
                Choice::Original => 0,
                Choice::Rank(rank) => rank,
                _ => panic!("{choice:?}"),
            };
            let way = *self.ways(layer).iter().find(|way| way.0 == rank).expect("a choice that is allowed");
            assert_eq!((report.parameters_after, report.multiply_adds_after), (way.1, way.2));
            sum = (sum.0 + way.1, sum.1 + way.2, sum.2 + way.3);
        }
        assert_eq!((plan.parameters_after(), plan.multiply_adds_after()), (sum.0, sum.1));
        sum
    }
}

fn layers() -> impl proptest::strategy::Strategy<Value = Layer> {
    let limits = prop_oneof![3 => Just(None), 1 => (1_usize..4, 0_usize..4).prop_map(|(a, b)| Some((a, a + b)))];
    let weight = prop_oneof![6 => 0.01..2.0, 1 => Just(0.0)];
    ((2_usize..11, 2_usize..11), any::<bool>(), 0..SPECTRA.len(), 1_u64..4, weight, limits, 0..6).prop_map(
        |(shape, bias, spectrum, calls, weight, limits, untouched)| {
            let spectrum = SPECTRA[spectrum];
            Layer { shape, bias, spectrum, calls, weight, limits, untouched: untouched == 0 }
        },
    )
}

fn networks() -> impl proptest::strategy::Strategy<Value = Network> {
    (prop::collection::vec(layers(), 1..6), 1_usize..4, 1_usize..4, 3_usize..11)
        .prop_map(|(layers, multiple, min_rank, max_rank)| Network { layers, multiple, min_rank, max_rank })
}

fn rounding(plan: &Plan, loss: f64) -> f64 {
    256.0 * f64::EPSILON * (plan.objective + loss)
}

/// Returns the least value of all choices within the limit, and the least cost of any.
fn best(all: impl Iterator<Item = (f64, f64)> + Clone, limit: f64) -> (Option<f64>, f64) {
    let within = all.clone().filter(|(cost, _)| *cost <= limit).map(|(_, value)| value);
    (within.reduce(f64::min), all.map(|(cost, _)| cost).fold(f64::INFINITY, f64::min))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// No allowed choice within the budget has a smaller loss, the bound is below the loss, and an
    /// infeasible budget is an error with the smallest feasible one.
    #[test]
    fn budgets_of_cost(network in networks(), share in 0.02..1.0_f64, of_parameters in any::<bool>(), relative in any::<bool>()) {
        let profiles = network.profiles();
        let all = network.all();
        let cost = |way: &(u64, u64, f64)| if of_parameters { way.0 } else { way.1 } as f64;
        let dense: f64 = profiles
            .iter()
            .map(|layer| if of_parameters { layer.parameters() } else { layer.multiply_adds() } as f64)
            .sum();
        let limit = (share * dense * (1.0 + 8.0 * f64::EPSILON)).floor();
        let budget = match (of_parameters, relative) {
            (true, true) => Budget::ParameterFraction(share),
            (true, false) => Budget::Parameters(limit as u64),
            (false, true) => Budget::MultiplyAddFraction(share),
            (false, false) => Budget::MultiplyAdds(limit as u64),
        };
        let (least_loss, least_cost) = best(all.iter().map(|way| (cost(way), way.2)), limit);
        for strategy in [None, Some(Strategy::Uniform)] {
            let allocator = network.allocator(budget);
            let optimal = strategy.is_none();
            let allocator = strategy.map_or(allocator.clone(), |strategy| allocator.with_strategy(strategy));
            let plan = match (allocator.allocate(&profiles), least_loss) {
                (Ok(plan), Some(_)) => plan,
                (Err(Error::OutOfRange { expected, .. }), None) => {
                    let named = if relative { (least_cost / dense * 1e6).ceil() / 1e6 } else { least_cost };
                    prop_assert!(expected.starts_with(&format!("to be at least {named},")), "{expected}, not {named}");
                    continue;
                }
                (other, least) => return Err(TestCaseError::fail(format!("{other:?} where there is {least:?}"))),
            };
            let (parameters, multiply_adds, loss) = network.check(&plan);
            prop_assert!(cost(&(parameters, multiply_adds, loss)) <= limit);
            prop_assert!(plan.lower_bound <= plan.objective);
            prop_assert_eq!(plan.gap(), plan.objective - plan.lower_bound);
            if optimal {
                let least = least_loss.unwrap_or(f64::NAN);
                prop_assert!((plan.objective - loss).abs() <= rounding(&plan, loss));
                prop_assert!(plan.lower_bound <= least + rounding(&plan, least));
                prop_assert!(loss <= least + rounding(&plan, least), "{} where there is {}", loss, least);
            }
        }
    }

    /// No allowed choice within the error has fewer parameters.
    #[test]
    fn budgets_of_error(network in networks(), error in 0.0..0.9_f64) {
        let profiles = network.profiles();
        let weight = network.weight();
        let limit = error * error * weight;
        let all = network.all();
        // These choices are within the limit in spite of rounding.
        let (least, _) = best(all.iter().map(|way| (way.2, way.0 as f64)), limit * (1.0 - 1e-12));
        let least = least.unwrap_or(f64::NAN);
        let plan = network.allocator(Budget::TotalError(error)).allocate(&profiles).unwrap();
        let (parameters, _, loss) = network.check(&plan);
        prop_assert!(loss <= limit * (1.0 + 1e-12), "{loss} lost of {limit}");
        prop_assert!(plan.total_error().is_none_or(|total| total <= error * (1.0 + 1e-12)));
        prop_assert_eq!(plan.objective, parameters as f64);
        prop_assert!(plan.lower_bound <= least * (1.0 + 1e-12));
        prop_assert!(plan.objective <= least, "{} parameters where {} do", plan.objective, least);
        // The same holds for every layer separately.
        let plan = network.allocator(Budget::LayerError(error)).allocate(&profiles).unwrap();
        network.check(&plan);
        for ((layer, choice), report) in network.layers.iter().zip(choices(&plan)).zip(&plan.layers) {
            let unweighted = Layer { weight: 1.0, ..layer.clone() };
            let good = network.ways(&unweighted).into_iter().filter(|way| way.3.sqrt() <= error * (1.0 - 1e-12));
            let least = good.map(|way| way.1).min().unwrap_or(u64::MAX);
            prop_assert!(report.parameters_after <= least, "{choice:?} takes more than {least}");
            prop_assert!(report.loss.sqrt() <= error * (1.0 + 1e-12));
        }
    }
}

#[test]
fn uniform_keeps_the_same_fraction_everywhere() {
    let shapes = [(64, 64), (64, 64), (256, 64), (64, 256)];
    let layers: Vec<LayerProfile> = shapes
        .iter()
        .enumerate()
        .map(|(index, &shape)| profile(&format!("fc{index}"), shape, false, SPECTRA[index]))
        .collect();
    let plan = Allocator::new(Budget::ParameterFraction(0.4)).allocate(&layers).unwrap();
    // This does not depend on the spectra. The fraction allows ranks 12.8 and 20.48, so 12 and 20,
    // which leaves 512 of 16384 parameters. The next larger fraction at which a rank changes, 13 ·
    // 128 / 4096, takes 256 of them; the one after that, 21 · 320 / 16384, would take another 640.
    assert_eq!(choices(&plan), [13, 13, 20, 20].map(Choice::Rank));
    assert_eq!(plan.parameters_after(), 16384 - 256);
    let everything = Allocator::new(Budget::ParameterFraction(1.0)).allocate(&layers).unwrap();
    assert_eq!(choices(&everything), [Choice::Original; 4]);
    assert_eq!(everything.layers[0].reason, Some(OriginalReason::Affordable));
}

#[test]
fn one_rank_for_all_that_it_makes_smaller() {
    let layers = [
        profile("wide", (64, 64), true, Spectrum::Geometric),
        profile("head", (10, 84), true, Spectrum::Geometric),
        LayerProfile::from_energies("partial", (64, 64), false, &[4.0, 3.0], 10.0).unwrap(),
    ];
    let at = |rank: usize| Allocator::new(Budget::Rank(rank)).with_rank_multiple(2);
    let plan = at(12).allocate(&layers[..2]).unwrap();
    // 12 (10 + 84) is more than 840.
    assert_eq!(choices(&plan), [Choice::Rank(12), Choice::Original]);
    assert_eq!(plan.choice("wide"), Some(Choice::Rank(12)));
    assert_eq!(plan.choice("nobody"), None);
    assert_eq!(plan.gap(), 0.0);
    assert!(matches!(at(7).allocate(&layers[..2]), Err(Error::Rank { .. })));
    let Err(Error::InLayer { layer, source }) = at(12).allocate(&layers) else { panic!() };
    assert_eq!(layer, "partial");
    assert!(matches!(*source, Error::Rank { .. }));
    assert_eq!(choices(&at(2).allocate(&layers).unwrap()), [Choice::Rank(2); 3]);
}

#[test]
fn measured_sensitivities_move_the_budget() {
    let layers = [
        profile("heard", (32, 32), false, Spectrum::Arithmetic),
        profile("unheard", (32, 32), false, Spectrum::Arithmetic),
    ];
    let ranks = |plan: &Plan| {
        let rank = |choice: &Choice| match choice {
            Choice::Rank(rank) => *rank,
            _ => 32,
        };
        choices(plan).iter().map(rank).collect::<Vec<usize>>()
    };
    let allocator = Allocator::new(Budget::ParameterFraction(0.5));
    let even = allocator.clone().with_strategy(Strategy::Energy).allocate(&layers).unwrap();
    assert_eq!(ranks(&even), [8, 8]);
    assert!(even.warnings.contains(&Warning::EnergyAlone));
    let sensitivities = Sensitivities::new([("heard", 1.0), ("unheard", 0.1), ("elsewhere", 3.0)]).unwrap();
    let heard = allocator.with_strategy(Strategy::Sensitivity(sensitivities)).allocate(&layers).unwrap();
    let ranks = ranks(&heard);
    assert!(ranks[0] > 11 && ranks[1] < 5 && ranks.iter().sum::<usize>() <= 16, "{ranks:?}");
    assert!(!heard.warnings.contains(&Warning::EnergyAlone));
}

#[test]
fn plans_report_what_the_compressed_layers_do() {
    let recipe = crate::common::Recipe {
        seed: 3,
        out_features: 24,
        in_features: 18,
        samples: 12,
        weight: Spectrum::Geometric,
        data: Spectrum::Arithmetic,
        mean: 1.0,
        scale: 1.0,
    };
    let problem = recipe.cook();
    let layer = problem.layer::<f64>();
    let stats = problem.stats::<f64>();
    let decomposition = Dalr::new().decompose(&layer, &stats, 10).unwrap();
    let profiles = [
        LayerProfile::new("fc1", &decomposition),
        LayerProfile::original("head", (4, 24), true).unwrap(),
        profile("narrow", (2, 2), false, Spectrum::Arithmetic),
    ];
    let plan = Allocator::new(Budget::ParameterFraction(0.8)).allocate(&profiles).unwrap();
    let Choice::Rank(rank) = choices(&plan)[0] else { panic!() };
    let truncated = decomposition.truncate(rank).unwrap();
    let first = &plan.layers[0];
    assert_eq!(first.report.as_ref(), Some(truncated.report()));
    assert_eq!(first.relative_error, truncated.report().relative_error());
    assert_eq!(first.parameters_after, truncated.layer().parameters() as u64);
    assert_eq!(first.multiply_adds_after, truncated.layer().multiply_adds() as u64);
    assert!(matches!(first.warnings[0], Warning::FewSamples { .. }));
    assert_eq!(plan.layers[1].reason, Some(OriginalReason::Untouched));
    assert_eq!(plan.layers[2].reason, Some(OriginalReason::NoSavings));
    assert_eq!(plan.parameters_before(), 24 * 19 + 4 * 25 + 4);
    let text = plan.to_string();
    for part in ["1 of 3 layers compressed to 80 % of the parameters, uniform", "18 → ", "untouched", "warning: "] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    // Ranks above the largest solved one cannot be chosen.
    assert!(rank <= 10 && profiles[0].loss(11).is_none() && profiles[0].report(11).is_none());
}

#[test]
fn ranks_chosen_elsewhere_are_reported_as_those_of_a_plan() {
    let layers = [
        profile("fc1", (20, 30), true, Spectrum::Arithmetic),
        profile("fc2", (30, 20), false, Spectrum::Geometric).with_calls(2),
        LayerProfile::original("head", (3, 30), true).unwrap(),
    ];
    let plan =
        Allocator::new(Budget::ParameterFraction(0.6)).with_strategy(Strategy::Energy).allocate(&layers).unwrap();
    let chosen = Plan::of_ranks(&layers, &plan.ranks()).unwrap();
    assert_eq!(chosen.parameters_after(), plan.parameters_after());
    assert_eq!(chosen.multiply_adds_after(), plan.multiply_adds_after());
    assert_eq!((chosen.objective, chosen.gap()), (plan.objective, 0.0));
    assert_eq!(chosen.total_error(), plan.total_error());
    for (one, other) in chosen.layers.iter().zip(&plan.layers) {
        assert_eq!((one.choice, &one.report), (other.choice, &other.report));
    }
    // Above break-even, the plan keeps the rank and warns.
    let ranks = |name: &str, rank: usize| [(name.to_owned(), rank)].into();
    let large = Plan::of_ranks(&layers, &ranks("fc1", 20)).unwrap();
    assert!(large.parameters_after() > large.parameters_before());
    assert!(large.layers[0].warnings.iter().any(|warning| matches!(warning, Warning::PastBreakEven { .. })));
    let reasons = [None, Some(OriginalReason::Chosen), Some(OriginalReason::Untouched)];
    assert_eq!(large.layers.iter().map(|layer| layer.reason).collect::<Vec<_>>(), reasons);
    let refused = |name: &str, rank: usize| Plan::of_ranks(&layers, &ranks(name, rank)).unwrap_err();
    assert!(matches!(refused("fc3", 2), Error::Layers { .. }));
    for (name, rank) in [("fc1", 0), ("fc1", 21), ("head", 1)] {
        assert!(matches!(refused(name, rank), Error::InLayer { .. }));
    }
    assert!(matches!(Plan::of_ranks(&[], &ranks("fc1", 1)), Err(Error::Empty { .. })));
}

#[test]
fn losses_by_energy_and_by_error() {
    let problem = crate::common::Recipe {
        seed: 5,
        out_features: 12,
        in_features: 16,
        samples: 40,
        weight: Spectrum::Geometric,
        data: Spectrum::Geometric,
        mean: 0.0,
        scale: 1.0,
    }
    .cook();
    // Both are relative to the outputs about their mean if the bias is corrected.
    let (layer, stats) = (problem.layer::<f64>(), problem.stats::<f64>());
    let exact = Dalr::new().with_ridge(dalr::Ridge::None).decompose(&layer, &stats, 12).unwrap();
    let profile = LayerProfile::new("fc1", &exact);
    for rank in 1..12 {
        // Without a ridge they are equal, up to the rounding of a difference of energies.
        let (energy, error) = (profile.loss(rank).unwrap(), profile.relative_error(rank).unwrap().powi(2));
        assert!((energy - error).abs() <= 200.0 * f64::EPSILON, "{rank}: {energy:e} {error:e}");
    }
    // If only some ranks are solved, the loss includes the rest of the energy.
    let part =
        LayerProfile::new("fc1", &Dalr::new().with_ridge(dalr::Ridge::None).decompose(&layer, &stats, 4).unwrap());
    let (whole, rest) = (profile.loss(4).unwrap(), part.loss(4).unwrap());
    assert!((whole - rest).abs() <= 200.0 * f64::EPSILON, "{whole:e} {rest:e}");
    let blind =
        LayerProfile::new("fc1", &TruncatedSvd::new().decompose(&layer, &ActivationStats::new(16), 12).unwrap());
    assert_eq!(blind.with_data_errors(), Err(Error::NoSamples { operation: "LayerProfile::with_data_errors" }));
}

#[test]
fn budgets_go_by_energy_or_by_error_as_asked() {
    let recipe = crate::common::Recipe {
        seed: 6,
        out_features: 40,
        in_features: 40,
        samples: 30,
        weight: Spectrum::Geometric,
        data: Spectrum::Geometric,
        mean: 0.0,
        scale: 1.0,
    };
    let problem = recipe.cook();
    let shrunk = Dalr::new().decompose(&problem.bare_layer::<f64>(), &problem.stats::<f64>(), 19).unwrap();
    let by_energy = LayerProfile::new("fc1", &shrunk);
    let by_error = by_energy.clone().with_data_errors().unwrap();
    assert_eq!(by_energy.explained_energy().len(), 19);
    let total = by_energy.explained_energy().iter().sum::<f64>() + by_energy.loss(19).unwrap();
    assert!((total - 1.0).abs() < 1e-12);
    for rank in [1, 2, 5, 9] {
        for profile in [&by_energy, &by_error] {
            let error = profile.loss(rank).unwrap().sqrt() * (1.0 + 1e-9);
            let plan = Allocator::new(Budget::TotalError(error)).allocate(std::slice::from_ref(profile)).unwrap();
            assert_eq!(choices(&plan), [Choice::Rank(rank)]);
        }
        // With shrinkage, the two differ.
        let (energy, error) = (by_energy.loss(rank).unwrap(), by_error.loss(rank).unwrap());
        assert!((energy - error).abs() > 1e-3 * energy, "{rank}: {energy:e} {error:e}");
    }
}

#[test]
fn a_total_is_the_sum_of_the_energies_up_to_rounding() {
    let profile = |energy: f64, total: f64| LayerProfile::from_energies("fc1", (4, 4), false, &[energy; 4], total);
    for energy in [1.0, 1e-3, 1e3] {
        let rounding = 16.0 * f64::EPSILON * 4.0 * energy;
        assert!(profile(energy, 4.0 * energy - 0.9 * rounding).is_ok());
        assert!(matches!(profile(energy, 4.0 * energy - 1.1 * rounding), Err(Error::OutOfRange { .. })));
    }
}

#[test]
fn refusals() {
    let layers = [profile("fc1", (8, 8), false, Spectrum::Flat), profile("fc2", (8, 8), false, Spectrum::Flat)];
    let refused = |allocator: Allocator, layers: &[LayerProfile], message: &str| {
        let message = format!("Allocator::allocate: expected {message}");
        assert_eq!(allocator.allocate(layers).unwrap_err().to_string(), message);
    };
    let share = |share| Allocator::new(Budget::ParameterFraction(share));
    let out_of_range = [
        (share(0.0), "the fraction of the parameters to be in (0, 1], got 0"),
        (share(1.5), "the fraction of the parameters to be in (0, 1], got 1.5"),
        (share(f64::NAN), "the fraction of the parameters to be in (0, 1], got NaN"),
        (Allocator::new(Budget::MultiplyAddFraction(0.0)), "the fraction of the multiply–adds to be in (0, 1], got 0"),
        (
            Allocator::new(Budget::MultiplyAddFraction(-1.0)),
            "the fraction of the multiply–adds to be in (0, 1], got -1",
        ),
        (Allocator::new(Budget::TotalError(-0.5)), "the total error to be finite and at least 0, got -0.5"),
        (
            Allocator::new(Budget::LayerError(f64::INFINITY)),
            "the error of each layer to be finite and at least 0, got inf",
        ),
        (Allocator::new(Budget::Rank(0)), "the rank to be at least 1, got 0"),
        (share(0.5).with_rank_multiple(0), "the rank multiple to be at least 1, got 0"),
        (share(0.5).with_min_rank(0), "the smallest rank to be at least 1, got 0"),
        (share(0.5).with_min_rank(5).with_max_rank(4), "the largest rank to be at least the smallest, 5, got 4"),
        (share(0.5).with_limits("fc3", 1, 2), "limits for layers of the network, got some for `fc3`"),
        (share(0.5).with_untouched("fc3"), "limits for layers of the network, got some for `fc3`"),
        (
            Allocator::new(Budget::Parameters(31)),
            "the number of parameters to be at least 32, the smallest feasible for these layers, got 31",
        ),
        (
            Allocator::new(Budget::MultiplyAdds(31)),
            "the number of multiply–adds to be at least 32, the smallest feasible for these layers, got 31",
        ),
        (
            share(0.2),
            "the fraction of the parameters to be at least 0.25, the smallest feasible for these layers, got 0.2",
        ),
    ];
    for (allocator, message) in out_of_range {
        refused(allocator, &layers, message);
    }
    let empty = share(0.5).allocate(&[]).unwrap_err().to_string();
    assert_eq!(empty, "Allocator::allocate: the list of layers must not be empty");
    refused(share(0.5), &[layers[0].clone(), layers[0].clone()], "layers of different names, got `fc1` twice");
    let missing = Strategy::Sensitivity(Sensitivities::new([("fc1", 1.0)]).unwrap());
    let message = "a sensitivity for each layer that can be compressed, got none for `fc2`";
    refused(share(0.5).with_strategy(missing.clone()), &layers, message);
    // A layer that stays original needs no sensitivity.
    assert!(share(0.9).with_strategy(missing).with_untouched("fc2").allocate(&layers).is_ok());

    for bad in [-1.0, f64::NAN, f64::INFINITY] {
        let error = Sensitivities::new([("fc1", bad)]).unwrap_err();
        let Error::InLayer { layer, source } = error else { panic!("{error}") };
        assert!(layer == "fc1" && matches!(*source, Error::OutOfRange { .. }));
    }
    assert!(matches!(Sensitivities::new([("fc1", 1.0), ("fc1", 2.0)]), Err(Error::Layers { .. })));
    assert!(Sensitivities::new([("fc1", 1.0)]).unwrap().with_floor(1.5).is_err());

    let spectrum = |energies: &[f64], total| LayerProfile::from_energies("fc1", (3, 4), false, energies, total);
    assert!(spectrum(&[3.0, 2.0, 1.0], 6.0).is_ok());
    assert!(matches!(spectrum(&[], 1.0), Err(Error::Empty { .. })));
    assert!(matches!(spectrum(&[1.0; 4], 4.0), Err(Error::Rank { .. })));
    for (energies, total) in
        [(&[1.0, 2.0][..], 3.0), (&[-1.0], 0.0), (&[f64::NAN], 1.0), (&[2.0, 1.0], 2.0), (&[1.0], f64::NAN)]
    {
        assert!(matches!(spectrum(energies, total), Err(Error::OutOfRange { .. })), "{energies:?}");
    }
    assert!(matches!(LayerProfile::original("fc1", (0, 4), false), Err(Error::Empty { .. })));
}

/// `cargo test --release --test it thousand -- --ignored --nocapture` prints the time.
#[test]
#[ignore = "takes seconds: .ci/nightly runs it"]
fn a_thousand_layers_with_full_spectra() {
    let layers: Vec<LayerProfile> = (0..1000)
        .map(|index| {
            let decay = 0.2 + 1.5 * f64::from(index) / 1000.0;
            let energies: Vec<f64> = (1..=4096).map(|i| f64::from(i).powf(-decay)).collect();
            let total = energies.iter().sum();
            LayerProfile::from_energies(format!("layer{index}"), (4096, 4096), false, &energies, total).unwrap()
        })
        .collect();
    let weights = (0..1000).map(|index| (format!("layer{index}"), f64::from((index * 7919) % 1000 + 1)));
    let strategy = Strategy::Sensitivity(Sensitivities::new(weights).unwrap());
    for (strategy, worst) in [(strategy, 1e-5), (Strategy::Energy, 1e-5), (Strategy::Uniform, 1.0)] {
        let start = std::time::Instant::now();
        let plan = Allocator::new(Budget::ParameterFraction(0.4)).with_strategy(strategy).allocate(&layers).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        println!("{}: {seconds:.3} s, gap {:.1e} of {:.3}", plan.strategy, plan.gap(), plan.objective);
        assert!(plan.parameters_after() as f64 <= 0.4 * 1000.0 * 4096.0 * 4096.0);
        assert!(plan.gap() <= worst * plan.objective);
    }
}
