//! Completes a basis if the data vary in fewer directions than requested.

use faer::{Mat, MatMut, MatRef};

use super::{PsdOperator, Solver};
use crate::Result;
use crate::linalg::{self, Par, even_exponent, power_of_two};

/// `P F Fᵀ P + P` with `P = I − U Uᵀ`.
///
/// Its leading eigenvectors are the leading left singular vectors of `P F`, orthogonal to `U`. The
/// eigenvalue of `U` is zero, below all others.
struct Complement {
    matrix: Mat<f64>,
    par: Par,
}

impl PsdOperator<f64> for Complement {
    fn dimension(&self) -> usize {
        self.matrix.nrows()
    }

    fn apply(&self, block: MatRef<'_, f64>, result: MatMut<'_, f64>) -> Result<()> {
        linalg::set_product(result, self.matrix.as_ref(), block, self.par);
        Ok(())
    }

    fn trace(&self) -> Result<f64> {
        Ok(self.matrix.diagonal().column_vector().sum())
    }

    fn assemble(&self) -> Result<Mat<f64>> {
        Ok(self.matrix.clone())
    }
}

/// Extends orthonormal columns `U` to `count` by the leading left singular vectors of `(I − UUᵀ)
/// F`.
///
/// This is the limit of the solution with a relative ridge as the ridge goes to zero. In null
/// directions of the data, the result is that of truncated SVD.
pub(crate) fn complete_basis(
    basis: MatRef<'_, f64>,
    factor: MatRef<'_, f64>,
    count: usize,
    par: Par,
) -> Result<Mat<f64>> {
    let (dimension, have) = basis.shape();
    let mut completed = linalg::zeros(dimension, count)?;
    completed.as_mut().subcols_mut(0, have).copy_from(basis);
    if have == count {
        return Ok(completed);
    }
    let rest = outside(basis, factor, par)?;
    let mut matrix = linalg::zeros(dimension, dimension)?;
    linalg::add_symmetric_product(matrix.as_mut(), 1.0, rest.as_ref(), rest.transpose(), par);
    // The term `P` has the size of the entries of `P F`, and separates the complement from `U`.
    linalg::add_symmetric_product(matrix.as_mut(), -1.0, basis, basis.transpose(), par);
    for i in 0..dimension {
        matrix[(i, i)] += 1.0;
    }
    linalg::mirror_lower(&mut matrix);
    let complement = Complement { matrix, par };
    let pairs = super::solve(&complement, count - have, Solver::Auto, par)?;
    let mut added = completed.as_mut().subcols_mut(have, count - have);
    added.copy_from(&pairs.vectors);
    // Before this, the new columns are orthogonal to `U` only up to the solver's residual.
    linalg::project_out(added, basis, par)?;
    Ok(completed)
}

/// Returns a multiple of `(I − UUᵀ) F`, orthogonal to `U` to rounding relative to its own size.
/// Returns zero if only rounding is left.
fn outside(basis: MatRef<'_, f64>, factor: MatRef<'_, f64>, par: Par) -> Result<Mat<f64>> {
    let mut rest = unit_size(factor)?;
    let mut size = linalg::squared_norm(rest.as_ref());
    // A projection that removes little of the matrix also leaves little of `U` in it.
    for _ in 0..8 {
        linalg::project_out(rest.as_mut(), basis, par)?;
        let left = linalg::squared_norm(rest.as_ref());
        if left >= 0.5 * size {
            return Ok(rest);
        }
        rest = unit_size(rest.as_ref())?;
        size = linalg::squared_norm(rest.as_ref());
    }
    linalg::zeros(factor.nrows(), factor.ncols())
}

/// Returns a copy with entries near 1.
fn unit_size(matrix: MatRef<'_, f64>) -> Result<Mat<f64>> {
    linalg::widened(matrix, power_of_two(-even_exponent(linalg::max_abs(matrix))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_a_factor_is_orthogonal_relative_to_its_own_size() -> Result<()> {
        // A fraction of 0.004 of the factor lies outside of the basis. After one projection, errors
        // relative to this rest are hundreds of `ε`.
        let entry = |i: usize, j: usize| ((i * 31 + j * 17 + i * j) % 23) as f64 / 11.0 - 1.0;
        let basis = linalg::thin_qr(Mat::from_fn(50, 1, |i, _| entry(i, 5)), Par::Seq)?.0;
        let inside = Mat::from_fn(1, 20, |_, j| 7.0 + entry(3, j));
        let factor = &basis * inside + Mat::from_fn(50, 20, |i, j| 4e-3 * entry(i, j));
        let rest = outside(basis.as_ref(), factor.as_ref(), Par::Seq)?;
        let inside = (basis.transpose() * &rest).norm_l2() / rest.norm_l2();
        assert!(rest.norm_l2() > 0.0 && inside < 20.0 * f64::EPSILON, "{inside:e}");
        Ok(())
    }
}
