//! The result of one solve, for every rank.

use core::fmt;

use faer::{Col, Mat, MatRef};

use super::basis::Basis;
use super::relative_error::{DataMoments, PredictedErrors, squared_errors};
use super::solve::Solution;
use super::{Calibration, Compressed};
use crate::bias::BiasCorrection;
use crate::covariance::{SecondMoment, identity};
use crate::error::during;
use crate::factors::Form;
use crate::linalg::{self, even_exponent, power_of_two};
use crate::rank::{Spectrum, tails};
use crate::solver;
use crate::{Error, Linear, LowRankLinear, Rank, Report, Result, Scalar, Warning};

/// The result of one solve: its eigenvalues, the predicted error of every rank up to the largest
/// solved one, and a compressed layer of any of these ranks for the cost of a copy.
///
/// ```
/// use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor};
/// use faer::Mat;
///
/// # fn main() -> dalr::Result<()> {
/// let layer = Linear::new(Mat::from_fn(8, 6, |i, j| ((i * 5 + j * 3) % 7) as f64), None)?;
/// let mut stats = ActivationStats::new(6);
/// stats.update(Mat::from_fn(50, 6, |i, j| ((i * 11 + j * 7) % 13) as f64).as_ref())?;
/// let decomposition = Dalr::new().decompose(&layer, &stats, 6)?;
/// for rank in 1..=decomposition.max_rank() {
///     println!("rank {rank}: error {:?}", decomposition.relative_error(rank));
/// }
/// let left_out = decomposition.total_energy() - decomposition.energies()[..2].iter().sum::<f64>();
/// assert!(left_out < 0.5 * decomposition.total_energy());
/// let compressed = decomposition.truncate(2)?;
/// assert_eq!(compressed.layer().rank(), 2);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Decomposition<T> {
    pub(crate) up: Mat<T>,
    pub(crate) down: Mat<T>,
    pub(crate) energies: Vec<f64>,
    pub(crate) total_energy: f64,
    /// `energies / total_energy`, computed before the units could make these underflow.
    pub(crate) explained: Vec<f64>,
    pub(crate) relative_errors: Option<Vec<f64>>,
    pub(crate) metric_errors: Option<Vec<f64>>,
    pub(crate) kept_bias: Option<Col<T>>,
    pub(crate) correction: Option<BiasCorrection>,
    pub(crate) facts: Facts,
}

/// The part of a report that does not depend on the rank.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(crate) struct Facts {
    pub(crate) method: String,
    pub(crate) samples: u64,
    pub(crate) shrinkage: Option<f64>,
    pub(crate) solver: String,
    pub(crate) residual: f64,
    pub(crate) warnings: Vec<Warning>,
    pub(crate) shape: (usize, usize),
    /// The form whose parameters count.
    #[cfg_attr(feature = "serde", serde(default))]
    pub(crate) form: Form,
    /// Whether the original layer has a bias, and whether the compressed one will.
    pub(crate) biases: (bool, bool),
    /// The largest rank of the update, if this is not a layer but an update of one.
    #[cfg_attr(feature = "serde", serde(default))]
    pub(crate) adapter_rank: Option<usize>,
    /// Number of eigenvalues above rounding.
    pub(crate) determined: usize,
    /// Relative errors up to this size are rounding.
    pub(crate) resolution: f64,
}

impl Facts {
    /// The largest rank that the weight or the update can have.
    pub(crate) fn full_rank(&self) -> usize {
        self.adapter_rank.unwrap_or(self.shape.0.min(self.shape.1))
    }

    /// Returns the report on the layer of this rank, whose relative error is `relative_error`.
    pub(crate) fn report(&self, rank: usize, relative_error: Option<f64>) -> Report {
        let (m, n) = self.shape;
        let bias = |has: bool| if has { m } else { 0 };
        let mut warnings = self.warnings.clone();
        if rank > self.determined {
            warnings.push(Warning::Filled { determined: self.determined, rank });
        }
        let multiply_adds_after = self.form.parameters(rank, self.shape);
        let (before, after) = (m * n + bias(self.biases.0), multiply_adds_after + bias(self.biases.1));
        if after >= before {
            warnings.push(Warning::PastBreakEven { rank, break_even: self.form.break_even(self.shape) });
        }
        if relative_error.is_some_and(|error| error < self.resolution) {
            warnings.push(Warning::BelowResolution { resolution: self.resolution });
        }
        Report {
            method: self.method.clone(),
            rank,
            form: self.form,
            out_features: m,
            in_features: n,
            parameters_before: before,
            parameters_after: after,
            multiply_adds_before: m * n,
            multiply_adds_after,
            relative_error,
            metric_error: None,
            samples: self.samples,
            shrinkage: self.shrinkage,
            solver: self.solver.clone(),
            residual: self.residual,
            warnings,
        }
    }
}

/// The properties of a decomposition that its solution does not contain.
pub(super) struct Origin<'a> {
    pub(super) method: &'static str,
    pub(super) samples: u64,
    /// The effective number of samples, if the method uses the data.
    pub(super) effective_samples: Option<f64>,
    pub(super) shrinkage: Option<f64>,
    /// Whether there are data that do not vary.
    pub(super) constant: bool,
    /// The means of the original inputs and of those that the compressed layer sees, if the bias is
    /// corrected.
    pub(super) means: Option<(&'a [f64], &'a [f64])>,
    pub(super) errors: PredictedErrors,
}

impl<T: Scalar> Decomposition<T> {
    /// Returns the decomposition of a solution whose energies are in units of `unit`.
    pub(super) fn from_solution(
        layer: &Linear<T>,
        solution: Solution<T>,
        unit: f64,
        origin: Origin<'_>,
    ) -> Result<Self> {
        let (m, n) = (layer.out_features(), layer.in_features());
        let energies: Vec<f64> = solution.pairs.values.iter().map(|value| value * unit).collect();
        let total_energy = solution.total_energy * unit;
        if !(total_energy.is_finite() && energies.iter().all(|energy| energy.is_finite())) {
            return Err(Error::overflow("the energy of the outputs"));
        }
        let (relative_errors, resolution) = origin.errors.plain.unzip();
        let mut warnings = Vec::new();
        if let Some(samples) = origin.effective_samples.filter(|&samples| samples < n as f64) {
            warnings.push(Warning::FewSamples { samples, inputs: n });
        }
        if solution.pairs.fallback {
            warnings.push(Warning::SolverFallback { solver: solution.pairs.solver.into() });
        }
        if origin.constant {
            warnings.push(Warning::NoVariation);
        }
        Ok(Self {
            explained: fractions(&solution.pairs.values, solution.total_energy),
            facts: Facts {
                method: origin.method.into(),
                samples: origin.samples,
                shrinkage: origin.shrinkage,
                solver: solution.pairs.to_string(),
                residual: solution.pairs.residual,
                warnings,
                shape: (m, n),
                form: Form::default(),
                biases: (layer.bias().is_some(), origin.means.is_some() || layer.bias().is_some()),
                adapter_rank: None,
                determined: solution.determined,
                resolution: resolution.unwrap_or(0.0).max(4.0 * T::EPSILON),
            },
            energies,
            total_energy,
            relative_errors,
            kept_bias: layer.bias().map(|bias| bias.to_owned()),
            metric_errors: origin.errors.metric.map(|(errors, _)| errors),
            correction: origin
                .means
                .map(|means| BiasCorrection::new(layer.weight(), layer.bias(), solution.down.as_ref(), means)),
            up: solution.up,
            down: solution.down,
        })
    }

    /// Creates a decomposition from any two factors, for methods outside of this crate.
    ///
    /// `up` is out × k and `down` k × in. The factors must be nested: the first `j` columns of `up`
    /// and rows of `down` form the layer of rank `j`. With `correct_bias` the compressed bias is
    /// `b + (W − C) μ`, which needs samples; otherwise the bias is kept. The predicted errors are
    /// computed from the calibration data, if there are any. The energies are the decrease of
    /// `‖W − C‖²` with each rank, until [`with_energies`](Self::with_energies) replaces them.
    ///
    /// # Errors
    ///
    /// Factors or statistics of other shapes than the layer's; entries that are not finite; a bias
    /// correction without samples.
    ///
    /// # Cost
    ///
    /// `O(p n (m + k))` for `p` samples in sample form, `O(n² (m + k))` in covariance form.
    ///
    /// ```
    /// use dalr::{Calibration, Decomposition, Linear};
    /// use faer::mat;
    ///
    /// # fn main() -> dalr::Result<()> {
    /// let layer = Linear::new(mat![[3.0, 0.0], [0.0, 1.0]], None)?;
    /// let (up, down) = (mat![[1.0], [0.0]], mat![[3.0, 0.0]]);
    /// let decomposition =
    ///     Decomposition::new("first row", &layer, Calibration::none(), (up, down), false)?;
    /// assert_eq!(decomposition.energies(), [9.0]);
    /// assert_eq!(decomposition.truncate(1)?.report().method, "first row");
    /// # Ok(())
    /// # }
    /// ```
    pub fn new<'a>(
        method: impl Into<String>,
        layer: &Linear<T>,
        calibration: impl Into<Calibration<'a, T>>,
        (up, down): (Mat<T>, Mat<T>),
        correct_bias: bool,
    ) -> Result<Self> {
        let calibration = calibration.into();
        during("Decomposition::new", || {
            let (m, n) = (layer.out_features(), layer.in_features());
            for (what, expected, found) in [
                ("rows in the factor `up` (one per output)", m, up.nrows()),
                ("columns in the factor `down` (one per input)", n, down.ncols()),
                ("columns in the factor `up` (one per row of `down`)", down.nrows(), up.ncols()),
            ] {
                if expected != found {
                    return Err(Error::shape(what, expected, found));
                }
            }
            crate::rank::validate_fixed(up.ncols(), (m, n))?;
            linalg::require_finite("the factor `up`", up.as_ref())?;
            linalg::require_finite("the factor `down`", down.as_ref())?;
            calibration.require_shape((m, n))?;
            if correct_bias && calibration.samples() == 0 {
                return Err(Error::no_samples());
            }

            let par = linalg::threads(0);
            let factors = (up.as_ref(), down.as_ref());
            let unit = power_of_two(2 * even_exponent(linalg::max_abs(layer.weight())));
            let by_weight = squared_errors(layer.weight(), factors, &DataMoments::identity(&*identity(n)), par)?;
            let total_energy = by_weight.total * unit;
            let before = core::iter::once(&by_weight.total).chain(&by_weight.by_rank);
            let energies: Vec<f64> =
                before.zip(&by_weight.by_rank).map(|(before, after)| (before - after).max(0.0) * unit).collect();
            let by_data = |data: Box<dyn SecondMoment<T> + '_>| {
                let moments = calibration.data_moments(correct_bias, &*data)?;
                let errors = squared_errors(layer.weight(), factors, &moments, par)?;
                let variance = match correct_bias {
                    true => errors.total,
                    false => {
                        let centred = calibration.original_moment(true)?;
                        output_energy(layer, &*centred)? * power_of_two(centred.exponent() - data.exponent())
                    }
                };
                Result::Ok(errors.relative_to(variance))
            };
            let data = if calibration.has_original() { calibration.moment(correct_bias)? } else { None };
            let (relative_errors, resolution) = data.map(by_data).transpose()?.unzip();
            let means = calibration.means().filter(|_| correct_bias);
            let correction = means.as_ref().map(|(original, inputs)| {
                BiasCorrection::new(layer.weight(), layer.bias(), down.as_ref(), (original, inputs))
            });
            Ok(Self {
                explained: fractions(&energies, total_energy),
                facts: Facts {
                    method: method.into(),
                    samples: calibration.samples(),
                    shrinkage: None,
                    solver: "given factors".into(),
                    residual: 0.0,
                    warnings: Vec::new(),
                    shape: (m, n),
                    form: Form::default(),
                    biases: (layer.bias().is_some(), correct_bias || layer.bias().is_some()),
                    adapter_rank: None,
                    determined: energies.len(),
                    resolution: resolution.unwrap_or(0.0).max(4.0 * T::EPSILON),
                },
                energies,
                total_energy,
                relative_errors,
                metric_errors: None,
                kept_bias: layer.bias().map(|bias| bias.to_owned()),
                correction,
                up,
                down,
            })
        })
    }

    /// Replaces the energies and their total, for methods that compute eigenvalues of their own.
    ///
    /// # Errors
    ///
    /// A number of energies that is not the factors' rank; energies that ascend, are negative or
    /// not finite, or sum to more than the total.
    pub fn with_energies(mut self, energies: Vec<f64>, total_energy: f64) -> Result<Self> {
        during("Decomposition::with_energies", || {
            if energies.len() != self.energies.len() {
                return Err(Error::shape("energies (one per rank)", self.energies.len(), energies.len()));
            }
            require_energies(&energies, total_energy)
        })?;
        self.explained = fractions(&energies, total_energy);
        self.energies = energies;
        self.total_energy = total_energy;
        Ok(self)
    }

    /// Sets the form whose parameters count, in [`rank_for`](Self::rank_for) and in reports.
    /// [`LowRankCompressor::decompose`](super::LowRankCompressor::decompose) sets that of the
    /// method.
    #[must_use]
    pub fn with_form(mut self, form: Form) -> Self {
        self.facts.form = form;
        self
    }

    /// Returns the largest rank that [`truncate`](Self::truncate) accepts.
    pub fn max_rank(&self) -> usize {
        self.energies.len()
    }

    /// Returns the eigenvalues of `W S Wᵀ`, regularization included, descending, one per rank. For
    /// truncated SVD they are the squared singular values of the weight.
    ///
    /// Values below about `ε` times the largest one are rounding.
    pub fn energies(&self) -> &[f64] {
        &self.energies
    }

    /// Returns the sum of all eigenvalues, those past [`max_rank`](Self::max_rank) included.
    ///
    /// The energy left out at rank `k` is this minus the first `k` energies.
    pub fn total_energy(&self) -> f64 {
        self.total_energy
    }

    /// Returns the predicted relative error at this rank on the calibration data.
    ///
    /// The factors come from the regularized problem; the error does not include the
    /// regularization. `None` without samples, and for ranks that were not solved for. For an
    /// [`Adapter`](crate::adapter::Adapter) without samples, this is `‖ΔW − C‖ / ‖ΔW‖`.
    ///
    /// ```text
    /// √((tr W S Wᵀ − Σ_{i≤k} cᵢ) / tr W Σ Wᵀ),   cᵢ = uᵢᵀ W S Wᵀ uᵢ
    /// ```
    ///
    /// `Σ` is the covariance of the inputs, and `S` their second moment: about the mean if the bias
    /// is corrected, about zero if it is kept. `uᵢ` is column `i` of `up`. For
    /// [`Ridge::Paper`](crate::Ridge::Paper) and [`Ridge::Exact`](crate::Ridge::Exact),
    /// `cᵢ = uᵢᵀ (2 R S Wᵀ − R S Rᵀ) uᵢ` with the ridge regression `R = W S (S + λI)⁻¹`. Their
    /// error can rise with the rank. The error is infinite if the original outputs do not vary and
    /// those of the compressed layer differ from them.
    pub fn relative_error(&self, rank: usize) -> Option<f64> {
        self.relative_errors.as_ref()?.get(rank.checked_sub(1)?).copied()
    }

    /// Predicted error of the layer of this rank in the output metric, relative to the variation of
    /// the original outputs in the metric. `None` without a metric or samples.
    ///
    /// ```text
    /// √(E eᵀ G e / tr G W Σ Wᵀ),   e the error of the outputs
    /// ```
    pub fn metric_error(&self, rank: usize) -> Option<f64> {
        self.metric_errors.as_ref()?.get(rank.checked_sub(1)?).copied()
    }

    /// Returns the rank that the rule `rank` gives, as a multiple of `multiple`.
    /// [`Rank::ParameterRatio`] rounds down, [`Rank::Energy`] and [`Rank::RelativeError`] round up,
    /// and a fixed rank must be a multiple.
    ///
    /// # Errors
    ///
    /// A rank that the layer cannot have, or that needs a solve up to a larger rank;
    /// [`Error::NoSamples`] for a relative error without samples.
    ///
    /// ```
    /// # use dalr::{Calibration, Linear, LowRankCompressor, Rank, TruncatedSvd};
    /// # fn main() -> dalr::Result<()> {
    /// let layer = Linear::new(faer::Mat::from_fn(4, 4, |i, j| if i == j { 4.0 - i as f64 } else { 0.0 }), None)?;
    /// let decomposition = TruncatedSvd::new().decompose(&layer, Calibration::none(), 4)?;
    /// // The energies are 16, 9, 4 and 1.
    /// assert_eq!(decomposition.rank_for(Rank::Energy(0.8), 1)?, 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn rank_for(&self, rank: Rank, multiple: usize) -> Result<usize> {
        let spectrum = Spectrum {
            energies: &self.explained,
            total_energy: 1.0,
            full_rank: self.facts.full_rank(),
            numerical_rank: self.facts.determined,
            relative_errors: self.relative_errors.as_deref(),
            resolution: self.facts.resolution,
        };
        during("Decomposition::rank_for", || rank.resolve(self.facts.shape, multiple, self.facts.form, &spectrum))
    }

    /// Returns the compressed layer of this rank. Cost: a copy of its factors.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`] unless `1 ≤ rank ≤ max_rank`.
    pub fn truncate(&self, rank: usize) -> Result<Compressed<T>> {
        during("Decomposition::truncate", || {
            if !(1..=self.max_rank()).contains(&rank) {
                let expected = format!("a rank from 1 to the {} solved for", self.max_rank());
                return Err(Error::rank(expected, rank.to_string()));
            }
            let copy = |source: MatRef<'_, T>| {
                let mut copy = linalg::zeros(source.nrows(), source.ncols())?;
                copy.copy_from(source);
                Result::Ok(copy)
            };
            let (up, down) = (self.up.subcols(0, rank), self.down.subrows(0, rank));
            let bias = match &self.correction {
                Some(correction) => Some(correction.apply(up)?),
                None => self.kept_bias.clone(),
            };
            let layer = LowRankLinear::new(copy(down)?, copy(up)?, bias)?;
            let mut report = self.facts.report(rank, self.relative_error(rank));
            report.metric_error = self.metric_error(rank);
            Ok(Compressed { report, layer })
        })
    }

    /// Makes this the decomposition of a layer's update, whose rank is `full_rank` at most, from
    /// that of the update in these bases, and drops the ranks above `max_rank`. Without samples, the
    /// relative errors become those of the weight.
    pub(crate) fn of_adapter(
        mut self,
        [outputs, inputs]: [Option<&Basis>; 2],
        full_rank: usize,
        max_rank: usize,
    ) -> Result<Self> {
        let par = linalg::threads(0);
        let rank = max_rank.min(self.max_rank());
        let (up, down) = (self.up.get(.., ..rank), self.down.get(..rank, ..));
        let up = match outputs {
            Some(basis) => linalg::rounded("the factor `up`", basis.combine(up, par)?.as_ref())?,
            None => up.to_owned(),
        };
        let down = match inputs {
            Some(basis) => linalg::rounded("the factor `down`", basis.combine(down.transpose(), par)?.transpose())?,
            None => down.to_owned(),
        };
        self.facts.shape = (up.nrows(), down.ncols());
        (self.up, self.down) = (up, down);
        self.facts.adapter_rank = Some(full_rank);
        if self.relative_errors.is_none() {
            let (m, n) = self.facts.shape;
            self.facts.resolution = self.facts.resolution.max(solver::noise_level(m.max(n)).sqrt());
            self.relative_errors = Some(tails(&self.explained, full_rank).into_iter().map(f64::sqrt).collect());
        }
        let errors = [&mut self.relative_errors, &mut self.metric_errors].into_iter().flatten();
        errors.chain([&mut self.energies, &mut self.explained]).for_each(|of_ranks| of_ranks.truncate(rank));
        Ok(self)
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Returns the energies, divided by [`total_energy`](Self::total_energy).
    pub(crate) fn explained(&self) -> &[f64] {
        &self.explained
    }

    pub(crate) fn relative_errors(&self) -> Option<&[f64]> {
        self.relative_errors.as_deref()
    }
}

impl<T> fmt::Debug for Decomposition<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decomposition")
            .field("method", &self.facts.method)
            .field("shape", &self.facts.shape)
            .field("max_rank", &self.energies.len())
            .field("total_energy", &self.total_energy)
            .finish_non_exhaustive()
    }
}

/// Returns the energies, divided by their total.
fn fractions(energies: &[f64], total: f64) -> Vec<f64> {
    energies.iter().map(|energy| energy / total.max(f64::MIN_POSITIVE)).collect()
}

/// Returns an error unless the energies are finite, descend and sum to at most their total.
pub(crate) fn require_energies(energies: &[f64], total: f64) -> Result<()> {
    let mut previous = f64::MAX;
    for &energy in energies {
        if !(0.0..=previous).contains(&energy) {
            let expected = format!("finite, at least 0 and at most the one before, {previous:e}");
            return Err(Error::out_of_range("an energy", expected, energy));
        }
        previous = energy;
    }
    let sum = energies.iter().sum::<f64>();
    let rounding = 4.0 * f64::EPSILON * energies.len() as f64 * sum;
    if !(total >= sum - rounding && total.is_finite()) {
        let expected = format!("finite and at least the sum, {sum:e}");
        return Err(Error::out_of_range("the total energy", expected, total));
    }
    Ok(())
}

/// `tr W S Wᵀ` of the scaled weight and the scaled `S`.
fn output_energy<T: Scalar>(layer: &Linear<T>, moment: &dyn SecondMoment<T>) -> Result<f64> {
    let scale = power_of_two(-even_exponent(linalg::max_abs(layer.weight())));
    moment.energy(linalg::widened(layer.weight(), scale)?.as_ref(), linalg::threads(0))
}
