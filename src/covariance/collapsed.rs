//! The collapsed form: a scatter, and the samples that are gathered for its next update.

use faer::{Mat, MatRef};

use super::accumulator::{Accumulator, Piece};
use super::channels::{Channels, weighted_mean};
use super::samples::{Centre, Samples, segment_rows};
use super::scatter::Scatter;
use crate::linalg::{self, Par};
use crate::{Result, Scalar};

/// The centred scatter of some samples and, as they are, a few more: small batches wait until they are worth a matrix product.
#[derive(Clone)]
pub(super) struct Collapsed<T> {
    pub(super) scatter: Scatter,
    /// Total weight of the samples in the scatter.
    pub(super) weight: f64,
    /// Their mean, less the statistics' origin.
    pub(super) offset: Vec<f64>,
    /// The samples that are not in the scatter yet.
    pub(super) gathered: Samples<T>,
}

/// Samples that wait at the most: they take a quarter of the scatter's memory, and make no more than a piece.
pub(super) fn gathering<T>(features: usize) -> usize {
    (features / size_of::<T>()).clamp(1, segment_rows(features))
}

impl<T: Scalar> Collapsed<T> {
    /// Bytes that this form takes; `None` beyond the address space.
    pub(super) fn bytes(features: usize) -> Option<usize> {
        Scatter::bytes(features)?.checked_add(Samples::<T>::bytes(features, gathering::<T>(features))?)
    }

    fn new(features: usize) -> Result<Self> {
        let scatter = Scatter::zeros(features)?;
        Ok(Self { scatter, weight: 0.0, offset: vec![0.0; features], gathered: Samples::new(features) })
    }

    /// The collapsed form of samples that were kept, and the room that adding `more` takes.
    pub(super) fn of(
        samples: &Samples<T>,
        more: usize,
        channels: &Channels,
        par: Par,
    ) -> Result<(Self, Accumulator<T>)> {
        let mut collapsed = Self::new(channels.origin.len())?;
        let mut accumulator = collapsed.prepare(samples.len() + more)?;
        for (rows, weights) in samples.segments() {
            collapsed.add(rows, Some(weights), channels, &mut accumulator, par)?;
        }
        Ok((collapsed, accumulator))
    }

    /// Makes sure that adding this many samples cannot fail, and hands out the room that it takes.
    pub(super) fn prepare(&mut self, count: usize) -> Result<Accumulator<T>> {
        let features = self.scatter.features();
        let full = gathering::<T>(features);
        self.gathered.reserve(full - self.gathered.len())?;
        let multiplies = self.gathered.len().saturating_add(count) >= full;
        Accumulator::new(features, if multiplies { count.clamp(full, segment_rows(features)) } else { 0 })
    }

    /// Adds samples, one per row. `channels` have seen them; their origin is that of this form.
    pub(super) fn add(
        &mut self,
        rows: MatRef<'_, T>,
        weights: Option<&[f64]>,
        channels: &Channels,
        accumulator: &mut Accumulator<T>,
        par: Par,
    ) -> Result<()> {
        let (full, most) = (gathering::<T>(rows.ncols()), segment_rows(rows.ncols()));
        let mut start = 0;
        while start < rows.nrows() {
            let left = rows.nrows() - start;
            let part = |count| (rows.subrows(start, count), weights.map(|weights| &weights[start..start + count]));
            if self.gathered.len() == 0 && left >= full {
                let (rows, weights) = part(left.min(most));
                self.multiply(rows, weights, channels, accumulator, par);
                start += rows.nrows();
                continue;
            }
            let (rows, weights) = part(left.min(full - self.gathered.len()));
            let weight = |row: usize| weights.map_or(1.0, |weights| weights[row]);
            let weighted = rows.row_iter().enumerate().map(|(index, row)| (row, weight(index)));
            self.gathered.append(weighted)?;
            start += rows.nrows();
            if self.gathered.len() == full {
                let mut gathered = std::mem::replace(&mut self.gathered, Samples::new(rows.ncols()));
                for (rows, weights) in gathered.segments() {
                    self.multiply(rows, Some(weights), channels, accumulator, par);
                }
                gathered.clear();
                self.gathered = gathered;
            }
        }
        Ok(())
    }

    /// Adds a piece of samples to the scatter: about their own mean, and the distance of this one from that of the scatter as one more
    /// sample (Chan, Golub and LeVeque's pooling term `(w_a w_b / w) δδᵀ`).
    fn multiply(
        &mut self,
        rows: MatRef<'_, T>,
        weights: Option<&[f64]>,
        channels: &Channels,
        accumulator: &mut Accumulator<T>,
        par: Par,
    ) {
        let added = weights.map_or(rows.nrows() as f64, |weights| weights.iter().sum());
        if added == 0.0 {
            return;
        }
        let mean = weighted_mean(rows, weights, added, &channels.origin, par);
        let displacement: Vec<f64> = mean.iter().zip(&self.offset).map(|(mean, offset)| mean - offset).collect();
        let total = self.weight + added;
        let centre = Centre { origin: &channels.origin, offset: &mean };
        let piece = Piece { rows, weights, centre, extra: (&displacement, self.weight / total * added) };
        accumulator.add(&mut self.scatter, piece, channels, par);
        self.shift(&displacement, added);
    }

    /// Adds another scatter, without the samples that wait beside it. `between` leads from this form's origin to the other's.
    pub(super) fn add_scatter(&mut self, other: &Self, between: &[f64], par: Par) {
        if other.weight == 0.0 {
            return;
        }
        let means = other.offset.iter().zip(&self.offset).zip(between);
        let displacement: Vec<f64> = means.map(|((theirs, own), between)| between + (theirs - own)).collect();
        let factor = (self.weight / (self.weight + other.weight) * other.weight).sqrt();
        let pooling = Mat::from_fn(displacement.len(), 1, |row, _| displacement[row] * factor);
        self.scatter.add(&other.scatter);
        self.scatter.add_samples(pooling.as_ref(), par);
        self.shift(&displacement, other.weight);
    }

    fn shift(&mut self, displacement: &[f64], added: f64) {
        self.weight += added;
        let share = added / self.weight;
        self.offset.iter_mut().zip(displacement).for_each(|(offset, d)| *offset += d * share);
    }

    /// Columns of which the outer products, added to the scatter, make it that of all samples about `centre`; `None` where there is nothing
    /// to add, because the scatter's own mean is the centre.
    pub(super) fn completion(&self, origin: &[f64], centre: &Centre<'_>, at_mean: bool) -> Result<Option<Mat<f64>>> {
        if at_mean && self.gathered.len() == 0 {
            return Ok(None);
        }
        let mut columns = linalg::zeros(origin.len(), self.gathered.len() + 1)?;
        let root = self.weight.sqrt();
        let means = origin.iter().zip(&self.offset).zip(centre.origin.iter().zip(centre.offset));
        for (to, ((from, own), (origin, offset))) in columns.as_mut().col_mut(0).iter_mut().zip(means) {
            *to = ((from - origin) + (own - offset)) * root;
        }
        self.gathered.fill_centred(columns.as_mut().subcols_mut(1, self.gathered.len()), centre, 1.0, Par::Seq);
        Ok(Some(columns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_the_scatter_and_of_what_waits() {
        // Three samples of twelve numbers and a weight; one.
        assert_eq!(Collapsed::<f32>::bytes(12), Some(12 * 12 * 8 + 3 * (12 * 4 + 8)));
        assert_eq!(Collapsed::<f64>::bytes(2), Some(2 * 2 * 8 + 2 * 8 + 8));
        assert_eq!(Collapsed::<f64>::bytes(usize::MAX), None);
    }
}
