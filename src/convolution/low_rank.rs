//! A compressed convolution: `kh × kw` to a few channels, then `1 × 1`.

use core::fmt;

use faer::{Mat, MatRef};

use super::conv2d::Conv2d;
use crate::error::during;
use crate::{Error, LowRankLinear, Result, Scalar};

/// Two convolutions in place of a [`Conv2d`]: one with the original kernel to `k` channels for each
/// group, without a bias, then one of `1 × 1` with the bias.
///
/// For `n` inputs of a patch and `m` outputs in each group, they have `k (m + n)` parameters for
/// each group.
///
/// ```
/// use dalr::LowRankLinear;
/// use dalr::convolution::{Conv2d, ConvOptions};
/// use faer::mat;
///
/// # fn main() -> dalr::Result<()> {
/// let conv = Conv2d::new(mat![[1.0, 2.0], [2.0, 4.0]], None, (1, 2), ConvOptions::new())?;
/// let factors = LowRankLinear::new(mat![[1.0, 2.0]], mat![[1.0], [2.0]], None)?;
/// let smaller = conv.low_rank(vec![factors])?;
/// let image = mat![[1.0, 0.0, 3.0]];
/// assert_eq!(smaller.forward(image.as_ref(), (1, 3))?, conv.forward(image.as_ref(), (1, 3))?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq)]
pub struct LowRankConv2d<T> {
    down: Conv2d<T>,
    up: Conv2d<T>,
}

impl<T: Scalar> LowRankConv2d<T> {
    /// Creates a layer from its two convolutions.
    ///
    /// # Errors
    ///
    /// A first convolution with a bias; a second one whose kernel is not `1 × 1`, with a stride or
    /// padding, of other groups, or that does not read the channels of the first.
    pub fn new(down: Conv2d<T>, up: Conv2d<T>) -> Result<Self> {
        during("LowRankConv2d::new", || {
            for (what, expected, found) in [
                ("input channels of the second convolution", down.out_channels(), up.in_channels()),
                ("groups of the second convolution", down.layers().len(), up.layers().len()),
            ] {
                if expected != found {
                    return Err(Error::shape(what, expected, found));
                }
            }
            if !up.window.is_pointwise() {
                let expected = "a second convolution of 1 × 1 without stride and padding";
                return Err(Error::layers(expected.into(), format!("{} with {:?}", up, up.options())));
            }
            if down.bias().is_some() {
                return Err(Error::layers("a first convolution without a bias".into(), "one with a bias".into()));
            }
            Ok(Self { down, up })
        })
    }

    /// Returns the first convolution, with the original kernel.
    pub fn down(&self) -> &Conv2d<T> {
        &self.down
    }

    /// Returns the second convolution, `1 × 1`, with the bias.
    pub fn up(&self) -> &Conv2d<T> {
        &self.up
    }

    /// Returns the rank: the number of channels between the convolutions for each group.
    pub fn rank(&self) -> usize {
        self.down.out_channels() / self.down.layers().len().max(1)
    }

    /// Returns the number of parameters, the bias included.
    pub fn parameters(&self) -> usize {
        self.down.parameters() + self.up.parameters()
    }

    /// Returns the multiply–adds for one image of this height and width.
    ///
    /// # Errors
    ///
    /// As [`Conv2d::output_size`].
    pub fn multiply_adds(&self, size: (usize, usize)) -> Result<usize> {
        Ok(self.down.multiply_adds(size)?.saturating_add(self.up.multiply_adds(self.down.output_size(size)?)?))
    }

    /// Returns the outputs, as [`Conv2d::forward`].
    ///
    /// # Errors
    ///
    /// As [`Conv2d::forward`].
    pub fn forward(&self, images: MatRef<'_, T>, size: (usize, usize)) -> Result<Mat<T>> {
        during("LowRankConv2d::forward", || {
            let latent = self.down.forward(images, size)?;
            self.up.forward(latent.as_ref(), self.down.output_size(size)?)
        })
    }

    /// Returns the convolution with the weight `up · down` in each group.
    ///
    /// # Errors
    ///
    /// [`Error::Overflow`] if an entry of a product overflows `T`; [`Error::Memory`].
    pub fn to_conv2d(&self) -> Result<Conv2d<T>> {
        during("LowRankConv2d::to_conv2d", || {
            let pairs = self.down.layers().iter().zip(self.up.layers());
            let product = pairs.map(|(down, up)| {
                let bias = up.bias().map(|bias| bias.to_owned());
                LowRankLinear::new(down.weight().to_owned(), up.weight().to_owned(), bias)?.to_linear()
            });
            self.down.with_layers(product.collect::<Result<_>>()?)
        })
    }
}

impl<T> fmt::Debug for LowRankConv2d<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("LowRankConv2d").field("down", &self.down).field("up", &self.up).finish()
    }
}

/// `6 → 5 → 16, 5 × 5`: input, latent and output channels, and the kernel.
impl<T: Scalar> fmt::Display for LowRankConv2d<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((height, width), latent) = (self.down.kernel(), self.down.out_channels());
        write!(f, "{} → {latent} → {}, {height} × {width}", self.down.in_channels(), self.up.out_channels())
    }
}
