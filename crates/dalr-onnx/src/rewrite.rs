//! Replaces layers by compressed ones.

use std::sync::Arc;

use dalr::factors::PivotedLinear;
use dalr::faer::{Col, ColRef, Mat, MatRef};
use dalr::{Linear, LowRankLinear, Scalar};

use crate::element::ElementType;
use crate::graph::Node;
use crate::layer::{Form, Layer, LayerKind};
use crate::model::{Added, Edits, Model};
use crate::stored_tensor::{Content, encode};
use crate::wire::{fields, put_bytes, put_integer};
use crate::{Error, Result};

/// What takes the place of a layer: one for each group, as
/// [`Model::linear_layers`](crate::Model::linear_layers) returns them.
#[derive(Clone, Debug)]
pub enum Replacement<T> {
    /// Two products of matrices, or a convolution with the original kernel and one of 1 × 1.
    Factors(Vec<LowRankLinear<T>>),
    /// The same for pivoted storage, then `Concat` and `Gather` along the axis of the outputs.
    Pivoted(Vec<PivotedLinear<T>>),
}

impl Model {
    /// Replaces a layer by a compressed one. The layer's input and output keep their names; weights
    /// that nothing else reads are removed, and so are the types of values that are no longer
    /// computed. Factors are stored in the element type of the weight.
    ///
    /// Equal tensors are stored once: to compress a weight that several layers share, replace each
    /// by the same factors.
    ///
    /// # Errors
    ///
    /// [`Error::Layer`] if there is no such layer or it is replaced already; for factors of another
    /// shape or number, groups of different ranks, or numbers that the element type cannot hold;
    /// for a pivoted layer if [`Layer::can_be_pivoted`] is false. The model is then unchanged.
    pub fn replace<T: Scalar>(&mut self, layer: &str, by: &Replacement<T>) -> Result<()> {
        let layer = self.layer(layer)?.clone();
        let mut edits = self.edits.clone();
        let mut writer = Writer::new(self, &mut edits, &layer)?;
        match by {
            Replacement::Factors(groups) => writer.factors(groups)?,
            Replacement::Pivoted(groups) => writer.pivoted(groups)?,
        }
        writer.finish();
        self.edits = edits;
        Ok(())
    }
}

impl Model {
    /// Replaces a layer by one of the same kind with another number of inputs or outputs.
    pub(crate) fn rewrite_smaller<T: Scalar>(&self, edits: &mut Edits, layer: &Layer, by: &Linear<T>) -> Result<()> {
        let mut writer = Writer::new(self, edits, layer)?;
        writer.product(&stacked(core::slice::from_ref(by)), "smaller", true, &layer.input, &layer.output)?;
        writer.finish();
        Ok(())
    }
}

/// Writes the nodes that replace one layer.
struct Writer<'a> {
    model: &'a Model,
    edits: &'a mut Edits,
    layer: &'a Layer,
    node: &'a Node,
    external: bool,
    /// Fields of the graph.
    nodes: Vec<u8>,
}

/// A product of the layer's kind: weight, outputs × inputs, and bias of all groups.
struct Product<T> {
    weight: Mat<T>,
    bias: Option<Col<T>>,
}

impl<'a> Writer<'a> {
    fn new(model: &'a Model, edits: &'a mut Edits, layer: &'a Layer) -> Result<Self> {
        if !edits.replaced.insert(layer.name.clone()) {
            return Err(Error::layer(&layer.name, "it has been replaced already"));
        }
        let node = layer.node(&model.graph).ok_or_else(|| Error::layer(&layer.name, "it has no node"))?;
        let weight = model.index.constants.get(&layer.parts.weight);
        let external = weight.is_some_and(|weight| matches!(weight.tensor.content, Content::External(_)));
        Ok(Self { model, edits, layer, node, external, nodes: Vec::new() })
    }

    fn fail(&self, message: impl Into<String>) -> Error {
        Error::layer(&self.layer.name, message)
    }

    /// Refuses another number of groups than the layer has, other shapes, and different ranks.
    fn check(&self, groups: impl ExactSizeIterator<Item = (usize, usize, usize)>) -> Result<usize> {
        if groups.len() != self.layer.groups() {
            return Err(self.fail(format!(
                "expected {} layers, one per group, got {}",
                self.layer.groups(),
                groups.len()
            )));
        }
        let expected = (self.layer.outputs / self.layer.groups().max(1), self.layer.inputs);
        let mut common = None;
        for (outputs, inputs, rank) in groups {
            if (outputs, inputs) != expected {
                let (m, n) = expected;
                return Err(self.fail(format!("expected factors of an {m} × {n} weight, got {outputs} × {inputs}")));
            }
            if *common.get_or_insert(rank) != rank {
                return Err(self.fail("expected groups of the same rank"));
            }
        }
        common.ok_or_else(|| self.fail("there are no groups"))
    }

    fn factors<T: Scalar>(&mut self, groups: &[LowRankLinear<T>]) -> Result<()> {
        self.check(groups.iter().map(|group| (group.out_features(), group.in_features(), group.rank())))?;
        let down = groups.iter().map(|group| Ok(Linear::new(group.down().to_owned(), None)?));
        let up = groups
            .iter()
            .map(|group| Ok(Linear::new(group.up().to_owned(), group.bias().map(|bias| bias.to_owned()))?));
        let (down, up) = (down.collect::<Result<Vec<_>>>()?, up.collect::<Result<Vec<_>>>()?);
        let latent = self.fresh(&format!("{}/latent", self.layer.output));
        self.product(&stacked(&down), "down", true, &self.layer.input.clone(), &latent)?;
        self.product(&stacked(&up), "up", false, &latent, &self.layer.output.clone())
    }

    fn pivoted<T: Scalar>(&mut self, groups: &[PivotedLinear<T>]) -> Result<()> {
        let rank = self.check(groups.iter().map(|group| (group.out_features(), group.in_features(), group.rank())))?;
        let (count, size) = (groups.len(), self.layer.outputs / groups.len().max(1));
        let (mut pivots, mut others, mut order) = (Vec::new(), Vec::new(), Vec::new());
        for (index, group) in groups.iter().enumerate() {
            let (pivot_bias, other_bias) = split_bias(group);
            pivots.push(Linear::new(group.pivot_rows().to_owned(), pivot_bias)?);
            if rank < size {
                others.push(Linear::new(group.coefficients().to_owned(), other_bias)?);
            }
            // The pivots of all groups come first, then the others of all groups.
            order.extend(group.order().into_iter().map(|position| match position.checked_sub(rank) {
                None => index * rank + position,
                Some(other) => count * rank + index * (size - rank) + other,
            }));
        }
        let (input, output) = (self.layer.input.clone(), self.layer.output.clone());
        if others.is_empty() {
            return self.product(&stacked(&pivots), "pivots", true, &input, &output);
        }
        let axis = self.axis().ok_or_else(|| self.fail("pivoted storage needs opset 11, or the input's dimensions"))?;
        let [first, second, joined] =
            ["pivots", "others", "joined"].map(|name| self.fresh(&format!("{output}/{name}")));
        self.product(&stacked(&pivots), "pivots", true, &input, &first)?;
        self.product(&stacked(&others), "others", false, &first, &second)?;
        self.emit("Concat", "joined", &[&first, &second], &joined, &int("axis", axis));
        let data = order.iter().flat_map(|&position| (position as i64).to_le_bytes()).collect();
        let order = self.tensor("order", ElementType::I64, vec![order.len()], data);
        self.emit("Gather", "order", &[&joined, &order], &output, &int("axis", axis));
        Ok(())
    }

    /// The axis of the outputs.
    fn axis(&self) -> Option<i64> {
        match self.layer.parts.form {
            Form::Convolution { .. } | Form::Right { gemm: true, .. } => Some(1),
            Form::Left { gemm: true, .. } => Some(0),
            Form::Right { .. } if self.model.opset >= 11 => Some(-1),
            Form::Right { .. } => {
                let rank = |value: &str| self.model.index.ranks.get(value);
                let rank = rank(&self.layer.input).or_else(|| rank(&self.layer.output))?;
                Some(*rank as i64 - 1)
            }
            Form::Left { rank, .. } => Some(rank.saturating_sub(2) as i64),
        }
    }

    /// Writes a product in the form of the layer. Only the `first` one reads the layer's input, with
    /// its kernel and flags.
    fn product<T: Scalar>(
        &mut self,
        product: &Product<T>,
        name: &str,
        first: bool,
        input: &str,
        output: &str,
    ) -> Result<()> {
        let weight = product.weight.as_ref();
        let (m, n) = weight.shape();
        let bias = product.bias.as_ref().map(Col::as_ref);
        let weight_name = format!("{name}/weight");
        match self.layer.parts.form {
            Form::Right { gemm, input_transposed, .. } => {
                let weight = self.floats(&weight_name, vec![n, m], row_major(weight.transpose()))?;
                let bias = bias.map(|bias| self.bias(name, vec![m], bias)).transpose()?;
                let transposed = first && input_transposed;
                let attributes = if transposed { int("transA", 1) } else { Vec::new() };
                self.matrices([input, &weight], gemm, transposed, bias, name, output, &attributes)
            }
            Form::Left { gemm, input_transposed, rank, .. } => {
                let weight = self.floats(&weight_name, vec![m, n], row_major(weight))?;
                let dims = if rank == 1 { vec![m] } else { vec![m, 1] };
                let bias = bias.map(|bias| self.bias(name, dims, bias)).transpose()?;
                let transposed = first && input_transposed;
                let attributes = if transposed { int("transB", 1) } else { Vec::new() };
                self.matrices([&weight, input], gemm, transposed, bias, name, output, &attributes)
            }
            Form::Convolution { dimensions } => {
                let LayerKind::Convolution(convolution) = &self.layer.kind else {
                    return Err(self.fail("it is no convolution"));
                };
                let (height, width) = if first { convolution.kernel } else { (1, 1) };
                let channels = n / (height * width).max(1);
                let dims = if dimensions == 1 { vec![m, channels, width] } else { vec![m, channels, height, width] };
                let groups = convolution.groups;
                let weight = self.floats(&weight_name, dims, row_major(weight))?;
                let bias = bias.map(|bias| self.bias(name, vec![m], bias)).transpose()?;
                let attributes = if first { self.attributes()? } else { pointwise(dimensions, groups) };
                let mut inputs = vec![input, &weight];
                inputs.extend(bias.as_deref());
                self.emit("Conv", name, &inputs, output, &attributes);
                Ok(())
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "for both sides that a weight can be on")]
    fn matrices(
        &mut self,
        inputs: [&str; 2],
        gemm: bool,
        transposed: bool,
        bias: Option<String>,
        name: &str,
        output: &str,
        attributes: &[u8],
    ) -> Result<()> {
        let [left, right] = inputs;
        if gemm && (bias.is_some() || transposed) {
            let bias = match bias {
                None if self.model.opset < 11 => {
                    Some(self.floats(&format!("{name}/zero"), vec![1], [0.0_f32].into_iter())?)
                }
                bias => bias,
            };
            let mut inputs = vec![left, right];
            inputs.extend(bias.as_deref());
            self.emit("Gemm", name, &inputs, output, attributes);
            return Ok(());
        }
        match bias {
            None => self.emit("MatMul", name, &inputs, output, &[]),
            Some(bias) => {
                let sum = self.fresh(&format!("{output}/product"));
                self.emit("MatMul", name, &inputs, &sum, &[]);
                self.emit("Add", &format!("{name}/add"), &[&sum, &bias], output, &[]);
            }
        }
        Ok(())
    }

    /// Returns the attributes of the layer's node as they are.
    fn attributes(&self) -> Result<Vec<u8>> {
        let mut attributes = Vec::new();
        for field in fields(&self.model.file, self.node.message.clone()) {
            let field = field?;
            if field.number == 5 {
                attributes.extend(self.model.file.get(field.whole).unwrap_or_default());
            }
        }
        Ok(attributes)
    }

    /// Writes a node. The first one has the description and metadata of the layer's node.
    fn emit(&mut self, operator: &str, name: &str, inputs: &[&str], output: &str, attributes: &[u8]) {
        let mut node = Vec::new();
        inputs.iter().for_each(|input| put_bytes(&mut node, 1, input.as_bytes()));
        put_bytes(&mut node, 2, output.as_bytes());
        let name = self.fresh(&format!("{}/{name}", self.layer.name));
        put_bytes(&mut node, 3, name.as_bytes());
        put_bytes(&mut node, 4, operator.as_bytes());
        node.extend(attributes);
        if !self.node.domain.is_empty() {
            put_bytes(&mut node, 7, self.node.domain.as_bytes());
        }
        if self.nodes.is_empty() {
            let described = fields(&self.model.file, self.node.message.clone()).flatten();
            for field in described.filter(|field| matches!(field.number, 6 | 9)) {
                node.extend(self.model.file.get(field.whole).unwrap_or_default());
            }
        }
        put_bytes(&mut self.nodes, 1, &node);
    }

    /// Returns a name that no value or node has.
    fn fresh(&mut self, wanted: &str) -> String {
        let mut name = wanted.to_owned();
        let mut number = 1;
        while self.model.graph.names.contains(&name) || !self.edits.names.insert(name.clone()) {
            name = format!("{wanted}_{number}");
            number += 1;
        }
        name
    }

    fn bias<T: Scalar>(&mut self, name: &str, dims: Vec<usize>, bias: ColRef<'_, T>) -> Result<String> {
        self.floats(&format!("{name}/bias"), dims, bias.iter().copied())
    }

    /// Adds a tensor of the layer's element type, and returns its name.
    fn floats<T: Scalar>(&mut self, name: &str, dims: Vec<usize>, numbers: impl Iterator<Item = T>) -> Result<String> {
        let element = self.layer.element;
        let data = encode(element, numbers);
        let data = data.map_err(|number| self.fail(format!("{number} is out of the range of {element}")))?;
        Ok(self.tensor(name, element, dims, data))
    }

    fn tensor(&mut self, name: &str, element: ElementType, dims: Vec<usize>, data: Vec<u8>) -> String {
        let code = element.code();
        let same = |added: &&Added| added.code == code && added.dims == dims && *added.data == data;
        if let Some(added) = self.edits.added.iter().find(same) {
            return added.name.clone();
        }
        let name = self.fresh(&format!("{}/{name}", self.layer.name));
        let mut header = Vec::new();
        dims.iter().for_each(|&dim| put_integer(&mut header, 1, dim as i64));
        put_integer(&mut header, 2, i64::from(code));
        put_bytes(&mut header, 8, name.as_bytes());
        let external = self.external && element != ElementType::I64;
        self.edits.added.push(Added { name: name.clone(), header, code, dims, data: Arc::new(data), external });
        name
    }

    /// Puts the new nodes in the place of the layer's first node, and removes its other nodes and
    /// what nothing reads any more.
    fn finish(self) {
        let Self { model, edits, layer, nodes, .. } = self;
        let (graph, index) = (&model.graph, &model.index);
        let mut vanished = Vec::new();
        for (position, &id) in layer.parts.nodes.iter().enumerate() {
            edits.nodes.insert(id, if position == 0 { nodes.clone() } else { Vec::new() });
            let outputs = graph.nodes.get(id).into_iter().flat_map(|node| &node.outputs);
            vanished.extend(outputs.filter(|output| **output != layer.output).cloned());
        }
        let mut unread: Vec<String> = layer
            .parts
            .nodes
            .iter()
            .filter_map(|&id| graph.nodes.get(id))
            .flat_map(|node| node.inputs.clone())
            .collect();
        while let Some(value) = unread.pop() {
            let readers = index.readers.get(&value).map(Vec::as_slice).unwrap_or_default();
            let is_read = readers.iter().any(|id| !edits.nodes.contains_key(id)) || index.pinned.contains(&value);
            if is_read || !index.constants.contains_key(&value) {
                continue;
            }
            if let Some((field, _)) = graph.initializers.get(&value) {
                edits.left_out.insert(field.start, field.clone());
            }
            if let Some(&id) = index.producers.get(&value) {
                edits.nodes.insert(id, Vec::new());
                unread.extend(graph.nodes.get(id).into_iter().flat_map(|node| node.inputs.clone()));
            }
            vanished.push(value);
        }
        let infos = graph.inputs.iter().chain(&graph.values);
        let gone = infos.filter(|(_, info)| vanished.contains(&info.name));
        edits.left_out.extend(gone.map(|(field, _)| (field.start, field.clone())));
    }
}

fn stacked<T: Scalar>(layers: &[Linear<T>]) -> Product<T> {
    let rows = layers.iter().map(Linear::out_features).sum();
    let mut weight = Mat::zeros(rows, layers.first().map_or(0, Linear::in_features));
    let mut start = 0;
    for layer in layers {
        weight.as_mut().subrows_mut(start, layer.out_features()).copy_from(layer.weight());
        start += layer.out_features();
    }
    // A group without a bias adds zeros.
    let entries = layers.iter().flat_map(|layer| {
        (0..layer.out_features()).map(move |row| layer.bias().map_or_else(T::default, |bias| bias[row]))
    });
    let bias = layers.iter().any(|layer| layer.bias().is_some()).then(|| entries.collect());
    Product { weight, bias }
}

/// Returns the biases of pivots and others. The others are combinations of the pivots, whose bias
/// is added before.
fn split_bias<T: Scalar>(group: &PivotedLinear<T>) -> (Option<Col<T>>, Option<Col<T>>) {
    let Some(bias) = group.bias() else { return (None, None) };
    let (rank, size) = (group.rank(), group.out_features());
    let mut sorted = vec![T::default(); size];
    for (&position, &entry) in group.order().iter().zip(bias.iter()) {
        if let Some(place) = sorted.get_mut(position) {
            *place = entry;
        }
    }
    let (pivots, others) = sorted.split_at_checked(rank).unwrap_or_default();
    let others = others.iter().zip(group.coefficients().row_iter()).map(|(&entry, coefficients)| {
        let before: f64 = coefficients.iter().zip(pivots).map(|(a, b)| a.to_f64() * b.to_f64()).sum();
        T::from_f64(entry.to_f64() - before)
    });
    (Some(pivots.iter().copied().collect()), Some(others.collect()))
}

fn row_major<T: Scalar>(matrix: MatRef<'_, T>) -> impl Iterator<Item = T> {
    (0..matrix.nrows()).flat_map(move |i| (0..matrix.ncols()).map(move |j| matrix[(i, j)]))
}

/// Returns the field of a node for an attribute with an integer.
fn int(name: &str, value: i64) -> Vec<u8> {
    let (mut attribute, mut field) = (Vec::new(), Vec::new());
    put_bytes(&mut attribute, 1, name.as_bytes());
    put_integer(&mut attribute, 3, value);
    put_integer(&mut attribute, 20, 2);
    put_bytes(&mut field, 5, &attribute);
    field
}

/// Returns the attributes of a convolution of 1 × 1.
fn pointwise(dimensions: usize, groups: usize) -> Vec<u8> {
    let mut attribute = Vec::new();
    put_bytes(&mut attribute, 1, b"kernel_shape");
    (0..dimensions).for_each(|_| put_integer(&mut attribute, 8, 1));
    put_integer(&mut attribute, 20, 7);
    let mut fields = Vec::new();
    put_bytes(&mut fields, 5, &attribute);
    fields.extend(int("group", groups as i64));
    fields
}
