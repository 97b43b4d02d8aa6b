//! The cost model behind [`Solver::Auto`](super::Solver): multiply–adds, weighed by what `benches/cost.rs` measures.
//!
//! The unit is a multiply–add of a large product in the operator's own precision.

use super::lanczos::Layout;

/// A multiply–add in `f64`, in units of one in `f32`.
pub(crate) const DOUBLE: f64 = 2.0;

/// Vectors at which a product with a block waits as long for memory as it takes to multiply.
const THIN: f64 = 32.0;

/// Below this dimension a dense solve takes a few milliseconds, and is exact.
const SMALLEST_ITERATED: usize = 256;

/// A dense eigendecomposition: the reduction to tridiagonal form waits for memory, and small ones for everything.
pub(crate) fn dense(dimension: usize) -> f64 {
    let dimension = dimension as f64;
    6.0 * dimension.powi(3) + 4000.0 * dimension.powi(2)
}

/// Finding `count` eigenpairs by block Lanczos, where one vector's product takes `work`; `None` where the basis would fill the space.
/// Most problems settle with a basis of three vectors per pair and are looked at three times until then.
pub(crate) fn lanczos(dimension: usize, count: usize, work: f64) -> Option<f64> {
    let layout = Layout::new(dimension, count);
    let basis = layout.expected_basis(count);
    let waiting = 1.0 + THIN / layout.block as f64;
    let looking = 3.0 * dense(basis);
    let vectors = basis as f64;
    let orthogonalising = 4.0 * dimension as f64 * vectors * vectors;
    (dimension >= SMALLEST_ITERATED && basis < dimension)
        .then_some(waiting * (vectors * work + orthogonalising) + looking)
}
