//! What can be done with a layer: the ranks that are allowed and save something, and leaving it as it is.

use super::profile::LayerProfile;

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
        let (each, fixed) = profile.factor_parameters();
        let factors = rank as f64 * each as f64;
        let loss = profile.loss(rank)?;
        let (parameters, multiply_adds) = (factors + fixed as f64, factors * profile.calls() as f64);
        Some(Self { rank, parameters, multiply_adds, loss })
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
    let (each, fixed) = profile.factor_parameters();
    let (each, fixed, calls) = (each as f64, fixed as f64, profile.calls() as f64);
    let mut candidates: Vec<Candidate> = limits
        .ranks(losses.len())
        .map(|rank| (rank, rank as f64 * each))
        .take_while(|(_, factors)| factors + fixed < dense.parameters)
        .filter_map(|(rank, factors)| {
            let loss = *losses.get(rank - 1)?;
            Some(Candidate { rank, parameters: factors + fixed, multiply_adds: factors * calls, loss })
        })
        .collect();
    candidates.push(dense);
    candidates
}
