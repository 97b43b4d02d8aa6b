//! The errors that stop a rank, and then all ranks.

use std::fmt::Display;
use std::path::Path;

/// The reason why this rank cannot continue.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// An error of the library.
    #[error(transparent)]
    Dalr(dalr::Error),
    /// An error of this program.
    #[error("{0}")]
    Refused(String),
    /// All ranks have agreed to stop. Only an agreement creates this variant, so every rank returns
    /// it.
    #[error("rank {rank}: {message}")]
    Agreed {
        /// The first of the ranks that failed.
        rank: usize,
        /// Its message.
        message: String,
    },
}

/// A `Result` with a [`Failure`].
pub type Result<T, E = Failure> = core::result::Result<T, E>;

impl Failure {
    /// Creates the error for a file that cannot be used, with the reason.
    pub fn file(path: &Path, why: impl Display) -> Self {
        Self::Refused(format!("{}: {why}", path.display()))
    }
}

impl From<dalr::Error> for Failure {
    /// Unwraps an agreement that passed through the library's solver as the error of an operator.
    fn from(error: dalr::Error) -> Self {
        if let dalr::Error::Callback { source, .. } = &error
            && let Some(agreed @ Self::Agreed { .. }) = source.downcast_ref::<Self>()
        {
            return agreed.clone();
        }
        Self::Dalr(error)
    }
}
