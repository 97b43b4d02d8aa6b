//! What sharing a budget needs to know of layers that may share one `down`.

use super::candidates::{Candidate, Limits};
use super::profile::LayerProfile;
use crate::{Error, Result, Warning};

/// Names, shapes and the loss of each member at every rank of the `down` that they would share. No matrices.
///
/// For an example see [`SharedInput`](super::SharedInput).
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SharedProfile {
    pub(super) in_features: usize,
    pub(super) members: Vec<Member>,
    pub(super) warnings: Vec<Warning>,
}

/// One of the layers.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) out_features: usize,
    /// Whether its compressed form has a bias.
    pub(super) bias: bool,
    /// Of every rank from 1.
    pub(super) losses: Vec<f64>,
}

impl SharedProfile {
    /// The names of the members. For an example see [`SharedInput`](super::SharedInput).
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|member| member.name.as_str())
    }

    /// The largest rank that was solved for. For an example see [`SharedInput`](super::SharedInput).
    pub fn max_rank(&self) -> usize {
        self.members.iter().map(|member| member.losses.len()).min().unwrap_or(0)
    }

    /// What a member loses at this rank of the shared `down`, a squared relative error as [`LayerProfile::loss`] (with shrinkage, if that was
    /// solved with). `None` for a member or a rank that there is not.
    ///
    /// For an example see [`SharedInput`](super::SharedInput).
    pub fn loss(&self, member: usize, rank: usize) -> Option<f64> {
        self.members.get(member)?.losses.get(rank.checked_sub(1)?).copied()
    }

    /// Parameters of all members at this rank, biases included: `k (n + Σ mᵢ)`. For an example see [`SharedInput`](super::SharedInput).
    pub fn parameters(&self, rank: usize) -> u64 {
        let biases =
            self.members.iter().filter(|member| member.bias).map(|member| member.out_features as u64).sum::<u64>();
        (rank as u64).saturating_mul(self.width()).saturating_add(biases)
    }

    /// What each rank costs: `n + Σ mᵢ`.
    fn width(&self) -> u64 {
        self.members.iter().map(|member| member.out_features as u64).sum::<u64>() + self.in_features as u64
    }

    /// The largest loss of any member.
    pub(super) fn worst_loss(&self, rank: usize) -> f64 {
        let losses = (0..self.members.len()).map(|member| self.loss(member, rank).unwrap_or(f64::INFINITY));
        losses.fold(0.0, f64::max)
    }

    /// Refuses a layer that is not what was decomposed.
    pub(super) fn check(&self, layer: &LayerProfile) -> Result<()> {
        let same = |member: &&Member| member.name == layer.name() && member.out_features == layer.out_features();
        let found = match self.members.iter().find(same) {
            Some(_) if self.in_features == layer.in_features() && !layer.is_by_errors() => return Ok(()),
            Some(_) if self.in_features == layer.in_features() => "losses by errors on the data",
            _ => "another shape",
        };
        let expected = format!("`{}` of the shape, and with the losses by energy, that its group has", layer.name());
        Err(Error::layers(expected, found.into()))
    }

    /// All ranks within the limits that make the group smaller, with the weighted loss of all members.
    pub(super) fn candidates(&self, members: &[(&LayerProfile, f64)], limits: Limits) -> Vec<Candidate> {
        let dense = members.iter().map(|(layer, _)| layer.parameters()).sum::<u64>();
        let calls = members.first().map_or(1, |(layer, _)| layer.calls());
        // A `down` that is run more often than once for some member is not worth the trouble.
        if members.iter().any(|(layer, _)| layer.calls() != calls) {
            return Vec::new();
        }
        limits
            .ranks(self.max_rank())
            .take_while(|&rank| self.parameters(rank) < dense)
            .map(|rank| Candidate {
                rank,
                parameters: self.parameters(rank) as f64,
                multiply_adds: (rank as u64 * self.width() * calls) as f64,
                loss: members
                    .iter()
                    .enumerate()
                    .map(|(member, (_, weight))| weight * self.loss(member, rank).unwrap_or(f64::INFINITY))
                    .sum(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two layers of 6 × 6, which lose a tenth and a fifth less with every rank.
    fn group() -> (SharedProfile, [LayerProfile; 2]) {
        let member = |(name, step): (&str, f64)| {
            let losses = (1..=6).map(|rank| 1.0 - step * f64::from(rank)).collect();
            Member { name: name.into(), out_features: 6, bias: false, losses }
        };
        let members = [("query", 0.1), ("key", 0.125)].map(member).into();
        let layer = |name| LayerProfile::from_energies(name, (6, 6), false, &[1.0; 6], 6.0).unwrap();
        (SharedProfile { in_features: 6, members, warnings: Vec::new() }, ["query", "key"].map(layer))
    }

    #[test]
    fn candidates_are_smaller_and_count_weights_and_calls() {
        let (profile, layers) = group();
        // 18 for each rank: 4 of them are the 72 that the layers have.
        for calls in [1, 3] {
            let [query, key] = layers.clone().map(|layer| layer.with_calls(calls));
            let found = profile.candidates(&[(&query, 2.0), (&key, 0.5)], Limits::NONE);
            assert_eq!(found.iter().map(|candidate| candidate.rank).collect::<Vec<_>>(), [1, 2, 3]);
            for candidate in found {
                let rank = candidate.rank as f64;
                assert_eq!((candidate.parameters, candidate.multiply_adds), (18.0 * rank, 18.0 * rank * calls as f64));
                let loss = 2.0 * (1.0 - 0.1 * rank) + 0.5 * (1.0 - 0.125 * rank);
                assert!((candidate.loss - loss).abs() < 1e-14);
            }
        }
        let [query, key] = layers;
        assert_eq!(profile.candidates(&[(&query, 1.0), (&key.with_calls(2), 1.0)], Limits::NONE), []);
    }

    #[test]
    fn layers_are_those_that_were_decomposed() {
        let (mut profile, [query, _]) = group();
        profile.members[1].out_features = 5;
        assert_eq!(profile.check(&query), Ok(()));
        let of_shape = |name: &str, shape| LayerProfile::from_energies(name, shape, false, &[1.0], 1.0).unwrap();
        for other in [of_shape("query", (5, 6)), of_shape("query", (6, 5)), of_shape("value", (6, 6))] {
            let expected = "of the shape, and with the losses by energy, that its group has, got another shape";
            let message = format!("test: expected `{}` {expected}", other.name());
            assert_eq!(profile.check(&other).unwrap_err().to_string(), message);
        }
    }
}
