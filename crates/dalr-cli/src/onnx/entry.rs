//! The layers of a model that can be compressed, as linear layers.

use dalr::Linear;
use dalr::factors::Form;
use dalr::interop::safetensors::FloatDtype;
use dalr_onnx::{Axis, Convolution, Layer as GraphLayer, LayerKind, Model};

use crate::error::Result;
use crate::layer::Layer;

/// A weight, and the layers of the graph that have it: usually one.
pub struct Entry<'a> {
    pub model: &'a Model,
    pub users: Vec<&'a GraphLayer>,
    /// The whole layer, with the name of the first user. For a convolution of several groups, its
    /// inputs are those of one group.
    pub layer: Layer,
    /// The index of the first group's file in the folder of the unfinished run.
    pub file: usize,
}

impl<'a> Entry<'a> {
    pub fn new(model: &'a Model, users: Vec<&'a GraphLayer>, file: usize) -> Self {
        let first = users[0];
        let layer = Layer {
            name: first.name.clone(),
            out_features: first.outputs,
            in_features: first.inputs,
            dtype: FloatDtype::F32,
            has_bias: first.has_bias,
            input: first.input.clone(),
        };
        Self { model, users, layer, file }
    }

    /// Returns the number of groups, 1 for a linear layer.
    pub fn groups(&self) -> usize {
        self.users[0].groups()
    }

    /// Returns a group of the layer as a layer of its own.
    pub fn piece(&self, group: usize) -> Layer {
        let groups = self.groups();
        let name = if groups == 1 { self.layer.name.clone() } else { format!("{} (group {group})", self.layer.name) };
        Layer { name, out_features: self.layer.out_features / groups, ..self.layer.clone() }
    }

    /// Returns the values that the layer reads, without repetitions.
    pub fn values(&self) -> Vec<&'a str> {
        let mut values: Vec<&str> = self.users.iter().map(|user| user.input.as_str()).collect();
        values.sort_unstable();
        values.dedup();
        values
    }

    /// Returns the convolution's window; `None` for a linear layer.
    pub fn convolution(&self) -> Option<&'a Convolution> {
        match &self.users[0].kind {
            LayerKind::Convolution(convolution) => Some(convolution),
            _ => None,
        }
    }

    /// Returns whether each input of a linear layer is a row of a value, instead of a column.
    pub fn reads_rows(&self) -> bool {
        matches!(&self.users[0].kind, LayerKind::Linear { input_axis: Axis::Last, .. })
    }

    /// Returns the linear layer of each group.
    pub fn linears(&self) -> Result<Vec<Linear<f32>>> {
        Ok(self.model.linear_layers(&self.layer.name)?)
    }

    /// Returns the largest rank that is useful in this form of storage, at least 1.
    pub fn useful_rank(&self, form: Form) -> usize {
        let shape = (self.layer.out_features / self.groups(), self.layer.in_features);
        let saving = (form.break_even(shape).ceil() as usize).saturating_sub(1);
        saving.clamp(1, shape.0.min(shape.1))
    }
}
