//! Matrix products.

use faer::{Accum, Mat, MatMut, MatRef};

pub(crate) use faer::linalg::matmul::triangular::BlockStructure;

use super::memory::zeros;
use super::threads::{Par, for_each_part, macs, threads_for};
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

/// Adds `alpha · M Mᵀ · block` to `target`, for few columns in `block`.
///
/// A panel of columns of `M` is multiplied from both sides while it is in the cache of a core, so
/// that `M` is read from memory once. The blocks are laid out so that `M` is not copied.
pub(crate) fn add_gram_product<T: Scalar>(
    mut target: MatMut<'_, T>,
    alpha: T,
    matrix: MatRef<'_, T>,
    block: MatRef<'_, T>,
    par: Par,
) -> Result<()> {
    /// Bytes in a panel, half of a second-level cache of one megabyte.
    const PANEL: usize = 1 << 19;
    let (rows, columns, width) = (matrix.nrows(), matrix.ncols(), block.ncols());
    let panel = (PANEL / size_of::<T>() / rows.max(1)).clamp(16, columns.max(16));
    let across = transposed(block)?;
    let work = 2.0 * macs(rows, columns, width);
    let share = columns.div_ceil(threads_for(par, work).degree()).max(1);
    let starts = (0..columns).step_by(share);
    let sums = starts.map(|start| Ok((start, zeros(rows, width)?, zeros(width, panel)?)));
    let mut sums = sums.collect::<Result<Vec<(usize, Mat<T>, Mat<T>)>>>()?;
    for_each_part(sums.iter_mut().collect(), work, par, |(start, sum, inner)| {
        let end = columns.min(*start + share);
        for first in (*start..end).step_by(panel) {
            let count = panel.min(end - first);
            let part = matrix.subcols(first, count);
            let mut inner = inner.as_mut().subcols_mut(0, count);
            T::matmul(inner.as_mut(), Accum::Replace, across.as_ref(), part, T::from_f64(1.0), Par::Seq);
            T::matmul(sum.as_mut(), Accum::Add, part, inner.transpose(), alpha, Par::Seq);
        }
    });
    sums.iter().for_each(|(_, sum, _)| target += sum);
    Ok(())
}

/// Returns a copy of the transpose.
fn transposed<T: Scalar>(matrix: MatRef<'_, T>) -> Result<Mat<T>> {
    let mut copy = zeros(matrix.ncols(), matrix.nrows())?;
    copy.copy_from(matrix.transpose());
    Ok(copy)
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
    // In this order, no copy of the basis is made.
    let inside = product(block.as_ref().transpose(), basis, par)?;
    add_product(block, T::from_f64(-1.0), basis, inside.transpose(), par);
    Ok(())
}

/// Returns the lower triangle of `matrixᵀ · matrix`.
pub(crate) fn gram<T: Scalar>(matrix: MatRef<'_, T>, par: Par) -> Result<Mat<T>> {
    let mut gram = zeros(matrix.ncols(), matrix.ncols())?;
    add_symmetric_product(gram.as_mut(), T::from_f64(1.0), matrix.transpose(), matrix, par);
    Ok(gram)
}

/// Copies a matrix to one of another memory layout.
#[cfg(feature = "safetensors")]
pub(crate) fn copy_in_tiles<T: Scalar>(mut target: MatMut<'_, T>, source: MatRef<'_, T>) {
    /// Rows and columns of a tile. Rows that are a power of two apart share few lines of a cache.
    const TILE: (usize, usize) = (16, 64);
    let (rows, columns) = source.shape();
    for row in (0..rows).step_by(TILE.0) {
        for column in (0..columns).step_by(TILE.1) {
            let size = (TILE.0.min(rows - row), TILE.1.min(columns - column));
            let part = source.submatrix(row, column, size.0, size.1);
            target.as_mut().submatrix_mut(row, column, size.0, size.1).copy_from(part);
        }
    }
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
