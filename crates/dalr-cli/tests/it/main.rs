//! The command `dalr`, run as users run it: files in, files out, signals and little memory.
#![cfg(unix)]

mod errors;
mod harness;
mod inspect;
mod layers;
mod lora;
#[cfg(target_os = "linux")]
mod memory;
mod onnx;
mod python;
mod report;
mod resume;
mod rules;
