//! Residuals in units of rounding, as in LAPACK's tests, for the private functions of the solver.
//!
//! `tests/ratios.rs` does the same for the public functions. These tests cover each dense
//! algorithm, single precision and the completion of a basis.

use super::*;

/// Every ratio must stay below this, as in LAPACK's own tests.
const THRESHOLD: f64 = 35.0;

/// `‖A V − V Λ‖ / (‖A‖ n ε)`, `‖I − VᵀV‖ / (n ε)` and `max |λ − λ_exact| / (‖A‖ n ε)`.
pub(super) struct Ratios {
    residual: f64,
    orthogonality: f64,
    values: f64,
}

impl Ratios {
    /// Computes the ratios for a matrix with the eigenvalues `exact`, descending; `ε` is that of
    /// `f64`.
    pub(super) fn of(matrix: &Mat<f64>, exact: &[f64], pairs: &Eigenpairs) -> Self {
        let n = matrix.nrows() as f64 * f64::EPSILON;
        let vectors = pairs.vectors.as_ref();
        let norm = exact[0].max(f64::MIN_POSITIVE);
        let scaled = Mat::from_fn(vectors.nrows(), vectors.ncols(), |i, j| vectors[(i, j)] * pairs.values[j]);
        let error = |(a, b): (&f64, &f64)| (a - b).abs() / (norm * n);
        Self {
            residual: (matrix * vectors - scaled).norm_l2() / (norm * n),
            orthogonality: lack_of_orthonormality(vectors) / f64::EPSILON,
            values: pairs.values.iter().zip(exact).map(error).fold(0.0, f64::max),
        }
    }

    pub(super) fn worst(&self) -> f64 {
        let all = [self.residual, self.orthogonality, self.values];
        // `f64::max` would ignore NaN.
        if all.iter().any(|ratio| ratio.is_nan()) { f64::NAN } else { all.into_iter().fold(0.0, f64::max) }
    }
}

/// Returns `‖I − VᵀV‖ / n`
fn lack_of_orthonormality(vectors: MatRef<'_, f64>) -> f64 {
    let identity = Mat::<f64>::identity(vectors.ncols(), vectors.ncols());
    (vectors.transpose() * vectors - identity).norm_l2() / vectors.nrows() as f64
}

/// Eigenvalues in descending order, 1 the largest.
type Family = (&'static str, fn(usize, usize) -> f64);

const FAMILIES: [Family; 11] = [
    ("zero", |_, _| 0.0),
    ("identity", |_, _| 1.0),
    ("graded", |i, n| 1e-16_f64.powf(i as f64 / n as f64)),
    ("geometric", |i, n| 1e-10_f64.powf(i as f64 / n as f64)),
    ("arithmetic", |i, n| 1.0 - i as f64 / n as f64),
    ("one large", |i, _| if i == 0 { 1.0 } else { 1e-8 }),
    ("one small", |i, n| if i + 1 == n && n > 1 { 1e-8 } else { 1.0 }),
    ("clustered", |i, n| if i < n / 2 { 1.0 } else { 0.1 }),
    // The fractional parts of multiples of the golden ratio serve as random numbers.
    ("random log", |i, _| (-36.0 * (i as f64 * 0.618_033_988_749_894_8).fract()).exp()),
    ("repeated, with zeros", |i, n| [1.0, 0.5, 0.1, 0.0][4 * i / n]),
    ("rank deficient", |i, n| if i < n / 3 { 1.0 - i as f64 / n as f64 } else { 0.0 }),
];

const SIZES: [usize; 7] = [1, 2, 3, 7, 33, 65, 130];

fn eigenvalues(family: Family, n: usize) -> Vec<f64> {
    let mut values: Vec<f64> = (0..n).map(|i| family.1(i, n)).collect();
    values.sort_by(|a, b| b.total_cmp(a));
    values
}

fn matrix_of(name: &str, values: &[f64]) -> Mat<f64> {
    // A graded matrix stays diagonal; all others are mixed.
    let diagonal = |i, j| if i == j { values[i] } else { 0.0 };
    if name == "graded" { Mat::from_fn(values.len(), values.len(), diagonal) } else { with_eigenvalues(values) }
}

/// Prints and checks the largest ratio of a family; `--nocapture` shows them.
#[allow(clippy::print_stdout)]
fn check(what: &str, family: &str, ratios: impl IntoIterator<Item = (f64, String)>) {
    let worst = ratios.into_iter().reduce(|a, b| if b.0 > a.0 || b.0.is_nan() { b } else { a });
    let (ratio, at) = worst.unwrap_or_default();
    println!("{what:<46} {family:<22} {ratio:8.3}  {at}");
    assert!(ratio < THRESHOLD, "{what}, {family}, {at}: {ratio}");
}

#[test]
fn every_dense_algorithm_is_accurate_on_every_spectrum() -> Result<()> {
    // The smallest scale at which eigenvalues down to ε stay normal numbers, and the largest one
    // with a finite trace.
    let scales = [1.0, f64::MIN_POSITIVE / f64::EPSILON, f64::MAX / 1024.0];
    for (at, algorithm) in dense::ALGORITHMS.iter().enumerate() {
        for family in FAMILIES {
            let mut ratios = Vec::new();
            for (n, scale) in SIZES.iter().flat_map(|&n| scales.map(|scale| (n, scale))) {
                let exact = eigenvalues(family, n);
                let matrix = matrix_of(family.0, &exact);
                let operator = Given(&matrix * faer::Scale(scale));
                let pairs = dense::double_precision(&operator, n, &dense::ALGORITHMS[at..], Par::Seq)?;
                assert_eq!(pairs.solver, algorithm.name, "{}, {n}", family.0);
                let values = pairs.values.iter().map(|value| value / scale).collect();
                let unit = Eigenpairs { values, ..pairs };
                ratios.push((Ratios::of(&matrix, &exact, &unit).worst(), format!("n = {n}, scale {scale:.0e}")));
            }
            check(algorithm.name, family.0, ratios);
        }
    }
    Ok(())
}

#[test]
fn single_precision_is_accurate_to_its_rounding() -> Result<()> {
    // The scales are at the ends of the range of `f32`; their squares are out of this range.
    for family in FAMILIES {
        let mut ratios = Vec::new();
        for (n, scale) in SIZES
            .iter()
            .flat_map(|&n| [1.0, 2_f64.powi(-12), 2_f64.powi(-103), 2_f64.powi(117)].map(|scale| (n, scale)))
        {
            let exact = eigenvalues(family, n);
            let rounded = matrix_of(family.0, &exact);
            let operator = Given(Mat::from_fn(n, n, |i, j| (rounded[(i, j)] * scale) as f32));
            let matrix = Mat::from_fn(n, n, |i, j| f64::from(operator.0[(i, j)]) / scale);
            let pairs = dense_native(&operator, n, Par::Seq)?;
            let pairs = pairs.unwrap_or_else(|| panic!("{}, {n}, {scale:e}: not solved", family.0));
            let values = pairs.values.iter().map(|value| value / scale).collect();
            let unit = Eigenpairs { values, ..pairs };
            let double = Ratios::of(&matrix, &exact, &unit);
            // The vectors are made orthonormal in `f64`; the rest is in units of the `ε` of `f32`.
            let unit_ratio = f64::EPSILON / f64::from(f32::EPSILON);
            let ratio =
                Ratios { residual: double.residual * unit_ratio, values: double.values * unit_ratio, ..double }.worst();
            ratios.push((ratio, format!("n = {n}, scale {scale:.0e}")));
        }
        check("dense eigendecomposition (single precision)", family.0, ratios);
    }
    Ok(())
}

#[test]
fn completed_bases_are_orthonormal_and_optimal_on_every_spectrum() -> Result<()> {
    // The solver squares the factor, so these are the smallest and largest possible singular
    // values.
    let scales = [1.0, f64::MIN_POSITIVE / f64::EPSILON, f64::MAX / 1024.0];
    for family in FAMILIES {
        let mut ratios = Vec::new();
        for (n, scale) in SIZES.iter().flat_map(|&n| scales.map(|scale| (n, scale))) {
            let exact = eigenvalues(family, n);
            let factor = matrix_of(family.0, &exact);
            // Random directions, as the data would determine them, unrelated to those of the
            // factor.
            let have = n / 3;
            let other = with_eigenvalues(&vec![1.0; n + 1]);
            let mixed = Mat::from_fn(n, have, |i, j| other[(i, j + 1)] + ((i * 5 + j * 3) % 7) as f64);
            let basis = linalg::thin_qr(mixed, Par::Seq)?.0;
            for count in [have, (have + n).div_ceil(2), n] {
                let scaled = &factor * faer::Scale(scale);
                let completed = complete_basis(basis.as_ref(), scaled.as_ref(), count, Par::Seq)?;
                assert_eq!(completed.shape(), (n, count));
                assert_eq!(completed.as_ref().subcols(0, have), basis.as_ref());
                // ‖P F‖², minus the energy that the new directions explain, is the sum of the
                // smallest eigenvalues of P F Fᵀ P.
                let mut rest = factor.clone();
                for _ in 0..2 {
                    let inside = basis.transpose() * &rest;
                    rest -= &basis * inside;
                }
                let tail = |kept: MatRef<'_, f64>| (&rest - kept * (kept.transpose() * &rest)).squared_norm_l2();
                let mut squares: Vec<f64> = rest.singular_values().unwrap().iter().map(|value| value * value).collect();
                squares.sort_by(|a, b| b.total_cmp(a));
                let least: f64 = squares[count - have..].iter().sum();
                let size = factor.squared_norm_l2().max(f64::MIN_POSITIVE) * n as f64 * f64::EPSILON;
                let excess = (tail(completed.as_ref().subcols(have, count - have)) - least).abs() / size;
                let orthogonality = lack_of_orthonormality(completed.as_ref()) / f64::EPSILON;
                let at = format!("n = {n}, {have} + {}, scale {scale:.0e}", count - have);
                ratios.extend([(excess, at.clone()), (orthogonality, at)]);
            }
        }
        check("completed basis", family.0, ratios);
    }
    Ok(())
}
