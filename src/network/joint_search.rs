//! The paper's joint compression of several layers, step by step (section 5.3, table 10).

use core::ops::ControlFlow;
use std::collections::BTreeMap;

use super::evaluation::{AnyError, Evaluation, Evaluator};
use super::layer_profile::{self, LayerProfile, Limits};
use super::progress::{Progress, Tracker};
use crate::Result;
use crate::error::{during, require};

/// The paper's search: compresses layers step by step while the network stays accurate enough.
///
/// Each step lowers the rank of each layer in turn, evaluates each of these networks, and keeps the
/// best one. If several are equally good, it keeps the one with the fewest parameters. The search
/// ends if every one of them is worse than the original by more than `max_drop`, or if no rank can
/// be lowered further. The first step of a layer compresses it to the largest rank that saves
/// parameters.
///
/// The search needs an evaluation for every layer in every step: use it for a few layers.
/// [`Sensitivities::measure`](super::Sensitivities::measure) needs one evaluation for each layer in
/// total.
///
/// ```
/// use std::collections::BTreeMap;
/// use dalr::network::{JointSearch, LayerProfile, Plan, Progress};
///
/// # fn main() -> dalr::Result<()> {
/// let energies: Vec<f64> = (0..20).map(|i| 0.8_f64.powi(i)).collect();
/// let profile = |name| LayerProfile::from_energies(name, (20, 20), false, &energies, energies.iter().sum());
/// let profiles = [profile("fc6")?, profile("fc7")?];
/// # fn accuracy_of(ranks: &BTreeMap<String, usize>) -> std::io::Result<f64> {
/// #     Ok(0.9 - 0.002 * ranks.values().map(|rank| 10 - rank).sum::<usize>() as f64)
/// # }
/// // Compress these layers, leave the others, return the accuracy.
/// let evaluate = |ranks: &BTreeMap<String, usize>| accuracy_of(ranks);
/// let mut evaluations = Vec::new(); // kept after an error, to continue
/// let search = JointSearch::new(0.01).with_step_ranks(2);
/// let path = search.run(&profiles, &mut evaluations, evaluate, &mut Progress::ignore)?;
/// for step in &path {
///     println!("{:?}: accuracy {} with {} parameters", step.layer, step.value, step.parameters);
/// }
/// if let [original, .., last] = &path[..] {
///     assert!(last.value >= original.value - 0.01);
///     println!("{}", Plan::of_ranks(&profiles, &last.ranks)?);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct JointSearch {
    max_drop: f64,
    /// A step lowers the rank by this fraction, and at least by this number.
    step: (f64, usize),
    limits: Limits,
}

impl JointSearch {
    /// Creates a search that may lower the accuracy by `max_drop`, in the units of the evaluations:
    /// 0.01 for the paper's 1 % of an accuracy in [0, 1]. Each step lowers the rank by a tenth.
    pub fn new(max_drop: f64) -> Self {
        Self { max_drop, step: (0.1, 1), limits: Limits::NONE }
    }

    /// Sets by how much each step lowers the rank of a layer: this number, at least 1.
    #[must_use]
    pub fn with_step_ranks(mut self, ranks: usize) -> Self {
        self.step = (0.0, ranks);
        self
    }

    /// Sets by how much each step lowers the rank of a layer: this fraction of it, in [0, 1), and
    /// at least 1.
    #[must_use]
    pub fn with_step_fraction(mut self, fraction: f64) -> Self {
        self.step = (fraction, 1);
        self
    }

    /// Makes every rank a multiple of this number, 1 by default.
    #[must_use]
    pub fn with_rank_multiple(mut self, multiple: usize) -> Self {
        self.limits.multiple = multiple;
        self
    }

    /// Sets the smallest rank, 1 by default.
    #[must_use]
    pub fn with_min_rank(mut self, rank: usize) -> Self {
        self.limits.min_rank = rank;
        self
    }

    /// Runs the search and returns its path: the original network, then the best network of each
    /// step.
    ///
    /// `evaluate` gets the layers to compress and their ranks; all others stay original. It returns
    /// the accuracy of this network, or another number that is larger for better networks. If
    /// `progress` cancels, the path contains the completed steps; it is empty if the original
    /// network was not evaluated. `evaluations` keeps all values, also after an error; the next run
    /// continues from them.
    ///
    /// # Errors
    ///
    /// No layers, or two of the same name; parameters out of range; an accuracy that is not finite;
    /// an error of `evaluate`, as the source of an [`Error::Callback`](crate::Error::Callback).
    pub fn run<E: Into<AnyError>>(
        &self,
        layers: &[LayerProfile],
        evaluations: &mut Vec<Evaluation>,
        evaluate: impl FnMut(&BTreeMap<String, usize>) -> Result<f64, E>,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Vec<Evaluation>> {
        during("JointSearch::run", || {
            self.validate()?;
            layer_profile::positions(layers)?;
            let all: Vec<(&str, Vec<usize>)> =
                layers.iter().map(|layer| (layer.name(), layer.saving_ranks(self.limits))).collect();
            let mut evaluator = Evaluator { layers, evaluations, evaluate, tracker: Tracker::new(progress, None) };
            let Some(original) = evaluator.evaluate(None, &BTreeMap::new())? else { return Ok(Vec::new()) };
            // Rounding must not exclude a drop of exactly `max_drop`.
            let rounding = 4.0 * f64::EPSILON * (original.value.abs() + self.max_drop);
            let least = original.value - self.max_drop - rounding;
            let mut ranks = BTreeMap::new();
            let mut path = vec![original];
            loop {
                let mut best: Option<Evaluation> = None;
                for (name, allowed) in &all {
                    let Some(next) = self.next(allowed, ranks.get(*name).copied()) else { continue };
                    let mut further = ranks.clone();
                    further.insert((*name).to_owned(), next);
                    let Some(found) = evaluator.evaluate(Some(name), &further)? else { return Ok(path) };
                    let better = |best: &Evaluation| {
                        found.value > best.value || (found.value == best.value && found.parameters < best.parameters)
                    };
                    if found.value >= least && best.as_ref().is_none_or(better) {
                        best = Some(found);
                    }
                }
                let Some(best) = best else { return Ok(path) };
                ranks.clone_from(&best.ranks);
                path.push(best);
            }
        })
    }

    fn validate(&self) -> Result<()> {
        let (max_drop, (fraction, ranks)) = (self.max_drop, self.step);
        require(max_drop >= 0.0 && max_drop.is_finite(), "`max_drop`", "to be finite and at least 0", max_drop)?;
        require(ranks > 0, "the number of ranks in a step", "to be at least 1", 0.0)?;
        require((0.0..1.0).contains(&fraction), "the fraction of the rank in a step", "to be in [0, 1)", fraction)?;
        self.limits.validate()
    }

    /// Returns the rank of a layer after one more step: the largest allowed rank that is at least a
    /// step below the present one. If there is none, returns the smallest allowed rank.
    fn next(&self, allowed: &[usize], present: Option<usize>) -> Option<usize> {
        let Some(present) = present else { return allowed.last().copied() };
        let (fraction, ranks) = self.step;
        let largest = ((present as f64 * (1.0 - fraction)).floor() as usize).min(present.saturating_sub(ranks));
        let smallest = allowed.first().filter(|&&rank| rank < present);
        allowed.iter().rfind(|&&rank| rank <= largest).or(smallest).copied()
    }
}
