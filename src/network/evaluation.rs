//! Evaluations of a network with some layers compressed. The caller makes them, and none is
//! repeated.

use std::collections::BTreeMap;

use super::layer_profile::LayerProfile;
use super::progress::Tracker;
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

/// The caller's functions, with everything that has been evaluated so far.
pub(super) struct Evaluator<'a, F> {
    pub(super) layers: &'a [LayerProfile],
    pub(super) evaluations: &'a mut Vec<Evaluation>,
    pub(super) evaluate: F,
    pub(super) tracker: Tracker<'a>,
}

impl<F> Evaluator<'_, F> {
    /// Evaluates the network with these layers compressed; returns `None` if the caller has
    /// cancelled.
    pub(super) fn evaluate<E: Into<AnyError>>(
        &mut self,
        layer: Option<&str>,
        ranks: &BTreeMap<String, usize>,
    ) -> Result<Option<Evaluation>>
    where
        F: FnMut(&BTreeMap<String, usize>) -> Result<f64, E>,
    {
        let rank_of = |layer: &LayerProfile| ranks.get(layer.name()).copied();
        let parameters = self.layers.iter().map(|layer| layer.cost(rank_of(layer).unwrap_or(0)).parameters).sum();
        let compressed = self.layers.iter().filter_map(|layer| Some((layer, rank_of(layer)?)));
        let loss = |(layer, rank): (&LayerProfile, _)| Ok((layer.name().to_owned(), layer.require_loss(rank)?));
        let losses: BTreeMap<String, f64> = compressed.map(loss).collect::<Result<_>>()?;
        let losses: Vec<f64> = losses.into_values().collect();
        // Text formats may change the last digit of a loss.
        let same = |(one, other): (&f64, &f64)| (one - other).abs() <= 4.0 * f64::EPSILON * one.abs();
        let known = self.evaluations.iter().find(|known| {
            known.ranks == *ranks && known.losses.len() == losses.len() && known.losses.iter().zip(&losses).all(same)
        });
        if let Some(known) = known {
            self.tracker.done += 1;
            return Ok(Some(Evaluation { layer: layer.map(str::to_owned), parameters, ..known.clone() }));
        }
        if !self.tracker.begin(layer) {
            return Ok(None);
        }
        let value = self.value(ranks)?;
        self.tracker.finish(layer, Some(value));
        let layer = layer.map(str::to_owned);
        let evaluation = Evaluation { layer, ranks: ranks.clone(), losses, parameters, value };
        self.evaluations.push(evaluation.clone());
        Ok(Some(evaluation))
    }

    /// Calls the caller's function.
    fn value<E: Into<AnyError>>(&mut self, ranks: &BTreeMap<String, usize>) -> Result<f64>
    where
        F: FnMut(&BTreeMap<String, usize>) -> Result<f64, E>,
    {
        let compressed: Vec<String> = ranks.iter().map(|(name, rank)| format!("`{name}` at rank {rank}")).collect();
        let subject = if compressed.is_empty() { "the original network".into() } else { compressed.join(", ") };
        finite(subject, (self.evaluate)(ranks))
    }
}

/// Returns the value of the caller's function, which must be finite. The subject is the network in
/// words.
pub(super) fn finite<E: Into<AnyError>>(subject: String, value: Result<f64, E>) -> Result<f64> {
    match value {
        Ok(value) if value.is_finite() => Ok(value),
        Ok(value) => Err(Error::out_of_range("the value of the network", format!("to be finite for {subject}"), value)),
        Err(error) => Err(Error::callback(subject, error)),
    }
}
