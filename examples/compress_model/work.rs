//! The folder in which an unfinished run keeps what it has finished: one file a layer, and the settings they belong to.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use crate::atomic;
use crate::error::{Error, Result};

/// Everything that decides what comes out, by name.
pub type Settings = BTreeMap<String, String>;

/// `OUT.work`, beside the output and so on its disk; locked as long as this lives.
pub struct Work {
    folder: PathBuf,
    _lock: File,
}

const LOCK: &str = "lock";
const SETTINGS: &str = "settings.json";
/// How the names of finished layers end.
const LAYER: &str = "safetensors";

impl Work {
    /// Takes the folder up if `resume`, or begins one. What another run left behind is only thrown away with `force`.
    pub fn open(out: &Path, settings: &Settings, resume: bool, force: bool) -> Result<Self> {
        let folder = atomic::beside(out, "", ".work")?;
        match fs::create_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            result => result.map_err(Error::io("cannot create", &folder))?,
        }
        let path = folder.join(LOCK);
        let lock = File::create(&path).map_err(Error::io("cannot write", &path))?;
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            return Err(Error::Refused(format!("{}: another run is at work on this output", folder.display())));
        }
        let work = Self { folder, _lock: lock };
        let path = work.folder.join(SETTINGS);
        if path.exists() && !work.is_empty()? {
            if resume {
                return work.compare(&path, settings).map(|()| work);
            }
            if !force {
                return Err(Error::Refused(format!(
                    "{} holds the work of an unfinished run: pass --resume to go on with it, or --force to begin anew",
                    work.folder.display()
                )));
            }
        }
        work.clear()?;
        let text = serde_json::to_vec_pretty(settings).unwrap_or_default();
        atomic::replace(&path, |writer| writer.write_all(&text).map_err(Error::io("cannot write", &path)))?;
        Ok(work)
    }

    fn compare(&self, path: &Path, settings: &Settings) -> Result<()> {
        let text = fs::read(path).map_err(Error::io("cannot read", path))?;
        let before: Settings = serde_json::from_slice(&text)
            .map_err(|error| Error::format(path, "the settings of a run", error.to_string()))?;
        let shown = |value: Option<&String>| value.map_or("not there".into(), |value| format!("`{value}`"));
        let keys: std::collections::BTreeSet<&String> = before.keys().chain(settings.keys()).collect();
        let differences: Vec<String> = keys
            .into_iter()
            .filter(|key| before.get(*key) != settings.get(*key))
            .map(|key| format!("{key} was {} and is {}", shown(before.get(key)), shown(settings.get(key))))
            .collect();
        if differences.is_empty() { Ok(()) } else { Err(Error::Changed(differences.join("; "))) }
    }

    /// Whether no layer is finished, so that there is nothing to lose.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(!self.files()?.iter().any(|path| path.extension().is_some_and(|extension| extension == LAYER)))
    }

    /// The file of the layer at this place.
    pub fn layer(&self, index: usize) -> PathBuf {
        self.folder.join(format!("{index:05}.{LAYER}"))
    }

    /// Removes the folder, once its work is done.
    pub fn finish(self) -> Result<()> {
        self.clear()?;
        let lock = self.folder.join(LOCK);
        fs::remove_file(&lock).map_err(Error::io("cannot remove", &lock))?;
        fs::remove_dir(&self.folder).map_err(Error::io("cannot remove", &self.folder))
    }

    /// Removes what runs have written, and nothing else. The settings first: files without them belong to nobody.
    fn clear(&self) -> Result<()> {
        let path = self.folder.join(SETTINGS);
        if path.exists() {
            fs::remove_file(&path).map_err(Error::io("cannot remove", &path))?;
        }
        for path in self.files()? {
            if path.extension().is_some_and(|extension| extension == LAYER || extension == "partial") {
                fs::remove_file(&path).map_err(Error::io("cannot remove", &path))?;
            }
        }
        Ok(())
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        let refuse = || Error::io("cannot read", &self.folder);
        let entries = fs::read_dir(&self.folder).map_err(refuse())?;
        entries.map(|entry| entry.map(|entry| entry.path()).map_err(refuse())).collect()
    }
}
