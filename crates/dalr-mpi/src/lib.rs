//! Calibration and compression on many machines: `dalr` over MPI.
//!
//! A *rank* is an MPI process; that of a compressed layer is called the rank of the layer. Samples
//! stay on the rank that has them. There are two methods:
//!
//! | module | method |
//! |---|---|
//! | [`reduce`], [`layers`] | every rank computes statistics of its shard, and a tree merges them |
//! | [`operator`], [`solve`] | the ranks keep their samples, and compute products with the solver's operator together |
//!
//! With [`calibrate`] and [`checkpoint`], a killed job of the first kind can continue. With
//! [`ranks`], an error on one rank stops all of them.
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
