//! Completing a basis when the data determine fewer directions than asked for.

use faer::{Mat, MatMut, MatRef};

use super::{PsdOperator, Solver, top_eigenpairs};
use crate::Result;
use crate::covariance::{even_exponent, power_of_two};
use crate::kernel;

/// `P F Fᵀ P + shift · P` with `P = I − U Uᵀ`: its leading eigenvectors are orthogonal to `U` and, among
/// those, the leading left singular vectors of `P F`; the eigenvalue of `U` itself is zero, below all others.
struct Complement {
    matrix: Mat<f64>,
    trace: f64,
    threads: usize,
}

impl PsdOperator<f64> for Complement {
    fn dimension(&self) -> usize {
        self.matrix.nrows()
    }

    fn apply(&self, block: MatRef<'_, f64>, result: MatMut<'_, f64>) -> Result<()> {
        kernel::set_product(result, self.matrix.as_ref(), block, self.threads);
        Ok(())
    }

    fn trace(&self) -> Result<f64> {
        Ok(self.trace)
    }

    fn assemble(&self) -> Result<Mat<f64>> {
        Ok(self.matrix.clone())
    }
}

/// Extends orthonormal columns to `count` by the leading left singular vectors of `(I − UUᵀ) F`.
///
/// That is where the solution of the anchored problem goes as its ridge goes to zero: directions that the
/// data leave open are filled with what plain truncated SVD would keep.
pub(crate) fn complete_basis(
    operation: &'static str,
    basis: MatRef<'_, f64>,
    factor: MatRef<'_, f64>,
    count: usize,
    threads: usize,
) -> Result<Mat<f64>> {
    let (dimension, have) = basis.shape();
    let mut completed = kernel::zeros(operation, dimension, count)?;
    completed.as_mut().subcols_mut(0, have).copy_from(basis);
    if have == count {
        return Ok(completed);
    }
    let rest = outside(operation, basis, factor, threads)?;
    let mut matrix = kernel::zeros(operation, dimension, dimension)?;
    kernel::add_symmetric_product(matrix.as_mut(), 1.0, rest.as_ref(), rest.transpose(), threads);
    // Lifting the complement by its own mean eigenvalue keeps it clear of U, which stays at zero.
    let trace = (0..dimension).map(|i| matrix[(i, i)]).sum::<f64>();
    let shift = if trace > 0.0 { trace / dimension as f64 } else { 1.0 };
    kernel::add_symmetric_product(matrix.as_mut(), -shift, basis, basis.transpose(), threads);
    for i in 0..dimension {
        matrix[(i, i)] += shift;
    }
    kernel::mirror_lower(&mut matrix);
    let complement = Complement { trace: trace + shift * (dimension - have) as f64, matrix, threads };
    let pairs = top_eigenpairs(&complement, count - have, Solver::Auto, threads)?;
    let mut added = completed.as_mut().subcols_mut(have, count - have);
    added.copy_from(pairs.vectors());
    // Orthogonal to U up to the solver's residual; after this, up to rounding.
    kernel::project_out(operation, added, basis, threads)?;
    Ok(completed)
}

/// `(I − UUᵀ) F` up to a factor, orthogonal to `U` by the measure of its own size; zero where nothing but rounding is left.
fn outside(
    operation: &'static str,
    basis: MatRef<'_, f64>,
    factor: MatRef<'_, f64>,
    threads: usize,
) -> Result<Mat<f64>> {
    let mut rest = unit_size(operation, factor)?;
    let mut size = kernel::squared_norm(rest.as_ref());
    // A projection that takes away little has left little of `U`.
    for _ in 0..8 {
        kernel::project_out(operation, rest.as_mut(), basis, threads)?;
        let left = kernel::squared_norm(rest.as_ref());
        if left >= 0.5 * size {
            return Ok(rest);
        }
        rest = unit_size(operation, rest.as_ref())?;
        size = kernel::squared_norm(rest.as_ref());
    }
    kernel::zeros(operation, factor.nrows(), factor.ncols())
}

/// A copy with entries near 1.
fn unit_size(operation: &'static str, matrix: MatRef<'_, f64>) -> Result<Mat<f64>> {
    kernel::widened(operation, matrix, power_of_two(-even_exponent(kernel::max_abs(matrix))))
}
