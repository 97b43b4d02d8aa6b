//! Statistics as plain numbers and arrays, for files.

use super::activation_stats::ActivationStats;
use super::covariance_form::CovarianceForm;
use super::per_input::Channels;
use super::sample_form::Samples;
use super::samples_to_covariance::StatsForm;
use super::scatter::Scatter;
use crate::linalg;
use crate::{Result, Scalar};

/// The scalar properties of statistics, and the lengths of their arrays.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Head {
    pub(crate) features: usize,
    /// Number of inputs whose covariances with all inputs are kept, from the first on.
    pub(crate) columns: usize,
    pub(crate) samples: u64,
    pub(crate) weight: f64,
    pub(crate) weight_squares: f64,
    /// `None` in sample form.
    pub(crate) scatter: Option<ScatterHead>,
    pub(crate) memory_limit: Option<usize>,
    pub(crate) threads: usize,
}

/// The scalar properties of the covariance form.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ScatterHead {
    /// Total weight of the samples in the scatter.
    pub(crate) weight: f64,
    /// `ε` of the least precise products in the scatter.
    pub(crate) precision: f64,
    /// Number of samples in the buffer, which are not yet added to the scatter.
    pub(crate) gathered: usize,
}

/// A piece of an array: in `f64`, or in the precision of the samples.
pub(crate) enum Piece<'a, T> {
    Double(&'a [f64]),
    Native(&'a [T]),
}

/// A piece of an array for the caller to fill.
pub(crate) enum PieceMut<'a, T> {
    Double(&'a mut [f64]),
    Native(&'a mut [T]),
}

impl Head {
    /// Returns the number of entries in each array over the inputs: 0 before the first sample.
    pub(crate) fn channels(&self) -> usize {
        if self.samples == 0 { 0 } else { self.features }
    }

    /// Returns the number of stored samples; `None` if it exceeds the address space.
    pub(crate) fn samples_kept(&self) -> Option<usize> {
        match &self.scatter {
            Some(scatter) => Some(scatter.gathered),
            None => usize::try_from(self.samples).ok(),
        }
    }

    /// Returns the number of entries in the block columns of the scatter; `None` if it exceeds the
    /// address space.
    pub(crate) fn scatter_entries(&self) -> Option<usize> {
        if self.scatter.is_some() {
            Some(Scatter::bytes(self.features, self.columns)? / size_of::<f64>())
        } else {
            Some(0)
        }
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
    /// Returns the names of the arrays over the inputs, in the order of
    /// [`for_each_array`](Self::for_each_array).
    pub(crate) fn channel_names() -> [&'static str; 6] {
        Channels::default().arrays().map(|(name, _)| name)
    }

    pub(crate) fn head(&self) -> Head {
        Head {
            features: self.features,
            columns: self.columns,
            samples: self.samples,
            weight: self.weight,
            weight_squares: self.weight_squares,
            scatter: match &self.form {
                StatsForm::Samples(_) => None,
                StatsForm::Covariance(CovarianceForm { scatter, weight, waiting, .. }) => {
                    Some(ScatterHead { weight: *weight, precision: scatter.precision, gathered: waiting.len() })
                }
            },
            memory_limit: self.memory_limit,
            threads: self.threads,
        }
    }

    /// Returns the mean of every input, with the same bits as [`mean`](Self::mean); empty without
    /// samples.
    pub(crate) fn means(&self) -> impl Iterator<Item = f64> + '_ {
        self.channels.mean()
    }

    /// Visits all arrays piece by piece: those over the inputs; the weights of the kept samples; in
    /// covariance form the offset and the block columns of the scatter, column by column; the kept
    /// samples, one after the other.
    pub(crate) fn for_each_array<E>(
        &self,
        mut visit: impl FnMut(Piece<'_, T>) -> core::result::Result<(), E>,
    ) -> core::result::Result<(), E> {
        for (_, array) in self.channels.arrays() {
            visit(Piece::Double(array))?;
        }
        let kept = match &self.form {
            StatsForm::Samples(samples) => samples,
            StatsForm::Covariance(form) => &form.waiting,
        };
        visit(Piece::Double(&kept.weights))?;
        if let StatsForm::Covariance(form) = &self.form {
            visit(Piece::Double(&form.offset))?;
            for block in &form.scatter.blocks {
                (0..block.ncols()).try_for_each(|column| visit(Piece::Double(block.col_as_slice(column))))?;
            }
        }
        kept.segments.iter().try_for_each(|segment| visit(Piece::Native(segment)))
    }

    /// Returns statistics of this head with the arrays that `fill` writes, piece by piece in the
    /// order of [`for_each_array`](Self::for_each_array). They must be
    /// [validated](Self::validate_parts) before use.
    pub(crate) fn from_parts(head: &Head, mut fill: impl FnMut(PieceMut<'_, T>) -> Result<()>) -> Result<Self> {
        let mut channels = Channels::starting_at(zeros(head.channels())?);
        let Channels { origin, offset, minimum, maximum, absolute, active } = &mut channels;
        for array in [origin, offset, minimum, maximum, absolute, active] {
            fill(PieceMut::Double(array))?;
        }
        let count = head.samples_kept().ok_or_else(|| linalg::out_of_memory(usize::MAX))?;
        let mut samples = Samples::zeros(head.features, count)?;
        fill(PieceMut::Double(&mut samples.weights))?;
        let mut form = None;
        if let Some(ScatterHead { weight, precision, .. }) = head.scatter {
            let form = form.insert(CovarianceForm::new(head.features, head.columns)?);
            (form.weight, form.scatter.precision) = (weight, precision);
            fill(PieceMut::Double(&mut form.offset))?;
            for block in &mut form.scatter.blocks {
                (0..block.ncols()).try_for_each(|column| fill(PieceMut::Double(block.col_as_slice_mut(column))))?;
            }
        }
        samples.segments.iter_mut().try_for_each(|segment| fill(PieceMut::Native(segment)))?;
        Ok(Self {
            features: head.features,
            columns: head.columns,
            most_samples: usize::MAX,
            samples: head.samples,
            weight: head.weight,
            weight_squares: head.weight_squares,
            channels,
            form: match form {
                None => StatsForm::Samples(samples),
                Some(form) => StatsForm::Covariance(CovarianceForm { waiting: samples, ..form }),
            },
            memory_limit: head.memory_limit,
            threads: head.threads,
        })
    }
}

/// Returns this many zeros, or an error if the memory is not available.
pub(crate) fn zeros<N: Clone + Default>(count: usize) -> Result<Vec<N>> {
    let mut zeros = Vec::new();
    let memory = |_| linalg::out_of_memory(count.saturating_mul(size_of::<N>()));
    zeros.try_reserve_exact(count).map_err(memory)?;
    zeros.resize(count, N::default());
    Ok(zeros)
}
