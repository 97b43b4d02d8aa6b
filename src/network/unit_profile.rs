//! The profile of the hidden units between two layers: the error with every number of them.

use super::cost::Cost;
use super::layer_profile::{self, LayerProfile};
use super::plan::Plan;
use crate::compress::HiddenUnits;
use crate::{Error, Result, Scalar};

/// The hidden units between two layers of a network, and the loss with every number of them,
/// without matrices.
///
/// [`Allocator::allocate_joint`](super::Allocator::allocate_joint) chooses between factors for each
/// layer and fewer units for both. The units may be channels of convolutions.
///
/// ```
/// use dalr::compress::HiddenUnits;
/// use dalr::network::{Allocator, Budget, Choice, LayerProfile, Strategy, UnitProfile};
/// use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor};
/// # use faer::{Col, Mat};
/// # fn main() -> dalr::Result<()> {
/// # let weight = |m: usize, n: usize| Mat::from_fn(m, n, |i, j| ((i * i * 5 + j * j * 3 + i * j) % 17) as f64 - 8.0);
/// # let (first, second) = (Linear::new(weight(16, 16), Some(Col::zeros(16)))?, Linear::new(weight(16, 16), Some(Col::zeros(16)))?);
/// # let (mut inputs, mut hidden) = (ActivationStats::new(16), ActivationStats::new(16));
/// # let batch = Mat::from_fn(90, 16, |i, j| ((i * i * 11 + j * 7 + i * j) % 13) as f64 - 6.0);
/// # inputs.update(batch.as_ref())?;
/// # let mut after = first.forward(batch.as_ref())?;
/// # after.as_mut().col_iter_mut().enumerate().for_each(|(j, c)| c.iter_mut().for_each(|x| *x = if j < 8 { x.max(0.0) } else { 0.0 }));
/// # hidden.update(after.as_ref())?;
/// // `inputs` are those of the first layer, `hidden` those of the second. Half of the units are never active.
/// let method = Dalr::new();
/// let profiles = [
///     LayerProfile::new("fc1", &method.decompose(&first, &inputs, 7)?),
///     LayerProfile::new("fc2", &method.decompose(&second, &hidden, 7)?),
/// ];
/// let units = HiddenUnits::new(&first, &second, &hidden)?;
/// let pair = UnitProfile::new("fc1", "fc2", &units);
/// let allocator = Allocator::new(Budget::ParameterFraction(0.6)).with_strategy(Strategy::Energy);
/// let plan = allocator.allocate_joint(&profiles, &[], &[pair])?;
/// if let Some(Choice::HiddenUnits { kept, .. }) = plan.choice("fc1") {
///     let smaller = units.select(kept)?;
/// #   assert_eq!((kept, smaller.second.in_features()), (8, 8));
/// }
/// # assert!(matches!(plan.choice("fc2"), Some(Choice::HiddenUnits { pair: 0, kept: 8 })), "{plan}");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct UnitProfile {
    /// The first layer and perhaps its gate.
    firsts: Vec<String>,
    second: String,
    /// The number of units, and of the second layer's inputs for each.
    units: (usize, usize),
    /// Whether the refitted second layer has a bias.
    bias: bool,
    /// Whether the units are products with the outputs of a gate.
    gated: bool,
    /// The loss with 1, 2, … units.
    losses: Vec<f64>,
    relative_errors: Vec<f64>,
    /// Relative errors up to this size are rounding.
    resolution: f64,
}

impl UnitProfile {
    /// Creates the profile of the units between two layers, given their names.
    pub fn new<T: Scalar>(first: impl Into<String>, second: impl Into<String>, units: &HiddenUnits<T>) -> Self {
        let counts = 1..=units.max_units();
        Self {
            firsts: vec![first.into()],
            second: second.into(),
            units: units.counts(),
            bias: units.has_bias(),
            gated: units.is_gated(),
            losses: counts.clone().filter_map(|count| units.loss(count)).collect(),
            relative_errors: counts.filter_map(|count| units.relative_error(count)).collect(),
            resolution: units.resolution(),
        }
    }

    /// Sets the name of the gate, the second of the layers that the units are the products of.
    #[must_use]
    pub fn with_gate(mut self, gate: impl Into<String>) -> Self {
        self.firsts.truncate(1);
        self.firsts.push(gate.into());
        self
    }

    /// Returns the names of the layers, in the order of execution.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.firsts.iter().chain([&self.second]).map(String::as_str)
    }

    /// Returns the names of all layers in one text, such as `fc1 + fc2`, for
    /// [`Sensitivities`](super::Sensitivities).
    pub fn name(&self) -> String {
        self.names().collect::<Vec<_>>().join(" + ")
    }

    /// Returns the number of units of the original layers.
    pub fn units(&self) -> usize {
        self.units.0
    }

    /// Returns the loss of the second layer with this many units, a squared relative error, as
    /// [`LayerProfile::loss`]. `None` for a number that was not solved for.
    pub fn loss(&self, units: usize) -> Option<f64> {
        self.losses.get(units.checked_sub(1)?).copied()
    }

    /// Returns the predicted error of the second layer with this many units, as
    /// [`HiddenUnits::relative_error`].
    pub fn relative_error(&self, units: usize) -> Option<f64> {
        self.relative_errors.get(units.checked_sub(1)?).copied()
    }

    /// The numbers of units that were solved for.
    pub(super) fn counts(&self) -> core::ops::RangeInclusive<usize> {
        1..=self.losses.len()
    }

    /// Returns a number of units to measure the sensitivity with, and the loss there: about the
    /// fraction of the units that a plan keeps of the layers' parameters. `None` if no number has a
    /// measurable loss.
    pub(super) fn measurable(&self, plan: &Plan) -> Result<Option<(usize, f64)>> {
        let (mut before, mut after) = (0, 0);
        for name in self.names() {
            let layer = plan.layer(name).ok_or_else(|| {
                Error::layers(format!("a plan with the layer `{name}`"), format!("{} other layers", plan.layers.len()))
            })?;
            before += layer.parameters_before;
            after += layer.parameters_after;
        }
        let planned = (self.units() as f64 * after as f64 / before.max(1) as f64) as usize;
        let counts = self.counts().rev().filter(|&count| count <= planned.max(1));
        // A quotient with a loss that is rounding noise would be meaningless.
        let measurable = |count: &usize| self.relative_error(*count).is_some_and(|error| error > self.resolution);
        let mut counts = counts.filter(measurable).filter_map(|count| Some((count, self.loss(count)?)));
        Ok(counts.find(|(_, loss)| *loss > self.resolution.powi(2) && loss.is_finite()))
    }

    /// The loss in the units of the second layer's profile.
    pub(super) fn loss_beside(&self, second: &LayerProfile, units: usize) -> f64 {
        let error = || self.relative_error(units).map(|error| error * error);
        let loss = if second.by_data_errors { error() } else { self.loss(units) };
        loss.unwrap_or(f64::INFINITY)
    }

    /// The cost of one of the layers with this many units.
    pub(super) fn cost(&self, layer: &LayerProfile, units: usize) -> Cost {
        let ((outputs, inputs), (bias, _)) = (layer.facts.shape, layer.facts.biases);
        let cost = match layer.name() == self.second {
            true => Cost::of_linear((outputs, units.saturating_mul(self.units.1)), self.bias),
            false => Cost::of_linear((units, inputs), bias),
        };
        cost.at_positions(layer.calls)
    }

    /// Returns an error if a layer does not fit the units.
    pub(super) fn check(&self, layer: &LayerProfile) -> Result<()> {
        let (units, each) = self.units;
        let (what, expected, found) = match layer.name() == self.second {
            true => ("inputs (those of all hidden units)", units * each, layer.in_features()),
            false => ("outputs (one per hidden unit)", units, layer.out_features()),
        };
        let error = match (expected == found, layer.groups) {
            (true, 1) => return Ok(()),
            (true, groups) => {
                Error::layers("layers of one group around hidden units".into(), format!("{groups} groups"))
            }
            (false, _) => Error::shape(what, expected, found),
        };
        Err(error.in_layer(layer.name()))
    }

    /// Returns an error unless there is a name for each layer.
    pub(super) fn require_names(&self) -> Result<()> {
        layer_profile::index(self.names())?;
        if self.gated == (self.firsts.len() == 2) {
            return Ok(());
        }
        let name = |gated: bool| if gated { "the name of a gate" } else { "no gate" };
        let found = format!("{} of the units before `{}`", name(!self.gated), self.second);
        Err(Error::layers(name(self.gated).into(), found))
    }
}
