//! Random input of every kind for all public functions, for a chosen time.
//!
//! `cargo test --test fuzz --all-features` takes some seconds and always tries the same cases
//! first. `DALR_FUZZ_SECONDS=60` gives each target a minute and new cases every time. A failure
//! prints the line that repeats it, with `DALR_FUZZ_SEED`.

#[path = "../it/common/mod.rs"]
mod common;

mod compressors;
#[cfg(any(feature = "safetensors", feature = "serde"))]
mod loaders;
mod statistics;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant, SystemTime};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Runs the cases that once failed, then others until the time is over, each with its own seed. If
/// a seed is given, runs only that case. Prints how to repeat a failure.
fn fuzz(target: &str, failed: &[u64], case: impl Fn(&mut StdRng)) {
    let setting = |name| std::env::var(name).ok();
    let run = |seed: u64| {
        let outcome = catch_unwind(AssertUnwindSafe(|| case(&mut StdRng::seed_from_u64(seed))));
        if let Err(panic) = outcome {
            eprintln!("repeat with: DALR_FUZZ_SEED={seed} cargo test --all-features --test fuzz {target}");
            resume_unwind(panic);
        }
    };
    if let Some(seed) = setting("DALR_FUZZ_SEED") {
        return run(seed.parse().expect("DALR_FUZZ_SEED is a number"));
    }
    let longer = setting("DALR_FUZZ_SECONDS").map(|text| text.parse::<f64>().expect("DALR_FUZZ_SECONDS is a number"));
    let start = match longer {
        None => 0,
        Some(_) => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock past 1970");
            // The distance between seeds of two runs is larger than the number of cases in a run.
            now.as_millis() as u64 * 1_000_000
        }
    };
    failed.iter().for_each(|&seed| run(seed));
    let (begin, budget) = (Instant::now(), Duration::from_secs_f64(longer.unwrap_or(1.5)));
    let mut count = 0;
    while count == 0 || begin.elapsed() < budget {
        run(start.wrapping_add(count));
        count += 1;
    }
    println!("{target}: {count} cases from seed {start}");
}

/// Returns one of these.
fn pick<V: Copy>(rng: &mut StdRng, values: &[V]) -> V {
    values[rng.random_range(0..values.len())]
}

/// Returns a random number between these powers of ten.
fn magnitude(rng: &mut StdRng, exponents: core::ops::Range<f64>) -> f64 {
    10_f64.powf(rng.random_range(exponents))
}

/// Numbers that code often handles incorrectly.
const SPECIAL: [f64; 18] = [
    f64::NAN,
    f64::INFINITY,
    f64::NEG_INFINITY,
    f64::MAX,
    f64::MIN,
    f64::MIN_POSITIVE,
    5e-324,
    -5e-324,
    f32::MAX as f64,
    f32::MIN as f64,
    f32::MIN_POSITIVE as f64,
    1e-45,
    0.0,
    -0.0,
    1.0,
    1e150,
    1e-150,
    f64::EPSILON,
];
