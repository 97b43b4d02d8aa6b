//! What sharing a budget needs to know of a layer: its shape, its spectrum, its errors. No matrices.

use crate::compress::Facts;
use crate::error::during;
use crate::{Decomposition, Error, Report, Result, Scalar};

/// A layer's name, shape and error at every rank: all that the rest of this module works on.
///
/// A few numbers per rank, no matrices: the profiles of a thousand layers fit where their decompositions would not, and with
/// the `serde` feature they can be kept on disk.
///
/// ```
/// use dalr::network::LayerProfile;
/// use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor};
/// use faer::Mat;
///
/// # fn main() -> dalr::Result<()> {
/// let layer = Linear::new(Mat::from_fn(8, 6, |i, j| ((i * 5 + j * 3) % 7) as f64), None)?;
/// let mut stats = ActivationStats::new(6);
/// stats.update(Mat::from_fn(50, 6, |i, j| ((i * 11 + j * 7) % 13) as f64).as_ref())?;
/// let decomposition = Dalr::new().decompose(&layer, &stats, 6)?;
/// let profile = LayerProfile::new("encoder.fc1", &decomposition);
/// assert_eq!((profile.name(), profile.out_features(), profile.in_features()), ("encoder.fc1", 8, 6));
/// assert_eq!((profile.max_rank(), profile.relative_error(2)), (6, decomposition.relative_error(2)));
/// assert_eq!(profile.report(2).as_ref(), Some(decomposition.truncate(2)?.report()));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LayerProfile {
    name: String,
    shape: (usize, usize),
    /// Whether the dense layer has a bias, and whether the compressed one will.
    biases: (bool, bool),
    calls: u64,
    spectrum: Option<Spectrum>,
}

/// What the decomposition told.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
struct Spectrum {
    facts: Facts,
    /// Energies over their total.
    shares: Vec<f64>,
    total_energy: f64,
    relative_errors: Option<Vec<f64>>,
    /// Whether losses are the squares of `relative_errors`.
    by_errors: bool,
}

impl LayerProfile {
    /// The profile of a decomposed layer. Ranks past the decomposition's [`max_rank`](Decomposition::max_rank) cannot be chosen; solve
    /// up to [`Rank::break_even`](crate::Rank::break_even) to leave the choice free.
    ///
    /// For an example see [`LayerProfile`].
    pub fn new<T: Scalar>(name: impl Into<String>, decomposition: &Decomposition<T>) -> Self {
        let facts = decomposition.facts().clone();
        Self {
            name: name.into(),
            shape: facts.shape,
            biases: facts.biases,
            calls: 1,
            spectrum: Some(Spectrum {
                facts,
                shares: decomposition.explained().to_vec(),
                total_energy: decomposition.total_energy(),
                relative_errors: decomposition.relative_errors().map(<[f64]>::to_vec),
                by_errors: false,
            }),
        }
    }

    /// The profile of a layer whose spectrum was found elsewhere: energies, descending, of as many ranks as may be chosen, and the total, those past
    /// them included. It knows no errors on data, and its reports no samples.
    ///
    /// # Errors
    ///
    /// No outputs, inputs or energies; more energies than dimensions; energies that ascend, are negative or not finite, or that add up to
    /// more than the total.
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let profile = dalr::network::LayerProfile::from_energies("fc1", (8, 6), true, &[9.0, 4.0, 1.0], 16.0)?;
    /// assert_eq!((profile.max_rank(), profile.loss(3)), (3, Some(2.0 / 16.0)));
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_energies(
        name: impl Into<String>,
        shape: (usize, usize),
        bias: bool,
        energies: &[f64],
        total_energy: f64,
    ) -> Result<Self> {
        during("LayerProfile::from_energies", || {
            let mut profile = Self::dense(name, shape.0, shape.1, bias)?;
            if energies.is_empty() {
                return Err(Error::empty("the energies"));
            }
            let full = shape.0.min(shape.1);
            if energies.len() > full {
                let expected = format!("at most {full} energies for a {} × {} weight", shape.0, shape.1);
                return Err(Error::rank(expected, energies.len().to_string()));
            }
            let mut previous = f64::MAX;
            for &energy in energies {
                if !(0.0..=previous).contains(&energy) {
                    let expected = format!("finite, at least 0 and at most the one before, {previous:e}");
                    return Err(Error::out_of_range("an energy", expected, energy));
                }
                previous = energy;
            }
            let sum = energies.iter().sum::<f64>();
            let rounding = 4.0 * f64::EPSILON * energies.len() as f64 * sum;
            if !(total_energy >= sum - rounding && total_energy.is_finite()) {
                let (parameter, expected) = ("the total energy", format!("finite and at least the sum, {sum:e}"));
                return Err(Error::out_of_range(parameter, expected, total_energy));
            }
            let share = |energy: &f64| energy / total_energy.max(f64::MIN_POSITIVE);
            let facts = Facts {
                method: "spectrum".into(),
                samples: 0,
                shrinkage: None,
                solver: "none".into(),
                residual: 0.0,
                warnings: Vec::new(),
                shape,
                biases: (bias, bias),
                determined: energies.len(),
                resolution: 0.0,
            };
            let shares = energies.iter().map(share).collect();
            profile.spectrum = Some(Spectrum { facts, shares, total_energy, relative_errors: None, by_errors: false });
            Ok(profile)
        })
    }

    /// A layer that stays as it is, but counts in the budget and in the report.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`] for a layer without inputs or outputs.
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let head = dalr::network::LayerProfile::dense("head", 10, 84, true)?;
    /// assert_eq!((head.parameters(), head.max_rank()), (850, 0));
    /// # Ok(())
    /// # }
    /// ```
    pub fn dense(name: impl Into<String>, out_features: usize, in_features: usize, bias: bool) -> Result<Self> {
        if out_features == 0 || in_features == 0 {
            return Err(Error::empty("the weight"));
        }
        let shape = (out_features, in_features);
        Ok(Self { name: name.into(), shape, biases: (bias, bias), calls: 1, spectrum: None })
    }

    /// Says how often the network runs this layer for one sample, 1 by default: that many times its multiply–adds count, its
    /// parameters once.
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let head = dalr::network::LayerProfile::dense("head", 10, 84, true)?.with_calls(3);
    /// assert_eq!((head.calls(), head.parameters(), head.multiply_adds()), (3, 850, 2520));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_calls(mut self, calls: u64) -> Self {
        self.calls = calls;
        self
    }

    /// Makes the [`loss`](Self::loss) the squared error on the data instead of the energy left out. The two differ by the shrinkage or
    /// ridge that was solved with; for truncated SVD they are different things, and this one speaks of the outputs.
    ///
    /// # Errors
    ///
    /// [`Error::NoSamples`] if the layer was decomposed without.
    ///
    /// ```
    /// # use dalr::{ActivationStats, Linear, LowRankCompressor, TruncatedSvd, network::LayerProfile};
    /// # use faer::Mat;
    /// # fn main() -> dalr::Result<()> {
    /// # let layer = Linear::new(Mat::from_fn(8, 6, |i, j| ((i * 5 + j * 3) % 7) as f64), None)?;
    /// # let mut stats = ActivationStats::new(6);
    /// # stats.update(Mat::from_fn(50, 6, |i, j| ((i * 11 + j * 7) % 13) as f64).as_ref())?;
    /// let profile = LayerProfile::new("fc1", &TruncatedSvd::new().decompose(&layer, &stats, 6)?);
    /// let by_errors = profile.clone().with_data_errors()?;
    /// assert_eq!(by_errors.loss(2), profile.relative_error(2).map(|error| error * error));
    /// assert_ne!(by_errors.loss(2), profile.loss(2));
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_data_errors(mut self) -> Result<Self> {
        match &mut self.spectrum {
            Some(spectrum) if spectrum.relative_errors.is_some() => spectrum.by_errors = true,
            _ => return Err(Error::no_samples()),
        }
        Ok(self)
    }

    /// The layer's name. For an example see [`LayerProfile`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of outputs. For an example see [`LayerProfile`].
    pub fn out_features(&self) -> usize {
        self.shape.0
    }

    /// Number of inputs. For an example see [`LayerProfile`].
    pub fn in_features(&self) -> usize {
        self.shape.1
    }

    /// The largest rank that was solved for; 0 for a layer that stays dense. For an example see [`LayerProfile`].
    pub fn max_rank(&self) -> usize {
        self.spectrum.as_ref().map_or(0, |spectrum| spectrum.shares.len())
    }

    /// How often the network runs this layer for one sample. For an example see [`with_calls`](Self::with_calls).
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// Parameters of the dense layer, bias included. For an example see [`dense`](Self::dense).
    pub fn parameters(&self) -> u64 {
        (self.shape.0 as u64).saturating_mul(self.shape.1 as u64 + u64::from(self.biases.0))
    }

    /// Multiply–adds of the dense layer for one sample of the network. For an example see [`with_calls`](Self::with_calls).
    pub fn multiply_adds(&self) -> u64 {
        (self.shape.0 as u64).saturating_mul(self.shape.1 as u64).saturating_mul(self.calls)
    }

    /// Energies over their total, descending, one per rank solved for. For an example see [`loss`](Self::loss).
    pub fn energy_shares(&self) -> &[f64] {
        self.spectrum.as_ref().map_or(&[], |spectrum| &spectrum.shares)
    }

    /// As [`Decomposition::total_energy`]; `None` for a layer that stays dense. For an example see [`loss`](Self::loss).
    pub fn total_energy(&self) -> Option<f64> {
        self.spectrum.as_ref().map(|spectrum| spectrum.total_energy)
    }

    /// As [`Decomposition::relative_error`]. For an example see [`LayerProfile`].
    pub fn relative_error(&self, rank: usize) -> Option<f64> {
        self.spectrum.as_ref()?.relative_errors.as_ref()?.get(rank.checked_sub(1)?).copied()
    }

    /// What compressing to this rank loses, as a squared relative error: the share of the energy past the rank
    /// (convex in the rank), or [`relative_error`](Self::relative_error)² after [`with_data_errors`](Self::with_data_errors). `None` for ranks that were
    /// not solved for.
    ///
    /// ```
    /// # use dalr::{ActivationStats, Linear, LowRankCompressor, TruncatedSvd, network::LayerProfile};
    /// # fn main() -> dalr::Result<()> {
    /// let layer = Linear::new(faer::Mat::from_fn(2, 2, |i, j| if i == j { 3.0 - 2.0 * i as f64 } else { 0.0 }), None)?;
    /// let profile = LayerProfile::new("fc1", &TruncatedSvd::new().decompose(&layer, &ActivationStats::new(2), 2)?);
    /// // The energies are 9 and 1.
    /// assert!((profile.energy_shares()[0] - 0.9).abs() < 1e-12);
    /// assert!(profile.total_energy().is_some_and(|total| (total - 10.0).abs() < 1e-12));
    /// assert!(profile.loss(1).is_some_and(|loss| (loss - 0.1).abs() < 1e-12));
    /// assert_eq!(profile.loss(2), Some(0.0));
    /// # Ok(())
    /// # }
    /// ```
    pub fn loss(&self, rank: usize) -> Option<f64> {
        let losses = self.losses();
        losses.get(rank.checked_sub(1)?).copied()
    }

    /// The report on the compressed layer of this rank, as [`Decomposition::truncate`] would give it; `None` for ranks that were not solved
    /// for. For an example see [`LayerProfile`].
    pub fn report(&self, rank: usize) -> Option<Report> {
        let spectrum = self.spectrum.as_ref().filter(|_| (1..=self.max_rank()).contains(&rank))?;
        Some(spectrum.facts.report(rank, self.relative_error(rank)))
    }

    /// The loss of every rank from 1.
    pub(super) fn losses(&self) -> Vec<f64> {
        let Some(spectrum) = &self.spectrum else { return Vec::new() };
        match &spectrum.relative_errors {
            Some(errors) if spectrum.by_errors => errors.iter().map(|error| error * error).collect(),
            _ => tails(&spectrum.shares, self.shape.0.min(self.shape.1)),
        }
    }

    pub(super) fn is_by_errors(&self) -> bool {
        self.spectrum.as_ref().is_some_and(|spectrum| spectrum.by_errors)
    }

    /// The smallest relative error that can be told from zero.
    pub(super) fn resolution(&self) -> f64 {
        self.spectrum.as_ref().map_or(0.0, |spectrum| spectrum.facts.resolution)
    }

    /// Parameters of the compressed layer: so many for each rank, and so many whatever the rank.
    pub(super) fn factor_parameters(&self) -> (u64, u64) {
        let (m, n) = (self.shape.0 as u64, self.shape.1 as u64);
        (m + n, if self.biases.1 { m } else { 0 })
    }
}

/// What is left of all energy past each rank, given its shares. Summed up from the end, so that small tails keep their digits; of a
/// spectrum that was solved for in part, what lies past it is the rest.
pub(super) fn tails(shares: &[f64], full: usize) -> Vec<f64> {
    let solved = shares.iter().sum::<f64>();
    // Where there is no energy at all there is nothing to lose.
    let rest = if shares.len() >= full || solved == 0.0 { 0.0 } else { 1.0 - solved };
    let mut tail = rest.max(0.0);
    let mut tails: Vec<f64> = shares
        .iter()
        .rev()
        .map(|share| {
            let here = tail;
            tail += share.max(0.0);
            here
        })
        .collect();
    tails.reverse();
    tails
}

#[cfg(test)]
mod tests {
    use super::tails;

    #[test]
    fn what_lies_past_a_rank_is_the_rest_of_all_energy() {
        // Solved for in part: a quarter lies past it. In full: nothing does, though rounding of the sum would leave some.
        assert_eq!(tails(&[0.5, 0.25], 3), [0.5, 0.25]);
        let shares = [0.7, 0.1, 0.1];
        assert!(shares.iter().sum::<f64>() < 0.9);
        assert_eq!(tails(&shares, 3), [0.1 + 0.1, 0.1, 0.0]);
        // No energy at all, solved for in part or in full.
        assert_eq!([tails(&[0.0, 0.0], 3), tails(&[0.0, 0.0], 2)], [[0.0, 0.0]; 2]);
    }
}
