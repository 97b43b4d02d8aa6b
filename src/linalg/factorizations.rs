//! Orthogonal, symmetric and triangular factorizations.

use faer::dyn_stack::MemStack;
use faer::linalg::cholesky::llt;
use faer::linalg::qr::col_pivoting::factor as pivoted_qr;
use faer::linalg::svd::{self, ComputeSvdVectors};
use faer::linalg::{triangular_inverse, triangular_solve};
use faer::{Mat, MatMut, MatRef, Spec};

use super::kernels::workspace;
use super::memory::{rounded, widened, zeros};
use super::norms::first_non_finite;
use super::products::{BlockStructure, gram, product, triangular_product};
use super::threads::{Par, macs, threads_for};
use crate::{Result, Scalar};

/// Returns `Q` and `R` of the thin QR factorization of a tall matrix.
pub(crate) fn thin_qr<T: Scalar>(matrix: Mat<T>, par: Par) -> Result<(Mat<T>, Mat<T>)> {
    let par = threads_for(par, macs(matrix.nrows(), matrix.ncols(), matrix.ncols()));
    T::thin_qr(matrix, par)
}

/// Eigenvalues (or singular values) and their vectors, one per column.
pub(crate) type Pairs<T> = (Vec<f64>, Mat<T>);

/// Returns the eigenvalues, ascending, and the eigenvectors of a symmetric matrix. The function
/// reads the lower triangle. The algorithm is divide and conquer, with implicit QR for small
/// matrices.
///
/// `None` if the iteration does not converge or the matrix is not finite. On a NaN, faer's
/// iteration would run for about `30 d²` rounds.
pub(crate) fn symmetric_eigen<T: Scalar>(matrix: MatRef<'_, T>, par: Par) -> Result<Option<Pairs<T>>> {
    let mut vectors = zeros(matrix.nrows(), matrix.nrows())?;
    let values = eigen(matrix, Some(vectors.as_mut()), par)?;
    Ok(values.map(|values| (values, vectors)))
}

/// Returns the eigenvalues of [`symmetric_eigen`], at a fraction of its cost.
pub(crate) fn symmetric_eigenvalues<T: Scalar>(matrix: MatRef<'_, T>, par: Par) -> Result<Option<Vec<f64>>> {
    eigen(matrix, None, par)
}

fn eigen<T: Scalar>(matrix: MatRef<'_, T>, vectors: Option<MatMut<'_, T>>, par: Par) -> Result<Option<Vec<f64>>> {
    if first_non_finite(matrix).is_some() {
        return Ok(None);
    }
    let dimension = matrix.nrows();
    let par = threads_for(par, macs(dimension, dimension, dimension));
    let values = T::symmetric_eigen(matrix, vectors, par)?;
    Ok(values.map(|values| values.into_iter().map(T::to_f64).collect()))
}

/// Returns the singular values, descending, and left singular vectors of a square matrix.
///
/// `None` if the iteration does not converge or the matrix is not finite.
pub(crate) fn left_singular(matrix: MatRef<'_, f64>, par: Par) -> Result<Option<Pairs<f64>>> {
    if first_non_finite(matrix).is_some() {
        return Ok(None);
    }
    let size = matrix.nrows();
    let par = threads_for(par, macs(size, size, size));
    let params = Spec::default();
    let (left, right) = (ComputeSvdVectors::Thin, ComputeSvdVectors::No);
    let mut buffer = workspace(svd::svd_scratch::<f64>(size, size, left, right, par, params))?;
    let mut values = faer::diag::Diag::<f64>::zeros(size);
    let mut vectors = zeros(size, size)?;
    let stack = MemStack::new(&mut buffer);
    let left = Some(vectors.as_mut());
    let converged = svd::svd(matrix, values.as_mut(), left, None, par, stack, params);
    let values = values.column_vector().iter().copied().collect();
    Ok(converged.is_ok().then_some((values, vectors)))
}

/// Returns the lower Cholesky factor of a symmetric matrix. The function reads the lower triangle.
///
/// The result's strictly upper triangle is undefined. `None` if the matrix is not numerically
/// positive definite.
pub(crate) fn cholesky(mut matrix: Mat<f64>, par: Par) -> Result<Option<Mat<f64>>> {
    let size = matrix.nrows();
    let par = threads_for(par, macs(size, size, size));
    let params = Spec::default();
    let mut buffer = workspace(llt::factor::cholesky_in_place_scratch::<f64>(size, par, params))?;
    let (stack, no_shift) = (MemStack::new(&mut buffer), Default::default());
    let factored = llt::factor::cholesky_in_place(matrix.as_mut(), no_shift, par, stack, params);
    Ok(factored.is_ok().then_some(matrix))
}

/// Replaces `right` by `triangle⁻¹ · right` for an upper triangular matrix.
pub(crate) fn solve_upper_triangular(triangle: MatRef<'_, f64>, right: MatMut<'_, f64>, par: Par) {
    let par = threads_for(par, macs(triangle.nrows(), triangle.nrows(), right.ncols()) / 2.0);
    triangular_solve::solve_upper_triangular_in_place(triangle, right, par);
}

/// Replaces `right` by `triangle⁻¹ · right` for a lower triangular matrix.
pub(crate) fn solve_lower_triangular(triangle: MatRef<'_, f64>, right: MatMut<'_, f64>, par: Par) {
    let par = threads_for(par, macs(triangle.nrows(), triangle.nrows(), right.ncols()) / 2.0);
    triangular_solve::solve_lower_triangular_in_place(triangle, right, par);
}

/// Returns `matrix⁻¹ · right` by Cholesky. The function reads the lower triangle of `matrix`.
///
/// `None` if the matrix is not numerically positive definite.
pub(crate) fn cholesky_solve(matrix: Mat<f64>, mut right: Mat<f64>, par: Par) -> Result<Option<Mat<f64>>> {
    let Some(root) = cholesky(matrix, par)? else { return Ok(None) };
    let par = threads_for(par, macs(root.nrows(), root.nrows(), right.ncols()));
    triangular_solve::solve_lower_triangular_in_place(root.as_ref(), right.as_mut(), par);
    triangular_solve::solve_upper_triangular_in_place(root.transpose(), right.as_mut(), par);
    Ok(first_non_finite(right.as_ref()).is_none().then_some(right))
}

/// `matrix⁻¹ · right` for a square matrix, by QR.
///
/// `None` if the matrix is singular or the result overflows.
pub(crate) fn solve(matrix: Mat<f64>, right: MatRef<'_, f64>, par: Par) -> Result<Option<Mat<f64>>> {
    let (basis, triangle) = thin_qr(matrix, par)?;
    let mut solution = product(basis.transpose(), right, par)?;
    let par = threads_for(par, macs(triangle.nrows(), triangle.nrows(), right.ncols()));
    triangular_solve::solve_upper_triangular_in_place(triangle.as_ref(), solution.as_mut(), par);
    Ok(first_non_finite(solution.as_ref()).is_none().then_some(solution))
}

/// The indices of the columns that QR with column pivoting takes first, in its order: as many as a
/// wide matrix has rows.
pub(crate) fn pivot_columns(mut matrix: Mat<f64>, par: Par) -> Result<Vec<usize>> {
    let (rows, columns) = matrix.shape();
    let par = threads_for(par, macs(rows, rows, columns));
    let params = Spec::default();
    let mut buffer = workspace(pivoted_qr::qr_in_place_scratch::<usize, f64>(rows, columns, 1, par, params))?;
    let mut reflectors = zeros(1, rows)?;
    let (mut order, mut inverse) = (vec![0; columns], vec![0; columns]);
    let stack = MemStack::new(&mut buffer);
    pivoted_qr::qr_in_place(matrix.as_mut(), reflectors.as_mut(), &mut order, &mut inverse, par, stack, params);
    order.truncate(rows);
    Ok(order)
}

/// Returns an orthonormal basis of the span of some columns, nested: the first `j` basis vectors
/// span the first `j` columns. Also returns the distance of each column from the span of those
/// before it.
///
/// Columns that are clearly independent are orthonormalized by the Cholesky factor of their Gram
/// matrix in `f64`, which loses some digits of orthogonality; others by QR.
pub(crate) fn orthonormal_columns<T: Scalar>(columns: Mat<T>, par: Par) -> Result<(Mat<T>, Vec<f64>)> {
    let count = columns.ncols();
    let wide = widened(columns.as_ref(), 1.0)?;
    if let Some(root) = root_of_gram(wide.as_ref(), par)? {
        let basis = times_inverse(wide.as_ref(), root.as_ref(), par)?;
        let distances = (0..count).map(|i| root[(i, i)]).collect();
        return Ok((rounded("an orthonormal basis", basis.as_ref())?, distances));
    }
    let (basis, triangle) = thin_qr(columns, par)?;
    Ok((basis, (0..count).map(|i| triangle[(i, i)].to_f64().abs()).collect()))
}

/// Returns the Cholesky factor `L` of the Gram matrix of some columns, zero above the diagonal. `Lᵀ`
/// is the `R` of their QR factorization.
///
/// `None` unless the columns are clearly independent.
pub(crate) fn root_of_gram(columns: MatRef<'_, f64>, par: Par) -> Result<Option<Mat<f64>>> {
    /// The smallest sine of the angle between a column and the span of those before it, at which
    /// the column is clearly independent.
    const CLEARLY: f64 = 1e-3;
    /// Squares below this one lose digits by underflow.
    const LEAST_SQUARE: f64 = f64::MIN_POSITIVE / f64::EPSILON;
    let count = columns.ncols();
    let mut gram = gram(columns, par)?;
    if !(0..count).all(|i| (LEAST_SQUARE..f64::INFINITY).contains(&gram[(i, i)])) {
        return Ok(None);
    }
    let lengths: Vec<f64> = (0..count).map(|i| gram[(i, i)].sqrt()).collect();
    // Unit columns make the diagonal of the factor sines.
    for (j, by) in lengths.iter().enumerate() {
        let below = gram.as_mut().col_mut(j).iter_mut().zip(&lengths);
        below.for_each(|(entry, length)| *entry /= length * by);
    }
    let root = cholesky(gram, par)?.filter(|root| (0..count).all(|i| root[(i, i)] > CLEARLY));
    Ok(root.map(|mut root| {
        for (j, column) in root.as_mut().col_iter_mut().enumerate() {
            let entries = column.iter_mut().zip(&lengths).enumerate();
            entries.for_each(|(i, (entry, length))| *entry = if i < j { 0.0 } else { *entry * length });
        }
        root
    }))
}

/// Returns `columns · R⁻¹` for a well-conditioned `R = Lᵀ`.
///
/// The inverse is then as accurate as a solve, and a product is much faster.
fn times_inverse(columns: MatRef<'_, f64>, root: MatRef<'_, f64>, par: Par) -> Result<Mat<f64>> {
    let count = root.nrows();
    let mut inverse = zeros(count, count)?;
    let threads = threads_for(par, macs(count, count, count) / 3.0);
    triangular_inverse::invert_lower_triangular(inverse.as_mut(), root, threads);
    triangular_product(columns, inverse.transpose(), BlockStructure::TriangularUpper, par)
}

/// Returns an orthonormal basis of the span of independent columns, nested, orthonormal to
/// rounding.
///
/// Columns that are nearly orthonormal are corrected by the Cholesky factor of their Gram matrix.
/// For others, the function uses QR.
pub(crate) fn orthonormalized(columns: Mat<f64>, par: Par) -> Result<Mat<f64>> {
    /// The largest distance of the Gram matrix from the identity at which its Cholesky factor is
    /// accurate to rounding.
    const NEARLY: f64 = 0.1;
    let count = columns.ncols();
    let gram = gram(columns.as_ref(), par)?;
    let lower = (0..count).flat_map(|j| (j..count).map(move |i| (i, j)));
    let departure = lower.fold(0.0_f64, |sum, (i, j)| {
        let expected = if i == j { 1.0 } else { 0.0 };
        sum + (gram[(i, j)] - expected).powi(2)
    });
    if departure < NEARLY * NEARLY
        && let Some(root) = cholesky(gram, par)?
    {
        return times_inverse(columns.as_ref(), root.as_ref(), par);
    }
    Ok(thin_qr(columns, par)?.0)
}
