//! What may be spent or lost, and by which measure it is shared.

use core::fmt;

use super::Sensitivities;
use crate::{Error, Result};

/// What a network may cost, or lose.
///
/// Parameters are counted as a [`Report`](crate::Report) counts them, biases included, over all layers given, those included that stay dense.
///
/// ```
/// use dalr::network::Budget;
/// assert_eq!(Budget::ParameterShare(0.4).to_string(), "40 % of the parameters");
/// assert_eq!(Budget::TotalError(0.1).to_string(), "a total error of 0.1");
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Budget {
    /// At most this many parameters.
    Parameters(u64),
    /// At most this share of the parameters, in (0, 1].
    ParameterShare(f64),
    /// At most this many multiply–adds for one sample.
    MultiplyAdds(u64),
    /// At most this share of the multiply–adds, in (0, 1].
    MultiplyAddShare(f64),
    /// The fewest parameters with which `√(Σ w loss / Σ w)`, the weighted root mean square of the layers' relative errors, is at most this;
    /// `w` and loss are those of the [`Strategy`].
    TotalError(f64),
    /// The fewest parameters with which no layer's relative error is above this; the same whatever the strategy.
    LayerError(f64),
    /// This rank, or the nearest that limits allow, for every layer that it makes smaller; the others stay dense. The same whatever the strategy.
    Rank(usize),
}

impl Budget {
    pub(super) fn validate(self) -> Result<()> {
        let refuse = |parameter, expected: &str, found| Err(Error::out_of_range(parameter, expected.into(), found));
        match self {
            Self::ParameterShare(share) if !(share > 0.0 && share <= 1.0) => {
                refuse("the share of the parameters", "in (0, 1]", share)
            }
            Self::MultiplyAddShare(share) if !(share > 0.0 && share <= 1.0) => {
                refuse("the share of the multiply–adds", "in (0, 1]", share)
            }
            Self::TotalError(error) if !(error >= 0.0 && error.is_finite()) => {
                refuse("the total error", "finite and at least 0", error)
            }
            Self::LayerError(error) if !(error >= 0.0 && error.is_finite()) => {
                refuse("the error of each layer", "finite and at least 0", error)
            }
            Self::Rank(0) => refuse("the rank", "to be at least 1", 0.0),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Shares such as 0.07 are not a whole number of per cents in binary.
        let percent = |share: f64| (share * 1e8).round() / 1e6;
        match self {
            Self::Parameters(count) => write!(f, "{count} parameters"),
            Self::ParameterShare(share) => write!(f, "{} % of the parameters", percent(*share)),
            Self::MultiplyAdds(count) => write!(f, "{count} multiply–adds"),
            Self::MultiplyAddShare(share) => write!(f, "{} % of the multiply–adds", percent(*share)),
            Self::TotalError(error) => write!(f, "a total error of {error}"),
            Self::LayerError(error) => write!(f, "an error of {error} in each layer"),
            Self::Rank(rank) => write!(f, "rank {rank}"),
        }
    }
}

/// How a budget is shared among layers.
///
/// ```
/// use dalr::network::{Sensitivities, Strategy};
/// # fn main() -> dalr::Result<()> {
/// let measured = Strategy::Sensitivity(Sensitivities::new([("fc1", 0.8), ("fc2", 0.1)])?);
/// assert_eq!(measured.to_string(), "sensitivity");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Strategy {
    /// Every layer keeps the same share of its own cost: safe where nothing was measured.
    #[default]
    Uniform,
    /// The least sum of losses, each layer's relative to its own outputs. A layer that the network hardly needs counts as much as the one
    /// it cannot do without, so that this is often worse than uniform: measure sensitivities instead.
    Energy,
    /// The least sum of losses, each times its layer's sensitivity.
    Sensitivity(Sensitivities),
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uniform => "uniform",
            Self::Energy => "energy",
            Self::Sensitivity(_) => "sensitivity",
        })
    }
}
