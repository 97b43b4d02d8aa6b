//! Inputs whose squares are lost.

use super::ActivationStats;
use crate::{Error, Result, Scalar};

/// Squares of numbers below this are lost to underflow, or all but.
const LEAST: f64 = 1e-161;

/// An input that varies by less than this share of its size is constant, but for rounding.
const CONSTANT: f64 = 1.0 / (1_u64 << 42) as f64;

impl<T: Scalar> ActivationStats<T> {
    /// Refuses inputs that vary, or (uncentred) are not zero, but whose second moment cannot tell: a report on them would
    /// say that there is nothing to lose.
    pub(crate) fn require_squares(&self, centred: bool) -> Result<()> {
        let extremes = self.channels.minimum.iter().zip(&self.channels.maximum);
        let size = extremes.fold(0.0_f64, |most, (low, high)| {
            let (span, size) = (high - low, low.abs().max(high.abs()));
            let own = if !centred {
                size
            } else if span > CONSTANT * size {
                span
            } else {
                0.0
            };
            most.max(own)
        });
        if size == 0.0 || size >= LEAST {
            return Ok(());
        }
        let parameter = if centred { "the spread of some input" } else { "the size of some input" };
        let expected = format!("to be at least {LEAST:e} (or that of all to be zero), lest its square be lost");
        Err(Error::out_of_range(parameter, expected, size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use faer::mat;

    /// Inputs of the size `2⁻⁵⁴⁰`, whose squares are lost. One step is the least that varies, and counts as rounding.
    #[test]
    fn an_input_that_varies_by_no_more_than_rounding_has_nothing_to_lose() {
        let size = 2_f64.powi(-540);
        for (steps, spread) in [(0.0, None), (1.0, None), (2.0, Some(2_f64.powi(-581)))] {
            let mut stats = ActivationStats::new(1);
            stats.update(mat![[size], [size - steps * 2_f64.powi(-582)]].as_ref()).unwrap();
            let found = |error| matches!(error, Error::OutOfRange { found, .. } if Some(found) == spread);
            assert_eq!(stats.require_squares(true).err().map(found), spread.map(|_| true), "{steps}");
            assert!(stats.require_squares(false).is_err());
        }
    }
}
