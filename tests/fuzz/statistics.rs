//! Any sequence of updates, merges, saves and loads gives the result of two plain passes over all
//! samples.

use dalr::{ActivationStats, Scalar};
use faer::{Mat, MatRef};
use rand::Rng;
use rand::rngs::StdRng;

use super::{SPECIAL, fuzz, magnitude, pick};
use crate::common::gaussian;

#[test]
fn statistics() {
    // Constant batches, multiplied in `f32`.
    fuzz("statistics", &[1795408958426029179], |rng| if rng.random() { case::<f32>(rng) } else { case::<f64>(rng) });
}

/// All samples in an object, and their weights.
#[derive(Clone, Default)]
struct Seen {
    rows: Vec<Vec<f64>>,
    weights: Vec<f64>,
}

/// The parameters of all batches of a case.
struct World {
    features: usize,
    /// Size of the spread of each input.
    scales: Vec<f64>,
    /// Mean of each input, divided by its spread.
    mean: f64,
    weights: core::ops::Range<f64>,
}

impl World {
    fn new<T: Scalar>(rng: &mut StdRng) -> Self {
        // In some cases there are more inputs than columns in a block of the scatter, or enough for
        // products in `f32`.
        let features = match rng.random_range(0..80) {
            0 | 1 => rng.random_range(250..270),
            2 => rng.random_range(510..530),
            _ => rng.random_range(1..20),
        };
        let exponents = match (size_of::<T>(), rng.random_range(0..4)) {
            (_, 0 | 1) => -3.0..3.0,
            (4, _) => -30.0..30.0,
            _ => -120.0..140.0,
        };
        let common = magnitude(rng, exponents);
        let apart = if rng.random_ratio(1, 3) { 6.0 } else { 0.1 };
        let scales = (0..features).map(|_| common * magnitude(rng, -apart..apart)).collect();
        let weights = if rng.random_ratio(1, 8) && (1e-5..1e5).contains(&common) { -99.0..99.0 } else { -2.0..2.0 };
        Self { features, scales, mean: pick(rng, &[0.0, 0.0, 1.0, 1e3, 1e6]), weights }
    }

    /// Returns a batch, rounded to `T`.
    fn batch<T: Scalar>(&self, rng: &mut StdRng, rows: usize) -> Vec<Vec<f64>> {
        let values = gaussian(rng, rows, self.features);
        let constant = rng.random_ratio(1, 10);
        let entry = |i: usize, j: usize, rng: &mut StdRng| {
            let spread = if constant { 1.0 } else { values[(i, j)] };
            let x = if rng.random_ratio(1, 6) { 0.0 } else { spread + self.mean };
            let x = T::from_f64(x * self.scales[j]).to_f64();
            // Numbers out of the range of `f32` and subnormal ones are not tested here.
            if x.is_finite() { x } else { 0.0 }
        };
        (0..rows).map(|i| (0..self.features).map(|j| entry(i, j, rng)).collect()).collect()
    }
}

/// Passes rows in one of several memory layouts, for example as a batch of three axes with padding
/// between samples.
fn in_some_layout<T: Scalar, R>(rng: &mut StdRng, rows: &[Vec<f64>], with: impl FnOnce(MatRef<'_, T>) -> R) -> R {
    let (count, features) = (rows.len(), rows[0].len());
    let entry = |i: usize, j: usize| T::from_f64(rows[i][j]);
    match rng.random_range(0..6) {
        0 => with(Mat::from_fn(count, features, entry).as_ref()),
        1 => with(Mat::from_fn(features, count, |j, i| entry(i, j)).transpose()),
        2 => with(Mat::from_fn(count, features, |i, j| entry(count - 1 - i, j)).as_ref().reverse_rows()),
        3 => {
            let mut wide = Mat::full(count + 3, features + 2, T::from_f64(f64::NAN));
            wide.as_mut().submatrix_mut(2, 1, count, features).copy_from(Mat::from_fn(count, features, entry));
            with(wide.as_ref().submatrix(2, 1, count, features))
        }
        4 => {
            let stride = features + rng.random_range(0..4);
            let mut flat = vec![T::from_f64(f64::NAN); count * stride];
            (0..count * features)
                .for_each(|k| flat[k / features * stride + k % features] = entry(k / features, k % features));
            with(MatRef::from_row_major_slice_with_stride(&flat, count, features, stride))
        }
        _ => {
            let flat: Vec<T> = (0..count * features).map(|k| entry(k / features, k % features)).collect();
            with(MatRef::from_row_major_slice(&flat, count, features))
        }
    }
}

fn case<T: Scalar>(rng: &mut StdRng) {
    let world = World::new::<T>(rng);
    let fresh = || (ActivationStats::<T>::new(world.features).with_threads(1), Seen::default());
    let mut objects = [fresh(), fresh()];
    if world.features > 250 && rng.random() {
        // A low memory limit, because few updates would reach a higher one.
        let few = rng.random_range(0..40) * (world.features * size_of::<T>() + 8);
        objects
            .iter_mut()
            .for_each(|(stats, _)| *stats = stats.clone().with_memory_limit(collapsed::<T>(world.features) + few));
    }
    for _ in 0..rng.random_range(1..14) {
        let which = rng.random_range(0..2);
        let other = objects[1 - which].clone();
        let (stats, seen) = &mut objects[which];
        match rng.random_range(0..10) {
            0..=2 => {
                let many = if world.features < 500 { 3 * world.features } else { rng.random_range(100..400) };
                let count = if rng.random_ratio(1, 8) { many } else { rng.random_range(1..12) };
                let rows = world.batch::<T>(rng, count);
                if in_some_layout(rng, &rows, |batch| stats.update(batch)).is_ok() {
                    seen.weights.extend(vec![1.0; count]);
                    seen.rows.extend(rows);
                }
            }
            3 | 4 => {
                let count = rng.random_range(1..12);
                let rows = world.batch::<T>(rng, count);
                let weight =
                    |rng: &mut StdRng| if rng.random_ratio(1, 4) { 0.0 } else { magnitude(rng, world.weights.clone()) };
                let weights: Vec<f64> = (0..count).map(|_| weight(rng)).collect();
                if in_some_layout(rng, &rows, |batch| stats.update_weighted(batch, &weights)).is_ok() {
                    for (row, weight) in rows.into_iter().zip(weights).filter(|&(_, weight)| weight > 0.0) {
                        seen.rows.push(row);
                        seen.weights.push(weight);
                    }
                }
            }
            5 if seen.rows.len() + other.1.rows.len() < 500 => {
                if stats.merge(&other.0).is_ok() {
                    seen.rows.extend(other.1.rows);
                    seen.weights.extend(other.1.weights);
                }
            }
            6 => *stats = through_a_file(stats),
            7 => refuse(rng, &world, stats),
            8 => {
                // The next update changes to the covariance form: the limit allows that form and
                // the present samples, and no more.
                let kept = seen.rows.len() * (world.features * size_of::<T>() + 8);
                let collapsed = collapsed::<T>(world.features);
                let limit = if rng.random() { kept + collapsed } else { rng.random_range(0..4 * collapsed) };
                *stats = stats.clone().with_memory_limit(limit);
            }
            _ => *stats = stats.clone().with_memory_limit(usize::MAX),
        }
        check(stats, seen);
    }
}

/// Returns the bytes of the covariance form: a scatter, and a buffer of a quarter of its size.
fn collapsed<T>(features: usize) -> usize {
    let scatter: usize =
        (0..features).step_by(256).map(|start| (features - start) * 256.min(features - start) * 8).sum();
    scatter + (features / size_of::<T>()).max(1) * (features * size_of::<T>() + 8)
}

#[cfg(feature = "safetensors")]
fn through_a_file<T: Scalar>(stats: &ActivationStats<T>) -> ActivationStats<T> {
    let bytes = stats.to_safetensors().unwrap();
    let loaded = ActivationStats::from_safetensors(&bytes).unwrap();
    assert!(loaded.to_safetensors().unwrap() == bytes);
    loaded
}

#[cfg(not(feature = "safetensors"))]
fn through_a_file<T: Scalar>(stats: &ActivationStats<T>) -> ActivationStats<T> {
    stats.clone()
}

/// Checks that invalid updates are errors and change nothing.
fn refuse<T: Scalar>(rng: &mut StdRng, world: &World, stats: &mut ActivationStats<T>) {
    let before = stats.clone();
    let count = rng.random_range(1..9);
    let mut rows = world.batch::<T>(rng, count);
    let (i, j) = (rng.random_range(0..count), rng.random_range(0..world.features));
    let result = match rng.random_range(0..4) {
        0 => {
            rows[i][j] = pick(rng, &SPECIAL[..3]);
            in_some_layout(rng, &rows, |batch| stats.update(batch))
        }
        1 => {
            let mut weights = vec![1.0; count];
            weights[i] = pick(rng, &[f64::NAN, f64::INFINITY, -1.0, 1e-101, 1e101, 5e-324]);
            in_some_layout(rng, &rows, |batch| stats.update_weighted(batch, &weights))
        }
        2 => stats.update(Mat::zeros(count, world.features + 1).as_ref()),
        _ => stats.update(Mat::zeros(0, world.features).as_ref()),
    };
    assert!(result.is_err());
    assert_eq!(format!("{before:?}"), format!("{stats:?}"));
    #[cfg(feature = "safetensors")]
    assert!(before.to_safetensors().unwrap() == stats.to_safetensors().unwrap());
}

/// Compares statistics with plain passes. Tolerances are multiples of `ε` times the span of an
/// input. They depend on its size only if a number of that size is rounded.
fn check<T: Scalar>(stats: &ActivationStats<T>, seen: &Seen) {
    let count = seen.rows.len();
    assert_eq!(stats.samples(), count as u64);
    if count == 0 {
        assert!(stats.mean().is_err());
        return;
    }
    let features = stats.features();
    let rounding = 16.0 * (count as f64 + 16.0) * f64::EPSILON;
    let total: f64 = seen.weights.iter().sum();
    let squares: f64 = seen.weights.iter().map(|weight| weight * weight).sum();
    assert!((stats.total_weight() / total - 1.0).abs() <= rounding);
    assert!((stats.effective_samples() / (total / squares * total) - 1.0).abs() <= rounding);

    let over = |j: usize, term: &dyn Fn(f64) -> f64| {
        seen.rows.iter().zip(&seen.weights).map(|(row, weight)| weight / total * term(row[j])).sum::<f64>()
    };
    let extreme = |j: usize, better: fn(f64, f64) -> f64| seen.rows.iter().map(|row| row[j]).reduce(better).unwrap();
    let (mean, covariance) = (stats.mean().unwrap(), stats.covariance().unwrap());
    let (rates, absolute) = (stats.activation_rates().unwrap(), stats.mean_absolute().unwrap());
    let (minima, maxima) = (stats.minimum().unwrap(), stats.maximum().unwrap());
    let (mut spans, mut sizes) = (Vec::new(), Vec::new());
    let mut centred = Mat::<f64>::zeros(count, features);
    for j in 0..features {
        let (low, high) = (extreme(j, f64::min), extreme(j, f64::max));
        assert_eq!((minima[j], maxima[j]), (low, high));
        let (span, size) = (high - low, low.abs().max(high.abs()));
        let first = seen.rows[0][j];
        let offset = over(j, &|x| x - first);
        let error = (mean[j] - (first + offset)).abs();
        assert!(error <= rounding * span + 4.0 * f64::EPSILON * size, "mean of {j}: {error:e} of {span:e}");
        assert!((rates[j] - over(j, &|x| f64::from(x != 0.0))).abs() <= rounding);
        assert!((absolute[j] - over(j, &f64::abs)).abs() <= rounding * size);
        (0..count).for_each(|i| centred[(i, j)] = (seen.rows[i][j] - first) - offset);
        spans.push(span);
        sizes.push(size);
    }
    // In covariance form, `f32` samples of wide layers are multiplied in `f32`, and squares of
    // numbers that are small compared with the span underflow. If products repeat, as in constant
    // batches, all rounding errors have the same sign. They then grow with the number of samples,
    // not with its root.
    let narrow = size_of::<T>() == 4 && features >= 512 && format!("{stats:?}").contains("covariance");
    let single = if narrow { (16.0 + count as f64 / 2.0) * f64::from(f32::EPSILON) } else { 0.0 };
    let underflow = if narrow { count as f64 * 2_f64.powi(-118) } else { 0.0 };
    let deviations: Vec<f64> = (0..features)
        .map(|j| (0..count).map(|i| seen.weights[i] / total * centred[(i, j)].powi(2)).sum::<f64>().sqrt())
        .collect();
    for a in (0..features).step_by(1 + features / 300) {
        // All pairs are compared if there are few inputs.
        for b in (0..=a).step_by(1 + features / 30) {
            let products = (0..count).map(|i| seen.weights[i] / total * centred[(i, a)] * centred[(i, b)]);
            let error = (covariance[(a, b)] - products.sum::<f64>()).abs();
            // Spreads of some `ε` times the mean count as zero.
            let noise = 2_f64.powi(-86) * sizes[a] * sizes[b];
            let single = single * deviations[a] * deviations[b] + underflow * spans[a] * spans[b];
            let bound = rounding * spans[a] * spans[b] + single + noise + 1e-300;
            assert!(error <= bound, "covariance of {a} and {b}: {error:e} > {bound:e}");
            assert_eq!(covariance[(a, b)], covariance[(b, a)]);
        }
    }
}
