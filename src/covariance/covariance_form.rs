//! The covariance form: a scatter matrix, and a buffer of samples that are not yet added to it.

use core::ops::Range;

use faer::Mat;

use super::accumulator::{Accumulator, CentredBatch};
use super::batch::{Batch, Centre};
use super::per_input::Channels;
use super::sample_form::{Samples, segment_rows};
use super::scatter::Scatter;
use crate::linalg::{self, Par};
use crate::{Result, Scalar};

/// The scatter matrix of most samples about their own mean. A buffer holds the other samples until
/// they are enough for a fast product.
#[derive(Clone)]
pub(super) struct CovarianceForm<T> {
    pub(super) scatter: Scatter,
    /// Total weight of the samples in the scatter.
    pub(super) weight: f64,
    /// Mean of the samples in the scatter, minus the origin of the statistics.
    pub(super) offset: Vec<f64>,
    /// The samples that are not in the scatter yet.
    pub(super) waiting: Samples<T>,
}

/// Returns the size of the buffer, in samples: it takes a quarter of the scatter's memory, and at
/// most one piece.
pub(super) fn most_waiting<T>(features: usize) -> usize {
    (features / size_of::<T>()).clamp(1, segment_rows(features))
}

impl<T: Scalar> CovarianceForm<T> {
    /// Returns the bytes of this form; `None` if they exceed the address space.
    pub(super) fn bytes(features: usize, columns: usize) -> Option<usize> {
        Scatter::bytes(features, columns)?.checked_add(Samples::<T>::bytes(features, most_waiting::<T>(features))?)
    }

    pub(super) fn new(features: usize, columns: usize) -> Result<Self> {
        let scatter = Scatter::zeros(features, columns)?;
        Ok(Self { scatter, weight: 0.0, offset: vec![0.0; features], waiting: Samples::new(features) })
    }

    /// Reserves all memory that is needed to add this many samples.
    pub(super) fn prepare(&mut self, count: usize) -> Result<Accumulator<T>> {
        let features = self.waiting.features();
        let most = most_waiting::<T>(features);
        self.waiting.reserve(most - self.waiting.len())?;
        let multiplies = self.waiting.len() + count >= most;
        Accumulator::new(features, if multiplies { count.clamp(most, segment_rows(features)) } else { 0 })
    }

    /// Adds samples for which memory is [reserved](Self::prepare). `channels` must already contain
    /// them, and have the origin of this form.
    pub(super) fn add(&mut self, batch: Batch<'_, T>, channels: &Channels, accumulator: &mut Accumulator<T>, par: Par) {
        let features = self.waiting.features();
        let most = most_waiting::<T>(features);
        let mut start = 0;
        while start < batch.len() {
            if self.waiting.len() == 0 && batch.len() - start >= most {
                let piece = batch.part(start, segment_rows(features));
                self.multiply(piece, channels, accumulator, par);
                start += piece.len();
                continue;
            }
            let part = batch.part(start, most - self.waiting.len());
            self.waiting.append(part);
            start += part.len();
            if self.waiting.len() == most {
                let mut waiting = core::mem::replace(&mut self.waiting, Samples::new(features));
                waiting.batches().for_each(|batch| self.multiply(batch, channels, accumulator, par));
                waiting.clear();
                self.waiting = waiting;
            }
        }
    }

    /// Adds samples to the scatter, about their own mean. One more sample accounts for the distance
    /// of the two means: the pooling term `(w_a w_b / w) δδᵀ` of Chan, Golub and LeVeque.
    fn multiply(&mut self, batch: Batch<'_, T>, channels: &Channels, accumulator: &mut Accumulator<T>, par: Par) {
        let added = batch.sum_weights(|weight| weight);
        if added == 0.0 {
            return;
        }
        let mean = batch.mean(added, &channels.origin, par);
        let displacement: Vec<f64> = mean.iter().zip(&self.offset).map(|(mean, offset)| mean - offset).collect();
        let centre = Centre { origin: (&channels.origin).into(), offset: mean.into() };
        let extra = (displacement.as_slice(), self.weight / (self.weight + added) * added);
        accumulator.add(&mut self.scatter, &CentredBatch { batch, centre, extra }, channels, par);
        self.shift(&displacement, added);
    }

    /// Adds the scatter of another form, without the samples in its buffer. The origins are those
    /// of the two forms.
    pub(super) fn add_scatter(&mut self, other: &Self, (origin, other_origin): (&[f64], &[f64]), par: Par) {
        if other.weight == 0.0 {
            return;
        }
        let displacement = self.centre(origin).displacement(&other.centre(other_origin));
        let factor = (self.weight / (self.weight + other.weight) * other.weight).sqrt();
        let pooling = Mat::from_fn(displacement.len(), 1, |row, _| displacement[row] * factor);
        self.scatter.add(&other.scatter);
        self.scatter.add_samples(pooling.as_ref(), par);
        self.shift(&displacement, other.weight);
    }

    fn shift(&mut self, displacement: &[f64], added: f64) {
        self.weight += added;
        let fraction = added / self.weight;
        self.offset.iter_mut().zip(displacement).for_each(|(offset, d)| *offset += d * fraction);
    }

    fn centre<'a>(&'a self, origin: &'a [f64]) -> Centre<'a> {
        Centre { origin: origin.into(), offset: (&self.offset).into() }
    }

    /// `Σ wᵢ (xᵢ − centre)(xᵢ − centre)ᵀ` between two ranges of the inputs, rows × columns.
    pub(super) fn block(
        &self,
        origin: &[f64],
        centre: &Centre<'_>,
        (rows, columns): (Range<usize>, Range<usize>),
    ) -> Result<Mat<f64>> {
        let mut block = self.scatter.block(rows.clone(), columns.clone())?;
        let rest = self.rest(origin, centre)?;
        let (left, right) = (rest.get(rows, ..), rest.get(columns, ..));
        linalg::add_product(block.as_mut(), 1.0, left, right.transpose(), linalg::threads(0));
        Ok(block)
    }

    /// Returns columns whose outer products must be added to the scatter, to get that of all
    /// samples about `centre`. One is for the distance from the mean of the scatter; the others are
    /// the samples in the buffer.
    pub(super) fn rest(&self, origin: &[f64], centre: &Centre<'_>) -> Result<Mat<f64>> {
        let mut columns = linalg::zeros(origin.len(), self.waiting.len() + 1)?;
        let displacement = centre.displacement(&self.centre(origin));
        let root = self.weight.sqrt();
        columns.as_mut().col_mut(0).iter_mut().zip(displacement).for_each(|(to, d)| *to = d * root);
        self.waiting.fill_centred(columns.get_mut(.., 1..), centre, 1.0, Par::Seq);
        Ok(columns)
    }
}
