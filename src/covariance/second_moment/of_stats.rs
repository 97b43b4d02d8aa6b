//! The second moments of statistics in either form.

use faer::Mat;

use super::SecondMoment;
use super::of_covariance::CovarianceMoment;
use super::of_samples::SampleMoment;
use crate::covariance::batch::Centre;
use crate::covariance::change_of_form::Form;
use crate::covariance::stats::ActivationStats;
use crate::error::during;
use crate::linalg::{self, power_of_two};
use crate::{Result, Scalar};

/// Returns the covariance (`centred`), or the second moment about zero, of at least one sample.
pub(crate) fn second_moment<T: Scalar>(
    stats: &ActivationStats<T>,
    centred: bool,
) -> Result<Box<dyn SecondMoment<T> + '_>> {
    let channels = &stats.channels;
    let centre = if centred { channels.centre() } else { Centre::zero(stats.features) };
    let mean = stats.mean_or_zero();
    Ok(match &stats.form {
        Form::Samples(samples) => Box::new(SampleMoment::new(samples, centre, stats.weight, &mean)),
        Form::Covariance(form) => {
            Box::new(CovarianceMoment::new(form, &centre, stats.weight, (&channels.origin, &mean))?)
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
    /// [`NoSamples`](crate::Error::NoSamples), or [`Memory`](crate::Error::Memory) if the matrix does
    /// not fit.
    pub fn covariance(&self) -> Result<Mat<f64>> {
        during("ActivationStats::covariance", || {
            self.require_samples()?;
            let moment = second_moment(self, true)?;
            let mut covariance = moment.scaled(linalg::threads(self.threads))?;
            covariance *= faer::Scale(power_of_two(moment.exponent()));
            Ok(covariance)
        })
    }
}
