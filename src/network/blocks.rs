//! The layers of an allocation in blocks: a layer of its own, or the layers of a shared input.

use super::candidates::{Candidate, Cost};
use super::plan::{Choice, LayerPlan, OriginalReason};
use super::profile::LayerProfile;
use super::shared::SharedInput;
use crate::{Error, Result};

/// A layer with its candidates.
pub(super) struct Entry<'a> {
    /// The position of the layer in the network.
    pub(super) position: usize,
    pub(super) layer: &'a LayerProfile,
    pub(super) weight: f64,
    pub(super) untouched: bool,
    /// By ascending cost, the original layer last.
    pub(super) candidates: Vec<Candidate>,
}

/// Layers that are chosen together: one, or all layers of a shared input in the order of its members.
pub(super) struct Block<'a> {
    pub(super) entries: Vec<Entry<'a>>,
    pub(super) joint: Option<Joint<'a>>,
}

/// A shared input with the candidates of its shared `down`.
pub(super) struct Joint<'a> {
    pub(super) group: usize,
    pub(super) shared: &'a SharedInput,
    /// The loss of these is weighted.
    pub(super) candidates: Vec<Candidate>,
}

/// The candidates selected for a block.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Selected {
    /// One for each entry.
    Each(Vec<Candidate>),
    Joint(Candidate),
}

/// The quantity to minimize, and its limit.
#[derive(Clone, Copy)]
pub(super) enum Goal {
    Loss { cost: Cost, limit: f64 },
    Parameters { loss: f64 },
}

impl Goal {
    pub(super) fn limit(self) -> f64 {
        match self {
            Self::Loss { limit, .. } | Self::Parameters { loss: limit } => limit,
        }
    }

    /// The limited and the minimized quantity of a candidate.
    pub(super) fn measure(self, candidate: &Candidate, weight: f64) -> (f64, f64) {
        let loss = weight * candidate.loss;
        match self {
            Self::Loss { cost, .. } => (candidate.cost(cost), loss),
            Self::Parameters { .. } => (loss, candidate.parameters as f64),
        }
    }
}

impl Block<'_> {
    /// The limited and the minimized quantity of a selection.
    pub(super) fn measure(&self, goal: Goal, selected: &Selected) -> (f64, f64) {
        match selected {
            Selected::Joint(candidate) => goal.measure(candidate, 1.0),
            Selected::Each(each) => {
                let measured = self.entries.iter().zip(each).map(|(entry, one)| goal.measure(one, entry.weight));
                measured.fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
            }
        }
    }

    /// The plans of the layers, each with its position in the network. `reason` is that of an original layer that could be
    /// compressed.
    pub(super) fn plans(&self, selected: &Selected, reason: OriginalReason) -> Result<Vec<(usize, LayerPlan)>> {
        match (selected, &self.joint) {
            (Selected::Each(each), _) => {
                let plan = |(entry, candidate): (&Entry<'_>, &Candidate)| {
                    let reason = match () {
                        () if entry.untouched => OriginalReason::Untouched,
                        () if entry.candidates.len() < 2 => OriginalReason::NoSavings,
                        () => reason,
                    };
                    let plan = match candidate.rank {
                        0 => LayerPlan::original(entry.layer, entry.weight, reason),
                        _ => LayerPlan::compressed(entry.layer, entry.weight, candidate),
                    };
                    (entry.position, plan)
                };
                Ok(self.entries.iter().zip(each).map(plan).collect())
            }
            (Selected::Joint(candidate), Some(joint)) => {
                let choice = Choice::Shared { group: joint.group, rank: candidate.rank };
                let members = joint.shared.members_at(candidate.rank);
                let plan = |(entry, (parameters, factors, loss)): (&Entry<'_>, (u64, u64, f64))| {
                    let plan = LayerPlan {
                        choice,
                        reason: None,
                        parameters_after: parameters,
                        multiply_adds_after: factors * entry.layer.calls(),
                        loss,
                        relative_error: Some(loss.sqrt()),
                        warnings: joint.shared.warnings().to_vec(),
                        ..LayerPlan::original(entry.layer, entry.weight, reason)
                    };
                    (entry.position, plan)
                };
                Ok(self.entries.iter().zip(members).map(plan).collect())
            }
            (Selected::Joint(_), None) => {
                let expected = "a joint choice for layers of a shared input only".into();
                let found = "one for a layer of its own, which is a fault of this library".into();
                Err(Error::layers(expected, found))
            }
        }
    }
}
