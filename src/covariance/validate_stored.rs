//! Checks of statistics that come from a file: every number is finite, weights are positive,
//! variances are not negative.
//!
//! The checksum detects damage. These checks keep statistics from a faulty writer from spreading
//! NaN, or counts that do not fit the arrays, into later results.

use super::activation_stats::ActivationStats;
use super::covariance_form::{CovarianceForm, most_waiting};
use super::sample_form::Samples;
use super::samples_to_covariance::StatsForm;
use super::update_and_merge::WEIGHTS;
use crate::{Error, Result, Scalar};

/// A stored number that is out of its range.
struct Invalid {
    expected: &'static str,
    found: f64,
}

/// Returns an error unless `holds`. Callers write comparisons so that they are false for NaN.
fn require(holds: bool, expected: &'static str, found: f64) -> Result<(), Invalid> {
    if holds { Ok(()) } else { Err(Invalid { expected, found }) }
}

fn require_all(
    numbers: impl IntoIterator<Item = f64>,
    holds: impl Fn(f64) -> bool,
    expected: &'static str,
) -> Result<(), Invalid> {
    numbers.into_iter().try_for_each(|number| require(holds(number), expected, number))
}

impl<T: Scalar> ActivationStats<T> {
    pub(crate) fn validate_parts(&self, path: &str) -> Result<()> {
        let format =
            |Invalid { expected, found }: Invalid| Error::format(path.into(), expected.into(), found.to_string());
        self.validate_totals().map_err(format)?;
        if self.samples == 0 {
            return Ok(());
        }
        self.validate_channels().map_err(format)?;
        let mut largest = self.channels.mean().chain(self.channels.origin.iter().copied()).fold(0.0, max_abs);
        let samples = match &self.form {
            StatsForm::Samples(samples) => samples,
            StatsForm::Covariance(form) => {
                self.validate_covariance(form).map_err(format)?;
                let means = self.channels.origin.iter().zip(&form.offset).map(|(origin, offset)| origin + offset);
                largest = means.fold(largest, max_abs);
                &form.waiting
            }
        };
        validate_samples(samples).map_err(format)?;
        largest = samples.segments.iter().flatten().map(|x| x.to_f64()).fold(largest, max_abs);
        self.require_representable(largest, self.weight)
    }

    fn validate_totals(&self) -> Result<(), Invalid> {
        let (weight, squares) = (self.weight, self.weight_squares);
        if self.samples == 0 {
            require(weight == 0.0 && squares == 0.0, "no weight without samples", weight.max(squares))?;
            return require(matches!(self.form, StatsForm::Samples(_)), "no scatter without samples", 0.0);
        }
        require(self.features > 0, "at least one input", 0.0)?;
        let possible = weight >= *WEIGHTS.start() && weight.is_finite();
        require(possible, "a finite positive total weight", weight)?;
        require(squares > 0.0 && squares.is_finite(), "a finite positive sum of squared weights", squares)
    }

    fn validate_channels(&self) -> Result<(), Invalid> {
        let channels = &self.channels;
        for array in [&channels.origin, &channels.offset, &channels.minimum, &channels.maximum] {
            require_all(array.iter().copied(), f64::is_finite, "finite means and extremes")?;
        }
        for array in [&channels.absolute, &channels.active] {
            let expected = "finite sums of magnitudes and activations that are not negative";
            require_all(array.iter().copied(), |sum| sum >= 0.0 && sum.is_finite(), expected)?;
        }
        Ok(())
    }

    fn validate_covariance(&self, form: &CovarianceForm<T>) -> Result<(), Invalid> {
        let CovarianceForm { scatter, weight, offset, waiting: samples } = form;
        let waiting = samples.len();
        require(
            waiting < most_waiting::<T>(self.features),
            "fewer waiting samples than a product takes",
            waiting as f64,
        )?;
        require(waiting as u64 <= self.samples, "no more waiting samples than there are", waiting as f64)?;
        let possible = *weight >= 0.0 && *weight <= self.weight * (1.0 + WEIGHT_ROUNDING);
        require(possible, "a weight of the scatter up to the total weight", *weight)?;
        let precision = scatter.precision;
        let known = precision == 0.0 || precision == f64::EPSILON || precision == T::EPSILON;
        require(known, "products in the precision of the samples or in `f64`", precision)?;
        require_all(offset.iter().copied(), f64::is_finite, "a finite mean of the scatter")?;
        for block in &scatter.blocks {
            let entries = (0..block.ncols()).flat_map(|column| block.col_as_slice(column).iter().copied());
            require_all(entries.map(|entry| entry / self.weight), f64::is_finite, "finite covariances")?;
        }
        require_all(scatter.diagonal(), |variance| variance >= 0.0, "variances that are not negative")
    }
}

fn max_abs(largest: f64, number: f64) -> f64 {
    largest.max(number.abs())
}

/// A tolerance that is much larger than the rounding in a sum of weights.
const WEIGHT_ROUNDING: f64 = 1e-3;

fn validate_samples<T: Scalar>(samples: &Samples<T>) -> Result<(), Invalid> {
    let possible = |weight| WEIGHTS.contains(&weight);
    require_all(samples.weights.iter().copied(), possible, "weights of samples between 1e-100 and 1e100")?;
    let entries = samples.segments.iter().flatten().map(|x| x.to_f64());
    require_all(entries, f64::is_finite, "finite samples")
}
