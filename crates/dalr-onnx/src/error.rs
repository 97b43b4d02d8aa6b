//! The error type of the crate.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An error of this crate. The message says what is wrong, with which part of the model.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("cannot access {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: Arc<io::Error>,
    },

    /// The model is damaged, or breaks a rule of ONNX.
    #[error("not a valid ONNX model: {message} (at byte {offset})")]
    Invalid {
        /// The position in the file of the part that is wrong.
        offset: usize,
        /// What is wrong.
        message: String,
    },

    /// The model is valid, but this crate cannot work with it.
    #[error("{0}")]
    Unsupported(String),

    /// A layer cannot be read or replaced.
    #[error("layer `{layer}`: {message}")]
    Layer {
        /// The name of the layer.
        layer: String,
        /// What is wrong.
        message: String,
    },

    /// A file of inputs does not fit the model.
    #[error("{}: expected {expected}, got {found}", path.display())]
    Data {
        /// The file.
        path: PathBuf,
        /// What was expected in it.
        expected: String,
        /// What is in it.
        found: String,
    },

    /// An engine cannot load or run the model.
    #[error("{engine} cannot {task}: {message}")]
    Engine {
        /// The name of the engine.
        engine: String,
        /// What it was asked to do.
        task: String,
        /// Its message, which names the operator if there is one.
        message: String,
    },

    /// The library failed.
    #[error(transparent)]
    Dalr(#[from] dalr::Error),
}

/// A `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = core::result::Result<T, E>;

impl Error {
    pub(crate) fn invalid(offset: usize, message: impl Into<String>) -> Self {
        Self::Invalid { offset, message: message.into() }
    }

    pub(crate) fn layer(layer: &str, message: impl Into<String>) -> Self {
        Self::Layer { layer: layer.into(), message: message.into() }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.into(), source: Arc::new(source) }
    }

    pub(crate) fn data(path: &Path, expected: impl Into<String>, found: impl ToString) -> Self {
        Self::Data { path: path.into(), expected: expected.into(), found: found.to_string() }
    }

    pub(crate) fn engine(engine: &str, task: &str, message: String) -> Self {
        Self::Engine { engine: engine.into(), task: task.into(), message }
    }
}
