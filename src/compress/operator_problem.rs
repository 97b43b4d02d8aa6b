//! Compression from an operator, a mean and a trace, for data that are not on this machine.

use std::borrow::Cow;

use faer::MatRef;

use super::decomposition::{Decomposition, Origin};
use super::relative_error::{PredictedErrors, SquaredErrors};
use super::solve::{SmallerSide, Solution};
use crate::bias::times;
use crate::error::during;
use crate::linalg::{self, Par, even_exponent, power_of_two};
use crate::solver::{self, PsdOperator, Solver};
use crate::{Error, Linear, Result, Scalar};

/// The problem of one layer whose data only provide products, because they are spread over many
/// machines or streamed from disk.
///
/// The caller provides the operator `F (S + λI) Fᵀ` with the [`factor`](Self::factor) `F` of this
/// problem and the second moment `S = Σ wᵢ xᵢ xᵢᵀ / Σ wᵢ` of the inputs: about their mean if the
/// bias is corrected, about zero otherwise. The result is that of [`Dalr`](crate::Dalr) with the
/// same statistics and ridge, up to rounding.
///
/// ```
/// use dalr::compress::OperatorProblem;
/// use dalr::solver::PsdOperator;
/// use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Rank, Ridge};
/// use faer::{Mat, MatMut, MatRef};
///
/// /// Outputs of the samples by the factor of the problem; a real one lies on many machines.
/// struct Outputs(Mat<f64>);
///
/// impl PsdOperator<f64> for Outputs {
///     fn dimension(&self) -> usize {
///         self.0.nrows()
///     }
///     fn apply(&self, block: MatRef<'_, f64>, mut result: MatMut<'_, f64>) -> dalr::Result<()> {
///         result.copy_from(&self.0 * (self.0.transpose() * block));
///         Ok(())
///     }
///     fn trace(&self) -> dalr::Result<f64> {
///         Ok(self.0.squared_norm_l2())
///     }
/// }
///
/// # fn main() -> dalr::Result<()> {
/// let layer = Linear::new(Mat::from_fn(5, 4, |i, j| ((i * 5 + j * 3) % 7) as f64), None)?;
/// let samples = Mat::from_fn(4, 30, |i, j| ((i * 11 + j * 7) % 13) as f64);
/// let mean: Vec<f64> = samples.row_iter().map(|row| row.iter().sum::<f64>() / 30.0).collect();
///
/// let problem = OperatorProblem::new(&layer, 0)?;
/// let outputs = problem.factor() * &samples * faer::Scale(1.0 / 30.0_f64.sqrt());
/// let compressed = problem.with_samples(30).solve(&Outputs(outputs), &mean, 2)?.truncate(2)?;
///
/// let mut stats = ActivationStats::new(4);
/// stats.update(samples.transpose())?;
/// let same = Dalr::new().with_ridge(Ridge::None).compress(&layer, &stats, Rank::Fixed(2))?;
/// assert!((compressed.layer().up() - same.layer().up()).norm_max() < 1e-12);
/// # Ok(())
/// # }
/// ```
pub struct OperatorProblem<'a, T> {
    layer: &'a Linear<T>,
    side: SmallerSide<'static>,
    exponent: i32,
    samples: u64,
    ridge: f64,
    correct_bias: bool,
    solver: Solver,
    par: Par,
}

impl<'a, T: Scalar> OperatorProblem<'a, T> {
    /// Creates the problem of a layer, without a ridge. The bias is corrected if the layer has one.
    ///
    /// This call and [`solve`](Self::solve) use `threads` threads. 0 means one inside a rayon
    /// worker, and all of rayon's pool elsewhere. Machines that solve one problem together must use
    /// the same number, because the factor's bits depend on it.
    ///
    /// # Errors
    ///
    /// [`Error::Memory`].
    ///
    /// # Cost
    ///
    /// A QR factorization, `O(m·n²)`, if there are more outputs than inputs; a copy of the weight
    /// otherwise.
    pub fn new(layer: &'a Linear<T>, threads: usize) -> Result<Self> {
        during("OperatorProblem::new", || {
            let par = linalg::threads(threads);
            let exponent = even_exponent(linalg::max_abs(layer.weight()));
            let weight = linalg::widened(layer.weight(), power_of_two(-exponent))?;
            Ok(Self {
                layer,
                side: SmallerSide::new(Cow::Owned(weight), par)?,
                exponent,
                samples: 0,
                ridge: 0.0,
                correct_bias: layer.bias().is_some(),
                solver: Solver::Auto,
                par,
            })
        })
    }

    /// Returns the factor `F`, min(out, in) × in: the weight divided by a power of two, or the
    /// triangle of its QR factorization.
    pub fn factor(&self) -> MatRef<'_, f64> {
        self.side.factor()
    }

    /// Sets the number of samples behind the statistics, for the report.
    #[must_use]
    pub fn with_samples(mut self, samples: u64) -> Self {
        self.samples = samples;
        self
    }

    /// Sets the ridge `λ` that the operator contains, in the units of `S`; 0 by default.
    #[must_use]
    pub fn with_ridge(mut self, ridge: f64) -> Self {
        self.ridge = ridge;
        self
    }

    /// Sets whether the bias is corrected; by default, if the layer has one. If so, the caller must
    /// take `S` about the mean.
    #[must_use]
    pub fn with_bias_correction(mut self, correct: bool) -> Self {
        self.correct_bias = correct;
        self
    }

    /// Returns whether the bias is corrected. If so, the caller must take `S` about the mean.
    pub fn corrects_bias(&self) -> bool {
        self.correct_bias
    }

    /// Sets the algorithm; [`Solver::Auto`] by default.
    #[must_use]
    pub fn with_solver(mut self, solver: Solver) -> Self {
        self.solver = solver;
        self
    }

    /// Solves for every rank up to `max_rank`, given the operator `F (S + λI) Fᵀ` with its trace,
    /// and the mean of the inputs.
    ///
    /// # Errors
    ///
    /// A rank outside of 1 to min(out, in); an operator whose dimension is not the factor's number
    /// of rows; a mean that does not have one finite entry per input; a ridge that is negative or
    /// not finite; errors of [`top_eigenpairs`](crate::solver::top_eigenpairs).
    ///
    /// # Cost
    ///
    /// That of [`top_eigenpairs`](crate::solver::top_eigenpairs), and `O(m·n·k)`.
    pub fn solve(&self, operator: &dyn PsdOperator<f64>, mean: &[f64], max_rank: usize) -> Result<Decomposition<T>> {
        during("OperatorProblem::solve", || {
            let &Self { layer, ref side, exponent, samples, ridge, correct_bias, solver, par } = self;
            let (m, n) = (layer.out_features(), layer.in_features());
            crate::rank::validate_fixed(max_rank, (m, n))?;
            let (rows, columns) = side.factor().shape();
            if operator.dimension() != rows {
                return Err(Error::shape(
                    "dimensions of the operator (one per row of the factor)",
                    rows,
                    operator.dimension(),
                ));
            }
            if mean.len() != columns {
                return Err(Error::shape("entries in the mean (one per input)", columns, mean.len()));
            }
            if let Some((row, value)) = mean.iter().enumerate().find(|(_, value)| !value.is_finite()) {
                return Err(Error::non_finite("the mean", (row, 0), *value));
            }
            if !(ridge >= 0.0 && ridge.is_finite()) {
                return Err(Error::out_of_range("the ridge", "to be finite and not negative".into(), ridge));
            }

            let pairs = solver::solve(operator, max_rank, solver, par)?;
            let determined = pairs.numerical_rank().min(max_rank);
            let up = side.directions(&pairs, determined, par)?;
            let weight = linalg::widened(layer.weight(), power_of_two(-exponent))?;
            let mut down = linalg::product(up.transpose(), weight.as_ref(), par)?;

            let total = operator.trace()?;
            let energy = (total - ridge * linalg::squared_norm(side.factor())).max(0.0);
            // The part of each eigenvalue that comes from the data; null directions have none.
            let norms = linalg::squared_column_norms(down.transpose());
            let captured: Vec<f64> = (pairs.values.iter().zip(norms).enumerate())
                .map(|(index, (value, norm))| if index < determined { value - ridge * norm } else { 0.0 })
                .collect();
            let noise = operator.noise().max(solver::noise_level(m.max(n)) * energy);
            let errors = SquaredErrors::left_of(energy, &captured, noise);
            let means = times(side.factor(), mean);
            let constant_part = if correct_bias { 0.0 } else { means.iter().map(|mean| mean * mean).sum() };
            down *= faer::Scale(power_of_two(exponent));
            let solution = Solution {
                up: linalg::rounded("the factor `up`", up.as_ref())?,
                down: linalg::rounded("the factor `down`", down.as_ref())?,
                errors: None,
                pairs,
                determined,
                total_energy: total,
            };
            let origin = Origin {
                method: "dalr",
                samples,
                effective_samples: (samples > 0).then_some(samples as f64),
                shrinkage: None,
                constant: energy == 0.0,
                means: correct_bias.then_some((mean, mean)),
                errors: PredictedErrors {
                    plain: Some(errors.relative_to((energy - constant_part).max(0.0))),
                    metric: None,
                },
            };
            Decomposition::from_solution(layer, solution, power_of_two(2 * exponent), origin)
        })
    }
}

#[cfg(test)]
mod tests {
    use faer::{Mat, MatMut, MatRef};

    use super::*;
    use crate::{ActivationStats, Dalr, LowRankCompressor, Ridge};

    /// `F (S + λI) Fᵀ` from its two square roots.
    struct GivenRoots {
        outputs: Mat<f64>,
        ridge: Mat<f64>,
    }

    impl PsdOperator<f64> for GivenRoots {
        fn dimension(&self) -> usize {
            self.outputs.nrows()
        }

        fn apply(&self, block: MatRef<'_, f64>, mut result: MatMut<'_, f64>) -> Result<()> {
            let data = &self.outputs * (self.outputs.transpose() * block);
            result.copy_from(data + &self.ridge * (self.ridge.transpose() * block));
            Ok(())
        }

        fn trace(&self) -> Result<f64> {
            Ok(self.outputs.squared_norm_l2() + self.ridge.squared_norm_l2())
        }
    }

    struct Case {
        shape: (usize, usize),
        samples: usize,
        /// The relative ridge.
        ridge: f64,
        correct_bias: bool,
        scale: f64,
    }

    const CASE: Case = Case { shape: (7, 9), samples: 40, ridge: 0.0, correct_bias: true, scale: 1.0 };

    fn compare(name: &str, case: &Case) {
        let &Case { shape: (m, n), samples, ridge, correct_bias, scale } = case;
        let entry = |i: usize, j: usize| ((i * 31 + j * 17 + i * j * 7) % 23) as f64 / 11.0 - 1.0;
        let weight = Mat::from_fn(m, n, |i, j| scale * entry(i, j));
        let layer = Linear::new(weight, Some(faer::Col::from_fn(m, |i| scale * entry(i, 3)))).unwrap();
        let inputs = Mat::from_fn(n, samples, |i, j| entry(j + 5, i) / (i + 1) as f64 + 0.5);
        let mut stats = ActivationStats::new(n);
        stats.update(inputs.transpose()).unwrap();

        let mean: Vec<f64> = stats.mean().unwrap().iter().copied().collect();
        let origin = |i: usize| if correct_bias { mean[i] } else { 0.0 };
        let root = (samples as f64).sqrt();
        let moment = Mat::from_fn(n, samples, |i, j| (inputs[(i, j)] - origin(i)) / root);
        let lambda = ridge * moment.squared_norm_l2() / n as f64;
        let problem = OperatorProblem::new(&layer, 1).unwrap().with_samples(samples as u64).with_ridge(lambda);
        let problem = problem.with_bias_correction(correct_bias);
        assert_eq!(problem.factor().shape(), (m.min(n), n), "{name}");
        let given =
            GivenRoots { outputs: problem.factor() * moment, ridge: problem.factor() * faer::Scale(lambda.sqrt()) };
        let found = problem.solve(&given, &mean, m.min(n)).unwrap();

        let ridge = if ridge > 0.0 { Ridge::Relative(ridge) } else { Ridge::None };
        let compressor = Dalr::new().with_ridge(ridge).with_bias_correction(correct_bias).with_threads(1);
        let expected = compressor.decompose(&layer, &stats, m.min(n)).unwrap();
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-12 * b.abs();
        assert!(close(found.total_energy(), expected.total_energy()), "{name}");
        for rank in 1..=m.min(n) {
            let (found, expected) = (found.truncate(rank).unwrap(), expected.truncate(rank).unwrap());
            let errors = [found.report().relative_error, expected.report().relative_error].map(Option::unwrap);
            assert!((errors[0] - errors[1]).abs() < 1e-7, "{name}, rank {rank}: {errors:?}");
            assert_eq!(found.report().parameters_after, expected.report().parameters_after);
            assert_eq!(found.report().samples, samples as u64);
            let (found, expected) = (found.into_layer(), expected.into_layer());
            let products = [&found, &expected].map(|layer| layer.up() * layer.down());
            assert!((&products[0] - &products[1]).norm_max() < 1e-10 * scale, "{name}, rank {rank}");
            let signs = (found.up() - expected.up()).norm_max();
            assert!(signs < 1e-9, "{name}, rank {rank}: {signs:e}");
            let biases = [&found, &expected].map(|layer| layer.bias().unwrap().to_owned());
            assert!((&biases[0] - &biases[1]).norm_max() < 1e-10 * scale, "{name}, rank {rank}");
        }
    }

    #[test]
    fn gives_the_result_of_the_same_statistics() {
        compare("wide", &CASE);
        compare("tall", &Case { shape: (9, 6), ..CASE });
        compare("ridge", &Case { ridge: 0.3, ..CASE });
        compare("tall with a ridge", &Case { shape: (9, 6), ridge: 0.1, ..CASE });
        compare("bias kept", &Case { correct_bias: false, ..CASE });
        compare("bias kept with a ridge", &Case { correct_bias: false, ridge: 0.2, ..CASE });
        // About their mean, four samples vary in three directions; the weight determines the
        // others.
        compare("few samples", &Case { samples: 4, ..CASE });
        compare("a large weight", &Case { scale: 1e120, ..CASE });
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let layer = Linear::new(Mat::from_fn(3, 5, |i, j| (i + j) as f64), None).unwrap();
        let problem = OperatorProblem::new(&layer, 1).unwrap();
        let given = |rows| GivenRoots { outputs: Mat::identity(rows, rows), ridge: Mat::zeros(rows, 1) };
        let error = |rows, mean: &[f64], rank| problem.solve(&given(rows), mean, rank).unwrap_err().to_string();
        for (error, part) in [
            (error(3, &[0.0; 5], 4), "a rank from 1 to 3"),
            (error(4, &[0.0; 5], 2), "3 dimensions of the operator"),
            (error(3, &[0.0; 4], 2), "5 entries in the mean"),
            (error(3, &[0.0, 0.0, f64::NAN, 0.0, 0.0], 2), "row 2"),
        ] {
            assert!(error.starts_with("OperatorProblem::solve: ") && error.contains(part), "{error}");
        }
        let ridged = OperatorProblem::new(&layer, 1).unwrap().with_ridge(-1.0);
        assert!(matches!(ridged.solve(&given(3), &[0.0; 5], 2), Err(Error::OutOfRange { .. })));
    }
}
