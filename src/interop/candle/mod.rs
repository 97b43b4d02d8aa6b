//! candle tensors and layers: statistics while a model runs, and compressed layers as modules that run and train where the dense ones did.
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
//! // 1. Calibrate: wrap what is to be watched, and run the model on the data that matter.
//! let recorder = Recorder::<f32>::new();
//! let model = seq().add(first.clone()).add(Activation::Relu).add(recorder.watch("second", second.clone())?);
//! let batch = wave(10 * 20, 8, 0.3)?.reshape((10, 20, 8))?; // batch × sequence × in: any axes before the last
//! let dense = model.forward(&batch)?;
//! let statistics = recorder.take();
//!
//! // 2. Compress.
//! let layer = dalr::Linear::try_from(&second)?;
//! let compressed = Dalr::new().compress(&layer, &statistics["second"], Rank::Fixed(6))?;
//! println!("{}", compressed.report());
//!
//! // 3. Use it in the place of the dense layer.
//! let replacement = LowRankLinear::new(compressed.layer(), DType::F32, &device)?;
//! let model = seq().add(first).add(Activation::Relu).add(replacement);
//! let off = (model.forward(&batch)? - dense)?.sqr()?.mean_all()?.to_scalar::<f32>()?;
//! assert!(off < 0.1, "{off}");
//! # Ok(())
//! # }
//! ```
//!
//! # What goes in and out
//!
//! | from | to | |
//! |---|---|---|
//! | a batch with any axes before the last | [`ActivationStats`](crate::ActivationStats) | [`update`]; no copy of contiguous numbers of the statistics' own type |
//! | the same and a mask of its padding | the same | [`update_weighted`] |
//! | what a layer reads while a model runs | the same | [`Recorder`] |
//! | a batch | samples × in | [`samples`], a copy |
//! | a [`candle_nn::Linear`](https://docs.rs/candle-nn/0.11/candle_nn/struct.Linear.html) | [`Linear`](crate::Linear) | `Linear::try_from(&layer)`, and [`to_candle_linear`] back |
//! | a compressed layer | a [`Module`](https://docs.rs/candle-core/0.11/candle_core/trait.Module.html) | [`LowRankLinear`], and `dalr::LowRankLinear::try_from(&module)` back |
//! | a factor | a tensor | [`to_tensor`], a copy |
//!
//! Tensors of `F32`, `F16` and `BF16` are read as `f32` or `f64`, exactly, and `F64` as `f64`; contiguous or not, and from any device, by way of the
//! processor's memory. Anything else is an [`Error::NumberType`]: an `F64` tensor has digits that statistics in `f32` would lose without a word.
//!
//! Errors of this crate turn into candle's with `?`, so that it can be called in a model's `forward`.

mod layer;
mod recorder;
mod tensor;

pub use self::layer::{LowRankLinear, to_candle_linear};
pub use self::recorder::{Recorded, Recorder};
pub use self::tensor::{samples, to_tensor, update, update_weighted};

use crate::Error;

/// An error that candle returned.
fn refused(error: candle_core::Error) -> Error {
    Error::library("candle", error)
}

/// For functions of candle's that call this crate's, such as a module's `forward`. The message stays; `candle_core::Error::Wrapped` holds it.
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        Self::wrap(error)
    }
}
