//! What becomes of each layer.

use super::NetworkReport;

/// What becomes of a layer. For an example see [`Plan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Choice {
    /// It stays as it is.
    Dense,
    /// It is compressed to this rank.
    Rank(usize),
    /// It is compressed together with all that reads the same input.
    Shared {
        /// The group, an index into those given to [`Allocator::allocate_shared`](super::Allocator::allocate_shared).
        group: usize,
        /// The rank of the `down` they share.
        rank: usize,
    },
}

/// A budget shared among layers, how good that is, and how much better another sharing could be.
///
/// ```
/// use dalr::network::{Allocator, Budget, Choice, LayerProfile, Strategy};
/// use dalr::{ActivationStats, Linear, LowRankCompressor, TruncatedSvd};
/// use faer::Mat;
///
/// # fn main() -> dalr::Result<()> {
/// // Energies of 1, 1, 1, … and of 64, 16, 4, …: the second layer has less to lose.
/// let mut profiles = Vec::new();
/// for (name, ratio) in [("flat", 1.0), ("steep", 0.5)] {
///     let weight = Mat::from_fn(9, 9, |i, j| if i == j { 8.0 * f64::powi(ratio, i as i32) } else { 0.0 });
///     let layer = Linear::new(weight, None)?;
///     profiles.push(LayerProfile::new(name, &TruncatedSvd::new().decompose(&layer, &ActivationStats::new(9), 9)?));
/// }
/// let allocator = Allocator::new(Budget::Parameters(6 * 18)).with_strategy(Strategy::Energy);
/// let plan = allocator.allocate(&profiles)?;
/// // The flat one keeps its 81 parameters, since rank 4, the largest that saves any, would lose more than half of its energy.
/// assert_eq!(plan.choices(), [Choice::Dense, Choice::Rank(1)]);
/// assert!(plan.lower_bound() <= plan.objective() && plan.gap() == plan.objective() - plan.lower_bound());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Plan {
    pub(super) report: NetworkReport,
}

impl Plan {
    /// What becomes of each layer, in the order in which they were given. For an example see [`Plan`].
    pub fn choices(&self) -> Vec<Choice> {
        self.report.layers().iter().map(|layer| layer.choice()).collect()
    }

    /// What becomes of the layer of this name. For an example see [`Allocator`](super::Allocator).
    pub fn choice(&self, layer: &str) -> Option<Choice> {
        self.report.layers().iter().find(|other| other.name() == layer).map(|layer| layer.choice())
    }

    /// What was made small: the sum of losses, each times its layer's weight (1 for [`Uniform`](super::Strategy::Uniform) and
    /// [`Energy`](super::Strategy::Energy)); the parameters where the budget is an error. For an example see [`Plan`].
    pub fn objective(&self) -> f64 {
        self.report.objective()
    }

    /// No choice within the budget has a smaller [`objective`](Self::objective): the bound of the Lagrangian relaxation. For an example see
    /// [`Plan`].
    pub fn lower_bound(&self) -> f64 {
        self.report.lower_bound()
    }

    /// By how much another sharing could be better, at most: the objective less the lower bound. For an example see [`Plan`].
    pub fn gap(&self) -> f64 {
        self.report.gap()
    }

    /// What becomes of each layer and of the network, in numbers. For an example see [`NetworkReport`].
    pub fn report(&self) -> &NetworkReport {
        &self.report
    }
}
