//! What comes from other libraries is what they hold, in whatever layout, and what does not fit is an error.
#[cfg(feature = "approx")]
mod approx;
#[cfg(feature = "candle")]
mod candle;
#[cfg(feature = "half")]
mod half;
#[cfg(feature = "nalgebra")]
mod nalgebra;
#[cfg(feature = "ndarray")]
mod ndarray;
