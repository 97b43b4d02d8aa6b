//! The result of a compression in numbers, and warnings.

use core::fmt;

use crate::factors::Form;

/// The result of compressing one layer: method, size, predicted error and warnings.
///
/// `Display` prints it for people.
///
/// ```
/// use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Rank, Warning};
/// use faer::Mat;
///
/// # fn main() -> dalr::Result<()> {
/// let layer = Linear::new(Mat::from_fn(6, 4, |i, j| (i * j) as f64 + 1.0), None)?;
/// let mut stats = ActivationStats::new(4);
/// stats.update(Mat::from_fn(20, 4, |i, j| ((i * 7 + j * 5) % 11) as f64).as_ref())?;
/// let report = Dalr::new().compress(&layer, &stats, Rank::Fixed(3))?.report().clone();
/// assert_eq!((report.method.as_str(), report.rank, report.samples), ("dalr", 3, 20));
/// assert_eq!((report.parameters_before, report.parameters_after), (24, 30));
/// assert!(report.warnings.contains(&Warning::PastBreakEven { rank: 3, break_even: 2.4 }));
/// println!("{report}");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Report {
    /// Name of the method: `svd`, `dalr`, `dalr-paper` or `dalr-exact`. The suffix `+bc` means that
    /// the bias was corrected after the solve (`dalr` corrects it jointly with the weight).
    pub method: String,
    /// Rank of the compressed layer.
    pub rank: usize,
    /// The form whose parameters and multiply–adds are counted.
    #[cfg_attr(feature = "serde", serde(default))]
    pub form: Form,
    /// Number of outputs of the layer.
    pub out_features: usize,
    /// Number of inputs of the layer.
    pub in_features: usize,
    /// Parameters of the original layer, bias included.
    pub parameters_before: usize,
    /// Parameters of the compressed layer, bias included.
    pub parameters_after: usize,
    /// Multiply–adds of the original layer for one sample.
    pub multiply_adds_before: usize,
    /// Multiply–adds of the compressed layer for one sample.
    pub multiply_adds_after: usize,
    /// Predicted error of the outputs on the calibration data: the root of
    /// `Σ wᵢ ‖yᵢ − ŷᵢ‖² / Σ wᵢ ‖yᵢ − ȳ‖²`, as
    /// [`relative_output_error`](crate::relative_output_error) measures it. `None` without samples;
    /// for an [`Adapter`](crate::adapter::Adapter) that of the weight.
    pub relative_error: Option<f64>,
    /// Predicted error of the outputs in the output metric, relative to their variation in the
    /// metric; `None` without a metric or samples.
    pub metric_error: Option<f64>,
    /// Number of calibration samples.
    pub samples: u64,
    /// Shrinkage intensity `ρ` that was estimated; `None` if the method does not shrink.
    pub shrinkage: Option<f64>,
    /// Name of the algorithm that computed the eigenpairs.
    pub solver: String,
    /// Residual of the eigenpairs, relative to the largest eigenvalue.
    pub residual: f64,
    /// Reasons to check the result; empty if there are none.
    pub warnings: Vec<Warning>,
}

impl Report {
    /// Returns the name of the method.
    pub fn method(&self) -> &str {
        &self.method
    }

    /// Returns the rank of the compressed layer.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Returns the predicted error of the outputs on the calibration data.
    pub fn relative_error(&self) -> Option<f64> {
        self.relative_error
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |after: usize, before: usize| 100.0 * after as f64 / before as f64;
        write!(f, "{}: {} → {} → {}", self.method, self.in_features, self.rank, self.out_features)?;
        writeln!(f, "{}", if self.form == Form::Pivoted { ", pivoted" } else { "" })?;
        let (before, after) = (self.parameters_before, self.parameters_after);
        writeln!(f, "  parameters      {before} → {after} ({:.1} %)", percent(after, before))?;
        let (before, after) = (self.multiply_adds_before, self.multiply_adds_after);
        writeln!(f, "  multiply–adds   {before} → {after} ({:.1} %)", percent(after, before))?;
        match self.relative_error {
            Some(error) => writeln!(f, "  relative error  {error:.4e} on {} samples", self.samples)?,
            None => writeln!(f, "  relative error  unknown: no samples")?,
        }
        if let Some(error) = self.metric_error {
            writeln!(f, "  in the metric   {error:.4e}")?;
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

/// A reason to check a compressed layer or a plan.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Warning {
    /// The effective number of samples is smaller than the number of inputs, so the estimated
    /// covariance is inaccurate or rank-deficient.
    FewSamples {
        /// Effective number of samples.
        samples: f64,
        /// Number of inputs.
        inputs: usize,
    },
    /// The inputs do not vary. The result depends on the weight alone, as in truncated SVD.
    NoVariation,
    /// The problem has fewer eigenvalues above rounding than the rank: there are few samples,
    /// inputs that do not vary, or the weight has low rank. The other columns of `up` are leading
    /// directions of the weight.
    Filled {
        /// Number of eigenvalues above rounding.
        determined: usize,
        /// Rank of the layer.
        rank: usize,
    },
    /// The compressed layer has at least as many parameters as the original one. Keep the original
    /// layer.
    PastBreakEven {
        /// Rank of the layer.
        rank: usize,
        /// Rank at which the factors have as many parameters as the weight.
        break_even: f64,
    },
    /// The predicted error is so small that rounding dominates it. Read it as "at most
    /// `resolution`".
    BelowResolution {
        /// Relative errors up to this size are rounding.
        resolution: f64,
    },
    /// The chosen algorithm did not converge, and its fallback gave the result.
    SolverFallback {
        /// The algorithm that gave the result.
        solver: String,
    },
    /// A [plan](crate::network::Plan) allocated its budget by the explained energy alone, which is
    /// often worse than uniform.
    EnergyAlone,
    /// The gap between a plan's objective and its lower bound is large.
    Gap {
        /// The gap, divided by the objective.
        fraction: f64,
    },
    /// A plan compresses no layer.
    NothingCompressed,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FewSamples { samples, inputs } => {
                write!(f, "{samples:.0} effective samples for {inputs} inputs; check the error on held-out data")
            }
            Self::NoVariation => write!(f, "the inputs do not vary; compressed as truncated SVD would"),
            Self::Filled { determined, rank } => {
                write!(f, "the data determine {determined} of {rank} directions; the weight determined the others")
            }
            Self::PastBreakEven { rank, break_even } => {
                write!(f, "rank {rank} is past break-even ({break_even:.1}): the original layer has no more parameters")
            }
            Self::BelowResolution { resolution } => {
                write!(f, "the relative error is below resolution ({resolution:.1e})")
            }
            Self::SolverFallback { solver } => write!(f, "the chosen solver did not converge; {solver} took over"),
            Self::EnergyAlone => f.write_str(
                "allocated by explained energy alone, which is often worse than uniform; measure sensitivities",
            ),
            Self::Gap { fraction } => {
                write!(f, "another allocation could be better by up to {:.1} % of the objective", 100.0 * fraction)
            }
            Self::NothingCompressed => write!(f, "no layer is compressed"),
        }
    }
}
