//! Regularization of the second moment.

mod held_out;
mod regression;

use core::fmt;
use core::str::FromStr;

pub use self::held_out::select_ridge;
pub(in crate::compress) use self::regression::{PairedRegression, Penalty, paired_needs_ridge, ridge_regression};
use super::problem_builder::{Regularization, Target};
use crate::{Error, Result};

/// How [`Dalr`](crate::Dalr) regularizes the second moment `S` of the inputs.
///
/// The first three add a multiple of the identity to `S`. This moves the solution towards truncated
/// SVD. On the calibration data, it is never worse than truncated SVD. The strength is relative to
/// the data, so inputs in other units give the same layer. The last two are the paper's. They add
/// `λ` to `Σ wᵢ xᵢ xᵢᵀ`, whatever the units of the data, which moves the compressed weight towards
/// zero.
///
/// ```
/// use dalr::{Dalr, Ridge};
/// let compressor = Dalr::new().with_ridge(Ridge::Relative(0.1));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Ridge {
    /// `S` without regularization: the smallest error on the calibration data.
    None,
    /// `(1 − ρ) S + ρ (tr S / n) I`, with `ρ` estimated from the data.
    ///
    /// `ρ` lies between two estimates (`docs/mathematics.md`, "How much to shrink"). The lower one
    /// is that of the oracle approximating estimator (Chen et al. 2010, eq. 23), which is too small
    /// for choosing a rank. The upper one corresponds to a ridge as large as the noise outside of
    /// the leading directions. `ρ` is 1 for at most eight degrees of freedom, and goes to 0 as the
    /// number of samples grows.
    Shrinkage,
    /// `S + λI` with `λ = r · tr S / n`: `r` times the mean second moment of an input.
    #[cfg_attr(feature = "serde", serde(alias = "Anchored"))]
    Relative(f64),
    /// Eq. 11 of the paper as published:
    ///
    /// ```text
    /// up = U_k,   down = U_kᵀ W X Xᵀ (X Xᵀ + λI)⁻¹,   W X = U S Vᵀ
    /// ```
    ///
    /// It does not minimise the paper's objective (eq. 7) unless `λ = 0`. For a large `λ` it is
    /// worse than truncated SVD.
    Paper(f64),
    /// The minimiser of eq. 7 of the paper, over `C` of rank `k`:
    ///
    /// ```text
    /// ‖W X − C X‖² + λ ‖C‖²
    /// ```
    Exact(f64),
}

impl Ridge {
    /// The former name of [`Ridge::Relative`].
    #[deprecated(note = "use `Ridge::Relative`")]
    #[expect(non_snake_case, reason = "it was a variant")]
    pub fn Anchored(ratio: f64) -> Self {
        Self::Relative(ratio)
    }

    /// Returns the ridge of methods that are given none. Without a fixed one, errors of paired
    /// inputs would be taken for information.
    pub(in crate::compress) fn automatic(paired: bool) -> Self {
        if paired { Self::Relative(0.1) } else { Self::Shrinkage }
    }

    /// Returns whether `λ` is added to `Σ wᵢ xᵢ xᵢᵀ`, in the units of the data, as in the paper.
    pub(in crate::compress) fn is_absolute(self) -> bool {
        matches!(self, Self::Paper(_) | Self::Exact(_))
    }

    /// Returns the target and the regularization of the problem.
    pub(in crate::compress) fn problem(self) -> Result<(Target, Regularization)> {
        let (target, regularization) = match self {
            Self::None => (Target::Original, Regularization::Relative(0.0)),
            Self::Shrinkage => (Target::Original, Regularization::Shrinkage),
            Self::Relative(ratio) => (Target::Original, Regularization::Relative(ratio)),
            Self::Paper(lambda) => (Target::PaperRegression, Regularization::Absolute(lambda)),
            Self::Exact(lambda) => (Target::Regression, Regularization::Absolute(lambda)),
        };
        match regularization {
            Regularization::Relative(value) | Regularization::Absolute(value)
                if !(value >= 0.0 && value.is_finite()) =>
            {
                Err(Error::out_of_range("the ridge", "to be finite and not negative".into(), value))
            }
            _ => Ok((target, regularization)),
        }
    }
}

/// The default of [`Dalr`](crate::Dalr).
impl Default for Ridge {
    fn default() -> Self {
        Self::Shrinkage
    }
}

/// `none`, `shrinkage`, `relative:0.1`, `paper:1000` or `exact:1000`, which [`FromStr`] reads.
impl fmt::Display for Ridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Shrinkage => f.write_str("shrinkage"),
            Self::Relative(ratio) => write!(f, "relative:{ratio}"),
            Self::Paper(lambda) => write!(f, "paper:{lambda}"),
            Self::Exact(lambda) => write!(f, "exact:{lambda}"),
        }
    }
}

/// Reads `none`, `shrinkage`, `relative:0.1`, `paper:1000` and `exact:1000`.
///
/// ```
/// use dalr::Ridge;
/// assert_eq!("relative:0.1".parse(), Ok(Ridge::Relative(0.1)));
/// assert_eq!(Ridge::Shrinkage.to_string(), "shrinkage");
/// ```
impl FromStr for Ridge {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let expected = "one of none, shrinkage, relative:0.1, paper:1000, exact:1000";
        let ridge = match text.split_once(':') {
            None if text == "none" => Some(Self::None),
            None if text == "shrinkage" => Some(Self::Shrinkage),
            Some(("relative" | "anchored", number)) => number.parse().ok().map(Self::Relative),
            Some(("paper", number)) => number.parse().ok().map(Self::Paper),
            Some(("exact", number)) => number.parse().ok().map(Self::Exact),
            _ => None,
        };
        ridge.ok_or_else(|| Error::text(expected, text.into()).during("Ridge::from_str"))
    }
}
