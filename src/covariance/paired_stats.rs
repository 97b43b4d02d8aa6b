//! Statistics of the inputs of the same samples in two networks.

use core::fmt;

use faer::{Col, Mat, MatRef};

use super::activation_stats::ActivationStats;
use super::second_moment::{CrossMoment, SecondMoment, cross_moment, second_moment, second_moment_of};
use crate::error::during;
use crate::linalg::{self, power_of_two};
use crate::{Error, Result, Scalar};

/// Statistics of a layer's inputs `x` in the original network and `x̂` in the partly compressed
/// one, for the same samples.
///
/// In the partly compressed network the layers before this one are compressed already, so this
/// layer sees other inputs. With these statistics a compressor finds the layer whose outputs for
/// `x̂` are closest to the original outputs for `x`.
///
/// The object behaves as [`ActivationStats`] of `2 n` inputs: the same accuracy, the same change
/// from the sample form to the covariance form, the same failures.
///
/// ```
/// use dalr::covariance::PairedStats;
/// use faer::mat;
///
/// # fn main() -> dalr::Result<()> {
/// let mut stats = PairedStats::<f64>::new(1);
/// stats.update(mat![[1.0], [3.0]].as_ref(), mat![[0.0], [1.0]].as_ref())?;
/// assert_eq!((stats.original_mean()?[0], stats.compressed_mean()?[0]), (2.0, 0.5));
/// assert!((stats.cross_covariance()?[(0, 0)] - 0.5).abs() < 1e-15);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct PairedStats<T> {
    /// Of the inputs `x̂` and, to their right, `x`.
    joint: ActivationStats<T>,
    features: usize,
}

impl<T: Scalar> PairedStats<T> {
    /// Returns empty statistics of a layer with this many inputs. Allocates nothing.
    pub fn new(features: usize) -> Self {
        Self::of_joint(ActivationStats::new(features.saturating_mul(2)), features)
    }

    /// The regression needs the covariance of `x̂`. With more samples than inputs it costs less to
    /// sum it once than to form it from samples in every solve.
    fn of_joint(mut joint: ActivationStats<T>, features: usize) -> Self {
        joint.most_samples = features;
        Self { joint, features }
    }

    /// Limits the memory of samples and covariances together to this many bytes, as
    /// [`ActivationStats::with_memory_limit`].
    #[must_use]
    pub fn with_memory_limit(mut self, bytes: usize) -> Self {
        self.joint = self.joint.with_memory_limit(bytes);
        self
    }

    /// Keeps no covariance of the original inputs, which saves a quarter of the time and memory of
    /// the covariance form.
    ///
    /// Errors are then predicted only with [`Calibration::with_original`](crate::Calibration), and
    /// [`original_covariance`](Self::original_covariance) and
    /// [`Compressed::evaluate`](crate::Compressed::evaluate) return an error. Merged statistics
    /// keep the covariance if both keep it.
    #[must_use]
    pub fn without_original_covariance(mut self) -> Self {
        self.joint.keep_columns(self.features);
        self
    }

    /// Sets the number of threads, as [`ActivationStats::with_threads`].
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.joint = self.joint.with_threads(threads);
        self
    }

    /// Adds the inputs of the same samples in both networks, each of shape samples × inputs.
    ///
    /// # Errors
    ///
    /// Batches of different lengths, and those of [`ActivationStats::update`] for either of them.
    /// The statistics are then unchanged.
    ///
    /// # Cost
    ///
    /// That of [`ActivationStats::update`] for `2 n` inputs, and a copy of the batches.
    pub fn update(&mut self, original: MatRef<'_, T>, compressed: MatRef<'_, T>) -> Result<()> {
        during("PairedStats::update", || {
            let batch = self.side_by_side(original, compressed)?;
            self.joint.update(batch.as_ref())
        })
    }

    /// Adds a batch with one weight per row, as [`ActivationStats::update_weighted`].
    ///
    /// # Errors
    ///
    /// Those of [`update`](Self::update) and of [`ActivationStats::update_weighted`].
    pub fn update_weighted(
        &mut self,
        original: MatRef<'_, T>,
        compressed: MatRef<'_, T>,
        weights: &[f64],
    ) -> Result<()> {
        during("PairedStats::update_weighted", || {
            let batch = self.side_by_side(original, compressed)?;
            self.joint.update_weighted(batch.as_ref(), weights)
        })
    }

    fn side_by_side(&self, original: MatRef<'_, T>, compressed: MatRef<'_, T>) -> Result<Mat<T>> {
        let n = self.features;
        for (what, expected, found) in [
            ("columns in the original batch (one per input)", n, original.ncols()),
            ("columns in the compressed batch (one per input)", n, compressed.ncols()),
            ("rows in the compressed batch (one per row of the original)", original.nrows(), compressed.nrows()),
        ] {
            if expected != found {
                return Err(Error::shape(what, expected, found));
            }
        }
        linalg::require_finite("the original batch", original)?;
        linalg::require_finite("the compressed batch", compressed)?;
        let mut batch = linalg::zeros(original.nrows(), 2 * n)?;
        batch.as_mut().get_mut(.., ..n).copy_from(compressed);
        batch.as_mut().get_mut(.., n..).copy_from(original);
        Ok(batch)
    }

    /// Adds the statistics of other samples, as [`ActivationStats::merge`].
    ///
    /// # Errors
    ///
    /// Those of [`ActivationStats::merge`]. This object is then unchanged.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        during("PairedStats::merge", || {
            self.require_features(other.features)?;
            if self.keeps_original() && !other.keeps_original() && other.samples() > 0 {
                let mut merged = self.clone().without_original_covariance();
                merged.joint.merge(&other.joint)?;
                *self = merged;
                return Ok(());
            }
            self.joint.merge(&other.joint)
        })
    }

    /// Number of inputs, the width of either batch.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Number of samples of positive weight.
    pub fn samples(&self) -> u64 {
        self.joint.samples()
    }

    /// Sum of the weights.
    pub fn total_weight(&self) -> f64 {
        self.joint.total_weight()
    }

    /// Kish's effective number of samples, as [`ActivationStats::effective_samples`].
    pub fn effective_samples(&self) -> f64 {
        self.joint.effective_samples()
    }

    /// Mean of the inputs in the original network, or [`Error::NoSamples`].
    pub fn original_mean(&self) -> Result<Col<f64>> {
        during("PairedStats::original_mean", || self.joint.mean().map(|mean| mean.get(self.features..).to_owned()))
    }

    /// Mean of the inputs in the compressed network, or [`Error::NoSamples`].
    pub fn compressed_mean(&self) -> Result<Col<f64>> {
        during("PairedStats::compressed_mean", || self.joint.mean().map(|mean| mean.get(..self.features).to_owned()))
    }

    /// Covariance of the inputs in the original network, inputs × inputs. Allocates `8 n²` bytes,
    /// as do the other two.
    ///
    /// # Errors
    ///
    /// [`Error::NoSamples`] or [`Error::Memory`].
    pub fn original_covariance(&self) -> Result<Mat<f64>> {
        during("PairedStats::original_covariance", || self.original_moment(true)?.unscaled(linalg::threads(0)))
    }

    /// Covariance of the inputs in the compressed network, inputs × inputs.
    ///
    /// # Errors
    ///
    /// [`Error::NoSamples`] or [`Error::Memory`].
    pub fn covariance(&self) -> Result<Mat<f64>> {
        during("PairedStats::covariance", || self.compressed_moment(true)?.unscaled(linalg::threads(0)))
    }

    /// Covariance `(1/w) Σ wᵢ (xᵢ − μ)(x̂ᵢ − μ̂)ᵀ`: one row for each original input, one column for
    /// each compressed input.
    ///
    /// # Errors
    ///
    /// [`Error::NoSamples`] or [`Error::Memory`].
    pub fn cross_covariance(&self) -> Result<Mat<f64>> {
        during("PairedStats::cross_covariance", || {
            let moment = self.compressed_moment(true)?;
            let mut cross = self.cross_moment(true, &*moment)?.formed(linalg::threads(0))?;
            cross *= faer::Scale(power_of_two(moment.exponent()));
            Ok(cross)
        })
    }

    /// Statistics of the inputs `x̂` and, to their right, `x`.
    pub(crate) fn joint(&self) -> &ActivationStats<T> {
        &self.joint
    }

    /// From statistics of the inputs `x̂` and, to their right, `x`, which were read from `path`.
    #[cfg(feature = "safetensors")]
    pub(crate) fn from_joint(joint: ActivationStats<T>, path: &str) -> Result<Self> {
        let features = joint.features();
        if features.is_multiple_of(2) {
            return Ok(Self::of_joint(joint, features / 2));
        }
        Err(Error::format(path.into(), "an even number of features".into(), features.to_string()))
    }

    pub(crate) fn require_features(&self, expected: usize) -> Result<()> {
        if self.features == expected {
            return Ok(());
        }
        Err(Error::shape("inputs in the paired statistics (as the layer has)", expected, self.features))
    }

    /// Whether the covariance of the original inputs is kept.
    pub(crate) fn keeps_original(&self) -> bool {
        self.joint.columns > self.features
    }

    fn require_original(&self) -> Result<()> {
        match self.keeps_original() {
            true => Ok(()),
            false => {
                Err(Error::empty("the covariance of the original inputs (left out by `without_original_covariance`)"))
            }
        }
    }

    /// Both means, of the original and of the compressed inputs.
    pub(crate) fn means(&self) -> (Vec<f64>, Vec<f64>) {
        let mut compressed = self.joint.mean_or_zero();
        let original = compressed.split_off(self.features);
        (original, compressed)
    }

    /// The second moment of the compressed inputs.
    pub(crate) fn compressed_moment(&self, centred: bool) -> Result<Box<dyn SecondMoment<T> + '_>> {
        self.joint.require_samples()?;
        second_moment_of(&self.joint, 0..self.features, centred)
    }

    /// The second moment of the original inputs.
    pub(crate) fn original_moment(&self, centred: bool) -> Result<Box<dyn SecondMoment<T> + '_>> {
        self.joint.require_samples()?;
        self.require_original()?;
        second_moment_of(&self.joint, self.features..2 * self.features, centred)
    }

    /// The second moment of the compressed inputs and, after them, the original ones.
    pub(crate) fn joint_moment(&self, centred: bool) -> Result<Box<dyn SecondMoment<T> + '_>> {
        self.joint.require_samples()?;
        self.require_original()?;
        second_moment(&self.joint, centred)
    }

    /// The second moment between the original and the compressed inputs, in the units of `moment`,
    /// the [`compressed_moment`](Self::compressed_moment).
    pub(crate) fn cross_moment(&self, centred: bool, moment: &dyn SecondMoment<T>) -> Result<CrossMoment<'_, T>> {
        self.joint.require_samples()?;
        cross_moment(&self.joint, (self.features..2 * self.features, 0..self.features), centred, moment)
    }
}

impl<T> fmt::Debug for PairedStats<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("PairedStats").field("joint", &self.joint).finish()
    }
}
