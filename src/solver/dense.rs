//! The dense algorithms: form the operator, check it, diagonalise it, verify the result.

use faer::MatRef;

use super::eigenpairs::{noise_level, relative};
use super::{Eigenpairs, PsdOperator, fix_signs};
use crate::linalg::{self, Pairs, Par, even_exponent, power_of_two};
use crate::{Error, Result, Scalar};

/// Eigenvalues in any order and eigenvectors of a finite symmetric matrix; `None` if the algorithm
/// fails.
type Solve<P> = fn(MatRef<'_, P>, Par) -> Result<Option<Pairs<P>>>;

/// One algorithm in precision `P`.
pub(super) struct Algorithm<P> {
    pub(super) name: &'static str,
    pub(super) solve: Solve<P>,
}

/// Accepted error, as a multiple of the expected rounding error.
const ROUNDING_RATIO: f64 = 100.0;

/// The algorithms in double precision, in the order in which they are tried.
///
/// faer's eigendecomposition was reported to fail on an 11 × 11 matrix. The singular value
/// decomposition uses neither its tridiagonal form nor its iteration, and takes `O(d³)`.
pub(super) const ALGORITHMS: [Algorithm<f64>; 2] = [
    Algorithm { name: "dense eigendecomposition (divide and conquer)", solve: linalg::symmetric_eigen },
    Algorithm { name: "dense singular value decomposition", solve: by_singular_values },
];

/// Solves in `f64`, whatever the operator's precision, by the first algorithm that succeeds.
pub(super) fn double_precision<T: Scalar>(
    operator: &dyn PsdOperator<T>,
    count: usize,
    algorithms: &[Algorithm<f64>],
    par: Par,
) -> Result<Eigenpairs> {
    let mut pairs = solve(operator, count, algorithms, par)?;
    // The caller's operator rounded the entries of the matrix to `T`.
    let level = noise_level(operator.dimension()) / f64::EPSILON * T::EPSILON;
    pairs.noise = pairs.noise.max(level * pairs.values.first().copied().unwrap_or(0.0));
    Ok(pairs)
}

/// Solves in the operator's own precision; returns `None` if the result is not accurate to that
/// precision.
///
/// The eigenvectors are orthonormal to the rounding of `f64` in any case.
pub(crate) fn native_precision<T: Scalar>(
    operator: &dyn PsdOperator<T>,
    count: usize,
    par: Par,
) -> Result<Option<Eigenpairs>> {
    let name = "dense eigendecomposition (single precision)";
    let algorithm = Algorithm::<T> { name, solve: linalg::symmetric_eigen };
    match solve(operator, count, &[algorithm], par) {
        Ok(pairs) => Ok(Some(pairs)),
        // The solve in double precision then finds out whether the operator is invalid.
        Err(Error::NoConvergence { .. } | Error::InvalidOperator { .. }) => Ok(None),
        Err(other) => Err(other),
    }
}

fn solve<T: Scalar, P: Scalar>(
    operator: &dyn PsdOperator<T>,
    count: usize,
    algorithms: &[Algorithm<P>],
    par: Par,
) -> Result<Eigenpairs> {
    let dimension = operator.dimension();
    let assembled = operator.assemble()?;
    if assembled.shape() != (dimension, dimension) {
        let found = format!("a matrix of shape {:?} for dimension {dimension}", assembled.shape());
        return Err(Error::invalid_operator(found));
    }
    // faer's iteration runs for hours on NaN.
    if let Some((row, column)) = linalg::first_non_finite(assembled.as_ref()) {
        let found = format!("{} at row {row}, column {column}", assembled[(row, column)]);
        return Err(Error::invalid_operator(found));
    }
    // With entries near 1, no product overflows or underflows. In single precision, faer's divide
    // and conquer also loses digits if all entries are below about 0.001.
    let scale = power_of_two(-even_exponent(linalg::max_abs(assembled.as_ref())));
    let mut matrix = linalg::converted::<T, P>(assembled.as_ref(), scale)?;
    drop(assembled);
    let tolerance = ROUNDING_RATIO * dimension as f64 * T::EPSILON;
    let noise = operator.noise() * scale;
    require_symmetric(matrix.as_ref(), tolerance, noise)?;
    // The algorithms read one triangle. Rounding differences in the other one must not count in
    // their residual.
    linalg::mirror_lower(&mut matrix);

    for (index, algorithm) in algorithms.iter().enumerate() {
        let Some(pairs) = (algorithm.solve)(matrix.as_ref(), par)? else { continue };
        let Some(verified) = verify(matrix.as_ref(), pairs, count, par)? else { continue };
        let Verified { values, mut vectors, largest, lowest, residual } = verified;
        if lowest < -(tolerance * largest + noise) {
            let found = format!("a negative eigenvalue, {:e}", lowest / scale);
            return Err(Error::invalid_operator(found));
        }
        fix_signs(&mut vectors);
        return Ok(Eigenpairs {
            values: values.into_iter().map(|value| value.max(0.0) / scale).collect(),
            vectors,
            solver: algorithm.name,
            fallback: index > 0,
            steps: 0,
            basis_size: dimension,
            residual: relative(residual, largest),
            noise: noise.max(rounding::<P>(dimension) * largest) / scale,
        });
    }
    let names: Vec<&str> = algorithms.iter().map(|algorithm| algorithm.name).collect();
    Err(Error::no_convergence(dimension, names.join(", ")))
}

/// The leading pairs of an algorithm's result that passed all checks.
struct Verified {
    values: Vec<f64>,
    vectors: faer::Mat<f64>,
    /// The largest magnitude of all eigenvalues.
    largest: f64,
    /// The smallest of all eigenvalues.
    lowest: f64,
    residual: f64,
}

/// Returns the leading pairs, with vectors made orthonormal in `f64`; `None` if they are not
/// eigenpairs to rounding in `P`, or not the leading ones.
fn verify<P: Scalar>(
    matrix: MatRef<'_, P>,
    (values, vectors): Pairs<P>,
    count: usize,
    par: Par,
) -> Result<Option<Verified>> {
    let dimension = matrix.nrows();
    let mut order: Vec<(usize, f64)> = values.into_iter().enumerate().collect();
    order.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let largest = order.iter().map(|(_, value)| value.abs()).fold(0.0, f64::max);
    let lowest = order.last().map_or(0.0, |&(_, value)| value);
    // Pairs that are not the leading ones have no residual either, but their sum is too small.
    let trace: f64 = (0..dimension).map(|i| matrix[(i, i)].to_f64()).sum();
    let sum: f64 = order.iter().map(|(_, value)| value).sum();
    // A NaN among the values makes the sum NaN, and the comparison false.
    let complete = (sum - trace).abs() <= ROUNDING_RATIO * dimension as f64 * P::EPSILON * largest;
    let finite = largest.is_finite();
    let Some(top) = order.get(..count).filter(|_| complete && finite) else { return Ok(None) };

    let mut basis = linalg::zeros::<f64>(dimension, count)?;
    for (to, &(from, _)) in basis.as_mut().col_iter_mut().zip(top) {
        to.iter_mut().zip(vectors.col(from).iter()).for_each(|(to, from)| *to = from.to_f64());
    }
    drop(vectors);
    let vectors = linalg::orthonormalized(basis, par)?;
    if linalg::first_non_finite(vectors.as_ref()).is_some() {
        return Ok(None);
    }
    let values: Vec<f64> = top.iter().map(|&(_, value)| value).collect();
    let residual = residual(matrix, vectors.as_ref(), &values, par)?;
    let accepted = residual <= ROUNDING_RATIO * rounding::<P>(dimension) * largest;
    Ok(accepted.then_some(Verified { values, vectors, largest, lowest, residual }))
}

/// Returns the expected size of the sum of rounding errors in orthogonal transformations, as for a
/// random walk.
fn rounding<P: Scalar>(dimension: usize) -> f64 {
    P::EPSILON * (dimension as f64).sqrt()
}

/// Returns the largest column norm of `H V − V diag(λ)`, multiplied in the precision of the matrix.
fn residual<P: Scalar>(matrix: MatRef<'_, P>, vectors: MatRef<'_, f64>, values: &[f64], par: Par) -> Result<f64> {
    let rounded = linalg::rounded::<P>("the eigenvectors", vectors)?;
    let applied = linalg::product(matrix, rounded.as_ref(), par)?;
    let columns = applied.col_iter().zip(vectors.col_iter()).zip(values);
    let norms = columns.map(|((applied, vector), value)| {
        let squares = applied.iter().zip(vector.iter()).map(|(h, v)| (h.to_f64() - value * v).powi(2));
        squares.sum::<f64>().sqrt()
    });
    // `f64::max` would ignore NaN.
    Ok(norms.fold(0.0, |most, norm| if norm > most || norm.is_nan() { norm } else { most }))
}

/// Computes eigenpairs as singular pairs, which are the same for a positive semidefinite matrix.
/// The sign of `uᵀHu` shows which eigenvalues are negative.
fn by_singular_values(matrix: MatRef<'_, f64>, par: Par) -> Result<Option<Pairs<f64>>> {
    let Some((mut values, vectors)) = linalg::left_singular(matrix, par)? else { return Ok(None) };
    let applied = linalg::product(matrix, vectors.as_ref(), par)?;
    for (value, (applied, vector)) in values.iter_mut().zip(applied.col_iter().zip(vectors.col_iter())) {
        let form: f64 = applied.iter().zip(vector.iter()).map(|(h, v)| h * v).sum();
        *value = value.copysign(form);
    }
    Ok(Some((values, vectors)))
}

fn require_symmetric<P: Scalar>(matrix: MatRef<'_, P>, tolerance: f64, noise: f64) -> Result<()> {
    /// Number of columns that are compared at once, so that whole cache lines of the other triangle
    /// are used.
    const WIDTH: usize = 16;
    let (dimension, bound) = (matrix.nrows(), tolerance * linalg::max_abs(matrix) + noise);
    for start in (0..dimension).step_by(WIDTH) {
        for row in start..dimension {
            for column in start..row.min(start + WIDTH) {
                let (lower, upper) = (matrix[(row, column)].to_f64(), matrix[(column, row)].to_f64());
                if (lower - upper).abs() > bound {
                    let found = format!("different entries at ({row}, {column}) and ({column}, {row})");
                    return Err(Error::invalid_operator(found));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
