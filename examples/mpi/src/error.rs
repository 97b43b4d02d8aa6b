//! What can stop a rank, and with it all of them.

use std::fmt::Display;
use std::path::Path;

/// Why this rank cannot go on.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Failure {
    /// The library refused or failed.
    #[error(transparent)]
    Dalr(dalr::Error),
    /// Something is not as it must be, here.
    #[error("{0}")]
    Refused(String),
    /// What all ranks have agreed to stop for; only an agreement makes one of these, so that every rank has it.
    #[error("rank {rank}: {message}")]
    Agreed {
        /// The first of the ranks that failed.
        rank: usize,
        /// What it said.
        message: String,
    },
}

/// A `Result` with a [`Failure`].
pub type Result<T, E = Failure> = core::result::Result<T, E>;

impl Failure {
    /// A file that cannot be used, and why.
    pub fn file(path: &Path, why: impl Display) -> Self {
        Self::Refused(format!("{}: {why}", path.display()))
    }
}

impl From<dalr::Error> for Failure {
    /// An agreement that went through the library's solver, as the error of an operator, comes out as what it was.
    fn from(error: dalr::Error) -> Self {
        if let dalr::Error::Callback { source, .. } = &error
            && let Some(agreed @ Self::Agreed { .. }) = source.downcast_ref::<Self>()
        {
            return agreed.clone();
        }
        Self::Dalr(error)
    }
}
