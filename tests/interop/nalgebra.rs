//! nalgebra.

use dalr::interop::nalgebra::{to_column, to_faer, to_nalgebra, to_vector, view};
use dalr::{ActivationStats, Dalr, Error, Linear, LowRankCompressor, Rank, Scalar};
use faer::Mat;
use nalgebra::{DMatrix, DVector, SMatrix};

fn matrix<T: Scalar + nalgebra::Scalar>(rows: usize, columns: usize) -> DMatrix<T> {
    DMatrix::from_fn(rows, columns, |i, j| T::from_f64(((i * 11 + j * j * 7 + i * j) % 13) as f64 - 4.0))
}

/// Compares entry by entry, by index.
#[track_caller]
fn assert_same<T: Scalar>(found: faer::MatRef<'_, T>, rows: usize, columns: usize, entry: impl Fn(usize, usize) -> T) {
    assert_eq!(found.shape(), (rows, columns));
    for (i, j) in (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))) {
        assert_eq!(found[(i, j)], entry(i, j), "row {i}, column {j}");
    }
}

#[test]
fn views_are_the_matrix_itself() {
    fn check<T: Scalar + nalgebra::Scalar>() {
        let matrix = matrix::<T>(7, 5);
        assert_same(view(&matrix), 7, 5, |i, j| matrix[(i, j)]);
        assert_eq!(view(&matrix).as_ptr(), matrix.as_ptr());
        assert_same(view(&matrix).transpose(), 5, 7, |i, j| matrix[(j, i)]);
        // A part of the view, not copied.
        let part = view(&matrix).submatrix(2, 1, 4, 3);
        assert_same(part, 4, 3, |i, j| matrix[(i + 2, j + 1)]);
        assert_eq!(part.as_ptr(), &raw const matrix[(2, 1)]);
        let column = matrix.column(3);
        assert_same(view(&column), 7, 1, |i, _| matrix[(i, 3)]);
        assert_eq!(view(&column).as_ptr(), column.as_ptr());
    }
    check::<f32>();
    check::<f64>();
    let fixed = SMatrix::<f32, 2, 3>::new(1.0, 2.0, 3.0, 4.0, 5.0, 6.0);
    assert_same(view(&fixed), 2, 3, |i, j| fixed[(i, j)]);
    let columns = fixed.columns(1, 2);
    assert_same(view(&columns), 2, 2, |i, j| fixed[(i, j + 1)]);
    assert_eq!(view(&columns).as_ptr(), columns.as_ptr());
}

#[test]
fn copies_take_any_strides_and_come_back() {
    let matrix = matrix::<f32>(9, 8);
    assert_same(to_faer(&matrix).as_ref(), 9, 8, |i, j| matrix[(i, j)]);
    assert_same(to_faer(&matrix.rows(2, 4)).as_ref(), 4, 8, |i, j| matrix[(i + 2, j)]);
    let stepped = matrix.view_with_steps((1, 0), (3, 4), (2, 1));
    assert_same(to_faer(&stepped).as_ref(), 3, 4, |i, j| matrix[(1 + 3 * i, 2 * j)]);
    assert_same(to_faer(&matrix.transpose()).as_ref(), 8, 9, |i, j| matrix[(j, i)]);
    assert_eq!(to_column(&matrix.column_part(5, 4)), Mat::from_fn(4, 1, |i, _| matrix[(i, 5)]).col(0));
    assert_eq!(to_column(&matrix.row(2).transpose()).nrows(), 8);

    assert_eq!(to_nalgebra(to_faer(&matrix).as_ref()), matrix);
    assert_eq!(to_nalgebra(view(&matrix).transpose()), matrix.transpose());
    let reversed = to_nalgebra(view(&matrix).reverse_rows());
    assert_eq!(reversed, DMatrix::from_fn(9, 8, |i, j| matrix[(8 - i, j)]));
    let vector = DVector::from_vec(vec![3.0, 1.0, 2.0]);
    assert_eq!(to_vector(to_column(&vector).as_ref()), vector);
    for empty in [DMatrix::<f32>::zeros(0, 3), DMatrix::zeros(3, 0)] {
        assert_eq!(view(&empty).shape(), empty.shape());
        assert_eq!(to_nalgebra(to_faer(&empty).as_ref()), empty);
    }
}

#[test]
fn layers_are_compressed_as_if_they_were_faers() {
    fn check<T: Scalar + nalgebra::Scalar>() {
        let (weight, bias) = (matrix::<T>(9, 6), DVector::from_element(9, T::from_f64(0.5)));
        let batch = matrix::<T>(40, 6);
        let layer = Linear::new(to_faer(&weight), Some(to_column(&bias))).unwrap();
        let own = Linear::new(Mat::from_fn(9, 6, |i, j| weight[(i, j)]), Some(faer::Col::from_fn(9, |i| bias[i])));
        assert_eq!(layer, own.unwrap());
        let mut stats = ActivationStats::new(6);
        stats.update(view(&batch)).unwrap();
        let mut rows = ActivationStats::new(6);
        rows.update(to_faer(&batch.rows(0, 40)).as_ref()).unwrap();
        let [here, there] = [&stats, &rows].map(|s| Dalr::new().compress(&layer, s, Rank::Fixed(3)).unwrap());
        assert_eq!(here.layer(), there.layer());
        let factors = to_nalgebra(here.layer().up()).shape();
        assert_eq!(factors, (9, 3));
        let outputs = to_nalgebra(here.layer().forward(view(&batch)).unwrap().as_ref());
        assert_eq!(outputs.shape(), (40, 9));
    }
    check::<f32>();
    check::<f64>();
}

#[test]
fn what_does_not_fit_is_an_error() {
    let mut stats = ActivationStats::<f32>::new(6);
    let update = |stats: &mut ActivationStats<f32>, rows, columns| stats.update(view(&matrix(rows, columns)));
    assert!(matches!(update(&mut stats, 4, 5), Err(Error::Shape { expected: 6, found: 5, .. })));
    assert!(matches!(update(&mut stats, 0, 6), Err(Error::Empty { .. })));
    let mut broken = matrix::<f32>(4, 6);
    broken[(2, 5)] = f32::NAN;
    assert!(matches!(stats.update(view(&broken)), Err(Error::NonFinite { row: 2, column: 5, .. })));
    assert_eq!(stats.samples(), 0);
    let bias = Some(to_column(&DVector::from_element(5, 0.0)));
    assert!(matches!(
        Linear::new(to_faer(&matrix::<f64>(6, 4)), bias),
        Err(Error::Shape { expected: 6, found: 5, .. })
    ));
    assert!(matches!(Linear::new(to_faer(&matrix::<f64>(0, 4)), None), Err(Error::Empty { .. })));
}
