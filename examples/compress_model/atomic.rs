//! Files that appear whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Writes a file under a temporary name in the same folder, `.NAME.partial`, makes sure that it is on the disk, and only
/// then gives it its name. Whatever goes wrong before leaves what was there; what a kill leaves behind is written over next time.
pub fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let partial = Partial(beside(path, ".", ".partial")?);
    let file = File::create(&partial.0).map_err(Error::io("cannot write", &partial.0))?;
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    write(&mut writer)?;
    let file = writer.into_inner().map_err(|error| Error::io("cannot write", path)(error.into_error()))?;
    file.sync_all().map_err(Error::io("cannot write", path))?;
    fs::rename(&partial.0, path).map_err(Error::io("cannot write", path))?;
    sync_folder(path);
    Ok(())
}

/// The path with something before and after its file name.
pub fn beside(path: &Path, before: &str, after: &str) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| Error::format(path, "the name of a file", "none"))?;
    let mut beside = OsString::from(before);
    beside.push(name);
    beside.push(after);
    Ok(path.with_file_name(beside))
}

/// Removed unless it was renamed.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Makes sure that the new name is on the disk, where folders can be asked to.
fn sync_folder(path: &Path) {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}
