//! The statistics object and its getters.

use core::fmt;

use faer::Col;

use super::per_input::Channels;
use super::sample_form::Samples;
use super::samples_to_covariance::StatsForm;
use crate::error::during;
use crate::{Error, Result, Scalar};

/// Statistics of a layer's inputs on the target domain, updated batch by batch.
///
/// It holds the total weight `w = Σ wᵢ`, the mean `μ`, the samples or their covariance, and of each
/// input the extremes, the mean magnitude and the activation rate. Batches may have any size and
/// memory layout. All sums are `f64`, whatever `T` is. They are pooled as in Chan, Golub and
/// LeVeque (1983), after subtracting the first sample. Results therefore stay accurate even when
/// the mean is 10⁶ times the standard deviation.
///
/// There are two forms. The *sample form* keeps the samples, which is exact and makes solves
/// faster. When they would take twice the memory of the scatter matrix, the object changes to the
/// *covariance form* and stops growing. This form holds half of the scatter matrix, `4 n²` bytes,
/// and a buffer of up to `n²` bytes for samples that are not yet added. Results do not depend on
/// the form, with one exception. `f32` data of 512 inputs or more are multiplied in `f32` in
/// covariance form, about a thousand samples at a time. Each entry of the covariance then has a
/// relative rounding error of about `10⁻⁶ √(Σ_ii Σ_jj)`, which the solvers account for.
///
/// [`merge`](Self::merge) combines statistics of several parts of the data. Layers that read the
/// same input share one object.
///
/// ```
/// use dalr::ActivationStats;
/// use faer::mat;
///
/// # fn main() -> dalr::Result<()> {
/// let mut stats = ActivationStats::<f32>::new(2);
/// stats.update(mat![[1.0, 0.0], [3.0, 0.0]].as_ref())?;
/// stats.update(mat![[5.0, 6.0]].as_ref())?;
/// assert_eq!(stats.samples(), 3);
/// assert_eq!(stats.mean()?[0], 3.0);
/// assert!((stats.covariance()?[(0, 1)] - 4.0).abs() < 1e-12);
/// assert!((stats.activation_rates()?[1] - 1.0 / 3.0).abs() < 1e-12);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ActivationStats<T> {
    pub(super) features: usize,
    /// Number of inputs whose covariances with all inputs are kept, from the first on: all, except
    /// in paired statistics.
    pub(super) columns: usize,
    /// The largest number of samples in sample form.
    pub(super) most_samples: usize,
    pub(super) samples: u64,
    pub(super) weight: f64,
    pub(super) weight_squares: f64,
    pub(super) channels: Channels,
    pub(super) form: StatsForm<T>,
    pub(super) memory_limit: Option<usize>,
    pub(super) threads: usize,
}

impl<T: Scalar> ActivationStats<T> {
    /// Returns empty statistics of a layer with this many inputs. Allocates nothing.
    ///
    /// Zero inputs are accepted here, and are an error in every update.
    pub fn new(features: usize) -> Self {
        Self {
            features,
            columns: features,
            most_samples: usize::MAX,
            samples: 0,
            weight: 0.0,
            weight_squares: 0.0,
            channels: Channels::default(),
            form: StatsForm::Samples(Samples::new(features)),
            memory_limit: None,
            threads: 0,
        }
    }

    /// Limits the memory of samples and covariance together to this many bytes.
    ///
    /// An update or merge that would exceed it fails with [`Error::Memory`] and changes nothing.
    ///
    /// ```
    /// use dalr::{ActivationStats, Error};
    /// let mut stats = ActivationStats::<f32>::new(1000).with_memory_limit(10_000);
    /// let batch = faer::Mat::<f32>::zeros(10, 1000);
    /// assert!(matches!(stats.update(batch.as_ref()), Err(Error::Memory { needed: 40_080, .. })));
    /// ```
    #[must_use]
    pub fn with_memory_limit(mut self, bytes: usize) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// Sets the number of threads of updates and merges, at most those of rayon's pool.
    ///
    /// 0, the default, uses one thread inside a rayon worker and the whole pool elsewhere.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Returns the number of inputs, which is the number of columns of a batch.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Returns the number of samples of positive weight.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Returns the sum of the weights; equals [`samples`](Self::samples) when all weights are 1.
    pub fn total_weight(&self) -> f64 {
        self.weight
    }

    /// Returns Kish's effective number of samples, `(Σ wᵢ)² / Σ wᵢ²`; 0 without samples. A mean of
    /// this many samples with equal weights has the same variance.
    pub fn effective_samples(&self) -> f64 {
        if self.samples == 0 { 0.0 } else { self.weight / self.weight_squares * self.weight }
    }

    /// Returns the mean `μ` of each input, or [`Error::NoSamples`].
    pub fn mean(&self) -> Result<Col<f64>> {
        self.per_input("ActivationStats::mean", self.channels.mean())
    }

    /// Returns the largest activation of each input, or [`Error::NoSamples`].
    pub fn maximum(&self) -> Result<Col<f64>> {
        self.per_input("ActivationStats::maximum", self.channels.maximum.iter().copied())
    }

    /// Returns the smallest activation of each input, or [`Error::NoSamples`].
    pub fn minimum(&self) -> Result<Col<f64>> {
        self.per_input("ActivationStats::minimum", self.channels.minimum.iter().copied())
    }

    /// Returns the largest magnitude of each input, or [`Error::NoSamples`].
    pub fn max_absolute(&self) -> Result<Col<f64>> {
        let magnitudes = self.channels.extremes().map(|(low, high)| low.abs().max(high.abs()));
        self.per_input("ActivationStats::max_absolute", magnitudes)
    }

    /// Returns the mean magnitude `(1/w) Σ wᵢ |xᵢ|` of each input, or [`Error::NoSamples`].
    pub fn mean_absolute(&self) -> Result<Col<f64>> {
        self.per_input("ActivationStats::mean_absolute", self.channels.absolute.iter().map(|sum| sum / self.weight))
    }

    /// Returns the activation rate of each input, the weighted fraction of samples in which it is
    /// not zero, or [`Error::NoSamples`]. Sorted, this is Fig. 2 of the paper.
    pub fn activation_rates(&self) -> Result<Col<f64>> {
        self.per_input("ActivationStats::activation_rates", self.channels.active.iter().map(|sum| sum / self.weight))
    }

    /// Returns the smallest fraction of the inputs that together have `fraction` of all non-zero
    /// activations. It shows how many inputs of the layer a domain uses.
    ///
    /// The most active inputs count first; 0 if no input is ever active. For VGG19's fc7 on Flowers
    /// the paper reports 19.51 % at a fraction of one half (Fig. 2).
    ///
    /// # Errors
    ///
    /// [`Error::NoSamples`]; a fraction outside (0, 1].
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let mut stats = dalr::ActivationStats::<f32>::new(4);
    /// stats.update(faer::mat![[0.0, 7.0, 0.0, 1.0], [0.0, 8.0, 0.0, 0.0]].as_ref())?;
    /// assert_eq!(stats.fraction_gathering(0.5)?, 0.25);
    /// assert_eq!(stats.fraction_gathering(1.0)?, 0.5);
    /// # Ok(())
    /// # }
    /// ```
    pub fn fraction_gathering(&self, fraction: f64) -> Result<f64> {
        during("ActivationStats::fraction_gathering", || {
            self.require_samples()?;
            if !(fraction > 0.0 && fraction <= 1.0) {
                return Err(Error::out_of_range("the fraction", "to be in (0, 1]".into(), fraction));
            }
            let mut sums = self.channels.active.clone();
            sums.sort_unstable_by(|a, b| b.total_cmp(a));
            // The total is summed in the order of the running sum. Otherwise rounding could require
            // inputs that are never active.
            let goal = fraction * sums.iter().sum::<f64>();
            let mut gathered = 0.0;
            let needed = sums.iter().take_while(|&&sum| {
                let wanting = gathered < goal;
                gathered += sum;
                wanting
            });
            Ok(needed.count() as f64 / self.features as f64)
        })
    }

    fn per_input(&self, operation: &'static str, values: impl Iterator<Item = f64>) -> Result<Col<f64>> {
        during(operation, || self.require_samples().map(|()| values.collect()))
    }

    pub(crate) fn require_samples(&self) -> Result<()> {
        if self.samples == 0 { Err(Error::no_samples()) } else { Ok(()) }
    }

    pub(crate) fn require_features(&self, expected: usize) -> Result<()> {
        if self.features == expected {
            return Ok(());
        }
        Err(Error::shape("inputs in the statistics (as the layer has)", expected, self.features))
    }

    /// As [`Channels::require_squares`].
    pub(crate) fn require_squares(&self, centred: bool) -> Result<()> {
        self.channels.require_squares(centred)
    }

    /// Returns the mean of each input; zeros without samples.
    pub(crate) fn mean_or_zero(&self) -> Vec<f64> {
        if self.samples == 0 { vec![0.0; self.features] } else { self.channels.mean().collect() }
    }
}

impl<T> fmt::Debug for ActivationStats<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = match self.form {
            StatsForm::Samples(_) => "samples",
            StatsForm::Covariance(_) => "covariance",
        };
        formatter
            .debug_struct("ActivationStats")
            .field("features", &self.features)
            .field("samples", &self.samples)
            .field("total_weight", &self.weight)
            .field("form", &form)
            .finish_non_exhaustive()
    }
}
