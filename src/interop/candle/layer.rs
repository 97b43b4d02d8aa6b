//! Converts layers from and to candle, and provides the compressed layer as a module.

use candle_core::{DType, Device, Tensor, Var, WithDType};
use candle_nn::{Module, VarBuilder};

use super::refused;
use super::tensor::{to_column, to_matrix, write};
use crate::error::during;
use crate::{Error, Linear, Result, Scalar};

/// Copies a layer of candle.
///
/// # Errors
///
/// Those of [`Linear::new`]; [`Error::NumberType`] for a dtype that `T` cannot represent.
impl<T: Scalar + WithDType> TryFrom<&candle_nn::Linear> for Linear<T> {
    type Error = Error;

    fn try_from(layer: &candle_nn::Linear) -> Result<Self> {
        during("Linear::try_from", || {
            let bias = layer.bias().map(to_column).transpose()?;
            Self::new(to_matrix(layer.weight())?, bias)
        })
    }
}

/// Returns a layer of candle with the same weight and bias, rounded once to `dtype`.
///
/// # Errors
///
/// [`Error::NumberType`], [`Error::Overflow`], [`Error::Memory`] and [`Error::Library`], as
/// [`to_tensor`](super::to_tensor).
///
/// ```
/// use candle_core::{DType, Device};
/// # fn main() -> dalr::Result<()> {
/// let layer = dalr::Linear::new(faer::mat![[1.0, 2.0]], Some(faer::col![3.0]))?;
/// let candles = dalr::interop::candle::to_candle_linear(&layer, DType::BF16, &Device::Cpu)?;
/// assert_eq!(dalr::Linear::try_from(&candles), Ok(layer));
/// # Ok(())
/// # }
/// ```
pub fn to_candle_linear<T: Scalar>(layer: &Linear<T>, dtype: DType, device: &Device) -> Result<candle_nn::Linear> {
    during("interop::candle::to_candle_linear", || linear(layer.weight(), layer.bias(), dtype, device))
}

pub(super) fn linear<T: Scalar>(
    weight: faer::MatRef<'_, T>,
    bias: Option<faer::ColRef<'_, T>>,
    dtype: DType,
    device: &Device,
) -> Result<candle_nn::Linear> {
    let bias = bias.map(|bias| write(bias.as_mat(), bias.nrows().into(), dtype, device)).transpose()?;
    Ok(candle_nn::Linear::new(write(weight, weight.shape().into(), dtype, device)?, bias))
}

/// A compressed layer as a module of candle: `down`, rank × in, without a bias, then `up`, out ×
/// rank, with the bias.
///
/// It accepts the same inputs as a
/// [`candle_nn::Linear`](https://docs.rs/candle-nn/0.11/candle_nn/struct.Linear.html) of the same
/// size. Its factors are constants; those of [`trainable`](Self::trainable) are variables.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{AdamW, Module, Optimizer, ParamsAdamW};
/// use dalr::interop::candle::LowRankLinear;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let layer = dalr::LowRankLinear::new(faer::mat![[1.0, 2.0, 3.0]], faer::mat![[1.0], [-1.0]], Some(faer::col![0.0, 0.5]))?;
/// // `layer` comes from a compressor: 3 inputs, 2 outputs.
/// let module = LowRankLinear::new(&layer, DType::F32, &Device::Cpu)?.trainable()?;
/// let inputs = Tensor::new(&[[1_f32, 0.0, 2.0], [0.0, 1.0, -1.0]], &Device::Cpu)?;
/// let targets = Tensor::zeros((2, 2), DType::F32, &Device::Cpu)?;
///
/// let mut optimizer = AdamW::new(module.variables().to_vec(), ParamsAdamW { lr: 0.01, ..Default::default() })?;
/// let loss = || (module.forward(&inputs)? - &targets)?.sqr()?.mean_all();
/// let before = loss()?.to_scalar::<f32>()?;
/// for _ in 0..20 {
///     optimizer.backward_step(&loss()?)?;
/// }
/// assert!(loss()?.to_scalar::<f32>()? < 0.8 * before);
/// let trained = dalr::LowRankLinear::<f32>::try_from(&module)?; // and back
/// # assert_eq!(trained.rank(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct LowRankLinear {
    down: candle_nn::Linear,
    up: candle_nn::Linear,
    variables: Vec<Var>,
}

impl LowRankLinear {
    /// Copies the factors of a compressed layer to constant tensors, each entry rounded once to
    /// `dtype`.
    ///
    /// # Errors
    ///
    /// [`Error::NumberType`], [`Error::Overflow`], [`Error::Memory`] and [`Error::Library`], as
    /// [`to_tensor`](super::to_tensor).
    pub fn new<T: Scalar>(layer: &crate::LowRankLinear<T>, dtype: DType, device: &Device) -> Result<Self> {
        during("interop::candle::LowRankLinear::new", || {
            let down = linear(layer.down(), None, dtype, device)?;
            let up = linear(layer.up(), layer.bias(), dtype, device)?;
            Ok(Self { down, up, variables: Vec::new() })
        })
    }

    /// Reads factors from a
    /// [`VarBuilder`](https://docs.rs/candle-nn/0.11/candle_nn/type.VarBuilder.html).
    ///
    /// Their names are `0.weight`, `1.weight` and `1.bias`, those of PyTorch's
    /// `nn.Sequential(nn.Linear(in, rank, bias=False), nn.Linear(rank, out))`. The program `dalr`
    /// and [`tensors`](Self::tensors) use the same names. The builder of a
    /// [`VarMap`](https://docs.rs/candle-nn/0.11/candle_nn/struct.VarMap.html) makes them variables
    /// of that map.
    ///
    /// # Errors
    ///
    /// Errors of candle, for tensors that are missing or have other shapes.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use candle_nn::{VarBuilder, VarMap};
    /// use dalr::interop::candle::LowRankLinear;
    /// # fn main() -> candle_core::Result<()> {
    /// let variables = VarMap::new();
    /// let builder = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
    /// let module = LowRankLinear::load(64, 8, 32, true, builder.pp("encoder.dense"))?;
    /// assert_eq!((module.rank(), variables.all_vars().len()), (8, 3));
    /// # Ok(())
    /// # }
    /// ```
    pub fn load(
        in_features: usize,
        rank: usize,
        out_features: usize,
        bias: bool,
        builder: VarBuilder<'_>,
    ) -> candle_core::Result<Self> {
        let down = candle_nn::linear_no_bias(in_features, rank, builder.pp("0"))?;
        let up = candle_nn::linear_b(rank, out_features, bias, builder.pp("1"))?;
        Ok(Self { down, up, variables: Vec::new() })
    }

    /// Returns the same layer with copies of its factors and bias as variables, for an optimizer.
    ///
    /// # Errors
    ///
    /// [`Error::Library`] if candle cannot copy them.
    pub fn trainable(&self) -> Result<Self> {
        during("interop::candle::LowRankLinear::trainable", || {
            let variable = |tensor: &Tensor| tensor.detach().copy().and_then(|copy| Var::from_tensor(&copy));
            let variable = |tensor| variable(tensor).map_err(refused);
            let (down, up) = (variable(self.down.weight())?, variable(self.up.weight())?);
            let bias = self.up.bias().map(variable).transpose()?;
            let tensor = |variable: &Var| variable.as_tensor().clone();
            Ok(Self {
                down: candle_nn::Linear::new(tensor(&down), None),
                up: candle_nn::Linear::new(tensor(&up), bias.as_ref().map(tensor)),
                variables: [Some(down), Some(up), bias].into_iter().flatten().collect(),
            })
        })
    }

    /// Returns the variables `down`, `up` and bias; empty unless the layer came from
    /// [`trainable`](Self::trainable).
    pub fn variables(&self) -> &[Var] {
        &self.variables
    }

    /// Returns the first factor, rank × in, as a layer without a bias.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use dalr::interop::candle::LowRankLinear;
    /// # fn main() -> dalr::Result<()> {
    /// let layer = dalr::LowRankLinear::new(faer::mat![[1.0, 2.0, 3.0]], faer::mat![[1.0], [2.0]], None)?;
    /// let module = LowRankLinear::new(&layer, DType::F32, &Device::Cpu)?;
    /// assert_eq!((module.down().weight().dims(), module.up().weight().dims()), (&[1, 3][..], &[2, 1][..]));
    /// # Ok(())
    /// # }
    /// ```
    pub fn down(&self) -> &candle_nn::Linear {
        &self.down
    }

    /// Returns the second factor, out × rank, with the bias.
    pub fn up(&self) -> &candle_nn::Linear {
        &self.up
    }

    /// Returns the rank: the number of rows of `down` and of columns of `up`.
    pub fn rank(&self) -> usize {
        self.down.weight().dims().first().copied().unwrap_or(0)
    }

    /// Returns factors and bias with the names that [`load`](Self::load) and PyTorch expect, for a
    /// file.
    ///
    /// ```
    /// use std::collections::HashMap;
    /// use candle_core::{DType, Device};
    /// use dalr::interop::candle::LowRankLinear;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let path = std::env::temp_dir().join(format!("dalr-doc-{}.safetensors", std::process::id()));
    /// let layer = dalr::LowRankLinear::new(faer::mat![[1.0, 2.0, 3.0]], faer::mat![[1.0], [2.0]], None)?;
    /// let module = LowRankLinear::new(&layer, DType::F32, &Device::Cpu)?;
    /// let tensors: HashMap<_, _> = module.tensors("encoder.dense").into_iter().collect();
    /// assert!(tensors.contains_key("encoder.dense.1.weight"));
    /// candle_core::safetensors::save(&tensors, &path)?;
    /// # std::fs::remove_file(path)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn tensors(&self, name: &str) -> Vec<(String, Tensor)> {
        let bias = self.up.bias().map(|bias| (format!("{name}.1.bias"), bias.clone()));
        let down = (format!("{name}.0.weight"), self.down.weight().clone());
        let up = (format!("{name}.1.weight"), self.up.weight().clone());
        [Some(down), Some(up), bias].into_iter().flatten().collect()
    }
}

impl Module for LowRankLinear {
    fn forward(&self, inputs: &Tensor) -> candle_core::Result<Tensor> {
        self.up.forward(&self.down.forward(inputs)?)
    }
}

/// Copies the factors, for example after training.
///
/// # Errors
///
/// Those of [`LowRankLinear::new`](crate::LowRankLinear::new), because training can produce NaN;
/// [`Error::NumberType`] for a dtype that `T` cannot represent.
impl<T: Scalar + WithDType> TryFrom<&LowRankLinear> for crate::LowRankLinear<T> {
    type Error = Error;

    fn try_from(module: &LowRankLinear) -> Result<Self> {
        during("LowRankLinear::try_from", || {
            let bias = module.up.bias().map(to_column).transpose()?;
            Self::new(to_matrix(module.down.weight())?, to_matrix(module.up.weight())?, bias)
        })
    }
}
