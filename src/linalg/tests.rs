use faer::{Mat, mat};

#[cfg(feature = "rayon")]
use super::threads::{PARALLEL_THRESHOLD, threads_for};
use super::*;
use crate::Result;

#[test]
fn macs_are_the_number_of_multiply_adds() {
    assert_eq!(macs(2, 3, 5), 30.0);
}

#[cfg(feature = "rayon")]
#[test]
fn every_column_is_filled_with_its_own_number_on_any_threads() {
    // The products are large enough for several threads. Some divide evenly among them, others do
    // not.
    let rows = PARALLEL_THRESHOLD as usize / 64;
    for columns in [64, 65, 66, 67] {
        for count in [0, 1, 2, 3] {
            let mut matrix = Mat::<f64>::zeros(rows, columns);
            for_each_column(matrix.as_mut(), threads(count), |index, mut column| column[0] = index as f64 + 1.0);
            let numbers: Vec<usize> = (0..columns).map(|column| matrix[(0, column)] as usize).collect();
            assert_eq!(numbers, (1..=columns).collect::<Vec<_>>(), "{count} threads");
        }
    }
}

#[cfg(feature = "rayon")]
#[test]
fn threads_are_those_asked_for_where_they_pay_and_exist() {
    let count = |requested: usize, work: f64| match threads_for(threads(requested), work) {
        Par::Seq => 1,
        Par::Rayon(count) => count.get(),
    };
    let pool = rayon::current_num_threads();
    assert_eq!(count(0, PARALLEL_THRESHOLD), pool);
    let three = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    three.install(|| {
        // Inside a worker, the default is one thread, because the caller works in parallel already.
        assert_eq!([0, 1, 2, 3, 9].map(|threads| count(threads, PARALLEL_THRESHOLD)), [1, 1, 2, 3, 3]);
        assert_eq!([0, 1, 2, 3, 9].map(|threads| count(threads, PARALLEL_THRESHOLD.next_down())), [1; 5]);
    });
}

#[test]
fn norms_of_columns_are_sums_of_squares() {
    // There are more entries than independent accumulators.
    let matrix = Mat::from_fn(37, 3, |i, j| (i % 5) as f64 - j as f64);
    let expected = |j: usize| (0..37).map(|i| ((i % 5) as f64 - j as f64).powi(2)).sum::<f64>();
    assert_eq!(squared_column_norms(matrix.as_ref()), [0, 1, 2].map(expected));
    assert_eq!(squared_norm(matrix.as_ref()), [0, 1, 2].map(expected).iter().sum::<f64>());
    assert_eq!(max_abs(matrix.as_ref()), 4.0);
}

#[test]
fn a_root_and_a_solution_are_found() -> Result<()> {
    let matrix = mat![[4.0, 2.0], [2.0, 10.0]];
    let root = cholesky(matrix.clone(), Par::Seq)?.expect("positive definite");
    assert!((root[(0, 0)] - 2.0).abs() + (root[(1, 0)] - 1.0).abs() + (root[(1, 1)] - 3.0).abs() < 1e-15);
    let solution = cholesky_solve(matrix, mat![[8.0], [22.0]], Par::Seq)?.expect("positive definite");
    assert!((solution - mat![[1.0], [2.0]]).norm_max() < 1e-15);
    assert!(cholesky(mat![[1.0, 2.0], [2.0, 1.0]], Par::Seq)?.is_none());
    Ok(())
}

fn departure(basis: &Mat<f64>) -> f64 {
    (basis.transpose() * basis - Mat::<f64>::identity(basis.ncols(), basis.ncols())).norm_max()
}

/// Returns three columns of lengths 5, 13 and 2. The angle between the first two has this sine.
fn columns(sine: f64) -> Mat<f64> {
    let cosine = (1.0 - sine * sine).sqrt();
    let turned = [5.0 * cosine, 12.0 * cosine, 13.0 * sine, 0.0, 0.0];
    Mat::from_fn(5, 3, |i, j| [[25.0 / 13.0, 60.0 / 13.0, 0.0, 0.0, 0.0], turned, [0.0, 0.0, 0.0, 1.2, -1.6]][j][i])
}

#[test]
fn a_basis_tells_how_far_each_column_reaches() -> Result<()> {
    for sine in [1.0, 0.6, 2e-3, 5e-4, 1e-7] {
        let given = columns(sine);
        let (basis, reach) = orthonormal_columns(given.clone(), Par::Seq)?;
        // Cholesky loses digits if columns are nearly parallel, but never more than the bound on
        // the angle allows.
        let lost = if sine > 1e-3 { 1e-15 / (sine * sine) } else { 0.0 } + 1e-14;
        assert!(departure(&basis) < lost, "{sine}: {:e}", departure(&basis));
        for (ours, expected) in reach.iter().zip([5.0, 13.0 * sine, 2.0]) {
            assert!((ours - expected).abs() < 1e-8 * expected, "{sine}: {ours} {expected}");
        }
        if sine > 1e-3 {
            // The signs are those of a Cholesky factor with a positive diagonal.
            assert!((0..3).all(|j| basis.col(j).transpose() * given.col(j) > 0.0), "{sine}");
        }
        let kept = given.as_ref() - &basis * (basis.transpose() * given.as_ref());
        assert!(kept.norm_max() < 13.0 * lost, "{sine}");
    }
    Ok(())
}

#[test]
fn tiny_and_huge_columns_have_an_orthonormal_basis() -> Result<()> {
    for size in [1e-200, 1e-160, 1e-150, 1e150, 1e160] {
        let (basis, reach) = orthonormal_columns(columns(0.6) * faer::Scale(size), Par::Seq)?;
        assert!(departure(&basis) < 1e-14, "{size:e}: {:e}", departure(&basis));
        for (ours, expected) in reach.iter().zip([5.0, 13.0 * 0.6, 2.0]) {
            assert!((ours / size - expected).abs() < 1e-12, "{size:e}: {ours:e} {expected}");
        }
    }
    Ok(())
}

#[test]
fn columns_that_are_nearly_orthonormal_hardly_change() -> Result<()> {
    for off in [0.0, 1e-9, 1e-3] {
        let given = Mat::from_fn(6, 4, |i, j| f64::from(i == j) + off * ((i * 5 + j * 3) % 7) as f64 / 7.0);
        let basis = orthonormalized(given.clone(), Par::Seq)?;
        assert!(departure(&basis) < 1e-15, "{off}");
        assert!((basis - given).norm_max() < 4.0 * off + 1e-15, "{off}");
    }
    Ok(())
}

#[test]
fn columns_that_are_far_from_orthonormal_become_so() -> Result<()> {
    for sine in [0.6, 1e-3, 1e-6] {
        let basis = orthonormalized(columns(sine), Par::Seq)?;
        assert!(departure(&basis) < 1e-15, "{sine}: {:e}", departure(&basis));
    }
    // Both columns have length 1, so only their small angle shows that they are not orthogonal.
    let close = Mat::from_fn(3, 2, |i, j| [[1.0, 0.0, 0.0], [(1.0_f64 - 1e-12).sqrt(), 1e-6, 0.0]][j][i]);
    assert!(departure(&orthonormalized(close, Par::Seq)?) < 1e-15);
    Ok(())
}

#[test]
fn powers_of_two_are_exact_down_to_the_smallest_number() {
    let exact =
        |e: i32| if e < -1022 { f64::from_bits(1 << (e + 1074)) } else { f64::from_bits(((e + 1023) as u64) << 52) };
    for exponent in -1074..1024 {
        assert_eq!(power_of_two(exponent), exact(exponent), "{exponent}");
    }
}

#[test]
fn a_gram_product_is_that_of_its_factors_for_any_panels_and_threads() -> Result<()> {
    let entry = |i: usize, j: usize| ((i * 37 + j * 101 + i * j) % 31) as f64 - 15.0;
    // 70 000 rows leave room for the fewest columns in a panel; 20 rows for all of them.
    for (rows, columns, width) in [(70_000, 37, 3), (20, 900, 8), (300, 500, 40), (5, 1, 1)] {
        let matrix = Mat::from_fn(rows, columns, entry);
        let block = Mat::from_fn(rows, width, |i, j| entry(j, i) / rows as f64);
        let expected = &matrix * (matrix.transpose() * &block);
        for threads in [1, 2, 3] {
            let mut found = Mat::from_fn(rows, width, entry);
            add_gram_product(found.as_mut(), 2.0, matrix.as_ref(), block.as_ref(), super::threads(threads))?;
            let difference = (found - Mat::from_fn(rows, width, entry)) * faer::Scale(0.5) - &expected;
            assert!(difference.norm_max() < 1e-9 * (1.0 + expected.norm_max()), "{rows} × {columns}, {threads}");
        }
    }
    Ok(())
}
