//! How statistics grow: batch by batch, or by those of other samples. All that can fail comes before anything changes.

use faer::{Mat, MatRef};

use super::accumulator::Accumulator;
use super::channels::Channels;
use super::samples::{Centre, Samples, segment_rows};
use super::scatter::Scatter;
use super::{ActivationStats, Form};
use crate::kernel;
use crate::{Error, Result, Scalar};

/// How much more memory than the scatter the samples may take. Solving from them is the faster way well past the point where
/// both take the same (VGG19's fc7, 5994 samples of 4096 inputs, is a case); and with 2, fewer `f64` samples than inputs are always kept.
const SAMPLES_WORTH: usize = 2;

/// Weights outside of this range (and not zero) would lose their squares to underflow or overflow.
const WEIGHTS: core::ops::RangeInclusive<f64> = 1e-100..=1e100;

/// Sample count and weight sums after some more samples, once they are known to be representable.
struct Totals {
    samples: u64,
    weight: f64,
    weight_squares: f64,
}

impl<T: Scalar> ActivationStats<T> {
    /// Adds a batch, one sample per row; without weights, each counts 1.
    pub(super) fn add_batch(
        &mut self,
        operation: &'static str,
        batch: MatRef<'_, T>,
        weights: Option<&[f64]>,
    ) -> Result<()> {
        self.validate(operation, batch, weights)?;
        let Some(first) = (0..batch.nrows()).find(|&row| weights.is_none_or(|weights| weights[row] > 0.0)) else {
            return Ok(());
        };
        let kept = weights.map_or(batch.nrows(), |weights| weights.iter().filter(|&&w| w > 0.0).count());
        let sum = weights.map_or(kept as f64, |weights| weights.iter().sum());
        let squares = weights.map_or(kept as f64, |weights| weights.iter().map(|w| w * w).sum());
        let totals = self.totals(operation, kept as u64, sum, squares)?;
        self.require_representable(operation, kernel::max_abs(batch), totals.weight)?;
        let collapse = self.room_for(operation, kept, true)?;

        // All that can fail comes before anything that is kept changes.
        let piece = segment_rows(self.features);
        let mut channels = self.channels.clone();
        if self.samples == 0 {
            channels = Channels::starting_at(batch.row(first).iter().map(|x| x.to_f64()).collect());
        }
        channels.observe(batch, weights);
        let mut collapsed = None;
        let mut accumulator = None;
        if collapse || matches!(self.form, Form::Scatter(_)) {
            accumulator = Some(Accumulator::new(operation, self.features, batch.nrows())?);
        }
        match &mut self.form {
            Form::Samples(samples) if collapse => {
                let mut scatter = Scatter::zeros(operation, self.features)?;
                Accumulator::add_all(operation, &mut scatter, samples, &self.channels.centre(), self.threads)?;
                collapsed = Some(scatter);
            }
            Form::Samples(samples) => {
                let weight = |row: usize| weights.map_or(1.0, |weights| weights[row]);
                samples.append(operation, batch.row_iter().enumerate().map(|(i, row)| (row, weight(i))))?;
            }
            Form::Scatter(_) => {}
        }
        if let Some(scatter) = collapsed {
            self.form = Form::Scatter(scatter);
        }

        let mut weight = self.weight;
        for start in (0..batch.nrows()).step_by(piece) {
            let count = piece.min(batch.nrows() - start);
            let rows = batch.subrows(start, count);
            let weights = weights.map(|weights| &weights[start..start + count]);
            let added = weights.map_or(count as f64, |weights| weights.iter().sum());
            if added == 0.0 {
                continue;
            }
            let mean = weighted_mean(rows, weights, added, &channels.origin);
            let centre = Centre { origin: &channels.origin, offset: &mean };
            let displacement = channels.displacement(&centre);
            let total = weight + added;
            if let (Form::Scatter(scatter), Some(accumulator)) = (&mut self.form, &mut accumulator) {
                // The pooling term (w_a w_b / w) δδᵀ, as one more sample.
                let pooling = Some((displacement.as_slice(), (weight / total * added).sqrt()));
                accumulator.add(scatter, rows, weights, &centre, pooling, self.threads);
            }
            channels.shift(&displacement, added / total);
            weight = total;
        }
        self.channels = channels;
        self.set(totals);
        Ok(())
    }

    /// Adds other statistics.
    pub(super) fn add_statistics(&mut self, operation: &'static str, other: &Self) -> Result<()> {
        if other.features != self.features {
            let what = "inputs in the statistics to merge";
            return Err(Error::Shape { operation, what, expected: self.features, found: other.features });
        }
        if other.samples == 0 {
            return Ok(());
        }
        let totals = self.totals(operation, other.samples, other.weight, other.weight_squares)?;
        self.require_representable(operation, other.channels.max_abs(), totals.weight)?;
        let other_kept = match &other.form {
            Form::Samples(samples) => Some(samples.len()),
            Form::Scatter(_) => None,
        };
        let collapse = self.room_for(operation, other_kept.unwrap_or(0), other_kept.is_some())?;

        let mut channels = self.channels.clone();
        if self.samples == 0 {
            channels = Channels::starting_at(other.channels.origin.clone());
        }
        channels.absorb(&other.channels);
        let displacement = channels.displacement(&other.channels.centre());
        if collapse || matches!(self.form, Form::Scatter(_)) {
            let mut pooling: Mat<f64> = kernel::zeros(operation, self.features, 1)?;
            let factor = (self.weight / totals.weight * other.weight).sqrt();
            for (to, d) in pooling.as_mut().col_mut(0).iter_mut().zip(&displacement) {
                *to = d * factor;
            }
            let mut fresh = None;
            let target = match &mut self.form {
                Form::Scatter(scatter) => scatter,
                Form::Samples(samples) => {
                    let scatter = fresh.insert(Scatter::zeros(operation, self.features)?);
                    Accumulator::add_all(operation, scatter, samples, &self.channels.centre(), self.threads)?;
                    scatter
                }
            };
            match &other.form {
                Form::Samples(samples) => {
                    Accumulator::add_all(operation, target, samples, &other.channels.centre(), self.threads)?;
                }
                Form::Scatter(scatter) => target.add(scatter),
            }
            target.add_samples(pooling.as_ref(), self.threads);
            if let Some(scatter) = fresh {
                self.form = Form::Scatter(scatter);
            }
        } else if let (Form::Samples(samples), Form::Samples(others)) = (&mut self.form, &other.form) {
            let rows = others.segments().flat_map(|(rows, weights)| rows.row_iter().zip(weights.iter().copied()));
            samples.append(operation, rows)?;
        }
        channels.shift(&displacement, other.weight / totals.weight);
        self.channels = channels;
        self.set(totals);
        Ok(())
    }

    fn validate(&self, operation: &'static str, batch: MatRef<'_, T>, weights: Option<&[f64]>) -> Result<()> {
        if self.features == 0 {
            return Err(Error::Empty { operation, what: "the layer's inputs" });
        }
        if batch.ncols() != self.features {
            let what = "columns in the batch (one per input)";
            return Err(Error::Shape { operation, what, expected: self.features, found: batch.ncols() });
        }
        if batch.nrows() == 0 {
            return Err(Error::Empty { operation, what: "the batch's rows" });
        }
        if let Some(weights) = weights {
            if weights.len() != batch.nrows() {
                let what = "weights (one per row of the batch)";
                return Err(Error::Shape { operation, what, expected: batch.nrows(), found: weights.len() });
            }
            if let Some((row, weight)) = weights.iter().enumerate().find(|&(_, w)| *w != 0.0 && !WEIGHTS.contains(w)) {
                let expected = format!("{row} to be 0 or between 1e-100 and 1e100");
                return Err(Error::OutOfRange { operation, parameter: "sample weight", expected, found: *weight });
            }
        }
        kernel::require_finite(operation, "the batch", batch)
    }

    fn totals(&self, operation: &'static str, samples: u64, weight: f64, squares: f64) -> Result<Totals> {
        let samples =
            self.samples.checked_add(samples).ok_or(Error::Overflow { operation, what: "the number of samples" })?;
        let (weight, weight_squares) = (self.weight + weight, self.weight_squares + squares);
        if !(weight.is_finite() && weight_squares.is_finite()) {
            return Err(Error::Overflow { operation, what: "the total weight" });
        }
        Ok(Totals { samples, weight, weight_squares })
    }

    fn set(&mut self, totals: Totals) {
        self.samples = totals.samples;
        self.weight = totals.weight;
        self.weight_squares = totals.weight_squares;
    }

    /// The trace of the scatter is at most `w · n · (2 max|x|)²`: it must be a finite number.
    fn require_representable(&self, operation: &'static str, max_abs: f64, weight: f64) -> Result<()> {
        let span = 2.0 * max_abs.max(self.channels.max_abs());
        if (span * span * weight.max(1.0) * self.features as f64).is_finite() {
            return Ok(());
        }
        Err(Error::Overflow { operation, what: "the square of the activations" })
    }

    /// Whether the samples give way to a scatter when `count` more come, and whether there is room for what is kept then.
    ///
    /// Under a limit they give way while there is room for both, lest there be no way on later.
    fn room_for(&self, operation: &'static str, count: usize, as_samples: bool) -> Result<bool> {
        let limit = self.memory_limit.unwrap_or(isize::MAX as usize);
        let scatter = Scatter::bytes(self.features).unwrap_or(usize::MAX);
        let bytes = |count| Samples::<T>::bytes(self.features, count).unwrap_or(usize::MAX);
        let Form::Samples(samples) = &self.form else {
            return self.require_room(operation, scatter, limit).map(|()| false);
        };
        let (kept, more) = (bytes(samples.len()), bytes(samples.len().saturating_add(count)));
        let collapsing = kept.saturating_add(scatter);
        if as_samples && more / SAMPLES_WORTH <= scatter && more.saturating_add(scatter) <= limit {
            return Ok(false);
        }
        if collapsing <= limit {
            return Ok(true);
        }
        let needed = if as_samples { more.min(collapsing) } else { collapsing };
        self.require_room(operation, needed, limit).map(|()| false)
    }

    fn require_room(&self, operation: &'static str, needed: usize, limit: usize) -> Result<()> {
        if needed <= limit {
            return Ok(());
        }
        let available = match self.memory_limit {
            Some(limit) => format!("the memory limit of {limit} bytes"),
            None => "this machine's address space".into(),
        };
        Err(Error::Memory { operation, needed, available })
    }
}

/// The weighted mean of `rows`, less `origin`.
fn weighted_mean<T: Scalar>(rows: MatRef<'_, T>, weights: Option<&[f64]>, total: f64, origin: &[f64]) -> Vec<f64> {
    let mut mean = vec![0.0; origin.len()];
    kernel::for_each_row(rows, |index, row| {
        let weight = weights.map_or(1.0, |weights| weights[index]);
        for ((sum, x), origin) in mean.iter_mut().zip(row).zip(origin) {
            *sum += weight * (x.to_f64() - origin);
        }
    });
    mean.iter_mut().for_each(|sum| *sum /= total);
    mean
}
