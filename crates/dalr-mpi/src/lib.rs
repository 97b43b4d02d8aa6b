//! Calibration and compression on many machines: `dalr` over MPI.
//!
//! Samples stay on the rank that has them. There are two ways:
//!
//! | module | way |
//! |---|---|
//! | [`reduce`], [`layers`] | every rank gathers statistics of its shard, and a tree merges them |
//! | [`operator`], [`solve`] | the ranks keep their samples and apply the solver's operator together |
//!
//! [`calibrate`] and [`checkpoint`] make the first one safe against kills. [`ranks`] makes an error on
//! one rank stop all of them.
#![cfg_attr(
    not(test),
    deny(clippy::exit, clippy::expect_used, clippy::panic, clippy::todo, clippy::unimplemented, clippy::unwrap_used)
)]

pub mod calibrate;
pub mod checkpoint;
pub mod error;
pub mod estimate;
pub mod layers;
pub mod measure;
pub mod model;
pub mod operator;
pub mod output;
pub mod random;
pub mod ranks;
pub mod reduce;
pub mod schedule;
pub mod shard;
pub mod solve;
pub mod stream;
