//! Directions that the samples leave open, filled with what truncated SVD of the weight would keep.

use dalr::solver::{PsdOperator, Solver, top_eigenpairs};
use faer::{Mat, MatMut, MatRef};

use crate::error::Result;

/// A symmetric matrix and its trace.
struct Dense {
    matrix: Mat<f64>,
    trace: f64,
}

impl PsdOperator<f64> for Dense {
    fn dimension(&self) -> usize {
        self.matrix.nrows()
    }

    fn apply(&self, block: MatRef<'_, f64>, mut result: MatMut<'_, f64>) -> dalr::Result<()> {
        result.copy_from(&self.matrix * block);
        Ok(())
    }

    fn trace(&self) -> dalr::Result<f64> {
        Ok(self.trace)
    }

    fn assemble(&self) -> dalr::Result<Mat<f64>> {
        Ok(self.matrix.clone())
    }
}

/// Extends orthonormal columns `U` to `count` by the leading left singular vectors of `(I − U Uᵀ) F`.
///
/// Where the data determine fewer directions than asked for, any others have the same error on them; this is where the solution
/// with a ridge goes as that goes to zero, and what the library does. Every rank computes the same.
pub fn complete(basis: MatRef<'_, f64>, factor: MatRef<'_, f64>, count: usize, threads: usize) -> Result<Mat<f64>> {
    let (dimension, have) = basis.shape();
    let mut completed = Mat::zeros(dimension, count);
    completed.as_mut().subcols_mut(0, have).copy_from(basis);
    if have == count {
        return Ok(completed);
    }
    let outside = |matrix: Mat<f64>| {
        let inside = basis.transpose() * &matrix;
        matrix - basis * inside
    };
    // Twice, so that rounding of a large part inside leaves nothing of it.
    let rest = outside(outside(factor.to_owned()));
    let mut matrix = &rest * rest.transpose();
    let sum = (0..dimension).map(|i| matrix[(i, i)]).sum::<f64>();
    // Lifting the complement by its own mean eigenvalue keeps it clear of `U`, which stays at zero.
    let shift = if sum > 0.0 { sum / dimension as f64 } else { 1.0 };
    matrix -= faer::Scale(shift) * (basis * basis.transpose());
    for i in 0..dimension {
        matrix[(i, i)] += shift;
        for j in 0..i {
            matrix[(j, i)] = matrix[(i, j)];
        }
    }
    let lifted = Dense { matrix, trace: sum + shift * (dimension - have) as f64 };
    let pairs = top_eigenpairs(&lifted, count - have, Solver::Auto, threads)?;
    completed.as_mut().subcols_mut(have, count - have).copy_from(outside(pairs.vectors().to_owned()));
    Ok(completed)
}
