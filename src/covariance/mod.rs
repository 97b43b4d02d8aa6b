//! Streaming statistics of a layer's inputs: mean, second moments and per-input activity.

mod accumulator;
mod channels;
mod collapsed;
mod moment;
#[cfg(feature = "safetensors")]
mod parts;
mod samples;
mod scatter;
mod shrinkage;
mod underflow;
mod update;
#[cfg(feature = "safetensors")]
mod validity;

use core::fmt;

use faer::{Col, Mat, MatRef};

pub(crate) use self::moment::Moment;
#[cfg(feature = "safetensors")]
pub(crate) use self::parts::{Head, Piece, PieceMut, ScatterHead, zeros};
#[cfg(feature = "safetensors")]
pub(crate) use self::scatter::BLOCK;
pub(crate) use self::shrinkage::intensity;

use self::channels::Channels;
use self::collapsed::Collapsed;
use self::samples::Samples;
use crate::error::during;
use crate::linalg;
use crate::{Error, Result, Scalar};

/// Statistics of a layer's inputs on the target domain, fed batch by batch.
///
/// Keeps the total weight `w = Σ wᵢ`, the mean `μ` and what the scatter `Σ wᵢ (xᵢ − μ)(xᵢ − μ)ᵀ` follows
/// from, and of each input the extremes, the mean magnitude and how often it is not zero. Batches may have any size and
/// memory layout: small ones are gathered until they are worth a product. Everything is summed up in `f64`, whatever `T` is, by the
/// pooled updates of Chan, Golub and LeVeque (1983), about the first sample as the origin: a mean a million times larger than the
/// spread costs no accuracy.
///
/// Samples are kept as they are, which is exact and the faster form to solve from, until they take twice the memory of the scatter; the
/// object then collapses to the scatter, and a quarter more for small batches, and its size no longer grows. Nothing but
/// memory and time tells the two forms of `f64` data apart. `f32` data of 512 inputs or more are then centred, scaled input by input
/// and multiplied in `f32`, a thousand samples or so at a time: each entry of the scatter has a rounding of about `10⁻⁶ √(S_ii S_jj)`, which the solvers
/// know of.
///
/// Statistics of shards are combined with [`merge`](Self::merge), in any order, and one object serves
/// all layers that read the same input.
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
    features: usize,
    samples: u64,
    weight: f64,
    weight_squares: f64,
    channels: Channels,
    form: Form<T>,
    memory_limit: Option<usize>,
    threads: usize,
}

#[derive(Clone)]
enum Form<T> {
    Samples(Samples<T>),
    Scatter(Collapsed<T>),
}

impl<T: Scalar> ActivationStats<T> {
    /// Empty statistics of a layer with this many inputs. Allocates nothing.
    ///
    /// A width of zero is accepted here; every update of it is an error.
    ///
    /// ```
    /// let stats = dalr::ActivationStats::<f32>::new(4096);
    /// assert_eq!(stats.samples(), 0);
    /// ```
    pub fn new(features: usize) -> Self {
        Self {
            features,
            samples: 0,
            weight: 0.0,
            weight_squares: 0.0,
            channels: Channels::default(),
            form: Form::Samples(Samples::new(features)),
            memory_limit: None,
            threads: 0,
        }
    }

    /// Makes updates and merges fail with [`Error::Memory`], and leave the statistics as they were, when
    /// samples and scatter would together take more than this many bytes.
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

    /// Sets the number of threads of updates and merges; 0, the default, chooses: one inside a rayon
    /// worker, all of rayon's pool elsewhere. Never more than that pool has.
    ///
    /// ```
    /// let stats = dalr::ActivationStats::<f32>::new(16).with_threads(1);
    /// # assert_eq!(stats.features(), 16);
    /// ```
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Adds a batch of shape samples × inputs, every sample with weight 1.
    ///
    /// # Errors
    ///
    /// A batch without rows, of another width, with a NaN or an infinity, or with entries so large that
    /// their squares overflow; a memory limit or the memory exceeded. The statistics are then unchanged.
    ///
    /// # Cost
    ///
    /// `O(p·n)` for `p` samples of `n` inputs while samples are kept, `O(p·n²)` after.
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let mut stats = dalr::ActivationStats::<f64>::new(2);
    /// stats.update(faer::mat![[1.0, 2.0], [3.0, 4.0]].as_ref())?;
    /// assert_eq!(stats.total_weight(), 2.0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn update(&mut self, batch: MatRef<'_, T>) -> Result<()> {
        during("ActivationStats::update", || self.add_batch(batch, None))
    }

    /// Adds a batch whose samples count with the given weights, one per row.
    ///
    /// A weight of 2 has the effect of the same sample twice, a weight of 0 (padding, say) that of leaving
    /// the sample out: it does not count in [`samples`](Self::samples) either.
    ///
    /// # Errors
    ///
    /// As [`update`](Self::update); weights of another number than the rows; a weight that is negative,
    /// not finite, or neither zero nor between 1e-100 and 1e100.
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let mut stats = dalr::ActivationStats::<f64>::new(1);
    /// stats.update_weighted(faer::mat![[1.0], [9.0], [4.0]].as_ref(), &[2.0, 0.0, 1.0])?;
    /// assert_eq!(stats.samples(), 2);
    /// assert!((stats.mean()?[0] - 2.0).abs() < 1e-15);
    /// # Ok(())
    /// # }
    /// ```
    pub fn update_weighted(&mut self, batch: MatRef<'_, T>, weights: &[f64]) -> Result<()> {
        during("ActivationStats::update_weighted", || self.add_batch(batch, Some(weights)))
    }

    /// Adds the statistics of other samples, as if they had been fed to this object.
    ///
    /// Associative and commutative up to rounding. Either may be empty, and in either form.
    ///
    /// # Errors
    ///
    /// Statistics of another width; counts or entries that overflow; a memory limit or the memory exceeded. This object is
    /// then unchanged.
    ///
    /// # Cost
    ///
    /// `O(p·n)` while samples are kept, `O(n²)` between two scatters, `O(p·n²)` to take `p` samples into one.
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// use dalr::ActivationStats;
    /// let (mut here, mut there) = (ActivationStats::<f64>::new(1), ActivationStats::new(1));
    /// here.update(faer::mat![[1.0]].as_ref())?;
    /// there.update(faer::mat![[2.0], [6.0]].as_ref())?;
    /// here.merge(&there)?;
    /// assert_eq!((here.samples(), here.mean()?[0]), (3, 3.0));
    /// # Ok(())
    /// # }
    /// ```
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        during("ActivationStats::merge", || self.add_statistics(other))
    }

    /// Number of inputs, the width of the batches.
    ///
    /// ```
    /// assert_eq!(dalr::ActivationStats::<f32>::new(7).features(), 7);
    /// ```
    pub fn features(&self) -> usize {
        self.features
    }

    /// Number of samples of positive weight seen.
    ///
    /// ```
    /// assert_eq!(dalr::ActivationStats::<f32>::new(7).samples(), 0);
    /// ```
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Sum of the samples' weights; equals [`samples`](Self::samples) when all weights are 1.
    ///
    /// ```
    /// assert_eq!(dalr::ActivationStats::<f32>::new(7).total_weight(), 0.0);
    /// ```
    pub fn total_weight(&self) -> f64 {
        self.weight
    }

    /// Kish's effective number of samples, `(Σ wᵢ)² / Σ wᵢ²`: the number of equal weights that would carry
    /// as much information. 0 without samples.
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let mut stats = dalr::ActivationStats::<f32>::new(1);
    /// stats.update_weighted(faer::mat![[1.0], [2.0], [3.0]].as_ref(), &[5.0, 5.0, 0.0])?;
    /// assert!((stats.effective_samples() - 2.0).abs() < 1e-12);
    /// # Ok(())
    /// # }
    /// ```
    pub fn effective_samples(&self) -> f64 {
        if self.samples == 0 { 0.0 } else { self.weight / self.weight_squares * self.weight }
    }

    /// Mean input `μ`, one entry per input.
    ///
    /// # Errors
    ///
    /// [`Error::NoSamples`].
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let mut stats = dalr::ActivationStats::<f32>::new(1);
    /// stats.update(faer::mat![[1.0], [2.0]].as_ref())?;
    /// assert_eq!(stats.mean()?[0], 1.5);
    /// # Ok(())
    /// # }
    /// ```
    pub fn mean(&self) -> Result<Col<f64>> {
        self.require_samples().map_err(|error| error.during("ActivationStats::mean"))?;
        Ok(self.channels.mean().collect())
    }

    /// Covariance `Σ = (1/w) Σ wᵢ (xᵢ − μ)(xᵢ − μ)ᵀ`, inputs × inputs (divided by the total weight, not by
    /// one less). Allocates `8 n²` bytes; the compressors never need it formed.
    ///
    /// # Errors
    ///
    /// [`Error::NoSamples`], or [`Error::Memory`] if the matrix does not fit.
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let mut stats = dalr::ActivationStats::<f32>::new(1);
    /// stats.update(faer::mat![[1.0], [3.0]].as_ref())?;
    /// assert_eq!(stats.covariance()?[(0, 0)], 1.0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn covariance(&self) -> Result<Mat<f64>> {
        during("ActivationStats::covariance", || {
            self.require_samples()?;
            Moment::of(self, true)?.dense(linalg::threads(self.threads))
        })
    }

    /// Largest activation of each input.
    ///
    /// # Errors
    ///
    /// [`Error::NoSamples`].
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let mut stats = dalr::ActivationStats::<f32>::new(1);
    /// stats.update(faer::mat![[-3.0], [2.0]].as_ref())?;
    /// assert_eq!((stats.maximum()?[0], stats.minimum()?[0], stats.max_absolute()?[0]), (2.0, -3.0, 3.0));
    /// # Ok(())
    /// # }
    /// ```
    pub fn maximum(&self) -> Result<Col<f64>> {
        self.require_samples().map_err(|error| error.during("ActivationStats::maximum"))?;
        Ok(self.channels.maximum.iter().copied().collect())
    }

    /// Smallest activation of each input.
    ///
    /// # Errors
    ///
    /// [`Error::NoSamples`].
    ///
    /// For an example see [`maximum`](Self::maximum).
    pub fn minimum(&self) -> Result<Col<f64>> {
        self.require_samples().map_err(|error| error.during("ActivationStats::minimum"))?;
        Ok(self.channels.minimum.iter().copied().collect())
    }

    /// Largest magnitude of each input. After a ReLU this is [`maximum`](Self::maximum).
    ///
    /// # Errors
    ///
    /// [`Error::NoSamples`].
    ///
    /// For an example see [`maximum`](Self::maximum).
    pub fn max_absolute(&self) -> Result<Col<f64>> {
        self.require_samples().map_err(|error| error.during("ActivationStats::max_absolute"))?;
        let extremes = self.channels.minimum.iter().zip(&self.channels.maximum);
        Ok(extremes.map(|(low, high)| low.abs().max(high.abs())).collect())
    }

    /// Mean magnitude `(1/w) Σ wᵢ |xᵢ|` of each input.
    ///
    /// # Errors
    ///
    /// [`Error::NoSamples`].
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let mut stats = dalr::ActivationStats::<f32>::new(1);
    /// stats.update(faer::mat![[-3.0], [1.0]].as_ref())?;
    /// assert_eq!(stats.mean_absolute()?[0], 2.0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn mean_absolute(&self) -> Result<Col<f64>> {
        self.require_samples().map_err(|error| error.during("ActivationStats::mean_absolute"))?;
        Ok(self.channels.absolute.iter().map(|sum| sum / self.weight).collect())
    }

    /// Activation rate of each input: the (weighted) share of samples in which it is not zero. Sorted, this
    /// is Fig. 2 of the paper.
    ///
    /// # Errors
    ///
    /// [`Error::NoSamples`].
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let mut stats = dalr::ActivationStats::<f32>::new(2);
    /// stats.update(faer::mat![[-3.0, 0.0], [1.0, 2.0]].as_ref())?;
    /// assert_eq!((stats.activation_rates()?[0], stats.activation_rates()?[1]), (1.0, 0.5));
    /// # Ok(())
    /// # }
    /// ```
    pub fn activation_rates(&self) -> Result<Col<f64>> {
        self.require_samples().map_err(|error| error.during("ActivationStats::activation_rates"))?;
        Ok(self.channels.active.iter().map(|sum| sum / self.weight).collect())
    }

    /// The smallest share of inputs that gathers `fraction` of all activations (non-zero responses), most
    /// active inputs first. The paper reads 19.51 % for VGG19's fc7 on Flowers at a fraction of one half (Fig. 2): how much of a network
    /// a domain uses. 0 if no input is ever active.
    ///
    /// # Errors
    ///
    /// [`Error::NoSamples`]; a fraction outside (0, 1].
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let mut stats = dalr::ActivationStats::<f32>::new(4);
    /// stats.update(faer::mat![[0.0, 7.0, 0.0, 1.0], [0.0, 8.0, 0.0, 0.0]].as_ref())?;
    /// assert_eq!(stats.share_gathering(0.5)?, 0.25);
    /// assert_eq!(stats.share_gathering(1.0)?, 0.5);
    /// # Ok(())
    /// # }
    /// ```
    pub fn share_gathering(&self, fraction: f64) -> Result<f64> {
        during("ActivationStats::share_gathering", || {
            self.require_samples()?;
            if !(fraction > 0.0 && fraction <= 1.0) {
                let expected = "in (0, 1]".into();
                return Err(Error::out_of_range("fraction", expected, fraction));
            }
            let mut sums = self.channels.active.clone();
            sums.sort_unstable_by(|a, b| b.total_cmp(a));
            // Added up in the order of the running sum: rounding does not ask for inputs that are never active.
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

    pub(crate) fn require_samples(&self) -> Result<()> {
        if self.samples == 0 { Err(Error::no_samples()) } else { Ok(()) }
    }

    pub(crate) fn require_features(&self, expected: usize) -> Result<()> {
        if self.features == expected {
            return Ok(());
        }
        let what = "inputs in the statistics (as the layer has)";
        Err(Error::shape(what, expected, self.features))
    }

    /// The mean as a slice-friendly vector; zeros without samples.
    pub(crate) fn mean_or_zero(&self) -> Vec<f64> {
        if self.samples == 0 { vec![0.0; self.features] } else { self.channels.mean().collect() }
    }
}

impl<T> fmt::Debug for ActivationStats<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = match self.form {
            Form::Samples(_) => "samples",
            Form::Scatter(_) => "scatter",
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

#[cfg(test)]
mod tests;
