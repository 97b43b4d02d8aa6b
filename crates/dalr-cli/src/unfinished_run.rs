//! The folder of an unfinished run: one file for each solved layer, and the settings that they
//! belong to.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::save;
use crate::progress::Verbosity;

/// Everything on which the solved layers depend, by name.
pub type Settings = BTreeMap<String, String>;

/// The folder `OUT.work` next to the output, on the same disk. It is locked while this value
/// exists.
pub struct UnfinishedRun {
    folder: PathBuf,
    _lock: File,
}

const LOCK: &str = "lock";
const SETTINGS: &str = "settings.json";
/// The extension of files of solved layers.
const LAYER: &str = "safetensors";

impl UnfinishedRun {
    /// Continues with the folder if `resume` is set, and creates it otherwise. Discards the layers
    /// of another run only with `force`.
    pub fn open(out: &Path, settings: &Settings, resume: bool, force: bool) -> Result<Self> {
        let mut name = out.file_name().ok_or_else(|| Error::format(out, "the name of a file", "none"))?.to_os_string();
        name.push(".work");
        let folder = out.with_file_name(name);
        match fs::create_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            result => result.map_err(Error::io(&folder))?,
        }
        let path = folder.join(LOCK);
        let lock = File::create(&path).map_err(Error::io(&path))?;
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            return Err(Error::Refused(format!("{}: another run is writing this output", folder.display())));
        }
        let run = Self { folder, _lock: lock };
        let path = run.folder.join(SETTINGS);
        if path.exists() && !run.is_empty()? {
            if resume {
                return run.compare(&path, settings).map(|()| run);
            }
            if !force {
                return Err(Error::Refused(format!(
                    "{} holds the work of an unfinished run: pass --resume to continue it, or --force to start again",
                    run.folder.display()
                )));
            }
        }
        run.clear()?;
        let text = serde_json::to_string_pretty(settings).map_err(|error| Error::Refused(error.to_string()))?;
        save(&path, &text)?;
        Ok(run)
    }

    fn compare(&self, path: &Path, settings: &Settings) -> Result<()> {
        let text = fs::read(path).map_err(Error::io(path))?;
        let before: Settings = serde_json::from_slice(&text)
            .map_err(|error| Error::format(path, "the settings of a run", error.to_string()))?;
        let shown = |value: Option<&String>| value.map_or("absent".into(), |value| format!("`{value}`"));
        let keys: std::collections::BTreeSet<&String> = before.keys().chain(settings.keys()).collect();
        let differences: Vec<String> = keys
            .into_iter()
            .filter(|key| before.get(*key) != settings.get(*key))
            .map(|key| format!("{key} was {} and is {}", shown(before.get(key)), shown(settings.get(key))))
            .collect();
        if differences.is_empty() { Ok(()) } else { Err(Error::Changed(differences.join("; "))) }
    }

    /// Returns whether no layer is solved.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(!self.files()?.iter().any(|path| path.extension().is_some_and(|extension| extension == LAYER)))
    }

    /// Returns the file of the layer with this index.
    pub fn layer(&self, index: usize) -> PathBuf {
        self.folder.join(format!("{index:05}.{LAYER}"))
    }

    /// Ends the run: prints the summary, or says how an interrupted run continues. The folder is
    /// removed if the run has succeeded, if no layer is finished, so that --resume would have no
    /// effect, or if the error would come again.
    pub fn conclude(
        self,
        result: Result<String>,
        verbosity: Verbosity,
        comes_again: impl FnOnce(&Error) -> bool,
    ) -> Result<()> {
        let is_empty = self.is_empty()?;
        if matches!(result, Err(Error::Interrupted)) && !is_empty {
            eprintln!("dalr: finished layers are kept; the same command with --resume continues with them");
        }
        if is_empty || result.as_ref().map_or_else(comes_again, |_| true) {
            self.finish()?;
        }
        let summary = result?;
        if verbosity == Verbosity::Quiet { Ok(()) } else { crate::print(summary.as_bytes()) }
    }

    /// Removes the folder.
    fn finish(self) -> Result<()> {
        self.clear()?;
        let lock = self.folder.join(LOCK);
        fs::remove_file(&lock).map_err(Error::io(&lock))?;
        fs::remove_dir(&self.folder).map_err(Error::io(&self.folder))
    }

    /// Removes the files that runs have written, and no others. It removes the settings first,
    /// because no run resumes without them.
    fn clear(&self) -> Result<()> {
        let path = self.folder.join(SETTINGS);
        if path.exists() {
            fs::remove_file(&path).map_err(Error::io(&path))?;
        }
        for path in self.files()? {
            if path.extension().is_some_and(|extension| extension == LAYER || extension == "partial") {
                fs::remove_file(&path).map_err(Error::io(&path))?;
            }
        }
        Ok(())
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        let refuse = || Error::io(&self.folder);
        let entries = fs::read_dir(&self.folder).map_err(refuse())?;
        entries.map(|entry| entry.map(|entry| entry.path()).map_err(refuse())).collect()
    }
}
