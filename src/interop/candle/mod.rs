//! candle tensors and layers: statistics while a model runs, and compressed layers as modules that
//! replace the original ones, for inference and training.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{Activation, Linear, Module, seq};
//! use dalr::interop::candle::{LowRankLinear, Recorder};
//! use dalr::{Dalr, LowRankCompressor, Rank};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Device::Cpu;
//! let wave = |rows: usize, columns: usize, step: f64| {
//!     Tensor::arange(0.0, (rows * columns) as f64, &device)?.affine(step, 0.0)?.sin()?.reshape((rows, columns))?.to_dtype(DType::F32)
//! };
//! let (first, second) = (Linear::new(wave(16, 8, 0.7)?, None), Linear::new(wave(12, 16, 1.3)?, Some(wave(1, 12, 0.4)?.squeeze(0)?)));
//!
//! // 1. Calibrate: wrap the layers to watch, and run the model on data of the target domain.
//! let recorder = Recorder::<f32>::new();
//! let model = seq().add(first.clone()).add(Activation::Relu).add(recorder.watch("second", second.clone())?);
//! let batch = wave(10 * 20, 8, 0.3)?.reshape((10, 20, 8))?; // batch × sequence × in: any axes before the last
//! let original = model.forward(&batch)?;
//! let statistics = recorder.take();
//!
//! // 2. Compress.
//! let layer = dalr::Linear::try_from(&second)?;
//! let compressed = Dalr::new().compress(&layer, &statistics["second"], Rank::Fixed(6))?;
//! println!("{}", compressed.report());
//!
//! // 3. Replace the original layer.
//! let replacement = LowRankLinear::new(compressed.layer(), DType::F32, &device)?;
//! let model = seq().add(first).add(Activation::Relu).add(replacement);
//! let off = (model.forward(&batch)? - original)?.sqr()?.mean_all()?.to_scalar::<f32>()?;
//! assert!(off < 0.1, "{off}");
//! # Ok(())
//! # }
//! ```
//!
//! # Conversions
//!
//! | from | to | |
//! |---|---|---|
//! | a batch with any axes before the last | [`ActivationStats`](crate::ActivationStats) | [`update`]; no copy of contiguous numbers of the statistics' type |
//! | the same and a mask of its padding | the same | [`update_weighted`] |
//! | the inputs of a layer while a model runs | the same | [`Recorder`] |
//! | the gradients of a layer's outputs, for an [`OutputMetric`](crate::compress::OutputMetric) | the same | [`Recorder::gradients`] |
//! | a batch | samples × in | [`samples`], a copy |
//! | a [`candle_nn::Linear`](https://docs.rs/candle-nn/0.11/candle_nn/struct.Linear.html) | [`Linear`](crate::Linear) | `Linear::try_from(&layer)`, and [`to_candle_linear`] back |
//! | a compressed layer | a [`Module`](https://docs.rs/candle-core/0.11/candle_core/trait.Module.html) | [`LowRankLinear`], and `dalr::LowRankLinear::try_from(&module)` back |
//! | the same in pivoted storage | the same | [`PivotedLinear`], and `dalr::factors::PivotedLinear::try_from(&module)` back |
//! | a [`candle_nn::Conv2d`](https://docs.rs/candle-nn/0.11/candle_nn/conv/struct.Conv2d.html) | [`Conv2d`](crate::convolution::Conv2d) | `Conv2d::try_from(&conv)`, and [`to_candle_conv2d`] back |
//! | a batch of images | [`PatchStats`](crate::convolution::PatchStats) | [`update_patches`] |
//! | a compressed convolution | a module | [`LowRankConv2d`], and `dalr::convolution::LowRankConv2d::try_from(&module)` back |
//! | a factor | a tensor | [`to_tensor`], a copy |
//!
//! Tensors of `F32`, `F16` and `BF16` are read as `f32` or `f64` without rounding, and `F64` as
//! `f64`. They may have strides, and are copied from other devices to the processor's memory. Other
//! dtypes are an [`Error::NumberType`]. So is `F64` for statistics in `f32`, which would round.
//!
//! `?` converts errors of this crate to errors of candle, so a model's `forward` can call this
//! crate.

mod convolution;
mod gradients;
mod layer;
mod pivoted;
mod recorder;
mod tensor;

pub use self::convolution::{LowRankConv2d, to_candle_conv2d, update_patches};
pub use self::layer::{LowRankLinear, to_candle_linear};
pub use self::pivoted::PivotedLinear;
pub use self::recorder::{Recorded, Recorder};
pub use self::tensor::{samples, to_tensor, update, update_weighted};

use crate::Error;

/// Converts an error of candle.
fn refused(error: candle_core::Error) -> Error {
    Error::library("candle", error)
}

/// Serves functions of candle that call this crate, such as a module's `forward`.
/// `candle_core::Error::Wrapped` keeps the error and its message.
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        Self::wrap(error)
    }
}
