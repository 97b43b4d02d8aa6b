//! Time of the two phases, statistics and compression, on random layers.
//!
//! `cargo bench` runs all; `cargo bench -- statistics` one group.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dalr::{ActivationStats, Calibration, Dalr, Linear, LowRankCompressor, Rank, Ridge, Solver, TruncatedSvd};
use faer::Mat;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Returns inputs after a ReLU, with a spread that decreases from input to input.
fn activations(samples: usize, features: usize) -> Mat<f32> {
    let mut rng = StdRng::seed_from_u64(1);
    let spread = move |j: usize| (1.0 + j as f32).powf(-0.7);
    Mat::from_fn(samples, features, |_, j| (rng.random_range(-1.0..1.0_f32) * spread(j)).max(0.0))
}

fn layer(out_features: usize, in_features: usize) -> Linear<f32> {
    let mut rng = StdRng::seed_from_u64(2);
    let weight = Mat::from_fn(out_features, in_features, |_, _| rng.random_range(-1.0..1.0));
    Linear::new(weight, None).expect("finite and not empty")
}

fn stats(inputs: &Mat<f32>) -> ActivationStats<f32> {
    let mut stats = ActivationStats::new(inputs.ncols());
    stats.update(inputs.as_ref()).expect("finite and as wide as announced");
    stats
}

fn statistics(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("statistics");
    for features in [256, 1024] {
        // With twice as many samples as inputs, the statistics change to the covariance form.
        let inputs = activations(2 * features, features);
        group.throughput(Throughput::Elements((inputs.nrows() * features) as u64));
        group.bench_with_input(BenchmarkId::from_parameter(features), &inputs, |bencher, inputs| {
            bencher.iter(|| stats(black_box(inputs)));
        });
    }
    group.finish();
}

fn compression(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compression");
    group.sample_size(10);
    for (out_features, in_features, samples) in [(256, 256, 1000), (512, 1024, 500), (1024, 512, 2000)] {
        let layer = layer(out_features, in_features);
        let stats = stats(&activations(samples, in_features));
        let rank = Rank::ParameterRatio(0.3);
        let methods: [(&str, &dyn LowRankCompressor<f32>); 2] = [("svd", &TruncatedSvd::new()), ("dalr", &Dalr::new())];
        for (name, method) in methods {
            let shape = format!("{out_features}x{in_features}, {samples} samples");
            group.bench_function(BenchmarkId::new(name, shape), |bencher| {
                bencher.iter(|| method.compress_with(black_box(&layer), black_box(&stats).into(), rank));
            });
        }
    }
    group.finish();
}

fn solvers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("solvers");
    group.sample_size(10);
    for (size, rank) in [(256, 16), (512, 32), (1024, 32), (1024, 256)] {
        let layer = layer(size, size);
        let stats = stats(&activations(size, size));
        for solver in [Solver::Auto, Solver::DenseEigen, Solver::BlockLanczos] {
            let method = Dalr::new().with_ridge(Ridge::None).with_solver(solver);
            let name = BenchmarkId::new(format!("{solver:?}"), format!("{size}, rank {rank}"));
            group.bench_function(name, |bencher| {
                bencher.iter(|| method.compress(black_box(&layer), black_box(&stats), Rank::Fixed(rank)));
            });
        }
    }
    group.finish();
}

/// Times the leading directions of the outputs as other libraries compute them: by a full singular
/// value decomposition.
fn decompositions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decompositions");
    group.sample_size(10);
    for size in [128, 256, 512] {
        let layer = layer(size, size);
        let inputs = activations(size, size);
        let outputs = layer.weight() * inputs.transpose();
        let stats = stats(&inputs);
        let rank = Rank::Fixed(size / 16);
        for solver in [Solver::DenseEigen, Solver::BlockLanczos] {
            let method = Dalr::new().with_ridge(Ridge::None).with_bias_correction(false).with_solver(solver);
            group.bench_function(BenchmarkId::new(format!("dalr, {solver:?}"), size), |bencher| {
                bencher.iter(|| method.compress(black_box(&layer), black_box(&stats), rank));
            });
        }
        group.bench_function(BenchmarkId::new("faer, thin SVD", size), |bencher| {
            bencher.iter(|| black_box(&outputs).thin_svd());
        });
        let copy = nalgebra::DMatrix::from_fn(size, size, |i, j| outputs[(i, j)]);
        group.bench_function(BenchmarkId::new("nalgebra, SVD", size), |bencher| {
            bencher.iter(|| black_box(&copy).clone().svd(true, false));
        });
    }
    group.finish();
}

/// A forward pass at half of the full rank, by two factors and in pivoted storage; and the
/// conversion.
fn pivoted(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pivoted");
    let (size, batch) = (1024, 64);
    let layer = layer(size, size);
    let compressed = TruncatedSvd::new().compress(&layer, Calibration::none(), Rank::Fixed(size / 2));
    let factors = compressed.expect("a rank of the layer").into_layer();
    let pivoted = factors.to_pivoted().expect("finite factors");
    let inputs = activations(batch, size);
    let shape = format!("{size}x{size}, rank {}, batch {batch}", size / 2);
    group.bench_function(BenchmarkId::new("original layer", &shape), |bencher| {
        bencher.iter(|| layer.forward(black_box(inputs.as_ref())));
    });
    group.bench_function(BenchmarkId::new("two factors", &shape), |bencher| {
        bencher.iter(|| factors.forward(black_box(inputs.as_ref())));
    });
    group.bench_function(BenchmarkId::new("pivoted", &shape), |bencher| {
        bencher.iter(|| pivoted.forward(black_box(inputs.as_ref())));
    });
    group.sample_size(10);
    group.bench_function(BenchmarkId::new("to_pivoted", &shape), |bencher| {
        bencher.iter(|| black_box(&factors).to_pivoted());
    });
    group.finish();
}

criterion_group!(benches, statistics, compression, solvers, decompositions, pivoted);
criterion_main!(benches);
