//! The errors of the program.

use std::fmt::Display;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// A failure. Its text is the whole message that the program prints.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Options that are wrong or contradict each other.
    #[error("{0}")]
    Usage(String),

    /// A file could not be read or written.
    #[error("cannot access {path}: {source}")]
    Io { path: String, source: Arc<io::Error> },

    /// A file is damaged, or not of the expected kind.
    #[error("{path}: expected {expected}, got {found}")]
    Format { path: String, expected: String, found: String },

    /// A failure in one layer.
    #[error("layer {layer}: {message}")]
    Layer { layer: String, message: String },

    /// The options are valid, but not for these files.
    #[error("{0}")]
    Refused(String),

    /// The budget makes no layer smaller.
    #[error("{0}")]
    NothingSmaller(String),

    /// The files of an unfinished run do not belong to this run.
    #[error("cannot resume, {0}: run with --force and without --resume to start again")]
    Changed(String),

    /// SIGINT.
    #[error("interrupted")]
    Interrupted,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { path: path.display().to_string(), source: Arc::new(error) }
    }

    pub fn format(path: &Path, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self::Format { path: path.display().to_string(), expected: expected.into(), found: found.into() }
    }

    /// Adds the layer's name to an error of the library.
    pub fn layer<M: Display>(layer: &str) -> impl FnOnce(M) -> Self {
        move |message| Self::Layer { layer: layer.into(), message: message.to_string() }
    }

    /// Returns 130 after an interrupt, as shells do, 2 for wrong usage, as clap does, and 1 for
    /// every other failure.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted => 130,
            Self::Usage(_) => 2,
            _ => 1,
        }
    }
}

impl From<dalr::Error> for Error {
    /// Errors about files name the file instead of the library's operation.
    fn from(error: dalr::Error) -> Self {
        match error {
            dalr::Error::Io { path, source, .. } => Self::Io { path, source },
            dalr::Error::Format { path, expected, found, .. } => Self::Format { path, expected, found },
            other => Self::Refused(other.to_string()),
        }
    }
}

impl From<dalr_onnx::Error> for Error {
    fn from(error: dalr_onnx::Error) -> Self {
        match error {
            dalr_onnx::Error::Io { path, source } => Self::Io { path: path.display().to_string(), source },
            dalr_onnx::Error::Dalr(error) => error.into(),
            other => Self::Refused(other.to_string()),
        }
    }
}
