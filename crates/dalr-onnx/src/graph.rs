//! A model's graph: nodes, values, and what the model says of them.

use core::ops::Range;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::element::ElementType;
use crate::functions::Operator;
use crate::stored_tensor::Stored;

/// The name, element type and shape of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ValueInfo {
    /// The name of the value.
    pub name: String,
    /// The element type; `None` if the value is no tensor, or if the model does not say.
    pub element: Option<ElementType>,
    /// The dimensions; `None` if not even their number is known.
    pub shape: Option<Vec<Dimension>>,
}

/// One dimension of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dimension {
    /// A number that never changes.
    Fixed(usize),
    /// A number that is known when the model runs. All dimensions of this name are equal.
    Named(String),
    /// A number that is known when the model runs.
    Unknown,
}

#[derive(Clone, Debug)]
pub struct Node {
    /// The field of the graph, with its tag.
    pub whole: Range<usize>,
    /// The message.
    pub message: Range<usize>,
    pub name: String,
    pub operator: String,
    pub domain: String,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    pub attributes: Vec<(String, Attribute)>,
    /// Values of the main graph that its subgraphs read.
    pub captured: Vec<String>,
    /// Nodes of its subgraphs: name (or output) and operator.
    pub inner: Vec<(String, String)>,
}

#[derive(Clone, Debug)]
pub enum Attribute {
    Float(f32),
    Int(i64),
    Ints(Vec<i64>),
    Text(String),
    Tensor(Arc<Stored>),
    Other,
}

/// The main graph of a model.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub message: Range<usize>,
    pub nodes: Vec<Node>,
    /// By name: the field of the graph, and the tensor.
    pub initializers: HashMap<String, (Range<usize>, Arc<Stored>)>,
    /// With the fields of the graph.
    pub inputs: Vec<(Range<usize>, ValueInfo)>,
    pub outputs: Vec<ValueInfo>,
    /// Types of other values, with the fields of the graph.
    pub values: Vec<(Range<usize>, ValueInfo)>,
    /// Names of values that annotations mention.
    pub annotated: HashSet<String>,
    /// Every name of a value or node in any graph.
    pub names: HashSet<String>,
    /// Tensors with external data in any graph.
    pub external: Vec<Arc<Stored>>,
    /// Operators of all graphs, with the number of nodes.
    pub calls: HashMap<Operator, u64>,
}

impl Node {
    /// Whether this is an operator of ONNX itself, with this name.
    pub fn is(&self, operator: &str) -> bool {
        self.is_standard() && self.operator == operator
    }

    pub fn is_standard(&self) -> bool {
        matches!(self.domain.as_str(), "" | "ai.onnx")
    }

    pub fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes.iter().find(|(found, _)| found == name).map(|(_, value)| value)
    }

    pub fn int(&self, name: &str, default: i64) -> i64 {
        if let Some(Attribute::Int(number)) = self.attribute(name) { *number } else { default }
    }

    pub fn float(&self, name: &str, default: f32) -> f32 {
        if let Some(Attribute::Float(number)) = self.attribute(name) { *number } else { default }
    }

    /// Returns the name of this input; `None` if it is left out.
    pub fn input(&self, index: usize) -> Option<&str> {
        self.inputs.get(index).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// Returns the name of its only output; `None` if there are several.
    pub fn output(&self) -> Option<&str> {
        match &self.outputs[..] {
            [output, rest @ ..] if rest.iter().all(String::is_empty) => Some(output),
            _ => None,
        }
    }
}
