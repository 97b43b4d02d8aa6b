use faer::{Mat, MatMut, MatRef, mat};

use self::ratios::Ratios;
use super::*;

mod ratios;

/// A matrix as an operator, with the default methods.
pub(super) struct Given<T>(pub(super) Mat<T>);

impl<T: Scalar> PsdOperator<T> for Given<T> {
    fn dimension(&self) -> usize {
        self.0.nrows()
    }

    fn apply(&self, block: MatRef<'_, T>, mut result: MatMut<'_, T>) -> Result<()> {
        result.copy_from(&self.0 * block);
        Ok(())
    }

    fn trace(&self) -> Result<f64> {
        Ok((0..self.0.nrows()).map(|i| self.0[(i, i)].to_f64()).sum())
    }
}

/// Returns `Q diag(values) Qᵀ` for the orthogonal `Q = I − 2vvᵀ`.
fn with_eigenvalues(values: &[f64]) -> Mat<f64> {
    let n = values.len();
    let v = Mat::from_fn(n, 1, |i, _| ((i * 7 + 3) % 11) as f64 - 4.5);
    let norm = v.squared_norm_l2();
    let q = Mat::from_fn(n, n, |i, j| f64::from(i == j) - 2.0 * v[(i, 0)] * v[(j, 0)] / norm);
    let scaled = Mat::from_fn(n, n, |i, j| q[(i, j)] * values[j]);
    let product = scaled * q.transpose();
    Mat::from_fn(n, n, |i, j| (product[(i, j)] + product[(j, i)]) / 2.0)
}

/// Returns the result of divide and conquer, after a change.
fn changed(
    matrix: MatRef<'_, f64>,
    par: Par,
    change: impl FnOnce(Vec<f64>, Mat<f64>) -> (Vec<f64>, Mat<f64>),
) -> Result<Option<linalg::Pairs<f64>>> {
    let pairs = linalg::symmetric_eigen(matrix, par)?;
    Ok(pairs.map(|(values, vectors)| change(values, vectors)))
}

/// Algorithms that fail, each in a different way.
const FAILING: [dense::Algorithm<f64>; 8] = [
    dense::Algorithm { name: "no result", solve: |_, _| Ok(None) },
    dense::Algorithm {
        name: "NaN",
        solve: |matrix, _| {
            let n = matrix.nrows();
            Ok(Some((vec![f64::NAN; n], Mat::full(n, n, f64::NAN))))
        },
    },
    dense::Algorithm {
        name: "wrong values",
        solve: |matrix, _| Ok(Some((vec![7.0; matrix.nrows()], Mat::identity(matrix.nrows(), matrix.nrows())))),
    },
    dense::Algorithm {
        name: "vectors of length zero",
        solve: |matrix, _| Ok(Some((vec![0.0; matrix.nrows()], Mat::zeros(matrix.nrows(), matrix.nrows())))),
    },
    dense::Algorithm {
        name: "one pair for all",
        solve: |matrix, par| {
            let n = matrix.nrows();
            changed(matrix, par, |values, vectors| {
                (vec![values[n - 1]; n], Mat::from_fn(n, n, |i, _| vectors[(i, n - 1)]))
            })
        },
    },
    dense::Algorithm {
        name: "the lowest pairs",
        // The leading half is zero; the rest is correct.
        solve: |matrix, par| {
            changed(matrix, par, |mut values, vectors| {
                let half = values.len() / 2 + 1;
                values[half..].fill(0.0);
                (values, vectors)
            })
        },
    },
    dense::Algorithm {
        name: "permuted vectors",
        // All values are correct, and the vectors are orthonormal.
        solve: |matrix, par| {
            let n = matrix.nrows();
            changed(matrix, par, |values, vectors| (values, Mat::from_fn(n, n, |i, j| vectors[(i, (j + 1) % n)])))
        },
    },
    dense::Algorithm {
        name: "overflow",
        solve: |matrix, _| {
            let n = matrix.nrows();
            Ok(Some((vec![1e10; n], Mat::full(n, n, 1e308))))
        },
    },
];

#[test]
fn the_next_algorithm_replaces_one_that_fails_and_the_result_says_so() -> Result<()> {
    let values = [3.0, 2.0, 1.0, 0.5, 0.25, 0.2, 0.1, 0.05, 0.02, 0.01, 0.0];
    let operator = Given(with_eigenvalues(&values));
    for working in dense::ALGORITHMS {
        let name = working.name;
        let algorithms: Vec<_> = FAILING.into_iter().chain([working]).collect();
        let pairs = dense::double_precision(&operator, 5, &algorithms, Par::Seq)?;
        assert!(pairs.fallback && pairs.solver == name);
        assert!(Ratios::of(&operator.0, &values, &pairs).worst() < 35.0);
    }
    let error = dense::double_precision(&operator, 5, &FAILING, Par::Seq).unwrap_err();
    let Error::NoConvergence { dimension: 11, attempts, .. } = error else { panic!("{error}") };
    assert!(FAILING.iter().all(|algorithm| attempts.contains(algorithm.name)), "{attempts}");
    let pairs = top_eigenpairs(&operator, 5, Solver::Auto, 1)?;
    assert!(!pairs.fallback);
    assert_eq!((pairs.steps, pairs.basis_size, pairs.numerical_rank()), (0, 11, 5));
    Ok(())
}

#[test]
fn a_zero_operator_has_rank_zero() -> Result<()> {
    for solver in [Solver::DenseEigen, Solver::BlockLanczos] {
        let pairs = top_eigenpairs(&Given(Mat::<f64>::zeros(5, 5)), 3, solver, 1)?;
        assert_eq!((pairs.numerical_rank(), pairs.residual, pairs.values), (0, 0.0, vec![0.0; 3]), "{solver:?}");
    }
    Ok(())
}

/// An operator that states the noise in its entries.
struct Noisy(Mat<f64>, f64);

impl PsdOperator<f64> for Noisy {
    fn dimension(&self) -> usize {
        self.0.nrows()
    }

    fn apply(&self, block: MatRef<'_, f64>, mut result: MatMut<'_, f64>) -> Result<()> {
        result.copy_from(&self.0 * block);
        Ok(())
    }

    fn trace(&self) -> Result<f64> {
        Ok(2.0)
    }

    fn noise(&self) -> f64 {
        self.1
    }
}

#[test]
fn dense_matrices_may_be_as_unsymmetric_as_rounding_and_noise_allow() {
    let refused = |difference: f64, noise: f64| {
        let operator = Noisy(mat![[1.0, 0.0], [difference, 1.0]], noise);
        top_eigenpairs(&operator, 1, Solver::DenseEigen, 1).is_err()
    };
    // The bound is 100 · 2 times `ε`.
    let bound = 200.0 * f64::EPSILON;
    assert!(!refused(0.9 * bound, 0.0) && refused(1.1 * bound, 0.0));
    assert!(!refused(0.99e-3, 1e-3) && refused(1.01e-3, 1e-3));
}

/// In single precision, a matrix and its transpose differ by much more than the rounding of `f64`.
#[test]
fn a_matrix_that_is_symmetric_to_single_precision_is_solved() -> Result<()> {
    let values: Vec<f64> = (0..12).map(|i| 0.5_f64.powi(i)).collect();
    let exact = with_eigenvalues(&values);
    let entry = |i: usize, j: usize| (exact[(i, j)] * (1.0 + f64::from(u8::from(i > j)) * 2e-7)) as f32;
    let operator = Given(Mat::from_fn(12, 12, entry));
    assert_ne!(operator.0[(5, 2)], operator.0[(2, 5)]);
    let pairs = top_eigenpairs(&operator, 4, Solver::DenseEigen, 1)?;
    assert!(!pairs.fallback);
    assert!(pairs.values.iter().zip(&values).all(|(ours, exact)| (ours - exact).abs() < 1e-6));
    Ok(())
}

#[test]
fn the_solver_with_the_lowest_cost_runs() -> Result<()> {
    let decaying = |n: usize| Diagonal::<f64>::new(&(0..n).map(|i| 0.5_f64.powi(i as i32)).collect::<Vec<_>>());
    let pairs = top_eigenpairs(&decaying(600), 4, Solver::Auto, 1)?;
    assert_eq!(pairs.solver, "block Lanczos");
    assert!((4..600).contains(&pairs.basis_size) && pairs.steps > 0);
    assert_eq!(pairs.to_string(), format!("block Lanczos ({} steps, basis {})", pairs.steps, pairs.basis_size));
    let pairs = top_eigenpairs(&decaying(100), 4, Solver::Auto, 1)?;
    assert!(pairs.solver.starts_with("dense") && pairs.to_string() == pairs.solver);
    Ok(())
}

#[test]
fn the_costs_that_an_operator_states_decide() -> Result<()> {
    let iterated = |macs: f64, assembly_macs: f64| -> Result<bool> {
        let operator = Diagonal::<f64>::new(&(0..600).map(|i| 0.5_f64.powi(i)).collect::<Vec<_>>());
        let pairs = top_eigenpairs(&operator.with_costs(macs, assembly_macs), 4, Solver::Auto, 1)?;
        Ok(pairs.solver == "block Lanczos")
    };
    let dense = cost::dense(600);
    assert!(iterated(0.0, 0.0)? && iterated(dense / 300.0, 10.0 * dense)?);
    assert!(!iterated(dense, 0.0)?);
    Ok(())
}

/// faer's eigendecomposition was reported to fail on an 11 × 11 matrix. The fallback does not use
/// it, and solves such matrices.
#[test]
fn the_fallback_solves_an_eleven_by_eleven() -> Result<()> {
    let spectra =
        [[1.0; 11], core::array::from_fn(|i| 10_f64.powi(-2 * i as i32)), core::array::from_fn(|i| f64::from(i < 4))];
    for values in spectra {
        let operator = Given(with_eigenvalues(&values));
        let [mut first, fallback] = dense::ALGORITHMS;
        first.solve = |_, _| Ok(None);
        let name = fallback.name;
        let pairs = dense::double_precision(&operator, 5, &[first, fallback], Par::Seq)?;
        assert_eq!((pairs.solver, pairs.fallback), (name, true));
        assert!(Ratios::of(&operator.0, &values, &pairs).worst() < 35.0, "{values:?}");
    }
    Ok(())
}

#[test]
fn algorithms_end_at_once_on_a_matrix_that_is_not_finite() -> Result<()> {
    // The solver checks matrices before it calls this function. Without a second check, faer would
    // run for hours on these.
    for bad in [f64::NAN, f64::INFINITY] {
        let matrix = Mat::full(600, 600, bad);
        for algorithm in &dense::ALGORITHMS {
            assert!((algorithm.solve)(matrix.as_ref(), Par::Seq)?.is_none(), "{}", algorithm.name);
        }
    }
    Ok(())
}

#[test]
fn every_algorithm_finds_a_negative_eigenvalue_at_any_place() {
    for value in [-0.5, -2.0, -10.0] {
        let operator = Given(with_eigenvalues(&[3.0, 2.0, 1.0, 0.5, value]));
        for at in 0..dense::ALGORITHMS.len() {
            let outcome = dense::double_precision(&operator, 2, &dense::ALGORITHMS[at..], Par::Seq);
            match outcome {
                Err(Error::InvalidOperator { found, .. }) => assert!(found.starts_with("a negative"), "{found}"),
                // Singular vectors of the eigenvalues 2 and −2 mix, so the fallback cannot detect
                // why it fails.
                Err(Error::NoConvergence { .. }) if at > 0 && value == -2.0 => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn operators_that_break_the_contract_are_refused() {
    let refused = |matrix: Mat<f64>| match top_eigenpairs(&Given(matrix), 1, Solver::DenseEigen, 1) {
        Err(Error::InvalidOperator { found, .. }) => found,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(mat![[1.0, 2.0], [0.0, 1.0]]), "different entries at (1, 0) and (0, 1)");
    assert_eq!(refused(mat![[f64::NAN, 0.0], [0.0, 1.0]]), "NaN at row 0, column 0");
    assert!(refused(mat![[1.0, 0.0], [0.0, f64::INFINITY]]).starts_with("NaN at row"));
    assert!(refused(mat![[1.0, 0.0], [0.0, -0.5]]).starts_with("a negative eigenvalue, -5"));
}

#[test]
fn counts_outside_of_the_dimension_are_refused() {
    let operator = Given(with_eigenvalues(&[2.0, 1.0]));
    for count in [0, 3] {
        let error = top_eigenpairs(&operator, count, Solver::Auto, 1).unwrap_err();
        let expected = format!("top_eigenpairs: expected a number of eigenpairs from 1 to 2, got {count}");
        assert_eq!(error.to_string(), expected);
    }
    let error = top_eigenpairs(&Given(Mat::<f64>::new()), 1, Solver::Auto, 1).unwrap_err();
    assert!(matches!(error, Error::Empty { .. }));
}

#[test]
fn an_operators_own_error_is_passed_on() {
    struct Broken;
    impl PsdOperator<f32> for Broken {
        fn dimension(&self) -> usize {
            4
        }
        fn apply(&self, _: MatRef<'_, f32>, _: MatMut<'_, f32>) -> Result<()> {
            Err(Error::NoSamples { operation: "Broken::apply" })
        }
        fn trace(&self) -> Result<f64> {
            Ok(0.0)
        }
    }
    let error = top_eigenpairs(&Broken, 1, Solver::Auto, 1).unwrap_err();
    assert_eq!(error, Error::NoSamples { operation: "Broken::apply" });
}

#[test]
fn signs_are_fixed() -> Result<()> {
    let operator = Given(with_eigenvalues(&[5.0, 4.0, 3.0, 2.0, 1.0]));
    for at in 0..dense::ALGORITHMS.len() {
        let pairs = dense::double_precision(&operator, 5, &dense::ALGORITHMS[at..], Par::Seq)?;
        for column in pairs.vectors.col_iter() {
            let largest = column.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs()));
            assert!(largest > Some(0.0));
        }
    }
    Ok(())
}

#[test]
fn a_completed_basis_is_orthonormal_and_follows_the_weight() -> Result<()> {
    // Columns of F along e0 (in the basis), e3 (strong) and e2 (weak); nothing along e1 and e4.
    let factor = Mat::from_fn(5, 3, |i, j| match (i, j) {
        (0, 0) => 9.0,
        (3, 1) => 2.0,
        (2, 2) => 1e-3,
        _ => 0.0,
    });
    let basis = Mat::from_fn(5, 1, |i, _| f64::from(i == 0));
    for (count, zero_factor) in [(1, false), (2, false), (3, false), (5, false), (5, true)] {
        let factor = if zero_factor { Mat::zeros(5, 3) } else { factor.clone() };
        let completed = complete_basis(basis.as_ref(), factor.as_ref(), count, Par::Seq)?;
        let identity = Mat::<f64>::identity(count, count);
        assert!((completed.transpose() * &completed - identity).norm_max() < 1e-14);
        assert_eq!(completed[(0, 0)], 1.0);
        if !zero_factor && count > 2 {
            assert!((completed[(3, 1)].abs() - 1.0).abs() < 1e-14);
            assert!((completed[(2, 2)].abs() - 1.0).abs() < 1e-9);
        }
    }
    Ok(())
}

/// A diagonal operator in either precision, which counts the vectors it is applied to.
pub(super) struct Diagonal<T> {
    values: Vec<T>,
    noise: f64,
    costs: (f64, f64),
    applied: core::cell::Cell<usize>,
}

impl<T: Scalar> Diagonal<T> {
    pub(super) fn new(values: &[f64]) -> Self {
        let size = values.len() as f64;
        let values = values.iter().map(|&value| T::from_f64(value)).collect();
        Self { values, noise: 0.0, costs: (size.powi(2), size.powi(3)), applied: Default::default() }
    }

    pub(super) fn with_noise(self, noise: f64) -> Self {
        Self { noise, ..self }
    }

    fn with_costs(self, macs: f64, assembly_macs: f64) -> Self {
        Self { costs: (macs, assembly_macs), ..self }
    }
}

impl<T: Scalar> PsdOperator<T> for Diagonal<T> {
    fn dimension(&self) -> usize {
        self.values.len()
    }

    fn apply(&self, block: MatRef<'_, T>, mut result: MatMut<'_, T>) -> Result<()> {
        self.applied.set(self.applied.get() + block.ncols());
        for column in 0..block.ncols() {
            for (row, &value) in self.values.iter().enumerate() {
                result[(row, column)] = value * block[(row, column)];
            }
        }
        Ok(())
    }

    fn trace(&self) -> Result<f64> {
        Ok(self.values.iter().map(|value| value.to_f64()).sum())
    }

    fn noise(&self) -> f64 {
        self.noise
    }

    fn macs(&self) -> f64 {
        self.costs.0
    }

    fn assembly_macs(&self) -> f64 {
        self.costs.1
    }
}

/// Solves by block Lanczos alone. Checks that the vectors are orthogonal, and that they explain as
/// much energy as possible.
fn check_lanczos<T: Scalar>(name: &str, values: &[f64], count: usize, widths: lanczos::Widths) -> Eigenpairs {
    let operator = Diagonal::<T>::new(values);
    let pairs = lanczos::top_eigenpairs(&operator, count, widths, Par::Seq).unwrap();
    let pairs = pairs.unwrap_or_else(|| panic!("{name}: did not settle"));
    let (vectors, dimension) = (pairs.vectors.as_ref(), values.len());
    let identity = Mat::<f64>::identity(count, count);
    let orthogonality = (vectors.transpose() * vectors - identity).norm_max();
    assert!(orthogonality < 35.0 * dimension as f64 * f64::EPSILON, "{name}: {orthogonality:e}");
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let (total, optimum) = (sorted.iter().sum::<f64>(), sorted[..count].iter().sum::<f64>());
    let energy =
        |column: usize| -> f64 { values.iter().enumerate().map(|(i, v)| v * vectors[(i, column)].powi(2)).sum() };
    let captured: f64 = (0..count).map(energy).sum();
    let relative = if T::EPSILON > f64::EPSILON { 1e-4 } else { 1e-6 };
    let excess = optimum - captured;
    assert!(excess <= relative * (total - optimum) + 20.0 * T::EPSILON * total, "{name}: {excess:e} of {optimum:e}");
    for (ours, exact) in pairs.values.iter().zip(&sorted) {
        assert!((ours - exact).abs() <= relative * sorted[0] + 20.0 * T::EPSILON * total, "{name}: {ours} {exact}");
    }
    pairs
}

#[test]
fn block_lanczos_is_right_where_krylov_spaces_are_blind() {
    let mixed = |counts: &[(usize, f64)]| -> Vec<f64> {
        // Interleaved, so that eigenvectors are not the first unit vectors.
        let values: Vec<f64> = counts.iter().flat_map(|&(count, value)| vec![value; count]).collect();
        (0..values.len()).map(|i| values[i * 7 % values.len()]).collect()
    };
    let decay = |n: usize, f: fn(f64) -> f64| -> Vec<f64> { (0..n).map(|i| f(i as f64)).collect() };
    let cases: Vec<(&str, Vec<f64>, usize)> = vec![
        ("multiplicity above the block across the cut", mixed(&[(200, 1.0), (601, 0.1)]), 64),
        ("multiplicity below the cut", mixed(&[(40, 1.0), (761, 0.1)]), 64),
        ("three clusters", mixed(&[(30, 1.0), (100, 0.5), (271, 0.01)]), 80),
        ("rank below k", mixed(&[(20, 1.0), (381, 0.0)]), 50),
        ("all equal", vec![1.0; 301], 40),
        ("one dominant", mixed(&[(1, 1e6), (400, 1.0)]), 10),
        ("zero", vec![0.0; 100], 7),
        ("1 × 1", vec![3.0], 1),
        ("k = dimension", decay(60, |i| 1.0 / (1.0 + i)), 60),
        ("k = dimension − 1", decay(60, |i| 1.0 / (1.0 + i)), 59),
        ("power law", decay(500, |i| (1.0 + i).powf(-1.5)), 50),
        ("geometric", decay(500, |i| 0.9_f64.powf(i)), 50),
        ("slow", decay(500, |i| 1.0 - i / 500.0), 30),
        ("tiny", decay(300, |i| 1e-30 * (1.0 + i).powf(-1.0)), 20),
        ("huge", decay(300, |i| 1e30 * (1.0 + i).powf(-1.0)), 20),
    ];
    for (name, values, count) in &cases {
        let widths = lanczos::Widths::new(values.len(), *count);
        check_lanczos::<f64>(name, values, *count, widths);
        check_lanczos::<f32>(name, values, *count, widths);
    }
}

#[test]
fn block_lanczos_restarts_in_a_small_basis() {
    let values: Vec<f64> = (0..700).map(|i| (1.0 + f64::from(i)).powf(-1.0)).collect();
    let widths = lanczos::Widths { block: 8, basis: 140 };
    let pairs = check_lanczos::<f64>("restarted", &values, 40, widths);
    assert!(pairs.basis_size <= 140 && pairs.steps * 8 > 140);
    assert!(pairs.residual < 1e-4);
}

#[test]
fn block_lanczos_reports_a_residual_that_is_one() {
    let values: Vec<f64> = (0..400).map(|i| 7.0 * (1.0 + f64::from(i)).powf(-1.2)).collect();
    let operator = Diagonal::<f64>::new(&values);
    let pairs = top_eigenpairs(&operator, 20, Solver::BlockLanczos, 1).unwrap();
    assert_eq!(pairs.solver, "block Lanczos");
    assert!(!pairs.fallback && pairs.basis_size < 400);
    let vectors = pairs.vectors.as_ref();
    let worst = (0..20).map(|column| {
        let entry = |row: usize| (values[row] - pairs.values[column]) * vectors[(row, column)];
        (0..400).map(|row| entry(row).powi(2)).sum::<f64>().sqrt()
    });
    let worst = worst.fold(0.0, f64::max) / values[0];
    assert!(worst <= 1.5 * pairs.residual + 1e-13, "{worst:e} {:e}", pairs.residual);
    assert!(pairs.residual <= 1.5 * worst + 1e-13, "{worst:e} {:e}", pairs.residual);
}

#[test]
fn block_lanczos_refuses_what_breaks_the_contract() {
    let refused = |matrix: Mat<f64>| match top_eigenpairs(&Given(matrix), 2, Solver::BlockLanczos, 1) {
        Err(Error::InvalidOperator { found, .. }) => found,
        other => panic!("{other:?}"),
    };
    let n = 40;
    let identity = || Mat::<f64>::identity(n, n);
    let mut skew = identity();
    skew[(3, 9)] = 5.0;
    assert!(refused(skew).starts_with("products that differ by"));
    let mut nan = identity();
    nan[(3, 3)] = f64::NAN;
    assert!(refused(nan).contains("NaN"));
    let mut negative = identity();
    negative[(3, 3)] = -2.0;
    assert!(refused(negative).starts_with("a negative eigenvalue"));
    assert_eq!(refused(Mat::from_fn(n, n, |i, j| if i == j { -1.0 } else { 0.0 })), "a trace of -40");
}

#[test]
fn block_lanczos_gives_up_in_time_and_hands_over() {
    // The largest eigenvalues lie so close that polynomials of low degree do not separate them.
    let values: Vec<f64> = (0..1000).map(|i| 1.0 + (f64::from(i) * 0.00314).cos()).collect();
    let operator = Diagonal::<f64>::new(&values);
    assert!(block_lanczos(&operator, 6, Par::Seq).unwrap().is_none());
    // The limit is 40 products for each of the 6 pairs and of the 16 vectors in a block, and one
    // more block.
    let products = operator.applied.get();
    assert!(products > 100 && products <= 40 * (6 + 16) + 64, "{products}");
    let pairs = top_eigenpairs(&operator, 6, Solver::BlockLanczos, 1).unwrap();
    assert!(pairs.fallback && pairs.solver.starts_with("dense"));
}

#[test]
fn block_lanczos_is_cheaper_for_few_pairs_of_large_operators_only() {
    let chosen = |dimension: usize, count: usize| {
        let square = (dimension as f64).powi(2);
        let dense = cost::dense(dimension) + square * dimension as f64;
        cost::lanczos(dimension, count, square).is_some_and(|cost| cost < dense)
    };
    assert!(chosen(4096, 256) && chosen(1024, 16));
    assert!(!chosen(64, 8) && !chosen(1000, 900));
    // The basis must not fill the space, however cheap a product is.
    assert!(cost::lanczos(300, 100, 0.0).is_none());
}

#[test]
fn the_default_costs_are_those_of_a_matrix() {
    let operator = Given(Mat::<f64>::zeros(7, 7));
    assert_eq!((operator.macs(), operator.assembly_macs()), (49.0, 343.0));
}

#[test]
fn the_first_of_the_largest_entries_becomes_positive() {
    let mut vectors = mat![[0.1, -0.1, 0.0], [-0.7, 0.7, -0.5], [0.7, 0.7, -0.5], [-0.1, 0.1, 0.5]];
    fix_signs(&mut vectors);
    assert_eq!(vectors, mat![[-0.1, -0.1, 0.0], [0.7, 0.7, 0.5], [-0.7, 0.7, 0.5], [0.1, 0.1, -0.5]]);
}
