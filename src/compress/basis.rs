//! An orthonormal basis of the outputs or inputs of an update.

use faer::{Mat, MatRef};

use crate::linalg::{self, Par};
use crate::{Result, Scalar};

/// An orthonormal basis of the span of some columns.
pub(crate) struct Basis {
    /// The columns, or the basis itself.
    columns: Mat<f64>,
    /// `R`, if the basis is `columns · R⁻¹`.
    triangle: Option<Mat<f64>>,
}

impl Basis {
    /// Returns the QR factorization of a tall matrix: a basis of its columns, and `R`.
    ///
    /// Columns in `f32` that are clearly independent are factorized by their Gram matrix, and the
    /// basis is not formed. This loses up to six digits of `f64`, which only `f32` can spare.
    pub(crate) fn new<T: Scalar>(columns: Mat<f64>, par: Par) -> Result<(Self, Mat<f64>)> {
        if T::EPSILON > f64::EPSILON
            && let Some(root) = linalg::root_of_gram(columns.as_ref(), par)?
        {
            let triangle = root.transpose().to_owned();
            return Ok((Self { columns, triangle: Some(triangle.clone()) }, triangle));
        }
        let (columns, triangle) = linalg::thin_qr(columns, par)?;
        Ok((Self { columns, triangle: None }, triangle))
    }

    /// Returns the vectors with these coordinates, one per column.
    pub(crate) fn combine<T: Scalar>(&self, coordinates: MatRef<'_, T>, par: Par) -> Result<Mat<f64>> {
        let mut coordinates = linalg::widened(coordinates, 1.0)?;
        if let Some(triangle) = &self.triangle {
            linalg::solve_upper_triangular(triangle.as_ref(), coordinates.as_mut(), par);
        }
        linalg::product(self.columns.as_ref(), coordinates.as_ref(), par)
    }
}
