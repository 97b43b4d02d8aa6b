use self::ratios::Ratios;
use super::*;
use faer::mat;

mod ratios;

/// A matrix as an operator, with nothing but `apply`.
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

/// `Q diag(values) Qᵀ` for the orthogonal `Q = I − 2vvᵀ`.
fn with_eigenvalues(values: &[f64]) -> Mat<f64> {
    let n = values.len();
    let v = Mat::from_fn(n, 1, |i, _| ((i * 7 + 3) % 11) as f64 - 4.5);
    let norm = v.squared_norm_l2();
    let q = Mat::from_fn(n, n, |i, j| f64::from(i == j) - 2.0 * v[(i, 0)] * v[(j, 0)] / norm);
    let scaled = Mat::from_fn(n, n, |i, j| q[(i, j)] * values[j]);
    let product = scaled * q.transpose();
    Mat::from_fn(n, n, |i, j| (product[(i, j)] + product[(j, i)]) / 2.0)
}

const GIVES_UP: dense::Rung = dense::Rung { name: "gives up", solve: |_, _| Ok(None) };

const GIVES_NAN: dense::Rung = dense::Rung {
    name: "gives NaN",
    solve: |matrix, _| Ok(Some((vec![f64::NAN; matrix.nrows()], Mat::full(matrix.nrows(), matrix.nrows(), f64::NAN)))),
};

const GIVES_NONSENSE: dense::Rung = dense::Rung {
    name: "gives nonsense",
    solve: |matrix, _| Ok(Some((vec![7.0; matrix.nrows()], Mat::identity(matrix.nrows(), matrix.nrows())))),
};

const GIVES_NOTHING: dense::Rung = dense::Rung {
    name: "gives vectors of length zero",
    solve: |matrix, _| Ok(Some((vec![0.0; matrix.nrows()], Mat::zeros(matrix.nrows(), matrix.nrows())))),
};

const GIVES_ONE_PAIR: dense::Rung = dense::Rung {
    name: "gives one pair for all",
    solve: |matrix, threads| {
        let pairs = (dense::LADDER[0].solve)(matrix, threads)?;
        let n = matrix.nrows();
        Ok(pairs.map(|(values, vectors)| (vec![values[n - 1]; n], Mat::from_fn(n, n, |i, _| vectors[(i, n - 1)]))))
    },
};

const GIVES_THE_LOWEST: dense::Rung = dense::Rung {
    name: "gives the lowest pairs",
    solve: |matrix, threads| {
        let pairs = (dense::LADDER[0].solve)(matrix, threads)?;
        // The leading half is said to be zero, the rest is true.
        let half = |values: Vec<f64>| {
            values.iter().enumerate().map(|(i, &value)| if 2 * i > values.len() { 0.0 } else { value }).collect()
        };
        Ok(pairs.map(|(values, vectors)| (half(values), vectors)))
    },
};

const GIVES_TURNED_VECTORS: dense::Rung = dense::Rung {
    name: "gives turned vectors",
    solve: |matrix, threads| {
        let pairs = (dense::LADDER[0].solve)(matrix, threads)?;
        // All values are true, and the vectors orthonormal: each is another one's.
        let turned = |vectors: Mat<f64>| {
            let n = vectors.ncols();
            Mat::from_fn(n, n, |i, j| vectors[(i, (j + 1) % n)])
        };
        Ok(pairs.map(|(values, vectors)| (values, turned(vectors))))
    },
};

const OVERFLOWS: dense::Rung = dense::Rung {
    name: "overflows",
    solve: |matrix, _| Ok(Some((vec![1e10; matrix.nrows()], Mat::full(matrix.nrows(), matrix.nrows(), 1e308)))),
};

#[test]
fn a_rung_that_fails_hands_over_and_the_result_says_so() -> Result<()> {
    const FAILING: [dense::Rung; 8] = [
        GIVES_UP,
        GIVES_NAN,
        GIVES_NONSENSE,
        GIVES_NOTHING,
        GIVES_ONE_PAIR,
        GIVES_THE_LOWEST,
        GIVES_TURNED_VECTORS,
        OVERFLOWS,
    ];
    let values = [3.0, 2.0, 1.0, 0.5, 0.25, 0.2, 0.1, 0.05, 0.02, 0.01, 0.0];
    let operator = Given(with_eigenvalues(&values));
    // Whatever fails first, every rung that works takes over.
    for working in dense::LADDER {
        let name = working.name;
        let ladder: Vec<dense::Rung> = FAILING.into_iter().chain([working]).collect();
        let pairs = dense::top_eigenpairs(&operator, 5, &ladder, 1)?;
        assert!(pairs.is_fallback() && pairs.solver() == name);
        assert!(Ratios::of(&operator.0, &values, &pairs).worst() < 35.0);
    }
    let error = dense::top_eigenpairs(&operator, 5, &FAILING, 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "top_eigenpairs: expected an eigendecomposition of dimension 11, got no convergence from any of: \
         gives up, gives NaN, gives nonsense, gives vectors of length zero, gives one pair for all, \
         gives the lowest pairs, gives turned vectors, overflows"
    );
    let pairs = top_eigenpairs(&operator, 5, Solver::Auto, 1)?;
    assert!(!pairs.is_fallback());
    assert_eq!((pairs.steps(), pairs.basis_size(), pairs.numerical_rank()), (0, 11, 5));
    Ok(())
}

#[test]
fn nothing_stands_out_of_nothing() -> Result<()> {
    for solver in [Solver::DenseEigen, Solver::BlockLanczos] {
        let pairs = top_eigenpairs(&Given(Mat::<f64>::zeros(5, 5)), 3, solver, 1)?;
        assert_eq!((pairs.numerical_rank(), pairs.residual(), pairs.values()), (0, 0.0, &[0.0; 3][..]), "{solver:?}");
    }
    Ok(())
}

/// An operator that says how much its entries are off.
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
    // 100 · 2 roundings.
    let bound = 200.0 * f64::EPSILON;
    assert!(!refused(0.9 * bound, 0.0) && refused(1.1 * bound, 0.0));
    assert!(!refused(0.99e-3, 1e-3) && refused(1.01e-3, 1e-3));
}

/// Products in single precision differ from those of the transpose by much more than the rounding of `f64`.
#[test]
fn a_matrix_that_is_symmetric_to_single_precision_is_solved() -> Result<()> {
    let values: Vec<f64> = (0..12).map(|i| 0.5_f64.powi(i)).collect();
    let exact = with_eigenvalues(&values);
    let entry = |i: usize, j: usize| (exact[(i, j)] * (1.0 + f64::from(u8::from(i > j)) * 2e-7)) as f32;
    let operator = Given(Mat::from_fn(12, 12, entry));
    assert_ne!(operator.0[(5, 2)], operator.0[(2, 5)]);
    let pairs = top_eigenpairs(&operator, 4, Solver::DenseEigen, 1)?;
    assert!(!pairs.is_fallback());
    assert!(pairs.values().iter().zip(&values).all(|(ours, exact)| (ours - exact).abs() < 1e-6));
    Ok(())
}

#[test]
fn a_solver_is_chosen_by_what_it_takes() -> Result<()> {
    let decaying = |n: usize| Diagonal::<f64>::new(&(0..n).map(|i| 0.5_f64.powi(i as i32)).collect::<Vec<_>>());
    let pairs = top_eigenpairs(&decaying(600), 4, Solver::Auto, 1)?;
    assert_eq!(pairs.solver(), "block Lanczos");
    assert!((4..600).contains(&pairs.basis_size()) && pairs.steps() > 0);
    assert_eq!(pairs.to_string(), format!("block Lanczos ({} steps, basis {})", pairs.steps(), pairs.basis_size()));
    let pairs = top_eigenpairs(&decaying(100), 4, Solver::Auto, 1)?;
    assert_eq!((pairs.solver(), pairs.to_string()), (dense::LADDER[0].name, pairs.solver().to_string()));
    Ok(())
}

#[test]
fn an_operators_own_prices_decide_and_where_they_are_equal_the_exact_solver_does() -> Result<()> {
    let iterated = |work: f64, assembly_work: f64| -> Result<bool> {
        let operator = Diagonal::<f64>::new(&(0..600).map(|i| 0.5_f64.powi(i)).collect::<Vec<_>>());
        let pairs = top_eigenpairs(&operator.with_prices(work, assembly_work), 4, Solver::Auto, 1)?;
        Ok(pairs.solver() == "block Lanczos")
    };
    let dense = cost::dense(600);
    let work = dense / 300.0;
    let iterating = cost::lanczos(600, 4, work).expect("a basis that leaves room");
    assert!(iterating > dense);
    assert!(!iterated(work, 0.0)? && !iterated(work, iterating - dense)?);
    assert!(iterated(work, iterating - dense + 1.0)? && iterated(0.0, 0.0)? && iterated(work, dense)?);
    Ok(())
}

/// As faer's own solvers were reported to, on an 11 × 11 of all sizes: with whatever rungs give up, those that are left answer.
#[test]
fn an_eleven_by_eleven_on_which_solvers_give_up() -> Result<()> {
    let spectra =
        [[1.0; 11], core::array::from_fn(|i| 10_f64.powi(-2 * i as i32)), core::array::from_fn(|i| f64::from(i < 4))];
    for values in spectra {
        let operator = Given(with_eigenvalues(&values));
        for lost in 0..1_u32 << dense::LADDER.len() {
            let gives_up = |index: usize| lost & 1 << index != 0;
            let rungs = dense::LADDER.into_iter().enumerate();
            let ladder: Vec<_> = rungs
                .map(|(index, rung)| if gives_up(index) { dense::Rung { name: rung.name, ..GIVES_UP } } else { rung })
                .collect();
            let Some(working) = (0..ladder.len()).find(|&index| !gives_up(index)) else {
                let error = dense::top_eigenpairs(&operator, 5, &ladder, 1).unwrap_err();
                let Error::NoConvergence { dimension: 11, attempts, .. } = error else { panic!("{error}") };
                assert!(dense::LADDER.iter().all(|rung| attempts.contains(rung.name)), "{attempts}");
                continue;
            };
            let pairs = dense::top_eigenpairs(&operator, 5, &ladder, 1)?;
            assert_eq!((pairs.solver(), pairs.is_fallback()), (dense::LADDER[working].name, working > 0));
            assert!(Ratios::of(&operator.0, &values, &pairs).worst() < 35.0, "{}: {values:?}", pairs.solver());
        }
    }
    Ok(())
}

#[test]
fn no_rung_of_faers_spins_on_what_is_no_number() -> Result<()> {
    // It does not get here, being checked twice; if it did, some `30 d²` rounds over the whole matrix would take hours.
    for bad in [f64::NAN, f64::INFINITY] {
        let matrix = Mat::full(600, 600, bad);
        for rung in &dense::LADDER[..3] {
            assert!((rung.solve)(matrix.as_ref(), 1)?.is_none(), "{}", rung.name);
        }
    }
    Ok(())
}

#[test]
fn every_rung_sees_a_negative_eigenvalue_wherever_it_stands() {
    for value in [-0.5, -2.0, -10.0] {
        let operator = Given(with_eigenvalues(&[3.0, 2.0, 1.0, 0.5, value]));
        for rung in 0..dense::LADDER.len() {
            let outcome = dense::top_eigenpairs(&operator, 2, &dense::LADDER[rung..], 1);
            let Err(Error::InvalidOperator { found, .. }) = outcome else { panic!("{outcome:?}") };
            assert!(found.starts_with("a negative eigenvalue"), "{found}");
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
            Err(Error::no_samples())
        }
        fn trace(&self) -> Result<f64> {
            Ok(0.0)
        }
    }
    let error = top_eigenpairs(&Broken, 1, Solver::Auto, 1).unwrap_err();
    assert_eq!(error, Error::no_samples());
}

#[test]
fn signs_are_fixed() -> Result<()> {
    let operator = Given(with_eigenvalues(&[5.0, 4.0, 3.0, 2.0, 1.0]));
    for rung in 0..dense::LADDER.len() {
        let pairs = dense::top_eigenpairs(&operator, 5, &dense::LADDER[rung..], 1)?;
        for column in pairs.vectors().col_iter() {
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
        let completed = complete_basis(basis.as_ref(), factor.as_ref(), count, 1)?;
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

/// A diagonal operator in either precision, which counts what it is applied to.
pub(super) struct Diagonal<T> {
    values: Vec<T>,
    noise: f64,
    prices: (f64, f64),
    applied: core::cell::Cell<usize>,
}

impl<T: Scalar> Diagonal<T> {
    pub(super) fn new(values: &[f64]) -> Self {
        let size = values.len() as f64;
        let values = values.iter().map(|&value| T::from_f64(value)).collect();
        Self { values, noise: 0.0, prices: (size.powi(2), size.powi(3)), applied: Default::default() }
    }

    pub(super) fn with_noise(self, noise: f64) -> Self {
        Self { noise, ..self }
    }

    fn with_prices(self, work: f64, assembly_work: f64) -> Self {
        Self { prices: (work, assembly_work), ..self }
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

    fn work(&self) -> f64 {
        self.prices.0
    }

    fn assembly_work(&self) -> f64 {
        self.prices.1
    }
}

/// Solves by block Lanczos alone and checks orthogonality, and that the energy captured is the optimum.
fn check_lanczos<T: Scalar>(name: &str, values: &[f64], count: usize, layout: lanczos::Layout) -> Eigenpairs {
    let operator = Diagonal::<T>::new(values);
    let pairs = lanczos::top_eigenpairs(&operator, count, layout, 1).unwrap();
    let pairs = pairs.unwrap_or_else(|| panic!("{name}: did not settle"));
    let (vectors, dimension) = (pairs.vectors(), values.len());
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
    for (ours, exact) in pairs.values().iter().zip(&sorted) {
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
        let layout = lanczos::Layout::new(values.len(), *count);
        check_lanczos::<f64>(name, values, *count, layout);
        check_lanczos::<f32>(name, values, *count, layout);
    }
}

#[test]
fn block_lanczos_restarts_in_a_small_basis() {
    let values: Vec<f64> = (0..700).map(|i| (1.0 + f64::from(i)).powf(-1.0)).collect();
    let layout = lanczos::Layout { block: 8, basis: 140 };
    let pairs = check_lanczos::<f64>("restarted", &values, 40, layout);
    assert!(pairs.basis_size() <= 140 && pairs.steps() * 8 > 140);
    assert!(pairs.residual() < 1e-4);
}

#[test]
fn block_lanczos_reports_a_residual_that_is_one() {
    let values: Vec<f64> = (0..400).map(|i| 7.0 * (1.0 + f64::from(i)).powf(-1.2)).collect();
    let operator = Diagonal::<f64>::new(&values);
    let pairs = top_eigenpairs(&operator, 20, Solver::BlockLanczos, 1).unwrap();
    assert_eq!(pairs.solver(), "block Lanczos");
    assert!(!pairs.is_fallback() && pairs.basis_size() < 400);
    let vectors = pairs.vectors();
    let worst = (0..20).map(|column| {
        let entry = |row: usize| (values[row] - pairs.values()[column]) * vectors[(row, column)];
        (0..400).map(|row| entry(row).powi(2)).sum::<f64>().sqrt()
    });
    let worst = worst.fold(0.0, f64::max) / values[0];
    assert!(worst <= 1.5 * pairs.residual() + 1e-13, "{worst:e} {:e}", pairs.residual());
    assert!(pairs.residual() <= 1.5 * worst + 1e-13, "{worst:e} {:e}", pairs.residual());
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
    // Evenly spaced eigenvalues: nothing sets the leading ones apart.
    let values: Vec<f64> = (0..520).map(|i| 1.0 - f64::from(i) / 520.0).collect();
    let operator = Diagonal::<f64>::new(&values);
    assert!(iterate(&operator, 6, 1).unwrap().is_none());
    // 40 products for each of 6 pairs and of the 8 vectors of a block, and one block more.
    let products = operator.applied.get();
    assert!(products > 100 && products <= 40 * (6 + 8) + 64, "{products}");
    let pairs = top_eigenpairs(&operator, 6, Solver::BlockLanczos, 1).unwrap();
    assert!(pairs.is_fallback() && pairs.solver() == dense::LADDER[0].name);
}

#[test]
fn the_cost_model_iterates_on_large_problems_with_few_pairs_and_nowhere_else() {
    let chosen = |dimension: usize, count: usize| {
        let square = (dimension as f64).powi(2);
        let dense = cost::dense(dimension) + square * dimension as f64;
        cost::lanczos(dimension, count, square).is_some_and(|work| work < dense)
    };
    assert!(chosen(4096, 256) && chosen(1024, 16));
    assert!(!chosen(64, 8) && !chosen(1000, 900));
    // A basis of 272 vectors is expected to do for 64 pairs: it must leave room.
    assert!(cost::lanczos(272, 64, 0.0).is_none() && cost::lanczos(273, 64, 0.0).is_some());
}

#[test]
fn a_matrix_costs_what_a_matrix_costs_unless_said_otherwise() {
    let operator = Given(Mat::<f64>::zeros(7, 7));
    assert_eq!((operator.work(), operator.assembly_work()), (49.0, 343.0));
}

#[test]
fn the_first_of_the_largest_entries_becomes_positive() {
    let mut vectors = mat![[0.1, -0.1, 0.0], [-0.7, 0.7, -0.5], [0.7, 0.7, -0.5], [-0.1, 0.1, 0.5]];
    fix_signs(&mut vectors);
    assert_eq!(vectors, mat![[-0.1, -0.1, 0.0], [0.7, 0.7, 0.5], [-0.7, 0.7, 0.5], [0.1, 0.1, -0.5]]);
}
