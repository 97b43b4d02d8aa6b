//! A compressed layer as a module of burn.

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, Tensor};
use dalr::{Calibration, LowRankCompressor, Rank, Report};

use crate::convert::{self, Number};
use crate::{Result, to_dalr};

/// A compressed layer `up(down(x))`. It can be trained, moved and recorded like every module of
/// burn.
#[derive(Module, Debug)]
pub struct LowRankLinear {
    /// The first factor, from the inputs to the latent dimension, without a bias.
    pub down: Linear,
    /// The second factor, from the latent dimension to the outputs, with the bias if there is one.
    pub up: Linear,
}

/// The sizes of a [`LowRankLinear`]; a record can be loaded into the layer that
/// [`init`](Self::init) makes.
#[derive(Config, Debug)]
pub struct LowRankLinearConfig {
    /// Number of inputs.
    pub d_input: usize,
    /// Rank, which is the number of outputs of `down`.
    pub rank: usize,
    /// Number of outputs.
    pub d_output: usize,
    /// Whether there is a bias.
    #[config(default = true)]
    pub bias: bool,
}

impl LowRankLinearConfig {
    /// Creates a layer of these sizes with random weights, drawn as in burn's own layers.
    pub fn init(&self, device: &Device) -> LowRankLinear {
        LowRankLinear {
            down: LinearConfig::new(self.d_input, self.rank).with_bias(false).init(device),
            up: LinearConfig::new(self.rank, self.d_output).with_bias(self.bias).init(device),
        }
    }
}

impl LowRankLinear {
    /// Copies the factors of a compressed layer, each number rounded once to `dtype`.
    ///
    /// # Errors
    ///
    /// Those of [`to_burn`](crate::to_burn).
    pub fn new<T: Number>(factors: &dalr::LowRankLinear<T>, device: &Device, dtype: DType) -> Result<Self> {
        Ok(Self {
            down: convert::linear(factors.down(), None, device, dtype)?,
            up: convert::linear(factors.up(), factors.bias(), device, dtype)?,
        })
    }

    /// Copies the factors to a layer of dalr, for example after training.
    ///
    /// # Errors
    ///
    /// Those of the function [`to_dalr`](crate::to_dalr); [`dalr::Error::Shape`] if `down` has a
    /// bias.
    pub fn to_dalr<T: Number>(&self) -> Result<dalr::LowRankLinear<T>> {
        convert::require_no_bias(&self.down, "entries in the bias of the factor `down`")?;
        let bias = self.up.bias.as_ref().map(convert::column).transpose()?;
        Ok(dalr::LowRankLinear::new(convert::matrix(&self.down.weight)?, convert::matrix(&self.up.weight)?, bias)?)
    }

    /// Returns the outputs, with as many axes as the inputs.
    ///
    /// # Panics
    ///
    /// If the last axis does not have one entry per input, like burn's own layers.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        self.up.forward(self.down.forward(input))
    }
}

/// Compresses a layer of burn. Returns two layers of its dtype on its device, and the report.
///
/// `calibration` is anything that converts into a [`Calibration`], such as `&stats`. It determines
/// the precision: use `ActivationStats::<f32>` for weights of 16 or 32 bits.
///
/// # Errors
///
/// Those of [`to_dalr`], [`LowRankCompressor::compress_with`] and [`to_burn`](crate::to_burn).
pub fn compress<'a, T: Number>(
    layer: &Linear,
    calibration: impl Into<Calibration<'a, T>>,
    method: &(impl LowRankCompressor<T> + ?Sized),
    rank: Rank,
) -> Result<(LowRankLinear, Report)> {
    let compressed = method.compress_with(&to_dalr(layer)?, calibration.into(), rank)?;
    let weight = layer.weight.val();
    let replacement = LowRankLinear::new(compressed.layer(), &weight.device(), weight.dtype())?;
    Ok((replacement, compressed.report().clone()))
}
