//! Bias correction: what a compressed weight loses on the mean input goes into the bias.

use faer::{Col, ColRef, MatRef};

use crate::{Error, Result, Scalar};

/// What `b̂ = b + (W − C) μ` (eq. 4 of the paper) needs beside the factors of `C`, for every rank at once.
#[derive(Clone)]
pub(crate) struct BiasCorrection {
    /// `b + W μ`, one entry per output.
    output_mean: Vec<f64>,
    /// `down · μ`, one entry per dimension kept.
    waist_mean: Vec<f64>,
}

impl BiasCorrection {
    /// `down` is the factor as stored: its rounding is corrected for as well.
    pub(crate) fn new<T: Scalar>(
        weight: MatRef<'_, T>,
        bias: Option<ColRef<'_, T>>,
        down: MatRef<'_, T>,
        mean: &[f64],
    ) -> Self {
        let mut output_mean = times(weight, mean);
        if let Some(bias) = bias {
            output_mean.iter_mut().zip(bias.iter()).for_each(|(sum, b)| *sum += b.to_f64());
        }
        Self { output_mean, waist_mean: times(down, mean) }
    }

    /// The corrected bias that belongs to the first columns of `up`.
    pub(crate) fn apply<T: Scalar>(&self, up: MatRef<'_, T>) -> Result<Col<T>> {
        let compressed = times(up, &self.waist_mean);
        let corrected = self.output_mean.iter().zip(&compressed).map(|(dense, low)| T::from_f64(dense - low));
        let corrected: Col<T> = corrected.collect();
        if corrected.iter().all(|x| x.to_f64().is_finite()) {
            return Ok(corrected);
        }
        Err(Error::overflow("the corrected bias"))
    }
}

/// `matrix · vector`, accumulated in `f64`; entries of the vector past the matrix's columns do not count.
pub(crate) fn times<T: Scalar>(matrix: MatRef<'_, T>, vector: &[f64]) -> Vec<f64> {
    let mut product = vec![0.0; matrix.nrows()];
    for (column, x) in matrix.col_iter().zip(vector) {
        product.iter_mut().zip(column.iter()).for_each(|(sum, entry)| *sum += entry.to_f64() * x);
    }
    product
}
