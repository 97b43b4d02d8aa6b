//! Converts convolutions from and to candle, and provides the compressed convolution as a module.

use candle_core::{DType, Device, Tensor, WithDType};
use candle_nn::{Conv2dConfig, Module};

use super::tensor::{matrix, read, to_column, write};
use crate::convolution::{Conv2d, ConvOptions, PatchStats};
use crate::error::during;
use crate::{Error, Result, Scalar};

/// Copies a convolution of candle.
///
/// # Errors
///
/// Those of [`Conv2d::new`]; [`Error::NumberType`] for a dtype that `T` cannot represent.
impl<T: Scalar + WithDType> TryFrom<&candle_nn::Conv2d> for Conv2d<T> {
    type Error = Error;

    fn try_from(conv: &candle_nn::Conv2d) -> Result<Self> {
        during("Conv2d::try_from", || {
            let &[out, channels, height, width] = conv.weight().dims() else {
                let what = "axes in the weight (out × in/groups × height × width)";
                return Err(Error::shape(what, 4, conv.weight().rank()));
            };
            let &Conv2dConfig { padding, stride, dilation, groups, .. } = conv.config();
            let options = ConvOptions::new()
                .with_padding((padding, padding))
                .with_stride((stride, stride))
                .with_dilation((dilation, dilation))
                .with_groups(groups);
            let bias = conv.bias().map(to_column).transpose()?;
            Self::new(matrix(conv.weight(), out, channels * height * width)?, bias, (height, width), options)
        })
    }
}

/// Returns a convolution of candle with the same weight and bias, rounded once to `dtype`.
///
/// # Errors
///
/// [`Error::Layers`] for a stride, padding or dilation that is not the same in all directions:
/// candle has one number for each. [`Error::NumberType`], [`Error::Overflow`], [`Error::Memory`] and
/// [`Error::Library`], as [`to_tensor`](super::to_tensor).
///
/// ```
/// use candle_core::{DType, Device};
/// use dalr::convolution::{Conv2d, ConvOptions};
/// # fn main() -> dalr::Result<()> {
/// let conv = Conv2d::new(faer::mat![[1.0, 2.0]], Some(faer::col![3.0]), (1, 2), ConvOptions::new())?;
/// let candles = dalr::interop::candle::to_candle_conv2d(&conv, DType::BF16, &Device::Cpu)?;
/// assert_eq!(candles.weight().dims(), [1, 1, 1, 2]);
/// assert_eq!(Conv2d::try_from(&candles), Ok(conv));
/// # Ok(())
/// # }
/// ```
pub fn to_candle_conv2d<T: Scalar>(conv: &Conv2d<T>, dtype: DType, device: &Device) -> Result<candle_nn::Conv2d> {
    during("interop::candle::to_candle_conv2d", || {
        let options = conv.options();
        let ([top, left, bottom, right], stride, dilation) = (options.padding(), options.stride(), options.dilation());
        if [left, bottom, right] != [top; 3] || stride.0 != stride.1 || dilation.0 != dilation.1 {
            let expected = "a convolution with the same stride, padding and dilation in all directions";
            return Err(Error::layers(expected.into(), format!("{options:?}")));
        }
        let config = Conv2dConfig {
            padding: top,
            stride: stride.0,
            dilation: dilation.0,
            groups: options.groups(),
            ..Conv2dConfig::default()
        };
        let weight = conv.weight()?;
        let (height, width) = conv.kernel();
        let shape = (conv.out_channels(), conv.in_channels() / options.groups().max(1), height, width);
        let weight = write(weight.as_ref(), shape.into(), dtype, device)?;
        let bias = conv.bias().map(|bias| write(bias.as_mat(), bias.nrows().into(), dtype, device)).transpose()?;
        Ok(candle_nn::Conv2d::new(weight, bias, config))
    })
}

/// Adds a batch of images, batch × channels × height × width, to statistics of patches.
///
/// # Errors
///
/// Those of [`PatchStats::update`]; [`Error::Shape`] for a tensor of other axes,
/// [`Error::NumberType`] for a dtype that `T` cannot represent, [`Error::Library`] if candle cannot
/// copy from the tensor's device.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use dalr::convolution::{Conv2d, ConvOptions, PatchStats};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let conv = Conv2d::new(faer::Mat::<f32>::zeros(8, 3 * 9), None, (3, 3), ConvOptions::new())?;
/// let mut inputs = PatchStats::new(&conv, 0.5)?;
/// let images = Tensor::ones((2, 3, 10, 10), DType::F32, &Device::Cpu)?;
/// dalr::interop::candle::update_patches(&mut inputs, &images)?;
/// assert_eq!(inputs.groups()[0].samples(), 2 * 32);
/// # Ok(())
/// # }
/// ```
pub fn update_patches<T: Scalar + WithDType>(stats: &mut PatchStats<T>, images: &Tensor) -> Result<()> {
    during("interop::candle::update_patches", || {
        let &[count, channels, height, width] = images.dims() else {
            let what = "axes in the batch (images × channels × height × width)";
            return Err(Error::shape(what, 4, images.rank()));
        };
        read(images, count, channels * height * width, |images| stats.update(images, (height, width)))
    })
}

/// A compressed convolution as a module of candle: one with the original kernel and without a bias,
/// then one of `1 × 1` with the bias.
///
/// It accepts the same inputs as a
/// [`candle_nn::Conv2d`](https://docs.rs/candle-nn/0.11/candle_nn/conv/struct.Conv2d.html).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{Conv2dConfig, Module};
/// use dalr::convolution::{Conv2d, PatchStats};
/// use dalr::interop::candle::{LowRankConv2d, update_patches};
/// use dalr::{Dalr, Rank};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let wave = |count: usize, step: f64| Tensor::arange(0.0, count as f64, &Device::Cpu)?.affine(step, 0.0)?.sin()?.to_dtype(DType::F32);
/// # let weight = wave(6 * 4 * 9, 0.7)?.reshape((6, 4, 3, 3))?;
/// # let images = wave(5 * 4 * 64, 0.31)?.reshape((5, 4, 8, 8))?;
/// let original = candle_nn::Conv2d::new(weight, None, Conv2dConfig { padding: 1, ..Default::default() });
/// let conv = Conv2d::<f32>::try_from(&original)?;
/// let mut inputs = PatchStats::new(&conv, 0.5)?;
/// update_patches(&mut inputs, &images)?;
/// let (smaller, _) = conv.compress(&Dalr::new(), &inputs, Rank::Fixed(3))?;
/// let module = LowRankConv2d::new(&smaller, DType::F32, &Device::Cpu)?;
/// assert_eq!(module.forward(&images)?.dims(), original.forward(&images)?.dims());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct LowRankConv2d {
    down: candle_nn::Conv2d,
    up: candle_nn::Conv2d,
}

impl LowRankConv2d {
    /// Copies a compressed convolution to constant tensors, each entry rounded once to `dtype`.
    ///
    /// # Errors
    ///
    /// As [`to_candle_conv2d`].
    pub fn new<T: Scalar>(layer: &crate::convolution::LowRankConv2d<T>, dtype: DType, device: &Device) -> Result<Self> {
        during("interop::candle::LowRankConv2d::new", || {
            let down = to_candle_conv2d(layer.down(), dtype, device)?;
            Ok(Self { down, up: to_candle_conv2d(layer.up(), dtype, device)? })
        })
    }

    /// Returns the first convolution, with the original kernel.
    pub fn down(&self) -> &candle_nn::Conv2d {
        &self.down
    }

    /// Returns the second convolution, `1 × 1`, with the bias.
    pub fn up(&self) -> &candle_nn::Conv2d {
        &self.up
    }
}

impl Module for LowRankConv2d {
    fn forward(&self, images: &Tensor) -> candle_core::Result<Tensor> {
        self.up.forward(&self.down.forward(images)?)
    }
}

/// Copies the two convolutions, for example after training.
///
/// # Errors
///
/// Those of [`LowRankConv2d::new`](crate::convolution::LowRankConv2d::new);
/// [`Error::NumberType`] for a dtype that `T` cannot represent.
impl<T: Scalar + WithDType> TryFrom<&LowRankConv2d> for crate::convolution::LowRankConv2d<T> {
    type Error = Error;

    fn try_from(module: &LowRankConv2d) -> Result<Self> {
        during("LowRankConv2d::try_from", || Self::new(Conv2d::try_from(&module.down)?, Conv2d::try_from(&module.up)?))
    }
}
