//! The error type of this package.

use burn::tensor::{DType, TensorReadError};

/// The errors of this package.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of the library: a shape that does not fit, a NaN, an overflow.
    #[error(transparent)]
    Dalr(#[from] dalr::Error),

    /// A dtype that cannot be converted without loss, or that the device does not support.
    #[error("expected a dtype that {into} supports, got {found:?}")]
    Type {
        /// The dtype of the tensor, or the requested one.
        found: DType,
        /// The destination: a type, a layer or the device.
        into: &'static str,
    },

    /// A tensor could not be read from its device.
    #[error("expected to read a tensor from its device, got an error: {0}")]
    Read(#[from] TensorReadError),
}

/// A `Result` with this package's [`Error`].
pub type Result<T, E = Error> = core::result::Result<T, E>;
