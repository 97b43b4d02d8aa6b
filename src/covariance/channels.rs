//! What is kept of each input on its own: location, extremes, mean magnitude and activity.

use faer::MatRef;

use super::samples::Centre;
use crate::{Scalar, kernel};

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

    /// Takes in the rows of positive weight, all but their mean.
    pub(super) fn observe<T: Scalar>(&mut self, rows: MatRef<'_, T>, weights: Option<&[f64]>) {
        kernel::for_each_row(rows, |index, row| {
            let weight = weights.map_or(1.0, |weights| weights[index]);
            if weight == 0.0 {
                return;
            }
            let extremes = self.minimum.iter_mut().zip(&mut self.maximum);
            let sums = self.absolute.iter_mut().zip(&mut self.active);
            for ((x, (minimum, maximum)), (absolute, active)) in row.iter().zip(extremes).zip(sums) {
                let x = x.to_f64();
                *minimum = if x < *minimum { x } else { *minimum };
                *maximum = if x > *maximum { x } else { *maximum };
                *absolute += weight * x.abs();
                *active += if x == 0.0 { 0.0 } else { weight };
            }
        });
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

    /// Moves the mean by `share` of a displacement (Chan, Golub and LeVeque's pooled mean).
    pub(super) fn shift(&mut self, displacement: &[f64], share: f64) {
        self.offset.iter_mut().zip(displacement).for_each(|(offset, d)| *offset += d * share);
    }
}
