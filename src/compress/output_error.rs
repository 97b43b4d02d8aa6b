//! The error of a replacement layer's outputs on any data.

use faer::{ColRef, Mat, MatRef};

use crate::bias::times;
use crate::covariance::second_moment;
use crate::error::during;
use crate::linalg::{self, even_exponent, power_of_two};
use crate::{ActivationStats, Error, Linear, LowRankLinear, Result, Scalar};

/// Mean squares over the samples, all divided by one power of two.
pub(super) struct OutputError {
    pub(super) squared: f64,
    /// Of the original outputs about their mean.
    total: f64,
}

impl OutputError {
    pub(super) fn relative(&self) -> Result<f64> {
        if self.squared == 0.0 {
            return Ok(0.0);
        }
        let error = (self.squared / self.total).sqrt();
        if error.is_finite() {
            return Ok(error);
        }
        let expected = "to be positive, so that an error can be relative to it".into();
        Err(Error::out_of_range("the variance of the original outputs", expected, self.total))
    }
}

/// The squared errors of a solution for every rank from 1, on the data without regularization.
#[derive(Clone)]
pub(super) struct SquaredErrors {
    pub(super) by_rank: Vec<f64>,
    /// The energy of the original outputs. The errors are parts of it.
    pub(super) total: f64,
    /// Squared errors up to this size are rounding.
    pub(super) noise: f64,
}

impl SquaredErrors {
    /// Computes the errors, given that rank `k` explains `captured[k - 1]` more of the energy
    /// `total` than rank `k − 1`.
    pub(super) fn left_of(total: f64, captured: &[f64], noise: f64) -> Self {
        let mut rest = total;
        let left = |captured: &f64| {
            rest -= captured;
            rest.max(0.0)
        };
        Self { by_rank: captured.iter().map(left).collect(), total, noise }
    }

    /// Returns the errors relative to the energy `variance` of the original outputs about their
    /// mean, and the size up to which such errors are rounding.
    ///
    /// If the original outputs do not vary, an error above rounding is infinite.
    pub(super) fn relative_to(&self, variance: f64) -> (Vec<f64>, f64) {
        if variance > 0.0 {
            let relative = |squared: f64| (squared / variance).sqrt();
            return (self.by_rank.iter().map(|&squared| relative(squared)).collect(), relative(self.noise));
        }
        let relative = |&squared: &f64| if squared <= self.noise { 0.0 } else { f64::INFINITY };
        (self.by_rank.iter().map(relative).collect(), 0.0)
    }
}

/// A layer that replaces another: a weight as one matrix or as two factors, and a bias.
pub(super) struct Replacement<'a, T> {
    left: MatRef<'a, T>,
    right: Option<MatRef<'a, T>>,
    bias: Option<ColRef<'a, T>>,
}

impl<'a, T: Scalar> From<&'a Linear<T>> for Replacement<'a, T> {
    fn from(layer: &'a Linear<T>) -> Self {
        Self { left: layer.weight(), right: None, bias: layer.bias() }
    }
}

impl<'a, T: Scalar> From<&'a LowRankLinear<T>> for Replacement<'a, T> {
    fn from(layer: &'a LowRankLinear<T>) -> Self {
        Self { left: layer.up(), right: Some(layer.down()), bias: layer.bias() }
    }
}

/// Computes `E‖(W x + b) − (C x + b̂)‖² = tr((W − C) Σ (W − C)ᵀ) + ‖(W − C) μ + b − b̂‖²`, and the
/// variance of the original outputs.
pub(super) fn output_error<'a, T: Scalar>(
    layer: &Linear<T>,
    replacement: impl Into<Replacement<'a, T>>,
    stats: &ActivationStats<T>,
) -> Result<OutputError> {
    let Replacement { left, right, bias } = replacement.into();
    let (m, n) = (layer.out_features(), layer.in_features());
    let columns = right.unwrap_or(left).ncols();
    for (what, expected, found) in [
        ("outputs in the layer (as its replacement has)", left.nrows(), m),
        ("inputs in the layer (as its replacement has)", columns, n),
    ] {
        if expected != found {
            return Err(Error::shape(what, expected, found));
        }
    }
    stats.require_features(n)?;
    stats.require_samples()?;

    let par = linalg::threads(0);
    let scale = power_of_two(-even_exponent(linalg::max_abs(layer.weight())));
    let weight = linalg::widened(layer.weight(), scale)?;
    let low = match right {
        None => linalg::widened(left, scale)?,
        Some(right) => {
            let (up, down) = (linalg::widened(left, 1.0)?, linalg::widened(right, scale)?);
            linalg::product(up.as_ref(), down.as_ref(), par)?
        }
    };
    let mut difference = low;
    faer::zip!(&mut difference, &weight).for_each(|faer::unzip!(low, weight)| *low = weight - *low);
    let centred = second_moment(stats, true)?;
    let spread = power_of_two(centred.exponent());
    let variance = |matrix: &Mat<f64>| Result::Ok(centred.energy(matrix.as_ref(), par)?.max(0.0) * spread);
    let mean = stats.mean_or_zero();
    let entry = |bias: Option<ColRef<'_, T>>, i: usize| bias.map_or(0.0, |bias| bias[i].to_f64() * scale);
    let shift = times(difference.as_ref(), &mean);
    let shift = shift.iter().enumerate().map(|(i, shift)| shift + entry(layer.bias(), i) - entry(bias, i));
    Ok(OutputError { squared: variance(&difference)? + shift.map(|x| x * x).sum::<f64>(), total: variance(&weight)? })
}

/// Returns the error of a replacement's outputs relative to the variation of the original outputs:
/// the root of `Σ wᵢ ‖yᵢ − ŷᵢ‖² / Σ wᵢ ‖yᵢ − ȳ‖²`.
///
/// `ȳ` is the mean of the original outputs. Every relative error of this crate has this
/// denominator, so that methods can be compared. The error exceeds 1 if the constant output `ȳ`
/// would be better than the replacement.
///
/// # Errors
///
/// Layers or statistics of different shapes; no samples; original outputs that do not vary, if the
/// replacement's outputs differ from them.
///
/// # Cost
///
/// `O(p·m·n)` for `p` samples in sample form, `O(m·n²)` in covariance form.
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
    during("relative_output_error", || output_error(layer, replacement, stats)?.relative())
}
