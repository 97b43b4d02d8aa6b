//! Matrix products.

use faer::{Accum, Mat, MatMut, MatRef};

pub(crate) use faer::linalg::matmul::triangular::BlockStructure;

use super::allocation::zeros;
use super::threads::{Par, macs, threads_for};
use crate::{Result, Scalar};

/// Returns `lhs · rhs`.
pub(crate) fn product<T: Scalar>(lhs: MatRef<'_, T>, rhs: MatRef<'_, T>, par: Par) -> Result<Mat<T>> {
    let mut result = zeros(lhs.nrows(), rhs.ncols())?;
    set_product(result.as_mut(), lhs, rhs, par);
    Ok(result)
}

/// Computes `target += alpha · lhs · rhs`.
pub(crate) fn add_product<T: Scalar>(
    target: MatMut<'_, T>,
    alpha: T,
    lhs: MatRef<'_, T>,
    rhs: MatRef<'_, T>,
    par: Par,
) {
    let par = threads_for(par, macs(lhs.nrows(), lhs.ncols(), rhs.ncols()));
    T::matmul(target, Accum::Add, lhs, rhs, alpha, par);
}

/// Computes `target = lhs · rhs`.
pub(crate) fn set_product<T: Scalar>(target: MatMut<'_, T>, lhs: MatRef<'_, T>, rhs: MatRef<'_, T>, par: Par) {
    let par = threads_for(par, macs(lhs.nrows(), lhs.ncols(), rhs.ncols()));
    T::matmul(target, Accum::Replace, lhs, rhs, T::from_f64(1.0), par);
}

/// Adds the lower triangle of `alpha · lhs · rhs` to `target`, for a symmetric product.
pub(crate) fn add_symmetric_product<T: Scalar>(
    target: MatMut<'_, T>,
    alpha: T,
    lhs: MatRef<'_, T>,
    rhs: MatRef<'_, T>,
    par: Par,
) {
    let par = threads_for(par, macs(lhs.nrows(), lhs.ncols(), rhs.ncols()) / 2.0);
    let rhs = (rhs, BlockStructure::Rectangular);
    let target = (target, BlockStructure::TriangularLower);
    T::triangular_matmul(target, Accum::Add, lhs, rhs, alpha, par);
}

/// Returns `lhs · rhs` for a square `rhs`. The function reads only one of its triangles.
pub(crate) fn triangular_product<T: Scalar>(
    lhs: MatRef<'_, T>,
    rhs: MatRef<'_, T>,
    triangle: BlockStructure,
    par: Par,
) -> Result<Mat<T>> {
    let mut result = zeros(lhs.nrows(), rhs.ncols())?;
    set_triangular_product(result.as_mut(), lhs, rhs, triangle, par);
    Ok(result)
}

/// `target = lhs · rhs` for a triangular `rhs`.
pub(crate) fn set_triangular_product<T: Scalar>(
    target: MatMut<'_, T>,
    lhs: MatRef<'_, T>,
    rhs: MatRef<'_, T>,
    triangle: BlockStructure,
    par: Par,
) {
    let par = threads_for(par, macs(lhs.nrows(), lhs.ncols(), rhs.ncols()) / 2.0);
    let target = (target, BlockStructure::Rectangular);
    T::triangular_matmul(target, Accum::Replace, lhs, (rhs, triangle), T::from_f64(1.0), par);
}

/// Adds the scalar product of every pair of rows to `sums`, in `f64`.
pub(crate) fn add_row_products<T: Scalar>(sums: &mut [f64], a: MatRef<'_, T>, b: MatRef<'_, T>) {
    for (a, b) in a.col_iter().zip(b.col_iter()) {
        let terms = a.iter().zip(b.iter());
        sums.iter_mut().zip(terms).for_each(|(sum, (a, b))| *sum += a.to_f64() * b.to_f64());
    }
}

/// Subtracts `Q Qᵀ block` from `block` for a basis `Q`.
pub(crate) fn project_out<T: Scalar>(block: MatMut<'_, T>, basis: MatRef<'_, T>, par: Par) -> Result<()> {
    if basis.ncols() == 0 {
        return Ok(());
    }
    let inside = product(basis.transpose(), block.as_ref(), par)?;
    add_product(block, T::from_f64(-1.0), basis, inside.as_ref(), par);
    Ok(())
}

/// Returns the lower triangle of `matrixᵀ · matrix`.
pub(crate) fn gram<T: Scalar>(matrix: MatRef<'_, T>, par: Par) -> Result<Mat<T>> {
    let mut gram = zeros(matrix.ncols(), matrix.ncols())?;
    add_symmetric_product(gram.as_mut(), T::from_f64(1.0), matrix.transpose(), matrix, par);
    Ok(gram)
}

/// Copies the strictly lower triangle onto the upper one.
pub(crate) fn mirror_lower<T: Scalar>(matrix: &mut Mat<T>) {
    /// Two tiles of this many rows and columns stay in the cache while one is copied.
    const TILE: usize = 64;
    let size = matrix.ncols();
    for start in (0..size).step_by(TILE) {
        let end = (start + TILE).min(size);
        for column in start..end {
            for row in start..column {
                matrix[(row, column)] = matrix[(column, row)];
            }
        }
        let (_, mut above, below, _) = matrix.as_mut().split_at_mut(end, end);
        for first in (end..size).step_by(TILE) {
            let width = TILE.min(size - first);
            let from = below.as_ref().submatrix(first - end, start, width, end - start);
            above.as_mut().submatrix_mut(start, first - end, end - start, width).copy_from(from.transpose());
        }
    }
}
