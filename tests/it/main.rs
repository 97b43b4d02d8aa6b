//! The behaviour of the public interface. All tests are in one program, which is compiled and
//! linked once.
//!
//! Tests that count allocations, kill a process or set up the thread pool are separate programs.

mod channels;
mod common;
#[path = "../../examples/lenet_digits/network.rs"]
#[allow(dead_code, reason = "each test of the LeNet uses a part of it")]
mod lenet_network;

mod adapter;
mod api;
mod behaviour;
mod complaints;
mod compressors;
mod convolution;
mod deficient;
mod errors;
mod golden;
mod hidden_unit_quality;
mod hidden_units;
mod lenet;
mod network;
mod operators;
mod optimality;
mod oracle;
mod pivoted;
mod precision;
mod properties;
mod ratios;
mod regression;
mod reports;
#[cfg(feature = "serde")]
mod serde;
mod small_samples;
#[cfg(feature = "safetensors")]
mod storage;
mod termination;
mod text;

use network::choices;
