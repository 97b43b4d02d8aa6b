//! Writing a file so that a crash at any point leaves the old one or the new one, whole.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const SUFFIX: &str = ".partial";

/// Writes a file under a temporary name in the same folder, makes sure that it is on the disk, and puts it in the place of `path`.
///
/// What earlier crashes left behind for this path is removed. Saving to one path from several threads or processes is
/// fine: the last one to finish wins.
pub(super) fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    // What a symbolic link points to is replaced, not the link.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let name = path.file_name().ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "the path names no file"))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    remove_abandoned(folder, &prefix);
    let mut partial = Partial::create(folder, &prefix)?;
    write(&mut partial.file)?;
    partial.file.sync_all()?;
    fs::rename(&partial.path, &path)?;
    partial.in_place = true;
    sync_folder(folder)
}

/// A file on its way: locked as long as somebody is at work on it, and removed unless it made it to its place.
struct Partial {
    file: File,
    path: PathBuf,
    in_place: bool,
}

impl Partial {
    fn create(folder: &Path, prefix: &OsStr) -> io::Result<Self> {
        let process = std::process::id();
        for _ in 0..1000 {
            // The lock, not the name, tells whether a file is in use; the name need only be new.
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
            let mut name = prefix.to_os_string();
            name.push(format!("{process:x}-{now:x}{SUFFIX}"));
            let path = folder.join(name);
            let file = match OpenOptions::new().write(true).create_new(true).open(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                result => result?,
            };
            // Where locks are not supported nothing is ever taken for abandoned.
            let _ = file.lock();
            // Between its creation and its lock somebody may have taken the file for abandoned.
            if fs::symlink_metadata(&path).is_ok() {
                return Ok(Self { file, path, in_place: false });
            }
        }
        Err(io::Error::new(ErrorKind::AlreadyExists, "no new temporary name could be found"))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.in_place {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes temporary files of this path on which nobody is at work. Failing to is no reason not to save.
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

/// Makes sure that the new name is on the disk, where folders can be asked to.
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
