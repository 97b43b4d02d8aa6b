//! ndarray.

use dalr::interop::ndarray::{as_ndarray, samples, to_column, to_ndarray, to_vector, view};
use dalr::{ActivationStats, Dalr, Error, Linear, LowRankCompressor, Rank, Scalar};
use faer::{Mat, MatRef};
use ndarray::{
    Array1, Array2, Array3, ArrayRef, ArrayRef2, ArrayView, ArrayView2, Axis, Dimension, Ix2, ShapeBuilder, Slice,
    arr0, array,
};

fn array<T: Scalar>(rows: usize, columns: usize) -> Array2<T> {
    Array2::from_shape_fn((rows, columns), |(i, j)| T::from_f64((i * 100 + j) as f64))
}

/// Returns `array.slice(s![…])` without the macro, which contains `unsafe`.
fn cut<'a, T, D: Dimension>(array: &'a ArrayRef<T, D>, slices: &[Slice]) -> ArrayView<'a, T, D> {
    array.slice_each_axis(|axis| slices[axis.axis.index()])
}

/// Returns a whole axis in steps of this size, reversed if it is negative.
fn every(step: isize) -> Slice {
    Slice::new(0, None, step)
}

/// Checks that a view has the array's entries, at the same addresses.
#[track_caller]
fn assert_viewed<T: Scalar>(array: &ArrayRef2<T>) {
    let view = view(array);
    assert_eq!(view.shape(), array.dim());
    for ((i, j), expected) in array.indexed_iter() {
        assert!(core::ptr::eq(&view[(i, j)], expected), "row {i}, column {j}");
    }
}

#[test]
fn views_take_any_strides_without_a_copy() {
    fn check<T: Scalar>() {
        let array = array::<T>(7, 6);
        assert_viewed(&array);
        assert_viewed(&array.view());
        assert_viewed(&array.t());
        assert_viewed(&cut(&array, &[Slice::from(2..5), Slice::from(1..4)]));
        assert_viewed(&cut(&array, &[every(3), every(2)]));
        assert_viewed(&cut(&array, &[every(-1), every(1)]));
        assert_viewed(&cut(&array, &[every(-2), Slice::from(1..).step_by(-3)]));
        assert_viewed(&cut(&array, &[every(2), every(-1)]).reversed_axes());
        assert_viewed(&cut(&array, &[Slice::from(3..4), every(-1)]));
        assert_viewed(&cut(&array, &[every(1), Slice::from(5..)]));
        let columns = Array2::from_shape_fn((4, 3).f(), |(i, j)| T::from_f64((i + 10 * j) as f64));
        assert_viewed(&columns);
        let row = array.row(2);
        assert_viewed(&row.broadcast((5, 6)).unwrap());
        for empty in [
            cut(&array, &[Slice::from(3..3), every(1)]),
            cut(&array, &[every(1), Slice::from(4..4)]),
            cut(&array, &[Slice::from(3..3).step_by(-1), every(-1)]),
        ] {
            assert_eq!(view(&empty).shape(), empty.dim());
        }
    }
    check::<f32>();
    check::<f64>();
}

#[test]
fn faer_matrices_are_shown_without_a_copy() {
    #[track_caller]
    fn assert_shown(matrix: MatRef<'_, f64>) {
        let shown = as_ndarray(matrix);
        assert_eq!(shown.dim(), matrix.shape());
        for ((i, j), entry) in shown.indexed_iter() {
            assert!(core::ptr::eq(entry, &matrix[(i, j)]), "row {i}, column {j}");
        }
        let copy = to_ndarray(matrix);
        assert_eq!(copy, shown);
        assert!(copy.is_standard_layout());
        assert_viewed(&shown);
    }
    let matrix = Mat::from_fn(6, 5, |i, j| (i * 10 + j) as f64);
    let matrix = matrix.as_ref();
    assert_shown(matrix);
    assert_shown(matrix.transpose());
    assert_shown(matrix.submatrix(1, 2, 3, 2));
    assert_shown(matrix.reverse_rows());
    assert_shown(matrix.reverse_cols());
    assert_shown(matrix.submatrix(2, 1, 3, 4).reverse_rows_and_cols().transpose());
    assert_shown(matrix.row(3).as_mat());
    assert_shown(matrix.subrows(2, 0).reverse_rows());
    assert_eq!(to_vector(matrix.col(2)), Array1::from_iter((0..6).map(|i| (i * 10 + 2) as f64)));
    assert_eq!(to_column(&cut(&to_vector(matrix.col(2)), &[every(-2)])), faer::col![52.0, 32.0, 12.0]);
}

/// Checks the samples in the order of the leading axes, for any memory layout, and whether they
/// were copied.
#[track_caller]
fn assert_samples(batch: ndarray::ArrayView3<'_, f32>, copied: bool) {
    let flat = samples(&batch).unwrap();
    let (b, s, n) = batch.dim();
    assert_eq!(flat.dim(), (b * s, n));
    for ((i, j, k), entry) in batch.indexed_iter() {
        assert_eq!(view(&flat)[(i * s + j, k)], *entry);
    }
    assert_eq!(flat.is_view(), !copied);
}

#[test]
fn leading_axes_are_samples() {
    let batch = Array3::from_shape_fn((3, 4, 5), |(b, s, n)| (b * 100 + s * 10 + n) as f32);
    assert_samples(batch.view(), false);
    // Every second token of an even number has a constant distance in memory; so have parts of the
    // inputs.
    assert_samples(cut(&batch, &[every(1), every(2), every(1)]), false);
    assert_samples(cut(&batch, &[every(1), every(1), Slice::from(1..4)]), false);
    assert_samples(cut(&batch, &[every(-1), every(-1), every(1)]), false);
    assert_samples(cut(&batch, &[Slice::from(1..2), Slice::from(1..3), every(1)]), false);
    // Without the first token, or with sequences first in memory, the distance is not constant.
    assert_samples(cut(&batch, &[every(1), Slice::from(1..), every(1)]), true);
    assert_samples(batch.view().permuted_axes([1, 0, 2]), true);
    assert_samples(cut(&batch, &[every(-1), every(1), every(1)]), true);

    let other_axes = samples(&array![1.0, 2.0]).unwrap().into_owned();
    assert_eq!(other_axes, array![[1.0, 2.0]]);
    let four = Array3::<f64>::zeros((2, 3, 4)).insert_axis(Axis(0));
    assert_eq!(samples(&four).unwrap().dim(), (6, 4));
    assert_eq!(samples(&four.into_dyn()).unwrap().dim(), (6, 4));
}

#[test]
fn layers_are_compressed_as_if_they_were_faers() {
    fn check<T: Scalar>() {
        let entry = |i: usize, j: usize| T::from_f64(((i * 11 + j * j * 7 + i * j) % 13) as f64 - 4.0);
        let weight = Array2::from_shape_fn((9, 6), |(i, j)| entry(i, j));
        let batch = Array3::from_shape_fn((5, 8, 6), |(b, s, n)| entry(b * 8 + s, n));
        let (own, matrix) = (Mat::from_fn(9, 6, entry), Mat::from_fn(40, 6, entry));
        let bias = Array1::from_elem(9, T::from_f64(0.5));
        let layer = Linear::new(view(&weight).to_owned(), Some(to_column(&bias))).unwrap();
        assert_eq!(layer, Linear::new(own, Some(faer::Col::full(9, T::from_f64(0.5)))).unwrap());

        // The sequences come first in memory, or two axes are reversed.
        let turned = Array3::from_shape_fn((8, 5, 6), |(s, b, n)| batch[[b, s, n]]);
        let backwards = cut(&batch, &[every(-1), every(-1), every(-1)]).to_owned();
        let expected = compressed(&layer, matrix.as_ref());
        let flat = samples(&batch).unwrap();
        assert_eq!(compressed(&layer, view(&flat)), expected);
        let turned = turned.permuted_axes([1, 0, 2]);
        assert_eq!(compressed(&layer, view(&samples(&turned).unwrap())), expected);
        let forwards = cut(&backwards, &[every(-1), every(-1), every(-1)]);
        let forwards = samples(&forwards).unwrap();
        assert!(forwards.is_view());
        assert_eq!(compressed(&layer, view(&forwards)), expected);

        let outputs = layer.forward(view(&flat)).unwrap();
        let outputs: ArrayView2<'_, T> = as_ndarray(outputs.as_ref());
        assert_eq!(outputs.to_shape((5, 8, 9)).unwrap().dim(), (5, 8, 9));
    }
    fn compressed<T: Scalar>(layer: &Linear<T>, inputs: MatRef<'_, T>) -> dalr::LowRankLinear<T> {
        let mut stats = ActivationStats::new(6);
        stats.update(inputs).unwrap();
        Dalr::new().compress(layer, &stats, Rank::Fixed(3)).unwrap().into_layer()
    }
    check::<f32>();
    check::<f64>();
}

#[test]
fn what_does_not_fit_is_an_error() {
    let mut stats = ActivationStats::<f32>::new(6);
    let mut update = |batch: Array3<f32>| stats.update(view(&samples(&batch).unwrap()));
    // The batch is read along another axis.
    assert!(matches!(update(Array3::zeros((2, 6, 5))), Err(Error::Shape { expected: 6, found: 5, .. })));
    assert!(matches!(update(Array3::zeros((2, 0, 6))), Err(Error::Empty { .. })));
    assert!(matches!(update(Array3::zeros((0, 3, 6))), Err(Error::Empty { .. })));
    assert!(matches!(update(Array3::zeros((2, 3, 0))), Err(Error::Shape { expected: 6, found: 0, .. })));
    let mut broken = Array3::zeros((2, 3, 6));
    broken[[1, 1, 5]] = f32::INFINITY;
    assert!(matches!(update(broken), Err(Error::NonFinite { row: 4, column: 5, .. })));
    assert_eq!(stats.samples(), 0);
    let error = samples(&arr0(1.0_f32)).unwrap_err();
    assert!(matches!(error, Error::Shape { expected: 1, found: 0, .. }));
    assert_eq!(
        error.to_string(),
        "interop::ndarray::samples: expected 1 axis or more in the batch, the last of them the inputs, got 0"
    );
    let bias = Some(to_column(&array![0.0, 0.0]));
    let weight = ndarray::Array::<f64, Ix2>::zeros((3, 4));
    assert!(matches!(Linear::new(view(&weight).to_owned(), bias), Err(Error::Shape { expected: 3, found: 2, .. })));
    let empty = cut(&weight, &[every(1), Slice::from(..0)]).to_owned();
    assert!(matches!(Linear::new(view(&empty).to_owned(), None), Err(Error::Empty { .. })));
}
