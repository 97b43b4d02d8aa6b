//! The scatter matrix `Σ wᵢ (xᵢ − μ)(xᵢ − μ)ᵀ`: its lower triangle as block columns.

use core::ops::Range;

use faer::{Mat, MatMut, MatRef};

use crate::linalg::{self, Par, even_exponent, power_of_two};
use crate::{Result, Scalar};

/// Number of columns in a block: enough for a fast product, and few enough to waste little memory
/// above the diagonal.
pub(crate) const BLOCK: usize = 256;

/// A symmetric `features × features` matrix in `f64`, or only its first columns. Block column `b`
/// holds the rows from `b · BLOCK` on.
#[derive(Clone)]
pub(super) struct Scatter {
    features: usize,
    pub(super) blocks: Vec<Mat<f64>>,
    /// `ε` of the least precise element type in which products were computed; zero without
    /// products.
    pub(super) precision: f64,
}

impl Scatter {
    /// Returns the bytes of the first `columns` of a scatter matrix; `None` if they exceed the
    /// address space.
    pub(super) fn bytes(features: usize, columns: usize) -> Option<usize> {
        let block = |start| BLOCK.min(columns - start).checked_mul(features - start);
        let entries = (0..columns).step_by(BLOCK).try_fold(0_usize, |sum, start| sum.checked_add(block(start)?));
        entries?.checked_mul(size_of::<f64>())
    }

    pub(super) fn zeros(features: usize, columns: usize) -> Result<Self> {
        let block = |start| linalg::zeros(features - start, BLOCK.min(columns - start));
        let blocks = (0..columns).step_by(BLOCK).map(block).collect::<Result<_>>()?;
        Ok(Self { features, blocks, precision: 0.0 })
    }

    /// Adds `samples · samplesᵀ`. `samples` is features × count, with one sample per column.
    pub(super) fn add_samples(&mut self, samples: MatRef<'_, f64>, par: Par) {
        for (start, block) in (0..).step_by(BLOCK).zip(&mut self.blocks) {
            let below = samples.get(start.., ..);
            let across = below.subrows(0, block.ncols()).transpose();
            linalg::add_product(block.as_mut(), 1.0, below, across, par);
        }
        self.precision = self.precision.max(f64::EPSILON);
    }

    /// Allocates memory for the product of one block column.
    pub(super) fn product_room<T: Scalar>(features: usize) -> Result<Mat<T>> {
        linalg::zeros(features, BLOCK.min(features))
    }

    /// Adds `factor · D samples · samplesᵀ D` with the scales on the diagonal of `D`. The product
    /// is computed in `T`, then scaled and summed in `f64`.
    pub(super) fn add_native_samples<T: Scalar>(
        &mut self,
        samples: MatRef<'_, T>,
        mut room: MatMut<'_, T>,
        (scales, factor): (&[f64], f64),
        par: Par,
    ) {
        for (start, block) in (0..).step_by(BLOCK).zip(&mut self.blocks) {
            let below = samples.get(start.., ..);
            let across = below.subrows(0, block.ncols()).transpose();
            let mut product = room.as_mut().submatrix_mut(0, 0, block.nrows(), block.ncols());
            linalg::set_product(product.as_mut(), below, across, par);
            let (product, scales) = (product.as_ref(), &scales[start..]);
            linalg::for_each_column(block.as_mut(), par, |column, sums| {
                let factor = factor * scales[column];
                let products = product.col(column).iter().zip(scales);
                for (sum, (x, scale)) in sums.iter_mut().zip(products) {
                    *sum += x.to_f64() * (factor * scale);
                }
            });
        }
        self.precision = self.precision.max(T::EPSILON);
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (block, other) in self.blocks.iter_mut().zip(&other.blocks) {
            // The other may keep more columns.
            *block += other.subcols(0, block.ncols());
        }
        self.precision = self.precision.max(other.precision);
    }

    /// Returns `self · right · factor`; `right` is features × columns. Entries of any size in `f64`
    /// give accurate results if these are in the range of `f64`.
    pub(super) fn multiply(&self, right: MatRef<'_, f64>, factor: f64, par: Par) -> Result<Mat<f64>> {
        let ordinary = |size: f64| (1e-100..1e100).contains(&size);
        let size = linalg::max_abs(right);
        if !(ordinary(factor) && ordinary(size)) {
            // A kernel multiplies one of the operands by `factor` first. That must not underflow,
            // and the sums must not overflow.
            let exponent = even_exponent(size);
            let room = if factor < 1.0 { power_of_two(40) } else { 1.0 };
            let scaled = linalg::widened(right, power_of_two(-exponent) / room)?;
            let mut result = self.times(scaled.as_ref(), 1.0, par)?;
            let back = |entry: &mut f64| *entry = *entry * (factor * room) * power_of_two(exponent);
            result.col_iter_mut().for_each(|column| column.iter_mut().for_each(back));
            return Ok(result);
        }
        self.times(right, factor, par)
    }

    fn times(&self, right: MatRef<'_, f64>, factor: f64, par: Par) -> Result<Mat<f64>> {
        let mut result = linalg::zeros(self.features, right.ncols())?;
        for (start, block) in (0..).step_by(BLOCK).zip(&self.blocks) {
            let end = start + block.ncols();
            let (own, after) = (right.get(start..end, ..), right.get(end.., ..));
            linalg::add_product(result.as_mut().get_mut(start.., ..), factor, block.as_ref(), own, par);
            let above = block.as_ref().get(block.ncols().., ..).transpose();
            linalg::add_product(result.as_mut().get_mut(start..end, ..), factor, above, after, par);
        }
        Ok(result)
    }

    /// Returns the full matrix, times `factor`.
    pub(super) fn dense(&self, factor: f64) -> Result<Mat<f64>> {
        let mut dense = linalg::zeros(self.features, self.features)?;
        for (start, block) in (0..).step_by(BLOCK).zip(&self.blocks) {
            let mut target = dense.as_mut().submatrix_mut(start, start, block.nrows(), block.ncols());
            faer::zip!(&mut target, block).for_each(|faer::unzip!(to, from)| *to = from * factor);
        }
        linalg::mirror_lower(&mut dense);
        Ok(dense)
    }

    /// The entries in these rows and columns.
    pub(super) fn block(&self, rows: Range<usize>, columns: Range<usize>) -> Result<Mat<f64>> {
        let mut entries = linalg::zeros(rows.len(), columns.len())?;
        for (start, block) in (0..).step_by(BLOCK).zip(&self.blocks) {
            let end = start + block.ncols();
            let part = |range: &Range<usize>, from: usize, to: usize| range.start.max(from)..range.end.min(to);
            // The entries that this block column holds, and those that it holds transposed.
            let held = (part(&rows, start, self.features), part(&columns, start, end), false);
            let mirrored = (part(&rows, start, end), part(&columns, end, self.features), true);
            for (i, j, transposed) in [held, mirrored] {
                if i.is_empty() || j.is_empty() {
                    continue;
                }
                let (row, column) = (i.start - rows.start, j.start - columns.start);
                let target = entries.as_mut().submatrix_mut(row, column, i.len(), j.len());
                let (below, across) = if transposed { (j, i) } else { (i, j) };
                let from =
                    block.as_ref().submatrix(below.start - start, across.start - start, below.len(), across.len());
                { target }.copy_from(if transposed { from.transpose() } else { from });
            }
        }
        Ok(entries)
    }

    /// Forgets all columns but the first `columns`.
    pub(super) fn truncate(&mut self, columns: usize) {
        self.blocks.truncate(columns.div_ceil(BLOCK));
        for (start, block) in (0..).step_by(BLOCK).zip(&mut self.blocks) {
            if columns - start < block.ncols() {
                *block = block.subcols(0, columns - start).to_owned();
            }
        }
    }

    /// The diagonal, as far as its columns are kept.
    pub(super) fn diagonal(&self) -> impl Iterator<Item = f64> + '_ {
        self.blocks.iter().flat_map(|block| (0..block.ncols()).map(move |i| block[(i, i)]))
    }

    /// Returns the sum of the squares of `self · factor`, upper triangle included.
    pub(super) fn squared_norm(&self, factor: f64) -> f64 {
        let squares = |entries: MatRef<'_, f64>| -> f64 {
            entries.col_iter().flat_map(|column| column.iter()).map(|entry| (entry * factor).powi(2)).sum()
        };
        // The square block on the diagonal holds both triangles. Each row below it counts twice,
        // because the upper triangle is not stored.
        let block = |block: &Mat<f64>| {
            let (square, below) = block.as_ref().split_at_row(block.ncols());
            squares(square) + 2.0 * squares(below)
        };
        self.blocks.iter().map(block).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(features: usize, count: usize) -> Mat<f64> {
        Mat::from_fn(features, count, |i, j| ((i * 37 + j * 101) % 97) as f64 / 97.0 - 0.4)
    }

    #[test]
    fn block_columns_hold_the_whole_product() -> Result<()> {
        for features in [1, 255, 256, 257, 600] {
            let samples = samples(features, 5);
            let mut scatter = Scatter::zeros(features, features)?;
            scatter.add_samples(samples.as_ref(), Par::Seq);
            let expected = &samples * samples.transpose();
            let difference = &scatter.dense(1.0)? - &expected;
            assert!(difference.norm_max() < 1e-13);
            let right = self::samples(features, 3);
            let applied = scatter.multiply(right.as_ref(), 2.0, Par::Seq)? - &expected * &right * faer::Scale(2.0);
            assert!(applied.norm_max() < 1e-11 * features as f64);
            assert!((scatter.squared_norm(1.0) / expected.squared_norm_l2() - 1.0).abs() < 1e-13);
            let target = &expected * faer::Scale(2.0);
            let copy = scatter.clone();
            scatter.add(&copy);
            assert!((scatter.dense(1.0)? - target).norm_max() < 1e-12);
        }
        Ok(())
    }

    /// The scales are powers of two and the samples have few digits, so `f32` multiplies them
    /// exactly.
    #[test]
    fn products_in_f32_are_scaled_back() -> Result<()> {
        let features = 300;
        let narrow = Mat::from_fn(features, 7, |i, j| ((i * 37 + j * 11) % 16) as f32 - 7.0);
        let scales: Vec<f64> = (0..features).map(|i| 2_f64.powi(i as i32 % 90 - 50)).collect();
        let wide = Mat::from_fn(features, 7, |i, j| f64::from(narrow[(i, j)]) * scales[i]);
        let mut scatter = Scatter::zeros(features, features)?;
        let mut room = Scatter::product_room::<f32>(features)?;
        for factor in [1.0, 4.0] {
            scatter.add_native_samples(narrow.as_ref(), room.as_mut(), (&scales, factor), Par::Seq);
        }
        assert_eq!(scatter.dense(1.0)?, &wide * wide.transpose() * faer::Scale(5.0));
        assert_eq!(scatter.precision, f64::from(f32::EPSILON));
        Ok(())
    }

    #[test]
    fn numbers_may_lie_at_the_ends_of_the_range() -> Result<()> {
        let samples = samples(3, 5);
        let right = self::samples(3, 2);
        for (large, small) in [(150, -480), (-145, 490), (150, 300), (0, -1000), (-145, 0)] {
            let mut scatter = Scatter::zeros(3, 3)?;
            scatter.add_samples((&samples * faer::Scale(10_f64.powi(large))).as_ref(), Par::Seq);
            // The product is quadratic in the size of the samples.
            let factor = 10_f64.powi(-large) * 10_f64.powi(-large);
            let right = &right * faer::Scale(power_of_two(small));
            let applied = scatter.multiply(right.as_ref(), factor, Par::Seq)? * faer::Scale(power_of_two(-small));
            let expected = &samples * samples.transpose() * self::samples(3, 2);
            assert!((&applied - &expected).norm_max() < 1e-9, "{large} {small}: {applied:?} {expected:?}");
        }
        Ok(())
    }

    /// Sums that exceed the range of `f64` before they are multiplied by the factor, and entries
    /// that would underflow if they were scaled down for such sums.
    #[test]
    fn sums_have_room_where_the_factor_is_small_and_only_there() -> Result<()> {
        for (entry, right, factor) in [(5e153, 3.0, 1e-200), (1e-150, 1e200, 1.0), (1e-150, 3.0, 1e150)] {
            let mut scatter = Scatter::zeros(8, 8)?;
            scatter.add_samples(Mat::full(8, 1, entry).as_ref(), Par::Seq);
            let found = scatter.multiply(Mat::full(8, 1, right).as_ref(), factor, Par::Seq)?;
            let expected = (entry * factor) * entry * (8.0 * right);
            assert!(found.col(0).iter().all(|x| (x / expected - 1.0).abs() < 1e-14), "{found:?} {expected:e}");
        }
        Ok(())
    }

    #[test]
    fn zero_is_a_result_as_well() -> Result<()> {
        let mut scatter = Scatter::zeros(3, 3)?;
        scatter.add_samples(samples(3, 5).as_ref(), Par::Seq);
        let right = samples(3, 2);
        assert_eq!(scatter.multiply(right.as_ref(), 0.0, Par::Seq)?, Mat::<f64>::zeros(3, 2));
        assert_eq!(scatter.multiply(Mat::zeros(3, 2).as_ref(), 2.0, Par::Seq)?, Mat::<f64>::zeros(3, 2));
        Ok(())
    }

    #[test]
    fn bytes_are_about_half_of_the_full_matrix() {
        assert_eq!(Scatter::bytes(256, 256), Some(256 * 256 * 8));
        assert_eq!(Scatter::bytes(512, 512), Some((512 * 256 + 256 * 256) * 8));
        assert_eq!(Scatter::bytes(usize::MAX, usize::MAX), None);
    }
}
