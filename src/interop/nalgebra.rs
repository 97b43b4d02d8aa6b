//! nalgebra matrices and vectors: views without a copy one way, copies the other.
//!
//! ```
//! use dalr::interop::nalgebra::{to_nalgebra, view};
//! use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Rank};
//! use nalgebra::DMatrix;
//!
//! # fn main() -> dalr::Result<()> {
//! let weight = DMatrix::from_fn(8, 6, |i, j| ((i * 5 + j * 3) % 7) as f64);
//! let batch = DMatrix::from_fn(50, 6, |i, j| ((i * 11 + j * 7) % 13) as f64);
//!
//! let layer = Linear::new(view(&weight).to_owned(), None)?;
//! let mut stats = ActivationStats::new(6);
//! stats.update(view(&batch))?; // samples × in, not copied
//! let compressed = Dalr::new().compress(&layer, &stats, Rank::Fixed(2))?;
//! let down: DMatrix<f64> = to_nalgebra(compressed.layer().down());
//! assert_eq!(down.shape(), (2, 6));
//! # Ok(())
//! # }
//! ```

use faer::{Col, ColRef, MatRef};
use nalgebra::{DMatrix, DVector};

use crate::Scalar;

/// A nalgebra matrix as a faer view of the same shape, without a copy.
///
/// For an example see the [module](self).
pub fn view<T: Scalar + nalgebra::Scalar>(matrix: &DMatrix<T>) -> MatRef<'_, T> {
    MatRef::from_column_major_slice(matrix.as_slice(), matrix.nrows(), matrix.ncols())
}

/// A copy of a nalgebra vector, for the bias of a layer.
///
/// ```
/// use dalr::{Linear, interop::nalgebra::{to_column, view}};
/// use nalgebra::{DMatrix, DVector};
///
/// # fn main() -> dalr::Result<()> {
/// let weight = DMatrix::from_row_slice(1, 2, &[1.0, 2.0]);
/// let layer = Linear::new(view(&weight).to_owned(), Some(to_column(&DVector::from_vec(vec![0.5]))))?;
/// assert_eq!(layer.parameters(), 3);
/// # Ok(())
/// # }
/// ```
pub fn to_column<T: Scalar + nalgebra::Scalar>(vector: &DVector<T>) -> Col<T> {
    vector.iter().copied().collect()
}

/// A copy of a faer matrix, in any memory layout, as a nalgebra matrix of the same shape.
///
/// For an example see the [module](self).
pub fn to_nalgebra<T: Scalar + nalgebra::Scalar>(matrix: MatRef<'_, T>) -> DMatrix<T> {
    DMatrix::from_fn(matrix.nrows(), matrix.ncols(), |row, column| matrix[(row, column)])
}

/// A copy of a faer column as a nalgebra vector.
///
/// ```
/// use dalr::interop::nalgebra::to_vector;
/// assert_eq!(to_vector(faer::col![1.0, 2.0].as_ref()), nalgebra::DVector::from_vec(vec![1.0, 2.0]));
/// ```
pub fn to_vector<T: Scalar + nalgebra::Scalar>(column: ColRef<'_, T>) -> DVector<T> {
    DVector::from_iterator(column.nrows(), column.iter().copied())
}
