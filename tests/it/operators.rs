//! [`OperatorProblem`] gives the same result as [`Dalr`] with the same data. Also tests the
//! automatic choice of a solver if one of them is much cheaper.

use std::cell::Cell;

use dalr::compress::OperatorProblem;
use dalr::solver::{PsdOperator, top_eigenpairs};
use dalr::{Dalr, Error, Linear, LowRankCompressor, Result, Ridge, Scalar, Solver, Warning};
use faer::{Mat, MatMut, MatRef, Scale};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::common::case::{mean, wide};
use crate::common::{Spectrum, cast, gaussian, stats, weight_of, with_spectrum};

/// The operator `F (S + λI) Fᵀ` from centred samples, one per column.
struct Spread<'a> {
    factor: MatRef<'a, f64>,
    samples: Mat<f64>,
    ridge: f64,
}

impl PsdOperator<f64> for Spread<'_> {
    fn dimension(&self) -> usize {
        self.factor.nrows()
    }

    fn apply(&self, block: MatRef<'_, f64>, mut result: MatMut<'_, f64>) -> Result<()> {
        let inputs = self.factor.transpose() * block;
        let moment = &self.samples * (self.samples.transpose() * &inputs) + inputs * Scale(self.ridge);
        result.copy_from(self.factor * moment);
        Ok(())
    }

    fn trace(&self) -> Result<f64> {
        Ok((self.factor * &self.samples).squared_norm_l2() + self.ridge * self.factor.squared_norm_l2())
    }
}

/// A layer and its inputs: outputs, inputs, samples; the spectrum of the data.
struct Setup<T> {
    layer: Linear<T>,
    inputs: Mat<T>,
}

impl<T: Scalar> Setup<T> {
    fn new((m, n, p): (usize, usize, usize), bias: bool) -> Self {
        let mut rng = StdRng::seed_from_u64((m * 10_000 + n * 100 + p) as u64);
        let weight = cast(with_spectrum(&mut rng, m, n, Spectrum::Arithmetic).as_ref());
        let bias = bias.then(|| cast::<T>(gaussian(&mut rng, m, 1).as_ref()).col(0).to_owned());
        let centre = gaussian(&mut rng, 1, n);
        let spread = with_spectrum(&mut rng, p, n, Spectrum::Arithmetic);
        let inputs = Mat::from_fn(p, n, |i, j| spread[(i, j)] + 0.2 * centre[(0, j)]);
        Self { layer: Linear::new(weight, bias).unwrap(), inputs: cast(inputs.as_ref()) }
    }

    fn check(&self, correct: bool, relative_ridge: f64, rank: usize) {
        let what = format!("{} bytes, {:?}, {correct}, {relative_ridge}", size_of::<T>(), self.inputs.shape());
        let inputs = wide(self.inputs.as_ref());
        let (p, n) = inputs.shape();
        let mean = mean(&inputs);
        let taken = |i: usize| if correct { mean[i] } else { 0.0 };
        let samples = Mat::from_fn(n, p, |i, j| (inputs[(j, i)] - taken(i)) / (p as f64).sqrt());
        let ridge = relative_ridge * samples.squared_norm_l2() / n as f64;

        let problem = OperatorProblem::new(&self.layer, 1).unwrap().with_samples(p as u64);
        assert_eq!(problem.corrects_bias(), self.layer.bias().is_some());
        let problem = problem.with_bias_correction(correct).with_ridge(ridge);
        assert_eq!(problem.factor().shape(), (n.min(self.layer.out_features()), n));
        let operator = Spread { factor: problem.factor(), samples, ridge };
        let ours = problem.solve(&operator, &mean, rank).unwrap();

        let method = Dalr::new().with_bias_correction(correct);
        let ridge = if relative_ridge == 0.0 { Ridge::None } else { Ridge::Relative(relative_ridge) };
        let same = method.with_ridge(ridge).decompose(&self.layer, &stats(self.inputs.as_ref()), rank).unwrap();
        let rounding = 1e-9_f64.max(100.0 * T::EPSILON);
        let total = same.total_energy();
        assert!((ours.total_energy() / total - 1.0).abs() <= rounding, "{what}");
        for (ours, same) in ours.energies().iter().zip(same.energies()) {
            assert!((ours - same).abs() <= rounding * total, "{what}: {ours} {same}");
        }
        for rank in 1..=rank {
            let (ours, same) = (ours.truncate(rank).unwrap(), same.truncate(rank).unwrap());
            let (own, weight) = (weight_of(ours.layer()), weight_of(same.layer()));
            let difference = (&own - &weight).norm_l2() / weight.norm_l2();
            assert!(difference <= rounding, "{what}, rank {rank}: {difference:e}");
            assert_eq!(ours.layer().bias().is_some(), same.layer().bias().is_some(), "{what}");
            if let (Some(own), Some(bias)) = (ours.layer().bias(), same.layer().bias()) {
                let difference = (wide(own.as_mat()) - wide(bias.as_mat())).norm_l2();
                assert!(difference <= rounding * wide(bias.as_mat()).norm_l2(), "{what}, rank {rank}");
            }
            let (own, same) = (ours.report(), same.report());
            let errors = [own, same].map(|report| report.relative_error.unwrap().powi(2));
            assert!((errors[0] - errors[1]).abs() <= 10.0 * rounding, "{what}, rank {rank}: {errors:?}");
            assert_eq!(
                (&own.method, own.rank, own.parameters_after, own.samples),
                (&same.method, same.rank, same.parameters_after, same.samples)
            );
            let filled =
                |warnings: &[Warning]| warnings.iter().any(|warning| matches!(warning, Warning::Filled { .. }));
            assert_eq!(filled(&own.warnings), filled(&same.warnings), "{what}, rank {rank}");
        }
    }
}

fn check_shapes<T: Scalar>() {
    for shape in [(9, 14, 60), (14, 9, 60), (10, 10, 60)] {
        for bias in [false, true] {
            let setup = Setup::<T>::new(shape, bias);
            for correct in [false, true] {
                for ridge in [0.0, 0.1] {
                    setup.check(correct, ridge, 7);
                }
            }
        }
    }
    // Five samples vary in at most five directions; the weight determines the others.
    for shape in [(9, 14, 5), (14, 9, 5)] {
        for (correct, ridge) in [(false, 0.0), (true, 0.0), (true, 0.1)] {
            Setup::<T>::new(shape, true).check(correct, ridge, 8);
        }
    }
}

#[test]
fn an_operator_and_a_mean_give_what_the_statistics_give() {
    check_shapes::<f32>();
    check_shapes::<f64>();
}

#[test]
fn an_operator_problem_is_solved_by_the_algorithm_that_is_asked_for() {
    struct Diagonal;
    impl PsdOperator<f64> for Diagonal {
        fn dimension(&self) -> usize {
            40
        }

        fn apply(&self, block: MatRef<'_, f64>, mut result: MatMut<'_, f64>) -> Result<()> {
            result.copy_from(Mat::from_fn(40, block.ncols(), |i, j| 0.7_f64.powi(i as i32) * block[(i, j)]));
            Ok(())
        }

        fn trace(&self) -> Result<f64> {
            Ok((0..40).map(|i| 0.7_f64.powi(i)).sum())
        }
    }
    let layer = Linear::new(Mat::<f64>::identity(40, 40), None).unwrap();
    for (solver, name) in [(Solver::BlockLanczos, "block Lanczos"), (Solver::DenseEigen, "dense")] {
        let problem = OperatorProblem::new(&layer, 1).unwrap().with_solver(solver);
        let solved = problem.solve(&Diagonal, &[0.0; 40], 3).unwrap();
        let report = solved.truncate(1).unwrap().report().clone();
        assert!(report.solver.starts_with(name), "{}", report.solver);
    }
}

#[test]
fn what_does_not_fit_an_operator_problem_is_refused() {
    let setup = Setup::<f64>::new((6, 4, 20), true);
    let problem = || OperatorProblem::new(&setup.layer, 1).unwrap();
    let (whole, wide_one) = (problem(), Mat::<f64>::identity(6, 4));
    let samples = Mat::from_fn(4, 20, |i, j| setup.inputs[(j, i)]);
    let operator = |factor| Spread { factor, samples: samples.clone(), ridge: 0.0 };
    let good = operator(whole.factor());
    let mean = [0.0; 4];
    assert!(problem().solve(&good, &mean, 4).is_ok());
    for rank in [0, 5] {
        let refused = problem().solve(&good, &mean, rank);
        assert!(matches!(refused, Err(Error::Rank { .. })), "{rank}: {refused:?}");
    }
    let refused = problem().solve(&operator(wide_one.as_ref()), &mean, 2).unwrap_err();
    assert!(matches!(refused, Error::Shape { expected: 4, found: 6, .. }), "{refused}");
    let refused = problem().solve(&good, &mean[..3], 2).unwrap_err();
    assert!(matches!(refused, Error::Shape { expected: 4, found: 3, .. }), "{refused}");
    let refused = problem().solve(&good, &[0.0, 0.0, f64::INFINITY, 0.0], 2).unwrap_err();
    assert!(matches!(refused, Error::NonFinite { row: 2, .. }), "{refused}");
    for ridge in [-1.0, f64::NAN, f64::INFINITY] {
        let refused = problem().with_ridge(ridge).solve(&good, &mean, 2).unwrap_err();
        assert!(matches!(refused, Error::OutOfRange { .. }), "{refused}");
    }
    assert!(
        problem()
            .solve(&good, &[0.0, 0.0, f64::INFINITY, 0.0], 2)
            .unwrap_err()
            .to_string()
            .contains("OperatorProblem::solve")
    );
    let negative = Spread { factor: whole.factor(), samples: Mat::zeros(4, 1), ridge: -1.0 };
    let refused = problem().solve(&negative, &mean, 2).unwrap_err();
    assert!(matches!(refused, Error::InvalidOperator { .. }), "{refused}");
    struct Broken;
    impl PsdOperator<f64> for Broken {
        fn dimension(&self) -> usize {
            4
        }
        fn apply(&self, _: MatRef<'_, f64>, _: MatMut<'_, f64>) -> Result<()> {
            Linear::new(Mat::<f64>::zeros(0, 0), None).map(|_| ())
        }
        fn trace(&self) -> Result<f64> {
            Ok(1.0)
        }
    }
    // The error of the operator is returned.
    let refused = problem().solve(&Broken, &mean, 2).unwrap_err();
    assert!(matches!(refused, Error::Empty { operation: "Linear::new", .. }), "{refused}");
}

/// A diagonal operator that counts the vectors by which it is multiplied.
struct Counting {
    dimension: usize,
    vectors: Cell<usize>,
}

impl PsdOperator<f64> for Counting {
    fn dimension(&self) -> usize {
        self.dimension
    }

    fn apply(&self, block: MatRef<'_, f64>, mut result: MatMut<'_, f64>) -> Result<()> {
        self.vectors.set(self.vectors.get() + block.ncols());
        for (column, source) in result.as_mut().col_iter_mut().zip(block.col_iter()) {
            for (row, (to, from)) in column.iter_mut().zip(source.iter()).enumerate() {
                *to = from * 0.5_f64.powi(row.min(1000) as i32);
            }
        }
        Ok(())
    }

    fn trace(&self) -> Result<f64> {
        Ok((0..self.dimension).map(|row| 0.5_f64.powi(row.min(1000) as i32)).sum())
    }
}

/// For few eigenpairs of a large operator, the solver needs a fraction of the products that form
/// its matrix. For all eigenpairs, and for a small operator, it forms the matrix.
#[test]
fn the_automatic_solver_takes_few_products_where_few_suffice() {
    for (dimension, count, iterates) in [(2000, 4, true), (1200, 10, true), (400, 300, false), (60, 4, false)] {
        let operator = Counting { dimension, vectors: Cell::new(0) };
        let pairs = top_eigenpairs(&operator, count, Solver::Auto, 1).unwrap();
        assert_eq!(pairs.solver == "block Lanczos", iterates, "{dimension}, {count}: {}", pairs.solver);
        let products = operator.vectors.get();
        assert!(!iterates || products <= dimension / 4, "{dimension}, {count}: {products} products");
        for (index, value) in pairs.values.iter().enumerate() {
            assert!((value - 0.5_f64.powi(index as i32)).abs() <= 1e-10, "{dimension}, {count}: {value}");
        }
    }
}
