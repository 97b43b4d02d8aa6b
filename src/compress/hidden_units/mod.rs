//! Hidden units between two layers: keeps some of them, and refits the second layer.

mod gains;
mod problem;
mod refit;
mod selection;

use core::fmt;

use faer::Col;

use self::problem::{UnitErrors, UnitProblem};
use self::refit::UnitRefit;
use super::problem_builder::{Regularization, Target};
use super::{Calibration, Ridge};
use crate::error::during;
use crate::{Error, Linear, Result, Scalar, linalg};

/// The hidden units of two layers, `y = W₂ φ(W₁ x + b₁) + b₂`, in the order in which they are worth
/// keeping.
///
/// [`select`](Self::select) keeps `k` units. The first layer loses the rows of the others. The
/// second layer is refitted, so that it makes up for the lost units as well as the kept ones can.
/// The result is two ordinary layers that are smaller: every program runs them at full speed.
///
/// With the covariance `S` of the hidden units, `M = S + λI` and the kept units `P`:
///
/// ```text
/// W₂' = W₂ M_{:P} M_PP⁻¹,   b₂' = b₂ + W₂ μ − W₂' μ_P
/// ```
///
/// This minimises the change of the outputs on the calibration data, plus `λ` times that of the
/// weight. If all units are kept, the layers do not change, whatever `λ` is. The units are chosen
/// one after the other: each is the one that lowers the regularized error most. Units that do not
/// vary come last. A second layer without a bias stays without one; `S` is then the second moment
/// about zero.
///
/// With a [`PairedStats`](crate::covariance::PairedStats) of the hidden units, the second layer is
/// fitted for the units of the partly compressed network. An
/// [`OutputMetric`](crate::compress::OutputMetric) of the second layer's outputs chooses the units;
/// the best refit for given units does not depend on it.
///
/// This is the activation pruning of the DALR paper
/// ([`ActivationPruning`](crate::ActivationPruning)) with another criterion, and with compensation.
/// MoDeGPT (Lin et al., ICLR 2025, [arXiv 2408.09632](https://arxiv.org/abs/2408.09632)) has the
/// same refit and ranks the units by their ridge leverage scores, the diagonal of `S (S + λI)⁻¹`,
/// which do not depend on the second layer.
///
/// ```
/// use dalr::compress::HiddenUnits;
/// use dalr::{ActivationStats, Linear};
/// use faer::{Mat, col, mat};
///
/// # fn main() -> dalr::Result<()> {
/// // Three hidden units; the third is the sum of the others.
/// let first = Linear::new(mat![[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], None)?;
/// let second = Linear::new(mat![[1.0, 2.0, 3.0]], Some(col![0.5]))?;
/// let inputs = Mat::from_fn(40, 2, |i, j| ((i * (5 + 3 * j)) % 11) as f64); // positive: φ is a ReLU
/// let mut hidden = ActivationStats::new(3); // the inputs of the second layer
/// hidden.update(first.forward(inputs.as_ref())?.as_ref())?;
///
/// let units = HiddenUnits::new(&first, &second, &hidden)?;
/// let smaller = units.select(2)?;
/// assert_eq!(smaller.first.out_features(), 2);
/// // Two units carry nearly everything; regularization keeps the refit from using all of it.
/// assert!(smaller.relative_error.is_some_and(|error| error < 0.1), "{:?}", smaller.relative_error);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct HiddenUnits<T> {
    first: Linear<T>,
    gate: Option<Linear<T>>,
    refit: UnitRefit<T>,
    /// The largest number of units that [`select`](Self::select) takes.
    max_units: usize,
    errors: UnitErrors,
}

/// The layers with some of the hidden units, from [`HiddenUnits::select`].
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(bound(serialize = "T: Scalar + serde::Serialize", deserialize = "T: Scalar + serde::Deserialize<'de>"))
)]
#[non_exhaustive]
pub struct SelectedUnits<T> {
    /// The kept units, ascending: `k` indices.
    pub kept: Vec<usize>,
    /// The rows of the kept units of the first layer, `k` × in; of the layer `up` if the units are
    /// gated.
    pub first: Linear<T>,
    /// The same rows of the gate; `None` unless the units are gated.
    pub gate: Option<Linear<T>>,
    /// The refitted second layer, out × `k`, or `k` times the inputs of each unit.
    pub second: Linear<T>,
    /// The predicted error of the second layer's outputs on the calibration data, as
    /// [`Report::relative_error`](crate::Report::relative_error).
    pub relative_error: Option<f64>,
    /// The predicted error in the output metric; `None` without a metric.
    pub metric_error: Option<f64>,
}

/// Options of the selection of [`HiddenUnits`].
///
/// ```
/// use dalr::compress::{HiddenUnitSelection, HiddenUnits};
/// use dalr::{ActivationStats, Linear, Ridge};
/// # use faer::Mat;
/// # fn main() -> dalr::Result<()> {
/// # let first = Linear::new(Mat::from_fn(6, 4, |i, j| ((i * 5 + j * 3) % 7) as f64 - 3.0), None)?;
/// # let second = Linear::new(Mat::from_fn(3, 6, |i, j| ((i * 4 + j * 3) % 5) as f64 - 2.0), None)?;
/// # let mut hidden = ActivationStats::new(6);
/// # hidden.update(Mat::from_fn(50, 6, |i, j| ((i * (j + 3)) % 13) as f64).as_ref())?;
/// let options = HiddenUnitSelection::new().with_ridge(Ridge::Relative(0.01)).with_max_units(3);
/// let units = options.solve(&first, &second, &hidden)?;
/// assert!(units.relative_error(3) < units.relative_error(2));
/// assert_eq!(units.relative_error(4), None); // above the largest number of units
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HiddenUnitSelection {
    ridge: Option<Ridge>,
    correct_bias: Option<bool>,
    max_units: Option<usize>,
    #[cfg_attr(feature = "serde", serde(default))]
    inputs_per_unit: Option<usize>,
    threads: usize,
}

impl<T: Scalar> HiddenUnits<T> {
    /// Orders the hidden units between two layers, with the default options.
    ///
    /// `hidden` are statistics of the second layer's inputs, after the activation function. For
    /// options see [`HiddenUnitSelection`].
    ///
    /// # Errors
    ///
    /// A second layer whose inputs are not the first layer's outputs; statistics or a metric of
    /// another size; no samples; a ridge of zero for paired inputs; [`Error::Memory`];
    /// [`Error::Overflow`].
    ///
    /// # Cost
    ///
    /// For `h` hidden units, `m` outputs and up to `k` kept units, `O(h k (h + m) + h² m)`
    /// multiply–adds, most of them in products of matrices. Memory for an `h × h`, an `h × k` and
    /// three `m × h` matrices of `f64`.
    pub fn new<'a>(first: &Linear<T>, second: &Linear<T>, hidden: impl Into<Calibration<'a, T>>) -> Result<Self> {
        during("HiddenUnits::new", || HiddenUnitSelection::new().units((None, first), second, hidden.into()))
    }

    /// Orders the units of a gated layer, `y = W₂ (φ(W_g x + b_g) ∘ (W_u x + b_u)) + b₂`, with the
    /// default options.
    ///
    /// `hidden` are statistics of the products, which the second layer reads. The layers `gate` and
    /// `up` lose the same rows.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new); a gate of another shape than `up`.
    pub fn gated<'a>(
        gate: &Linear<T>,
        up: &Linear<T>,
        second: &Linear<T>,
        hidden: impl Into<Calibration<'a, T>>,
    ) -> Result<Self> {
        let options = HiddenUnitSelection::new();
        during("HiddenUnits::gated", || options.units((Some(gate), up), second, hidden.into()))
    }

    /// Returns the predicted error of the second layer's outputs on the calibration data with `k`
    /// units, relative to the original outputs about their mean, as
    /// [`Report::relative_error`](crate::Report::relative_error).
    ///
    /// `None` for 0 and for more units than the selection was asked for.
    pub fn relative_error(&self, k: usize) -> Option<f64> {
        self.error(Some(&self.errors.plain), k)
    }

    /// Returns the predicted error in the output metric; `None` also without a metric.
    pub fn metric_error(&self, k: usize) -> Option<f64> {
        self.error(self.errors.metric.as_ref(), k)
    }

    /// Returns the units in the order of the selection.
    ///
    /// Units that do not vary are not among them, nor, without regularization, units that the
    /// selected ones explain. They would not lower the error.
    pub fn order(&self) -> &[usize] {
        self.refit.units()
    }

    /// The squared error of the regularized problem relative to that without units, as the energy
    /// that factors do not explain; for paired units, the squared error on the data.
    pub(crate) fn loss(&self, k: usize) -> Option<f64> {
        match &self.errors.losses {
            Some(losses) => self.error(Some(losses), k),
            None => self.metric_error(k).or(self.relative_error(k)).map(|error| error * error),
        }
    }

    /// Relative errors up to this size are rounding.
    pub(crate) fn resolution(&self) -> f64 {
        self.errors.resolution.max(4.0 * T::EPSILON)
    }

    pub(crate) fn max_units(&self) -> usize {
        self.max_units
    }

    /// The number of units, and of the second layer's inputs for each.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let units = self.first.out_features();
        (units, self.refit.original().in_features() / units.max(1))
    }

    pub(crate) fn is_gated(&self) -> bool {
        self.gate.is_some()
    }

    /// Whether the refitted second layer has a bias.
    pub(crate) fn has_bias(&self) -> bool {
        self.refit.has_bias()
    }

    fn error(&self, errors: Option<&Vec<f64>>, k: usize) -> Option<f64> {
        if k == 0 || k > self.max_units {
            return None;
        }
        // After the last selected unit, the error stays flat.
        let errors = errors?;
        let flat = errors.last().copied();
        if self.refit.is_identity(k) { Some(0.0) } else { errors.get(k).copied().or(flat) }
    }

    /// Returns the layers with the first `k` units of the [`order`](Self::order).
    ///
    /// If the order is shorter, units that are not in it fill up the number, and keep their columns
    /// of the second layer. They do not lower the error.
    ///
    /// # Errors
    ///
    /// A `k` of zero, or above the largest number of units that the selection was asked for;
    /// [`Error::Overflow`] if a refitted number leaves the range of `T`; [`Error::Memory`].
    ///
    /// # Cost
    ///
    /// `O(m k h)` multiply–adds.
    pub fn select(&self, k: usize) -> Result<SelectedUnits<T>> {
        during("HiddenUnits::select", || {
            require_count(k, self.max_units)?;
            let kept = self.refit.kept(k);
            let rows = |layer: &Linear<T>| {
                let mut weight = linalg::zeros(kept.len(), layer.in_features())?;
                for (row, &unit) in kept.iter().enumerate() {
                    weight.as_mut().row_mut(row).copy_from(layer.weight().row(unit));
                }
                let bias = layer.bias().map(|bias| kept.iter().map(|&unit| bias[unit]).collect::<Col<T>>());
                Linear::new(weight, bias)
            };
            Ok(SelectedUnits {
                first: rows(&self.first)?,
                gate: self.gate.as_ref().map(rows).transpose()?,
                second: self.refit.layer(&kept, k)?,
                relative_error: self.relative_error(k),
                metric_error: self.metric_error(k),
                kept,
            })
        })
    }
}

impl<T: Scalar> fmt::Debug for HiddenUnits<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("HiddenUnits")
            .field("first", &self.first)
            .field("gate", &self.gate)
            .field("second", self.refit.original())
            .field("max_units", &self.max_units)
            .field("order", &self.order())
            .finish()
    }
}

impl HiddenUnitSelection {
    /// Creates the default options, those of [`HiddenUnits::new`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the regularization of `S`; [`Ridge::Shrinkage`] by default, and
    /// [`Ridge::Relative(0.1)`](Ridge::Relative) for paired inputs.
    ///
    /// [`Ridge::Paper`] and [`Ridge::Exact`] are errors: they pull the refitted weight towards
    /// zero, not towards the original one.
    #[must_use]
    pub fn with_ridge(mut self, ridge: Ridge) -> Self {
        self.ridge = Some(ridge);
        self
    }

    /// Sets whether the bias of the second layer is corrected; by default if the layer has one, as
    /// [`Dalr::with_bias_correction`](crate::Dalr::with_bias_correction).
    #[must_use]
    pub fn with_bias_correction(mut self, correct: bool) -> Self {
        self.correct_bias = Some(correct);
        self
    }

    /// Sets the largest number of units that [`HiddenUnits::select`] will be asked for; all of them
    /// by default. A smaller number takes less time and memory.
    #[must_use]
    pub fn with_max_units(mut self, count: usize) -> Self {
        self.max_units = Some(count);
        self
    }

    /// Sets how many successive inputs of the second layer belong to one unit, an output of the
    /// first layer; 1 by default. They are kept or dropped together.
    ///
    /// For channels of convolutions, each an output of the linear layer of the first one: if the
    /// second layer is a convolution too, a unit has height · width of its kernel inputs; if it is
    /// a fully connected layer behind a flattened image, height · width of that image.
    ///
    /// ```
    /// use dalr::compress::HiddenUnitSelection;
    /// use dalr::convolution::{Conv2d, ConvOptions, PatchStats};
    /// # use faer::{Col, Mat};
    /// # fn main() -> dalr::Result<()> {
    /// # let weight = |m: usize, n: usize| Mat::from_fn(m, n, |i, j| ((i * 5 + j * j * 3) % 17) as f64 - 8.0);
    /// # let (images, size) = (Mat::from_fn(9, 100, |i, j| ((i * i * 11 + j * 7 + i * j) % 13) as f64), (10, 10));
    /// # let relu = |mut maps: Mat<f64>| { maps.as_mut().col_iter_mut().for_each(|c| c.iter_mut().for_each(|x| *x = x.max(0.0))); maps };
    /// // Eight channels between a 5 × 5 and a 3 × 3 convolution.
    /// let first = Conv2d::new(weight(8, 25), Some(Col::zeros(8)), (5, 5), ConvOptions::new())?;
    /// let second = Conv2d::new(weight(4, 8 * 9), Some(Col::zeros(4)), (3, 3), ConvOptions::new())?;
    /// let mut inputs = PatchStats::new(&second, 0.5)?;
    /// let maps = relu(first.forward(images.as_ref(), size)?);
    /// inputs.update(maps.as_ref(), first.output_size(size)?)?;
    ///
    /// let options = HiddenUnitSelection::new().with_inputs_per_unit(9);
    /// let channels = options.solve(first.as_linear()?, second.as_linear()?, &inputs.groups()[0])?.select(6)?;
    /// let first = first.with_layers(vec![channels.first])?;
    /// let second = second.with_layers(vec![channels.second])?;
    /// assert_eq!((first.out_channels(), second.in_channels()), (6, 6));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_inputs_per_unit(mut self, count: usize) -> Self {
        self.inputs_per_unit = Some(count);
        self
    }

    /// Sets the number of threads, as [`Dalr::with_threads`](crate::Dalr::with_threads).
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Orders the hidden units between two layers, as [`HiddenUnits::new`].
    ///
    /// # Errors
    ///
    /// As [`HiddenUnits::new`]; options out of range.
    pub fn solve<'a, T: Scalar>(
        &self,
        first: &Linear<T>,
        second: &Linear<T>,
        hidden: impl Into<Calibration<'a, T>>,
    ) -> Result<HiddenUnits<T>> {
        during("HiddenUnitSelection::solve", || self.units((None, first), second, hidden.into()))
    }

    /// Orders the units of a gated layer, as [`HiddenUnits::gated`].
    ///
    /// # Errors
    ///
    /// As [`HiddenUnits::gated`]; options out of range.
    pub fn solve_gated<'a, T: Scalar>(
        &self,
        gate: &Linear<T>,
        up: &Linear<T>,
        second: &Linear<T>,
        hidden: impl Into<Calibration<'a, T>>,
    ) -> Result<HiddenUnits<T>> {
        during("HiddenUnitSelection::solve_gated", || self.units((Some(gate), up), second, hidden.into()))
    }

    fn units<T: Scalar>(
        &self,
        (gate, first): (Option<&Linear<T>>, &Linear<T>),
        second: &Linear<T>,
        hidden: Calibration<'_, T>,
    ) -> Result<HiddenUnits<T>> {
        let inputs_per_unit = self.inputs_per_unit.unwrap_or(1);
        if inputs_per_unit == 0 || !second.in_features().is_multiple_of(inputs_per_unit) {
            let expected = format!("to divide the inputs of the second layer, {}", second.in_features());
            return Err(Error::out_of_range("the number of inputs of each unit", expected, inputs_per_unit as f64));
        }
        let size = second.in_features() / inputs_per_unit;
        if first.out_features() != size {
            let what = match inputs_per_unit {
                1 => "outputs of the first layer (one per input of the second)",
                _ => "outputs of the first layer (one per unit that the second reads)",
            };
            return Err(Error::shape(what, size, first.out_features()));
        }
        if let Some(gate) = gate {
            for (what, expected, found) in [
                ("outputs of the gate (as `up` has)", first.out_features(), gate.out_features()),
                ("inputs of the gate (as `up` has)", first.in_features(), gate.in_features()),
            ] {
                if expected != found {
                    return Err(Error::shape(what, expected, found));
                }
            }
        }
        hidden.require_shape((second.out_features(), second.in_features()))?;
        let max_units = self.max_units.unwrap_or(size);
        require_count(max_units, size)?;
        let problem = UnitProblem {
            correct_bias: self.correct_bias.unwrap_or(second.bias().is_some()),
            regularization: self.regularization(hidden.paired().is_some())?,
            inputs_per_unit,
            par: linalg::threads(self.threads),
        };
        let (refit, errors) = problem.solve(second, hidden, max_units)?;
        Ok(HiddenUnits { first: first.clone(), gate: gate.cloned(), refit, max_units, errors })
    }

    fn regularization(&self, paired: bool) -> Result<Regularization> {
        let ridge = self.ridge.unwrap_or(Ridge::automatic(paired));
        match ridge.problem()? {
            (Target::Original, regularization) => Ok(regularization),
            _ => Err(Error::text("none, shrinkage or relative:0.1 as the ridge of hidden units", ridge.to_string())),
        }
    }
}

fn require_count(count: usize, most: usize) -> Result<()> {
    if (1..=most).contains(&count) {
        return Ok(());
    }
    Err(Error::out_of_range("the number of hidden units", format!("to be from 1 to {most}"), count as f64))
}
