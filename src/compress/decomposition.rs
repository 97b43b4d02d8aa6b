//! The result of one solve, good for every rank, and the compressed layer cut from it.

use core::fmt;

use faer::{Col, Mat, MatRef};

use super::evaluate::{Denominator, output_error};
use crate::bias::BiasCorrection;
use crate::error::during;
use crate::linalg;
use crate::rank::Spectrum;
use crate::{ActivationStats, Error, Linear, LowRankLinear, Rank, Report, Result, Scalar, Warning};

/// One solve of a compression problem: its spectrum, the error of every rank up to the one solved for, and
/// a compressed layer of any of them at the price of a copy.
///
/// ```
/// use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor};
/// use faer::Mat;
///
/// # fn main() -> dalr::Result<()> {
/// let layer = Linear::new(Mat::from_fn(8, 6, |i, j| ((i * 5 + j * 3) % 7) as f64), None)?;
/// let mut stats = ActivationStats::new(6);
/// stats.update(Mat::from_fn(50, 6, |i, j| ((i * 11 + j * 7) % 13) as f64).as_ref())?;
/// let decomposition = Dalr::new().decompose(&layer, &stats, 6)?;
/// for rank in 1..=decomposition.max_rank() {
///     println!("rank {rank}: error {:?}", decomposition.relative_error(rank));
/// }
/// let left_out = decomposition.total_energy() - decomposition.energies()[..2].iter().sum::<f64>();
/// assert!(left_out < 0.5 * decomposition.total_energy());
/// let compressed = decomposition.truncate(2)?;
/// assert_eq!(compressed.layer().rank(), 2);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Decomposition<T> {
    pub(super) up: Mat<T>,
    pub(super) down: Mat<T>,
    pub(super) energies: Vec<f64>,
    pub(super) total_energy: f64,
    /// The energies over `total_energy`, which are numbers even where these underflow.
    pub(super) shares: Vec<f64>,
    pub(super) relative_errors: Option<Vec<f64>>,
    pub(super) kept_bias: Option<Col<T>>,
    pub(super) correction: Option<BiasCorrection>,
    pub(super) facts: Facts,
}

/// What a report says whatever the rank.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(crate) struct Facts {
    pub(crate) method: String,
    pub(crate) samples: u64,
    pub(crate) shrinkage: Option<f64>,
    pub(crate) solver: String,
    pub(crate) residual: f64,
    pub(crate) warnings: Vec<Warning>,
    pub(crate) shape: (usize, usize),
    /// Whether the dense layer has a bias, and whether the compressed one will.
    pub(crate) biases: (bool, bool),
    /// Energies that stand out of rounding noise.
    pub(crate) determined: usize,
    /// The smallest relative error that can be told from zero.
    pub(crate) resolution: f64,
}

impl Facts {
    /// The report on the layer of this rank, whose relative error is `relative_error`.
    pub(crate) fn report(&self, rank: usize, relative_error: Option<f64>) -> Report {
        let (m, n) = self.shape;
        let bias = |has: bool| if has { m } else { 0 };
        let mut warnings = self.warnings.clone();
        if rank > self.determined {
            warnings.push(Warning::Filled { determined: self.determined, rank });
        }
        let multiply_adds_after = rank * (m + n);
        let (before, after) = (m * n + bias(self.biases.0), multiply_adds_after + bias(self.biases.1));
        if after >= before {
            warnings.push(Warning::PastBreakEven { rank, break_even: Rank::break_even(m, n) });
        }
        if relative_error.is_some_and(|error| error < self.resolution) {
            warnings.push(Warning::BelowResolution { resolution: self.resolution });
        }
        Report {
            method: self.method.clone(),
            rank,
            out_features: m,
            in_features: n,
            parameters_before: before,
            parameters_after: after,
            multiply_adds_before: m * n,
            multiply_adds_after,
            relative_error,
            samples: self.samples,
            shrinkage: self.shrinkage,
            solver: self.solver.clone(),
            residual: self.residual,
            warnings,
        }
    }
}

impl<T: Scalar> Decomposition<T> {
    /// The largest rank that [`truncate`](Self::truncate) can be asked for.
    ///
    /// For an example see [`Decomposition`].
    pub fn max_rank(&self) -> usize {
        self.energies.len()
    }

    /// Eigenvalues of the operator solved (`W S Wᵀ`, shrinkage or ridge included), descending, one per
    /// dimension up to [`max_rank`](Self::max_rank). For truncated SVD, the squared singular values of the
    /// weight. Values below about `ε ·` the largest are rounding noise.
    ///
    /// For an example see [`Decomposition`].
    pub fn energies(&self) -> &[f64] {
        &self.energies
    }

    /// Sum of all eigenvalues, those past [`max_rank`](Self::max_rank) included: what is lost at rank `k` is
    /// this less the first `k` energies.
    ///
    /// For an example see [`Decomposition`].
    pub fn total_energy(&self) -> f64 {
        self.total_energy
    }

    /// Predicted error of the layer of this rank on the calibration data, without the shrinkage or ridge that was solved with:
    ///
    /// $$\sqrt{1 - \frac{\sum_{i \le k} c_i}{\operatorname{tr}(W S W^\top)}}, \qquad c_i = u_i^\top W S W^\top u_i
    /// \quad\text{or}\quad u_i^\top (2 R S W^\top - R S R^\top)\thinspace u_i$$
    ///
    /// the second for the paper's and the exact ridge, where `C = U_k U_kᵀ R`. With these alone it can rise with the rank,
    /// and be infinite: where the dense outputs do not vary and those of the replacement do. The denominator is that of [`Report::relative_error`].
    ///
    /// `None` without samples, and for ranks that were not solved for.
    ///
    /// For an example see [`Decomposition`].
    pub fn relative_error(&self, rank: usize) -> Option<f64> {
        self.relative_errors.as_ref()?.get(rank.checked_sub(1)?).copied()
    }

    /// The rank that `rank` comes to on this spectrum, rounded to a multiple of `multiple`: ratios round
    /// down, energies and errors up, a fixed rank must match.
    ///
    /// # Errors
    ///
    /// A rank that cannot be had, or needs a solve up to a larger rank; [`Error::NoSamples`] for a relative
    /// error without samples.
    ///
    /// ```
    /// # use dalr::{ActivationStats, Linear, LowRankCompressor, Rank, TruncatedSvd};
    /// # fn main() -> dalr::Result<()> {
    /// let layer = Linear::new(faer::Mat::from_fn(4, 4, |i, j| if i == j { 4.0 - i as f64 } else { 0.0 }), None)?;
    /// let decomposition = TruncatedSvd::new().decompose(&layer, &ActivationStats::new(4), 4)?;
    /// // The energies are 16, 9, 4 and 1.
    /// assert_eq!(decomposition.rank_for(Rank::Energy(0.8), 1)?, 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn rank_for(&self, rank: Rank, multiple: usize) -> Result<usize> {
        let spectrum = Spectrum {
            energies: &self.shares,
            total_energy: 1.0,
            numerical_rank: self.facts.determined,
            relative_errors: self.relative_errors.as_deref(),
            resolution: self.facts.resolution,
        };
        rank.resolve(self.facts.shape, multiple, &spectrum)
    }

    /// The compressed layer of this rank. Cost: a copy of its factors, no further solve.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`] unless `1 ≤ rank ≤ max_rank`.
    ///
    /// For an example see [`Decomposition`].
    pub fn truncate(&self, rank: usize) -> Result<Compressed<T>> {
        during("Decomposition::truncate", || {
            if !(1..=self.max_rank()).contains(&rank) {
                let expected = format!("a rank from 1 to the {} solved for", self.max_rank());
                return Err(Error::rank(expected, rank.to_string()));
            }
            let copy = |source: MatRef<'_, T>| {
                let mut copy = linalg::zeros(source.nrows(), source.ncols())?;
                copy.copy_from(source);
                Result::Ok(copy)
            };
            let (up, down) = (self.up.subcols(0, rank), self.down.subrows(0, rank));
            let bias = match &self.correction {
                Some(correction) => Some(correction.apply(up)?),
                None => self.kept_bias.clone(),
            };
            let layer = LowRankLinear::new(copy(down)?, copy(up)?, bias)?;
            let report = self.facts.report(rank, self.relative_error(rank));
            Ok(Compressed { report, layer, corrected: self.correction.is_some() })
        })
    }

    /// Whether the bias is corrected, not kept.
    pub(crate) fn corrects_bias(&self) -> bool {
        self.correction.is_some()
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The energies over [`total_energy`](Self::total_energy).
    pub(crate) fn shares(&self) -> &[f64] {
        &self.shares
    }

    pub(crate) fn relative_errors(&self) -> Option<&[f64]> {
        self.relative_errors.as_deref()
    }
}

impl<T> fmt::Debug for Decomposition<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decomposition")
            .field("method", &self.facts.method)
            .field("shape", &self.facts.shape)
            .field("max_rank", &self.energies.len())
            .field("total_energy", &self.total_energy)
            .finish_non_exhaustive()
    }
}

/// A compressed layer and the report on it.
///
/// ```
/// use dalr::{ActivationStats, Compressed, Dalr, Linear, LowRankCompressor, LowRankLinear, Rank};
/// use faer::Mat;
///
/// # fn main() -> dalr::Result<()> {
/// let layer = Linear::new(Mat::from_fn(8, 6, |i, j| ((i * 5 + j * 3) % 7) as f64), None)?;
/// let mut stats = ActivationStats::new(6);
/// stats.update(Mat::from_fn(50, 6, |i, j| ((i * 11 + j * 7) % 13) as f64).as_ref())?;
/// let compressed: Compressed<f64> = Dalr::new().compress(&layer, &stats, Rank::Fixed(2))?;
/// assert_eq!(compressed.layer().rank(), compressed.report().rank());
/// let layer: LowRankLinear<f64> = compressed.into_layer();
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Compressed<T> {
    layer: LowRankLinear<T>,
    report: Report,
    /// Whether errors are relative to the centred outputs.
    corrected: bool,
}

impl<T: Scalar> Compressed<T> {
    /// The compressed layer.
    ///
    /// For an example see [`Compressed`].
    pub fn layer(&self) -> &LowRankLinear<T> {
        &self.layer
    }

    /// What the compression did and what it cost.
    ///
    /// For an example see [`Compressed`].
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The compressed layer, without the report.
    ///
    /// For an example see [`Compressed`].
    pub fn into_layer(self) -> LowRankLinear<T> {
        self.layer
    }

    /// Relative error against the dense `layer` on other data, computed from the residual in `f64`, so
    /// down to rounding: the root of `Σ wᵢ ‖yᵢ − ŷᵢ‖²`, what a changed bias does included, relative to the
    /// same denominator as [`Report::relative_error`]. To compare methods use [`relative_output_error`](crate::relative_output_error),
    /// whose denominator is the same for all.
    ///
    /// # Errors
    ///
    /// A layer or statistics of another shape, no samples, or an error with nothing to be relative to: dense outputs that are all
    /// zero (or, for a corrected bias, do not vary).
    ///
    /// # Cost
    ///
    /// `O(p·m·n)` for `p` samples, `O(m·n²)` for collapsed statistics.
    ///
    /// ```
    /// # use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Rank};
    /// # use faer::Mat;
    /// # fn main() -> dalr::Result<()> {
    /// # let layer = Linear::new(Mat::from_fn(8, 6, |i, j| ((i * 5 + j * 3) % 7) as f64), None)?;
    /// # let (mut stats, mut held_out) = (ActivationStats::new(6), ActivationStats::new(6));
    /// stats.update(Mat::from_fn(50, 6, |i, j| ((i * 11 + j * 7) % 13) as f64).as_ref())?;
    /// held_out.update(Mat::from_fn(50, 6, |i, j| ((i * 5 + j * 9) % 13) as f64).as_ref())?;
    /// let compressed = Dalr::new().compress(&layer, &stats, Rank::Fixed(3))?;
    /// println!("held-out error: {:.3}", compressed.evaluate(&layer, &held_out)?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn evaluate(&self, layer: &Linear<T>, stats: &ActivationStats<T>) -> Result<f64> {
        let denominator = if self.corrected { Denominator::Centred } else { Denominator::Uncentred };
        let weight = (self.layer.up(), self.layer.down());
        during("Compressed::evaluate", || {
            output_error(layer, weight.into(), self.layer.bias(), stats)?.relative_to(denominator)
        })
    }
}
