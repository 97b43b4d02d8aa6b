//! Bisection on a number whose size nobody knows beforehand.

/// The two neighbouring numbers between `good` and `bad`, both at least 0, at which `is_good` turns. Halving the bits halves the exponent first: some sixty
/// rounds from anywhere.
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
