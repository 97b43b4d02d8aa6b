//! The time to allocate a budget: `cargo bench --bench network`.

use criterion::{Criterion, criterion_group, criterion_main};
use dalr::network::{Allocator, Budget, LayerProfile, Sensitivities, Strategy};

/// Returns a thousand layers of 4096 × 4096 with all their energies, which fall off at different
/// rates.
fn layers() -> Vec<LayerProfile> {
    let layer = |index: u32| {
        let decay = 0.2 + 1.5 * f64::from(index) / 1000.0;
        let energies: Vec<f64> = (1..=4096).map(|i| f64::from(i).powf(-decay)).collect();
        let total = energies.iter().sum();
        LayerProfile::from_energies(format!("layer{index}"), (4096, 4096), false, &energies, total).unwrap()
    };
    (0..1000).map(layer).collect()
}

fn allocation(criterion: &mut Criterion) {
    let layers = layers();
    let weights = (0..1000).map(|index| (format!("layer{index}"), f64::from((index * 7919) % 1000 + 1)));
    let sensitivities = Sensitivities::new(weights).unwrap();
    let mut group = criterion.benchmark_group("a thousand layers of 4096 energies");
    group.sample_size(10);
    for strategy in [Strategy::Uniform, Strategy::Energy, Strategy::Sensitivity(sensitivities)] {
        for budget in [Budget::ParameterFraction(0.4), Budget::TotalError(0.1)] {
            let allocator = Allocator::new(budget).with_strategy(strategy.clone());
            group.bench_function(format!("{strategy}, {budget}"), |bencher| {
                bencher.iter(|| allocator.allocate(&layers))
            });
        }
    }
    group.finish();
}

criterion_group!(benches, allocation);
criterion_main!(benches);
