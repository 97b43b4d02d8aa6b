//! Compresses layers of [burn](https://burn.dev) with dalr: a [`Linear`](burn::nn::Linear) becomes
//! a [`LowRankLinear`], which is a module of burn too.
//!
//! ```no_run
//! use burn::nn::LinearConfig;
//! use burn::tensor::{Device, Distribution, Tensor};
//! use dalr::{ActivationStats, Dalr, Rank};
//!
//! # fn main() -> dalr_burn::Result<()> {
//! let device = Device::default();
//! let layer = LinearConfig::new(12, 16).init(&device);
//! let batch = Tensor::<3>::random([4, 10, 12], Distribution::Default, &device); // batch × sequence × inputs
//!
//! let mut stats = ActivationStats::<f32>::new(12);
//! dalr_burn::observe(&mut stats, &batch)?; // 40 samples
//! let (compressed, report) = dalr_burn::compress(&layer, &stats, &Dalr::new(), Rank::Fixed(4))?;
//! assert_eq!(compressed.forward(batch).dims(), [4, 10, 16]);
//! println!("{report}");
//! # Ok(())
//! # }
//! ```
//!
//! [`PivotedLinear`] is the module for layers in pivoted storage, which take fewer parameters.
//!
//! The package works with every backend. The compressed layer is on the device of the original one.
#![forbid(unsafe_code)]
#![deny(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod convert;
mod error;
mod low_rank;
mod pivoted;

pub use convert::{Number, observe, to_burn, to_dalr};
pub use error::{Error, Result};
pub use low_rank::{LowRankLinear, LowRankLinearConfig, compress};
pub use pivoted::{PivotedLinear, PivotedLinearConfig};
