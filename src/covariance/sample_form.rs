//! The sample form: the samples themselves.

use core::ops::Range;

use faer::{Mat, MatMut, MatRef};

use super::batch::{Batch, Centre};
use crate::linalg::{self, Par};
use crate::{Result, Scalar};

/// Number of entries in a segment, small enough to convert a whole segment at a time, and bounds on
/// its number of rows. A product of fewer rows would be slow.
const SEGMENT_ENTRIES: usize = 1 << 22;
const SEGMENT_ROWS: core::ops::RangeInclusive<usize> = 512..=1 << 16;

/// Samples in segments of [`segment_rows`] rows, so that adding samples does not copy earlier
/// segments.
#[derive(Clone)]
pub(super) struct Samples<T> {
    features: usize,
    /// Row-major; segments after the last sample are empty.
    pub(super) segments: Vec<Vec<T>>,
    pub(super) weights: Vec<f64>,
}

/// Returns the number of samples in a segment, and in the pieces into which batches are cut.
pub(super) fn segment_rows(features: usize) -> usize {
    (SEGMENT_ENTRIES / features.max(1)).clamp(*SEGMENT_ROWS.start(), *SEGMENT_ROWS.end())
}

impl<T: Scalar> Samples<T> {
    pub(super) fn new(features: usize) -> Self {
        Self { features, segments: Vec::new(), weights: Vec::new() }
    }

    /// Creates this many samples of weight zero, for the caller to fill.
    #[cfg(feature = "safetensors")]
    pub(super) fn zeros(features: usize, count: usize) -> Result<Self> {
        let mut samples = Self::new(features);
        samples.reserve(count)?;
        samples.weights.resize(count, 0.0);
        for (segment, weights) in samples.segments.iter_mut().zip(samples.weights.chunks(segment_rows(features))) {
            segment.resize(weights.len() * features, T::default());
        }
        Ok(samples)
    }

    /// Returns the bytes of this many samples; `None` if they exceed the address space.
    pub(super) fn bytes(features: usize, count: usize) -> Option<usize> {
        features.checked_mul(size_of::<T>())?.checked_add(size_of::<f64>())?.checked_mul(count)
    }

    pub(super) fn features(&self) -> usize {
        self.features
    }

    pub(super) fn len(&self) -> usize {
        self.weights.len()
    }

    /// Reserves memory for this many more samples, which [`append`](Self::append) can then add
    /// without failing.
    pub(super) fn reserve(&mut self, count: usize) -> Result<()> {
        let rows = segment_rows(self.features);
        let total = self.len().saturating_add(count);
        let memory = |_| linalg::out_of_memory(Self::bytes(self.features, total).unwrap_or(usize::MAX));
        self.weights.try_reserve(count).map_err(memory)?;
        let missing = total.div_ceil(rows).saturating_sub(self.segments.len());
        self.segments.try_reserve(missing).map_err(memory)?;
        self.segments.extend(core::iter::repeat_with(Vec::new).take(missing));
        for (index, segment) in self.segments.iter_mut().enumerate() {
            let wanted = rows.min(total.saturating_sub(index * rows)).saturating_mul(self.features);
            if wanted > segment.capacity() {
                // Doubling the size keeps the number of copies small; a segment never needs more
                // than its rows.
                let doubled = (2 * segment.len()).min(rows.saturating_mul(self.features));
                segment.try_reserve_exact(wanted.max(doubled) - segment.len()).map_err(memory)?;
            }
        }
        Ok(())
    }

    /// Appends the samples of positive weight, for which memory has been [reserved](Self::reserve).
    pub(super) fn append(&mut self, batch: Batch<'_, T>) {
        let rows = segment_rows(self.features);
        linalg::for_each_row(batch.rows, |index, row| {
            let weight = batch.weight(index);
            if weight > 0.0 {
                self.segments[self.weights.len() / rows].extend_from_slice(row);
                self.weights.push(weight);
            }
        });
    }

    /// Removes the samples and keeps their memory.
    pub(super) fn clear(&mut self) {
        self.weights.clear();
        self.segments.iter_mut().for_each(Vec::clear);
    }

    /// Returns the samples, segment by segment.
    pub(super) fn batches(&self) -> impl Iterator<Item = Batch<'_, T>> {
        let weights = self.weights.chunks(segment_rows(self.features));
        self.segments.iter().zip(weights).map(|(segment, weights)| {
            let rows = MatRef::from_row_major_slice(segment, weights.len(), self.features);
            Batch { rows, weights: Some(weights) }
        })
    }

    /// Some of the inputs of every sample.
    pub(super) fn inputs(&self, range: Range<usize>) -> SampleInputs<'_, T> {
        SampleInputs { samples: self, range }
    }

    /// [`SampleInputs::fill_centred`] for all inputs.
    pub(super) fn fill_centred(&self, target: MatMut<'_, f64>, centre: &Centre<'_>, factor: f64, par: Par) {
        self.inputs(0..self.features).fill_centred(target, centre, factor, par);
    }
}

/// A range of the inputs of samples.
#[derive(Clone)]
pub(super) struct SampleInputs<'a, T> {
    samples: &'a Samples<T>,
    range: Range<usize>,
}

impl<T: Scalar> SampleInputs<'_, T> {
    pub(super) fn features(&self) -> usize {
        self.range.len()
    }

    pub(super) fn len(&self) -> usize {
        self.samples.len()
    }

    /// The samples, segment by segment.
    pub(super) fn batches(&self) -> impl Iterator<Item = Batch<'_, T>> {
        self.samples
            .batches()
            .map(|Batch { rows, weights }| Batch { rows: rows.subcols(self.range.start, self.range.len()), weights })
    }

    /// Fills a `features × samples` matrix with one sample per column, less `centre`, times the
    /// root of its weight, times `factor`.
    pub(super) fn fill_centred(&self, mut target: MatMut<'_, f64>, centre: &Centre<'_>, factor: f64, par: Par) {
        for batch in self.batches() {
            let (columns, rest) = target.split_at_col_mut(batch.len());
            batch.fill_centred(columns, centre, |weight| weight.sqrt() * factor, None, par);
            target = rest;
        }
    }

    /// Calls `visit` with the columns of [`fill_centred`](Self::fill_centred), in either precision,
    /// segment by segment.
    pub(super) fn for_each_centred<O: Scalar>(
        &self,
        centre: &Centre<'_>,
        factor: f64,
        par: Par,
        mut visit: impl FnMut(MatRef<'_, O>) -> Result<()>,
    ) -> Result<()> {
        let width = segment_rows(self.samples.features).min(self.len());
        let mut buffer: Mat<O> = linalg::zeros(self.features(), width)?;
        for batch in self.batches() {
            let mut columns = buffer.as_mut().subcols_mut(0, batch.len());
            batch.fill_centred(columns.as_mut(), centre, |weight| weight.sqrt() * factor, None, par);
            visit(columns.as_ref())?;
        }
        Ok(())
    }

    /// The columns of [`fill_centred`](Self::fill_centred) as one matrix, features × samples; `None`
    /// unless there are fewer samples than inputs.
    pub(super) fn root(&self, centre: &Centre<'_>, factor: f64, par: Par) -> Result<Option<Mat<f64>>> {
        if self.len() >= self.features() {
            return Ok(None);
        }
        let mut root = linalg::zeros(self.features(), self.len())?;
        self.fill_centred(root.as_mut(), centre, factor, par);
        Ok(Some(root))
    }

    /// The outputs `weight · X`, outputs × samples, in the precision of the samples; the columns of
    /// `X` are those of [`fill_centred`](Self::fill_centred).
    pub(super) fn outputs(&self, weight: MatRef<'_, T>, centre: &Centre<'_>, factor: f64, par: Par) -> Result<Mat<T>> {
        let mut outputs = linalg::zeros(weight.nrows(), self.len())?;
        let mut start = 0;
        self.for_each_centred(centre, factor, par, |columns: MatRef<'_, T>| {
            let end = start + columns.ncols();
            linalg::set_product(outputs.as_mut().get_mut(.., start..end), weight, columns, par);
            start = end;
            Ok(())
        })?;
        Ok(outputs)
    }

    /// Calls `visit` with the columns of [`fill_centred`](Self::fill_centred) for these inputs and
    /// for others of the same samples, segment by segment.
    pub(super) fn for_each_pair(
        &self,
        (centre, (others, other_centre)): (&Centre<'_>, &(SampleInputs<'_, T>, Centre<'_>)),
        factor: f64,
        par: Par,
        mut visit: impl FnMut(MatRef<'_, f64>, MatRef<'_, f64>) -> Result<()>,
    ) -> Result<()> {
        let width = segment_rows(self.samples.features).min(self.len());
        let mut own: Mat<f64> = linalg::zeros(self.features(), width)?;
        let mut other: Mat<f64> = linalg::zeros(others.features(), width)?;
        for (batch, other_batch) in self.batches().zip(others.batches()) {
            let mut own = own.as_mut().subcols_mut(0, batch.len());
            batch.fill_centred(own.as_mut(), centre, |weight| weight.sqrt() * factor, None, par);
            let mut other = other.as_mut().subcols_mut(0, batch.len());
            other_batch.fill_centred(other.as_mut(), other_centre, |weight| weight.sqrt() * factor, None, par);
            visit(own.as_ref(), other.as_ref())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_no_weight_are_left_out() -> Result<()> {
        let rows = Mat::from_fn(3, 1, |i, _| i as f64);
        let mut samples = Samples::new(1);
        samples.reserve(3)?;
        samples.append(Batch { rows: rows.as_ref(), weights: Some(&[0.0, 2.0, -0.0]) });
        assert_eq!((samples.weights, samples.segments), (vec![2.0], vec![vec![1.0]]));
        Ok(())
    }

    /// Two batches in several segments, in either memory layout.
    #[test]
    fn samples_of_several_segments_are_centred_and_weighted() -> Result<()> {
        let (rows, features) = (segment_rows(3), 3);
        let (first, count) = (rows + 2, 2 * rows + 5);
        let all = Mat::from_fn(count, features, |i, j| (i * features + j) as f64);
        let transposed = all.transpose().to_owned();
        let weights: Vec<f64> = (0..count).map(|index| ((1 + index % 4) as f64).powi(2)).collect();
        let mut samples = Samples::new(features);
        let batch = Batch { rows: all.as_ref(), weights: Some(&weights) }.part(0, first);
        samples.reserve(first)?;
        samples.append(batch);
        let batch = Batch { rows: transposed.transpose(), weights: Some(&weights) }.part(first, count);
        samples.reserve(batch.len())?;
        samples.append(batch);
        assert_eq!(samples.len(), count);
        let mut found = Mat::<f64>::zeros(features, count);
        let centre = Centre { origin: vec![1.0, 2.0, 3.0].into(), offset: vec![4.0, 8.0, 16.0].into() };
        samples.fill_centred(found.as_mut(), &centre, 0.5, Par::Seq);
        let expected =
            Mat::from_fn(features, count, |i, j| (all[(j, i)] - [5.0, 10.0, 19.0][i]) * (1 + j % 4) as f64 * 0.5);
        assert_eq!(found, expected);
        Ok(())
    }
}
