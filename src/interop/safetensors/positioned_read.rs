//! Reads a file at any position.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::{format_error, io_error};
use crate::Result;

/// Opens a regular file for reading, and returns it with its length.
pub(super) fn open(path: &Path) -> Result<(File, u64)> {
    let io = |error| io_error(path, error);
    // The check comes before opening, because opening a pipe would block.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(format_error(path, "a regular file", "something else"));
    }
    let file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    Ok((file, length))
}

/// An open file that several threads may read piece by piece.
#[derive(Debug)]
pub(super) struct Positioned {
    path: PathBuf,
    length: u64,
    /// A mutex protects the file, because all readers share its cursor.
    file: Mutex<File>,
}

impl Positioned {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let (file, length) = open(path)?;
        Ok(Self { path: path.into(), length, file: Mutex::new(file) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the length when the file was opened.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Fills `bytes` from `offset` on. Fails if the file has become too short.
    pub(super) fn read(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))
            .and_then(|_| file.read_exact(bytes))
            .map_err(|error| io_error(&self.path, error))
    }
}
