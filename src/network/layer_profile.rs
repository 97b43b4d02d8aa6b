//! The profile of a layer: its shape, eigenvalues and errors, without matrices.

use std::collections::BTreeMap;

use super::cost::Cost;
use crate::compress::{Facts, require_energies};
use crate::error::{during, require};
use crate::factors::Form;
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
    /// The number of groups of a convolution; the other numbers about size are those of a group.
    #[cfg_attr(feature = "serde", serde(default = "one"))]
    pub(super) groups: u64,
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
            groups: 1,
            losses: tails(&explained, facts.shape.0.min(facts.shape.1)),
            facts,
            explained,
            total_energy: decomposition.total_energy(),
            in_metric: decomposition.metric_error(1).is_some(),
            relative_errors: decomposition.relative_errors().map(<[f64]>::to_vec),
            by_data_errors: false,
        }
    }

    /// Creates the profile of a convolution from the decompositions of its groups' linear layers,
    /// which all get the same rank: the channels between the two convolutions for each group.
    ///
    /// The multiply–adds are those of one position; set the number of positions with
    /// [`with_calls`](Self::with_calls). The loss is the energy that no group explains, relative to
    /// the energy of all. Several groups have no predicted errors.
    ///
    /// # Errors
    ///
    /// No groups; groups of different shapes, forms or biases.
    ///
    /// ```
    /// # use faer::Mat;
    /// use dalr::convolution::{Conv2d, ConvOptions, PatchStats};
    /// use dalr::network::LayerProfile;
    /// use dalr::{Dalr, LowRankCompressor};
    ///
    /// # fn main() -> dalr::Result<()> {
    /// # let weight = Mat::from_fn(8, 4 * 9, |i, j| ((i * 5 + j * j * 3) % 17) as f64);
    /// # let images = Mat::from_fn(20, 8 * 64, |i, j| ((i * i * 11 + j * 7 + i * j) % 13) as f64);
    /// let conv = Conv2d::new(weight, None, (3, 3), ConvOptions::new().with_groups(2))?;
    /// let mut inputs = PatchStats::new(&conv, 0.2)?;
    /// inputs.update(images.as_ref(), (8, 8))?;
    /// let groups = conv.layers().iter().zip(inputs.groups());
    /// let groups = groups.map(|(layer, stats)| Dalr::new().decompose(layer, stats, 3));
    /// let profile = LayerProfile::of_groups("conv2", &groups.collect::<dalr::Result<Vec<_>>>()?)?;
    /// let profile = profile.with_calls(conv.positions((8, 8))? as u64);
    /// assert_eq!(profile.parameters() as usize, conv.parameters());
    /// assert_eq!(profile.multiply_adds() as usize, conv.multiply_adds((8, 8))?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn of_groups<T: Scalar>(name: impl Into<String>, groups: &[Decomposition<T>]) -> Result<Self> {
        during("LayerProfile::of_groups", || {
            let [first, others @ ..] = groups else { return Err(Error::empty("the list of groups")) };
            let mut profile = Self::new(name, first);
            if others.is_empty() {
                return Ok(profile);
            }
            let kind = |facts: &Facts| (facts.shape, facts.form, facts.biases);
            if let Some(other) = others.iter().find(|other| kind(other.facts()) != kind(&profile.facts)) {
                let group =
                    |facts: &Facts| format!("{} × {} weights in form {:?}", facts.shape.0, facts.shape.1, facts.form);
                return Err(Error::layers(format!("groups of {}", group(&profile.facts)), group(other.facts())));
            }
            let total: f64 = groups.iter().map(Decomposition::total_energy).sum();
            let full = profile.facts.shape.0.min(profile.facts.shape.1);
            let solved = groups.iter().map(Decomposition::max_rank).min().unwrap_or(0);
            let energy = |rank: usize| groups.iter().filter_map(|group| group.energies().get(rank)).sum::<f64>();
            profile.explained = (0..solved).map(|rank| energy(rank) / total.max(f64::MIN_POSITIVE)).collect();
            // Energies beyond the smallest solved rank count as lost, and those of other groups too.
            profile.losses = tails(&profile.explained, full);
            (profile.total_energy, profile.relative_errors) = (total, None);
            profile.groups = groups.len() as u64;
            for facts in others.iter().map(Decomposition::facts) {
                profile.facts.determined = profile.facts.determined.min(facts.determined);
                profile.facts.residual = profile.facts.residual.max(facts.residual);
                let new = facts.warnings.iter().filter(|warning| !profile.facts.warnings.contains(warning)).cloned();
                let new: Vec<_> = new.collect();
                profile.facts.warnings.extend(new);
            }
            Ok(profile)
        })
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
                groups: 1,
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

    /// Sets the form of storage whose parameters count for this layer; by default that of the
    /// decomposition.
    ///
    /// Pivoted storage is smaller at every rank, so a budget never prefers two factors to it.
    /// Choose it for the layers that the program which runs the network can store like that.
    #[must_use]
    pub fn with_form(mut self, form: Form) -> Self {
        self.facts.form = form;
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

    /// Returns the number of outputs, those of all groups.
    pub fn out_features(&self) -> usize {
        self.facts.shape.0.saturating_mul(self.groups as usize)
    }

    /// Returns the number of inputs, those of all groups.
    pub fn in_features(&self) -> usize {
        self.facts.shape.1.saturating_mul(self.groups as usize)
    }

    /// Returns the largest rank that was solved for; 0 for a layer that stays original.
    pub fn max_rank(&self) -> usize {
        self.explained.len()
    }

    /// Returns the parameters of the original layer, bias included.
    pub fn parameters(&self) -> u64 {
        self.cost(0).parameters
    }

    /// Returns the multiply–adds of the original layer for one sample of the network.
    pub fn multiply_adds(&self) -> u64 {
        self.cost(0).multiply_adds
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
        self.loss(rank)?;
        let mut report = self.facts.report(rank, self.relative_error(rank));
        let all = |number: &mut usize| *number = number.saturating_mul(self.groups as usize);
        [&mut report.out_features, &mut report.in_features].into_iter().for_each(all);
        [&mut report.parameters_before, &mut report.parameters_after].into_iter().for_each(all);
        [&mut report.multiply_adds_before, &mut report.multiply_adds_after].into_iter().for_each(all);
        Some(report)
    }

    /// The energy of the original outputs in the layer's output metric.
    pub(super) fn metric_energy(&self) -> Result<f64> {
        if self.in_metric {
            return Ok(self.total_energy);
        }
        let expected = "a decomposition with samples and an output metric".into();
        Err(Error::layers(expected, "one without".into()).in_layer(&self.name))
    }

    /// Returns the cost at this rank; that of the original layer for rank 0.
    ///
    /// It must increase with the rank from rank 1 on.
    pub(super) fn cost(&self, rank: usize) -> Cost {
        let (shape, biases) = (self.facts.shape, self.facts.biases);
        let cost = match rank {
            0 => Cost::of_linear(shape, biases.0),
            _ => Cost::of_rank(self.facts.form, rank, shape, biases.1),
        };
        cost.in_groups(self.groups).at_positions(self.calls)
    }

    /// Returns the ranks within the limits that save parameters, ascending.
    pub(super) fn saving_ranks(&self, limits: Limits) -> Vec<usize> {
        let saving = (1..=self.max_rank()).take_while(|&rank| self.cost(rank).parameters < self.parameters());
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

/// The number of groups in profiles that were stored without it.
#[cfg(feature = "serde")]
fn one() -> u64 {
    1
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

/// Returns the energy that is not explained at each rank, given the explained energies.
///
/// It is summed from the end, so that small tails are accurate. The energy beyond the last solved
/// rank is included.
pub(super) fn tails(explained: &[f64], full: usize) -> Vec<f64> {
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

#[cfg(test)]
mod tests {
    use super::tails;

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
