//! Sensitivities: the increase of a network's loss by the error of each of its layers.

use core::ops::ControlFlow;
use std::collections::BTreeMap;

use super::evaluation::{self, AnyError, Evaluation, Evaluator};
use super::layer_profile::{self, LayerProfile, Limits};
use super::plan::{Choice, Plan};
use super::progress::{Progress, Tracker};
use super::unit_profile::UnitProfile;
use crate::error::{during, require};
use crate::{Error, Result};

/// The increase of the network's loss for each unit of a layer's loss, by name. Only the ratios
/// matter.
///
/// In JSON this is a plain object: `{"fc1": 0.8, "fc2": 0.1}`.
///
/// ```
/// use dalr::network::Sensitivities;
/// # fn main() -> dalr::Result<()> {
/// let sensitivities = Sensitivities::new([("fc1", 0.8), ("fc2", 0.1)])?;
/// assert_eq!((sensitivities.get("fc1"), sensitivities.get("fc3")), (Some(0.8), None));
/// assert!(Sensitivities::new([("fc1", f64::NAN)]).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "BTreeMap<String, f64>", into = "BTreeMap<String, f64>"))]
pub struct Sensitivities(BTreeMap<String, f64>);

impl Sensitivities {
    /// Creates sensitivities from pairs of a name and a number.
    ///
    /// # Errors
    ///
    /// A number that is negative or not finite ([`Error::InLayer`] names the layer); a name that
    /// occurs twice.
    pub fn new<N: Into<String>>(sensitivities: impl IntoIterator<Item = (N, f64)>) -> Result<Self> {
        during("Sensitivities::new", || {
            let mut map = BTreeMap::new();
            for (name, sensitivity) in sensitivities {
                let name = name.into();
                let good = sensitivity >= 0.0 && sensitivity.is_finite();
                require(good, "the sensitivity", "to be finite and at least 0", sensitivity)
                    .map_err(|error| error.in_layer(&name))?;
                if map.insert(name.clone(), sensitivity).is_some() {
                    let expected = "one sensitivity for each layer".into();
                    return Err(Error::layers(expected, format!("two for `{name}`")));
                }
            }
            Ok(Self(map))
        })
    }

    /// Measures the sensitivities: compresses one layer at a time, and divides the increase of the
    /// network's loss by the layer's squared relative error ([`LayerProfile::loss`]).
    ///
    /// `evaluate` gets the layers to compress and their ranks; all others stay original. It returns
    /// the loss of this network, which is smaller for better networks: a cross-entropy, one minus a
    /// cosine, one minus an accuracy. It is called once without any layers, and once for each
    /// layer, at its rank in `plan`. If the layer's loss there is rounding noise, the next smaller
    /// rank with a loss is measured. A layer that stays original in `plan` is measured at the
    /// largest rank that saves parameters. A layer is left out if no rank that saves parameters has
    /// a measurable loss.
    ///
    /// If compressing a layer seems to improve the network, its sensitivity is zero. Such a value
    /// is mostly noise; see [`with_floor`](Self::with_floor). The result is `None` if `progress`
    /// cancels. `evaluations` keeps all values, also after an error; the next call continues from
    /// them.
    ///
    /// # Errors
    ///
    /// Two layers of the same name; no layer that can be measured; a value that is not finite, or a
    /// quotient that overflows; an error of `evaluate`, as the source of an [`Error::Callback`].
    ///
    /// ```
    /// use std::collections::BTreeMap;
    /// use dalr::network::{Allocator, Budget, LayerProfile, Progress, Sensitivities, Strategy};
    ///
    /// # fn main() -> dalr::Result<()> {
    /// let profiles = [
    ///     LayerProfile::from_energies("fc1", (20, 20), false, &[8.0, 4.0, 2.0, 1.0], 16.0)?,
    ///     LayerProfile::from_energies("fc2", (20, 20), false, &[8.0, 4.0, 2.0, 1.0], 16.0)?,
    /// ];
    /// # fn loss_of(ranks: &BTreeMap<String, usize>) -> std::io::Result<f64> {
    /// #     Ok(1.0 + ranks.iter().map(|(name, rank)| name.len() as f64 / *rank as f64).sum::<f64>())
    /// # }
    /// let budget = Budget::ParameterFraction(0.4);
    /// let uniform = Allocator::new(budget).allocate(&profiles)?;
    /// // Compress these layers, run the network, return its loss.
    /// let evaluate = |ranks: &BTreeMap<String, usize>| loss_of(ranks);
    /// let mut evaluations = Vec::new();
    /// let measured =
    ///     Sensitivities::measure(&profiles, &uniform, &mut evaluations, evaluate, &mut Progress::ignore)?;
    /// if let Some(sensitivities) = measured {
    ///     let strategy = Strategy::Sensitivity(sensitivities.with_floor(0.05)?);
    ///     let plan = Allocator::new(budget).with_strategy(strategy).allocate(&profiles)?;
    ///     println!("{plan}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn measure<E: Into<AnyError>>(
        layers: &[LayerProfile],
        plan: &Plan,
        evaluations: &mut Vec<Evaluation>,
        evaluate: impl FnMut(&BTreeMap<String, usize>) -> Result<f64, E>,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Option<Self>> {
        during("Sensitivities::measure", || {
            layer_profile::positions(layers)?;
            let measurable: Vec<_> = layers.iter().filter_map(|layer| measurable(layer, plan)).collect();
            if measurable.is_empty() {
                return Err(Error::empty("the list of layers that can be compressed"));
            }
            let tracker = Tracker::new(progress, Some(measurable.len() + 1));
            let mut evaluator = Evaluator { layers, evaluations, evaluate, tracker };
            let Some(original) = evaluator.evaluate(None, &BTreeMap::new())? else { return Ok(None) };
            let mut sensitivities = Vec::with_capacity(measurable.len());
            for (name, rank, loss) in measurable {
                let ranks = BTreeMap::from([(name.to_owned(), rank)]);
                let Some(compressed) = evaluator.evaluate(Some(name), &ranks)? else { return Ok(None) };
                sensitivities.push((name, ((compressed.value - original.value) / loss).max(0.0)));
            }
            Self::new(sensitivities).map(Some)
        })
    }

    /// Measures the sensitivities to fewer hidden units, and adds them under the
    /// [names](UnitProfile::name) of the pairs of layers.
    ///
    /// Without this, a pair has the sensitivity of its second layer, which was measured with a
    /// low-rank error. Fewer units change the network in another way: on a sentence transformer the
    /// two differ by up to a factor of 2.5.
    ///
    /// `evaluate` gets the position of a pair in `units` and a number of units, and returns the
    /// loss of the network with as many units between these two layers and no other change.
    /// `original` is the loss of the original network. Every pair is evaluated once, with about the
    /// fraction of its units that `plan` keeps of the parameters of its layers. A pair without a
    /// measurable loss is left out. A pair that has a sensitivity already is not evaluated again, so
    /// that the next call after an error continues with the others.
    ///
    /// Returns whether all pairs were measured: `false` if `progress` cancels.
    ///
    /// # Errors
    ///
    /// A layer that `plan` does not have; a value that is not finite, or a quotient that overflows;
    /// an error of `evaluate`, as the source of an [`Error::Callback`].
    ///
    /// ```
    /// # use dalr::compress::HiddenUnits;
    /// use dalr::network::{Allocator, Budget, LayerProfile, Progress, Sensitivities, Strategy, UnitProfile};
    /// # use dalr::{ActivationStats, Linear};
    /// # use faer::Mat;
    /// # fn main() -> dalr::Result<()> {
    /// # let weight = Mat::from_fn(16, 16, |i, j| ((i * i * 5 + j * j * 3 + i * j) % 17) as f64 - 8.0);
    /// # let layer = Linear::new(weight, None)?;
    /// # let mut hidden = ActivationStats::new(16);
    /// # let batch = Mat::from_fn(90, 16, |i, j| ((i * i * 11 + j * 7 + i * j) % 13) as f64 - 6.0);
    /// # hidden.update(batch.as_ref())?;
    /// # let profiles = [
    /// #     LayerProfile::from_energies("fc1", (16, 16), false, &[8.0, 4.0, 2.0, 1.0], 16.0)?,
    /// #     LayerProfile::from_energies("fc2", (16, 16), false, &[8.0, 4.0, 2.0, 1.0], 16.0)?,
    /// # ];
    /// # let units = [UnitProfile::new("fc1", "fc2", &HiddenUnits::new(&layer, &layer, &hidden)?)];
    /// # fn loss_with(pair: usize, kept: usize) -> std::io::Result<f64> { Ok((16 - kept + pair) as f64) }
    /// # let (original, budget) = (0.0, Budget::ParameterFraction(0.45));
    /// # let uniform = Allocator::new(budget).allocate(&profiles)?;
    /// # let measured = Sensitivities::new([("fc1", 0.8), ("fc2", 0.1)])?;
    /// let mut sensitivities = measured.with_floor(0.05)?; // from `Sensitivities::measure`
    /// // Keep this number of units in this pair, run the network, return its loss.
    /// let evaluate = |pair: usize, kept: usize| loss_with(pair, kept);
    /// sensitivities.measure_units(&units, &uniform, original, evaluate, &mut Progress::ignore)?;
    /// assert!(sensitivities.get("fc1 + fc2").is_some());
    /// let strategy = Strategy::Sensitivity(sensitivities);
    /// let allocator = Allocator::new(budget).with_strategy(strategy);
    /// let plan = allocator.allocate_joint(&profiles, &[], &units)?;
    /// # let _ = plan;
    /// # Ok(())
    /// # }
    /// ```
    pub fn measure_units<E: Into<AnyError>>(
        &mut self,
        units: &[UnitProfile],
        plan: &Plan,
        original: f64,
        mut evaluate: impl FnMut(usize, usize) -> Result<f64, E>,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<bool> {
        during("Sensitivities::measure_units", || {
            require(original.is_finite(), "the loss of the original network", "to be finite", original)?;
            let mut measurable = Vec::with_capacity(units.len());
            for (at, pair) in units.iter().enumerate().filter(|(_, pair)| self.get(&pair.name()).is_none()) {
                measurable.extend(pair.measurable(plan)?.map(|(kept, loss)| (at, pair.name(), kept, loss)));
            }
            let mut tracker = Tracker::new(progress, Some(measurable.len()));
            for (at, name, kept, loss) in measurable {
                if !tracker.begin(Some(&name)) {
                    return Ok(false);
                }
                let value = evaluation::finite(format!("`{name}` with {kept} units"), evaluate(at, kept))?;
                tracker.finish(Some(&name), Some(value));
                let Self(measured) = Self::new([(name, ((value - original) / loss).max(0.0))])?;
                self.0.extend(measured);
            }
            Ok(true)
        })
    }

    /// Returns the sensitivity of a layer, or of a pair of layers by its
    /// [name](UnitProfile::name).
    pub fn get(&self, layer: &str) -> Option<f64> {
        self.0.get(layer).copied()
    }

    pub(super) fn require(&self, layer: &str) -> Result<f64> {
        self.get(layer).ok_or_else(|| {
            let expected = "a sensitivity for each layer that can be compressed".into();
            Error::layers(expected, format!("none for `{layer}`"))
        })
    }

    /// Returns all names and sensitivities, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, &sensitivity)| (name.as_str(), sensitivity))
    }

    /// Raises every sensitivity to at least this fraction of their mean.
    ///
    /// For a layer with little effect, a single measurement is mostly noise. If it is zero, the
    /// allocation would compress that layer to the smallest rank.
    ///
    /// # Errors
    ///
    /// A fraction outside of [0, 1].
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let measured = dalr::network::Sensitivities::new([("fc1", 0.8), ("fc2", 0.0)])?;
    /// assert_eq!(measured.with_floor(0.25)?.get("fc2"), Some(0.1));
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_floor(mut self, fraction_of_mean: f64) -> Result<Self> {
        during("Sensitivities::with_floor", || {
            let good = (0.0..=1.0).contains(&fraction_of_mean);
            require(good, "the fraction of the mean", "to be in [0, 1]", fraction_of_mean)?;
            let count = self.0.len().max(1) as f64;
            let floor = self.0.values().map(|sensitivity| sensitivity / count).sum::<f64>() * fraction_of_mean;
            self.0.values_mut().for_each(|sensitivity| *sensitivity = sensitivity.max(floor));
            Ok(self)
        })
    }
}

/// Returns the rank at which a layer is measured, and its loss there.
fn measurable<'a>(layer: &'a LayerProfile, plan: &Plan) -> Option<(&'a str, usize, f64)> {
    let planned = match plan.choice(layer.name()) {
        Some(Choice::Rank(rank)) => rank,
        _ => usize::MAX,
    };
    // A quotient with a loss that is rounding noise would be meaningless.
    let least = layer.facts.resolution.powi(2);
    let ranks = layer.saving_ranks(Limits::NONE).into_iter().rev().filter(|&rank| rank <= planned);
    let mut measurable = ranks.filter_map(|rank| Some((layer.name(), rank, layer.loss(rank)?)));
    measurable.find(|(_, _, loss)| *loss > least && loss.is_finite())
}

impl TryFrom<BTreeMap<String, f64>> for Sensitivities {
    type Error = Error;

    fn try_from(map: BTreeMap<String, f64>) -> Result<Self> {
        Self::new(map)
    }
}

impl From<Sensitivities> for BTreeMap<String, f64> {
    fn from(sensitivities: Sensitivities) -> Self {
        sensitivities.0
    }
}
