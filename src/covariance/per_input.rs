//! Statistics of each input on its own: location, extremes, mean magnitude and activity.

use super::batch::{Batch, Centre, PART};
use crate::linalg::{self, Par, even_exponent, power_of_two};
use crate::{Error, Result, Scalar};

/// Squares of smaller numbers underflow, or lose most of their digits.
const LEAST: f64 = 1e-161;

/// An input whose span is below this fraction of its magnitude is constant up to rounding.
const CONSTANT: f64 = 1.0 / (1_u64 << 42) as f64;

/// One entry per input; all empty until the first sample comes.
///
/// The mean is `origin + offset` with the first sample as the origin. A mean of 10⁶ times the
/// standard deviation then costs no digits, and constant inputs have a variance of exactly zero.
#[derive(Clone, Default)]
pub(super) struct Channels {
    pub(super) origin: Vec<f64>,
    pub(super) offset: Vec<f64>,
    pub(super) minimum: Vec<f64>,
    pub(super) maximum: Vec<f64>,
    /// `Σ wᵢ |xᵢ|`.
    pub(super) absolute: Vec<f64>,
    /// `Σ wᵢ [xᵢ ≠ 0]`.
    pub(super) active: Vec<f64>,
}

impl Channels {
    /// Channels of total weight zero that measure from `origin`.
    pub(super) fn starting_at(origin: Vec<f64>) -> Self {
        let features = origin.len();
        Self {
            offset: vec![0.0; features],
            minimum: vec![f64::INFINITY; features],
            maximum: vec![f64::NEG_INFINITY; features],
            absolute: vec![0.0; features],
            active: vec![0.0; features],
            origin,
        }
    }

    pub(super) fn centre(&self) -> Centre<'_> {
        Centre { origin: (&self.origin).into(), offset: (&self.offset).into() }
    }

    pub(super) fn mean(&self) -> impl Iterator<Item = f64> + '_ {
        self.origin.iter().zip(&self.offset).map(|(origin, offset)| origin + offset)
    }

    /// Returns the minimum and maximum of each input.
    pub(super) fn extremes(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        self.minimum.iter().copied().zip(self.maximum.iter().copied())
    }

    /// Returns the largest magnitude of any input.
    pub(super) fn max_abs(&self) -> f64 {
        let extremes = self.minimum.iter().chain(&self.maximum);
        extremes.filter(|x| x.is_finite()).fold(0.0, |max, x| x.abs().max(max))
    }

    /// Returns a power of two near the span of each input, and 1 for a constant input. Centred
    /// samples that are divided by it are below 4 in magnitude.
    pub(super) fn scales(&self) -> Vec<f64> {
        self.extremes().map(|(low, high)| power_of_two(even_exponent(high - low))).collect()
    }

    /// Adds samples to the channels, which have the total weight `before`, and returns the new
    /// total.
    pub(super) fn observe<T: Scalar>(&mut self, batch: Batch<'_, T>, before: f64, par: Par) -> f64 {
        let added = batch.sum_weights(|weight| weight);
        if added == 0.0 {
            return before;
        }
        let total = before + added;
        let places = self.origin.chunks(PART).zip(self.offset.chunks_mut(PART));
        let extremes = self.minimum.chunks_mut(PART).zip(self.maximum.chunks_mut(PART));
        let sums = self.absolute.chunks_mut(PART).zip(self.active.chunks_mut(PART));
        let parts = places.zip(extremes).zip(sums).enumerate().collect();
        let macs = linalg::macs(batch.len(), batch.rows.ncols(), 8);
        linalg::for_each_part(parts, macs, par, |(part, arrays)| {
            let (((origin, offset), (minimum, maximum)), (absolute, active)) = arrays;
            let mut distance = vec![0.0; origin.len()];
            linalg::for_each_row(batch.rows.subcols(part * PART, origin.len()), |index, row| {
                let weight = batch.weight(index);
                if weight == 0.0 {
                    return;
                }
                let places = distance.iter_mut().zip(origin);
                let extremes = minimum.iter_mut().zip(maximum.iter_mut());
                let sums = absolute.iter_mut().zip(active.iter_mut());
                for (((x, (distance, origin)), (minimum, maximum)), (absolute, active)) in
                    row.iter().zip(places).zip(extremes).zip(sums)
                {
                    let x = x.to_f64();
                    *distance += weight * (x - origin);
                    // If positive and negative zeros occur, the first one is kept, because files
                    // keep the sign.
                    *minimum = if x < *minimum { x } else { *minimum };
                    *maximum = if x > *maximum { x } else { *maximum };
                    *absolute += weight * x.abs();
                    *active += if x == 0.0 { 0.0 } else { weight };
                }
            });
            // The pooled mean of Chan, Golub and LeVeque.
            let fraction = added / total;
            offset.iter_mut().zip(distance).for_each(|(offset, sum)| *offset += (sum / added - *offset) * fraction);
        });
        total
    }

    /// Adds the channels of other samples, which have this fraction of the new total weight.
    pub(super) fn merge(&mut self, other: &Self, fraction: f64) {
        let pairs = |to: &mut Vec<f64>, from: &[f64], with: fn(f64, f64) -> f64| {
            to.iter_mut().zip(from).for_each(|(to, &from)| *to = with(*to, from));
        };
        pairs(&mut self.minimum, &other.minimum, f64::min);
        pairs(&mut self.maximum, &other.maximum, f64::max);
        pairs(&mut self.absolute, &other.absolute, |a, b| a + b);
        pairs(&mut self.active, &other.active, |a, b| a + b);
        let displacement = self.centre().displacement(&other.centre());
        self.offset.iter_mut().zip(displacement).for_each(|(offset, d)| *offset += d * fraction);
    }

    /// Returns an error if the squares of all inputs underflow although the inputs are not constant
    /// (if `centred`) or not zero (otherwise). Every report would otherwise state an error of zero.
    pub(super) fn require_squares(&self, centred: bool) -> Result<()> {
        let sizes = self.extremes().map(|(low, high)| {
            let (span, size) = (high - low, low.abs().max(high.abs()));
            match centred {
                false => size,
                true if span > CONSTANT * size => span,
                true => 0.0,
            }
        });
        let size = sizes.fold(0.0, f64::max);
        if size == 0.0 || size >= LEAST {
            return Ok(());
        }
        let parameter = if centred { "the largest spread of any input" } else { "the largest size of any input" };
        let expected = format!(
            "to be at least {LEAST:e} (the squares of smaller numbers underflow; multiply the inputs by a \
             power of ten)"
        );
        Err(Error::out_of_range(parameter, expected, size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use faer::mat;

    #[test]
    fn scales_are_near_the_span_and_one_for_constants() {
        let extremes = [(-3.0, 5.0), (1000.0, 1000.5), (-1.0, 0.0), (7.0, 7.0), (-5e-324, 0.0)];
        let mut channels = Channels::starting_at(vec![0.0; extremes.len()]);
        (channels.minimum, channels.maximum) = extremes.iter().copied().unzip();
        assert_eq!(channels.scales(), [4.0, 0.25, 1.0, 1.0, power_of_two(-1000)]);
    }

    #[test]
    fn the_first_of_equal_extremes_stays() {
        for first in [0.0, -0.0] {
            let mut channels = Channels::starting_at(vec![first]);
            let rows = mat![[first], [-first]];
            let batch = Batch { rows: rows.as_ref(), weights: None };
            assert_eq!(channels.observe(batch, 0.0, Par::Seq), 2.0);
            for extreme in [channels.minimum[0], channels.maximum[0]] {
                assert_eq!((extreme, extreme.is_sign_negative()), (0.0, first.is_sign_negative()));
            }
        }
    }

    /// The inputs are near `2⁻⁵⁴⁰`, so their squares underflow. A span of one floating-point step
    /// counts as rounding.
    #[test]
    fn an_input_that_varies_by_no_more_than_rounding_has_nothing_to_lose() {
        let size = 2_f64.powi(-540);
        for (steps, spread) in [(0.0, None), (1.0, None), (2.0, Some(2_f64.powi(-581)))] {
            let mut channels = Channels::starting_at(vec![size]);
            let rows = mat![[size], [size - steps * 2_f64.powi(-582)]];
            channels.observe(Batch { rows: rows.as_ref(), weights: None }, 0.0, Par::Seq);
            let found = |error| matches!(error, Error::OutOfRange { found, .. } if Some(found) == spread);
            assert_eq!(channels.require_squares(true).err().map(found), spread.map(|_| true), "{steps}");
            assert!(channels.require_squares(false).is_err());
        }
    }
}
