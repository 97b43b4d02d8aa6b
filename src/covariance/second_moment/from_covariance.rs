//! The second moment of samples in covariance form.

use faer::{Mat, MatRef};

use super::{Scale, SecondMoment};
use crate::covariance::batch::Centre;
use crate::covariance::covariance_form::CovarianceForm;
use crate::covariance::scatter::Scatter;
use crate::linalg::{self, Par};
use crate::{Result, Scalar};

/// The rounding of a sum of products in `f32`, in units of its `ε`. It is a random walk of about a
/// thousand steps, and averages out over the pieces.
///
/// This is not a bound: equal products, for example of inputs with two values, all round to one
/// side. The number only determines which eigenvalues count as noise.
const NATIVE_ROUNDING: f64 = 16.0;

/// [`SecondMoment::rounding`] for sums of products in this precision.
pub(super) fn native_rounding(precision: f64) -> f64 {
    if precision > f64::EPSILON { NATIVE_ROUNDING * precision } else { 0.0 }
}

/// `S = factor · scatter + rest · restᵀ`.
pub(super) struct CovarianceMoment<'a> {
    scatter: &'a Scatter,
    factor: f64,
    rest: Mat<f64>,
    scale: Scale,
}

impl<'a> CovarianceMoment<'a> {
    /// Returns `S` of samples of this total weight, origin and mean, about `centre`.
    pub(super) fn new<T: Scalar>(
        form: &'a CovarianceForm<T>,
        centre: &Centre<'_>,
        weight: f64,
        (origin, mean): (&[f64], &[f64]),
    ) -> Result<Self> {
        let mut rest = form.rest(origin, centre)?;
        let mut squares: Vec<f64> = form.scatter.diagonal().map(|sum| sum / weight).collect();
        for column in rest.col_iter() {
            squares.iter_mut().zip(column.iter()).for_each(|(square, x)| *square += x * x / weight);
        }
        let scale = Scale::new(squares, mean);
        rest *= faer::Scale(scale.root_factor(weight));
        Ok(Self { scatter: &form.scatter, factor: scale.factor(weight), rest, scale })
    }
}

impl<T: Scalar> SecondMoment<T> for CovarianceMoment<'_> {
    fn scale(&self) -> &Scale {
        &self.scale
    }

    fn multiply(&self, right: MatRef<'_, f64>, par: Par) -> Result<Mat<f64>> {
        let mut result = self.scatter.multiply(right, self.factor, par)?;
        let outputs = linalg::product(self.rest.transpose(), right, par)?;
        linalg::add_product(result.as_mut(), 1.0, self.rest.as_ref(), outputs.as_ref(), par);
        Ok(result)
    }

    fn macs(&self) -> f64 {
        linalg::macs(self.rest.nrows(), self.rest.nrows(), 1)
    }

    fn rounding(&self) -> f64 {
        native_rounding(self.scatter.precision)
    }

    fn scaled(&self, par: Par) -> Result<Mat<f64>> {
        let mut dense = self.scatter.dense(self.factor)?;
        linalg::add_symmetric_product(dense.as_mut(), 1.0, self.rest.as_ref(), self.rest.transpose(), par);
        linalg::mirror_lower(&mut dense);
        Ok(dense)
    }

    /// Computes `‖Σ + C Cᵀ‖² = ‖Σ‖² + 2 tr CᵀΣC + ‖CᵀC‖²` without forming `Σ + C Cᵀ`.
    fn trace_of_square(&self, par: Par) -> Result<f64> {
        let rest = self.rest.as_ref();
        let applied = self.scatter.multiply(rest, self.factor, par)?;
        let mut cross = vec![0.0; rest.ncols()];
        linalg::add_row_products(&mut cross, rest.transpose(), applied.transpose());
        let gram = linalg::product(rest.transpose(), rest, par)?;
        let cross = 2.0 * cross.iter().sum::<f64>();
        Ok(self.scatter.squared_norm(self.factor) + cross + linalg::squared_norm(gram.as_ref()))
    }
}
