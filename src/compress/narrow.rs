//! Solving in the precision of the data, for large layers: `W S Wᵀ` is written as `Z Zᵀ`, with the outputs of the samples or with a root of
//! the scatter; block Lanczos iterates on `Z`, or, for ranks too large for that, a Gram matrix of `Z` is diagonalised.

use faer::{Mat, MatRef};

use super::weighted::{Objective, Solution, Task, relative_errors};
use crate::covariance::SecondMoment;
use crate::linalg::{self, BlockStructure, Par};
use crate::operator::{self, GramOperator};
use crate::solver::{self, Eigenpairs, PsdOperator, Solver, cost};
use crate::{Error, Result, Scalar};

/// Rounding in an energy, as a multiple of `ε` and of the terms that add up to it.
const ROUNDING: f64 = 4.0;

/// The least share of energy left out at which single precision decides, with its rounding of some `10 ε` of the whole, what is
/// best to keep: the squared error is then within about `2 · 10⁻⁴` of the optimum. Smaller errors are for `f64`.
const LEAST_LEFT: f64 = 5e-3;

/// The least share that the data may have beside a ridge for single precision to see it, and the least of the energy that may be the data's
/// where it is told from a ridge by subtraction.
const LEAST_KEPT: f64 = 1e-2;

/// Dimension from which on a dense solve in single precision is worth its rounding.
const NARROW_DIMENSION: usize = 256;

/// Shares of all possible ranks beyond which too little energy may be left for single precision, and is left as a rule.
const RANKS: (f64, f64) = (0.4, 0.6);

/// How many times cheaper than `f64` an attempt has to be that may be in vain.
const RISK: f64 = 4.0;

/// Weights with entries further from 1, as powers of two, are left to `f64`, which rescales them.
const EXPONENTS: core::ops::RangeInclusive<i32> = -24..=24;

/// What `W S Wᵀ` is written with.
#[derive(Clone, Copy, PartialEq)]
enum Source {
    /// The weight itself, for `S = I`.
    Weight,
    /// The outputs of the samples.
    Samples,
    /// The weight times a root of `κ S + λ I`.
    Root,
}

/// How it is solved.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Lanczos,
    /// A dense solve of outputs × outputs.
    Outputs,
    /// A dense solve on the other side of `Z`.
    Inputs,
}

/// `Z` with `W (κ S + λ I) Wᵀ = keep · Z Zᵀ + ridge · W Wᵀ`, and `tr(W S Wᵀ)`.
struct Factor<T> {
    outputs: Mat<T>,
    keep: f64,
    ridge: f64,
    energy: f64,
}

/// The solution, or `None` where this is not the way: problems that are cheap in `f64`, or a result that only `f64` can tell from rounding.
pub(super) fn solve<T: Scalar>(task: &Task<'_, T>, max_rank: usize) -> Result<Option<Solution<T>>> {
    let &Task { problem, weight, moment, keep, ridge, .. } = task;
    let par = problem.par;
    let narrow = T::EPSILON > f64::EPSILON;
    let absolute = matches!(problem.objective, Objective::Paper(_) | Objective::Exact(_));
    if absolute || problem.solver == Solver::DenseEigen || !EXPONENTS.contains(&task.weight_exponent) {
        return Ok(None);
    }
    let (data, ridges) = (keep * moment.trace(), ridge * moment.features() as f64);
    if data == 0.0 || narrow && data < LEAST_KEPT * (data + ridges) {
        return Ok(None);
    }
    let shape = Shape {
        outputs: weight.nrows(),
        inputs: weight.ncols(),
        samples: moment.samples_kept(),
        by_weight: matches!(problem.objective, Objective::Weight),
        anchored: ridge > 0.0,
        applying: moment.macs(),
        forced: problem.solver == Solver::BlockLanczos,
    };
    let Some((source, way)) = choose(&shape, max_rank, narrow) else { return Ok(None) };

    let norms = linalg::squared_column_norms(weight);
    let scale = task.scale();
    let rounding =
        |moment, weights| ROUNDING * T::EPSILON * operator::term_size(&norms, moment, weights) * scale * scale;
    let mut factor = None;
    if source != Source::Weight {
        factor = Factor::new(task, source, moment, (keep, ridge), &norms)?;
        if factor.is_none() {
            return Ok(None);
        }
    }
    let (outputs, keep, ridge) = match &factor {
        Some(factor) => (factor.outputs.as_ref(), factor.keep, factor.ridge),
        // The weight alone is not regularised.
        None => (weight, keep * scale * scale, 0.0),
    };
    let noise = rounding(moment, (task.keep, task.ridge));
    let operator = GramOperator::new(outputs, weight, (keep, ridge), noise, par);
    let solved = match way {
        Way::Lanczos => solver::iterate(&operator, max_rank, par)?,
        Way::Outputs => solver::narrow_dense(&operator, max_rank, par)?,
        Way::Inputs => from_inputs(outputs, keep, noise, max_rank, par)?,
    };
    let Some(pairs) = solved else { return Ok(None) };
    let total_energy = operator.trace()?;
    let captured: f64 = pairs.values().iter().sum();
    if pairs.numerical_rank() < max_rank || (narrow && total_energy - captured < LEAST_LEFT * total_energy) {
        return Ok(None);
    }
    let up = linalg::rounded::<T>("the factor `up`", pairs.vectors())?;
    let down = linalg::product(up.transpose(), weight, par)?;
    if linalg::first_non_finite(down.as_ref()).is_some() {
        return Err(Error::overflow("the factor `down`"));
    }

    let mut resolution = (ROUNDING * T::EPSILON).sqrt();
    let mut errors = None;
    if let Some(data) = task.data {
        let source = match (source, data.samples_kept()) {
            (Source::Weight, Some(_)) => Source::Samples,
            (Source::Weight, None) => Source::Root,
            (source, _) => source,
        };
        if factor.is_none() {
            factor = Factor::new(task, source, data, (1.0, 0.0), &norms)?;
        }
        let Some(factor) = &factor else { return Ok(None) };
        let captured = if source == Source::Samples {
            let kept = linalg::product(factor.outputs.transpose(), up.as_ref(), par)?;
            linalg::squared_column_norms(kept.as_ref())
        } else {
            let down = linalg::widened(down.as_ref(), scale)?;
            data.row_forms(down.as_ref(), down.as_ref(), par)?
        };
        if factor.energy > 0.0 {
            resolution = resolution.max((rounding(data, (1.0, 0.0)) / factor.energy).sqrt());
        }
        let predicted = relative_errors(&captured, factor.energy);
        if narrow && predicted.last().is_some_and(|error| error * error < LEAST_LEFT) {
            return Ok(None);
        }
        errors = Some(predicted);
    }
    // All of them, or there would be no solution here.
    Ok(Some(Solution { up, down, determined: max_rank, pairs, total_energy, relative_errors: errors, resolution }))
}

impl<T: Scalar> Factor<T> {
    /// `None` where a root cannot be told from rounding. `norms` are the squared norms of the weight's columns.
    fn new(
        task: &Task<'_, T>,
        source: Source,
        moment: &dyn SecondMoment<T>,
        (keep, ridge): (f64, f64),
        norms: &[f64],
    ) -> Result<Option<Self>> {
        let par = task.problem.par;
        let scale = task.scale();
        if source == Source::Samples {
            let outputs = moment.outputs(task.weight, scale, par)?;
            return Ok(outputs.map(|outputs| {
                let energy = linalg::squared_norm(outputs.as_ref());
                Self { outputs, keep, ridge: ridge * scale * scale, energy }
            }));
        }
        let Some((root, added)) = moment.root_of((keep, ridge), par)? else { return Ok(None) };
        let mut narrow = linalg::zeros::<T>(root.nrows(), root.ncols())?;
        faer::zip!(&mut narrow, &root).for_each(|faer::unzip!(to, from)| *to = T::from_f64(from * scale));
        drop(root);
        let outputs = linalg::triangular_product(task.weight, narrow.as_ref(), BlockStructure::TriangularLower, par)?;
        let whole = linalg::squared_norm(outputs.as_ref());
        let added: f64 = norms.iter().zip(added).map(|(norm, added)| norm * scale * scale * added).sum();
        // The energy of the data is a difference: next to a ridge that dwarfs it nothing of it would be left.
        if whole - added < LEAST_KEPT * whole {
            return Ok(None);
        }
        Ok(Some(Self { outputs, keep: 1.0, ridge: 0.0, energy: (whole - added) / keep }))
    }
}

/// The eigenpairs of `keep · Z Zᵀ` from those of `keep · Zᵀ Z`.
fn from_inputs<T: Scalar>(
    outputs: MatRef<'_, T>,
    keep: f64,
    noise: f64,
    count: usize,
    par: Par,
) -> Result<Option<Eigenpairs>> {
    let transposed = outputs.transpose();
    let operator = GramOperator::new(transposed, transposed, (keep, 0.0), noise, par);
    let Some(pairs) = solver::narrow_dense(&operator, count, par)? else { return Ok(None) };
    let right = linalg::rounded::<T>("the eigenvectors", pairs.vectors())?;
    let mut left = linalg::product(outputs, right.as_ref(), par)?;
    // Columns of about unit length: nothing underflows when these are made orthonormal.
    for (column, value) in left.as_mut().col_iter_mut().zip(pairs.values()) {
        let factor = T::from_f64((keep / value.max(f64::MIN_POSITIVE)).sqrt());
        column.iter_mut().for_each(|entry| *entry *= factor);
    }
    let wide = linalg::widened(left.as_ref(), 1.0)?;
    drop(left);
    if linalg::first_non_finite(wide.as_ref()).is_some() {
        return Ok(None);
    }
    let vectors = linalg::orthonormalized(wide, par)?;
    Ok(Some(pairs.with_vectors(vectors)))
}

/// What a choice depends on.
struct Shape {
    outputs: usize,
    inputs: usize,
    /// Those that are kept.
    samples: Option<usize>,
    /// Whether `S = I`.
    by_weight: bool,
    /// Whether a ridge adds the weight to the outputs of the samples.
    anchored: bool,
    /// Multiply–adds of applying `S` to one vector.
    applying: f64,
    /// Whether block Lanczos is asked for.
    forced: bool,
}

/// The cheapest way in the precision of the data, which may be single (`narrow`); `None` where `f64` is cheaper still, or the only one that may
/// be used.
fn choose(shape: &Shape, max_rank: usize, narrow: bool) -> Option<(Source, Way)> {
    let &Shape { outputs: m, inputs: n, samples, by_weight, anchored, applying, forced } = shape;
    let side = m.min(n);
    let possible_ranks = if by_weight { side } else { side.min(samples.unwrap_or(n)) };
    let share = if narrow { max_rank as f64 / possible_ranks as f64 } else { 0.0 };
    let (promising, risk) = (share <= RANKS.1, if share <= RANKS.0 { 1.0 } else { RISK });

    let mut best = (f64::INFINITY, None);
    let mut consider = |work: f64, possible: bool, choice: Option<(Source, Way)>| {
        if possible && work < best.0 {
            best = (work, choice);
        }
    };
    let sources = [
        (Source::Weight, by_weight, n, 0.0),
        (Source::Samples, samples.is_some(), samples.unwrap_or(0), linalg::macs(m, n, samples.unwrap_or(0))),
        (Source::Root, !by_weight, n, root_work(n, samples) + linalg::macs(m, n, n) / 2.0),
    ];
    for (source, possible, width, forming) in sources {
        let anchor = if source == Source::Samples && anchored { n } else { 0 };
        let inner = width + anchor;
        let lanczos = cost::lanczos(m, max_rank, 2.0 * linalg::macs(m, inner, 1));
        let fits = possible && max_rank < m.min(width);
        let iterated = fits && (forced || promising && lanczos.is_some());
        consider(risk * (forming + lanczos.unwrap_or(0.0)), iterated, Some((source, Way::Lanczos)));
        let dense = fits && narrow && promising && !forced;
        let outputs = forming + linalg::macs(m, m, inner) / 2.0 + cost::dense(m);
        consider(risk * outputs, dense && m >= NARROW_DIMENSION, Some((source, Way::Outputs)));
        let inputs =
            forming + linalg::macs(width, width, m) / 2.0 + cost::dense(width) + linalg::macs(m, width, max_rank);
        consider(risk * inputs, dense && width >= NARROW_DIMENSION && anchor == 0, Some((source, Way::Inputs)));
    }
    // What is to be done in `f64` instead, on the smaller side; the product is for the trace, if not for the matrix.
    let inner = if by_weight { n } else { samples.unwrap_or(n) };
    let triangle = if m > n { 2.0 * linalg::macs(m, n, n) } else { 0.0 };
    let product = if by_weight { 0.0 } else { linalg::macs(side, n, inner) };
    let dense = linalg::macs(side, side, inner) / 2.0 + cost::dense(side);
    let applying = 2.0 * linalg::macs(side, n, 1) + applying;
    let exact = product + cost::lanczos(side, max_rank, applying).unwrap_or(f64::INFINITY).min(dense);
    let relative = if narrow { cost::DOUBLE } else { 1.0 };
    consider(relative * (triangle + exact), !forced, None);
    best.1
}

/// Multiply–adds of a root of the second moment: forming it where samples are kept, and a Cholesky factorisation, in `f64`.
fn root_work(features: usize, samples: Option<usize>) -> f64 {
    cost::DOUBLE
        * (linalg::macs(features, features, samples.unwrap_or(0)) / 2.0
            + linalg::macs(features, features, features) / 2.0)
}

#[cfg(test)]
mod tests;
