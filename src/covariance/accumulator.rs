//! Adds samples to a scatter matrix. They are centred and summed in `f64`, and multiplied in `f64`
//! or in native precision.

use faer::{Mat, MatRef};

use super::batch::{Batch, Centre};
use super::per_input::Channels;
use super::scatter::Scatter;
use crate::linalg::{self, Par};
use crate::{Result, Scalar};

/// The smallest number of inputs at which `f32` samples are multiplied in `f32`. With fewer inputs,
/// `f64` costs little more.
pub(super) const NATIVE_FEATURES: usize = 512;

/// Weights within this factor of each other are multiplied together: the squares of smaller ones
/// could underflow in `f32`.
const WEIGHT_RANGE: f64 = (1_u64 << 60) as f64;

/// Memory for a piece of samples and its product, allocated before the statistics change.
pub(super) enum Accumulator<T> {
    Double { columns: Mat<f64> },
    Native { columns: Mat<T>, product: Mat<T> },
}

/// Samples, the centre that is subtracted from them, and one more centred sample with its weight.
pub(super) struct CentredBatch<'a, T> {
    pub(super) batch: Batch<'a, T>,
    pub(super) centre: Centre<'a>,
    pub(super) extra: (&'a [f64], f64),
}

impl<T: Scalar> Accumulator<T> {
    /// Allocates memory for pieces of up to `rows` samples, and none for `rows = 0`.
    pub(super) fn new(features: usize, rows: usize) -> Result<Self> {
        if rows == 0 {
            return Ok(Self::Double { columns: Mat::new() });
        }
        let width = rows + 1;
        if T::EPSILON == f64::EPSILON || features < NATIVE_FEATURES {
            return Ok(Self::Double { columns: linalg::zeros(features, width)? });
        }
        Ok(Self::Native { columns: linalg::zeros(features, width)?, product: Scatter::product_room(features)? })
    }

    /// Adds `Σ wᵢ (rowᵢ − centre)(rowᵢ − centre)ᵀ` and the extra sample. `channels` must have
    /// observed the piece.
    pub(super) fn add(&mut self, scatter: &mut Scatter, piece: &CentredBatch<'_, T>, channels: &Channels, par: Par) {
        match self {
            Self::Double { columns } => scatter.add_samples(piece.fill(columns, |weight| weight, None, par), par),
            Self::Native { columns, product } => {
                let scales = channels.scales();
                let mut ceiling = f64::INFINITY;
                while let Some(largest) = piece.largest_weight_below(ceiling) {
                    let floor = largest / WEIGHT_RANGE;
                    let relative = |weight| if weight > floor && weight < ceiling { weight / largest } else { 0.0 };
                    let columns = piece.fill(columns, relative, Some(&scales), par);
                    scatter.add_native_samples(columns, product.as_mut(), (&scales, largest), par);
                    // The next pass takes the weights at the floor and below.
                    ceiling = floor.next_up();
                }
            }
        }
    }
}

impl<T: Scalar> CentredBatch<'_, T> {
    /// Returns the largest positive weight below `ceiling`. `WEIGHT_RANGE` bounds the number of
    /// passes over the weights.
    fn largest_weight_below(&self, ceiling: f64) -> Option<f64> {
        let weights = self.batch.weights.unwrap_or(&[1.0]).iter().chain([&self.extra.1]);
        let largest = weights.copied().filter(|&weight| weight < ceiling).fold(0.0, f64::max);
        (largest > 0.0).then_some(largest)
    }

    /// Returns the centred samples and then the extra one, as columns. Each column is multiplied by
    /// the root of `relative(weight)` and divided by the scales.
    fn fill<'a, O: Scalar>(
        &self,
        columns: &'a mut Mat<O>,
        relative: impl Fn(f64) -> f64 + Sync,
        scales: Option<&[f64]>,
        par: Par,
    ) -> MatRef<'a, O> {
        let count = self.batch.len();
        let samples = columns.as_mut().subcols_mut(0, count);
        self.batch.fill_centred(samples, &self.centre, |weight| relative(weight).sqrt(), scales, par);
        let factor = relative(self.extra.1).sqrt();
        for (index, (to, x)) in columns.as_mut().col_mut(count).iter_mut().zip(self.extra.0).enumerate() {
            *to = O::from_f64(x * factor / scales.map_or(1.0, |scales| scales[index]));
        }
        columns.as_ref().subcols(0, count + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each input is not zero in one sample only, so its sum of squares shows how often that sample
    /// was counted, and with which weight.
    #[test]
    fn weights_of_all_sizes_count_once_in_single_precision() -> Result<()> {
        let unit = WEIGHT_RANGE.recip();
        // Weights on both sides of the end of a pass. `unit` and the next larger number have the
        // same root in `f32`.
        let weights = [4.0 * unit, 1.0, unit, unit.next_up(), unit / 4.0, unit * unit, 1e-99, unit * unit * unit];
        let expected = weights.map(|weight| if weight == unit.next_up() { unit } else { weight } * 144.0);
        let features = weights.len();
        let [last, others @ ..] = [7, 0, 1, 2, 3, 4, 5, 6].map(|index| weights[index]);
        let rows = Mat::from_fn(features - 1, features, |i, j| if i == j { 12_f32 } else { 0.0 });
        let direction: Vec<f64> = (0..features).map(|j| if j == features - 1 { 12.0 } else { 0.0 }).collect();
        let mut channels = Channels::starting_at(vec![0.0; features]);
        // With a span of 1, the samples are not scaled.
        channels.maximum = vec![1.0; features];
        channels.minimum = vec![0.0; features];
        let mut accumulator = Accumulator::Native {
            columns: Mat::zeros(features, features),
            product: Scatter::product_room::<f32>(features)?,
        };
        let mut scatter = Scatter::zeros(features, features)?;
        let batch = Batch { rows: rows.as_ref(), weights: Some(&others) };
        let piece = CentredBatch { batch, centre: Centre::zero(features), extra: (&direction, last) };
        accumulator.add(&mut scatter, &piece, &channels, Par::Seq);
        let found = scatter.dense(1.0)?;
        for (index, expected) in expected.into_iter().enumerate() {
            let off = (0..features).filter(|&other| other != index).map(|other| found[(index, other)]);
            assert_eq!((found[(index, index)], off.sum::<f64>()), (expected, 0.0), "{index}");
        }
        Ok(())
    }
}
