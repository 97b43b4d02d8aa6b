//! Solving in the precision of the data, for large layers: the outputs of the samples are computed once, and block Lanczos iterates
//! on these; or, for ranks too large for that, their Gram matrix is diagonalised.

use super::weighted::{Objective, Solution, Task, relative_errors};
use crate::covariance::power_of_two;
use crate::kernel;
use crate::operator::{self, GramOperator};
use crate::solver::{self, PsdOperator, Solver};
use crate::{Error, Result, Scalar};

/// Rounding in an energy, as a multiple of `ε` and of the terms that add up to it.
const ROUNDING: f64 = 4.0;

/// The least share of energy left out at which single precision decides, with its rounding of some `10 ε` of the whole, what is
/// best to keep: the squared error is then within about `2 · 10⁻⁴` of the optimum. Smaller errors are for `f64`.
const LEAST_LEFT: f64 = 5e-3;

/// The least share of the data that shrinkage may leave for single precision to see it.
const LEAST_KEPT: f64 = 1e-2;

/// Outputs from which on a dense solve in single precision is worth its rounding.
const NARROW_DIMENSION: usize = 1024;

/// Weights with entries further from 1, as powers of two, are left to `f64`, which rescales them.
const EXPONENTS: core::ops::RangeInclusive<i32> = -24..=24;

/// The solution, or `None` where this is not the way: statistics that have collapsed, ranks too large for the
/// iteration to pay, or a result that only `f64` can tell from rounding.
pub(super) fn solve<T: Scalar>(task: &Task<'_, T>, max_rank: usize) -> Result<Option<Solution<T>>> {
    let &Task { problem, weight, moment, keep, ridge, .. } = task;
    let (operation, threads) = (problem.operation, problem.threads);
    let (m, n) = weight.shape();
    let by_weight = matches!(problem.objective, Objective::Weight);
    let absolute = matches!(problem.objective, Objective::Paper(_) | Objective::Exact(_));
    let width = if by_weight { Some(n) } else { moment.samples_kept() };
    let Some(width) = width.filter(|&width| max_rank < width.min(m) && !absolute) else { return Ok(None) };
    if problem.solver == Solver::DenseEigen || !EXPONENTS.contains(&task.weight_exponent) || moment.trace() == 0.0 {
        return Ok(None);
    }
    let narrow = T::EPSILON > f64::EPSILON;
    if narrow && keep < LEAST_KEPT {
        return Ok(None);
    }
    let mut iterating = true;
    if problem.solver == Solver::Auto {
        let anchor = if ridge > 0.0 { n } else { 0 };
        // What the other way must do in `f64`, on the smaller side.
        let side = m.min(n) as f64;
        let product = if by_weight { 0.0 } else { side * n as f64 * width as f64 };
        let dense = product + side * side * (width + anchor) as f64 / 2.0;
        let dense = 2.0 * dense + solver::dense_work(m.min(n));
        let here = if by_weight { 0.0 } else { kernel::work(m, n, width) };
        let lanczos = solver::lanczos_work(m, max_rank, 2.0 * kernel::work(m, width + anchor, 1));
        iterating = lanczos.is_some_and(|work| here + work < dense);
        // Single precision halves the cost of a dense solve, on this side.
        let single = here + kernel::work(m, m, width + anchor) / 2.0 + solver::dense_work(m) / 2.0;
        if !iterating && (!narrow || m < NARROW_DIMENSION || single > dense) {
            return Ok(None);
        }
    }

    let scale = power_of_two(-task.weight_exponent);
    let data = match task.data {
        Some(data) => match data.outputs(operation, weight, scale, threads)? {
            Some(outputs) => Some((data, outputs)),
            None => return Ok(None),
        },
        None => None,
    };
    // Truncated SVD is DALR with the weight itself for the outputs; all others see the data as the certificate does.
    let (factor, keep) = match &data {
        Some((_, outputs)) if !by_weight => (outputs.as_ref(), keep),
        _ => (weight, keep * scale * scale),
    };
    let ridge = ridge * scale * scale;
    let norms = kernel::squared_column_norms(weight);
    let noise = ROUNDING * T::EPSILON * operator::term_size(&norms, moment, (task.keep, task.ridge)) * scale * scale;
    let operator = GramOperator::new(factor, weight, (keep, ridge), noise, threads);
    let solved = match iterating {
        true => solver::iterate(&operator, max_rank, threads)?,
        false => solver::narrow_dense(&operator, max_rank, threads)?,
    };
    let Some(pairs) = solved else { return Ok(None) };
    let total_energy = operator.trace()?;
    let captured: f64 = pairs.values().iter().sum();
    if pairs.numerical_rank() < max_rank || (narrow && total_energy - captured < LEAST_LEFT * total_energy) {
        return Ok(None);
    }
    let up = kernel::rounded::<T>(operation, "the factor `up`", pairs.vectors())?;
    let down = kernel::product(operation, up.transpose(), weight, threads)?;
    if kernel::first_non_finite(down.as_ref()).is_some() {
        return Err(Error::Overflow { operation, what: "the factor `down`" });
    }

    let mut resolution = (ROUNDING * T::EPSILON).sqrt();
    let mut errors = None;
    if let Some((data, outputs)) = &data {
        let total = kernel::squared_norm(outputs.as_ref());
        if total > 0.0 {
            let noise = T::EPSILON * operator::term_size(&norms, data, (1.0, 0.0)) * scale * scale;
            resolution = resolution.max((ROUNDING * noise / total).sqrt());
        }
        let kept = kernel::product(operation, outputs.transpose(), up.as_ref(), threads)?;
        let captured = kernel::squared_column_norms(kept.as_ref());
        let predicted = relative_errors(&captured, total);
        if narrow && predicted.last().is_some_and(|error| error * error < LEAST_LEFT) {
            return Ok(None);
        }
        errors = Some(predicted);
    }
    Ok(Some(Solution {
        up,
        down,
        determined: pairs.numerical_rank(),
        pairs,
        total_energy,
        relative_errors: errors,
        resolution,
    }))
}
