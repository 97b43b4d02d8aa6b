//! Statistics of a layer's inputs and the second moments that problems are built from.
//!
//! [`ActivationStats`](stats::ActivationStats) holds samples in sample form (`samples`) or covariance
//! form (`covariance_form`). Compressors see either one, or the identity, as a
//! [`SecondMoment`](second_moment::SecondMoment).

mod accumulator;
mod batch;
mod channels;
mod covariance_form;
mod covariance_moment;
mod identity;
mod moments;
#[cfg(feature = "safetensors")]
mod parts;
mod sample_moment;
mod samples;
mod scatter;
mod second_moment;
mod shrinkage;
mod stats;
mod update;
#[cfg(feature = "safetensors")]
mod validity;

pub(crate) use self::identity::identity;
pub(crate) use self::moments::second_moment;
#[cfg(feature = "safetensors")]
pub(crate) use self::parts::{Head, Piece, PieceMut, ScatterHead, zeros};
#[cfg(feature = "safetensors")]
pub(crate) use self::scatter::BLOCK;
pub(crate) use self::second_moment::SecondMoment;
pub(crate) use self::shrinkage::intensity;
pub use self::stats::ActivationStats;

#[cfg(test)]
mod tests;
