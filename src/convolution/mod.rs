//! Convolutions: their statistics, and two smaller convolutions in place of one.
//!
//! At each position of its output, a convolution is a linear layer of the patch of the image under
//! the kernel. For `c` channels and a kernel of `kh × kw`, a patch has `c·kh·kw` entries. So
//! [`PatchStats`] collects statistics of patches, all methods of [`compress`](crate::compress)
//! apply, and the factors of rank `k` are convolutions again: `kh × kw` to `k` channels, then
//! `1 × 1` ([`LowRankConv2d`]). With `g` groups of channels, there is one linear layer for each.
//!
//! | task | use |
//! |---|---|
//! | compress one convolution | [`PatchStats`], [`Conv2d::compress`] |
//! | keep some of the channels between two layers | [`Conv2d::as_linear`] with [`HiddenUnitSelection::with_inputs_per_unit`](crate::compress::HiddenUnitSelection::with_inputs_per_unit), [`Conv2d::with_layers`] |
//! | put convolutions and linear layers under one budget | [`Conv2d::layers`], [`PatchStats::groups`], [`LayerProfile::of_groups`](crate::network::LayerProfile::of_groups), [`Conv2d::low_rank`] |
//! | convolutions of candle | [`interop::candle`](crate::interop) |
//!
//! A batch of images is a matrix with an image in each row: for images in NCHW order, as PyTorch
//! stores them, row `i` is the contiguous memory of image `i`, its channels one after the other.
//! `MatRef::from_row_major_slice(numbers, n, c * h * w)` is such a matrix without a copy.
//!
//! A convolution in one dimension is one whose kernel and images have height 1. Fold a batch
//! normalization that follows a convolution into its weight first.
//!
//! ```
//! use dalr::convolution::{Conv2d, ConvOptions, PatchStats};
//! use dalr::{Dalr, Rank};
//! use faer::{Col, Mat};
//!
//! # fn main() -> dalr::Result<()> {
//! # let weight = Mat::from_fn(16, 6 * 25, |i, j| ((i * 5 + j * j * 3) % 17) as f32 - 8.0);
//! # let batches = [Mat::from_fn(20, 6 * 14 * 14, |i, j| ((i * i * 11 + j * 7 + i * j) % 13) as f32)];
//! // The weight of PyTorch, out × in × 5 × 5, with its last three axes as one.
//! let conv = Conv2d::new(weight, Some(Col::zeros(16)), (5, 5), ConvOptions::new())?;
//! let mut inputs = PatchStats::new(&conv, 0.2)?; // a fifth of the positions of each image
//! for images in &batches {
//!     inputs.update(images.as_ref(), (14, 14))?; // images × (in · 14 · 14)
//! }
//! let (smaller, reports) = conv.compress(&Dalr::new(), &inputs, Rank::Fixed(5))?;
//! println!("{}", reports[0]);
//! assert_eq!(smaller.down().out_channels(), 5);
//! let maps = smaller.forward(batches[0].as_ref(), (14, 14))?; // images × (16 · 10 · 10)
//! assert_eq!(maps.ncols(), 16 * 10 * 10);
//! # Ok(())
//! # }
//! ```

mod conv2d;
mod low_rank;
mod options;
mod patch_stats;
mod window;

pub use self::conv2d::Conv2d;
pub use self::low_rank::LowRankConv2d;
pub use self::options::ConvOptions;
pub use self::patch_stats::PatchStats;
