//! Allocation that returns an error instead of aborting, and copies in another precision.

use faer::{Mat, MatRef};

use super::norms::first_non_finite;
use crate::{Error, Result, Scalar};

/// Returns the error for an allocation of `needed` bytes that failed.
pub(crate) fn out_of_memory(needed: usize) -> Error {
    Error::memory(needed, "this machine's memory".into())
}

/// Returns a zero matrix, or an error where `Mat::zeros` would abort the process.
pub(crate) fn zeros<T: Scalar>(rows: usize, columns: usize) -> Result<Mat<T>> {
    let needed = rows.saturating_mul(columns).saturating_mul(size_of::<T>());
    let mut matrix = Mat::new();
    matrix.try_reserve(rows, columns).map_err(|_| out_of_memory(needed))?;
    matrix.resize_with(rows, columns, |_, _| T::default());
    Ok(matrix)
}

/// Returns a copy of `source` in another precision, times `factor`.
pub(crate) fn converted<T: Scalar, P: Scalar>(source: MatRef<'_, T>, factor: f64) -> Result<Mat<P>> {
    let mut copy = zeros::<P>(source.nrows(), source.ncols())?;
    for (to, from) in copy.as_mut().col_iter_mut().zip(source.col_iter()) {
        for (to, from) in to.iter_mut().zip(from.iter()) {
            *to = P::from_f64(from.to_f64() * factor);
        }
    }
    Ok(copy)
}

/// Returns a copy of `source` in `f64`, times `factor`.
pub(crate) fn widened<T: Scalar>(source: MatRef<'_, T>, factor: f64) -> Result<Mat<f64>> {
    converted(source, factor)
}

/// Returns a copy of `source` rounded to `T`, or an error if an entry leaves the range of `T`.
pub(crate) fn rounded<T: Scalar>(what: &'static str, source: MatRef<'_, f64>) -> Result<Mat<T>> {
    let copy = converted::<f64, T>(source, 1.0)?;
    match first_non_finite(copy.as_ref()) {
        Some(_) => Err(Error::overflow(what)),
        None => Ok(copy),
    }
}
