//! Methods outside of the crate, built on [`Decomposition::new`]: their predicted errors equal the
//! measured ones. Truncated SVD without calibration data.

use dalr::{
    ActivationStats, Calibration, Compressed, Dalr, Decomposition, Error, Linear, LowRankCompressor, Rank, Result,
    Ridge, Scalar, TruncatedSvd, Warning,
};
use faer::{Mat, MatRef};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::common::case::{Case, FORMS, SHAPE, mean, wide};
use crate::common::{cast, gaussian, jacobi, weight_of};

/// Keeps the inputs that contribute most to the outputs: `C = W[:, kept]` and rows of the identity.
struct ColumnSelection {
    correct_bias: bool,
}

impl<T: Scalar> LowRankCompressor<T> for ColumnSelection {
    fn solve(&self, layer: &Linear<T>, calibration: Calibration<'_, T>, max_rank: usize) -> Result<Decomposition<T>> {
        let (weight, n) = (layer.weight(), layer.in_features());
        let deviations = calibration.activations().map(ActivationStats::covariance).transpose()?;
        let variance = |j: usize| deviations.as_ref().map_or(1.0, |covariance| covariance[(j, j)]);
        let score = |&j: &usize| variance(j) * wide(weight).col(j).squared_norm_l2();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|a, b| score(b).total_cmp(&score(a)));
        let up = Mat::from_fn(weight.nrows(), max_rank, |i, k| weight[(i, order[k])]);
        let down = Mat::from_fn(max_rank, n, |k, j| T::from_f64(f64::from(u8::from(order[k] == j))));
        Decomposition::new("column-selection", layer, calibration, (up, down), self.correct_bias)
    }

    fn rank_multiple(&self) -> usize {
        2
    }
}

/// A randomized SVD without power iterations: `C = Q Qᵀ W` for an orthonormal basis `Q` of `W Ω`.
struct RandomizedSvd {
    correct_bias: bool,
}

impl<T: Scalar> LowRankCompressor<T> for RandomizedSvd {
    fn solve(&self, layer: &Linear<T>, calibration: Calibration<'_, T>, max_rank: usize) -> Result<Decomposition<T>> {
        let weight = wide(layer.weight());
        let sketch = &weight * gaussian(&mut StdRng::seed_from_u64(1), layer.in_features(), max_rank);
        let basis = sketch.qr().compute_thin_Q();
        let factors = (cast(basis.as_ref()), cast((basis.transpose() * &weight).as_ref()));
        Decomposition::new("randomized-svd", layer, calibration, factors, self.correct_bias)
    }
}

/// Arbitrary factors, scaled like the weight.
struct Arbitrary {
    correct_bias: bool,
}

impl<T: Scalar> LowRankCompressor<T> for Arbitrary {
    fn solve(&self, layer: &Linear<T>, calibration: Calibration<'_, T>, max_rank: usize) -> Result<Decomposition<T>> {
        let (m, n) = (layer.out_features(), layer.in_features());
        let mut rng = StdRng::seed_from_u64(2);
        let factors = (cast(gaussian(&mut rng, m, max_rank).as_ref()), cast(gaussian(&mut rng, max_rank, n).as_ref()));
        Decomposition::new("arbitrary", layer, calibration, factors, self.correct_bias)
    }
}

/// Energies of the original outputs, about their mean and about zero.
pub fn output_energies(case: &Case) -> (f64, f64) {
    let mean = mean(&case.inputs);
    let (samples, features) = case.inputs.shape();
    let centred = Mat::from_fn(samples, features, |i, j| case.inputs[(i, j)] - mean[j]);
    let energy = |inputs: MatRef<'_, f64>| (inputs * case.weight.transpose()).squared_norm_l2();
    (energy(centred.as_ref()), energy(case.inputs.as_ref()))
}

/// Checks that the predicted, the evaluated and the measured error are equal. The numbers of `case`
/// are rounded to `T`.
#[track_caller]
pub fn check_error<T: Scalar>(case: &Case, stats: &ActivationStats<T>, compressed: &Compressed<T>, what: &str) {
    let (centred, uncentred) = output_energies(case);
    let outcome = case.outcome(compressed);
    let (measured, rounding) = (outcome.measured / centred.sqrt(), outcome.rounding / centred.sqrt());
    let predicted = compressed.report().relative_error.unwrap();
    let evaluated = compressed.evaluate(&case.layer(), stats).unwrap();
    // Predicted squared errors are differences of sums that are as large as the energy of the
    // outputs.
    let cancelled = 100.0 * T::EPSILON * (uncentred.max(centred) / centred + measured.powi(2));
    for (name, error) in [("predicted", predicted), ("evaluated", evaluated)] {
        let bound = rounding + cancelled / (error + measured).max(cancelled.sqrt());
        assert!((error - measured).abs() <= bound, "{what}, {name}: {error} instead of {measured}, within {bound:e}");
    }
}

fn check_outside<T: Scalar>(case: &Case) {
    let case = case.rounded::<T>();
    let layer = case.layer::<T>();
    let full = layer.out_features().min(layer.in_features());
    for (form, correct_bias) in FORMS.into_iter().flat_map(|form| [(form, false), (form, true)]) {
        let stats = form.of::<T>(&case.inputs);
        let methods: [&dyn LowRankCompressor<T>; 3] =
            [&ColumnSelection { correct_bias }, &RandomizedSvd { correct_bias }, &Arbitrary { correct_bias }];
        for method in methods {
            let decomposition = method.solve(&layer, (&stats).into(), full).unwrap();
            assert_eq!(decomposition.max_rank(), full);
            for rank in 1..=full {
                let compressed = decomposition.truncate(rank).unwrap();
                let what = format!("{}, rank {rank}, {form:?}, {correct_bias}", compressed.report().method);
                check_error(&case, &stats, &compressed, &what);
                assert_eq!(compressed.layer().bias().is_some(), correct_bias || layer.bias().is_some(), "{what}");
                assert_eq!(compressed.report().relative_error, decomposition.relative_error(rank), "{what}");
            }
        }
    }
}

#[test]
fn methods_from_outside_predict_the_error_that_is_measured() {
    let case = Case::random(31, SHAPE).map_inputs(|x, _, j| x * 0.9_f64.powi(j as i32) + 1.5);
    let scaled = |factor: f64| case.clone().map_inputs(|x, _, _| factor * x);
    for case in [scaled(1e-3), scaled(100.0), case.bare(), case.clone()] {
        check_outside::<f32>(&case);
        check_outside::<f64>(&case);
    }
}

/// The last input matters a millionth of the others.
#[test]
fn an_error_of_given_factors_below_rounding_is_said_to_be_so() {
    let n = 20;
    let weight = Mat::from_fn(n, n, |i, j| match i == j {
        true if i + 1 == n => 1e-9,
        true => 1.9,
        false => 0.0,
    });
    let layer = Linear::new(weight.clone(), None).unwrap();
    let inputs = Mat::from_fn(200, n, |i, j| ((i * 31 + j * 17 + i * j * 7) % 23) as f64 / 11.0 - 1.0);
    let factors = (Mat::<f64>::identity(n, n - 1), weight.subrows(0, n - 1).to_owned());
    let decomposition =
        Decomposition::new("rows", &layer, &crate::common::stats(inputs.as_ref()), factors, true).unwrap();
    let report = decomposition.truncate(n - 1).unwrap().report().clone();
    assert!(report.warnings.iter().any(|warning| matches!(warning, Warning::BelowResolution { .. })), "{report}");
}

/// `compress` works for them as for the crate's own methods, with every rule for the rank and with
/// multiples.
#[test]
fn methods_from_outside_take_ranks_of_every_kind() {
    let case = Case::random(32, SHAPE);
    let (layer, stats) = (case.layer::<f64>(), FORMS[0].of::<f64>(&case.inputs));
    let rank =
        |rank| ColumnSelection { correct_bias: true }.compress(&layer, &stats, rank).map(|low| low.layer().rank());
    assert_eq!(rank(Rank::Fixed(6)), Ok(6));
    assert!(matches!(rank(Rank::Fixed(5)), Err(Error::Rank { .. })));
    assert_eq!(rank(Rank::ParameterRatio(0.5)), Ok(6));
    let decomposition = ColumnSelection { correct_bias: true }.decompose(&layer, &stats, 24).unwrap();
    let reached = rank(Rank::RelativeError(0.8)).unwrap();
    assert!(decomposition.relative_error(reached).unwrap() <= 0.8);
    assert!(decomposition.relative_error(reached - 2).unwrap() > 0.8);
    let energy = decomposition.energies()[..8].iter().sum::<f64>() / decomposition.total_energy();
    assert_eq!(rank(Rank::Energy(0.999 * energy)), Ok(8));
}

/// For a column selection from a diagonal weight, energies and errors are known.
#[test]
fn energies_of_given_factors_are_those_of_the_weight_until_they_are_replaced() {
    let weight = Mat::from_fn(3, 3, |i, j| if i == j { 3.0 - i as f64 } else { 0.0 });
    let layer = Linear::new(weight, None).unwrap();
    let method = ColumnSelection { correct_bias: false };
    let decomposition = method.decompose(&layer, Calibration::none(), 2).unwrap();
    assert_eq!((decomposition.energies(), decomposition.total_energy()), ([9.0, 4.0].as_slice(), 14.0));
    assert_eq!((decomposition.relative_error(1), decomposition.truncate(2).unwrap().report().samples), (None, 0));
    let replaced = decomposition.with_energies(vec![5.0, 1.0], 8.0).unwrap();
    assert_eq!((replaced.energies(), replaced.total_energy()), ([5.0, 1.0].as_slice(), 8.0));
    assert_eq!(replaced.rank_for(Rank::Energy(0.7), 1), Ok(2));
    for (energies, total) in [(vec![5.0], 8.0), (vec![1.0, 5.0], 8.0), (vec![5.0, -1.0], 8.0), (vec![5.0, 4.0], 8.0)] {
        assert!(replaced.clone().with_energies(energies, total).is_err());
    }
}

#[test]
fn factors_that_do_not_fit_are_refused() {
    let layer = Linear::new(Mat::from_fn(4, 3, |i, j| (i * 2 + j) as f64), None).unwrap();
    let stats = crate::common::stats(Mat::from_fn(9, 3, |i, j| ((i * 5 + j * 3) % 7) as f64).as_ref());
    let narrow = crate::common::stats(Mat::from_fn(9, 2, |i, j| (i + j) as f64).as_ref());
    let new = |up: (usize, usize), down: (usize, usize), calibration: Calibration<'_, f64>, correct| {
        let ones = |(rows, columns)| Mat::from_fn(rows, columns, |i, j| 1.0 + (i * j) as f64);
        Decomposition::new("given", &layer, calibration, (ones(up), ones(down)), correct).map(|_| ())
    };
    assert_eq!(new((4, 2), (2, 3), (&stats).into(), true), Ok(()));
    for (up, down) in [((3, 2), (2, 3)), ((4, 2), (2, 4)), ((4, 2), (1, 3))] {
        assert!(matches!(new(up, down, (&stats).into(), false), Err(Error::Shape { .. })), "{up:?} {down:?}");
    }
    for rank in [0, 4] {
        assert!(matches!(new((4, rank), (rank, 3), (&stats).into(), false), Err(Error::Rank { .. })), "{rank}");
    }
    assert!(matches!(new((4, 2), (2, 3), (&narrow).into(), false), Err(Error::Shape { .. })));
    assert!(matches!(new((4, 2), (2, 3), Calibration::none(), true), Err(Error::NoSamples { .. })));
    let factors = (Mat::full(4, 1, f64::NAN), Mat::full(1, 3, 1.0));
    let refused = Decomposition::new("given", &layer, &stats, factors, false);
    assert!(matches!(refused, Err(Error::NonFinite { .. })));
}

fn check_no_calibration<T: Scalar>(shape: (usize, usize)) {
    let mut rng = StdRng::seed_from_u64(33);
    let weight = cast::<T>(gaussian(&mut rng, shape.0, shape.1).as_ref());
    let bias = cast::<T>(gaussian(&mut rng, shape.0, 1).as_ref()).col(0).to_owned();
    let layer = Linear::new(weight.clone(), Some(bias.clone())).unwrap();
    let values = jacobi::svd(wide(weight.as_ref()).as_ref()).values;
    let total: f64 = values.iter().map(|value| value * value).sum();
    let decomposition = TruncatedSvd::new().decompose(&layer, Calibration::none(), shape.0.min(shape.1)).unwrap();
    for rank in 1..=decomposition.max_rank() {
        let compressed = decomposition.truncate(rank).unwrap();
        let left: f64 = values[rank..].iter().map(|value| value * value).sum();
        let difference = (wide(weight.as_ref()) - weight_of(compressed.layer())).norm_l2();
        assert!((difference - left.sqrt()).abs() <= 50.0 * T::EPSILON * total.sqrt(), "{rank}: {difference} {left}");
        assert_eq!(compressed.layer().bias(), Some(bias.as_ref()));
        assert_eq!((compressed.report().relative_error, compressed.report().samples), (None, 0));
    }
    let rank = |rank| TruncatedSvd::new().compress(&layer, Calibration::none(), rank).map(|low| low.layer().rank());
    assert_eq!(rank(Rank::Energy(1.0)), Ok(shape.0.min(shape.1)));
    assert!(matches!(rank(Rank::RelativeError(0.1)), Err(Error::NoSamples { .. })));
}

#[test]
fn truncated_svd_takes_no_calibration_data() {
    for shape in [(7, 12), (12, 7)] {
        check_no_calibration::<f32>(shape);
        check_no_calibration::<f64>(shape);
    }
    let layer = Linear::new(Mat::<f64>::identity(3, 3), None).unwrap();
    let none = Calibration::none();
    let corrected = TruncatedSvd::new().with_bias_correction(true).compress(&layer, none, Rank::Fixed(1));
    assert!(matches!(corrected, Err(Error::NoSamples { .. })));
    assert!(matches!(Dalr::new().compress(&layer, none, Rank::Fixed(1)), Err(Error::NoSamples { .. })));
}

/// For every method, the denominator is the original outputs about their mean. The layers have a
/// bias or none, which is kept or corrected, and the mean of some inputs is 10⁶ times their spread.
#[test]
fn relative_errors_have_one_denominator() {
    let plain = Case::random(34, SHAPE).map_inputs(|x, _, j| x * 0.8_f64.powi(j as i32));
    let shifted = |mean: f64| plain.clone().map_inputs(|x, _, j| x + mean * (1.0 + (j % 5) as f64));
    for (case, single) in [(shifted(0.0), true), (shifted(1.0), true), (shifted(1e6), false)] {
        for case in [case.bare(), case] {
            if single {
                check_denominator::<f32>(&case);
            }
            check_denominator::<f64>(&case);
        }
    }
}

fn check_denominator<T: Scalar>(case: &Case) {
    let case = case.rounded::<T>();
    let layer = case.layer::<T>();
    let stats = FORMS[0].of::<T>(&case.inputs);
    for correct in [false, true] {
        let dalr = |ridge| Dalr::new().with_ridge(ridge).with_bias_correction(correct);
        let methods: [&dyn LowRankCompressor<T>; 5] = [
            &TruncatedSvd::new().with_bias_correction(correct),
            &dalr(Ridge::None),
            &dalr(Ridge::Shrinkage),
            &dalr(Ridge::Paper(1.0)),
            &dalr(Ridge::Exact(1.0)),
        ];
        for (method, rank) in methods.into_iter().flat_map(|method| [(method, 2), (method, 9)]) {
            let compressed = method.compress_with(&layer, (&stats).into(), Rank::Fixed(rank)).unwrap();
            let has_bias = if layer.bias().is_some() { "bias" } else { "no bias" };
            let name = &compressed.report().method;
            let what = format!("{name}, rank {rank}, {} bytes, {has_bias}, corrected {correct}", size_of::<T>());
            check_error(&case, &stats, &compressed, &what);
            // The layer with multiplied factors has the same error, up to rounding of its weight on
            // the mean input.
            let low = compressed.layer().to_linear().unwrap();
            let error = dalr::relative_output_error(&layer, &low, &stats).unwrap();
            let evaluated = compressed.evaluate(&layer, &stats).unwrap();
            let (centred, uncentred) = output_energies(&case);
            let bound = 100.0 * T::EPSILON * (uncentred.max(centred) / centred).sqrt();
            assert!((error - evaluated).abs() <= bound, "{what}: {error} {evaluated}");
        }
    }
}
