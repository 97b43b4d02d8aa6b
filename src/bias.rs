//! Bias correction: the new bias compensates for the error of the compressed weight on the mean
//! input.

use faer::{Col, ColRef, MatRef};

use crate::{Error, Result, Scalar};

/// The part of `b̂ = b + (W − C) μ` (eq. 4 of the paper) that does not depend on the rank.
#[derive(Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(crate) struct BiasCorrection {
    /// `b + W μ`, one entry per output.
    output_mean: Vec<f64>,
    /// `down · μ`, one entry per latent dimension.
    latent_mean: Vec<f64>,
}

impl BiasCorrection {
    /// Prepares the correction. `down` is the factor as it is stored, so its rounding is corrected,
    /// too.
    pub(crate) fn new<T: Scalar>(
        weight: MatRef<'_, T>,
        bias: Option<ColRef<'_, T>>,
        down: MatRef<'_, T>,
        (original_mean, mean): (&[f64], &[f64]),
    ) -> Self {
        let mut output_mean = times(weight, original_mean);
        if let Some(bias) = bias {
            output_mean.iter_mut().zip(bias.iter()).for_each(|(sum, b)| *sum += b.to_f64());
        }
        Self { output_mean, latent_mean: times(down, mean) }
    }

    /// The numbers of outputs and of latent dimensions.
    #[cfg(feature = "serde")]
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.output_mean.len(), self.latent_mean.len())
    }

    /// Returns the corrected bias for the first columns of `up`.
    pub(crate) fn apply<T: Scalar>(&self, up: MatRef<'_, T>) -> Result<Col<T>> {
        let compressed = times(up, &self.latent_mean);
        let means = self.output_mean.iter().zip(&compressed);
        let corrected: Col<T> = means.map(|(original, compressed)| T::from_f64(original - compressed)).collect();
        if corrected.iter().all(|x| x.to_f64().is_finite()) {
            return Ok(corrected);
        }
        Err(Error::overflow("the corrected bias"))
    }
}

/// Returns `matrix · vector`, summed in `f64`, over the columns of the matrix.
pub(crate) fn times<T: Scalar>(matrix: MatRef<'_, T>, vector: &[f64]) -> Vec<f64> {
    let mut product = vec![0.0; matrix.nrows()];
    for (column, x) in matrix.col_iter().zip(vector) {
        product.iter_mut().zip(column.iter()).for_each(|(sum, entry)| *sum += entry.to_f64() * x);
    }
    product
}
