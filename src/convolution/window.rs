//! The kernel's window: the sizes of outputs, and the patches of images at its positions.

use faer::MatRef;

use super::options::ConvOptions;
use crate::error::require;
use crate::linalg;
use crate::{Error, Result, Scalar};

/// Largest number of entries of patches that are gathered at a time, if it holds one patch.
const BLOCK: usize = 1 << 18;

/// The window of a convolution, without its weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Window {
    /// Height and width of the kernel.
    pub(super) kernel: (usize, usize),
    pub(super) options: ConvOptions,
    /// Number of input channels of each group.
    pub(super) channels: usize,
}

/// The positions of the window whose patches are read.
#[derive(Clone, Copy)]
pub(super) enum Positions<'a> {
    All,
    /// Those of each image, as indices into its output.
    Some(&'a [Vec<usize>]),
}

impl Window {
    pub(super) fn validate(&self) -> Result<()> {
        let (stride, dilation) = (self.options.stride(), self.options.dilation());
        for (what, number) in [
            ("the height of the kernel", self.kernel.0),
            ("the width of the kernel", self.kernel.1),
            ("the vertical stride", stride.0),
            ("the horizontal stride", stride.1),
            ("the vertical dilation", dilation.0),
            ("the horizontal dilation", dilation.1),
            ("the number of groups", self.options.groups()),
        ] {
            require(number > 0, what, "to be at least 1", 0.0)?;
        }
        Ok(())
    }

    /// Number of entries of a patch of one group.
    pub(super) fn patch_size(&self) -> usize {
        self.channels * self.kernel.0 * self.kernel.1
    }

    /// Whether the patch at a position is the pixel there.
    pub(super) fn is_pointwise(&self) -> bool {
        self.kernel == (1, 1) && self.options.stride() == (1, 1) && self.options.padding() == [0; 4]
    }

    /// Returns height and width of the output for images of this size.
    pub(super) fn output_size(&self, (height, width): (usize, usize)) -> Result<(usize, usize)> {
        let ([top, left, bottom, right], stride) = (self.options.padding(), self.options.stride());
        let along = |what, size: usize, padding: usize, kernel: usize, dilation: usize, stride: usize| {
            // The first and the last entry of the kernel are this far apart.
            let extent = dilation.saturating_mul(kernel - 1);
            let least = (extent.saturating_add(1)).saturating_sub(padding).max(1);
            require(size >= least, what, format!("to be at least {least} for this kernel"), size as f64)?;
            Ok((size.saturating_add(padding) - extent - 1) / stride + 1)
        };
        let dilation = self.options.dilation();
        let vertical = top.saturating_add(bottom);
        let rows = along("the height of the images", height, vertical, self.kernel.0, dilation.0, stride.0)?;
        let horizontal = left.saturating_add(right);
        let columns = along("the width of the images", width, horizontal, self.kernel.1, dilation.1, stride.1)?;
        Ok((rows, columns))
    }

    /// Returns the number of positions in an image of this size.
    pub(super) fn positions(&self, size: (usize, usize)) -> Result<usize> {
        let (rows, columns) = self.output_size(size)?;
        rows.checked_mul(columns).ok_or_else(|| Error::overflow("the number of positions"))
    }

    /// Returns the number of positions in each image of a batch, or an error for a batch that the
    /// convolution cannot read.
    pub(super) fn check<T: Scalar>(&self, images: MatRef<'_, T>, size: (usize, usize)) -> Result<usize> {
        let positions = self.positions(size)?;
        let entries = (self.channels * self.options.groups()).saturating_mul(size.0).saturating_mul(size.1);
        if images.ncols() != entries {
            let what = "columns in the batch (channels · height · width)";
            return Err(Error::shape(what, entries, images.ncols()));
        }
        if images.nrows() == 0 {
            return Err(Error::empty("the batch of images"));
        }
        linalg::require_finite("the images", images)?;
        Ok(positions)
    }

    /// Calls `visit` with the patches of one group in blocks, positions × entries, image by image.
    ///
    /// The batch must have passed [`check`](Self::check). All positions of a `1 × 1` kernel are
    /// visited without unfolding.
    pub(super) fn for_each_block<T: Scalar>(
        &self,
        (images, size): (MatRef<'_, T>, (usize, usize)),
        group: usize,
        positions: Positions<'_>,
        mut visit: impl FnMut(MatRef<'_, T>) -> Result<()>,
    ) -> Result<()> {
        let (rows, columns) = self.output_size(size)?;
        let (pixels, width) = (size.0 * size.1, self.patch_size());
        let most = (BLOCK / width).max(1);
        let mut block: Vec<T> = Vec::new();
        let needed = most.saturating_mul(width);
        block.try_reserve_exact(needed).map_err(|_| linalg::out_of_memory(needed.saturating_mul(size_of::<T>())))?;
        let mut image: Vec<T> = Vec::with_capacity(images.ncols());
        for (index, row) in images.row_iter().enumerate() {
            image.clear();
            image.extend(row.iter().copied());
            let channels = image.get(group * self.channels * pixels..).unwrap_or_default();
            let channels = channels.get(..self.channels * pixels).unwrap_or_default();
            let mut add = |position: usize| {
                self.patch(channels, size, (position / columns, position % columns), &mut block);
                if block.len() < most * width {
                    return Ok(());
                }
                let visited = visit(MatRef::from_row_major_slice(&block, most, width));
                block.clear();
                visited
            };
            match positions {
                Positions::All if self.is_pointwise() => {
                    visit(MatRef::from_row_major_slice(channels, self.channels, pixels).transpose())?;
                }
                Positions::All => (0..rows * columns).try_for_each(add)?,
                Positions::Some(all) => all.get(index).into_iter().flatten().try_for_each(|&position| add(position))?,
            }
        }
        if block.is_empty() {
            return Ok(());
        }
        visit(MatRef::from_row_major_slice(&block, block.len() / width, width))
    }

    /// Appends the patch at one position: channels, rows and columns, as in the weight.
    fn patch<T: Scalar>(
        &self,
        channels: &[T],
        (height, width): (usize, usize),
        (y, x): (usize, usize),
        patch: &mut Vec<T>,
    ) {
        let ([top, left, ..], (down, across)) = (self.options.padding(), self.options.stride());
        let dilation = self.options.dilation();
        for channel in channels.chunks_exact(height * width) {
            for i in 0..self.kernel.0 {
                let row = (y * down + i * dilation.0).checked_sub(top).filter(|&row| row < height);
                let row = row.and_then(|row| channel.get(row * width..(row + 1) * width));
                let start = (x * across).checked_sub(left).filter(|_| dilation.1 == 1);
                if let Some(entries) = row.zip(start).and_then(|(row, start)| row.get(start..start + self.kernel.1)) {
                    patch.extend_from_slice(entries);
                    continue;
                }
                for j in 0..self.kernel.1 {
                    let column = (x * across + j * dilation.1).checked_sub(left);
                    // Padding is zero.
                    let entry = row.zip(column).and_then(|(row, column)| row.get(column));
                    patch.push(entry.copied().unwrap_or_default());
                }
            }
        }
    }
}
