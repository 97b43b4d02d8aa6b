//! The choice of pivot rows of a low-rank weight, and the coefficients of its other rows.

use faer::{Mat, MatRef};

use crate::linalg::{self, Par, even_exponent, power_of_two};
use crate::{Error, Result, Scalar};

/// The largest magnitude of a coefficient. 1 is possible, but could take many exchanges that gain
/// little.
const LARGEST: f64 = 2.0;

/// The pivots among the rows of `up`, ascending, and the coefficients `A` with `up_rest = A up_p`.
///
/// The pivots are as many as `up` has columns, or all rows if there are fewer. The columns may be
/// dependent.
pub(super) fn pivots<T: Scalar>(up: MatRef<'_, T>, par: Par) -> Result<(Vec<usize>, Mat<f64>)> {
    let (rows, rank) = up.shape();
    if rank >= rows {
        return Ok(((0..rows).collect(), Mat::zeros(0, rows)));
    }
    let basis = basis(up, par)?;
    let mut columns = linalg::zeros(rank, rows)?;
    columns.copy_from(basis.transpose());
    let mut pivots = linalg::pivot_columns(columns, par)?;
    let mut exchanges = most_exchanges(rows, rank);
    loop {
        pivots.sort_unstable();
        let mut others = others(&pivots, rows);
        // Computed anew after exchanges, which lose digits.
        let mut coefficients = coefficients(basis.as_ref(), &pivots, &others, par)?;
        if linalg::max_abs(coefficients.as_ref()) <= LARGEST {
            return Ok((pivots, coefficients));
        }
        while let Some((other, pivot)) = largest(coefficients.as_ref()).filter(|_| exchanges > 0) {
            exchange(&mut coefficients, other, pivot);
            if let (Some(other), Some(pivot)) = (others.get_mut(other), pivots.get_mut(pivot)) {
                core::mem::swap(other, pivot);
            }
            exchanges -= 1;
        }
        if exchanges == 0 {
            let found = linalg::max_abs(coefficients.as_ref());
            return Err(Error::out_of_range("the largest coefficient", "at most 2 after all exchanges".into(), found));
        }
    }
}

/// An orthonormal basis of a space that contains the columns of `up`, in `f64`.
///
/// Columns are scaled first, so that none is lost beside larger ones. A column that depends on
/// those before it adds some direction.
fn basis<T: Scalar>(up: MatRef<'_, T>, par: Par) -> Result<Mat<f64>> {
    let mut columns = linalg::widened(up, 1.0)?;
    for column in columns.as_mut().col_iter_mut() {
        let scale = power_of_two(-even_exponent(linalg::max_abs(column.as_ref().as_mat())));
        column.iter_mut().for_each(|entry| *entry *= scale);
    }
    Ok(linalg::thin_qr(columns, par)?.0)
}

/// The rows from 0 that are not pivots.
fn others(pivots: &[usize], rows: usize) -> Vec<usize> {
    let mut pivots = pivots.iter().peekable();
    (0..rows).filter(|row| pivots.next_if_eq(&row).is_none()).collect()
}

/// `A = Q_rest Q_p⁻¹`.
fn coefficients(basis: MatRef<'_, f64>, pivots: &[usize], others: &[usize], par: Par) -> Result<Mat<f64>> {
    let columns = |rows: &[usize]| {
        let mut columns = linalg::zeros(basis.ncols(), rows.len())?;
        for (column, &row) in columns.as_mut().col_iter_mut().zip(rows) {
            column.transpose_mut().copy_from(basis.row(row));
        }
        Result::Ok(columns)
    };
    let solution = linalg::solve(columns(pivots)?, columns(others)?.as_ref(), par)?;
    let solution = solution.ok_or(Error::overflow("the coefficients"))?;
    let mut coefficients = linalg::zeros(others.len(), pivots.len())?;
    coefficients.copy_from(solution.transpose());
    Ok(coefficients)
}

/// The place of the largest magnitude, if that is too large.
fn largest(coefficients: MatRef<'_, f64>) -> Option<(usize, usize)> {
    let mut found = (LARGEST, None);
    for (pivot, column) in coefficients.col_iter().enumerate() {
        for (other, entry) in column.iter().enumerate() {
            if entry.abs() > found.0 {
                found = (entry.abs(), Some((other, pivot)));
            }
        }
    }
    found.1
}

/// The coefficients after an exchange of one of the other rows and a pivot, which multiplies
/// `|det Q_p|` by the magnitude of the coefficient there.
///
/// ```text
/// A − (A_{:j} + eᵢ)(A_{i:} − eⱼᵀ) / A_ij
/// ```
fn exchange(coefficients: &mut Mat<f64>, other: usize, pivot: usize) {
    let entry = coefficients[(other, pivot)];
    let mut column = coefficients.col(pivot).to_owned();
    let mut row = coefficients.row(other).to_owned();
    column[other] += 1.0;
    row[pivot] -= 1.0;
    linalg::add_product(coefficients.as_mut(), -1.0 / entry, column.as_mat(), row.as_mat(), Par::Seq);
}

/// A bound on the number of exchanges, each of which at least doubles `|det Q_p|`, and some.
///
/// The largest `|det Q_p|` is at most 1, and QR with column pivoting reaches
/// `1 / (k! √binom(m, k))` of it or more.
fn most_exchanges(rows: usize, rank: usize) -> usize {
    let (rows, rank) = (rows as f64, rank as f64);
    (rank * (rank.log2() + rows.log2() / 2.0)) as usize + 64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::SplitMix64;

    fn random(rows: usize, columns: usize) -> Mat<f64> {
        let mut random = SplitMix64::new();
        Mat::from_fn(rows, columns, |_, _| random.next())
    }

    /// Orthonormal columns whose leading rows are the transpose of a Kahan matrix, which QR with
    /// column pivoting takes as they are.
    fn around_a_kahan_matrix() -> Mat<f64> {
        let (size, others, cosine) = (30, 16384_usize, 0.35_f64);
        let sine = (1.0 - cosine * cosine).sqrt();
        let kahan = Mat::from_fn(size, size, |i, j| {
            let entry = if i < j { -cosine } else { f64::from(i == j) };
            // The factor of the column breaks ties.
            0.2 * entry * sine.powi(i as i32) * 0.9999_f64.powi(j as i32)
        });
        // The other columns are short, and complete the rows to orthonormal ones.
        let missing = Mat::<f64>::identity(size, size) - &kahan * kahan.transpose();
        let root = linalg::cholesky(missing, Par::Seq).unwrap().unwrap();
        let root = Mat::from_fn(size, size, |i, j| if i >= j { root[(i, j)] } else { 0.0 });
        let sign = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
        let spread = Mat::from_fn(others, size, |i, j| sign(i, j) / (others as f64).sqrt());
        let rest = spread * root.transpose();
        Mat::from_fn(size + others, size, |i, j| if i < size { kahan[(j, i)] } else { rest[(i - size, j)] })
    }

    #[test]
    fn exchanges_bound_coefficients_that_pivoting_leaves_large() -> Result<()> {
        let basis = around_a_kahan_matrix();
        let rows = basis.nrows();
        let mut first = linalg::pivot_columns(basis.transpose().to_owned(), Par::Seq)?;
        first.sort_unstable();
        let before = coefficients(basis.as_ref(), &first, &others(&first, rows), Par::Seq)?;
        assert!(linalg::max_abs(before.as_ref()) > 100.0, "{}", linalg::max_abs(before.as_ref()));
        // The basis of the same space that the columns are made into is another one.
        let mixed = &basis * random(basis.ncols(), basis.ncols());
        let (pivots, after) = pivots(mixed.as_ref(), Par::Seq)?;
        assert!(linalg::max_abs(after.as_ref()) <= LARGEST);
        assert!(pivots != first && pivots.is_sorted());
        let other_rows = others(&pivots, rows);
        let kept = Mat::from_fn(pivots.len(), mixed.ncols(), |i, j| mixed[(pivots[i], j)]);
        let difference = Mat::from_fn(other_rows.len(), mixed.ncols(), |i, j| mixed[(other_rows[i], j)]) - after * kept;
        assert!(difference.norm_max() < 1e-13, "{}", difference.norm_max());
        Ok(())
    }

    #[test]
    fn an_exchange_gives_the_coefficients_of_the_exchanged_rows() -> Result<()> {
        let basis = random(9, 4);
        let (mut pivots, mut rest) = (vec![0, 2, 3, 7], vec![1, 4, 5, 6, 8]);
        let mut updated = coefficients(basis.as_ref(), &pivots, &rest, Par::Seq)?;
        for (other, pivot) in [(2, 1), (0, 3), (2, 0)] {
            exchange(&mut updated, other, pivot);
            (pivots[pivot], rest[other]) = (rest[other], pivots[pivot]);
            let expected = coefficients(basis.as_ref(), &pivots, &rest, Par::Seq)?;
            assert!((&updated - expected).norm_max() < 1e-12);
        }
        Ok(())
    }

    #[test]
    fn the_first_columns_are_the_longest_beside_those_before() -> Result<()> {
        let columns = faer::mat![[3.0, 0.0, 3.0, 0.1], [0.0, 1.0, 4.0, 0.0]];
        assert_eq!(linalg::pivot_columns(columns, Par::Seq)?, [2, 0]);
        // Columns of zeros do not stop it.
        let mut pivots = linalg::pivot_columns(Mat::zeros(2, 3), Par::Seq)?;
        pivots.sort_unstable();
        pivots.dedup();
        assert_eq!(pivots.len(), 2);
        Ok(())
    }
}
