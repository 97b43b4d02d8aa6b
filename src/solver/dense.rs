//! The dense path: form the operator, check it, diagonalise it, and climb down a ladder if that fails.

use faer::MatRef;

use super::{Eigenpairs, PsdOperator, fix_signs, noise_level, relative};
use crate::linalg::{self, Pairs, Par, Tridiagonal, even_exponent, power_of_two};
use crate::{Error, Result, Scalar};

type Solve = fn(MatRef<'_, f64>, Par) -> Result<Option<Pairs<f64>>>;

/// One algorithm: eigenvalues in any order and eigenvectors of a finite symmetric matrix, or `None` when it gave up.
pub(super) struct Rung {
    pub(super) name: &'static str,
    pub(super) solve: Solve,
}

const NARROW: &str = "dense eigendecomposition (single precision)";

/// A rung's answer is taken when `‖Hv − λv‖`, what its vectors lack of being orthonormal, and what its values lack of adding up to
/// the trace are below this many rounding errors.
const RESIDUAL_RATIO: f64 = 100.0;

/// Sweeps of the Jacobi iteration; quadratic convergence needs fewer than ten on any size in practice.
const JACOBI_SWEEPS: usize = 60;

pub(super) const LADDER: [Rung; 4] = [
    Rung {
        name: "dense eigendecomposition (divide and conquer)",
        solve: |matrix, par| linalg::symmetric_eigen(matrix, Tridiagonal::DivideAndConquer, par),
    },
    Rung {
        name: "dense eigendecomposition (QR iteration)",
        solve: |matrix, par| linalg::symmetric_eigen(matrix, Tridiagonal::QrIteration, par),
    },
    Rung { name: "dense singular value decomposition", solve: by_singular_values },
    Rung { name: "Jacobi iteration", solve: |matrix, _| jacobi(matrix) },
];

pub(super) fn top_eigenpairs<T: Scalar>(
    operator: &dyn PsdOperator<T>,
    count: usize,
    ladder: &[Rung],
    par: Par,
) -> Result<Eigenpairs> {
    let dimension = operator.dimension();
    let assembled = operator.assemble()?;
    if assembled.shape() != (dimension, dimension) {
        let found = format!("a matrix of shape {:?} for dimension {dimension}", assembled.shape());
        return Err(Error::invalid_operator(found));
    }
    // faer's iteration spins on NaN: nothing unchecked may reach it.
    if let Some((row, column)) = linalg::first_non_finite(assembled.as_ref()) {
        let found = format!("{} at row {row}, column {column}", assembled[(row, column)]);
        return Err(Error::invalid_operator(found));
    }
    let size = linalg::max_abs(assembled.as_ref());
    // Entries near 1, so that no product underflows or overflows on the way.
    let scale = power_of_two(-even_exponent(size));
    let mut matrix = linalg::widened(assembled.as_ref(), scale)?;
    drop(assembled);
    let tolerance = RESIDUAL_RATIO * dimension as f64 * T::EPSILON;
    let noise = operator.noise() * scale;
    require_symmetric(matrix.as_ref(), tolerance, noise)?;
    // The rungs read one triangle: what the other differs by, in the precision of the operator, is no residual of theirs.
    linalg::mirror_lower(&mut matrix);
    let trace: f64 = (0..dimension).map(|i| matrix[(i, i)]).sum();

    let mut attempts = Vec::new();
    for (index, rung) in ladder.iter().enumerate() {
        attempts.push(rung.name);
        let Some((values, vectors)) = (rung.solve)(matrix.as_ref(), par)? else { continue };
        let order = descending(&values);
        let Some(order) = order.filter(|_| linalg::first_non_finite(vectors.as_ref()).is_none()) else { continue };
        let largest = order.iter().map(|(_, value)| value.abs()).fold(0.0, f64::max);
        let lowest = order.last().map_or(0.0, |&(_, value)| value);
        let Some(top) = order.get(..count) else { continue };
        let mut basis = linalg::zeros(dimension, count)?;
        for (mut to, &(at, _)) in basis.as_mut().col_iter_mut().zip(top) {
            to.copy_from(vectors.col(at));
        }
        let residual = residual(matrix.as_ref(), basis.as_ref(), top.iter().map(|&(_, value)| value), par)?;
        let rounding = dimension as f64 * f64::EPSILON;
        let sum: f64 = values.iter().sum();
        let orthonormal = is_rounding(non_orthonormality(basis.as_ref(), par)?, rounding);
        let (solved, whole) = (is_rounding(residual, rounding * largest), is_rounding(sum - trace, rounding * largest));
        // Vectors of length zero have no residual, and other pairs than the leading ones are pairs as well.
        if !(orthonormal && solved && whole) {
            continue;
        }
        if lowest < -(tolerance * largest + noise) {
            let found = format!("a negative eigenvalue, {:e}", lowest / scale);
            return Err(Error::invalid_operator(found));
        }
        fix_signs(&mut basis);
        return Ok(Eigenpairs {
            values: top.iter().map(|(_, value)| value.max(0.0) / scale).collect(),
            vectors: basis,
            solver: rung.name,
            fallback: index > 0,
            steps: 0,
            basis_size: dimension,
            residual: relative(residual, largest),
            noise: noise.max(noise_level(dimension) / f64::EPSILON * T::EPSILON * largest) / scale,
        });
    }
    Err(Error::no_convergence(dimension, attempts.join(", ")))
}

/// One attempt in the precision of the operator, at a fraction of the time; `None` where it did not converge or the residuals are not those
/// of that precision.
pub(super) fn narrow_eigenpairs<T: Scalar>(
    operator: &dyn PsdOperator<T>,
    count: usize,
    par: Par,
) -> Result<Option<Eigenpairs>> {
    let dimension = operator.dimension();
    let mut matrix = operator.assemble()?;
    if linalg::first_non_finite(matrix.as_ref()).is_some() {
        return Ok(None);
    }
    // Entries near 1: below some thousandths, faer's divide and conquer loses digits in single precision. In two steps, lest the factor
    // be out of range.
    let exponent = even_exponent(linalg::max_abs(matrix.as_ref()));
    let unit = power_of_two(exponent);
    for _ in 0..2 {
        matrix *= faer::Scale(T::from_f64(power_of_two(-exponent / 2)));
    }
    let solved = linalg::symmetric_eigen(matrix.as_ref(), Tridiagonal::DivideAndConquer, par)?;
    let Some((values, vectors)) = solved else { return Ok(None) };
    let Some(order) = descending(&values) else { return Ok(None) };
    let Some(top) = order.get(..count) else { return Ok(None) };
    let mut basis = linalg::zeros::<f64>(dimension, count)?;
    for (to, &(from, _)) in basis.as_mut().col_iter_mut().zip(top) {
        to.iter_mut().zip(vectors.col(from).iter()).for_each(|(to, from)| *to = from.to_f64());
    }
    drop(vectors);
    if linalg::first_non_finite(basis.as_ref()).is_some() {
        return Ok(None);
    }
    // Orthonormal to the rounding of `f64`, whatever `T` is.
    let mut basis = linalg::orthonormalized(basis, par)?;
    let residual = residual(matrix.as_ref(), basis.as_ref(), top.iter().map(|&(_, value)| value), par)?;
    let largest = top.first().map_or(0.0, |(_, value)| value.max(0.0));
    let rounding = T::EPSILON * (dimension as f64).sqrt() * largest;
    if !is_rounding(residual, rounding) {
        return Ok(None);
    }
    fix_signs(&mut basis);
    Ok(Some(Eigenpairs {
        values: top.iter().map(|(_, value)| value.max(0.0) * unit).collect(),
        vectors: basis,
        solver: NARROW,
        fallback: false,
        steps: 0,
        basis_size: dimension,
        residual: relative(residual, largest),
        noise: operator.noise().max(rounding * unit),
    }))
}

/// Whether rounding explains an error, in units of one rounding error. It does not explain what is not a number.
fn is_rounding(error: f64, unit: f64) -> bool {
    error.abs() <= RESIDUAL_RATIO * unit
}

/// The values in descending order, each after its place; `None` if one is not a number.
fn descending(values: &[f64]) -> Option<Vec<(usize, f64)>> {
    if values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let mut order: Vec<(usize, f64)> = values.iter().copied().enumerate().collect();
    order.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    Some(order)
}

/// Largest column norm of `H V − V diag(λ)`, multiplied in the precision of the matrix.
fn residual<T: Scalar>(
    matrix: MatRef<'_, T>,
    vectors: MatRef<'_, f64>,
    values: impl Iterator<Item = f64>,
    par: Par,
) -> Result<f64> {
    let rounded = linalg::rounded::<T>("the eigenvectors", vectors)?;
    let applied = linalg::product(matrix, rounded.as_ref(), par)?;
    let columns = applied.col_iter().zip(vectors.col_iter()).zip(values);
    let norms = columns.map(|((applied, vector), value)| {
        let squares = applied.iter().zip(vector.iter()).map(|(h, v)| (h.to_f64() - value * v).powi(2));
        squares.sum::<f64>().sqrt()
    });
    Ok(greatest(norms))
}

/// Largest entry of `VᵀV − I`.
fn non_orthonormality(vectors: MatRef<'_, f64>, par: Par) -> Result<f64> {
    let mut gram = linalg::product(vectors.transpose(), vectors, par)?;
    gram.as_mut().diagonal_mut().column_vector_mut().iter_mut().for_each(|entry| *entry -= 1.0);
    Ok(greatest(gram.as_ref().col_iter().flat_map(|column| column.iter().map(|entry| entry.abs()))))
}

/// The largest of non-negative numbers; NaN, which `f64::max` would pass over, if there is one.
fn greatest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |most, value| if value > most || value.is_nan() { value } else { most })
}

/// For a positive semidefinite matrix the singular pairs are the eigenpairs. `uᵀHu` tells where one is not.
fn by_singular_values(matrix: MatRef<'_, f64>, par: Par) -> Result<Option<Pairs<f64>>> {
    let Some((mut values, vectors)) = linalg::left_singular(matrix, par)? else { return Ok(None) };
    let applied = linalg::product(matrix, vectors.as_ref(), par)?;
    for (value, (applied, vector)) in values.iter_mut().zip(applied.col_iter().zip(vectors.col_iter())) {
        let form: f64 = applied.iter().zip(vector.iter()).map(|(h, v)| h * v).sum();
        *value = value.copysign(form);
    }
    Ok(Some((values, vectors)))
}

fn require_symmetric(matrix: MatRef<'_, f64>, tolerance: f64, noise: f64) -> Result<()> {
    let bound = tolerance * linalg::max_abs(matrix) + noise;
    for row in 0..matrix.nrows() {
        for column in 0..row {
            let (lower, upper) = (matrix[(row, column)], matrix[(column, row)]);
            if (lower - upper).abs() > bound {
                let found = format!("different entries at ({row}, {column}) and ({column}, {row})");
                return Err(Error::invalid_operator(found));
            }
        }
    }
    Ok(())
}

/// Cyclic Jacobi iteration: slow, but it has no case in which it fails to converge.
fn jacobi(matrix: MatRef<'_, f64>) -> Result<Option<Pairs<f64>>> {
    let dimension = matrix.nrows();
    let mut h = linalg::widened(matrix, 1.0)?;
    linalg::mirror_lower(&mut h);
    let mut vectors = linalg::zeros(dimension, dimension)?;
    vectors.as_mut().diagonal_mut().column_vector_mut().fill(1.0);
    // Of the size of rounding in a rotation: below it, what one of them annihilates another brings back for ever where
    // eigenvalues coincide.
    let negligible = f64::EPSILON * linalg::squared_norm(h.as_ref()).sqrt();
    for _ in 0..JACOBI_SWEEPS {
        let mut rotated = false;
        for p in 0..dimension {
            for q in p + 1..dimension {
                let off_diagonal = h[(p, q)];
                if off_diagonal.abs() <= negligible {
                    continue;
                }
                rotated = true;
                // The rotation that annihilates h_pq (Golub and Van Loan, section 8.5).
                let tau = (h[(q, q)] - h[(p, p)]) / (2.0 * off_diagonal);
                let t = tau.signum() / (tau.abs() + (1.0 + tau * tau).sqrt());
                let c = 1.0 / (1.0 + t * t).sqrt();
                let s = t * c;
                for i in 0..dimension {
                    let (a, b) = (h[(i, p)], h[(i, q)]);
                    h[(i, p)] = c * a - s * b;
                    h[(i, q)] = s * a + c * b;
                }
                for i in 0..dimension {
                    let (a, b) = (h[(p, i)], h[(q, i)]);
                    h[(p, i)] = c * a - s * b;
                    h[(q, i)] = s * a + c * b;
                    let (a, b) = (vectors[(i, p)], vectors[(i, q)]);
                    vectors[(i, p)] = c * a - s * b;
                    vectors[(i, q)] = s * a + c * b;
                }
                (h[(p, q)], h[(q, p)]) = (0.0, 0.0);
            }
        }
        if !rotated {
            return Ok(Some(((0..dimension).map(|i| h[(i, i)]).collect(), vectors)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
