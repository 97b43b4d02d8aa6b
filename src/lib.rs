//! Activation-aware low-rank compression of neural network layers.
//!
//! A fully connected layer `y = W x + b` with a weight of `m × n` numbers becomes two thin ones, `down` (`k × n`) and `up` (`m × k`),
//! with `k (m + n)` numbers. Truncated SVD does that so that the *weight* changes least. When a network works on
//! a domain of its own, most of what the weight can do is never asked for; this crate makes the layer's
//! *outputs on that domain* change least:
//!
//! $$\min_{\operatorname{rank} C \le k,\ \hat b}\ \sum_i w_i \lVert W x_i + b - C x_i - \hat b \rVert^2$$
//!
//! which [`Dalr`] solves without an inverse, exactly or shrunk as the number of samples calls for, from statistics that are gathered batch by batch. It started
//! from *Domain-Adaptive Deep Network Compression* (Masana et al., ICCV 2017, [arXiv 1709.01041](https://arxiv.org/abs/1709.01041)).
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
//! let layer = Linear::new(weight, Some(Col::zeros(8)))?; // out × in, as PyTorch stores it
//! let compressed = Dalr::new().compress(&layer, &stats, Rank::Fixed(2))?;
//! println!("{}", compressed.report());
//! # Ok(())
//! # }
//! ```
//!
//! # Which method
//!
//! | you have | take |
//! |---|---|
//! | samples of the layer's inputs on the domain that matters | [`Dalr::new`] |
//! | few of them, and others to check on | [`select_ridge`], then [`Dalr::with_ridge`] |
//! | no samples | [`TruncatedSvd::new`] |
//! | the mean input but no faith in more | [`TruncatedSvd::with_bias_correction`] |
//! | a wish to reproduce the paper | [`Dalr::paper`], [`ActivationPruning`] |
//!
//! What each needs, costs and gives, and which solver to take, if any: [`choosing`].
//!
//! # Which rank
//!
//! Say what you want to spend or to lose ([`Rank`]); or solve once with [`LowRankCompressor::decompose`], look at
//! the error of every rank, and cut with [`Decomposition::truncate`], which solves nothing again. A rank only saves
//! parameters below [`Rank::break_even`]; past it the [`Report`] warns.
//!
//! For many layers say what the network may cost: [`network`] shares a budget among them, by what each does to the network where that can be
//! measured, and solves them in parallel.
//!
//! # Precision, threads, errors
//!
//! Whatever the [`Scalar`] of the data, statistics are summed up in `f64`. Layers of `f32` with hundreds of inputs and outputs are multiplied
//! and solved in `f32` where that decides nothing that it cannot see: the squared error stays within `10⁻⁴` of the optimum, and rounding
//! of the data. Everything else is solved in `f64`. Parallel kernels (feature `rayon`)
//! use rayon's global pool, or one thread when called from inside it. The same input on the same number of threads gives
//! the same bits on the same kind of processor, run after run; another number of threads gives the same up to rounding, or, where block Lanczos
//! answered, up to the energy at which it may stop (`10⁻¹²` of what is left out for `f64`, `5 · 10⁻⁵` for `f32`). What cannot be done is an [`Error`] that says what was expected and what came; an operation that fails changes nothing.
//!
//! # Features
//!
//! - `rayon` (default): parallel kernels.
//! - `nalgebra`: views and copies of nalgebra's matrices, in `interop::nalgebra`.
//! - `ndarray`: views of arrays both ways, whatever their strides, and batches of any number of axes, in `interop::ndarray`.
//! - `candle`: tensors and layers of candle, a recorder of what layers read, and compressed layers as modules, in `interop::candle`. Brings `half` along,
//!   which candle has anyway.
//! - `approx`: layers compared up to a tolerance, for tests; see `interop::approx`.
//! - `half`: `f16` and `bf16` batches, weights and factors, in `interop::half`.
//! - `safetensors`: `ActivationStats::save` and `load`, and whole model files, in `interop::safetensors`. Brings `half` along, for models in
//!   half precision.
//! - `serde`: `Serialize` and `Deserialize` for configuration, [`Rank`], [`Report`], layers, dense and compressed, and all of [`network`] that holds no
//!   matrices.
#![forbid(unsafe_code)]
// Nothing panics, whatever it is given: an `Error` is returned. Not seen by these lints: indices into faer's matrices, which come from
// loops over their own sizes, and integer arithmetic, which counts what is in memory (`m · n`) and so cannot overflow.
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

mod bias;
mod compress;
mod convert;
#[allow(
    clippy::indexing_slicing,
    reason = "what is indexed has one entry for each row of a batch, or for each input: counted when it comes in, by `validate`, and \
              equal from then on; the zips that would do without hide which weight belongs to which row"
)]
mod covariance;
mod error;
#[cfg(any(
    feature = "approx",
    feature = "candle",
    feature = "half",
    feature = "nalgebra",
    feature = "ndarray",
    feature = "safetensors"
))]
pub mod interop;
mod kernel;
mod layer;
pub mod network;
mod operator;
mod random;
mod rank;
mod report;
mod scalar;
pub mod solver;
#[cfg(feature = "serde")]
mod stored;
mod text;

/// The library of the matrices that come in and go out: `dalr::faer::Mat` is what [`Linear::new`] takes, whatever other version there is.
#[doc(no_inline)]
pub use faer;

pub use compress::{
    ActivationPruning, Compressed, Dalr, Decomposition, LowRankCompressor, PrunedLinear, Ridge, TruncatedSvd,
    relative_output_error, select_ridge,
};
pub use covariance::ActivationStats;
pub use error::{Cause, Error, Result};
pub use layer::{Linear, LowRankLinear};
pub use rank::Rank;
pub use report::{Report, Warning};
pub use scalar::Scalar;
pub use solver::Solver;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(doctest)]
#[doc = include_str!("../docs/guide.md")]
struct Guide;

#[cfg(all(doctest, feature = "candle", feature = "safetensors"))]
#[doc = include_str!("../docs/recipes.md")]
struct Recipes;

/// Which method, rank and solver: what each needs, costs and gives. A page, not code.
#[cfg(any(doc, doctest))]
#[doc = ""]
#[doc = include_str!("../docs/choosing.md")]
pub mod choosing {}
