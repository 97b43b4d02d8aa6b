//! The original convolution.

use core::fmt;

use faer::{Col, Mat, MatRef};

use super::low_rank::LowRankConv2d;
use super::options::ConvOptions;
use super::patch_stats::PatchStats;
use super::window::{Positions, Window};
use crate::error::during;
use crate::layer::{check_bias, finish};
use crate::linalg;
use crate::{Error, Linear, LowRankCompressor, LowRankLinear, Rank, Report, Result, Scalar};

/// A convolution in two dimensions, as PyTorch's `nn.Conv2d`.
///
/// ```
/// use dalr::convolution::{Conv2d, ConvOptions};
/// use faer::mat;
///
/// # fn main() -> dalr::Result<()> {
/// // One 2 × 2 kernel, which subtracts the lower right pixel from the upper left one.
/// let conv = Conv2d::new(mat![[1.0, 0.0, 0.0, -1.0]], None, (2, 2), ConvOptions::new())?;
/// let image = mat![[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]; // 2 × 3 pixels
/// assert_eq!(conv.forward(image.as_ref(), (2, 3))?, mat![[-4.0, -4.0]]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq)]
pub struct Conv2d<T> {
    layers: Vec<Linear<T>>,
    pub(super) window: Window,
}

impl<T: Scalar> Conv2d<T> {
    /// Creates a convolution from its weight, an optional bias with one entry per output channel,
    /// and height and width of its kernel.
    ///
    /// The weight is out × (in/groups · height · width): that of PyTorch, out × in/groups × height ×
    /// width, whose memory is already in this order. A convolution in one dimension has a kernel of
    /// height 1.
    ///
    /// # Errors
    ///
    /// As [`Linear::new`]; a kernel, stride, dilation or number of groups of zero; columns that are
    /// not a multiple of the kernel's size, or output channels that the groups do not divide.
    pub fn new(weight: Mat<T>, bias: Option<Col<T>>, kernel: (usize, usize), options: ConvOptions) -> Result<Self> {
        during("Conv2d::new", || {
            let mut window = Window { kernel, options, channels: 0 };
            window.validate()?;
            check_bias(bias.as_ref(), weight.nrows())?;
            let (size, groups) = (kernel.0.saturating_mul(kernel.1), options.groups());
            divides(size, weight.ncols(), "the columns of the weight", "the kernel's height · width")?;
            divides(groups, weight.nrows(), "the output channels", "the groups")?;
            window.channels = weight.ncols() / size;
            let rows = weight.nrows() / groups;
            let layer = |group: usize| {
                let bias = bias.as_ref().map(|bias| bias.subrows(group * rows, rows).to_owned());
                Linear::new(weight.subrows(group * rows, rows).to_owned(), bias)
            };
            // An empty weight has no rows in any group.
            Ok(Self { layers: (0..groups).map(layer).collect::<Result<_>>()?, window })
        })
    }

    /// Returns the linear layer of each group: the patches of its input channels to its output
    /// channels.
    pub fn layers(&self) -> &[Linear<T>] {
        &self.layers
    }

    /// Returns the linear layer of a convolution of one group.
    ///
    /// # Errors
    ///
    /// [`Error::Layers`] for several groups.
    pub fn as_linear(&self) -> Result<&Linear<T>> {
        match &self.layers[..] {
            [layer] => Ok(layer),
            layers => {
                let found = format!("one of {} groups", layers.len());
                Err(Error::layers("a convolution of one group".into(), found).during("Conv2d::as_linear"))
            }
        }
    }

    /// Returns the convolution with other linear layers in the same window: those of
    /// [`HiddenUnits::select`](crate::compress::HiddenUnits::select), with fewer output or input
    /// channels, for example.
    ///
    /// # Errors
    ///
    /// Another number of layers than groups; layers of different shapes, or of which only some have
    /// a bias; a number of inputs that is not a multiple of the kernel's size.
    pub fn with_layers(&self, layers: Vec<Linear<T>>) -> Result<Self> {
        during("Conv2d::with_layers", || {
            let mut window = self.window;
            if layers.len() != self.layers.len() {
                return Err(Error::shape("layers (one per group)", self.layers.len(), layers.len()));
            }
            let [first, others @ ..] = &layers[..] else { return Err(Error::empty("the list of layers")) };
            for layer in others {
                for (what, expected, found) in [
                    ("inputs (as the first group has)", first.in_features(), layer.in_features()),
                    ("outputs (as the first group has)", first.out_features(), layer.out_features()),
                ] {
                    if expected != found {
                        return Err(Error::shape(what, expected, found));
                    }
                }
                if layer.bias().is_some() != first.bias().is_some() {
                    let expected = "groups that all have a bias or all have none";
                    return Err(Error::layers(expected.into(), "both kinds".into()));
                }
            }
            let size = window.kernel.0 * window.kernel.1;
            divides(size, first.in_features(), "the inputs of a layer", "the kernel's height · width")?;
            window.channels = first.in_features() / size;
            Ok(Self { layers, window })
        })
    }

    /// Returns the weight, out × (in/groups · height · width).
    ///
    /// # Errors
    ///
    /// [`Error::Memory`].
    pub fn weight(&self) -> Result<Mat<T>> {
        let mut weight = linalg::zeros(self.out_channels(), self.window.patch_size())?;
        let mut start = 0;
        for layer in &self.layers {
            weight.as_mut().subrows_mut(start, layer.out_features()).copy_from(layer.weight());
            start += layer.out_features();
        }
        Ok(weight)
    }

    /// Returns the bias, one entry per output channel; `None` if there is none.
    pub fn bias(&self) -> Option<Col<T>> {
        let biases: Option<Vec<_>> = self.layers.iter().map(Linear::bias).collect();
        biases.map(|biases| biases.into_iter().flat_map(|bias| bias.iter().copied()).collect())
    }

    /// Returns height and width of the kernel.
    pub fn kernel(&self) -> (usize, usize) {
        self.window.kernel
    }

    /// Returns stride, padding, dilation and groups.
    pub fn options(&self) -> ConvOptions {
        self.window.options
    }

    /// Returns the number of input channels, those of all groups.
    pub fn in_channels(&self) -> usize {
        self.window.channels * self.layers.len()
    }

    /// Returns the number of output channels, those of all groups.
    pub fn out_channels(&self) -> usize {
        self.layers.iter().map(Linear::out_features).sum()
    }

    /// Returns the number of parameters, the bias included.
    pub fn parameters(&self) -> usize {
        self.layers.iter().map(Linear::parameters).sum()
    }

    /// Returns the multiply–adds for one image of this height and width.
    ///
    /// # Errors
    ///
    /// As [`output_size`](Self::output_size).
    pub fn multiply_adds(&self, size: (usize, usize)) -> Result<usize> {
        let positions = during("Conv2d::multiply_adds", || self.window.positions(size))?;
        Ok(self.layers.iter().map(|layer| layer.multiply_adds().saturating_mul(positions)).sum())
    }

    /// Returns height and width of the output for images of this height and width.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] for images that are smaller than the kernel, padding included;
    /// [`Error::Overflow`] for more positions than can be counted.
    pub fn output_size(&self, size: (usize, usize)) -> Result<(usize, usize)> {
        during("Conv2d::output_size", || self.window.output_size(size))
    }

    /// Returns the number of output positions for images of this height and width: how often the
    /// linear layers run for one image.
    ///
    /// # Errors
    ///
    /// As [`output_size`](Self::output_size).
    pub fn positions(&self, size: (usize, usize)) -> Result<usize> {
        during("Conv2d::positions", || self.window.positions(size))
    }

    /// Returns the outputs, images × (out · height · width), of images of this height and width,
    /// images × (in · height · width).
    ///
    /// # Errors
    ///
    /// Images with another number of entries, of no number, not finite, or so small that there is
    /// no output; outputs that overflow `T`; [`Error::Memory`].
    ///
    /// # Cost
    ///
    /// [`multiply_adds`](Self::multiply_adds) for each image. Patches are unfolded in blocks of at
    /// most a few megabytes.
    pub fn forward(&self, images: MatRef<'_, T>, size: (usize, usize)) -> Result<Mat<T>> {
        during("Conv2d::forward", || {
            let positions = self.window.check(images, size)?;
            let mut result = linalg::zeros(images.nrows(), self.out_channels().saturating_mul(positions))?;
            let mut first = 0;
            for (group, layer) in self.layers.iter().enumerate() {
                let mut start = 0;
                self.window.for_each_block((images, size), group, Positions::All, |patches| {
                    let outputs = linalg::product(patches, layer.weight().transpose(), linalg::threads(0))?;
                    let outputs = finish(outputs, layer.bias())?;
                    for (channel, outputs) in outputs.col_iter().enumerate() {
                        for (at, &output) in outputs.iter().enumerate().map(|(at, output)| (start + at, output)) {
                            result[(at / positions, (first + channel) * positions + at % positions)] = output;
                        }
                    }
                    start += outputs.nrows();
                    Ok(())
                })?;
                first += layer.out_features();
            }
            Ok(result)
        })
    }

    /// Returns the patches of one group at all positions: (images · positions) × (in/groups ·
    /// height · width), image by image.
    ///
    /// For data that [`PatchStats`] does not collect, such as the two inputs of
    /// [`PairedStats`](crate::covariance::PairedStats). The patches have up to height · width times
    /// as many entries as the images.
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward); a group that there is not.
    pub fn unfold(&self, images: MatRef<'_, T>, size: (usize, usize), group: usize) -> Result<Mat<T>> {
        during("Conv2d::unfold", || {
            if group >= self.layers.len() {
                let expected = format!("to be below the number of groups, {}", self.layers.len());
                return Err(Error::out_of_range("the group", expected, group as f64));
            }
            let positions = self.window.check(images, size)?;
            let mut all = linalg::zeros(images.nrows().saturating_mul(positions), self.window.patch_size())?;
            let mut start = 0;
            self.window.for_each_block((images, size), group, Positions::All, |patches| {
                all.as_mut().subrows_mut(start, patches.nrows()).copy_from(patches);
                start += patches.nrows();
                Ok(())
            })?;
            Ok(all)
        })
    }

    /// Compresses the convolution: each group is a linear layer of its own, compressed by `method`.
    /// Returns two smaller convolutions, and the report on each group.
    ///
    /// `rank` counts the latent channels of each group. A report counts the multiply–adds of one
    /// group at one position; [`LowRankConv2d::multiply_adds`] counts all.
    ///
    /// # Errors
    ///
    /// Statistics of another convolution; a depthwise convolution, as [`PatchStats::new`];
    /// [`Error::Layers`] if a rule for the rank gives the groups different ranks; errors of
    /// [`LowRankCompressor::compress`].
    pub fn compress(
        &self,
        method: &(impl LowRankCompressor<T> + ?Sized),
        inputs: &PatchStats<T>,
        rank: Rank,
    ) -> Result<(LowRankConv2d<T>, Vec<Report>)> {
        during("Conv2d::compress", || {
            inputs.require_window(self.window)?;
            let (mut layers, mut reports) = (Vec::new(), Vec::new());
            for (layer, stats) in self.layers.iter().zip(inputs.groups()) {
                let compressed = method.compress_with(layer, stats.into(), rank)?;
                reports.push(compressed.report().clone());
                layers.push(compressed.into_layer());
            }
            Ok((self.low_rank(layers)?, reports))
        })
    }

    /// Returns the two convolutions whose linear layers have these factors, one pair for each
    /// group.
    ///
    /// # Errors
    ///
    /// Another number of layers than groups; layers of another shape than the group's; ranks that
    /// differ; layers of which only some have a bias.
    pub fn low_rank(&self, layers: Vec<LowRankLinear<T>>) -> Result<LowRankConv2d<T>> {
        during("Conv2d::low_rank", || {
            if layers.len() != self.layers.len() {
                return Err(Error::shape("pairs of factors (one per group)", self.layers.len(), layers.len()));
            }
            let (mut down, mut up) = (Vec::new(), Vec::new());
            for (original, layer) in self.layers.iter().zip(&layers) {
                for (what, expected, found) in [
                    ("inputs of the factors (as the group has)", original.in_features(), layer.in_features()),
                    ("outputs of the factors (as the group has)", original.out_features(), layer.out_features()),
                ] {
                    if expected != found {
                        return Err(Error::shape(what, expected, found));
                    }
                }
                down.push(Linear::new(layer.down().to_owned(), None)?);
                up.push(Linear::new(layer.up().to_owned(), layer.bias().map(|bias| bias.to_owned()))?);
            }
            if let Some((first, other)) = layers.iter().zip(layers.iter().skip(1)).find(|(a, b)| a.rank() != b.rank()) {
                let expected = format!("groups of the same rank, as the first, {}", first.rank());
                return Err(Error::layers(expected, format!("rank {}", other.rank())));
            }
            let options = ConvOptions::new().with_groups(layers.len());
            let pointwise = Window { kernel: (1, 1), options, channels: self.window.channels };
            let pointwise = Self { layers: self.layers.clone(), window: pointwise };
            LowRankConv2d::new(self.with_layers(down)?, pointwise.with_layers(up)?)
        })
    }
}

/// Returns an error unless `divisor` divides `number`.
fn divides(divisor: usize, number: usize, parameter: &'static str, what: &str) -> Result<()> {
    if number.is_multiple_of(divisor) {
        return Ok(());
    }
    let expected = format!("to be a multiple of {what}, {divisor}");
    Err(Error::out_of_range(parameter, expected, number as f64))
}

impl<T> fmt::Debug for Conv2d<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Conv2d").field("layers", &self.layers).field("window", &self.window).finish()
    }
}

/// `6 → 16, 5 × 5`: input and output channels, and the kernel.
impl<T: Scalar> fmt::Display for Conv2d<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (height, width) = self.kernel();
        write!(f, "{} → {}, {height} × {width}", self.in_channels(), self.out_channels())
    }
}
