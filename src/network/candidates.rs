//! What can be done with a layer: the ranks that are allowed and save something, and leaving it as it is.

use super::profile::LayerProfile;
use crate::{Error, Result};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cost {
    Parameters,
    MultiplyAdds,
}

/// Ranks that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Limits {
    pub(super) min_rank: usize,
    pub(super) max_rank: usize,
    pub(super) multiple: usize,
}

impl Limits {
    pub(super) const NONE: Self = Self { min_rank: 1, max_rank: usize::MAX, multiple: 1 };

    /// Refuses limits that allow nothing.
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

    /// The ranks within these limits, ascending.
    pub(super) fn ranks(self, largest: usize) -> impl Iterator<Item = usize> {
        let multiple = self.multiple.max(1);
        let first = self.min_rank.max(1).checked_next_multiple_of(multiple).unwrap_or(usize::MAX);
        (first..=self.max_rank.min(largest)).step_by(multiple)
    }
}

/// One of the things that can be done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    /// 0 stands for the dense layer.
    pub(super) rank: usize,
    pub(super) parameters: f64,
    pub(super) multiply_adds: f64,
    /// Squared relative error.
    pub(super) loss: f64,
}

impl Candidate {
    pub(super) fn cost(&self, cost: Cost) -> f64 {
        match cost {
            Cost::Parameters => self.parameters,
            Cost::MultiplyAdds => self.multiply_adds,
        }
    }

    /// The layer at this rank, whether that saves anything or not; `None` if it was not solved for.
    pub(super) fn of_rank(profile: &LayerProfile, rank: usize) -> Option<Self> {
        Some(Self::compressed(profile, rank, profile.loss(rank)?))
    }

    fn compressed(profile: &LayerProfile, rank: usize, loss: f64) -> Self {
        let (each, fixed) = profile.factor_parameters();
        let factors = rank as f64 * each as f64;
        Self { rank, parameters: factors + fixed as f64, multiply_adds: factors * profile.calls() as f64, loss }
    }

    /// The layer as it is.
    pub(super) fn dense(profile: &LayerProfile) -> Self {
        Self {
            rank: 0,
            parameters: profile.parameters() as f64,
            multiply_adds: profile.multiply_adds() as f64,
            loss: 0.0,
        }
    }
}

/// Everything that can be done with a layer, by ascending rank and cost, the dense layer last. Ranks that save no parameters are left out: the
/// dense layer costs no more and loses nothing.
pub(super) fn candidates(profile: &LayerProfile, limits: Limits) -> Vec<Candidate> {
    let dense = Candidate::dense(profile);
    let losses = profile.losses();
    let mut candidates: Vec<Candidate> = limits
        .ranks(losses.len())
        .filter_map(|rank| Some(Candidate::compressed(profile, rank, *losses.get(rank - 1)?)))
        .take_while(|candidate| candidate.parameters < dense.parameters)
        .collect();
    candidates.push(dense);
    candidates
}
