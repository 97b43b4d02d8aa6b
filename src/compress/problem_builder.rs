//! Builds a problem from a method's requirements and the calibration data, and solves it.

use super::decomposition::{Decomposition, Origin};
use super::problem::{Inputs, Problem};
use super::ridge_regression::ridge_regression;
use super::{Calibration, solve};
use crate::bias::times;
use crate::covariance::{SecondMoment, identity, intensity, second_moment};
use crate::linalg::{self, Par, even_exponent, power_of_two};
use crate::rank;
use crate::solver::Solver;
use crate::{ActivationStats, Error, Linear, Result, Scalar};

/// The smallest factor `κ` by which shrinkage multiplies `S`.
///
/// It is too small to change a solution that the weight determines. If the weight has repeated
/// singular values, it lets the data choose among their directions. Otherwise, the statement "never
/// worse than truncated SVD" would not hold for such weights.
const LEAST_DATA_FACTOR: f64 = 1.0 / (1_u64 << 36) as f64;

/// The matrix `R` that is projected.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Target {
    /// `W`.
    Original,
    /// `W S (S + λI)⁻¹`, the ridge regression of the outputs on the inputs.
    Regression,
    /// `W S (S + λI)⁻¹`, projected onto the leading eigenvectors of `W S Wᵀ`, as the paper does.
    PaperRegression,
}

/// `κ` and `λ` in `κ S + λ I`.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Regularization {
    /// `λ = r · tr S / n`.
    Relative(f64),
    /// `λ / Σ wᵢ`: a ridge on the sum `Σ wᵢ xᵢ xᵢᵀ`.
    Absolute(f64),
    /// `κ = 1 − ρ`, `λ = ρ · tr S / n`, with `ρ` estimated from the data.
    Shrinkage,
}

/// The requirements of a method for the problem to solve.
pub(super) struct ProblemBuilder {
    pub(super) method: &'static str,
    pub(super) inputs: Inputs,
    pub(super) target: Target,
    pub(super) regularization: Regularization,
    /// Whether `S` is taken about the mean.
    pub(super) centred: bool,
    /// Whether the bias makes up for the change of the mean output.
    pub(super) correct_bias: bool,
    pub(super) solver: Solver,
    pub(super) par: Par,
}

impl ProblemBuilder {
    /// Solves the problem for every rank up to `max_rank`.
    pub(super) fn solve<T: Scalar>(
        &self,
        layer: &Linear<T>,
        calibration: Calibration<'_, T>,
        max_rank: usize,
    ) -> Result<Decomposition<T>> {
        let &Self { inputs, target, correct_bias, solver, par, .. } = self;
        let (m, n) = (layer.out_features(), layer.in_features());
        rank::validate_fixed(max_rank, (m, n))?;
        let stats = calibration.activations();
        if let Some(stats) = stats {
            stats.require_features(n)?;
        }
        let stats = stats.filter(|stats| stats.samples() > 0);
        if stats.is_none() && (correct_bias || inputs == Inputs::Data) {
            return Err(Error::no_samples());
        }

        // For the predicted error, the data are centred if the bias is corrected, also if the solve
        // is not centred.
        let moment_of = |centred: bool| match stats {
            None => Ok(None),
            Some(stats) => {
                stats.require_squares(centred)?;
                second_moment(stats, centred).map(Some)
            }
        };
        let data = moment_of(correct_bias)?;
        let other = match (inputs, &data) {
            (Inputs::Data, Some(_)) if self.centred == correct_bias => None,
            (Inputs::Data, _) => moment_of(self.centred)?,
            (Inputs::Identity, _) => Some(identity(n)),
        };
        let data = data.as_deref();
        let Some(moment) = other.as_deref().or(data) else { return Err(Error::no_samples()) };

        let mean_variance = moment.trace() / n as f64;
        let mut shrinkage = None;
        let (keep, ridge) = match self.regularization {
            Regularization::Relative(ratio) => (1.0, ratio * mean_variance),
            Regularization::Absolute(lambda) => {
                let weight = stats.map_or(1.0, |stats| stats.total_weight());
                (1.0, lambda / weight * power_of_two(-moment.exponent()))
            }
            Regularization::Shrinkage => {
                // An estimated mean takes one of the degrees of freedom.
                let samples = stats.map_or(0.0, |stats| stats.effective_samples());
                let rho = intensity(moment, samples - if self.centred { 1.0 } else { 0.0 }, par)?;
                shrinkage = Some(rho);
                let keep = (1.0 - rho).max(LEAST_DATA_FACTOR);
                (keep, (1.0 - keep) * mean_variance)
            }
        };
        if !ridge.is_finite() {
            return Err(Error::overflow("the ridge"));
        }

        let weight_exponent = even_exponent(linalg::max_abs(layer.weight()));
        let regression = match target {
            Target::Original => None,
            Target::Regression | Target::PaperRegression => {
                let weight = linalg::widened(layer.weight(), power_of_two(-weight_exponent))?;
                Some(ridge_regression(weight.as_ref(), moment, ridge, par)?)
            }
        };
        let paper = target == Target::PaperRegression;
        let problem = Problem {
            weight: layer.weight(),
            weight_exponent,
            regression,
            paper,
            moment,
            inputs,
            keep,
            ridge: if paper { 0.0 } else { ridge },
            data,
            solver,
            par,
        };
        let solution = solve::solve(&problem, max_rank)?;

        let energy = solution.errors.as_ref().map_or(0.0, |errors| errors.total);
        let variance = match (stats, data) {
            (Some(stats), Some(data)) if !correct_bias => centred_energy(&problem, layer, stats, data, energy)?,
            _ => energy,
        };
        let mean = stats.filter(|_| correct_bias).map(|stats| stats.mean_or_zero());
        let origin = Origin {
            method: self.method,
            samples: calibration.samples(),
            effective_samples: stats.filter(|_| inputs == Inputs::Data).map(|stats| stats.effective_samples()),
            shrinkage,
            constant: data.is_some_and(|data| data.trace() == 0.0),
            mean: mean.as_deref(),
            variance,
        };
        let unit = power_of_two(moment.exponent()) * power_of_two(2 * weight_exponent);
        Decomposition::from_solution(layer, solution, unit, origin)
    }
}

/// Returns the energy of the original outputs about their mean, from their energy about zero.
///
/// Both are in units of the scaled weight and of the scaled second moment `data`.
fn centred_energy<T: Scalar>(
    problem: &Problem<'_, T>,
    layer: &Linear<T>,
    stats: &ActivationStats<T>,
    data: &dyn SecondMoment<T>,
    energy: f64,
) -> Result<f64> {
    /// If the difference of two energies is a smaller fraction of them, it has too few accurate
    /// digits: for energies in `f32` and in `f64`.
    const LEAST_DIFFERENCE: (f64, f64) = (0.05, 1e-6);
    let least = if T::EPSILON > f64::EPSILON { LEAST_DIFFERENCE.0 } else { LEAST_DIFFERENCE.1 };
    let root = problem.scale() * power_of_two(-data.exponent() / 2);
    let means = times(layer.weight(), &stats.mean_or_zero());
    let difference = energy - means.iter().map(|mean| (mean * root).powi(2)).sum::<f64>();
    if difference > least * energy {
        return Ok(difference);
    }
    let centred = second_moment(stats, true)?;
    let weight = linalg::widened(layer.weight(), problem.scale())?;
    Ok(centred.energy(weight.as_ref(), problem.par)? * power_of_two(centred.exponent() - data.exponent()))
}
