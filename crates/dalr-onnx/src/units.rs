//! Finds pairs of layers whose hidden units can be made fewer, and makes them fewer.

use std::collections::{BTreeSet, HashMap, HashSet};

use dalr::compress::SelectedUnits;
use dalr::{Linear, Scalar};

use crate::graph::Graph;
use crate::index::Index;
use crate::layer::{Layer, LayerKind};
use crate::model::Model;
use crate::{Error, Result};

/// Nodes between two layers. Activation functions take one to eight.
const MOST_NODES: usize = 32;

/// Two layers around an activation function, `y = W₂ φ(W₁ x + b₁) + b₂`, or two gated ones and the
/// next, `y = W₂ (φ(W_g x + b_g) ∘ (W_u x + b_u)) + b₂`. Nothing else reads what is between them.
///
/// For [`HiddenUnits`](dalr::compress::HiddenUnits), with statistics of the value `hidden`. The
/// layers of convolutions are pairs, too, also with pooling between them; each of them has one
/// group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnitPair {
    /// The layer before the activation function.
    pub first: String,
    /// The other layer before it, if the units are gated.
    pub gate: Option<String>,
    /// The layer that reads the hidden units.
    pub second: String,
    /// The value that the second layer reads.
    pub hidden: String,
    /// Number of hidden units: outputs of the first layer.
    pub units: usize,
    /// Inputs of the second layer for each unit: 1, or the entries of its kernel.
    pub inputs_per_unit: usize,
    /// Values whose size depends on the number of units.
    pub(crate) between: Vec<String>,
}

pub(crate) fn find(graph: &Graph, index: &Index, layers: &[Layer]) -> Vec<UnitPair> {
    let by_output: HashMap<&str, &Layer> = layers.iter().map(|layer| (layer.output.as_str(), layer)).collect();
    layers.iter().filter_map(|second| pair(graph, index, &by_output, second)).collect()
}

fn pair(graph: &Graph, index: &Index, by_output: &HashMap<&str, &Layer>, second: &Layer) -> Option<UnitPair> {
    let (mut values, mut nodes, mut firsts) = (BTreeSet::new(), HashSet::new(), Vec::new());
    let mut open = vec![second.input.as_str()];
    while let Some(value) = open.pop() {
        if !values.insert(value) {
            continue;
        }
        if let Some(&layer) = by_output.get(value) {
            firsts.push(layer);
            continue;
        }
        let &id = index.producers.get(value)?;
        let node = graph.nodes.get(id).filter(|node| node.is_standard() && node.output().is_some())?;
        let is_pooling = is_pooling(&node.operator) && matches!(second.kind, LayerKind::Convolution(_));
        if !nodes.insert(id) || nodes.len() > MOST_NODES || !(is_elementwise(&node.operator) || is_pooling) {
            return None;
        }
        for input in node.inputs.iter().filter(|input| !input.is_empty()) {
            match index.constants.get(input) {
                Some(constant) if constant.tensor.len() == 1 => {}
                Some(_) => return None,
                None => open.push(input),
            }
        }
    }
    let is_inside = |id: &usize| nodes.contains(id) || second.parts.nodes.first() == Some(id);
    let is_free = |value: &&str| {
        let readers = index.readers.get(*value).map(Vec::as_slice).unwrap_or_default();
        !index.pinned.contains(*value) && readers.iter().all(is_inside)
    };
    if !values.iter().all(is_free) {
        return None;
    }
    let (first, gate) = match firsts[..] {
        [first] => (first, None),
        [first, gate] => (first, Some(gate)),
        _ => return None,
    };
    let units = first.outputs;
    if gate.is_some_and(|gate| gate.outputs != units) || units == 0 {
        return None;
    }
    let inputs_per_unit = second.inputs / units;
    let fits = |first: &Layer| match (&first.kind, &second.kind) {
        (LayerKind::Linear { output_axis, .. }, LayerKind::Linear { input_axis, .. }) => {
            output_axis == input_axis && second.inputs == units
        }
        (LayerKind::Convolution(first), LayerKind::Convolution(second_kind)) => {
            let one_group = first.groups == 1 && second_kind.groups == 1;
            let (height, width) = second_kind.kernel;
            let channels_match = inputs_per_unit == height * width && second.inputs == units * inputs_per_unit;
            one_group && first.dimensions == second_kind.dimensions && channels_match
        }
        _ => false,
    };
    if !fits(first) || !gate.is_none_or(fits) {
        return None;
    }
    Some(UnitPair {
        first: first.name.clone(),
        gate: gate.map(|gate| gate.name.clone()),
        second: second.name.clone(),
        hidden: second.input.clone(),
        units,
        inputs_per_unit,
        between: values.into_iter().map(String::from).collect(),
    })
}

/// Whether every entry of the output depends on the entries at the same place only.
pub(crate) fn is_elementwise(operator: &str) -> bool {
    const OPERATORS: &str = "Abs Add Celu Clip Cos Div Dropout Elu Erf Exp Gelu HardSigmoid HardSwish Identity LeakyRelu Log Max \
                             Min Mish Mul Neg PRelu Pow Reciprocal Relu Selu Sigmoid Sign Sin Softplus Softsign Sqrt Sub Sum \
                             Swish Tan Tanh ThresholdedRelu";
    OPERATORS.split(' ').any(|known| known == operator)
}

/// Whether the channels of images stay apart.
fn is_pooling(operator: &str) -> bool {
    matches!(operator, "AveragePool" | "MaxPool" | "GlobalAveragePool" | "GlobalMaxPool")
}

impl Model {
    /// Replaces the layers of a pair by those with fewer hidden units. `second` is the name of its
    /// second layer. The nodes between the layers stay.
    ///
    /// # Errors
    ///
    /// [`Error::Layer`] if the layer is not the second one of a pair; if one of the layers is
    /// replaced already; for layers of other shapes, or numbers that the element type cannot hold.
    /// The model is then unchanged.
    pub fn replace_units<T: Scalar>(&mut self, second: &str, by: &SelectedUnits<T>) -> Result<()> {
        let pair = self.unit_pairs().iter().find(|pair| pair.second == second).cloned();
        let pair = pair.ok_or_else(|| Error::layer(second, "it does not read hidden units"))?;
        let kept = by.first.out_features();
        if pair.gate.is_some() != by.gate.is_some() {
            return Err(Error::layer(second, "the pair and its replacement are not both gated"));
        }
        let gate = pair.gate.as_deref().zip(by.gate.as_ref());
        let (first, last) = ((pair.first.as_str(), &by.first), (second, &by.second));
        let layers: Vec<(&str, &Linear<T>)> = [first].into_iter().chain(gate).chain([last]).collect();
        let mut edits = self.edits.clone();
        for (name, linear) in layers {
            let layer = self.layer(name)?;
            let expected = match name == second {
                true => (layer.outputs, kept * pair.inputs_per_unit),
                false => (kept, layer.inputs),
            };
            if (linear.out_features(), linear.in_features()) != expected {
                let (m, n) = expected;
                return Err(Error::layer(name, format!("expected a weight of {m} × {n}, got {linear}")));
            }
            self.rewrite_smaller(&mut edits, layer, linear)?;
        }
        let infos = self.graph.values.iter().filter(|(_, info)| pair.between.contains(&info.name));
        edits.left_out.extend(infos.map(|(field, _)| (field.start, field.clone())));
        self.edits = edits;
        Ok(())
    }
}
