//! An operator whose dimension and noise are valid and constant.

use faer::{Mat, MatMut, MatRef};

use super::PsdOperator;
use crate::{Error, Result, Scalar};

/// A user's operator, with its dimension and noise read once and validated.
///
/// The solvers allocate buffers by the dimension, and compare eigenvalues with the noise. With a
/// noise of NaN, every comparison would pass.
pub(super) struct Checked<'a, T> {
    operator: &'a dyn PsdOperator<T>,
    dimension: usize,
    noise: f64,
}

impl<'a, T: Scalar> Checked<'a, T> {
    pub(super) fn new(operator: &'a dyn PsdOperator<T>) -> Result<Self> {
        let (dimension, noise) = (operator.dimension(), operator.noise());
        if dimension == 0 {
            return Err(Error::empty("the operator"));
        }
        if !(noise >= 0.0 && noise.is_finite()) {
            return Err(Error::invalid_operator(format!("a noise of {noise}")));
        }
        Ok(Self { operator, dimension, noise })
    }
}

impl<T: Scalar> PsdOperator<T> for Checked<'_, T> {
    fn dimension(&self) -> usize {
        self.dimension
    }

    fn apply(&self, block: MatRef<'_, T>, result: MatMut<'_, T>) -> Result<()> {
        self.operator.apply(block, result)
    }

    fn trace(&self) -> Result<f64> {
        self.operator.trace()
    }

    fn noise(&self) -> f64 {
        self.noise
    }

    fn macs(&self) -> f64 {
        self.operator.macs()
    }

    fn assembly_macs(&self) -> f64 {
        self.operator.assembly_macs()
    }

    fn assemble(&self) -> Result<Mat<T>> {
        self.operator.assemble()
    }
}
