//! What a compression did and what it cost: numbers and warnings for people and programs.

use core::fmt;

/// What a compression did, what it cost, and what to be wary of.
///
/// ```
/// use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Rank, Warning};
/// use faer::Mat;
///
/// # fn main() -> dalr::Result<()> {
/// let layer = Linear::new(Mat::from_fn(6, 4, |i, j| (i * j) as f64 + 1.0), None)?;
/// let mut stats = ActivationStats::new(4);
/// stats.update(Mat::from_fn(20, 4, |i, j| ((i * 7 + j * 5) % 11) as f64).as_ref())?;
/// let compressed = Dalr::new().compress(&layer, &stats, Rank::Fixed(3))?;
/// let report = compressed.report();
/// assert_eq!((report.method(), report.rank(), report.samples()), ("dalr", 3, 20));
/// assert_eq!((report.in_features(), report.out_features()), (4, 6));
/// assert_eq!((report.parameters_before(), report.parameters_after()), (24, 30));
/// assert_eq!((report.multiply_adds_before(), report.multiply_adds_after()), (24, 30));
/// assert!(report.relative_error().is_some_and(|error| error < 0.1));
/// assert!(report.shrinkage().is_some_and(|intensity| intensity < 1.0));
/// assert!(report.solver().starts_with("dense eigendecomposition") && report.residual() < 1e-12);
/// assert!(report.warnings().contains(&Warning::PastBreakEven { rank: 3, break_even: 2.4 }));
/// println!("{report}");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Report {
    pub(crate) method: String,
    pub(crate) rank: usize,
    pub(crate) out_features: usize,
    pub(crate) in_features: usize,
    pub(crate) parameters_before: usize,
    pub(crate) parameters_after: usize,
    pub(crate) multiply_adds_before: usize,
    pub(crate) multiply_adds_after: usize,
    pub(crate) relative_error: Option<f64>,
    pub(crate) samples: u64,
    pub(crate) shrinkage: Option<f64>,
    pub(crate) solver: String,
    pub(crate) residual: f64,
    pub(crate) warnings: Vec<Warning>,
}

impl Report {
    /// Name of the method: `svd`, `dalr`, `dalr-paper` or `dalr-exact`; `+bc` is added where the bias was corrected after the
    /// solve (`dalr` corrects it along with the weight).
    ///
    /// For an example see [`Report`].
    pub fn method(&self) -> &str {
        &self.method
    }

    /// Dimensions kept.
    ///
    /// For an example see [`Report`].
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of outputs of the layer.
    ///
    /// For an example see [`Report`].
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Number of inputs of the layer.
    ///
    /// For an example see [`Report`].
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Parameters of the dense layer, bias included.
    ///
    /// For an example see [`Report`].
    pub fn parameters_before(&self) -> usize {
        self.parameters_before
    }

    /// Parameters of the compressed layer, bias included.
    ///
    /// For an example see [`Report`].
    pub fn parameters_after(&self) -> usize {
        self.parameters_after
    }

    /// Multiply–adds of the dense layer for one sample.
    ///
    /// For an example see [`Report`].
    pub fn multiply_adds_before(&self) -> usize {
        self.multiply_adds_before
    }

    /// Multiply–adds of the compressed layer for one sample.
    ///
    /// For an example see [`Report`].
    pub fn multiply_adds_after(&self) -> usize {
        self.multiply_adds_after
    }

    /// Predicted error of the outputs on the calibration data, the root of `Σ wᵢ ‖yᵢ − ŷᵢ‖²` relative to
    /// that of the dense outputs: centred ones, `y − ȳ`, when the bias is corrected, those without the bias,
    /// `W x`, when it is kept. `None` without samples.
    ///
    /// For an example see [`Report`].
    pub fn relative_error(&self) -> Option<f64> {
        self.relative_error
    }

    /// Calibration samples seen.
    ///
    /// For an example see [`Report`].
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Shrinkage intensity `ρ` that the samples called for; `None` if the method does not shrink.
    ///
    /// For an example see [`Report`].
    pub fn shrinkage(&self) -> Option<f64> {
        self.shrinkage
    }

    /// Name of the algorithm that found the eigenpairs.
    ///
    /// For an example see [`Report`].
    pub fn solver(&self) -> &str {
        &self.solver
    }

    /// Residual of the eigenpairs, relative to the largest eigenvalue.
    ///
    /// For an example see [`Report`].
    pub fn residual(&self) -> f64 {
        self.residual
    }

    /// What to be wary of; empty when all is well.
    ///
    /// For an example see [`Report`].
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |after: usize, before: usize| 100.0 * after as f64 / before as f64;
        writeln!(f, "{}: {} → {} → {}", self.method, self.in_features, self.rank, self.out_features)?;
        let (before, after) = (self.parameters_before, self.parameters_after);
        writeln!(f, "  parameters      {before} → {after} ({:.1} %)", share(after, before))?;
        let (before, after) = (self.multiply_adds_before, self.multiply_adds_after);
        writeln!(f, "  multiply–adds   {before} → {after} ({:.1} %)", share(after, before))?;
        match self.relative_error {
            Some(error) => writeln!(f, "  relative error  {error:.4e} on {} samples", self.samples)?,
            None => writeln!(f, "  relative error  unknown: no samples")?,
        }
        if let Some(shrinkage) = self.shrinkage {
            writeln!(f, "  shrinkage       {shrinkage:.4}")?;
        }
        write!(f, "  solver          {}, residual {:.1e}", self.solver, self.residual)?;
        for warning in &self.warnings {
            write!(f, "\n  warning: {warning}")?;
        }
        Ok(())
    }
}

/// A reason to look twice at a compressed layer. For an example see [`Report`].
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Warning {
    /// Fewer (effective) samples than inputs: the statistics cannot tell all directions apart.
    FewSamples {
        /// Effective number of samples.
        samples: f64,
        /// Number of inputs.
        inputs: usize,
    },
    /// The inputs never vary, so the data say nothing about which directions matter; the weight alone decided, as in truncated SVD.
    NoVariation,
    /// The problem determines fewer directions than the rank (few samples, inputs that never vary, a weight of low rank); the
    /// others are the leading ones of the weight.
    Filled {
        /// Directions that stand out of rounding.
        determined: usize,
        /// Rank of the layer.
        rank: usize,
    },
    /// The compressed layer takes at least as many parameters as the dense one, which loses nothing: keep that.
    PastBreakEven {
        /// Rank of the layer.
        rank: usize,
        /// Rank at which nothing is saved.
        break_even: f64,
    },
    /// The predicted error is below what its arithmetic can resolve; take it as "at most `resolution`".
    BelowResolution {
        /// The smallest relative error that can be told from zero.
        resolution: f64,
    },
    /// The algorithm of choice did not converge and another took over.
    SolverFallback {
        /// The algorithm that answered.
        solver: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FewSamples { samples, inputs } => {
                write!(f, "{samples:.0} effective samples for {inputs} inputs; check the error on held-out data")
            }
            Self::NoVariation => write!(f, "the inputs do not vary; compressed as truncated SVD would"),
            Self::Filled { determined, rank } => {
                write!(f, "{determined} of {rank} dimensions stand out of rounding; the weight filled the others")
            }
            Self::PastBreakEven { rank, break_even } => {
                write!(f, "rank {rank} is past break-even ({break_even:.1}): the dense layer takes no more")
            }
            Self::BelowResolution { resolution } => {
                write!(f, "the relative error is below resolution ({resolution:.1e})")
            }
            Self::SolverFallback { solver } => write!(f, "the solver of choice did not converge; {solver} answered"),
        }
    }
}
