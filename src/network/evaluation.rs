//! Evaluations of a network with some layers compressed, made by the caller and never repeated.

use core::ops::ControlFlow;
use std::collections::BTreeMap;

use super::candidates::Candidate;
use super::profile::LayerProfile;
use super::progress::Progress;
use crate::{Error, Result};

/// The caller's value for the network with some layers compressed.
///
/// [`Sensitivities::measure`](super::Sensitivities::measure) and [`JointSearch::run`](super::JointSearch::run) append their
/// evaluations to a list and repeat none that is in it. Keep the list, with the `serde` feature also on disk, to continue after
/// an error or after a cancelled run. An evaluation no longer applies once a layer that it compresses has another loss.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Evaluation {
    /// The layer compressed, or compressed further; `None` for the original network.
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

/// The caller's function, with everything that it has returned so far.
pub(super) struct Evaluator<'a, F> {
    pub(super) layers: &'a [LayerProfile],
    pub(super) evaluations: &'a mut Vec<Evaluation>,
    pub(super) evaluate: F,
    pub(super) progress: &'a mut dyn FnMut(&Progress) -> ControlFlow<()>,
    pub(super) total: Option<usize>,
    pub(super) done: usize,
    pub(super) cancelled: bool,
}

impl<F> Evaluator<'_, F> {
    /// Evaluates the network with these layers compressed; `None` if the caller has cancelled.
    pub(super) fn evaluate<E>(
        &mut self,
        layer: Option<&str>,
        ranks: &BTreeMap<String, usize>,
    ) -> Result<Option<Evaluation>>
    where
        F: FnMut(&BTreeMap<String, usize>) -> Result<f64, E>,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (mut parameters, mut losses) = (0, BTreeMap::new());
        for layer in self.layers {
            let candidate = match ranks.get(layer.name()) {
                Some(&rank) => Candidate::of_rank(layer, rank),
                None => Some(Candidate::original(layer)),
            };
            let Some(candidate) = candidate else {
                let expected = format!("a rank from 1 to the {} solved for", layer.max_rank());
                return Err(Error::rank(expected, format!("{ranks:?}")));
            };
            parameters += candidate.parameters;
            if candidate.rank > 0 {
                losses.insert(layer.name(), candidate.loss);
            }
        }
        let losses: Vec<f64> = losses.into_values().collect();
        // Text formats may change the last digit of a loss.
        let same = |one: &f64, other: &f64| (one - other).abs() <= 4.0 * f64::EPSILON * one.abs();
        let known = self.evaluations.iter().find(|known| {
            known.ranks == *ranks
                && known.losses.len() == losses.len()
                && known.losses.iter().zip(&losses).all(|(one, other)| same(one, other))
        });
        let layer = layer.map(str::to_owned);
        if let Some(known) = known {
            self.done += 1;
            return Ok(Some(Evaluation { layer, parameters, ..known.clone() }));
        }
        let (done, total) = (self.done, self.total);
        let mut progress = Progress { layer: layer.clone(), finished: false, done, total, value: None };
        if self.cancelled || (self.progress)(&progress).is_break() {
            self.cancelled = true;
            return Ok(None);
        }
        let value = self.checked(ranks)?;
        self.done += 1;
        (progress.finished, progress.done, progress.value) = (true, self.done, Some(value));
        self.cancelled = (self.progress)(&progress).is_break();
        let evaluation = Evaluation { layer, ranks: ranks.clone(), losses, parameters, value };
        self.evaluations.push(evaluation.clone());
        Ok(Some(evaluation))
    }

    /// Calls the caller's function; its value must be finite.
    fn checked<E>(&mut self, ranks: &BTreeMap<String, usize>) -> Result<f64>
    where
        F: FnMut(&BTreeMap<String, usize>) -> Result<f64, E>,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let subject = || {
            let compressed: Vec<String> = ranks.iter().map(|(name, rank)| format!("`{name}` at rank {rank}")).collect();
            if compressed.is_empty() { "the original network".into() } else { compressed.join(", ") }
        };
        match (self.evaluate)(ranks) {
            Ok(value) if value.is_finite() => Ok(value),
            Ok(value) => {
                let (parameter, expected) = ("the value of the network", format!("finite for {}", subject()));
                Err(Error::out_of_range(parameter, expected, value))
            }
            Err(error) => Err(Error::callback(subject(), error)),
        }
    }
}
