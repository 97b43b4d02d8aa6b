//! The candidates of a layer: the ranks that are allowed and save parameters, and the original layer.

use super::profile::LayerProfile;
use crate::{Error, Result};

/// The cost that a budget limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cost {
    Parameters,
    MultiplyAdds,
}

/// The ranks that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Limits {
    pub(super) min_rank: usize,
    pub(super) max_rank: usize,
    pub(super) multiple: usize,
}

impl Limits {
    pub(super) const NONE: Self = Self { min_rank: 1, max_rank: usize::MAX, multiple: 1 };

    pub(super) fn validate(self) -> Result<()> {
        let refuse =
            |parameter, expected: String, found: usize| Err(Error::out_of_range(parameter, expected, found as f64));
        match self {
            Self { multiple: 0, .. } => refuse("the rank multiple", "to be at least 1".into(), 0),
            Self { min_rank: 0, .. } => refuse("the smallest rank", "to be at least 1".into(), 0),
            Self { min_rank, max_rank, .. } if max_rank < min_rank => {
                refuse("the largest rank", format!("to be at least the smallest, {min_rank}"), max_rank)
            }
            _ => Ok(()),
        }
    }

    /// The limits that satisfy both.
    pub(super) fn and(self, other: Self) -> Self {
        let (min_rank, max_rank) = (self.min_rank.max(other.min_rank), self.max_rank.min(other.max_rank));
        Self { min_rank, max_rank, ..self }
    }

    /// The ranks within these limits, ascending.
    pub(super) fn ranks(self, largest: usize) -> impl Iterator<Item = usize> {
        let multiple = self.multiple.max(1);
        let first = self.min_rank.max(1).checked_next_multiple_of(multiple).unwrap_or(usize::MAX);
        (first..=self.max_rank.min(largest)).step_by(multiple)
    }
}

/// One candidate of a layer, or of a group of layers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    /// The rank; 0 stands for the original layer.
    pub(super) rank: usize,
    pub(super) parameters: u64,
    pub(super) multiply_adds: u64,
    /// Squared relative error; for a group, the weighted sum.
    pub(super) loss: f64,
}

impl Candidate {
    pub(super) fn cost(&self, cost: Cost) -> f64 {
        match cost {
            Cost::Parameters => self.parameters as f64,
            Cost::MultiplyAdds => self.multiply_adds as f64,
        }
    }

    /// The layer at this rank, whether it saves parameters or not; `None` for a rank that was not solved for.
    pub(super) fn of_rank(layer: &LayerProfile, rank: usize) -> Option<Self> {
        Some(Self::compressed(layer, rank, layer.loss(rank)?))
    }

    fn compressed(layer: &LayerProfile, rank: usize, loss: f64) -> Self {
        let (parameters, multiply_adds) = layer.cost_at(rank);
        Self { rank, parameters, multiply_adds, loss }
    }

    /// The original layer.
    pub(super) fn original(layer: &LayerProfile) -> Self {
        Self { rank: 0, parameters: layer.parameters(), multiply_adds: layer.multiply_adds(), loss: 0.0 }
    }
}

/// All candidates of a layer, by ascending rank and cost, the original layer last.
///
/// Ranks that save no parameters are left out: the original layer costs no more and loses nothing.
pub(super) fn candidates(layer: &LayerProfile, limits: Limits) -> Vec<Candidate> {
    let original = Candidate::original(layer);
    let losses = layer.losses();
    let mut candidates: Vec<Candidate> = limits
        .ranks(losses.len())
        .filter_map(|rank| Some(Candidate::compressed(layer, rank, *losses.get(rank - 1)?)))
        .take_while(|candidate| candidate.parameters < original.parameters)
        .collect();
    candidates.push(original);
    candidates
}
