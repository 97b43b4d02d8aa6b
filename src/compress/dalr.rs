//! DALR: minimises the change of the layer's outputs on the calibration data.

use super::problem::Inputs;
use super::problem_builder::ProblemBuilder;
use super::{Calibration, Decomposition, LowRankCompressor, Ridge};
use crate::error::during;
use crate::factors::Form;
use crate::linalg;
use crate::{Linear, Result, Scalar, Solver};

/// Domain-adaptive low-rank compression (Masana et al., ICCV 2017), improved.
///
/// Minimises the change of the layer's outputs on the calibration data. With [`Ridge::None`], the
/// objective is this, over all `C` of rank `k`, and over `b̂` if the bias is corrected:
///
/// ```text
/// Σᵢ wᵢ ‖W xᵢ + b − C xᵢ − b̂‖²,   solved by   C = U_k U_kᵀ W,   b̂ = b + (W − C) μ
/// ```
///
/// The columns of `U_k` are the leading eigenvectors of `W S Wᵀ`. `S` is the covariance of the
/// inputs and `μ` their mean; if the bias is kept, `S` is the second moment about zero. The other
/// ridges regularize `S` first. No matrix is inverted, and `S` may be singular.
///
/// [`new`](Self::new) is the recommended method and goes beyond the paper;
/// [`paper`](Self::paper) is the published one. With [`Ridge::None`], [`Ridge::Shrinkage`] and
/// [`Ridge::Relative`], the error on the calibration data is never above that of
/// [`TruncatedSvd`](crate::TruncatedSvd) with the same treatment of the bias.
///
/// ```
/// use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Rank, Ridge, Solver};
/// use faer::{Col, Mat};
///
/// # fn main() -> dalr::Result<()> {
/// let layer = Linear::new(Mat::from_fn(8, 6, |i, j| ((i * 5 + j * 3) % 7) as f32), Some(Col::zeros(8)))?;
/// let mut stats = ActivationStats::new(6);
/// stats.update(Mat::from_fn(50, 6, |i, j| ((i * 11 + j * 7) % 13) as f32).as_ref())?;
/// let compressed = Dalr::new().compress(&layer, &stats, Rank::RelativeError(0.3))?;
/// assert!(compressed.report().relative_error().is_some_and(|error| error <= 0.3));
///
/// // Everything that can be set.
/// let method = Dalr::new()
///     .with_ridge(Ridge::Relative(0.1))
///     .with_bias_correction(false)
///     .with_solver(Solver::DenseEigen)
///     .with_threads(1)
///     .with_rank_multiple(2);
/// let compressed = method.compress(&layer, &stats, Rank::Energy(0.9))?;
/// assert!(compressed.layer().rank() % 2 == 0 && compressed.layer().bias() == layer.bias());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Dalr {
    ridge: Option<Ridge>,
    correct_bias: Option<bool>,
    solver: Solver,
    threads: usize,
    rank_multiple: usize,
    #[cfg_attr(feature = "serde", serde(default))]
    form: Form,
}

impl Dalr {
    /// Creates the recommended method: [`Ridge::Shrinkage`], and the bias corrected jointly with
    /// the weight. A layer without a bias stays without one.
    pub fn new() -> Self {
        Self {
            ridge: None,
            correct_bias: None,
            solver: Solver::Auto,
            threads: 0,
            rank_multiple: 1,
            form: Form::Factors,
        }
    }

    /// Creates the published method, eq. 11 of the paper.
    ///
    /// It adds `λ` to `X Xᵀ`, where the columns of `X` are the inputs. This sum is not divided by
    /// the number of samples. The inputs are not centred, and the bias is kept. The authors' code
    /// uses `λ = 1000`, and the notebook in that code uses `λ = 10`.
    ///
    /// ```
    /// # use dalr::{Dalr, Ridge};
    /// assert_eq!(Dalr::paper(1000.0), Dalr::new().with_ridge(Ridge::Paper(1000.0)));
    /// ```
    pub fn paper(lambda: f64) -> Self {
        Self::new().with_ridge(Ridge::Paper(lambda))
    }

    /// Sets the regularization; [`Ridge::Shrinkage`] by default.
    #[must_use]
    pub fn with_ridge(mut self, ridge: Ridge) -> Self {
        self.ridge = Some(ridge);
        self
    }

    /// Sets whether the bias is corrected.
    ///
    /// `true` centres the inputs and sets `b̂ = b + (W − C) μ`, which is jointly optimal. A layer
    /// without a bias gets one. `false` uses the second moment about zero and keeps the bias. With
    /// [`Ridge::Paper`] and [`Ridge::Exact`], `true` corrects the bias by eq. 4 of the paper, after
    /// a solve that is not centred. By default these two keep the bias, and all other ridges
    /// correct it if the layer has one.
    #[must_use]
    pub fn with_bias_correction(mut self, correct: bool) -> Self {
        self.correct_bias = Some(correct);
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

impl Default for Dalr {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Scalar> LowRankCompressor<T> for Dalr {
    fn solve(&self, layer: &Linear<T>, calibration: Calibration<'_, T>, max_rank: usize) -> Result<Decomposition<T>> {
        during("Dalr::solve", || {
            let ridge = self.ridge.unwrap_or(Ridge::automatic(calibration.paired().is_some()));
            let absolute = ridge.is_absolute();
            let correct_bias = self.correct_bias.unwrap_or(!absolute && layer.bias().is_some());
            let (target, regularization) = ridge.problem()?;
            let builder = ProblemBuilder {
                method: match (ridge, correct_bias) {
                    (Ridge::Paper(_), false) => "dalr-paper",
                    (Ridge::Paper(_), true) => "dalr-paper+bc",
                    (Ridge::Exact(_), false) => "dalr-exact",
                    (Ridge::Exact(_), true) => "dalr-exact+bc",
                    _ => "dalr",
                },
                inputs: Inputs::Data,
                target,
                regularization,
                centred: correct_bias && !absolute,
                correct_bias,
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
