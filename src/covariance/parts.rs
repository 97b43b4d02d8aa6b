//! What statistics are made of, as plain numbers and arrays: the one way in and out, for files.

use super::channels::Channels;
use super::covariance_form::CovarianceForm;
use super::samples::{Samples, segment_rows};
use super::scatter::Scatter;
use super::stats::{ActivationStats, Form};
use crate::linalg;
use crate::{Error, Result, Scalar};

/// All that statistics hold beside their arrays; says how many of these there are and how long each is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Head {
    pub(crate) features: usize,
    pub(crate) samples: u64,
    pub(crate) weight: f64,
    pub(crate) weight_squares: f64,
    /// What the form form adds; `None` while all samples are kept.
    pub(crate) scatter: Option<ScatterHead>,
    pub(crate) memory_limit: Option<usize>,
    pub(crate) threads: usize,
}

/// All that the form form holds beside its arrays.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ScatterHead {
    /// Total weight of the samples in the scatter.
    pub(crate) weight: f64,
    /// `ε` of the least precise products in the scatter.
    pub(crate) precision: f64,
    /// Samples that wait for the next update of the scatter.
    pub(crate) gathered: usize,
}

/// A piece of an array: in `f64`, or in the precision of the samples.
pub(crate) enum Piece<'a, T> {
    Double(&'a [f64]),
    Native(&'a [T]),
}

/// As [`Piece`], to be filled.
pub(crate) enum PieceMut<'a, T> {
    Double(&'a mut [f64]),
    Native(&'a mut [T]),
}

impl Head {
    /// Entries of each array over the inputs; these are empty until the first sample comes.
    pub(crate) fn channels(&self) -> usize {
        if self.samples == 0 { 0 } else { self.features }
    }

    /// Samples kept as they are; `None` if there are more than can be addressed.
    pub(crate) fn samples_kept(&self) -> Option<usize> {
        match &self.scatter {
            Some(scatter) => Some(scatter.gathered),
            None => usize::try_from(self.samples).ok(),
        }
    }

    /// Entries of the scatter's block columns; `None` if there are more than can be addressed.
    pub(crate) fn scatter_entries(&self) -> Option<usize> {
        if self.scatter.is_some() { Some(Scatter::bytes(self.features)? / size_of::<f64>()) } else { Some(0) }
    }
}

impl Channels {
    fn arrays(&self) -> [(&'static str, &Vec<f64>); 6] {
        [
            ("origin", &self.origin),
            ("offset", &self.offset),
            ("minimum", &self.minimum),
            ("maximum", &self.maximum),
            ("absolute", &self.absolute),
            ("active", &self.active),
        ]
    }
}

impl<T: Scalar> ActivationStats<T> {
    /// The names of the arrays over the inputs, in the order of [`for_each_array`](Self::for_each_array).
    pub(crate) fn channel_names() -> [&'static str; 6] {
        Channels::default().arrays().map(|(name, _)| name)
    }

    pub(crate) fn head(&self) -> Head {
        Head {
            features: self.features,
            samples: self.samples,
            weight: self.weight,
            weight_squares: self.weight_squares,
            scatter: match &self.form {
                Form::Samples(_) => None,
                Form::Covariance(CovarianceForm { scatter, weight, waiting, .. }) => {
                    Some(ScatterHead { weight: *weight, precision: scatter.precision, gathered: waiting.len() })
                }
            },
            memory_limit: self.memory_limit,
            threads: self.threads,
        }
    }

    /// The mean of every input, bit for bit as [`mean`](Self::mean) gives it; none without samples.
    pub(crate) fn means(&self) -> impl Iterator<Item = f64> + '_ {
        self.channels.mean()
    }

    /// Visits all arrays piece by piece: those over the inputs; the weights of the samples that are kept; in the form form the
    /// scatter's offset and its block columns, column by column; and the samples that are kept, one after the other.
    pub(crate) fn for_each_array<E>(
        &self,
        mut visit: impl FnMut(Piece<'_, T>) -> core::result::Result<(), E>,
    ) -> core::result::Result<(), E> {
        for (_, array) in self.channels.arrays() {
            visit(Piece::Double(array))?;
        }
        let kept = match &self.form {
            Form::Samples(samples) => samples,
            Form::Covariance(form) => &form.waiting,
        };
        visit(Piece::Double(&kept.weights))?;
        if let Form::Covariance(form) = &self.form {
            visit(Piece::Double(&form.offset))?;
            for block in &form.scatter.blocks {
                (0..block.ncols()).try_for_each(|column| visit(Piece::Double(block.col_as_slice(column))))?;
            }
        }
        kept.segments.iter().try_for_each(|segment| visit(Piece::Native(segment)))
    }

    /// Statistics of this head with the arrays that `fill` writes, piece by piece in the order of
    /// [`for_each_array`](Self::for_each_array); to be [validated](Self::validate_parts) before use. Allocates what the
    /// statistics need and no more.
    pub(crate) fn from_parts(head: &Head, mut fill: impl FnMut(PieceMut<'_, T>) -> Result<()>) -> Result<Self> {
        let channels = || zeros::<f64>(head.channels());
        let mut stats = Self {
            features: head.features,
            samples: head.samples,
            weight: head.weight,
            weight_squares: head.weight_squares,
            channels: Channels {
                origin: channels()?,
                offset: channels()?,
                minimum: channels()?,
                maximum: channels()?,
                absolute: channels()?,
                active: channels()?,
            },
            form: blank(head)?,
            memory_limit: head.memory_limit,
            threads: head.threads,
        };
        let Channels { origin, offset, minimum, maximum, absolute, active } = &mut stats.channels;
        for array in [origin, offset, minimum, maximum, absolute, active] {
            fill(PieceMut::Double(array))?;
        }
        let (kept, scatter) = match &mut stats.form {
            Form::Samples(samples) => (samples, None),
            Form::Covariance(CovarianceForm { scatter, offset, waiting, .. }) => (waiting, Some((offset, scatter))),
        };
        fill(PieceMut::Double(&mut kept.weights))?;
        if let Some((offset, scatter)) = scatter {
            fill(PieceMut::Double(offset))?;
            for block in &mut scatter.blocks {
                for column in 0..block.ncols() {
                    fill(PieceMut::Double(block.col_as_slice_mut(column)))?;
                }
            }
        }
        for segment in &mut kept.segments {
            fill(PieceMut::Native(segment))?;
        }
        Ok(stats)
    }
}

/// As many zeros, or an error where there is no room for them.
pub(crate) fn zeros<N: Clone + Default>(count: usize) -> Result<Vec<N>> {
    let mut zeros = Vec::new();
    let memory = |_| linalg::out_of_memory(count.saturating_mul(size_of::<N>()));
    zeros.try_reserve_exact(count).map_err(memory)?;
    zeros.resize(count, N::default());
    Ok(zeros)
}

/// Samples, and a scatter if there is one, of the right sizes, all zero.
fn blank<T: Scalar>(head: &Head) -> Result<Form<T>> {
    let features = head.features;
    let needed = usize::MAX;
    let memory = || Error::memory(needed, "this machine's address space".into());
    let count = head.samples_kept().ok_or_else(memory)?;
    Samples::<T>::bytes(features, count).ok_or_else(memory)?;
    let rows = segment_rows(features);
    let mut samples = Samples::new(features);
    samples.weights = zeros(count)?;
    samples.segments = zeros(count.div_ceil(rows))?;
    for (index, segment) in samples.segments.iter_mut().enumerate() {
        *segment = zeros(rows.min(count - index * rows) * features)?;
    }
    let Some(ScatterHead { weight, precision, .. }) = head.scatter else { return Ok(Form::Samples(samples)) };
    let mut scatter = Scatter::zeros(features)?;
    scatter.precision = precision;
    let offset = zeros(features)?;
    Ok(Form::Covariance(CovarianceForm { scatter, weight, offset, waiting: samples }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_to_be_read_have_the_segments_of_those_that_were_kept() -> Result<()> {
        let (features, rows) = (3, segment_rows(3));
        for (samples, expected) in
            [(0, vec![]), (5, vec![15]), (rows, vec![3 * rows]), (2 * rows + 1, vec![3 * rows, 3 * rows, 3])]
        {
            let (weight, scatter) = (samples as f64, None);
            let samples = samples as u64;
            let head =
                Head { features, samples, weight, weight_squares: weight, scatter, memory_limit: None, threads: 0 };
            let Form::Samples(blank) = blank::<f32>(&head)? else { panic!("no scatter was asked for") };
            assert_eq!(blank.segments.iter().map(Vec::len).collect::<Vec<_>>(), expected);
            assert_eq!(blank.len() as u64, samples);
        }
        Ok(())
    }
}
