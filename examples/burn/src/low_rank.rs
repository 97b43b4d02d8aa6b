//! Two thin layers in the place of a dense one, as a module of burn.

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, Tensor};
use dalr::{ActivationStats, LowRankCompressor, Rank, Report};

use crate::convert::{self, Number};
use crate::{Result, to_dalr};

/// A compressed layer `up(down(x))`: trained, moved and recorded as every module of burn.
#[derive(Module, Debug)]
pub struct LowRankLinear {
    /// From the inputs to the rank, without a bias.
    pub down: Linear,
    /// From the rank to the outputs, with the bias if there is one.
    pub up: Linear,
}

/// The sizes of a [`LowRankLinear`], to make one that a record is then loaded into.
#[derive(Config, Debug)]
pub struct LowRankLinearConfig {
    /// Number of inputs.
    pub d_input: usize,
    /// Width of the waist between the factors.
    pub rank: usize,
    /// Number of outputs.
    pub d_output: usize,
    /// Whether there is a bias.
    #[config(default = true)]
    pub bias: bool,
}

impl LowRankLinearConfig {
    /// A layer of these sizes with weights drawn at random, as burn's own.
    pub fn init(&self, device: &Device) -> LowRankLinear {
        LowRankLinear {
            down: LinearConfig::new(self.d_input, self.rank).with_bias(false).init(device),
            up: LinearConfig::new(self.rank, self.d_output).with_bias(self.bias).init(device),
        }
    }
}

impl LowRankLinear {
    /// The factors of dalr as layers of burn, their numbers rounded to `dtype`.
    ///
    /// # Errors
    ///
    /// As [`to_burn`](crate::to_burn).
    pub fn new<T: Number>(factors: &dalr::LowRankLinear<T>, device: &Device, dtype: DType) -> Result<Self> {
        Ok(Self {
            down: convert::linear(factors.down(), None, device, dtype)?,
            up: convert::linear(factors.up(), factors.bias(), device, dtype)?,
        })
    }

    /// The factors as they are now, after training for instance.
    ///
    /// # Errors
    ///
    /// As [`to_dalr`], and for a `down` that was given a bias.
    pub fn to_dalr<T: Number>(&self) -> Result<dalr::LowRankLinear<T>> {
        if let Some(bias) = &self.down.bias {
            let what = "entries in the bias of the factor `down` (it has none)";
            let found = bias.lazy_shape().num_elements();
            return Err(dalr::Error::Shape { operation: "to_dalr", what, expected: 0, found }.into());
        }
        let bias = self.up.bias.as_ref().map(convert::column).transpose()?;
        Ok(dalr::LowRankLinear::new(convert::matrix(&self.down.weight)?, convert::matrix(&self.up.weight)?, bias)?)
    }

    /// The outputs, of as many axes as the inputs.
    ///
    /// # Panics
    ///
    /// As burn's own layers: if the last axis is not the inputs.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        self.up.forward(self.down.forward(input))
    }
}

/// Compresses a layer of burn: two layers for it, of its type and on its device, and what that cost.
///
/// The precision is that of the statistics: `ActivationStats::<f32>` for weights of 16 or 32 bits.
///
/// # Errors
///
/// As [`to_dalr`] and [`LowRankCompressor::compress`].
pub fn compress<T: Number>(
    layer: &Linear,
    stats: &ActivationStats<T>,
    method: &impl LowRankCompressor<T>,
    rank: Rank,
) -> Result<(LowRankLinear, Report)> {
    let compressed = method.compress(&to_dalr(layer)?, stats, rank)?;
    let weight = layer.weight.val();
    let replacement = LowRankLinear::new(compressed.layer(), &weight.device(), weight.dtype())?;
    Ok((replacement, compressed.report().clone()))
}
