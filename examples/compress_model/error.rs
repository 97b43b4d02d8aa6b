//! What can go wrong, said so that a user knows what to do about it.

use std::fmt::Display;
use std::io;
use std::path::Path;

/// Every failure of the program; what it prints is the whole message.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written, a full disk included.
    #[error("{action} {path}: {source}")]
    Io { action: &'static str, path: String, source: io::Error },

    /// A file is damaged, or not what it was taken for.
    #[error("{path}: expected {expected}, got {found}")]
    Format { path: String, expected: String, found: String },

    /// Something about one layer: its statistics, its decomposition, its place in the output.
    #[error("layer {layer}: {message}")]
    Layer { layer: String, message: String },

    /// The options, or what they lead to with this model, make no sense.
    #[error("{0}")]
    Refused(String),

    /// What an unfinished run left behind does not belong to this run.
    #[error("cannot resume, {0}: run without --resume and with --force to begin anew")]
    Changed(String),

    /// SIGINT.
    #[error("interrupted")]
    Interrupted,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.display().to_string(), source }
    }

    pub fn format(path: &Path, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self::Format { path: path.display().to_string(), expected: expected.into(), found: found.into() }
    }

    /// Names the layer that an error of the library is about.
    pub fn layer<M: Display>(layer: &str) -> impl FnOnce(M) -> Self {
        move |message| Self::Layer { layer: layer.into(), message: message.to_string() }
    }

    /// What a shell expects: 130 after an interrupt, 1 for every other failure. (2, for options, is clap's.)
    pub fn exit_code(&self) -> u8 {
        if matches!(self, Self::Interrupted) { 130 } else { 1 }
    }
}
