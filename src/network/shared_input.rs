//! Layers with a shared input: one `down` for all of them, an `up` for each.

use super::cost::Cost;
use super::layer_profile::{LayerProfile, tails};
use super::sensitivities::Sensitivities;
use crate::compress::OutputMetric;
use crate::error::during;
use crate::factors::Form;
use crate::{Calibration, Decomposition, Error, Linear, LowRankCompressor, LowRankLinear, Result, Scalar, linalg};

/// The weight of a layer whose sensitivity is zero, relative to the largest sensitivity.
const NEGLIGIBLE: f64 = 1.0 / (1_u64 << 40) as f64;

/// Largest relative difference between the energy of a group and the sum of its layers' energies.
/// Rounding is smaller, and the difference between two methods is larger.
const SAME: f64 = 1e-3;

/// A group of layers with a shared input, such as query, key and value, and the loss of each layer
/// at every rank of a shared `down`.
///
/// The weights, stacked on top of each other, form one layer. Its factors of rank `k` are one
/// `down`, `k × n`, and an `up` for each layer, `mᵢ × k`. They have `k (n + Σ mᵢ)` parameters;
/// separate factors have `Σ kᵢ (n + mᵢ)`.
/// [`Allocator::allocate_shared`](super::Allocator::allocate_shared) chooses the better of the two.
///
/// An output metric weighs the rows of each layer by `wᵢ / eᵢ`, with the energy `eᵢ` of its outputs
/// and its sensitivity `wᵢ`. The solution therefore minimizes the weighted sum of the *relative*
/// squared errors, as separate factors do. If the layers have output metrics of their own, their
/// [`OutputMetric::block_diagonal`] is weighed instead.
///
/// ```
/// use dalr::network::{Allocator, Budget, Choice, LayerProfile, SharedInput, Strategy};
/// use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor};
/// use faer::Mat;
///
/// # fn main() -> dalr::Result<()> {
/// let mut stats = ActivationStats::new(24); // the statistics of the shared input
/// stats.update(Mat::from_fn(90, 24, |i, j| ((i * i * 11 + j * 7 + i * j) % 13) as f64).as_ref())?;
/// // Three layers that use the same six directions of their input.
/// let down = Mat::from_fn(6, 24, |i, j| ((i * 5 + j * j * 3) % 17) as f64);
/// let layer = |s: usize| Linear::new(Mat::from_fn(24, 6, |i, j| ((i * 7 + j * s) % 11) as f64 - 5.0) * &down, None);
/// let (query, key, value) = (layer(3)?, layer(4)?, layer(5)?);
/// let method = Dalr::new();
/// let mut profiles = Vec::new();
/// for (name, layer) in [("query", &query), ("key", &key), ("value", &value)] {
///     profiles.push(LayerProfile::new(name, &method.decompose(layer, &stats, 12)?));
/// }
/// let members: Vec<_> = profiles.iter().zip([&query, &key, &value]).collect();
/// let (shared, decomposition) = SharedInput::decompose(&members, None, &method, &stats, 12)?;
///
/// let allocator = Allocator::new(Budget::Parameters(600)).with_strategy(Strategy::Energy);
/// let plan = allocator.allocate_shared(&profiles, std::slice::from_ref(&shared))?;
/// assert_eq!(plan.choice("key"), Some(Choice::Shared { group: 0, rank: 6 }));
/// assert_eq!(plan.parameters_after(), 6 * (24 + 3 * 24));
///
/// let layers = shared.split(decomposition.truncate(6)?.layer())?;
/// assert_eq!(layers[0].down(), layers[2].down()); // a program may store it once
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SharedInput {
    /// The stacked layer.
    pub(super) stacked: LayerProfile,
    members: Vec<Member>,
}

#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
struct Member {
    name: String,
    out_features: usize,
    /// The loss at every rank from 1.
    losses: Vec<f64>,
}

impl SharedInput {
    /// Decomposes layers with a shared input together, for every rank up to `max_rank`.
    ///
    /// The profiles must come from the same method and the same statistics. If they were made with
    /// output metrics, pass the [`OutputMetric::block_diagonal`] of these with the calibration data.
    /// Pass the same sensitivities as to the allocation. Truncate the returned decomposition of the
    /// stacked layer to the planned rank, and [`split`](Self::split) it. The method must respect the
    /// output metric of its calibration data.
    ///
    /// # Errors
    ///
    /// Fewer than two layers; profiles of other layers, or of layers that stay original; layers of
    /// which only some have a bias; different numbers of inputs; a layer without a sensitivity;
    /// profiles from another method, other statistics or other output metrics, whose errors cannot
    /// be compared; a metric in which errors of different layers count together; errors of
    /// [`LowRankCompressor::decompose`].
    pub fn decompose<'a, T: Scalar>(
        members: &[(&LayerProfile, &Linear<T>)],
        sensitivities: Option<&Sensitivities>,
        method: &(impl LowRankCompressor<T> + ?Sized),
        calibration: impl Into<Calibration<'a, T>>,
        max_rank: usize,
    ) -> Result<(Self, Decomposition<T>)> {
        let calibration = calibration.into();
        during("SharedInput::decompose", || {
            let stacked = stack(members)?;
            let weights = weights(members, sensitivities)?;
            let rows =
                members.iter().zip(&weights).flat_map(|((_, layer), &weight)| vec![weight; layer.out_features()]);
            let rows: Vec<f64> = rows.collect();
            let metric = match calibration.output_metric() {
                None => OutputMetric::diagonal(&rows)?.with_floor(0.0)?,
                Some(given) => {
                    require_blocks(given, members)?;
                    given.weighted(&rows)?
                }
            };
            let decomposition = method.solve(&stacked, calibration.with_output_metric(&metric), max_rank)?;
            let energies: Vec<f64> =
                members.iter().zip(&weights).map(|((profile, _), weight)| weight * profile.total_energy).collect();
            let (total, sum) = (decomposition.total_energy(), energies.iter().sum::<f64>());
            if (sum - total).abs() > SAME * total {
                let expected = format!("profiles from the method and the data of the group, of total energy {total:e}");
                return Err(Error::layers(expected, format!("{sum:e}")));
            }
            let factors = decomposition.truncate(decomposition.max_rank())?.into_layer();
            let full = factors.in_features().min(factors.out_features());
            // In the metric, the columns of `up` are eigenvectors, up to a factor. The part of an
            // eigenvalue in the rows of a layer is their part of the squared norm.
            let (mut norms, mut start) = (Vec::with_capacity(members.len()), 0);
            let in_metric = metric.transformed(factors.up())?;
            for (_, layer) in members {
                norms.push(linalg::squared_column_norms(in_metric.subrows(start, layer.out_features())));
                start += layer.out_features();
            }
            let whole = |rank: usize| norms.iter().filter_map(|norms| norms.get(rank)).sum::<f64>();
            let mut shared =
                Self { stacked: LayerProfile::new("the stacked layer", &decomposition), members: Vec::new() };
            for (((profile, layer), energy), norms) in members.iter().zip(energies).zip(&norms) {
                let fraction = if energy > 0.0 { total / energy } else { 0.0 };
                let explained = norms.iter().zip(decomposition.explained()).enumerate();
                let explained = explained.map(|(rank, (norm, part))| part * fraction * norm / whole(rank));
                let losses = tails(&explained.collect::<Vec<_>>(), full);
                shared.members.push(Member { name: profile.name().into(), out_features: layer.out_features(), losses });
            }
            Ok((shared, decomposition))
        })
    }

    /// Splits the compressed stacked layer into the layers of the group, in their order. Each has a
    /// copy of the shared `down`.
    ///
    /// # Errors
    ///
    /// A stacked layer of another shape; [`Error::Memory`].
    pub fn split<T: Scalar>(&self, stacked: &LowRankLinear<T>) -> Result<Vec<LowRankLinear<T>>> {
        during("SharedInput::split", || {
            for (what, expected, found) in [
                ("outputs of the stacked layer", self.stacked.out_features(), stacked.out_features()),
                ("inputs of the stacked layer", self.stacked.in_features(), stacked.in_features()),
            ] {
                if expected != found {
                    return Err(Error::shape(what, expected, found));
                }
            }
            let mut start = 0;
            let split = |member: &Member| {
                let rows = member.out_features;
                let up = stacked.up().subrows(start, rows).to_owned();
                let bias = stacked.bias().map(|bias| bias.subrows(start, rows).to_owned());
                start += rows;
                LowRankLinear::new(stacked.down().to_owned(), up, bias)
            };
            self.members.iter().map(split).collect()
        })
    }

    /// Sets the form of storage whose parameters count: two factors by default.
    ///
    /// In pivoted storage the stacked layer is one
    /// [`PivotedLinear`](crate::factors::PivotedLinear), [`LowRankLinear::to_pivoted`] of the
    /// truncated decomposition, whose outputs are those of the layers one after the other.
    #[must_use]
    pub fn with_form(mut self, form: Form) -> Self {
        self.stacked = self.stacked.with_form(form);
        self
    }

    /// Returns the names of the layers, in the order of the stacked weights.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|member| member.name.as_str())
    }

    /// Returns the largest rank that was solved for.
    pub fn max_rank(&self) -> usize {
        self.stacked.max_rank()
    }

    /// Returns the loss of a layer, by its index in the group, at this rank of the shared `down`: a
    /// squared relative error, as [`LayerProfile::loss`]. `None` for a layer or a rank that does
    /// not exist.
    pub fn loss(&self, member: usize, rank: usize) -> Option<f64> {
        self.members.get(member)?.losses.get(rank.checked_sub(1)?).copied()
    }

    /// Returns the parameters of all layers at this rank, biases included: `k (n + Σ mᵢ)` for two
    /// factors.
    pub fn parameters(&self, rank: usize) -> u64 {
        self.stacked.cost(rank).parameters
    }

    /// Returns the cost of a layer at this rank, and its loss. All but the rows of `up` counts with
    /// the first layer.
    pub(super) fn at_rank(&self, index: usize, rank: usize) -> (Cost, f64) {
        let bias = self.stacked.facts.biases.1;
        let up = |member: &Member| Cost::of_linear((member.out_features, rank), bias);
        let cost = match index {
            0 => {
                let others: Cost = self.members.iter().skip(1).map(up).sum();
                let all = self.stacked.cost(rank);
                Cost {
                    parameters: all.parameters.saturating_sub(others.parameters),
                    multiply_adds: all.multiply_adds.saturating_sub(others.multiply_adds),
                }
            }
            _ => self.members.get(index).map_or(Cost::default(), up),
        };
        (cost, self.loss(index, rank).unwrap_or(f64::INFINITY))
    }

    /// Returns an error if a profile does not fit the group.
    pub(super) fn check(&self, layer: &LayerProfile) -> Result<()> {
        let shape = (layer.out_features(), layer.in_features());
        let same =
            |member: &Member| member.name == layer.name() && (member.out_features, self.stacked.in_features()) == shape;
        let found = match self.members.iter().any(same) {
            false => "another shape",
            true if layer.by_data_errors => "losses by errors on the data",
            true => return Ok(()),
        };
        let expected = format!("`{}` of the shape, and with the losses by energy, that its group has", layer.name());
        Err(Error::layers(expected, found.into()))
    }
}

/// Returns `wᵢ / eᵢ` of each layer, divided by the largest; 1 for a layer without energy.
fn weights<T>(members: &[(&LayerProfile, &Linear<T>)], sensitivities: Option<&Sensitivities>) -> Result<Vec<f64>> {
    let sensitivity =
        |(profile, _): &(&LayerProfile, _)| sensitivities.map_or(Ok(1.0), |all| all.require(profile.name()));
    let sensitivities: Vec<f64> = members.iter().map(sensitivity).collect::<Result<_>>()?;
    let largest = |numbers: &[f64]| numbers.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let heaviest = largest(&sensitivities);
    let weight = |((profile, _), sensitivity): (&(&LayerProfile, _), &f64)| match profile.total_energy {
        energy if energy > 0.0 => (sensitivity / heaviest).max(NEGLIGIBLE) / energy,
        _ => 0.0,
    };
    let weights: Vec<f64> = members.iter().zip(&sensitivities).map(weight).collect();
    let largest = largest(&weights);
    Ok(weights.into_iter().map(|weight| if weight > 0.0 { weight / largest } else { 1.0 }).collect())
}

/// Returns an error unless errors of different layers count apart in the metric.
fn require_blocks<T: Scalar>(metric: &OutputMetric, members: &[(&LayerProfile, &Linear<T>)]) -> Result<()> {
    let outputs: usize = members.iter().map(|(_, layer)| layer.out_features()).sum();
    if metric.outputs() != outputs {
        return Err(Error::shape("outputs in the metric (those of all layers)", outputs, metric.outputs()));
    }
    let mut start = 0;
    for (profile, layer) in members {
        if !metric.is_block(start..start + layer.out_features()) {
            let found = format!("one that couples `{}` with others", profile.name());
            return Err(Error::layers("a metric with a block for each layer".into(), found));
        }
        start += layer.out_features();
    }
    Ok(())
}

/// Returns the layers stacked on top of each other.
fn stack<T: Scalar>(members: &[(&LayerProfile, &Linear<T>)]) -> Result<Linear<T>> {
    let refuse = |expected: &str, found: String| Err(Error::layers(expected.into(), found));
    let [(_, first), _, ..] = members else {
        return refuse("two layers or more", members.len().to_string());
    };
    let outputs = members.iter().map(|(_, layer)| layer.out_features()).sum();
    let mut weight = linalg::zeros(outputs, first.in_features())?;
    let (mut bias, mut start) = (Vec::new(), 0);
    for (profile, layer) in members {
        let name = profile.name();
        if (profile.out_features(), profile.in_features()) != (layer.out_features(), layer.in_features()) {
            return refuse("each layer with its own profile", format!("one of another shape for `{name}`"));
        }
        if profile.max_rank() == 0 {
            return refuse("layers that were decomposed", format!("`{name}`, which stays original"));
        }
        if layer.in_features() != first.in_features() {
            let (expected, found) = (first.in_features(), layer.in_features());
            return Err(Error::shape("inputs, as the first layer has", expected, found).in_layer(name));
        }
        if layer.bias().is_some() != first.bias().is_some() {
            return refuse("layers that all have a bias or all have none", format!("another kind in `{name}`"));
        }
        weight.as_mut().subrows_mut(start, layer.out_features()).copy_from(layer.weight());
        bias.extend(layer.bias().into_iter().flat_map(|bias| bias.iter().copied()));
        start += layer.out_features();
    }
    Linear::new(weight, (!bias.is_empty()).then(|| bias.into_iter().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{Allocator, Budget, Choice, Strategy};

    /// Returns a group of two 6 × 6 layers, whose losses decrease by 1/10 and 1/8 with every rank.
    fn group() -> (SharedInput, [LayerProfile; 2]) {
        let member = |(name, step): (&str, f64)| {
            let losses = (1..=6).map(|rank| 1.0 - step * f64::from(rank)).collect();
            Member { name: name.into(), out_features: 6, losses }
        };
        let members = [("query", 0.1), ("key", 0.125)].map(member).into();
        let layer = |name| LayerProfile::from_energies(name, (6, 6), false, &[1.0; 6], 6.0).unwrap();
        let stacked = LayerProfile::from_energies("stacked", (12, 6), false, &[1.0; 6], 6.0).unwrap();
        let shared = SharedInput { stacked, members };
        (shared, ["query", "key"].map(layer))
    }

    #[test]
    fn candidates_are_smaller_and_count_weights_and_calls() {
        let (shared, layers) = group();
        let sensitivities = Sensitivities::new([("query", 2.0), ("key", 0.5)]).unwrap();
        // A shared `down` takes 18 parameters for each rank. The limit on the smallest rank
        // excludes separate factors within the budget.
        let plan = |rank: usize, layers: &[LayerProfile]| {
            let allocator = Allocator::new(Budget::Parameters(18 * rank as u64)).with_min_rank(rank);
            let allocator = allocator.with_strategy(Strategy::Sensitivity(sensitivities.clone()));
            allocator.allocate_shared(layers, std::slice::from_ref(&shared))
        };
        for calls in [1, 3] {
            let layers = layers.clone().map(|layer| layer.with_calls(calls));
            for rank in 1..=3 {
                let plan = plan(rank, &layers).unwrap();
                assert!(plan.layers.iter().all(|layer| layer.choice == Choice::Shared { group: 0, rank }));
                let parameters = 18 * rank as u64;
                assert_eq!((plan.parameters_after(), plan.multiply_adds_after()), (parameters, parameters * calls));
                let loss = 2.0 * (1.0 - 0.1 * rank as f64) + 0.5 * (1.0 - 0.125 * rank as f64);
                assert!((plan.objective - loss).abs() < 1e-14);
            }
            // At rank 4, the factors have the 72 parameters of the original layers.
            assert!(plan(4, &layers).unwrap().layers.iter().all(|layer| layer.choice == Choice::Original));
        }
        let [query, key] = layers;
        assert!(matches!(plan(1, &[query, key.with_calls(2)]), Err(Error::OutOfRange { .. })));
    }

    #[test]
    fn profiles_must_fit_the_group() {
        let (mut shared, [query, _]) = group();
        shared.members[1].out_features = 5;
        assert_eq!(shared.check(&query), Ok(()));
        let of_shape = |name: &str, shape| LayerProfile::from_energies(name, shape, false, &[1.0], 1.0).unwrap();
        for other in [of_shape("query", (5, 6)), of_shape("query", (6, 5)), of_shape("value", (6, 6))] {
            let expected = "of the shape, and with the losses by energy, that its group has, got another shape";
            let message = format!("test: expected `{}` {expected}", other.name());
            assert_eq!(shared.check(&other).unwrap_err().during("test").to_string(), message);
        }
    }
}
