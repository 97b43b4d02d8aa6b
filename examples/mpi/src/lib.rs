//! Calibration and compression over many machines: `dalr` on MPI.
//!
//! Samples stay on the rank that has them. Either every rank makes statistics of its shard, and a tree merges them ([`reduce`], [`layers`]); or
//! the samples are kept and the solver's operator is applied by all ranks together ([`operator`], [`solve`]). [`calibrate`] and [`checkpoint`] make the first of
//! these outlive any kill; [`ranks`] sees to it that an error on one rank stops all.
#![cfg_attr(
    not(test),
    deny(clippy::exit, clippy::expect_used, clippy::panic, clippy::todo, clippy::unimplemented, clippy::unwrap_used)
)]

pub mod calibrate;
pub mod checkpoint;
pub mod complement;
pub mod error;
pub mod layers;
pub mod measure;
pub mod model;
pub mod operator;
pub mod output;
pub mod paper;
pub mod ranks;
pub mod reduce;
pub mod schedule;
pub mod shard;
pub mod solve;
pub mod stream;
pub mod tensors;
