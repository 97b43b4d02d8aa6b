//! Conversions from and to other libraries' types and formats, one module per optional feature.

#[cfg(feature = "nalgebra")]
#[cfg_attr(docsrs, doc(cfg(feature = "nalgebra")))]
pub mod nalgebra;
#[cfg(feature = "safetensors")]
#[cfg_attr(docsrs, doc(cfg(feature = "safetensors")))]
#[allow(clippy::indexing_slicing, reason = "buffers hold `CHUNK` numbers and are cut to chunks of no more than these")]
pub mod safetensors;
