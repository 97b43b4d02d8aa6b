//! The compressed layer in pivoted storage as a module.

use candle_core::{D, DType, Device, Tensor, WithDType};
use candle_nn::{Module, VarBuilder};

use super::layer::linear;
use super::refused;
use super::tensor::{to_column, to_matrix, write};
use crate::error::during;
use crate::factors::{order, require_pivots};
use crate::{Error, Result, Scalar};

/// A compressed layer in pivoted storage as a module of candle.
///
/// It accepts the same inputs as a
/// [`candle_nn::Linear`](https://docs.rs/candle-nn/0.11/candle_nn/struct.Linear.html) of the same
/// size. Gradients pass through it, to its inputs and to the variables of [`load`](Self::load).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::Module;
/// use dalr::interop::candle::PivotedLinear;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let factors = dalr::LowRankLinear::new(faer::mat![[1.0, 2.0, 3.0]], faer::mat![[1.0], [-2.0]], Some(faer::col![0.0, 0.5]))?;
/// let layer = factors.to_pivoted()?; // `factors` come from a compressor: 3 inputs, 2 outputs
/// let module = PivotedLinear::new(&layer, DType::F32, &Device::Cpu)?;
/// let inputs = Tensor::new(&[[1_f32, 0.0, 2.0], [0.0, 1.0, -1.0]], &Device::Cpu)?;
/// assert_eq!(module.forward(&inputs)?.to_vec2::<f32>()?, [[7.0, -13.5], [-1.0, 2.5]]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct PivotedLinear {
    pivot_rows: candle_nn::Linear,
    /// `None` if every row is a pivot row: candle has no products with empty matrices.
    coefficients: Option<candle_nn::Linear>,
    bias: Option<Tensor>,
    pivots: Vec<usize>,
    /// The position of each output among those of the pivot rows followed by the others.
    order: Tensor,
}

impl PivotedLinear {
    /// Copies a compressed layer to constant tensors, each entry rounded once to `dtype`.
    ///
    /// # Errors
    ///
    /// [`Error::NumberType`], [`Error::Overflow`], [`Error::Memory`] and [`Error::Library`], as
    /// [`to_tensor`](super::to_tensor).
    pub fn new<T: Scalar>(layer: &crate::factors::PivotedLinear<T>, dtype: DType, device: &Device) -> Result<Self> {
        during("interop::candle::PivotedLinear::new", || {
            let pivot_rows = linear(layer.pivot_rows(), None, dtype, device)?;
            let others = Some(layer.coefficients()).filter(|coefficients| coefficients.nrows() > 0);
            let coefficients = others.map(|others| linear(others, None, dtype, device)).transpose()?;
            let bias = layer.bias().map(|bias| write(bias.as_mat(), bias.nrows().into(), dtype, device));
            let order = indices(&layer.order(), device).map_err(refused)?;
            Ok(Self { pivot_rows, coefficients, bias: bias.transpose()?, pivots: layer.pivots().into(), order })
        })
    }

    /// Reads a layer from a
    /// [`VarBuilder`](https://docs.rs/candle-nn/0.11/candle_nn/type.VarBuilder.html) of a file that
    /// `save` or `save_layers` of this crate wrote (feature `safetensors`).
    ///
    /// # Errors
    ///
    /// candle's, for tensors that are missing or have other shapes; [`Error::OutOfRange`] for
    /// pivots that do not ascend below `out_features`.
    pub fn load(
        in_features: usize,
        rank: usize,
        out_features: usize,
        bias: bool,
        builder: VarBuilder<'_>,
    ) -> candle_core::Result<Self> {
        let stored = builder.get_unchecked_dtype("pivots", DType::I64)?.to_vec1::<i64>()?;
        // Negative indices become large ones, which are refused.
        let pivots: Vec<usize> = stored.iter().map(|&pivot| usize::try_from(pivot).unwrap_or(usize::MAX)).collect();
        let others = out_features.saturating_sub(rank);
        require_pivots(&pivots, rank, out_features)
            .map_err(|error| error.during("interop::candle::PivotedLinear::load"))?;
        let pivot_rows = candle_nn::linear_no_bias(in_features, rank, builder.pp("0"))?;
        let coefficients =
            (others > 0).then(|| candle_nn::linear_no_bias(rank, others, builder.pp("1"))).transpose()?;
        let bias = bias.then(|| builder.pp("1").get(out_features, "bias")).transpose()?;
        Ok(Self {
            pivot_rows,
            coefficients,
            bias,
            order: indices(&order(&pivots, out_features), builder.device())?,
            pivots,
        })
    }

    /// The number of pivot rows.
    pub fn rank(&self) -> usize {
        self.pivots.len()
    }

    /// The outputs that the pivot rows belong to, ascending.
    pub fn pivots(&self) -> &[usize] {
        &self.pivots
    }
}

fn indices(indices: &[usize], device: &Device) -> candle_core::Result<Tensor> {
    let indices: Vec<i64> = indices.iter().map(|&index| index as i64).collect();
    Tensor::new(indices, device)
}

impl Module for PivotedLinear {
    fn forward(&self, inputs: &Tensor) -> candle_core::Result<Tensor> {
        let mut outputs = self.pivot_rows.forward(inputs)?;
        if let Some(coefficients) = &self.coefficients {
            let others = coefficients.forward(&outputs)?;
            outputs = Tensor::cat(&[outputs, others], D::Minus1)?.index_select(&self.order, D::Minus1)?;
        }
        match &self.bias {
            Some(bias) => outputs.broadcast_add(bias),
            None => Ok(outputs),
        }
    }
}

/// Copies the layer back.
///
/// # Errors
///
/// Those of [`PivotedLinear::new`](crate::factors::PivotedLinear::new), since training can produce
/// NaN; [`Error::NumberType`] for a dtype that `T` cannot hold.
impl<T: Scalar + WithDType> TryFrom<&PivotedLinear> for crate::factors::PivotedLinear<T> {
    type Error = Error;

    fn try_from(module: &PivotedLinear) -> Result<Self> {
        during("PivotedLinear::try_from", || {
            let coefficients = match &module.coefficients {
                Some(coefficients) => to_matrix(coefficients.weight())?,
                None => faer::Mat::zeros(0, module.rank()),
            };
            let bias = module.bias.as_ref().map(to_column).transpose()?;
            Self::new(to_matrix(module.pivot_rows.weight())?, coefficients, module.pivots.clone(), bias)
        })
    }
}
