//! Estimated costs of the algorithms, and the choice between them.
//!
//! A cost is a number of multiply–adds (MACs). The unit is one MAC of a large matrix product in the
//! operator's own precision; MACs of slower operations count as several. The counts of MACs are
//! derived below. The factors for slower operations were fitted to measurements, by
//! `cargo bench --bench cost -- phases` and `-- grid`; the latter prints how much longer each
//! choice takes than the fastest algorithm.

use super::lanczos::Widths;
use super::{PsdOperator, Solver};
use crate::Scalar;

/// Cost of a MAC in `f64`, in MACs in `f32`. A vector register holds half as many `f64` numbers.
pub(crate) const DOUBLE: f64 = 2.0;

/// Cost of a dense eigendecomposition, divided by `d³`.
///
/// The reduction to tridiagonal form takes `⅔ d³` MACs, divide and conquer and the transformation
/// of the eigenvectors about `2 d³`. Half of the reduction is matrix–vector products, which read
/// the matrix from memory for every column. It takes two thirds of the time, hence `4 + 2`.
const DENSE_PER_CUBE: f64 = 6.0;

/// Cost of the small operations in a dense eigendecomposition, divided by `d²`: kernels that run
/// for each of the `d` columns. It exceeds the cubic term below `d = 667`.
const DENSE_PER_SQUARE: f64 = 4000.0;

/// The smallest dimension for which block Lanczos is considered. Below it, a dense solve takes a
/// few milliseconds, and is accurate to rounding.
const LEAST_DIMENSION: usize = 256;

/// Block width at which reading the operator from memory takes as long as the MACs of a product.
/// Each block reads the operator once.
const MEMORY_BOUND_WIDTH: f64 = 16.0;

/// Cost of the eigenvalues at the tests of convergence and of the eigenvectors at the end, in dense
/// eigendecompositions of the projected operator. Most problems converge with a basis of three
/// vectors for each pair.
const RITZ_SOLUTIONS: f64 = 3.0;

/// Estimates the cost of a dense eigendecomposition.
pub(crate) fn dense(dimension: usize) -> f64 {
    let dimension = dimension as f64;
    DENSE_PER_CUBE * dimension.powi(3) + DENSE_PER_SQUARE * dimension.powi(2)
}

/// Estimates the cost of `count` eigenpairs by block Lanczos, for an operator that takes `macs`
/// MACs for each vector. Returns `None` if the dimension is too small, or if the basis would fill
/// the space.
///
/// A basis of `s` vectors takes `s` products with the operator. Vector `j` is projected out of
/// those before it in up to four passes of `2 d j` MACs, which add up to `4 d s²`.
pub(crate) fn lanczos(dimension: usize, count: usize, macs: f64) -> Option<f64> {
    let widths = Widths::new(dimension, count);
    let basis = widths.expected_basis(count);
    let reading = 1.0 + MEMORY_BOUND_WIDTH / widths.block as f64;
    let examining = RITZ_SOLUTIONS * dense(basis);
    let vectors = basis as f64;
    let orthogonalising = 4.0 * dimension as f64 * vectors * vectors;
    (dimension >= LEAST_DIMENSION && basis < dimension)
        .then_some(reading * (vectors * macs + orthogonalising) + examining)
}

/// Returns whether the solver tries block Lanczos first. If the costs are equal, it does not.
pub(super) fn prefers_lanczos<T: Scalar>(operator: &dyn PsdOperator<T>, count: usize, solver: Solver) -> bool {
    match solver {
        Solver::DenseEigen => false,
        Solver::BlockLanczos => true,
        Solver::Auto => {
            let dimension = operator.dimension();
            lanczos(dimension, count, operator.macs())
                .is_some_and(|cost| cost < operator.assembly_macs() + dense(dimension))
        }
    }
}
