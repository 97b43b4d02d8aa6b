//! A rank's part of the samples: files, or generated ones.

use std::fs;
use std::path::{Path, PathBuf};

use dalr::interop::safetensors::ModelFile;
use faer::Mat;

use crate::error::{Failure, Result};
use crate::model::Shape;
use crate::random::uniform;

/// The placeholder for the MPI rank in a path, for files on disks that only one machine can read.
pub const RANK: &str = "{rank}";

/// The batches of one rank.
pub enum Shard {
    /// Safetensors files with tensors `NAME.input`, samples × inputs. Each file is a batch.
    Files(Vec<PathBuf>),
    /// Generated samples, each a function of its number among those of all ranks.
    Generated {
        /// Seed of the generator.
        seed: u64,
        /// Number of samples in a batch.
        rows: usize,
        /// The first batch of this rank.
        first: usize,
        /// Batches of this rank.
        count: usize,
    },
}

/// Replaces `{rank}` in a path by the rank.
pub fn with_rank(path: &Path, rank: usize) -> PathBuf {
    path.to_string_lossy().replace(RANK, &rank.to_string()).into()
}

/// Returns a rank's part of `count` items. Neighbours stay together, so that the samples keep their
/// order over all ranks.
fn part(count: usize, rank: usize, size: usize) -> core::ops::Range<usize> {
    rank * count / size..(rank + 1) * count / size
}

impl Shard {
    /// Creates this rank's part of the files of a folder, sorted by name. If the path contains
    /// `{rank}`, the part is all files of the folder.
    pub fn files(folder: &Path, rank: usize, size: usize) -> Result<Self> {
        let own = folder.to_string_lossy().contains(RANK);
        let folder = with_rank(folder, rank);
        let entries = fs::read_dir(&folder).map_err(|error| Failure::file(&folder, error))?;
        let paths = entries.map(|entry| Ok(entry.map_err(|error| Failure::file(&folder, error))?.path()));
        let mut paths = paths.collect::<Result<Vec<_>>>()?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
        paths.sort();
        if paths.is_empty() {
            return Err(Failure::file(&folder, "expected files `*.safetensors`, got none"));
        }
        let part = if own { 0..paths.len() } else { part(paths.len(), rank, size) };
        Ok(Self::Files(paths[part].to_vec()))
    }

    /// Creates the part of one rank, of this many generated batches.
    pub fn generated(seed: u64, rows: usize, batches: usize, rank: usize, size: usize) -> Self {
        let part = part(batches, rank, size);
        Self::Generated { seed, rows, first: part.start, count: part.len() }
    }

    /// Returns the number of batches of this rank.
    pub fn batches(&self) -> usize {
        match self {
            Self::Files(files) => files.len(),
            Self::Generated { count, .. } => *count,
        }
    }

    /// Returns a text that identifies this shard: names and lengths of its files, or the
    /// generator's settings.
    pub fn identity(&self) -> Result<String> {
        let files = match self {
            Self::Files(files) => files,
            Self::Generated { seed, rows, first, count } => {
                return Ok(format!("batches {first} to {} of {rows} samples from seed {seed}", first + count));
            }
        };
        let mut sum = crc32fast::Hasher::new();
        for path in files {
            let length = fs::metadata(path).map_err(|error| Failure::file(path, error))?.len();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            sum.update(format!("{name} {length};").as_bytes());
        }
        Ok(format!("{} files, names and lengths {:08x}", files.len(), sum.finalize()))
    }

    /// Returns the layers of a model whose inputs the first batch holds.
    pub fn layers(&self, shapes: Vec<Shape>) -> Result<Vec<Shape>> {
        let Self::Files(files) = self else { return Ok(shapes) };
        let Some(first) = files.first() else { return Ok(Vec::new()) };
        let file = ModelFile::open(first)?;
        let has_input = |shape: &Shape| file.tensor(&format!("{}.input", shape.name)).is_some();
        let layers: Vec<_> = shapes.into_iter().filter(has_input).collect();
        if layers.is_empty() {
            return Err(Failure::file(first, "expected tensors `NAME.input` of layers of the model, got none"));
        }
        Ok(layers)
    }

    /// Opens a batch.
    pub fn open(&self, index: usize) -> Result<Batch> {
        match self {
            Self::Files(files) => Ok(Batch::File(ModelFile::open(&files[index])?)),
            Self::Generated { seed, rows, first, .. } => {
                Ok(Batch::Generated { seed: *seed, rows: *rows, first: (first + index) * rows })
            }
        }
    }
}

/// A batch of samples for all layers. Samples of one layer are in memory at a time.
pub enum Batch {
    /// An open file.
    File(ModelFile),
    /// Generated samples.
    Generated {
        /// Determines the numbers.
        seed: u64,
        /// Number of samples.
        rows: usize,
        /// Number of the first.
        first: usize,
    },
}

impl Batch {
    /// Returns the inputs of a layer, samples × inputs.
    pub fn inputs(&self, shape: &Shape) -> Result<Mat<f32>> {
        match self {
            Self::File(file) => {
                let inputs = file.matrix(&format!("{}.input", shape.name))?;
                if inputs.ncols() != shape.inputs {
                    let message = format!("expected `{}.input` with a last axis of {}", shape.name, shape.inputs);
                    return Err(Failure::file(file.path(), format!("{message}, got {}", inputs.ncols())));
                }
                Ok(inputs)
            }
            Self::Generated { seed, rows, first } => {
                Ok(Mat::from_fn(*rows, shape.inputs, |row, input| sample(*seed, first + row, input, shape.inputs)))
            }
        }
    }
}

/// Returns an input of a generated sample. Half of the inputs are zero, as after a ReLU; later
/// inputs vary less, and all share one direction.
fn sample(seed: u64, number: usize, input: usize, inputs: usize) -> f32 {
    let own = uniform(seed, (number * (inputs + 1) + input + 1) as u64);
    let shared = uniform(seed, (number * (inputs + 1)) as u64);
    let spread = 1.0 / (1.0 + 8.0 * input as f32 / inputs as f32);
    (spread * own + 0.3 * shared * if input.is_multiple_of(3) { 1.0 } else { -0.5 }).max(0.0)
}
