//! What the layers read: tensors of activations and saved statistics, from one or several files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crc32fast::Hasher;
use dalr::{ActivationStats, Scalar};
use faer::MatRef;

use crate::error::{Error, Result};
use crate::numbers;
use crate::source::{Source, Tensor};

/// What the metadata of a file of statistics says.
const STATISTICS: &str = "dalr.ActivationStats";

/// Rows of a batch, unless that takes more than `BATCH_BYTES` in `f32`.
const ROWS: usize = 1024;
const BATCH_BYTES: usize = 32 << 20;

/// All calibration data, by the name of the tensor.
#[derive(Default)]
pub struct Calibration {
    files: Vec<Source>,
    parts: BTreeMap<String, Vec<Part>>,
}

#[derive(Clone)]
enum Part {
    /// A tensor of samples in `files`.
    Samples { file: usize },
    /// A file that `ActivationStats::save` wrote.
    Statistics { path: PathBuf },
}

impl Calibration {
    /// Opens files, and all `*.safetensors` of folders. Only headers are read.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut calibration = Self::default();
        let mut seen = BTreeSet::new();
        for path in paths {
            for file in expand(path)? {
                let real = file.canonicalize().map_err(Error::io("cannot open", &file))?;
                if !seen.insert(real) {
                    let message = format!("{}: given twice, its samples would count twice", file.display());
                    return Err(Error::Refused(message));
                }
                calibration.add(&file)?;
            }
        }
        Ok(calibration)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let source = Source::open(path)?;
        if source.metadata().get("kind").is_some_and(|kind| kind == STATISTICS) {
            let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            self.parts.entry(name).or_default().push(Part::Statistics { path: path.into() });
            return Ok(());
        }
        for name in source.tensors().keys() {
            self.parts.entry(name.clone()).or_default().push(Part::Samples { file: self.files.len() });
        }
        self.files.push(source);
        Ok(())
    }

    /// Whether there is anything under this name.
    pub fn holds(&self, name: &str) -> bool {
        self.parts(name).next().is_some()
    }

    /// The names of all that there is.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.keys().map(String::as_str)
    }

    /// `NAME.input` may also be saved statistics in a file `NAME.safetensors`.
    fn parts(&self, name: &str) -> impl Iterator<Item = &Part> {
        let short = name.strip_suffix(".input").and_then(|short| self.parts.get(short));
        let statistics = short.into_iter().flatten().filter(|part| matches!(part, Part::Statistics { .. }));
        self.parts.get(name).into_iter().flatten().chain(statistics)
    }

    /// Refuses whatever headers show to be no input of a layer with this many, before any time is spent.
    pub fn check(&self, name: &str, inputs: usize) -> Result<()> {
        for part in self.parts(name) {
            match part {
                Part::Samples { file } => {
                    let (path, tensor) = (self.path(*file), self.tensor(*file, name));
                    if !numbers::is_supported(tensor.dtype) {
                        let expected = format!("`{name}` of type F32, F16, BF16 or F64");
                        return Err(Error::format(path, expected, tensor.dtype_name()));
                    }
                    if tensor.shape.last() != Some(&inputs) {
                        let expected = format!("`{name}` with a last axis of {inputs}, the layer's inputs");
                        return Err(Error::format(path, expected, format!("shape {:?}", tensor.shape)));
                    }
                }
                Part::Statistics { path } => {
                    let source = Source::open(path)?;
                    let features = source.metadata().get("features").map_or("none", String::as_str);
                    if features != inputs.to_string() {
                        return Err(Error::format(
                            path,
                            format!("statistics of the layer's {inputs} inputs"),
                            features,
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// A checksum of all that there is under a name.
    pub fn sum(&self, name: &str) -> Result<u32> {
        let mut sum = Hasher::new();
        for part in self.parts(name) {
            match part {
                Part::Samples { file } => self.files[*file].sum(self.tensor(*file, name), &mut sum)?,
                Part::Statistics { path } => sum_file(path, &mut sum)?,
            }
        }
        Ok(sum.finalize())
    }

    /// The statistics of all that there is under a name, which was checked, and its checksum. In batches: no tensor has to fit into memory.
    pub fn gather<T: Scalar>(&self, name: &str, inputs: usize) -> Result<(ActivationStats<T>, u32)> {
        let mut stats = ActivationStats::new(inputs);
        let mut sum = Hasher::new();
        for part in self.parts(name) {
            match part {
                Part::Samples { file } => self.add_samples(*file, name, &mut stats, &mut sum)?,
                Part::Statistics { path } => {
                    let refuse = |error: dalr::Error| Error::Refused(error.to_string());
                    stats.merge(&ActivationStats::load(path).map_err(refuse)?).map_err(refuse)?;
                    sum_file(path, &mut sum)?;
                }
            }
        }
        if stats.samples() == 0 {
            return Err(Error::Refused(format!("expected at least one sample in `{name}`, got none")));
        }
        Ok((stats, sum.finalize()))
    }

    fn tensor(&self, file: usize, name: &str) -> &Tensor {
        &self.files[file].tensors()[name]
    }

    fn path(&self, file: usize) -> &Path {
        self.files[file].files().next().unwrap_or(Path::new(""))
    }

    fn add_samples<T: Scalar>(
        &self,
        file: usize,
        name: &str,
        stats: &mut ActivationStats<T>,
        sum: &mut Hasher,
    ) -> Result<()> {
        let source = &self.files[file];
        let tensor = self.tensor(file, name);
        let inputs = stats.features();
        let path = self.path(file);
        let rows = ROWS.min(BATCH_BYTES / (4 * inputs)).max(1);
        let mut batch = Vec::with_capacity(rows * inputs);
        let mut first = 0;
        source.visit(tensor, rows * inputs * numbers::width(tensor.dtype), |bytes| {
            sum.update(bytes);
            batch.clear();
            numbers::decode(tensor.dtype, bytes, |number| batch.push(T::from_f64(number)));
            let count = batch.len() / inputs;
            stats.update(MatRef::from_row_major_slice(&batch, count, inputs)).map_err(|error| {
                let batch = format!("samples {first} to {} of `{name}`", first + count - 1);
                Error::format(path, "samples that statistics can be made of", format!("in {batch}: {error}"))
            })?;
            first += count;
            Ok(())
        })
    }
}

fn sum_file(path: &Path, sum: &mut Hasher) -> Result<()> {
    let mut file = std::fs::File::open(path).map_err(Error::io("cannot read", path))?;
    let mut buffer = vec![0; crate::source::CHUNK];
    loop {
        let count = std::io::Read::read(&mut file, &mut buffer).map_err(Error::io("cannot read", path))?;
        if count == 0 {
            return Ok(());
        }
        sum.update(&buffer[..count]);
    }
}

/// A file itself; of a folder, all `*.safetensors`, by name.
fn expand(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.into()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io("cannot read", path))? {
        let file = entry.map_err(Error::io("cannot read", path))?.path();
        let hidden = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && file.extension().is_some_and(|extension| extension == "safetensors") {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() { Err(Error::format(path, "at least one .safetensors file", "none")) } else { Ok(files) }
}
