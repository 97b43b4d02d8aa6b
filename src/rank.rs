//! The rank of a compressed layer: rules, and the number that they give for a layer.

use core::fmt;
use core::str::FromStr;

use crate::factors::Form;
use crate::{Error, Result};

/// The rank of a compressed layer, or a rule that determines it.
///
/// For a weight of shape `m × n` the rank lies between 1 and `min(m, n)`. Two factors save
/// parameters only below [`break_even`](Self::break_even), `mn / (m + n)`; pivoted storage
/// ([`Form::Pivoted`]) saves at every rank below `min(m, n)`.
///
/// ```
/// use dalr::Rank;
/// assert_eq!(Rank::from(64), Rank::Fixed(64));
/// assert_eq!(Rank::break_even(4096, 4096), 2048.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Rank {
    /// This rank, from 1 to `min(m, n)`.
    Fixed(usize),
    /// The largest rank with at most this fraction of the weight's parameters, in (0, 1], as
    /// [`Form::rank_within`] gives it: `⌊r · mn / (m + n)⌋` for two factors.
    ParameterRatio(f64),
    /// The smallest rank whose energies (eigenvalues) sum to this fraction of the sum of all, in
    /// (0, 1]. 1 means the numerical rank.
    Energy(f64),
    /// The smallest rank whose predicted relative error on the calibration data is at most this
    /// number, in (0, 1]. If the number is below the resolution of the predicted error (about
    /// 1e-7), this is the full rank.
    RelativeError(f64),
}

impl From<usize> for Rank {
    fn from(rank: usize) -> Self {
        Self::Fixed(rank)
    }
}

/// The results of a solve that [`Rank::resolve`] needs.
pub(crate) struct Spectrum<'a> {
    pub(crate) energies: &'a [f64],
    pub(crate) total_energy: f64,
    /// The largest rank that the weight can have.
    pub(crate) full_rank: usize,
    /// Number of energies above rounding.
    pub(crate) numerical_rank: usize,
    /// The relative error of each rank from 1; `None` without samples.
    pub(crate) relative_errors: Option<&'a [f64]>,
    /// Relative errors below this are rounding.
    pub(crate) resolution: f64,
}

impl Rank {
    /// Returns the rank at which two factors have as many parameters as the `out × in` weight,
    /// `mn / (m + n)`.
    ///
    /// ```
    /// assert_eq!(dalr::Rank::break_even(10, 84).floor(), 8.0);
    /// ```
    pub fn break_even(out_features: usize, in_features: usize) -> f64 {
        Form::Factors.break_even((out_features, in_features))
    }

    /// Returns the largest rank whose two factors have at most this fraction of the weight's
    /// parameters, `⌊fraction · mn / (m + n)⌋` up to `min(m, n)`; 0 if rank 1 has more.
    ///
    /// ```
    /// assert_eq!(dalr::Rank::within(0.4, (4096, 4096)), 819);
    /// assert_eq!(dalr::Rank::within(0.1, (4, 4)), 0);
    /// ```
    pub fn within(fraction: f64, shape: (usize, usize)) -> usize {
        Form::Factors.rank_within(fraction, shape)
    }

    /// Returns the rank up to which a problem must be solved before this rule gives a multiple of
    /// `multiple`, for a layer in this form. Returns all errors that do not depend on the solve.
    pub(crate) fn bound(self, shape: (usize, usize), multiple: usize, form: Form) -> Result<usize> {
        let (m, n) = shape;
        let full = m.min(n);
        if multiple == 0 {
            let expected = "to be at least 1".into();
            return Err(Error::out_of_range("the rank multiple", expected, 0.0));
        }
        let fraction = |parameter, value: f64| {
            if value > 0.0 && value <= 1.0 {
                return Ok(value);
            }
            Err(Error::out_of_range(parameter, "to be in (0, 1]".into(), value))
        };
        match self {
            Self::Fixed(rank) => {
                validate_fixed(rank, shape)?;
                if !rank.is_multiple_of(multiple) {
                    let expected = format!("a rank that is a multiple of {multiple}");
                    return Err(Error::rank(expected, rank.to_string()));
                }
                Ok(rank)
            }
            Self::ParameterRatio(ratio) => {
                let ratio = fraction("the parameter ratio", ratio)?;
                let rank = form.rank_within(ratio, shape) / multiple * multiple;
                if rank == 0 {
                    let least = form.parameters(multiple, shape) as f64 / (m as f64 * n as f64);
                    let expected = format!(
                        "a parameter ratio of at least {:.6}, for rank {multiple} of a {m} × {n} weight",
                        (least * 1e6).ceil() / 1e6
                    );
                    return Err(Error::rank(expected, ratio.to_string()));
                }
                Ok(rank)
            }
            Self::Energy(energy) => fraction("the energy fraction", energy).map(|_| full),
            Self::RelativeError(error) => fraction("the relative error", error).map(|_| full),
        }
    }

    /// Returns the rank for an `m × n` weight, given the results of a solve up to
    /// [`bound`](Self::bound).
    pub(crate) fn resolve(
        self,
        shape: (usize, usize),
        multiple: usize,
        form: Form,
        spectrum: &Spectrum<'_>,
    ) -> Result<usize> {
        let bound = self.bound(shape, multiple, form)?;
        let (solved, full) = (spectrum.energies.len(), spectrum.full_rank);
        let rank = match self {
            Self::Fixed(_) => bound,
            Self::ParameterRatio(_) => bound.min(full / multiple * multiple),
            Self::Energy(fraction) => {
                let goal = fraction * spectrum.total_energy;
                let mut sum = 0.0;
                let mut enough = 0;
                for energy in spectrum.energies {
                    if sum >= goal {
                        break;
                    }
                    sum += energy;
                    enough += 1;
                }
                let reached = sum >= goal;
                let numerical = spectrum.numerical_rank;
                // Whether the solve covers all energies above rounding.
                let complete = solved == full || numerical < solved;
                if complete {
                    let needed = if reached && fraction < 1.0 { enough.min(numerical) } else { numerical };
                    needed.max(1)
                } else if reached && fraction < 1.0 {
                    enough
                } else {
                    let expected = format!("a solve up to a rank that explains {fraction} of the eigenvalues' sum");
                    return Err(Error::rank(expected, format!("one up to rank {solved}")));
                }
            }
            Self::RelativeError(goal) => {
                let errors = spectrum.relative_errors.ok_or(Error::no_samples())?;
                let reached = if goal >= spectrum.resolution {
                    errors.iter().position(|&error| error <= goal)
                } else {
                    let last = full - 1;
                    errors.get(last).filter(|&&error| error <= spectrum.resolution).map(|_| last)
                };
                let Some(index) = reached else {
                    let best = errors.iter().copied().fold(f64::INFINITY, f64::min);
                    // Rounded up, so that the error in the message can be reached.
                    let least = 1.0005 * best.max(spectrum.resolution);
                    let expected =
                        format!("a relative error of at least {least:.3e}, the smallest of all solved ranks");
                    return Err(Error::rank(expected, goal.to_string()));
                };
                index + 1
            }
        };
        let rounded = rank.next_multiple_of(multiple);
        if rounded > full && rank <= full {
            let expected = format!("a multiple of {multiple} up to {full}");
            return Err(Error::rank(expected, format!("{rank}, rounded up to {rounded}")));
        }
        if rounded > solved {
            let expected = format!("a rank up to the {solved} solved for");
            return Err(Error::rank(expected, rounded.to_string()));
        }
        Ok(rounded)
    }
}

/// Returns the energy that is not explained at each rank, given the explained energies.
///
/// It is summed from the end, so that small tails are accurate. The energy beyond the last solved
/// rank is included.
pub(crate) fn tails(explained: &[f64], full: usize) -> Vec<f64> {
    let solved = explained.iter().sum::<f64>();
    // Without any energy, the loss is zero.
    let rest = if explained.len() >= full || solved == 0.0 { 0.0 } else { 1.0 - solved };
    let mut tail = rest.max(0.0);
    let mut tails: Vec<f64> = explained
        .iter()
        .rev()
        .map(|energy| {
            let here = tail;
            tail += energy.max(0.0);
            here
        })
        .collect();
    tails.reverse();
    tails
}

/// Returns an error for a rank that no `m × n` matrix has.
pub(crate) fn validate_fixed(rank: usize, shape: (usize, usize)) -> Result<()> {
    let (m, n) = shape;
    if (1..=m.min(n)).contains(&rank) {
        return Ok(());
    }
    let expected = format!("a rank from 1 to {} for a {m} × {n} weight", m.min(n));
    Err(Error::rank(expected, rank.to_string()))
}

/// `64`, `ratio:0.4`, `energy:0.99` or `error:0.05`, which [`FromStr`] reads.
impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(rank) => write!(f, "{rank}"),
            Self::ParameterRatio(ratio) => write!(f, "ratio:{ratio}"),
            Self::Energy(fraction) => write!(f, "energy:{fraction}"),
            Self::RelativeError(error) => write!(f, "error:{error}"),
        }
    }
}

/// Reads `64`, `ratio:0.4`, `energy:0.99` and `error:0.05`. Compressing checks whether the layer
/// can have such a rank.
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
        rank.ok_or_else(|| Error::text(expected, text.into()).during("Rank::from_str"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: (usize, usize) = (20, 12);

    fn spectrum() -> Spectrum<'static> {
        Spectrum {
            energies: &[6.0, 3.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            total_energy: 10.0,
            full_rank: 12,
            numerical_rank: 3,
            relative_errors: Some(&[0.7, 0.3, 0.2, 1e-9, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
            resolution: 1e-8,
        }
    }

    fn resolve(rank: Rank, multiple: usize) -> Result<usize> {
        rank.resolve(SHAPE, multiple, Form::Factors, &spectrum())
    }

    #[test]
    fn every_form_resolves() {
        assert_eq!(resolve(Rank::Fixed(5), 1), Ok(5));
        // 20 · 12 / 32 = 7.5
        assert_eq!(resolve(Rank::ParameterRatio(1.0), 1), Ok(7));
        assert_eq!(resolve(Rank::ParameterRatio(0.5), 1), Ok(3));
        assert_eq!(resolve(Rank::Energy(0.6), 1), Ok(1));
        assert_eq!(resolve(Rank::Energy(0.61), 1), Ok(2));
        assert_eq!(resolve(Rank::Energy(1.0), 1), Ok(3));
        assert_eq!(resolve(Rank::RelativeError(0.3), 1), Ok(2));
        assert_eq!(resolve(Rank::RelativeError(1e-8), 1), Ok(4));
        // The predicted errors cannot show which rank reaches that. The full rank does.
        assert_eq!(resolve(Rank::RelativeError(1e-12), 1), Ok(12));
    }

    #[test]
    fn multiples_round_down_budgets_and_up_goals() {
        assert_eq!(resolve(Rank::ParameterRatio(1.0), 4), Ok(4));
        assert_eq!(resolve(Rank::Energy(0.61), 4), Ok(4));
        assert_eq!(resolve(Rank::RelativeError(1e-8), 8), Ok(8));
        assert_eq!(resolve(Rank::Fixed(8), 4), Ok(8));
        assert!(matches!(resolve(Rank::Fixed(6), 4), Err(Error::Rank { .. })));
        assert!(matches!(resolve(Rank::ParameterRatio(0.5), 4), Err(Error::Rank { .. })));
        assert!(matches!(resolve(Rank::Energy(0.5), 16), Err(Error::Rank { .. })));
        assert!(matches!(resolve(Rank::Fixed(6), 0), Err(Error::OutOfRange { .. })));
    }

    #[test]
    fn the_share_that_a_rank_takes_buys_that_rank() {
        for shape in [(200, 200), (110, 41), (11008, 4096), (6, 6)] {
            for rank in (1..=(Rank::break_even(shape.0, shape.1) as usize)).step_by(shape.0 / 6) {
                let ratio = (rank * (shape.0 + shape.1)) as f64 / (shape.0 * shape.1) as f64;
                assert_eq!(Rank::ParameterRatio(ratio).bound(shape, 1, Form::Factors), Ok(rank), "{shape:?}");
            }
            let Err(Error::Rank { expected, .. }) = Rank::ParameterRatio(1e-9).bound(shape, 1, Form::Factors) else {
                panic!()
            };
            let least: f64 = expected.split([' ', ',']).nth(6).unwrap().parse().unwrap();
            assert_eq!(Rank::ParameterRatio(least).bound(shape, 1, Form::Factors), Ok(1), "{expected}");
        }
        // 0.29 · 100 is 28.999999999999996 in floating point.
        assert_eq!(Rank::ParameterRatio(0.29).bound((200, 200), 1, Form::Factors), Ok(29));
    }

    #[test]
    fn out_of_range_is_refused_with_the_bounds() {
        for rank in [0, 13] {
            let error = resolve(Rank::Fixed(rank), 1).unwrap_err();
            assert_eq!(error.to_string(), format!(": expected a rank from 1 to 12 for a 20 × 12 weight, got {rank}"));
        }
        for bad in [0.0, -0.1, 1.1, f64::NAN, f64::INFINITY] {
            for rank in [Rank::ParameterRatio(bad), Rank::Energy(bad), Rank::RelativeError(bad)] {
                assert!(matches!(resolve(rank, 1), Err(Error::OutOfRange { .. })), "{rank:?}");
            }
        }
    }

    #[test]
    fn all_of_the_energy_is_all_that_stands_out_of_noise() {
        let mut spectrum = spectrum();
        let all = |spectrum: &Spectrum<'_>| Rank::Energy(1.0).resolve(SHAPE, 1, Form::Factors, spectrum);
        // Only a solve up to a larger rank shows that the next eigenvalue is noise.
        spectrum.energies = &[6.0, 3.0, 1.0, 0.0];
        assert_eq!(all(&spectrum), Ok(3));
        spectrum.energies = &[6.0, 3.0, 1.0];
        assert!(all(&spectrum).is_err());
        // Small energies count, although rounding hides them in the sum.
        let energies: Vec<f64> = (0..12).map(|i| if i < 3 { 3.0 } else { 1e-20 }).collect();
        (spectrum.energies, spectrum.total_energy) = (&energies, 9.0);
        for numerical_rank in [4, 12] {
            spectrum.numerical_rank = numerical_rank;
            assert_eq!(all(&spectrum), Ok(numerical_rank));
        }
        assert_eq!(Rank::Energy(0.99).resolve(SHAPE, 1, Form::Factors, &spectrum), Ok(3));
    }

    #[test]
    fn goals_beyond_a_partial_solve_are_refused() {
        let mut partial = spectrum();
        partial.energies = &[6.0, 3.0];
        partial.numerical_rank = 2;
        partial.relative_errors = Some(&[0.7, 0.3]);
        assert_eq!(Rank::Energy(0.9).resolve(SHAPE, 1, Form::Factors, &partial), Ok(2));
        assert!(Rank::Energy(0.95).resolve(SHAPE, 1, Form::Factors, &partial).is_err());
        assert!(Rank::RelativeError(0.1).resolve(SHAPE, 1, Form::Factors, &partial).is_err());
        assert!(Rank::Energy(0.9).resolve(SHAPE, 8, Form::Factors, &partial).is_err());
    }

    #[test]
    fn the_tail_of_a_rank_is_the_unexplained_energy() {
        // Two of three ranks are solved: a quarter of the energy lies beyond them. All three are
        // solved: no energy does, although the sum is rounded.
        assert_eq!(tails(&[0.5, 0.25], 3), [0.5, 0.25]);
        let explained = [0.7, 0.1, 0.1];
        assert!(explained.iter().sum::<f64>() < 0.9);
        assert_eq!(tails(&explained, 3), [0.1 + 0.1, 0.1, 0.0]);
        // There is no energy, with two of three or all ranks solved.
        assert_eq!([tails(&[0.0, 0.0], 3), tails(&[0.0, 0.0], 2)], [[0.0, 0.0]; 2]);
    }
}
