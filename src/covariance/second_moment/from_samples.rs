//! The second moment of samples in sample form, applied sample by sample.

use faer::{Mat, MatRef};

use super::{Scale, SecondMoment};
use crate::covariance::batch::Centre;
use crate::covariance::sample_form::SampleInputs;
use crate::linalg::{self, Par};
use crate::{Result, Scalar};

pub(super) struct SampleMoment<'a, T> {
    samples: SampleInputs<'a, T>,
    centre: Centre<'a>,
    /// The factor by which a centred sample becomes a column of `X`, with `S = X Xᵀ`.
    factor: f64,
    scale: Scale,
}

impl<'a, T: Scalar> SampleMoment<'a, T> {
    /// Returns `S` of samples of this total weight and mean, about `centre`.
    pub(super) fn new(samples: SampleInputs<'a, T>, centre: Centre<'a>, weight: f64, mean: &[f64]) -> Self {
        let scale = Scale::new(mean_squares(&samples, &centre, weight), mean);
        Self { samples, centre, factor: scale.root_factor(weight), scale }
    }

    /// Calls `visit` with `X`, block by block.
    fn for_each_block(&self, par: Par, visit: impl FnMut(MatRef<'_, f64>) -> Result<()>) -> Result<()> {
        self.samples.for_each_centred(&self.centre, self.factor, par, visit)
    }
}

impl<T: Scalar> SecondMoment<T> for SampleMoment<'_, T> {
    fn scale(&self) -> &Scale {
        &self.scale
    }

    fn multiply(&self, right: MatRef<'_, f64>, par: Par) -> Result<Mat<f64>> {
        let mut result = linalg::zeros(self.samples.features(), right.ncols())?;
        self.for_each_block(par, |columns| {
            let outputs = linalg::product(columns.transpose(), right, par)?;
            linalg::add_product(result.as_mut(), 1.0, columns, outputs.as_ref(), par);
            Ok(())
        })?;
        Ok(result)
    }

    fn macs(&self) -> f64 {
        2.0 * linalg::macs(self.samples.features(), self.samples.len(), 1)
    }

    fn congruence(&self, left: MatRef<'_, f64>, par: Par) -> Result<Mat<f64>> {
        let mut result = linalg::zeros(left.nrows(), left.nrows())?;
        self.for_each_block(par, |columns| {
            let outputs = linalg::product(left, columns, par)?;
            linalg::add_symmetric_product(result.as_mut(), 1.0, outputs.as_ref(), outputs.transpose(), par);
            Ok(())
        })?;
        linalg::mirror_lower(&mut result);
        Ok(result)
    }

    fn row_forms(&self, a: MatRef<'_, f64>, b: MatRef<'_, f64>, par: Par) -> Result<Vec<f64>> {
        let strides = |matrix: MatRef<'_, f64>| (matrix.row_stride(), matrix.col_stride());
        let same = a.as_ptr() == b.as_ptr() && strides(a) == strides(b);
        let mut forms = vec![0.0; a.nrows()];
        self.for_each_block(par, |columns| {
            let left = linalg::product(a, columns, par)?;
            let right = if same { None } else { Some(linalg::product(b, columns, par)?) };
            linalg::add_row_products(&mut forms, left.as_ref(), right.as_ref().unwrap_or(&left).as_ref());
            Ok(())
        })?;
        Ok(forms)
    }

    fn scaled(&self, par: Par) -> Result<Mat<f64>> {
        let mut dense = linalg::zeros(self.samples.features(), self.samples.features())?;
        self.for_each_block(par, |columns| {
            linalg::add_symmetric_product(dense.as_mut(), 1.0, columns, columns.transpose(), par);
            Ok(())
        })?;
        linalg::mirror_lower(&mut dense);
        Ok(dense)
    }

    fn samples_kept(&self) -> Option<usize> {
        Some(self.samples.len())
    }

    fn outputs(&self, weight: MatRef<'_, T>, factor: f64, par: Par) -> Result<Option<Mat<T>>> {
        self.samples.outputs(weight, &self.centre, self.factor * factor, par).map(Some)
    }

    fn root(&self, par: Par) -> Result<Option<Mat<f64>>> {
        self.samples.root(&self.centre, self.factor, par)
    }
}

/// Returns `(1/w) Σ wᵢ (xᵢ − centre)²`, input by input, for the total weight `w`.
fn mean_squares<T: Scalar>(samples: &SampleInputs<'_, T>, centre: &Centre<'_>, total: f64) -> Vec<f64> {
    let mut squares = vec![0.0; samples.features()];
    for batch in samples.batches() {
        linalg::for_each_row(batch.rows, |index, row| {
            let weight = batch.weight(index) / total;
            let centre = centre.origin.iter().zip(centre.offset.iter());
            for ((sum, x), (origin, offset)) in squares.iter_mut().zip(row).zip(centre) {
                let distance = x.to_f64() - origin - offset;
                *sum += weight * distance * distance;
            }
        });
    }
    squares
}
