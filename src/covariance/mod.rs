//! Statistics of a layer's inputs: [`ActivationStats`], and [`PairedStats`] for a partly compressed
//! network.
// `activation_stats` holds samples in sample form (`sample_form`) or covariance form (`covariance_form`).
// Compressors see either one, or the identity, as a `SecondMoment`.

mod accumulator;
mod activation_stats;
mod batch;
mod covariance_form;
mod paired_stats;
mod per_input;
mod sample_form;
mod samples_to_covariance;
mod scatter;
mod second_moment;
mod shrinkage;
#[cfg(feature = "safetensors")]
mod stored_parts;
mod update_and_merge;
#[cfg(feature = "safetensors")]
mod validate_stored;

pub use self::activation_stats::ActivationStats;
pub use self::paired_stats::PairedStats;
#[cfg(feature = "safetensors")]
pub(crate) use self::scatter::BLOCK;
pub(crate) use self::second_moment::{CrossMoment, SecondMoment, identity, second_moment, varies};
pub(crate) use self::shrinkage::intensity;
#[cfg(feature = "safetensors")]
pub(crate) use self::stored_parts::{Head, Piece, PieceMut, ScatterHead, zeros};

#[cfg(test)]
mod tests;
