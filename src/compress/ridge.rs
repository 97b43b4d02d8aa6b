//! How statistics from few samples are regularised, and the choice among such ways on held-out data.

use super::evaluate::{Denominator, output_error};
use super::weighted::Objective;
use super::{Dalr, LowRankCompressor};
use crate::error::during;
use crate::{ActivationStats, Error, Linear, Rank, Result, Scalar};

/// How [`Dalr`] regularises the second moment `S` of the inputs.
///
/// The first three add a multiple of the identity to `S`, which pulls the solution towards truncated SVD and never below it; their
/// strength is relative to the data, so that inputs in other units give the same layer. The last two are
/// the paper's: an absolute `λ` on `Σ wᵢ xᵢ xᵢᵀ` that pulls the compressed weight towards zero.
///
/// ```
/// use dalr::{Dalr, Ridge};
/// let compressor = Dalr::new().with_ridge(Ridge::Anchored(0.1));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Ridge {
    /// `S` as it is: the least error on the calibration data.
    None,
    /// `(1 − ρ) S + ρ (tr S / n) I`, with an intensity `ρ` that the data call for: between that of the oracle approximating estimator
    /// (Chen et al. 2010, eq. 23), which is too little to choose a rank by, and that of a ridge as large as the noise outside of the directions
    /// that dominate (`docs/mathematics.md`, "How much to shrink"); 1 up to eight degrees of freedom. It vanishes as samples grow.
    ///
    /// $$S_\rho = (1 - \rho)\thinspace S + \rho\thinspace \frac{\operatorname{tr} S}{n}\thinspace I$$
    Shrinkage,
    /// `S + λI` with `λ = r · tr S / n`: `r` times the mean second moment of an input.
    Anchored(f64),
    /// Eq. 11 of the paper as published, with `U` from the outputs. Not the minimiser of its own
    /// objective unless `λ = 0`, and for a large `λ` worse than truncated SVD.
    ///
    /// $$A = U_k,\qquad B = U_k^\top\thinspace W X X^\top (X X^\top + \lambda I)^{-1},\qquad W X = U S V^\top$$
    Paper(f64),
    /// The minimiser of the paper's eq. 7:
    ///
    /// $$\min_{\operatorname{rank} C \le k}\ \lVert W X - C X \rVert_F^2 + \lambda\thinspace \lVert C \rVert_F^2$$
    Exact(f64),
}

impl Ridge {
    /// Whether `λ` is in the units of the data, as in the paper.
    pub(super) fn is_absolute(self) -> bool {
        matches!(self, Self::Paper(_) | Self::Exact(_))
    }

    /// The problem to solve, once the strength is known to be legal.
    pub(super) fn objective(self) -> Result<Objective> {
        let strength = |value: f64| {
            if value >= 0.0 && value.is_finite() {
                return Ok(value);
            }
            let expected = "to be finite and not negative".into();
            Err(Error::out_of_range("the ridge", expected, value))
        };
        Ok(match self {
            Self::None => Objective::Anchored(0.0),
            Self::Shrinkage => Objective::Shrunk,
            Self::Anchored(ratio) => Objective::Anchored(strength(ratio)?),
            Self::Paper(lambda) => Objective::Paper(strength(lambda)?),
            Self::Exact(lambda) => Objective::Exact(strength(lambda)?),
        })
    }
}

/// The candidate whose compressed layer has the least error on held-out data; the first of them where
/// several tie. Each is tried with the automatic treatment of the bias, and measured against one denominator.
///
/// # Errors
///
/// No candidates, and whatever keeps one of them from being solved or evaluated.
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
/// let candidates = [Ridge::None, Ridge::Shrinkage, Ridge::Anchored(0.1), Ridge::Anchored(1.0)];
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
            let low = compressed.layer();
            let error = output_error(layer, (low.up(), low.down()).into(), low.bias(), held_out)?
                .relative_to(Denominator::Uncentred)?;
            if best.is_none_or(|(least, _)| error < least) {
                best = Some((error, ridge));
            }
        }
        best.map(|(_, ridge)| ridge).ok_or(Error::empty("the list of candidates"))
    })
}
