//! The calibration data of a compressor.

use core::fmt;

use super::OutputMetric;
use super::relative_error::DataMoments;
use crate::covariance::{CrossMoment, PairedStats, SecondMoment, second_moment};
use crate::{ActivationStats, Error, Result, Scalar};

/// The data that a compressor is given: statistics of the layer's inputs, or nothing, and perhaps a
/// metric on its outputs.
///
/// Wherever a method asks for calibration data, a reference to [`ActivationStats`] or to
/// [`PairedStats`] does.
///
/// ```
/// use dalr::{Calibration, Linear, LowRankCompressor, Rank, TruncatedSvd};
///
/// # fn main() -> dalr::Result<()> {
/// let layer = Linear::new(faer::mat![[2.0, 0.0], [0.0, 1.0]], None)?;
/// let compressed = TruncatedSvd::new().compress(&layer, Calibration::none(), Rank::Fixed(1))?;
/// assert_eq!(compressed.report().relative_error, None);
/// # Ok(())
/// # }
/// ```
pub struct Calibration<'a, T> {
    inputs: CalibrationInputs<'a, T>,
    original: Option<&'a ActivationStats<T>>,
    metric: Option<&'a OutputMetric>,
}

enum CalibrationInputs<'a, T> {
    None,
    Activations(&'a ActivationStats<T>),
    Paired(&'a PairedStats<T>),
}

impl<'a, T> Calibration<'a, T> {
    /// Returns calibration without data, for methods that use the weight alone.
    pub fn none() -> Self {
        Self { inputs: CalibrationInputs::None, original: None, metric: None }
    }

    /// Sets a metric on the layer's outputs; by default all errors of the outputs count alike.
    #[must_use]
    pub fn with_output_metric(mut self, metric: &'a OutputMetric) -> Self {
        self.metric = Some(metric);
        self
    }

    /// Sets or removes the metric on the layer's outputs.
    pub(crate) fn with_metric(mut self, metric: Option<&'a OutputMetric>) -> Self {
        self.metric = metric;
        self
    }

    /// Sets other statistics of the original inputs than those of [`PairedStats`], for the
    /// predicted error: from a first pass over more data, say.
    #[must_use]
    pub fn with_original(mut self, original: &'a ActivationStats<T>) -> Self {
        self.original = Some(original);
        self
    }

    /// Returns the statistics of the layer's inputs; `None` for [`Calibration::none`].
    pub fn activations(&self) -> Option<&'a ActivationStats<T>> {
        match self.inputs {
            CalibrationInputs::Activations(stats) => Some(stats),
            _ => None,
        }
    }

    /// Statistics of the inputs in the original and in the partly compressed network.
    pub fn paired(&self) -> Option<&'a PairedStats<T>> {
        match self.inputs {
            CalibrationInputs::Paired(stats) => Some(stats),
            _ => None,
        }
    }

    /// The metric on the layer's outputs.
    pub fn output_metric(&self) -> Option<&'a OutputMetric> {
        self.metric
    }
}

impl<'a, T: Scalar> Calibration<'a, T> {
    /// The statistics that count the samples; both inputs of a pair are in one object.
    fn counted(&self) -> Option<&'a ActivationStats<T>> {
        self.activations().or(self.paired().map(PairedStats::joint))
    }

    /// Returns the number of samples seen.
    pub(crate) fn samples(&self) -> u64 {
        self.counted().map_or(0, ActivationStats::samples)
    }

    /// Kish's effective number of samples.
    pub(super) fn effective_samples(&self) -> f64 {
        self.counted().map_or(0.0, ActivationStats::effective_samples)
    }

    /// The sum of the weights; 1 without data.
    pub(super) fn total_weight(&self) -> f64 {
        self.counted().map_or(1.0, ActivationStats::total_weight)
    }

    /// Refuses data or a metric of another layer.
    pub(super) fn require_shape(&self, (outputs, inputs): (usize, usize)) -> Result<()> {
        match self.inputs {
            CalibrationInputs::None => {}
            CalibrationInputs::Activations(stats) => stats.require_features(inputs)?,
            CalibrationInputs::Paired(stats) => stats.require_features(inputs)?,
        }
        if let Some(original) = self.original {
            original.require_features(inputs)?;
        }
        self.metric.map_or(Ok(()), |metric| metric.require_size(outputs))
    }

    /// The means of the original inputs and of the inputs that the compressed layer sees.
    pub(super) fn means(&self) -> Option<(Vec<f64>, Vec<f64>)> {
        let counted = self.counted().filter(|stats| stats.samples() > 0)?;
        Some(match self.paired() {
            Some(stats) => stats.means(),
            None => (counted.mean_or_zero(), counted.mean_or_zero()),
        })
    }

    /// The second moment of the inputs that the compressed layer sees; `None` without samples.
    pub(super) fn moment(&self, centred: bool) -> Result<Option<Box<dyn SecondMoment<T> + 'a>>> {
        let Some(counted) = self.counted().filter(|stats| stats.samples() > 0) else { return Ok(None) };
        counted.require_squares(centred)?;
        match self.paired() {
            Some(stats) => stats.compressed_moment(centred).map(Some),
            None => second_moment(counted, centred).map(Some),
        }
    }

    /// Whether there is a second moment of the original inputs.
    pub(super) fn has_original(&self) -> bool {
        let other = self.original.is_some_and(|stats| stats.samples() > 0);
        other || self.paired().is_none_or(PairedStats::keeps_original)
    }

    /// The second moment of the original inputs.
    pub(super) fn original_moment(&self, centred: bool) -> Result<Box<dyn SecondMoment<T> + 'a>> {
        match (self.original.filter(|stats| stats.samples() > 0), &self.inputs) {
            (Some(original), CalibrationInputs::Paired(_)) => second_moment(original, centred),
            (_, CalibrationInputs::Paired(stats)) => stats.original_moment(centred),
            (_, CalibrationInputs::Activations(stats)) => second_moment(stats, centred),
            (_, CalibrationInputs::None) => Err(Error::no_samples()),
        }
    }

    /// All second moments that an error is predicted from; `inputs` is the
    /// [`moment`](Self::moment) for the same `centred`.
    pub(super) fn data_moments<'b>(&self, centred: bool, inputs: &'b dyn SecondMoment<T>) -> Result<DataMoments<'b, T>>
    where
        'a: 'b,
    {
        Ok(DataMoments {
            inputs,
            original: self.original_moment(centred)?,
            cross: self.cross_moment(centred, inputs)?,
            same_samples: self.original.is_none(),
        })
    }

    /// The second moment between original and compressed inputs, in the units of `moment`; `None`
    /// if they are the same.
    pub(super) fn cross_moment(
        &self,
        centred: bool,
        moment: &dyn SecondMoment<T>,
    ) -> Result<Option<CrossMoment<'a, T>>> {
        self.paired().map(|stats| stats.cross_moment(centred, moment)).transpose()
    }
}

impl<'a, T> From<&'a ActivationStats<T>> for Calibration<'a, T> {
    fn from(stats: &'a ActivationStats<T>) -> Self {
        Self { inputs: CalibrationInputs::Activations(stats), original: None, metric: None }
    }
}

impl<'a, T> From<&'a PairedStats<T>> for Calibration<'a, T> {
    fn from(stats: &'a PairedStats<T>) -> Self {
        Self { inputs: CalibrationInputs::Paired(stats), original: None, metric: None }
    }
}

impl<T> Clone for Calibration<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Calibration<'_, T> {}

impl<T> Clone for CalibrationInputs<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for CalibrationInputs<'_, T> {}

impl<T> fmt::Debug for Calibration<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calibration")
            .field("activations", &self.activations())
            .field("paired", &self.paired())
            .field("output_metric", &self.metric.is_some())
            .finish()
    }
}
