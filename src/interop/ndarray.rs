//! ndarray arrays: views both ways without a copy, with any strides, for `f32` and `f64`.
//!
//! ```
//! use dalr::interop::ndarray::{as_ndarray, samples, to_column, view};
//! use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Rank};
//! use ndarray::{Array1, Array2, Array3};
//!
//! # fn main() -> dalr::Result<()> {
//! let weight = Array2::from_shape_fn((8, 6), |(i, j)| ((i * 5 + j * 3) % 7) as f32); // out × in, as PyTorch stores it
//! let bias = Array1::from_elem(8, 0.5_f32);
//! let batch = Array3::from_shape_fn((4, 12, 6), |(b, s, j)| ((b * 17 + s * 11 + j * 7) % 13) as f32); // batch × sequence × in
//!
//! let layer = Linear::new(view(&weight).to_owned(), Some(to_column(&bias)))?;
//! let mut stats = ActivationStats::new(6);
//! stats.update(view(&samples(&batch)?))?; // 48 samples, not copied
//! let compressed = Dalr::new().compress(&layer, &stats, Rank::Fixed(2))?;
//! let down = as_ndarray(compressed.layer().down()); // ArrayView2<'_, f32>, not copied
//! assert_eq!(down.dim(), (2, 6));
//! let outputs = compressed.layer().forward(view(&samples(&batch)?))?;
//! assert_eq!(as_ndarray(outputs.as_ref()).to_shape((4, 12, 8)).unwrap().dim(), (4, 12, 8));
//! # Ok(())
//! # }
//! ```
//!
//! # Copied or not
//!
//! | from | to | |
//! |---|---|---|
//! | any array of two axes: sliced, stepped, transposed, reversed, broadcast | [`MatRef`] | [`view`], no copy |
//! | any array of another number of axes | samples × in | [`samples`], no copy if NumPy's `reshape` makes none |
//! | factors, outputs, and parts of them | [`ArrayView2`] | [`as_ndarray`], no copy |
//! | the same | [`Array2`] | [`to_ndarray`], a copy in rows |
//!
//! A [`Linear`](crate::Linear) owns its weight, so the weight is copied once. The crate `faer-ext`,
//! by faer's author, creates the views.

use faer::{Col, ColRef, MatRef};
use faer_ext::{IntoFaer, IntoNdarray};
use ndarray::{Array1, Array2, ArrayRef, ArrayRef1, ArrayRef2, ArrayView2, Axis, CowArray, Dimension, Ix2};

use super::samples_and_inputs;
use crate::error::during;
use crate::{Error, Result};

/// Returns a faer view of an array of two axes with any strides, without a copy.
///
/// ```
/// use dalr::interop::ndarray::view;
/// use ndarray::{array, s};
/// let array = array![[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]];
/// assert_eq!(view(&array), faer::mat![[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]);
/// assert_eq!(view(&array.slice(s![..;-1, ..;2])), faer::mat![[4.0, 6.0], [1.0, 3.0]]);
/// ```
pub fn view<T>(array: &ArrayRef2<T>) -> MatRef<'_, T> {
    array.view().into_faer()
}

/// Reshapes a batch whose last axis is the inputs to samples × in.
///
/// A batch × sequence × in array gives batch · sequence samples; an array of one axis is a single
/// sample. The batch is copied only if its samples do not have a constant distance in memory, as in
/// a contiguous array.
///
/// # Errors
///
/// [`Error::Shape`] for an array without axes. The functions that use the samples check the last
/// axis.
///
/// ```
/// use dalr::interop::ndarray::{samples, view};
/// # fn main() -> dalr::Result<()> {
/// let batch = ndarray::Array3::<f32>::ones((2, 5, 4)); // batch × sequence × in
/// let samples = samples(&batch)?;
/// assert!(samples.is_view());
/// let mut stats = dalr::ActivationStats::new(4);
/// stats.update(view(&samples))?;
/// assert_eq!(stats.samples(), 10);
/// # Ok(())
/// # }
/// ```
pub fn samples<T: Clone, D: Dimension>(batch: &ArrayRef<T, D>) -> Result<CowArray<'_, T, Ix2>> {
    during("interop::ndarray::samples", || {
        let (count, features) = samples_and_inputs(batch.shape())?;
        let what = "the number of samples";
        batch.to_shape((count, features)).map_err(|_| Error::overflow(what))
    })
}

/// Copies an array of one axis, for the bias of a layer.
///
/// ```
/// use dalr::interop::ndarray::to_column;
/// let bias = ndarray::array![1.0, 2.0, 3.0];
/// assert_eq!(to_column(&bias), faer::col![1.0, 2.0, 3.0]);
/// ```
pub fn to_column<T: Clone>(array: &ArrayRef1<T>) -> Col<T> {
    array.iter().cloned().collect()
}

/// Returns an ndarray view of a faer matrix with any strides, without a copy.
pub fn as_ndarray<T>(matrix: MatRef<'_, T>) -> ArrayView2<'_, T> {
    // ndarray's constructors do not accept negative strides, so the axes are reversed before and
    // after.
    let (rows, columns) = (matrix.row_stride() < 0, matrix.col_stride() < 0);
    let matrix = if rows { matrix.reverse_rows() } else { matrix };
    let matrix = if columns { matrix.reverse_cols() } else { matrix };
    let mut view = matrix.into_ndarray();
    for (axis, reversed) in [rows, columns].into_iter().enumerate() {
        if reversed {
            view.invert_axis(Axis(axis));
        }
    }
    view
}

/// Copies a faer matrix with any strides into an array in standard layout, row by row.
///
/// ```
/// use dalr::interop::ndarray::to_ndarray;
/// assert_eq!(to_ndarray(faer::mat![[1.0, 2.0], [3.0, 4.0]].as_ref()), ndarray::array![[1.0, 2.0], [3.0, 4.0]]);
/// ```
pub fn to_ndarray<T: Clone>(matrix: MatRef<'_, T>) -> Array2<T> {
    as_ndarray(matrix).as_standard_layout().into_owned()
}

/// Copies a faer column into an array of one axis.
///
/// ```
/// use dalr::interop::ndarray::to_vector;
/// assert_eq!(to_vector(faer::col![1.0, 2.0].as_ref()), ndarray::array![1.0, 2.0]);
/// ```
pub fn to_vector<T: Clone>(column: ColRef<'_, T>) -> Array1<T> {
    column.iter().cloned().collect()
}
