//! A batch of weighted samples, and the point from which samples are measured.

use core::ops::Range;
use std::borrow::Cow;

use faer::{MatMut, MatRef};

use crate::Scalar;
use crate::linalg::{self, Par};

/// Number of inputs in one part of a loop, so that its data stay in the first-level cache.
pub(super) const PART: usize = 512;

/// Samples, one per row, and the weight of each. Without weights, each sample counts 1.
#[derive(Clone, Copy)]
pub(super) struct Batch<'a, T> {
    pub(super) rows: MatRef<'a, T>,
    pub(super) weights: Option<&'a [f64]>,
}

impl<T: Scalar> Batch<'_, T> {
    pub(super) fn len(&self) -> usize {
        self.rows.nrows()
    }

    pub(super) fn weight(&self, row: usize) -> f64 {
        self.weights.map_or(1.0, |weights| weights[row])
    }

    /// Returns the rows of positive weight.
    pub(super) fn counted_rows(&self) -> impl Iterator<Item = usize> {
        (0..self.len()).filter(|&row| self.weight(row) > 0.0)
    }

    /// Returns the sum of `of(weight)` over the samples.
    pub(super) fn sum_weights(&self, of: impl Fn(f64) -> f64) -> f64 {
        self.weights.map_or(self.len() as f64 * of(1.0), |weights| weights.iter().copied().map(of).sum())
    }

    /// Returns at most `count` samples from `start` on.
    pub(super) fn part(&self, start: usize, count: usize) -> Self {
        let count = count.min(self.len() - start);
        let weights = self.weights.map(|weights| &weights[start..start + count]);
        Self { rows: self.rows.subrows(start, count), weights }
    }

    /// Returns the weighted mean, less `origin`, for samples of this total weight.
    pub(super) fn mean(&self, total: f64, origin: &[f64], par: Par) -> Vec<f64> {
        let mut mean = vec![0.0; origin.len()];
        let parts = mean.chunks_mut(PART).zip(origin.chunks(PART)).enumerate().collect();
        let macs = linalg::macs(self.len(), origin.len(), 2);
        linalg::for_each_part(parts, macs, par, |(part, (mean, origin))| {
            linalg::for_each_row(self.rows.subcols(part * PART, origin.len()), |index, row| {
                let weight = self.weight(index);
                for ((sum, x), origin) in mean.iter_mut().zip(row).zip(origin) {
                    *sum += weight * (x.to_f64() - origin);
                }
            });
            mean.iter_mut().for_each(|sum| *sum /= total);
        });
        mean
    }

    /// Sets column `i` of `target` to `(rowᵢ − centre) · factor(weightᵢ)`. With scales, each entry
    /// is then divided by the scale of its input.
    pub(super) fn fill_centred<O: Scalar>(
        &self,
        target: MatMut<'_, O>,
        centre: &Centre<'_>,
        factor: impl Fn(f64) -> f64 + Sync,
        scales: Option<&[f64]>,
        par: Par,
    ) {
        linalg::for_each_column(target, par, |index, column| {
            let factor = factor(self.weight(index));
            let centre = centre.origin.iter().zip(centre.offset.iter());
            let entries = column.iter_mut().zip(self.rows.row(index).iter()).zip(centre);
            match scales {
                None => entries.for_each(|((to, x), (origin, offset))| {
                    *to = O::from_f64((x.to_f64() - origin - offset) * factor);
                }),
                Some(scales) => entries.zip(scales).for_each(|(((to, x), (origin, offset)), scale)| {
                    *to = O::from_f64((x.to_f64() - origin - offset) * factor / scale);
                }),
            }
        });
    }
}

/// A point `origin + offset`. Subtracting the origin first keeps the digits of the offset when the
/// mean is large compared with the standard deviation.
pub(super) struct Centre<'a> {
    pub(super) origin: Cow<'a, [f64]>,
    pub(super) offset: Cow<'a, [f64]>,
}

impl Centre<'_> {
    pub(super) fn into_owned(self) -> Centre<'static> {
        Centre { origin: self.origin.into_owned().into(), offset: self.offset.into_owned().into() }
    }

    pub(super) fn zero(features: usize) -> Self {
        Self { origin: vec![0.0; features].into(), offset: vec![0.0; features].into() }
    }

    /// The point in the space of some of the inputs.
    pub(super) fn inputs(&self, range: Range<usize>) -> Centre<'_> {
        Centre { origin: self.origin[range.clone()].into(), offset: self.offset[range].into() }
    }

    /// Returns `other − self`, input by input.
    pub(super) fn displacement(&self, other: &Centre<'_>) -> Vec<f64> {
        let own = self.origin.iter().zip(self.offset.iter());
        let others = other.origin.iter().zip(other.offset.iter());
        own.zip(others)
            .map(|((origin, offset), (to_origin, to_offset))| (to_origin - origin) + (to_offset - offset))
            .collect()
    }
}
