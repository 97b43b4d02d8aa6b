//! The one problem behind every method: `min tr((W − C) S (W − C)ᵀ)` over all `C` of rank `k`.
//!
//! Its solution is `C = U_k U_kᵀ W` with the leading eigenvectors `U_k` of `W S Wᵀ`. The methods differ in `S`,
//! and the two absolute ridges of the paper also in what is projected: `C = U_k U_kᵀ R`.

use faer::{Mat, MatRef};

use super::decomposition::{Decomposition, Facts};
use super::{exact, narrow};
use crate::bias::BiasCorrection;
use crate::covariance::{SecondMoment, identity, intensity, second_moment};
use crate::linalg::{self, Par};
use crate::linalg::{even_exponent, power_of_two};
use crate::rank;
use crate::solver::{Eigenpairs, Solver};
use crate::{ActivationStats, Error, Linear, Result, Scalar, Warning};

/// What full shrinkage leaves of `S`: too little to be seen in a solution that the weight determines, enough
/// to let the data choose among directions that the weight values alike. Without it "never worse than
/// truncated SVD" would not hold for weights with repeated singular values.
const LEAST_KEPT: f64 = 1.0 / (1_u64 << 36) as f64;

/// What is minimised.
#[derive(Clone, Copy)]
pub(super) enum Objective {
    /// `‖W − C‖²`: `S = I`.
    Weight,
    /// `S + r (tr S / n) I`.
    Anchored(f64),
    /// `(1 − ρ) S + ρ (tr S / n) I` with `ρ` from the data.
    Shrunk,
    /// Eq. 11 of the paper: `U` of `W XXᵀ Wᵀ`, projecting `R = W XXᵀ (XXᵀ + λI)⁻¹`.
    Paper(f64),
    /// The minimiser of eq. 7: `U` of `R (XXᵀ + λI) Rᵀ`, projecting the same `R`.
    Exact(f64),
}

/// A problem and how to go about it.
pub(super) struct Problem {
    pub(super) method: &'static str,
    pub(super) objective: Objective,
    /// Whether the bias makes up for what the weight loses on the mean.
    pub(super) corrected: bool,
    pub(super) solver: Solver,
    pub(super) par: Par,
}

impl Problem {
    pub(super) fn solve<T: Scalar>(
        &self,
        layer: &Linear<T>,
        stats: &ActivationStats<T>,
        max_rank: usize,
    ) -> Result<Decomposition<T>> {
        let &Self { objective, corrected, par, .. } = self;
        let (m, n) = (layer.out_features(), layer.in_features());
        rank::validate_fixed(max_rank, (m, n))?;
        stats.require_features(n)?;
        if corrected || !matches!(objective, Objective::Weight) {
            stats.require_samples()?;
        }

        let weight_exponent = even_exponent(linalg::max_abs(layer.weight()));
        let data = match stats.samples() {
            0 => None,
            _ => {
                stats.require_squares(corrected)?;
                Some(second_moment(stats, corrected)?)
            }
        };
        let identity = identity(n);
        let uncentred;
        let moment: &dyn SecondMoment<T> = match (objective, data.as_deref()) {
            (Objective::Anchored(_) | Objective::Shrunk, Some(data)) => data,
            (Objective::Paper(_) | Objective::Exact(_), Some(data)) if !corrected => data,
            (Objective::Paper(_) | Objective::Exact(_), Some(_)) => {
                stats.require_squares(false)?;
                uncentred = second_moment(stats, false)?;
                &*uncentred
            }
            _ => &*identity,
        };
        let mean_variance = moment.trace() / n as f64;
        let mut shrinkage = None;
        let (keep, ridge) = match objective {
            Objective::Weight => (1.0, 0.0),
            Objective::Anchored(ratio) => (1.0, ratio * mean_variance),
            Objective::Shrunk => {
                // The mean takes one of the degrees of freedom if it was estimated from the same samples.
                let freedom = stats.effective_samples() - if corrected { 1.0 } else { 0.0 };
                let rho = intensity(moment, freedom, par)?;
                shrinkage = Some(rho);
                let keep = (1.0 - rho).max(LEAST_KEPT);
                (keep, (1.0 - keep) * mean_variance)
            }
            Objective::Paper(lambda) | Objective::Exact(lambda) => {
                (1.0, lambda / stats.total_weight() * power_of_two(-moment.exponent()))
            }
        };
        if !ridge.is_finite() {
            return Err(Error::overflow("the ridge"));
        }

        let task =
            Task { problem: self, weight: layer.weight(), weight_exponent, moment, data: data.as_deref(), keep, ridge };
        let solution = match narrow::solve(&task, max_rank)? {
            Some(solution) => solution,
            None => exact::solve(&task, max_rank)?,
        };
        let energy = power_of_two(moment.exponent()) * power_of_two(2 * weight_exponent);
        let energies: Vec<f64> = solution.pairs.values().iter().map(|value| value * energy).collect();
        let total_energy = solution.total_energy * energy;
        if !(total_energy.is_finite() && energies.iter().all(|energy| energy.is_finite())) {
            return Err(Error::overflow("the energy of the outputs"));
        }
        let total = solution.total_energy.max(f64::MIN_POSITIVE);
        let shares = solution.pairs.values().iter().map(|value| value / total).collect();
        let down = solution.down;
        let correction =
            corrected.then(|| BiasCorrection::new(layer.weight(), layer.bias(), down.as_ref(), &stats.mean_or_zero()));
        Ok(Decomposition {
            up: solution.up,
            down,
            energies,
            total_energy,
            shares,
            relative_errors: solution.relative_errors,
            kept_bias: layer.bias().map(|bias| bias.to_owned()),
            correction,
            facts: Facts {
                method: self.method.into(),
                samples: stats.samples(),
                shrinkage,
                solver: solution.pairs.to_string(),
                residual: solution.pairs.residual(),
                warnings: self.warnings(stats, data.as_deref(), &solution.pairs),
                shape: (m, n),
                biases: (layer.bias().is_some(), corrected || layer.bias().is_some()),
                determined: solution.determined,
                resolution: solution.resolution.max(4.0 * T::EPSILON),
            },
        })
    }

    fn warnings<T: Scalar>(
        &self,
        stats: &ActivationStats<T>,
        data: Option<&dyn SecondMoment<T>>,
        pairs: &Eigenpairs,
    ) -> Vec<Warning> {
        let mut warnings = Vec::new();
        let samples = stats.effective_samples();
        let uses_data = data.is_some() && !matches!(self.objective, Objective::Weight);
        if uses_data && samples < stats.features() as f64 {
            warnings.push(Warning::FewSamples { samples, inputs: stats.features() });
        }
        if pairs.is_fallback() {
            warnings.push(Warning::SolverFallback { solver: pairs.solver().into() });
        }
        if data.is_some_and(|data| data.trace() == 0.0) {
            warnings.push(Warning::NoVariation);
        }
        warnings
    }
}

/// A problem in numbers: `F (κ S + λ I) Fᵀ` is to be diagonalised, with `F` following from the weight.
pub(super) struct Task<'a, T> {
    pub(super) problem: &'a Problem,
    pub(super) weight: MatRef<'a, T>,
    /// The weight over two to this power has entries near 1.
    pub(super) weight_exponent: i32,
    /// `S`.
    pub(super) moment: &'a dyn SecondMoment<T>,
    /// The plain data, for the certificate.
    pub(super) data: Option<&'a dyn SecondMoment<T>>,
    /// `κ`.
    pub(super) keep: f64,
    /// `λ`.
    pub(super) ridge: f64,
}

impl<T> Task<'_, T> {
    /// What brings the weight's entries near 1.
    pub(super) fn scale(&self) -> f64 {
        power_of_two(-self.weight_exponent)
    }
}

/// What either way of solving gives; energies in units of the scaled weight and the scaled `S`.
pub(super) struct Solution<T> {
    pub(super) up: Mat<T>,
    pub(super) down: Mat<T>,
    pub(super) pairs: Eigenpairs,
    /// How many of the pairs stand out of rounding.
    pub(super) determined: usize,
    pub(super) total_energy: f64,
    pub(super) relative_errors: Option<Vec<f64>>,
    /// The smallest relative error that can be told from zero.
    pub(super) resolution: f64,
}

/// `√(1 − Σ_{i≤k} capturedᵢ / total)` for every `k` from 1. Zero where there is nothing to lose; infinite where nothing
/// varies and the replacement does, as it can with the paper's and the exact ridge.
pub(super) fn relative_errors(captured: &[f64], total: f64) -> Vec<f64> {
    let mut rest = total;
    let error = |captured: &f64| {
        rest -= captured;
        match total > 0.0 {
            true => (rest / total).max(0.0).sqrt(),
            false if rest > 0.0 => f64::INFINITY,
            false => 0.0,
        }
    };
    captured.iter().map(error).collect()
}
