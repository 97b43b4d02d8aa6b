//! The plan: the choice for each layer, with its cost, its predicted error and its warnings.

use core::fmt;
use std::collections::BTreeMap;

use super::cost::Cost;
use super::layer_profile::{self, LayerProfile};
use crate::error::during;
use crate::{Report, Result, Warning};

/// The choice for a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Choice {
    /// The layer stays original; an adapter is left out.
    Original,
    /// The layer is compressed to this rank.
    Rank(usize),
    /// The layer is compressed together with all layers of its shared input.
    Shared {
        /// The index of the group in the arguments of
        /// [`Allocator::allocate_shared`](super::Allocator::allocate_shared).
        group: usize,
        /// The rank of the shared `down`.
        rank: usize,
    },
    /// Some of the hidden units after or before the layer are kept.
    HiddenUnits {
        /// The index of the pair of layers in the arguments of
        /// [`Allocator::allocate_joint`](super::Allocator::allocate_joint).
        pair: usize,
        /// The number of kept units.
        kept: usize,
    },
}

impl Choice {
    /// Whether the choice is one for several layers together.
    pub(super) fn is_joint(self) -> bool {
        matches!(self, Self::Shared { .. } | Self::HiddenUnits { .. })
    }
}

/// The reason why a layer stays original.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum OriginalReason {
    /// The caller excluded the layer from compression.
    Untouched,
    /// No rank that is allowed and was solved for makes the layer smaller.
    NoSavings,
    /// Every rank that makes the layer smaller exceeds the requested error.
    ErrorTooLarge,
    /// The budget allows the original layer, which is its best candidate.
    Affordable,
    /// The caller gave no rank for the layer.
    Chosen,
    /// An adapter is left out, since its change is not worth its cost.
    LeftOut,
}

impl fmt::Display for OriginalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Untouched => "untouched",
            Self::NoSavings => "no rank allowed saves parameters",
            Self::ErrorTooLarge => "the error of every rank is too large",
            Self::Affordable => "within the budget",
            Self::Chosen => "chosen by the caller",
            Self::LeftOut => "left out: its change is too small for the budget",
        })
    }
}

/// A budget allocated to the layers of a network, and the report on it.
///
/// ```
/// use dalr::network::{Allocator, Budget, Choice, LayerProfile, Strategy};
///
/// # fn main() -> dalr::Result<()> {
/// // The eigenvalues of the first layer are all equal; those of the second fall fast, so that it has less to lose.
/// let flat = LayerProfile::from_energies("flat", (9, 9), false, &[1.0; 9], 9.0)?;
/// let energies: Vec<f64> = (0..9).map(|i| 0.25_f64.powi(i)).collect();
/// let steep = LayerProfile::from_energies("steep", (9, 9), false, &energies, energies.iter().sum())?;
/// let allocator = Allocator::new(Budget::Parameters(6 * 18)).with_strategy(Strategy::Energy);
/// let plan = allocator.allocate(&[flat, steep])?;
/// println!("{plan}");
/// // The flat layer keeps its 81 parameters: rank 4, the largest that saves any, loses more than half of its energy.
/// assert_eq!((plan.layers[0].choice, plan.layers[1].choice), (Choice::Original, Choice::Rank(1)));
/// assert_eq!((plan.parameters_before(), plan.parameters_after()), (162, 81 + 18));
/// assert!(plan.lower_bound <= plan.objective && plan.gap() == plan.objective - plan.lower_bound);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Plan {
    /// The budget, in words.
    pub budget: String,
    /// The strategy: `uniform`, `energy` or `sensitivity`; `chosen` if the caller gave the ranks.
    pub strategy: String,
    /// Whether the objective is the number of parameters, as for a budget that limits an error.
    pub minimizes_parameters: bool,
    /// The quantity that was minimized: the sum of the layers' losses, each multiplied by its
    /// weight, or the parameters.
    pub objective: f64,
    /// A bound from the Lagrangian relaxation: no allocation within the budget has a smaller
    /// objective.
    pub lower_bound: f64,
    /// The layers, in the order in which they were given.
    pub layers: Vec<LayerPlan>,
    /// Warnings about the plan; those about single layers are with the layers.
    pub warnings: Vec<Warning>,
}

/// The choice for one layer, with its cost, loss and warnings.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct LayerPlan {
    /// Name of the layer.
    pub name: String,
    /// Number of outputs.
    pub out_features: usize,
    /// Number of inputs.
    pub in_features: usize,
    /// The choice.
    pub choice: Choice,
    /// The reason why the layer stays original; `None` if it does not.
    pub reason: Option<OriginalReason>,
    /// The weight of its loss in the objective.
    pub weight: f64,
    /// Parameters of the original layer.
    pub parameters_before: u64,
    /// Parameters of the layer as planned. A shared `down` counts with the first layer of its
    /// group.
    pub parameters_after: u64,
    /// Multiply–adds of the original layer for one sample.
    pub multiply_adds_before: u64,
    /// Multiply–adds of the layer as planned. A shared `down` counts with the first layer of its
    /// group.
    pub multiply_adds_after: u64,
    /// The loss, a squared relative error, not multiplied by the weight.
    pub loss: f64,
    /// The predicted error, as [`Report::relative_error`]. It is 0 for an original layer and for one
    /// before hidden units, 1 for an adapter that is left out, the root of the loss for a layer in a
    /// group, and `None` without samples.
    pub relative_error: Option<f64>,
    /// The report on the layer compressed on its own; `None` for an original layer, and for one
    /// that is compressed together with others.
    pub report: Option<Report>,
    /// Warnings about the layer.
    pub warnings: Vec<Warning>,
}

impl Plan {
    /// Creates the plan for ranks that the caller chose, or that a
    /// [`JointSearch`](super::JointSearch) found. Layers without a rank stay original. All layers
    /// have the same weight, and the lower bound is the objective.
    ///
    /// # Errors
    ///
    /// No layers, or two of the same name; a name that no layer has; a rank that was not solved
    /// for.
    ///
    /// ```
    /// use dalr::network::{LayerProfile, Plan};
    /// # fn main() -> dalr::Result<()> {
    /// let fc1 = LayerProfile::from_energies("fc1", (8, 8), true, &[9.0, 4.0, 1.0], 16.0)?;
    /// let fc2 = LayerProfile::from_energies("fc2", (8, 8), true, &[9.0, 4.0, 1.0], 16.0)?;
    /// let plan = Plan::of_ranks(&[fc1, fc2], &[("fc1".to_owned(), 2)].into())?;
    /// assert_eq!((plan.parameters_before(), plan.parameters_after()), (144, 32 + 8 + 72));
    /// # Ok(())
    /// # }
    /// ```
    pub fn of_ranks(layers: &[LayerProfile], ranks: &BTreeMap<String, usize>) -> Result<Self> {
        during("Plan::of_ranks", || {
            layer_profile::require_known(&layer_profile::positions(layers)?, ranks.keys(), "ranks")?;
            let plan = |layer: &LayerProfile| {
                let (weight, reason) = match layer.max_rank() {
                    0 => (0.0, OriginalReason::Untouched),
                    _ => (1.0, OriginalReason::Chosen),
                };
                let mut plan = LayerPlan::original(layer, weight, reason);
                if let Some(&rank) = ranks.get(layer.name()) {
                    plan.compress(layer, rank)?;
                }
                Ok(plan)
            };
            let layers = layers.iter().map(plan).collect::<Result<_>>()?;
            Ok(Self::new(("given ranks".into(), "chosen".into()), false, layers, None))
        })
    }

    /// Computes the objective, and adds the warnings that every plan can have.
    pub(super) fn new(
        (budget, strategy): (String, String),
        minimizes_parameters: bool,
        layers: Vec<LayerPlan>,
        lower_bound: Option<f64>,
    ) -> Self {
        let part = |layer: &LayerPlan| match minimizes_parameters {
            true => layer.parameters_after as f64,
            false => layer.weight * layer.loss,
        };
        let objective = layers.iter().map(part).sum();
        // By rounding, the bound could be negative or exceed the objective.
        let lower_bound = lower_bound.map_or(objective, |bound| bound.max(0.0).min(objective));
        let nothing = layers.iter().all(|layer| layer.choice == Choice::Original);
        let warnings = Vec::from_iter(nothing.then_some(Warning::NothingCompressed));
        Self { budget, strategy, minimizes_parameters, objective, lower_bound, layers, warnings }
    }

    /// Returns the choice for the layer of this name.
    pub fn choice(&self, layer: &str) -> Option<Choice> {
        self.layer(layer).map(|layer| layer.choice)
    }

    pub(super) fn layer(&self, name: &str) -> Option<&LayerPlan> {
        self.layers.iter().find(|layer| layer.name == name)
    }

    /// Returns the ranks of the layers that are compressed on their own, by name.
    pub fn ranks(&self) -> BTreeMap<String, usize> {
        let rank = |layer: &LayerPlan| match layer.choice {
            Choice::Rank(rank) => Some((layer.name.clone(), rank)),
            _ => None,
        };
        self.layers.iter().filter_map(rank).collect()
    }

    /// Returns the number of kept hidden units of every pair of layers that gets fewer, by the index
    /// of the pair in the arguments of
    /// [`Allocator::allocate_joint`](super::Allocator::allocate_joint).
    pub fn hidden_units(&self) -> BTreeMap<usize, usize> {
        let units = |layer: &LayerPlan| match layer.choice {
            Choice::HiddenUnits { pair, kept } => Some((pair, kept)),
            _ => None,
        };
        self.layers.iter().filter_map(units).collect()
    }

    /// Returns an upper bound on the improvement of the objective by another allocation: the
    /// objective minus the lower bound.
    pub fn gap(&self) -> f64 {
        // Infinite losses would give NaN, which `max` ignores.
        (self.objective - self.lower_bound).max(0.0)
    }

    /// Returns the parameters of the original layers, biases included.
    pub fn parameters_before(&self) -> u64 {
        self.layers.iter().map(|layer| layer.parameters_before).sum()
    }

    /// Returns the parameters of the layers as planned, biases included.
    pub fn parameters_after(&self) -> u64 {
        self.layers.iter().map(|layer| layer.parameters_after).sum()
    }

    /// Returns the multiply–adds of the original layers for one sample.
    pub fn multiply_adds_before(&self) -> u64 {
        self.layers.iter().map(|layer| layer.multiply_adds_before).sum()
    }

    /// Returns the multiply–adds of the layers as planned for one sample.
    pub fn multiply_adds_after(&self) -> u64 {
        self.layers.iter().map(|layer| layer.multiply_adds_after).sum()
    }

    /// Returns the root mean square of the layers' predicted errors, weighted as in the objective;
    /// `None` if all weights are zero. [`Budget::TotalError`](super::Budget::TotalError) limits it.
    pub fn total_error(&self) -> Option<f64> {
        let weight = self.layers.iter().map(|layer| layer.weight).sum::<f64>();
        let loss = self.layers.iter().map(|layer| layer.weight * layer.loss).sum::<f64>();
        (weight > 0.0).then(|| (loss / weight).sqrt())
    }
}

impl LayerPlan {
    /// Returns the plan of a layer that stays original. An adapter is then left out.
    pub(super) fn original(layer: &LayerProfile, weight: f64, reason: OriginalReason) -> Self {
        let Cost { parameters, multiply_adds, .. } = layer.cost(0);
        let (kept, loss) = if layer.is_adapter() { (0, 1.0) } else { (1, 0.0) };
        Self {
            name: layer.name().into(),
            out_features: layer.out_features(),
            in_features: layer.in_features(),
            choice: Choice::Original,
            reason: Some(reason),
            weight,
            parameters_before: parameters,
            parameters_after: kept * parameters,
            multiply_adds_before: multiply_adds,
            multiply_adds_after: kept * multiply_adds,
            loss,
            relative_error: Some(loss),
            report: None,
            warnings: Vec::new(),
        }
    }

    /// Changes the choice to this rank.
    pub(super) fn compress(&mut self, layer: &LayerProfile, rank: usize) -> Result<()> {
        (self.loss, self.relative_error) = (layer.require_loss(rank)?, layer.relative_error(rank));
        (self.choice, self.reason) = (Choice::Rank(rank), None);
        self.cost(layer.cost(rank));
        self.report = layer.report(rank);
        self.warnings = self.report.as_ref().map_or(Vec::new(), |report| report.warnings.clone());
        Ok(())
    }

    /// Changes the choice to one that concerns several layers, given the cost and the loss of this
    /// layer.
    pub(super) fn share(&mut self, choice: Choice, cost: Cost, loss: f64, warnings: &[Warning]) {
        (self.choice, self.reason, self.warnings) = (choice, None, warnings.to_vec());
        self.cost(cost);
        (self.loss, self.relative_error) = (loss, Some(loss.sqrt()));
    }

    fn cost(&mut self, cost: Cost) {
        (self.parameters_after, self.multiply_adds_after) = (cost.parameters, cost.multiply_adds);
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let compressed = self.layers.iter().filter(|layer| layer.choice != Choice::Original).count();
        writeln!(f, "{compressed} of {} layers compressed to {}, {}", self.layers.len(), self.budget, self.strategy)?;
        let mut line = |name: &str, before: u64, after: u64| {
            let percent = 100.0 * after as f64 / (before as f64).max(1.0);
            writeln!(f, "  {name:<14}  {before} → {after} ({percent:.1} %)")
        };
        line("parameters", self.parameters_before(), self.parameters_after())?;
        line("multiply–adds", self.multiply_adds_before(), self.multiply_adds_after())?;
        if let Some(error) = self.total_error() {
            writeln!(f, "  total error     {error:.4e}")?;
        }
        let name = if self.minimizes_parameters { "parameters" } else { "weighted loss" };
        let (objective, bound) = (self.objective, self.lower_bound);
        write!(f, "  objective       {objective:.6} ({name}), lower bound {bound:.6}, gap {:.1e}", self.gap())?;
        for warning in &self.warnings {
            write!(f, "\n  warning: {warning}")?;
        }
        let width = self.layers.iter().map(|layer| layer.name.chars().count()).max().unwrap_or(0);
        for layer in &self.layers {
            write!(f, "\n  {:<width$}  {layer}", layer.name)?;
        }
        Ok(())
    }
}

impl fmt::Display for LayerPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (m, n) = (self.out_features, self.in_features);
        match self.choice {
            Choice::Original => write!(f, "{n} → {m}, original")?,
            Choice::Rank(rank) => write!(f, "{n} → {rank} → {m}")?,
            Choice::Shared { group, rank } => write!(f, "{n} → {rank} (shared, group {group}) → {m}")?,
            Choice::HiddenUnits { pair, kept } => write!(f, "{n} → {m}, {kept} hidden units (pair {pair})")?,
        }
        if let Some(reason) = self.reason {
            write!(f, ": {reason}")?;
        } else if let Some(error) = self.relative_error {
            write!(f, ", relative error {error:.4e}")?;
        }
        for warning in &self.warnings {
            write!(f, "\n    warning: {warning}")?;
        }
        Ok(())
    }
}
