//! The error of a replacement layer's outputs on any data.

use faer::{ColRef, Mat, MatRef};

use crate::bias::times;
use crate::covariance::second_moment;
use crate::error::during;
use crate::linalg;
use crate::linalg::{even_exponent, power_of_two};
use crate::{ActivationStats, Error, Linear, Result, Scalar};

/// What an error is relative to.
#[derive(Clone, Copy)]
pub(super) enum Denominator {
    /// `‖y − ȳ‖`: how the outputs vary.
    Centred,
    /// `‖W x‖`.
    Uncentred,
}

/// A weight as one matrix or as two factors.
pub(super) enum Weight<'a, T> {
    Dense(MatRef<'a, T>),
    Factors(MatRef<'a, T>, MatRef<'a, T>),
}

impl<'a, T> From<(MatRef<'a, T>, MatRef<'a, T>)> for Weight<'a, T> {
    fn from((up, down): (MatRef<'a, T>, MatRef<'a, T>)) -> Self {
        Self::Factors(up, down)
    }
}

/// Mean squares over the samples, all divided by one power of two.
pub(super) struct OutputError {
    squared: f64,
    centred_total: f64,
    uncentred_total: f64,
}

impl OutputError {
    pub(super) fn relative_to(&self, denominator: Denominator) -> Result<f64> {
        let (total, parameter) = match denominator {
            Denominator::Centred => (self.centred_total, "the variance of the dense outputs"),
            Denominator::Uncentred => (self.uncentred_total, "the energy of the dense outputs"),
        };
        if self.squared == 0.0 {
            return Ok(0.0);
        }
        let error = (self.squared / total).sqrt();
        if error.is_finite() {
            return Ok(error);
        }
        let expected = "to be positive, so that an error can be relative to it".into();
        Err(Error::out_of_range(parameter, expected, total))
    }
}

/// `E‖(W x + b) − (C x + b̂)‖² = tr((W − C) Σ (W − C)ᵀ) + ‖(W − C) μ + b − b̂‖²`, and what to measure it by.
pub(super) fn output_error<T: Scalar>(
    layer: &Linear<T>,
    replacement: Weight<'_, T>,
    bias: Option<ColRef<'_, T>>,
    stats: &ActivationStats<T>,
) -> Result<OutputError> {
    let (m, n) = (layer.out_features(), layer.in_features());
    let (rows, columns) = match &replacement {
        Weight::Dense(weight) => weight.shape(),
        Weight::Factors(up, down) => (up.nrows(), down.ncols()),
    };
    for (what, expected, found) in [
        ("outputs in the layer (as its replacement has)", rows, m),
        ("inputs in the layer (as its replacement has)", columns, n),
    ] {
        if expected != found {
            return Err(Error::shape(what, expected, found));
        }
    }
    stats.require_features(n)?;
    stats.require_samples()?;

    let exponent = even_exponent(linalg::max_abs(layer.weight()));
    let scale = power_of_two(-exponent);
    let par = linalg::threads(0);
    let weight = linalg::widened(layer.weight(), scale)?;
    let low: Mat<f64> = match replacement {
        Weight::Dense(weight) => linalg::widened(weight, scale)?,
        Weight::Factors(up, down) => {
            let (up, down) = (linalg::widened(up, 1.0)?, linalg::widened(down, scale)?);
            linalg::product(up.as_ref(), down.as_ref(), par)?
        }
    };
    let mut difference = low;
    faer::zip!(&mut difference, &weight).for_each(|faer::unzip!(low, weight)| *low = weight - *low);
    let centred = second_moment(stats, true)?;
    let spread = power_of_two(centred.exponent());
    let variance = |matrix: &Mat<f64>| {
        let forms = centred.row_forms(matrix.as_ref(), matrix.as_ref(), par)?;
        Result::Ok(forms.iter().sum::<f64>().max(0.0) * spread)
    };
    let mean = stats.mean_or_zero();
    let entry = |bias: Option<ColRef<'_, T>>, i: usize| bias.map_or(0.0, |bias| bias[i].to_f64() * scale);
    let shift = times(difference.as_ref(), &mean);
    let shift = shift.iter().enumerate().map(|(i, shift)| shift + entry(layer.bias(), i) - entry(bias, i));
    let centred_total = variance(&weight)?;
    let output_mean = times(weight.as_ref(), &mean);
    Ok(OutputError {
        squared: variance(&difference)? + shift.map(|x| x * x).sum::<f64>(),
        centred_total,
        uncentred_total: centred_total + output_mean.iter().map(|x| x * x).sum::<f64>(),
    })
}

/// Error of a replacement's outputs relative to how the dense outputs vary, the measure in which methods
/// can be compared: the root of `Σ wᵢ ‖yᵢ − ŷᵢ‖² / Σ wᵢ ‖yᵢ − ȳ‖²`.
///
/// # Errors
///
/// Layers or statistics of different shapes, no samples, or dense outputs that do not vary while the replacement's differ.
///
/// # Cost
///
/// `O(p·m·n)` for `p` samples, `O(m·n²)` for collapsed statistics.
///
/// ```
/// use dalr::{ActivationStats, Linear, relative_output_error};
/// use faer::mat;
///
/// # fn main() -> dalr::Result<()> {
/// let layer = Linear::new(mat![[1.0, 1.0]], None)?;
/// let blind_to_the_second = Linear::new(mat![[1.0, 0.0]], None)?;
/// let mut stats = ActivationStats::new(2);
/// stats.update(mat![[3.0, 0.0], [-3.0, 0.0], [0.0, 4.0], [0.0, -4.0]].as_ref())?;
/// let error = relative_output_error(&layer, &blind_to_the_second, &stats)?;
/// assert!((error - 0.8).abs() < 1e-12);
/// # Ok(())
/// # }
/// ```
pub fn relative_output_error<T: Scalar>(
    layer: &Linear<T>,
    replacement: &Linear<T>,
    stats: &ActivationStats<T>,
) -> Result<f64> {
    let weight = Weight::Dense(replacement.weight());
    during("relative_output_error", || {
        output_error(layer, weight, replacement.bias(), stats)?.relative_to(Denominator::Centred)
    })
}
