//! Solves a problem: eigenvectors, the two factors, the predicted error.
//!
//! There is one pipeline. It runs in native precision if that is cheaper, and again in `f64` if
//! rounding could have changed the result.

use std::borrow::Cow;

use faer::{Mat, MatRef};

use super::operators::{FactoredOperator, GramOperator, Outputs, term_size};
use super::problem::{Inputs, Problem};
use super::relative_error::SquaredErrors;
use super::solver_choice::{NativeAlgorithm, OperatorForm, choose};
use crate::covariance::SecondMoment;
use crate::linalg::{self, Par, power_of_two};
use crate::solver::{self, Eigenpairs, PsdOperator, Solver};
use crate::{Error, Result, Scalar};

/// Rounding in an eigenvalue, as a multiple of `ε` times the terms that add up to it.
pub(super) const ROUNDING: f64 = 4.0;

/// The least fraction of the energy left out at which single precision may decide.
///
/// In 74 problems of up to 1024 outputs that left out between this and three times as much, the
/// squared error was at most `1e-4` above the optimum; at half of it, `4e-4`. If less energy is
/// left out, the problem is solved in `f64`.
pub(super) const LEAST_LEFT_OUT: f64 = 2.5e-3;

/// The solution for every rank up to the largest requested one.
///
/// Energies are in units of the scaled weight and the scaled second moment.
pub(super) struct Solution<T> {
    pub(super) up: Mat<T>,
    pub(super) down: Mat<T>,
    pub(super) pairs: Eigenpairs,
    /// Number of eigenvalues above rounding.
    pub(super) determined: usize,
    pub(super) total_energy: f64,
    /// The errors on the data without regularization.
    pub(super) errors: Option<SquaredErrors>,
}

/// Solves `problem` for every rank up to `max_rank`.
pub(super) fn solve<T: Scalar>(problem: &Problem<'_, T>, max_rank: usize) -> Result<Solution<T>> {
    let choice = choose(problem, max_rank);
    if let Some((form, algorithm)) = choice.native
        && let Some(solution) = in_native(problem, form, algorithm, max_rank)?
    {
        return Ok(solution);
    }
    in_double(problem, choice.solver, max_rank)
}

/// Solves in native precision; returns `None` if rounding could change the result.
pub(super) fn in_native<T: Scalar>(
    problem: &Problem<'_, T>,
    form: OperatorForm,
    algorithm: NativeAlgorithm,
    max_rank: usize,
) -> Result<Option<Solution<T>>> {
    let &Problem { weight, moment, par, .. } = problem;
    let single = T::EPSILON > f64::EPSILON;
    let scale = problem.scale();
    let norms = linalg::squared_column_norms(weight);
    let rounding = |moment, factors| ROUNDING * T::EPSILON * term_size(&norms, moment, factors) * scale * scale;
    let mut outputs = None;
    if form != OperatorForm::Weight {
        outputs = Outputs::new(problem, form, moment, (problem.keep, problem.ridge), &norms)?;
        if outputs.is_none() {
            return Ok(None);
        }
    }
    let (matrix, keep, ridge) = match &outputs {
        Some(outputs) => (outputs.matrix.as_ref(), outputs.keep, outputs.ridge),
        None => (weight, problem.keep * scale * scale, 0.0),
    };
    let noise = rounding(moment, (problem.keep, problem.ridge));
    let operator = GramOperator::new(matrix, weight, (keep, ridge), noise, par);
    let pairs = match algorithm {
        NativeAlgorithm::BlockLanczos => solver::block_lanczos(&operator, max_rank, par)?,
        NativeAlgorithm::Dense => solver::dense_native(&operator, max_rank, par)?,
        NativeAlgorithm::DenseTransposed => transposed_eigenpairs(matrix, keep, noise, max_rank, par)?,
    };
    let Some(pairs) = pairs else { return Ok(None) };
    let total_energy = operator.trace()?;
    let left_out = total_energy - pairs.values.iter().sum::<f64>();
    if pairs.numerical_rank() < max_rank || (single && left_out < LEAST_LEFT_OUT * total_energy) {
        return Ok(None);
    }
    let up = linalg::rounded::<T>("the factor `up`", pairs.vectors.as_ref())?;
    let down = linalg::product(up.transpose(), weight, par)?;
    if linalg::first_non_finite(down.as_ref()).is_some() {
        return Err(Error::overflow("the factor `down`"));
    }

    let mut errors = None;
    if let Some(data) = problem.data {
        let (form, outputs) = match outputs {
            Some(outputs) => (form, outputs),
            None => {
                let form = if data.samples_kept().is_some() { OperatorForm::Outputs } else { OperatorForm::Root };
                match Outputs::new(problem, form, data, (1.0, 0.0), &norms)? {
                    Some(outputs) => (form, outputs),
                    None => return Ok(None),
                }
            }
        };
        let captured = if form == OperatorForm::Outputs {
            let kept = linalg::product(outputs.matrix.transpose(), up.as_ref(), par)?;
            linalg::squared_column_norms(kept.as_ref())
        } else {
            let down = linalg::widened(down.as_ref(), scale)?;
            data.row_forms(down.as_ref(), down.as_ref(), par)?
        };
        let noise = rounding(data, (1.0, 0.0)).max(ROUNDING * T::EPSILON * outputs.energy);
        let found = SquaredErrors::left_of(outputs.energy, &captured, noise);
        if single && found.by_rank.last().is_some_and(|&last| last < LEAST_LEFT_OUT * outputs.energy) {
            return Ok(None);
        }
        errors = Some(found);
    }
    Ok(Some(Solution { up, down, determined: max_rank, pairs, total_energy, errors }))
}

/// Solves in `f64`, for any statistics, ridge and rank.
fn in_double<T: Scalar>(problem: &Problem<'_, T>, solver: Solver, max_rank: usize) -> Result<Solution<T>> {
    let &Problem { moment, keep, ridge, par, .. } = problem;
    let (m, n) = problem.weight.shape();
    let weight = linalg::widened(problem.weight, problem.scale())?;
    let side = SmallerSide::new(Cow::Borrowed(&weight), par)?;
    let operator = FactoredOperator::new(side.factor(), moment, (keep, ridge), par);
    let pairs = solver::solve(&operator, max_rank, solver, par)?;
    let determined = determined(&pairs, side.factor(), moment, (keep, ridge), par)?;
    let up = side.directions(&pairs, determined, par)?;
    let mut down = linalg::product(up.transpose(), weight.as_ref(), par)?;

    let mut errors = None;
    if let Some(data) = problem.data {
        let plain = FactoredOperator::new(weight.as_ref(), data, (1.0, 0.0), par);
        let total = if problem.inputs == Inputs::Data { operator.data_trace()? } else { plain.data_trace()? };
        let captured = data.row_forms(down.as_ref(), down.as_ref(), par)?;
        // A squared error is a difference of energies, so their noise limits what can be resolved.
        let noise = plain.noise().max(solver::noise_level(m.max(n)) * total);
        errors = Some(SquaredErrors::left_of(total, &captured, noise));
    }
    down *= faer::Scale(power_of_two(problem.weight_exponent));
    Ok(Solution {
        up: linalg::rounded("the factor `up`", up.as_ref())?,
        down: linalg::rounded("the factor `down`", down.as_ref())?,
        total_energy: operator.trace()?,
        pairs,
        determined,
        errors,
    })
}

/// The smaller side of a factor `F`. If `F` is tall, `F = Q R`, and the eigenvectors of `F S Fᵀ`
/// are `Q` times those of `R S Rᵀ`.
pub(super) struct SmallerSide<'a> {
    basis: Option<Mat<f64>>,
    factor: Cow<'a, Mat<f64>>,
}

impl<'a> SmallerSide<'a> {
    pub(super) fn new(factor: Cow<'a, Mat<f64>>, par: Par) -> Result<Self> {
        if factor.nrows() <= factor.ncols() {
            return Ok(Self { basis: None, factor });
        }
        let (basis, triangle) = linalg::thin_qr(factor.into_owned(), par)?;
        Ok(Self { basis: Some(basis), factor: Cow::Owned(triangle) })
    }

    /// Returns `F`, or `R` if `F` is tall.
    pub(super) fn factor(&self) -> MatRef<'_, f64> {
        self.factor.as_ref().as_ref()
    }

    /// Returns the eigenvectors of `F S Fᵀ`, one column for each of `pairs`.
    ///
    /// After the first `determined` eigenvectors come the leading left singular vectors of the rest
    /// of `F`. They are the limit of a ridge that goes to zero.
    pub(super) fn directions(&self, pairs: &Eigenpairs, determined: usize, par: Par) -> Result<Mat<f64>> {
        let count = pairs.values.len();
        let vectors = if determined < count {
            let kept = pairs.vectors.as_ref().subcols(0, determined);
            Cow::Owned(solver::complete_basis(kept, self.factor(), count, par)?)
        } else {
            Cow::Borrowed(&pairs.vectors)
        };
        let mut up = match &self.basis {
            Some(basis) => linalg::product(basis.as_ref(), vectors.as_ref().as_ref(), par)?,
            None => vectors.into_owned(),
        };
        solver::fix_signs(&mut up);
        Ok(up)
    }
}

/// Returns the eigenpairs of `keep · Z Zᵀ` from those of `keep · Zᵀ Z`.
pub(super) fn transposed_eigenpairs<T: Scalar>(
    outputs: MatRef<'_, T>,
    keep: f64,
    noise: f64,
    count: usize,
    par: Par,
) -> Result<Option<Eigenpairs>> {
    let transposed = outputs.transpose();
    let operator = GramOperator::new(transposed, transposed, (keep, 0.0), noise, par);
    let Some(pairs) = solver::dense_native(&operator, count, par)? else { return Ok(None) };
    let right = linalg::rounded::<T>("the eigenvectors", pairs.vectors.as_ref())?;
    let mut left = linalg::product(outputs, right.as_ref(), par)?;
    // Columns of about unit length do not underflow when they are orthonormalized.
    for (column, value) in left.as_mut().col_iter_mut().zip(&pairs.values) {
        let factor = T::from_f64((keep / value.max(f64::MIN_POSITIVE)).sqrt());
        column.iter_mut().for_each(|entry| *entry *= factor);
    }
    let wide = linalg::widened(left.as_ref(), 1.0)?;
    drop(left);
    if linalg::first_non_finite(wide.as_ref()).is_some() {
        return Ok(None);
    }
    Ok(Some(pairs.with_vectors(linalg::orthonormalized(wide, par)?)))
}

/// Returns the number of eigenvalues above rounding.
///
/// Statistics in single precision have a different rounding in each direction: that of
/// `uᵀ F S Fᵀ u` is proportional to `Σ_j (Fᵀu)_j² S_jj`.
fn determined<T: Scalar>(
    pairs: &Eigenpairs,
    factor: MatRef<'_, f64>,
    moment: &dyn SecondMoment<T>,
    factors: (f64, f64),
    par: Par,
) -> Result<usize> {
    let rounding = moment.rounding();
    if rounding == 0.0 {
        return Ok(pairs.numerical_rank());
    }
    let rows = linalg::product(factor.transpose(), pairs.vectors.as_ref(), par)?;
    let stands_out = |(value, row): &(&f64, faer::ColRef<'_, f64>)| {
        let squares: Vec<f64> = row.iter().map(|x| x * x).collect();
        **value > rounding * term_size(&squares, moment, factors)
    };
    Ok(pairs.values.iter().zip(rows.col_iter()).take_while(stands_out).count())
}
