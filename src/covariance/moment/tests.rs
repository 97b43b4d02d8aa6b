use super::*;
use crate::covariance::channels::Channels;
use crate::covariance::collapsed::Collapsed;
use crate::covariance::scatter::Scatter;
use faer::mat;

/// Room for no more than the scatter of two inputs in `f64`, so that it takes the place of the samples at once.
const SCATTER_OF_TWO: usize = 56;

#[test]
fn powers_of_two_are_exact_down_to_the_smallest_number() {
    let exact =
        |e: i32| if e < -1022 { f64::from_bits(1 << (e + 1074)) } else { f64::from_bits(((e + 1023) as u64) << 52) };
    for exponent in -1074..1024 {
        assert_eq!(power_of_two(exponent), exact(exponent), "{exponent}");
    }
}

/// Two samples `2⁴⁴ ± step` have a variance of `step²`. Up to a step of 1 that is rounding noise, which nothing sees.
#[test]
fn rounding_noise_of_a_constant_is_exactly_zero() -> Result<()> {
    let large = 2_f64.powi(44);
    for (step, trace) in [(1.0, 0.0), (2.0, 4.0)] {
        for limit in [usize::MAX, SCATTER_OF_TWO] {
            let mut stats = ActivationStats::new(2).with_memory_limit(limit);
            stats.update(mat![[large - step, 0.0], [large + step, 0.0]].as_ref())?;
            let moment = Moment::of(&stats, true)?;
            assert_eq!(moment.samples_kept(), (limit > SCATTER_OF_TWO).then_some(2));
            let left = mat![[1.0, 2.0], [3.0, 4.0], [-1.0, 0.0]];
            let other = mat![[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]];
            assert_eq!((moment.trace(), moment.exponent()), (trace, 0));
            let close = |found: Mat<f64>, expected: Mat<f64>| assert!((found - expected).norm_max() < 1e-13);
            let applied = mat![[trace, 3.0 * trace, -trace], [0.0, 0.0, 0.0]];
            close(moment.scaled(1)?, mat![[trace, 0.0], [0.0, 0.0]]);
            close(moment.multiply(left.transpose(), 1)?, applied.clone());
            close(moment.congruence(left.as_ref(), 1)?, &left * &applied);
            let forms = moment.row_forms(left.as_ref(), other.as_ref(), 1)?;
            close(mat![[forms[0], forms[1], forms[2]]], applied.subrows(0, 1).to_owned());
            close(mat![[moment.trace_of_square(1)?]], mat![[trace * trace]]);
        }
    }
    Ok(())
}

/// Eight inputs of variance 64.
#[test]
fn the_mean_diagonal_entry_is_brought_near_one() -> Result<()> {
    let mut stats = ActivationStats::<f64>::new(8);
    stats.update(Mat::from_fn(2, 8, |i, _| if i == 0 { 8.0 } else { -8.0 }).as_ref())?;
    let moment = Moment::of(&stats, true)?;
    assert_eq!((moment.exponent(), moment.trace(), moment.diagonal()), (6, 8.0, &[1.0; 8][..]));
    // 64 of the smallest numbers for each input, in units of 2⁶.
    assert_eq!(moment.quantum(), f64::from_bits(8));
    Ok(())
}

#[test]
fn applying_it_costs_what_its_form_holds() -> Result<()> {
    let rows = Mat::from_fn(20, 8, |i, j| ((i * 5 + j * 3) % 7) as f64);
    let (mut samples, mut scatter) = (ActivationStats::new(8), ActivationStats::new(8));
    samples.update(rows.subrows(0, 3))?;
    scatter.update(rows.as_ref())?;
    let [samples, scatter] = [Moment::of(&samples, true)?, Moment::of(&scatter, true)?];
    // Into three samples and back; all of an 8 × 8 matrix; nothing.
    let costs = [(samples, 48.0, Some(3)), (scatter, 64.0, None), (Moment::identity(8), 0.0, None)];
    for (moment, work, kept) in costs {
        assert_eq!((moment.work(), moment.samples_kept()), (work, kept));
        let outputs = moment.outputs(Mat::<f64>::identity(8, 8).as_ref(), 1.0, 1)?;
        assert_eq!(outputs.map(|outputs| outputs.ncols()), kept);
    }
    Ok(())
}

/// A square matrix and its transpose share memory and shape.
#[test]
fn forms_of_a_matrix_with_its_transpose() -> Result<()> {
    let mut stats = ActivationStats::new(3);
    stats.update(mat![[1.0, 2.0, 0.0], [-1.0, 4.0, 2.0]].as_ref())?;
    let moment = Moment::of(&stats, false)?;
    assert_eq!(moment.samples_kept(), Some(2));
    let (dense, a) = (moment.scaled(1)?, mat![[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 10.0]]);
    for b in [a.as_ref(), a.transpose(), a.clone().as_ref()] {
        let expected = &a * &dense * b.transpose();
        for (row, form) in moment.row_forms(a.as_ref(), b, 1)?.into_iter().enumerate() {
            assert!((form / expected[(row, row)] - 1.0).abs() < 1e-14);
        }
    }
    Ok(())
}

/// A segment holds 512 samples.
#[test]
fn outputs_of_several_segments() -> Result<()> {
    let (count, features) = (515, 8192);
    let rows = Mat::from_fn(count, features, |i, j| ((i * 7 + j * 3) % 19) as f32);
    let mut stats = ActivationStats::new(features);
    stats.update(rows.as_ref())?;
    let moment = Moment::of(&stats, false)?;
    let weight = Mat::from_fn(2, features, |i, j| if j < 4 { (i + j) as f32 } else { 0.0 });
    let outputs = moment.outputs(weight.as_ref(), 0.5, 1)?.expect("samples");
    assert_eq!(outputs.shape(), (2, count));
    let scale = 0.5 / ((count as f64).sqrt() * power_of_two(moment.exponent() / 2));
    for (i, j) in (0..2).flat_map(|i| (0..count).map(move |j| (i, j))) {
        let expected = scale * (0..4).map(|k| f64::from(weight[(i, k)] * rows[(j, k)])).sum::<f64>();
        assert!((f64::from(outputs[(i, j)]) - expected).abs() <= 1e-5 * expected, "{i} {j}");
    }
    Ok(())
}

/// `2500 · 2000²` is exactly what is too much.
#[test]
fn a_large_gram_matrix_is_not_formed() -> Result<()> {
    let spreads = |count: usize, features: usize| -> Result<[f64; 2]> {
        let rows = Mat::from_fn(count, features, |i, j| ((i * 37 + j * 101 + i * j % 89) % 97) as f32 - 40.0);
        let mut stats = ActivationStats::new(features);
        stats.update(rows.as_ref())?;
        let moment = Moment::of(&stats, false)?;
        assert_eq!(moment.samples_kept(), Some(count));
        let exact = moment.features() < 100;
        Ok([moment.spread(4, 0)?, moment.spread_by(4, exact, 0)?].map(|spread| spread.trace_of_square))
    };
    for (count, features) in [(2000, 2500), (30, 70)] {
        let [found, expected] = spreads(count, features)?;
        assert_eq!(found, expected, "{count} {features}");
    }
    Ok(())
}

#[test]
fn directions_of_up_to_64_inputs_are_eigenvectors() -> Result<()> {
    for features in [3, 63, 64, 65, 66] {
        let rows = Mat::from_fn(20, features, |i, j| ((i * 37 + j * 11 + i * j) % 23) as f64);
        let mut stats = ActivationStats::new(features);
        stats.update(rows.as_ref())?;
        let found = Moment::of(&stats, true)?.first_eigenvectors(2, 1)?;
        assert_eq!(found.map(|vectors| vectors.shape()), (features <= 64).then_some((features, 2)));
    }
    Ok(())
}

/// Statistics with this covariance, of products in this precision.
fn collapsed(covariance: Mat<f64>, precision: f64) -> Result<ActivationStats<f32>> {
    let features = covariance.nrows();
    let mut stats = ActivationStats::new(features);
    (stats.samples, stats.weight, stats.channels) = (1, 1.0, Channels::starting_at(vec![0.0; features]));
    let mut scatter = Scatter::zeros(features)?;
    (scatter.blocks, scatter.precision) = (vec![covariance], precision);
    let gathered = Samples::new(features);
    stats.form = Form::Scatter(Collapsed { scatter, weight: 1.0, offset: vec![0.0; features], gathered });
    Ok(stats)
}

/// Half of `S`, with and without a quarter of the identity, and a lift of `4 ε n`. The last input never varies.
#[test]
fn a_root_of_a_moment_and_a_ridge() -> Result<()> {
    let stats = collapsed(mat![[2.0, 1.0, 0.0], [1.0, 4.0, 0.0], [0.0, 0.0, 0.0]], f64::EPSILON)?;
    let moment = Moment::of(&stats, true)?;
    assert_eq!(moment.exponent(), 0);
    for ridge in [0.25, 0.0] {
        let (mut root, added) = moment.root_of((0.5, ridge), 1)?.expect("a positive semidefinite matrix");
        assert_eq!(added, [1.0, 2.0, 0.0].map(|diagonal| ridge + 12.0 * f64::EPSILON * diagonal));
        assert_eq!(root[(2, 2)], ridge.sqrt());
        [(0, 1), (0, 2), (1, 2)].iter().for_each(|&above| root[above] = 0.0);
        let expected = mat![[1.0 + ridge, 0.5, 0.0], [0.5, 2.0 + ridge, 0.0], [0.0, 0.0, ridge]];
        assert!((&root * root.transpose() - expected).norm_max() < 1e-14);
    }
    Ok(())
}

/// A correlation above 1 by `10⁻⁷`, as products in single precision may leave it, is lifted by `√2 · 2⁻²²`; one above by `10⁻⁶` is not rounding.
#[test]
fn a_root_in_spite_of_rounding_in_single_precision() -> Result<()> {
    let single = f64::from(f32::EPSILON);
    for (excess, precision, lifted) in [(1e-7, single, true), (1e-6, single, false), (1e-7, f64::EPSILON, false)] {
        let covariance = 4.0 * (1.0 + excess);
        let stats = collapsed(mat![[4.0, covariance], [covariance, 4.0]], precision)?;
        let moment = Moment::of(&stats, true)?;
        let found = moment.root_of((0.5, 0.0), 1)?;
        assert_eq!(found.is_some(), lifted, "{excess} {precision}");
        let Some((root, added)) = found else { continue };
        assert_eq!(added, [2_f64.powi(-23) * 2_f64.sqrt(); 2]);
        assert!((root[(0, 0)] * root[(1, 0)] / (0.5 * (1.0 + excess)) - 1.0).abs() < 1e-14);
    }
    Ok(())
}
