//! Allocated memory, as counted by the allocator. One test runs at a time, because the allocator
//! counts all threads.
//!
//! Users of other implementations report 90 GB of host memory (SVD-LLM #3, #29) and 89 TB for the
//! shape of a full SVD (tensorly-torch #32).

#[path = "../it/common/mod.rs"]
mod common;

#[cfg(feature = "safetensors")]
mod files;
mod layers;
mod networks;

use std::sync::Mutex;

use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Runs a test on one thread while no other test allocates.
fn alone(run: impl FnOnce() + Send) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(run);
}

/// Returns the result of `run`, and the peak memory during `run` minus the memory before it, in
/// bytes.
fn peak<R>(run: impl FnOnce() -> R) -> (R, usize) {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let result = run();
    (result, MEMORY.peak_usage().saturating_sub(before))
}
