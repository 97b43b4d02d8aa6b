//! Conversions from one kind of layer to another.

use crate::{Compressed, Error, Linear, LowRankLinear, PrunedLinear, Result, Scalar};

/// The layer without its report, as [`Compressed::into_layer`].
impl<T: Scalar> From<Compressed<T>> for LowRankLinear<T> {
    fn from(compressed: Compressed<T>) -> Self {
        compressed.into_layer()
    }
}

/// The dense layer that does the same, as [`LowRankLinear::to_linear`].
impl<T: Scalar> TryFrom<&LowRankLinear<T>> for Linear<T> {
    type Error = Error;

    fn try_from(layer: &LowRankLinear<T>) -> Result<Self> {
        layer.to_linear()
    }
}

/// The dense layer that does the same, as [`PrunedLinear::to_linear`].
impl<T: Scalar> TryFrom<&PrunedLinear<T>> for Linear<T> {
    type Error = Error;

    fn try_from(layer: &PrunedLinear<T>) -> Result<Self> {
        layer.to_linear()
    }
}
