//! From what was chosen to the report on it.

use super::candidates::Candidate;
use super::plan::Choice;
use super::problem::Problem;
use super::profile::LayerProfile;
use super::report::{DenseReason, LayerReport, Minimised, NetworkReport, NetworkWarning};

/// A gap above this share of the objective is worth a warning.
const WORTHY_GAP: f64 = 0.01;

/// What was chosen for a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Chosen {
    Alone(Candidate),
    Joint { group: usize, candidate: Candidate },
}

/// A solved problem.
pub(super) struct Summary<'a> {
    pub(super) problem: &'a Problem<'a>,
    pub(super) chosen: Vec<Chosen>,
    /// `None` where nothing was left to choose.
    pub(super) lower_bound: Option<f64>,
    pub(super) minimised: Minimised,
    /// Why a layer stays dense that need not.
    pub(super) reason: DenseReason,
}

impl Summary<'_> {
    /// The report; `budget` and `strategy` in words.
    pub(super) fn report(
        &self,
        (budget, strategy): (String, String),
        mut warnings: Vec<NetworkWarning>,
        gap_matters: bool,
    ) -> NetworkReport {
        let layers: Vec<LayerReport> = (0..self.chosen.len()).filter_map(|layer| self.layer(layer)).collect();
        let objective = match self.minimised {
            Minimised::Loss => layers.iter().map(|layer| layer.weight * layer.loss).sum(),
            Minimised::Parameters => layers.iter().map(|layer| layer.parameters.1 as f64).sum::<f64>(),
        };
        // The bound is known to rounding.
        let lower_bound = self.lower_bound.map_or(objective, |bound| bound.max(0.0).min(objective));
        let share = (objective - lower_bound) / objective.max(f64::MIN_POSITIVE);
        if share > WORTHY_GAP && gap_matters {
            warnings.push(NetworkWarning::Gap { share });
        }
        if layers.iter().all(|layer| layer.choice == Choice::Dense) {
            warnings.push(NetworkWarning::NothingCompressed);
        }
        NetworkReport { budget, strategy, objective, lower_bound, minimised: self.minimised, layers, warnings }
    }

    fn layer(&self, index: usize) -> Option<LayerReport> {
        let problem = self.problem;
        let layer = problem.layers.get(index)?;
        let mut report = LayerReport {
            name: layer.name().into(),
            shape: (layer.out_features(), layer.in_features()),
            choice: Choice::Dense,
            reason: None,
            weight: *problem.weights.get(index)?,
            parameters: (layer.parameters(), layer.parameters()),
            multiply_adds: (layer.multiply_adds(), layer.multiply_adds()),
            loss: 0.0,
            relative_error: Some(0.0),
            report: None,
            warnings: Vec::new(),
        };
        match self.chosen.get(index)? {
            Chosen::Alone(candidate) if candidate.rank == 0 => {
                report.reason = Some(match () {
                    () if *problem.untouched.get(index)? => DenseReason::Untouched,
                    () if problem.candidates.get(index)?.len() < 2 => DenseReason::DoesNotPay,
                    () => self.reason,
                });
            }
            Chosen::Alone(candidate) => {
                report.choice = Choice::Rank(candidate.rank);
                report.parameters.1 = candidate.parameters as u64;
                report.multiply_adds.1 = candidate.multiply_adds as u64;
                report.loss = candidate.loss;
                report.relative_error = layer.relative_error(candidate.rank);
                report.report = layer.report(candidate.rank);
                report.warnings = report.report.as_ref().map_or(Vec::new(), |report| report.warnings.clone());
            }
            Chosen::Joint { group, candidate } => self.joint(&mut report, layer, index, (*group, candidate.rank))?,
        }
        Some(report)
    }

    fn joint(&self, report: &mut LayerReport, layer: &LayerProfile, index: usize, at: (usize, usize)) -> Option<()> {
        let (group, rank) = at;
        let profile = self.problem.groups.get(group)?;
        let (members, _) = self.problem.joint.get(group)?;
        let position = members.iter().position(|&member| member == index)?;
        let down = if position == 0 { rank as u64 * layer.in_features() as u64 } else { 0 };
        let factors = rank as u64 * layer.out_features() as u64 + down;
        let bias = if profile.members.get(position)?.bias { layer.out_features() as u64 } else { 0 };
        report.choice = Choice::Shared { group, rank };
        report.parameters.1 = factors + bias;
        report.multiply_adds.1 = factors * layer.calls();
        report.loss = profile.loss(position, rank)?;
        report.relative_error = Some(report.loss.sqrt());
        report.warnings = profile.warnings.clone();
        Some(())
    }
}
