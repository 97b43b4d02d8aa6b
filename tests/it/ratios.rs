//! Residuals in units of rounding, as in LAPACK's tests of its drivers. All are below 35, for every
//! solver and both element types.
//!
//! `cargo test --test it ratios -- --nocapture` prints the largest of each family. The unit tests
//! of the solver test each dense algorithm and the completion of a basis in the same way.

use crate::common::families::{FAMILIES, Family, SIZES, Worst, orthogonality};
use crate::common::{cast, orthogonal};
use dalr::solver::{Eigenpairs, PsdOperator, top_eigenpairs};
use dalr::{ActivationStats, Dalr, Error, Linear, LowRankCompressor, Result, Ridge, Scalar, Solver, TruncatedSvd};
use faer::{Mat, MatMut, MatRef, Scale};
use rand::SeedableRng;
use rand::rngs::StdRng;

struct Given<T>(Mat<T>);

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

fn is_single<T: Scalar>() -> bool {
    T::EPSILON > f64::EPSILON
}

/// Returns the smallest power of two at which `ε` times the largest eigenvalue is a normal number,
/// and the largest one at which the trace is finite.
fn ends_of_range<T: Scalar>() -> [(f64, &'static str); 3] {
    let (low, high) = if is_single::<T>() { (-103, 117) } else { (-970, 1013) };
    [(1.0, "1"), (2_f64.powi(low), "near underflow"), (2_f64.powi(high), "near overflow")]
}

/// Returns `Q diag(values) Qᵀ`, symmetric to the last bit.
fn symmetric(rotation: &Mat<f64>, values: &[f64]) -> Mat<f64> {
    let n = values.len();
    let product = Mat::from_fn(n, n, |i, j| rotation[(i, j)] * values[j]) * rotation.transpose();
    Mat::from_fn(n, n, |i, j| (product[(i, j)] + product[(j, i)]) / 2.0)
}

/// Returns the largest of `‖A V − V Λ‖ / (‖A‖ n ε)`, `‖I − VᵀV‖ / (n ε)`, and the errors of the
/// eigenvalues and of the explained energy.
///
/// `ε` is that of the algorithm: the dense one works in `f64`, block Lanczos in the operator's
/// scalar.
///
/// Block Lanczos may stop before its basis fills the space. The energy that it would still gain is
/// then estimated below a fraction of the energy left out: `1e-12`, or `2.5e-5` for `f32`, or `8 ε`
/// of the trace. Eight times that bounds it here. An energy may be off by that bound
/// `δ`, and a residual by `max(δ, √(δ ‖A‖))`. The ratios are relative to these bounds as well.
fn ratio<T: Scalar>(matrix: &Mat<f64>, exact: &[f64], pairs: &Eigenpairs, scale: f64) -> f64 {
    let (n, count) = (exact.len(), pairs.values.len());
    let norm = exact[0].max(f64::MIN_POSITIVE);
    let dense = pairs.steps == 0;
    let epsilon = if dense { f64::EPSILON } else { T::EPSILON };
    let (trace, optimum) = (exact.iter().sum::<f64>(), exact[..count].iter().sum::<f64>());
    let partial = !dense && pairs.basis_size < n;
    let fraction = if is_single::<T>() { 2.5e-5 } else { 1e-12 };
    let delta = if partial { 8.0 * (fraction * (trace - optimum) + 8.0 * epsilon * trace) } else { 0.0 };
    let rounding = norm * n as f64 * epsilon;
    // The entries, and thus the eigenvalues, are rounded to the operator's element type.
    let entries = norm * n as f64 * T::EPSILON;

    let vectors = pairs.vectors.as_ref();
    let values: Vec<f64> = pairs.values.iter().map(|value| value / scale).collect();
    let applied = matrix * vectors;
    let residual = &applied - Mat::from_fn(n, count, |i, j| vectors[(i, j)] * values[j]);
    // Rounding of its entries makes a singular matrix slightly indefinite, and the solver returns
    // negative values as zero.
    let unit = |value: f64| if value > 0.0 { rounding } else { entries } + delta + (delta * norm).sqrt();
    let columns = residual.col_iter().zip(&values);
    let residual = columns.map(|(column, &value)| column.norm_l2() / unit(value)).fold(0.0, f64::max);
    let captured: f64 = applied.col_iter().zip(vectors.col_iter()).map(|(a, v)| v.transpose() * a).sum();
    let off = values.iter().zip(exact).map(|(ours, exact)| (ours - exact).abs()).fold(0.0, f64::max);
    let ratios = [
        residual,
        orthogonality(vectors, f64::EPSILON),
        off / (entries + delta),
        (optimum - captured) / (entries + delta),
    ];
    assert!(captured.is_finite() && residual.is_finite() && off.is_finite());
    ratios.into_iter().fold(0.0, f64::max)
}

fn eigenpairs_of_every_family<T: Scalar>(solver: Solver, sizes: &[usize], counts: fn(usize) -> Vec<usize>, name: &str) {
    for family in FAMILIES {
        let mut worst = Worst::of(format!("{name}, {}, {family:?}", core::any::type_name::<T>()));
        for &n in sizes {
            let exact = family.values(n);
            let unit = symmetric(&family.rotation(n), &exact);
            for (scale, range) in ends_of_range::<T>() {
                let operator = Given(cast::<T>((&unit * Scale(scale)).as_ref()));
                let matrix = Mat::from_fn(n, n, |i, j| operator.0[(i, j)].to_f64() / scale);
                for count in counts(n) {
                    let pairs = top_eigenpairs(&operator, count, solver, 1)
                        .unwrap_or_else(|error| panic!("{name}, {family:?}, {n}, {range}: {error}"));
                    let at = format!("n = {n}, k = {count}, scale {range}: {pairs}");
                    worst.take(ratio::<T>(&matrix, &exact, &pairs, scale), at);
                }
            }
        }
        worst.check();
    }
}

#[test]
fn dense_eigenpairs() {
    eigenpairs_of_every_family::<f64>(Solver::DenseEigen, &SIZES, |n| vec![n], "dense");
    eigenpairs_of_every_family::<f32>(Solver::DenseEigen, &SIZES, |n| vec![n], "dense");
}

#[test]
fn block_lanczos_eigenpairs() {
    let counts = |n: usize| vec![1, n.div_ceil(12), n.div_ceil(3), n];
    eigenpairs_of_every_family::<f64>(Solver::BlockLanczos, &SIZES, counts, "block Lanczos");
    eigenpairs_of_every_family::<f32>(Solver::BlockLanczos, &SIZES, counts, "block Lanczos");
}

/// At these sizes, the iteration stops long before its basis fills the space.
#[test]
fn block_lanczos_eigenpairs_in_a_part_of_the_space() {
    let counts = |_| vec![1, 5, 24];
    eigenpairs_of_every_family::<f64>(Solver::BlockLanczos, &[300], counts, "block Lanczos, partial");
    eigenpairs_of_every_family::<f32>(Solver::BlockLanczos, &[300], counts, "block Lanczos, partial");
}

#[test]
#[ignore = "takes seconds: .ci/nightly runs it"]
fn automatically_solved_eigenpairs() {
    // At dimension 520, block Lanczos computes few pairs.
    let sizes = [&SIZES[..], &[520]].concat();
    let counts = |n: usize| vec![if n > 512 { 6 } else { n.div_ceil(3) }];
    eigenpairs_of_every_family::<f64>(Solver::Auto, &sizes, counts, "auto");
    eigenpairs_of_every_family::<f32>(Solver::Auto, &sizes, counts, "auto");
    let operator = Given(symmetric(&Family::Geometric.rotation(520), &Family::Geometric.values(520)));
    assert_eq!(top_eigenpairs(&operator, 6, Solver::Auto, 1).unwrap().solver, "block Lanczos");
}

#[test]
fn nothing_to_solve_is_refused() {
    for solver in [Solver::Auto, Solver::DenseEigen, Solver::BlockLanczos] {
        for count in [0, 1] {
            assert!(matches!(top_eigenpairs(&Given(Mat::<f64>::new()), count, solver, 1), Err(Error::Empty { .. })));
            assert!(matches!(top_eigenpairs(&Given(Mat::<f32>::new()), count, solver, 1), Err(Error::Empty { .. })));
        }
    }
    for (rows, columns) in [(0, 0), (0, 3), (3, 0)] {
        assert!(matches!(Linear::new(Mat::<f32>::zeros(rows, columns), None), Err(Error::Empty { .. })));
        assert!(matches!(Linear::new(Mat::<f64>::zeros(rows, columns), None), Err(Error::Empty { .. })));
    }
}

/// A weight and samples with common singular directions: `W = P diag(s) Vᵀ`, `X = G diag(t) Vᵀ`, so
/// that the solution of every objective is known in closed form.
struct Aligned {
    weight: Mat<f64>,
    inputs: Mat<f64>,
    /// Singular values of the weight, zeros included, one per input.
    weights: Vec<f64>,
    /// Eigenvalues of `S = XᵀX / p`, one per input.
    moments: Vec<f64>,
}

impl Aligned {
    fn new(family: Family, data: Family, rows: usize, columns: usize) -> Self {
        let (rank, samples) = (rows.min(columns), columns + 5);
        let mut rng = StdRng::seed_from_u64((rows * 1000 + columns) as u64);
        let right = data.rotation(columns);
        let left = family.rotation(rows);
        let (mut weights, data) = (family.values(rank), data.values(columns));
        let half = Mat::from_fn(rows, rank, |i, j| left[(i, j)] * weights[j]);
        let frame = orthogonal(&mut rng, samples, columns);
        let spread = Mat::from_fn(samples, columns, |i, j| frame[(i, j)] * data[j]);
        weights.resize(columns, 0.0);
        Self {
            weight: half * right.subcols(0, rank).transpose(),
            inputs: spread * right.transpose(),
            weights,
            moments: data.iter().map(|t| t * t / samples as f64).collect(),
        }
    }
}

/// The objective of a method, as a function of the eigenvalue `t` of `S`.
struct Objective {
    name: &'static str,
    method: Box<dyn Fn(Solver) -> Compressor>,
    /// `κ` and `λ` of `tr (W − C)(κ S + λ I)(W − C)ᵀ`; with `shrinking`, of `tr (W − C) S (W − C)ᵀ
    /// + λ ‖C‖²`.
    data: f64,
    ridge: f64,
    shrinking: bool,
}

enum Compressor {
    Svd(TruncatedSvd),
    Dalr(Dalr),
}

impl Compressor {
    fn decompose<T: Scalar>(
        &self,
        layer: &Linear<T>,
        stats: &ActivationStats<T>,
        rank: usize,
    ) -> dalr::Decomposition<T> {
        match self {
            Self::Svd(svd) => svd.decompose(layer, stats, rank),
            Self::Dalr(dalr) => dalr.decompose(layer, stats, rank),
        }
        .unwrap()
    }
}

fn objectives(problem: &Aligned, data_scale: f64) -> Vec<Objective> {
    let dalr = |ridge: Ridge| move |solver| Compressor::Dalr(Dalr::new().with_ridge(ridge).with_solver(solver));
    let mean = problem.moments.iter().sum::<f64>() / problem.moments.len() as f64;
    let samples = problem.inputs.nrows() as f64;
    // This ridge is added to the sum over all samples, in the units of the data.
    let absolute = 0.01 * samples * data_scale * data_scale;
    let svd = |solver| Compressor::Svd(TruncatedSvd::new().with_solver(solver));
    vec![
        Objective { name: "svd", method: Box::new(svd), data: 0.0, ridge: 1.0, shrinking: false },
        Objective { name: "none", method: Box::new(dalr(Ridge::None)), data: 1.0, ridge: 0.0, shrinking: false },
        Objective {
            name: "anchored",
            method: Box::new(dalr(Ridge::Relative(0.1))),
            data: 1.0,
            ridge: 0.1 * mean,
            shrinking: false,
        },
        Objective {
            name: "exact",
            method: Box::new(dalr(Ridge::Exact(absolute))),
            data: 1.0,
            ridge: 0.01,
            shrinking: true,
        },
    ]
}

impl Objective {
    /// Returns the energy of a direction with singular value `s` in the weight and eigenvalue `t`
    /// in the data.
    fn energy(&self, s: f64, t: f64) -> f64 {
        if !self.shrinking {
            s * s * (self.data * t + self.ridge)
        } else if t > 0.0 {
            s * s * t * t / (t + self.ridge)
        } else {
            0.0
        }
    }

    fn value(&self, problem: &Aligned, low: &Mat<f64>) -> f64 {
        let difference = &problem.weight - low;
        let samples = problem.inputs.nrows() as f64;
        let data = self.data * (&problem.inputs * difference.transpose()).squared_norm_l2() / samples;
        data + self.ridge * if self.shrinking { low.squared_norm_l2() } else { difference.squared_norm_l2() }
    }
}

/// Optimality `(f(C) − min f) / (‖W‖² ‖κ S + λ I‖ n ε)`, energies in the same units, and `‖I − UᵀU‖
/// / (m ε)` of `up`.
///
/// The denominator is `‖W‖² ‖S‖` instead of `f(0)`, because rounding in `W S Wᵀ` is that of
/// `|W| |S| |W|ᵀ` (`docs/mathematics.md`). `ε` is that of the scalar, to which the factors are
/// rounded. Block Lanczos may miss `4 · 1e-12` of the energy left out in `f64`, and `2e-4` of it in
/// single precision (`src/compress/solve.rs`).
fn compressors_on_every_family<T: Scalar>(solver: Solver, sizes: &[usize], name: &str) {
    let ends = if is_single::<T>() { (2_f64.powi(-100), 2_f64.powi(100)) } else { (2_f64.powi(-450), 2_f64.powi(450)) };
    for (at, family) in FAMILIES.into_iter().enumerate() {
        // Every spectrum of the weight is combined with two of the data.
        let data = FAMILIES[(at * 3 + 4) % FAMILIES.len()];
        let mut worst = Worst::of(format!("{name}, {}, {family:?} × {data:?}", core::any::type_name::<T>()));
        for &size in sizes {
            let shapes = [(size, size), (size, 2 * size + 1), (2 * size + 1, size)];
            for &(rows, columns) in &shapes[..if size <= 65 { 3 } else { 1 }] {
                let problem = Aligned::new(family, data, rows, columns);
                let scales = [(1.0, 1.0), (ends.0, 1.0), (ends.1, 1.0), (1.0, ends.0), (1.0, ends.1)];
                for &(weight_scale, data_scale) in &scales[..if size <= 33 { 5 } else { 1 }] {
                    check_compressors::<T>(&problem, solver, (weight_scale, data_scale), &mut worst);
                }
            }
        }
        worst.check();
    }
}

fn check_compressors<T: Scalar>(problem: &Aligned, solver: Solver, scales: (f64, f64), worst: &mut Worst) {
    let (rows, columns) = problem.weight.shape();
    let full = rows.min(columns);
    let max_rank = match solver {
        Solver::BlockLanczos if full > 200 => 12,
        Solver::BlockLanczos => full.div_ceil(4),
        _ => full,
    };
    let layer = Linear::new(cast::<T>((&problem.weight * Scale(scales.0)).as_ref()), None).unwrap();
    let stats = crate::common::stats(cast::<T>((&problem.inputs * Scale(scales.1)).as_ref()).as_ref());
    for objective in objectives(problem, scales.1) {
        let mut energies: Vec<f64> =
            problem.weights.iter().zip(&problem.moments).map(|(&s, &t)| objective.energy(s, t)).collect();
        let constant = objective.value(problem, &Mat::zeros(rows, columns)) - energies.iter().sum::<f64>();
        energies.sort_by(|a, b| b.total_cmp(a));
        let moment = objective.data * problem.moments[0] + objective.ridge;
        let size = (problem.weights.iter().map(|s| s * s).sum::<f64>() * moment).max(f64::MIN_POSITIVE);
        let rounding = size * rows.max(columns) as f64 * T::EPSILON;
        let unit = scales.0.powi(2) * if objective.data > 0.0 { scales.1.powi(2) } else { 1.0 };

        let decomposition = (objective.method)(solver).decompose(&layer, &stats, max_rank);
        for rank in [1, max_rank.div_ceil(2), max_rank] {
            let compressed = decomposition.truncate(rank).unwrap();
            let wide = |matrix: MatRef<'_, T>, scale: f64| {
                Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| matrix[(i, j)].to_f64() / scale)
            };
            let up = wide(compressed.layer().up(), 1.0);
            let low = &up * wide(compressed.layer().down(), scales.0);
            let left: f64 = energies[rank..].iter().sum();
            // Smaller ranks can have the error that the solve up to the largest rank allows.
            let left_by_all: f64 = energies[max_rank..].iter().sum();
            let missed = match solver {
                Solver::DenseEigen => 0.0,
                _ if is_single::<T>() => 2e-4 * left_by_all,
                _ => 4e-12 * left_by_all,
            };
            let excess = objective.value(problem, &low) - (constant + left);
            let off = (decomposition.energies()[rank - 1] / unit - energies[rank - 1]).abs();
            let at = format!(
                "{rows} × {columns}, {}, k = {rank} of {max_rank}, weights × {:.0e}, data × {:.0e}: {}",
                objective.name,
                scales.0,
                scales.1,
                compressed.report().solver
            );
            assert!(excess.is_finite() && off.is_finite(), "{at}");
            // The error is also not smaller than the optimum.
            worst.take(excess.abs() / (rounding + missed), &at);
            worst.take(off / (rounding + missed), &at);
            worst.take(orthogonality(up.as_ref(), T::EPSILON), &at);
        }
    }
}

#[test]
fn compressors_by_dense_solves() {
    compressors_on_every_family::<f64>(Solver::DenseEigen, &SIZES[..6], "dense");
    compressors_on_every_family::<f32>(Solver::DenseEigen, &SIZES[..6], "dense");
}

#[test]
fn compressors_by_block_lanczos() {
    compressors_on_every_family::<f64>(Solver::BlockLanczos, &SIZES[..6], "block Lanczos");
    compressors_on_every_family::<f32>(Solver::BlockLanczos, &SIZES[..6], "block Lanczos");
}

/// As above.
#[test]
fn compressors_by_block_lanczos_in_a_part_of_the_space() {
    compressors_on_every_family::<f64>(Solver::BlockLanczos, &[240], "block Lanczos, partial");
    compressors_on_every_family::<f32>(Solver::BlockLanczos, &[240], "block Lanczos, partial");
}

#[test]
fn compressors_as_chosen() {
    compressors_on_every_family::<f64>(Solver::Auto, &[7, 130], "auto");
    compressors_on_every_family::<f32>(Solver::Auto, &[7, 130], "auto");
}
