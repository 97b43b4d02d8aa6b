//! Bisection on a number of unknown magnitude.

/// Returns the two neighbouring numbers between `good` and `bad` at which `is_good` changes. Both must be at least 0.
///
/// Bisecting the bits halves the exponent first: about sixty evaluations suffice at any magnitude.
pub(super) fn neighbours(mut good: f64, mut bad: f64, mut is_good: impl FnMut(f64) -> bool) -> (f64, f64) {
    loop {
        let middle = f64::from_bits(good.to_bits().midpoint(bad.to_bits()));
        if middle <= good.min(bad) || middle >= good.max(bad) {
            return (good, bad);
        }
        if is_good(middle) {
            good = middle;
        } else {
            bad = middle;
        }
    }
}
