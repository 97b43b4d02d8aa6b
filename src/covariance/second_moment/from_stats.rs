//! The second moments of statistics in either form.

use core::ops::Range;

use faer::Mat;

use super::SecondMoment;
use super::cross::CrossMoment;
use super::dense::DenseMoment;
use super::from_covariance::CovarianceMoment;
use super::from_samples::SampleMoment;
use crate::covariance::activation_stats::ActivationStats;
use crate::covariance::batch::Centre;
use crate::covariance::samples_to_covariance::StatsForm;
use crate::error::during;
use crate::linalg;
use crate::{Result, Scalar};

/// Returns the covariance (`centred`), or the second moment about zero, of at least one sample.
pub(crate) fn second_moment<T: Scalar>(
    stats: &ActivationStats<T>,
    centred: bool,
) -> Result<Box<dyn SecondMoment<T> + '_>> {
    second_moment_of(stats, 0..stats.features, centred)
}

/// [`second_moment`] of a range of the inputs.
pub(crate) fn second_moment_of<T: Scalar>(
    stats: &ActivationStats<T>,
    range: Range<usize>,
    centred: bool,
) -> Result<Box<dyn SecondMoment<T> + '_>> {
    let mean = stats.mean_or_zero();
    let centre = centre(stats, centred);
    Ok(match &stats.form {
        StatsForm::Samples(samples) => {
            let centre = centre.inputs(range.clone()).into_owned();
            Box::new(SampleMoment::new(samples.inputs(range.clone()), centre, stats.weight, &mean[range]))
        }
        StatsForm::Covariance(form) if range.len() == stats.features => {
            Box::new(CovarianceMoment::new(form, &centre, stats.weight, (&stats.channels.origin, &mean))?)
        }
        StatsForm::Covariance(form) => {
            let sums = form.block(&stats.channels.origin, &centre, (range.clone(), range.clone()))?;
            Box::new(DenseMoment::new(sums, stats.weight, &mean[range], form.scatter.precision))
        }
    })
}

/// The point that the second moment is taken about: the mean, or zero.
fn centre<T: Scalar>(stats: &ActivationStats<T>, centred: bool) -> Centre<'_> {
    if centred { stats.channels.centre() } else { Centre::zero(stats.features) }
}

/// The second moment `K` between two ranges of the inputs, first × second, divided by the power of
/// two of the second moment of the second range.
pub(crate) fn cross_moment<'a, T: Scalar>(
    stats: &'a ActivationStats<T>,
    (first, second): (Range<usize>, Range<usize>),
    centred: bool,
    moment: &dyn SecondMoment<T>,
) -> Result<CrossMoment<'a, T>> {
    let centre = centre(stats, centred);
    Ok(match &stats.form {
        StatsForm::Samples(samples) => {
            let part = |range: Range<usize>| (samples.inputs(range.clone()), centre.inputs(range).into_owned());
            CrossMoment::of_samples(part(first), part(second), moment.scale().root_factor(stats.weight))
        }
        StatsForm::Covariance(form) => {
            let sums = form.block(&stats.channels.origin, &centre, (first, second))?;
            CrossMoment::of_sums(sums, moment.scale().factor(stats.weight))
        }
    })
}

impl<T: Scalar> ActivationStats<T> {
    /// Returns the covariance `Σ = (1/w) Σ wᵢ (xᵢ − μ)(xᵢ − μ)ᵀ`, inputs × inputs. It is divided by
    /// the total weight `w`, not by `w − 1`.
    ///
    /// Allocates `8 n²` bytes; the compressors do not need it.
    ///
    /// # Errors
    ///
    /// [`NoSamples`](crate::Error::NoSamples), or [`Memory`](crate::Error::Memory) if the matrix
    /// does not fit.
    pub fn covariance(&self) -> Result<Mat<f64>> {
        during("ActivationStats::covariance", || {
            self.require_samples()?;
            second_moment(self, true)?.unscaled(linalg::threads(self.threads))
        })
    }
}
