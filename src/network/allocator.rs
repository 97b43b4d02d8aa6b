//! Allocates a budget to the layers of a network.

use std::collections::{BTreeMap, BTreeSet};

use super::budget::{Budget, Strategy};
use super::cost::Cost;
use super::group_candidates::{self, Joint};
use super::knapsack::{self, Block, Class, Item, neighbours};
use super::layer_profile::{self, LayerProfile, Limits};
use super::plan::{Choice, LayerPlan, OriginalReason, Plan};
use super::shared_input::SharedInput;
use super::unit_profile::UnitProfile;
use crate::error::during;
use crate::{Error, Result, Warning};

/// A gap above this fraction of the objective gets a warning.
const LARGE_GAP: f64 = 0.01;

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
        self.allocate_joint(layers, groups, &[])
    }

    /// Allocates the budget to these layers of all kinds. For each layer it chooses among the
    /// original layer, a rank in the layer's form of storage, one `down` with the layers of its
    /// group, and fewer hidden units between the layer and the next or the previous one.
    ///
    /// Fewer hidden units change the loss of the second layer only, by the error of its outputs. The
    /// weight of this loss is the sensitivity of the pair if that was
    /// [measured](super::Sensitivities::measure_units) and the budget does not limit errors;
    /// otherwise it is the weight of the second layer. A layer between two others can lose inputs or
    /// outputs, not both. Layers that are to have no other candidates can be
    /// [original](LayerProfile::original) ones. The limits on ranks do not apply to numbers of
    /// units, except that these are multiples of the
    /// [rank multiple](Self::with_rank_multiple). With [`Budget::Rank`] all units are kept.
    ///
    /// # Errors
    ///
    /// As [`allocate_shared`](Self::allocate_shared); units between layers that do not exist or
    /// whose profiles do not fit; a gate without a name; more than 4096 ways to combine the units
    /// and groups of layers that they connect, such as the units of a chain of more than 17 layers.
    pub fn allocate_joint(
        &self,
        layers: &[LayerProfile],
        groups: &[SharedInput],
        units: &[UnitProfile],
    ) -> Result<Plan> {
        during("Allocator::allocate", || {
            self.budget.validate()?;
            self.limits.validate()?;
            if let Budget::Rank(rank) = self.budget
                && !rank.is_multiple_of(self.limits.multiple)
            {
                let expected = format!("a rank that is a multiple of {}", self.limits.multiple);
                return Err(Error::rank(expected, rank.to_string()));
            }
            let index = layer_profile::positions(layers)?;
            layer_profile::require_known(&index, self.exceptions.keys(), "limits")?;
            let mut grouped = BTreeSet::new();
            let mut members: Vec<Vec<usize>> = Vec::with_capacity(groups.len());
            for shared in groups {
                let find = |name| {
                    let position = index.get(name).copied().filter(|&position| grouped.insert(position));
                    let position = position.ok_or_else(|| {
                        let expected = "groups of layers of the network, each in one group at most".into();
                        Error::layers(expected, format!("`{name}` in a group"))
                    })?;
                    shared.check(&layers[position]).map(|()| position)
                };
                members.push(shared.names().map(find).collect::<Result<_>>()?);
            }
            let mut pairs: Vec<Vec<usize>> = Vec::with_capacity(units.len());
            for pair in units {
                pair.require_names()?;
                let find = |name: &str| {
                    let position = index.get(name).copied();
                    let position = position.ok_or_else(|| {
                        let expected = "hidden units between layers of the network".into();
                        Error::layers(expected, format!("some beside `{name}`"))
                    })?;
                    pair.check(&layers[position]).map(|()| position)
                };
                pairs.push(pair.names().map(find).collect::<Result<_>>()?);
            }
            let together: BTreeSet<usize> = members.iter().chain(&pairs).flatten().copied().collect();
            let candidates = |(at, layer)| self.candidates(at, layer, together.contains(&at));
            let (mut plans, classes): (Vec<LayerPlan>, Vec<Class>) =
                layers.iter().enumerate().map(candidates).collect::<Result<_>>()?;
            let mut joints = Vec::with_capacity(groups.len() + units.len());
            for (group, (shared, members)) in groups.iter().zip(&members).enumerate() {
                let &first = members.first().ok_or_else(|| Error::empty("the list of layers with a shared input"))?;
                let layers: Vec<_> = members.iter().map(|&at| (&layers[at], plans[at].weight)).collect();
                let candidates = self.joint((first, group), shared, &layers);
                joints.push(Joint { layers: members.iter().copied().collect(), candidates });
            }
            for (pair, (profile, positions)) in units.iter().zip(&pairs).enumerate() {
                let weight = positions.last().map_or(0.0, |&second| self.weight(profile, &plans[second]));
                let layers: Vec<_> = positions.iter().map(|&at| &layers[at]).collect();
                let candidates = self.fewer_units((positions[0], pair), profile, &layers, weight);
                joints.push(Joint { layers: positions.iter().copied().collect(), candidates });
            }

            let (chosen, bound) = self.choose(group_candidates::blocks(&classes, &joints)?, &plans)?;
            for Item { layer, choice, .. } in chosen {
                match choice {
                    Choice::Original => {}
                    Choice::Rank(rank) => plans[layer].compress(&layers[layer], rank)?,
                    Choice::Shared { group, rank } => {
                        for (member, &at) in members[group].iter().enumerate() {
                            let (cost, loss) = groups[group].at_rank(member, rank);
                            let cost = cost.at_positions(layers[at].calls);
                            plans[at].share(choice, cost, loss, &groups[group].stacked.facts.warnings);
                        }
                    }
                    Choice::HiddenUnits { pair, kept } => {
                        for &at in &pairs[pair] {
                            plans[at].share(choice, units[pair].cost(&layers[at], kept), 0.0, &[]);
                        }
                        if let Some(&second) = pairs[pair].last() {
                            plans[second].weight = self.weight(&units[pair], &plans[second]);
                            plans[second].loss = units[pair].loss_beside(&layers[second], kept);
                            plans[second].relative_error = units[pair].relative_error(kept);
                        }
                    }
                }
            }
            let words = (self.budget.to_string(), self.strategy.to_string());
            let mut plan = Plan::new(words, self.budget.limits_error(), plans, Some(bound));
            let decides_alone = matches!(self.budget, Budget::Rank(_) | Budget::LayerError(_));
            if self.strategy == Strategy::Energy && !decides_alone {
                plan.warnings.push(Warning::EnergyAlone);
            }
            let fraction = plan.gap() / plan.objective.max(f64::MIN_POSITIVE);
            if self.strategy != Strategy::Uniform && fraction > LARGE_GAP {
                plan.warnings.push(Warning::Gap { fraction });
            }
            Ok(plan)
        })
    }

    /// Returns the weight of the loss of fewer units.
    fn weight(&self, units: &UnitProfile, second: &LayerPlan) -> f64 {
        match &self.strategy {
            // A limit of the total error is an average with the layers' own weights.
            Strategy::Sensitivity(measured) if !self.budget.limits_error() => measured.get(&units.name()),
            _ => None,
        }
        .unwrap_or(second.weight)
    }

    /// Returns the chosen items and a lower bound on the minimized quantity.
    fn choose(&self, blocks: Vec<Block>, originals: &[LayerPlan]) -> Result<(Vec<Item>, f64)> {
        let whole = |layer: &LayerPlan| {
            let rank = layer.out_features.min(layer.in_features) as u64;
            let (parameters, multiply_adds) = (layer.parameters_before, layer.multiply_adds_before);
            self.budget.measure(Cost { parameters, multiply_adds, rank }, 0.0).0
        };
        let whole = originals.iter().map(whole).sum::<f64>();
        let limit = match self.budget {
            Budget::Parameters(count) | Budget::TotalRank(count) | Budget::MultiplyAdds(count) => count as f64,
            // If some ranks have exactly this fraction, rounding must not exclude them.
            Budget::ParameterFraction(fraction) | Budget::MultiplyAddFraction(fraction) => {
                (fraction * whole * (1.0 + 8.0 * f64::EPSILON)).floor()
            }
            // The slack allows for the rounding of sums in another order.
            Budget::TotalError(error) => {
                let weight = originals.iter().map(|layer| layer.weight).sum::<f64>();
                error * error * weight * (1.0 - 4.0 * f64::EPSILON * originals.len() as f64)
            }
            Budget::LayerError(_) | Budget::Rank(_) => f64::INFINITY,
        };
        let solve = |blocks| knapsack::solve(blocks, limit).map_err(|least| self.budget.infeasible(least, whole));
        if self.strategy != Strategy::Uniform {
            return solve(blocks);
        }
        // The choices are those of one fraction; the bound is that of all choices.
        let uniform = self.uniform(&blocks, limit);
        let (_, bound) = solve(blocks)?;
        Ok((solve(uniform)?.0, bound))
    }

    /// Leaves one candidate to each layer: that with the largest cost up to a common fraction of
    /// the original layer's, or else that with the smallest cost. The fraction is the largest
    /// within the limit. Layers may still get one `down` or fewer hidden units together.
    fn uniform(&self, blocks: &[Block], limit: f64) -> Vec<Block> {
        let cost = |item: &Item| if self.budget.limits_error() { item.value } else { item.cost };
        let (good, bad) = if self.budget.limits_error() { (1.0, 0.0) } else { (0.0, 1.0) };
        // The last candidate is the original layer.
        let at = |class: &Class, fraction: f64| {
            let affordable = fraction * class.last().map_or(0.0, cost);
            class[class.partition_point(|item| cost(item) <= affordable).saturating_sub(1)]
        };
        let is_within = |fraction| {
            let classes = blocks.iter().flat_map(|block| &block[0]);
            classes.map(|class| at(class, fraction).cost).sum::<f64>() <= limit
        };
        let fraction = if is_within(bad) { bad } else { neighbours(good, bad, is_within).0 };
        let of_one_layer = |class: &Class| class.iter().all(|item| !item.choice.is_joint());
        let restrict = |class: &Class| if of_one_layer(class) { vec![at(class, fraction)] } else { class.clone() };
        let restrict = |block: &Block| block.iter().map(|classes| classes.iter().map(restrict).collect()).collect();
        blocks.iter().map(restrict).collect()
    }

    /// Returns the limits of a layer; `None` for one that stays original.
    fn limits_of(&self, layer: &LayerProfile) -> Option<Limits> {
        let limits = match self.exceptions.get(layer.name()) {
            Some(exception) => exception.map(|(min_rank, max_rank)| Limits { min_rank, max_rank, ..self.limits }),
            None => Some(self.limits),
        };
        limits.filter(|_| layer.max_rank() > 0)
    }

    /// Returns a plan in which the layer stays original, and its candidates by ascending rank, the
    /// original layer last.
    fn candidates(&self, position: usize, layer: &LayerProfile, together: bool) -> Result<(LayerPlan, Class)> {
        let limits = self.limits_of(layer);
        limits.map_or(Ok(()), Limits::validate).map_err(|error| error.in_layer(layer.name()))?;
        let mut ranks = limits.map_or(Vec::new(), |limits| layer.saving_ranks(limits));
        let weight = match &self.strategy {
            _ if ranks.is_empty() && (!together || self.leaves(layer.name())) => 0.0,
            Strategy::Sensitivity(sensitivities) => sensitivities.require(layer.name())?,
            Strategy::OutputMetric => layer.metric_energy()?,
            Strategy::Uniform | Strategy::Energy => 1.0,
        };
        let reason = match limits {
            None => OriginalReason::Untouched,
            Some(_) if layer.is_adapter() => OriginalReason::LeftOut,
            Some(_) if ranks.is_empty() => OriginalReason::NoSavings,
            Some(_) if self.budget.limits_error() => OriginalReason::ErrorTooLarge,
            Some(_) => OriginalReason::Affordable,
        };
        if let Budget::Rank(rank) = self.budget {
            // An adapter of a smaller rank keeps all of it.
            let rank = if layer.is_adapter() { rank.min(layer.facts.full_rank()) } else { rank };
            let saves = limits.is_some() && (layer.is_adapter() || layer.cost(rank).parameters < layer.parameters());
            if saves && rank > layer.max_rank() {
                let (expected, found) = (format!("up to rank {rank}"), format!("up to rank {}", layer.max_rank()));
                return Err(Error::rank(format!("a decomposition {expected}"), found).in_layer(layer.name()));
            }
            // If the limits exclude this rank, the nearest allowed rank replaces it.
            let nearest = ranks.iter().copied().min_by_key(|other| other.abs_diff(rank));
            ranks = Vec::from_iter(nearest.filter(|_| saves));
        }
        let item = |choice, cost, loss| {
            let (cost, value) = self.budget.measure(cost, weight * loss);
            Item { cost, value, layer: position, choice }
        };
        let mut class = Class::with_capacity(ranks.len() + 1);
        for rank in ranks {
            let loss = layer.require_loss(rank)?;
            // An error below the resolution can be as large as the resolution.
            let error = layer.relative_error(rank).unwrap_or_else(|| loss.sqrt()).max(layer.facts.resolution);
            if self.budget.allows(error) {
                class.push(item(Choice::Rank(rank), layer.cost(rank), loss));
            }
        }
        // Without its adapter, a layer has no more parameters and the whole loss.
        let (place, cost, loss) = match layer.is_adapter() {
            true => (0, Cost::default(), 1.0),
            false => (class.len(), layer.cost(0), 0.0),
        };
        if class.is_empty() || self.budget.allows(loss) && !matches!(self.budget, Budget::Rank(_)) {
            class.insert(place, item(Choice::Original, cost, loss));
        }
        Ok((LayerPlan::original(layer, weight, reason), class))
    }

    /// Returns the candidates of a shared `down` that make the group smaller, given its layers and
    /// their weights.
    fn joint(&self, (layer, group): (usize, usize), shared: &SharedInput, members: &[(&LayerProfile, f64)]) -> Class {
        let limits: Option<Vec<Limits>> = members.iter().map(|(layer, _)| self.limits_of(layer)).collect();
        let calls = members[0].0.calls;
        // All layers can use the same outputs of a shared `down` only if they run equally often.
        let together = members.iter().all(|(layer, _)| layer.calls == calls);
        let Some(limits) = limits.filter(|_| together && !matches!(self.budget, Budget::Rank(_))) else {
            return Class::new();
        };
        let loss = |member, rank| shared.at_rank(member, rank).1;
        let allows = |rank| (0..members.len()).all(|member| self.budget.allows(f64::sqrt(loss(member, rank))));
        let ranks = shared.stacked.saving_ranks(Limits::NONE).into_iter();
        let ranks = ranks.filter(|&rank| limits.iter().all(|limits| limits.allow(rank)) && allows(rank));
        let stacked = shared.stacked.clone().with_calls(calls);
        let item = |rank| {
            let losses = members.iter().enumerate().map(|(member, (_, weight))| weight * loss(member, rank));
            let (cost, value) = self.budget.measure(stacked.cost(rank), losses.sum());
            Item { cost, value, layer, choice: Choice::Shared { group, rank } }
        };
        ranks.map(item).collect()
    }

    /// Returns the candidates of fewer hidden units, given the layers around them, the second one
    /// last, and its weight.
    fn fewer_units(
        &self,
        (layer, pair): (usize, usize),
        units: &UnitProfile,
        layers: &[&LayerProfile],
        weight: f64,
    ) -> Class {
        let untouched = layers.iter().any(|layer| self.leaves(layer.name()));
        let Some(second) = layers.last().filter(|_| !untouched && !matches!(self.budget, Budget::Rank(_))) else {
            return Class::new();
        };
        let item = |kept: usize| {
            let cost = layers.iter().map(|layer| units.cost(layer, kept)).sum();
            let (cost, value) = self.budget.measure(cost, weight * units.loss_beside(second, kept));
            Item { cost, value, layer, choice: Choice::HiddenUnits { pair, kept } }
        };
        let counts = units.counts().filter(|&kept| kept < units.units() && kept.is_multiple_of(self.limits.multiple));
        let allowed = counts.filter(|&kept| self.budget.allows(units.relative_error(kept).unwrap_or(f64::INFINITY)));
        allowed.map(item).collect()
    }
}
