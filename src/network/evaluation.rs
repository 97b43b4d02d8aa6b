//! Evaluations of a network with some layers compressed. The caller makes them, and none is
//! repeated.

use core::ops::ControlFlow;
use std::collections::BTreeMap;

use super::layer_profile::LayerProfile;
use super::progress::Progress;
use crate::{Error, Result};

/// The value that the caller's function returned for the network with some layers compressed.
///
/// [`Sensitivities::measure`](super::Sensitivities::measure) and
/// [`JointSearch::run`](super::JointSearch::run) append their evaluations to a list, and repeat
/// none that is in it. Keep the list to continue after an error or a cancelled run; the `serde`
/// feature can store it. An evaluation is repeated if the loss of a layer that it compresses has
/// changed.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Evaluation {
    /// The layer that was compressed, or compressed further; `None` for the original network.
    pub layer: Option<String>,
    /// The ranks of all compressed layers, by name.
    pub ranks: BTreeMap<String, usize>,
    /// The losses of these layers, in the same order.
    pub losses: Vec<f64>,
    /// Parameters of all layers, biases included.
    pub parameters: u64,
    /// The value that the caller's function returned.
    pub value: f64,
}

/// The error of the caller's function.
pub(super) type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// A caller's function that evaluates the network with some layers compressed to given ranks.
type Evaluate<'a> = dyn FnMut(&BTreeMap<String, usize>) -> Result<f64, AnyError> + 'a;

/// Returns the caller's function with its error in a box.
pub(super) fn boxed<E: Into<AnyError>>(
    mut evaluate: impl FnMut(&BTreeMap<String, usize>) -> Result<f64, E>,
) -> impl FnMut(&BTreeMap<String, usize>) -> Result<f64, AnyError> {
    move |ranks| evaluate(ranks).map_err(Into::into)
}

/// The caller's functions, with everything that has been evaluated so far.
pub(super) struct Evaluator<'a> {
    pub(super) layers: &'a [LayerProfile],
    pub(super) evaluations: &'a mut Vec<Evaluation>,
    pub(super) evaluate: &'a mut Evaluate<'a>,
    pub(super) progress: &'a mut dyn FnMut(&Progress) -> ControlFlow<()>,
    pub(super) total: Option<usize>,
    pub(super) done: usize,
    pub(super) cancelled: bool,
}

impl Evaluator<'_> {
    /// Evaluates the network with these layers compressed; returns `None` if the caller has
    /// cancelled.
    pub(super) fn evaluate(
        &mut self,
        layer: Option<&str>,
        ranks: &BTreeMap<String, usize>,
    ) -> Result<Option<Evaluation>> {
        let (mut parameters, mut losses) = (0, BTreeMap::new());
        for layer in self.layers {
            let rank = ranks.get(layer.name()).copied();
            parameters += layer.costs(rank.unwrap_or(0)).0;
            if let Some(rank) = rank {
                losses.insert(layer.name(), layer.require_loss(rank)?);
            }
        }
        let losses: Vec<f64> = losses.into_values().collect();
        // Text formats may change the last digit of a loss.
        let same = |(one, other): (&f64, &f64)| (one - other).abs() <= 4.0 * f64::EPSILON * one.abs();
        let known = self.evaluations.iter().find(|known| {
            known.ranks == *ranks && known.losses.len() == losses.len() && known.losses.iter().zip(&losses).all(same)
        });
        let layer = layer.map(str::to_owned);
        if let Some(known) = known {
            self.done += 1;
            return Ok(Some(Evaluation { layer, parameters, ..known.clone() }));
        }
        let (done, total) = (self.done, self.total);
        let mut progress = Progress { layer: layer.clone(), finished: false, done, total, value: None };
        if self.cancelled || (self.progress)(&progress).is_break() {
            return Ok(None);
        }
        let value = self.value(ranks)?;
        self.done += 1;
        (progress.finished, progress.done, progress.value) = (true, self.done, Some(value));
        self.cancelled = (self.progress)(&progress).is_break();
        let evaluation = Evaluation { layer, ranks: ranks.clone(), losses, parameters, value };
        self.evaluations.push(evaluation.clone());
        Ok(Some(evaluation))
    }

    /// Calls the caller's function; its value must be finite.
    fn value(&mut self, ranks: &BTreeMap<String, usize>) -> Result<f64> {
        let found = (self.evaluate)(ranks);
        if let Ok(value) = found
            && value.is_finite()
        {
            return Ok(value);
        }
        let compressed: Vec<String> = ranks.iter().map(|(name, rank)| format!("`{name}` at rank {rank}")).collect();
        let subject = if compressed.is_empty() { "the original network".into() } else { compressed.join(", ") };
        Err(match found {
            Ok(value) => Error::out_of_range("the value of the network", format!("to be finite for {subject}"), value),
            Err(error) => Error::callback(subject, error),
        })
    }
}
