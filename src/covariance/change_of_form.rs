//! The sample form and the covariance form of statistics, and when the first becomes the second.

use super::covariance_form::CovarianceForm;
use super::sample_form::Samples;
use super::scatter::Scatter;
use crate::{Error, Result, Scalar};

/// The memory of samples, in units of that of the scatter, beyond which the covariance form is
/// used.
///
/// Solving from samples is faster well past 1 (an example is VGG19's fc7, 5994 samples of 4096
/// inputs). With 2, fewer `f64` samples than inputs always stay in sample form.
const SAMPLES_WORTH: usize = 2;

#[derive(Clone)]
pub(super) enum Form<T> {
    Samples(Samples<T>),
    Covariance(CovarianceForm<T>),
}

/// Whether the sample form stays when `count` samples come (`as_samples`, or with a scatter), or
/// an error if the memory limit does not leave room.
///
/// Under a limit the form changes while there is room for both: later there would be none.
pub(super) fn keeps_samples<T: Scalar>(
    form: &Form<T>,
    features: usize,
    memory_limit: Option<usize>,
    (count, as_samples): (usize, bool),
) -> Result<bool> {
    let limit = memory_limit.unwrap_or(isize::MAX as usize);
    let covariance = CovarianceForm::<T>::bytes(features).unwrap_or(usize::MAX);
    let (keep, needed) = match form {
        Form::Covariance(_) => (false, covariance),
        Form::Samples(samples) => {
            let bytes = |count| Samples::<T>::bytes(features, count).unwrap_or(usize::MAX);
            let (now, then) = (bytes(samples.len()), bytes(samples.len().saturating_add(count)));
            let both = now.saturating_add(covariance);
            let scatter = Scatter::bytes(features).unwrap_or(usize::MAX);
            let worth = then / SAMPLES_WORTH <= scatter && then.saturating_add(covariance) <= limit;
            let keep = as_samples && (worth || both > limit);
            (keep, if keep { then.min(both) } else { both })
        }
    };
    if needed <= limit {
        return Ok(keep);
    }
    let available = match memory_limit {
        Some(limit) => format!("the memory limit of {limit} bytes"),
        None => "this machine's address space".into(),
    };
    Err(Error::memory(needed, available))
}
