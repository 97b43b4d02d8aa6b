//! The choice among regularizations on held-out data.

use super::Ridge;
use crate::compress::relative_error::output_error;
use crate::compress::{Dalr, LowRankCompressor};
use crate::error::during;
use crate::{ActivationStats, Error, Linear, Rank, Result, Scalar};

/// Returns the candidate whose compressed layer has the least error on held-out data; the first one
/// if several tie.
///
/// Each candidate is tried with the default treatment of the bias, as if
/// [`Dalr::with_bias_correction`] was not called.
///
/// # Errors
///
/// No candidates, and every error of solving or evaluating one of them.
///
/// # Cost
///
/// A compression and an evaluation for each candidate.
///
/// ```
/// use dalr::{ActivationStats, Linear, Rank, Ridge, select_ridge};
/// use faer::Mat;
///
/// # fn main() -> dalr::Result<()> {
/// let layer = Linear::new(Mat::from_fn(8, 6, |i, j| ((i * 5 + j * 3) % 7) as f64), None)?;
/// let (mut stats, mut held_out) = (ActivationStats::new(6), ActivationStats::new(6));
/// stats.update(Mat::from_fn(4, 6, |i, j| ((i * 11 + j * 7) % 13) as f64).as_ref())?;
/// held_out.update(Mat::from_fn(50, 6, |i, j| ((i * 5 + j * 9) % 13) as f64).as_ref())?;
/// let candidates = [Ridge::None, Ridge::Shrinkage, Ridge::Relative(0.1), Ridge::Relative(1.0)];
/// let best = select_ridge(&layer, &stats, &held_out, Rank::Fixed(2), &candidates)?;
/// assert!(candidates.contains(&best));
/// # Ok(())
/// # }
/// ```
pub fn select_ridge<T: Scalar>(
    layer: &Linear<T>,
    stats: &ActivationStats<T>,
    held_out: &ActivationStats<T>,
    rank: Rank,
    candidates: &[Ridge],
) -> Result<Ridge> {
    during("select_ridge", || {
        let mut best: Option<(f64, Ridge)> = None;
        for &ridge in candidates {
            let compressed = Dalr::new().with_ridge(ridge).compress(layer, stats, rank)?;
            let error = output_error(layer, compressed.layer(), held_out)?.squared;
            if best.is_none_or(|(least, _)| error < least) {
                best = Some((error, ridge));
            }
        }
        best.map(|(_, ridge)| ridge).ok_or(Error::empty("the list of candidates"))
    })
}
