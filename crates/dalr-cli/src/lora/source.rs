//! An adapter that is read, in either format.

use std::path::{Path, PathBuf};

use dalr::Scalar;
use dalr::adapter::Adapter;
use dalr::interop::safetensors::{FloatDtype, ModelFile};
use serde_json::{Map, Value};

use super::module::{Module, flat};
use super::{kohya, peft};
use crate::error::{Error, Result};

/// The names of the two tensors of a module.
#[derive(Clone, Debug)]
pub struct Pair {
    pub down: String,
    pub up: String,
}

/// A module of the adapter.
#[derive(Clone, Debug)]
pub struct Part {
    pub module: Module,
    pair: Pair,
    scale: f64,
}

/// An adapter of which only headers and scales are in memory.
pub struct Source {
    pub path: PathBuf,
    pub file: ModelFile,
    pub parts: Vec<Part>,
    /// The names of tensors that are copied: full modules and biases beside the adapter.
    pub others: Vec<String>,
    /// The configuration, in the format of PEFT.
    pub config: Option<Map<String, Value>>,
}

impl Source {
    pub fn new(path: &Path, file: ModelFile) -> Self {
        Self { path: path.into(), file, parts: Vec::new(), others: Vec::new(), config: None }
    }

    /// Opens a folder in the format of PEFT, or a file in that of kohya-ss.
    pub fn open(path: &Path) -> Result<Self> {
        let folder = folder_of(path);
        let source = if folder.join(peft::CONFIG).is_file() {
            peft::open(folder)?
        } else if path.is_dir() {
            let expected = format!("a folder with {} and {}", peft::CONFIG, peft::WEIGHTS);
            return Err(Error::format(path, expected, "a folder without"));
        } else {
            let file = ModelFile::open(path)?;
            if !kohya::matches(&file) {
                let some: Vec<String> = file.tensors().take(3).map(|(name, _)| format!("`{name}`")).collect();
                let expected = "a kohya-ss adapter with tensors `….lora_down.weight`, or the folder of a PEFT adapter";
                return Err(Error::format(path, expected, format!("the tensors {} …", some.join(", "))));
            }
            kohya::open(path, file)?
        };
        if source.parts.is_empty() {
            return Err(Error::format(source.file.path(), "an adapter with modules", "none"));
        }
        Ok(source)
    }

    /// Adds a module, whose tensors must fit each other. `scale` gets its rank.
    pub fn add(
        &mut self,
        name: &str,
        pair: Pair,
        is_embedding: bool,
        scale: impl FnOnce(usize) -> Result<f64>,
    ) -> Result<()> {
        let refuse = |expected: String, found: String| Err(Error::format(self.file.path(), expected, found));
        let mut shapes = Vec::new();
        for tensor in [&pair.down, &pair.up] {
            let Some(info) = self.file.tensor(tensor) else { continue };
            if FloatDtype::of(info.dtype).is_none() {
                return refuse(format!("`{tensor}` of dtype F32, F16, BF16 or F64"), format!("{:?}", info.dtype));
            }
            if info.shape.len() < 2 || info.shape.contains(&0) {
                return refuse(format!("two axes or more in `{tensor}`, none of them 0"), format!("{:?}", info.shape));
            }
            shapes.push(&info.shape);
        }
        let [down, up] = shapes[..] else { return Ok(()) };
        let rank = down[0];
        if up[1] != rank || up[2..].iter().any(|&axis| axis != 1) {
            let expected = format!("`{}` of shape [out, {rank}] or [out, {rank}, 1, 1]", pair.up);
            return refuse(expected, format!("{up:?}, and `{}` of shape {down:?}", pair.down));
        }
        let mut shape = down.clone();
        shape[0] = up[0];
        let scale = scale(rank)?;
        let module = Module { name: name.into(), shape, is_embedding };
        self.parts.push(Part { module, pair, scale });
        Ok(())
    }

    /// Reads a module.
    pub fn read<T: Scalar>(&self, part: &Part) -> Result<Adapter<T>> {
        let (down, up) = (flat(&self.file, &part.pair.down)?, flat(&self.file, &part.pair.up)?);
        Adapter::new(down, up, part.scale).map_err(Error::layer(&part.module.name))
    }

    /// Returns the widest dtype of the tensors.
    pub fn dtype(&self) -> FloatDtype {
        let dtypes = self.parts.iter().filter_map(|part| FloatDtype::of(self.file.tensor(&part.pair.down)?.dtype));
        dtypes.max_by_key(|dtype| dtype.width()).unwrap_or(FloatDtype::F32)
    }
}

/// Returns the folder of a PEFT adapter, which may be given by its file of weights.
pub fn folder_of(path: &Path) -> &Path {
    let is_weights = path.file_name().is_some_and(|name| name == peft::WEIGHTS);
    match path.parent().filter(|_| is_weights) {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}
