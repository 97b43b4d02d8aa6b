//! The second moment `S` of a layer's inputs: everything the compressors use of the statistics.

mod cross;
mod dense;
mod from_covariance;
mod from_samples;
mod from_stats;
mod identity;

pub(crate) use self::cross::CrossMoment;
pub(crate) use self::from_stats::{cross_moment, second_moment, second_moment_of};
pub(crate) use self::identity::identity;

use faer::{Mat, MatRef};

use crate::linalg::{self, Par, even_exponent, power_of_two};
use crate::{Result, Scalar};

/// Variances below this fraction of the squared mean, `(2⁻⁴⁴)²`, are the rounding of a constant.
const NEGLIGIBLE: f64 = 1.0 / (1_u128 << 88) as f64;

/// A symmetric positive semidefinite `S`, inputs × inputs, defined by its products with vectors.
///
/// All methods use `S` divided by `2^exponent`. This brings its mean diagonal entry near 1 and
/// keeps results clear of overflow and underflow. A new source of statistics implements the three
/// required methods, and overrides the other ones that it can compute at a lower cost.
pub(crate) trait SecondMoment<T: Scalar> {
    fn scale(&self) -> &Scale;

    /// Returns `S · right`; `right` is features × columns.
    fn multiply(&self, right: MatRef<'_, f64>, par: Par) -> Result<Mat<f64>>;

    /// Returns the multiply–adds of the product with one vector.
    fn macs(&self) -> f64;

    fn features(&self) -> usize {
        self.scale().diagonal.len()
    }

    fn exponent(&self) -> i32 {
        self.scale().exponent
    }

    /// Returns `tr S`; exactly zero if `S` is zero or only rounding.
    fn trace(&self) -> f64 {
        self.scale().trace
    }

    fn diagonal(&self) -> &[f64] {
        &self.scale().diagonal
    }

    /// Returns the error in an entry of `S` that comes from squares which underflow. It is
    /// negligible except for tiny inputs.
    fn quantum(&self) -> f64 {
        64.0 * self.features() as f64 * f64::from_bits(1) * power_of_two(-self.exponent())
    }

    /// Returns the rounding of an entry of `S`, relative to `√(S_ii S_jj)`, that comes from
    /// products in `f32`.
    fn rounding(&self) -> f64 {
        0.0
    }

    /// Returns `left · S · leftᵀ`; `left` is rows × features.
    fn congruence(&self, left: MatRef<'_, f64>, par: Par) -> Result<Mat<f64>> {
        let applied = self.multiply(left.transpose(), par)?;
        let mut result = linalg::zeros(left.nrows(), left.nrows())?;
        linalg::add_symmetric_product(result.as_mut(), 1.0, left, applied.as_ref(), par);
        linalg::mirror_lower(&mut result);
        Ok(result)
    }

    /// Returns `aᵢ S bᵢᵀ` for every pair of rows of two `rows × features` matrices, which may be
    /// the same.
    fn row_forms(&self, a: MatRef<'_, f64>, b: MatRef<'_, f64>, par: Par) -> Result<Vec<f64>> {
        let mut forms = vec![0.0; a.nrows()];
        linalg::add_row_products(&mut forms, a, self.multiply(b.transpose(), par)?.transpose());
        Ok(forms)
    }

    /// Returns `tr F S Fᵀ` for a factor `F`, rows × features: the energy of its outputs.
    fn energy(&self, factor: MatRef<'_, f64>, par: Par) -> Result<f64> {
        Ok(self.row_forms(factor, factor, par)?.iter().sum())
    }

    /// Returns `S` as a matrix.
    fn scaled(&self, par: Par) -> Result<Mat<f64>> {
        let mut unit = linalg::zeros(self.features(), self.features())?;
        unit.as_mut().diagonal_mut().column_vector_mut().fill(1.0);
        let mut dense = self.multiply(unit.as_ref(), par)?;
        linalg::mirror_lower(&mut dense);
        Ok(dense)
    }

    /// Returns `S` in the precision of the data.
    fn native(&self, par: Par) -> Result<Mat<T>> {
        linalg::converted(self.scaled(par)?.as_ref(), 1.0)
    }

    /// Forms `S` itself: [`scaled`](Self::scaled) times the power of two.
    fn unscaled(&self, par: Par) -> Result<Mat<f64>> {
        let mut dense = self.scaled(par)?;
        dense *= faer::Scale(power_of_two(self.exponent()));
        Ok(dense)
    }

    /// Returns `tr S²`.
    fn trace_of_square(&self, par: Par) -> Result<f64> {
        let matrix = match self.root(par)? {
            // tr (X Xᵀ)² = ‖Xᵀ X‖²
            Some(root) => linalg::product(root.transpose(), root.as_ref(), par)?,
            None => self.scaled(par)?,
        };
        Ok(linalg::squared_norm(matrix.as_ref()))
    }

    /// Returns the number of samples if the statistics are in sample form.
    fn samples_kept(&self) -> Option<usize> {
        None
    }

    /// Returns the outputs `factor · W X` of the kept samples, outputs × samples, in the precision
    /// of the data. `S` is `X Xᵀ`.
    fn outputs(&self, _weight: MatRef<'_, T>, _factor: f64, _par: Par) -> Result<Option<Mat<T>>> {
        Ok(None)
    }

    /// Returns `X`, features × samples, with `S = X Xᵀ`; `None` unless the statistics are in sample
    /// form with fewer samples than inputs.
    fn root(&self, _par: Par) -> Result<Option<Mat<f64>>> {
        Ok(None)
    }

    /// Returns a lower triangular `L` with `L Lᵀ = κ S + λ I + D`, and the diagonal of `λ I + D`.
    ///
    /// The shift `D` makes the matrix positive definite in spite of rounding; `None` if that is not
    /// enough. Entries above the diagonal of `L` are arbitrary.
    fn root_of(&self, (keep, ridge): (f64, f64), par: Par) -> Result<Option<(Mat<f64>, Vec<f64>)>> {
        let size = self.features() as f64;
        let mut dense = self.scaled(par)?;
        dense *= faer::Scale(keep);
        // The norm of a random symmetric matrix grows with the root of its size. A second attempt
        // with a larger shift only makes sense for rounding of `f32`.
        let (least, most) = (4.0 * f64::EPSILON * size, self.rounding() / 8.0 * size.sqrt());
        for lift in core::iter::once(least).chain((most > least).then_some(most)) {
            let mut lifted = linalg::widened(dense.as_ref(), 1.0)?;
            let mut added = vec![0.0; self.features()];
            let mut dead = Vec::new();
            for (index, added) in added.iter_mut().enumerate() {
                let diagonal = lifted[(index, index)];
                *added = ridge + lift * diagonal;
                lifted[(index, index)] = diagonal + *added;
                if diagonal + *added <= 0.0 {
                    // An input that never varies. A positive number makes the factorization
                    // succeed, and is removed below.
                    lifted[(index, index)] = 1.0;
                    dead.push(index);
                }
            }
            if let Some(mut root) = linalg::cholesky(lifted, par)? {
                dead.iter().for_each(|&index| root[(index, index)] = 0.0);
                return Ok(linalg::first_non_finite(root.as_ref()).is_none().then_some((root, added)));
            }
        }
        Ok(None)
    }
}

/// Returns whether an input with this mean square (about any point) and mean is more than the
/// rounding of a constant.
pub(crate) fn varies(square: f64, mean: f64) -> bool {
    square > NEGLIGIBLE * mean * mean
}

/// The power of two that `S` is divided by, and the diagonal and trace of the quotient.
pub(crate) struct Scale {
    exponent: i32,
    trace: f64,
    diagonal: Vec<f64>,
}

impl Scale {
    /// Creates the scale from the diagonal of `S` and the mean of each input.
    pub(super) fn new(mut diagonal: Vec<f64>, mean: &[f64]) -> Self {
        let varying = diagonal.iter().zip(mean).filter(|&(square, mean)| varies(*square, *mean));
        let trace: f64 = varying.map(|(square, _)| square).sum();
        let exponent = even_exponent(trace / diagonal.len().max(1) as f64);
        diagonal.iter_mut().for_each(|square| *square *= power_of_two(-exponent));
        Self { exponent, trace: trace * power_of_two(-exponent), diagonal }
    }

    /// Returns the factor by which a sum over samples of this total weight becomes the divided `S`.
    /// It is zero if `S` is only rounding.
    pub(super) fn factor(&self, weight: f64) -> f64 {
        if self.trace == 0.0 { 0.0 } else { power_of_two(-self.exponent) / weight }
    }

    /// Returns the root of [`factor`](Self::factor).
    pub(super) fn root_factor(&self, weight: f64) -> f64 {
        if self.trace == 0.0 { 0.0 } else { power_of_two(-self.exponent / 2) / weight.sqrt() }
    }
}
