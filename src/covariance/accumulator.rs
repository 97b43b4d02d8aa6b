//! Adding samples to a scatter, centred and multiplied in `f64`.

use faer::{Mat, MatRef};

use super::samples::{Centre, Samples, fill_centred, segment_rows};
use super::scatter::Scatter;
use crate::kernel;
use crate::{Result, Scalar};

/// Room for one piece of samples, reserved before anything changes.
pub(super) struct Accumulator {
    columns: Mat<f64>,
}

impl Accumulator {
    /// For pieces of up to `rows` samples and one extra direction.
    pub(super) fn new(operation: &'static str, features: usize, rows: usize) -> Result<Self> {
        let width = rows.min(segment_rows(features)) + 1;
        Ok(Self { columns: kernel::zeros(operation, features, width)? })
    }

    /// Adds `Σ wᵢ (rowᵢ − centre)(rowᵢ − centre)ᵀ`, and of an extra direction, given with a factor, the outer product.
    pub(super) fn add<T: Scalar>(
        &mut self,
        scatter: &mut Scatter,
        rows: MatRef<'_, T>,
        weights: Option<&[f64]>,
        centre: &Centre<'_>,
        extra: Option<(&[f64], f64)>,
        threads: usize,
    ) {
        let width = rows.nrows() + usize::from(extra.is_some());
        let mut columns = self.columns.as_mut().subcols_mut(0, width);
        fill_centred(columns.as_mut().subcols_mut(0, rows.nrows()), rows, weights, centre, 1.0, threads);
        if let Some((direction, factor)) = extra {
            let last = columns.as_mut().col_mut(rows.nrows());
            last.iter_mut().zip(direction).for_each(|(to, d)| *to = d * factor);
        }
        scatter.add_samples(columns.as_ref(), threads);
    }

    /// Adds the scatter of all `samples` about `centre`.
    pub(super) fn add_all<T: Scalar>(
        operation: &'static str,
        scatter: &mut Scatter,
        samples: &Samples<T>,
        centre: &Centre<'_>,
        threads: usize,
    ) -> Result<()> {
        let mut accumulator = Self::new(operation, scatter.features(), samples.len())?;
        for (rows, weights) in samples.segments() {
            accumulator.add(scatter, rows, Some(weights), centre, None, threads);
        }
        Ok(())
    }
}
