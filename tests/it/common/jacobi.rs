//! One-sided Jacobi singular value decomposition: an oracle that shares no code with the library's
//! solvers.
//!
//! It rotates pairs of columns until all are orthogonal (Hestenes 1958), without a tridiagonal
//! form, shifts or products of matrices. Small singular values have a relative accuracy that no
//! bidiagonalisation reaches (Demmel and Veselić 1992).

use faer::{Mat, MatRef};

/// `matrix = left · diag(values) · rightᵀ`, with `values` descending and one column per value.
pub struct Svd {
    /// Orthonormal. If the matrix has no fewer rows than columns, columns for values of zero are
    /// zero.
    pub left: Mat<f64>,
    pub values: Vec<f64>,
    /// Orthonormal. If the matrix has fewer rows than columns, columns for values of zero are zero.
    pub right: Mat<f64>,
}

const SWEEPS: usize = 60;

pub fn svd(matrix: MatRef<'_, f64>) -> Svd {
    let (rows, columns) = matrix.shape();
    if rows < columns {
        let Svd { left, values, right } = svd(matrix.transpose());
        return Svd { left: right, values, right: left };
    }
    // Entries near 1: squares are formed.
    let size = matrix.norm_max();
    let scale = if size > 0.0 { 2_f64.powi(size.log2().floor().clamp(-1000.0, 1000.0) as i32) } else { 1.0 };
    let mut work: Vec<Vec<f64>> = matrix.col_iter().map(|column| column.iter().map(|x| x / scale).collect()).collect();
    let mut right: Vec<Vec<f64>> = (0..columns).map(|j| (0..columns).map(|i| f64::from(i == j)).collect()).collect();
    let negligible = f64::EPSILON * (rows as f64).sqrt();
    let converged = (0..SWEEPS).any(|_| !sweep(&mut work, &mut right, negligible));
    assert!(converged, "Jacobi rotations do not settle on a {rows} × {columns} matrix");

    let norms: Vec<f64> = work.iter().map(|column| dot(column, column).sqrt()).collect();
    let mut order: Vec<usize> = (0..columns).collect();
    order.sort_by(|&a, &b| norms[b].total_cmp(&norms[a]));
    Svd {
        left: Mat::from_fn(rows, columns, |i, j| match norms[order[j]] {
            0.0 => 0.0,
            norm => work[order[j]][i] / norm,
        }),
        values: order.iter().map(|&j| norms[j] * scale).collect(),
        right: Mat::from_fn(columns, columns, |i, j| right[order[j]][i]),
    }
}

/// Makes every pair of columns orthogonal once, and returns whether a pair was rotated.
fn sweep(work: &mut [Vec<f64>], right: &mut [Vec<f64>], negligible: f64) -> bool {
    let mut rotated = false;
    for q in 1..work.len() {
        for p in 0..q {
            let (mut alpha, mut beta) = (dot(&work[p], &work[p]), dot(&work[q], &work[q]));
            if alpha < beta {
                // Longer columns first (de Rijk 1989), which is what makes small ones accurate.
                work.swap(p, q);
                right.swap(p, q);
                (alpha, beta) = (beta, alpha);
            }
            let gamma = dot(&work[p], &work[q]);
            // A column whose square underflows counts as zero.
            if beta < f64::MIN_POSITIVE || gamma.abs() <= negligible * alpha.sqrt() * beta.sqrt() {
                continue;
            }
            rotated = true;
            let zeta = (beta - alpha) / (2.0 * gamma);
            let tangent = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
            let cosine = 1.0 / tangent.hypot(1.0);
            rotate(work, p, q, cosine, cosine * tangent);
            rotate(right, p, q, cosine, cosine * tangent);
        }
    }
    rotated
}

fn rotate(columns: &mut [Vec<f64>], p: usize, q: usize, cosine: f64, sine: f64) {
    let (before, from) = columns.split_at_mut(q);
    for (a, b) in before[p].iter_mut().zip(&mut from[0]) {
        (*a, *b) = (cosine * *a - sine * *b, sine * *a + cosine * *b);
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
