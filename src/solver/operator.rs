//! The operator that the solvers diagonalise.

use faer::{Mat, MatMut, MatRef};

use crate::error::during;
use crate::linalg;
use crate::{Result, Scalar};

/// A symmetric positive semidefinite operator, defined by its products with blocks of vectors.
///
/// ```
/// use dalr::solver::{PsdOperator, Solver, top_eigenpairs};
/// use faer::{MatMut, MatRef};
///
/// /// diag(1, 2, 3)
/// struct Diagonal;
///
/// impl PsdOperator<f64> for Diagonal {
///     fn dimension(&self) -> usize {
///         3
///     }
///     fn apply(&self, block: MatRef<'_, f64>, mut result: MatMut<'_, f64>) -> dalr::Result<()> {
///         for row in 0..3 {
///             for column in 0..block.ncols() {
///                 result[(row, column)] = (row + 1) as f64 * block[(row, column)];
///             }
///         }
///         Ok(())
///     }
///     fn trace(&self) -> dalr::Result<f64> {
///         Ok(6.0)
///     }
/// }
///
/// # fn main() -> dalr::Result<()> {
/// let pairs = top_eigenpairs(&Diagonal, 2, Solver::Auto, 1)?;
/// assert!((pairs.values[0] - 3.0).abs() < 1e-12 && (pairs.values[1] - 2.0).abs() < 1e-12);
/// assert!((pairs.vectors[(2, 0)] - 1.0).abs() < 1e-12);
///
/// // `Eigenpairs` also record how they were found.
/// assert!(pairs.solver.starts_with("dense") && !pairs.fallback);
/// assert!(pairs.residual < 1e-12 && pairs.numerical_rank() == 2);
/// # Ok(())
/// # }
/// ```
pub trait PsdOperator<T: Scalar> {
    /// Returns the number of rows and columns.
    fn dimension(&self) -> usize;

    /// Writes the operator times `block` into `result`; both are dimension × any number of vectors.
    ///
    /// # Errors
    ///
    /// Any error that prevents the product. The solver returns it to its caller.
    fn apply(&self, block: MatRef<'_, T>, result: MatMut<'_, T>) -> Result<()>;

    /// Returns the sum of the eigenvalues.
    ///
    /// # Errors
    ///
    /// As for [`apply`](Self::apply).
    fn trace(&self) -> Result<f64>;

    /// Returns the size of the rounding noise in [`apply`](Self::apply), as an eigenvalue.
    ///
    /// Eigenvalues up to this size carry no information and may be negative. The solver always adds
    /// rounding relative to the largest eigenvalue, so 0, the default, suits most operators. Return
    /// more if large terms cancel.
    fn noise(&self) -> f64 {
        0.0
    }

    /// Returns the cost of applying the operator to one vector, in multiply–adds (MACs); the choice
    /// of an algorithm depends on it. The default is the cost of a matrix.
    fn macs(&self) -> f64 {
        (self.dimension() as f64).powi(2)
    }

    /// Returns the cost of [`assemble`](Self::assemble) in MACs. The default is the cost of
    /// applying the operator to the identity.
    fn assembly_macs(&self) -> f64 {
        self.dimension() as f64 * self.macs()
    }

    /// Returns the operator as a matrix.
    ///
    /// The default multiplies the operator by the identity. Override it if there is a cheaper way.
    ///
    /// # Errors
    ///
    /// [`Error::Memory`](crate::Error::Memory) if the matrix does not fit, and as for
    /// [`apply`](Self::apply).
    fn assemble(&self) -> Result<Mat<T>> {
        during("PsdOperator::assemble", || {
            let dimension = self.dimension();
            let mut matrix = linalg::zeros::<T>(dimension, dimension)?;
            let width = dimension.min(256);
            for start in (0..dimension).step_by(width.max(1)) {
                let count = width.min(dimension - start);
                let mut block = linalg::zeros(dimension, count)?;
                for column in 0..count {
                    block[(start + column, column)] = T::from_f64(1.0);
                }
                self.apply(block.as_ref(), matrix.as_mut().subcols_mut(start, count))?;
            }
            Ok(matrix)
        })
    }
}
