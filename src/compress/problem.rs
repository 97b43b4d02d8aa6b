//! The one problem behind every method:
//!
//! ```text
//! min over C of rank k and b̂:   Σᵢ wᵢ ‖Lᵀ (W xᵢ + b − C x̂ᵢ − b̂)‖²  +  λ ‖Lᵀ (W − C)‖²
//! ```
//!
//! `x` are the inputs in the original network, and `x̂` those that the compressed layer will see.
//! The second moments `S` of `x̂`, and `K` between `x` and `x̂`, are taken about the means if the
//! bias is corrected. `G = L Lᵀ` is the output metric. The solution is `C = L⁻ᵀ U Uᵀ F` with
//! `F = Lᵀ R`:
//!
//! - The target is `R = W (K + λI) (S + λI)⁻¹`, which is `W` if `x̂ = x`.
//! - The columns of `U` are the leading eigenvectors of `F (κ S + λ I) Fᵀ`. The factor `κ` is 1
//!   except for shrinkage.
//!
//! Methods differ in the target, the second moment and the regularization. A method fills in a
//! `ProblemBuilder`, which makes a [`Problem`] of it; `solve` solves that. docs/mathematics.md has
//! the proofs.

use faer::MatRef;

use crate::covariance::SecondMoment;
use crate::linalg::{Par, power_of_two};
use crate::solver::Solver;

/// The second moment `S` of the problem.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Inputs {
    /// `S = I`: the weight itself is approximated, not the outputs.
    Identity,
    /// `S` from the calibration data.
    Data,
}

/// The numbers of a problem. A solver computes the leading eigenvectors of `R (κ S + λ I) Rᵀ`.
///
/// The second moments and the factor are divided by powers of two; see the fields.
pub(super) struct Problem<'a, T> {
    /// `F`, outputs × inputs.
    pub(super) weight: MatRef<'a, T>,
    /// The exponent for which the largest entry of `F / 2^exponent` is near 1.
    pub(super) weight_exponent: i32,
    /// `S`.
    pub(super) moment: &'a dyn SecondMoment<T>,
    /// Whether `S = I`.
    pub(super) inputs: Inputs,
    /// `κ`.
    pub(super) keep: f64,
    /// `λ`.
    pub(super) ridge: f64,
    /// The second moment without regularization, for the predicted error.
    pub(super) data: Option<&'a dyn SecondMoment<T>>,
    pub(super) solver: Solver,
    pub(super) par: Par,
}

impl<T> Problem<'_, T> {
    /// Returns the power of two that brings the weight's entries near 1.
    pub(super) fn scale(&self) -> f64 {
        power_of_two(-self.weight_exponent)
    }
}
