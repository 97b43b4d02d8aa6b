//! The bounds of the checks in the dense algorithms, tested with errors just below and above them.

use faer::Mat;

use super::super::tests::Given;
use super::*;

const N: usize = 11;

/// Returns a rounding error of the largest eigenvalue of the matrix of ones, which is `N`.
fn unit() -> f64 {
    rounding::<f64>(N) * N as f64
}

fn ones() -> Given<f64> {
    Given(Mat::full(N, N, 1.0))
}

/// Returns the true pairs in ascending order, with some values shifted by the given numbers of
/// rounding errors.
fn shifted(matrix: MatRef<'_, f64>, par: Par, shifts: &[(usize, f64)]) -> Result<Option<Pairs<f64>>> {
    let pairs = linalg::symmetric_eigen(matrix, par)?;
    Ok(pairs.map(|(mut values, vectors)| {
        shifts.iter().for_each(|&(at, by)| values[at] += by * unit());
        (values, vectors)
    }))
}

fn accepted(solve: Solve<f64>) -> Result<Option<Eigenpairs>> {
    match double_precision(&ones(), 1, &[Algorithm { name: "tried", solve }], Par::Seq) {
        Ok(pairs) => Ok(Some(pairs)),
        Err(Error::NoConvergence { .. }) => Ok(None),
        Err(other) => Err(other),
    }
}

#[test]
fn a_hundred_rounding_errors_are_accepted_and_no_more() -> Result<()> {
    let within = accepted(|matrix, par| shifted(matrix, par, &[(N - 1, 60.0)]))?.expect("rounding");
    assert!((within.residual / (60.0 * unit() / N as f64) - 1.0).abs() < 0.2, "{:e}", within.residual);
    assert!(accepted(|matrix, par| shifted(matrix, par, &[(N - 1, 150.0)]))?.is_none());
    // Only the residual is too large; the sum is correct.
    assert!(accepted(|matrix, par| shifted(matrix, par, &[(N - 1, 150.0), (0, -150.0)]))?.is_none());
    // Only the sum is wrong, because the smallest pair is not requested. A sum may have a `√N`
    // times larger error.
    assert!(accepted(|matrix, par| shifted(matrix, par, &[(0, 200.0)]))?.is_some());
    assert!(accepted(|matrix, par| shifted(matrix, par, &[(0, 500.0)]))?.is_none());
    Ok(())
}

#[test]
fn a_vector_given_twice_is_not_returned_twice() -> Result<()> {
    // Values, their sum and every residual are correct.
    let solve: Solve<f64> =
        |matrix, _| Ok(Some((vec![1.0; 5], Mat::from_fn(matrix.nrows(), 5, |i, _| f64::from(i == 0)))));
    let identity = Given(Mat::<f64>::identity(5, 5));
    let pairs = double_precision(&identity, 2, &[Algorithm { name: "one vector twice", solve }], Par::Seq)?;
    let gram = pairs.vectors.transpose() * &pairs.vectors;
    assert!((gram - Mat::<f64>::identity(2, 2)).norm_max() < 1e-15);
    Ok(())
}

#[test]
fn eigenvalues_are_negative_beyond_rounding_only() {
    // A rounding error in the entries of a user's matrix.
    let unit = N as f64 * f64::EPSILON * N as f64;
    // The matrix of ones, minus a small multiple of the direction (1, −1) in its null space.
    let with_lowest = |lowest: f64| {
        let entry = |i, j| if i < 2 && j < 2 { lowest / if i == j { 2.0 } else { -2.0 } } else { 0.0 };
        Given(Mat::from_fn(N, N, |i, j| 1.0 + entry(i, j)))
    };
    let solved = |lowest: f64| double_precision(&with_lowest(lowest), 1, &ALGORITHMS, Par::Seq);
    assert!(solved(-50.0 * unit).is_ok());
    let error = solved(-200.0 * unit).unwrap_err().to_string();
    assert!(error.contains("got a negative eigenvalue, -5"), "{error}");
}

#[test]
fn an_entry_may_differ_from_its_mirror_image_by_rounding_only() {
    // The entries have the size that they have after scaling, because the bound depends on it.
    let with_difference = |rounding: f64, (row, column): (usize, usize)| {
        let difference = rounding * 100.0 * N as f64 * f64::EPSILON;
        Given(Mat::from_fn(N, N, |i, j| 3.9 + if (i, j) == (row, column) { difference } else { 0.0 }))
    };
    assert!(double_precision(&with_difference(3.0, (4, 1)), 1, &ALGORITHMS, Par::Seq).is_ok());
    for at in [(4, 1), (1, 4)] {
        let error = double_precision(&with_difference(5.0, at), 1, &ALGORITHMS, Par::Seq).unwrap_err().to_string();
        assert!(error.contains("different entries at (4, 1) and (1, 4)"), "{error}");
    }
}

#[test]
fn every_pair_of_entries_is_compared() {
    let n = 40;
    for (row, column) in [(1, 0), (15, 14), (16, 15), (17, 16), (32, 0), (39, 38), (39, 0), (31, 16)] {
        let matrix = Mat::from_fn(n, n, |i, j| f64::from(i == j) + f64::from((i, j) == (row, column)));
        let error = require_symmetric(matrix.as_ref(), 0.0, 0.5).unwrap_err().to_string();
        assert!(error.contains(&format!("({row}, {column})")), "{error}");
    }
}

#[test]
fn noise_is_in_the_units_of_the_operator() -> Result<()> {
    let expected = |epsilon: f64, size: f64| 4.0 * N as f64 * epsilon * N as f64 * size;
    for size in [1.0, 3e6, 5e-7] {
        let pairs = double_precision(&Given(Mat::full(N, N, size)), 1, &ALGORITHMS, Par::Seq)?;
        assert!((pairs.noise / expected(f64::EPSILON, size) - 1.0).abs() < 1e-9, "{size}");
        let pairs = double_precision(&Given(Mat::full(N, N, size as f32)), 1, &ALGORITHMS, Par::Seq)?;
        assert!((pairs.noise / expected(f32::EPSILON.into(), size) - 1.0).abs() < 1e-6, "{size}");
    }
    Ok(())
}

#[test]
fn single_precision_states_its_rounding() -> Result<()> {
    let dimension = 200;
    for size in [1.0, 4096.0, 1.0 / 1024.0] {
        let entry = |i: usize, j: usize| size * (1.0 + if i == j { i as f32 / 100.0 } else { 0.0 });
        let matrix = Mat::from_fn(dimension, dimension, entry);
        let widened = Given(Mat::from_fn(dimension, dimension, |i, j| f64::from(matrix[(i, j)])));
        let double = double_precision(&widened, 3, &ALGORITHMS, Par::Seq)?;
        let pairs = native_precision(&Given(matrix), 3, Par::Seq)?.expect("an easy matrix");
        for (single, double_value) in pairs.values.iter().zip(&double.values) {
            assert!((single - double_value).abs() < 1e-6 * double.values[0], "{single} {double_value}");
        }
        assert!((pairs.residual > 1e-9) && (pairs.residual < 1e-6), "{:e}", pairs.residual);
        let rounding = f64::from(f32::EPSILON) * (dimension as f64).sqrt() * double.values[0];
        assert!((pairs.noise / rounding - 1.0).abs() < 1e-5, "{:e} {rounding:e}", pairs.noise);
    }
    Ok(())
}

#[test]
fn an_operator_that_single_precision_cannot_judge_is_left_to_double_precision() -> Result<()> {
    for bad in [f32::NAN, f32::INFINITY, -1.0] {
        let matrix = Mat::from_fn(5, 5, |i, j| if i == j { if i == 3 { bad } else { 1.0 } } else { 0.0 });
        assert!(native_precision(&Given(matrix), 2, Par::Seq)?.is_none(), "{bad}");
    }
    Ok(())
}
