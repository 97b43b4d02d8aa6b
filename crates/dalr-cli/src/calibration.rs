//! Calibration data: the layers' inputs, as tensors of samples and as saved statistics, from one or
//! several files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crc32fast::Hasher;
use dalr::faer::MatRef;
use dalr::interop::safetensors::{FloatDtype, ModelFile};
use dalr::{ActivationStats, Scalar};

use crate::error::{Error, Result};
use crate::interrupt;
use crate::layer::Layer;

/// `kind` in the metadata of a file of statistics.
const STATISTICS: &str = "dalr.ActivationStats";

/// Number of rows in a batch, unless they take more than `BATCH_BYTES` in `f32`.
const ROWS: usize = 1024;
const BATCH_BYTES: usize = 32 << 20;

/// Number of bytes that are read at a time for a checksum.
const PIECE: usize = 1 << 20;

/// All calibration data, by the name of the tensor.
#[derive(Default)]
pub struct Calibration {
    files: Vec<ModelFile>,
    parts: BTreeMap<String, Vec<Part>>,
}

/// Statistics of one input, in the precision of the layers that read it.
pub enum Statistics {
    Single(ActivationStats<f32>),
    Double(ActivationStats<f64>),
}

enum Part {
    /// A tensor of samples in `files`.
    Samples { file: usize },
    /// A file that `ActivationStats::save` wrote.
    Statistics { path: PathBuf },
}

impl Calibration {
    /// Opens files, and all `*.safetensors` of folders. Reads headers only.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut calibration = Self::default();
        let mut seen = BTreeSet::new();
        for path in paths {
            for file in expand(path)? {
                let real = file.canonicalize().map_err(Error::io(&file))?;
                if !seen.insert(real) {
                    let message = format!("{}: given twice, so that its samples would count twice", file.display());
                    return Err(Error::Refused(message));
                }
                calibration.add(&file)?;
            }
        }
        Ok(calibration)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let source = ModelFile::open(path)?;
        if source.metadata().get("kind").is_some_and(|kind| kind == STATISTICS) {
            let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            self.parts.entry(name).or_default().push(Part::Statistics { path: path.into() });
            return Ok(());
        }
        for (name, _) in source.tensors() {
            self.parts.entry(name.into()).or_default().push(Part::Samples { file: self.files.len() });
        }
        self.files.push(source);
        Ok(())
    }

    /// Returns whether there are data of this name.
    pub fn holds(&self, name: &str) -> bool {
        self.parts(name).next().is_some()
    }

    /// Returns the names of all data.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.keys().map(String::as_str)
    }

    /// Returns the data of a name. Those of `NAME.input` include saved statistics in a file
    /// `NAME.safetensors`.
    fn parts(&self, name: &str) -> impl Iterator<Item = &Part> {
        let short = name.strip_suffix(".input").and_then(|short| self.parts.get(short));
        let statistics = short.into_iter().flatten().filter(|part| matches!(part, Part::Statistics { .. }));
        self.parts.get(name).into_iter().flatten().chain(statistics)
    }

    /// Returns an error if the headers of the data do not fit a layer with this many inputs. It
    /// runs before any layer is solved.
    pub fn check(&self, name: &str, inputs: usize) -> Result<()> {
        for part in self.parts(name) {
            match part {
                Part::Samples { file } => {
                    let file = &self.files[*file];
                    let Some(tensor) = file.tensor(name) else { continue };
                    if FloatDtype::of(tensor.dtype).is_none() {
                        let expected = format!("`{name}` of dtype F32, F16, BF16 or F64");
                        return Err(Error::format(file.path(), expected, format!("{:?}", tensor.dtype)));
                    }
                    if tensor.shape.last() != Some(&inputs) {
                        let expected = format!("`{name}` with a last axis of {inputs}, the layer's inputs");
                        return Err(Error::format(file.path(), expected, format!("shape {:?}", tensor.shape)));
                    }
                }
                Part::Statistics { path } => {
                    let source = ModelFile::open(path)?;
                    let features = source.metadata().get("features").map_or("none", String::as_str);
                    if features != inputs.to_string() {
                        return Err(Error::format(
                            path,
                            format!("statistics of {inputs} inputs, as the layer has"),
                            format!("statistics of {features} inputs"),
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// Returns a checksum of all data of a name.
    pub fn sum(&self, name: &str) -> Result<u32> {
        let mut sum = Hasher::new();
        for part in self.parts(name) {
            match part {
                Part::Samples { file } => self.files[*file].visit(name, .., PIECE, |bytes| {
                    sum.update(bytes);
                    interrupt::check()
                })?,
                Part::Statistics { path } => sum_file(path, &mut sum)?,
            }
        }
        Ok(sum.finalize())
    }

    /// Returns statistics of a layer's input in the precision of its weight, and a checksum of the
    /// data.
    pub fn statistics(&self, layer: &Layer) -> Result<(Statistics, u32)> {
        let Layer { name, in_features, input, dtype, .. } = layer;
        let gathered = match dtype {
            FloatDtype::F64 => self.gather(input, *in_features).map(|(stats, sum)| (Statistics::Double(stats), sum)),
            _ => self.gather(input, *in_features).map(|(stats, sum)| (Statistics::Single(stats), sum)),
        };
        gathered.map_err(|error| match error {
            Error::Interrupted | Error::Io { .. } => error,
            other => Error::layer(name)(other),
        })
    }

    /// Returns statistics of the data of a name, and a checksum of these data. Reads in batches, so
    /// that no tensor has to fit into memory. Without any calibration data, returns statistics without samples, for methods that use the weight alone.
    pub fn gather<T: Scalar>(&self, name: &str, inputs: usize) -> Result<(ActivationStats<T>, u32)> {
        let mut stats = ActivationStats::new(inputs);
        let mut sum = Hasher::new();
        for part in self.parts(name) {
            match part {
                Part::Samples { file } => self.add_samples(*file, name, &mut stats, &mut sum)?,
                Part::Statistics { path } => {
                    stats.merge(&ActivationStats::load(path)?)?;
                    sum_file(path, &mut sum)?;
                }
            }
        }
        if stats.samples() == 0 && !self.parts.is_empty() {
            return Err(Error::Refused(format!("expected at least one sample in `{name}`, got none")));
        }
        Ok((stats, sum.finalize()))
    }

    fn add_samples<T: Scalar>(
        &self,
        file: usize,
        name: &str,
        stats: &mut ActivationStats<T>,
        sum: &mut Hasher,
    ) -> Result<()> {
        let source = &self.files[file];
        let tensor = source.tensor(name);
        let Some(dtype) = tensor.and_then(|tensor| FloatDtype::of(tensor.dtype)) else {
            let found = tensor.map_or("no such tensor".into(), |tensor| format!("{:?}", tensor.dtype));
            return Err(Error::format(source.path(), format!("`{name}` of dtype F32, F16, BF16 or F64"), found));
        };
        let inputs = stats.features();
        let rows = ROWS.min(BATCH_BYTES / (4 * inputs)).max(1);
        let mut batch = Vec::with_capacity(rows * inputs);
        let mut first = 0;
        source.visit(name, .., rows * inputs * dtype.width(), |bytes| {
            interrupt::check()?;
            sum.update(bytes);
            batch.clear();
            dtype.decode(bytes, |number| batch.push(T::from_f64(number)));
            let count = batch.len() / inputs;
            stats.update(MatRef::from_row_major_slice(&batch, count, inputs)).map_err(|error| {
                let batch = format!("samples {first} to {} of `{name}`", first + count - 1);
                Error::format(source.path(), "valid samples", format!("an error in {batch}: {error}"))
            })?;
            first += count;
            Ok(())
        })
    }
}

/// Returns the checksum of a file.
pub fn checksum(path: &Path) -> Result<u32> {
    let mut sum = Hasher::new();
    sum_file(path, &mut sum)?;
    Ok(sum.finalize())
}

fn sum_file(path: &Path, sum: &mut Hasher) -> Result<()> {
    let mut file = std::fs::File::open(path).map_err(Error::io(path))?;
    let mut buffer = vec![0; PIECE];
    loop {
        let count = std::io::Read::read(&mut file, &mut buffer).map_err(Error::io(path))?;
        if count == 0 {
            return Ok(());
        }
        sum.update(&buffer[..count]);
    }
}

/// Returns the path if it is a file, or all `*.safetensors` of a folder, sorted by name.
fn expand(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.into()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io(path))? {
        let file = entry.map_err(Error::io(path))?.path();
        let hidden = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && file.extension().is_some_and(|extension| extension == "safetensors") {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() { Err(Error::format(path, "at least one .safetensors file", "none")) } else { Ok(files) }
}
