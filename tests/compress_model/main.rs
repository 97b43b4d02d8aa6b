//! The example `compress_model`, run as its users run it: files in, files out, signals and small machines in between.
#![cfg(all(feature = "safetensors", unix))]

mod errors;
mod harness;
mod layers;
#[cfg(target_os = "linux")]
mod memory;
mod python;
mod report;
mod resume;
mod rules;
