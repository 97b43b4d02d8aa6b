//! The convergence test of block Lanczos.

use super::krylov_basis::Magnitude;
use super::ritz_pairs::Ritz;
use crate::Scalar;

/// Loss of captured energy, relative to the energy that is left out, at which the iteration may
/// stop: for `f64` and for `f32`.
const TOLERANCE: (f64, f64) = (1e-12, 5e-5);

/// Number of random vectors in the verification block, and of products that start from it.
///
/// A Krylov space does not see a multiplicity above its block size, however small its residual. A
/// result is accepted once random directions bring in nothing new.
pub(super) const VERIFICATION_WIDTH: usize = 16;
pub(super) const VERIFICATION_STEPS: usize = 3;

/// The loss of captured energy at which the iteration may stop: a fraction of the energy that is
/// left out, rounding, and noise.
pub(super) fn allowed_loss<T: Scalar>(magnitude: &Magnitude, captured: f64) -> f64 {
    let relative = if T::EPSILON > f64::EPSILON { TOLERANCE.1 } else { TOLERANCE.0 };
    relative * (magnitude.trace - captured).max(0.0) + 8.0 * T::EPSILON * magnitude.trace + magnitude.noise
}

/// A bound on the energy that the leading `count` Ritz vectors miss.
///
/// Each misses at most its residual, and at most its residual squared over the distance to the
/// first Ritz value that is left out.
pub(super) fn possible_loss(ritz: &Ritz, count: usize, residuals: &[f64]) -> f64 {
    let outside = ritz.values.get(count).copied().unwrap_or(0.0);
    let loss =
        |(value, residual): (&f64, &f64)| residual * residual / residual.max(value - outside).max(f64::MIN_POSITIVE);
    ritz.values.iter().zip(residuals).map(loss).sum()
}
