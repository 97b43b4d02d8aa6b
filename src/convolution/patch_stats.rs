//! Statistics of the patches that a convolution reads.

use std::collections::BTreeSet;

use faer::MatRef;

use super::conv2d::Conv2d;
use super::window::{Positions, Window};
use crate::error::{during, require};
use crate::linalg::SplitMix64;
use crate::{ActivationStats, Error, Linear, Result, Scalar};

/// Statistics of the patches that a convolution reads on the target domain: an [`ActivationStats`]
/// for each group, updated batch by batch.
///
/// The patches of an image resemble each other, and there are many. So only a fraction of the
/// positions of each image is used, drawn at random without repetition: a few positions of many
/// images say more than all positions of a few. The positions depend on the seed and on the order
/// of the images, and not on the batches.
///
/// ```
/// use dalr::convolution::{Conv2d, ConvOptions, PatchStats};
/// use faer::Mat;
///
/// # fn main() -> dalr::Result<()> {
/// let options = ConvOptions::new().with_padding((1, 1));
/// let conv = Conv2d::new(Mat::<f32>::zeros(8, 3 * 9), None, (3, 3), options)?;
/// let mut inputs = PatchStats::new(&conv, 0.25)?.with_seed(7);
/// let images = Mat::from_fn(10, 3 * 8 * 8, |i, j| ((i * 5 + j * 3) % 11) as f32);
/// inputs.update(images.as_ref(), (8, 8))?;
/// // A quarter of 64 positions of 10 images.
/// assert_eq!((inputs.groups()[0].samples(), inputs.groups()[0].features()), (160, 27));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct PatchStats<T> {
    window: Window,
    fraction: f64,
    random: SplitMix64,
    groups: Vec<ActivationStats<T>>,
}

impl<T: Scalar> PatchStats<T> {
    /// Creates empty statistics for this convolution, of this fraction of the positions of each
    /// image, in (0, 1]. At least one position of each image is used.
    ///
    /// # Errors
    ///
    /// A fraction out of range. [`Error::Layers`] for a depthwise convolution, whose groups have one
    /// output each: two factors are never smaller than such a group.
    pub fn new(conv: &Conv2d<T>, fraction: f64) -> Result<Self> {
        during("PatchStats::new", || {
            require(fraction > 0.0 && fraction <= 1.0, "the fraction of the positions", "to be in (0, 1]", fraction)?;
            let groups = conv.layers().len();
            if groups > 1 && conv.out_channels() == groups {
                let expected = "groups of several output channels (keep a depthwise convolution as it is: rank 1 \
                                already has more parameters)";
                return Err(Error::layers(expected.into(), format!("{groups} groups of one output channel")));
            }
            let stats = |layer: &Linear<T>| ActivationStats::new(layer.in_features());
            let groups = conv.layers().iter().map(stats).collect();
            Ok(Self { window: conv.window, fraction, random: SplitMix64::seeded(0), groups })
        })
    }

    /// Sets the seed of the random positions; 0 by default. Use different seeds for statistics that
    /// are [merged](Self::merge).
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.random = SplitMix64::seeded(seed);
        self
    }

    /// Adds a batch of images of this height and width, images × (in · height · width). Batches may
    /// differ in size.
    ///
    /// # Errors
    ///
    /// Images with another number of entries, of no number, not finite, or so small that there is
    /// no output; errors of [`ActivationStats::update`]. The statistics are then unchanged.
    ///
    /// # Cost
    ///
    /// That of [`ActivationStats::update`] for the patches, which are unfolded in blocks of at most
    /// a few megabytes, and a copy of the statistics.
    pub fn update(&mut self, images: MatRef<'_, T>, size: (usize, usize)) -> Result<()> {
        during("PatchStats::update", || {
            let count = self.window.check(images, size)?;
            let mut random = self.random.clone();
            let chosen = (self.fraction < 1.0).then(|| {
                let wanted = (self.fraction * count as f64).round().max(1.0) as usize;
                (0..images.nrows()).map(|_| draw(&mut random, wanted.min(count), count)).collect::<Vec<_>>()
            });
            let positions = chosen.as_ref().map_or(Positions::All, |chosen| Positions::Some(chosen));
            // A block in the middle may fail.
            let mut groups = self.groups.clone();
            for (group, stats) in groups.iter_mut().enumerate() {
                self.window.for_each_block((images, size), group, positions, |patches| stats.update(patches))?;
            }
            (self.groups, self.random) = (groups, random);
            Ok(())
        })
    }

    /// Adds the statistics of other images, as [`ActivationStats::merge`].
    ///
    /// # Errors
    ///
    /// Statistics of another convolution; errors of [`ActivationStats::merge`]. This object is then
    /// unchanged.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        during("PatchStats::merge", || {
            other.require_window(self.window)?;
            let mut groups = self.groups.clone();
            groups.iter_mut().zip(&other.groups).try_for_each(|(to, from)| to.merge(from))?;
            self.groups = groups;
            Ok(())
        })
    }

    /// Returns the statistics of each group: the inputs of
    /// [`Conv2d::layers`](super::Conv2d::layers).
    pub fn groups(&self) -> &[ActivationStats<T>] {
        &self.groups
    }

    pub(super) fn require_window(&self, window: Window) -> Result<()> {
        if self.window == window {
            return Ok(());
        }
        let of = |window: &Window| format!("{window:?}");
        Err(Error::layers(format!("statistics of the patches of {}", of(&window)), of(&self.window)))
    }
}

/// Returns `wanted` of the numbers below `count`, ascending: Floyd's algorithm (Bentley and Floyd,
/// *A sample of brilliance*, 1987).
fn draw(random: &mut SplitMix64, wanted: usize, count: usize) -> Vec<usize> {
    let mut drawn = BTreeSet::new();
    for last in count - wanted..count {
        let uniform = (random.next() + 1.0) / 2.0;
        // Rounding could give the number after the last.
        let number = ((uniform * (last + 1) as f64) as usize).min(last);
        if !drawn.insert(number) {
            drawn.insert(last);
        }
    }
    drawn.into_iter().collect()
}
