//! Norms of matrices, summed in `f64`, and checks for NaN and infinities.

use faer::MatRef;

use super::threads::for_each_row;
use crate::{Error, Result, Scalar};

/// Returns the first row and column, in this order, that holds a NaN or an infinity.
pub(crate) fn first_non_finite<T: Scalar>(matrix: MatRef<'_, T>) -> Option<(usize, usize)> {
    // Without an early exit, the compiler can vectorise the loop.
    let mut all_finite = true;
    for_each_row(by_rows(matrix), |_, row| {
        all_finite &= row.iter().fold(true, |finite, x| finite & x.to_f64().is_finite());
    });
    if all_finite {
        return None;
    }
    (0..matrix.nrows())
        .flat_map(|row| (0..matrix.ncols()).map(move |column| (row, column)))
        .find(|&at| !matrix[at].to_f64().is_finite())
}

/// Returns an error that names the first entry that is not finite, if there is one.
pub(crate) fn require_finite<T: Scalar>(what: &'static str, matrix: MatRef<'_, T>) -> Result<()> {
    match first_non_finite(matrix) {
        None => Ok(()),
        Some(at) => Err(Error::non_finite(what, at, matrix[at].to_f64())),
    }
}

/// Number of independent accumulators, so that the compiler can vectorise a fold.
const LANES: usize = 16;

fn fold<T: Scalar>(lanes: &mut [f64; LANES], entries: &[T], step: impl Fn(f64, f64) -> f64) {
    let (chunks, rest) = entries.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = step(*lane, x.to_f64());
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = step(*lane, x.to_f64());
    }
}

/// Folds all entries, in an order that depends only on the shape and layout of the matrix.
fn fold_all<T: Scalar>(matrix: MatRef<'_, T>, step: impl Fn(f64, f64) -> f64 + Copy) -> [f64; LANES] {
    let mut lanes = [0.0; LANES];
    for_each_row(by_rows(matrix), |_, row| fold(&mut lanes, row, step));
    lanes
}

/// Returns the largest magnitude of a matrix's entries.
pub(crate) fn max_abs<T: Scalar>(matrix: MatRef<'_, T>) -> f64 {
    let larger = |max: f64, x: f64| if x.abs() > max { x.abs() } else { max };
    fold_all(matrix, larger).into_iter().fold(0.0, larger)
}

/// Returns the sum of the squares of a matrix's entries.
pub(crate) fn squared_norm<T: Scalar>(matrix: MatRef<'_, T>) -> f64 {
    fold_all(matrix, |sum, x| sum + x * x).into_iter().sum()
}

/// Returns the sum of the squares of each column.
pub(crate) fn squared_column_norms<T: Scalar>(matrix: MatRef<'_, T>) -> Vec<f64> {
    let mut sums = Vec::with_capacity(matrix.ncols());
    for_each_row(matrix.transpose(), |_, column| {
        let mut lanes = [0.0; LANES];
        fold(&mut lanes, column, |sum, x| sum + x * x);
        sums.push(lanes.iter().sum());
    });
    sums
}

/// Returns the matrix or its transpose, whichever has contiguous rows.
fn by_rows<T: Scalar>(matrix: MatRef<'_, T>) -> MatRef<'_, T> {
    let row_major = matrix.col_stride().unsigned_abs() < matrix.row_stride().unsigned_abs();
    if row_major { matrix } else { matrix.transpose() }
}
