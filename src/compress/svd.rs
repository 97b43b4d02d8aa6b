//! Truncated SVD of the weight, with and without bias correction: the baselines of the paper
//! (section 4.1).

use super::problem::Inputs;
use super::problem_builder::{ProblemBuilder, Regularization, Target};
use super::{Calibration, Decomposition, LowRankCompressor};
use crate::error::during;
use crate::factors::Form;
use crate::linalg;
use crate::{Linear, Result, Scalar, Solver};

/// Truncated singular value decomposition: the rank-k matrix closest to the weight itself.
///
/// It does not use data. With the singular values of `W = Σ sᵢ uᵢ vᵢᵀ` in descending order (Eckart
/// and Young 1936):
///
/// ```text
/// C = Σ_{i≤k} sᵢ uᵢ vᵢᵀ,   ‖W − C‖² = Σ_{i>k} sᵢ²
/// ```
///
/// Without bias correction it needs no samples: pass [`Calibration::none()`]. Given samples, it
/// predicts its error on them.
///
/// ```
/// use dalr::{ActivationStats, Calibration, Linear, LowRankCompressor, Rank, Solver, TruncatedSvd};
/// use faer::Mat;
///
/// # fn main() -> dalr::Result<()> {
/// let layer = Linear::new(Mat::from_fn(6, 4, |i, j| (i + 2 * j) as f32), None)?;
/// let compressed = TruncatedSvd::new().compress(&layer, Calibration::none(), Rank::Fixed(2))?;
/// let difference = compressed.layer().to_linear()?.weight() - layer.weight();
/// assert!(difference.norm_max() < 1e-5); // this weight has rank 2
///
/// // Everything that can be set; correcting the bias takes samples.
/// let method = TruncatedSvd::new()
///     .with_bias_correction(true)
///     .with_solver(Solver::DenseEigen)
///     .with_threads(1)
///     .with_rank_multiple(2);
/// let mut stats = ActivationStats::new(4);
/// stats.update(Mat::from_fn(9, 4, |i, j| ((i * 7 + j * 5) % 11) as f32).as_ref())?;
/// assert!(method.compress(&layer, &stats, Rank::Fixed(2))?.layer().bias().is_some());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TruncatedSvd {
    correct_bias: bool,
    solver: Solver,
    threads: usize,
    rank_multiple: usize,
    #[cfg_attr(feature = "serde", serde(default))]
    form: Form,
}

impl TruncatedSvd {
    /// Creates truncated SVD that keeps the bias.
    pub fn new() -> Self {
        Self { correct_bias: false, solver: Solver::Auto, threads: 0, rank_multiple: 1, form: Form::Factors }
    }

    /// Sets whether the bias is corrected; `false` by default.
    ///
    /// The corrected bias `b̂ = b + (W − C) μ` (eq. 4 of the paper) with the mean input `μ` keeps
    /// the mean output. It needs samples. A layer without a bias gets one.
    #[must_use]
    pub fn with_bias_correction(mut self, correct: bool) -> Self {
        self.correct_bias = correct;
        self
    }

    /// Sets the algorithm; [`Solver::Auto`] by default.
    #[must_use]
    pub fn with_solver(mut self, solver: Solver) -> Self {
        self.solver = solver;
        self
    }

    /// Sets the number of threads, at most those of rayon's pool. 0, the default, means one inside
    /// a rayon worker and the whole pool elsewhere.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Makes every rank a multiple of this number, as some hardware prefers; 1 by default.
    /// [`Rank::ParameterRatio`](crate::Rank) rounds down, the rules for energies and errors round
    /// up, and a fixed rank must be a multiple. A solve rejects 0.
    #[must_use]
    pub fn with_rank_multiple(mut self, multiple: usize) -> Self {
        self.rank_multiple = multiple;
        self
    }

    /// Sets the form of the compressed layer; [`Form::Factors`] by default.
    ///
    /// [`Rank::ParameterRatio`](crate::Rank::ParameterRatio) and the report count the parameters of
    /// that form, and [`Compressed::to_pivoted`](crate::Compressed::to_pivoted) makes the layer.
    /// The solve is the same.
    #[must_use]
    pub fn with_form(mut self, form: Form) -> Self {
        self.form = form;
        self
    }
}

impl Default for TruncatedSvd {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Scalar> LowRankCompressor<T> for TruncatedSvd {
    fn solve(&self, layer: &Linear<T>, calibration: Calibration<'_, T>, max_rank: usize) -> Result<Decomposition<T>> {
        during("TruncatedSvd::solve", || {
            let builder = ProblemBuilder {
                method: if self.correct_bias { "svd+bc" } else { "svd" },
                inputs: Inputs::Identity,
                target: Target::Original,
                regularization: Regularization::Relative(0.0),
                centred: false,
                correct_bias: self.correct_bias,
                solver: self.solver,
                par: linalg::threads(self.threads),
            };
            builder.solve(layer, calibration, max_rank)
        })
    }

    fn rank_multiple(&self) -> usize {
        self.rank_multiple
    }

    fn form(&self) -> Form {
        self.form
    }
}
