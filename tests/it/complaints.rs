//! What users of other implementations report, one test for each: none of it may happen here.
//!
//! Numbers in brackets are issues of public repositories, the motivation of a test. Every error is
//! compared with a plain computation in `f64` on the same numbers. The outputs are multiplied out,
//! and the Jacobi oracle gives the best possible error. Memory has its [own
//! tests](../memory/main.rs), because an allocator counts all threads. Convolutions are not
//! supported.

use std::cell::Cell;

use crate::common::case::{Case, FORMS, Form, SHAPE, WIDE};
use crate::common::{cast, gaussian, jacobi, weight_of};
use dalr::{
    ActivationStats, Calibration, Dalr, Decomposition, Error, Linear, LowRankCompressor, LowRankLinear, Rank, Report,
    Ridge, Scalar, Solver, TruncatedSvd, Warning, select_ridge,
};
use faer::{Mat, MatRef};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

fn warns(report: &Report, is: fn(&Warning) -> bool) -> bool {
    report.warnings.iter().any(is)
}

/// Neither a Cholesky factor nor an inverse is taken of it (SVD-LLM #6, #7, #24, #52).
#[test]
fn a_singular_covariance() {
    let mut case = Case::random(1, SHAPE);
    case.inputs = gaussian(&mut rng(2), SHAPE.2, 5) * gaussian(&mut rng(3), 5, SHAPE.1);
    for case in [case.bare(), case] {
        for rank in [3, 5, 8] {
            for outcome in case.check(rank) {
                assert_eq!(warns(&outcome.report, |w| matches!(w, Warning::Filled { .. })), rank > 5);
                // The data have five dimensions.
                assert!(rank < 5 || outcome.measured <= 1e-6 * case.terms(&case.inputs));
            }
        }
        for ridge in [Ridge::Shrinkage, Ridge::Relative(1e-3), Ridge::Paper(0.0), Ridge::Exact(0.0), Ridge::Paper(9.0)]
        {
            for form in FORMS {
                let method = Dalr::new().with_ridge(ridge).with_bias_correction(case.bias.is_some());
                let compressed = method.compress(&case.layer::<f64>(), &form.of(&case.inputs), Rank::Fixed(4)).unwrap();
                let total = case.variance().sqrt();
                let (error, measured) =
                    (compressed.report().relative_error().unwrap(), case.outcome(&compressed).measured);
                assert!((error * total - measured).abs() <= 1e-7 * total, "{ridge:?}, {form:?}: {error} {measured}");
            }
        }
    }
}

/// A Gram matrix in `f32` loses definiteness, and a later cast cannot bring it back (larql #339).
#[test]
fn a_covariance_that_single_precision_would_make_indefinite() {
    for shape in [SHAPE, WIDE] {
        let mut case = Case::random(4, shape);
        let decay = Mat::from_fn(shape.1, shape.1, |i, j| if i == j { 10_f64.powf(-0.25 * i as f64) } else { 0.0 });
        case.inputs = case.inputs * decay * crate::common::orthogonal(&mut rng(5), shape.1, shape.1);
        for rank in [2, 8, 20] {
            case.check(rank);
        }
    }
}

/// A small calibration set explodes: perplexity 4629 from 8 samples (SVD-LLM #54).
#[test]
fn eight_samples() {
    let domain = Mat::from_fn(SHAPE.1, SHAPE.1, |i, j| if i == j { (1.0 + i as f64).powf(-0.7) } else { 0.0 })
        * crate::common::orthogonal(&mut rng(6), SHAPE.1, SHAPE.1);
    let shifted = |inputs: Mat<f64>| Mat::from_fn(inputs.nrows(), inputs.ncols(), |i, j| inputs[(i, j)] + 0.3);
    for rank in [2, 7, 8, 16] {
        let mut squares = (0.0, 0.0);
        for seed in 0..10 {
            let few = Case::random(seed, (SHAPE.0, SHAPE.1, 8));
            let few = Case { inputs: shifted(&few.inputs * &domain), ..few };
            let others = shifted(gaussian(&mut rng(100 + seed), 2000, SHAPE.1) * &domain);
            let others = Case { inputs: others, ..few.clone() };
            few.check(rank);
            for form in FORMS {
                let (layer, stats) = (few.layer::<f64>(), form.of(&few.inputs));
                let error = |method: &dyn LowRankCompressor<f64>| {
                    let compressed = method.compress_with(&layer, (&stats).into(), Rank::Fixed(rank)).unwrap();
                    let warned = warns(compressed.report(), |w| matches!(w, Warning::FewSamples { inputs: 40, .. }));
                    assert_eq!(warned, compressed.report().method() == "dalr");
                    others.outcome(&compressed).measured
                };
                let (ours, svd) = (error(&Dalr::new()), error(&TruncatedSvd::new().with_bias_correction(true)));
                // Eight samples can give a slightly larger error by chance.
                assert!(ours <= 1.1 * svd, "seed {seed}, rank {rank}, {form:?}: {ours} {svd}");
                squares = (squares.0 + ours * ours, squares.1 + svd * svd);
            }
        }
        println!("eight samples, rank {rank}: {:.4} of SVD's error", (squares.0 / squares.1).sqrt());
        assert!(squares.0 <= squares.1, "rank {rank}: {squares:?}");
    }
}

#[test]
fn dead_channels() {
    let case = Case::random(7, SHAPE).map_inputs(|x, i, j| match j {
        0 => 0.0,
        1 => f64::from(i == 17),
        _ if j % 3 == 0 => 0.0,
        _ => x.max(0.0),
    });
    for case in [case.bare(), case.clone()] {
        for rank in [1, 6, 23] {
            case.check(rank);
        }
    }
    // All inputs are zero.
    let off = case.map_inputs(|_, _, _| 0.0);
    for case in [off.bare(), off] {
        for outcome in case.check(4) {
            assert_eq!(outcome.measured, 0.0);
            assert!(warns(&outcome.report, |w| *w == Warning::NoVariation));
        }
    }
}

#[test]
fn constant_inputs() {
    let constant = |j: usize| [3.7, -1e4, 1e-5][j % 3];
    let case = Case::random(8, SHAPE).map_inputs(|x, _, j| if j < 12 { constant(j) } else { x });
    for case in [case.bare(), case.clone()] {
        for rank in [1, 6, 23] {
            case.check(rank);
        }
    }
    for outcome in case.map_inputs(|_, _, j| constant(j)).check(4) {
        assert!(outcome.measured <= outcome.rounding, "{:e}", outcome.measured);
        assert!(warns(&outcome.report, |w| *w == Warning::NoVariation));
    }
}

/// Projections with a bias come out as garbage at every ratio (Palu #5).
#[test]
fn a_layer_with_a_bias() {
    let mut case = Case::random(9, SHAPE).map_inputs(|x, _, j| x + j as f64 / 10.0);
    case.bias = Some(case.bias.unwrap() * faer::Scale(1e4));
    let mut before = vec![f64::INFINITY; 4];
    for rank in 1..=SHAPE.0 {
        let now = case.check(rank);
        for (outcome, before) in now.iter().zip(&mut before) {
            assert!(outcome.measured <= *before + outcome.rounding);
            *before = outcome.measured;
        }
    }
    // With `with_bias_correction(false)` the bias is kept, and the weight is the best for it.
    for form in FORMS {
        let method = Dalr::new().with_ridge(Ridge::None).with_bias_correction(false);
        let compressed = method.compress(&case.layer::<f64>(), &form.of(&case.inputs), Rank::Fixed(6)).unwrap();
        assert_eq!(compressed.layer().bias(), case.layer().bias());
        let least = case.bare().energies().iter().skip(6).sum::<f64>().sqrt();
        let measured = case.outcome(&compressed).measured;
        assert!((measured / least - 1.0).abs() < 1e-7, "{measured} {least}");
    }
}

#[test]
fn one_sample() {
    let case = Case::random(10, (SHAPE.0, SHAPE.1, 1));
    for case in [case.bare(), case] {
        for rank in [1, 2, SHAPE.0] {
            for outcome in case.check(rank) {
                assert_eq!(outcome.report.samples, 1);
                // One output needs at most one direction.
                assert!(outcome.measured <= outcome.rounding, "{:e}", outcome.measured);
            }
        }
    }
}

/// Copies of samples neither make a covariance regular nor change the optimum.
#[test]
fn duplicated_samples() {
    let few = Case::random(11, (SHAPE.0, SHAPE.1, 6));
    let mut order: Vec<usize> = (0..60).map(|i| i % 6).collect();
    order.shuffle(&mut rng(12));
    let copies = Mat::from_fn(60, SHAPE.1, |i, j| few.inputs[(order[i], j)]);
    let copied = Case { inputs: copies, ..few.clone() };
    for rank in [1, 3, 5, 9] {
        for (once, often) in few.check(rank).iter().zip(copied.check(rank)) {
            let [once, often] = [&once.report, &often.report].map(|report| report.relative_error().unwrap());
            assert!((once - often).abs() < 1e-6, "rank {rank}: {once} {often}");
        }
    }
}

#[test]
fn a_mean_a_million_times_the_spread() {
    for shape in [SHAPE, WIDE] {
        let case = Case::random(13, shape).map_inputs(|x, _, j| x + 1e6 * if j % 2 == 0 { 1.0 } else { -0.7 });
        for rank in [2, 12] {
            case.check(rank);
        }
    }
}

#[test]
fn channels_twelve_orders_of_magnitude_apart() {
    for shape in [SHAPE, WIDE] {
        let scale = |j: usize| 1e12_f64.powf(j as f64 / (shape.1 - 1) as f64) * 1e-6;
        let mut case = Case::random(14, shape).map_inputs(|x, _, j| (x + 1.0) * scale(j));
        // The smallest inputs matter as much as the largest ones.
        case.weight = Mat::from_fn(shape.0, shape.1, |i, j| case.weight[(i, j)] / scale(j));
        for case in [case.bare(), case] {
            for rank in [2, 12] {
                case.check(rank);
            }
        }
    }
}

/// The "compressed" model grew (distiller #359, py-faster-rcnn #911).
#[test]
fn a_rank_past_break_even() {
    for (m, n) in [(24, 40), (40, 24), (10, 84), (7, 7)] {
        let case = Case::random(15, (m, n, 50));
        let (layer, stats) = (case.layer::<f32>(), Form::Collapsed.of(&case.inputs));
        let decomposition = Dalr::new().decompose(&layer, &stats, m.min(n)).unwrap();
        for rank in 1..=m.min(n) {
            let report = decomposition.truncate(rank).unwrap().report().clone();
            let (factors, dense) = (rank * (m + n), m * n);
            assert_eq!((report.parameters_before, report.parameters_after), (dense + m, factors + m));
            assert_eq!(warns(&report, |w| matches!(w, Warning::PastBreakEven { .. })), factors >= dense, "{report}");
            assert_eq!(report.to_string().contains("past break-even"), factors >= dense);
        }
        // A budget never gives such a rank.
        let whole = Dalr::new().compress(&layer, &stats, Rank::ParameterRatio(1.0)).unwrap();
        assert!(whole.report().parameters_after <= whole.report().parameters_before);
    }
}

/// The compressed layer takes longer than the original one (SoLA #2, tensorly-torch #35). The
/// report counts the multiply–adds of both.
#[test]
fn a_compressed_layer_that_is_slower_than_the_dense_one() {
    let (m, n) = (30, 20);
    let case = Case::random(16, (m, n, 50));
    let decomposition = Dalr::new().decompose(&case.layer::<f64>(), &Form::Collapsed.of(&case.inputs), 20).unwrap();
    for rank in 1..=20 {
        let compressed = decomposition.truncate(rank).unwrap();
        let (low, report) = (compressed.layer(), compressed.report());
        let entries = |matrix: MatRef<'_, f64>| matrix.nrows() * matrix.ncols();
        assert_eq!(report.multiply_adds_before, entries(case.weight.as_ref()));
        assert_eq!(report.multiply_adds_after, entries(low.down()) + entries(low.up()));
        let warned = warns(report, |w| matches!(w, Warning::PastBreakEven { .. }));
        assert_eq!(report.multiply_adds_after < report.multiply_adds_before, !warned);
    }
}

/// For inputs with more than two axes, the wrong axis is used (fasterai). Here, samples are the
/// rows of a contiguous batch × sequence × inputs buffer, and another number of columns is an
/// error.
#[test]
fn inputs_with_three_axes() {
    let (batch, sequence, features) = (3, 5, 8);
    let entry = |b: usize, s: usize, j: usize| ((b * 31 + s * 17 + j * 7) % 23) as f64 - 9.0;
    let tensor: Vec<f32> = (0..batch * sequence * features)
        .map(|at| entry(at / features / sequence, at / features % sequence, at % features) as f32)
        .collect();
    let rows = MatRef::from_row_major_slice(&tensor, batch * sequence, features);
    let mut stats = ActivationStats::new(features);
    stats.update(rows).unwrap();
    assert_eq!(stats.samples(), 15);
    let tokens = || (0..batch).flat_map(|b| (0..sequence).map(move |s| (b, s)));
    let plain = |f: &dyn Fn(usize, usize) -> f64| tokens().map(|(b, s)| f(b, s)).sum::<f64>() / 15.0;
    let mean: Vec<f64> = (0..features).map(|j| plain(&|b, s| entry(b, s, j))).collect();
    let covariance = stats.covariance().unwrap();
    for i in 0..features {
        assert!((stats.mean().unwrap()[i] - mean[i]).abs() < 1e-13);
        for j in 0..features {
            let expected = plain(&|b, s| (entry(b, s, i) - mean[i]) * (entry(b, s, j) - mean[j]));
            assert!((covariance[(i, j)] - expected).abs() < 1e-12);
        }
    }
    let weight = |o: usize, j: usize| ((o * 5 + j * 3) % 7) as f64;
    let layer = Linear::new(Mat::from_fn(4, features, |o, j| weight(o, j) as f32), None).unwrap();
    let outputs = layer.forward(rows).unwrap();
    for (row, (b, s)) in tokens().enumerate() {
        for o in 0..4 {
            let expected: f64 = (0..features).map(|j| weight(o, j) * entry(b, s, j)).sum();
            assert_eq!(f64::from(outputs[(row, o)]), expected);
        }
    }
    // A reversed view into a larger buffer gives the same result as a copy.
    let view = rows.subcols(2, 4).reverse_rows();
    let mut part = ActivationStats::new(4);
    part.update(view).unwrap();
    let difference = part.covariance().unwrap() - covariance.as_ref().submatrix(2, 2, 4, 4);
    assert!(difference.norm_max() < 1e-12);
    // Read along another axis, the batch has another number of columns.
    for (rows, width) in [(batch * features, sequence), (batch, sequence * features)] {
        let wrong = MatRef::from_row_major_slice(&tensor, rows, width);
        for outcome in [stats.update(wrong), layer.forward(wrong).map(drop)] {
            let Err(Error::Shape { expected, found, .. }) = outcome else { panic!("{outcome:?}") };
            assert_eq!((expected, found), (features, width));
        }
    }
    assert_eq!(stats.samples(), 15);
}

/// A decomposition that does not converge gives NaN or an exception (musco-pytorch #14, faer's
/// `NoConvergence` on an 11 × 11). The unit tests of the solvers test the fallback with algorithms
/// that fail. Here block Lanczos fails without such help, because the largest eigenvalues are close.
#[test]
fn a_solver_that_gives_up() {
    let n = 1000;
    let value = |i: usize| ((1.0 + (i as f64 * 0.00314).cos()) / 2.0).sqrt();
    let weight = Mat::from_fn(n, n, |i, j| if i == j { value(i) } else { 0.0 });
    let layer = Linear::new(weight, None).unwrap();
    let method = TruncatedSvd::new().with_solver(Solver::BlockLanczos);
    let decomposition = method.decompose(&layer, &ActivationStats::new(n), 6).unwrap();
    for (index, energy) in decomposition.energies().iter().enumerate() {
        assert!((energy - value(index).powi(2)).abs() <= 10.0 * n as f64 * f64::EPSILON);
    }
    let compressed = decomposition.truncate(6).unwrap();
    assert!(warns(compressed.report(), |w| matches!(w, Warning::SolverFallback { .. })), "{}", compressed.report());
    let outputs = compressed.layer().forward(Mat::identity(n, n).as_ref()).unwrap();
    let left = (0..n).skip(6).map(value).fold(0.0, f64::max);
    assert!((outputs - layer.weight()).norm_max() <= left * (1.0 + 1e-12));

    // An 11 × 11 by every solver, with half of the eigenvalues coinciding and others zero.
    let values = [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1e-9, 0.0, 0.0, 0.0];
    let (left, right) =
        (crate::common::orthogonal(&mut rng(17), 11, 11), crate::common::orthogonal(&mut rng(18), 11, 11));
    let case = Case {
        weight: Mat::from_fn(11, 11, |i, j| left[(i, j)] * values[j]) * right,
        ..Case::random(19, (11, 11, 20))
    };
    for rank in 1..=11 {
        case.check(rank);
    }
}

/// Results differ from run to run (SVD-LLM #20, #27, #34, #43). Here, neither repetition nor
/// another order of the samples changes them. [`determinism.rs`](../determinism.rs) compares bits.
#[test]
fn results_that_differ_from_run_to_run() {
    fn check<T: Scalar>(case: &Case, form: Form) {
        let run =
            |inputs: &Mat<f64>| Dalr::new().compress(&case.layer::<T>(), &form.of(inputs), Rank::Fixed(6)).unwrap();
        let (first, again) = (run(&case.inputs), run(&case.inputs));
        assert!(first.layer() == again.layer() && first.report() == again.report());
        let mut order: Vec<usize> = (0..case.samples()).collect();
        order.shuffle(&mut rng(20));
        let other = run(&Mat::from_fn(case.samples(), SHAPE.1, |i, j| case.inputs[(order[i], j)]));
        let (weight, difference) = (weight_of(first.layer()), weight_of(first.layer()) - weight_of(other.layer()));
        // The sixth and the seventh energy differ by a few per cent.
        assert!(difference.norm_l2() <= 1e4 * T::EPSILON * weight.norm_l2(), "{:e}", difference.norm_l2());
    }
    let case = Case::random(21, SHAPE);
    for form in FORMS {
        check::<f32>(&case, form);
        check::<f64>(&case, form);
    }
}

/// Factors from an inverse of an ill-conditioned covariance are unbalanced (peft #2317). Here, `up`
/// is orthonormal and `down` is at most as large as the weight, for any data.
#[test]
fn unbalanced_factors() {
    let mut case = Case::random(22, SHAPE);
    let decay = Mat::from_fn(SHAPE.1, SHAPE.1, |i, j| if i == j { 10_f64.powf(-0.25 * i as f64) } else { 0.0 });
    case.inputs = case.inputs * decay * crate::common::orthogonal(&mut rng(23), SHAPE.1, SHAPE.1);
    let longest = jacobi::svd(case.weight.as_ref()).values[0];
    for rank in [4, 12, 24] {
        for outcome in case.check(rank) {
            let gram = outcome.up.transpose() * &outcome.up - Mat::<f64>::identity(rank, rank);
            assert!(gram.norm_l2() <= 10.0 * f64::from(f32::EPSILON) * rank as f64);
            let length = jacobi::svd(outcome.down.as_ref()).values[0];
            assert!(length <= longest * (1.0 + 1e-6), "rank {rank}: {length} {longest}");
        }
    }
}

/// Few samples are damped until they have no effect (peft #2317). Here, few samples of a domain
/// with few dimensions are used.
#[test]
fn a_covariance_that_is_damped_too_much() {
    let domain = gaussian(&mut rng(24), 4, SHAPE.1);
    let draw = |seed, count| {
        gaussian(&mut rng(seed), count, 4) * &domain + gaussian(&mut rng(seed + 1), count, SHAPE.1) * faer::Scale(0.02)
    };
    let few = Case { inputs: draw(25, 24), ..Case::random(40, SHAPE) };
    let others = Case { inputs: draw(27, 500), ..few.clone() };
    let least = others.energies().iter().skip(4).sum::<f64>().sqrt();
    let held_out = Form::Collapsed.of(&draw(29, 60));
    for form in FORMS {
        let (layer, stats) = (few.layer::<f64>(), form.of(&few.inputs));
        let error = |method: &dyn LowRankCompressor<f64>| {
            others.outcome(&method.compress_with(&layer, (&stats).into(), Rank::Fixed(4)).unwrap()).measured
        };
        let candidates = [0.0, 1e-3, 1e-2, 0.1, 1.0].map(Ridge::Relative);
        let ridge = select_ridge(&layer, &stats, &held_out, Rank::Fixed(4), &candidates).unwrap();
        let (ours, selected) = (error(&Dalr::new()), error(&Dalr::new().with_ridge(ridge)));
        let svd = error(&TruncatedSvd::new().with_bias_correction(true));
        println!(
            "24 samples of 4 dimensions: default {ours:.2}, {ridge:?} {selected:.2}, SVD {svd:.2}, least {least:.2}"
        );
        assert!(ours <= 0.1 * svd && selected <= 1.5 * least, "{form:?}: {ours} {selected} {svd} {least}");
    }
}

/// Users want the singular values themselves (PiSSA #13).
#[test]
fn singular_values() {
    fn check<T: Scalar>(case: &Case, form: Form) {
        let case = case.rounded::<T>();
        let (layer, stats) = (case.layer::<T>(), form.of(&case.inputs));
        let close = |decomposition: Decomposition<T>, expected: Vec<f64>| {
            let total: f64 = expected.iter().sum();
            assert!((decomposition.total_energy() / total - 1.0).abs() <= 1e-12);
            assert_eq!(decomposition.energies().len(), expected.len());
            for (energy, expected) in decomposition.energies().iter().zip(expected) {
                assert!((energy - expected).abs() <= 100.0 * f64::EPSILON * total, "{energy} {expected}");
            }
        };
        // The squared singular values of the weight, and of the outputs per sample.
        let weight = jacobi::svd(case.weight.as_ref()).values.iter().map(|value| value * value).collect();
        close(TruncatedSvd::new().decompose(&layer, &stats, SHAPE.0).unwrap(), weight);
        let outputs = case.energies().iter().map(|energy| energy / case.samples() as f64).collect();
        close(Dalr::new().with_ridge(Ridge::None).decompose(&layer, &stats, SHAPE.0).unwrap(), outputs);
    }
    let case = Case::random(28, SHAPE);
    for form in FORMS {
        check::<f32>(&case, form);
        check::<f64>(&case, form);
    }
}

/// Compresses as DALR does, and counts the solves.
struct Counting(Cell<usize>);

impl LowRankCompressor<f64> for Counting {
    fn solve(
        &self,
        layer: &Linear<f64>,
        calibration: Calibration<'_, f64>,
        max_rank: usize,
    ) -> dalr::Result<Decomposition<f64>> {
        self.0.set(self.0.get() + 1);
        Dalr::new().with_ridge(Ridge::None).solve(layer, calibration, max_rank)
    }
}

/// Hours of rank search (peft #896, #3049): one solve gives the error of every rank.
#[test]
fn a_rank_search_that_takes_hours() {
    let case = Case::random(29, SHAPE);
    let (layer, stats) = (case.layer::<f64>(), Form::Samples.of(&case.inputs));
    let energies = case.energies();
    let total: f64 = energies.iter().sum();
    let left = |rank: usize| energies.iter().skip(rank).sum::<f64>() / total;
    let counting = Counting(Cell::new(0));
    for goal in [0.9, 0.5, 0.1] {
        let found = counting.compress(&layer, &stats, Rank::RelativeError(goal)).unwrap().report().rank();
        assert_eq!(found, (1..SHAPE.0).find(|&rank| left(rank).sqrt() <= goal).unwrap());
    }
    assert_eq!(counting.0.take(), 3);
    let decomposition = counting.decompose(&layer, &stats, SHAPE.0).unwrap();
    for rank in 1..=SHAPE.0 {
        let predicted = decomposition.relative_error(rank).unwrap();
        assert!((predicted.powi(2) - left(rank)).abs() <= 1e-12, "{rank}: {predicted}");
        let cut = decomposition.truncate(rank).unwrap();
        let solved = Dalr::new().with_ridge(Ridge::None).compress(&layer, &stats, Rank::Fixed(rank)).unwrap();
        let difference = weight_of(cut.layer()) - weight_of(solved.layer());
        assert!(difference.norm_l2() <= 1e-11 * case.weight.norm_l2(), "{rank}: {:e}", difference.norm_l2());
    }
    assert_eq!(counting.0.get(), 1);
}

/// The result cannot be saved or loaded elsewhere (TransformerCompression #139, #188). Here,
/// factors are plain numbers, out × in as in PyTorch, and give the same layer again.
#[test]
fn a_result_that_cannot_be_saved() {
    use safetensors::tensor::{Dtype, SafeTensors, TensorView};
    let case = Case::random(30, SHAPE);
    let stats = Form::Samples.of::<f32>(&case.inputs);
    let compressed = Dalr::new().compress(&case.layer::<f32>(), &stats, Rank::Fixed(6)).unwrap();
    let layer = compressed.layer();
    // Columns are contiguous slices. Formats in row-major order need a copy.
    let slices: Vec<&[f32]> =
        layer.down().col_iter().map(|column| column.try_as_col_major().unwrap().as_slice()).collect();
    assert!(slices.len() == SHAPE.1 && slices.iter().all(|slice| slice.len() == 6));
    let bytes = |matrix: MatRef<'_, f32>| -> Vec<u8> {
        matrix.row_iter().flat_map(|row| row.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>()).collect()
    };
    let bias = layer.bias().unwrap();
    let parts = [
        ("down.weight", layer.down(), vec![6, SHAPE.1]),
        ("up.weight", layer.up(), vec![SHAPE.0, 6]),
        ("up.bias", bias.as_mat(), vec![SHAPE.0]),
    ];
    let data = parts.map(|(name, matrix, shape)| (name, shape, bytes(matrix)));
    let views =
        data.iter().map(|(name, shape, bytes)| (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    let file = safetensors::serialize(views, None).unwrap();

    let file = SafeTensors::deserialize(&file).unwrap();
    let read = |name: &str| -> (Vec<usize>, Vec<f32>) {
        let tensor = file.tensor(name).unwrap();
        let numbers = tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
        (tensor.shape().to_vec(), numbers.collect())
    };
    let matrix = |name: &str| {
        let (shape, numbers) = read(name);
        MatRef::from_row_major_slice(&numbers, shape[0], shape[1]).to_owned()
    };
    let bias = read("up.bias").1.into_iter().collect();
    let loaded = LowRankLinear::new(matrix("down.weight"), matrix("up.weight"), Some(bias)).unwrap();
    assert_eq!(&loaded, layer);
    let inputs = cast::<f32>(case.inputs.as_ref());
    assert_eq!(loaded.forward(inputs.as_ref()).unwrap(), layer.forward(inputs.as_ref()).unwrap());
}

/// The report can be stored with the factors, and the configuration can be read from a file.
#[cfg(feature = "serde")]
#[test]
fn a_report_that_cannot_be_saved() {
    for outcome in Case::random(31, (8, 10, 9)).check(8) {
        assert!(!outcome.report.warnings.is_empty());
        let text = serde_json::to_string(&(Rank::Fixed(8), &outcome.report)).unwrap();
        let (rank, report): (Rank, Report) = serde_json::from_str(&text).unwrap();
        assert_eq!((rank, report), (Rank::Fixed(8), outcome.report));
        assert_eq!(outcome.layer.weight().shape(), (8, 10));
    }
}
