//! What the dense path takes for rounding and what it refuses, on both sides of each bound.

use super::super::tests::Given;
use super::*;
use faer::Mat;

const N: usize = 11;

/// A rounding error of the largest eigenvalue of the matrix of ones, which is `N`.
const UNIT: f64 = N as f64 * f64::EPSILON * N as f64;

fn ones() -> Given<f64> {
    Given(Mat::full(N, N, 1.0))
}

/// The true pairs, in ascending order, of which some values are off by so many rounding errors.
fn shifted(matrix: MatRef<'_, f64>, threads: usize, shifts: &[(usize, f64)]) -> Result<Option<Pairs<f64>>> {
    let pairs = (LADDER[0].solve)(matrix, threads)?;
    Ok(pairs.map(|(mut values, vectors)| {
        shifts.iter().for_each(|&(at, by)| values[at] += by * UNIT);
        (values, vectors)
    }))
}

fn accepted(solve: Solve) -> Result<Option<Eigenpairs>> {
    match top_eigenpairs(&ones(), 1, &[Rung { name: "tried", solve }], 1) {
        Ok(pairs) => Ok(Some(pairs)),
        Err(Error::NoConvergence { .. }) => Ok(None),
        Err(other) => Err(other),
    }
}

#[test]
fn a_hundred_rounding_errors_are_accepted_and_no_more() -> Result<()> {
    let within = accepted(|matrix, threads| shifted(matrix, threads, &[(N - 1, 60.0)]))?.expect("rounding");
    assert!((within.residual() / (60.0 * UNIT / N as f64) - 1.0).abs() < 0.2, "{:e}", within.residual());
    assert!(accepted(|matrix, threads| shifted(matrix, threads, &[(N - 1, 150.0)]))?.is_none());
    // Only the residual tells.
    assert!(accepted(|matrix, threads| shifted(matrix, threads, &[(N - 1, 150.0), (0, -150.0)]))?.is_none());
    // Only the sum tells: the lowest pair is not asked for.
    assert!(accepted(|matrix, threads| shifted(matrix, threads, &[(0, 60.0)]))?.is_some());
    assert!(accepted(|matrix, threads| shifted(matrix, threads, &[(0, 150.0)]))?.is_none());
    assert!(!is_rounding(f64::NAN, 1.0));
    Ok(())
}

#[test]
fn a_vector_given_twice_is_not_accepted() {
    // Values, their sum and every residual are right.
    const TWICE: Rung = Rung {
        name: "gives one vector twice",
        solve: |matrix, _| Ok(Some((vec![1.0; 5], Mat::from_fn(matrix.nrows(), 5, |i, _| f64::from(i == 0))))),
    };
    let identity = Given(Mat::<f64>::identity(5, 5));
    assert!(top_eigenpairs(&identity, 1, &[TWICE], 1).is_ok());
    assert!(matches!(top_eigenpairs(&identity, 2, &[TWICE], 1), Err(Error::NoConvergence { .. })));
}

#[test]
fn eigenvalues_are_negative_beyond_rounding_only() {
    // The matrix of ones less a little of the direction (1, −1), which it does not see.
    let with_lowest = |lowest: f64| {
        let entry = |i, j| if i < 2 && j < 2 { lowest / if i == j { 2.0 } else { -2.0 } } else { 0.0 };
        Given(Mat::from_fn(N, N, |i, j| 1.0 + entry(i, j)))
    };
    let solved = |lowest: f64| top_eigenpairs(&with_lowest(lowest), 1, &LADDER, 1);
    assert!(solved(-50.0 * UNIT).is_ok());
    let error = solved(-200.0 * UNIT).unwrap_err().to_string();
    assert!(error.contains("got a negative eigenvalue, -5"), "{error}");
}

#[test]
fn entries_differ_from_their_twins_by_rounding_only() {
    // As large as entries get before they are scaled, so that the bound depends on their size.
    let with_difference = |rounding: f64| {
        let difference = rounding * 100.0 * N as f64 * f64::EPSILON;
        Given(Mat::from_fn(N, N, |i, j| 3.9 + if (i, j) == (4, 1) { difference } else { 0.0 }))
    };
    assert!(top_eigenpairs(&with_difference(3.0), 1, &LADDER, 1).is_ok());
    let error = top_eigenpairs(&with_difference(5.0), 1, &LADDER, 1).unwrap_err().to_string();
    assert!(error.contains("different entries at (4, 1) and (1, 4)"), "{error}");
}

#[test]
fn noise_is_in_the_units_of_the_operator() -> Result<()> {
    let expected = |epsilon: f64, size: f64| 4.0 * N as f64 * epsilon * N as f64 * size;
    for size in [1.0, 3e6, 5e-7] {
        let pairs = top_eigenpairs(&Given(Mat::full(N, N, size)), 1, &LADDER, 1)?;
        assert!((pairs.noise / expected(f64::EPSILON, size) - 1.0).abs() < 1e-9, "{size}");
        let pairs = top_eigenpairs(&Given(Mat::full(N, N, size as f32)), 1, &LADDER, 1)?;
        assert!((pairs.noise / expected(f32::EPSILON.into(), size) - 1.0).abs() < 1e-6, "{size}");
    }
    Ok(())
}

#[test]
fn an_attempt_in_single_precision_knows_its_rounding() -> Result<()> {
    let dimension = 200;
    for size in [1.0, 4096.0, 1.0 / 1024.0] {
        let entry = |i: usize, j: usize| size * (1.0 + if i == j { i as f32 / 100.0 } else { 0.0 });
        let matrix = Mat::from_fn(dimension, dimension, entry);
        let wide = Given(Mat::from_fn(dimension, dimension, |i, j| f64::from(matrix[(i, j)])));
        let exact = top_eigenpairs(&wide, 3, &LADDER, 1)?;
        let pairs = narrow_eigenpairs(&Given(matrix), 3, 1)?.expect("a matrix of no difficulty");
        for (ours, theirs) in pairs.values().iter().zip(exact.values()) {
            assert!((ours - theirs).abs() < 1e-6 * exact.values()[0], "{ours} {theirs}");
        }
        assert!((pairs.residual() > 1e-9) && (pairs.residual() < 1e-6), "{:e}", pairs.residual());
        let rounding = f64::from(f32::EPSILON) * (dimension as f64).sqrt() * exact.values()[0];
        assert!((pairs.noise / rounding - 1.0).abs() < 1e-5, "{:e} {rounding:e}", pairs.noise);
    }
    Ok(())
}
