//! Compression of one layer: the trait [`LowRankCompressor`] and the methods.

mod basis;
mod calibration;
mod compressed;
mod dalr;
mod decomposition;
mod hidden_units;
mod operator_problem;
mod operators;
mod output_metric;
mod problem;
mod problem_builder;
mod pruning;
mod relative_error;
mod ridge;
mod solve;
mod solver_choice;
mod svd;

pub(crate) use self::basis::Basis;
pub use self::calibration::Calibration;
pub use self::compressed::Compressed;
pub use self::dalr::Dalr;
pub use self::decomposition::Decomposition;
pub(crate) use self::decomposition::{Facts, require_energies};
pub use self::hidden_units::{HiddenUnitSelection, HiddenUnits, SelectedUnits};
pub use self::operator_problem::OperatorProblem;
pub use self::output_metric::{ActivationFunction, OutputMetric};
pub use self::pruning::ActivationPruning;
pub use self::relative_error::relative_output_error;
pub use self::ridge::{Ridge, select_ridge};
pub use self::svd::TruncatedSvd;

use crate::error::during;
use crate::factors::Form;
use crate::{Linear, Rank, Result, Scalar};

/// A method that replaces a layer by two factors.
///
/// Implement [`solve`](Self::solve) to add a method of your own; [`Decomposition::new`] makes its
/// result from any two factors. The trait is object safe: through `dyn LowRankCompressor<T>` call
/// [`compress_with`](Self::compress_with).
///
/// ```
/// use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Rank, TruncatedSvd};
/// use faer::Mat;
///
/// # fn main() -> dalr::Result<()> {
/// let layer = Linear::new(Mat::from_fn(8, 6, |i, j| ((i * 5 + j * 3) % 7) as f64), None)?;
/// let mut stats = ActivationStats::new(6);
/// stats.update(Mat::from_fn(50, 6, |i, j| ((i * 11 + j * 7) % 13) as f64 / (j + 1) as f64).as_ref())?;
/// let methods: [&dyn LowRankCompressor<f64>; 2] = [&TruncatedSvd::new(), &Dalr::new()];
/// let errors = methods.map(|method| {
///     let compressed = method.compress_with(&layer, (&stats).into(), Rank::Fixed(2))?;
///     compressed.evaluate(&layer, &stats)
/// });
/// assert!(errors[1].clone()? < errors[0].clone()?);
/// # Ok(())
/// # }
/// ```
pub trait LowRankCompressor<T: Scalar> {
    /// Solves the method's problem for every rank up to `max_rank` at once.
    ///
    /// # Errors
    ///
    /// A rank outside of 1 to min(out, in); statistics with another number of inputs than the
    /// layer, or without the samples that the method needs; parameters out of range; failures of
    /// the solver.
    fn solve(&self, layer: &Linear<T>, calibration: Calibration<'_, T>, max_rank: usize) -> Result<Decomposition<T>>;

    /// Returns the number of which every chosen rank is a multiple; 1 by default.
    fn rank_multiple(&self) -> usize {
        1
    }

    /// The form of the compressed layer; two factors unless the method says otherwise.
    fn form(&self) -> Form {
        Form::Factors
    }

    /// Compresses a layer: [`solve`](Self::solve), [`Decomposition::rank_for`] and
    /// [`Decomposition::truncate`] in one call.
    ///
    /// # Errors
    ///
    /// As [`solve`](Self::solve); a rank that the layer cannot have.
    fn compress_with(&self, layer: &Linear<T>, calibration: Calibration<'_, T>, rank: Rank) -> Result<Compressed<T>> {
        during("LowRankCompressor::compress", || {
            let multiple = self.rank_multiple();
            let bound = rank.bound((layer.out_features(), layer.in_features()), multiple, self.form())?;
            let decomposition = self.solve(layer, calibration, bound)?.with_form(self.form());
            decomposition.truncate(decomposition.rank_for(rank, multiple)?)
        })
    }

    /// Calls [`solve`](Self::solve) with anything that converts into a [`Calibration`], such as
    /// `&stats`.
    ///
    /// # Errors
    ///
    /// As [`solve`](Self::solve).
    fn decompose<'a>(
        &self,
        layer: &Linear<T>,
        calibration: impl Into<Calibration<'a, T>>,
        max_rank: usize,
    ) -> Result<Decomposition<T>>
    where
        Self: Sized,
    {
        Ok(self.solve(layer, calibration.into(), max_rank)?.with_form(self.form()))
    }

    /// Calls [`compress_with`](Self::compress_with) with anything that converts into a
    /// [`Calibration`], such as `&stats`.
    ///
    /// # Errors
    ///
    /// As [`compress_with`](Self::compress_with).
    fn compress<'a>(
        &self,
        layer: &Linear<T>,
        calibration: impl Into<Calibration<'a, T>>,
        rank: Rank,
    ) -> Result<Compressed<T>>
    where
        Self: Sized,
    {
        self.compress_with(layer, calibration.into(), rank)
    }
}

#[cfg(test)]
mod tests;
