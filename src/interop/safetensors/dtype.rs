//! Floating-point numbers in files: conversion from and to `f64`, piece by piece.

use ::half::{bf16, f16};

use super::Dtype;
use crate::interop::half::Half;

/// A floating-point dtype of layers and activations.
///
/// ```
/// use dalr::interop::safetensors::{Dtype, FloatDtype};
///
/// let dtype = FloatDtype::of(Dtype::BF16).unwrap();
/// let mut bytes = Vec::new();
/// assert_eq!(dtype.encode(1.001, &mut bytes), 1.0); // rounded to 8 bits
/// dtype.decode(&bytes, |number| assert_eq!(number, 1.0));
/// assert_eq!(FloatDtype::of(Dtype::I64), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FloatDtype {
    /// `f64`.
    F64,
    /// `f32`.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an `f32`.
    BF16,
}

impl FloatDtype {
    /// Returns the floating-point dtype, or `None` for any other.
    pub fn of(dtype: Dtype) -> Option<Self> {
        [Self::F64, Self::F32, Self::F16, Self::BF16].into_iter().find(|float| Dtype::from(*float) == dtype)
    }

    /// Returns the bytes of one number.
    pub fn width(self) -> usize {
        Dtype::from(self).bitsize() / 8
    }

    /// Calls `visit` with every number of `bytes`, in order. Ignores an incomplete number at the
    /// end.
    pub fn decode(self, bytes: &[u8], visit: impl FnMut(f64)) {
        fn each<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f64, mut visit: impl FnMut(f64)) {
            bytes.as_chunks().0.iter().for_each(|bytes| visit(number(*bytes)));
        }
        match self {
            Self::F64 => each(bytes, f64::from_le_bytes, visit),
            Self::F32 => each(bytes, |bytes| f64::from(f32::from_le_bytes(bytes)), visit),
            Self::F16 => each(bytes, |bytes| f16::from_le_bytes(bytes).widen(), visit),
            Self::BF16 => each(bytes, |bytes| bf16::from_le_bytes(bytes).widen(), visit),
        }
    }

    /// Appends `number`, rounded to this dtype, to `bytes`. Returns the rounded number: an infinity
    /// if it is out of range.
    pub fn encode(self, number: f64, bytes: &mut Vec<u8>) -> f64 {
        fn half<H: Half>(number: f64, bytes: &mut Vec<u8>) -> f64 {
            let rounded = H::round(number);
            bytes.extend(rounded.to_le_bytes());
            rounded.widen()
        }
        match self {
            Self::F64 => {
                bytes.extend(number.to_le_bytes());
                number
            }
            Self::F32 => {
                bytes.extend((number as f32).to_le_bytes());
                f64::from(number as f32)
            }
            Self::F16 => half::<f16>(number, bytes),
            Self::BF16 => half::<bf16>(number, bytes),
        }
    }
}

impl From<FloatDtype> for Dtype {
    fn from(dtype: FloatDtype) -> Self {
        match dtype {
            FloatDtype::F64 => Self::F64,
            FloatDtype::F32 => Self::F32,
            FloatDtype::F16 => Self::F16,
            FloatDtype::BF16 => Self::BF16,
        }
    }
}
