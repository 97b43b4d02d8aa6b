//! Checkpoints of a rank's statistics on disk. A kill loses at most the batches since the last one.
//!
//! A checkpoint is a folder `FOLDER/rank-R/batches-N` with the statistics of every layer, as
//! `ActivationStats::save` writes them, and `identity.json`, which identifies their data. The
//! folder is written under another name and renamed once it is complete, so a kill never leaves
//! files of two states. After that the checkpoint before it is removed.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dalr::ActivationStats;
use dalr::interop::safetensors::replace_file;

use crate::error::{Failure, Result};

const PREFIX: &str = "batches-";
const PARTIAL: &str = "partial";
const IDENTITY: &str = "identity.json";
const BATCHES: &str = "batches";

/// Number of attempts to lock the folder, and the pause between them.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// Identifies the data of statistics: names of settings and their values.
pub type Identity = BTreeMap<String, String>;

/// The checkpoints of one rank. They are locked while this value exists.
pub struct Checkpoints {
    folder: PathBuf,
    identity: Identity,
    _lock: File,
}

/// Statistics of all layers after some batches.
pub struct State {
    /// Number of batches in the statistics.
    pub batches: usize,
    /// Statistics of each layer.
    pub stats: Vec<ActivationStats<f32>>,
}

impl Checkpoints {
    /// Opens or creates the folder of a rank. `identity` identifies the data of this job.
    pub fn open(folder: &Path, rank: usize, identity: Identity) -> Result<Self> {
        let folder = folder.join(format!("rank-{rank}"));
        let fail = |error: io::Error| Failure::file(&folder, error);
        fs::create_dir_all(&folder).map_err(fail)?;
        let lock = File::create(folder.join("lock")).map_err(fail)?;
        // The system releases the lock when the process ends, which takes a moment after a kill.
        for _ in 0..ATTEMPTS {
            match lock.try_lock() {
                Ok(()) => return Ok(Self { folder, identity, _lock: lock }),
                Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
                Err(TryLockError::Error(error)) => return Err(fail(error)),
            }
        }
        Err(Failure::file(&folder, "expected to be alone, got another job at work on these checkpoints"))
    }

    /// Returns the last checkpoint, if there is one. A checkpoint that is damaged or of other data
    /// is an error, because starting again without a message could waste days.
    pub fn load(&self, layers: usize) -> Result<Option<State>> {
        let mut all = self.all()?;
        all.sort();
        let Some((batches, path)) = all.pop() else { return Ok(None) };
        let file = path.join(IDENTITY);
        let text = fs::read(&file).map_err(|error| Failure::file(&file, error))?;
        let found: Identity = serde_json::from_slice(&text).map_err(|error| {
            Failure::file(&file, format!("expected the identity of a checkpoint, got damage: {error}"))
        })?;
        let expected = self.identity_at(batches);
        let shown = |value: Option<&String>| value.map_or("nothing".into(), |value| format!("`{value}`"));
        let keys = expected.keys().chain(found.keys().filter(|key| !expected.contains_key(*key)));
        for key in keys {
            let (now, then) = (expected.get(key), found.get(key));
            if now != then {
                let message = format!(
                    "this checkpoint is of another {key}: expected {}, got {}; remove it to start again",
                    shown(now),
                    shown(then)
                );
                return Err(Failure::file(&path, message));
            }
        }
        let stats = (0..layers).map(|layer| Ok(ActivationStats::load(path.join(file_of(layer)))?));
        let stats = stats.collect::<Result<_>>()?;
        // A process that was killed before it removed the previous checkpoint left these.
        remove(all)?;
        Ok(Some(State { batches, stats }))
    }

    /// Saves a state and removes the one before.
    pub fn save(&self, batches: usize, stats: &[ActivationStats<f32>]) -> Result<()> {
        let partial = self.folder.join(PARTIAL);
        let fail = |error: io::Error| Failure::file(&partial, error);
        let path = self.folder.join(format!("{PREFIX}{batches}"));
        let before = self.all()?;
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(fail)?;
        }
        fs::create_dir(&partial).map_err(fail)?;
        for (layer, stats) in stats.iter().enumerate() {
            stats.save(partial.join(file_of(layer)))?;
        }
        let identity =
            serde_json::to_vec_pretty(&self.identity_at(batches)).map_err(|error| Failure::file(&partial, error))?;
        replace_file(partial.join(IDENTITY), |file| file.write_all(&identity).map_err(fail))?;
        fs::rename(&partial, &path).map_err(fail)?;
        sync(&self.folder)?;
        // If the process is killed here, the new checkpoint is complete.
        remove(before)
    }

    /// Returns the identity with the number of batches, so that a renamed folder is detected.
    fn identity_at(&self, batches: usize) -> Identity {
        let mut identity = self.identity.clone();
        identity.insert(BATCHES.into(), batches.to_string());
        identity
    }

    fn all(&self) -> Result<Vec<(usize, PathBuf)>> {
        let fail = |error: io::Error| Failure::file(&self.folder, error);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if let Some(batches) = name.strip_prefix(PREFIX).and_then(|number| number.parse().ok()) {
                found.push((batches, path));
            }
        }
        Ok(found)
    }
}

fn remove(checkpoints: Vec<(usize, PathBuf)>) -> Result<()> {
    let one = |(_, path): (usize, PathBuf)| fs::remove_dir_all(&path).map_err(|error| Failure::file(&path, error));
    checkpoints.into_iter().try_for_each(one)
}

fn file_of(layer: usize) -> String {
    format!("{layer:05}.safetensors")
}

/// Syncs a folder's list of files to the disk.
fn sync(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| Failure::file(folder, error))
}
