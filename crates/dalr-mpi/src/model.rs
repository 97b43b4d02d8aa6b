//! The layers to compress: those of a model file, or generated ones.

use std::path::Path;

use dalr::interop::safetensors::{ModelFile, TensorInfo};
use dalr::{Linear, Rank};
use faer::{Col, Mat};

use crate::error::{Failure, Result};
use crate::random::uniform;

/// A layer's name and size.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// The layer's name in the model: its weight is `NAME.weight`, its inputs are `NAME.input`.
    pub name: String,
    /// Number of outputs.
    pub outputs: usize,
    /// Number of inputs.
    pub inputs: usize,
}

impl Shape {
    /// Returns the largest rank that keeps at most this fraction of the weight's parameters; 0 if
    /// there is none.
    pub fn rank(&self, keep: f64) -> usize {
        Rank::within(keep, (self.outputs, self.inputs))
    }
}

/// The source of the weights.
pub enum Model {
    /// A safetensors file, or the index of several.
    File(ModelFile),
    /// Random numbers from a seed.
    Generated {
        /// Sizes of the layers.
        shapes: Vec<Shape>,
        /// Determines the numbers.
        seed: u64,
    },
}

impl Model {
    /// Opens a model file.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self::File(ModelFile::open(path)?))
    }

    /// Returns all layers of the model: its weights with two axes.
    pub fn shapes(&self) -> Vec<Shape> {
        match self {
            Self::Generated { shapes, .. } => shapes.clone(),
            Self::File(file) => {
                let weights = file.tensors().filter_map(|(name, tensor)| Some((name.strip_suffix(".weight")?, tensor)));
                let shape = |(name, tensor): (&str, &TensorInfo)| match tensor.shape[..] {
                    [outputs, inputs] => Some(Shape { name: name.into(), outputs, inputs }),
                    _ => None,
                };
                weights.filter_map(shape).collect()
            }
        }
    }

    /// Distinguishes this model from others, its numbers included. Reads the whole file.
    pub fn identity(&self) -> Result<String> {
        match self {
            Self::File(file) => {
                let mut sum = crc32fast::Hasher::new();
                sum.update(&file.header_checksum().to_le_bytes());
                for (name, _) in file.tensors() {
                    sum.update(&file.checksum(name)?.to_le_bytes());
                }
                Ok(format!("checksum {:08x}", sum.finalize()))
            }
            Self::Generated { shapes, seed } => {
                let shapes: Vec<String> = shapes.iter().map(|s| format!("{}x{}", s.outputs, s.inputs)).collect();
                Ok(format!("{} from seed {seed}", shapes.join(",")))
            }
        }
    }

    /// Reads or generates one layer, with its bias if it has one.
    pub fn layer(&self, shape: &Shape) -> Result<Linear<f32>> {
        match self {
            Self::File(file) => {
                let bias = format!("{}.bias", shape.name);
                let bias = file.tensor(&bias).map(|_| file.vector(&bias)).transpose()?;
                Linear::new(file.matrix(&format!("{}.weight", shape.name))?, bias)
                    .map_err(|error| Failure::file(file.path(), format!("`{}`: {error}", shape.name)))
            }
            Self::Generated { shapes, seed } => {
                // Layers of the same size must differ.
                let number = shapes.iter().position(|other| other == shape).unwrap_or(0) as u64;
                let key = seed.wrapping_add(0x1000 * (number + 1));
                let size = 1.0 / (shape.inputs as f32).sqrt();
                let weight = Mat::from_fn(shape.outputs, shape.inputs, |i, j| {
                    size * uniform(key, (i * shape.inputs + j) as u64)
                });
                Ok(Linear::new(weight, Some(Col::from_fn(shape.outputs, |i| uniform(key + 1, i as u64))))?)
            }
        }
    }
}
