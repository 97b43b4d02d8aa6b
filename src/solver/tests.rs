use super::*;
use faer::mat;

/// A matrix as an operator, with nothing but `apply`.
struct Given(Mat<f64>);

impl PsdOperator<f64> for Given {
    fn dimension(&self) -> usize {
        self.0.nrows()
    }

    fn apply(&self, block: MatRef<'_, f64>, mut result: MatMut<'_, f64>) -> Result<()> {
        result.copy_from(&self.0 * block);
        Ok(())
    }

    fn trace(&self) -> Result<f64> {
        Ok((0..self.0.nrows()).map(|i| self.0[(i, i)]).sum())
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

fn spectra() -> Vec<(&'static str, Vec<f64>)> {
    let sizes = [1, 2, 3, 7, 33, 130];
    type Value = fn(usize, usize) -> f64;
    let kinds: [(&str, Value); 7] = [
        ("zero", |_, _| 0.0),
        ("identity", |_, _| 1.0),
        ("geometric", |i, n| 1e-10_f64.powf(i as f64 / n as f64)),
        ("arithmetic", |i, n| 1.0 - i as f64 / n as f64),
        ("one large", |i, _| if i == 0 { 1.0 } else { 1e-8 }),
        ("clustered", |i, n| if i < n / 2 { 1.0 } else { 0.1 }),
        ("deficient", |i, n| if i < n / 3 { 1.0 } else { 0.0 }),
    ];
    let value = |n: usize, f: Value| (0..n).map(|i| f(i, n)).collect();
    sizes.iter().flat_map(|&n| kinds.map(|(name, f)| (name, value(n, f)))).collect()
}

/// Residual and orthogonality in units of rounding, as LAPACK's tests do: all below 35.
fn check_ratios(name: &str, matrix: &Mat<f64>, values: &[f64], pairs: &Eigenpairs) {
    let n = matrix.nrows() as f64;
    let vectors = pairs.vectors();
    let norm = values[0].max(f64::MIN_POSITIVE);
    let scaled = Mat::from_fn(vectors.nrows(), vectors.ncols(), |i, j| vectors[(i, j)] * pairs.values()[j]);
    let residual = (matrix * vectors - scaled).norm_max() / (norm * n * f64::EPSILON);
    let identity = Mat::<f64>::identity(vectors.ncols(), vectors.ncols());
    let orthogonality = (vectors.transpose() * vectors - identity).norm_max() / (n * f64::EPSILON);
    let value = |(a, b): (&f64, &f64)| (a - b).abs() / (norm * n * f64::EPSILON);
    let error = pairs.values().iter().zip(values).map(value).fold(0.0, f64::max);
    let ratio = residual.max(orthogonality).max(error);
    assert!(ratio < 35.0, "{name}, {n}, {}: {residual} {orthogonality} {error}", pairs.solver());
}

#[test]
fn every_rung_is_accurate_on_every_spectrum() -> Result<()> {
    for (name, values) in spectra() {
        for scale in [1.0, 1e-300, 1e300] {
            let values: Vec<f64> = values.iter().map(|value| value * scale).collect();
            let matrix = with_eigenvalues(&values);
            for rung in 0..dense::LADDER.len() {
                let pairs = dense::top_eigenpairs(&Given(matrix.clone()), values.len(), &dense::LADDER[rung..], 1)?;
                assert_eq!(pairs.solver(), dense::LADDER[rung].name, "{name}, {}", values.len());
                let unit = |x: &f64| x / scale;
                let scaled_down = Eigenpairs { values: pairs.values.iter().map(unit).collect(), ..pairs };
                let values: Vec<f64> = values.iter().map(unit).collect();
                check_ratios(name, &with_eigenvalues(&values), &values, &scaled_down);
            }
        }
    }
    Ok(())
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

#[test]
fn a_rung_that_fails_hands_over_and_the_result_says_so() -> Result<()> {
    let [first, ..] = dense::LADDER;
    let values = [3.0, 2.0, 1.0, 0.5, 0.25, 0.2, 0.1, 0.05, 0.02, 0.01, 0.0];
    let operator = Given(with_eigenvalues(&values));
    let pairs = dense::top_eigenpairs(&operator, 5, &[GIVES_UP, GIVES_NAN, GIVES_NONSENSE, first], 1)?;
    assert!(pairs.is_fallback());
    check_ratios("handed over", &operator.0, &values, &pairs);
    let error = dense::top_eigenpairs(&operator, 5, &[GIVES_UP, GIVES_NAN, GIVES_NONSENSE], 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "top_eigenpairs: expected an eigendecomposition of dimension 11, got no convergence from any of: \
         gives up, gives NaN, gives nonsense"
    );
    assert!(!top_eigenpairs(&operator, 5, Solver::Auto, 1)?.is_fallback());
    Ok(())
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
    let error = top_eigenpairs(&Given(Mat::new()), 1, Solver::Auto, 1).unwrap_err();
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
        let completed = complete_basis("test", basis.as_ref(), factor.as_ref(), count, 1)?;
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
