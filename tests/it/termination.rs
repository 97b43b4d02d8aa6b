//! Operators that violate their contract. The solver returns an error, or a result with the stated
//! residual, after a bounded number of products.

use core::cell::Cell;

use dalr::solver::{Eigenpairs, PsdOperator, top_eigenpairs};
use dalr::{Dalr, Error, Linear, LowRankCompressor, Ridge};
use dalr::{Result, Scalar, Solver};
use faer::{Mat, MatMut, MatRef};
use rand::SeedableRng;
use rand::rngs::StdRng;

const SOLVERS: [Solver; 3] = [Solver::Auto, Solver::DenseEigen, Solver::BlockLanczos];

type Entry = fn(usize, usize, usize) -> f64;

/// A matrix that is `early` for the first products, and `late` from call number `turns` on. Its
/// trace and noise can have any value. It counts calls and vectors.
#[derive(Clone)]
struct Hostile {
    dimension: usize,
    early: Entry,
    late: Entry,
    turns: usize,
    trace: f64,
    noise: f64,
    calls: Cell<usize>,
    vectors: Cell<usize>,
}

fn identity(i: usize, j: usize, _: usize) -> f64 {
    f64::from(i == j)
}

/// Returns the entries of a diagonal matrix, whose eigenvalues decay slowly enough for a long
/// iteration.
fn decaying(i: usize, j: usize, _: usize) -> f64 {
    if i == j { 1.0 / (1.0 + i as f64) } else { 0.0 }
}

impl Hostile {
    fn new(dimension: usize, entry: Entry) -> Self {
        let trace = (0..dimension).map(|i| entry(i, i, 0)).sum();
        let (calls, vectors) = Default::default();
        Self { dimension, early: entry, late: entry, turns: 0, trace, noise: 0.0, calls, vectors }
    }

    /// Behaves as `decaying` for the first `turns` calls, and as `late` afterwards.
    fn turning(dimension: usize, turns: usize, late: Entry) -> Self {
        Self { late, turns, ..Self::new(dimension, decaying) }
    }

    fn with_trace(self, trace: f64) -> Self {
        Self { trace, ..self }
    }

    fn with_noise(self, noise: f64) -> Self {
        Self { noise, ..self }
    }

    /// Returns a bound on the vectors that the solver may multiply, a fallback to the dense
    /// algorithm included: 40 for each pair and each vector of a block, two blocks for a
    /// verification, and the identity.
    fn bound(&self, count: usize) -> usize {
        40 * (count + 64) + 128 + self.dimension
    }
}

impl<T: Scalar> PsdOperator<T> for Hostile {
    fn dimension(&self) -> usize {
        self.dimension
    }

    fn apply(&self, block: MatRef<'_, T>, mut result: MatMut<'_, T>) -> Result<()> {
        let call = self.calls.get();
        self.calls.set(call + 1);
        self.vectors.set(self.vectors.get() + block.ncols());
        let entry = if call >= self.turns { self.late } else { self.early };
        for i in 0..self.dimension {
            let row: Vec<(usize, f64)> =
                (0..self.dimension).map(|j| (j, entry(i, j, call))).filter(|&(_, x)| x != 0.0).collect();
            for column in 0..block.ncols() {
                let sum: f64 = row.iter().map(|&(j, x)| x * block[(j, column)].to_f64()).sum();
                result[(i, column)] = T::from_f64(sum);
            }
        }
        Ok(())
    }

    fn trace(&self) -> Result<f64> {
        Ok(self.trace)
    }

    fn noise(&self) -> f64 {
        self.noise
    }
}

const COUNT: usize = 3;

/// Returns the solver's outcome for an operator, within its bound on products.
fn outcome<T: Scalar>(operator: &Hostile, solver: Solver) -> Result<Eigenpairs> {
    let operator = operator.clone();
    let outcome = top_eigenpairs::<T>(&operator, COUNT, solver, 1);
    let (calls, vectors) = (operator.calls.get(), operator.vectors.get());
    let bound = operator.bound(COUNT);
    // Every call multiplies at least one vector.
    assert!(calls <= vectors && vectors <= bound, "{calls} calls, {vectors} vectors, where {bound} are allowed");
    outcome
}

#[track_caller]
fn refused<T: Scalar>(name: &str, operator: &Hostile, solvers: &[Solver]) {
    for &solver in solvers {
        let outcome = outcome::<T>(operator, solver);
        let invalid = matches!(outcome, Err(Error::InvalidOperator { .. }));
        assert!(invalid, "{name}, {solver:?}, {}: {outcome:?}", core::any::type_name::<T>());
    }
}

#[track_caller]
fn refused_in_both_precisions(name: &str, operator: &Hostile, solvers: &[Solver]) {
    refused::<f64>(name, operator, solvers);
    refused::<f32>(name, operator, solvers);
}

#[test]
fn products_that_are_not_finite_are_refused_at_once() {
    let nan: Entry = |_, _, _| f64::NAN;
    let infinite: Entry = |i, j, _| if i == j { f64::INFINITY } else { 0.0 };
    let in_one_place: Entry = |i, j, _| if (i, j) == (2, 1) { f64::NAN } else { f64::from(i == j) };
    for dimension in [3, 40, 300] {
        for entry in [nan, infinite, in_one_place] {
            let operator = Hostile::new(dimension, entry).with_trace(dimension as f64);
            refused_in_both_precisions("not finite", &operator, &SOLVERS);
        }
    }
}

#[test]
fn products_that_are_not_finite_are_refused_later_too() {
    // The dense algorithm applies small operators once, so it cannot see a later change.
    for (turns, solvers) in [(1, &SOLVERS[2..]), (2, &SOLVERS[2..]), (4, &SOLVERS[2..])] {
        for late in [|_, _, _| f64::NAN, |_, _, _| f64::INFINITY, |_, _, _| f64::NEG_INFINITY] as [Entry; 3] {
            refused_in_both_precisions("not finite later", &Hostile::turning(400, turns, late), solvers);
        }
        // The entries are finite, but squares, or sums of products, overflow.
        for late in [|_, _, _| 1e30, |i, j, _| if i == j { 1e38 } else { 0.0 }] as [Entry; 2] {
            refused_in_both_precisions("huge later", &Hostile::turning(400, turns, late), solvers);
        }
        let huge = Hostile::turning(400, turns, |_, _, _| 1e305);
        refused::<f64>("beyond squaring later", &huge, solvers);
    }
    // The NaN occurs in the second of two blocks of columns.
    let later = Hostile::turning(300, 1, |_, _, _| f64::NAN);
    refused_in_both_precisions("not finite in the second block", &later, &SOLVERS[..2]);
}

#[test]
fn operators_that_are_not_symmetric_are_refused() {
    let triangular: Entry = |i, j, _| f64::from(u8::from(j >= i));
    let shift: Entry = |i, j, _| f64::from(u8::from(j == i + 1)) + identity(i, j, 0);
    let skew: Entry = |i, j, _| match j.abs_diff(i) {
        0 => 2.0,
        1 => {
            if j > i {
                1.0
            } else {
                -1.0
            }
        }
        _ => 0.0,
    };
    for dimension in [3, 40, 300] {
        for entry in [triangular, shift, skew] {
            refused_in_both_precisions("not symmetric", &Hostile::new(dimension, entry), &SOLVERS);
        }
    }
    // The operator is symmetric at first.
    let late: Entry = |i, j, _| if j >= i { 0.1 } else { 0.0 };
    refused_in_both_precisions("not symmetric later", &Hostile::turning(400, 3, late), &SOLVERS[2..]);
}

#[test]
fn operators_that_are_not_semidefinite_are_refused() {
    let negative: Entry = |i, j, _| -identity(i, j, 0);
    let alternating: Entry = |i, j, _| if i == j { if i % 2 == 0 { 1.0 } else { -1.0 } } else { 0.0 };
    for dimension in [3, 40, 300] {
        refused_in_both_precisions("negative", &Hostile::new(dimension, negative), &SOLVERS);
        refused_in_both_precisions("as many up as down", &Hostile::new(dimension, alternating), &SOLVERS);
        let lying = Hostile::new(dimension, negative).with_trace(dimension as f64);
        refused_in_both_precisions("negative, with a positive trace", &lying, &SOLVERS);
    }
    let late: Entry = |i, j, _| -decaying(i, j, 0);
    refused_in_both_precisions("negative later", &Hostile::turning(400, 2, late), &SOLVERS[2..]);
}

#[test]
fn traces_that_cannot_be_are_refused_where_they_are_used() {
    let iterating = &SOLVERS[2..];
    for dimension in [3, 40, 300] {
        for trace in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 0.0, 1e-300, 1e300, f64::MAX] {
            let operator = Hostile::new(dimension, decaying).with_trace(trace);
            refused_in_both_precisions(&format!("a trace of {trace}"), &operator, iterating);
            // The dense algorithm, which small operators take, computes the trace itself.
            check_residual::<f64>(&operator, Solver::DenseEigen);
            if dimension < 256 {
                check_residual::<f32>(&operator, Solver::Auto);
            }
        }
        // Smaller errors in the trace cost accuracy in proportion, or time.
        for factor in [0.6, 3.0] {
            let truth = Hostile::new(dimension, decaying);
            let trace = truth.trace;
            check_residual::<f64>(&truth.with_trace(factor * trace), Solver::BlockLanczos);
        }
    }
}

#[test]
fn noises_that_cannot_be_are_refused() {
    for noise in [f64::NAN, f64::INFINITY, -1.0] {
        // A comparison with such a noise would accept any operator, for example this one.
        let triangular: Entry = |i, j, _| f64::from(u8::from(j >= i));
        for operator in [Hostile::new(20, triangular), Hostile::new(20, decaying)] {
            refused_in_both_precisions(&format!("a noise of {noise}"), &operator.with_noise(noise), &SOLVERS);
        }
    }
    // A noise above all eigenvalues is valid: the numerical rank is zero.
    for solver in SOLVERS {
        let pairs = outcome::<f64>(&Hostile::new(20, decaying).with_noise(1e300), solver).unwrap();
        assert_eq!(pairs.numerical_rank(), 0);
    }
}

#[test]
fn operators_that_change_with_every_product_end_in_time() {
    // Every call multiplies by a different matrix.
    let fickle: Entry = |i, j, call| ((i * 31 + j * 17 + call * 7919) % 101) as f64 / 101.0;
    let doubling: Entry = |i, j, call| if i == j { 2_f64.powi(call as i32) } else { 0.0 };
    let fading: Entry = |i, j, call| if i == j { 0.5_f64.powi(call as i32 * 40) } else { 0.0 };
    for dimension in [3, 40, 300] {
        for entry in [fickle, doubling, fading] {
            for solver in SOLVERS {
                // Either an error or a result; `outcome` checks the number of products.
                let _ = outcome::<f64>(&Hostile::new(dimension, entry), solver);
                let _ = outcome::<f32>(&Hostile::new(dimension, entry), solver);
            }
        }
    }
    refused_in_both_precisions("another matrix every time", &Hostile::new(300, fickle), &SOLVERS);
}

/// Checks that the result has the stated residual and the leading eigenvalues.
#[track_caller]
fn check_residual<T: Scalar>(operator: &Hostile, solver: Solver) {
    let pairs = outcome::<T>(operator, solver).unwrap();
    let n = operator.dimension;
    let matrix = Mat::from_fn(n, n, |i, j| (operator.early)(i, j, 0));
    let vectors = pairs.vectors.as_ref();
    let applied = &matrix * vectors;
    for (column, value) in pairs.values.iter().enumerate() {
        let terms = applied.col(column).iter().zip(vectors.col(column).iter());
        let residual = terms.map(|(h, v)| (h - value * v).powi(2)).sum::<f64>().sqrt();
        let allowed = 1.5 * pairs.residual * pairs.values[0] + 35.0 * n as f64 * T::EPSILON;
        assert!(residual <= allowed, "{solver:?}: {residual:e} > {allowed:e}");
        // The eigenvalues are the leading ones.
        let exact = 1.0 / (1.0 + column as f64);
        assert!((value - exact).abs() <= 1e-6 + 35.0 * n as f64 * T::EPSILON, "{value}, {exact}");
    }
}

#[test]
fn matrices_of_another_shape_are_refused() {
    struct Misshapen(usize, usize);
    impl PsdOperator<f64> for Misshapen {
        fn dimension(&self) -> usize {
            5
        }
        fn apply(&self, block: MatRef<'_, f64>, mut result: MatMut<'_, f64>) -> Result<()> {
            result.copy_from(block);
            Ok(())
        }
        fn trace(&self) -> Result<f64> {
            Ok(5.0)
        }
        fn assemble(&self) -> Result<Mat<f64>> {
            Ok(Mat::identity(self.0, self.1))
        }
    }
    for (rows, columns) in [(0, 0), (5, 4), (4, 5), (4, 4), (6, 6), (1, 25)] {
        let outcome = top_eigenpairs(&Misshapen(rows, columns), 2, Solver::DenseEigen, 1);
        assert!(matches!(outcome, Err(Error::InvalidOperator { .. })), "{outcome:?}");
    }
}

#[test]
fn a_dimension_that_changes_breaks_nothing() {
    /// The identity, with a different dimension at every call.
    struct Changing(Cell<usize>, [usize; 2]);
    impl PsdOperator<f64> for Changing {
        fn dimension(&self) -> usize {
            self.0.set(self.0.get() + 1);
            self.1[self.0.get() % 2]
        }
        fn apply(&self, block: MatRef<'_, f64>, mut result: MatMut<'_, f64>) -> Result<()> {
            result.copy_from(block);
            Ok(())
        }
        fn trace(&self) -> Result<f64> {
            Ok(self.1[1] as f64)
        }
        fn macs(&self) -> f64 {
            0.0
        }
    }
    for dimensions in [[2, 30], [30, 2], [1000, 30], [30, 1000]] {
        for solver in SOLVERS {
            for count in [1, 2, 30] {
                match top_eigenpairs(&Changing(Cell::new(0), dimensions), count, solver, 1) {
                    Ok(pairs) => assert_eq!(pairs.vectors.shape(), (dimensions[1], count)),
                    Err(error) => {
                        assert!(matches!(error, Error::InvalidOperator { .. } | Error::Rank { .. }), "{error}")
                    }
                }
            }
        }
    }
}

#[test]
fn dimensions_beyond_all_memory_are_refused() {
    struct Vast(usize);
    impl PsdOperator<f32> for Vast {
        fn dimension(&self) -> usize {
            self.0
        }
        fn apply(&self, _: MatRef<'_, f32>, _: MatMut<'_, f32>) -> Result<()> {
            Ok(())
        }
        fn trace(&self) -> Result<f64> {
            Ok(1.0)
        }
    }
    for dimension in [usize::MAX, usize::MAX / 4, 1 << 50] {
        for solver in SOLVERS {
            for count in [1 << 40, dimension] {
                let outcome = top_eigenpairs(&Vast(dimension), count, solver, 1);
                assert!(matches!(outcome, Err(Error::Memory { .. })), "{dimension}, {solver:?}: {outcome:?}");
            }
        }
    }
}

/// The operator states its costs, so they can be invalid, too.
#[test]
fn costs_that_cannot_be_choose_some_solver() {
    struct Costly(f64);
    impl PsdOperator<f64> for Costly {
        fn dimension(&self) -> usize {
            600
        }
        fn apply(&self, block: MatRef<'_, f64>, mut result: MatMut<'_, f64>) -> Result<()> {
            result.copy_from(block);
            Ok(())
        }
        fn trace(&self) -> Result<f64> {
            Ok(600.0)
        }
        fn macs(&self) -> f64 {
            self.0
        }
    }
    for macs in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0] {
        let pairs = top_eigenpairs(&Costly(macs), 2, Solver::Auto, 1).unwrap();
        assert!((pairs.values[1] - 1.0).abs() < 1e-12);
    }
}

/// The data are in the null space of the weight, so the trace of the operator is rounding of either
/// sign.
#[test]
fn a_weight_that_is_blind_to_the_data_is_no_broken_contract() {
    let (n, rank) = (30, 10);
    for seed in 0..30 {
        let mut rng = StdRng::seed_from_u64(seed);
        let seen = crate::common::orthogonal(&mut rng, n, rank);
        let inputs = crate::common::gaussian(&mut rng, 200, rank) * seen.transpose();
        let weight = crate::common::gaussian(&mut rng, 20, n);
        let weight = &weight - (&weight * &seen) * seen.transpose();
        let layer = Linear::new(weight, None).unwrap();
        for solver in SOLVERS {
            // Statistics are in sample form for few samples, and in covariance form for many.
            for samples in [200, 12] {
                let stats = crate::common::stats(inputs.as_ref().subrows(0, samples));
                let dalr = Dalr::new().with_ridge(Ridge::None).with_solver(solver);
                let decomposition = dalr.decompose(&layer, &stats, 5).unwrap();
                let compressed = decomposition.truncate(5).unwrap();
                let up = compressed.layer().up();
                assert!(crate::common::families::orthogonality(up, f64::EPSILON) < 35.0);
            }
        }
    }
}
