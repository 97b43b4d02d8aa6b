//! Estimates from the data how far to shrink a covariance towards a multiple of the identity.

use faer::Mat;

use super::second_moment::SecondMoment;
use crate::linalg::{self, Par, SplitMix64};
use crate::{Result, Scalar};

/// With at most this many degrees of freedom, the spectrum of a sample is not informative.
const UNINFORMATIVE: f64 = 8.0;

/// The largest number of leading directions. A domain with fewer dimensions than this is
/// recognised, at a cost that is small compared with that of a solve.
const CERTAIN: usize = 16;

/// If `tr S²` of samples takes more multiply–adds than this (a fraction of a second), it is
/// estimated.
const LARGE: f64 = 1e10;

/// With at most this many inputs, the leading directions are eigenvectors, which takes
/// milliseconds.
const FEW: usize = 64;

/// Number of random vectors for the estimate of `tr S²`.
const VECTORS: usize = 32;

/// Returns the intensity `ρ` of [`Ridge::Shrinkage`](crate::Ridge::Shrinkage) for a second moment
/// `S` with `d` degrees of freedom; 1 for `d ≤ 8`.
///
/// `docs/mathematics.md` derives it, `docs/small_samples.md` shows it on real data.
pub(crate) fn intensity<T: Scalar>(moment: &dyn SecondMoment<T>, freedom: f64, par: Par) -> Result<f64> {
    if freedom <= UNINFORMATIVE || freedom.is_nan() {
        return Ok(1.0);
    }
    let directions = ((freedom / 2.0) as usize).min(CERTAIN);
    let features = moment.features();
    let gram = moment.samples_kept().map_or(0.0, |samples| linalg::macs(features, samples, samples));
    let spread = spread(moment, directions, gram < LARGE, par)?;
    Ok(between_the_bounds(moment.trace(), spread.trace_of_square, features, freedom, spread.outside))
}

/// The properties of the spectrum of `S` that determine the intensity, in addition to its trace.
struct Spread {
    /// `tr S²`.
    trace_of_square: f64,
    /// The fraction `φ` of `tr S` outside of the leading directions; 1 if `S` is zero.
    outside: f64,
}

/// Returns the spread of `S` with this many leading directions.
///
/// Unless `exact`, `tr S²` is estimated to some per cent, with the directions `Q` and random signs
/// (Hutchinson 1989) for the second term of `‖S‖² = ‖S Q‖² + ‖S (I − Q Qᵀ)‖²`.
fn spread<T: Scalar>(moment: &dyn SecondMoment<T>, directions: usize, exact: bool, par: Par) -> Result<Spread> {
    if moment.trace() == 0.0 {
        return Ok(Spread { trace_of_square: 0.0, outside: 1.0 });
    }
    let count = directions.min(moment.features());
    let mut random = SplitMix64::new();
    let basis = dominant_directions(moment, count, &mut random, par)?;
    let mut block = random_block(moment.features(), if exact { count } else { count + VECTORS }, &mut random)?;
    let (mut first, mut signs) = block.as_mut().split_at_col_mut(count);
    first.copy_from(&basis);
    signs.as_mut().col_iter_mut().for_each(|column| column.iter_mut().for_each(|entry| *entry = entry.signum()));
    linalg::project_out(signs, basis.as_ref(), par)?;
    let applied = moment.multiply(block.as_ref(), par)?;
    let (within, beyond) = applied.as_ref().split_at_col(count);
    let pairs = basis.col_iter().zip(within.col_iter());
    let inside: f64 = pairs.map(|(q, s)| q.iter().zip(s.iter()).map(|(q, s)| q * s).sum::<f64>()).sum();
    let trace_of_square = if exact {
        moment.trace_of_square(par)?
    } else {
        linalg::squared_norm(within) + linalg::squared_norm(beyond) / VECTORS as f64
    };
    Ok(Spread { trace_of_square, outside: (1.0 - inside / moment.trace()).clamp(0.0, 1.0) })
}

/// Returns the leading eigenvectors of `S`. With more than 64 inputs, returns a basis from a
/// randomised range finder, which explains somewhat less (Halko, Martinsson and Tropp 2011,
/// algorithm 4.1).
fn dominant_directions<T: Scalar>(
    moment: &dyn SecondMoment<T>,
    count: usize,
    random: &mut SplitMix64,
    par: Par,
) -> Result<Mat<f64>> {
    let features = moment.features();
    if features <= FEW {
        let dense = moment.scaled(par)?;
        if let Some((_, vectors)) = linalg::symmetric_eigen(dense.as_ref(), par)? {
            return Ok(vectors.subcols(features - count, count).to_owned());
        }
    }
    let range = moment.multiply(random_block(features, count, random)?.as_ref(), par)?;
    Ok(linalg::orthonormal_columns(range, par)?.0)
}

fn random_block(rows: usize, columns: usize, random: &mut SplitMix64) -> Result<Mat<f64>> {
    let mut block = linalg::zeros(rows, columns)?;
    block.col_iter_mut().for_each(|column| column.iter_mut().for_each(|entry| *entry = random.next()));
    Ok(block)
}

/// Returns `ρ` with `ρ / (1 − ρ) = l^(1 − v) max(l, u)^v` for `d > 8`, and
/// `v = (min(1, n / d) + 8 / d) / 2`.
///
/// `l = ρ_o / (1 − ρ_o)` follows from the oracle approximating estimator, and `u = φ n / (d − 8)`
/// from the fraction `φ` of `tr S` outside of the leading directions.
fn between_the_bounds(trace: f64, trace_of_square: f64, features: usize, freedom: f64, uncertain: f64) -> f64 {
    let n = features as f64;
    let rho = oracle_approximating(trace, trace_of_square, features, freedom);
    let caution = ((n / freedom).min(1.0) + UNINFORMATIVE / freedom) / 2.0;
    let lower = rho / (1.0 - rho);
    let upper = lower.max(uncertain * n / (freedom - UNINFORMATIVE));
    let odds = lower.powf(1.0 - caution) * upper.powf(caution);
    // The odds are infinite if and only if `ρ_o = 1`.
    if odds.is_finite() { odds / (1.0 + odds) } else { 1.0 }
}

/// Returns the intensity `ρ` of the oracle approximating estimator (Chen, Wiesel, Eldar and Hero,
/// 2010, eq. 23) for a second moment `S` of `n` inputs from `p` samples:
///
/// `ρ = min(1, ((1 − 2/n) tr S² + (tr S)²) / ((p + 1 − 2/n) (tr S² − (tr S)²/n)))`
///
/// The result is 1 if the denominator is zero or rounding: for one input, or if `S` is a multiple
/// of the identity.
fn oracle_approximating(trace: f64, trace_of_square: f64, features: usize, samples: f64) -> f64 {
    let n = features as f64;
    let dispersion = trace_of_square - trace * trace / n;
    // The comparison is written so that a NaN gives 1.
    if dispersion > 8.0 * f64::EPSILON * trace_of_square {
        let denominator = (samples + 1.0 - 2.0 / n) * dispersion;
        let rho = ((1.0 - 2.0 / n) * trace_of_square + trace * trace) / denominator;
        rho.clamp(0.0, 1.0)
    } else {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ActivationStats;
    use crate::covariance::second_moment;

    #[test]
    fn follows_the_formula() {
        // S = diag(4, 1, 1), p = 10: tr S = 6, tr S² = 18.
        let expected = (18.0 / 3.0 + 36.0) / ((11.0 - 2.0 / 3.0) * (18.0 - 12.0));
        assert!((oracle_approximating(6.0, 18.0, 3, 10.0) - expected).abs() < 1e-15);
    }

    #[test]
    fn the_odds_lie_between_two_bounds() {
        for (freedom, caution) in [(10.0, 0.9), (16.0, 0.75), (30.0, 19.0 / 30.0), (800.0, 0.02375)] {
            let rho = between_the_bounds(40.0, 1000.0, 30, freedom, 0.8);
            let oracle = oracle_approximating(40.0, 1000.0, 30, freedom);
            let (low, high) = (oracle / (1.0 - oracle), 0.8 * 30.0 / (freedom - 8.0));
            let expected = ((1.0 - caution) * f64::ln(low) + caution * f64::ln(high)).exp();
            assert!((rho / (1.0 - rho) / expected - 1.0).abs() < 1e-12, "{freedom}");
            assert!(low < expected && expected < high, "{freedom}");
        }
    }

    #[test]
    fn where_little_is_uncertain_it_is_the_oracle() {
        let oracle = oracle_approximating(40.0, 1000.0, 30, 20.0);
        for uncertain in [0.0, 1e-3] {
            assert!((between_the_bounds(40.0, 1000.0, 30, 20.0, uncertain) / oracle - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn with_many_samples_it_is_the_oracle_and_vanishes() {
        let rho = between_the_bounds(40.0, 1000.0, 30, 1e9, 0.8);
        let oracle = oracle_approximating(40.0, 1000.0, 30, 1e9);
        assert!((rho / oracle - 1.0).abs() < 1e-6 && rho < 1e-8);
    }

    #[test]
    fn without_dispersion_all_is_shrunk() {
        assert!((0.99..1.0).contains(&between_the_bounds(40.0, 1000.0, 30, 8.01, 1.0)));
        assert_eq!(between_the_bounds(3.0, 3.0, 3, 20.0, 1.0), 1.0);
        assert_eq!(between_the_bounds(0.0, 0.0, 4, 20.0, 1.0), 1.0);
        assert_eq!(between_the_bounds(f64::NAN, 18.0, 3, 20.0, 1.0), 1.0);
    }

    /// Twenty samples of a plane in 40 dimensions, and twenty of all 40 dimensions with a decaying
    /// spectrum.
    #[test]
    fn a_domain_of_few_dimensions_is_trusted() {
        let mut random = SplitMix64::new();
        let mut noise = |rows, columns| Mat::from_fn(rows, columns, |_, _| random.next());
        let plane = noise(20, 2) * noise(2, 40);
        let fading = Mat::from_fn(40, 40, |i, j| if i == j { 0.9_f64.powi(i as i32) } else { 0.0 });
        let [flat, full] = [plane, noise(20, 40) * fading].map(|samples| {
            let mut stats = ActivationStats::<f64>::new(40);
            stats.update(samples.as_ref()).unwrap();
            let moment = second_moment(&stats, false).unwrap();
            for freedom in [-0.5, 0.0, 7.0, 8.0, f64::NAN] {
                assert_eq!(intensity(&*moment, freedom, Par::Seq).unwrap(), 1.0);
            }
            let spread = spread(&*moment, 4, true, Par::Seq).unwrap();
            let oracle = oracle_approximating(moment.trace(), spread.trace_of_square, 40, 9.0);
            (intensity(&*moment, 9.0, Par::Seq).unwrap(), oracle, spread.outside)
        });
        assert!((flat.0 / flat.1 - 1.0).abs() < 1e-12 && flat.2 < 1e-14, "{flat:?}");
        let odds = |rho: f64| rho / (1.0 - rho);
        assert!(odds(full.0) > 1.2 * odds(full.1) && (0.1..0.9).contains(&full.2), "{full:?}");
    }

    /// `S` is 10¹⁰ times the identity up to rounding in `tr S²`. Without this check, 10³⁰ samples
    /// would give an intensity near 0.
    #[test]
    fn dispersion_that_is_rounding_is_none() {
        for (noise, whole) in [(4.0, true), (12.0, false)] {
            let square = 4e20 * (1.0 + noise * f64::EPSILON);
            let rho = oracle_approximating(4e10, square, 4, 1e30);
            assert!(if whole { rho == 1.0 } else { rho < 1e-10 }, "{noise}: {rho}");
        }
    }

    #[test]
    fn vanishes_as_samples_grow_and_is_whole_without_dispersion() {
        assert!(oracle_approximating(6.0, 18.0, 3, 1e9) < 1e-8);
        assert_eq!(oracle_approximating(3.0, 3.0, 3, 10.0), 1.0);
        assert_eq!(oracle_approximating(5.0, 25.0, 1, 10.0), 1.0);
        assert_eq!(oracle_approximating(0.0, 0.0, 4, 10.0), 1.0);
    }

    /// The estimate of `tr S²` is close where directions dominate and where none does.
    #[test]
    fn the_spread_of_many_samples_is_estimated_closely() {
        let mut random = SplitMix64::new();
        for decay in [1.0_f64, 0.99, 0.8] {
            let rows = Mat::<f32>::from_fn(300, 200, |_, j| (decay.powi(j as i32) * random.next()) as f32);
            let mut stats = ActivationStats::new(200);
            stats.update(rows.as_ref()).unwrap();
            let moment = second_moment(&stats, true).unwrap();
            let [exact, estimate] = [true, false].map(|exact| spread(&*moment, 16, exact, Par::Seq).unwrap());
            assert!((estimate.trace_of_square / exact.trace_of_square - 1.0).abs() < 0.03, "{decay}");
            assert_eq!(estimate.outside, exact.outside);
            let mut values = moment.scaled(Par::Seq).unwrap().self_adjoint_eigenvalues(faer::Side::Lower).unwrap();
            values.reverse();
            let least = 1.0 - values.iter().take(16).sum::<f64>() / moment.trace();
            assert!((0.999 * least..3.0 * least).contains(&exact.outside), "{decay}: {} for {least}", exact.outside);
        }
    }
}
