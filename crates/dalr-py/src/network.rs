//! One budget for many layers.

use std::collections::BTreeMap;

use dalr::network::{Allocator, Budget, Choice, Progress, Sensitivities, Strategy};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use serde::{Deserialize, Serialize};

use crate::array::{each, mismatch};
use crate::compress::{Choose, Decomposition};
use crate::error::OrRaise;
use crate::pickle;
use crate::units::HiddenUnits;

/// A layer's name, shape and error at every rank, without matrices.
#[pyclass(module = "dalr", frozen, eq, from_py_object)]
#[derive(Clone, PartialEq)]
pub(crate) struct LayerProfile(dalr::network::LayerProfile);

#[pymethods]
impl LayerProfile {
    /// Create the profile of a decomposed layer, or of a convolution from the decompositions of its
    /// groups. `calls` says how often the network runs the layer for one sample.
    #[new]
    #[pyo3(signature = (name, *decompositions, calls=1))]
    fn new(name: &str, decompositions: Vec<Bound<'_, Decomposition>>, calls: u64) -> PyResult<Self> {
        let [first, others @ ..] = &decompositions[..] else {
            return Err(PyValueError::new_err("LayerProfile: expected at least one decomposition, got none"));
        };
        let profile = each!(&first.get().inner, first => match others {
            [] => dalr::network::LayerProfile::new(name, first),
            _ => of_groups(name, first, others)?,
        });
        Ok(Self(profile.with_calls(calls)))
    }

    /// The profile of an out × in layer that stays original, but counts in the budget.
    #[staticmethod]
    #[pyo3(signature = (name, shape, bias, calls=1))]
    fn original(name: &str, shape: (usize, usize), bias: bool, calls: u64) -> PyResult<Self> {
        Ok(Self(dalr::network::LayerProfile::original(name, shape, bias).or_raise()?.with_calls(calls)))
    }

    /// The name of the layer.
    #[getter]
    fn name(&self) -> &str {
        self.0.name()
    }

    /// The largest rank that was solved for; 0 for a layer that stays original.
    #[getter]
    fn max_rank(&self) -> usize {
        self.0.max_rank()
    }

    /// The parameters of the original layer, bias included.
    #[getter]
    fn parameters(&self) -> u64 {
        self.0.parameters()
    }

    /// The multiply–adds of the original layer for one sample of the network.
    #[getter]
    fn multiply_adds(&self) -> u64 {
        self.0.multiply_adds()
    }

    /// The eigenvalues divided by their total, descending.
    #[getter]
    fn explained_energy(&self) -> Vec<f64> {
        self.0.explained_energy().to_vec()
    }

    /// The loss at this rank, a squared relative error; None for a rank that was not solved for.
    fn loss(&self, rank: usize) -> Option<f64> {
        self.0.loss(rank)
    }

    /// The predicted error at this rank.
    fn relative_error(&self, rank: usize) -> Option<f64> {
        self.0.relative_error(rank)
    }

    #[staticmethod]
    fn _from_bytes(data: &[u8]) -> PyResult<Self> {
        pickle::read(data).map(Self)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<pickle::Reduced<'py>> {
        pickle::reduce(slf, &slf.get().0)
    }

    fn __repr__(&self) -> String {
        format!("LayerProfile('{}', {} parameters, max_rank {})", self.0.name(), self.0.parameters(), self.0.max_rank())
    }
}

fn of_groups<T: Choose>(
    name: &str,
    first: &dalr::Decomposition<T>,
    others: &[Bound<'_, Decomposition>],
) -> PyResult<dalr::network::LayerProfile> {
    let mut groups = vec![first.clone()];
    for other in others.iter().map(|other| &other.get().inner) {
        let group = T::decomposition(other).ok_or_else(|| mismatch("all groups", T::NAME, other.dtype()))?;
        groups.push(group.clone());
    }
    dalr::network::LayerProfile::of_groups(name, &groups).or_raise()
}

/// The hidden units between two layers: the error with every number of them, without matrices.
#[pyclass(module = "dalr", frozen, eq, from_py_object)]
#[derive(Clone, PartialEq)]
pub(crate) struct UnitProfile(dalr::network::UnitProfile);

#[pymethods]
impl UnitProfile {
    /// Create the profile of the units between two layers, given their names, and that of the gate
    /// if the units are products with its outputs.
    #[new]
    #[pyo3(signature = (first, second, units, *, gate=None))]
    fn new(first: &str, second: &str, units: &HiddenUnits, gate: Option<&str>) -> Self {
        let profile = each!(&units.inner, units => dalr::network::UnitProfile::new(first, second, units));
        Self(match gate {
            Some(gate) => profile.with_gate(gate),
            None => profile,
        })
    }

    /// The number of units of the original layers.
    #[getter]
    fn units(&self) -> usize {
        self.0.units()
    }

    /// The loss of the second layer with this many units, a squared relative error; None for a
    /// number that was not solved for.
    fn loss(&self, units: usize) -> Option<f64> {
        self.0.loss(units)
    }

    /// The predicted error of the second layer with this many units.
    fn relative_error(&self, units: usize) -> Option<f64> {
        self.0.relative_error(units)
    }

    #[staticmethod]
    fn _from_bytes(data: &[u8]) -> PyResult<Self> {
        pickle::read(data).map(Self)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<pickle::Reduced<'py>> {
        pickle::reduce(slf, &slf.get().0)
    }
}

/// A budget allocated to the layers of a network.
///
/// Print it for a summary.
#[pyclass(module = "dalr", frozen, eq)]
#[derive(PartialEq)]
pub(crate) struct Plan(dalr::network::Plan);

/// The choice for one layer, with its cost and its error.
#[pyclass(module = "dalr", frozen, get_all)]
#[derive(Serialize, Deserialize)]
pub(crate) struct LayerPlan {
    /// Name of the layer.
    name: String,
    /// The rank; None if the layer stays original, or if hidden units are left out.
    rank: Option<usize>,
    /// The number of hidden units that are kept before or behind the layer; None if all are.
    hidden_units: Option<usize>,
    /// The reason why the layer stays original; None if it does not.
    reason: Option<String>,
    /// Number of outputs.
    out_features: usize,
    /// Number of inputs.
    in_features: usize,
    /// The weight of the loss in the objective.
    weight: f64,
    /// The loss, a squared relative error.
    loss: f64,
    /// The predicted error; None without samples, 0 for an original layer.
    relative_error: Option<f64>,
    /// Parameters of the original layer.
    parameters_before: u64,
    /// Parameters of the layer as planned.
    parameters_after: u64,
    /// Multiply–adds of the original layer for one sample.
    multiply_adds_before: u64,
    /// Multiply–adds of the layer as planned.
    multiply_adds_after: u64,
    /// Warnings about the layer.
    warnings: Vec<String>,
    #[pyo3(name = "_text")]
    text: String,
}

#[pymethods]
impl LayerPlan {
    fn __repr__(&self) -> String {
        format!("{}  {}", self.name, self.text)
    }

    #[staticmethod]
    fn _from_bytes(data: &[u8]) -> PyResult<Self> {
        pickle::read(data)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<pickle::Reduced<'py>> {
        pickle::reduce(slf, slf.get())
    }
}

#[pymethods]
impl Plan {
    /// The plan for ranks that the caller chose. The other layers stay original.
    #[staticmethod]
    fn of_ranks(profiles: Vec<LayerProfile>, ranks: BTreeMap<String, usize>) -> PyResult<Self> {
        Ok(Self(dalr::network::Plan::of_ranks(&inner(profiles), &ranks).or_raise()?))
    }

    /// The ranks of the compressed layers, by name.
    #[getter]
    fn ranks(&self) -> BTreeMap<String, usize> {
        self.0.ranks()
    }

    /// The numbers of kept hidden units, by the position of their profile in the arguments of
    /// `allocate`. A pair that keeps all of them has no entry.
    #[getter]
    fn hidden_units(&self) -> BTreeMap<usize, usize> {
        let kept = |layer: &dalr::network::LayerPlan| match layer.choice {
            Choice::HiddenUnits { pair, kept } => Some((pair, kept)),
            _ => None,
        };
        self.0.layers.iter().filter_map(kept).collect()
    }

    /// The choices for all layers.
    #[getter]
    fn layers(&self) -> Vec<LayerPlan> {
        let plan = |layer: &dalr::network::LayerPlan| LayerPlan {
            name: layer.name.clone(),
            rank: if let Choice::Rank(rank) = layer.choice { Some(rank) } else { None },
            hidden_units: if let Choice::HiddenUnits { kept, .. } = layer.choice { Some(kept) } else { None },
            reason: layer.reason.map(|reason| reason.to_string()),
            out_features: layer.out_features,
            in_features: layer.in_features,
            weight: layer.weight,
            loss: layer.loss,
            relative_error: layer.relative_error,
            parameters_before: layer.parameters_before,
            parameters_after: layer.parameters_after,
            multiply_adds_before: layer.multiply_adds_before,
            multiply_adds_after: layer.multiply_adds_after,
            warnings: layer.warnings.iter().map(ToString::to_string).collect(),
            text: layer.to_string(),
        };
        self.0.layers.iter().map(plan).collect()
    }

    /// The parameters of the original layers, biases included.
    #[getter]
    fn parameters_before(&self) -> u64 {
        self.0.parameters_before()
    }

    /// The parameters of the layers as planned, biases included.
    #[getter]
    fn parameters_after(&self) -> u64 {
        self.0.parameters_after()
    }

    /// The multiply–adds of the original layers for one sample.
    #[getter]
    fn multiply_adds_before(&self) -> u64 {
        self.0.multiply_adds_before()
    }

    /// The multiply–adds of the layers as planned for one sample.
    #[getter]
    fn multiply_adds_after(&self) -> u64 {
        self.0.multiply_adds_after()
    }

    /// The sum of the weighted losses, or the parameters if the budget limits an error.
    #[getter]
    fn objective(&self) -> f64 {
        self.0.objective
    }

    /// The most that another allocation could improve the objective.
    #[getter]
    fn gap(&self) -> f64 {
        self.0.gap()
    }

    /// Warnings about the plan; those about single layers are with the layers.
    #[getter]
    fn warnings(&self) -> Vec<String> {
        self.0.warnings.iter().map(ToString::to_string).collect()
    }

    #[staticmethod]
    fn _from_bytes(data: &[u8]) -> PyResult<Self> {
        pickle::read(data).map(Self)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<pickle::Reduced<'py>> {
        pickle::reduce(slf, &slf.get().0)
    }

    fn __repr__(&self) -> String {
        self.0.to_string()
    }
}

fn inner(profiles: Vec<LayerProfile>) -> Vec<dalr::network::LayerProfile> {
    profiles.into_iter().map(|profile| profile.0).collect()
}

/// A strategy as an argument: a name, or the sensitivity of each layer.
#[derive(FromPyObject)]
pub(crate) enum AnyStrategy {
    Name(String),
    Sensitivities(BTreeMap<String, f64>),
}

/// Allocate a budget to layers: choose a rank for each, or the original layer, or fewer hidden units
/// between two of them.
///
/// The budget is one of: `keep`, a fraction of the parameters; `parameters`; `keep_multiply_adds`, a
/// fraction; `multiply_adds`; `error`, of all layers together; `layer_error`, of each; `rank`. The
/// strategy is "uniform", "energy", or a dict with the sensitivity of each layer.
///
/// `hidden_units` has a profile for each pair of layers that may lose the units between them. The
/// loss is then that of the second layer, and counts with its sensitivity.
#[pyfunction]
#[pyo3(signature = (
    profiles, *, hidden_units=None, keep=None, parameters=None, keep_multiply_adds=None, multiply_adds=None, error=None,
    layer_error=None, rank=None, strategy=None, rank_multiple=1, min_rank=1, limits=None, untouched=None,
))]
#[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
pub(crate) fn allocate(
    profiles: Vec<LayerProfile>,
    hidden_units: Option<Vec<UnitProfile>>,
    keep: Option<f64>,
    parameters: Option<u64>,
    keep_multiply_adds: Option<f64>,
    multiply_adds: Option<u64>,
    error: Option<f64>,
    layer_error: Option<f64>,
    rank: Option<usize>,
    strategy: Option<AnyStrategy>,
    rank_multiple: usize,
    min_rank: usize,
    limits: Option<BTreeMap<String, (usize, usize)>>,
    untouched: Option<Vec<String>>,
) -> PyResult<Plan> {
    let budgets = [
        keep.map(Budget::ParameterFraction),
        parameters.map(Budget::Parameters),
        keep_multiply_adds.map(Budget::MultiplyAddFraction),
        multiply_adds.map(Budget::MultiplyAdds),
        error.map(Budget::TotalError),
        layer_error.map(Budget::LayerError),
        rank.map(Budget::Rank),
    ];
    let given: Vec<Budget> = budgets.into_iter().flatten().collect();
    let [budget] = given[..] else {
        let names = "keep, parameters, keep_multiply_adds, multiply_adds, error, layer_error, rank";
        return Err(PyValueError::new_err(format!("expected one budget ({names}), got {}", given.len())));
    };
    let strategy = match strategy {
        None => Strategy::Uniform,
        Some(AnyStrategy::Name(name)) if name == "uniform" => Strategy::Uniform,
        Some(AnyStrategy::Name(name)) if name == "energy" => Strategy::Energy,
        Some(AnyStrategy::Name(name)) => {
            let expected = "\"uniform\", \"energy\" or a dict of sensitivities";
            return Err(PyValueError::new_err(format!("expected the strategy {expected}, got {name:?}")));
        }
        Some(AnyStrategy::Sensitivities(all)) => Strategy::Sensitivity(Sensitivities::new(all).or_raise()?),
    };
    let mut allocator = Allocator::new(budget).with_strategy(strategy);
    allocator = allocator.with_rank_multiple(rank_multiple).with_min_rank(min_rank);
    for (layer, (least, most)) in limits.unwrap_or_default() {
        allocator = allocator.with_limits(layer, least, most);
    }
    for layer in untouched.unwrap_or_default() {
        allocator = allocator.with_untouched(layer);
    }
    let units: Vec<_> = hidden_units.unwrap_or_default().into_iter().map(|units| units.0).collect();
    Ok(Plan(allocator.allocate_joint(&inner(profiles), &[], &units).or_raise()?))
}

/// Measure the sensitivity of each layer: how much the network's loss grows with the layer's squared
/// relative error.
///
/// `evaluate` gets a dict of ranks, compresses these layers, leaves all others original, and returns
/// the loss of the network. With `hidden_units`, the sensitivities to fewer units are measured too:
/// `evaluate` then gets a second dict, of numbers of units by the position of the pair. `floor`
/// raises the smallest sensitivities of layers to this fraction of their mean.
#[pyfunction]
#[pyo3(signature = (profiles, plan, evaluate, *, hidden_units=None, floor=0.05))]
pub(crate) fn measure_sensitivities(
    py: Python<'_>,
    profiles: Vec<LayerProfile>,
    plan: &Plan,
    evaluate: &Bound<'_, PyAny>,
    hidden_units: Option<Vec<UnitProfile>>,
    floor: f64,
) -> PyResult<BTreeMap<String, f64>> {
    let with_units = hidden_units.is_some();
    let units: Vec<_> = hidden_units.into_iter().flatten().map(|UnitProfile(profile)| profile).collect();
    let loss = |ranks: &BTreeMap<String, usize>, units: &BTreeMap<usize, usize>| -> PyResult<f64> {
        py.check_signals()?;
        let ranks = ranks.clone();
        if with_units { evaluate.call1((ranks, units.clone())) } else { evaluate.call1((ranks,)) }?.extract()
    };
    let (mut evaluations, profiles) = (Vec::new(), inner(profiles));
    let of_ranks = |ranks: &BTreeMap<String, usize>| loss(ranks, &BTreeMap::new());
    // Nothing cancels the measurements.
    let measured =
        Sensitivities::measure(&profiles, &plan.0, &mut evaluations, of_ranks, &mut Progress::ignore).or_raise()?;
    // The first evaluation is that of the original network.
    let Some((measured, original)) = measured.zip(evaluations.first()) else { return Ok(BTreeMap::new()) };
    let mut measured = measured.with_floor(floor).or_raise()?;
    let of_units = |pair: usize, kept: usize| loss(&BTreeMap::new(), &BTreeMap::from([(pair, kept)]));
    measured.measure_units(&units, &plan.0, original.value, of_units, &mut Progress::ignore).or_raise()?;
    Ok(measured.into())
}
