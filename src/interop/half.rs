//! `f16` and `bf16` of the crate `half`: batches and weights are converted without rounding,
//! factors are rounded once.
//!
//! Layers and statistics are in `f32` or `f64`. These functions convert numbers of 16 bits from and
//! to them. `f32` represents every `f16` and `bf16` exactly.
//!
//! ```
//! use dalr::interop::half::{round, widen, widen_column};
//! use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Rank};
//! use faer::{ColRef, MatRef};
//! use half::{bf16, f16};
//!
//! # fn main() -> dalr::Result<()> {
//! // Buffers in row-major order: the weight is out × in, the batch samples × in.
//! let weight: Vec<bf16> = (0..48).map(|i| bf16::from_f32((i * 5 % 7) as f32)).collect();
//! let bias: Vec<bf16> = vec![bf16::ONE; 8];
//! let batch: Vec<f16> = (0..300).map(|i| f16::from_f32((i * 11 % 13) as f32)).collect();
//!
//! let weight = widen(MatRef::from_row_major_slice(&weight, 8, 6))?;
//! let layer = Linear::<f32>::new(weight, Some(widen_column(ColRef::from_slice(&bias))))?;
//! let mut stats = ActivationStats::new(6);
//! stats.update(widen(MatRef::from_row_major_slice(&batch, 50, 6))?.as_ref())?;
//! let compressed = Dalr::new().compress(&layer, &stats, Rank::Fixed(2))?;
//! let down = round::<bf16, _>(compressed.layer().down())?; // Mat<bf16>
//! assert_eq!(down.shape(), (2, 6));
//! # Ok(())
//! # }
//! ```
//!
//! For arrays of ndarray and nalgebra matrices of these types, use `view` of `interop::ndarray` and
//! `interop::nalgebra` first.
//!
//! Factors in 16 bits have a relative rounding error of `2⁻¹¹` (`f16`) or `2⁻⁸` (`bf16`) in each
//! entry. [`Compressed::evaluate`](crate::Compressed::evaluate) measures the error before this
//! rounding; run the converted layer to measure it afterwards.

use core::fmt::{Debug, Display};

use ::half::{bf16, f16};
use faer::{Col, ColRef, Mat, MatRef};

use crate::error::during;
use crate::linalg;
use crate::{Error, Result, Scalar};

mod sealed {
    pub trait SealedHalf {}
    impl SealedHalf for half::f16 {}
    impl SealedHalf for half::bf16 {}
}

/// A 16-bit storage type: [`struct@f16`] or [`bf16`].
///
/// ```
/// use dalr::interop::half::Half;
/// fn read<H: Half>(bytes: [u8; 2]) -> f32 {
///     H::from_le_bytes(bytes).widen()
/// }
/// assert_eq!((read::<half::f16>([0x00, 0x3c]), read::<half::bf16>([0x80, 0x3f])), (1.0, 1.0));
/// ```
pub trait Half: sealed::SealedHalf + Copy + Debug + Display + Default + PartialEq + Send + Sync + 'static {
    /// Reads a number from two bytes, the lower one first.
    fn from_le_bytes(bytes: [u8; 2]) -> Self;

    /// Returns the two bytes of a number, the lower one first.
    ///
    /// ```
    /// use dalr::interop::half::Half;
    /// let bytes = Half::to_le_bytes(half::bf16::ONE);
    /// assert_eq!(<half::bf16 as Half>::from_le_bytes(bytes), half::bf16::ONE);
    /// ```
    fn to_le_bytes(self) -> [u8; 2];

    /// Returns the same number in `f32` or `f64`.
    fn widen<T: Scalar>(self) -> T;

    /// Rounds to the nearest number of this type, ties to even; infinite beyond its range.
    ///
    /// There is only one rounding, even from `f64`.
    ///
    /// ```
    /// use dalr::interop::half::Half;
    /// use half::f16;
    /// // A little more than half-way between 1 and the next number, 1 + 2⁻¹⁰. `f32` cannot tell.
    /// let number = 1.0 + 2_f64.powi(-11) + 2_f64.powi(-40);
    /// assert_eq!(f16::round(number).widen::<f64>(), 1.0 + 2_f64.powi(-10));
    /// assert_eq!(f16::round(number as f32), f16::ONE);
    /// assert!(f16::round(1e6).is_infinite());
    /// ```
    fn round<T: Scalar>(number: T) -> Self;
}

macro_rules! stored_in_16_bits {
    ($($half:ty),+) => {$(
        impl Half for $half {
            fn from_le_bytes(bytes: [u8; 2]) -> Self {
                Self::from_le_bytes(bytes)
            }

            fn to_le_bytes(self) -> [u8; 2] {
                self.to_le_bytes()
            }

            fn widen<T: Scalar>(self) -> T {
                T::from_f64(f64::from(self.to_f32()))
            }

            fn round<T: Scalar>(number: T) -> Self {
                Self::from_f32(to_odd(number.to_f64()))
            }
        }
    )+};
}

stored_in_16_bits!(f16, bf16);

/// Rounds to `f32`, an inexact number to the neighbour with an odd significand.
///
/// Rounding the result to at least two digits less gives the same number as rounding once (Boldo
/// and Melquiond 2008). The crate `half` rounds `f64` twice, or ignores its lower half.
fn to_odd(number: f64) -> f32 {
    let nearest = number as f32;
    let error = number - f64::from(nearest);
    if error == 0.0 || !error.is_finite() || !nearest.to_bits().is_multiple_of(2) {
        return nearest;
    }
    // The bits of the next number away from zero are larger by one, for either sign.
    let outwards = (error > 0.0) == number.is_sign_positive();
    f32::from_bits(if outwards { nearest.to_bits() + 1 } else { nearest.to_bits() - 1 })
}

/// Converts a batch or a weight to `f32` or `f64`, without rounding.
///
/// # Errors
///
/// [`Error::Memory`] if the copy does not fit.
pub fn widen<T: Scalar, H: Half>(matrix: MatRef<'_, H>) -> Result<Mat<T>> {
    let mut copy = during("interop::half::widen", || linalg::zeros(matrix.nrows(), matrix.ncols()))?;
    for (to, from) in copy.as_mut().col_iter_mut().zip(matrix.col_iter()) {
        to.iter_mut().zip(from.iter()).for_each(|(to, from)| *to = from.widen());
    }
    Ok(copy)
}

/// Converts a bias to `f32` or `f64`, without rounding.
pub fn widen_column<T: Scalar, H: Half>(column: ColRef<'_, H>) -> Col<T> {
    column.iter().map(|number| number.widen()).collect()
}

/// Converts a factor to 16 bits, each entry rounded to the nearest.
///
/// # Errors
///
/// [`Error::Overflow`] if an entry is beyond the type's range, 65504 for `f16`; [`Error::Memory`]
/// if the copy does not fit.
///
/// ```
/// use dalr::{Error, interop::half::round};
/// use half::{bf16, f16};
/// let factor = faer::mat![[1.0, 1e5]];
/// assert!(matches!(round::<f16, _>(factor.as_ref()), Err(Error::Overflow { .. })));
/// assert!(round::<bf16, _>(factor.as_ref()).is_ok());
/// ```
pub fn round<H: Half, T: Scalar>(matrix: MatRef<'_, T>) -> Result<Mat<H>> {
    during("interop::half::round", || {
        let mut copy = Mat::new();
        let needed = matrix.nrows().saturating_mul(matrix.ncols()).saturating_mul(size_of::<H>());
        copy.try_reserve(matrix.nrows(), matrix.ncols()).map_err(|_| linalg::out_of_memory(needed))?;
        copy.resize_with(matrix.nrows(), matrix.ncols(), |_, _| H::default());
        for (to, from) in copy.as_mut().col_iter_mut().zip(matrix.col_iter()) {
            for (to, from) in to.iter_mut().zip(from.iter()) {
                *to = rounded(*from)?;
            }
        }
        Ok(copy)
    })
}

/// Converts a bias to 16 bits, each entry rounded to the nearest.
///
/// # Errors
///
/// [`Error::Overflow`], as [`round`].
///
/// ```
/// use dalr::interop::half::round_column;
/// # fn main() -> dalr::Result<()> {
/// let bias = round_column::<half::f16, _>(faer::col![0.5, 65_519.0].as_ref())?;
/// assert_eq!(bias[1], half::f16::MAX);
/// assert!(round_column::<half::f16, _>(faer::col![0.5, 65_520.0].as_ref()).is_err());
/// # Ok(())
/// # }
/// ```
pub fn round_column<H: Half, T: Scalar>(column: ColRef<'_, T>) -> Result<Col<H>> {
    during("interop::half::round_column", || column.iter().map(|number| rounded(*number)).collect())
}

fn rounded<H: Half, T: Scalar>(number: T) -> Result<H> {
    let half = H::round(number);
    if half.widen::<f32>().is_finite() {
        return Ok(half);
    }
    Err(Error::overflow("an entry"))
}
