//! The convergence test of block Lanczos.

use super::krylov_basis::Magnitude;
use super::ritz_pairs::Ritz;
use crate::Scalar;

/// Accepted loss of explained energy, relative to the energy that is left out: for `f64` and for
/// `f32`. The iteration stops at this loss.
const TOLERANCE: (f64, f64) = (1e-12, 5e-5);

/// Number of random vectors in the verification block, and of products that start from it.
///
/// An eigenvalue can be repeated more often than a block has vectors. The iteration then misses
/// some of its eigenvectors, and small residuals do not reveal that. A result is accepted if
/// products with a verification block of random vectors add no more energy than the tolerance.
pub(super) const VERIFICATION_WIDTH: usize = 16;
pub(super) const VERIFICATION_STEPS: usize = 3;

/// Returns the accepted loss of explained energy: a fraction of the energy that is left out, plus
/// rounding and noise.
pub(super) fn allowed_loss<T: Scalar>(magnitude: &Magnitude, captured: f64) -> f64 {
    let relative = if T::EPSILON > f64::EPSILON { TOLERANCE.1 } else { TOLERANCE.0 };
    relative * (magnitude.trace - captured).max(0.0) + 8.0 * T::EPSILON * magnitude.trace + magnitude.noise
}

/// Returns a bound on the energy that the leading `count` Ritz vectors miss.
///
/// Each vector misses at most its residual. It also misses at most its squared residual, divided by
/// the distance to the first Ritz value that is left out.
pub(super) fn possible_loss(ritz: &Ritz, count: usize, residuals: &[f64]) -> f64 {
    let outside = ritz.values.get(count).copied().unwrap_or(0.0);
    let loss =
        |(value, residual): (&f64, &f64)| residual * residual / residual.max(value - outside).max(f64::MIN_POSITIVE);
    ritz.values.iter().zip(residuals).map(loss).sum()
}
