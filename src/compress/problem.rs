//! The one problem behind every method:
//!
//! ```text
//! min over C of rank k and b̂:   Σᵢ wᵢ ‖Lᵀ (W xᵢ + b − C xᵢ − b̂)‖²  +  λ ‖Lᵀ (W − C)‖²
//! ```
//!
//! With the second moment `S` of the inputs `x` (about their mean if the bias is corrected), its
//! solution is `C = U Uᵀ R`: the columns of `U` are the leading eigenvectors of
//! `R (κ S + λ I) Rᵀ`, and the target `R` is `W`. The factor `κ` is 1 except for shrinkage. No
//! method sets an output metric `G = L Lᵀ` so far, so `L` is the identity.
//!
//! Methods differ in the target, the second moment and the regularization. A method fills in a
//! `ProblemBuilder`, which makes a [`Problem`] of it; `solve` solves that.

use faer::{Mat, MatRef};

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
/// The second moments and the target are divided by powers of two; see the fields.
pub(super) struct Problem<'a, T> {
    /// `W`, outputs × inputs.
    pub(super) weight: MatRef<'a, T>,
    /// The exponent for which the largest entry of `W / 2^exponent` is near 1.
    pub(super) weight_exponent: i32,
    /// `R / 2^weight_exponent`, if `R` is not `W`.
    pub(super) regression: Option<Mat<f64>>,
    /// Whether the eigenvectors are those of `W S Wᵀ`, as in the paper's eq. 11.
    pub(super) paper: bool,
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
