//! Builds a problem from a method's requirements and the calibration data, and solves it.

use faer::MatRef;

use super::decomposition::{Decomposition, Origin};
use super::output_error::{PredictedErrors, SquaredErrors, squared_errors};
use super::problem::{Inputs, Problem};
use super::ridge_regression::{PairedRegression, Penalty, ridge_regression};
use super::{Calibration, solve};
use crate::bias::times;
use crate::covariance::{SecondMoment, identity, intensity};
use crate::linalg::{self, Par, even_exponent, power_of_two};
use crate::rank;
use crate::solver::Solver;
use crate::{Error, Linear, Result, Scalar};

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
        calibration.require_shape((m, n))?;
        if calibration.samples() == 0 && (correct_bias || inputs == Inputs::Data) {
            return Err(Error::no_samples());
        }

        // For the predicted error, the data are centred if the bias is corrected, also if the solve
        // is not centred.
        let data = calibration.moment(correct_bias)?;
        let other = match (inputs, &data) {
            (Inputs::Data, Some(_)) if self.centred == correct_bias => None,
            (Inputs::Data, _) => calibration.moment(self.centred)?,
            (Inputs::Identity, _) => Some(identity(n)),
        };
        let data = data.as_deref();
        let Some(moment) = other.as_deref().or(data) else { return Err(Error::no_samples()) };
        let regularization = self.regularization.parameters(moment, calibration, self.centred, par)?;
        let (keep, ridge, shrinkage) = regularization;

        let exponent = even_exponent(linalg::max_abs(layer.weight()));
        let cross = match inputs {
            Inputs::Data => calibration.cross_moment(self.centred, moment)?,
            Inputs::Identity => None,
        };
        let penalty = match target {
            Target::Original => cross.as_ref().map(|_| Penalty::Change),
            Target::Regression | Target::PaperRegression => Some(Penalty::Size),
        };
        // With fewer samples than inputs, the regression is cheaper than the root of a second moment.
        let few_samples = moment.samples_kept().is_some_and(|samples| samples < n);
        let paired = match &cross {
            Some(cross) if penalty == Some(Penalty::Change) && !few_samples && moment.trace() > 0.0 => {
                let weight = linalg::converted::<T, T>(layer.weight(), power_of_two(-exponent))?;
                Some(PairedRegression::new(weight.as_ref(), moment, cross, ridge / keep, par)?)
            }
            _ => None,
        };
        let regress = |penalty| {
            let weight = linalg::widened(layer.weight(), power_of_two(-exponent))?;
            let regression = ridge_regression(weight.as_ref(), moment, cross.as_ref(), (penalty, ridge / keep), par)?;
            linalg::converted::<f64, T>(regression.as_ref(), power_of_two(exponent))
        };
        let regression = penalty.filter(|_| paired.is_none()).map(regress).transpose()?;
        let root = calibration.output_metric().map(|metric| metric.root());
        let in_metric = |matrix: MatRef<'_, T>| root.map(|root| root.transform(matrix, par)).transpose();

        // The paper projects the regression, but onto the leading directions of the weight.
        let paper = target == Target::PaperRegression;
        let target = match (&paired, &regression) {
            (Some(paired), _) => paired.whitened.as_ref(),
            (None, Some(regression)) if !paper => regression.as_ref(),
            _ => layer.weight(),
        };
        let transformed = in_metric(target)?;
        let factor = transformed.as_ref().map_or(target, |factor| factor.as_ref());
        let plain = penalty.is_none() && calibration.paired().is_none();
        let whitened = paired.is_some().then(|| identity(n));
        let problem = Problem {
            weight: factor,
            weight_exponent: even_exponent(linalg::max_abs(factor)),
            moment: whitened.as_deref().unwrap_or(moment),
            inputs: if whitened.is_some() { Inputs::Identity } else { inputs },
            keep,
            ridge: if paper || whitened.is_some() { 0.0 } else { ridge },
            data: data.filter(|_| plain),
            solver,
            par,
        };
        let mut solution = solve::solve(&problem, max_rank)?;
        if let Some(regression) = regression.as_ref().filter(|_| paper) {
            let projected = in_metric(regression.as_ref())?;
            let projected = projected.as_ref().map_or(regression.as_ref(), |matrix| matrix.as_ref());
            solution.down = linalg::product(solution.up.transpose(), projected, par)?;
        }
        if let Some(paired) = &paired {
            let seen = root.map(|root| root.multiply(solution.up.as_ref(), par)).transpose()?;
            let seen = seen.as_ref().unwrap_or(&solution.up).transpose();
            let mut down = linalg::widened(linalg::product(seen, layer.weight(), par)?.as_ref(), 1.0)?;
            down += paired.change_of(seen, par)? * faer::Scale(power_of_two(exponent));
            solution.down = linalg::rounded("the factor `down`", down.as_ref())?;
        }
        // With a metric, the eigenvectors are not yet the factor.
        let mut directions = None;
        if let Some(root) = root {
            let up = root.solve_transposed(linalg::widened(solution.up.as_ref(), 1.0)?, par)?;
            let up = linalg::rounded("the factor `up`", up.as_ref())?;
            directions = Some(core::mem::replace(&mut solution.up, up));
        }

        let mut errors = PredictedErrors { plain: None, metric: None };
        if let Some(data) = data.filter(|_| calibration.has_original()) {
            let found = solution.errors.take();
            let (up, down) = (solution.up.as_ref(), solution.down.as_ref());
            let predict = |weight: MatRef<'_, T>, up: MatRef<'_, T>, found: Option<SquaredErrors>| {
                let squared = match found {
                    Some(found) => found,
                    None => squared_errors(weight, (up, down), &calibration.data_moments(correct_bias, data)?, par)?,
                };
                let mut variance = squared.total;
                if !correct_bias {
                    let means = times(weight, &calibration.means().map(|means| means.0).unwrap_or_default());
                    let centred = || calibration.original_moment(true);
                    variance = centred_energy(weight, &means, (data.exponent(), variance), centred, par)?;
                }
                Result::Ok(squared.relative_to(variance))
            };
            if let Some(directions) = &directions {
                let original = if plain { None } else { in_metric(layer.weight())? };
                let original = original.as_ref().map_or(factor, |matrix| matrix.as_ref());
                errors.metric = Some(predict(original, directions.as_ref(), found)?);
                errors.plain = Some(predict(layer.weight(), up, None)?);
            } else {
                errors.plain = Some(predict(layer.weight(), up, found)?);
            }
        }

        let means = calibration.means().filter(|_| correct_bias);
        let origin = Origin {
            method: self.method,
            samples: calibration.samples(),
            effective_samples: (inputs == Inputs::Data).then(|| calibration.effective_samples()),
            shrinkage,
            constant: data.is_some_and(|data| data.trace() == 0.0),
            means: means.as_ref().map(|(original, inputs)| (original.as_slice(), inputs.as_slice())),
            errors,
        };
        let metric_unit = root.map_or(1.0, |root| power_of_two(root.exponent));
        let weight_exponent = problem.weight_exponent + if paired.is_some() { exponent } else { 0 };
        let unit = power_of_two(moment.exponent()) * power_of_two(2 * weight_exponent) * metric_unit;
        Decomposition::from_solution(layer, solution, unit, origin)
    }
}

impl Regularization {
    /// `κ`, `λ` and the intensity of shrinkage.
    pub(super) fn parameters<T: Scalar>(
        self,
        moment: &dyn SecondMoment<T>,
        calibration: Calibration<'_, T>,
        centred: bool,
        par: Par,
    ) -> Result<(f64, f64, Option<f64>)> {
        let mean_variance = moment.trace() / moment.features() as f64;
        let (keep, ridge, shrinkage) = match self {
            Self::Relative(ratio) => (1.0, ratio * mean_variance, None),
            Self::Absolute(lambda) => {
                (1.0, lambda / calibration.total_weight() * power_of_two(-moment.exponent()), None)
            }
            Self::Shrinkage => {
                // An estimated mean takes one of the degrees of freedom.
                let samples = calibration.effective_samples();
                let rho = intensity(moment, samples - if centred { 1.0 } else { 0.0 }, par)?;
                let keep = (1.0 - rho).max(LEAST_DATA_FACTOR);
                (keep, (1.0 - keep) * mean_variance, Some(rho))
            }
        };
        if ridge.is_finite() { Ok((keep, ridge, shrinkage)) } else { Err(Error::overflow("the ridge")) }
    }
}

/// Returns the energy of the original outputs about their mean, from their energy about zero.
///
/// Both are in units of the scaled weight and of a second moment with this exponent. `means` are
/// the outputs' means.
fn centred_energy<'a, T: Scalar>(
    weight: MatRef<'_, T>,
    means: &[f64],
    (exponent, energy): (i32, f64),
    centred: impl FnOnce() -> Result<Box<dyn SecondMoment<T> + 'a>>,
    par: Par,
) -> Result<f64> {
    /// If the difference of two energies is a smaller fraction of them, it has too few accurate
    /// digits: for energies in `f32` and in `f64`.
    const LEAST_DIFFERENCE: (f64, f64) = (0.05, 1e-6);
    let least = if T::EPSILON > f64::EPSILON { LEAST_DIFFERENCE.0 } else { LEAST_DIFFERENCE.1 };
    let scale = power_of_two(-even_exponent(linalg::max_abs(weight)));
    let root = scale * power_of_two(-exponent / 2);
    let difference = energy - means.iter().map(|mean| (mean * root).powi(2)).sum::<f64>();
    if difference > least * energy {
        return Ok(difference);
    }
    let centred = centred()?;
    let weight = linalg::widened(weight, scale)?;
    Ok(centred.energy(weight.as_ref(), par)? * power_of_two(centred.exponent() - exponent))
}
