//! A layer in the place of an original one, of any kind.

use faer::{Mat, MatRef};

use crate::{Linear, LowRankLinear, Result, Scalar};

/// A layer that replaces an original one, from
/// [`Network::compress_sequentially`](super::Network::compress_sequentially).
#[derive(Clone, Debug, PartialEq)]
pub enum CompressedLayer<T> {
    /// Two factors.
    LowRank(LowRankLinear<T>),
    /// An ordinary layer with fewer outputs or inputs, before or behind hidden units of which some
    /// are kept.
    Smaller(Linear<T>),
}

impl<T: Scalar> CompressedLayer<T> {
    /// Returns the outputs, samples × out, of inputs, samples × in.
    ///
    /// # Errors
    ///
    /// As [`Linear::forward`].
    pub fn forward(&self, inputs: MatRef<'_, T>) -> Result<Mat<T>> {
        match self {
            Self::LowRank(layer) => layer.forward(inputs),
            Self::Smaller(layer) => layer.forward(inputs),
        }
    }

    /// Returns the rank of the factors; `None` for an ordinary layer.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Self::LowRank(layer) => Some(layer.rank()),
            Self::Smaller(_) => None,
        }
    }

    /// Returns the number of outputs.
    pub fn out_features(&self) -> usize {
        match self {
            Self::LowRank(layer) => layer.out_features(),
            Self::Smaller(layer) => layer.out_features(),
        }
    }

    /// Returns the number of inputs.
    pub fn in_features(&self) -> usize {
        match self {
            Self::LowRank(layer) => layer.in_features(),
            Self::Smaller(layer) => layer.in_features(),
        }
    }

    /// Returns the number of parameters, the bias included.
    pub fn parameters(&self) -> usize {
        match self {
            Self::LowRank(layer) => layer.parameters(),
            Self::Smaller(layer) => layer.parameters(),
        }
    }
}
