//! Whether statistics that come from outside can have come from samples.

use super::covariance_form::{CovarianceForm, most_waiting};
use super::samples::{Samples, segment_rows};
use super::stats::{ActivationStats, Form};
use super::update::WEIGHTS;
use crate::{Error, Result, Scalar};

/// Far more than rounding in any sum over samples, far less than what would mislead anyone.
const SLACK: f64 = 1e-3;

/// Inputs looked at together: enough to use whole cache lines, few enough to need no memory.
const TILE: usize = 64;

/// What does not hold.
struct Doubt {
    expected: &'static str,
    found: f64,
}

fn demand(holds: bool, expected: &'static str, found: f64) -> Result<(), Doubt> {
    if holds { Ok(()) } else { Err(Doubt { expected, found }) }
}

fn close(found: f64, sum: f64) -> bool {
    (found - sum).abs() <= SLACK * sum
}

/// What so many samples can weigh; nothing if there are none.
fn possible_weights(count: f64) -> core::ops::RangeInclusive<f64> {
    count * WEIGHTS.start() * (1.0 - SLACK)..=count * WEIGHTS.end() * (1.0 + SLACK)
}

/// How far rounding can take the mean of an input with these extremes.
fn slack_of_means(low: f64, high: f64) -> f64 {
    SLACK * (high - low) + 4.0 * f64::EPSILON * low.abs().max(high.abs()) + f64::MIN_POSITIVE
}

impl<T: Scalar> ActivationStats<T> {
    /// Refuses what no sequence of updates and merges leaves behind. All comparisons are written so that a NaN fails.
    pub(crate) fn validate_parts(&self, path: &str) -> Result<()> {
        let format = |doubt: Doubt| Error::format(path.into(), doubt.expected.into(), doubt.found.to_string());
        self.validate_totals().map_err(format)?;
        if self.samples == 0 {
            return Ok(());
        }
        self.validate_channels().map_err(format)?;
        self.require_representable(self.channels.max_abs(), self.weight)?;
        match &self.form {
            Form::Samples(samples) => self.validate_samples(samples, None).map_err(format),
            Form::Covariance(form) => {
                self.validate_collapsed(form).map_err(format)?;
                self.validate_samples(&form.waiting, Some(form)).map_err(format)?;
                self.validate_scatter(form).map_err(format)
            }
        }
    }

    fn validate_totals(&self) -> Result<(), Doubt> {
        let (count, weight, squares) = (self.samples as f64, self.weight, self.weight_squares);
        if self.samples == 0 {
            demand(weight == 0.0 && squares == 0.0, "no weight without samples", weight.max(squares))?;
            return demand(matches!(self.form, Form::Samples(_)), "no scatter without samples", 0.0);
        }
        demand(self.features > 0, "at least one input", 0.0)?;
        demand(possible_weights(count).contains(&weight), "a total weight that as many samples can have", weight)?;
        if let Form::Covariance(CovarianceForm { waiting, .. }) = &self.form {
            let few = waiting.len() as u64 <= self.samples;
            demand(few, "no more gathered samples than there are", waiting.len() as f64)?;
        }
        // Cauchy and Schwarz, and the other way about for numbers that are not negative.
        let enough = weight * weight <= count * squares * (1.0 + SLACK);
        let few = squares <= weight * weight * (1.0 + SLACK);
        demand(enough && few, "squares of weights that fit their sum", squares)
    }

    fn validate_channels(&self) -> Result<(), Doubt> {
        let channels = &self.channels;
        let arrays = [&channels.origin, &channels.offset, &channels.absolute, &channels.active];
        let extremes = channels.minimum.iter().zip(&channels.maximum);
        for (index, (&low, &high)) in extremes.enumerate() {
            let [origin, offset, absolute, active] = arrays.map(|array| array[index]);
            demand(low.is_finite(), "a finite minimum of every input", low)?;
            demand(high.is_finite() && low <= high, "a maximum of every input above its minimum", high)?;
            demand((low..=high).contains(&origin), "an origin between minimum and maximum", origin)?;
            let size = low.abs().max(high.abs());
            let slack = slack_of_means(low, high);
            let mean = origin + offset;
            let inside = (low - slack..=high + slack).contains(&mean);
            demand(inside, "a mean between minimum and maximum", mean)?;
            let weight = self.weight;
            let most = absolute <= size * weight * (1.0 + SLACK);
            let least = absolute >= (mean.abs() - SLACK * size) * weight && absolute >= 0.0;
            demand(most && least, "a mean magnitude that fits mean and extremes", absolute / weight)?;
            let always = low > 0.0 || high < 0.0;
            let fits = (0.0..=weight * (1.0 + SLACK)).contains(&active)
                && (!always || active >= weight * (1.0 - SLACK))
                && (size > 0.0 || active == 0.0);
            demand(fits, "an activation rate that fits the extremes", active / weight)?;
        }
        Ok(())
    }

    /// How many samples there are in the scatter and beside it, what they weigh, and how precise the scatter is.
    fn validate_collapsed(&self, form: &CovarianceForm<T>) -> Result<(), Doubt> {
        let (weight, gathered, full) = (form.weight, form.waiting.len(), most_waiting::<T>(self.features));
        demand(gathered < full, "fewer gathered samples than make a product", gathered as f64)?;
        let multiplied = (self.samples - gathered as u64) as f64;
        let expected = "a weight of the scatter that as many samples can have";
        demand(possible_weights(multiplied).contains(&weight), expected, weight)?;
        let squares: f64 = form.waiting.weights.iter().map(|weight| weight * weight).sum();
        let (rest, slack) = (self.weight_squares - squares, SLACK * self.weight_squares);
        let (square, enough) = (weight * weight, multiplied * (rest + slack));
        let fits = square <= enough * (1.0 + SLACK) && rest - slack <= square * (1.0 + SLACK);
        demand(fits, "a weight of the scatter that fits the squares of the weights", weight)?;

        let precision = form.scatter.precision;
        if multiplied == 0.0 {
            demand(precision == 0.0, "no products in an empty scatter", precision)?;
            let moved = form.offset.iter().find(|offset| **offset != 0.0);
            return demand(moved.is_none(), "no mean of an empty scatter", moved.copied().unwrap_or_default());
        }
        // Which of the two is a matter of speed that releases may settle in different ways.
        let known = precision == f64::EPSILON || precision == T::EPSILON;
        demand(known, "products in the precision of the samples or in `f64`", precision)?;
        let extremes = self.channels.minimum.iter().zip(&self.channels.maximum);
        let means = self.channels.origin.iter().zip(&form.offset).map(|(origin, offset)| origin + offset);
        for (mean, (&low, &high)) in means.zip(extremes) {
            let slack = slack_of_means(low, high);
            let inside = (low - slack..=high + slack).contains(&mean);
            demand(inside, "a mean of the scatter between minimum and maximum", mean)?;
        }
        Ok(())
    }

    /// The samples that are kept tell all that the channels say, together with a scatter that holds the others.
    fn validate_samples(&self, samples: &Samples<T>, others: Option<&CovarianceForm<T>>) -> Result<(), Doubt> {
        let others = others.filter(|others| others.weight > 0.0);
        let fits = |found: f64, sum: f64| match others {
            None => close(found, sum),
            Some(_) => sum <= found * (1.0 + SLACK),
        };
        let wrong = samples.weights.iter().find(|weight| !WEIGHTS.contains(weight));
        demand(wrong.is_none(), "weights of samples between 1e-100 and 1e100", wrong.copied().unwrap_or_default())?;
        let sum = samples.weights.iter().sum::<f64>() + others.map_or(0.0, |others| others.weight);
        demand(close(self.weight, sum), "a total weight that is the sum of the weights", self.weight)?;
        let squares = samples.weights.iter().map(|weight| weight * weight).sum();
        demand(fits(self.weight_squares, squares), "the squares of the weights to add up", self.weight_squares)?;

        let channels = &self.channels;
        for start in (0..self.features).step_by(TILE) {
            let width = TILE.min(self.features - start);
            let (mut low, mut high) = ([f64::INFINITY; TILE], [f64::NEG_INFINITY; TILE]);
            let (mut drift, mut absolute, mut active) = ([0.0; TILE], [0.0; TILE], [0.0; TILE]);
            if let Some(CovarianceForm { weight, offset, .. }) = others {
                let distances = offset[start..start + width].iter().zip(&channels.offset[start..]);
                drift.iter_mut().zip(distances).for_each(|(to, (theirs, all))| *to = weight * (theirs - all));
            }
            let weights = samples.weights.chunks(segment_rows(self.features));
            for (segment, weights) in samples.segments.iter().zip(weights) {
                for (row, &weight) in segment.chunks_exact(self.features).zip(weights) {
                    for (lane, x) in row[start..start + width].iter().map(|x| x.to_f64()).enumerate() {
                        demand(x.is_finite(), "finite samples", x)?;
                        low[lane] = low[lane].min(x);
                        high[lane] = high[lane].max(x);
                        let (origin, offset) = (channels.origin[start + lane], channels.offset[start + lane]);
                        drift[lane] += weight * (x - origin - offset);
                        absolute[lane] += weight * x.abs();
                        active[lane] += if x == 0.0 { 0.0 } else { weight };
                    }
                }
            }
            for lane in 0..width {
                let input = start + lane;
                let (minimum, maximum) = (channels.minimum[input], channels.maximum[input]);
                let lowest = if others.is_some() { minimum <= low[lane] } else { minimum == low[lane] };
                let highest = if others.is_some() { maximum >= high[lane] } else { maximum == high[lane] };
                demand(lowest, "a minimum that is the samples'", minimum)?;
                demand(highest, "a maximum that is the samples'", maximum)?;
                let centred = drift[lane].abs() <= slack_of_means(minimum, maximum) * self.weight;
                demand(centred, "a mean that is the samples'", channels.origin[input] + channels.offset[input])?;
                let magnitude = channels.absolute[input];
                let found = magnitude / self.weight;
                demand(fits(magnitude, absolute[lane]), "a mean magnitude that is the samples'", found)?;
                let times = channels.active[input];
                let found = times / self.weight;
                demand(fits(times, active[lane]), "an activation rate that is the samples'", found)?;
            }
        }
        Ok(())
    }

    /// A scatter is as large as the extremes allow (Popoviciu), and no entry is larger than its diagonal allows (Cauchy and Schwarz).
    fn validate_scatter(
        &self,
        CovarianceForm { scatter, weight, waiting, .. }: &CovarianceForm<T>,
    ) -> Result<(), Doubt> {
        let multiplied = (self.samples - waiting.len() as u64) as f64;
        // What underflow can take away from a sum of squares; of single precision, on samples divided by their span.
        let quantum = 32.0 * multiplied * f64::from_bits(1);
        let narrow = if scatter.precision > f64::EPSILON {
            64.0 * multiplied * f64::from(f32::MIN_POSITIVE) * weight
        } else {
            0.0
        };
        let extremes = || self.channels.minimum.iter().zip(&self.channels.maximum);
        for (variance, (low, high)) in scatter.diagonal().zip(extremes()) {
            demand(variance >= 0.0, "variances that are not negative", variance / weight)?;
            let reach = (high - low) / 2.0 * weight.sqrt();
            let possible = variance <= reach * reach * (1.0 + SLACK) + quantum;
            demand(possible, "variances that fit the extremes", variance / weight)?;
        }
        let root = |(variance, (low, high)): (f64, (&f64, &f64))| {
            // The square of a span alone may leave the range of `f64`.
            (variance + quantum).sqrt().hypot((high - low) * narrow.sqrt())
        };
        let roots: Vec<f64> = scatter.diagonal().zip(extremes()).map(root).collect();
        let mut start = 0;
        for block in &scatter.blocks {
            for column in 0..block.ncols() {
                for (row, &entry) in block.col_as_slice(column).iter().enumerate() {
                    let bound = roots[start + row] * roots[start + column] * (1.0 + SLACK);
                    demand(entry.abs() <= bound, "covariances that fit the variances", entry / weight)?;
                    // The square on the diagonal holds both triangles.
                    let twin = if row < block.ncols() { block[(column, row)] } else { entry };
                    let alike = (entry - twin).abs() <= SLACK * bound;
                    demand(alike, "a symmetric scatter", entry / weight)?;
                }
            }
            start += block.ncols();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
