//! Adding samples to a scatter: centred in `f64`, multiplied in `f64` or, for many inputs, in the precision of the data.

use faer::{Mat, MatMut, MatRef};

use super::samples::{Centre, Samples, fill_centred, segment_rows};
use super::scatter::{BLOCK, Scatter};
use crate::kernel;
use crate::{Result, Scalar};

/// Inputs from which on products are computed in the precision of the data and summed up in `f64`. What
/// that costs is a relative rounding of about `ε` of the data in a sum over a piece of samples, far below what the data
/// themselves carry; what it gains is more than twice the speed.
const NARROW_FEATURES: usize = 512;

/// Room for one piece of samples, reserved before anything changes.
pub(super) enum Accumulator<T> {
    Wide { columns: Mat<f64> },
    Narrow { columns: Mat<T>, products: Mat<T> },
}

/// A direction that enters a scatter as one more sample: a displacement and a factor.
pub(super) type Extra<'a> = Option<(&'a [f64], f64)>;

impl<T: Scalar> Accumulator<T> {
    /// For pieces of up to `rows` samples and one extra direction.
    pub(super) fn new(operation: &'static str, features: usize, rows: usize) -> Result<Self> {
        let width = rows.min(segment_rows(features)) + 1;
        if T::EPSILON > f64::EPSILON && features >= NARROW_FEATURES {
            let columns = kernel::zeros(operation, features, width)?;
            return Ok(Self::Narrow { columns, products: kernel::zeros(operation, features, BLOCK)? });
        }
        Ok(Self::Wide { columns: kernel::zeros(operation, features, width)? })
    }

    /// Adds `Σ wᵢ (rowᵢ − centre)(rowᵢ − centre)ᵀ`, and the extra direction's outer product.
    pub(super) fn add(
        &mut self,
        scatter: &mut Scatter,
        rows: MatRef<'_, T>,
        weights: Option<&[f64]>,
        centre: &Centre<'_>,
        extra: Extra<'_>,
        threads: usize,
    ) {
        let width = rows.nrows() + usize::from(extra.is_some());
        match self {
            Self::Wide { columns } => {
                let mut columns = columns.as_mut().subcols_mut(0, width);
                fill(columns.as_mut(), rows, weights, centre, extra, threads);
                scatter.add_samples(columns.as_ref(), threads);
            }
            Self::Narrow { columns, products } => {
                let mut columns = columns.as_mut().subcols_mut(0, width);
                fill(columns.as_mut(), rows, weights, centre, extra, threads);
                scatter.add_narrow_samples(columns.as_ref(), products.as_mut(), threads);
            }
        }
    }

    /// Adds the scatter of all `samples` about `centre`.
    pub(super) fn add_all(
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

fn fill<T: Scalar, O: Scalar>(
    mut columns: MatMut<'_, O>,
    rows: MatRef<'_, T>,
    weights: Option<&[f64]>,
    centre: &Centre<'_>,
    extra: Extra<'_>,
    threads: usize,
) {
    fill_centred(columns.as_mut().subcols_mut(0, rows.nrows()), rows, weights, centre, 1.0, threads);
    if let Some((direction, factor)) = extra {
        let last = columns.col_mut(rows.nrows());
        last.iter_mut().zip(direction).for_each(|(to, d)| *to = O::from_f64(d * factor));
    }
}
