//! A module of an adapter: its name, the axes of its weight, and its update.

use dalr::Scalar;
use dalr::faer::{Mat, MatRef};
use dalr::interop::safetensors::{FloatDtype, ModelFile};

use crate::error::Result;
use crate::layer::Layer;

/// A module that an adapter changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    /// Its name in the adapter that is written.
    pub name: String,
    /// The axes of its weight: out, in, and those of a convolution's kernel.
    pub shape: Vec<usize>,
    pub is_embedding: bool,
}

impl Module {
    pub fn out_features(&self) -> usize {
        self.shape[0]
    }

    /// Returns the columns of the update: the inputs of one output, those of a whole kernel.
    pub fn in_features(&self) -> usize {
        self.shape[1..].iter().product()
    }

    pub fn full_rank(&self) -> usize {
        self.out_features().min(self.in_features())
    }

    /// Returns the axes of `down` and of `up`. A convolution becomes one with its kernel to `rank`
    /// channels, and a pointwise one.
    pub fn factor_shapes(&self, rank: usize) -> [Vec<usize>; 2] {
        let mut down = self.shape.clone();
        down[0] = rank;
        let mut up = vec![1; self.shape.len()];
        (up[0], up[1]) = (self.shape[0], rank);
        [down, up]
    }

    /// Returns the module as a layer that reads this input, for statistics and progress.
    pub fn layer(&self, input: String, dtype: FloatDtype) -> Layer {
        let (out_features, in_features) = (self.out_features(), self.in_features());
        Layer { name: self.name.clone(), out_features, in_features, dtype, has_bias: false, input }
    }
}

/// Reads a tensor as a matrix whose columns are all axes but the first.
pub fn flat<T: Scalar>(file: &ModelFile, name: &str) -> Result<Mat<T>> {
    match file.tensor(name).map(|tensor| &tensor.shape[..]) {
        Some(&[rows, _, _, ..]) if rows > 0 => {
            let numbers = file.vector::<T>(name)?;
            let numbers: Vec<T> = numbers.iter().copied().collect();
            Ok(MatRef::from_row_major_slice(&numbers, rows, numbers.len() / rows).to_owned())
        }
        _ => Ok(file.matrix(name)?),
    }
}
