//! The element types of weights and activations.

use core::fmt::{Debug, Display};

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// The element type of weights and activations: `f32` or `f64`.
///
/// The trait is sealed, because statistics and solvers are tuned for these two types. Sums over
/// samples are in `f64` for both. Large `f32` problems are solved in `f32` if that is accurate
/// enough.
///
/// ```
/// use dalr::{Linear, LowRankLinear, Result, Scalar};
/// /// For either precision.
/// fn restored<T: Scalar>(layer: &LowRankLinear<T>) -> Result<Linear<T>> {
///     layer.to_linear()
/// }
/// let layer = LowRankLinear::new(faer::mat![[1.0_f32]], faer::mat![[2.0_f32]], None);
/// assert_eq!(layer.and_then(|layer| restored(&layer)).map(|layer| layer.weight()[(0, 0)]), Ok(2.0));
/// ```
pub trait Scalar:
    sealed::Sealed
    + crate::linalg::Kernels
    + faer::traits::RealField
    + Copy
    + Debug
    + Default
    + Display
    + Send
    + Sync
    + 'static
{
    /// Distance between 1 and the next larger number of this type.
    const EPSILON: f64;

    /// Widens to `f64`, without loss.
    ///
    /// ```
    /// use dalr::Scalar;
    /// assert_eq!(0.5_f32.to_f64(), 0.5);
    /// ```
    fn to_f64(self) -> f64;

    /// Rounds to the nearest number of this type; infinite if `value` is out of its range.
    ///
    /// ```
    /// use dalr::Scalar;
    /// assert_eq!(f32::from_f64(0.5), 0.5);
    /// assert!(f32::from_f64(1e60).is_infinite());
    /// ```
    fn from_f64(value: f64) -> Self;
}

impl Scalar for f32 {
    const EPSILON: f64 = f32::EPSILON as f64;

    #[inline]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }

    #[inline]
    fn from_f64(value: f64) -> Self {
        value as f32
    }
}

impl Scalar for f64 {
    const EPSILON: f64 = f64::EPSILON;

    #[inline]
    fn to_f64(self) -> f64 {
        self
    }

    #[inline]
    fn from_f64(value: f64) -> Self {
        value
    }
}
