//! Runs fuzz targets, of this package and of `crates/dalr-onnx`.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant, SystemTime};

use rand::SeedableRng;
use rand::rngs::StdRng;

/// Runs the cases that once failed, then others for this many seconds, each with its own seed. If a
/// seed is given, runs only that case. `command` runs the target: it is printed to repeat a failure.
pub fn fuzz(command: &str, seconds: f64, failed: &[u64], case: impl Fn(&mut StdRng)) {
    let setting = |name| std::env::var(name).ok();
    let run = |seed: u64| {
        let outcome = catch_unwind(AssertUnwindSafe(|| case(&mut StdRng::seed_from_u64(seed))));
        if let Err(panic) = outcome {
            eprintln!("repeat with: DALR_FUZZ_SEED={seed} {command}");
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
    let (begin, budget) = (Instant::now(), Duration::from_secs_f64(longer.unwrap_or(seconds)));
    let mut count = 0;
    while count == 0 || begin.elapsed() < budget {
        run(start.wrapping_add(count));
        count += 1;
    }
    println!("{command}: {count} cases from seed {start}");
}
