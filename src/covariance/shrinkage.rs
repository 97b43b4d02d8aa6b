//! How far to shrink a covariance towards a multiple of the identity, from the data alone.

/// Shrinkage intensity `ρ` of the oracle approximating estimator (Chen, Wiesel, Eldar and Hero, 2010,
/// eq. 23), for a second moment `S` of `n` inputs from `p` samples:
///
/// `ρ = min(1, ((1 − 2/n) tr S² + (tr S)²) / ((p + 1 − 2/n) (tr S² − (tr S)²/n)))`
///
/// 1 when the denominator is not positive, or is rounding noise: one input, or `S` a multiple of the identity already.
pub(crate) fn oracle_approximating(trace: f64, trace_of_square: f64, features: usize, samples: f64) -> f64 {
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
    use super::oracle_approximating;

    #[test]
    fn follows_the_formula() {
        // S = diag(4, 1, 1), p = 10: tr S = 6, tr S² = 18.
        let expected = (18.0 / 3.0 + 36.0) / ((11.0 - 2.0 / 3.0) * (18.0 - 12.0));
        assert!((oracle_approximating(6.0, 18.0, 3, 10.0) - expected).abs() < 1e-15);
    }

    #[test]
    fn vanishes_as_samples_grow_and_is_whole_without_dispersion() {
        assert!(oracle_approximating(6.0, 18.0, 3, 1e9) < 1e-8);
        assert_eq!(oracle_approximating(3.0, 3.0, 3, 10.0), 1.0);
        assert_eq!(oracle_approximating(5.0, 25.0, 1, 10.0), 1.0);
        assert_eq!(oracle_approximating(0.0, 0.0, 4, 10.0), 1.0);
    }
}
