//! Reads JSON files and writes text files.

use std::collections::BTreeMap;
use std::path::Path;

use dalr::interop::safetensors::replace_file;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Writes a text file atomically.
pub fn save(path: &Path, text: &str) -> Result<()> {
    replace_file(path, |file| file.write_all(text.as_bytes()).map_err(Error::io(path)))
}

/// Returns an error if the file exists and `--force` is not set.
pub fn require_free(path: &Path, force: bool) -> Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io(path)(error)),
        Ok(metadata) if metadata.is_dir() => Err(Error::format(path, "the name of a file", "a folder")),
        Ok(_) if force => Ok(()),
        Ok(_) => Err(Error::Refused(format!("{} exists: pass --force to replace it", path.display()))),
    }
}

/// Reads a JSON file of names and values.
pub fn json_map<V: DeserializeOwned>(path: &Path, expected: &str) -> Result<BTreeMap<String, V>> {
    let text = std::fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&text).map_err(|error| Error::format(path, expected, error.to_string()))
}
