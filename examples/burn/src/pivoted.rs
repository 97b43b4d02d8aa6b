//! A compressed layer in pivoted storage as a module of burn.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{DType, Device, Int, Tensor};
use dalr::factors;

use crate::Result;
use crate::convert::{self, Number};

/// A compressed layer in pivoted storage. It can be trained, moved and recorded like every module
/// of burn.
#[derive(Module, Debug)]
pub struct PivotedLinear {
    /// From the inputs to the outputs of the pivot rows, without a bias.
    pub pivot_rows: Linear,
    /// From these to the other outputs, without a bias; `None` if there are no others.
    pub coefficients: Option<Linear>,
    /// The bias of all outputs.
    pub bias: Option<Param<Tensor<1>>>,
    /// The position of each output among those of the pivot rows followed by the others.
    pub order: Param<Tensor<1, Int>>,
}

impl PivotedLinear {
    /// Copies a compressed layer, each number rounded once to `dtype`.
    ///
    /// # Errors
    ///
    /// Those of [`to_burn`](crate::to_burn).
    pub fn new<T: Number>(layer: &factors::PivotedLinear<T>, device: &Device, dtype: DType) -> Result<Self> {
        let others = Some(layer.coefficients()).filter(|coefficients| coefficients.nrows() > 0);
        let order: Vec<i64> = layer.order().into_iter().map(|position| position as i64).collect();
        Ok(Self {
            pivot_rows: convert::linear(layer.pivot_rows(), None, device, dtype)?,
            coefficients: others.map(|others| convert::linear(others, None, device, dtype)).transpose()?,
            bias: layer.bias().map(|bias| convert::bias(bias, device, dtype)).transpose()?,
            order: Param::from_tensor(Tensor::from_data(order.as_slice(), device)),
        })
    }

    /// Returns the outputs, with as many axes as the inputs.
    ///
    /// # Panics
    ///
    /// If the last axis does not have the width of the inputs, like burn's own layers.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        let pivots = self.pivot_rows.forward(input);
        let outputs = match &self.coefficients {
            Some(coefficients) => {
                let others = coefficients.forward(pivots.clone());
                Tensor::cat(vec![pivots, others], D - 1).select(D - 1, self.order.val())
            }
            None => pivots,
        };
        match &self.bias {
            Some(bias) => outputs + bias.val().unsqueeze(),
            None => outputs,
        }
    }
}
