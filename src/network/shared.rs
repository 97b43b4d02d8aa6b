//! Layers that read the same input: one `down` for all of them, an `up` for each.

use faer::{Col, Mat, MatRef};

use super::profile::{LayerProfile, tails};
use super::sensitivity::Sensitivities;
use super::shared_profile::{Member, SharedProfile};
use crate::error::during;
use crate::layer::{check_inputs, finish};
use crate::{ActivationStats, Decomposition, Error, Linear, LowRankCompressor, LowRankLinear, Result, Scalar, linalg};

/// The weight of a layer that the network is said not to need, against the one it needs most.
const NEGLIGIBLE: f64 = 1.0 / (1_u64 << 40) as f64;

/// How far the energies of a group may be from the sum of its members': more than rounding, less than another method.
const SAME: f64 = 1e-3;

/// Layers that read the same input: query, key and value, or gate and up.
///
/// Their weights, one on top of the other, are one layer. Its factors of rank `k` are one `down`, `k × n`, and an `up` for each member,
/// `mᵢ × k`: `k (n + Σ mᵢ)` parameters where separate factors take `Σ kᵢ (n + mᵢ)`. Which of the two loses less at the same budget
/// depends on how much the members have in common; [`Allocator::allocate_shared`](super::Allocator::allocate_shared) compares.
///
/// The members' rows are weighed by `√(wᵢ / eᵢ)`, with the energy `eᵢ` of their outputs and their sensitivity `wᵢ` (1 unless given), so that it is
/// the sum of their weighted *relative* squared errors that becomes least, as it does with separate factors.
///
/// ```
/// use dalr::network::{Allocator, Budget, Choice, LayerProfile, SharedDecomposition, SharedInput, SharedProfile, Strategy};
/// use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor};
/// use faer::Mat;
///
/// # fn main() -> dalr::Result<()> {
/// let mut stats = ActivationStats::new(24); // one object for all of them
/// stats.update(Mat::from_fn(90, 24, |i, j| ((i * i * 11 + j * 7 + i * j) % 13) as f64).as_ref())?;
/// // Three layers that look at the same six directions of their input.
/// let down = Mat::from_fn(6, 24, |i, j| ((i * 5 + j * j * 3) % 17) as f64);
/// let layer = |s: usize| Linear::new(Mat::from_fn(24, 6, |i, j| ((i * 7 + j * s) % 11) as f64 - 5.0) * &down, None);
/// let (query, key, value) = (layer(3)?, layer(4)?, layer(5)?);
/// let method = Dalr::new();
/// let mut profiles = Vec::new();
/// for (name, layer) in [("query", &query), ("key", &key), ("value", &value)] {
///     profiles.push(LayerProfile::new(name, &method.decompose(layer, &stats, 12)?));
/// }
/// let members: Vec<_> = profiles.iter().zip([&query, &key, &value]).collect();
/// let joint: SharedDecomposition<f64> = SharedInput::new(&members)?.decompose(&method, &stats, 12)?;
/// let profile: &SharedProfile = joint.profile();
/// assert_eq!(profile.names().collect::<Vec<_>>(), ["query", "key", "value"]);
/// assert_eq!((joint.profile().max_rank(), joint.profile().parameters(6)), (12, 6 * (24 + 3 * 24)));
///
/// let allocator = Allocator::new(Budget::Parameters(600)).with_strategy(Strategy::Energy);
/// let plan = allocator.allocate_shared(&profiles, std::slice::from_ref(joint.profile()))?;
/// assert_eq!(plan.choices(), [Choice::Shared { group: 0, rank: 6 }; 3]);
/// assert!(joint.profile().loss(2, 6).is_some_and(|loss| loss < 1e-9));
///
/// let layers = joint.truncate(6)?;
/// assert_eq!((layers.down().nrows(), layers.parameters()), (6, 576));
/// assert_eq!(layers.member(2).map(|value| (value.name(), value.up().shape())), Some(("value", (24, 6))));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct SharedInput<'a, T> {
    members: Vec<(&'a LayerProfile, &'a Linear<T>)>,
    weights: Vec<f64>,
}

impl<'a, T: Scalar> SharedInput<'a, T> {
    /// A group of layers, each with its profile.
    ///
    /// # Errors
    ///
    /// Fewer than two layers; profiles of other layers, or of layers that stay dense; layers of which some have a bias and some have none; inputs
    /// of different widths.
    ///
    /// For an example see [`SharedInput`].
    pub fn new(members: &[(&'a LayerProfile, &'a Linear<T>)]) -> Result<Self> {
        during("SharedInput::new", || {
            let refuse = |expected: &str, found: String| Err(Error::layers(expected.into(), found));
            let [(_, first), _, ..] = members else {
                return refuse("two layers or more", members.len().to_string());
            };
            for (profile, layer) in members {
                let name = profile.name();
                if (profile.out_features(), profile.in_features()) != (layer.out_features(), layer.in_features()) {
                    return refuse("each layer with its own profile", format!("one of another shape for `{name}`"));
                }
                if profile.max_rank() == 0 {
                    return refuse("layers that were decomposed", format!("`{name}`, which stays dense"));
                }
                if layer.in_features() != first.in_features() {
                    let (expected, found) = (first.in_features(), layer.in_features());
                    let source = Error::shape("inputs, as the first layer has", expected, found);
                    return Err(Error::InLayer { layer: name.into(), source: Box::new(source) });
                }
                if layer.bias().is_some() != first.bias().is_some() {
                    return refuse("layers that all have a bias or all have none", format!("another kind in `{name}`"));
                }
            }
            Ok(Self { members: members.to_vec(), weights: vec![1.0; members.len()] })
        })
    }

    /// Sets the weights of the members' errors, which should be those that the budget is shared by; 1 each by default.
    ///
    /// # Errors
    ///
    /// A member without a sensitivity.
    ///
    /// ```
    /// # use dalr::network::{LayerProfile, Sensitivities, SharedInput};
    /// # fn group(group: SharedInput<'_, f32>) -> dalr::Result<SharedInput<'_, f32>> {
    /// group.with_sensitivities(&Sensitivities::new([("query", 0.2), ("key", 0.3), ("value", 1.7)])?)
    /// # }
    /// ```
    pub fn with_sensitivities(mut self, sensitivities: &Sensitivities) -> Result<Self> {
        during("SharedInput::with_sensitivities", || {
            for ((profile, _), weight) in self.members.iter().zip(&mut self.weights) {
                *weight = sensitivities.get(profile.name()).ok_or_else(|| {
                    let expected = "a sensitivity for each layer of the group".into();
                    Error::layers(expected, format!("none for `{}`", profile.name()))
                })?;
            }
            Ok(self)
        })
    }

    /// Solves the joint problem for every rank up to `max_rank`, by the method and from the statistics that the profiles come from.
    ///
    /// # Errors
    ///
    /// As [`LowRankCompressor::decompose`]; profiles that come from another method or other statistics, so that
    /// their errors cannot be compared with those of the group.
    ///
    /// For an example see [`SharedInput`].
    pub fn decompose(
        &self,
        method: &(impl LowRankCompressor<T> + ?Sized),
        stats: &ActivationStats<T>,
        max_rank: usize,
    ) -> Result<SharedDecomposition<T>> {
        during("SharedInput::decompose", || {
            let scales = self.scales();
            let decomposition = method.solve(&self.stack(&scales)?, stats.into(), max_rank)?;
            let energy = |((profile, _), scale): (&(&LayerProfile, &Linear<T>), &f64)| {
                scale * scale * profile.total_energy().unwrap_or(0.0)
            };
            let energies: Vec<f64> = self.members.iter().zip(&scales).map(energy).collect();
            let (total, sum) = (decomposition.total_energy(), energies.iter().sum::<f64>());
            if (sum - total).abs() > SAME * total {
                let expected =
                    format!("profiles from the method and the statistics of the group, energies of {total:e} in all");
                return Err(Error::layers(expected, format!("{sum:e}")));
            }
            let factors = decomposition.truncate(decomposition.max_rank())?.into_layer();
            let full = factors.in_features().min(factors.out_features());
            let mut members = Vec::with_capacity(self.members.len());
            let mut start = 0;
            for ((profile, layer), energy) in self.members.iter().zip(energies) {
                let up = factors.up().subrows(start, layer.out_features());
                let share = if energy > 0.0 { total / energy } else { 0.0 };
                let captured =
                    |(column, part): (faer::ColRef<'_, T>, &f64)| part * share * linalg::squared_norm(column.as_mat());
                let shares: Vec<f64> = up.col_iter().zip(decomposition.explained()).map(captured).collect();
                members.push(Member {
                    name: profile.name().into(),
                    out_features: layer.out_features(),
                    bias: factors.bias().is_some(),
                    losses: tails(&shares, full),
                });
                start += layer.out_features();
            }
            let warnings = decomposition.facts().warnings.clone();
            let profile = SharedProfile { in_features: factors.in_features(), members, warnings };
            let kept = |(_, layer): &(&LayerProfile, &Linear<T>)| layer.bias().map(|bias| bias.to_owned());
            let kept = (!decomposition.corrects_bias()).then(|| self.members.iter().map(kept).collect());
            Ok(SharedDecomposition { decomposition, scales, kept, profile })
        })
    }

    /// `√(wᵢ / eᵢ)`, the largest being 1.
    fn scales(&self) -> Vec<f64> {
        let heaviest = self.weights.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let scale = |((profile, _), weight): (&(&LayerProfile, &Linear<T>), &f64)| {
            let energy = profile.total_energy().filter(|&energy| energy > 0.0)?;
            Some((weight / heaviest).max(NEGLIGIBLE).sqrt() / energy.sqrt())
        };
        let scales: Vec<Option<f64>> = self.members.iter().zip(&self.weights).map(scale).collect();
        let largest = scales.iter().flatten().copied().fold(f64::MIN_POSITIVE, f64::max);
        scales.into_iter().map(|scale| scale.map_or(1.0, |scale| scale / largest)).collect()
    }

    /// All weights, one on top of the other, each times its scale.
    fn stack(&self, scales: &[f64]) -> Result<Linear<T>> {
        let outputs = self.members.iter().map(|(_, layer)| layer.out_features()).sum();
        let inputs = self.members.first().map_or(0, |(_, layer)| layer.in_features());
        let mut weight = linalg::zeros(outputs, inputs)?;
        let mut bias = Vec::new();
        let mut start = 0;
        for ((_, layer), &scale) in self.members.iter().zip(scales) {
            let target = weight.as_mut().subrows_mut(start, layer.out_features());
            scale_into(target, layer.weight(), scale);
            bias.extend(layer.bias().into_iter().flat_map(|bias| bias.iter()).map(|b| T::from_f64(b.to_f64() * scale)));
            start += layer.out_features();
        }
        Linear::new(weight, (!bias.is_empty()).then(|| bias.into_iter().collect()))
    }
}

fn scale_into<T: Scalar>(target: faer::MatMut<'_, T>, source: MatRef<'_, T>, scale: f64) {
    for (to, from) in target.col_iter_mut().zip(source.col_iter()) {
        to.iter_mut().zip(from.iter()).for_each(|(to, from)| *to = T::from_f64(from.to_f64() * scale));
    }
}

/// One solve for all layers of a group, good for every rank.
///
/// For an example see [`SharedInput`].
#[derive(Clone, Debug)]
pub struct SharedDecomposition<T> {
    decomposition: Decomposition<T>,
    scales: Vec<f64>,
    /// The members' biases, where the method keeps them.
    kept: Option<Vec<Option<Col<T>>>>,
    profile: SharedProfile,
}

impl<T: Scalar> SharedDecomposition<T> {
    /// What an allocation needs to know. For an example see [`SharedInput`].
    pub fn profile(&self) -> &SharedProfile {
        &self.profile
    }

    /// The layers of this rank.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`] unless the rank was solved for; [`Error::Overflow`] if a factor leaves the range of `T`.
    ///
    /// For an example see [`SharedInput`].
    pub fn truncate(&self, rank: usize) -> Result<SharedLowRank<T>> {
        during("SharedDecomposition::truncate", || {
            let factors = self.decomposition.truncate(rank)?.into_layer();
            let mut members = Vec::with_capacity(self.scales.len());
            let mut start = 0;
            for (index, (member, &scale)) in self.profile.members.iter().zip(&self.scales).enumerate() {
                let rows = member.out_features;
                let mut up = linalg::zeros(rows, rank)?;
                scale_into(up.as_mut(), factors.up().subrows(start, rows), scale.recip());
                let bias = match &self.kept {
                    Some(kept) => kept.get(index).cloned().flatten(),
                    None => factors.bias().map(|bias| {
                        bias.subrows(start, rows).iter().map(|b| T::from_f64(b.to_f64() / scale)).collect()
                    }),
                };
                let finite = bias.as_ref().is_none_or(|bias: &Col<T>| bias.iter().all(|b| b.to_f64().is_finite()));
                if !finite || linalg::first_non_finite(up.as_ref()).is_some() {
                    return Err(Error::overflow("the factor `up` or the bias of a member"));
                }
                members.push(SharedMember { name: member.name.clone(), up, bias });
                start += rows;
            }
            let down = factors.down().to_owned();
            Ok(SharedLowRank { down, members })
        })
    }
}

/// Compressed layers that share their `down`: `yᵢ = upᵢ · (down · x) + bᵢ`.
///
/// ```
/// # use dalr::network::{LayerProfile, SharedInput, SharedMember};
/// # use dalr::{ActivationStats, Linear, LowRankCompressor, TruncatedSvd};
/// # use faer::Mat;
/// # fn main() -> dalr::Result<()> {
/// # let stats = ActivationStats::new(8);
/// # let layers = [3, 5].map(|s| Linear::new(Mat::from_fn(8, 8, |i, j| ((i * s + j * j) % 11) as f64), None));
/// # let [gate, up] = [layers[0].clone()?, layers[1].clone()?];
/// # let profile = |name, layer| TruncatedSvd::new().decompose(layer, &stats, 8).map(|d| LayerProfile::new(name, &d));
/// # let profiles = [profile("gate", &gate)?, profile("up", &up)?];
/// let group = SharedInput::new(&[(&profiles[0], &gate), (&profiles[1], &up)])?;
/// let shared = group.decompose(&TruncatedSvd::new(), &stats, 8)?.truncate(3)?;
/// let inputs = Mat::from_fn(5, 8, |i, j| (i + j) as f64);
/// let outputs = shared.forward(inputs.as_ref())?; // `down` is applied once
/// // As a layer of its own, with a copy of `down`:
/// let alone = shared.layer(1)?;
/// assert_eq!(alone.down(), shared.down());
/// assert_eq!(outputs[1], alone.forward(inputs.as_ref())?);
/// let members: Vec<&SharedMember<f64>> = shared.members().collect();
/// assert_eq!((members[0].name(), members[1].name(), members[1].bias()), ("gate", "up", None));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct SharedLowRank<T> {
    down: Mat<T>,
    members: Vec<SharedMember<T>>,
}

/// A layer's own half of the factors. For an example see [`SharedLowRank`].
#[derive(Clone, Debug)]
pub struct SharedMember<T> {
    name: String,
    up: Mat<T>,
    bias: Option<Col<T>>,
}

impl<T: Scalar> SharedMember<T> {
    /// The layer's name. For an example see [`SharedLowRank`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The second factor, out × rank. For an example see [`SharedInput`].
    pub fn up(&self) -> MatRef<'_, T> {
        self.up.as_ref()
    }

    /// The bias, of length out. For an example see [`SharedLowRank`].
    pub fn bias(&self) -> Option<faer::ColRef<'_, T>> {
        self.bias.as_ref().map(Col::as_ref)
    }
}

impl<T: Scalar> SharedLowRank<T> {
    /// The factor that all share, rank × in. For an example see [`SharedLowRank`].
    pub fn down(&self) -> MatRef<'_, T> {
        self.down.as_ref()
    }

    /// The members, in the order of the group. For an example see [`SharedLowRank`].
    pub fn members(&self) -> impl ExactSizeIterator<Item = &SharedMember<T>> {
        self.members.iter()
    }

    /// One of the members. For an example see [`SharedInput`].
    pub fn member(&self, index: usize) -> Option<&SharedMember<T>> {
        self.members.get(index)
    }

    /// A member as a layer of its own, with a copy of `down`.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] for a member that there is not.
    ///
    /// For an example see [`SharedLowRank`].
    pub fn layer(&self, index: usize) -> Result<LowRankLinear<T>> {
        let Some(member) = self.members.get(index) else {
            let parameter = "the member";
            let expected = format!("below {}", self.members.len());
            return Err(Error::out_of_range(parameter, expected, index as f64));
        };
        LowRankLinear::new(self.down.clone(), member.up.clone(), member.bias.clone())
    }

    /// Parameters of all members, `k (n + Σ mᵢ)` and the biases. For an example see [`SharedInput`].
    pub fn parameters(&self) -> usize {
        let own = |member: &SharedMember<T>| {
            member.up.nrows() * member.up.ncols() + member.bias.as_ref().map_or(0, |bias| bias.nrows())
        };
        self.down.nrows() * self.down.ncols() + self.members.iter().map(own).sum::<usize>()
    }

    /// The outputs of each member, samples × out, of inputs, samples × in.
    ///
    /// # Errors
    ///
    /// Inputs of another width, without rows, or not finite; outputs that overflow `T`.
    ///
    /// For an example see [`SharedLowRank`].
    pub fn forward(&self, inputs: MatRef<'_, T>) -> Result<Vec<Mat<T>>> {
        during("SharedLowRank::forward", || {
            check_inputs(inputs, self.down.ncols())?;
            let waist = linalg::product(inputs, self.down.transpose(), linalg::threads(0))?;
            let outputs = |member: &SharedMember<T>| {
                let outputs = linalg::product(waist.as_ref(), member.up.transpose(), linalg::threads(0))?;
                finish(outputs, member.bias())
            };
            self.members.iter().map(outputs).collect()
        })
    }
}
