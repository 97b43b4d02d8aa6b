//! Activation-aware low-rank compression of neural network layers.
//!
//! A fully connected layer `y = W x + b` with an `m × n` weight becomes two smaller ones, `down`
//! (`k × n`) and `up` (`m × k`), with `k (m + n)` parameters. Truncated SVD chooses them so that
//! the *weight* changes least. On data from one domain, some directions of the inputs hardly occur,
//! so errors in them hardly matter. [`Dalr`] uses this and chooses the factors so that the layer's
//! *outputs on that domain* change least:
//!
//! ```text
//! min over C of rank k and b̂:   Σᵢ wᵢ ‖W xᵢ + b − C xᵢ − b̂‖²
//! ```
//!
//! The method started from *Domain-Adaptive Deep Network Compression* (DALR; Masana et al., ICCV
//! 2017, [arXiv 1709.01041](https://arxiv.org/abs/1709.01041)).
//!
//! ```
//! use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Rank};
//! use faer::{Col, Mat};
//!
//! # fn main() -> dalr::Result<()> {
//! # let weight = Mat::from_fn(8, 6, |i, j| ((i * 5 + j * 3) % 7) as f32);
//! # let batches = [Mat::from_fn(50, 6, |i, j| ((i * 11 + j * 7) % 13) as f32)];
//! let mut stats = ActivationStats::new(6);
//! for batch in &batches {
//!     stats.update(batch.as_ref())?; // samples × in
//! }
//! let layer = Linear::new(weight, Some(Col::zeros(8)))?; // out × in, as in PyTorch
//! let compressed = Dalr::new().compress(&layer, &stats, Rank::Fixed(2))?;
//! println!("{}", compressed.report());
//! # Ok(())
//! # }
//! ```
//!
//! | you have | use |
//! |---|---|
//! | samples of the layer's inputs | [`Dalr::new`]; with few samples, [`select_ridge`] on held-out samples |
//! | no samples | [`TruncatedSvd::new`] |
//! | a whole network and one budget | [`network`] |
//! | layers before this one that are compressed already | [`PairedStats`](covariance::PairedStats) |
//! | gradients, or the weights of the next layers | [`OutputMetric`](compress::OutputMetric) |
//! | two layers to make smaller, not to factorize | [`HiddenUnits`](compress::HiddenUnits) |
//! | convolutions | [`convolution`] |
//! | two checkpoints, or LoRA files | [`Adapter`](adapter::Adapter) |
//! | samples spread over many machines | [`ActivationStats::merge`], [`compress::OperatorProblem`] |
//! | the paper to reproduce | [`Dalr::paper`], [`ActivationPruning`] |
//! | a method of your own | [`LowRankCompressor`], [`Decomposition::new`] |
//!
//! Statistics are summed in `f64` whatever the [`Scalar`]. Large `f32` layers are solved in `f32`
//! if the squared error is then within about `2e-4` of the optimum, and all others in `f64`. The
//! same input on the same number of threads gives the same bits on the same kind of processor. A
//! method that fails returns an [`Error`] and leaves its object unchanged; exceptions are
//! documented. The module [`interop`] lists the features.
#![forbid(unsafe_code)]
// The library returns an `Error` where it could panic. These lints do not see two things: indices
// into faer's matrices, which come from loops over their sizes, and integer arithmetic, which
// counts numbers that are in memory and so cannot overflow.
#![deny(
    clippy::exit,
    clippy::expect_used,
    clippy::get_unwrap,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::panic_in_result_fn,
    clippy::string_slice,
    clippy::todo,
    clippy::unimplemented,
    clippy::unreachable,
    clippy::unwrap_in_result,
    clippy::unwrap_used
)]
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![cfg_attr(
    test,
    allow(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::panic_in_result_fn,
        clippy::unreachable,
        clippy::unwrap_in_result,
        clippy::unwrap_used
    )
)]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod adapter;
mod bias;
pub mod compress;
pub mod convolution;
#[allow(
    clippy::indexing_slicing,
    reason = "indices run over rows of a batch or over inputs, whose numbers `validate` compares"
)]
pub mod covariance;
#[cfg(all(debug_assertions, not(test)))]
mod debug_instances;
mod error;
pub mod factors;
pub mod interop;
mod layer;
mod linalg;
pub mod network;
mod rank;
mod report;
mod scalar;
pub mod solver;

/// The matrix library whose types this crate takes and returns.
#[doc(no_inline)]
pub use faer;

#[doc(inline)]
pub use compress::{
    ActivationPruning, Calibration, Compressed, Dalr, Decomposition, LowRankCompressor, Ridge, TruncatedSvd,
    relative_output_error, select_ridge,
};
#[doc(inline)]
pub use covariance::ActivationStats;
#[doc(inline)]
pub use error::{Error, Result};
#[doc(inline)]
pub use factors::LowRankLinear;
#[doc(inline)]
pub use layer::Linear;
#[doc(inline)]
pub use rank::Rank;
#[doc(inline)]
pub use report::{Report, Warning};
#[doc(inline)]
pub use scalar::Scalar;
#[doc(inline)]
pub use solver::Solver;

/// The types that programs use most: `use dalr::prelude::*`.
pub mod prelude {
    pub use crate::compress::{ActivationFunction, HiddenUnits, OutputMetric};
    pub use crate::convolution::{Conv2d, ConvOptions, LowRankConv2d, PatchStats};
    pub use crate::covariance::PairedStats;
    pub use crate::{
        ActivationStats, Calibration, Compressed, Dalr, Decomposition, Linear, LowRankCompressor, LowRankLinear, Rank,
        Report, Ridge, Solver, TruncatedSvd,
    };
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(doctest)]
#[doc = include_str!("../docs/guide.md")]
struct Guide;

#[cfg(all(doctest, feature = "candle", feature = "safetensors"))]
#[doc = include_str!("../docs/recipes.md")]
struct Recipes;
