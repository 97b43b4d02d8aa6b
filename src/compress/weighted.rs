//! The one problem behind every method: `min tr((W − C) S (W − C)ᵀ)` over all `C` of rank `k`.
//!
//! Its solution is `C = U_k U_kᵀ W` with the leading eigenvectors `U_k` of `W S Wᵀ`. The methods differ in `S`,
//! and the two absolute ridges of the paper also in what is projected: `C = U_k U_kᵀ R`.

use core::borrow::Borrow;

use faer::{Mat, MatRef};

use super::decomposition::{Decomposition, Facts};
use super::projection::ridge_regression;
use crate::bias::BiasCorrection;
use crate::covariance::{Moment, even_exponent, oracle_approximating, power_of_two};
use crate::kernel;
use crate::operator::OutputOperator;
use crate::rank;
use crate::solver::{self, PsdOperator, Solver};
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
    pub(super) operation: &'static str,
    pub(super) method: &'static str,
    pub(super) objective: Objective,
    /// Whether the bias makes up for what the weight loses on the mean.
    pub(super) corrected: bool,
    pub(super) solver: Solver,
    pub(super) threads: usize,
}

impl Problem {
    pub(super) fn solve<T: Scalar>(
        &self,
        layer: &Linear<T>,
        stats: &ActivationStats<T>,
        max_rank: usize,
    ) -> Result<Decomposition<T>> {
        let &Self { operation, objective, corrected, threads, .. } = self;
        let (m, n) = (layer.out_features(), layer.in_features());
        rank::validate_fixed(operation, max_rank, (m, n))?;
        stats.require_features(operation, n)?;
        if corrected || !matches!(objective, Objective::Weight) {
            stats.require_samples(operation)?;
        }

        // Entries near 1: the squares below must neither overflow nor underflow.
        let weight_exponent = even_exponent(kernel::max_abs(layer.weight()));
        let weight = kernel::widened(operation, layer.weight(), power_of_two(-weight_exponent))?;
        let data = (stats.samples() > 0).then(|| Moment::of(stats, corrected));
        let identity = Moment::identity(n);
        let uncentred;
        let moment: &Moment<'_, T> = match (objective, &data) {
            (Objective::Anchored(_) | Objective::Shrunk, Some(data)) => data,
            (Objective::Paper(_) | Objective::Exact(_), Some(data)) if !corrected => data,
            (Objective::Paper(_) | Objective::Exact(_), Some(_)) => {
                uncentred = Moment::of(stats, false);
                &uncentred
            }
            _ => &identity,
        };
        let mean_variance = moment.trace() / n as f64;
        let mut shrinkage = None;
        let (keep, ridge) = match objective {
            Objective::Weight => (1.0, 0.0),
            Objective::Anchored(ratio) => (1.0, ratio * mean_variance),
            Objective::Shrunk => {
                let square = moment.trace_of_square(operation, threads)?;
                let rho = oracle_approximating(moment.trace(), square, n, stats.effective_samples());
                shrinkage = Some(rho);
                let keep = (1.0 - rho).max(LEAST_KEPT);
                (keep, (1.0 - keep) * mean_variance)
            }
            Objective::Paper(lambda) | Objective::Exact(lambda) => {
                (1.0, lambda / stats.total_weight() * power_of_two(-moment.exponent()))
            }
        };
        require_finite(operation, ridge)?;

        let regressed = match objective {
            Objective::Paper(_) | Objective::Exact(_) => {
                Some(ridge_regression(operation, weight.as_ref(), moment, ridge, threads)?)
            }
            _ => None,
        };
        let target = regressed.as_ref().unwrap_or(&weight);
        let (factor, ridge) = match objective {
            Objective::Paper(_) => (&weight, 0.0),
            _ => (target, ridge),
        };

        // Work on the smaller side: with `F = Q R`, the eigenvectors of `F S Fᵀ` are `Q` times those of `R S Rᵀ`.
        let (basis, factor): (_, Cow<'_>) = if m > n {
            let (basis, triangle) = kernel::thin_qr(operation, factor.clone(), threads)?;
            (Some(basis), Cow::Owned(triangle))
        } else {
            (None, Cow::Borrowed(factor))
        };
        let factor: MatRef<'_, f64> = Borrow::<Mat<f64>>::borrow(&factor).as_ref();
        let operator = OutputOperator::new(operation, factor, moment, (keep, ridge), threads);
        let pairs = solver::top_eigenpairs(&operator, max_rank, self.solver, threads)?;
        let (data_trace, total_energy) = (operator.data_trace()?, operator.trace()?);
        let determined = pairs.numerical_rank();
        let mut facts = Facts {
            method: self.method,
            samples: stats.samples(),
            shrinkage,
            solver: pairs.solver().into(),
            residual: pairs.residual(),
            warnings: self.warnings(stats, data.as_ref(), &pairs),
            shape: (m, n),
            layer_bias: layer.bias().is_some(),
        };
        let (values, vectors) = pairs.into_parts();
        let vectors = if determined < max_rank {
            let kept = vectors.as_ref().subcols(0, determined);
            solver::complete_basis(operation, kept, factor, max_rank, threads)?
        } else {
            vectors
        };
        let mut up = match &basis {
            Some(basis) => kernel::product(operation, basis.as_ref(), vectors.as_ref(), threads)?,
            None => vectors,
        };
        solver::fix_signs(&mut up);
        let down = kernel::product(operation, up.transpose(), target.as_ref(), threads)?;

        // A squared error is a difference of energies: it is known to the noise in these.
        let mut resolution = solver::noise_level(m.max(n)).sqrt();
        let relative_errors = match &data {
            None => None,
            Some(data) => {
                let plain = OutputOperator::new(operation, weight.as_ref(), data, (1.0, 0.0), threads);
                let total = match objective {
                    Objective::Anchored(_) | Objective::Shrunk => data_trace,
                    _ => plain.data_trace()?,
                };
                if total > 0.0 {
                    resolution = resolution.max((plain.noise() / total).sqrt());
                }
                let reference = match &regressed {
                    Some(_) => Some(kernel::product(operation, up.transpose(), weight.as_ref(), threads)?),
                    None => None,
                };
                let captured = captured(operation, data, down.as_ref(), reference.as_ref(), threads)?;
                Some(relative_errors(&captured, total))
            }
        };

        let energy_exponent = moment.exponent() + 2 * weight_exponent;
        let energies: Vec<f64> = values.iter().map(|value| value * power_of_two(energy_exponent)).collect();
        let total_energy = total_energy * power_of_two(energy_exponent);
        if !(total_energy.is_finite() && energies.iter().all(|energy| energy.is_finite())) {
            return Err(Error::Overflow { operation, what: "the energy of the outputs" });
        }
        let scale = faer::Scale(power_of_two(weight_exponent));
        let up: Mat<T> = kernel::rounded(operation, "the factor `up`", up.as_ref())?;
        let down: Mat<T> = kernel::rounded(operation, "the factor `down`", (down * scale).as_ref())?;
        let correction =
            corrected.then(|| BiasCorrection::new(layer.weight(), layer.bias(), down.as_ref(), &stats.mean_or_zero()));
        if data.as_ref().is_some_and(|data| data.trace() == 0.0) {
            facts.warnings.push(Warning::NoVariation);
        }
        Ok(Decomposition {
            up,
            down,
            energies,
            total_energy,
            determined,
            relative_errors,
            resolution: resolution.max(4.0 * T::EPSILON),
            kept_bias: layer.bias().map(|bias| bias.to_owned()),
            correction,
            facts,
        })
    }

    fn warnings<T: Scalar>(
        &self,
        stats: &ActivationStats<T>,
        data: Option<&Moment<'_, T>>,
        pairs: &solver::Eigenpairs,
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
        warnings
    }
}

type Cow<'a> = std::borrow::Cow<'a, Mat<f64>>;

fn require_finite(operation: &'static str, ridge: f64) -> Result<()> {
    if ridge.is_finite() { Ok(()) } else { Err(Error::Overflow { operation, what: "the ridge" }) }
}

/// What each dimension takes off the squared error on the data: `uᵢᵀ W S Wᵀ uᵢ` when `W` itself is projected, and
/// `uᵢᵀ (2 R S Wᵀ − R S Rᵀ) uᵢ` when it is `R`, with `down = Uᵀ R` and `reference = Uᵀ W`.
fn captured<T: Scalar>(
    operation: &'static str,
    data: &Moment<'_, T>,
    down: MatRef<'_, f64>,
    reference: Option<&Mat<f64>>,
    threads: usize,
) -> Result<Vec<f64>> {
    let mut captured = data.row_forms(operation, down, down, threads)?;
    if let Some(reference) = reference {
        let cross = data.row_forms(operation, down, reference.as_ref(), threads)?;
        captured.iter_mut().zip(cross).for_each(|(own, cross)| *own = 2.0 * cross - *own);
    }
    Ok(captured)
}

/// `√(1 − Σ_{i≤k} capturedᵢ / total)` for every `k` from 1; zero where there is nothing to lose.
fn relative_errors(captured: &[f64], total: f64) -> Vec<f64> {
    let mut rest = total;
    let error = |captured: &f64| {
        rest -= captured;
        if total > 0.0 { (rest / total).max(0.0).sqrt() } else { 0.0 }
    };
    captured.iter().map(error).collect()
}
