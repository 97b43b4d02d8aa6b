//! Budgets, and the strategies that allocate them.

use core::fmt;

use super::Sensitivities;
use super::cost::Cost;
use crate::error::require;
use crate::{Error, Result};

/// A limit on the cost of a network, or on its error.
///
/// Parameters are counted as in a [`Report`](crate::Report), with biases; [`Cost`](super::Cost) has
/// the rules for every kind of layer. All layers that are passed to the allocator count, original
/// layers included.
///
/// ```
/// use dalr::network::Budget;
/// assert_eq!(Budget::ParameterFraction(0.4).to_string(), "40 % of the parameters");
/// assert_eq!(Budget::TotalError(0.1).to_string(), "a total error of 0.1");
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Budget {
    /// At most this many parameters.
    Parameters(u64),
    /// At most this fraction of the parameters, in (0, 1].
    ParameterFraction(f64),
    /// At most this many multiply–adds for one sample: one image of the size that the positions of
    /// its convolutions were computed for.
    MultiplyAdds(u64),
    /// At most this fraction of the multiply–adds, in (0, 1].
    MultiplyAddFraction(f64),
    /// The fewest parameters that keep `√(Σ w loss / Σ w)`, the weighted root mean square of the
    /// layers' relative errors, at or below this number. The [`Strategy`] determines `w` and the
    /// loss.
    TotalError(f64),
    /// The fewest parameters that keep every layer's relative error at or below this number. The
    /// strategy has no influence.
    LayerError(f64),
    /// Every layer that this rank makes smaller gets this rank. If the limits of the allocator
    /// exclude it, the layer gets the nearest allowed rank. The other layers stay original, and the
    /// strategy has no influence.
    Rank(usize),
}

impl Budget {
    /// Returns whether the budget limits an error, and the number of parameters is minimized.
    pub(super) fn limits_error(self) -> bool {
        matches!(self, Self::TotalError(_) | Self::LayerError(_))
    }

    /// Returns the limited and the minimized quantity of a candidate, given its cost and its
    /// weighted loss.
    pub(super) fn measure(self, Cost { parameters, multiply_adds }: Cost, loss: f64) -> (f64, f64) {
        match self {
            Self::Parameters(_) | Self::ParameterFraction(_) | Self::Rank(_) => (parameters as f64, loss),
            Self::MultiplyAdds(_) | Self::MultiplyAddFraction(_) => (multiply_adds as f64, loss),
            Self::TotalError(_) | Self::LayerError(_) => (loss, parameters as f64),
        }
    }

    /// Returns whether a layer may have this relative error.
    pub(super) fn allows(self, error: f64) -> bool {
        !matches!(self, Self::LayerError(most) if error > most)
    }

    /// Returns the budget's number, and its name.
    fn number(self) -> (&'static str, f64) {
        match self {
            Self::Parameters(count) => ("the number of parameters", count as f64),
            Self::ParameterFraction(fraction) => ("the fraction of the parameters", fraction),
            Self::MultiplyAdds(count) => ("the number of multiply–adds", count as f64),
            Self::MultiplyAddFraction(fraction) => ("the fraction of the multiply–adds", fraction),
            Self::TotalError(error) => ("the total error", error),
            Self::LayerError(error) => ("the error of each layer", error),
            Self::Rank(rank) => ("the rank", rank as f64),
        }
    }

    pub(super) fn validate(self) -> Result<()> {
        let (parameter, found) = self.number();
        let (good, expected) = match self {
            Self::Parameters(_) | Self::MultiplyAdds(_) => return Ok(()),
            Self::Rank(_) => (found >= 1.0, "to be at least 1"),
            _ if self.limits_error() => (found >= 0.0 && found.is_finite(), "to be finite and at least 0"),
            _ => (found > 0.0 && found <= 1.0, "to be in (0, 1]"),
        };
        require(good, parameter, expected, found)
    }

    /// Returns the error for a budget below the smallest feasible cost, given the cost of the
    /// original network.
    pub(super) fn infeasible(self, least: f64, whole: f64) -> Error {
        let (parameter, found) = self.number();
        let least = match self {
            Self::ParameterFraction(_) | Self::MultiplyAddFraction(_) => (least / whole * 1e6).ceil() / 1e6,
            _ => least,
        };
        let expected = format!("to be at least {least}, the smallest feasible for these layers");
        Error::out_of_range(parameter, expected, found)
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // In binary, 0.07 times 100 is not exactly 7.
        let percent = |fraction: f64| (fraction * 1e8).round() / 1e6;
        match self {
            Self::Parameters(count) => write!(f, "{count} parameters"),
            Self::ParameterFraction(fraction) => write!(f, "{} % of the parameters", percent(*fraction)),
            Self::MultiplyAdds(count) => write!(f, "{count} multiply–adds"),
            Self::MultiplyAddFraction(fraction) => write!(f, "{} % of the multiply–adds", percent(*fraction)),
            Self::TotalError(error) => write!(f, "a total error of {error}"),
            Self::LayerError(error) => write!(f, "an error of {error} in each layer"),
            Self::Rank(rank) => write!(f, "rank {rank}"),
        }
    }
}

/// The rule that allocates a budget to layers.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Strategy {
    /// Every layer keeps the same fraction of its own cost. This is the safe choice without
    /// measurements.
    #[default]
    Uniform,
    /// Minimizes the sum of the losses, each relative to its layer's own outputs. It ignores that
    /// layers differ in their effect on the network, so it is often worse than uniform. Measure
    /// sensitivities instead.
    Energy,
    /// Minimizes the sum of the losses, each multiplied by the sensitivity of its layer.
    Sensitivity(Sensitivities),
    /// Minimizes the sum of the absolute losses in the layers' output metrics, which must come from
    /// gradients of the same function: then they add up to the change of that function, to first
    /// order. It needs no measurement of the network, and is usually a little worse than
    /// sensitivities.
    OutputMetric,
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uniform => "uniform",
            Self::Energy => "energy",
            Self::Sensitivity(_) => "sensitivity",
            Self::OutputMetric => "output metric",
        })
    }
}
