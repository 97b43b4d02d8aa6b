//! How far to shrink a covariance towards a multiple of the identity, from the data alone.

/// Degrees of freedom up to which the spectrum of a sample says nothing that a decision could rest on.
const UNINFORMATIVE: f64 = 8.0;

/// The intensity `ρ` that [`Ridge::Shrinkage`](crate::Ridge::Shrinkage) takes, for a second moment `S` of `n` inputs with `d` degrees of freedom:
///
/// `ρ / (1 − ρ) = (ρ_o / (1 − ρ_o))^(1 − w) (n / (d − 8))^w`, `w = (min(1, n / d) + min(1, 8 / d)) / 2`
///
/// with the oracle approximating `ρ_o` of `d` samples; 1 for `d ≤ 8`. `ρ_o / (1 − ρ_o)` is about `(1 + r) / d` with the effective rank
/// `r = (tr S)² / tr S²`, which a few dominant directions make small: right for them, and too little for the many others among which a rank is
/// decided. `n / d` makes the ridge as large as the noise, `tr S / d` in each of `d` directions, and is too much. Their geometric mean
/// is off by the least factor in the worst case. But `r` cannot exceed `d`: the fewer the samples, the less it says, and some eight say
/// nothing. Beyond `n` degrees of freedom `S` is no longer mostly noise: `w` falls towards zero, and `ρ` towards `ρ_o`.
/// `docs/small_samples.md` has what this does on real data.
pub(crate) fn intensity(trace: f64, trace_of_square: f64, features: usize, freedom: f64) -> f64 {
    if freedom <= UNINFORMATIVE || freedom.is_nan() {
        return 1.0;
    }
    let n = features as f64;
    let rho = oracle_approximating(trace, trace_of_square, features, freedom);
    let caution = ((n / freedom).min(1.0) + UNINFORMATIVE / freedom) / 2.0;
    let odds = (rho / (1.0 - rho)).powf(1.0 - caution) * (n / (freedom - UNINFORMATIVE)).powf(caution);
    if rho < 1.0 && odds.is_finite() { odds / (1.0 + odds) } else { 1.0 }
}

/// Shrinkage intensity `ρ` of the oracle approximating estimator (Chen, Wiesel, Eldar and Hero, 2010,
/// eq. 23), for a second moment `S` of `n` inputs from `p` samples:
///
/// `ρ = min(1, ((1 − 2/n) tr S² + (tr S)²) / ((p + 1 − 2/n) (tr S² − (tr S)²/n)))`
///
/// 1 when the denominator is not positive, or is rounding noise: one input, or `S` a multiple of the identity already.
fn oracle_approximating(trace: f64, trace_of_square: f64, features: usize, samples: f64) -> f64 {
    let n = features as f64;
    let dispersion = trace_of_square - trace * trace / n;
    let denominator = (samples + 1.0 - 2.0 / n) * dispersion;
    // Written so that a NaN shrinks all the way.
    if dispersion > 8.0 * f64::EPSILON * trace_of_square && denominator > 0.0 {
        let rho = ((1.0 - 2.0 / n) * trace_of_square + trace * trace) / denominator;
        rho.clamp(0.0, 1.0)
    } else {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::{intensity, oracle_approximating};

    #[test]
    fn follows_the_formula() {
        // S = diag(4, 1, 1), p = 10: tr S = 6, tr S² = 18.
        let expected = (18.0 / 3.0 + 36.0) / ((11.0 - 2.0 / 3.0) * (18.0 - 12.0));
        assert!((oracle_approximating(6.0, 18.0, 3, 10.0) - expected).abs() < 1e-15);
    }

    #[test]
    fn the_odds_lie_between_two_bounds() {
        for (freedom, caution) in [(10.0, 0.9), (16.0, 0.75), (30.0, 19.0 / 30.0), (800.0, 0.02375)] {
            let [rho, oracle] = [intensity, oracle_approximating].map(|of| of(40.0, 1000.0, 30, freedom));
            let (low, high) = (oracle / (1.0 - oracle), 30.0 / (freedom - 8.0));
            let expected = ((1.0 - caution) * f64::ln(low) + caution * f64::ln(high)).exp();
            assert!((rho / (1.0 - rho) / expected - 1.0).abs() < 1e-12, "{freedom}");
            assert!(low < expected && expected < high, "{freedom}");
        }
    }

    #[test]
    fn with_many_samples_it_is_the_oracle_and_vanishes() {
        let [rho, oracle] = [intensity, oracle_approximating].map(|of| of(40.0, 1000.0, 30, 1e9));
        assert!((rho / oracle - 1.0).abs() < 1e-6 && rho < 1e-8);
    }

    #[test]
    fn without_freedom_or_dispersion_all_is_shrunk() {
        for freedom in [-0.5, 0.0, 7.0, 8.0, f64::NAN] {
            assert_eq!(intensity(40.0, 1000.0, 30, freedom), 1.0);
        }
        assert!((0.99..1.0).contains(&intensity(40.0, 1000.0, 30, 8.01)));
        assert_eq!(intensity(3.0, 3.0, 3, 20.0), 1.0);
        assert_eq!(intensity(0.0, 0.0, 4, 20.0), 1.0);
        assert_eq!(intensity(f64::NAN, 18.0, 3, 20.0), 1.0);
    }

    #[test]
    fn vanishes_as_samples_grow_and_is_whole_without_dispersion() {
        assert!(oracle_approximating(6.0, 18.0, 3, 1e9) < 1e-8);
        assert_eq!(oracle_approximating(3.0, 3.0, 3, 10.0), 1.0);
        assert_eq!(oracle_approximating(5.0, 25.0, 1, 10.0), 1.0);
        assert_eq!(oracle_approximating(0.0, 0.0, 4, 10.0), 1.0);
    }
}
