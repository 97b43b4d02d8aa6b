//! The methods: one file each, on top of one weighted low-rank problem.

mod dalr;
mod decomposition;
mod evaluate;
mod exact;
mod narrow;
mod projection;
mod pruning;
mod ridge;
mod svd;
mod weighted;

pub use self::dalr::Dalr;
pub(crate) use self::decomposition::Facts;
pub use self::decomposition::{Compressed, Decomposition};
pub use self::evaluate::relative_output_error;
pub use self::pruning::{ActivationPruning, PrunedLinear};
pub use self::ridge::{Ridge, select_ridge};
pub use self::svd::TruncatedSvd;

use crate::{ActivationStats, Linear, Rank, Result, Scalar};

/// A method that replaces a layer by two thin ones.
///
/// Object safe: methods can be put into a list and compared.
///
/// ```
/// use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Rank, TruncatedSvd};
/// use faer::Mat;
///
/// # fn main() -> dalr::Result<()> {
/// let layer = Linear::new(Mat::from_fn(8, 6, |i, j| ((i * 5 + j * 3) % 7) as f64), None)?;
/// let mut stats = ActivationStats::new(6);
/// stats.update(Mat::from_fn(50, 6, |i, j| ((i * 11 + j * 7) % 13) as f64 / (j + 1) as f64).as_ref())?;
/// let methods: [&dyn LowRankCompressor<f64>; 2] = [&TruncatedSvd::new(), &Dalr::new()];
/// let errors = methods.map(|method| {
///     let compressed = method.compress(&layer, &stats, Rank::Fixed(2))?;
///     compressed.evaluate(&layer, &stats)
/// });
/// assert!(errors[1].clone()? < errors[0].clone()?);
/// # Ok(())
/// # }
/// ```
pub trait LowRankCompressor<T: Scalar> {
    /// Solves the method's problem for every rank up to `max_rank` at once.
    ///
    /// # Errors
    ///
    /// A rank outside of 1 to min(out, in), statistics of another width than the layer's inputs or without the samples that
    /// the method needs, parameters out of range, and failures of the solver.
    ///
    /// For an example see [`Decomposition`].
    fn decompose(&self, layer: &Linear<T>, stats: &ActivationStats<T>, max_rank: usize) -> Result<Decomposition<T>>;

    /// Every rank chosen is a multiple of this number; 1 unless the method was told otherwise.
    ///
    /// ```
    /// use dalr::{Dalr, LowRankCompressor};
    /// assert_eq!(LowRankCompressor::<f32>::rank_multiple(&Dalr::new().with_rank_multiple(8)), 8);
    /// ```
    fn rank_multiple(&self) -> usize {
        1
    }

    /// Compresses a layer to the rank asked for: [`decompose`](Self::decompose), [`Decomposition::rank_for`]
    /// and [`Decomposition::truncate`] in one.
    ///
    /// # Errors
    ///
    /// As [`decompose`](Self::decompose); a rank that cannot be had.
    ///
    /// For an example see [`LowRankCompressor`].
    fn compress(&self, layer: &Linear<T>, stats: &ActivationStats<T>, rank: Rank) -> Result<Compressed<T>> {
        let multiple = self.rank_multiple();
        let shape = (layer.out_features(), layer.in_features());
        let bound = rank.bound(shape, multiple)?;
        let decomposition = self.decompose(layer, stats, bound)?;
        decomposition.truncate(decomposition.rank_for(rank, multiple)?)
    }
}
