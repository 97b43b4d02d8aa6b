//! Small problems in native precision, compared with plain computations.

use faer::Mat;

use super::operators::{FactoredOperator, GramOperator, Outputs};
use super::problem::{Inputs, Problem};
use super::solve::{Solution, in_native, transposed_eigenpairs};
use super::solver_choice::{OperatorForm, choose};
use crate::covariance::{identity, second_moment};
use crate::linalg::{self, Par, even_exponent};
use crate::solver::{PsdOperator, Solver};
use crate::{ActivationStats, Result, Scalar};

struct GivenMatrix<T> {
    weight: Mat<T>,
    stats: ActivationStats<T>,
    inputs: Inputs,
    keep: f64,
    ridge: f64,
}

impl<T: Scalar> GivenMatrix<T> {
    /// Creates a problem from `W` and samples, one per row, each repeated `times` times.
    fn new(weight: Mat<f64>, samples: &Mat<f64>, times: usize) -> Self {
        let native =
            |matrix: &Mat<f64>| Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| T::from_f64(matrix[(i, j)]));
        let mut stats = ActivationStats::new(samples.ncols());
        (0..times).for_each(|_| stats.update(native(samples).as_ref()).unwrap());
        Self { weight: native(&weight), stats, inputs: Inputs::Data, keep: 1.0, ridge: 0.0 }
    }

    fn with_problem<R>(&self, run: impl FnOnce(&Problem<'_, T>) -> R) -> R {
        let data = second_moment(&self.stats, false).unwrap();
        let unit = identity(self.stats.features());
        let weight = self.weight.as_ref();
        run(&Problem {
            weight,
            weight_exponent: even_exponent(linalg::max_abs(weight)),
            moment: if self.inputs == Inputs::Identity { &*unit } else { &*data },
            inputs: self.inputs,
            keep: self.keep,
            ridge: self.ridge,
            data: Some(&*data),
            solver: Solver::BlockLanczos,
            par: Par::Seq,
        })
    }

    /// Solves by block Lanczos in native precision, with the form for large problems.
    fn solve(&self, rank: usize) -> Option<Solution<T>> {
        self.with_problem(|problem| {
            let (form, algorithm) = choose(problem, rank).native?;
            in_native(problem, form, algorithm, rank).unwrap()
        })
    }

    fn scaled_weight(&self) -> Mat<f64> {
        self.with_problem(|problem| linalg::widened(problem.weight, problem.scale()).unwrap())
    }

    /// Returns `W S Wᵀ` of the scaled weight and the scaled `S`.
    fn energy(&self) -> Mat<f64> {
        let weight = self.scaled_weight();
        let data = self.with_problem(|problem| problem.data.unwrap().scaled(Par::Seq).unwrap());
        &weight * data * weight.transpose()
    }

    /// Returns `W Wᵀ` of the scaled weight.
    fn gram(&self) -> Mat<f64> {
        let weight = self.scaled_weight();
        &weight * weight.transpose()
    }

    /// Returns the ridge for which the data contribute this fraction of `tr(κ S + λ I)`.
    fn ridge_for(&self, fraction: f64) -> f64 {
        self.with_problem(|problem| {
            self.keep * problem.moment.trace() * (1.0 / fraction - 1.0) / problem.moment.features() as f64
        })
    }
}

fn trace(matrix: &Mat<f64>) -> f64 {
    (0..matrix.nrows()).map(|i| matrix[(i, i)]).sum()
}

fn entry(i: usize, j: usize) -> f64 {
    ((i * 29 + j * 53 + i * j * 7) % 31) as f64 / 31.0 - 0.4
}

const FEATURES: usize = 24;

/// Returns `size · (diag(weights) | 0)` and samples that make `S` proportional to
/// `diag(variances, 0)`.
fn diagonal<T: Scalar>(size: f64, weights: &[f64], variances: &[f64], times: usize) -> GivenMatrix<T> {
    let of = |numbers: &[f64], f: fn(f64) -> f64| {
        Mat::from_fn(numbers.len(), FEATURES, |i, j| if i == j { f(numbers[i]) } else { 0.0 })
    };
    GivenMatrix::new(of(weights, |x| x) * faer::Scale(size), &of(variances, f64::sqrt), times)
}

/// Numbers of repetitions: with one, the samples are in sample form, with many in covariance form.
const FORMS: [usize; 2] = [1, 40];

const SIZES: [f64; 4] = [1.0, 1024.0, 1.0 / 1024.0, 64.0];

/// Checks that `keep · Z Zᵀ + ridge · W Wᵀ` is the regularized operator, for weights of any size.
fn check_factors<T: Scalar>(tolerance: f64) {
    for size in SIZES {
        for (times, source) in [(1, OperatorForm::Outputs), (1, OperatorForm::Root), (40, OperatorForm::Root)] {
            let weight = Mat::from_fn(7, FEATURES, |i, j| size * entry(i, j));
            let mut given = GivenMatrix::<T>::new(weight, &Mat::from_fn(9, FEATURES, entry), times);
            given.keep = 0.7;
            given.ridge = given.ridge_for(0.3);
            given.with_problem(|problem| {
                let norms = linalg::squared_column_norms(problem.weight);
                let (keep, ridge) = (problem.keep, problem.ridge);
                let factor = Outputs::new(problem, source, problem.moment, (keep, ridge), &norms).unwrap().unwrap();
                let [outputs, weight] =
                    [factor.matrix.as_ref(), problem.weight].map(|matrix| linalg::widened(matrix, 1.0).unwrap());
                let ours = &outputs * outputs.transpose() * faer::Scale(factor.keep)
                    + &weight * weight.transpose() * faer::Scale(factor.ridge);
                let theirs = given.energy() * faer::Scale(keep) + given.gram() * faer::Scale(ridge);
                assert!((&ours - &theirs).norm_max() < tolerance * theirs.norm_max(), "{size}, {times}");
                let energy = trace(&given.energy());
                assert!((factor.energy - energy).abs() < 10.0 * tolerance * energy, "{size}, {times}");
            });
        }
    }
}

#[test]
fn factors_are_what_they_stand_for() {
    check_factors::<f64>(1e-12);
    check_factors::<f32>(2e-6);
}

#[test]
fn a_root_is_of_use_where_the_data_are_a_hundredth_of_it() {
    for (share, usable) in [(0.008, false), (0.012, true)] {
        let mut given = diagonal::<f64>(64.0, &[1.0; 8], &[1.0; 8], 40);
        // All columns of the weight have the same norm.
        given.weight = Mat::from_fn(8, FEATURES, |i, j| if i == j % 8 { 64.0 } else { 0.0 });
        given.ridge = given.ridge_for(share);
        given.with_problem(|problem| {
            let norms = linalg::squared_column_norms(problem.weight);
            let factor =
                Outputs::new(problem, OperatorForm::Root, problem.moment, (1.0, problem.ridge), &norms).unwrap();
            assert_eq!(factor.is_some(), usable, "{share}");
        });
    }
}

#[test]
fn pairs_of_one_side_are_those_of_the_other() {
    let wide = Mat::from_fn(40, 12, |i, j| entry(i, j) + f64::from(i == j));
    let pairs = transposed_eigenpairs(wide.as_ref(), 0.5, 0.0, 4, Par::Seq).unwrap().unwrap();
    let gram = &wide * wide.transpose() * faer::Scale(0.5);
    for (value, vector) in pairs.values.iter().zip(pairs.vectors.col_iter()) {
        assert!((&gram * vector - vector * faer::Scale(*value)).norm_l2() < 1e-12 * pairs.values[0]);
    }
    let orthonormal = pairs.vectors.transpose() * &pairs.vectors - Mat::<f64>::identity(4, 4);
    assert!(orthonormal.norm_max() < 1e-14);
}

/// Checks that the solution is that of a plain computation, for weights of any size and both forms
/// of the statistics.
fn check_solutions<T: Scalar>(tolerance: f64) {
    let rank = 3;
    for times in FORMS {
        for ratio in [None, Some(0.0), Some(0.4)] {
            let mut before: Option<Vec<f64>> = None;
            for size in SIZES {
                // All inputs have the same mean, which the weights cancel. The energy is therefore
                // much smaller than its terms.
                let mean = |i: usize| (0..FEATURES).map(|j| entry(i, j)).sum::<f64>() / FEATURES as f64;
                let weight = Mat::from_fn(7, FEATURES, |i, j| size * (entry(i, j) - mean(i)));
                let inputs = Mat::from_fn(9, FEATURES, |i, j| entry(i, j) + 1.0);
                let mut given = GivenMatrix::<T>::new(weight, &inputs, times);
                given.inputs = if ratio.is_none() { Inputs::Identity } else { Inputs::Data };
                let name = format!("{size}, {times}");
                let minimised = match ratio {
                    Some(ratio) => {
                        given.ridge = ratio * given.with_problem(|problem| problem.moment.trace()) / FEATURES as f64;
                        given.energy() + given.gram() * faer::Scale(given.ridge)
                    }
                    None => given.gram(),
                };
                let solution = given.solve(rank).expect(&name);
                let values = minimised.self_adjoint_eigenvalues(faer::Side::Lower).unwrap();
                for (index, value) in solution.pairs.values.iter().enumerate() {
                    assert!((value - values[6 - index]).abs() < tolerance * values[6], "{name}");
                }
                assert!((solution.total_energy - trace(&minimised)).abs() < tolerance * solution.total_energy);
                // The problems differ only by powers of two.
                let bits = solution.pairs.values.clone();
                assert_eq!(before.get_or_insert_with(|| bits.clone()), &bits, "{name}");

                let up = linalg::widened(solution.up.as_ref(), 1.0).unwrap();
                let energy = given.energy();
                let mut left = trace(&energy);
                let errors = solution.errors.as_ref().unwrap();
                for (index, error) in errors.by_rank.iter().enumerate() {
                    let column = up.col(index);
                    left -= column.transpose() * (&energy * column);
                    let [error, expected] = [error / errors.total, left / trace(&energy)].map(f64::sqrt);
                    assert!((error - expected).abs() < 10.0 * tolerance, "{name}: {error} {expected}");
                }
                let down = linalg::widened(solution.down.as_ref(), 1.0 / size).unwrap();
                let weight = linalg::widened(given.weight.as_ref(), 1.0 / size).unwrap();
                assert!((down - up.transpose() * weight).norm_max() < 10.0 * tolerance);
                assert_eq!(solution.determined, rank);

                // The noise is 4 ε times the terms of the data's energy.
                let (terms, epsilon) = given.with_problem(|problem| {
                    let norms = linalg::squared_column_norms(problem.weight);
                    let diagonal = problem.data.unwrap().diagonal();
                    let terms: f64 = norms.iter().zip(diagonal).map(|(norm, variance)| norm * variance).sum();
                    (terms * problem.scale() * problem.scale(), T::EPSILON)
                });
                let expected = 4.0 * epsilon * (terms / trace(&energy)).max(1.0);
                assert!(terms > 3.0 * trace(&energy), "{name}: nothing cancels");
                assert!((errors.noise / errors.total / expected - 1.0).abs() < 10.0 * tolerance, "{name}");
            }
        }
    }
}

#[test]
fn solutions_are_those_of_the_problem_in_plain_numbers() {
    check_solutions::<f64>(1e-11);
    check_solutions::<f32>(3e-5);
}

#[test]
fn eigenvalues_count_above_rounding() {
    // The noise is 4 ε times a total of 3, for pairs of any size.
    let noise = 4.0 * f64::EPSILON * 3.0;
    for size in SIZES {
        for (least, counts) in [(1.5 * noise, true), (0.4 * noise, false)] {
            // The fourth output is nearly zero relative to the others. The fifth is zero, so that
            // there are more than four pairs.
            let given = diagonal::<f64>(size, &[1.0, 1.0, 1.0, least.sqrt(), 0.0], &[1.0; 4], 1);
            assert!(given.solve(3).is_some());
            assert_eq!(given.solve(4).is_some(), counts, "{size}, {least:e}");
        }
    }
}

#[test]
fn what_is_left_out_decides_whether_single_precision_will_do() {
    // The solution leaves out `left` of a total of `1 + left`.
    for (left, enough) in [(0.001, false), (0.006, true)] {
        for size in SIZES {
            let given = diagonal::<f32>(size, &[1.0, f64::sqrt(left / (1.0 - left))], &[1.0; 2], 1);
            assert_eq!(given.solve(1).is_some(), enough, "{size}, {left}");
            let given = diagonal::<f64>(size, &[1.0, f64::sqrt(left / (1.0 - left))], &[1.0; 2], 1);
            assert!(given.solve(1).is_some(), "{size}, {left}");
        }
    }
    // On the data, enough energy is left out, but not for the weight alone. Three outputs are
    // equal, and one is small.
    for (small, enough) in [(0.001, false), (0.006, true)] {
        let small: f64 = 3.0 * small / (1.0 - small);
        let mut given = diagonal::<f32>(64.0, &[1.0, 1.0, 1.0, small.sqrt()], &[1.0, 1.0, 1.0, 4.0], 1);
        given.inputs = Inputs::Identity;
        assert_eq!(given.solve(3).is_some(), enough, "{small}");
    }
    // For the weight alone, enough energy is left out, but this part is small on the data.
    for times in FORMS {
        for (left, enough) in [(0.001, false), (0.006, true)] {
            let variance = left / (1.0 - left) / 0.04;
            let mut given = diagonal::<f32>(64.0, &[1.0, 0.2], &[1.0, variance], times);
            given.inputs = Inputs::Identity;
            assert_eq!(given.solve(1).is_some(), enough, "{times}, {left}");
            let mut given = diagonal::<f64>(64.0, &[1.0, 0.2], &[1.0, variance], times);
            given.inputs = Inputs::Identity;
            assert!(given.solve(1).is_some(), "{times}, {left}");
        }
    }
}

#[test]
fn single_precision_sees_a_hundredth_beside_a_ridge() {
    for (share, seen) in [(0.008, false), (0.012, true)] {
        for keep in [1.0, 0.5] {
            let weight = Mat::from_fn(5, FEATURES, entry);
            let mut given = GivenMatrix::<f32>::new(weight.clone(), &Mat::from_fn(6, FEATURES, entry), 1);
            given.keep = keep;
            given.ridge = given.ridge_for(share);
            assert_eq!(given.solve(2).is_some(), seen, "{share}, {keep}");
            let mut given = GivenMatrix::<f64>::new(weight, &Mat::from_fn(6, FEATURES, entry), 1);
            given.keep = keep;
            given.ridge = given.ridge_for(share);
            assert!(given.solve(2).is_some(), "{share}, {keep}");
        }
    }
}

#[test]
fn some_problems_are_for_double_precision_alone() {
    let given = |size: f64| {
        GivenMatrix::<f32>::new(
            Mat::from_fn(5, FEATURES, |i, j| size * entry(i, j)),
            &Mat::from_fn(6, FEATURES, entry),
            1,
        )
    };
    assert!(given(1.0).solve(2).is_some());
    for exponent in [-40, 40] {
        assert!(given(2_f64.powi(exponent)).solve(2).is_none(), "{exponent}");
    }
    // The inputs do not vary.
    let mut still = given(1.0);
    still.stats = ActivationStats::new(FEATURES);
    still.stats.update(Mat::<f32>::zeros(6, FEATURES).as_ref()).unwrap();
    assert!(still.solve(2).is_none());
}

/// Products with the operator and its matrix are implemented separately, and must agree.
#[test]
fn a_factored_operator_applied_equals_it_formed() -> Result<()> {
    let factor = Mat::from_fn(7, 12, entry);
    for samples in [5, 40] {
        let mut stats = ActivationStats::<f64>::new(12);
        stats.update(Mat::from_fn(samples, 12, |i, j| entry(j, i) + 2.0).as_ref())?;
        for centred in [true, false] {
            let moment = second_moment(&stats, centred)?;
            let operator = || FactoredOperator::new(factor.as_ref(), &*moment, (0.7, 0.2), Par::Seq);
            let assembled = operator().assemble()?;
            let mut applied = Mat::zeros(7, 7);
            operator().apply(Mat::identity(7, 7).as_ref(), applied.as_mut())?;
            assert!((&assembled - &applied).norm_max() < 1e-13 * assembled.norm_max());
            assert!((operator().trace()? / trace(&assembled) - 1.0).abs() < 1e-13);
        }
    }
    Ok(())
}

#[test]
fn a_gram_operator_is_the_sum_of_its_parts() -> Result<()> {
    let (outputs, weight) = (Mat::from_fn(5, 8, entry), Mat::from_fn(5, 6, |i, j| entry(j, i + 3)));
    for ridge in [0.0, 0.2] {
        let operator = GramOperator::new(outputs.as_ref(), weight.as_ref(), (0.7, ridge), 1e-3, Par::Seq);
        let expected =
            &outputs * outputs.transpose() * faer::Scale(0.7) + &weight * weight.transpose() * faer::Scale(ridge);
        let mut applied = Mat::zeros(5, 5);
        operator.apply(Mat::identity(5, 5).as_ref(), applied.as_mut())?;
        assert!((&applied - &expected).norm_max() < 1e-14);
        assert!((operator.assemble()? - &expected).norm_max() < 1e-14);
        assert!((operator.trace()? - trace(&expected)).abs() < 1e-14);
        assert_eq!(operator.noise(), 1e-3);
    }
    Ok(())
}

/// The noise is the rounding of the terms, even if they cancel.
#[test]
fn noise_is_rounding_in_every_term() -> Result<()> {
    // From 512 inputs on, products of `f32` samples are formed in single precision.
    let inputs = 512;
    let factor = Mat::from_fn(7, inputs, entry);
    for samples in [5, 1600] {
        let mut stats = ActivationStats::<f32>::new(inputs);
        stats.update(Mat::from_fn(samples, inputs, |i, j| ((i * 29 + j * 53) % 31) as f32 - 9.0).as_ref())?;
        let moment = second_moment(&stats, true)?;
        let term = |j: usize| factor.col(j).squared_norm_l2() * (0.7 * moment.diagonal()[j] + 0.2);
        let terms: f64 = (0..inputs).map(term).sum();
        let expected = (4.0 * inputs as f64 * f64::EPSILON + moment.rounding()) * terms;
        let noise = FactoredOperator::new(factor.as_ref(), &*moment, (0.7, 0.2), Par::Seq).noise();
        assert!((noise / expected - 1.0).abs() < 1e-12, "{noise:e} {expected:e}");
    }
    Ok(())
}
