//! How far to shrink a covariance towards a multiple of the identity, from the data alone.

use super::Moment;
use crate::linalg::Par;
use crate::{Result, Scalar};

/// Degrees of freedom up to which the spectrum of a sample says nothing that a decision could rest on.
const UNINFORMATIVE: f64 = 8.0;

/// The most directions whose energy is taken for certain: any domain of fewer dimensions shows, at a cost that is small beside that of a solution.
const CERTAIN: usize = 16;

/// The intensity `ρ` that [`Ridge::Shrinkage`](crate::Ridge::Shrinkage) takes, for a second moment `S` of `n` inputs with `d` degrees of freedom;
/// 1 for `d ≤ 8`. `docs/mathematics.md` derives it, `docs/small_samples.md` has what it does on real data.
pub(crate) fn intensity<T: Scalar>(moment: &Moment<'_, T>, freedom: f64, par: Par) -> Result<f64> {
    if freedom <= UNINFORMATIVE || freedom.is_nan() {
        return Ok(1.0);
    }
    let directions = ((freedom / 2.0) as usize).min(CERTAIN);
    let spread = moment.spread(directions, par)?;
    Ok(between_the_bounds(moment.trace(), spread.trace_of_square, moment.features(), freedom, spread.outside))
}

/// `ρ / (1 − ρ) = l^(1 − w) max(l, u)^w` with the odds `l = ρ_o / (1 − ρ_o)` of the oracle approximating `ρ_o`, `u = b n / (d − 8)` with the share
/// `b` of `tr S` that is uncertain, and `w = (min(1, n / d) + 8 / d) / 2`; for `d > 8`.
fn between_the_bounds(trace: f64, trace_of_square: f64, features: usize, freedom: f64, uncertain: f64) -> f64 {
    let n = features as f64;
    let rho = oracle_approximating(trace, trace_of_square, features, freedom);
    let caution = ((n / freedom).min(1.0) + UNINFORMATIVE / freedom) / 2.0;
    let lower = rho / (1.0 - rho);
    let upper = lower.max(uncertain * n / (freedom - UNINFORMATIVE));
    let odds = lower.powf(1.0 - caution) * upper.powf(caution);
    // At `ρ_o = 1`, and there alone, they are infinite.
    if odds.is_finite() { odds / (1.0 + odds) } else { 1.0 }
}

/// Shrinkage intensity `ρ` of the oracle approximating estimator (Chen, Wiesel, Eldar and Hero, 2010,
/// eq. 23), for a second moment `S` of `n` inputs from `p` samples:
///
/// `ρ = min(1, ((1 − 2/n) tr S² + (tr S)²) / ((p + 1 − 2/n) (tr S² − (tr S)²/n)))`
///
/// 1 when the denominator is zero or rounding noise: one input, or `S` a multiple of the identity already.
fn oracle_approximating(trace: f64, trace_of_square: f64, features: usize, samples: f64) -> f64 {
    let n = features as f64;
    let dispersion = trace_of_square - trace * trace / n;
    // Written so that a NaN shrinks all the way.
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
    use super::{between_the_bounds, intensity, oracle_approximating};
    use crate::ActivationStats;
    use crate::covariance::Moment;
    use crate::linalg::SplitMix64;
    use faer::Mat;

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

    /// Twenty samples of a plane in 40 dimensions, and as many of all 40, fading; and too few of either.
    #[test]
    fn a_domain_of_few_dimensions_is_trusted() {
        let mut random = SplitMix64::new();
        let mut noise = |rows, columns| Mat::from_fn(rows, columns, |_, _| random.next());
        let plane = noise(20, 2) * noise(2, 40);
        let fading = Mat::from_fn(40, 40, |i, j| if i == j { 0.9_f64.powi(i as i32) } else { 0.0 });
        let [flat, full] = [plane, noise(20, 40) * fading].map(|samples| {
            let mut stats = ActivationStats::<f64>::new(40);
            stats.update(samples.as_ref()).unwrap();
            let moment = Moment::of(&stats, false).unwrap();
            for freedom in [-0.5, 0.0, 7.0, 8.0, f64::NAN] {
                assert_eq!(intensity(&moment, freedom, 1).unwrap(), 1.0);
            }
            let spread = moment.spread(4, 1).unwrap();
            let oracle = oracle_approximating(moment.trace(), spread.trace_of_square, 40, 9.0);
            (intensity(&moment, 9.0, 1).unwrap(), oracle, spread.outside)
        });
        assert!((flat.0 / flat.1 - 1.0).abs() < 1e-12 && flat.2 < 1e-14, "{flat:?}");
        let odds = |rho: f64| rho / (1.0 - rho);
        assert!(odds(full.0) > 1.2 * odds(full.1) && (0.1..0.9).contains(&full.2), "{full:?}");
    }

    /// `S` is 10¹⁰ times the identity, but for rounding in `tr S²`; so many samples would make the intensity vanish.
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
}
