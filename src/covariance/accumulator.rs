//! Adding samples to a scatter: centred in `f64`, multiplied in `f64` or in the precision of the samples, summed up in `f64`.

use faer::{Mat, MatRef};

use super::channels::Channels;
use super::samples::{Centre, fill_centred};
use super::scatter::Scatter;
use crate::linalg::{self, Par};
use crate::{Result, Scalar};

/// Inputs from which on samples in single precision are multiplied as such. For fewer, `f64` costs next to nothing.
pub(super) const NARROW_FEATURES: usize = 512;

/// Weights are multiplied together when they lie within this factor of each other, lest the squares of the small ones underflow.
const WEIGHT_RANGE: f64 = (1_u64 << 60) as f64;

/// Room for one piece of samples and its product, reserved before anything changes.
pub(super) enum Accumulator<T> {
    Wide(Mat<f64>),
    Narrow {
        columns: Mat<T>,
        product: Mat<T>,
        /// A power of two for each input, about its span: products of the divided samples are clear of overflow and underflow.
        scales: Vec<f64>,
    },
}

/// Samples, one per row, each with a weight or with 1, and where they are measured from.
#[derive(Clone, Copy)]
pub(super) struct Piece<'a, T> {
    pub(super) rows: MatRef<'a, T>,
    pub(super) weights: Option<&'a [f64]>,
    pub(super) centre: Centre<'a>,
    /// A direction that counts as one more centred sample of this weight.
    pub(super) extra: (&'a [f64], f64),
}

impl<T: Scalar> Accumulator<T> {
    /// For pieces of up to `rows` samples; none at all for 0.
    pub(super) fn new(features: usize, rows: usize) -> Result<Self> {
        if rows == 0 {
            return Ok(Self::Wide(Mat::new()));
        }
        let width = rows + 1;
        if T::EPSILON == f64::EPSILON || features < NARROW_FEATURES {
            return Ok(Self::Wide(linalg::zeros(features, width)?));
        }
        let columns = linalg::zeros(features, width)?;
        let product = Scatter::product_room(features)?;
        Ok(Self::Narrow { columns, product, scales: vec![1.0; features] })
    }

    /// Adds `Σ wᵢ (rowᵢ − centre)(rowᵢ − centre)ᵀ` and the extra direction. `channels` knows how far the inputs spread.
    pub(super) fn add(&mut self, scatter: &mut Scatter, piece: Piece<'_, T>, channels: &Channels, par: Par) {
        match self {
            Self::Wide(columns) => {
                let columns = piece.fill(columns, |weight| weight, None, par);
                scatter.add_samples(columns, par);
            }
            Self::Narrow { columns, product, scales } => {
                channels.fill_scales(scales);
                let mut ceiling = f64::INFINITY;
                while let Some(largest) = piece.largest_weight_below(ceiling) {
                    let floor = largest / WEIGHT_RANGE;
                    let share = |weight: f64| if weight > floor && weight < ceiling { weight / largest } else { 0.0 };
                    let columns = piece.fill(columns, share, Some(scales), par);
                    scatter.add_narrow_samples(columns, product.as_mut(), (scales, largest), par);
                    // What lies at the floor or below is left for the next round.
                    ceiling = floor.next_up();
                }
            }
        }
    }
}

impl<T: Scalar> Piece<'_, T> {
    fn weight(&self, index: usize) -> f64 {
        self.weights.map_or(1.0, |weights| weights[index])
    }

    /// The largest positive weight below a bound; a bounded number of calls visits all.
    fn largest_weight_below(&self, ceiling: f64) -> Option<f64> {
        let weights = self.weights.unwrap_or(&[1.0]).iter().chain([&self.extra.1]);
        let largest = weights.copied().filter(|&weight| weight < ceiling).fold(0.0, f64::max);
        (largest > 0.0).then_some(largest)
    }

    /// The centred samples, and last the extra direction, as columns: each times the root of what `share` makes of its weight, and
    /// divided by the inputs' scales.
    fn fill<'a, O: Scalar>(
        &self,
        columns: &'a mut Mat<O>,
        share: impl Fn(f64) -> f64 + Sync,
        scales: Option<&[f64]>,
        par: Par,
    ) -> MatRef<'a, O> {
        let count = self.rows.nrows();
        let mut target = columns.as_mut().subcols_mut(0, count + 1);
        let roots = |index| share(self.weight(index)).sqrt();
        fill_centred(target.as_mut().subcols_mut(0, count), self.rows, roots, &self.centre, scales, par);
        let factor = share(self.extra.1).sqrt();
        for (index, (to, x)) in target.as_mut().col_mut(count).iter_mut().zip(self.extra.0).enumerate() {
            *to = O::from_f64(x * factor / scales.map_or(1.0, |scales| scales[index]));
        }
        columns.as_ref().subcols(0, count + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each input is seen by one sample alone, so that its sum of squares tells how often that one was counted, and with what weight.
    #[test]
    fn weights_of_all_sizes_count_once_in_single_precision() -> Result<()> {
        let unit = WEIGHT_RANGE.recip();
        // At both sides of where one round ends; the root of the one just above is the same in single precision.
        let weights = [4.0 * unit, 1.0, unit, unit.next_up(), unit / 4.0, unit * unit, 1e-99, unit * unit * unit];
        let expected = weights.map(|weight| if weight == unit.next_up() { unit } else { weight } * 144.0);
        let features = weights.len();
        let [last, others @ ..] = [7, 0, 1, 2, 3, 4, 5, 6].map(|index| weights[index]);
        let rows = Mat::from_fn(features - 1, features, |i, j| if i == j { 12_f32 } else { 0.0 });
        let direction: Vec<f64> = (0..features).map(|j| if j == features - 1 { 12.0 } else { 0.0 }).collect();
        let mut channels = Channels::starting_at(vec![0.0; features]);
        (channels.minimum, channels.maximum) = (vec![0.0; features], vec![12.0; features]);
        let mut accumulator = Accumulator::Narrow {
            columns: Mat::zeros(features, features),
            product: Scatter::product_room::<f32>(features)?,
            scales: vec![1.0; features],
        };
        let mut scatter = Scatter::zeros(features)?;
        let piece =
            Piece { rows: rows.as_ref(), weights: Some(&others), centre: channels.centre(), extra: (&direction, last) };
        accumulator.add(&mut scatter, piece, &channels, 1);
        let found = scatter.dense(1.0)?;
        for (index, expected) in expected.into_iter().enumerate() {
            let off = (0..features).filter(|&other| other != index).map(|other| found[(index, other)]);
            assert_eq!((found[(index, index)], off.sum::<f64>()), (expected, 0.0), "{index}");
        }
        Ok(())
    }
}
