//! Solving in `f64`, for any statistics, ridge, rank and solver.

use std::borrow::Cow;

use faer::{Mat, MatRef};

use super::projection::ridge_regression;
use super::weighted::{Objective, Solution, Task, relative_errors};
use crate::covariance::SecondMoment;
use crate::linalg::power_of_two;
use crate::linalg::{self, Par};
use crate::operator::{OutputOperator, term_size};
use crate::solver::{self, Eigenpairs, PsdOperator};
use crate::{Result, Scalar};

pub(super) fn solve<T: Scalar>(task: &Task<'_, T>, max_rank: usize) -> Result<Solution<T>> {
    let &Task { problem, moment, keep, ridge, .. } = task;
    let par = problem.par;
    let (m, n) = task.weight.shape();
    let weight = linalg::widened(task.weight, task.scale())?;
    let regressed = match problem.objective {
        Objective::Paper(_) | Objective::Exact(_) => Some(ridge_regression(weight.as_ref(), moment, ridge, par)?),
        _ => None,
    };
    let target = regressed.as_ref().unwrap_or(&weight);
    let (factor, ridge) = match problem.objective {
        Objective::Paper(_) => (&weight, 0.0),
        _ => (target, ridge),
    };

    // Work on the smaller side: with `F = Q R`, the eigenvectors of `F S Fᵀ` are `Q` times those of `R S Rᵀ`.
    let (basis, factor) = if m > n {
        let (basis, triangle) = linalg::thin_qr(factor.clone(), par)?;
        (Some(basis), Cow::Owned(triangle))
    } else {
        (None, Cow::Borrowed(factor))
    };
    let factor = factor.as_ref().as_ref();
    let operator = OutputOperator::new(factor, moment, (keep, ridge), par);
    let pairs = solver::top_eigenpairs(&operator, max_rank, problem.solver, par)?;
    let determined = determined(&pairs, factor, moment, (keep, ridge), par)?;
    let vectors = if determined < max_rank {
        let kept = pairs.vectors().subcols(0, determined);
        Cow::Owned(solver::complete_basis(kept, factor, max_rank, par)?)
    } else {
        Cow::Borrowed(pairs.as_mat())
    };
    let mut up = match &basis {
        Some(basis) => linalg::product(basis.as_ref(), vectors.as_ref().as_ref(), par)?,
        None => vectors.into_owned(),
    };
    solver::fix_signs(&mut up);
    let down = linalg::product(up.transpose(), target.as_ref(), par)?;

    // A squared error is a difference of energies: it is known to the noise in these.
    let mut resolution = solver::noise_level(m.max(n)).sqrt();
    let errors = match task.data {
        None => None,
        Some(data) => {
            let plain = OutputOperator::new(weight.as_ref(), data, (1.0, 0.0), par);
            let total = match problem.objective {
                Objective::Anchored(_) | Objective::Shrunk => operator.data_trace()?,
                _ => plain.data_trace()?,
            };
            if total > 0.0 {
                resolution = resolution.max((plain.noise() / total).sqrt());
            }
            let reference = match &regressed {
                Some(_) => Some(linalg::product(up.transpose(), weight.as_ref(), par)?),
                None => None,
            };
            let captured = captured(data, down.as_ref(), reference.as_ref(), par)?;
            Some(relative_errors(&captured, total))
        }
    };
    let mut down = down;
    down *= faer::Scale(power_of_two(task.weight_exponent));
    Ok(Solution {
        up: linalg::rounded("the factor `up`", up.as_ref())?,
        down: linalg::rounded("the factor `down`", down.as_ref())?,
        total_energy: operator.trace()?,
        pairs,
        determined,
        relative_errors: errors,
        resolution,
    })
}

/// How many of the pairs stand out of rounding. In statistics of single precision that is a question of each direction: rounding in `uᵀ F S Fᵀ u`
/// is in proportion to `Σ_j (Fᵀu)_j² S_jj`.
fn determined<T: Scalar>(
    pairs: &Eigenpairs,
    factor: MatRef<'_, f64>,
    moment: &dyn SecondMoment<T>,
    (keep, ridge): (f64, f64),
    par: Par,
) -> Result<usize> {
    let rounding = moment.rounding();
    if rounding == 0.0 {
        return Ok(pairs.numerical_rank());
    }
    let rows = linalg::product(factor.transpose(), pairs.vectors(), par)?;
    let stands_out = |(value, row): &(&f64, faer::ColRef<'_, f64>)| {
        let squares: Vec<f64> = row.iter().map(|x| x * x).collect();
        **value > rounding * term_size(&squares, moment, (keep, ridge))
    };
    Ok(pairs.values().iter().zip(rows.col_iter()).take_while(stands_out).count())
}

/// What each dimension takes off the squared error on the data: `uᵢᵀ W S Wᵀ uᵢ` when `W` itself is projected, and
/// `uᵢᵀ (2 R S Wᵀ − R S Rᵀ) uᵢ` when it is `R`, with `down = Uᵀ R` and `reference = Uᵀ W`.
fn captured<T: Scalar>(
    data: &dyn SecondMoment<T>,
    down: MatRef<'_, f64>,
    reference: Option<&Mat<f64>>,
    par: Par,
) -> Result<Vec<f64>> {
    let mut captured = data.row_forms(down, down, par)?;
    if let Some(reference) = reference {
        let cross = data.row_forms(down, reference.as_ref(), par)?;
        captured.iter_mut().zip(cross).for_each(|(own, cross)| *own = 2.0 * cross - *own);
    }
    Ok(captured)
}
