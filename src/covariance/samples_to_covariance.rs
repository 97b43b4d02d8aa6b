//! The sample form and the covariance form of statistics, and when the first becomes the second.

use super::activation_stats::ActivationStats;
use super::covariance_form::CovarianceForm;
use super::sample_form::Samples;
use super::scatter::Scatter;
use crate::{Error, Result, Scalar};

/// The memory of samples, in units of that of the scatter, beyond which the covariance form is
/// used.
///
/// A solve from samples is faster even if they take clearly more memory than the scatter. An
/// example is VGG19's fc7, with 5994 samples of 4096 inputs. With 2, statistics of fewer `f64`
/// samples than inputs always stay in sample form.
const SAMPLES_WORTH: usize = 2;

#[derive(Clone)]
pub(super) enum StatsForm<T> {
    Samples(Samples<T>),
    Covariance(CovarianceForm<T>),
}

/// Returns whether the statistics stay in sample form if `count` samples are added. `as_samples` is
/// true if they are added as samples, and false if they are added as a scatter. Returns an error if
/// the memory limit allows neither form.
///
/// The change needs memory for both forms at once. Under a memory limit, the form therefore changes
/// while both fit.
pub(super) fn keeps_samples<T: Scalar>(stats: &ActivationStats<T>, (count, as_samples): (usize, bool)) -> Result<bool> {
    let &ActivationStats { features, columns, most_samples, memory_limit, .. } = stats;
    let limit = memory_limit.unwrap_or(isize::MAX as usize);
    let covariance = CovarianceForm::<T>::bytes(features, columns).unwrap_or(usize::MAX);
    let (keep, needed) = match &stats.form {
        StatsForm::Covariance(_) => (false, covariance),
        StatsForm::Samples(samples) => {
            let bytes = |count| Samples::<T>::bytes(features, count).unwrap_or(usize::MAX);
            let count = samples.len().saturating_add(count);
            let (now, then) = (bytes(samples.len()), bytes(count));
            let both = now.saturating_add(covariance);
            let scatter = Scatter::bytes(features, columns).unwrap_or(usize::MAX);
            let few = count <= most_samples && then / SAMPLES_WORTH <= scatter;
            let worth = few && then.saturating_add(covariance) <= limit;
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
