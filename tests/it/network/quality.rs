//! The distance of plans to the optimum: dynamic programming gives the optimum of small networks,
//! and the lower bound replaces it for large ones.

use dalr::network::{Allocator, Budget, LayerProfile, Plan, Sensitivities, Strategy};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Returns a layer with eigenvalues that decay at a random rate, with steps.
fn profile(rng: &mut StdRng, name: String, shape: (usize, usize), ranks: usize) -> LayerProfile {
    let (power, jump) = (rng.random_range(0.2..2.5), rng.random_range(1..20));
    let full = shape.0.min(shape.1);
    let energy = |i: usize| f64::powf((i / jump + 1) as f64, -power) * f64::powi(0.999, i as i32);
    let energies: Vec<f64> = (0..full).map(energy).collect();
    let total = energies.iter().sum();
    LayerProfile::from_energies(name, shape, false, &energies[..ranks.min(full)], total).unwrap()
}

fn sensitivities(rng: &mut StdRng, layers: &[LayerProfile]) -> Sensitivities {
    let weights: Vec<(&str, f64)> =
        layers.iter().map(|layer| (layer.name(), f64::powf(10.0, rng.random_range(-1.0..1.0)))).collect();
    Sensitivities::new(weights).unwrap()
}

fn plan(budget: Budget, sensitivities: &Sensitivities, layers: &[LayerProfile]) -> Plan {
    let strategy = Strategy::Sensitivity(sensitivities.clone());
    Allocator::new(budget).with_strategy(strategy).allocate(layers).unwrap()
}

/// Returns the smallest loss within the budget. Layer by layer, it keeps all choices that no other
/// choice dominates.
fn optimum(layers: &[LayerProfile], sensitivities: &Sensitivities, budget: u64) -> f64 {
    let mut all = vec![(0_u64, 0.0_f64)];
    for layer in layers {
        let (m, n) = (layer.out_features() as u64, layer.in_features() as u64);
        let mut options = vec![(m * n, 0.0)];
        for rank in (1..=layer.max_rank()).take_while(|&rank| rank as u64 * (m + n) < m * n) {
            options.push((rank as u64 * (m + n), sensitivities.get(layer.name()).unwrap() * layer.loss(rank).unwrap()));
        }
        let sums = all.iter().flat_map(|one| options.iter().map(move |other| (one.0 + other.0, one.1 + other.1)));
        let mut sums: Vec<(u64, f64)> = sums.filter(|(cost, _)| *cost <= budget).collect();
        sums.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let mut least = f64::INFINITY;
        sums.retain(|&(_, loss)| {
            let keep = loss < least;
            least = least.min(loss);
            keep
        });
        all = sums;
    }
    all.last().unwrap().1
}

#[test]
fn small_networks_get_the_best_plan() {
    let mut rng = StdRng::seed_from_u64(21);
    for round in 0..40 {
        let mut shapes = vec![(120, 400), (84, 120), (10, 84)];
        shapes.extend((0..round % 3).map(|_| (rng.random_range(20..200), rng.random_range(20..120))));
        let layers: Vec<LayerProfile> =
            (0..).zip(shapes).map(|(i, shape)| profile(&mut rng, format!("fc{i}"), shape, 120)).collect();
        let sensitivities = sensitivities(&mut rng, &layers);
        let original: u64 = layers.iter().map(LayerProfile::parameters).sum();
        let budget = (rng.random_range(0.05..0.9) * original as f64) as u64;
        let plan = plan(Budget::Parameters(budget), &sensitivities, &layers);
        let best = optimum(&layers, &sensitivities, budget);
        let rounding = 1e-12 * best;
        assert!(plan.parameters_after() <= budget && plan.lower_bound <= best + rounding);
        let (gap, least) = (plan.gap(), best - plan.lower_bound);
        assert!(gap >= least - rounding && gap <= 1.2 * least + rounding, "round {round}: {gap:e}, at best {least:e}");
    }
}

/// Returns the smallest loss within the budget if all costs are multiples of `unit`. Layer by
/// layer, it keeps the best choice for every cost.
fn optimum_in_units(layers: &[LayerProfile], sensitivities: &Sensitivities, budget: u64, unit: u64) -> f64 {
    let mut best = vec![0.0_f64; (budget / unit) as usize + 1];
    for layer in layers {
        let (m, n) = (layer.out_features() as u64, layer.in_features() as u64);
        let weight = sensitivities.get(layer.name()).unwrap();
        let mut options = vec![((m * n / unit) as usize, 0.0)];
        for rank in (1..=layer.max_rank()).take_while(|&rank| rank as u64 * (m + n) < m * n) {
            options.push(((rank as u64 * (m + n) / unit) as usize, weight * layer.loss(rank).unwrap()));
        }
        let least = |cost: usize| {
            let losses =
                options.iter().filter(|option| option.0 <= cost).map(|option| best[cost - option.0] + option.1);
            losses.fold(f64::INFINITY, f64::min)
        };
        best = (0..best.len()).map(least).collect();
    }
    *best.last().unwrap()
}

/// The network is as large as a sentence transformer. The bound can be loose, because a layer has
/// no candidate between its largest rank and the original layer.
#[test]
#[ignore = "takes seconds: .ci/nightly runs it"]
fn networks_of_many_layers_lose_hardly_more_than_the_best_plan() {
    let mut rng = StdRng::seed_from_u64(22);
    let mut close = 0;
    for round in 0..4 {
        let shapes = [(384, 384), (384, 384), (384, 384), (384, 384), (1536, 384), (384, 1536)];
        let layers: Vec<LayerProfile> =
            (0..36).map(|index| profile(&mut rng, format!("layer{index}"), shapes[index % 6], 384)).collect();
        let sensitivities = sensitivities(&mut rng, &layers);
        let original: u64 = layers.iter().map(LayerProfile::parameters).sum();
        for fraction in [0.2, 0.4, 0.6, 0.8] {
            let plan = plan(Budget::ParameterFraction(fraction), &sensitivities, &layers);
            let best = optimum_in_units(&layers, &sensitivities, (fraction * original as f64) as u64, 384);
            let (lost, gap) = (plan.objective / best - 1.0, plan.gap() / plan.objective);
            println!("round {round}, {fraction}: {lost:.1e} above the optimum, gap {gap:.1e}");
            assert!(lost <= 1e-3 && plan.lower_bound <= best * (1.0 + 1e-12), "round {round}, {fraction}: {lost:e}");
            close += usize::from(gap <= 1e-3);
        }
        let error = Budget::TotalError(rng.random_range(0.1..0.6));
        let fewest = plan(error, &sensitivities, &layers);
        assert!(fewest.gap() <= 0.01 * fewest.objective, "round {round}: {} of {}", fewest.gap(), fewest.objective);
    }
    assert!(close >= 12, "only {close} of 16 plans are within 0.1 % of the bound");
}
