//! The sample form: the samples themselves, kept until they take twice the memory of their scatter.

use faer::{Mat, MatMut, MatRef};

use crate::linalg::{self, Par};
use crate::{Result, Scalar};

/// Entries that a segment aims at: small enough to convert piece by piece; and the fewest rows, for fast products.
const SEGMENT_ENTRIES: usize = 1 << 22;
const SEGMENT_ROWS: core::ops::RangeInclusive<usize> = 512..=1 << 16;

/// Samples in segments of at most [`segment_rows`] rows, so that growing never copies what is there.
#[derive(Clone)]
pub(super) struct Samples<T> {
    features: usize,
    pub(super) segments: Vec<Vec<T>>,
    pub(super) weights: Vec<f64>,
}

/// Samples in a segment, and the size of the pieces in which batches are worked through.
pub(super) fn segment_rows(features: usize) -> usize {
    (SEGMENT_ENTRIES / features.max(1)).clamp(*SEGMENT_ROWS.start(), *SEGMENT_ROWS.end())
}

impl<T: Scalar> Samples<T> {
    pub(super) fn new(features: usize) -> Self {
        Self { features, segments: Vec::new(), weights: Vec::new() }
    }

    /// Bytes taken by this many samples; `None` beyond the address space.
    pub(super) fn bytes(features: usize, count: usize) -> Option<usize> {
        features.checked_mul(size_of::<T>())?.checked_add(size_of::<f64>())?.checked_mul(count)
    }

    pub(super) fn len(&self) -> usize {
        self.weights.len()
    }

    /// Reserves room for this many more samples in a segment that no more than these will fill.
    pub(super) fn reserve(&mut self, count: usize) -> Result<()> {
        let needed = Self::bytes(self.features, count).unwrap_or(usize::MAX);
        let memory = |_| linalg::out_of_memory(needed);
        self.weights.try_reserve_exact(count).map_err(memory)?;
        if self.segments.is_empty() {
            self.segments.try_reserve_exact(1).map_err(memory)?;
            self.segments.push(Vec::new());
        }
        for segment in &mut self.segments {
            segment.try_reserve_exact(self.features.saturating_mul(count)).map_err(memory)?;
        }
        Ok(())
    }

    /// Forgets the samples and keeps the room of the first segment.
    pub(super) fn clear(&mut self) {
        self.weights.clear();
        self.segments.truncate(1);
        self.segments.iter_mut().for_each(Vec::clear);
    }

    /// Appends the rows of positive weight; on failure nothing is appended.
    pub(super) fn append<'a>(&mut self, rows: impl Iterator<Item = (faer::RowRef<'a, T>, f64)>) -> Result<()> {
        let before = self.len();
        for (row, weight) in rows.filter(|&(_, weight)| weight > 0.0) {
            if let Err(error) = self.push(row, weight) {
                self.truncate(before);
                return Err(error);
            }
        }
        Ok(())
    }

    fn push(&mut self, row: faer::RowRef<'_, T>, weight: f64) -> Result<()> {
        let capacity = segment_rows(self.features) * self.features;
        let needed = Self::bytes(self.features, self.len().saturating_add(1)).unwrap_or(usize::MAX);
        let memory = |_| linalg::out_of_memory(needed);
        self.weights.try_reserve(1).map_err(memory)?;
        if self.segments.last().is_none_or(|segment| segment.len() >= capacity) {
            self.segments.try_reserve(1).map_err(memory)?;
            self.segments.push(Vec::new());
        }
        if let Some(segment) = self.segments.last_mut() {
            if segment.capacity() - segment.len() < self.features {
                // Doubling, but never past the segment's end.
                let more = segment.len().max(self.features).min(capacity - segment.len());
                segment.try_reserve_exact(more).map_err(memory)?;
            }
            match row.try_as_row_major() {
                Some(row) => segment.extend_from_slice(row.as_slice()),
                None => segment.extend(row.iter().copied()),
            }
        }
        self.weights.push(weight);
        Ok(())
    }

    fn truncate(&mut self, count: usize) {
        let rows = segment_rows(self.features);
        self.weights.truncate(count);
        self.segments.truncate(count.div_ceil(rows));
        if let Some(last) = self.segments.last_mut().filter(|_| !count.is_multiple_of(rows)) {
            last.truncate(count % rows * self.features);
        }
    }

    /// The samples, segment by segment: one sample per row, and their weights.
    pub(super) fn segments(&self) -> impl Iterator<Item = (MatRef<'_, T>, &[f64])> {
        let rows = segment_rows(self.features);
        self.segments
            .iter()
            .zip(self.weights.chunks(rows))
            .map(|(segment, weights)| (MatRef::from_row_major_slice(segment, weights.len(), self.features), weights))
    }

    /// Fills a `features × samples` matrix: one sample per column, less `centre`, times the root of its weight, times `factor`.
    pub(super) fn fill_centred<O: Scalar>(
        &self,
        mut target: MatMut<'_, O>,
        centre: &Centre<'_>,
        factor: f64,
        par: Par,
    ) {
        let mut start = 0;
        for (rows, weights) in self.segments() {
            let columns = target.as_mut().subcols_mut(start, weights.len());
            fill_centred(columns, rows, |index| weights[index].sqrt() * factor, centre, None, par);
            start += weights.len();
        }
    }

    /// Calls `visit` with every segment as a `features × count` matrix, in `f64` or in the precision of the samples: one sample per
    /// column, less `centre`, times the root of its weight, times `factor`.
    pub(super) fn for_each_centred<O: Scalar>(
        &self,
        centre: &Centre<'_>,
        factor: f64,
        par: Par,
        mut visit: impl FnMut(MatRef<'_, O>) -> Result<()>,
    ) -> Result<()> {
        let width = segment_rows(self.features).min(self.len());
        let mut buffer: Mat<O> = linalg::zeros(self.features, width)?;
        for (rows, weights) in self.segments() {
            let mut target = buffer.as_mut().subcols_mut(0, weights.len());
            fill_centred(target.as_mut(), rows, |index| weights[index].sqrt() * factor, centre, None, par);
            visit(target.as_ref())?;
        }
        Ok(())
    }
}

/// A point that samples are measured from, as `origin + offset`: taking the origin away first keeps the
/// digits of the offset when the mean is large against the spread.
#[derive(Clone, Copy)]
pub(super) struct Centre<'a> {
    pub(super) origin: &'a [f64],
    pub(super) offset: &'a [f64],
}

/// Column `i` of `target` becomes `(rowᵢ − centre) · factor(i)`, and each of its entries is divided by the input's scale, if there are such.
pub(super) fn fill_centred<T: Scalar, O: Scalar>(
    target: MatMut<'_, O>,
    rows: MatRef<'_, T>,
    factor: impl Fn(usize) -> f64 + Sync,
    centre: &Centre<'_>,
    scales: Option<&[f64]>,
    par: Par,
) {
    linalg::for_each_column(target, par, |index, column| {
        let factor = factor(index);
        let centre = centre.origin.iter().zip(centre.offset);
        let entries = column.iter_mut().zip(rows.row(index).iter()).zip(centre);
        match scales {
            None => entries.for_each(|((to, x), (origin, offset))| {
                *to = O::from_f64((x.to_f64() - origin - offset) * factor);
            }),
            Some(scales) => entries.zip(scales).for_each(|(((to, x), (origin, offset)), scale)| {
                *to = O::from_f64((x.to_f64() - origin - offset) * factor / scale);
            }),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_hold_four_million_entries_within_bounds() {
        let few = 1 << 16;
        for (features, rows) in [(0, few), (1, few), (64, few), (65, 64527), (1000, 4194), (8192, 512), (100_000, 512)]
        {
            assert_eq!(segment_rows(features), rows, "{features}");
        }
    }

    #[test]
    fn segments_grow_by_doubling_and_never_past_their_end() -> Result<()> {
        let features = 8000;
        let rows = segment_rows(features);
        assert_eq!(rows, 524);
        let row = Mat::<f32>::zeros(1, features);
        let mut samples = Samples::new(features);
        for count in 1..=rows + 1 {
            samples.append(row.row_iter().map(|row| (row, 1.0)))?;
            let room: Vec<usize> = samples.segments.iter().map(|segment| segment.capacity() / features).collect();
            let expected = if count > rows { vec![rows, 1] } else { vec![count.next_power_of_two().min(rows)] };
            assert_eq!(room, expected, "{count}");
        }
        Ok(())
    }

    #[test]
    fn what_is_reserved_is_there_already() -> Result<()> {
        let batch = Mat::<f64>::zeros(5, 3);
        let mut samples = Samples::new(3);
        samples.reserve(5)?;
        let room = |samples: &Samples<f64>| {
            (samples.weights.capacity(), samples.segments.iter().map(Vec::capacity).collect::<Vec<_>>())
        };
        let reserved = room(&samples);
        assert_eq!(reserved, (5, vec![15]));
        samples.append(batch.row_iter().map(|row| (row, 1.0)))?;
        assert_eq!(room(&samples), reserved);
        Ok(())
    }

    #[test]
    fn rows_of_no_weight_are_left_out() -> Result<()> {
        let batch = Mat::from_fn(3, 1, |i, _| i as f64);
        let mut samples = Samples::new(1);
        samples.append(batch.row_iter().zip([0.0, 2.0, -0.0]))?;
        assert_eq!((samples.weights, samples.segments), (vec![2.0], vec![vec![1.0]]));
        Ok(())
    }

    #[test]
    fn samples_of_several_segments_are_centred_and_weighted() -> Result<()> {
        let (rows, features) = (segment_rows(3), 3);
        let count = 2 * rows + 5;
        let batch = Mat::from_fn(count, features, |i, j| (i * features + j) as f64);
        let weight = |index: usize| ((1 + index % 4) as f64).powi(2);
        let mut samples = Samples::new(features);
        samples.append(batch.row_iter().enumerate().map(|(index, row)| (row, weight(index))))?;
        let mut found = Mat::<f64>::zeros(features, count);
        let centre = Centre { origin: &[1.0, 2.0, 3.0], offset: &[4.0, 8.0, 16.0] };
        samples.fill_centred(found.as_mut(), &centre, 0.5, 1);
        let expected =
            Mat::from_fn(features, count, |i, j| (batch[(j, i)] - [5.0, 10.0, 19.0][i]) * (1 + j % 4) as f64 * 0.5);
        assert_eq!(found, expected);
        Ok(())
    }

    /// What undoes an append that ran out of memory, which no test can bring about.
    #[test]
    fn truncated_samples_are_the_first_of_them() -> Result<()> {
        let features = 3;
        let rows = segment_rows(features);
        let batch = Mat::from_fn(2 * rows + 5, features, |i, j| (i * features + j) as f64);
        let weight = |index: usize| 1.0 + index as f64;
        let mut samples = Samples::new(features);
        samples.append(batch.row_iter().enumerate().map(|(index, row)| (row, weight(index))))?;
        for count in [2 * rows + 3, 2 * rows, rows + 1, rows, 2, 0] {
            samples.truncate(count);
            assert_eq!((samples.len(), samples.segments.len()), (count, count.div_ceil(rows)));
            assert_eq!(samples.segments.iter().map(Vec::len).sum::<usize>(), count * features);
            let last = count.checked_sub(1);
            assert_eq!(samples.weights.last().copied(), last.map(weight));
            let entry = samples.segments.last().and_then(|segment| segment.last()).copied();
            assert_eq!(entry, last.map(|last| batch[(last, features - 1)]));
        }
        Ok(())
    }
}
