//! One trial of few samples: held-out errors of the default, and of a ridge chosen on the same
//! number of other samples, divided by that of truncated SVD with a corrected bias.

use dalr::{
    ActivationStats, Dalr, Linear, LowRankCompressor, Rank, Result, Ridge, TruncatedSvd, relative_output_error,
};
use faer::Mat;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// Ranks as fractions of the smaller side of a weight.
pub const RANKS: [f64; 3] = [0.1, 0.25, 0.5];

/// The candidates of `select_ridge`.
pub const CANDIDATES: [Ridge; 5] =
    [Ridge::Shrinkage, Ridge::Relative(0.1), Ridge::Relative(1.0), Ridge::Relative(10.0), Ridge::Relative(100.0)];

/// Layers with a shared input, and samples of it.
pub struct Site {
    pub layers: Vec<(String, Linear<f32>)>,
    /// One sample per row, in the order of the texts or images they come from.
    pub calibration: Mat<f32>,
    /// Statistics of other texts or images.
    pub held_out: ActivationStats<f32>,
}

/// The way to draw samples.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Draw {
    /// At random across texts or images.
    Random,
    /// Consecutive from a random position on, and therefore correlated.
    Consecutive,
}

impl Site {
    /// Returns statistics of some samples. If enough samples are left, also returns those of the
    /// same number of others, drawn in the same way.
    pub fn draw(
        &self,
        draw: Draw,
        count: usize,
        seed: u64,
    ) -> Result<(ActivationStats<f32>, Option<ActivationStats<f32>>)> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut rows: Vec<usize> = (0..self.calibration.nrows()).collect();
        match draw {
            Draw::Random => rows.shuffle(&mut rng),
            Draw::Consecutive => {
                let start = rng.random_range(0..rows.len());
                rows.rotate_left(start);
            }
        }
        let first = self.stats(&rows[..count])?;
        let others = rows.get(count..2 * count).map(|rows| self.stats(rows)).transpose()?;
        Ok((first, others))
    }

    fn stats(&self, rows: &[usize]) -> Result<ActivationStats<f32>> {
        let mut stats = ActivationStats::new(self.calibration.ncols());
        let batch = Mat::from_fn(rows.len(), self.calibration.ncols(), |i, j| self.calibration[(rows[i], j)]);
        stats.update(batch.as_ref())?;
        Ok(stats)
    }
}

/// Held-out relative errors of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Errors {
    pub rank: usize,
    /// Truncated SVD, bias corrected.
    pub svd: f64,
    pub default: f64,
}

impl Errors {
    pub fn ratio(&self) -> f64 {
        self.default / self.svd
    }
}

/// Returns the ranks of [`RANKS`] for a layer.
pub fn ranks(layer: &Linear<f32>) -> [usize; 3] {
    let full = layer.out_features().min(layer.in_features());
    RANKS.map(|share| ((share * full as f64).round() as usize).max(1))
}

/// Returns the errors of both methods from the same samples, at every rank.
pub fn compare(
    layer: &Linear<f32>,
    stats: &ActivationStats<f32>,
    held_out: &ActivationStats<f32>,
) -> Result<Vec<Errors>> {
    let ranks = ranks(layer);
    let most = ranks[ranks.len() - 1];
    let svd = TruncatedSvd::new().with_bias_correction(true).decompose(layer, stats, most)?;
    let dalr = Dalr::new().with_bias_correction(true).decompose(layer, stats, most)?;
    let error = |decomposition: &dalr::Decomposition<f32>, rank| {
        let low = decomposition.truncate(rank)?.into_layer().to_linear()?;
        relative_output_error(layer, &low, held_out)
    };
    ranks.into_iter().map(|rank| Ok(Errors { rank, svd: error(&svd, rank)?, default: error(&dalr, rank)? })).collect()
}

/// Returns the held-out relative error at a rank, with the ridge that is best on other samples.
pub fn selected(
    layer: &Linear<f32>,
    stats: &ActivationStats<f32>,
    others: &ActivationStats<f32>,
    held_out: &ActivationStats<f32>,
    rank: usize,
) -> Result<f64> {
    let ridge = dalr::select_ridge(layer, stats, others, Rank::Fixed(rank), &CANDIDATES)?;
    let low = Dalr::new().with_ridge(ridge).compress(layer, stats, Rank::Fixed(rank))?.into_layer().to_linear()?;
    relative_output_error(layer, &low, held_out)
}

/// Returns the median and largest of some numbers; `None` without any.
pub fn median_and_worst(mut numbers: Vec<f64>) -> Option<(f64, f64)> {
    numbers.sort_by(f64::total_cmp);
    Some((*numbers.get(numbers.len() / 2)?, *numbers.last()?))
}
