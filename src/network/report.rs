//! The fine print of a plan: cost, predicted error and warnings, by layer and in all.

use core::fmt;

use super::Choice;
use super::allocator::names;
use super::candidates::{Candidate, Limits, candidates};
use super::problem::Problem;
use super::profile::LayerProfile;
use super::summary::{Chosen, Summary};
use crate::error::during;
use crate::{Error, Report, Result, Warning};

/// What becomes of a network: parameters, multiply–adds, predicted errors and warnings.
///
/// ```
/// use dalr::network::{Allocator, Budget, LayerProfile};
/// use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor};
/// use faer::Mat;
///
/// # fn main() -> dalr::Result<()> {
/// let layer = Linear::new(Mat::from_fn(12, 10, |i, j| ((i * 5 + j * j * 3) % 7) as f64), None)?;
/// let mut stats = ActivationStats::new(10);
/// stats.update(Mat::from_fn(50, 10, |i, j| ((i * 11 + j * 7) % 13) as f64).as_ref())?;
/// let fc1 = LayerProfile::new("fc1", &Dalr::new().decompose(&layer, &stats, 10)?);
/// let head = LayerProfile::dense("head", 4, 12, true)?;
/// let plan = Allocator::new(Budget::ParameterShare(0.7)).allocate(&[fc1, head])?;
/// let report = plan.report();
/// println!("{report}");
/// assert_eq!((report.parameters_before(), report.multiply_adds_before()), (120 + 52, 120 + 48));
/// assert!(report.parameters_after() as f64 <= 0.7 * 172.0);
/// assert!(report.multiply_adds_after() < report.multiply_adds_before());
/// assert_eq!((report.objective(), report.lower_bound(), report.gap()), (plan.objective(), plan.lower_bound(), plan.gap()));
///
/// // Each layer has a `LayerReport`, in the order given.
/// let [fc1, head] = report.layers() else { unreachable!() };
/// assert_eq!((fc1.name(), fc1.in_features(), fc1.out_features(), fc1.weight()), ("fc1", 10, 12, 1.0));
/// assert!(fc1.parameters_after() < fc1.parameters_before() && fc1.multiply_adds_after() < fc1.multiply_adds_before());
/// assert!(fc1.loss() > 0.0 && fc1.report().is_some_and(|report| report.warnings() == fc1.warnings()));
/// assert_eq!((head.relative_error(), head.report()), (Some(0.0), None));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct NetworkReport {
    pub(super) budget: String,
    pub(super) strategy: String,
    pub(super) objective: f64,
    pub(super) lower_bound: f64,
    pub(super) minimised: Minimised,
    pub(super) layers: Vec<LayerReport>,
    pub(super) warnings: Vec<NetworkWarning>,
}

/// What the objective counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(super) enum Minimised {
    Loss,
    Parameters,
}

/// What becomes of a layer. For an example see [`NetworkReport`].
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LayerReport {
    pub(super) name: String,
    pub(super) shape: (usize, usize),
    pub(super) choice: Choice,
    pub(super) reason: Option<DenseReason>,
    pub(super) weight: f64,
    pub(super) parameters: (u64, u64),
    pub(super) multiply_adds: (u64, u64),
    pub(super) loss: f64,
    pub(super) relative_error: Option<f64>,
    pub(super) report: Option<Report>,
    pub(super) warnings: Vec<Warning>,
}

/// Why a layer stays as it is. For an example see [`LayerReport::reason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum DenseReason {
    /// It was to be left alone.
    Untouched,
    /// No rank that is allowed and was solved for makes it smaller.
    DoesNotPay,
    /// No smaller one is within the error asked for.
    TooMuchError,
    /// The budget pays for it, and is better spent here than elsewhere.
    Affordable,
    /// It was chosen so, by the caller or by a search.
    Chosen,
}

impl fmt::Display for DenseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Untouched => "untouched",
            Self::DoesNotPay => "no rank allowed saves anything",
            Self::TooMuchError => "no rank loses so little",
            Self::Affordable => "the budget pays for it",
            Self::Chosen => "so chosen",
        })
    }
}

/// A reason to look twice at a plan. For an example see [`NetworkReport::warnings`].
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum NetworkWarning {
    /// Energies say nothing of how much the network needs each layer; sharing by them is often worse than uniform.
    EnergyAlone,
    /// Another sharing could be better by this share of the objective.
    Gap {
        /// The gap over the objective.
        share: f64,
    },
    /// No layer is compressed.
    NothingCompressed,
}

impl fmt::Display for NetworkWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EnergyAlone => {
                write!(f, "shared by energy alone, which is often worse than uniform; measure sensitivities")
            }
            Self::Gap { share } => {
                write!(f, "another sharing could be better by up to {:.1} % of the objective", 100.0 * share)
            }
            Self::NothingCompressed => write!(f, "no layer is compressed"),
        }
    }
}

impl NetworkReport {
    /// The report on choices that were made elsewhere: by a [`JointSearch`](super::JointSearch), or by hand. All layers weigh the same in its objective,
    /// which is its own lower bound.
    ///
    /// # Errors
    ///
    /// No layers or two of the same name; another number of choices; a rank that was not solved for; [`Choice::Shared`], which only an
    /// [`Allocator`](super::Allocator) can tell apart.
    ///
    /// ```
    /// use dalr::network::{Choice, LayerProfile, NetworkReport};
    /// # fn main() -> dalr::Result<()> {
    /// let fc1 = LayerProfile::from_energies("fc1", (8, 8), true, &[9.0, 4.0, 1.0], 16.0)?;
    /// let fc2 = LayerProfile::from_energies("fc2", (8, 8), true, &[9.0, 4.0, 1.0], 16.0)?;
    /// let report = NetworkReport::of_choices(&[fc1, fc2], &[Choice::Rank(2), Choice::Dense])?;
    /// assert_eq!((report.parameters_before(), report.parameters_after()), (144, 32 + 8 + 72));
    /// # Ok(())
    /// # }
    /// ```
    pub fn of_choices(layers: &[LayerProfile], choices: &[Choice]) -> Result<Self> {
        during("NetworkReport::of_choices", || {
            if layers.is_empty() {
                return Err(Error::empty("the layers"));
            }
            names(layers)?;
            if choices.len() != layers.len() {
                let (what, expected, found) = ("choices, one per layer", layers.len(), choices.len());
                return Err(Error::shape(what, expected, found));
            }
            let mut chosen = Vec::with_capacity(layers.len());
            for (layer, choice) in layers.iter().zip(choices) {
                let candidate = match *choice {
                    Choice::Dense => Some(Candidate::dense(layer)),
                    Choice::Rank(rank) => Candidate::of_rank(layer, rank),
                    Choice::Shared { .. } => None,
                };
                let Some(candidate) = candidate else {
                    let expected = format!("to stay dense, or a rank from 1 to the {} solved for", layer.max_rank());
                    let source = Error::rank(expected, format!("{choice:?}"));
                    return Err(Error::InLayer { layer: layer.name().into(), source: Box::new(source) });
                };
                chosen.push(Chosen::Alone(candidate));
            }
            let all = layers.iter().map(|layer| candidates(layer, Limits::NONE)).collect();
            let weights = layers.iter().map(|layer| if layer.max_rank() > 0 { 1.0 } else { 0.0 }).collect();
            let untouched = layers.iter().map(|layer| layer.max_rank() == 0).collect();
            let problem = Problem { layers, groups: &[], candidates: all, weights, untouched, joint: Vec::new() };
            let (minimised, reason) = (Minimised::Loss, DenseReason::Chosen);
            let summary = Summary { problem: &problem, chosen, lower_bound: None, minimised, reason };
            Ok(summary.report(("ranks chosen".into(), "one by one".into()), Vec::new(), false))
        })
    }

    /// The layers, in the order in which they were given. For an example see [`NetworkReport`].
    pub fn layers(&self) -> &[LayerReport] {
        &self.layers
    }

    /// What was asked for, in words. For an example see [`warnings`](Self::warnings).
    pub fn budget(&self) -> &str {
        &self.budget
    }

    /// How the budget was shared: `uniform`, `energy` or `sensitivity`; `one by one` where the choices were given. For an example see [`warnings`](Self::warnings).
    pub fn strategy(&self) -> &str {
        &self.strategy
    }

    /// Parameters of the layers as they were, biases included. For an example see [`NetworkReport`].
    pub fn parameters_before(&self) -> u64 {
        self.layers.iter().map(|layer| layer.parameters.0).sum()
    }

    /// Parameters of the layers as they will be, biases included. For an example see [`NetworkReport`].
    pub fn parameters_after(&self) -> u64 {
        self.layers.iter().map(|layer| layer.parameters.1).sum()
    }

    /// Multiply–adds of the layers as they were, for one sample. For an example see [`NetworkReport`].
    pub fn multiply_adds_before(&self) -> u64 {
        self.layers.iter().map(|layer| layer.multiply_adds.0).sum()
    }

    /// Multiply–adds of the layers as they will be, for one sample. For an example see [`NetworkReport`].
    pub fn multiply_adds_after(&self) -> u64 {
        self.layers.iter().map(|layer| layer.multiply_adds.1).sum()
    }

    /// As [`Plan::objective`](super::Plan::objective). For an example see [`NetworkReport`].
    pub fn objective(&self) -> f64 {
        self.objective
    }

    /// As [`Plan::lower_bound`](super::Plan::lower_bound). For an example see [`NetworkReport`].
    pub fn lower_bound(&self) -> f64 {
        self.lower_bound
    }

    /// As [`Plan::gap`](super::Plan::gap). For an example see [`NetworkReport`].
    pub fn gap(&self) -> f64 {
        self.objective - self.lower_bound
    }

    /// The root mean square of the layers' predicted relative errors, each square weighted as in the objective; `None` where all weights are
    /// zero. This is what [`Budget::TotalError`](super::Budget::TotalError) bounds.
    ///
    /// For an example see [`warnings`](Self::warnings).
    pub fn total_error(&self) -> Option<f64> {
        let weight = self.layers.iter().map(|layer| layer.weight).sum::<f64>();
        let loss = self.layers.iter().map(|layer| layer.weight * layer.loss).sum::<f64>();
        (weight > 0.0).then(|| (loss / weight).sqrt())
    }

    /// What to be wary of; empty when all is well. Those of single layers are with the layers.
    ///
    /// ```
    /// # use dalr::network::{Allocator, Budget, LayerProfile, NetworkWarning};
    /// # fn main() -> dalr::Result<()> {
    /// let head = LayerProfile::dense("head", 4, 12, true)?;
    /// let plan = Allocator::new(Budget::ParameterShare(1.0)).allocate(&[head])?;
    /// let report = plan.report();
    /// assert_eq!((report.strategy(), report.budget()), ("uniform", "100 % of the parameters"));
    /// assert_eq!(report.warnings(), [NetworkWarning::NothingCompressed]);
    /// assert_eq!(report.total_error(), None);
    /// # Ok(())
    /// # }
    /// ```
    pub fn warnings(&self) -> &[NetworkWarning] {
        &self.warnings
    }
}

impl LayerReport {
    /// Name of the layer. For an example see [`NetworkReport`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What becomes of it. For an example see [`reason`](Self::reason).
    pub fn choice(&self) -> Choice {
        self.choice
    }

    /// Why it stays as it is; `None` if it does not.
    ///
    /// ```
    /// # use dalr::network::{Allocator, Budget, Choice, DenseReason, LayerProfile};
    /// # fn main() -> dalr::Result<()> {
    /// let head = LayerProfile::dense("head", 4, 12, true)?;
    /// let plan = Allocator::new(Budget::ParameterShare(1.0)).allocate(&[head])?;
    /// let head = &plan.report().layers()[0];
    /// assert_eq!((head.choice(), head.reason()), (Choice::Dense, Some(DenseReason::Untouched)));
    /// # Ok(())
    /// # }
    /// ```
    pub fn reason(&self) -> Option<DenseReason> {
        self.reason
    }

    /// Number of outputs. For an example see [`NetworkReport`].
    pub fn out_features(&self) -> usize {
        self.shape.0
    }

    /// Number of inputs. For an example see [`NetworkReport`].
    pub fn in_features(&self) -> usize {
        self.shape.1
    }

    /// The weight of its loss in the objective. For an example see [`NetworkReport`].
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// Parameters of the dense layer. For an example see [`NetworkReport`].
    pub fn parameters_before(&self) -> u64 {
        self.parameters.0
    }

    /// Parameters it will have; a shared `down` counts with the first layer of its group. For an example see [`NetworkReport`].
    pub fn parameters_after(&self) -> u64 {
        self.parameters.1
    }

    /// Multiply–adds of the dense layer for one sample. For an example see [`NetworkReport`].
    pub fn multiply_adds_before(&self) -> u64 {
        self.multiply_adds.0
    }

    /// Multiply–adds it will take; a shared `down` counts with the first layer of its group. For an example see [`NetworkReport`].
    pub fn multiply_adds_after(&self) -> u64 {
        self.multiply_adds.1
    }

    /// What the objective counts, before its weight: a squared relative error. For an example see [`NetworkReport`].
    pub fn loss(&self) -> f64 {
        self.loss
    }

    /// Predicted error, as [`Report::relative_error`]; 0 for a dense layer, the root of [`loss`](Self::loss) for one of a group. `None`
    /// without samples.
    ///
    /// For an example see [`NetworkReport`].
    pub fn relative_error(&self) -> Option<f64> {
        self.relative_error
    }

    /// The report on the layer compressed on its own; `None` for a dense layer and for one of a group. For an example see
    /// [`NetworkReport`].
    pub fn report(&self) -> Option<&Report> {
        self.report.as_ref()
    }

    /// What to be wary of. For an example see [`NetworkReport`].
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }
}

impl fmt::Display for NetworkReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let compressed = self.layers.iter().filter(|layer| layer.choice != Choice::Dense).count();
        writeln!(f, "{compressed} of {} layers compressed to {}, {}", self.layers.len(), self.budget, self.strategy)?;
        let mut line = |name: &str, before: u64, after: u64| {
            let share = 100.0 * after as f64 / (before as f64).max(1.0);
            writeln!(f, "  {name:<14}  {before} → {after} ({share:.1} %)")
        };
        line("parameters", self.parameters_before(), self.parameters_after())?;
        line("multiply–adds", self.multiply_adds_before(), self.multiply_adds_after())?;
        if let Some(error) = self.total_error() {
            writeln!(f, "  total error     {error:.4e}")?;
        }
        let what = match self.minimised {
            Minimised::Loss => "weighted loss",
            Minimised::Parameters => "parameters",
        };
        let (objective, bound) = (self.objective, self.lower_bound);
        write!(f, "  objective       {objective:.6} ({what}), at best {bound:.6}, gap {:.1e}", self.gap())?;
        for warning in &self.warnings {
            write!(f, "\n  warning: {warning}")?;
        }
        let width = self.layers.iter().map(|layer| layer.name.chars().count()).max().unwrap_or(0);
        for layer in &self.layers {
            let (m, n) = layer.shape;
            write!(f, "\n  {:<width$}  {n} → ", layer.name)?;
            match layer.choice {
                Choice::Dense => write!(f, "{m}, dense")?,
                Choice::Rank(rank) => write!(f, "{rank} → {m}")?,
                Choice::Shared { group, rank } => write!(f, "{rank} (shared, group {group}) → {m}")?,
            }
            if let Some(reason) = layer.reason {
                write!(f, ": {reason}")?;
            } else if let Some(error) = layer.relative_error {
                write!(f, ", relative error {error:.4e}")?;
            }
            for warning in &layer.warnings {
                write!(f, "\n    warning: {warning}")?;
            }
        }
        Ok(())
    }
}
