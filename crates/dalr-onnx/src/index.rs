//! Who computes and who reads each value of the main graph, and which values never change.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::graph::{Attribute, Graph, Node};
use crate::stored_tensor::Stored;
use crate::units::is_elementwise;

/// Lookups by the name of a value.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// The node that computes a value.
    pub producers: HashMap<String, usize>,
    /// The nodes that read a value, also those whose subgraphs do.
    pub readers: HashMap<String, Vec<usize>>,
    /// Values that must stay: outputs of the model, and those that annotations mention.
    pub pinned: HashSet<String>,
    pub constants: HashMap<String, Constant>,
    /// Number of dimensions of the values whose type the model states.
    pub ranks: HashMap<String, usize>,
}

/// A value that never changes.
#[derive(Clone, Debug)]
pub struct Constant {
    pub tensor: Arc<Stored>,
    /// Whether it is a matrix, and the transpose of the stored one.
    pub transposed: bool,
}

impl Constant {
    /// Returns the dimensions of the value.
    pub fn dims(&self) -> Vec<usize> {
        let mut dims = self.tensor.dims.clone();
        if self.transposed {
            dims.reverse();
        }
        dims
    }
}

impl Index {
    pub fn new(graph: &Graph) -> Self {
        let mut index = Self::default();
        let infos = graph.inputs.iter().map(|(_, info)| info).chain(&graph.outputs);
        for info in infos.chain(graph.values.iter().map(|(_, info)| info)) {
            if let Some(shape) = &info.shape {
                index.ranks.insert(info.name.clone(), shape.len());
            }
        }
        index.pinned.extend(graph.outputs.iter().map(|output| output.name.clone()));
        index.pinned.extend(graph.annotated.iter().cloned());
        for (name, (_, tensor)) in &graph.initializers {
            index.constants.insert(name.clone(), Constant { tensor: tensor.clone(), transposed: false });
        }
        for (id, node) in graph.nodes.iter().enumerate() {
            for value in node.inputs.iter().chain(&node.captured).filter(|value| !value.is_empty()) {
                let readers = index.readers.entry(value.clone()).or_default();
                if readers.last() != Some(&id) {
                    readers.push(id);
                }
            }
            for value in node.outputs.iter().filter(|value| !value.is_empty()) {
                index.producers.insert(value.clone(), id);
            }
            let Some(output) = node.output() else { continue };
            if let Some(rank) = index.rank_after(node) {
                index.ranks.entry(output.into()).or_insert(rank);
            }
            let input = node.input(0).and_then(|input| index.constants.get(input)).cloned();
            let constant = match (node.attribute("value"), input) {
                (Some(Attribute::Tensor(tensor)), _) if node.is("Constant") => {
                    Some(Constant { tensor: tensor.clone(), transposed: false })
                }
                (_, Some(input)) if node.is("Identity") => Some(input),
                (_, Some(input)) if node.is("Transpose") && input.tensor.dims.len() == 2 => {
                    match node.attribute("perm") {
                        Some(Attribute::Ints(order)) if order[..] == [0, 1] => Some(input),
                        _ => Some(Constant { transposed: !input.transposed, ..input }),
                    }
                }
                _ => None,
            };
            if let Some(constant) = constant {
                index.constants.insert(output.into(), constant);
            }
        }
        index
    }

    fn rank(&self, value: &str) -> Option<usize> {
        let constant = self.constants.get(value).map(|constant| constant.tensor.dims.len());
        constant.or_else(|| self.ranks.get(value).copied())
    }

    /// Returns the number of dimensions of the node's output, for the operators between layers.
    fn rank_after(&self, node: &Node) -> Option<usize> {
        match node.operator.as_str() {
            _ if !node.is_standard() => None,
            "Gemm" => Some(2),
            "BatchNormalization" | "LayerNormalization" | "Softmax" | "Transpose" | "Concat" => {
                self.rank(node.input(0)?)
            }
            "Conv" => self.rank(node.input(1)?),
            "MatMul" => {
                let ranks = (self.rank(node.input(0)?)?, self.rank(node.input(1)?)?);
                // A vector loses its dimension.
                match ranks {
                    (1, other) | (other, 1) => other.checked_sub(1),
                    (left, right) => Some(left.max(right)),
                }
            }
            operator if is_elementwise(operator) => {
                let ranks: Option<Vec<usize>> = node.inputs.iter().map(|input| self.rank(input)).collect();
                ranks?.into_iter().max()
            }
            _ => None,
        }
    }

    /// Returns the only reader of a value that nothing else needs.
    pub fn only_reader(&self, value: &str) -> Option<usize> {
        match self.readers.get(value).map(Vec::as_slice) {
            Some(&[reader]) if !self.pinned.contains(value) => Some(reader),
            _ => None,
        }
    }
}
