//! Reads a file at a position, without a cursor that several readers would share.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::{format_error, io_error};
use crate::Result;

/// An open file that is read piece by piece, at any position.
#[derive(Debug)]
pub(super) struct Positioned {
    path: PathBuf,
    length: u64,
    #[cfg(any(unix, windows))]
    file: File,
    #[cfg(not(any(unix, windows)))]
    file: std::sync::Mutex<File>,
}

impl Positioned {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let io = |error: io::Error| io_error(path, error);
        // Checked before the file is opened, because opening a pipe blocks.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(format_error(path, "a regular file", "something else"));
        }
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        #[cfg(not(any(unix, windows)))]
        let file = std::sync::Mutex::new(file);
        Ok(Self { path: path.into(), length, file })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The length when the file was opened.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Fills `bytes` from `offset` on. Fails if the file has become too short.
    pub(super) fn read(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.fill(bytes, offset).map_err(|error| io_error(&self.path, error))
    }

    #[cfg(unix)]
    fn fill(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, bytes, offset)
    }

    #[cfg(windows)]
    fn fill(&self, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
        use std::os::windows::fs::FileExt;
        while !bytes.is_empty() {
            match self.file.seek_read(bytes, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    bytes = bytes.get_mut(count..).unwrap_or_default();
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    #[cfg(not(any(unix, windows)))]
    fn fill(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(bytes)
    }
}
