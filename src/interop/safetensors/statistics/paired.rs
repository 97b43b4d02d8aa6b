//! Paired statistics in files, in the format of activation statistics.

use std::io::{Read, Write};
use std::path::Path;

use super::header::Kind;
use super::io_error;
use crate::covariance::PairedStats;
use crate::error::during;
use crate::{ActivationStats, Result, Scalar};

impl<T: Scalar> PairedStats<T> {
    /// Saves these statistics to a file, as [`ActivationStats::save`].
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io); the old file stays as it was.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        during("PairedStats::save", || self.joint().save_as(Kind::Paired, path.as_ref()))
    }

    /// Loads statistics that [`save`](Self::save) wrote, with the checks of
    /// [`ActivationStats::load`].
    ///
    /// # Errors
    ///
    /// As [`ActivationStats::load`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        during("PairedStats::load", || {
            let path = path.as_ref();
            Self::from_joint(ActivationStats::load_as(Kind::Paired, path)?, &path.display().to_string())
        })
    }

    /// Returns the bytes that [`save`](Self::save) would write: for a message, say.
    ///
    /// # Errors
    ///
    /// [`Error::Memory`](crate::Error::Memory).
    pub fn to_safetensors(&self) -> Result<Vec<u8>> {
        during("PairedStats::to_safetensors", || self.joint().to_bytes(Kind::Paired))
    }

    /// Returns the number of bytes that [`write_safetensors`](Self::write_safetensors) writes.
    ///
    /// # Errors
    ///
    /// As [`ActivationStats::safetensors_length`].
    pub fn safetensors_length(&self) -> Result<u64> {
        during("PairedStats::safetensors_length", || Ok(self.joint().layout(Kind::Paired)?.length))
    }

    /// Writes the bytes that [`save`](Self::save) would write to a stream, as
    /// [`ActivationStats::write_safetensors`].
    ///
    /// # Errors
    ///
    /// As [`ActivationStats::write_safetensors`].
    pub fn write_safetensors(&self, mut target: impl Write) -> Result<()> {
        during("PairedStats::write_safetensors", || {
            let layout = self.joint().layout(Kind::Paired)?;
            let failed = |error| io_error(Path::new("the stream"), error);
            self.joint().write(&layout, &mut target).map_err(failed)
        })
    }

    /// Reads statistics from the next `length` bytes of a stream, which
    /// [`write_safetensors`](Self::write_safetensors) wrote.
    ///
    /// # Errors
    ///
    /// As [`ActivationStats::read_safetensors`].
    pub fn read_safetensors(length: u64, source: impl Read) -> Result<Self> {
        during("PairedStats::read_safetensors", || {
            let path = "the stream";
            let joint = ActivationStats::read(Kind::Paired, Path::new(path), length, source.take(length))?;
            Self::from_joint(joint, path)
        })
    }

    /// Reads statistics from the bytes that [`to_safetensors`](Self::to_safetensors) returned, or
    /// from the bytes of a file.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self> {
        during("PairedStats::from_safetensors", || {
            let path = "the bytes";
            let joint = ActivationStats::read(Kind::Paired, Path::new(path), bytes.len() as u64, bytes)?;
            Self::from_joint(joint, path)
        })
    }
}
