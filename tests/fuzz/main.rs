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
mod runner;
mod statistics;

use rand::Rng;
use rand::rngs::StdRng;

fn fuzz(target: &str, failed: &[u64], case: impl Fn(&mut StdRng)) {
    let command = format!("cargo test --all-features --test fuzz {target}");
    runner::fuzz(&command, 1.5, failed, case);
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
