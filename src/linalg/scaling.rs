//! Powers of two by which matrices are scaled, so that no product overflows or underflows.

/// Returns `2^exponent`, also for subnormal results.
pub(crate) fn power_of_two(exponent: i32) -> f64 {
    let half = exponent / 2;
    2_f64.powi(half) * 2_f64.powi(exponent - half)
}

/// Returns the even exponent of the power of two just below a positive number; 0 for zero.
///
/// It stays within ±1000, so that the inverse of the power is finite.
pub(crate) fn even_exponent(value: f64) -> i32 {
    if value > 0.0 { (value.log2() / 2.0).floor().clamp(-500.0, 500.0) as i32 * 2 } else { 0 }
}
