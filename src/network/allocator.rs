//! Allocates a budget to the layers of a network.

use std::collections::{BTreeMap, BTreeSet};

use super::budget::{Budget, Strategy};
use super::knapsack::{self, Class, neighbours};
use super::layer_profile::{self, LayerProfile, Limits};
use super::plan::{Choice, LayerPlan, OriginalReason, Plan, PlanWarning};
use super::shared_input::SharedInput;
use crate::error::during;
use crate::{Error, Result};

/// Allocates a budget to the layers of a network: chooses a rank for each layer, or the original
/// layer.
///
/// The default strategy is [`Strategy::Uniform`]. The other strategies solve a knapsack problem:
/// every candidate of a layer has a cost and a weighted loss. Lagrangian relaxation gives a lower
/// bound for every allocation; [`Plan::gap`] is the distance of the plan to it. A beam search then
/// improves the choice, and is exact for small networks.
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
    pub(super) strategy: Strategy,
    limits: Limits,
    /// The smallest and the largest rank of single layers; `None` for a layer that stays original.
    exceptions: BTreeMap<String, Option<(usize, usize)>>,
}

/// A candidate of one layer, or of all layers of a group together.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    /// The position of the layer in the network; for a group, that of its first layer.
    layer: usize,
    choice: Choice,
    parameters: u64,
    multiply_adds: u64,
    /// The weighted sum of the layers' losses.
    loss: f64,
    /// The largest relative error of any of the layers.
    worst: f64,
}

/// The alternatives for a layer or a group, of which one is chosen: the candidates of each layer by
/// ascending cost, or those of all layers together.
type Block = Vec<Vec<Vec<Candidate>>>;

type Quantity = fn(&Candidate) -> f64;

/// The quantity that a budget limits, and the one to minimize.
struct Goal {
    limited: Quantity,
    minimized: Quantity,
    limit: f64,
    /// The budget in words and as a number. If it is a fraction, also the cost of the original
    /// network.
    budget: (&'static str, f64, Option<f64>),
}

impl From<Budget> for Allocator {
    fn from(budget: Budget) -> Self {
        Self::new(budget)
    }
}

impl Allocator {
    /// Creates an allocator with the uniform strategy and no limits.
    pub fn new(budget: Budget) -> Self {
        Self { budget, strategy: Strategy::Uniform, limits: Limits::NONE, exceptions: BTreeMap::new() }
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

    /// Sets the smallest rank of a compressed layer, 1 by default. A layer stays original if this
    /// rank does not make it smaller.
    #[must_use]
    pub fn with_min_rank(mut self, rank: usize) -> Self {
        self.limits.min_rank = rank;
        self
    }

    /// Sets the largest rank of a compressed layer; there is none by default. A layer may still
    /// stay original.
    #[must_use]
    pub fn with_max_rank(mut self, rank: usize) -> Self {
        self.limits.max_rank = rank;
        self
    }

    /// Sets the smallest and the largest rank of one layer, instead of those of all layers.
    #[must_use]
    pub fn with_limits(mut self, layer: impl Into<String>, min_rank: usize, max_rank: usize) -> Self {
        self.exceptions.insert(layer.into(), Some((min_rank, max_rank)));
        self
    }

    /// Keeps one layer as the original layer. Its cost counts in the budget.
    #[must_use]
    pub fn with_untouched(mut self, layer: impl Into<String>) -> Self {
        self.exceptions.insert(layer.into(), None);
        self
    }

    pub(super) fn leaves(&self, layer: &str) -> bool {
        self.exceptions.get(layer) == Some(&None)
    }

    /// Allocates the budget to these layers.
    ///
    /// # Errors
    ///
    /// No layers, or two of the same name; limits for a name that no layer has; a layer without a
    /// sensitivity; parameters out of range; a budget below the smallest feasible one, which the
    /// message states; a rank that needs a decomposition up to a larger rank.
    ///
    /// # Cost
    ///
    /// `O(K)` for the `K` ranks of all layers, `O(L log K)` for `L` layers about sixty times, and a
    /// search of limited size.
    pub fn allocate(&self, layers: &[LayerProfile]) -> Result<Plan> {
        self.allocate_shared(layers, &[])
    }

    /// Allocates the budget to these layers. The layers of a group have a shared input.
    ///
    /// The layers of a group get one `down` if their loss is then smaller within the same budget.
    /// With [`Budget::Rank`] they never do.
    ///
    /// # Errors
    ///
    /// As [`allocate`](Self::allocate); groups that name no layer, or overlap, or do not fit the
    /// profiles.
    pub fn allocate_shared(&self, layers: &[LayerProfile], groups: &[SharedInput]) -> Result<Plan> {
        during("Allocator::allocate", || {
            self.budget.validate()?;
            self.limits.validate()?;
            if let Budget::Rank(rank) = self.budget
                && !rank.is_multiple_of(self.limits.multiple)
            {
                let expected = format!("a rank that is a multiple of {}", self.limits.multiple);
                return Err(Error::rank(expected, rank.to_string()));
            }
            let mut index = layer_profile::positions(layers)?;
            layer_profile::require_known(&index, self.exceptions.keys(), "limits")?;
            let grouped: BTreeSet<&str> = groups.iter().flat_map(SharedInput::names).collect();
            let (mut plans, mut candidates) = (Vec::with_capacity(layers.len()), Vec::with_capacity(layers.len()));
            for (position, layer) in layers.iter().enumerate() {
                let (plan, own) = self.prepare(position, layer, grouped.contains(layer.name()))?;
                plans.push(plan);
                candidates.push(own);
            }
            let (mut blocks, mut members) = (Vec::<Block>::new(), Vec::new());
            for (group, shared) in groups.iter().enumerate() {
                let find = |name| {
                    let position = index.remove(name).ok_or_else(|| {
                        let expected = "groups of layers of the network, each in one group at most".into();
                        Error::layers(expected, format!("`{name}` in a group"))
                    })?;
                    shared.check(&layers[position]).map(|()| position)
                };
                let positions: Vec<usize> = shared.names().map(find).collect::<Result<_>>()?;
                let separate = positions.iter().map(|&at| core::mem::take(&mut candidates[at])).collect();
                let pairs: Vec<_> = positions.iter().map(|&at| (&layers[at], plans[at].weight)).collect();
                let first = *positions.first().ok_or_else(|| Error::empty("the list of layers with a shared input"))?;
                let joint = self.joint((first, group), shared, &pairs);
                blocks.push(if joint.is_empty() { vec![separate] } else { vec![separate, vec![joint]] });
                members.push(positions);
            }
            blocks.extend(index.into_values().map(|at| vec![vec![core::mem::take(&mut candidates[at])]]));
            // Rounding depends on the order of sums. A fixed order makes the result independent of
            // the order of the groups.
            blocks.sort_by_key(|block| block[0][0][0].layer);

            let goal = self.goal(&plans);
            let (chosen, bound) = self.choose(&blocks, &goal).map_err(|least| goal.infeasible(least))?;
            for candidate in chosen {
                match candidate.choice {
                    Choice::Original => {}
                    Choice::Rank(rank) => plans[candidate.layer].compress(&layers[candidate.layer], rank)?,
                    Choice::Shared { group, rank } => {
                        for (member, &at) in members[group].iter().enumerate() {
                            plans[at].share(candidate.choice, groups[group].at_rank(member, rank), layers[at].calls);
                            plans[at].warnings = groups[group].warnings.clone();
                        }
                    }
                }
            }
            let words = (self.budget.to_string(), self.strategy.to_string());
            let mut plan = Plan::new(words, self.budget.limits_error(), plans, Some(bound));
            if self.strategy == Strategy::Energy && !self.budget.decides_alone() {
                plan.warnings.push(PlanWarning::EnergyAlone);
            }
            if self.strategy != Strategy::Uniform {
                plan.warn_of_gap();
            }
            Ok(plan)
        })
    }

    /// Returns the best candidates and a lower bound on the minimized quantity. If the limit is
    /// infeasible, returns the smallest feasible one as the error.
    fn choose<'a>(&self, blocks: &'a [Block], goal: &Goal) -> Result<(Vec<&'a Candidate>, f64), f64> {
        let class = |all: &'a [Candidate]| {
            Class::new(all.iter().map(|one| (((goal.limited)(one), (goal.minimized)(one)), one)))
        };
        let classes = |parts: &'a Vec<Vec<Candidate>>| parts.iter().map(|all| class(all)).collect();
        let mut classes: Vec<knapsack::Block<&Candidate>> =
            blocks.iter().map(|block| block.iter().map(classes).collect()).collect();
        if self.strategy != Strategy::Uniform || self.budget.decides_alone() {
            return knapsack::solve(&classes, goal.limit);
        }
        let bound = knapsack::lower_bound(&classes, goal.limit)?;
        let (cost, good, bad) = match self.budget.limits_error() {
            true => (goal.minimized, 1.0_f64, 0.0_f64),
            false => (goal.limited, 0.0, 1.0),
        };
        // The candidate with the largest cost up to this fraction of the original layer's, or else
        // the one with the smallest cost.
        let at = |all: &'a Vec<Candidate>, fraction: f64| {
            let affordable = fraction * all.last().map_or(0.0, cost);
            let last = all.partition_point(|candidate| cost(candidate) <= affordable).saturating_sub(1);
            &all[last..=last]
        };
        let used = |fraction| {
            let parts = blocks.iter().flat_map(|block| &block[0]);
            parts.flat_map(|all| at(all, fraction)).map(goal.limited).sum::<f64>()
        };
        let fraction = match used(good) {
            _ if used(bad) <= goal.limit => bad,
            least if least > goal.limit => return Err(least),
            _ => neighbours(good, bad, |fraction| used(fraction) <= goal.limit).0,
        };
        for (block, classes) in blocks.iter().zip(&mut classes) {
            classes[0] = block[0].iter().map(|all| class(at(all, fraction))).collect();
        }
        // Layers with a shared input may still get one `down`.
        knapsack::solve(&classes, goal.limit).map(|(chosen, _)| (chosen, bound))
    }

    /// Returns the limits of a layer; `None` for one that stays original.
    fn limits_of(&self, layer: &LayerProfile) -> Option<Limits> {
        let limits = match self.exceptions.get(layer.name()) {
            Some(exception) => exception.map(|(min_rank, max_rank)| Limits { min_rank, max_rank, ..self.limits }),
            None => Some(self.limits),
        };
        limits.filter(|_| layer.max_rank() > 0)
    }

    /// Returns a plan in which the layer stays original, and those of its candidates that the
    /// budget allows.
    fn prepare(&self, position: usize, layer: &LayerProfile, grouped: bool) -> Result<(LayerPlan, Vec<Candidate>)> {
        let limits = self.limits_of(layer);
        limits.map_or(Ok(()), Limits::validate).map_err(|error| error.in_layer(layer.name()))?;
        let mut ranks = limits.map_or(Vec::new(), |limits| layer.saving_ranks(limits));
        let weight = match &self.strategy {
            _ if ranks.is_empty() && !(grouped && limits.is_some()) => 0.0,
            Strategy::Sensitivity(sensitivities) => sensitivities.require(layer.name())?,
            Strategy::OutputMetric => layer.metric_energy()?,
            Strategy::Uniform | Strategy::Energy => 1.0,
        };
        let reason = match limits {
            None => OriginalReason::Untouched,
            Some(_) if ranks.is_empty() => OriginalReason::NoSavings,
            Some(_) if self.budget.limits_error() => OriginalReason::ErrorTooLarge,
            Some(_) => OriginalReason::Affordable,
        };
        if let Budget::Rank(rank) = self.budget {
            let saves = limits.is_some() && layer.costs(rank).0 < layer.parameters();
            if saves && rank > layer.max_rank() {
                let (expected, found) = (format!("up to rank {rank}"), format!("up to rank {}", layer.max_rank()));
                return Err(Error::rank(format!("a decomposition {expected}"), found).in_layer(layer.name()));
            }
            // If the limits exclude this rank, the nearest allowed rank replaces it.
            let nearest = ranks.iter().copied().min_by_key(|other| other.abs_diff(rank));
            ranks = Vec::from_iter(nearest.filter(|_| saves));
        }
        let candidate = |choice, rank: usize, loss: f64, worst| {
            let (parameters, multiply_adds) = layer.costs(rank);
            Candidate { layer: position, choice, parameters, multiply_adds, loss: weight * loss, worst }
        };
        let mut candidates = Vec::with_capacity(ranks.len() + 1);
        for rank in ranks {
            let loss = layer.require_loss(rank)?;
            // An error below the resolution can be as large as the resolution.
            let worst = layer.relative_error(rank).unwrap_or_else(|| loss.sqrt()).max(layer.resolution());
            candidates.extend(Some(candidate(Choice::Rank(rank), rank, loss, worst)).filter(|one| self.allows(one)));
        }
        if candidates.is_empty() || !matches!(self.budget, Budget::Rank(_)) {
            candidates.push(candidate(Choice::Original, 0, 0.0, 0.0));
        }
        Ok((LayerPlan::original(layer, weight, reason), candidates))
    }

    fn allows(&self, candidate: &Candidate) -> bool {
        !matches!(self.budget, Budget::LayerError(error) if candidate.worst > error)
    }

    /// Returns the candidates of a shared `down` that make the group smaller.
    fn joint(
        &self,
        (layer, group): (usize, usize),
        shared: &SharedInput,
        members: &[(&LayerProfile, f64)],
    ) -> Vec<Candidate> {
        let limits: Option<Vec<Limits>> = members.iter().map(|(layer, _)| self.limits_of(layer)).collect();
        let calls = members[0].0.calls;
        // All layers can use the same outputs of a shared `down` only if they run equally often.
        let together = members.iter().all(|(layer, _)| layer.calls == calls);
        let Some(limits) = limits.filter(|_| together && !matches!(self.budget, Budget::Rank(_))) else {
            return Vec::new();
        };
        let candidate = |rank| {
            let parts = || members.iter().enumerate().map(|(index, (_, weight))| (shared.at_rank(index, rank), weight));
            Candidate {
                layer,
                choice: Choice::Shared { group, rank },
                parameters: shared.parameters(rank),
                multiply_adds: parts().map(|((_, factors, _), _)| factors).sum::<u64>().saturating_mul(calls),
                loss: parts().map(|((.., loss), weight)| weight * loss).sum(),
                worst: parts().map(|((.., loss), _)| loss.sqrt()).fold(0.0, f64::max),
            }
        };
        let original = members.iter().map(|(layer, _)| layer.parameters()).sum::<u64>();
        let ranks = (1..=shared.max_rank()).filter(|&rank| limits.iter().all(|limits| limits.allow(rank)));
        let smaller = ranks.map(candidate).take_while(|candidate| candidate.parameters < original);
        smaller.filter(|candidate| self.allows(candidate)).collect()
    }

    fn goal(&self, originals: &[LayerPlan]) -> Goal {
        let parameters: Quantity = |candidate| candidate.parameters as f64;
        let multiply_adds: Quantity = |candidate| candidate.multiply_adds as f64;
        let loss: Quantity = |candidate| candidate.loss;
        let all_parameters = Some(originals.iter().map(|layer| layer.parameters_before as f64).sum::<f64>());
        let all_multiply_adds = Some(originals.iter().map(|layer| layer.multiply_adds_before as f64).sum::<f64>());
        let (limited, minimized, budget) = match self.budget {
            Budget::Parameters(limit) => (parameters, loss, ("a budget of parameters", limit as f64, None)),
            Budget::ParameterFraction(kept) => {
                (parameters, loss, ("a fraction of the parameters", kept, all_parameters))
            }
            Budget::MultiplyAdds(limit) => (multiply_adds, loss, ("a budget of multiply–adds", limit as f64, None)),
            Budget::MultiplyAddFraction(kept) => {
                (multiply_adds, loss, ("a fraction of the multiply–adds", kept, all_multiply_adds))
            }
            Budget::Rank(_) => (parameters, loss, ("a rank", f64::INFINITY, None)),
            Budget::LayerError(_) => (loss, parameters, ("an error of each layer", f64::INFINITY, None)),
            Budget::TotalError(error) => {
                let weight = originals.iter().map(|layer| layer.weight).sum::<f64>();
                // The slack allows for the rounding of sums in another order.
                let slack = 1.0 - 4.0 * f64::EPSILON * originals.len() as f64;
                (loss, parameters, ("a total loss", error * error * weight * slack, None))
            }
        };
        // If some ranks have exactly this fraction, rounding must not exclude them.
        let limit = budget.2.map_or(budget.1, |total| (budget.1 * total * (1.0 + 8.0 * f64::EPSILON)).floor());
        Goal { limited, minimized, limit, budget }
    }
}

impl Goal {
    fn infeasible(&self, least: f64) -> Error {
        let (parameter, found, total) = self.budget;
        let least = total.map_or(least, |total| (least / total * 1e6).ceil() / 1e6);
        let expected = format!("of at least {least}, the smallest feasible for these layers");
        Error::out_of_range(parameter, expected, found)
    }
}
