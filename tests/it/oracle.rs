//! Energies, projectors and errors against two oracles that share no code with the library's
//! solvers: a one-sided Jacobi singular value decomposition, and nalgebra's symmetric
//! eigendecomposition.

use crate::common::families::{FAMILIES, Family, SIZES, Worst, orthogonality};
use crate::common::jacobi::{Svd, svd};
use crate::common::{gaussian, orthogonal, stats, weight_of};
use dalr::{ActivationStats, Dalr, Decomposition, Linear, LowRankCompressor, Ridge, Solver, TruncatedSvd};
use faer::{Mat, MatRef};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// The answer of an oracle: its name, the singular values, descending, and the left singular
/// vectors.
type Answer = (&'static str, Vec<f64>, Mat<f64>);

fn jacobi(matrix: MatRef<'_, f64>) -> Answer {
    let Svd { left, values, .. } = svd(matrix);
    ("Jacobi", values, left)
}

fn nalgebra(matrix: MatRef<'_, f64>) -> Answer {
    // The Gram matrix is decomposed, because energies are compared as squares. (nalgebra's singular
    // value decomposition of a matrix with two or three columns is accurate to only eight digits.)
    let copy = nalgebra::DMatrix::from_fn(matrix.nrows(), matrix.ncols(), |i, j| matrix[(i, j)]);
    let solved = (&copy * copy.transpose()).symmetric_eigen();
    let mut order: Vec<usize> = (0..matrix.nrows()).collect();
    order.sort_by(|&a, &b| solved.eigenvalues[b].total_cmp(&solved.eigenvalues[a]));
    let left = Mat::from_fn(matrix.nrows(), order.len(), |i, j| solved.eigenvectors[(i, order[j])]);
    ("nalgebra", order.iter().map(|&at| solved.eigenvalues[at].max(0.0).sqrt()).collect(), left)
}

const ORACLES: [fn(MatRef<'_, f64>) -> Answer; 2] = [jacobi, nalgebra];

/// Ranks at which the truncated solutions are compared: all small ones, some others, and the last.
fn compared_ranks(max_rank: usize) -> impl Iterator<Item = usize> {
    (1..=max_rank).filter(move |&rank| rank <= 8 || rank % 11 == 0 || rank == max_rank)
}

/// Returns a random matrix with these singular values.
fn with_values(rng: &mut StdRng, rows: usize, columns: usize, values: &[f64]) -> Mat<f64> {
    let (left, right) = (orthogonal(rng, rows, values.len()), orthogonal(rng, values.len(), columns));
    Mat::from_fn(rows, values.len(), |i, j| left[(i, j)] * values[j]) * right
}

#[test]
fn the_oracle_is_one() {
    for family in FAMILIES {
        let mut worst = Worst::of(format!("Jacobi oracle, {family:?}"));
        for size in SIZES {
            for (rows, columns) in [(size, size), (size, size + 4), (2 * size, size)] {
                let exact = family.values(rows.min(columns));
                let matrix = with_values(&mut StdRng::seed_from_u64(3), rows, columns, &exact);
                let Svd { left, values, right } = svd(matrix.as_ref());
                let unit = exact[0].max(f64::MIN_POSITIVE) * rows.max(columns) as f64 * f64::EPSILON;
                let product = Mat::from_fn(rows, values.len(), |i, j| left[(i, j)] * values[j]) * right.transpose();
                let at = format!("{rows} × {columns}");
                worst.take((&matrix - product).norm_l2() / unit, &at);
                let off = values.iter().zip(&exact).map(|(ours, exact)| (ours - exact).abs()).fold(0.0, f64::max);
                worst.take(off / unit, &at);
                // The columns for values of zero are zero.
                let rank = values.iter().take_while(|&&value| value > 0.0).count();
                worst.take(orthogonality(left.as_ref().subcols(0, rank), f64::EPSILON), &at);
                worst.take(orthogonality(right.as_ref().subcols(0, rank), f64::EPSILON), &at);
            }
        }
        worst.check();
    }
}

/// The oracle is accurate on a graded matrix, on which every method that starts with a bidiagonal
/// form fails.
#[test]
fn the_oracle_is_accurate_relative_to_small_values() {
    let (n, mut rng) = (20, StdRng::seed_from_u64(8));
    let mixed = orthogonal(&mut rng, n, n);
    let graded = Mat::from_fn(n, n, |i, j| mixed[(i, j)] * 1e-3_f64.powi(j as i32));
    for (at, value) in svd(graded.as_ref()).values.iter().enumerate() {
        let exact = 1e-3_f64.powi(at as i32);
        assert!((value / exact - 1.0).abs() < 35.0 * n as f64 * f64::EPSILON, "{at}: {value:e}");
    }
}

/// Compares a solution of `min ‖(W − C) L‖` with an oracle's answer for `W L`.
///
/// Energies are squared singular values, with an error of the rounding in `|W| |S| |W|ᵀ`. The error
/// of the projector on the leading `k` is that rounding, divided by the gap to the next eigenvalue.
/// It is compared if at least three digits are accurate.
fn compare(
    (name, values, left): &Answer,
    (layer, stats): (&Linear<f64>, &ActivationStats<f64>),
    root: &Mat<f64>,
    decomposition: &Decomposition<f64>,
    (worst, at): (&mut Worst, &str),
) {
    let (m, n) = layer.weight().shape();
    let energy = |index: usize| values.get(index).map_or(0.0, |value| value * value);
    let size = layer.weight().squared_norm_l2() * root.squared_norm_l2();
    let rounding = size.max(f64::MIN_POSITIVE) * m.max(n) as f64 * f64::EPSILON;
    let at = format!("{at}, {name}: {}", decomposition.truncate(1).unwrap().report().solver);
    let total: f64 = values.iter().map(|value| value * value).sum();
    worst.take((decomposition.total_energy() - total).abs() / rounding, &at);
    // Block Lanczos may miss 4e-12 of the energy left out.
    let rest: f64 = (decomposition.max_rank()..values.len()).map(energy).sum();
    let rounding = rounding + 4e-12 * rest;
    for (index, ours) in decomposition.energies().iter().enumerate() {
        worst.take((ours - energy(index)).abs() / rounding, &at);
    }
    for rank in compared_ranks(decomposition.max_rank()) {
        let compressed = decomposition.truncate(rank).unwrap();
        let tail: f64 = (rank..values.len()).map(energy).sum();
        let low = weight_of(compressed.layer());
        let error = ((layer.weight() - &low) * root).squared_norm_l2();
        worst.take((error - tail).abs() / rounding, format!("{at}, error at {rank}"));
        if stats.samples() > 0 && total > 1e6 * rounding && compressed.report().shrinkage.is_none() {
            // The error is relative to the original outputs about their mean.
            let covariance = stats.covariance().unwrap();
            let variance = (layer.weight() * covariance * layer.weight().transpose()).diagonal().column_vector().sum();
            if variance < 1e-3 * total {
                continue;
            }
            let predicted = compressed.report().relative_error().unwrap();
            worst
                .take((predicted * predicted * variance - tail).abs() / rounding, format!("{at}, predicted at {rank}"));
        }
        let gap = energy(rank - 1) - energy(rank);
        if gap > 1e3 * rounding {
            let (up, exact) = (compressed.layer().up(), left.as_ref().subcols(0, rank));
            let turned = (up * up.transpose() - exact * exact.transpose()).norm_l2();
            // The root is needed because an error δ in the explained energy turns a vector by √(δ /
            // gap).
            let unit = rounding / gap + (4e-12 * rest / gap).sqrt();
            worst.take(turned / unit, format!("{at}, projector at {rank}"));
        }
    }
}

#[test]
fn both_agree_with_truncated_svd_on_every_family() {
    for family in FAMILIES {
        let mut worst = Worst::of(format!("truncated SVD, {family:?}"));
        for size in SIZES {
            for (rows, columns) in [(size, size + 3), (size + 3, size)] {
                let exact = family.values(size);
                let weight = with_values(&mut StdRng::seed_from_u64(4), rows, columns, &exact);
                let layer = Linear::new(weight, None).unwrap();
                let unfed = ActivationStats::new(columns);
                let root = Mat::identity(columns, columns);
                let answers = ORACLES.map(|oracle| oracle(layer.weight()));
                for (solver, rank) in [(Solver::DenseEigen, size), (Solver::BlockLanczos, size.div_ceil(10))] {
                    let svd = TruncatedSvd::new().with_solver(solver).decompose(&layer, &unfed, rank).unwrap();
                    for answer in &answers {
                        let at = format!("{rows} × {columns}");
                        compare(answer, (&layer, &unfed), &root, &svd, (&mut worst, &at));
                    }
                }
            }
        }
        worst.check();
    }
}

#[test]
fn both_agree_on_random_weighted_problems() {
    let mut worst = [false, true].map(|collapsed| Worst::of(format!("weighted, collapsed: {collapsed}")));
    let mut rng = StdRng::seed_from_u64(11);
    for round in 0..60 {
        let (m, n) = (rng.random_range(1..40), rng.random_range(1..40));
        // Statistics are in sample form for few samples, and in covariance form for many.
        let collapsed = round % 2 == 1;
        let samples = if collapsed { 4 * n + 50 } else { rng.random_range(1..=n + 1) };
        let [weights, data] = [0, 1].map(|_| FAMILIES[rng.random_range(1..FAMILIES.len())]);
        let weight = with_values(&mut rng, m, n, &weights.values(m.min(n)));
        let spread = with_values(&mut rng, samples, n, &data.values(samples.min(n)));
        let mean = gaussian(&mut rng, 1, n);
        let inputs = Mat::from_fn(samples, n, |i, j| spread[(i, j)] + 0.3 * mean[(0, j)]);
        let mut counts = vec![1.0; samples];
        counts.iter_mut().step_by(3).for_each(|count| *count = rng.random_range(0.1..4.0));
        let mut statistics = ActivationStats::new(n);
        statistics.update_weighted(inputs.as_ref(), &counts).unwrap();

        let layer = Linear::new(weight, None).unwrap();
        for centred in [false, true] {
            for ridge in [Ridge::None, Ridge::Relative(0.3), Ridge::Shrinkage] {
                let (root, moment_trace) = root_of(&inputs, &counts, centred);
                // One sample minus its mean is only rounding. The library treats it as zero.
                if moment_trace <= 1e-26 * inputs.squared_norm_l2() {
                    continue;
                }
                let rank = m.min(n);
                let solver = if round % 3 == 0 { Solver::BlockLanczos } else { Solver::Auto };
                let rank = if round % 3 == 0 { rank.div_ceil(6) } else { rank };
                let dalr = Dalr::new().with_ridge(ridge).with_bias_correction(centred).with_solver(solver);
                let decomposition = dalr.decompose(&layer, &statistics, rank).unwrap();
                let shrinkage = decomposition.truncate(1).unwrap().report().shrinkage;
                let (keep, anchor) = match (ridge, shrinkage) {
                    (Ridge::Relative(ratio), _) => (1.0, ratio),
                    // For ρ = 1 the library keeps 2⁻³⁶ of the data, to choose among equal singular
                    // values.
                    (_, Some(rho)) => ((1.0 - rho).max(2_f64.powi(-36)), 1.0 - (1.0 - rho).max(2_f64.powi(-36))),
                    _ => (1.0, 0.0),
                };
                let anchor = (anchor * moment_trace / n as f64).sqrt();
                let keep = keep.sqrt();
                // `κ S + λ I = L Lᵀ` with the samples and a scaled identity side by side.
                let root = Mat::from_fn(n, samples + n, |i, j| match j.checked_sub(samples) {
                    None => keep * root[(i, j)],
                    Some(at) => anchor * f64::from(u8::from(at == i)),
                });
                for oracle in ORACLES {
                    let at =
                        format!("{m} × {n}, {weights:?} × {data:?}, {samples} samples, {ridge:?}, centred {centred}");
                    // The predicted error does not contain the regularization, so it is only
                    // compared without a ridge.
                    let plain = if ridge == Ridge::None { statistics.clone() } else { ActivationStats::new(n) };
                    let worst = &mut worst[usize::from(collapsed)];
                    let answer = oracle((layer.weight() * &root).as_ref());
                    compare(&answer, (&layer, &plain), &root, &decomposition, (worst, &at));
                }
            }
        }
    }
    worst.into_iter().for_each(Worst::check);
}

/// Returns a matrix, inputs × samples, whose product with its transpose is the second moment, and
/// the trace of that.
fn root_of(inputs: &Mat<f64>, counts: &[f64], centred: bool) -> (Mat<f64>, f64) {
    let (samples, n) = inputs.shape();
    let weight: f64 = counts.iter().sum();
    let mean = |j: usize| (0..samples).map(|i| counts[i] * inputs[(i, j)]).sum::<f64>() / weight;
    let means: Vec<f64> = (0..n).map(|j| if centred { mean(j) } else { 0.0 }).collect();
    let root = Mat::from_fn(n, samples, |j, i| (inputs[(i, j)] - means[j]) * (counts[i] / weight).sqrt());
    let trace = root.squared_norm_l2();
    (root, trace)
}

/// The comparison can fail: a relative error of 10⁻⁶ in a decomposition gives ratios far above 35.
#[test]
fn a_slightly_wrong_answer_is_seen() {
    let matrix = with_values(&mut StdRng::seed_from_u64(5), 12, 9, &Family::Arithmetic.values(9));
    let layer = Linear::new(matrix.clone(), None).unwrap();
    let other = Linear::new(matrix * faer::Scale(1.0 + 1e-6), None).unwrap();
    let unfed = ActivationStats::new(9);
    let decomposition = TruncatedSvd::new().decompose(&other, &unfed, 9).unwrap();
    let mut worst = Worst::of("slightly wrong");
    compare(&jacobi(layer.weight()), (&layer, &unfed), &Mat::identity(9, 9), &decomposition, (&mut worst, ""));
    assert!(std::panic::catch_unwind(|| worst.check()).is_err());
    // The loss of one sample also gives a large ratio.
    let inputs = gaussian(&mut StdRng::seed_from_u64(6), 30, 9);
    let (root, _) = root_of(&inputs, &[1.0; 30], false);
    let fewer = stats(inputs.as_ref().subrows(0, 29));
    let dalr = Dalr::new().with_ridge(Ridge::None).decompose(&layer, &fewer, 9).unwrap();
    let mut worst = Worst::of("one sample short");
    compare(&nalgebra((layer.weight() * &root).as_ref()), (&layer, &unfed), &root, &dalr, (&mut worst, ""));
    assert!(std::panic::catch_unwind(|| worst.check()).is_err());
}
