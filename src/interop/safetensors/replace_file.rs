//! Atomic replacement of files.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::io_error;
use crate::{Error, Result};

const SUFFIX: &str = ".partial";

/// Size of the write buffer in bytes.
const BUFFER: usize = 1 << 16;

/// Writes a file atomically: a crash leaves the old file or the new one.
///
/// Writes to a temporary file in the same folder (`.NAME.<numbers>.partial`), syncs it to the disk
/// and renames it. If `write` fails, the old file stays as it was and the temporary file is
/// removed. A killed process leaves its temporary file; the next call for the same path removes it.
/// Several threads or processes may replace one file at the same time: the last one to finish
/// determines the content. If `path` is a symbolic link, the file that it points to is replaced.
///
/// # Errors
///
/// [`Error::Io`] with the path; the errors of `write`.
///
/// ```
/// use dalr::interop::safetensors::replace_file;
/// # let path = std::env::temp_dir().join(format!("dalr-{}-notes.txt", std::process::id()));
/// replace_file::<Box<dyn std::error::Error>>(&path, |file| Ok(file.write_all(b"all or nothing")?))?;
/// assert_eq!(std::fs::read(&path)?, b"all or nothing");
/// # std::fs::remove_file(&path)?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
pub fn replace_file<E: From<Error>>(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<(), E> {
    let path = path.as_ref();
    let io = |error: io::Error| io_error(path, error);
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let no_name = || io(io::Error::new(ErrorKind::InvalidInput, "the path names no file"));
    let name = target.file_name().ok_or_else(no_name)?;
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    remove_abandoned(folder, &prefix);
    let mut partial = UnfinishedFile::create(folder, &prefix).map_err(io)?;
    let mut writer = BufWriter::with_capacity(BUFFER, &mut partial.file);
    write(&mut writer)?;
    writer.flush().map_err(io)?;
    drop(writer);
    partial.file.sync_all().map_err(io)?;
    fs::rename(&partial.path, &target).map_err(io)?;
    partial.in_place = true;
    sync_folder(folder).map_err(|error| io(error).into())
}

/// A temporary file, locked while its writer works on it, and removed unless it was renamed.
struct UnfinishedFile {
    file: File,
    path: PathBuf,
    in_place: bool,
}

impl UnfinishedFile {
    fn create(folder: &Path, prefix: &OsStr) -> io::Result<Self> {
        let process = std::process::id();
        for _ in 0..1000 {
            // The lock shows whether a file is in use, so the name only has to be unused.
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
            let mut name = prefix.to_os_string();
            name.push(format!("{process:x}-{now:x}{SUFFIX}"));
            let path = folder.join(name);
            let file = match OpenOptions::new().write(true).create_new(true).open(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                result => result?,
            };
            // On a file system without locks, `try_lock` below fails, so that no file counts as
            // abandoned.
            let _ = file.lock();
            // Before the file was locked, another process may have removed it as abandoned.
            if fs::symlink_metadata(&path).is_ok() {
                return Ok(Self { file, path, in_place: false });
            }
        }
        Err(io::Error::new(ErrorKind::AlreadyExists, "no new temporary name could be found"))
    }
}

impl Drop for UnfinishedFile {
    fn drop(&mut self) {
        if !self.in_place {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes temporary files of this path that no process has locked. Ignores failures: they do not
/// prevent the replacement.
fn remove_abandoned(folder: &Path, prefix: &OsStr) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let middle = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes());
        let middle = middle.and_then(|rest| rest.strip_suffix(SUFFIX.as_bytes()));
        if !middle.is_some_and(|middle| middle.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b'-')) {
            continue;
        }
        let Ok(file) = File::open(entry.path()) else { continue };
        match file.try_lock() {
            Ok(()) => {
                let _ = fs::remove_file(entry.path());
            }
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
}

/// Syncs the folder, and with it the new name, to the disk.
#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        result => result,
    }
}

#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> io::Result<()> {
    Ok(())
}
