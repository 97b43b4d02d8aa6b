//! Configuration and layers as text: `Display`, and for what command lines and files of settings say, `FromStr`, each the other's inverse.

use core::fmt::{Display, Formatter, Result as Formatted};
use core::str::FromStr;

use crate::{Error, Linear, LowRankLinear, Rank, Result, Ridge, Scalar, Solver};

/// `64`, `ratio:0.4`, `energy:0.99` or `error:0.05`, which [`FromStr`] reads.
impl Display for Rank {
    fn fmt(&self, f: &mut Formatter<'_>) -> Formatted {
        match self {
            Self::Fixed(rank) => write!(f, "{rank}"),
            Self::ParameterRatio(ratio) => write!(f, "ratio:{ratio}"),
            Self::Energy(fraction) => write!(f, "energy:{fraction}"),
            Self::RelativeError(error) => write!(f, "error:{error}"),
        }
    }
}

/// Reads `64`, `ratio:0.4`, `energy:0.99` and `error:0.05`. Whether such a rank can be had is seen when compressing.
///
/// ```
/// use dalr::Rank;
/// # fn main() -> dalr::Result<()> {
/// assert_eq!("64".parse::<Rank>()?, Rank::Fixed(64));
/// assert_eq!("ratio:0.4".parse::<Rank>()?, Rank::ParameterRatio(0.4));
/// assert_eq!(Rank::RelativeError(0.05).to_string(), "error:0.05");
/// assert!("0.4".parse::<Rank>().is_err()); // of what?
/// # Ok(())
/// # }
/// ```
impl FromStr for Rank {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let expected = "a number of dimensions, or one of ratio:0.4, energy:0.99, error:0.05";
        let rank = match text.split_once(':') {
            None => text.parse().ok().map(Self::Fixed),
            Some(("ratio", number)) => number.parse().ok().map(Self::ParameterRatio),
            Some(("energy", number)) => number.parse().ok().map(Self::Energy),
            Some(("error", number)) => number.parse().ok().map(Self::RelativeError),
            Some(_) => None,
        };
        rank.ok_or_else(|| refused(expected, text))
    }
}

/// `none`, `shrinkage`, `anchored:0.1`, `paper:1000` or `exact:1000`, which [`FromStr`] reads.
impl Display for Ridge {
    fn fmt(&self, f: &mut Formatter<'_>) -> Formatted {
        match self {
            Self::None => f.write_str("none"),
            Self::Shrinkage => f.write_str("shrinkage"),
            Self::Anchored(ratio) => write!(f, "anchored:{ratio}"),
            Self::Paper(lambda) => write!(f, "paper:{lambda}"),
            Self::Exact(lambda) => write!(f, "exact:{lambda}"),
        }
    }
}

/// Reads `none`, `shrinkage`, `anchored:0.1`, `paper:1000` and `exact:1000`.
///
/// ```
/// use dalr::Ridge;
/// assert_eq!("anchored:0.1".parse(), Ok(Ridge::Anchored(0.1)));
/// assert_eq!(Ridge::Shrinkage.to_string(), "shrinkage");
/// ```
impl FromStr for Ridge {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let expected = "one of none, shrinkage, anchored:0.1, paper:1000, exact:1000";
        let ridge = match text.split_once(':') {
            None if text == "none" => Some(Self::None),
            None if text == "shrinkage" => Some(Self::Shrinkage),
            Some(("anchored", number)) => number.parse().ok().map(Self::Anchored),
            Some(("paper", number)) => number.parse().ok().map(Self::Paper),
            Some(("exact", number)) => number.parse().ok().map(Self::Exact),
            _ => None,
        };
        ridge.ok_or_else(|| refused(expected, text))
    }
}

/// What [`Dalr`](crate::Dalr) does unless it is told otherwise.
impl Default for Ridge {
    fn default() -> Self {
        Self::Shrinkage
    }
}

/// `auto`, `dense-eigen` or `block-lanczos`, which [`FromStr`] reads.
impl Display for Solver {
    fn fmt(&self, f: &mut Formatter<'_>) -> Formatted {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::DenseEigen => "dense-eigen",
            Self::BlockLanczos => "block-lanczos",
        })
    }
}

/// Reads `auto`, `dense-eigen` and `block-lanczos`.
///
/// ```
/// use dalr::Solver;
/// assert_eq!("block-lanczos".parse(), Ok(Solver::BlockLanczos));
/// ```
impl FromStr for Solver {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "dense-eigen" => Ok(Self::DenseEigen),
            "block-lanczos" => Ok(Self::BlockLanczos),
            _ => Err(refused("one of auto, dense-eigen, block-lanczos", text)),
        }
    }
}

fn refused(expected: &'static str, found: &str) -> Error {
    Error::text(expected, found.into())
}

/// `400 → 120`, inputs and outputs.
impl<T: Scalar> Display for Linear<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Formatted {
        write!(f, "{} → {}", self.in_features(), self.out_features())
    }
}

/// `400 → 8 → 120`, inputs, rank and outputs.
impl<T: Scalar> Display for LowRankLinear<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Formatted {
        write!(f, "{} → {} → {}", self.in_features(), self.rank(), self.out_features())
    }
}
