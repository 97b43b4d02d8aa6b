//! Budgets at exact limits, and the warnings of plans.

use crate::choices;
use crate::common::Spectrum;
use dalr::network::{Allocator, Budget, Choice, LayerProfile, OriginalReason, Plan, Sensitivities, Strategy};
use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Ridge, TruncatedSvd, Warning};
use faer::{Col, Mat};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Returns a square layer with exactly these energies.
fn profile(name: &str, size: usize, energies: &[f64]) -> LayerProfile {
    LayerProfile::from_energies(name, (size, size), false, energies, energies.iter().sum()).unwrap()
}

fn plan(budget: Budget, strategy: Strategy, layers: &[LayerProfile]) -> Plan {
    Allocator::new(budget).with_strategy(strategy).allocate(layers).unwrap()
}

#[test]
fn energy_alone_is_worth_a_warning_where_it_decides() {
    let layers = [profile("fc1", 16, &[4.0, 2.0, 1.0, 1.0]), profile("fc2", 16, &[9.0, 1.0])];
    for (budget, decides) in [
        (Budget::Parameters(200), true),
        (Budget::ParameterFraction(0.5), true),
        (Budget::MultiplyAdds(200), true),
        (Budget::MultiplyAddFraction(0.5), true),
        (Budget::TotalError(0.4), true),
        (Budget::LayerError(0.4), false),
        (Budget::Rank(2), false),
    ] {
        for (strategy, by_energy) in [(Strategy::Energy, true), (Strategy::Uniform, false)] {
            let plan = plan(budget, strategy, &layers);
            let warned = plan.warnings.contains(&Warning::EnergyAlone);
            assert_eq!(warned, decides && by_energy, "{budget}");
        }
    }
}

#[test]
fn gaps_are_worth_a_warning_where_they_are_to_be_small() {
    // The original layer has 64 parameters, rank 2 has 32. For a budget of 60, the relaxed problem
    // contains 28/32 of the original layer.
    let layer = [profile("fc1", 8, &[1.0; 8])];
    let allocator = Allocator::new(Budget::Parameters(60)).with_limits("fc1", 2, 2);
    let optimal = allocator.clone().with_strategy(Strategy::Energy).allocate(&layer).unwrap();
    let uniform = allocator.allocate(&layer).unwrap();
    for plan in [&optimal, &uniform] {
        assert_eq!((choices(plan), plan.objective), (vec![Choice::Rank(2)], 0.75));
        assert!((plan.lower_bound - 0.75 * (1.0 - 28.0 / 32.0)).abs() < 1e-12);
    }
    let share = |plan: &Plan| {
        plan.warnings.iter().find_map(|warning| match warning {
            Warning::Gap { fraction } => Some(*fraction),
            _ => None,
        })
    };
    assert!(share(&optimal).is_some_and(|share| (share - 28.0 / 32.0).abs() < 1e-12));
    assert_eq!(share(&uniform), None);
}

#[test]
fn a_rank_is_taken_where_it_saves_something() {
    let layers = [profile("fc1", 4, &[4.0, 2.0, 1.0, 1.0]), profile("fc2", 16, &[1.0; 16])];
    // Rank 1 has 2 · 8 parameters, no fewer than 16.
    let at = |rank: usize| Allocator::new(Budget::Rank(rank));
    assert_eq!(choices(&at(1).allocate(&layers).unwrap()), [Choice::Rank(1); 2]);
    assert_eq!(choices(&at(2).allocate(&layers).unwrap()), [Choice::Original, Choice::Rank(2)]);
    // If the limits exclude the rank, the nearest allowed rank is chosen, not the original layer.
    assert_eq!(choices(&at(1).with_limits("fc2", 5, 6).allocate(&layers).unwrap()), [Choice::Rank(1), Choice::Rank(5)]);
    assert_eq!(
        choices(&at(7).with_limits("fc2", 5, 6).allocate(&layers).unwrap()),
        [Choice::Original, Choice::Rank(6)]
    );
}

#[test]
fn a_total_error_is_kept_to_its_last_digit() {
    // Rank 1 loses a quarter of the energy, a relative error of exactly 0.5.
    let layer = [profile("fc1", 8, &[3.0, 1.0])];
    for (error, rank) in [(0.5_f64.next_down(), 2), (0.5 * (1.0 + 1e-14), 1)] {
        for strategy in [Strategy::Energy, Strategy::Uniform] {
            let plan = plan(Budget::TotalError(error), strategy, &layer);
            assert_eq!(choices(&plan), [Choice::Rank(rank)]);
            assert!(plan.total_error().unwrap() <= error);
        }
    }
    // The result must not depend on the rounding in a sum of many numbers.
    let mut rng = StdRng::seed_from_u64(1);
    for round in 0..300 {
        let layers: Vec<LayerProfile> = (0..16)
            .map(|index| {
                let mut energies: Vec<f64> = (0..8).map(|_| rng.random_range(0.1..1.0)).collect();
                energies.sort_by(|a, b| b.total_cmp(a));
                profile(&format!("fc{index}"), 8, &energies)
            })
            .collect();
        let weights = (0..16).map(|index| (format!("fc{index}"), rng.random_range(0.5..2.0)));
        let strategy = Strategy::Sensitivity(Sensitivities::new(weights).unwrap());
        let total = |error: f64| plan(Budget::TotalError(error), strategy.clone(), &layers).total_error().unwrap();
        let error = total(0.5);
        assert!(error <= 0.5 && total(error) <= error, "round {round}");
        assert!(total(error.next_down()) < error, "round {round}");
    }
}

#[test]
fn uniform_within_a_total_error_counts_layers_that_can_be_compressed() {
    // Rank 3 of 8, the largest that saves parameters, loses 5/8 of either layer. The head has no
    // loss, and does not count.
    let layers = [
        LayerProfile::original("head", (10, 8), false).unwrap(),
        profile("fc1", 8, &[1.0; 8]),
        profile("fc2", 8, &[2.0; 8]).with_calls(3),
    ];
    let error = (5.0_f64 / 8.0).sqrt();
    let compressed = plan(Budget::TotalError(error * (1.0 + 1e-12)), Strategy::Uniform, &layers);
    assert_eq!(choices(&compressed), [Choice::Original, Choice::Rank(3), Choice::Rank(3)]);
    let original = plan(Budget::TotalError(error * (1.0 - 1e-12)), Strategy::Uniform, &layers);
    assert_eq!(choices(&original), [Choice::Original; 3]);
    let reason = |index: usize| original.layers[index].reason;
    assert_eq!((reason(0), reason(1)), (Some(OriginalReason::Untouched), Some(OriginalReason::ErrorTooLarge)));
}

#[test]
fn errors_below_resolution_are_not_taken_for_zero() {
    // Half of the singular values are zero, so the loss at rank 8 of 16 is only rounding.
    let problem = crate::common::Recipe {
        seed: 9,
        out_features: 64,
        in_features: 16,
        samples: 60,
        weight: Spectrum::Deficient,
        data: Spectrum::Arithmetic,
        mean: 0.0,
        scale: 1.0,
    }
    .cook();
    let method = Dalr::new().with_ridge(Ridge::None);
    let decomposition = method.decompose(&problem.bare_layer::<f64>(), &problem.stats::<f64>(), 12).unwrap();
    let layer = [LayerProfile::new("fc1", &decomposition)];
    let found = layer[0].relative_error(8).unwrap();
    let at = |error: f64| Allocator::new(Budget::LayerError(error)).allocate(&layer).unwrap();
    let warnings = layer[0].report(8).unwrap().warnings;
    let resolution = warnings.iter().find_map(|warning| match warning {
        Warning::BelowResolution { resolution } => Some(*resolution),
        _ => None,
    });
    let resolution = resolution.unwrap();
    assert!(found < resolution && resolution < 1e-6, "{found:e}, {resolution:e}");
    assert_eq!(choices(&at(1.01 * resolution)), [Choice::Rank(8)]);
    assert_eq!(choices(&at(0.5 * (found + resolution))), [Choice::Original]);
    // With `with_data_errors`, losses are squares of the predicted errors.
    let by_errors = layer[0].clone().with_data_errors().unwrap();
    for rank in 1..=12 {
        assert_eq!(by_errors.loss(rank), layer[0].relative_error(rank).map(|error| error * error));
    }
}

/// The original outputs do not vary, so every predicted error is infinite.
#[test]
fn layers_of_infinite_loss_are_planned() {
    let weight = Mat::from_fn(8, 8, |i, j| ((i * 5 + j * j * 3) % 7) as f64 + 1.0);
    let layer = Linear::new(weight, Some(Col::zeros(8))).unwrap();
    let mut stats = ActivationStats::new(8);
    stats.update(Mat::from_fn(5, 8, |_, j| (j + 1) as f64).as_ref()).unwrap();
    let decomposition = TruncatedSvd::new().decompose(&layer, &stats, 3).unwrap();
    let layer = [LayerProfile::new("fc1", &decomposition).with_data_errors().unwrap()];
    assert_eq!(layer[0].loss(1), Some(f64::INFINITY));
    for (budget, choice) in [
        (Budget::Rank(1), Choice::Rank(1)),
        (Budget::ParameterFraction(0.5), Choice::Rank(1)),
        (Budget::ParameterFraction(1.0), Choice::Original),
        (Budget::TotalError(0.5), Choice::Original),
    ] {
        for strategy in [Strategy::Energy, Strategy::Uniform] {
            let plan = plan(budget, strategy, &layer);
            assert_eq!((choices(&plan), plan.gap()), (vec![choice], 0.0), "{budget}");
        }
    }
}
