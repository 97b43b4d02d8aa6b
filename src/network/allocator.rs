//! Allocates a budget to the layers of a network.

use std::collections::{BTreeMap, BTreeSet};

use super::blocks::{Block, Entry, Goal, Joint, Selected};
use super::budget::{Budget, Strategy};
use super::candidates::{Candidate, Cost, Limits, candidates};
use super::knapsack::{self, Class};
use super::plan::{LayerPlan, OriginalReason, Plan, PlanWarning};
use super::profile::{self, LayerProfile};
use super::shared::SharedInput;
use super::uniform;
use crate::error::during;
use crate::{Error, Result};

/// Allocates a budget to the layers of a network: chooses a rank for each layer, or the original layer.
///
/// The default strategy is [`Strategy::Uniform`]. The other strategies solve a knapsack problem: every candidate of a layer has
/// a cost and a weighted loss. Lagrangian relaxation gives a lower bound for every allocation; [`Plan::gap`] is the distance
/// of the plan to it. A beam search improves the relaxed choice, and is exact for small networks.
///
/// ```
/// use dalr::network::{Allocator, Budget, Choice, LayerProfile, Sensitivities, Strategy};
///
/// # fn main() -> dalr::Result<()> {
/// let energies: Vec<f64> = (0..20).map(|i| 0.7_f64.powi(i)).collect();
/// let profile = |name, m| LayerProfile::from_energies(name, (m, 20), false, &energies, energies.iter().sum());
/// let profiles = [profile("query", 20)?, profile("value", 24)?, profile("head", 30)?];
/// let sensitivities = Sensitivities::new([("query", 0.2), ("value", 1.5), ("head", 0.9)])?;
/// let plan = Allocator::new(Budget::ParameterFraction(0.7))
///     .with_strategy(Strategy::Sensitivity(sensitivities))
///     .with_rank_multiple(2)
///     .with_limits("value", 4, 8)
///     .with_untouched("head")
///     .allocate(&profiles)?;
/// assert_eq!(plan.choice("head"), Some(Choice::Original));
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

impl From<Budget> for Allocator {
    fn from(budget: Budget) -> Self {
        Self::new(budget)
    }
}

impl Allocator {
    /// Creates an allocator with the uniform strategy and no limits.
    pub fn new(budget: Budget) -> Self {
        let (exceptions, untouched) = (BTreeMap::new(), BTreeSet::new());
        Self { budget, strategy: Strategy::Uniform, limits: Limits::NONE, exceptions, untouched }
    }

    /// Sets the strategy.
    #[must_use]
    pub fn with_strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = strategy;
        self
    }

    /// Makes every rank a multiple of this number, 1 by default.
    #[must_use]
    pub fn with_rank_multiple(mut self, multiple: usize) -> Self {
        self.limits.multiple = multiple;
        self
    }

    /// Sets the smallest rank of a compressed layer, 1 by default. A layer stays original if no rank from here on makes it
    /// smaller.
    #[must_use]
    pub fn with_min_rank(mut self, rank: usize) -> Self {
        self.limits.min_rank = rank;
        self
    }

    /// Sets the largest rank of a compressed layer; there is none by default. A layer may still stay original.
    #[must_use]
    pub fn with_max_rank(mut self, rank: usize) -> Self {
        self.limits.max_rank = rank;
        self
    }

    /// Sets the smallest and the largest rank of one layer, instead of those of all layers.
    #[must_use]
    pub fn with_limits(mut self, layer: impl Into<String>, min_rank: usize, max_rank: usize) -> Self {
        self.exceptions.insert(layer.into(), (min_rank, max_rank));
        self
    }

    /// Leaves one layer original. Its cost counts in the budget.
    #[must_use]
    pub fn with_untouched(mut self, layer: impl Into<String>) -> Self {
        self.untouched.insert(layer.into());
        self
    }

    pub(super) fn strategy(&self) -> &Strategy {
        &self.strategy
    }

    pub(super) fn leaves(&self, layer: &str) -> bool {
        self.untouched.contains(layer)
    }

    /// Allocates the budget to these layers.
    ///
    /// # Errors
    ///
    /// No layers, or two of the same name; limits for a name that no layer has; a layer without a sensitivity; parameters out of
    /// range; a budget below the smallest feasible one, which the message states; a rank that needs a decomposition up to a
    /// larger rank.
    ///
    /// # Cost
    ///
    /// `O(K)` for the `K` ranks of all layers, about sixty times `O(L log K)` for `L` layers, and a search of limited size.
    pub fn allocate(&self, layers: &[LayerProfile]) -> Result<Plan> {
        self.allocate_shared(layers, &[])
    }

    /// Allocates the budget to these layers, of which those in a group read the same input.
    ///
    /// The layers of a group share one `down` if that loses less at the same budget. With [`Budget::Rank`] they never do.
    ///
    /// # Errors
    ///
    /// As [`allocate`](Self::allocate); groups that name no layer, or overlap, or do not fit the profiles.
    pub fn allocate_shared(&self, layers: &[LayerProfile], groups: &[SharedInput]) -> Result<Plan> {
        during("Allocator::allocate", || {
            let blocks = self.blocks(layers, groups)?;
            let goal = self.goal(&blocks);
            let uniform = self.strategy == Strategy::Uniform;
            let (selected, bound) = match self.budget {
                Budget::Rank(rank) => (self.at_rank(&blocks, rank)?, None),
                Budget::LayerError(error) => (blocks.iter().map(|block| within_error(block, error)).collect(), None),
                _ => {
                    let classes: Vec<_> = blocks.iter().map(|block| alternatives(block, goal)).collect();
                    let (selected, bound) = if uniform {
                        (uniform::allocate(&blocks, goal), knapsack::lower_bound(&classes, goal.limit()))
                    } else {
                        match knapsack::solve(&classes, goal.limit()) {
                            Ok((chosen, bound)) => (Ok(chosen.into_iter().map(selection).collect()), Some(bound)),
                            Err(least) => (Err(least), None),
                        }
                    };
                    (selected.map_err(|least| self.infeasible(&blocks, least))?, bound)
                }
            };
            let (minimizes_parameters, reason) = match goal {
                Goal::Loss { .. } => (false, OriginalReason::Affordable),
                Goal::Parameters { .. } => (true, OriginalReason::ErrorTooLarge),
            };
            let mut plans: Vec<(usize, LayerPlan)> = Vec::with_capacity(layers.len());
            for (block, selected) in blocks.iter().zip(&selected) {
                plans.extend(block.plans(selected, reason)?);
            }
            plans.sort_by_key(|(position, _)| *position);
            let layers = plans.into_iter().map(|(_, plan)| plan).collect();
            let words = (self.budget.to_string(), self.strategy.to_string());
            let mut plan = Plan::new(words, minimizes_parameters, layers, bound);
            if self.strategy == Strategy::Energy && !matches!(self.budget, Budget::Rank(_) | Budget::LayerError(_)) {
                plan.warnings.push(PlanWarning::EnergyAlone);
            }
            if !uniform {
                plan.warn_of_gap();
            }
            Ok(plan)
        })
    }

    /// The layers with their candidates, in blocks.
    fn blocks<'a>(&self, layers: &'a [LayerProfile], groups: &'a [SharedInput]) -> Result<Vec<Block<'a>>> {
        self.budget.validate()?;
        if layers.is_empty() {
            return Err(Error::empty("the layers"));
        }
        self.limits.validate()?;
        let index = profile::index(layers.iter().map(LayerProfile::name))?;
        if let Some(name) =
            self.exceptions.keys().chain(&self.untouched).find(|name| !index.contains_key(name.as_str()))
        {
            let expected = "limits for layers of the network".into();
            return Err(Error::layers(expected, format!("some for `{name}`")));
        }
        let grouped: BTreeSet<&str> = groups.iter().flat_map(SharedInput::names).collect();
        let mut entries = BTreeMap::new();
        for (position, layer) in layers.iter().enumerate() {
            let limits = self.limits_of(layer);
            limits.validate().map_err(|source| in_layer(layer, source))?;
            let untouched = layer.max_rank() == 0 || self.untouched.contains(layer.name());
            let candidates = if untouched { vec![Candidate::original(layer)] } else { candidates(layer, limits) };
            let compressible = candidates.len() > 1 || (!untouched && grouped.contains(layer.name()));
            let weight = if compressible { self.weight(layer)? } else { 0.0 };
            entries.insert(layer.name(), Entry { position, layer, weight, untouched, candidates });
        }
        let mut blocks = Vec::with_capacity(layers.len());
        for (group, shared) in groups.iter().enumerate() {
            let mut members = Vec::new();
            for name in shared.names() {
                let entry = entries.remove(name).ok_or_else(|| {
                    let expected = "groups of layers of the network, each in one group at most".into();
                    Error::layers(expected, format!("`{name}` in a group"))
                })?;
                shared.check(entry.layer)?;
                members.push(entry);
            }
            let limits = members.iter().map(|entry| self.limits_of(entry.layer)).reduce(Limits::and);
            let limits = limits.unwrap_or(self.limits);
            let joint = if members.iter().any(|entry| entry.untouched) {
                None
            } else {
                let weighted: Vec<(&LayerProfile, f64)> =
                    members.iter().map(|entry| (entry.layer, entry.weight)).collect();
                Some(Joint { group, shared, candidates: shared.candidates(&weighted, limits) })
            };
            blocks.push(Block { entries: members, joint });
        }
        blocks.extend(entries.into_values().map(|entry| Block { entries: vec![entry], joint: None }));
        // Sums of the same numbers in the same order are the same.
        blocks.sort_by_key(|block| block.entries.first().map(|entry| entry.position));
        Ok(blocks)
    }

    fn limits_of(&self, layer: &LayerProfile) -> Limits {
        match self.exceptions.get(layer.name()) {
            Some(&(min_rank, max_rank)) => Limits { min_rank, max_rank, ..self.limits },
            None => self.limits,
        }
    }

    /// The weight of a layer's loss.
    fn weight(&self, layer: &LayerProfile) -> Result<f64> {
        let Strategy::Sensitivity(sensitivities) = &self.strategy else { return Ok(1.0) };
        sensitivities.get(layer.name()).ok_or_else(|| {
            let expected = "a sensitivity for each layer that can be compressed".into();
            Error::layers(expected, format!("none for `{}`", layer.name()))
        })
    }

    fn goal(&self, blocks: &[Block<'_>]) -> Goal {
        // A fraction that some ranks have exactly must not exclude them by rounding.
        let of_original =
            |fraction: f64, cost| (fraction * original_cost(blocks, cost) * (1.0 + 8.0 * f64::EPSILON)).floor();
        let (cost, limit) = match self.budget {
            Budget::Parameters(limit) => (Cost::Parameters, limit as f64),
            Budget::ParameterFraction(kept) => (Cost::Parameters, of_original(kept, Cost::Parameters)),
            Budget::MultiplyAdds(limit) => (Cost::MultiplyAdds, limit as f64),
            Budget::MultiplyAddFraction(kept) => (Cost::MultiplyAdds, of_original(kept, Cost::MultiplyAdds)),
            Budget::Rank(_) => (Cost::Parameters, f64::INFINITY),
            Budget::TotalError(error) => {
                let entries = || blocks.iter().flat_map(|block| &block.entries);
                let weight = entries().map(|entry| entry.weight).sum::<f64>();
                // Sums in another order are rounded differently.
                let slack = 1.0 - 4.0 * f64::EPSILON * entries().count() as f64;
                return Goal::Parameters { loss: error * error * weight * slack };
            }
            Budget::LayerError(_) => return Goal::Parameters { loss: f64::INFINITY },
        };
        Goal::Loss { cost, limit }
    }

    fn infeasible(&self, blocks: &[Block<'_>], least: f64) -> Error {
        let fraction = |cost| (least / original_cost(blocks, cost) * 1e6).ceil() / 1e6;
        let (parameter, least, found) = match self.budget {
            Budget::Parameters(limit) => ("a budget of parameters", least, limit as f64),
            Budget::ParameterFraction(kept) => ("a fraction of the parameters", fraction(Cost::Parameters), kept),
            Budget::MultiplyAdds(limit) => ("a budget of multiply–adds", least, limit as f64),
            Budget::MultiplyAddFraction(kept) => {
                ("a fraction of the multiply–adds", fraction(Cost::MultiplyAdds), kept)
            }
            Budget::TotalError(error) => ("a total error", 0.0, error),
            Budget::LayerError(error) => ("an error of each layer", 0.0, error),
            Budget::Rank(rank) => ("a rank", 1.0, rank as f64),
        };
        let expected = format!("of at least {least}, the smallest feasible for these layers");
        Error::out_of_range(parameter, expected, found)
    }

    /// This rank for every layer that it makes smaller.
    fn at_rank(&self, blocks: &[Block<'_>], rank: usize) -> Result<Vec<Selected>> {
        if !rank.is_multiple_of(self.limits.multiple) {
            let expected = format!("a rank that is a multiple of {}", self.limits.multiple);
            return Err(Error::rank(expected, rank.to_string()));
        }
        let select = |entry: &Entry<'_>| {
            let layer = entry.layer;
            let saves = layer.cost_at(rank).0 < layer.parameters();
            if !entry.untouched && saves && rank > layer.max_rank() {
                let expected = format!("a decomposition up to rank {rank}");
                let found = format!("one up to rank {}", layer.max_rank());
                return Err(in_layer(layer, Error::rank(expected, found)));
            }
            // If the limits exclude this rank: the nearest that they allow.
            let allowed = entry.candidates.iter().filter(|candidate| candidate.rank > 0 && saves);
            let nearest = allowed.min_by_key(|candidate| candidate.rank.abs_diff(rank));
            Ok(nearest.copied().unwrap_or(Candidate::original(layer)))
        };
        let of_block = |block: &Block<'_>| block.entries.iter().map(select).collect::<Result<_>>().map(Selected::Each);
        blocks.iter().map(of_block).collect()
    }
}

/// The cost of all original layers.
fn original_cost(blocks: &[Block<'_>], cost: Cost) -> f64 {
    let entries = blocks.iter().flat_map(|block| &block.entries);
    entries.map(|entry| Candidate::original(entry.layer).cost(cost)).sum()
}

/// The classes of a block: one for each layer, or one for all of them.
fn alternatives(block: &Block<'_>, goal: Goal) -> knapsack::Block<Candidate> {
    let class = |first: &Candidate, others: &[Candidate], weight: f64| {
        let options = std::iter::once(first).chain(others);
        Class::new(options.map(|candidate| (goal.measure(candidate, weight), *candidate)).collect())
    };
    let of_entry = |entry: &Entry<'_>| class(&Candidate::original(entry.layer), &entry.candidates, entry.weight);
    let joint = block.joint.iter().filter_map(|joint| joint.candidates.split_first());
    let joint = joint.map(|(first, others)| vec![class(first, others, 1.0)]);
    std::iter::once(block.entries.iter().map(of_entry).collect()).chain(joint).collect()
}

/// The selection for an alternative of [`alternatives`].
fn selection((alternative, chosen): (usize, Vec<Candidate>)) -> Selected {
    match chosen[..] {
        [joint] if alternative > 0 => Selected::Joint(joint),
        _ => Selected::Each(chosen),
    }
}

/// The fewest parameters without an error of any layer above this.
fn within_error(block: &Block<'_>, error: f64) -> Selected {
    let good = |layer: &LayerProfile, candidate: &Candidate| {
        let predicted = layer.relative_error(candidate.rank).unwrap_or_else(|| candidate.loss.sqrt());
        // An error below the resolution may be anything up to it.
        candidate.rank == 0 || predicted.max(layer.resolution()) <= error
    };
    let cheapest = |entry: &Entry<'_>| {
        let good = entry.candidates.iter().find(|candidate| good(entry.layer, candidate));
        good.copied().unwrap_or(Candidate::original(entry.layer))
    };
    let each: Vec<Candidate> = block.entries.iter().map(cheapest).collect();
    let parameters = each.iter().map(|candidate| candidate.parameters).sum::<u64>();
    let joint = block.joint.iter().flat_map(|joint| joint.candidates.iter().map(move |one| (joint.shared, one)));
    let mut good = joint.filter(|(shared, candidate)| {
        candidate.parameters < parameters && shared.worst_loss(candidate.rank) <= error * error
    });
    good.next().map_or(Selected::Each(each), |(_, candidate)| Selected::Joint(*candidate))
}

fn in_layer(layer: &LayerProfile, source: Error) -> Error {
    Error::InLayer { layer: layer.name().into(), source: Box::new(source) }
}
