//! Sensitivities, measured: what the network loses when one layer alone is compressed.

use std::collections::BTreeMap;

use super::allocator::names;
use super::candidates::{Limits, candidates};
use super::observer::{Completion, Event, Observer, Stage};
use super::plan::{Choice, Plan};
use super::profile::LayerProfile;
use super::sensitivity::Sensitivities;
use crate::error::during;
use crate::{Error, Result};

/// What the user's function is asked to evaluate. For an example see [`Probes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Probe<'a> {
    /// The network as it was.
    Original,
    /// The network with this one layer compressed.
    Layer {
        /// Its name.
        name: &'a str,
        /// Its rank.
        rank: usize,
    },
}

/// Measures [`Sensitivities`]: compresses one layer at a time, has the network evaluated, and divides what it lost by what the layer lost.
///
/// One evaluation for each layer, and one of the network as it was. Every result is kept here: after an error of the function or a request to
/// stop, `measure` goes on where it was; with the `serde` feature, in another process. A layer whose spectrum has changed since is measured again.
///
/// ```
/// use dalr::network::{Allocator, Budget, LayerProfile, Probe, Probes, Strategy};
/// use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor};
/// use faer::Mat;
///
/// # fn main() -> dalr::Result<()> {
/// # let mut stats = ActivationStats::new(20);
/// # stats.update(Mat::from_fn(50, 20, |i, j| ((i * 11 + j * 7) % 13) as f64).as_ref())?;
/// # let mut profiles = Vec::new();
/// # for (name, m) in [("fc1", 24), ("fc2", 30)] {
/// #     let layer = Linear::new(Mat::from_fn(m, 20, |i, j| ((i * 5 + j * j * 3) % 17) as f64), None)?;
/// #     profiles.push(LayerProfile::new(name, &Dalr::new().decompose(&layer, &stats, 20)?));
/// # }
/// # fn loss_with(_: &str, rank: usize) -> std::io::Result<f64> { Ok(1.0 + 1.0 / rank as f64) }
/// let budget = Budget::ParameterShare(0.4);
/// let uniform = Allocator::new(budget).allocate(&profiles)?;
/// let mut probes = Probes::new();
/// let evaluate = |probe: Probe<'_>| match probe {
///     Probe::Layer { name, rank } => loss_with(name, rank), // compress it, run the network, say how bad it is
///     _ => Ok(1.0),
/// };
/// let _ = probes.measure(&profiles, &uniform, evaluate, &mut ())?;
/// let strategy = Strategy::Sensitivity(probes.sensitivities()?);
/// let plan = Allocator::new(budget).with_strategy(strategy).allocate(&profiles)?;
/// # let _ = plan;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Probes {
    original: Option<f64>,
    layers: BTreeMap<String, Measured>,
}

/// A finished probe.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
struct Measured {
    rank: usize,
    /// The layer's own loss at that rank.
    loss: f64,
    /// The network's.
    value: f64,
}

impl Probes {
    /// No probes yet. For an example see [`Probes`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Evaluates the network as it was, and with each layer compressed alone to its rank in `plan`; where that leaves it dense, to the
    /// largest rank that saves parameters. Layers that no rank makes smaller, or that lose nothing by it, are passed over.
    ///
    /// `evaluate` returns a loss of the network, the smaller the better: a cross-entropy, one minus a cosine, one minus an accuracy. What was
    /// measured before at the same rank of the same layer is not measured again.
    ///
    /// # Errors
    ///
    /// Two layers of the same name; a value that is not finite; what `evaluate` fails with, as the source of an [`Error::Callback`]. Finished
    /// probes are kept.
    ///
    /// For an example see [`Probes`].
    pub fn measure<E>(
        &mut self,
        layers: &[LayerProfile],
        plan: &Plan,
        mut evaluate: impl FnMut(Probe<'_>) -> Result<f64, E>,
        observer: &mut dyn Observer,
    ) -> Result<Completion>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        names(layers)?;
        let ranks: Vec<(&LayerProfile, usize, f64)> = layers.iter().filter_map(|layer| probed(layer, plan)).collect();
        // Of an earlier run, with other layers or other ranks.
        let current = |name: &String, measured: &mut Measured| {
            let same = |(layer, rank, loss): &(&LayerProfile, usize, f64)| {
                layer.name() == name && *rank == measured.rank && *loss == measured.loss
            };
            !ranks.iter().any(|(layer, ..)| layer.name() == name) || ranks.iter().any(same)
        };
        self.layers.retain(current);
        let total = Some(ranks.len() + 1);
        let mut step = |name: &str, probe: Probe<'_>, done: usize, observer: &mut dyn Observer| {
            let mut event = Event { stage: Stage::Sensitivity, layer: name, finished: false, done, total, value: None };
            if observer.observe(&event).is_break() {
                return Ok(None);
            }
            let value = evaluated(&subject(name), evaluate(probe))?;
            (event.finished, event.done, event.value) = (true, done + 1, Some(value));
            Result::Ok(Some((value, observer.observe(&event))))
        };
        let known = |probes: &Self| {
            let measured = ranks.iter().filter(|(layer, ..)| probes.layers.contains_key(layer.name())).count();
            measured + usize::from(probes.original.is_some())
        };
        if self.original.is_none() {
            let Some((value, go_on)) = step("", Probe::Original, known(self), observer)? else {
                return Ok(Completion::Cancelled);
            };
            self.original = Some(value);
            if go_on.is_break() {
                return Ok(Completion::Cancelled);
            }
        }
        for &(layer, rank, loss) in &ranks {
            let name = layer.name();
            if self.layers.contains_key(name) {
                continue;
            }
            let Some((value, go_on)) = step(name, Probe::Layer { name, rank }, known(self), observer)? else {
                return Ok(Completion::Cancelled);
            };
            self.layers.insert(name.into(), Measured { rank, loss, value });
            if go_on.is_break() && known(self) <= ranks.len() {
                return Ok(Completion::Cancelled);
            }
        }
        Ok(Completion::Finished)
    }

    /// How many layers were measured.
    ///
    /// ```
    /// assert!(dalr::network::Probes::new().is_empty());
    /// ```
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Whether no layer was measured. For an example see [`len`](Self::len).
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// What the network lost by each layer, over what the layer lost: `(loss of the network − that of the original) / loss of the layer`. Zero
    /// where compressing the layer seemed to help, which is noise; see [`Sensitivities::with_floor`].
    ///
    /// # Errors
    ///
    /// [`Error::Empty`] before the first layer is measured; a quotient that overflows.
    ///
    /// For an example see [`Probes`].
    pub fn sensitivities(&self) -> Result<Sensitivities> {
        during("Probes::sensitivities", || {
            let Some(original) = self.original.filter(|_| !self.layers.is_empty()) else {
                return Err(Error::empty("the probes"));
            };
            let weight = |measured: &Measured| ((measured.value - original) / measured.loss).max(0.0);
            Sensitivities::new(self.layers.iter().map(|(name, measured)| (name.clone(), weight(measured))))
        })
    }
}

/// The rank at which a layer is to be measured, and its loss there.
fn probed<'a>(layer: &'a LayerProfile, plan: &Plan) -> Option<(&'a LayerProfile, usize, f64)> {
    let all = candidates(layer, Limits::NONE);
    let planned = match plan.choice(layer.name()) {
        Some(Choice::Rank(rank)) => rank,
        _ => usize::MAX,
    };
    // Nothing can be divided by a loss that is rounding.
    let least = layer.resolution() * layer.resolution();
    let tangible = all.iter().filter(|candidate| candidate.rank > 0 && candidate.rank <= planned);
    let tangible = tangible.rev().find(|candidate| candidate.loss > least && candidate.loss.is_finite())?;
    Some((layer, tangible.rank, tangible.loss))
}

pub(super) fn subject(layer: &str) -> String {
    if layer.is_empty() { "the network as it was".into() } else { format!("layer `{layer}`") }
}

/// A finite value, or the error of the user's function.
pub(super) fn evaluated<E>(subject: &str, value: Result<f64, E>) -> Result<f64>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match value {
        Ok(value) if value.is_finite() => Ok(value),
        Ok(value) => {
            let (parameter, expected) = ("the value of the network", format!("finite for {subject}"));
            Err(Error::out_of_range(parameter, expected, value))
        }
        Err(error) => Err(Error::callback(subject.into(), error)),
    }
}
