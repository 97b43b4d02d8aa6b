//! The layers to be compressed: those of a model file, or made up.

use std::path::Path;

use dalr::Linear;
use faer::{Col, Mat};

use crate::error::{Failure, Result};
use crate::shard::uniform;
use crate::tensors::Tensors;

/// A layer's name and size.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// The layer's name in the model: its weight is `NAME.weight`, its inputs are `NAME.input`.
    pub name: String,
    /// Outputs.
    pub outputs: usize,
    /// Inputs.
    pub inputs: usize,
}

/// Where weights come from.
pub enum Model {
    /// A safetensors file.
    File(Tensors),
    /// Random numbers from a seed.
    Generated {
        /// Sizes of the layers.
        shapes: Vec<Shape>,
        /// What decides the numbers.
        seed: u64,
    },
}

impl Model {
    /// A model file.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self::File(Tensors::open(path)?))
    }

    /// All layers that a model has: its weights with two axes.
    pub fn shapes(&self) -> Vec<Shape> {
        let tensors = match self {
            Self::Generated { shapes, .. } => return shapes.clone(),
            Self::File(tensors) => tensors,
        };
        let shape = |tensor: String| {
            let name = tensor.strip_suffix(".weight")?;
            match tensors.info(&tensor)?.shape[..] {
                [outputs, inputs] => Some(Shape { name: name.into(), outputs, inputs }),
                _ => None,
            }
        };
        tensors.names().into_iter().filter_map(shape).collect()
    }

    /// What tells this model from others, its numbers included. Reads the whole file.
    pub fn identity(&self) -> Result<String> {
        match self {
            Self::File(tensors) => Ok(format!("checksum {:08x}", tensors.checksum()?)),
            Self::Generated { shapes, seed } => {
                let shapes: Vec<String> = shapes.iter().map(|s| format!("{}x{}", s.outputs, s.inputs)).collect();
                Ok(format!("{} from seed {seed}", shapes.join(",")))
            }
        }
    }

    /// One layer, with its bias if it has one. A `number` of its own tells layers that are made up apart.
    pub fn layer(&self, shape: &Shape) -> Result<Linear<f32>> {
        let tensors = match self {
            Self::File(tensors) => tensors,
            Self::Generated { shapes, seed } => {
                let number = shapes.iter().position(|other| other == shape).unwrap_or(0) as u64;
                let key = seed.wrapping_add(0x1000 * (number + 1));
                let size = 1.0 / (shape.inputs as f32).sqrt();
                let weight = Mat::from_fn(shape.outputs, shape.inputs, |i, j| {
                    size * uniform(key, (i * shape.inputs + j) as u64)
                });
                let bias = Col::from_fn(shape.outputs, |i| uniform(key + 1, i as u64));
                return Ok(Linear::new(weight, Some(bias))?);
            }
        };
        let weight = tensors.matrix(&format!("{}.weight", shape.name))?;
        let bias = format!("{}.bias", shape.name);
        let bias = if tensors.info(&bias).is_some() { Some(tensors.vector(&bias)?) } else { None };
        Linear::new(weight, bias).map_err(|error| Failure::file(tensors.path(), format!("`{}`: {error}", shape.name)))
    }
}
