//! Sharing one budget among many layers.

use std::collections::{BTreeMap, BTreeSet};

use super::budget::{Budget, Strategy};
use super::candidates::{Candidate, Cost, Limits, candidates};
use super::knapsack::{self, Block, Class, Item, Picked};
use super::plan::Plan;
use super::profile::LayerProfile;
use super::shared_profile::SharedProfile;
use super::summary::{Chosen, Summary};
use super::uniform;
use crate::{Error, Result};

const OPERATION: &str = "Allocator::allocate";

/// Shares a budget among the layers of a network: a rank for each, or none where compressing does not pay.
///
/// [`Strategy::Uniform`] unless told otherwise. The other strategies solve a knapsack: every layer at every rank that is allowed and saves
/// parameters, or left dense, costs something and loses something. Lagrangian relaxation gives a bound that no choice can beat; what it
/// picks is repaired, improved by branch and bound, and the difference reported as [`Plan::gap`].
///
/// ```
/// use dalr::network::{Allocator, Budget, Choice, LayerProfile, Sensitivities, Strategy};
/// use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor};
/// use faer::Mat;
///
/// # fn main() -> dalr::Result<()> {
/// # let mut stats = ActivationStats::new(20);
/// # stats.update(Mat::from_fn(50, 20, |i, j| ((i * 11 + j * 7) % 13) as f64).as_ref())?;
/// # let mut profiles = Vec::new();
/// # for (name, m) in [("query", 20), ("value", 24), ("head", 30)] {
/// #     let layer = Linear::new(Mat::from_fn(m, 20, |i, j| ((i * 5 + j * j * 3) % 17) as f64), None)?;
/// #     profiles.push(LayerProfile::new(name, &Dalr::new().decompose(&layer, &stats, 20)?));
/// # }
/// let sensitivities = Sensitivities::new([("query", 0.2), ("value", 1.5), ("head", 0.9)])?;
/// let plan = Allocator::new(Budget::ParameterShare(0.5))
///     .with_strategy(Strategy::Sensitivity(sensitivities))
///     .with_rank_multiple(2)
///     .with_limits("value", 4, 8)
///     .with_untouched("head")
///     .allocate(&profiles)?;
/// assert_eq!(plan.choice("head"), Some(Choice::Dense));
/// assert!(matches!(plan.choice("value"), Some(Choice::Rank(4 | 6 | 8))));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Allocator {
    budget: Budget,
    strategy: Strategy,
    limits: Limits,
    exceptions: BTreeMap<String, (usize, usize)>,
    untouched: BTreeSet<String>,
}

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
enum Goal {
    Loss { cost: Cost, limit: f64 },
    Parameters { loss: f64 },
}

impl Allocator {
    /// Shares this budget uniformly.
    ///
    /// For an example see [`Allocator`].
    pub fn new(budget: Budget) -> Self {
        let limits = Limits { min_rank: 1, max_rank: usize::MAX, multiple: 1 };
        let (exceptions, untouched) = (BTreeMap::new(), BTreeSet::new());
        Self { budget, strategy: Strategy::Uniform, limits, exceptions, untouched }
    }

    /// Sets how the budget is shared. For an example see [`Allocator`].
    #[must_use]
    pub fn with_strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = strategy;
        self
    }

    /// Makes every rank a multiple of this number, 1 by default. For an example see [`Allocator`].
    #[must_use]
    pub fn with_rank_multiple(mut self, multiple: usize) -> Self {
        self.limits.multiple = multiple;
        self
    }

    /// Sets the smallest rank that a layer is compressed to, 1 by default. A layer that no rank from here on makes smaller stays dense.
    ///
    /// For an example see [`with_limits`](Self::with_limits).
    #[must_use]
    pub fn with_min_rank(mut self, rank: usize) -> Self {
        self.limits.min_rank = rank;
        self
    }

    /// Sets the largest rank that a layer is compressed to; none by default. A layer may still stay dense.
    ///
    /// For an example see [`with_limits`](Self::with_limits).
    #[must_use]
    pub fn with_max_rank(mut self, rank: usize) -> Self {
        self.limits.max_rank = rank;
        self
    }

    /// Sets the smallest and the largest rank of one layer, in place of those of all.
    ///
    /// ```
    /// use dalr::network::{Allocator, Budget};
    /// let allocator = Allocator::new(Budget::ParameterShare(0.4))
    ///     .with_min_rank(16)
    ///     .with_max_rank(512)
    ///     .with_limits("pooler", 64, 64);
    /// # let _ = allocator;
    /// ```
    #[must_use]
    pub fn with_limits(mut self, layer: impl Into<String>, min_rank: usize, max_rank: usize) -> Self {
        self.exceptions.insert(layer.into(), (min_rank, max_rank));
        self
    }

    /// Leaves one layer as it is; its cost counts. For an example see [`Allocator`].
    #[must_use]
    pub fn with_untouched(mut self, layer: impl Into<String>) -> Self {
        self.untouched.insert(layer.into());
        self
    }

    /// Shares the budget among these layers.
    ///
    /// # Errors
    ///
    /// No layers, two of the same name, limits or sensitivities that name no layer or a layer without a sensitivity, parameters out of range;
    /// a budget that even the smallest ranks exceed (the message says what these come to); a rank or an error that needs a
    /// decomposition up to a larger rank.
    ///
    /// # Cost
    ///
    /// `O(K)` for all `K` ranks of all layers, and some sixty times `O(L log K)` for `L` layers: a second is enough for thousands of layers
    /// with thousands of ranks each.
    ///
    /// For an example see [`Allocator`].
    pub fn allocate(&self, layers: &[LayerProfile]) -> Result<Plan> {
        self.allocate_shared(layers, &[])
    }

    /// As [`allocate`](Self::allocate), where the layers of each group, which read the same input, may share one `down` instead of having one
    /// each: they do where that loses less at the same budget. With [`Budget::Rank`] they never do.
    ///
    /// # Errors
    ///
    /// As [`allocate`](Self::allocate); groups that name no layer, or overlap.
    ///
    /// For an example see [`SharedInput`](super::SharedInput).
    pub fn allocate_shared(&self, layers: &[LayerProfile], groups: &[SharedProfile]) -> Result<Plan> {
        let problem = self.problem(layers, groups)?;
        let goal = self.goal(&problem)?;
        let (chosen, lower_bound) = match self.budget {
            Budget::Rank(rank) => (self.at_rank(&problem, rank)?, None),
            Budget::LayerError(error) => (problem.within_error(error), None),
            _ => {
                let shared = problem.share(goal, self.strategy == Strategy::Uniform);
                let (chosen, bound) = shared.map_err(|least| self.infeasible(&problem, least))?;
                (chosen, Some(bound))
            }
        };
        let minimises_loss = matches!(goal, Goal::Loss { .. });
        let summary = Summary { problem: &problem, chosen, lower_bound, minimises_loss };
        Ok(Plan { report: summary.report(self.budget, &self.strategy) })
    }

    fn problem<'a>(&self, layers: &'a [LayerProfile], groups: &'a [SharedProfile]) -> Result<Problem<'a>> {
        self.budget.validate(OPERATION)?;
        if layers.is_empty() {
            return Err(Error::Empty { operation: OPERATION, what: "the layers" });
        }
        validate_limits(self.limits)?;
        let index = names(OPERATION, layers)?;
        for name in self.exceptions.keys().chain(&self.untouched) {
            if !index.contains_key(name.as_str()) {
                let expected = "limits for layers of the network".into();
                return Err(Error::Layers { operation: OPERATION, expected, found: format!("some for `{name}`") });
            }
        }
        let limits = |layer: &LayerProfile| match self.exceptions.get(layer.name()) {
            Some(&(min_rank, max_rank)) => Limits { min_rank, max_rank, ..self.limits },
            None => self.limits,
        };
        let mut all = Vec::with_capacity(layers.len());
        let mut weights = Vec::with_capacity(layers.len());
        let untouched: Vec<bool> =
            layers.iter().map(|layer| layer.max_rank() == 0 || self.untouched.contains(layer.name())).collect();
        for (layer, untouched) in layers.iter().zip(&untouched) {
            validate_limits(limits(layer)).map_err(|source| in_layer(layer, source))?;
            let its = if *untouched { vec![Candidate::dense(layer)] } else { candidates(layer, limits(layer)) };
            weights.push(self.weight(layer, its.len() > 1)?);
            all.push(its);
        }
        let mut taken = BTreeSet::new();
        let mut joint = Vec::with_capacity(groups.len());
        for group in groups {
            let mut members = Vec::new();
            for name in group.names() {
                let member = index.get(name).copied().filter(|member| taken.insert(*member));
                let Some((member, layer)) = member.and_then(|member| Some((member, layers.get(member)?))) else {
                    let expected = "groups of layers of the network, each in one group at most".into();
                    return Err(Error::Layers {
                        operation: OPERATION,
                        expected,
                        found: format!("`{name}` in a group"),
                    });
                };
                group.check(OPERATION, layer)?;
                members.push(member);
            }
            let of = |member: &usize| Some((layers.get(*member)?, *weights.get(*member)?));
            let its: Vec<(&LayerProfile, f64)> = members.iter().filter_map(of).collect();
            let left_alone = members.iter().any(|&member| untouched.get(member).is_none_or(|&untouched| untouched));
            let within = its.iter().map(|(layer, _)| limits(layer)).reduce(|a, b| Limits {
                min_rank: a.min_rank.max(b.min_rank),
                max_rank: a.max_rank.min(b.max_rank),
                multiple: a.multiple,
            });
            let its = match within {
                Some(limits) if !left_alone => group.candidates(&its, limits),
                _ => Vec::new(),
            };
            joint.push((members, its));
        }
        Ok(Problem { layers, groups, candidates: all, weights, untouched, joint })
    }

    /// The weight of a layer's loss; zero for one that stays dense whatever happens.
    fn weight(&self, layer: &LayerProfile, compressible: bool) -> Result<f64> {
        match &self.strategy {
            _ if !compressible => Ok(0.0),
            Strategy::Sensitivity(sensitivities) => sensitivities.get(layer.name()).ok_or_else(|| {
                let expected = "a sensitivity for each layer that can be compressed".into();
                Error::Layers { operation: OPERATION, expected, found: format!("none for `{}`", layer.name()) }
            }),
            _ => Ok(1.0),
        }
    }

    fn goal(&self, problem: &Problem<'_>) -> Result<Goal> {
        let total = |cost| problem.layers.iter().map(|layer| Candidate::dense(layer).cost(cost)).sum::<f64>();
        // The share that some ranks take must buy them: not lose them to rounding.
        let share = |share: f64, cost| (share * total(cost) * (1.0 + 8.0 * f64::EPSILON)).floor();
        let loss = |cost, limit| Ok(Goal::Loss { cost, limit });
        match self.budget {
            Budget::Parameters(limit) => loss(Cost::Parameters, limit as f64),
            Budget::ParameterShare(kept) => loss(Cost::Parameters, share(kept, Cost::Parameters)),
            Budget::MultiplyAdds(limit) => loss(Cost::MultiplyAdds, limit as f64),
            Budget::MultiplyAddShare(kept) => loss(Cost::MultiplyAdds, share(kept, Cost::MultiplyAdds)),
            Budget::Rank(_) => loss(Cost::Parameters, f64::INFINITY),
            Budget::TotalError(error) => {
                let weight = problem.weights.iter().sum::<f64>();
                // Sums come out differently in another order.
                let slack = 1.0 - 4.0 * f64::EPSILON * problem.layers.len() as f64;
                Ok(Goal::Parameters { loss: error * error * weight * slack })
            }
            Budget::LayerError(_) => Ok(Goal::Parameters { loss: f64::INFINITY }),
        }
    }

    fn infeasible(&self, problem: &Problem<'_>, least: f64) -> Error {
        let total = |cost| problem.layers.iter().map(|layer| Candidate::dense(layer).cost(cost)).sum::<f64>();
        let share = |cost| (least / total(cost) * 1e6).ceil() / 1e6;
        let (parameter, least, found) = match self.budget {
            Budget::Parameters(limit) => ("a budget of parameters", least, limit as f64),
            Budget::ParameterShare(kept) => ("a share of the parameters", share(Cost::Parameters), kept),
            Budget::MultiplyAdds(limit) => ("a budget of multiply–adds", least, limit as f64),
            Budget::MultiplyAddShare(kept) => ("a share of the multiply–adds", share(Cost::MultiplyAdds), kept),
            Budget::TotalError(error) => ("a total error", 0.0, error),
            Budget::LayerError(error) => ("an error of each layer", 0.0, error),
            Budget::Rank(rank) => ("a rank", 1.0, rank as f64),
        };
        let expected = format!("of at least {least}, the smallest that these layers can be brought to");
        Error::OutOfRange { operation: OPERATION, parameter, expected, found }
    }

    /// This rank for every layer that it makes smaller.
    fn at_rank(&self, problem: &Problem<'_>, rank: usize) -> Result<Vec<Chosen>> {
        if !rank.is_multiple_of(self.limits.multiple) {
            let expected = format!("a rank that is a multiple of {}", self.limits.multiple);
            return Err(Error::Rank { operation: OPERATION, expected, found: rank.to_string() });
        }
        let mut chosen = Vec::with_capacity(problem.layers.len());
        for ((layer, candidates), untouched) in problem.layers.iter().zip(&problem.candidates).zip(&problem.untouched) {
            let (each, fixed) = layer.factor_parameters();
            let saves = (rank as u64).saturating_mul(each).saturating_add(fixed) < layer.parameters();
            if !untouched && saves && rank > layer.max_rank() {
                let expected = format!("a decomposition up to rank {rank}");
                let found = format!("one up to rank {}", layer.max_rank());
                return Err(in_layer(layer, Error::Rank { operation: OPERATION, expected, found }));
            }
            // Limits that rule this rank out: the nearest that they allow.
            let nearest = candidates.iter().filter(|candidate| candidate.rank > 0 && saves);
            let nearest = nearest.min_by_key(|candidate| candidate.rank.abs_diff(rank));
            chosen.extend(nearest.or(candidates.last()).copied().map(Chosen::Alone));
        }
        Ok(chosen)
    }
}

impl Goal {
    fn limit(self) -> f64 {
        match self {
            Self::Loss { limit, .. } | Self::Parameters { loss: limit } => limit,
        }
    }
}

impl Problem<'_> {
    /// Shares what the goal allows and gives the bound for that, or says what the least possible is.
    fn share(&self, goal: Goal, uniformly: bool) -> Result<(Vec<Chosen>, f64), f64> {
        let blocks = self.blocks(goal);
        if uniformly {
            return Ok((self.share_uniformly(goal)?, knapsack::lower_bound(&blocks, goal.limit())));
        }
        let solution = knapsack::solve(&blocks, goal.limit())?;
        Ok((self.chosen(&solution.picked), solution.bound))
    }

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
            Goal::Parameters { loss } => uniform::within_loss(&self.candidates, &self.weights, loss),
        };
        let mut chosen: Vec<Chosen> = each.iter().copied().map(Chosen::Alone).collect();
        for (group, (members, joint)) in self.joint.iter().enumerate() {
            let its = || members.iter().filter_map(|&member| Some((each.get(member)?, self.weights.get(member)?)));
            let loss = its().map(|(pick, weight)| pick.loss * weight).sum::<f64>();
            let (cost, minimise_loss) = match goal {
                Goal::Loss { cost, .. } => (cost, true),
                Goal::Parameters { .. } => (Cost::Parameters, false),
            };
            let spent = its().map(|(pick, _)| pick.cost(cost)).sum::<f64>();
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
    fn within_error(&self, error: f64) -> Vec<Chosen> {
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

/// The index of each name, which must be of one layer only.
pub(super) fn names<'a>(operation: &'static str, layers: &'a [LayerProfile]) -> Result<BTreeMap<&'a str, usize>> {
    names_of(operation, layers.iter().map(LayerProfile::name))
}

pub(super) fn names_of<'a>(
    operation: &'static str,
    names: impl Iterator<Item = &'a str>,
) -> Result<BTreeMap<&'a str, usize>> {
    let mut index = BTreeMap::new();
    for (position, name) in names.enumerate() {
        if index.insert(name, position).is_some() {
            let expected = "layers of different names".into();
            return Err(Error::Layers { operation, expected, found: format!("`{name}` twice") });
        }
    }
    Ok(index)
}

fn validate_limits(limits: Limits) -> Result<()> {
    let refuse = |parameter, expected: String, found: usize| {
        Err(Error::OutOfRange { operation: OPERATION, parameter, expected, found: found as f64 })
    };
    match limits {
        Limits { multiple: 0, .. } => refuse("the rank multiple", "to be at least 1".into(), 0),
        Limits { min_rank: 0, .. } => refuse("the smallest rank", "to be at least 1".into(), 0),
        Limits { min_rank, max_rank, .. } if max_rank < min_rank => {
            refuse("the largest rank", format!("to be at least the smallest, {min_rank}"), max_rank)
        }
        _ => Ok(()),
    }
}

fn in_layer(layer: &LayerProfile, source: Error) -> Error {
    Error::InLayer { layer: layer.name().into(), source: Box::new(source) }
}
