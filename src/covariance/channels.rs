//! What is kept of each input on its own: location, extremes, mean magnitude and activity.

use faer::MatRef;

use super::samples::Centre;
use crate::Scalar;
use crate::linalg::{self, Par, even_exponent, power_of_two};

/// Inputs that are worked on at once: few enough for all that is kept of them to stay in a processor's first cache.
const PART: usize = 512;

/// One entry per input; all empty until the first sample comes.
///
/// The mean is `origin + offset` with the first sample as the origin, so that a mean a million times the
/// spread costs no digits of the scatter, and constant inputs have a scatter of exactly zero.
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
    /// The channels of a first sample of weight zero: nothing but its position.
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
        Centre { origin: &self.origin, offset: &self.offset }
    }

    pub(super) fn mean(&self) -> impl Iterator<Item = f64> + '_ {
        self.origin.iter().zip(&self.offset).map(|(origin, offset)| origin + offset)
    }

    /// The largest magnitude seen in any channel.
    pub(super) fn max_abs(&self) -> f64 {
        let extremes = self.minimum.iter().chain(&self.maximum);
        extremes.filter(|x| x.is_finite()).fold(0.0, |max, x| x.abs().max(max))
    }

    /// Powers of two about how far each input spreads, so that centred and divided samples stay below 4; 1 for a constant.
    pub(super) fn fill_scales(&self, scales: &mut [f64]) {
        for (scale, (low, high)) in scales.iter_mut().zip(self.minimum.iter().zip(&self.maximum)) {
            *scale = power_of_two(even_exponent(high - low));
        }
    }

    /// Takes in the rows, none of which comes before the first of positive weight; returns the total weight after `before`.
    pub(super) fn observe<T: Scalar>(
        &mut self,
        rows: MatRef<'_, T>,
        weights: Option<&[f64]>,
        before: f64,
        par: Par,
    ) -> f64 {
        let added = weights.map_or(rows.nrows() as f64, |weights| weights.iter().sum());
        if added == 0.0 {
            return before;
        }
        let total = before + added;
        let share = added / total;
        let places = self.origin.chunks(PART).zip(self.offset.chunks_mut(PART));
        let extremes = self.minimum.chunks_mut(PART).zip(self.maximum.chunks_mut(PART));
        let sums = self.absolute.chunks_mut(PART).zip(self.active.chunks_mut(PART));
        let parts = places.zip(extremes).zip(sums).enumerate().collect();
        let work = linalg::macs(rows.nrows(), rows.ncols(), 8);
        linalg::for_each_part(parts, work, par, |(index, part)| {
            let (((origin, offset), (minimum, maximum)), (absolute, active)) = part;
            let mut distance = vec![0.0; origin.len()];
            linalg::for_each_row(rows.subcols(index * PART, origin.len()), |index, row| {
                let weight = weights.map_or(1.0, |weights| weights[index]);
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
                    *minimum = if x < *minimum { x } else { *minimum };
                    *maximum = if x > *maximum { x } else { *maximum };
                    *absolute += weight * x.abs();
                    *active += if x == 0.0 { 0.0 } else { weight };
                }
            });
            // Chan, Golub and LeVeque's pooled mean.
            offset.iter_mut().zip(distance).for_each(|(offset, sum)| *offset += (sum / added - *offset) * share);
        });
        total
    }

    /// Takes in other channels, all but their mean.
    pub(super) fn absorb(&mut self, other: &Self) {
        let pairs = |to: &mut Vec<f64>, from: &[f64], with: fn(f64, f64) -> f64| {
            to.iter_mut().zip(from).for_each(|(to, &from)| *to = with(*to, from));
        };
        pairs(&mut self.minimum, &other.minimum, f64::min);
        pairs(&mut self.maximum, &other.maximum, f64::max);
        pairs(&mut self.absolute, &other.absolute, |a, b| a + b);
        pairs(&mut self.active, &other.active, |a, b| a + b);
    }

    /// How far another mean lies from this one, channel by channel.
    pub(super) fn displacement(&self, other: &Centre<'_>) -> Vec<f64> {
        let own = self.origin.iter().zip(&self.offset);
        let others = other.origin.iter().zip(other.offset);
        own.zip(others).map(|((o, m), (other_o, other_m))| (other_o - o) + (other_m - m)).collect()
    }

    /// Moves the mean by `share` of a displacement.
    pub(super) fn shift(&mut self, displacement: &[f64], share: f64) {
        self.offset.iter_mut().zip(displacement).for_each(|(offset, d)| *offset += d * share);
    }
}

/// The weighted mean of `rows`, less `origin`.
pub(super) fn weighted_mean<T: Scalar>(
    rows: MatRef<'_, T>,
    weights: Option<&[f64]>,
    total: f64,
    origin: &[f64],
    par: Par,
) -> Vec<f64> {
    let mut mean = vec![0.0; origin.len()];
    let parts = mean.chunks_mut(PART).zip(origin.chunks(PART)).enumerate().collect();
    let work = linalg::macs(rows.nrows(), rows.ncols(), 2);
    linalg::for_each_part(parts, work, par, |(index, (mean, origin))| {
        linalg::for_each_row(rows.subcols(index * PART, origin.len()), |index, row| {
            let weight = weights.map_or(1.0, |weights| weights[index]);
            for ((sum, x), origin) in mean.iter_mut().zip(row).zip(origin) {
                *sum += weight * (x.to_f64() - origin);
            }
        });
        mean.iter_mut().for_each(|sum| *sum /= total);
    });
    mean
}

#[cfg(test)]
mod tests {
    use super::*;
    use faer::mat;

    #[test]
    fn scales_are_about_the_span_and_leave_constants_alone() {
        let extremes = [(-3.0, 5.0), (1000.0, 1000.5), (-1.0, 0.0), (7.0, 7.0), (-5e-324, 0.0)];
        let mut channels = Channels::starting_at(vec![0.0; extremes.len()]);
        (channels.minimum, channels.maximum) = extremes.iter().copied().unzip();
        let mut scales = [0.0; 5];
        channels.fill_scales(&mut scales);
        assert_eq!(scales, [4.0, 0.25, 1.0, 1.0, power_of_two(-1000)]);
    }

    /// Zeros have signs, which files keep.
    #[test]
    fn the_first_of_equal_extremes_stays() {
        for first in [0.0, -0.0] {
            let mut channels = Channels::starting_at(vec![first]);
            assert_eq!(channels.observe(mat![[first], [-first]].as_ref(), None, 0.0, 1), 2.0);
            for extreme in [channels.minimum[0], channels.maximum[0]] {
                assert_eq!((extreme, extreme.is_sign_negative()), (0.0, first.is_sign_negative()));
            }
        }
    }
}
