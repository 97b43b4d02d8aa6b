//! The convergence test of block Lanczos.

use super::krylov_basis::Magnitude;
use crate::Scalar;

/// Accepted loss of explained energy, relative to the energy that is left out: for `f64` and for
/// `f32`. The iteration stops at this loss.
const TOLERANCE: (f64, f64) = (1e-12, 2.5e-5);

/// Number of random vectors in the verification block, and of products that start from it.
///
/// An eigenvalue can be repeated more often than a block has vectors. The iteration then misses
/// some of its eigenvectors, and gains that vanish do not reveal that. A result is accepted if
/// products with a verification block of random vectors add no more energy than the tolerance.
pub(super) const VERIFICATION_WIDTH: usize = 16;
pub(super) const VERIFICATION_STEPS: usize = 2;

/// Returns the accepted loss of explained energy: a fraction of the energy that is left out, plus
/// rounding and noise.
pub(super) fn allowed_loss<T: Scalar>(magnitude: &Magnitude, captured: f64) -> f64 {
    let relative = if T::EPSILON > f64::EPSILON { TOLERANCE.1 } else { TOLERANCE.0 };
    relative * (magnitude.trace - captured).max(0.0) + 8.0 * T::EPSILON * magnitude.trace + magnitude.noise
}

/// The explained energy at the last three tests, with equally many products between them.
#[derive(Clone, Copy)]
pub(super) struct EnergyHistory([f64; 3]);

impl EnergyHistory {
    pub(super) fn new() -> Self {
        Self([f64::NAN; 3])
    }

    pub(super) fn add(&mut self, captured: f64) {
        let Self([_, second, third]) = *self;
        *self = Self([second, third, captured]);
    }

    /// Returns an estimate of the energy that the iteration would still gain: the sum of a geometric
    /// series of gains that continues the last two. The gains of a Krylov space shrink faster. The
    /// estimate is infinite before the third test, and while gains grow.
    pub(super) fn remaining(&self) -> f64 {
        let Self([first, second, third]) = *self;
        let (before, last) = (second - first, third - second);
        if before.is_nan() || (last > 0.0 && last >= before) {
            f64::INFINITY
        } else if last > 0.0 {
            last * last / (before - last)
        } else {
            0.0
        }
    }
}
