//! Conversions keep the numbers of other libraries' types, in any memory layout. Unsupported types
//! are errors.
#[cfg(feature = "approx")]
mod approx;
#[cfg(feature = "candle")]
mod candle;
#[cfg(feature = "candle")]
mod gradients;
#[cfg(feature = "half")]
mod half;
#[cfg(feature = "nalgebra")]
mod nalgebra;
#[cfg(feature = "ndarray")]
mod ndarray;
