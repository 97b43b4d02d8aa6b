//! A compressed layer and its report.

use super::Calibration;
use super::relative_error::{output_error, paired_error};
use crate::error::during;
use crate::factors::PivotedLinear;
use crate::{Error, Linear, LowRankLinear, Report, Result, Scalar};

/// A compressed layer and the report on it.
///
/// ```
/// use dalr::{ActivationStats, Compressed, Dalr, Linear, LowRankCompressor, LowRankLinear, Rank};
/// use faer::Mat;
///
/// # fn main() -> dalr::Result<()> {
/// let layer = Linear::new(Mat::from_fn(8, 6, |i, j| ((i * 5 + j * 3) % 7) as f64), None)?;
/// let (mut stats, mut held_out) = (ActivationStats::new(6), ActivationStats::new(6));
/// stats.update(Mat::from_fn(50, 6, |i, j| ((i * 11 + j * 7) % 13) as f64).as_ref())?;
/// held_out.update(Mat::from_fn(50, 6, |i, j| ((i * 5 + j * 9) % 13) as f64).as_ref())?;
/// let compressed: Compressed<f64> = Dalr::new().compress(&layer, &stats, Rank::Fixed(3))?;
/// assert_eq!(compressed.layer().rank(), compressed.report().rank);
/// println!("held-out error: {:.3}", compressed.evaluate(&layer, &held_out)?);
/// let layer: LowRankLinear<f64> = compressed.into_layer();
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(bound(serialize = "T: Scalar + serde::Serialize", deserialize = "T: Scalar + serde::Deserialize<'de>"))
)]
pub struct Compressed<T> {
    pub(super) layer: LowRankLinear<T>,
    pub(super) report: Report,
}

impl<T: Scalar> Compressed<T> {
    /// Returns the compressed layer.
    pub fn layer(&self) -> &LowRankLinear<T> {
        &self.layer
    }

    /// Returns the result of the compression in numbers, and warnings.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The compressed layer in pivoted storage, as [`LowRankLinear::to_pivoted`] makes it.
    ///
    /// # Errors
    ///
    /// As [`LowRankLinear::to_pivoted`].
    ///
    /// ```
    /// use dalr::factors::Form;
    /// use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Rank};
    /// use faer::Mat;
    ///
    /// # fn main() -> dalr::Result<()> {
    /// let layer = Linear::new(Mat::from_fn(8, 6, |i, j| ((i * 5 + j * j * 3) % 7) as f64), None)?;
    /// let mut stats = ActivationStats::new(6);
    /// stats.update(Mat::from_fn(50, 6, |i, j| ((i * 11 + j * 7) % 13) as f64).as_ref())?;
    /// let method = Dalr::new().with_form(Form::Pivoted);
    /// let compressed = method.compress(&layer, &stats, Rank::ParameterRatio(0.7))?;
    /// let pivoted = compressed.to_pivoted()?;
    /// assert_eq!((pivoted.rank(), pivoted.parameters()), (3, 33)); // two factors would have rank 2
    /// assert_eq!(compressed.report().parameters_after, 33);
    /// # Ok(())
    /// # }
    /// ```
    pub fn to_pivoted(&self) -> Result<PivotedLinear<T>> {
        self.layer.to_pivoted()
    }

    /// Returns the compressed layer, without the report.
    pub fn into_layer(self) -> LowRankLinear<T> {
        self.layer
    }

    /// Returns the relative error on other data, as
    /// [`relative_output_error`](crate::relative_output_error) defines it.
    ///
    /// The differences of the outputs are computed in `f64`, so the error is accurate down to
    /// rounding. It includes the error of the bias.
    ///
    /// # Errors
    ///
    /// A layer or statistics of another shape; no samples; original outputs that do not vary, if
    /// those of the compressed layer differ from them.
    ///
    /// # Cost
    ///
    /// `O(p·m·n)` for `p` samples in sample form, `O(m·n²)` in covariance form.
    pub fn evaluate<'a>(&self, layer: &Linear<T>, data: impl Into<Calibration<'a, T>>) -> Result<f64> {
        let data = data.into();
        during("Compressed::evaluate", || match (data.activations(), data.paired()) {
            (Some(stats), _) => output_error(layer, &self.layer, stats)?.relative(),
            (_, Some(stats)) => paired_error(layer, &self.layer, stats)?.relative(),
            _ => Err(Error::no_samples()),
        })
    }
}

/// Returns the layer without its report, as [`Compressed::into_layer`].
impl<T: Scalar> From<Compressed<T>> for LowRankLinear<T> {
    fn from(compressed: Compressed<T>) -> Self {
        compressed.into_layer()
    }
}
