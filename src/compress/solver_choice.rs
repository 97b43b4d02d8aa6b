//! Chooses how a problem is solved: the form of the operator, its precision and the algorithm.
//!
//! Costs are multiply–adds in native precision, weighed as in `solver::cost`.

use super::problem::{Inputs, Problem};
use crate::Scalar;
use crate::linalg;
use crate::solver::{Solver, cost};

/// The smallest dimension at which a dense solve runs in single precision.
const SINGLE_DIMENSION: usize = 256;

/// Bounds on the rank, as fractions of the largest possible one. Up to the first, a solve in single
/// precision usually leaves out enough energy to be accurate. Between the two it often fails, and
/// above the second almost always.
const SINGLE_RANKS: (f64, f64) = (0.4, 0.6);

/// An attempt that often fails must be this many times cheaper than double precision.
const ATTEMPT_MUST_SAVE: f64 = 4.0;

/// A weight whose largest entry is outside of these powers of two is solved in double precision,
/// which rescales it.
pub(super) const NATIVE_EXPONENTS: core::ops::RangeInclusive<i32> = -24..=24;

/// The smallest fraction of `tr(κ S + λ I)` that may come from the data in single precision. Below
/// it, the rounding of the ridge would hide the data.
pub(super) const LEAST_DATA: f64 = 1e-2;

/// The ways to write the operator `R (κ S + λ I) Rᵀ` as a product.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum OperatorForm {
    /// `W Wᵀ`, for `S = I`.
    Weight,
    /// `κ Z Zᵀ + λ W Wᵀ` with the outputs `Z` of the samples.
    Outputs,
    /// `Z Zᵀ` with `Z = W L`, where `L Lᵀ = κ S + λ I`.
    Root,
}

/// An algorithm that runs in native precision.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum NativeAlgorithm {
    BlockLanczos,
    /// Diagonalises the operator, outputs × outputs.
    Dense,
    /// Diagonalises `Zᵀ Z` instead.
    DenseTransposed,
}

/// How a problem is solved.
pub(super) struct SolverChoice {
    /// The first attempt, in native precision; `None` if that is not cheaper.
    pub(super) native: Option<(OperatorForm, NativeAlgorithm)>,
    /// The algorithm in `f64`, which runs if the first attempt fails or rounding could change its
    /// result. It multiplies by `R`, `S` and `Rᵀ` in turn, on the smaller side of the weight.
    pub(super) solver: Solver,
}

/// Returns the form, precision and algorithm with the lowest estimated cost for ranks up to
/// `max_rank`. An attempt that often fails must be four times cheaper than double precision.
pub(super) fn choose<T: Scalar>(problem: &Problem<'_, T>, max_rank: usize) -> SolverChoice {
    let shape = Shape::of(problem);
    let double = shape.double(max_rank);
    let solver = if problem.solver == Solver::Auto { double.solver } else { problem.solver };
    let single = T::EPSILON > f64::EPSILON;
    let (data, ridges) = (problem.keep * problem.moment.trace(), problem.ridge * shape.inputs as f64);
    let possible = problem.solver != Solver::DenseEigen
        && NATIVE_EXPONENTS.contains(&problem.weight_exponent)
        && data > 0.0
        && !(single && data < LEAST_DATA * (data + ridges));
    if !possible {
        return SolverChoice { native: None, solver };
    }
    let forced = problem.solver == Solver::BlockLanczos;
    let limit = match (forced, single) {
        (true, _) => f64::INFINITY,
        (false, true) => cost::DOUBLE * double.cost,
        (false, false) => double.cost,
    };
    SolverChoice { native: shape.cheapest_native(max_rank, single, forced, limit), solver }
}

/// The numbers that a choice depends on.
struct Shape {
    outputs: usize,
    inputs: usize,
    /// Number of samples, if the statistics are in sample form.
    samples: Option<usize>,
    identity: bool,
    ridge: bool,
    /// Multiply–adds of applying `S` to one vector.
    moment_macs: f64,
}

struct Double {
    solver: Solver,
    /// Including the predicted error.
    cost: f64,
}

impl Shape {
    fn of<T: Scalar>(problem: &Problem<'_, T>) -> Self {
        Self {
            outputs: problem.weight.nrows(),
            inputs: problem.weight.ncols(),
            samples: problem.moment.samples_kept(),
            identity: problem.inputs == Inputs::Identity,
            ridge: problem.ridge > 0.0,
            moment_macs: problem.moment.macs(),
        }
    }

    /// Returns the algorithm and the cost in double precision, on the smaller side of the weight: a
    /// tall weight needs a QR factorization first.
    fn double(&self, max_rank: usize) -> Double {
        let &Self { outputs: m, inputs: n, samples, identity, ridge, moment_macs } = self;
        let side = m.min(n);
        let inner = if identity { n } else { samples.unwrap_or(n) };
        let triangle = if m > n { 2.0 * linalg::macs(m, n, n) } else { 0.0 };
        // The predicted error needs this product even if the matrix does not.
        let product = if identity { 0.0 } else { linalg::macs(side, n, inner) };
        let lanczos = cost::lanczos(side, max_rank, 2.0 * linalg::macs(side, n, 1) + moment_macs);
        let lanczos = lanczos.unwrap_or(f64::INFINITY);
        let dense = linalg::macs(side, side, inner) / 2.0 + cost::dense(side);
        let forming = product + if ridge { linalg::macs(side, side, n) / 2.0 } else { 0.0 };
        let solver = if lanczos < forming + dense { Solver::BlockLanczos } else { Solver::DenseEigen };
        Double { solver, cost: triangle + product + lanczos.min(dense) }
    }

    /// Returns the cheapest choice in native precision whose cost is below `limit`.
    fn cheapest_native(
        &self,
        max_rank: usize,
        single: bool,
        forced: bool,
        limit: f64,
    ) -> Option<(OperatorForm, NativeAlgorithm)> {
        let &Self { outputs: m, inputs: n, samples, identity, ridge, .. } = self;
        let side = m.min(n);
        let possible_ranks = if identity { side } else { side.min(samples.unwrap_or(n)) };
        let fraction = if single { max_rank as f64 / possible_ranks as f64 } else { 0.0 };
        let promising = fraction <= SINGLE_RANKS.1;
        let risk = if fraction <= SINGLE_RANKS.0 { 1.0 } else { ATTEMPT_MUST_SAVE };

        let outputs_of = samples.map(|p| (OperatorForm::Outputs, p, linalg::macs(m, n, p)));
        let root = (OperatorForm::Root, n, root_cost(n, samples) + linalg::macs(m, n, n) / 2.0);
        let forms = match identity {
            true => [Some((OperatorForm::Weight, n, 0.0)), None],
            false => [outputs_of, Some(root)],
        };
        let mut best = (limit, None);
        for (form, width, forming) in forms.into_iter().flatten() {
            if max_rank >= m.min(width) {
                continue;
            }
            let mut consider = |allowed: bool, algorithm: NativeAlgorithm, cost: f64| {
                let cost = risk * (forming + cost);
                if allowed && cost < best.0 {
                    best = (cost, Some((form, algorithm)));
                }
            };
            let anchor = if form == OperatorForm::Outputs && ridge { n } else { 0 };
            let inner = width + anchor;
            let lanczos = cost::lanczos(m, max_rank, 2.0 * linalg::macs(m, inner, 1));
            let iterate = forced || promising && lanczos.is_some();
            consider(iterate, NativeAlgorithm::BlockLanczos, lanczos.unwrap_or(0.0));
            let dense = single && promising && !forced;
            let cost = linalg::macs(m, m, inner) / 2.0 + cost::dense(m);
            consider(dense && m >= SINGLE_DIMENSION, NativeAlgorithm::Dense, cost);
            let cost = linalg::macs(width, width, m) / 2.0 + cost::dense(width) + linalg::macs(m, width, max_rank);
            let transposed = dense && width >= SINGLE_DIMENSION && anchor == 0;
            consider(transposed, NativeAlgorithm::DenseTransposed, cost);
        }
        best.1
    }
}

/// Returns the cost of a root of the second moment, in `f64`: forming it from samples, and a
/// Cholesky factorization.
fn root_cost(features: usize, samples: Option<usize>) -> f64 {
    let forming = linalg::macs(features, features, samples.unwrap_or(0)) / 2.0;
    cost::DOUBLE * (forming + linalg::macs(features, features, features) / 2.0)
}
