//! Sharing one budget among many layers.

use std::collections::{BTreeMap, BTreeSet};

use super::budget::{Budget, Strategy};
use super::candidates::{Candidate, Cost, Limits, candidates};
use super::plan::Plan;
use super::problem::{Goal, Problem};
use super::profile::LayerProfile;
use super::report::{DenseReason, Minimised, NetworkWarning};
use super::shared_profile::SharedProfile;
use super::summary::{Chosen, Summary};
use crate::{Error, Result};

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
/// let plan = Allocator::new(Budget::ParameterShare(0.7))
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

impl Allocator {
    /// Shares this budget uniformly.
    ///
    /// For an example see [`Allocator`].
    pub fn new(budget: Budget) -> Self {
        let (exceptions, untouched) = (BTreeMap::new(), BTreeSet::new());
        Self { budget, strategy: Strategy::Uniform, limits: Limits::NONE, exceptions, untouched }
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
        let goal = self.goal(&problem);
        let (chosen, lower_bound) = match self.budget {
            Budget::Rank(rank) => (self.at_rank(&problem, rank)?, None),
            Budget::LayerError(error) => (problem.within_error(error), None),
            _ => {
                let shared = problem.share(goal, self.strategy == Strategy::Uniform);
                let (chosen, bound) = shared.map_err(|least| self.infeasible(&problem, least))?;
                (chosen, Some(bound))
            }
        };
        let (minimised, reason) = match goal {
            Goal::Loss { .. } => (Minimised::Loss, DenseReason::Affordable),
            Goal::Parameters { .. } => (Minimised::Parameters, DenseReason::TooMuchError),
        };
        let summary = Summary { problem: &problem, chosen, lower_bound, minimised, reason };
        let by_strategy = !matches!(self.budget, Budget::Rank(_) | Budget::LayerError(_));
        let warnings = match self.strategy {
            Strategy::Energy if by_strategy => vec![NetworkWarning::EnergyAlone],
            _ => Vec::new(),
        };
        let words = (self.budget.to_string(), self.strategy.to_string());
        Ok(Plan { report: summary.report(words, warnings, self.strategy != Strategy::Uniform) })
    }

    fn problem<'a>(&self, layers: &'a [LayerProfile], groups: &'a [SharedProfile]) -> Result<Problem<'a>> {
        self.budget.validate()?;
        if layers.is_empty() {
            return Err(Error::empty("the layers"));
        }
        self.limits.validate()?;
        let index = names(layers)?;
        for name in self.exceptions.keys().chain(&self.untouched) {
            if !index.contains_key(name.as_str()) {
                let expected = "limits for layers of the network".into();
                return Err(Error::layers(expected, format!("some for `{name}`")));
            }
        }
        let limits = |layer: &LayerProfile| match self.exceptions.get(layer.name()) {
            Some(&(min_rank, max_rank)) => Limits { min_rank, max_rank, ..self.limits },
            None => self.limits,
        };
        let mut all = Vec::with_capacity(layers.len());
        let mut weights = Vec::with_capacity(layers.len());
        let grouped: BTreeSet<&str> = groups.iter().flat_map(SharedProfile::names).collect();
        let untouched: Vec<bool> =
            layers.iter().map(|layer| layer.max_rank() == 0 || self.untouched.contains(layer.name())).collect();
        for (layer, untouched) in layers.iter().zip(&untouched) {
            limits(layer).validate().map_err(|source| in_layer(layer, source))?;
            let its = if *untouched { vec![Candidate::dense(layer)] } else { candidates(layer, limits(layer)) };
            let compressible = its.len() > 1 || (!untouched && grouped.contains(layer.name()));
            weights.push(self.weight(layer, compressible)?);
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
                    return Err(Error::layers(expected, format!("`{name}` in a group")));
                };
                group.check(layer)?;
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
                Error::layers(expected, format!("none for `{}`", layer.name()))
            }),
            _ => Ok(1.0),
        }
    }

    fn goal(&self, problem: &Problem<'_>) -> Goal {
        // The share that some ranks take must buy them: not lose them to rounding.
        let share = |share: f64, cost| (share * problem.dense_cost(cost) * (1.0 + 8.0 * f64::EPSILON)).floor();
        let (cost, limit) = match self.budget {
            Budget::Parameters(limit) => (Cost::Parameters, limit as f64),
            Budget::ParameterShare(kept) => (Cost::Parameters, share(kept, Cost::Parameters)),
            Budget::MultiplyAdds(limit) => (Cost::MultiplyAdds, limit as f64),
            Budget::MultiplyAddShare(kept) => (Cost::MultiplyAdds, share(kept, Cost::MultiplyAdds)),
            Budget::Rank(_) => (Cost::Parameters, f64::INFINITY),
            Budget::TotalError(error) => {
                let weight = problem.weights.iter().sum::<f64>();
                // Sums come out differently in another order.
                let slack = 1.0 - 4.0 * f64::EPSILON * problem.layers.len() as f64;
                return Goal::Parameters { loss: error * error * weight * slack };
            }
            Budget::LayerError(_) => return Goal::Parameters { loss: f64::INFINITY },
        };
        Goal::Loss { cost, limit }
    }

    fn infeasible(&self, problem: &Problem<'_>, least: f64) -> Error {
        let share = |cost| (least / problem.dense_cost(cost) * 1e6).ceil() / 1e6;
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
        Error::out_of_range(parameter, expected, found)
    }

    /// This rank for every layer that it makes smaller.
    fn at_rank(&self, problem: &Problem<'_>, rank: usize) -> Result<Vec<Chosen>> {
        if !rank.is_multiple_of(self.limits.multiple) {
            let expected = format!("a rank that is a multiple of {}", self.limits.multiple);
            return Err(Error::rank(expected, rank.to_string()));
        }
        let mut chosen = Vec::with_capacity(problem.layers.len());
        for ((layer, candidates), untouched) in problem.layers.iter().zip(&problem.candidates).zip(&problem.untouched) {
            let (each, fixed) = layer.factor_parameters();
            let saves = (rank as u64).saturating_mul(each).saturating_add(fixed) < layer.parameters();
            if !untouched && saves && rank > layer.max_rank() {
                let expected = format!("a decomposition up to rank {rank}");
                let found = format!("one up to rank {}", layer.max_rank());
                return Err(in_layer(layer, Error::rank(expected, found)));
            }
            // Limits that rule this rank out: the nearest that they allow.
            let nearest = candidates.iter().filter(|candidate| candidate.rank > 0 && saves);
            let nearest = nearest.min_by_key(|candidate| candidate.rank.abs_diff(rank));
            chosen.extend(nearest.or(candidates.last()).copied().map(Chosen::Alone));
        }
        Ok(chosen)
    }
}

/// The index of each name, which must be of one layer only.
pub(super) fn names<'a>(layers: &'a [LayerProfile]) -> Result<BTreeMap<&'a str, usize>> {
    names_of(layers.iter().map(LayerProfile::name))
}

pub(super) fn names_of<'a>(names: impl Iterator<Item = &'a str>) -> Result<BTreeMap<&'a str, usize>> {
    let mut index = BTreeMap::new();
    for (position, name) in names.enumerate() {
        if index.insert(name, position).is_some() {
            let expected = "layers of different names".into();
            return Err(Error::layers(expected, format!("`{name}` twice")));
        }
    }
    Ok(index)
}

fn in_layer(layer: &LayerProfile, source: Error) -> Error {
    Error::InLayer { layer: layer.name().into(), source: Box::new(source) }
}
