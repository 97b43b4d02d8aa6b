//! How statistics grow: batch by batch, or by those of other samples. All that can fail comes before anything changes.

use faer::MatRef;

use super::channels::Channels;
use super::collapsed::Collapsed;
use super::samples::{Samples, segment_rows};
use super::scatter::Scatter;
use super::{ActivationStats, Form};
use crate::linalg;
use crate::{Error, Result, Scalar};

/// How much more memory than the scatter the samples may take. Solving from them is the faster way well past the point where
/// both take the same (VGG19's fc7, 5994 samples of 4096 inputs, is a case); and with 2, fewer `f64` samples than inputs are always kept.
const SAMPLES_WORTH: usize = 2;

/// Weights outside of this range (and not zero) would lose their squares to underflow or overflow.
pub(super) const WEIGHTS: core::ops::RangeInclusive<f64> = 1e-100..=1e100;

/// Sample count and weight sums after some more samples, once it is known that they can be counted.
struct Totals {
    samples: u64,
    weight: f64,
    weight_squares: f64,
}

impl<T: Scalar> ActivationStats<T> {
    /// Adds a batch, one sample per row; without weights, each counts 1.
    pub(super) fn add_batch(&mut self, batch: MatRef<'_, T>, weights: Option<&[f64]>) -> Result<()> {
        self.validate(batch, weights)?;
        let Some(first) = (0..batch.nrows()).find(|&row| weights.is_none_or(|weights| weights[row] > 0.0)) else {
            return Ok(());
        };
        let kept = weights.map_or(batch.nrows(), |weights| weights.iter().filter(|&&w| w > 0.0).count());
        let sum = weights.map_or(kept as f64, |weights| weights.iter().sum());
        let squares = weights.map_or(kept as f64, |weights| weights.iter().map(|w| w * w).sum());
        let totals = self.totals(kept as u64, sum, squares)?;
        self.require_representable(linalg::max_abs(batch), totals.weight)?;
        let collapse = self.room_for(kept, true)?;

        let mut channels = self.channels.clone();
        if self.samples == 0 {
            channels = Channels::starting_at(batch.row(first).iter().map(|x| x.to_f64()).collect());
        }
        let mut weight = self.weight;
        for start in (0..batch.nrows()).step_by(segment_rows(self.features)) {
            let count = segment_rows(self.features).min(batch.nrows() - start);
            let weights = weights.map(|weights| &weights[start..start + count]);
            weight = channels.observe(batch.subrows(start, count), weights, weight, linalg::threads(self.threads));
        }
        match &mut self.form {
            Form::Samples(samples) if collapse => {
                let (mut collapsed, mut accumulator) =
                    Collapsed::of(samples, batch.nrows(), &channels, linalg::threads(self.threads))?;
                collapsed.add(batch, weights, &channels, &mut accumulator, linalg::threads(self.threads))?;
                self.form = Form::Scatter(collapsed);
            }
            Form::Samples(samples) => {
                let weight = |row: usize| weights.map_or(1.0, |weights| weights[row]);
                samples.append(batch.row_iter().enumerate().map(|(i, row)| (row, weight(i))))?;
            }
            Form::Scatter(collapsed) => {
                let mut accumulator = collapsed.prepare(batch.nrows())?;
                collapsed.add(batch, weights, &channels, &mut accumulator, linalg::threads(self.threads))?;
            }
        }
        self.channels = channels;
        self.set(totals);
        Ok(())
    }

    /// Adds other statistics.
    pub(super) fn add_statistics(&mut self, other: &Self) -> Result<()> {
        if other.features != self.features {
            let what = "inputs in the statistics to merge";
            return Err(Error::shape(what, self.features, other.features));
        }
        if other.samples == 0 {
            return Ok(());
        }
        let totals = self.totals(other.samples, other.weight, other.weight_squares)?;
        self.require_representable(other.channels.max_abs(), totals.weight)?;
        let other_kept = match &other.form {
            Form::Samples(samples) => Some(samples.len()),
            Form::Scatter(_) => None,
        };
        let collapse = self.room_for(other_kept.unwrap_or(0), other_kept.is_some())?;

        let mut channels = self.channels.clone();
        if self.samples == 0 {
            channels = Channels::starting_at(other.channels.origin.clone());
        }
        channels.absorb(&other.channels);
        let displacement = channels.displacement(&other.channels.centre());
        let between: Vec<f64> =
            other.channels.origin.iter().zip(&channels.origin).map(|(theirs, own)| theirs - own).collect();
        channels.shift(&displacement, other.weight / totals.weight);
        match (&mut self.form, &other.form) {
            (Form::Samples(samples), Form::Samples(others)) if !collapse => {
                let rows = others.segments().flat_map(|(rows, weights)| rows.row_iter().zip(weights.iter().copied()));
                samples.append(rows)?;
            }
            (own, others) => {
                let waiting = match others {
                    Form::Samples(samples) => samples,
                    Form::Scatter(others) => &others.gathered,
                };
                let mut fresh = None;
                let (collapsed, mut accumulator) = match own {
                    Form::Scatter(collapsed) => {
                        let accumulator = collapsed.prepare(waiting.len())?;
                        (collapsed, accumulator)
                    }
                    Form::Samples(samples) => {
                        let (collapsed, accumulator) =
                            Collapsed::of(samples, waiting.len(), &channels, linalg::threads(self.threads))?;
                        (fresh.insert(collapsed), accumulator)
                    }
                };
                if let Form::Scatter(others) = others {
                    collapsed.add_scatter(others, &between, linalg::threads(self.threads));
                }
                for (rows, weights) in waiting.segments() {
                    collapsed.add(rows, Some(weights), &channels, &mut accumulator, linalg::threads(self.threads))?;
                }
                if let Some(collapsed) = fresh {
                    self.form = Form::Scatter(collapsed);
                }
            }
        }
        self.channels = channels;
        self.set(totals);
        Ok(())
    }

    fn validate(&self, batch: MatRef<'_, T>, weights: Option<&[f64]>) -> Result<()> {
        if self.features == 0 {
            return Err(Error::empty("the layer's inputs"));
        }
        if batch.ncols() != self.features {
            let what = "columns in the batch (one per input)";
            return Err(Error::shape(what, self.features, batch.ncols()));
        }
        if batch.nrows() == 0 {
            return Err(Error::empty("the batch's rows"));
        }
        if let Some(weights) = weights {
            if weights.len() != batch.nrows() {
                let what = "weights (one per row of the batch)";
                return Err(Error::shape(what, batch.nrows(), weights.len()));
            }
            if let Some((row, weight)) = weights.iter().enumerate().find(|&(_, w)| *w != 0.0 && !WEIGHTS.contains(w)) {
                let expected = format!("{row} to be 0 or between 1e-100 and 1e100");
                return Err(Error::out_of_range("sample weight", expected, *weight));
            }
        }
        linalg::require_finite("the batch", batch)
    }

    fn totals(&self, samples: u64, weight: f64, squares: f64) -> Result<Totals> {
        let samples = self.samples.checked_add(samples).ok_or(Error::overflow("the number of samples"))?;
        // As many weights as can be counted, each of 1e100 at the most, have finite sums.
        Ok(Totals { samples, weight: self.weight + weight, weight_squares: self.weight_squares + squares })
    }

    fn set(&mut self, totals: Totals) {
        self.samples = totals.samples;
        self.weight = totals.weight;
        self.weight_squares = totals.weight_squares;
    }

    /// The trace of the scatter is at most `w · n · (2 max|x|)²`: it must be a finite number.
    pub(super) fn require_representable(&self, max_abs: f64, weight: f64) -> Result<()> {
        let span = 2.0 * max_abs.max(self.channels.max_abs());
        if (span * span * weight.max(1.0) * self.features as f64).is_finite() {
            return Ok(());
        }
        Err(Error::overflow("the square of the activations"))
    }

    /// Whether the samples give way to a scatter when `count` more come, and whether there is room for what is kept then.
    ///
    /// Under a limit they give way while there is room for both, lest there be no way on later.
    fn room_for(&self, count: usize, as_samples: bool) -> Result<bool> {
        let limit = self.memory_limit.unwrap_or(isize::MAX as usize);
        let scatter = Scatter::bytes(self.features).unwrap_or(usize::MAX);
        let collapsed = Collapsed::<T>::bytes(self.features).unwrap_or(usize::MAX);
        let bytes = |count| Samples::<T>::bytes(self.features, count).unwrap_or(usize::MAX);
        let Form::Samples(samples) = &self.form else {
            return self.require_room(collapsed, limit).map(|()| false);
        };
        let (kept, more) = (bytes(samples.len()), bytes(samples.len().saturating_add(count)));
        let collapsing = kept.saturating_add(collapsed);
        if as_samples && more / SAMPLES_WORTH <= scatter && more.saturating_add(collapsed) <= limit {
            return Ok(false);
        }
        if collapsing <= limit {
            return Ok(true);
        }
        let needed = if as_samples { more.min(collapsing) } else { collapsing };
        self.require_room(needed, limit).map(|()| false)
    }

    fn require_room(&self, needed: usize, limit: usize) -> Result<()> {
        if needed <= limit {
            return Ok(());
        }
        let available = match self.memory_limit {
            Some(limit) => format!("the memory limit of {limit} bytes"),
            None => "this machine's address space".into(),
        };
        Err(Error::memory(needed, available))
    }
}
