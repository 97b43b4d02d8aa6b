//! Builds a problem from a method's requirements and the calibration data, and solves it.

use faer::{Mat, MatRef};

use super::decomposition::{Decomposition, Origin};
use super::problem::{Inputs, Problem};
use super::relative_error::{PredictedErrors, SquaredErrors, squared_errors};
use super::ridge::{PairedRegression, Penalty, ridge_regression};
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

/// The regression `R` of the original outputs on the inputs.
enum Regression<T> {
    /// `R = W`.
    None,
    /// `R` as a matrix.
    Explicit(Mat<T>),
    /// `R` as a change of `W`, together with a root of the second moment.
    Paired(PairedRegression<T>),
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

        let regression = self.regression(layer, calibration, moment, ridge / keep)?;
        let root = calibration.output_metric().map(|metric| metric.root());
        let in_metric = |matrix: MatRef<'_, T>| root.map(|root| root.transform(matrix, par)).transpose();
        // The paper projects the regression, but onto the leading directions of the weight.
        let paper = target == Target::PaperRegression;
        let (target, exponent) = match &regression {
            Regression::Explicit(matrix) if !paper => (matrix.as_ref(), 0),
            Regression::Paired(paired) => (paired.whitened.as_ref(), paired.exponent),
            _ => (layer.weight(), 0),
        };
        let transformed = in_metric(target)?;
        let factor = transformed.as_ref().map_or(target, |factor| factor.as_ref());
        let whitened = matches!(regression, Regression::Paired(_)).then(|| identity(n));
        let plain = matches!(regression, Regression::None);
        let problem = Problem {
            weight: factor,
            weight_exponent: even_exponent(linalg::max_abs(factor)),
            moment: whitened.as_deref().unwrap_or(moment),
            inputs: if whitened.is_some() { Inputs::Identity } else { inputs },
            keep,
            ridge: if paper || whitened.is_some() { 0.0 } else { ridge },
            data: data.filter(|_| plain && calibration.paired().is_none()),
            solver,
            par,
        };
        let mut solution = solve::solve(&problem, max_rank)?;
        match &regression {
            Regression::Explicit(matrix) if paper => {
                let projected = in_metric(matrix.as_ref())?;
                let projected = projected.as_ref().unwrap_or(matrix);
                solution.down = linalg::product(solution.up.transpose(), projected.as_ref(), par)?;
            }
            Regression::Paired(paired) => {
                let seen = root.map(|root| root.multiply(solution.up.as_ref(), par)).transpose()?;
                let seen = seen.as_ref().unwrap_or(&solution.up);
                solution.down = paired.project(layer.weight(), seen.as_ref(), par)?;
            }
            _ => {}
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
            let predict = |weight: MatRef<'_, T>, up: &Mat<T>, found: Option<SquaredErrors>| {
                self.predicted_error(weight, (up.as_ref(), solution.down.as_ref()), (calibration, data), found)
            };
            if let Some(directions) = &directions {
                let original = if plain { None } else { in_metric(layer.weight())? };
                let original = original.as_ref().map_or(factor, |matrix| matrix.as_ref());
                errors.metric = Some(predict(original, directions, found)?);
                errors.plain = Some(predict(layer.weight(), &solution.up, None)?);
            } else {
                errors.plain = Some(predict(layer.weight(), &solution.up, found)?);
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
        let weight_unit = power_of_two(2 * (problem.weight_exponent + exponent));
        Decomposition::from_solution(
            layer,
            solution,
            power_of_two(moment.exponent()) * weight_unit * metric_unit,
            origin,
        )
    }

    /// Returns the regression that the method projects, with the ridge `λ / κ`.
    fn regression<T: Scalar>(
        &self,
        layer: &Linear<T>,
        calibration: Calibration<'_, T>,
        moment: &dyn SecondMoment<T>,
        ridge: f64,
    ) -> Result<Regression<T>> {
        let cross = match self.inputs {
            Inputs::Data => calibration.cross_moment(self.centred, moment)?,
            Inputs::Identity => None,
        };
        // With fewer samples than inputs, a regression costs less than a root of the second moment.
        let few_samples = moment.samples_kept().is_some_and(|samples| samples < moment.features());
        let penalty = match (self.target, &cross) {
            (Target::Original, None) => return Ok(Regression::None),
            (Target::Original, Some(cross)) if !few_samples && moment.trace() > 0.0 => {
                return PairedRegression::new(layer.weight(), moment, cross, ridge, self.par).map(Regression::Paired);
            }
            (Target::Original, Some(_)) => Penalty::Change,
            (Target::Regression | Target::PaperRegression, _) => Penalty::Size,
        };
        let exponent = even_exponent(linalg::max_abs(layer.weight()));
        let weight = linalg::widened(layer.weight(), power_of_two(-exponent))?;
        let matrix = ridge_regression(weight.as_ref(), moment, cross.as_ref(), (penalty, ridge), self.par)?;
        linalg::converted::<f64, T>(matrix.as_ref(), power_of_two(exponent)).map(Regression::Explicit)
    }

    /// Returns the relative errors for every rank of the factors `up` and `down` of a replacement
    /// of `weight`, and the smallest that can be told from zero. The squared errors are `found`, or
    /// computed here.
    fn predicted_error<T: Scalar>(
        &self,
        weight: MatRef<'_, T>,
        factors: (MatRef<'_, T>, MatRef<'_, T>),
        (calibration, data): (Calibration<'_, T>, &dyn SecondMoment<T>),
        found: Option<SquaredErrors>,
    ) -> Result<(Vec<f64>, f64)> {
        let squared = match found {
            Some(found) => found,
            None => squared_errors(weight, factors, &calibration.data_moments(self.correct_bias, data)?, self.par)?,
        };
        let mut variance = squared.total;
        if !self.correct_bias {
            let means = times(weight, &calibration.means().map(|means| means.0).unwrap_or_default());
            let centred = || calibration.original_moment(true);
            variance = centred_energy(weight, &means, (data.exponent(), variance), centred, self.par)?;
        }
        Ok(squared.relative_to(variance))
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
