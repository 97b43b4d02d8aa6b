//! What can go wrong between burn and dalr.

use burn::tensor::{DType, TensorReadError};

/// Why a tensor or a layer was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The library's own complaint: a shape that does not fit, a NaN, an overflow. It says what was expected and what came.
    #[error(transparent)]
    Dalr(#[from] dalr::Error),

    /// A type of numbers that cannot be converted without loss, or that the device does not have.
    #[error("expected numbers that {into} holds, got {found:?}")]
    Type {
        /// The type that came.
        found: DType,
        /// What it should have gone into.
        into: &'static str,
    },

    /// The device did not hand a tensor over.
    #[error("a tensor could not be read from its device: {0}")]
    Read(#[from] TensorReadError),
}

/// The result of everything here that can fail.
pub type Result<T, E = Error> = core::result::Result<T, E>;
