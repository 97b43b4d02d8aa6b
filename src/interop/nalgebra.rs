//! nalgebra matrices and vectors: views of them without a copy, and copies back, for `f32` and
//! `f64`.
//!
//! ```
//! use dalr::interop::nalgebra::{to_column, to_faer, to_nalgebra, view};
//! use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Rank};
//! use nalgebra::{DMatrix, DVector};
//!
//! # fn main() -> dalr::Result<()> {
//! let weight = DMatrix::from_fn(8, 6, |i, j| ((i * 5 + j * 3) % 7) as f32); // out × in, as PyTorch stores it
//! let bias = DVector::from_element(8, 0.5_f32);
//! let batch = DMatrix::from_fn(50, 6, |i, j| ((i * 11 + j * 7) % 13) as f32); // samples × in
//!
//! let layer = Linear::new(to_faer(&weight), Some(to_column(&bias)))?;
//! let mut stats = ActivationStats::new(6);
//! stats.update(view(&batch))?; // not copied
//! let compressed = Dalr::new().compress(&layer, &stats, Rank::Fixed(2))?;
//! let down: DMatrix<f32> = to_nalgebra(compressed.layer().down());
//! assert_eq!(down.shape(), (2, 6));
//! # Ok(())
//! # }
//! ```
//!
//! # Copied or not
//!
//! | from | to | |
//! |---|---|---|
//! | a matrix that owns its numbers, a column, whole columns of a matrix of static height | [`MatRef`] | [`view`], no copy |
//! | some rows or columns of a matrix | [`MatRef`] | [`view`] of the matrix, then faer's `submatrix`, no copy |
//! | its transpose | [`MatRef`] | [`view`], then faer's `transpose`, no copy |
//! | any other nalgebra view (nalgebra gives access to single numbers only) | [`Mat`] | [`to_faer`], a copy |
//! | factors, outputs | `DMatrix` | [`to_nalgebra`], a copy |
//!
//! A batch of sequences is a list of matrices, tokens × in. Update the statistics with each of
//! them, or stack them into one matrix.

use faer::{Col, ColRef, Mat, MatRef};
use nalgebra::storage::{IsContiguous, RawStorage};
use nalgebra::{DMatrix, DVector, Dim, Matrix, Vector};

/// Returns a faer view of a nalgebra matrix, without a copy.
///
/// Accepts every matrix that nalgebra can represent as a slice: `DMatrix`, `SMatrix`, vectors, a
/// column of a matrix.
///
/// ```
/// use dalr::interop::nalgebra::view;
/// let matrix = nalgebra::DMatrix::from_row_slice(3, 2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
/// assert_eq!(view(&matrix), faer::mat![[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]);
/// // The last two rows, and the transpose, not copied either.
/// assert_eq!(view(&matrix).subrows(1, 2), faer::mat![[3.0, 4.0], [5.0, 6.0]]);
/// assert_eq!(view(&matrix).transpose()[(1, 2)], 6.0);
/// ```
pub fn view<T, R: Dim, C: Dim, S: RawStorage<T, R, C> + IsContiguous>(matrix: &Matrix<T, R, C, S>) -> MatRef<'_, T> {
    MatRef::from_column_major_slice(matrix.as_slice(), matrix.nrows(), matrix.ncols())
}

/// Copies a nalgebra matrix or view with any strides: a weight, or a batch that [`view`] does not
/// accept.
///
/// ```
/// use dalr::interop::nalgebra::to_faer;
/// let matrix = nalgebra::DMatrix::from_row_slice(3, 2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
/// assert_eq!(to_faer(&matrix.rows_with_step(0, 2, 1)), faer::mat![[1.0, 2.0], [5.0, 6.0]]);
/// ```
pub fn to_faer<T: Clone, R: Dim, C: Dim, S: RawStorage<T, R, C>>(matrix: &Matrix<T, R, C, S>) -> Mat<T> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |row, column| matrix[(row, column)].clone())
}

/// Copies a nalgebra vector or view, for the bias of a layer.
///
/// ```
/// use dalr::{Linear, interop::nalgebra::{to_column, to_faer}};
/// use nalgebra::{DMatrix, DVector};
///
/// # fn main() -> dalr::Result<()> {
/// let weight = DMatrix::from_row_slice(1, 2, &[1.0, 2.0]);
/// let layer = Linear::new(to_faer(&weight), Some(to_column(&DVector::from_vec(vec![0.5]))))?;
/// assert_eq!(layer.parameters(), 3);
/// # Ok(())
/// # }
/// ```
pub fn to_column<T: Clone, D: Dim, S: RawStorage<T, D>>(vector: &Vector<T, D, S>) -> Col<T> {
    vector.iter().cloned().collect()
}

/// Copies a faer matrix with any strides into a nalgebra matrix.
///
/// ```
/// use dalr::interop::nalgebra::to_nalgebra;
/// assert_eq!(to_nalgebra(faer::mat![[1.0, 2.0]].as_ref()), nalgebra::DMatrix::from_row_slice(1, 2, &[1.0, 2.0]));
/// ```
pub fn to_nalgebra<T: nalgebra::Scalar>(matrix: MatRef<'_, T>) -> DMatrix<T> {
    DMatrix::from_fn(matrix.nrows(), matrix.ncols(), |row, column| matrix[(row, column)].clone())
}

/// Copies a faer column into a nalgebra vector.
///
/// ```
/// use dalr::interop::nalgebra::to_vector;
/// assert_eq!(to_vector(faer::col![1.0, 2.0].as_ref()), nalgebra::DVector::from_vec(vec![1.0, 2.0]));
/// ```
pub fn to_vector<T: nalgebra::Scalar>(column: ColRef<'_, T>) -> DVector<T> {
    DVector::from_iterator(column.nrows(), column.iter().cloned())
}
