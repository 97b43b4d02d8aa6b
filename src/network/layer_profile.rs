//! The profile of a layer: its shape, eigenvalues and errors, without matrices.

use std::collections::BTreeMap;

use crate::compress::{Facts, require_energies};
use crate::error::{during, require};
use crate::rank::tails;
use crate::{Decomposition, Error, Report, Result, Scalar};

/// A layer's name, shape and error at every rank.
///
/// A profile contains a few numbers per rank and no matrices. The profiles of a thousand layers
/// therefore fit into memory, even if their decompositions do not. The `serde` feature can store
/// them.
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
/// assert_eq!((profile.name(), profile.max_rank()), ("encoder.fc1", 6));
/// assert_eq!(profile.relative_error(2), decomposition.relative_error(2));
/// assert_eq!(profile.report(2).as_ref(), Some(decomposition.truncate(2)?.report()));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LayerProfile {
    name: String,
    /// How often the network runs this layer for one sample.
    pub(super) calls: u64,
    pub(super) facts: Facts,
    /// Eigenvalues, divided by their total.
    explained: Vec<f64>,
    pub(super) total_energy: f64,
    /// Whether the energies are in an output metric.
    #[cfg_attr(feature = "serde", serde(default))]
    in_metric: bool,
    relative_errors: Option<Vec<f64>>,
    /// The loss at every rank from 1.
    losses: Vec<f64>,
    /// Whether the losses are the squares of `relative_errors`.
    pub(super) by_data_errors: bool,
}

impl LayerProfile {
    /// Creates the profile of a decomposed layer.
    ///
    /// Ranks above the decomposition's [`max_rank`](Decomposition::max_rank) cannot be chosen.
    /// Solve up to [`Rank::break_even`](crate::Rank::break_even) to allow every useful rank.
    pub fn new<T: Scalar>(name: impl Into<String>, decomposition: &Decomposition<T>) -> Self {
        let (facts, explained) = (decomposition.facts().clone(), decomposition.explained().to_vec());
        Self {
            name: name.into(),
            calls: 1,
            losses: tails(&explained, facts.full_rank()),
            facts,
            explained,
            total_energy: decomposition.total_energy(),
            in_metric: decomposition.metric_error(1).is_some(),
            relative_errors: decomposition.relative_errors().map(<[f64]>::to_vec),
            by_data_errors: false,
        }
    }

    /// Creates the profile of a layer whose eigenvalues were computed elsewhere: descending, one
    /// for each rank that may be chosen. The total includes the eigenvalues that are not listed.
    /// Such a profile has no predicted errors.
    ///
    /// # Errors
    ///
    /// No eigenvalues, or more than min(out, in); eigenvalues that are negative, not finite or not
    /// descending; a total below their sum.
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
                return Err(Error::empty("the list of energies"));
            }
            let full = shape.0.min(shape.1);
            if energies.len() > full {
                let expected = format!("at most {full} energies for a {} × {} weight", shape.0, shape.1);
                return Err(Error::rank(expected, energies.len().to_string()));
            }
            require_energies(energies, total_energy)?;
            profile.explained = energies.iter().map(|energy| energy / total_energy.max(f64::MIN_POSITIVE)).collect();
            profile.losses = tails(&profile.explained, full);
            (profile.total_energy, profile.facts.determined) = (total_energy, energies.len());
            Ok(profile)
        })
    }

    /// Creates the profile of an out × in layer that stays original, but counts in the budget and
    /// in the plan.
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
            let (method, solver, biases) = ("spectrum".into(), "none".into(), (bias, bias));
            Ok(Self {
                name: name.into(),
                calls: 1,
                facts: Facts { method, solver, shape, biases, ..Facts::default() },
                explained: Vec::new(),
                total_energy: 0.0,
                in_metric: false,
                relative_errors: None,
                losses: Vec::new(),
                by_data_errors: false,
            })
        })
    }

    /// Sets how often the network runs this layer for one sample; 1 by default. The multiply–adds
    /// count that often, the parameters once.
    #[must_use]
    pub fn with_calls(mut self, calls: u64) -> Self {
        self.calls = calls;
        self
    }

    /// Sets the [`loss`](Self::loss) to the squared predicted error instead of the energy that is
    /// not explained.
    ///
    /// The two differ by the regularization. For truncated SVD they are unrelated: only the
    /// predicted error measures the outputs.
    ///
    /// # Errors
    ///
    /// [`Error::NoSamples`] if the layer was decomposed without samples.
    pub fn with_data_errors(mut self) -> Result<Self> {
        let errors = self.relative_errors.as_ref().ok_or_else(Error::no_samples);
        let errors = errors.map_err(|error| error.during("LayerProfile::with_data_errors"))?;
        self.losses = errors.iter().map(|error| error * error).collect();
        self.by_data_errors = true;
        Ok(self)
    }

    /// Returns the name of the layer.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the number of outputs.
    pub fn out_features(&self) -> usize {
        self.facts.shape.0
    }

    /// Returns the number of inputs.
    pub fn in_features(&self) -> usize {
        self.facts.shape.1
    }

    /// Returns the largest rank that was solved for; 0 for a layer that stays original.
    pub fn max_rank(&self) -> usize {
        self.explained.len()
    }

    /// Returns the parameters of the original layer, bias included; of an
    /// [`Adapter`](crate::adapter::Adapter), those at its full rank.
    pub fn parameters(&self) -> u64 {
        self.costs(0).0
    }

    /// Returns the multiply–adds of the original layer for one sample of the network.
    pub fn multiply_adds(&self) -> u64 {
        self.costs(0).1
    }

    /// Returns the explained energy of each solved rank: the eigenvalues divided by their total,
    /// descending.
    pub fn explained_energy(&self) -> &[f64] {
        &self.explained
    }

    /// Returns the predicted error at this rank, as [`Decomposition::relative_error`].
    pub fn relative_error(&self, rank: usize) -> Option<f64> {
        self.relative_errors.as_ref()?.get(rank.checked_sub(1)?).copied()
    }

    /// Returns the loss at this rank, which is a squared relative error; `None` for a rank that was
    /// not solved for. By default it is the energy that is not explained, which is convex in the
    /// rank. After [`with_data_errors`](Self::with_data_errors) it is the square of
    /// [`relative_error`](Self::relative_error).
    pub fn loss(&self, rank: usize) -> Option<f64> {
        self.losses.get(rank.checked_sub(1)?).copied()
    }

    /// Returns the report on the compressed layer of this rank, as [`Decomposition::truncate`]
    /// gives it; `None` for a rank that was not solved for.
    pub fn report(&self, rank: usize) -> Option<Report> {
        self.loss(rank).map(|_| self.facts.report(rank, self.relative_error(rank)))
    }

    /// The energy of the original outputs in the layer's output metric.
    pub(super) fn metric_energy(&self) -> Result<f64> {
        if self.in_metric {
            return Ok(self.total_energy);
        }
        let expected = "a decomposition with samples and an output metric".into();
        Err(Error::layers(expected, "one without".into()).in_layer(&self.name))
    }

    /// Whether this is an adapter, which the layer can do without.
    pub(super) fn is_adapter(&self) -> bool {
        self.facts.adapter_rank.is_some()
    }

    /// Returns the parameters and multiply–adds at this rank; those of the original layer for rank
    /// 0, or of an adapter at its full rank.
    ///
    /// They must increase with the rank from rank 1 on.
    pub(super) fn costs(&self, rank: usize) -> (u64, u64) {
        let (m, n) = (self.facts.shape.0 as u64, self.facts.shape.1 as u64);
        let rank = if rank == 0 { self.facts.adapter_rank.unwrap_or(0) } else { rank };
        let (weights, bias) = match rank {
            0 => (m.saturating_mul(n), self.facts.biases.0),
            _ => (self.facts.form.parameters(rank, self.facts.shape) as u64, self.facts.biases.1),
        };
        (weights.saturating_add(if bias { m } else { 0 }), weights.saturating_mul(self.calls))
    }

    /// Returns the ranks within the limits that save parameters, ascending; every rank of an
    /// adapter.
    pub(super) fn saving_ranks(&self, limits: Limits) -> Vec<usize> {
        let saves = |rank| self.is_adapter() || self.costs(rank).0 < self.parameters();
        let saving = (1..=self.max_rank()).take_while(|&rank| saves(rank));
        saving.filter(|&rank| limits.allow(rank)).collect()
    }

    /// Returns the loss at this rank, or an error for a rank that was not solved for.
    pub(super) fn require_loss(&self, rank: usize) -> Result<f64> {
        self.loss(rank).ok_or_else(|| {
            let expected = format!("a rank from 1 to the {} solved for", self.max_rank());
            Error::rank(expected, rank.to_string()).in_layer(&self.name)
        })
    }
}

/// The ranks that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Limits {
    pub(super) min_rank: usize,
    pub(super) max_rank: usize,
    pub(super) multiple: usize,
}

impl Limits {
    pub(super) const NONE: Self = Self { min_rank: 1, max_rank: usize::MAX, multiple: 1 };

    pub(super) fn validate(self) -> Result<()> {
        require(self.multiple > 0, "the rank multiple", "to be at least 1", 0.0)?;
        require(self.min_rank > 0, "the smallest rank", "to be at least 1", 0.0)?;
        let expected = format!("to be at least the smallest, {}", self.min_rank);
        require(self.max_rank >= self.min_rank, "the largest rank", expected, self.max_rank as f64)
    }

    pub(super) fn allow(self, rank: usize) -> bool {
        rank.is_multiple_of(self.multiple) && (self.min_rank..=self.max_rank).contains(&rank)
    }
}

/// Returns the position of each name, or an error if a name occurs twice.
pub(super) fn index<'a>(names: impl Iterator<Item = &'a str>) -> Result<BTreeMap<&'a str, usize>> {
    let mut index = BTreeMap::new();
    for (position, name) in names.enumerate() {
        if index.insert(name, position).is_some() {
            return Err(Error::layers("layers of different names".into(), format!("`{name}` twice")));
        }
    }
    Ok(index)
}

/// Returns the position of each layer by its name, or an error if there is no layer.
pub(super) fn positions(layers: &[LayerProfile]) -> Result<BTreeMap<&str, usize>> {
    if layers.is_empty() {
        return Err(Error::empty("the list of layers"));
    }
    index(layers.iter().map(LayerProfile::name))
}

/// Returns an error if a name in the settings is not that of a layer.
pub(super) fn require_known<'a>(
    index: &BTreeMap<&str, usize>,
    mut names: impl Iterator<Item = &'a String>,
    settings: &str,
) -> Result<()> {
    match names.find(|name| !index.contains_key(name.as_str())) {
        Some(name) => Err(Error::layers(format!("{settings} for layers of the network"), format!("some for `{name}`"))),
        None => Ok(()),
    }
}
