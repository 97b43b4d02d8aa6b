//! Layers, groups and what can be done with each; and what is chosen within a budget or an error.

use std::collections::BTreeSet;

use super::candidates::{Candidate, Cost};
use super::knapsack::{self, Block, Class, Item, Picked};
use super::profile::LayerProfile;
use super::shared_profile::SharedProfile;
use super::summary::Chosen;
use super::uniform;

/// Layers and groups, with all that can be done with them.
pub(super) struct Problem<'a> {
    pub(super) layers: &'a [LayerProfile],
    pub(super) groups: &'a [SharedProfile],
    /// By layer, by ascending cost, the dense layer last.
    pub(super) candidates: Vec<Vec<Candidate>>,
    pub(super) weights: Vec<f64>,
    pub(super) untouched: Vec<bool>,
    /// By group: its members, as indices into the layers, and what can be done with them together. The loss is weighted.
    pub(super) joint: Vec<(Vec<usize>, Vec<Candidate>)>,
}

/// What is made small, within what.
#[derive(Clone, Copy)]
pub(super) enum Goal {
    Loss { cost: Cost, limit: f64 },
    Parameters { loss: f64 },
}

impl Goal {
    fn limit(self) -> f64 {
        match self {
            Self::Loss { limit, .. } | Self::Parameters { loss: limit } => limit,
        }
    }
}

impl Problem<'_> {
    /// What all layers cost as they are.
    pub(super) fn dense_cost(&self, cost: Cost) -> f64 {
        self.layers.iter().map(|layer| Candidate::dense(layer).cost(cost)).sum()
    }

    /// Shares what the goal allows and gives the bound for that, or says what the least possible is.
    pub(super) fn share(&self, goal: Goal, uniformly: bool) -> Result<(Vec<Chosen>, f64), f64> {
        let blocks = self.blocks(goal);
        if uniformly {
            return Ok((self.share_uniformly(goal)?, knapsack::lower_bound(&blocks, goal.limit())));
        }
        let solution = knapsack::solve(&blocks, goal.limit())?;
        Ok((self.chosen(&solution.picked), solution.bound))
    }

    /// Without weights: all layers that can lose anything weigh the same.
    fn share_uniformly(&self, goal: Goal) -> Result<Vec<Chosen>, f64> {
        let each = match goal {
            Goal::Loss { cost, limit } => {
                let least =
                    |candidates: &Vec<Candidate>| candidates.first().map_or(0.0, |cheapest| cheapest.cost(cost));
                let least = self.candidates.iter().map(least).sum::<f64>();
                if least > limit {
                    return Err(least);
                }
                uniform::within_cost(&self.candidates, cost, limit)
            }
            Goal::Parameters { loss } => uniform::within_loss(&self.candidates, loss),
        };
        let mut chosen: Vec<Chosen> = each.iter().copied().map(Chosen::Alone).collect();
        for (group, (members, joint)) in self.joint.iter().enumerate() {
            let its = || members.iter().filter_map(|&member| each.get(member));
            let loss = its().map(|pick| pick.loss).sum::<f64>();
            let (cost, minimise_loss) = match goal {
                Goal::Loss { cost, .. } => (cost, true),
                Goal::Parameters { .. } => (Cost::Parameters, false),
            };
            let spent = its().map(|pick| pick.cost(cost)).sum::<f64>();
            let better = joint.iter().filter(|joint| match minimise_loss {
                true => joint.cost(cost) <= spent && joint.loss < loss,
                false => joint.loss <= loss && joint.cost(cost) < spent,
            });
            let measure = |joint: &Candidate| if minimise_loss { joint.loss } else { joint.cost(cost) };
            let best = better.min_by(|a, b| measure(a).total_cmp(&measure(b)));
            if let Some(&best) = best {
                self.join(&mut chosen, group, best);
            }
        }
        Ok(chosen)
    }

    /// The cheapest that has no layer's relative error above this.
    pub(super) fn within_error(&self, error: f64) -> Vec<Chosen> {
        let good = |layer: &LayerProfile, candidate: &Candidate| {
            let predicted = match candidate.rank {
                0 => return true,
                rank => layer.relative_error(rank).unwrap_or_else(|| candidate.loss.sqrt()),
            };
            // An error below resolution may be anything up to it.
            predicted.max(layer.resolution()) <= error
        };
        let cheapest = |(layer, candidates): (&LayerProfile, &Vec<Candidate>)| {
            candidates.iter().find(|candidate| good(layer, candidate)).copied()
        };
        let each: Vec<Candidate> = self.layers.iter().zip(&self.candidates).filter_map(cheapest).collect();
        let mut chosen: Vec<Chosen> = each.iter().copied().map(Chosen::Alone).collect();
        for (group, ((members, joint), profile)) in self.joint.iter().zip(self.groups).enumerate() {
            let spent = members.iter().filter_map(|&member| each.get(member)).map(|pick| pick.parameters).sum::<f64>();
            let good = |joint: &&Candidate| joint.parameters < spent && profile.worst_loss(joint.rank) <= error * error;
            if let Some(&best) = joint.iter().find(good) {
                self.join(&mut chosen, group, best);
            }
        }
        chosen
    }

    fn join(&self, chosen: &mut [Chosen], group: usize, candidate: Candidate) {
        let Some((members, _)) = self.joint.get(group) else { return };
        for &member in members {
            if let Some(chosen) = chosen.get_mut(member) {
                *chosen = Chosen::Joint { group, candidate };
            }
        }
    }

    fn blocks(&self, goal: Goal) -> Vec<Block> {
        let item = |candidate: &Candidate, weight: f64| {
            let loss = candidate.loss * weight;
            let (price, value) = match goal {
                Goal::Loss { cost, .. } => (candidate.cost(cost), loss),
                Goal::Parameters { .. } => (loss, candidate.parameters),
            };
            Item { price, value, tag: candidate.rank }
        };
        let class = |layer: usize| {
            let (candidates, &weight) = (self.candidates.get(layer)?, self.weights.get(layer)?);
            Class::new(candidates.iter().map(|candidate| item(candidate, weight)).collect())
        };
        let single = |&layer: &usize| Some(Block { members: vec![class(layer)?], joint: None });
        let mut blocks: Vec<Block> = self.single().iter().filter_map(single).collect();
        blocks.extend(self.joint.iter().map(|(members, joint)| Block {
            members: members.iter().filter_map(|&member| class(member)).collect(),
            joint: Class::new(joint.iter().map(|candidate| item(candidate, 1.0)).collect()),
        }));
        blocks
    }

    /// The layers that are in no group.
    fn single(&self) -> Vec<usize> {
        let grouped: BTreeSet<usize> = self.joint.iter().flat_map(|(members, _)| members).copied().collect();
        (0..self.layers.len()).filter(|layer| !grouped.contains(layer)).collect()
    }

    /// What the picks, in the order of [`blocks`](Self::blocks), mean for each layer.
    fn chosen(&self, picked: &[Picked]) -> Vec<Chosen> {
        let cheapest = |candidates: &Vec<Candidate>| candidates.last().copied().map(Chosen::Alone);
        let mut chosen: Vec<Chosen> = self.candidates.iter().filter_map(cheapest).collect();
        let single = self.single();
        let groups = self.joint.iter().enumerate().map(|(group, (members, _))| (Some(group), members.as_slice()));
        let blocks = single.chunks(1).map(|layer| (None, layer)).chain(groups);
        for ((group, members), picked) in blocks.zip(picked) {
            match (picked, group) {
                (Picked::Each(ranks), _) => {
                    for (&layer, rank) in members.iter().zip(ranks) {
                        let candidates = self.candidates.get(layer).into_iter().flatten();
                        let candidate = candidates.copied().find(|candidate| candidate.rank == *rank);
                        if let (Some(chosen), Some(candidate)) = (chosen.get_mut(layer), candidate) {
                            *chosen = Chosen::Alone(candidate);
                        }
                    }
                }
                (Picked::Joint(rank), Some(group)) => {
                    let joint =
                        self.joint.get(group).and_then(|(_, joint)| joint.iter().find(|joint| joint.rank == *rank));
                    if let Some(&candidate) = joint {
                        self.join(&mut chosen, group, candidate);
                    }
                }
                (Picked::Joint(_), None) => {}
            }
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::shared_profile::Member;

    fn candidate(rank: usize, parameters: f64, multiply_adds: f64, loss: f64) -> Candidate {
        Candidate { rank, parameters, multiply_adds, loss }
    }

    /// What becomes of two layers of 16 parameters each, which lose 0.25 at rank 1 with 8, or of the two in one group.
    fn is_joined(joint: Candidate, choose: impl FnOnce(&Problem<'_>) -> Vec<Chosen>) -> bool {
        let layers = ["a", "b"].map(|name| LayerProfile::from_energies(name, (4, 4), false, &[3.0], 4.0).unwrap());
        let member = |layer: &LayerProfile| {
            let (name, out_features) = (layer.name().into(), layer.out_features());
            Member { name, out_features, bias: false, losses: vec![joint.loss / 2.0] }
        };
        let group =
            SharedProfile { in_features: 4, members: layers.iter().map(member).collect(), warnings: Vec::new() };
        let alone = vec![candidate(1, 8.0, 24.0, 0.25), candidate(0, 16.0, 48.0, 0.0)];
        let problem = Problem {
            layers: &layers,
            groups: std::slice::from_ref(&group),
            candidates: vec![alone; 2],
            weights: vec![1.0; 2],
            untouched: vec![false; 2],
            joint: vec![(vec![0, 1], vec![joint])],
        };
        match choose(&problem)[..] {
            [Chosen::Joint { .. }, Chosen::Joint { .. }] => true,
            [Chosen::Alone(first), Chosen::Alone(second)] => {
                assert_eq!((first.rank, second.rank), (1, 1));
                false
            }
            _ => panic!(),
        }
    }

    #[test]
    fn layers_are_joined_for_less_loss_or_fewer_parameters_and_no_more_of_the_other() {
        let at_cost = |cost, limit: f64| {
            move |problem: &Problem<'_>| problem.share_uniformly(Goal::Loss { cost, limit }).unwrap()
        };
        // Apart they have 16 parameters, 48 multiply–adds and lose 0.5.
        for (parameters, multiply_adds, loss, better) in
            [(16.0, 48.0, 0.49, true), (16.0, 48.0, 0.5, false), (12.0, 36.0, 0.5, false), (17.0, 51.0, 0.4, false)]
        {
            let joint = candidate(1, parameters, multiply_adds, loss);
            assert_eq!(is_joined(joint, at_cost(Cost::Parameters, 20.0)), better, "{joint:?}");
            assert_eq!(is_joined(joint, at_cost(Cost::MultiplyAdds, 60.0)), better, "{joint:?}");
        }
        assert!(is_joined(candidate(1, 99.0, 48.0, 0.4), at_cost(Cost::MultiplyAdds, 60.0)));
        for (parameters, loss, better) in [(15.0, 0.5, true), (16.0, 0.4, false), (15.0, 0.51, false)] {
            let joint = candidate(1, parameters, 0.0, loss);
            let within_loss = |problem: &Problem<'_>| problem.share_uniformly(Goal::Parameters { loss: 0.5 }).unwrap();
            assert_eq!(is_joined(joint, within_loss), better, "{joint:?}");
            // Each member loses half of it: an error of 0.5 at most.
            let within_error = |problem: &Problem<'_>| problem.within_error(0.5);
            assert_eq!(is_joined(joint, within_error), better, "{joint:?}");
        }
    }
}
