//! How the cost grows with the shape of a problem and the number of threads, and how well the solver is chosen: Markdown tables.
//!
//! `cargo bench --bench cost -- [statistics] [growth] [threads] [grid]`; without arguments, all of them. Best of several runs each.

use std::time::{Duration, Instant};

use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Rank, Ridge, Solver};
use faer::{Mat, MatRef};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;

/// Inputs after a ReLU whose spectrum decays: 256 latent directions and a little noise. One sample per row, contiguous.
struct Inputs {
    numbers: Vec<f32>,
    features: usize,
}

impl Inputs {
    fn new(samples: usize, features: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(1);
        let mut gaussian = |rows, columns| Mat::<f32>::from_fn(rows, columns, |_, _| rng.sample(StandardNormal));
        let latent = features.min(256);
        let decay = Mat::from_fn(latent, latent, |i, j| if i == j { (i as f32 + 1.0).powf(-0.8) } else { 0.0 });
        let mixing = decay * gaussian(latent, features);
        let outer = gaussian(samples, latent);
        let small = gaussian(512.min(samples), features);
        let mixed = outer * mixing;
        let entry = |i: usize, j: usize| (mixed[(i, j)] + 0.1 * small[(i % small.nrows(), j)]).max(0.0);
        let numbers = (0..samples * features).map(|at| entry(at / features, at % features)).collect();
        Self { numbers, features }
    }

    fn rows(&self, start: usize, count: usize) -> MatRef<'_, f32> {
        let numbers = &self.numbers[start * self.features..(start + count) * self.features];
        MatRef::from_row_major_slice(numbers, count, self.features)
    }

    fn samples(&self) -> usize {
        self.numbers.len() / self.features
    }

    fn stats(&self, samples: usize, batch: usize, threads: usize) -> ActivationStats<f32> {
        let mut stats = ActivationStats::new(self.features).with_threads(threads);
        for start in (0..samples).step_by(batch) {
            stats.update(self.rows(start, batch.min(samples - start))).expect("finite and as wide as announced");
        }
        stats
    }
}

fn layer(out_features: usize, in_features: usize) -> Linear<f32> {
    let mut rng = StdRng::seed_from_u64(2);
    let weight = Mat::from_fn(out_features, in_features, |_, _| rng.sample(StandardNormal));
    Linear::new(weight, None).expect("finite and not empty")
}

fn seconds(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

/// The best of at least three runs, and of as many more as fit into a fifth of a second.
fn best(mut run: impl FnMut()) -> f64 {
    let started = Instant::now();
    let (mut least, mut runs) = (f64::INFINITY, 0);
    while runs < 3 || started.elapsed() < Duration::from_millis(200) {
        least = least.min(seconds(&mut run));
        runs += 1;
    }
    least
}

fn compress(layer: &Linear<f32>, stats: &ActivationStats<f32>, rank: usize, solver: Solver, threads: usize) -> f64 {
    let method = Dalr::new().with_ridge(Ridge::None).with_solver(solver).with_threads(threads);
    best(|| {
        method.compress(layer, stats, Rank::Fixed(rank)).expect("a layer and statistics that fit");
    })
}

fn statistics() {
    println!("\n## Statistics of 4096 inputs that have collapsed, f32\n");
    println!("| batch | samples | time | n² p per second |\n|---|---|---|---|");
    let features = 4096;
    let inputs = Inputs::new(16_384, features);
    for batch in [32, 256, 512, 2048, 8192] {
        // What comes before is not timed: the object is past its collapse.
        let start = inputs.stats(8704, 8704, 0);
        let time = best(|| {
            let mut stats = start.clone();
            for at in (0..8192).step_by(batch) {
                stats.update(inputs.rows(at, batch)).expect("finite and as wide as announced");
            }
        });
        let copy = best(|| drop(start.clone()));
        let time = time - copy;
        let rate = (features * features) as f64 * 8192.0 / time;
        println!("| {batch} | 8192 | {time:.3} s | {:.0} G |", rate / 1e9);
    }
}

fn growth() {
    println!("\n## Growth: time of statistics and of compression, f32, no ridge\n");
    println!("| out | in | samples | rank | statistics | compression |\n|---|---|---|---|---|---|");
    let (out, inputs, samples, rank) = (2048, 2048, 3000, 64);
    let mut shapes = Vec::new();
    shapes.extend([512, 1024, 2048, 4096, 8192].map(|m| (m, inputs, samples, rank)));
    shapes.extend([512, 1024, 2048, 4096, 8192].map(|n| (out, n, samples, rank)));
    shapes.extend([1000, 2000, 4000, 8000, 16_000, 32_000].map(|p| (out, 1024, p, rank)));
    shapes.extend([16, 32, 64, 128, 256, 512].map(|k| (out, inputs, samples, k)));
    let mut made: Option<Inputs> = None;
    for (m, n, p, k) in shapes {
        if made.as_ref().is_none_or(|inputs| inputs.features != n || inputs.samples() < p) {
            made = Some(Inputs::new(if n == 1024 { 32_000.max(p) } else { p }, n));
        }
        let Some(inputs) = &made else { continue };
        let gather = best(|| drop(inputs.stats(p, 512, 0)));
        let stats = inputs.stats(p, 512, 0);
        let solve = compress(&layer(m, n), &stats, k, Solver::Auto, 0);
        println!("| {m} | {n} | {p} | {k} | {gather:.3} s | {solve:.3} s |");
    }
}

fn threads() {
    println!("\n## One and two threads: VGG19's fc7, 4096 × 4096, 5994 samples, rank 256\n");
    println!("| | 1 thread | 2 threads | ratio |\n|---|---|---|---|");
    let inputs = Inputs::new(8192, 4096);
    let layer = layer(4096, 4096);
    let stats = inputs.stats(5994, 512, 0);
    let row = |name: &str, run: &dyn Fn(usize) -> f64| {
        let (one, two) = (run(1), run(2));
        println!("| {name} | {one:.2} s | {two:.2} s | {:.2} |", one / two);
    };
    row("compression", &|threads| compress(&layer, &stats, 256, Solver::Auto, threads));
    let collapsed = inputs.stats(8192, 8192, 0);
    let mut collapsed_more = collapsed.clone();
    collapsed_more.update(inputs.rows(0, 1024)).expect("finite");
    row("statistics, collapsed", &|threads| {
        best(|| {
            let mut stats = collapsed_more.clone().with_threads(threads);
            stats.update(inputs.rows(0, 8192)).expect("finite");
        })
    });
}

fn grid() {
    println!("\n## The solver chosen against the best of those that can be forced, f32, no ridge\n");
    println!("| out | in | samples | rank | auto | dense | Lanczos | auto / best |\n|---|---|---|---|---|---|---|---|");
    let mut worst = 0.0_f64;
    for (n, samples) in [(256, 400), (768, 600), (768, 3000), (1536, 1000), (1536, 6000), (3072, 2000)] {
        let inputs = Inputs::new(samples, n);
        let stats = inputs.stats(samples, 512, 0);
        for m in [256, 768, 3072] {
            let layer = layer(m, n);
            for share in [0.02, 0.1, 0.3] {
                let k = ((m.min(n) as f64 * share) as usize).max(1);
                let [auto, dense, lanczos] =
                    [Solver::Auto, Solver::DenseEigen, Solver::BlockLanczos].map(|s| compress(&layer, &stats, k, s, 0));
                let ratio = auto / dense.min(lanczos);
                worst = worst.max(ratio);
                println!("| {m} | {n} | {samples} | {k} | {auto:.4} s | {dense:.4} s | {lanczos:.4} s | {ratio:.2} |");
            }
        }
    }
    println!("\nWorst: {worst:.2}");
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let parts: [(&str, fn()); 4] =
        [("statistics", statistics), ("growth", growth), ("threads", threads), ("grid", grid)];
    for (name, part) in parts {
        if arguments.is_empty() || arguments.iter().any(|argument| argument == name) {
            part();
        }
    }
}
