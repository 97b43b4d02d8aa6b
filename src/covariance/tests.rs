use super::samples_to_covariance::StatsForm;
use super::*;
use crate::linalg::{Par, power_of_two};
use crate::{Error, Result};
use faer::{Mat, mat};

mod moments;

fn batch(rows: usize, features: usize, salt: usize) -> Mat<f64> {
    Mat::from_fn(rows, features, |i, j| ((i * 31 + j * 17 + salt * 13) % 23) as f64 / 23.0 + j as f64)
}

/// Returns the mean and covariance in two plain passes over all rows.
fn two_pass(rows: &Mat<f64>) -> (Vec<f64>, Mat<f64>) {
    let (count, features) = rows.shape();
    let mean: Vec<f64> = (0..features).map(|j| (0..count).map(|i| rows[(i, j)]).sum::<f64>() / count as f64).collect();
    let product = |a, b| (0..count).map(|i| (rows[(i, a)] - mean[a]) * (rows[(i, b)] - mean[b])).sum::<f64>();
    let covariance = Mat::from_fn(features, features, |a, b| product(a, b) / count as f64);
    (mean, covariance)
}

fn in_covariance_form<T>(stats: &ActivationStats<T>) -> bool {
    matches!(stats.form, StatsForm::Covariance(_))
}

fn check(stats: &ActivationStats<f64>, rows: &Mat<f64>) {
    let (mean, covariance) = two_pass(rows);
    assert_eq!(stats.samples(), rows.nrows() as u64);
    for (ours, plain) in stats.mean().unwrap().iter().zip(&mean) {
        assert!((ours - plain).abs() < 1e-13 * (1.0 + plain.abs()));
    }
    assert!((stats.covariance().unwrap() - covariance).norm_max() < 1e-14);
}

#[test]
fn results_stay_the_same_when_the_form_changes() {
    let features = 20;
    let mut stats = ActivationStats::new(features);
    let mut all = Mat::<f64>::zeros(0, features);
    let mut forms = Vec::new();
    for salt in 0..16 {
        let rows = batch(3, features, salt);
        stats.update(rows.as_ref()).unwrap();
        all = Mat::from_fn(all.nrows() + 3, features, |i, j| {
            if i < all.nrows() { all[(i, j)] } else { rows[(i - all.nrows(), j)] }
        });
        check(&stats, &all);
        forms.push(in_covariance_form(&stats));
    }
    assert!(forms.contains(&false) && forms.contains(&true) && forms.is_sorted());
}

#[test]
fn merges_in_both_forms_and_mixed() {
    let mut forms = Vec::new();
    for (first, second) in [(4, 5), (4, 60), (60, 4), (60, 70), (25, 25), (0, 60), (0, 4), (60, 0)] {
        let rows = batch(first + second, 20, 1);
        let (mut left, mut right) = (ActivationStats::new(20), ActivationStats::new(20));
        if first > 0 {
            left.update(rows.subrows(0, first)).unwrap();
        }
        if second > 0 {
            right.update(rows.subrows(first, second)).unwrap();
        }
        forms.push((in_covariance_form(&left), in_covariance_form(&right)));
        left.merge(&right).unwrap();
        check(&left, &rows);
    }
    assert!([(false, false), (false, true), (true, false), (true, true)].iter().all(|pair| forms.contains(pair)));
}

/// There are more samples than a segment holds.
#[test]
fn the_square_of_a_moment_of_several_segments() -> Result<()> {
    let (count, features) = (2090, 2100);
    assert!(sample_form::segment_rows(features) < count);
    let rows = Mat::from_fn(count, features, |i, j| ((i * 37 + j * 101 + i * j % 89) % 97) as f64 / 97.0 - 0.4);
    let mut stats = ActivationStats::new(features);
    stats.update(rows.as_ref())?;
    assert!(!in_covariance_form(&stats));
    let moment = second_moment(&stats, false)?;
    let unit = power_of_two(moment.exponent());
    let found = moment.trace_of_square(Par::Seq)? * unit * unit;
    let gram = crate::linalg::product(rows.as_ref(), rows.transpose(), Par::Seq)?;
    let expected = gram.squared_norm_l2() / (count * count) as f64;
    assert!((found / expected - 1.0).abs() < 1e-12, "{found} {expected}");
    Ok(())
}

#[test]
fn both_forms_are_the_same_second_moment() -> Result<()> {
    let rows = batch(18, 20, 3);
    let mut samples = ActivationStats::new(20);
    samples.update(rows.as_ref())?;
    let mut scatter = samples.clone();
    // The same samples again change neither mean nor covariance.
    scatter.update(rows.as_ref())?;
    scatter.update(rows.as_ref())?;
    assert!(!in_covariance_form(&samples) && in_covariance_form(&scatter));
    let left = batch(4, 20, 9);
    for centred in [true, false] {
        let (a, b) = (second_moment(&samples, centred)?, second_moment(&scatter, centred)?);
        assert_eq!(a.exponent(), b.exponent());
        let close = |x: f64, y: f64| assert!((x - y).abs() <= 1e-12 * x.abs().max(1e-3), "{x} {y}");
        close(a.trace(), b.trace());
        close(a.trace_of_square(Par::Seq)?, b.trace_of_square(Par::Seq)?);
        a.diagonal().iter().zip(b.diagonal()).for_each(|(&x, &y)| close(x, y));
        let scaled = a.scaled(Par::Seq)?;
        close(scaled.squared_norm_l2(), a.trace_of_square(Par::Seq)?);
        assert!((&scaled - b.scaled(Par::Seq)?).norm_max() < 1e-12 * scaled.norm_max());
        let (x, y) = (a.congruence(left.as_ref(), Par::Seq)?, b.congruence(left.as_ref(), Par::Seq)?);
        assert!((&x - y).norm_max() < 1e-12 * x.norm_max());
        assert!((&x - &left * &scaled * left.transpose()).norm_max() < 1e-12 * x.norm_max());
        let (x, y) = (a.multiply(left.transpose(), Par::Seq)?, b.multiply(left.transpose(), Par::Seq)?);
        assert!((&x - y).norm_max() < 1e-12 * x.norm_max());
        let other = batch(4, 20, 11);
        let forms = a.row_forms(left.as_ref(), other.as_ref(), Par::Seq)?;
        let theirs = b.row_forms(left.as_ref(), other.as_ref(), Par::Seq)?;
        for (i, (&x, y)) in forms.iter().zip(theirs).enumerate() {
            close(x, y);
            close(x, (&left * &scaled * other.transpose())[(i, i)]);
        }
    }
    let root = second_moment(&samples, true)?.root(Par::Seq)?.expect("18 samples of 20 inputs");
    let product = &root * root.transpose();
    assert!((product - second_moment(&samples, true)?.scaled(Par::Seq)?).norm_max() < 1e-12);
    assert!(second_moment(&scatter, true)?.root(Par::Seq)?.is_none());
    Ok(())
}

/// Weighted batches of several pieces in both forms.
#[test]
fn pieces_and_segments_add_up() -> Result<()> {
    let features = 4000;
    let rows = Mat::from_fn(1100, features, |i, j| if j < 3 { ((i * 7 + j * 5) % 11) as f64 + 100.0 } else { 0.0 });
    let weights: Vec<f64> = (0..1100).map(|i| f64::from(i % 4)).collect();
    let mut whole = ActivationStats::new(features);
    whole.update_weighted(rows.as_ref(), &weights)?;
    let narrow = Mat::from_fn(1100, 3, |i, j| rows[(i, j)]);
    let mut plain = ActivationStats::new(3);
    for i in 0..1100 {
        plain.update_weighted(narrow.subrows(i, 1), &weights[i..=i])?;
    }
    assert!(!in_covariance_form(&whole) && in_covariance_form(&plain));
    let (segmented, collapsed) = (second_moment(&whole, true)?, second_moment(&plain, true)?);
    let scale = |moment: &dyn SecondMoment<f64>| power_of_two(moment.exponent());
    let squares = |moment: &dyn SecondMoment<f64>| -> Result<f64> {
        Ok(moment.trace_of_square(Par::Seq)? * scale(moment).powi(2))
    };
    assert!((squares(&*segmented)? / squares(&*collapsed)? - 1.0).abs() < 1e-12);
    let root = segmented.root(Par::Seq)?.expect("825 samples");
    let top = root.subrows(0, 3);
    let product = top * top.transpose() * faer::Scale(scale(&*segmented));
    assert!((product - plain.covariance()?).norm_max() < 1e-11);
    Ok(())
}

#[test]
fn a_large_weighted_batch_is_added_piece_by_piece() -> Result<()> {
    let count = (1 << 16) + 1000;
    let rows = Mat::from_fn(count, 2, |i, j| ((i * (j + 3)) % 1009) as f64 + if i > 60_000 { 50.0 } else { 0.0 });
    let weights: Vec<f64> = (0..count).map(|i| f64::from(1 + (i % 5) as u8)).collect();
    let mut stats = ActivationStats::new(2);
    stats.update_weighted(rows.as_ref(), &weights)?;
    let total: f64 = weights.iter().sum();
    let mean = |j: usize| (0..count).map(|i| weights[i] * rows[(i, j)]).sum::<f64>() / total;
    let means = [mean(0), mean(1)];
    let covariance = |a: usize, b: usize| {
        let term = |i: usize| weights[i] * (rows[(i, a)] - means[a]) * (rows[(i, b)] - means[b]);
        (0..count).map(term).sum::<f64>() / total
    };
    let ours = stats.covariance()?;
    for (a, b) in [(0, 0), (0, 1), (1, 1)] {
        assert!((ours[(a, b)] / covariance(a, b) - 1.0).abs() < 1e-11);
    }
    Ok(())
}

#[test]
fn a_constant_input_hides_nothing_of_the_others() {
    for constant in [1e14, 1e30, f64::from(f32::MIN)] {
        for count in [6, 600] {
            let rows = Mat::from_fn(count, 5, |i, j| if j == 0 { constant } else { ((i * 7 + j * 3) % 13) as f64 });
            let mut stats = ActivationStats::new(5);
            stats.update(rows.as_ref()).unwrap();
            let (_, expected) = two_pass(&Mat::from_fn(count, 5, |i, j| if j == 0 { 0.0 } else { rows[(i, j)] }));
            assert!((stats.covariance().unwrap() - expected).norm_max() < 1e-12, "{constant} {count}");
        }
    }
}

#[test]
fn tiny_inputs_have_a_finite_covariance() {
    for scale in [1e-150, 1e-155, 1e-160] {
        for count in [6, 600] {
            let rows = Mat::from_fn(count, 3, |i, j| ((i * 7 + j * 3) % 13) as f64 * scale);
            let mut stats = ActivationStats::new(3);
            stats.update(rows.as_ref()).unwrap();
            assert!(stats.covariance().unwrap().col_iter().all(|column| column.iter().all(|x| x.is_finite())));
        }
    }
}

#[test]
fn a_mean_of_a_million_standard_deviations_costs_no_digits() {
    let spread = batch(40, 6, 2);
    let rows = Mat::from_fn(40, 6, |i, j| (spread[(i, j)] * 1024.0).round() / 1024.0);
    let shifted = Mat::from_fn(40, 6, |i, j| rows[(i, j)] + 1_048_576.0);
    let mut stats = ActivationStats::new(6);
    for start in (0..40).step_by(8) {
        stats.update(shifted.subrows(start, 8)).unwrap();
    }
    let (_, covariance) = two_pass(&rows);
    assert!((stats.covariance().unwrap() - covariance).norm_max() < 1e-14);
}

#[test]
fn constant_inputs_have_a_scatter_of_exactly_zero() {
    for count in [5, 500] {
        let mut stats = ActivationStats::new(8);
        stats.update(Mat::from_fn(count, 8, |_, j| 0.1 + j as f64 / 3.0).as_ref()).unwrap();
        assert_eq!(stats.covariance().unwrap(), Mat::<f64>::zeros(8, 8));
        assert_eq!(second_moment(&stats, true).unwrap().trace(), 0.0);
        assert!(second_moment(&stats, false).unwrap().trace() > 0.0);
    }
}

/// Inputs of all scales, an outlier as the first sample, and weights whose squares underflow in
/// `f32`.
#[test]
fn products_in_f32_survive_extreme_scales_outliers_and_weights() {
    let (features, count) = (accumulator::NATIVE_FEATURES, 1700);
    let scale = |j: usize| 10_f32.powi([0, 17, -24, -6][j % 4]);
    let entry = |i: usize, j: usize| {
        let outlier = if i == 0 { 1e6 } else { 0.0 };
        // The last input varies only in the samples with the smallest weights.
        let hidden = j == features - 1 && i % 3 != 2;
        if hidden { 3.0 } else { scale(j) * (((i * 31 + j * 17 + i * j % 7) % 23) as f32 - 9.0 + outlier) }
    };
    let narrow = Mat::from_fn(count, features, entry);
    let wide = Mat::from_fn(count, features, |i, j| f64::from(narrow[(i, j)]));
    let weights: Vec<f64> = (0..count).map(|i| [1.0, 1e40, 1e-60][i % 3]).collect();
    let mut ours = ActivationStats::new(features);
    let mut exact = ActivationStats::new(features);
    for start in (0..count).step_by(100) {
        ours.update_weighted(narrow.subrows(start, 100), &weights[start..start + 100]).unwrap();
        exact.update_weighted(wide.subrows(start, 100), &weights[start..start + 100]).unwrap();
    }
    assert!(in_covariance_form(&ours) && in_covariance_form(&exact));
    let (moment, plain) = (second_moment(&ours, true).unwrap(), second_moment(&exact, true).unwrap());
    assert!(moment.rounding() > 0.0 && plain.rounding() == 0.0);
    let (ours, exact) = (ours.covariance().unwrap(), exact.covariance().unwrap());
    for i in 0..features {
        assert!(exact[(i, i)] > 0.0, "{i}");
        for j in 0..=i {
            let size = exact[(i, i)].sqrt() * exact[(j, j)].sqrt();
            let error = (ours[(i, j)] - exact[(i, j)]).abs();
            assert!(error <= moment.rounding() * size, "{i} {j}: {error:e} {size:e}");
        }
    }
}

#[test]
fn a_count_that_overflows_is_refused_and_changes_nothing() {
    let mut stats = ActivationStats::new(2);
    stats.update(mat![[1.0, 2.0]].as_ref()).unwrap();
    stats.samples = u64::MAX;
    let error = stats.update(mat![[3.0, 4.0]].as_ref()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "ActivationStats::update: the number of samples exceeds the range of 64-bit counts: split the data"
    );
    let other = stats.clone();
    assert!(matches!(stats.merge(&other), Err(Error::Overflow { .. })));
    assert_eq!(stats.mean().unwrap()[0], 1.0);
    stats.samples = 1;
    stats.weight = f64::MAX;
    let weighted = stats.update_weighted(mat![[3.0, 4.0]].as_ref(), &[1e100]);
    assert!(matches!(weighted, Err(Error::Overflow { .. })), "{weighted:?}");
}

#[test]
fn squares_that_overflow_are_those_of_the_span_times_weight_and_inputs() {
    // (2 · 10¹⁵³)² times 100 is out of the range of `f64`; times 10, it is in range.
    let update = |rows, features| ActivationStats::new(features).update(Mat::full(rows, features, 1e153).as_ref());
    for (rows, features) in [(100, 1), (1, 100), (10, 10)] {
        assert!(matches!(update(rows, features), Err(Error::Overflow { .. })), "{rows} × {features}");
    }
    assert!(update(10, 1).is_ok() && update(1, 10).is_ok());
}

/// The squares of 30 samples are in range, those of 60 are not, in either order of the batches.
#[test]
fn squares_that_overflow_are_those_of_all_samples_together() -> Result<()> {
    let large = Mat::full(30, 1, 1e153);
    let fed = |rows: &Mat<f64>| -> Result<ActivationStats<f64>> {
        let mut stats = ActivationStats::new(1);
        stats.update(rows.as_ref()).map(|()| stats)
    };
    for (first, second) in
        [(large.clone(), large.clone()), (large.clone(), Mat::zeros(30, 1)), (Mat::zeros(30, 1), large)]
    {
        let overflow = |result| matches!(result, Err(Error::Overflow { what: "the square of the activations", .. }));
        assert!(overflow(fed(&first)?.update(second.as_ref())));
        assert!(overflow(fed(&first)?.merge(&fed(&second)?)));
        fed(&first)?.update(second.subrows(0, 10))?;
        fed(&first)?.merge(&fed(&second.subrows(0, 10).to_owned())?)?;
    }
    Ok(())
}

#[test]
fn samples_of_no_weight_are_not_the_origin_either() -> Result<()> {
    let mut stats = ActivationStats::new(1);
    stats.update_weighted(mat![[9.0], [1.0], [2.0]].as_ref(), &[0.0, 1.0, 3.0])?;
    assert_eq!((stats.channels.origin[0], stats.channels.offset[0], stats.samples()), (1.0, 0.75, 2));
    let mut none = ActivationStats::<f64>::new(1);
    none.update_weighted(mat![[9.0]].as_ref(), &[0.0])?;
    assert!(none.channels.origin.is_empty());
    Ok(())
}

/// `(2 + 4 + 2)² / (2² + 4² + 2²)`.
#[test]
fn effective_samples_of_several_batches() -> Result<()> {
    let mut stats = ActivationStats::new(1);
    stats.update_weighted(mat![[1.0]].as_ref(), &[2.0])?;
    stats.update_weighted(mat![[2.0]].as_ref(), &[4.0])?;
    let mut other = ActivationStats::new(1);
    other.update_weighted(mat![[3.0]].as_ref(), &[2.0])?;
    stats.merge(&other)?;
    assert!((stats.effective_samples() - 64.0 / 24.0).abs() < 1e-15);
    Ok(())
}

/// Thirds and tenths are rounded in every sum. The rounding must not count the input that is never
/// active.
#[test]
fn all_activations_are_those_of_the_active_inputs() -> Result<()> {
    for weights in [[0.1, 0.2, 0.3], [1.0 / 3.0, 0.1, 0.7], [0.7, 0.1, 0.2]] {
        let mut stats = ActivationStats::new(4);
        let batch = mat![[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]];
        stats.update_weighted(batch.as_ref(), &weights)?;
        assert_eq!(stats.fraction_gathering(1.0), Ok(0.75), "{weights:?}");
    }
    let mut silent = ActivationStats::new(2);
    silent.update(Mat::<f64>::zeros(3, 2).as_ref())?;
    assert_eq!(silent.fraction_gathering(1.0), Ok(0.0));
    for fraction in [0.0, -0.5, 1.0_f64.next_up(), f64::NAN] {
        assert!(matches!(
            silent.fraction_gathering(fraction),
            Err(Error::OutOfRange { parameter: "the fraction", .. })
        ));
    }
    Ok(())
}

#[test]
fn a_fraction_that_is_reached_exactly_needs_no_more() -> Result<()> {
    let mut stats = ActivationStats::new(4);
    stats.update(mat![[1.0, 2.0, 0.0, 0.0]].as_ref())?;
    assert_eq!(
        [0.25, 0.5, 0.75, 1.0].map(|fraction| stats.fraction_gathering(fraction)),
        [0.25, 0.25, 0.5, 0.5].map(Ok)
    );
    Ok(())
}
