//! Finds the layers of a graph that can be compressed, and says why the others cannot.

use std::collections::HashMap;

use crate::graph::{Attribute, Graph, Node};
use crate::index::{Constant, Index};
use crate::layer::{Axis, Convolution, Form, Layer, LayerKind, LeftAlone, Padding, Parts, Step};

/// What a node is for the search.
enum Found {
    Layer(Box<Layer>),
    Stays(String),
    Nothing,
}

pub(crate) fn find(graph: &Graph, index: &Index, opset: i64) -> (Vec<Layer>, Vec<LeftAlone>) {
    let (mut layers, mut left_alone) = (Vec::new(), Vec::new());
    for (id, node) in graph.nodes.iter().enumerate() {
        let title = || {
            let output = node.outputs.first().cloned().unwrap_or_default();
            if node.name.is_empty() { output } else { node.name.clone() }
        };
        for (name, operator) in node.inner.iter().filter(|(_, operator)| has_weight(operator)) {
            let reason = format!("inside of the subgraph of `{}` ({})", title(), node.operator);
            left_alone.push(LeftAlone { name: name.clone(), operator: operator.clone(), reason });
        }
        let search = Search { graph, index, opset, id, node };
        match search.find() {
            Found::Layer(layer) => layers.push(*layer),
            Found::Stays(reason) => {
                left_alone.push(LeftAlone { name: title(), operator: node.operator.clone(), reason });
            }
            Found::Nothing => {}
        }
    }
    name(&mut layers, graph);
    share(&mut layers, graph, index);
    (layers, left_alone)
}

/// Operators with weights, whatever their inputs are.
const WITH_WEIGHTS: &str = "MatMul Gemm Conv ConvTranspose DeformConv LSTM GRU RNN Einsum MatMulInteger QLinearMatMul \
                            ConvInteger QLinearConv";

pub(crate) fn has_weight(operator: &str) -> bool {
    WITH_WEIGHTS.split(' ').any(|known| known == operator)
}

/// Gives the layers names that are unique.
fn name(layers: &mut [Layer], graph: &Graph) {
    let mut count: HashMap<&str, usize> = HashMap::new();
    for layer in layers.iter() {
        *count.entry(&layer.output).or_default() += 1;
        if let Some(node) = layer.node(graph) {
            *count.entry(&node.name).or_default() += 1;
        }
    }
    let is_unique = |name: &str| !name.is_empty() && count.get(name) == Some(&1);
    let names: Vec<String> = layers
        .iter()
        .map(|layer| match layer.node(graph) {
            Some(node) if is_unique(&node.name) || node.name == layer.output => node.name.clone(),
            _ => layer.output.clone(),
        })
        .collect();
    layers.iter_mut().zip(names).for_each(|(layer, name)| layer.name = name);
}

/// Finds layers of the same weight.
fn share(layers: &mut [Layer], graph: &Graph, index: &Index) {
    let key = |layer: &Layer| index.constants.get(&layer.parts.weight).map(|constant| constant.tensor.message.clone());
    let mut users: HashMap<_, Vec<(usize, String)>> = HashMap::new();
    for layer in layers.iter() {
        let node = layer.parts.nodes.first().copied().unwrap_or_default();
        users.entry(key(layer)).or_default().push((node, layer.name.clone()));
    }
    for layer in layers.iter_mut() {
        let users = users.get(&key(layer)).map(Vec::as_slice).unwrap_or_default();
        let others = users.iter().filter(|(_, name)| *name != layer.name);
        layer.shared_with = others.map(|(_, name)| name.clone()).collect();
        let mut value = layer.parts.weight.as_str();
        // Up through transposes to the stored weight: any other reader on the way keeps it.
        loop {
            let readers = index.readers.get(value).map(Vec::as_slice).unwrap_or_default();
            let producer = index.producers.get(value).and_then(|&id| graph.nodes.get(id));
            let is_layer = |id: &usize| users.iter().any(|(user, _)| user == id);
            let passes_on = |id: &usize| {
                graph.nodes.get(*id).is_some_and(|node| node.output().is_some_and(|o| index.constants.contains_key(o)))
            };
            if index.pinned.contains(value) || !readers.iter().all(|id| is_layer(id) || passes_on(id)) {
                layer.weight_stays = true;
            }
            match producer.and_then(|node| node.input(0)) {
                Some(input) => value = input,
                None => break,
            }
        }
    }
}

/// The search for a layer that begins at one node.
struct Search<'a> {
    graph: &'a Graph,
    index: &'a Index,
    opset: i64,
    id: usize,
    node: &'a Node,
}

impl<'a> Search<'a> {
    fn find(&self) -> Found {
        let found = match self.node.operator.as_str() {
            _ if !self.node.is_standard() => Err("an operator of another domain".into()),
            "MatMul" => self.product(),
            "Gemm" => self.gemm(),
            "Conv" => self.convolution(),
            "Constant" | "Identity" | "Transpose" => return Found::Nothing,
            _ => Err("not an operator that can be factorized".into()),
        };
        match found {
            Ok(layer) => Found::Layer(Box::new(layer)),
            Err(reason) if self.node.is_standard() && has_weight(&self.node.operator) => Found::Stays(reason),
            Err(reason) if self.reads_weight() => Found::Stays(reason),
            Err(_) => Found::Nothing,
        }
    }

    /// Whether an input is a constant matrix of floats.
    fn reads_weight(&self) -> bool {
        self.node.inputs.iter().filter_map(|input| self.index.constants.get(input)).any(|constant| {
            let wide = constant.tensor.dims.iter().filter(|&&dim| dim > 1).count();
            wide >= 2 && constant.tensor.element.is_float()
        })
    }

    fn constant(&self, input: usize) -> Option<&'a Constant> {
        self.index.constants.get(self.node.input(input)?)
    }

    fn rank(&self, value: &str) -> Option<usize> {
        self.index.ranks.get(value).copied()
    }

    /// Returns the inputs of a product: the position of the weight, the weight and its stored rows
    /// and columns.
    fn weight(&self) -> Result<(usize, &'a Constant, [usize; 2]), String> {
        let (at, constant) = match (self.constant(0), self.constant(1)) {
            (Some(_), Some(_)) => return Err("both factors are constants".into()),
            (Some(left), None) => (0, left),
            (None, Some(right)) => (1, right),
            (None, None) => return Err("the weight is computed when the model runs".into()),
        };
        if !constant.tensor.element.is_float() {
            return Err(format!("the weight has the type {}", constant.tensor.element));
        }
        match constant.dims()[..] {
            [0, _] | [_, 0] => Err("the weight is empty".into()),
            [rows, columns] => Ok((at, constant, [rows, columns])),
            ref dims => Err(format!("the weight has {} dimensions", dims.len())),
        }
    }

    fn product(&self) -> Result<Layer, String> {
        let (at, weight, [rows, columns]) = self.weight()?;
        let input = self.node.input(1 - at).ok_or("an input is missing")?;
        let output = self.node.output().ok_or("it has several outputs")?;
        let rank = self.rank(input).or_else(|| self.rank(output));
        let (form, kind, sizes) = if at == 1 {
            let form = Form::Right { gemm: false, input_transposed: false, flipped: false };
            (form, LayerKind::Linear { input_axis: Axis::Last, output_axis: Axis::Last }, (columns, rows))
        } else {
            let rank = rank.ok_or("the weight is on the left, and the model does not state the input's dimensions")?;
            let axis = if rank == 1 { Axis::Last } else { Axis::SecondToLast };
            let form = Form::Left { gemm: false, input_transposed: false, flipped: false, rank };
            (form, LayerKind::Linear { input_axis: axis, output_axis: axis }, (rows, columns))
        };
        let parts = self.parts(at, form);
        // Before opset 11, `Concat` counts axes from the front.
        let can_be_pivoted = at == 0 || self.opset >= 11 || rank.is_some();
        Ok(self.layer(parts, (input, output), kind, sizes, weight, can_be_pivoted, rank))
    }

    fn gemm(&self) -> Result<Layer, String> {
        let (at, weight, [rows, columns]) = self.weight()?;
        let input = self.node.input(1 - at).ok_or("an input is missing")?;
        let output = self.node.output().ok_or("it has several outputs")?;
        let transposed = [self.node.int("transA", 0) != 0, self.node.int("transB", 0) != 0];
        let [_, input_transposed] = if at == 1 { [transposed[1], transposed[0]] } else { transposed };
        let flipped = if at == 1 { transposed[1] } else { transposed[0] };
        let (form, sizes) = if at == 1 {
            let sizes = if flipped { (rows, columns) } else { (columns, rows) };
            (Form::Right { gemm: true, input_transposed, flipped }, sizes)
        } else {
            let sizes = if flipped { (columns, rows) } else { (rows, columns) };
            (Form::Left { gemm: true, input_transposed, flipped, rank: 2 }, sizes)
        };
        let (input_axis, output_axis) = match (at, input_transposed) {
            (1, false) => (Axis::Last, Axis::Last),
            (1, true) => (Axis::SecondToLast, Axis::Last),
            (_, false) => (Axis::SecondToLast, Axis::SecondToLast),
            (_, true) => (Axis::Last, Axis::SecondToLast),
        };
        let mut parts = self.parts(at, form);
        parts.alpha = f64::from(self.node.float("alpha", 1.0));
        parts.beta = f64::from(self.node.float("beta", 1.0));
        if let Some(bias) = self.node.input(2) {
            if !self.is_bias(bias, sizes.0, parts.trailing(), 2, weight) {
                return Err("its C is no constant with one entry for each output".into());
            }
            parts.bias = Some(bias.into());
        }
        let kind = LayerKind::Linear { input_axis, output_axis };
        Ok(self.layer(parts, (input, output), kind, sizes, weight, true, Some(2)))
    }

    fn convolution(&self) -> Result<Layer, String> {
        let weight = self.constant(1).ok_or("the weight is computed when the model runs")?;
        if self.constant(0).is_some() {
            return Err("both factors are constants".into());
        }
        let input = self.node.input(0).ok_or("an input is missing")?;
        let output = self.node.output().ok_or("it has several outputs")?;
        if !weight.tensor.element.is_float() {
            return Err(format!("the weight has the type {}", weight.tensor.element));
        }
        let (dims, dimensions) = (weight.dims(), weight.dims().len().saturating_sub(2));
        let (outputs, channels, kernel) = match dims[..] {
            [outputs, channels, width] => (outputs, channels, (1, width)),
            [outputs, channels, height, width] => (outputs, channels, (height, width)),
            _ => return Err(format!("a convolution in {dimensions} dimensions")),
        };
        let groups = usize::try_from(self.node.int("group", 1)).unwrap_or(0);
        if outputs == 0 || channels == 0 || kernel.0 == 0 || kernel.1 == 0 {
            return Err("the weight is empty".into());
        }
        if groups == 0 || !outputs.is_multiple_of(groups) {
            return Err(format!("{outputs} output channels in {groups} groups"));
        }
        if groups > 1 && groups == outputs {
            return Err("a depthwise convolution: rank 1 already has more parameters".into());
        }
        let ints = |name: &str, default: usize, sides: usize| match self.node.attribute(name) {
            Some(Attribute::Ints(numbers)) => {
                let numbers: Option<Vec<_>> = numbers.iter().map(|&number| usize::try_from(number).ok()).collect();
                let numbers = numbers.filter(|numbers| numbers.len() == dimensions * sides);
                numbers.ok_or_else(|| format!("the attribute `{name}` is not valid"))
            }
            _ => Ok(vec![default; dimensions * sides]),
        };
        let pair = |numbers: Vec<usize>| match numbers[..] {
            [width] => (1, width),
            [height, width] => (height, width),
            _ => (0, 0),
        };
        let (stride, dilation) = (pair(ints("strides", 1, 1)?), pair(ints("dilations", 1, 1)?));
        if [stride.0, stride.1, dilation.0, dilation.1].contains(&0) {
            return Err("a stride or dilation of 0".into());
        }
        if self.node.attribute("kernel_shape").is_some() && pair(ints("kernel_shape", 0, 1)?) != kernel {
            return Err("the attribute `kernel_shape` differs from the weight".into());
        }
        let automatic = match self.node.attribute("auto_pad") {
            Some(Attribute::Text(text)) => text.as_str(),
            _ => "NOTSET",
        };
        let padding = match automatic {
            "NOTSET" | "" => Padding::Sides(match ints("pads", 0, 2)?[..] {
                [left, right] => [0, left, 0, right],
                [top, left, bottom, right] => [top, left, bottom, right],
                _ => return Err("the attribute `pads` is not valid".into()),
            }),
            "VALID" => Padding::Sides([0; 4]),
            "SAME_UPPER" => Padding::SameUpper,
            "SAME_LOWER" => Padding::SameLower,
            other => return Err(format!("the padding `{other}` is not known")),
        };
        let mut parts = self.parts(1, Form::Convolution { dimensions });
        if let Some(bias) = self.node.input(2) {
            if !self.is_bias(bias, outputs, 0, 1, weight) {
                return Err("its bias is computed when the model runs".into());
            }
            parts.bias = Some(bias.into());
        }
        let kind = Convolution { dimensions, kernel, stride, dilation, groups, padding };
        let sizes = (outputs, channels.saturating_mul(kernel.0).saturating_mul(kernel.1));
        let rank = Some(dimensions + 2);
        Ok(self.layer(parts, (input, output), LayerKind::Convolution(kind), sizes, weight, true, rank))
    }

    fn parts(&self, weight: usize, form: Form) -> Parts {
        let weight = self.node.input(weight).unwrap_or_default().into();
        Parts { nodes: vec![self.id], form, weight, alpha: 1.0, beta: 1.0, bias: None, steps: Vec::new() }
    }

    #[allow(clippy::too_many_arguments, reason = "called from the three kinds of nodes")]
    fn layer(
        &self,
        mut parts: Parts,
        (input, output): (&str, &str),
        kind: LayerKind,
        (outputs, inputs): (usize, usize),
        weight: &Constant,
        can_be_pivoted: bool,
        rank: Option<usize>,
    ) -> Layer {
        let mut output = output.to_owned();
        while let Some((id, step, next)) = self.step(&parts, &output, outputs, rank, weight) {
            parts.nodes.push(id);
            parts.steps.push(step);
            output = next;
        }
        Layer {
            name: String::new(),
            operator: self.node.operator.clone(),
            input: input.into(),
            output,
            kind,
            inputs,
            outputs,
            has_bias: parts.bias.is_some() || !parts.steps.is_empty(),
            element: weight.tensor.element,
            shared_with: Vec::new(),
            weight_stays: false,
            can_be_pivoted,
            parts,
        }
    }

    /// Returns a node after the layer whose work it can include, if nothing else reads `value`.
    fn step(
        &self,
        parts: &Parts,
        value: &str,
        outputs: usize,
        rank: Option<usize>,
        weight: &Constant,
    ) -> Option<(usize, Step, String)> {
        let id = self.index.only_reader(value)?;
        let node = self.graph.nodes.get(id)?;
        let next = node.output()?;
        if node.is("Add") {
            let (first, second) = (node.input(0)?, node.input(1)?);
            let other = if first == value { second } else { first };
            let rank = rank.unwrap_or(1);
            let is_bias = self.is_bias(other, outputs, parts.trailing(), rank, weight);
            return is_bias.then(|| (id, Step::Add(other.into()), next.into()));
        }
        if node.is("BatchNormalization")
            && matches!(parts.form, Form::Convolution { .. })
            && node.input(0) == Some(value)
        {
            let values: Vec<&str> = (1..5).filter_map(|input| node.input(input)).collect();
            let values: [&str; 4] = values.try_into().ok()?;
            let fits = |value: &&str| {
                let constant = self.index.constants.get(*value);
                constant.is_some_and(|c| c.tensor.element.is_float() && c.tensor.dims[..] == [outputs])
            };
            if values.iter().all(fits) && node.int("training_mode", 0) == 0 && node.int("spatial", 1) == 1 {
                let epsilon = f64::from(node.float("epsilon", 1e-5));
                let values = values.map(String::from);
                return Some((id, Step::Normalize { values, epsilon }, next.into()));
            }
        }
        None
    }

    /// Whether this value is a constant that adds one number to each output, without further
    /// dimensions for a value of `rank` dimensions. `trailing` dimensions of 1 come after that of
    /// the outputs.
    fn is_bias(&self, value: &str, outputs: usize, trailing: usize, rank: usize, weight: &Constant) -> bool {
        let Some(constant) = self.index.constants.get(value) else { return false };
        let dims = constant.dims();
        if constant.tensor.element != weight.tensor.element || dims.len() > rank {
            return false;
        }
        let expected =
            dims.iter().rev().enumerate().all(|(from_end, &dim)| dim == 1 || (from_end == trailing && dim == outputs));
        // A single number is added to all outputs.
        expected && !dims.contains(&0)
    }
}
