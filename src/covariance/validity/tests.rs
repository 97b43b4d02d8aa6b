use super::*;
use crate::linalg::power_of_two;
use faer::Mat;

/// Three inputs, of which the second is always positive and the third always negative. About their means they have the squares 34, 2 and 6.
const ROWS: [[f64; 3]; 5] = [[-3.0, 1.0, -1.0], [5.0, 3.0, -4.0], [1.0, 2.0, -2.0], [2.0, 2.0, -2.0], [0.0, 2.0, -1.0]];

fn fed<T: Scalar>(mut stats: ActivationStats<T>, rows: usize, weight: impl Fn(usize) -> f64) -> ActivationStats<T> {
    let batch = Mat::from_fn(rows, stats.features(), |i, j| T::from_f64(ROWS[i % 5][j % 3]));
    let weights: Vec<f64> = (0..rows).map(weight).collect();
    stats.update_weighted(batch.as_ref(), &weights).unwrap();
    stats
}

/// Twenty samples of weight 2, all of them in a scatter.
fn scatter<T: Scalar>() -> ActivationStats<T> {
    let stats = fed(ActivationStats::new(3), 20, |_| 2.0);
    assert!(matches!(&stats.form, Form::Covariance(form) if form.waiting.len() == 0));
    stats
}

/// A scatter of sixty samples, and two that wait, of twelve inputs.
fn gathering(multiplied: f64, waiting: f64) -> ActivationStats<f32> {
    let stats = fed(fed(ActivationStats::new(12), 60, |_| multiplied), 2, |_| waiting);
    assert!(matches!(&stats.form, Form::Covariance(form) if form.waiting.len() == 2));
    stats
}

fn form<T>(stats: &mut ActivationStats<T>) -> &mut CovarianceForm<T> {
    match &mut stats.form {
        Form::Covariance(form) => form,
        Form::Samples(_) => panic!("samples"),
    }
}

#[track_caller]
fn accepted<T: Scalar>(stats: &ActivationStats<T>) {
    assert_eq!(stats.validate_parts("test", "file"), Ok(()));
}

#[track_caller]
fn refused<T: Scalar>(stats: &ActivationStats<T>, message: &str, number: f64) {
    let Err(Error::Format { operation: "test", path, expected, found }) = stats.validate_parts("test", "file") else {
        panic!("accepted, not refused: {message}");
    };
    assert_eq!((path.as_str(), expected.as_str()), ("file", message));
    let found: f64 = found.parse().unwrap();
    assert!((found - number).abs() <= 1e-12 * number.abs(), "{message}: {found} for {number}");
}

/// The one number is just inside of what statistics may say, the other just outside; the message shows `shown`.
#[track_caller]
fn bounded<T: Scalar>(
    stats: &ActivationStats<T>,
    tamper: impl Fn(&mut ActivationStats<T>, f64),
    [inside, outside]: [f64; 2],
    message: &str,
    shown: f64,
) {
    let tampered = |number| {
        let mut stats = stats.clone();
        tamper(&mut stats, number);
        stats
    };
    accepted(&tampered(inside));
    refused(&tampered(outside), message, shown);
}

#[test]
fn what_counts_as_rounding() {
    assert!([39.97, 40.03].iter().all(|&found| close(found, 40.0)));
    assert!([39.95, 40.05, f64::NAN].iter().all(|&found| !close(found, 40.0)));
    assert!(close(0.50045, 0.5) && !close(0.50055, 0.5) && close(0.0, 0.0));
    let weights = possible_weights(40.0);
    assert!([39.98e-100, 1.0, 40.02e100].iter().all(|weight| weights.contains(weight)));
    assert!([39.9e-100, 40.1e100].iter().all(|weight| !weights.contains(weight)));
    assert_eq!(possible_weights(0.0), 0.0..=0.0);
    assert_eq!(slack_of_means(0.0, 0.0), f64::MIN_POSITIVE);
    assert_eq!(slack_of_means(-8.0, -8.0), 32.0 * f64::EPSILON);
    assert_eq!(slack_of_means(-3.0, 5.0), 0.008 + 20.0 * f64::EPSILON);
}

#[test]
fn sums_of_weights() {
    let empty = ActivationStats::<f64>::new(3);
    let weightless = "no weight without samples";
    bounded(&empty, |stats, weight| stats.weight = weight, [0.0, 3.0], weightless, 3.0);
    bounded(&empty, |stats, squares| stats.weight_squares = squares, [0.0, 2.0], weightless, 2.0);
    let mut none = ActivationStats::<f64>::new(0);
    accepted(&none);
    (none.samples, none.weight, none.weight_squares) = (1, 1.0, 1.0);
    refused(&none, "at least one input", 0.0);

    let one = fed(ActivationStats::<f64>::new(3), 1, |_| 5.0);
    let fit = "squares of weights that fit their sum";
    bounded(&one, |stats, squares| stats.weight_squares = squares, [25.0125, 25.05], fit, 25.05);
    bounded(&one, |stats, squares| stats.weight_squares = squares, [24.9875, 24.95], fit, 24.95);
}

/// The scatter holds all samples, so that only the channels themselves tell. The total weight is 40.
#[test]
fn channels_of_a_scatter() {
    let stats = scatter::<f64>();
    // At the most the largest magnitude, at the least the mean: 5 and 1 for the first input.
    let magnitude = "a mean magnitude that fits mean and extremes";
    let absolute = |stats: &mut ActivationStats<f64>, sum| stats.channels.absolute[0] = sum;
    bounded(&stats, absolute, [200.1, 200.4], magnitude, 5.01);
    bounded(&stats, absolute, [39.9, 39.7], magnitude, 0.9925);
    let rate = "an activation rate that fits the extremes";
    for (input, numbers, shown) in [(0, [40.03, 40.08], 1.002), (1, [39.98, 39.92], 0.998), (2, [39.98, 39.92], 0.998)]
    {
        bounded(&stats, |stats, times| stats.channels.active[input] = times, numbers, rate, shown);
    }
    bounded(&stats, |stats, times| stats.channels.active[0] = times, [0.0, -0.4], rate, -0.01);
    let mean = "a mean of the scatter between minimum and maximum";
    for (offset, shown) in [(-0.003, 0.997), (2.003, 3.003)] {
        let tamper = |stats: &mut ActivationStats<f64>, offset| form(stats).offset[1] = offset;
        bounded(&stats, tamper, [1.0, offset], mean, shown);
    }
}

#[test]
fn the_weight_of_a_scatter() {
    let weigh = |stats: &mut ActivationStats<f32>, weight| form(stats).weight = weight;
    let fits = "a weight of the scatter that fits the squares of the weights";
    // Sixty weights whose squares add up to 60, and 0.062 of rounding: 60.06 at the most.
    bounded(&gathering(1.0, 1.0), weigh, [60.055, 60.07], fits, 60.07);
    // One weight is the root of its square.
    let one = fed(ActivationStats::<f64>::new(3).with_memory_limit(104), 1, |_| 5.0);
    bounded(&one, |stats, weight| form(stats).weight = weight, [4.9955, 4.9925], fits, 4.9925);
    bounded(&one, |stats, weight| form(stats).weight = weight, [5.0045, 5.0075], fits, 5.0075);
}

/// Variances of `34 · 8` and `2 · 8`, about the means, times the weight; samples lie 4 and 1 from the middle of the extremes at the most.
#[test]
fn entries_of_a_scatter() {
    let stats = scatter::<f64>();
    let variance = |stats: &mut ActivationStats<f64>, variance| form(stats).scatter.blocks[0][(0, 0)] = variance;
    bounded(&stats, variance, [640.32, 641.28], "variances that fit the extremes", 16.032);
    bounded(&stats, variance, [272.0, -4e-9], "variances that are not negative", -1e-10);
    let covariance = |stats: &mut ActivationStats<f64>, covariance| {
        form(stats).scatter.blocks[0][(1, 0)] = covariance;
        form(stats).scatter.blocks[0][(0, 1)] = covariance;
    };
    let root = (272.0_f64 * 16.0).sqrt();
    let fit = "covariances that fit the variances";
    bounded(&stats, covariance, [root * 1.0005, root * 1.002], fit, root * 1.002 / 40.0);
    bounded(&stats, covariance, [-root * 1.0005, -root * 1.002], fit, -root * 1.002 / 40.0);
    // A thousandth of the root is 0.066.
    let upper = |stats: &mut ActivationStats<f64>, entry| form(stats).scatter.blocks[0][(0, 1)] = entry;
    assert!((form(&mut stats.clone()).scatter.blocks[0][(1, 0)] - 64.0).abs() < 1e-12);
    bounded(&stats, upper, [64.06, 64.07], "a symmetric scatter", 1.6);
}

/// Squares of divided samples may underflow in single precision, their products with others need not: with a span of 8 beside a root of 4,
/// products may be as large as `8 √(64 · 20 · 2⁻¹²⁶ · 40) · 4` where there is no variance.
#[test]
fn variances_that_underflow_in_single_precision() {
    fn covariance<T: Scalar>(stats: &mut ActivationStats<T>, covariance: f64) {
        let block = &mut form(stats).scatter.blocks[0];
        for (row, entry) in [(0, 0.0), (1, covariance), (2, 0.0)] {
            block[(row, 0)] = entry;
            block[(0, row)] = entry;
        }
    }
    let bound = 32.0 * 51200_f64.sqrt() * power_of_two(-63);
    let fit = "covariances that fit the variances";
    let mut narrow = scatter::<f32>();
    let double = narrow.clone();
    form(&mut narrow).scatter.precision = f64::from(f32::EPSILON);
    bounded(&narrow, covariance, [1.0005 * bound, 1.002 * bound], fit, 1.002 * bound / 40.0);
    bounded(&double, covariance, [0.0, bound], fit, bound / 40.0);
    bounded(&scatter::<f64>(), covariance, [0.0, bound], fit, bound / 40.0);
}

/// Two blocks, of which the second is a million times as large.
#[test]
fn blocks_of_a_scatter() {
    let size = |j: usize| if j < 256 { 1e-3 } else { 1e3 };
    let batch = Mat::from_fn(600, 260, |i, j| size(j) * (((i * 31 + j * 17 + i * j % 7) % 23) as f64 - 9.0));
    let mut stats = ActivationStats::<f64>::new(260);
    stats.update(batch.as_ref()).unwrap();
    let covariance = |stats: &mut ActivationStats<f64>, share: f64| {
        let block = &mut form(stats).scatter.blocks[1];
        let covariance = share * (block[(2, 2)] * block[(3, 3)]).sqrt();
        block[(2, 3)] = covariance;
        block[(3, 2)] = covariance;
    };
    let fit = "covariances that fit the variances";
    let block = form(&mut stats).scatter.blocks[1].clone();
    let shown = 1.002 * (block[(2, 2)] * block[(3, 3)]).sqrt() / form(&mut stats).weight;
    bounded(&stats, covariance, [1.0005, 1.002], fit, shown);
}

/// What all samples are there to tell. Their total weight is 10, their first row the origin.
#[test]
fn channels_of_samples() {
    let stats = fed(ActivationStats::<f64>::new(3), 4, |row| [2.0, 3.0, 1.0, 4.0][row]);
    // Means of 1.8, 2.1 and -2.4, and 0.008 of rounding where inputs span 8.
    assert_eq!((stats.channels.origin[0], stats.channels.absolute[0]), (-3.0, 30.0));
    let offset = |stats: &mut ActivationStats<f64>, offset| stats.channels.offset[0] = offset;
    bounded(&stats, offset, [4.806, 4.81], "a mean that is the samples'", 1.81);
    bounded(&stats, offset, [4.794, 4.79], "a mean that is the samples'", 1.79);
    let absolute = |stats: &mut ActivationStats<f64>, sum| stats.channels.absolute[0] = sum;
    bounded(&stats, absolute, [30.02, 30.04], "a mean magnitude that is the samples'", 3.004);
    let active = |stats: &mut ActivationStats<f64>, sum| stats.channels.active[0] = sum;
    bounded(&stats, active, [9.992, 9.8], "an activation rate that is the samples'", 0.98);
    let wide = fed(ActivationStats::<f64>::new(70), 4, |_| 1.0);
    let minimum = |stats: &mut ActivationStats<f64>, least| stats.channels.minimum[69] = least;
    bounded(&wide, minimum, [-3.0, -3.1], "a minimum that is the samples'", -3.1);
}

/// Samples that wait weigh nearly all: at the least what they say must be in the sums.
#[test]
fn channels_of_samples_beside_a_scatter() {
    let stats = gathering(1e-3, 100.0);
    let active = |stats: &mut ActivationStats<f32>, sum| stats.channels.active[0] = sum;
    bounded(&stats, active, [199.9, 199.7], "an activation rate that is the samples'", 199.7 / 200.06);
    // With nothing in the scatter they say it all.
    let waiting = fed(ActivationStats::<f32>::new(12).with_memory_limit(12 * 12 * 8 + 3 * 56), 2, |_| 1.0);
    assert!(matches!(&waiting.form, Form::Covariance(form) if form.waiting.len() == 2));
    let minimum = |stats: &mut ActivationStats<f32>, least| stats.channels.minimum[0] = least;
    bounded(&waiting, minimum, [-3.0, -3.1], "a minimum that is the samples'", -3.1);
    let maximum = |stats: &mut ActivationStats<f32>, most| stats.channels.maximum[0] = most;
    bounded(&waiting, maximum, [5.0, 5.1], "a maximum that is the samples'", 5.1);
    bounded(&stats, maximum, [5.1, 4.9], "a maximum that is the samples'", 4.9);
}
