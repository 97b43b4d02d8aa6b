//! The profile of a layer: its shape, eigenvalues and errors, without matrices.

use std::collections::BTreeMap;

use crate::compress::Facts;
use crate::error::during;
use crate::{Decomposition, Error, Report, Result, Scalar};

/// A layer's name, shape and error at every rank.
///
/// A profile holds a few numbers per rank and no matrices: the profiles of a thousand layers fit into memory that their
/// decompositions would exceed. With the `serde` feature they can be stored.
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
    /// Whether the original layer has a bias, and whether the compressed one has.
    biases: (bool, bool),
    calls: u64,
    spectrum: Option<Spectrum>,
}

/// The part of a profile that comes from a decomposition.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
struct Spectrum {
    facts: Facts,
    /// Eigenvalues over their total.
    explained: Vec<f64>,
    total_energy: f64,
    relative_errors: Option<Vec<f64>>,
    /// Whether the losses are the squares of `relative_errors`.
    by_data_errors: bool,
}

impl LayerProfile {
    /// Creates the profile of a decomposed layer.
    ///
    /// Ranks above the decomposition's [`max_rank`](Decomposition::max_rank) cannot be chosen. Solve up to
    /// [`Rank::break_even`](crate::Rank::break_even) to leave every useful rank open.
    pub fn new<T: Scalar>(name: impl Into<String>, decomposition: &Decomposition<T>) -> Self {
        let facts = decomposition.facts().clone();
        let (shape, biases) = (facts.shape, facts.biases);
        let spectrum = Spectrum {
            facts,
            explained: decomposition.explained().to_vec(),
            total_energy: decomposition.total_energy(),
            relative_errors: decomposition.relative_errors().map(<[f64]>::to_vec),
            by_data_errors: false,
        };
        Self { name: name.into(), shape, biases, calls: 1, spectrum: Some(spectrum) }
    }

    /// Creates the profile of a layer whose eigenvalues were computed elsewhere: descending, one for each rank that may be
    /// chosen. The total includes the eigenvalues past these. Such a profile has no errors on data.
    ///
    /// # Errors
    ///
    /// No eigenvalues, or more than min(out, in); eigenvalues that are negative, not finite or not descending; a total below
    /// their sum.
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let profile = dalr::network::LayerProfile::from_energies("fc1", (8, 6), true, &[9.0, 4.0, 1.0], 16.0)?;
    /// assert_eq!((profile.max_rank(), profile.parameters()), (3, 56));
    /// assert!(profile.loss(2).is_some_and(|loss| (loss - 3.0 / 16.0).abs() < 1e-12));
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
            let mut profile = Self::original(name, shape, bias)?;
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
            let explained = energies.iter().map(|energy| energy / total_energy.max(f64::MIN_POSITIVE)).collect();
            profile.spectrum =
                Some(Spectrum { facts, explained, total_energy, relative_errors: None, by_data_errors: false });
            Ok(profile)
        })
    }

    /// Creates the profile of an out × in layer that stays original, but counts in the budget and in the plan.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`] for a layer without inputs or outputs.
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let head = dalr::network::LayerProfile::original("head", (10, 84), true)?;
    /// assert_eq!((head.parameters(), head.max_rank()), (850, 0));
    /// # Ok(())
    /// # }
    /// ```
    pub fn original(name: impl Into<String>, shape: (usize, usize), bias: bool) -> Result<Self> {
        during("LayerProfile::original", || {
            if shape.0 == 0 || shape.1 == 0 {
                return Err(Error::empty("the weight"));
            }
            Ok(Self { name: name.into(), shape, biases: (bias, bias), calls: 1, spectrum: None })
        })
    }

    /// Sets how often the network runs this layer for one sample; 1 by default. The multiply–adds count that often, the
    /// parameters once.
    #[must_use]
    pub fn with_calls(mut self, calls: u64) -> Self {
        self.calls = calls;
        self
    }

    /// Makes the [`loss`](Self::loss) the squared error on the calibration data instead of the unexplained energy.
    ///
    /// The two differ by the regularization. For truncated SVD they are unrelated, and only this one is about the outputs.
    ///
    /// # Errors
    ///
    /// [`Error::NoSamples`] if the layer was decomposed without samples.
    pub fn with_data_errors(mut self) -> Result<Self> {
        during("LayerProfile::with_data_errors", || {
            match &mut self.spectrum {
                Some(spectrum) if spectrum.relative_errors.is_some() => spectrum.by_data_errors = true,
                _ => return Err(Error::no_samples()),
            }
            Ok(self)
        })
    }

    /// Name of the layer.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of outputs.
    pub fn out_features(&self) -> usize {
        self.shape.0
    }

    /// Number of inputs.
    pub fn in_features(&self) -> usize {
        self.shape.1
    }

    /// The largest rank that was solved for; 0 for a layer that stays original.
    pub fn max_rank(&self) -> usize {
        self.explained_energy().len()
    }

    /// How often the network runs this layer for one sample.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// Parameters of the original layer, bias included.
    pub fn parameters(&self) -> u64 {
        (self.shape.0 as u64).saturating_mul(self.shape.1 as u64 + u64::from(self.biases.0))
    }

    /// Multiply–adds of the original layer for one sample of the network.
    pub fn multiply_adds(&self) -> u64 {
        (self.shape.0 as u64).saturating_mul(self.shape.1 as u64).saturating_mul(self.calls)
    }

    /// The explained energy of each rank solved for: the eigenvalues over their total, descending.
    pub fn explained_energy(&self) -> &[f64] {
        self.spectrum.as_ref().map_or(&[], |spectrum| &spectrum.explained)
    }

    /// The total of all eigenvalues, as [`Decomposition::total_energy`]; `None` for a layer that stays original.
    pub fn total_energy(&self) -> Option<f64> {
        self.spectrum.as_ref().map(|spectrum| spectrum.total_energy)
    }

    /// The predicted error at this rank, as [`Decomposition::relative_error`].
    pub fn relative_error(&self, rank: usize) -> Option<f64> {
        self.spectrum.as_ref()?.relative_errors.as_ref()?.get(rank.checked_sub(1)?).copied()
    }

    /// The loss at this rank, a squared relative error: the unexplained energy, which is convex in the rank, or the square of
    /// [`relative_error`](Self::relative_error) after [`with_data_errors`](Self::with_data_errors). `None` for a rank that was
    /// not solved for.
    pub fn loss(&self, rank: usize) -> Option<f64> {
        self.losses().get(rank.checked_sub(1)?).copied()
    }

    /// The report on the compressed layer of this rank, as [`Decomposition::truncate`] gives it; `None` for a rank that was not
    /// solved for.
    pub fn report(&self, rank: usize) -> Option<Report> {
        let spectrum = self.spectrum.as_ref().filter(|_| (1..=self.max_rank()).contains(&rank))?;
        Some(spectrum.facts.report(rank, self.relative_error(rank)))
    }

    /// The loss at every rank from 1.
    pub(super) fn losses(&self) -> Vec<f64> {
        let Some(spectrum) = &self.spectrum else { return Vec::new() };
        match &spectrum.relative_errors {
            Some(errors) if spectrum.by_data_errors => errors.iter().map(|error| error * error).collect(),
            _ => tails(&spectrum.explained, self.shape.0.min(self.shape.1)),
        }
    }

    pub(super) fn is_by_data_errors(&self) -> bool {
        self.spectrum.as_ref().is_some_and(|spectrum| spectrum.by_data_errors)
    }

    /// The smallest relative error that can be distinguished from zero.
    pub(super) fn resolution(&self) -> f64 {
        self.spectrum.as_ref().map_or(0.0, |spectrum| spectrum.facts.resolution)
    }

    /// Parameters and multiply–adds of the compressed layer at this rank. It must increase with the rank; it may be concave.
    pub(super) fn cost_at(&self, rank: usize) -> (u64, u64) {
        let (m, n) = (self.shape.0 as u64, self.shape.1 as u64);
        let factors = (rank as u64).saturating_mul(m + n);
        let bias = if self.biases.1 { m } else { 0 };
        (factors.saturating_add(bias), factors.saturating_mul(self.calls))
    }
}

/// The energy left unexplained at each rank, given the explained energies.
///
/// It is summed from the end, so that small tails keep their digits. Past the last rank solved for, the rest of the total is
/// left.
pub(super) fn tails(explained: &[f64], full: usize) -> Vec<f64> {
    let solved = explained.iter().sum::<f64>();
    // Without any energy there is nothing to lose.
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

/// The position of each name; a name that comes twice is an error.
pub(super) fn index<'a>(names: impl Iterator<Item = &'a str>) -> Result<BTreeMap<&'a str, usize>> {
    let mut index = BTreeMap::new();
    for (position, name) in names.enumerate() {
        if index.insert(name, position).is_some() {
            let expected = "layers of different names".into();
            return Err(Error::layers(expected, format!("`{name}` twice")));
        }
    }
    Ok(index)
}

#[cfg(test)]
mod tests {
    use super::tails;

    #[test]
    fn the_tail_of_a_rank_is_the_unexplained_energy() {
        // Solved in part: a quarter lies past the last rank. In full: nothing does, though the sum is rounded.
        assert_eq!(tails(&[0.5, 0.25], 3), [0.5, 0.25]);
        let explained = [0.7, 0.1, 0.1];
        assert!(explained.iter().sum::<f64>() < 0.9);
        assert_eq!(tails(&explained, 3), [0.1 + 0.1, 0.1, 0.0]);
        // No energy at all, solved in part or in full.
        assert_eq!([tails(&[0.0, 0.0], 3), tails(&[0.0, 0.0], 2)], [[0.0, 0.0]; 2]);
    }
}
