//! A compressed layer in pivoted storage as a module of burn.

use burn::config::Config;
use burn::module::{Module, Param, ParamId};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, Int, Tensor};
use dalr::factors;
use faer::Mat;

use crate::Result;
use crate::convert::{self, Number};

/// A compressed layer in pivoted storage. It can be trained, moved and recorded like every module
/// of burn.
///
/// It takes `k (m + n − k)` parameters at rank `k`, fewer than the `k (m + n)` of a
/// [`LowRankLinear`](crate::LowRankLinear), and computes the same outputs up to rounding.
///
/// ```no_run
/// use burn::nn::LinearConfig;
/// use burn::tensor::{DType, Device};
/// use dalr::{ActivationStats, Dalr, LowRankCompressor, Rank};
/// use dalr_burn::{PivotedLinear, to_dalr};
///
/// # fn main() -> dalr_burn::Result<()> {
/// let device = Device::default();
/// let layer = LinearConfig::new(12, 16).init(&device);
/// let stats = ActivationStats::<f32>::new(12); // and batches, by `dalr_burn::observe`
/// let compressed = Dalr::new().compress(&to_dalr(&layer)?, &stats, Rank::Fixed(4))?;
/// let pivoted = PivotedLinear::new(&compressed.to_pivoted()?, &device, DType::F32)?;
/// # Ok(())
/// # }
/// ```
#[derive(Module, Debug)]
pub struct PivotedLinear {
    /// From the inputs to the outputs of the pivot rows, without a bias.
    pub pivot_rows: Linear,
    /// From these to the other outputs, without a bias; `None` if there are no others.
    pub coefficients: Option<Linear>,
    /// The bias of all outputs.
    pub bias: Option<Param<Tensor<1>>>,
    /// The position of each output among those of the pivot rows followed by the others. It is a
    /// parameter only because records hold nothing else; training does not change integers.
    order: Param<Tensor<1, Int>>,
}

/// The sizes of a [`PivotedLinear`]; a record can be loaded into the layer that
/// [`init`](Self::init) makes.
#[derive(Config, Debug)]
pub struct PivotedLinearConfig {
    /// Number of inputs.
    pub d_input: usize,
    /// Rank, which is the number of pivot rows.
    pub rank: usize,
    /// Number of outputs.
    pub d_output: usize,
    /// Whether there is a bias.
    #[config(default = true)]
    pub bias: bool,
}

impl PivotedLinearConfig {
    /// Creates a layer of these sizes with random weights, drawn as in burn's own layers. The first
    /// outputs are the pivots until a record is loaded.
    ///
    /// # Panics
    ///
    /// If the rank is above the number of outputs.
    pub fn init(&self, device: &Device) -> PivotedLinear {
        let Self { d_input, rank, d_output, bias } = *self;
        assert!(rank <= d_output, "expected a rank of at most {d_output}, the number of outputs, got {rank}");
        let linear = |inputs, outputs| LinearConfig::new(inputs, outputs).with_bias(false).init(device);
        PivotedLinear {
            pivot_rows: linear(d_input, rank),
            coefficients: (rank < d_output).then(|| linear(rank, d_output - rank)),
            bias: LinearConfig::new(rank, d_output).with_bias(bias).init(device).bias,
            order: indices(&Vec::from_iter(0..d_output), device),
        }
    }
}

impl PivotedLinear {
    /// Copies a compressed layer, each number rounded once to `dtype`.
    ///
    /// # Errors
    ///
    /// Those of [`to_burn`](crate::to_burn).
    pub fn new<T: Number>(layer: &factors::PivotedLinear<T>, device: &Device, dtype: DType) -> Result<Self> {
        // burn has no layers without outputs.
        let others = Some(layer.coefficients()).filter(|coefficients| coefficients.nrows() > 0);
        Ok(Self {
            pivot_rows: convert::linear(layer.pivot_rows(), None, device, dtype)?,
            coefficients: others.map(|others| convert::linear(others, None, device, dtype)).transpose()?,
            bias: layer.bias().map(|bias| convert::bias(bias, device, dtype)).transpose()?,
            order: indices(&layer.order(), device),
        })
    }

    /// Copies the layer to one of dalr, for example after training.
    ///
    /// # Errors
    ///
    /// Those of the function [`to_dalr`](crate::to_dalr); [`dalr::Error::Shape`] if the parts do
    /// not fit together, or if the pivot rows or the coefficients have a bias.
    pub fn to_dalr<T: Number>(&self) -> Result<factors::PivotedLinear<T>> {
        convert::require_no_bias(&self.pivot_rows, "entries in the bias of the pivot rows")?;
        let pivot_rows = convert::matrix(&self.pivot_rows.weight)?;
        let rank = pivot_rows.nrows();
        let coefficients = match &self.coefficients {
            Some(coefficients) => {
                convert::require_no_bias(coefficients, "entries in the bias of the coefficients")?;
                convert::matrix(&coefficients.weight)?
            }
            None => Mat::zeros(0, rank),
        };
        let bias = self.bias.as_ref().map(convert::column).transpose()?;
        let order = self.order.val().try_to_vec_as::<i64>()?;
        if order.len() != rank + coefficients.nrows() {
            let (expected, found) = (order.len(), rank + coefficients.nrows());
            let what = "outputs of the pivot rows and the coefficients";
            return Err(dalr::Error::Shape { operation: "to_dalr", what, expected, found }.into());
        }
        let is_pivot = |position: i64| usize::try_from(position).is_ok_and(|position| position < rank);
        let pivots = (0..).zip(order).filter(|&(_, position)| is_pivot(position)).map(|(output, _)| output);
        Ok(factors::PivotedLinear::new(pivot_rows, coefficients, pivots.collect(), bias)?)
    }

    /// Returns the outputs, with as many axes as the inputs.
    ///
    /// # Panics
    ///
    /// If the last axis does not have one entry per input, like burn's own layers.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        let mut outputs = self.pivot_rows.forward(input);
        if let Some(coefficients) = &self.coefficients {
            let others = coefficients.forward(outputs.clone());
            outputs = Tensor::cat(vec![outputs, others], D - 1).select(D - 1, self.order.val());
        }
        match &self.bias {
            Some(bias) => outputs + bias.val().unsqueeze(),
            None => outputs,
        }
    }
}

fn indices(indices: &[usize], device: &Device) -> Param<Tensor<1, Int>> {
    let indices: Vec<i64> = indices.iter().map(|&index| index as i64).collect();
    Param::initialized(ParamId::new(), Tensor::from_data(indices.as_slice(), device))
}
