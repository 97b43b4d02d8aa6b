//! A second moment that is formed as a matrix.

use faer::{Mat, MatRef};

use super::from_covariance::native_rounding;
use super::{Scale, SecondMoment};
use crate::linalg::{self, Par};
use crate::{Result, Scalar};

pub(super) struct DenseMoment {
    matrix: Mat<f64>,
    rounding: f64,
    scale: Scale,
}

impl DenseMoment {
    /// From sums over samples of this total weight and mean, and the `ε` of their products.
    pub(super) fn new(mut sums: Mat<f64>, weight: f64, mean: &[f64], precision: f64) -> Self {
        let squares = sums.diagonal().column_vector().iter().map(|sum| sum / weight).collect();
        let scale = Scale::new(squares, mean);
        sums *= faer::Scale(scale.factor(weight));
        Self { matrix: sums, rounding: native_rounding(precision), scale }
    }
}

impl<T: Scalar> SecondMoment<T> for DenseMoment {
    fn scale(&self) -> &Scale {
        &self.scale
    }

    fn multiply(&self, right: MatRef<'_, f64>, par: Par) -> Result<Mat<f64>> {
        linalg::product(self.matrix.as_ref(), right, par)
    }

    fn macs(&self) -> f64 {
        linalg::macs(self.matrix.nrows(), self.matrix.nrows(), 1)
    }

    fn rounding(&self) -> f64 {
        self.rounding
    }

    fn native(&self, _par: Par) -> Result<Mat<T>> {
        linalg::converted(self.matrix.as_ref(), 1.0)
    }

    fn scaled(&self, _par: Par) -> Result<Mat<f64>> {
        linalg::widened(self.matrix.as_ref(), 1.0)
    }
}
