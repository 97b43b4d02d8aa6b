use super::super::covariance_form::CovarianceForm;
use super::super::per_input::Channels;
use super::super::samples_to_covariance::StatsForm;
use super::super::*;
use crate::Result;
use crate::linalg::{Par, power_of_two};
use faer::{Mat, mat};

/// A memory limit with room for the covariance form of two inputs, and for no samples.
const COVARIANCE_OF_TWO: usize = 56;

/// Two samples `2⁴⁴ ± step` have a variance of `step²`. Up to a step of 1, that is rounding noise
/// and must count as zero.
#[test]
fn rounding_noise_of_a_constant_is_exactly_zero() -> Result<()> {
    let large = 2_f64.powi(44);
    for (step, trace) in [(1.0, 0.0), (2.0, 4.0)] {
        for limit in [usize::MAX, COVARIANCE_OF_TWO] {
            let mut stats = ActivationStats::new(2).with_memory_limit(limit);
            stats.update(mat![[large - step, 0.0], [large + step, 0.0]].as_ref())?;
            let moment = second_moment(&stats, true)?;
            assert_eq!(moment.samples_kept(), (limit > COVARIANCE_OF_TWO).then_some(2));
            let left = mat![[1.0, 2.0], [3.0, 4.0], [-1.0, 0.0]];
            let other = mat![[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]];
            assert_eq!((moment.trace(), moment.exponent()), (trace, 0));
            let close = |found: Mat<f64>, expected: Mat<f64>| assert!((found - expected).norm_max() < 1e-13);
            let applied = mat![[trace, 3.0 * trace, -trace], [0.0, 0.0, 0.0]];
            close(moment.scaled(Par::Seq)?, mat![[trace, 0.0], [0.0, 0.0]]);
            close(moment.multiply(left.transpose(), Par::Seq)?, applied.clone());
            close(moment.congruence(left.as_ref(), Par::Seq)?, &left * &applied);
            let forms = moment.row_forms(left.as_ref(), other.as_ref(), Par::Seq)?;
            close(mat![[forms[0], forms[1], forms[2]]], applied.subrows(0, 1).to_owned());
            close(mat![[moment.trace_of_square(Par::Seq)?]], mat![[trace * trace]]);
        }
    }
    Ok(())
}

/// Eight inputs of variance 64.
#[test]
fn the_mean_diagonal_entry_is_brought_near_one() -> Result<()> {
    let mut stats = ActivationStats::<f64>::new(8);
    stats.update(Mat::from_fn(2, 8, |i, _| if i == 0 { 8.0 } else { -8.0 }).as_ref())?;
    let moment = second_moment(&stats, true)?;
    assert_eq!((moment.exponent(), moment.trace(), moment.diagonal()), (6, 8.0, &[1.0; 8][..]));
    // The quantum is 64 times the smallest positive number for each input, divided by 2⁶.
    assert_eq!(moment.quantum(), f64::from_bits(8));
    Ok(())
}

#[test]
fn applying_it_costs_what_its_form_holds() -> Result<()> {
    let rows = Mat::from_fn(20, 8, |i, j| ((i * 5 + j * 3) % 7) as f64);
    let (mut samples, mut scatter) = (ActivationStats::new(8), ActivationStats::new(8));
    samples.update(rows.subrows(0, 3))?;
    scatter.update(rows.as_ref())?;
    let [samples, scatter] = [second_moment(&samples, true)?, second_moment(&scatter, true)?];
    // Two products with three samples; one with an 8 × 8 matrix; none for the identity.
    let costs = [(samples, 48.0, Some(3)), (scatter, 64.0, None), (identity(8), 0.0, None)];
    for (moment, macs, kept) in costs {
        assert_eq!((moment.macs(), moment.samples_kept()), (macs, kept));
        let outputs = moment.outputs(Mat::<f64>::identity(8, 8).as_ref(), 1.0, Par::Seq)?;
        assert_eq!(outputs.map(|outputs| outputs.ncols()), kept);
    }
    Ok(())
}

/// A square matrix and its transpose share memory and shape.
#[test]
fn forms_of_a_matrix_with_its_transpose() -> Result<()> {
    let mut stats = ActivationStats::new(3);
    stats.update(mat![[1.0, 2.0, 0.0], [-1.0, 4.0, 2.0]].as_ref())?;
    let moment = second_moment(&stats, false)?;
    assert_eq!(moment.samples_kept(), Some(2));
    let (dense, a) = (moment.scaled(Par::Seq)?, mat![[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 10.0]]);
    for b in [a.as_ref(), a.transpose(), a.clone().as_ref()] {
        let expected = &a * &dense * b.transpose();
        for (row, form) in moment.row_forms(a.as_ref(), b, Par::Seq)?.into_iter().enumerate() {
            assert!((form / expected[(row, row)] - 1.0).abs() < 1e-14);
        }
    }
    Ok(())
}

#[test]
fn outputs_of_several_segments() -> Result<()> {
    let (count, features) = (515, 8192);
    let rows = Mat::from_fn(count, features, |i, j| ((i * 7 + j * 3) % 19) as f32);
    let mut stats = ActivationStats::new(features);
    stats.update(rows.as_ref())?;
    let moment = second_moment(&stats, false)?;
    let weight = Mat::from_fn(2, features, |i, j| if j < 4 { (i + j) as f32 } else { 0.0 });
    let outputs = moment.outputs(weight.as_ref(), 0.5, Par::Seq)?.expect("samples");
    assert_eq!(outputs.shape(), (2, count));
    let scale = 0.5 / ((count as f64).sqrt() * power_of_two(moment.exponent() / 2));
    for (i, j) in (0..2).flat_map(|i| (0..count).map(move |j| (i, j))) {
        let expected = scale * (0..4).map(|k| f64::from(weight[(i, k)] * rows[(j, k)])).sum::<f64>();
        assert!((f64::from(outputs[(i, j)]) - expected).abs() <= 1e-5 * expected, "{i} {j}");
    }
    Ok(())
}

/// Returns statistics with this covariance, from products in this precision.
fn with_covariance(covariance: Mat<f64>, precision: f64) -> Result<ActivationStats<f32>> {
    let features = covariance.nrows();
    let mut stats = ActivationStats::new(features);
    (stats.samples, stats.weight, stats.channels) = (1, 1.0, Channels::starting_at(vec![0.0; features]));
    let mut form = CovarianceForm::new(features, features)?;
    (form.scatter.blocks, form.scatter.precision, form.weight) = (vec![covariance], precision, 1.0);
    stats.form = StatsForm::Covariance(form);
    Ok(stats)
}

/// The root of `S / 2`, with and without a quarter of the identity, and with a shift of `4 ε n`.
/// The last input never varies.
#[test]
fn a_root_of_a_moment_and_a_ridge() -> Result<()> {
    let stats = with_covariance(mat![[2.0, 1.0, 0.0], [1.0, 4.0, 0.0], [0.0, 0.0, 0.0]], f64::EPSILON)?;
    let moment = second_moment(&stats, true)?;
    assert_eq!(moment.exponent(), 0);
    for ridge in [0.25, 0.0] {
        let (mut root, added) = moment.root_of((0.5, ridge), Par::Seq)?.expect("a positive semidefinite matrix");
        assert_eq!(added, [1.0, 2.0, 0.0].map(|diagonal| ridge + 12.0 * f64::EPSILON * diagonal));
        assert_eq!(root[(2, 2)], ridge.sqrt());
        [(0, 1), (0, 2), (1, 2)].iter().for_each(|&above| root[above] = 0.0);
        let expected = mat![[1.0 + ridge, 0.5, 0.0], [0.5, 2.0 + ridge, 0.0], [0.0, 0.0, ridge]];
        assert!((&root * root.transpose() - expected).norm_max() < 1e-14);
    }
    Ok(())
}

/// Products in `f32` can give a correlation of `1 + 10⁻⁷`, which a shift of `√2 · 2⁻²²` corrects. A
/// correlation of `1 + 10⁻⁶` is not rounding.
#[test]
fn a_root_in_spite_of_rounding_in_single_precision() -> Result<()> {
    let single = f64::from(f32::EPSILON);
    for (excess, precision, lifted) in [(1e-7, single, true), (1e-6, single, false), (1e-7, f64::EPSILON, false)] {
        let covariance = 4.0 * (1.0 + excess);
        let stats = with_covariance(mat![[4.0, covariance], [covariance, 4.0]], precision)?;
        let moment = second_moment(&stats, true)?;
        let found = moment.root_of((0.5, 0.0), Par::Seq)?;
        assert_eq!(found.is_some(), lifted, "{excess} {precision}");
        let Some((root, added)) = found else { continue };
        assert_eq!(added, [2_f64.powi(-23) * 2_f64.sqrt(); 2]);
        assert!((root[(0, 0)] * root[(1, 0)] / (0.5 * (1.0 + excess)) - 1.0).abs() < 1e-14);
    }
    Ok(())
}
