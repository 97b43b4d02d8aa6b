//! Adds batches, or the statistics of other samples, to statistics. All steps that can fail come
//! before the first change.

use faer::MatRef;

use super::activation_stats::ActivationStats;
use super::batch::Batch;
use super::covariance_form::CovarianceForm;
use super::per_input::Channels;
use super::sample_form::{Samples, segment_rows};
use super::samples_to_covariance::{StatsForm, keeps_samples};
use crate::error::during;
use crate::linalg;
use crate::{Error, Result, Scalar};

/// The allowed positive weights. The squares of others could underflow or overflow.
pub(super) const WEIGHTS: core::ops::RangeInclusive<f64> = 1e-100..=1e100;

impl<T: Scalar> ActivationStats<T> {
    /// Adds a batch of shape samples × inputs, every sample with weight 1.
    ///
    /// # Errors
    ///
    /// A batch without rows, with another number of columns than inputs, with a NaN or an infinity,
    /// or with entries so large that their squares overflow; too little memory, or a memory limit
    /// that is too low. The statistics are then unchanged.
    ///
    /// # Cost
    ///
    /// `O(p·n)` for `p` samples of `n` inputs in sample form, `O(p·n²)` in covariance form.
    pub fn update(&mut self, batch: MatRef<'_, T>) -> Result<()> {
        during("ActivationStats::update", || self.add_batch(Batch { rows: batch, weights: None }))
    }

    /// Adds a batch with one weight per row.
    ///
    /// Mean and covariance see a weight of 2 as the same sample twice.
    /// [`effective_samples`](Self::effective_samples) does not: it decreases if weights differ. A
    /// weight of 0, for example for padding, leaves the sample out, also of
    /// [`samples`](Self::samples).
    ///
    /// # Errors
    ///
    /// Those of [`update`](Self::update); a number of weights that is not the number of rows; a
    /// weight that is neither zero nor between 1e-100 and 1e100.
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
        let batch = Batch { rows: batch, weights: Some(weights) };
        during("ActivationStats::update_weighted", || self.add_batch(batch))
    }

    /// Adds the statistics of other samples, as if this object had been updated with them.
    ///
    /// The operation is associative and commutative up to rounding. Both objects may be empty, and
    /// may be in different forms.
    ///
    /// # Errors
    ///
    /// Statistics with another number of inputs; counts or entries that overflow; too little
    /// memory, or a memory limit that is too low. This object is then unchanged.
    ///
    /// # Cost
    ///
    /// `O(p·n)` to add `p` samples to the sample form and `O(p·n²)` to the covariance form; `O(n²)`
    /// between two objects in covariance form.
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

    fn add_batch(&mut self, batch: Batch<'_, T>) -> Result<()> {
        self.validate(batch)?;
        let Some(first) = batch.counted_rows().next() else { return Ok(()) };
        let samples = batch.counted_rows().count();
        let (sum, squares) = (batch.sum_weights(|weight| weight), batch.sum_weights(|weight| weight * weight));
        let totals @ (_, total_weight, _) = self.totals(samples as u64, sum, squares)?;
        self.require_representable(linalg::max_abs(batch.rows), total_weight)?;
        let keep_samples = keeps_samples(self, (samples, true))?;

        let mut channels = self.channels.clone();
        if self.samples == 0 {
            channels = Channels::starting_at(batch.rows.row(first).iter().map(|x| x.to_f64()).collect());
        }
        let mut weight = self.weight;
        for start in (0..batch.len()).step_by(segment_rows(self.features)) {
            let piece = batch.part(start, segment_rows(self.features));
            weight = channels.observe(piece, weight, linalg::threads(self.threads));
        }
        self.extend(keep_samples, &[batch], None, &channels)?;
        self.channels = channels;
        (self.samples, self.weight, self.weight_squares) = totals;
        Ok(())
    }

    fn add_statistics(&mut self, other: &Self) -> Result<()> {
        if other.features != self.features {
            return Err(Error::shape("inputs in the statistics to merge", self.features, other.features));
        }
        if other.samples == 0 {
            return Ok(());
        }
        let totals @ (_, total_weight, _) = self.totals(other.samples, other.weight, other.weight_squares)?;
        self.require_representable(other.channels.max_abs(), total_weight)?;
        let (samples, form) = match &other.form {
            StatsForm::Samples(samples) => (samples, None),
            StatsForm::Covariance(form) => (&form.waiting, Some((form, other.channels.origin.as_slice()))),
        };
        let keep_samples = keeps_samples(self, (samples.len(), form.is_none()))?;

        let mut channels = self.channels.clone();
        if self.samples == 0 {
            channels = Channels::starting_at(other.channels.origin.clone());
        }
        channels.merge(&other.channels, other.weight / total_weight);
        let batches: Vec<Batch<'_, T>> = samples.batches().collect();
        self.extend(keep_samples, &batches, form, &channels)?;
        self.channels = channels;
        (self.samples, self.weight, self.weight_squares) = totals;
        Ok(())
    }

    /// Adds samples, and the scatter of another form with its origin, to the form. `channels` must
    /// already contain them.
    fn extend(
        &mut self,
        keep_samples: bool,
        batches: &[Batch<'_, T>],
        other: Option<(&CovarianceForm<T>, &[f64])>,
        channels: &Channels,
    ) -> Result<()> {
        let par = linalg::threads(self.threads);
        let mut new = None;
        let (form, samples) = match &mut self.form {
            StatsForm::Samples(samples) if keep_samples => {
                samples.reserve(batches.iter().map(|batch| batch.counted_rows().count()).sum())?;
                batches.iter().for_each(|batch| samples.append(*batch));
                return Ok(());
            }
            StatsForm::Samples(samples) => {
                (new.insert(CovarianceForm::new(self.features, self.columns)?), Some(&*samples))
            }
            StatsForm::Covariance(form) => (form, None),
        };
        let count = samples.map_or(0, Samples::len) + batches.iter().map(Batch::len).sum::<usize>();
        let mut accumulator = form.prepare(count)?;
        for batch in samples.into_iter().flat_map(Samples::batches) {
            form.add(batch, channels, &mut accumulator, par);
        }
        if let Some((other, origin)) = other {
            form.add_scatter(other, (&channels.origin, origin), par);
        }
        for batch in batches {
            form.add(*batch, channels, &mut accumulator, par);
        }
        if let Some(new) = new {
            self.form = StatsForm::Covariance(new);
        }
        Ok(())
    }

    /// Forgets the covariances among the inputs after the first `columns`, now and in the future.
    pub(super) fn keep_columns(&mut self, columns: usize) {
        self.columns = self.columns.min(columns);
        if let StatsForm::Covariance(form) = &mut self.form {
            form.scatter.truncate(self.columns);
        }
    }

    fn validate(&self, batch: Batch<'_, T>) -> Result<()> {
        if self.features == 0 {
            return Err(Error::empty("the layer's inputs"));
        }
        if batch.rows.ncols() != self.features {
            return Err(Error::shape("columns in the batch (one per input)", self.features, batch.rows.ncols()));
        }
        if batch.len() == 0 {
            return Err(Error::empty("the batch"));
        }
        if let Some(weights) = batch.weights {
            if weights.len() != batch.len() {
                return Err(Error::shape("weights (one per row of the batch)", batch.len(), weights.len()));
            }
            if let Some((row, weight)) = weights.iter().enumerate().find(|&(_, w)| *w != 0.0 && !WEIGHTS.contains(w)) {
                let expected = format!("{row} to be 0 or between 1e-100 and 1e100");
                return Err(Error::out_of_range("the weight of sample", expected, *weight));
            }
        }
        linalg::require_finite("the batch", batch.rows)
    }

    /// Returns the number of samples, the total weight and the sum of squared weights after these
    /// are added.
    fn totals(&self, samples: u64, weight: f64, squares: f64) -> Result<(u64, f64, f64)> {
        let samples = self.samples.checked_add(samples).ok_or(Error::overflow("the number of samples"))?;
        // The sums are finite: `u64::MAX` weights of 1e100 have a finite sum.
        Ok((samples, self.weight + weight, self.weight_squares + squares))
    }

    /// Returns an error unless `w · n · (2 max|x|)²`, a bound on the trace of the scatter, is
    /// finite.
    pub(super) fn require_representable(&self, max_abs: f64, weight: f64) -> Result<()> {
        let span = 2.0 * max_abs.max(self.channels.max_abs());
        if (span * span * weight.max(1.0) * self.features as f64).is_finite() {
            return Ok(());
        }
        Err(Error::overflow("the square of the activations"))
    }
}
