//! DALR: the layer's outputs on the target domain, not its weight, are what changes least.

use super::weighted::Problem;
use super::{Decomposition, LowRankCompressor, Ridge};
use crate::error::during;
use crate::linalg;
use crate::{ActivationStats, Linear, Result, Scalar, Solver};

/// Domain-adaptive low-rank compression (Masana et al., ICCV 2017), improved.
///
/// With [`Ridge::None`], minimises over all `C` of rank `k`, and over `b̂` when the bias is corrected,
///
/// $$\sum_i w_i \lVert W x_i + b - C x_i - \hat b \rVert^2 \qquad\text{by}\qquad C = U_k U_k^\top W, \quad \hat b = b + (W - C)\thinspace \mu,$$
///
/// with the leading eigenvectors `U_k` of `W S Wᵀ`, where `S` is the covariance of the inputs and `μ` their mean (or, when the bias is kept, `S` is their
/// second moment about zero).
/// The other ridges regularise `S` first. No matrix is inverted, and `S` may be singular.
///
/// [`new`](Self::new) is the recommended method; [`paper`](Self::paper) is the published one. With any of [`Ridge::None`],
/// [`Ridge::Shrinkage`] and [`Ridge::Anchored`] the error on the calibration data is never above that of
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
///     .with_ridge(Ridge::Anchored(0.1))
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
    ridge: Ridge,
    correct_bias: Option<bool>,
    solver: Solver,
    threads: usize,
    rank_multiple: usize,
}

impl Dalr {
    /// The recommended method: [`Ridge::Shrinkage`], and the bias corrected jointly with the weight if the layer has
    /// one. A layer without a bias stays without.
    ///
    /// For an example see [`Dalr`].
    pub fn new() -> Self {
        Self { ridge: Ridge::Shrinkage, correct_bias: None, solver: Solver::Auto, threads: 0, rank_multiple: 1 }
    }

    /// Eq. 11 of the paper to the letter: `λ` is absolute, on `X Xᵀ` not divided by the number of samples, the
    /// inputs are not centred, and the bias is kept. The authors' code uses `λ = 1000`, its notebook 10.
    ///
    /// ```
    /// # use dalr::{Dalr, Ridge};
    /// assert_eq!(Dalr::paper(1000.0), Dalr::new().with_ridge(Ridge::Paper(1000.0)));
    /// ```
    pub fn paper(lambda: f64) -> Self {
        Self::new().with_ridge(Ridge::Paper(lambda))
    }

    /// Sets how the statistics are regularised.
    ///
    /// For an example see [`Dalr`].
    #[must_use]
    pub fn with_ridge(mut self, ridge: Ridge) -> Self {
        self.ridge = ridge;
        self
    }

    /// Overrides the automatic treatment of the bias.
    ///
    /// `true` centres the inputs and sets `b̂ = b + (W − C) μ`, which is jointly optimal, and gives a bias even
    /// to a layer that has none. `false` measures inputs from zero and keeps the bias as it is. With the two
    /// absolute ridges, `true` corrects the bias (eq. 4) after the uncentred solve.
    ///
    /// For an example see [`Dalr`].
    #[must_use]
    pub fn with_bias_correction(mut self, correct: bool) -> Self {
        self.correct_bias = Some(correct);
        self
    }

    /// Sets the algorithm; [`Solver::Auto`] by default.
    ///
    /// For an example see [`Dalr`].
    #[must_use]
    pub fn with_solver(mut self, solver: Solver) -> Self {
        self.solver = solver;
        self
    }

    /// Sets the number of threads; 0, the default, chooses: one inside a rayon worker, all of rayon's pool
    /// elsewhere. Never more than that pool has.
    ///
    /// For an example see [`Dalr`].
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Makes every rank a multiple of this number, as hardware may like it: ratios round down, energies and errors up, a fixed rank
    /// must match. 1 by default; 0 is an error when compressing.
    ///
    /// For an example see [`Dalr`].
    #[must_use]
    pub fn with_rank_multiple(mut self, multiple: usize) -> Self {
        self.rank_multiple = multiple;
        self
    }
}

impl Default for Dalr {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Scalar> LowRankCompressor<T> for Dalr {
    fn decompose(&self, layer: &Linear<T>, stats: &ActivationStats<T>, max_rank: usize) -> Result<Decomposition<T>> {
        during("Dalr::decompose", || {
            let objective = self.ridge.objective()?;
            let corrected = self.correct_bias.unwrap_or(!self.ridge.is_absolute() && layer.bias().is_some());
            let method = match (self.ridge, corrected) {
                (Ridge::Paper(_), false) => "dalr-paper",
                (Ridge::Paper(_), true) => "dalr-paper+bc",
                (Ridge::Exact(_), false) => "dalr-exact",
                (Ridge::Exact(_), true) => "dalr-exact+bc",
                _ => "dalr",
            };
            let problem =
                Problem { method, objective, corrected, solver: self.solver, par: linalg::threads(self.threads) };
            problem.solve(layer, stats, max_rank)
        })
    }

    fn rank_multiple(&self) -> usize {
        self.rank_multiple
    }
}
