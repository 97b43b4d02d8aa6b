//! The calibration data of a compressor.

use core::fmt;

use crate::{ActivationStats, Scalar};

/// The data that a compressor is given: statistics of the layer's inputs, or nothing.
///
/// Wherever a method asks for calibration data, a reference to [`ActivationStats`] does.
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
    activations: Option<&'a ActivationStats<T>>,
}

impl<'a, T> Calibration<'a, T> {
    /// Returns calibration without data, for methods that use the weight alone.
    pub fn none() -> Self {
        Self { activations: None }
    }

    /// Returns the statistics of the layer's inputs; `None` for [`Calibration::none`].
    pub fn activations(&self) -> Option<&'a ActivationStats<T>> {
        self.activations
    }
}

impl<T: Scalar> Calibration<'_, T> {
    /// Returns the number of samples seen.
    pub(crate) fn samples(&self) -> u64 {
        self.activations.map_or(0, ActivationStats::samples)
    }
}

impl<'a, T> From<&'a ActivationStats<T>> for Calibration<'a, T> {
    fn from(stats: &'a ActivationStats<T>) -> Self {
        Self { activations: Some(stats) }
    }
}

impl<T> Clone for Calibration<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Calibration<'_, T> {}

impl<T> fmt::Debug for Calibration<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calibration").field("activations", &self.activations).finish()
    }
}
