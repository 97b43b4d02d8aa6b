//! The second moment between two sets of inputs of the same samples.

use faer::{Mat, MatRef};

use crate::covariance::batch::Centre;
use crate::covariance::sample_form::SampleInputs;
use crate::linalg::{self, Par};
use crate::{Result, Scalar};

/// `K = Σ wᵢ xᵢ x̂ᵢᵀ / Σ wᵢ`, divided by the same power of two as the second moment of `x̂`.
pub(crate) struct CrossMoment<'a, T> {
    form: CrossForm<'a, T>,
}

enum CrossForm<'a, T> {
    /// Samples of `x` and `x̂`, and the points that they are measured from; the columns of `X` and
    /// `X̂`, with `K = X X̂ᵀ`, are `factor` times their distances.
    Samples { first: (SampleInputs<'a, T>, Centre<'a>), second: (SampleInputs<'a, T>, Centre<'a>), factor: f64 },
    /// `K` itself.
    Dense(Mat<f64>),
}

impl<'a, T: Scalar> CrossMoment<'a, T> {
    pub(super) fn of_samples(
        first: (SampleInputs<'a, T>, Centre<'a>),
        second: (SampleInputs<'a, T>, Centre<'a>),
        factor: f64,
    ) -> Self {
        Self { form: CrossForm::Samples { first, second, factor } }
    }

    pub(super) fn of_sums(mut sums: Mat<f64>, factor: f64) -> Self {
        sums *= faer::Scale(factor);
        Self { form: CrossForm::Dense(sums) }
    }

    /// `X` if `K = X X̂ᵀ` is known by fewer samples than inputs, features × samples.
    pub(crate) fn root(&self, par: Par) -> Result<Option<Mat<f64>>> {
        match &self.form {
            CrossForm::Samples { first: (samples, centre), factor, .. } => samples.root(centre, *factor, par),
            CrossForm::Dense(_) => Ok(None),
        }
    }

    /// `weight · (K − S)` with the second moment `S` of `x̂`, in the precision of the data.
    ///
    /// Where samples are kept, the difference is that of the samples: none remains where `x̂ = x`.
    pub(crate) fn change(&self, weight: MatRef<'_, T>, moment: MatRef<'_, f64>, par: Par) -> Result<Mat<T>> {
        let (first, second, factor) = match &self.form {
            CrossForm::Samples { first, second, factor } => (first, second, factor),
            CrossForm::Dense(matrix) => {
                let change = linalg::converted::<f64, T>((matrix - moment).as_ref(), 1.0)?;
                return linalg::product(weight, change.as_ref(), par);
            }
        };
        let mut result = linalg::zeros(weight.nrows(), second.0.features())?;
        first.0.for_each_pair((&first.1, second), *factor, par, |x, compressed| {
            let change = Mat::from_fn(x.nrows(), x.ncols(), |i, j| T::from_f64(x[(i, j)] - compressed[(i, j)]));
            let outputs = linalg::product(weight, change.as_ref(), par)?;
            let compressed = linalg::converted::<f64, T>(compressed, 1.0)?;
            linalg::add_product(result.as_mut(), T::from_f64(1.0), outputs.as_ref(), compressed.transpose(), par);
            Ok(())
        })?;
        Ok(result)
    }

    /// `K` in the precision of the data, if it is known by its entries.
    pub(crate) fn native(&self) -> Result<Option<Mat<T>>> {
        match &self.form {
            CrossForm::Dense(matrix) => linalg::converted(matrix.as_ref(), 1.0).map(Some),
            CrossForm::Samples { .. } => Ok(None),
        }
    }

    /// `left · K`, for `rows × features`.
    pub(crate) fn left_multiply(&self, left: MatRef<'_, f64>, par: Par) -> Result<Mat<f64>> {
        match &self.form {
            CrossForm::Dense(matrix) => linalg::product(left, matrix.as_ref(), par),
            CrossForm::Samples { .. } => self.sum_of_products(left.nrows(), par, |x| linalg::product(left, x, par)),
        }
    }

    /// Forms `K`.
    pub(crate) fn formed(&self, par: Par) -> Result<Mat<f64>> {
        match &self.form {
            CrossForm::Dense(matrix) => linalg::widened(matrix.as_ref(), 1.0),
            CrossForm::Samples { first, .. } => {
                self.sum_of_products(first.0.features(), par, |x| linalg::widened(x, 1.0))
            }
        }
    }

    /// `Σ of(X) X̂ᵀ` over the segments of the kept samples; zero if none are kept.
    fn sum_of_products(
        &self,
        rows: usize,
        par: Par,
        of: impl Fn(MatRef<'_, f64>) -> Result<Mat<f64>>,
    ) -> Result<Mat<f64>> {
        let CrossForm::Samples { first, second, factor } = &self.form else { return linalg::zeros(rows, 0) };
        let mut sum = linalg::zeros(rows, second.0.features())?;
        first.0.for_each_pair((&first.1, second), *factor, par, |x, compressed| {
            linalg::add_product(sum.as_mut(), 1.0, of(x)?.as_ref(), compressed.transpose(), par);
            Ok(())
        })?;
        Ok(sum)
    }
}
