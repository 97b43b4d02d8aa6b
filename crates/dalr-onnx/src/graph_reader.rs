//! Reads and checks graphs: the order of nodes, names, depth and size.

use core::mem;
use core::ops::Range;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use crate::element::ElementType;
use crate::functions::{Function, Operator};
use crate::graph::{Attribute, Dimension, Graph, Node, ValueInfo};
use crate::stored_tensor::{Content, MOST_DIMENSIONS, Stored, fits_in_memory};
use crate::wire::{Field, Once, Reader, fields};
use crate::{Error, Result};

/// Graphs within graphs, or types within types. Models have a few.
const DEPTH: usize = 16;

/// Nodes, attributes, names and numbers of attributes together. The largest models have fewer than
/// a million; without a limit, a file of 2 GB could take 100 GB of memory.
const PARTS: usize = 1 << 21;

/// Reads graphs, and counts what it reads.
pub struct GraphReader<'a> {
    file: &'a [u8],
    folder: Option<&'a Path>,
    /// Values that are known at this point: of the main graph, and of each graph around this one.
    scopes: Vec<HashSet<String>>,
    parts: usize,
    captured: Vec<String>,
    inner: Vec<(String, String)>,
    names: HashSet<String>,
    external: Vec<Arc<Stored>>,
    /// Domain and name of every operator, with the number of nodes.
    calls: HashMap<Operator, u64>,
}

impl<'a> GraphReader<'a> {
    pub fn new(file: &'a [u8], folder: Option<&'a Path>) -> Self {
        Self {
            file,
            folder,
            scopes: Vec::new(),
            parts: 0,
            captured: Vec::new(),
            inner: Vec::new(),
            names: HashSet::new(),
            external: Vec::new(),
            calls: HashMap::new(),
        }
    }

    /// Reads the main graph.
    pub fn main(mut self, message: Range<usize>) -> Result<Graph> {
        let graph = self.graph(message)?;
        require_apart(&self.external)?;
        Ok(Graph { names: self.names, external: self.external, calls: self.calls, ..graph })
    }

    /// Reads the nodes of a function.
    pub fn function(mut self, message: Range<usize>) -> Result<Function> {
        let (mut once, mut name, mut domain) = (Once::default(), String::new(), String::new());
        let (mut scope, mut nodes, mut outputs) = (HashSet::new(), Vec::new(), Vec::new());
        for field in self.fields(message.clone()) {
            let field = field?;
            self.count(1, &field)?;
            match field.number {
                1 | 10 => once.check(&field)?,
                _ => {}
            }
            match field.number {
                1 => name = self.text(&field)?,
                4 => drop(scope.insert(self.text(&field)?)),
                5 => outputs.push(self.text(&field)?),
                7 => nodes.push(field),
                10 => domain = self.text(&field)?,
                _ => {}
            }
        }
        self.scopes.push(scope);
        for field in nodes {
            self.node(&field)?;
        }
        for output in outputs {
            self.require_known(&output, message.start, || format!("the function `{name}`"))?;
        }
        if !self.external.is_empty() {
            return Err(Error::Unsupported(format!("the function `{name}` has external data")));
        }
        Ok(Function { start: message.start, operator: (domain, name), calls: self.calls })
    }

    fn fields(&self, message: Range<usize>) -> Reader<'a> {
        fields(self.file, message)
    }

    fn text(&self, field: &Field) -> Result<String> {
        field.text(self.file).map(String::from)
    }

    fn count(&mut self, parts: usize, field: &Field) -> Result<()> {
        self.parts += parts;
        if self.parts > PARTS {
            return Err(Error::invalid(field.whole.start, format!("more than {PARTS} parts")));
        }
        Ok(())
    }

    fn graph(&mut self, message: Range<usize>) -> Result<Graph> {
        if self.scopes.len() >= DEPTH {
            return Err(Error::invalid(message.start, format!("more than {DEPTH} graphs within each other")));
        }
        let mut graph = Graph { message: message.clone(), ..Graph::default() };
        let (mut once, mut scope, mut nodes) = (Once::default(), HashSet::new(), Vec::new());
        for field in self.fields(message) {
            let field = field?;
            self.count(1, &field)?;
            let whole = field.whole.clone();
            match field.number {
                1 => nodes.push(field),
                2 | 10 => once.check(&field)?,
                5 => {
                    let tensor = self.tensor(&field)?;
                    let name = tensor.name.clone();
                    self.names.insert(name.clone());
                    if graph.initializers.insert(name.clone(), (whole.clone(), tensor)).is_some() {
                        return Err(Error::invalid(whole.start, format!("two initializers have the name `{name}`")));
                    }
                }
                11 => graph.inputs.push((whole, self.value(&field)?)),
                12 => graph.outputs.push(self.value(&field)?),
                13 => graph.values.push((whole, self.value(&field)?)),
                14 => self.annotation(&field, &mut graph.annotated)?,
                15 => drop(scope.insert(self.sparse_tensor(&field)?)),
                _ => {}
            }
        }
        scope.extend(graph.initializers.keys().cloned());
        let mut inputs = HashSet::new();
        for (whole, input) in &graph.inputs {
            if !inputs.insert(&input.name) {
                return Err(Error::invalid(whole.start, format!("two inputs have the name `{}`", input.name)));
            }
            scope.insert(input.name.clone());
        }
        self.scopes.push(scope);
        for field in nodes {
            let node = self.node(&field)?;
            graph.nodes.push(node);
        }
        for output in &graph.outputs {
            self.require_known(&output.name, graph.message.end, || "the graph's list of outputs".into())?;
        }
        self.scopes.pop();
        Ok(graph)
    }

    /// Refuses a value that neither this graph nor one around it has before this point, as in a
    /// cycle. Notes a value of the main graph that a subgraph reads.
    fn require_known(&mut self, name: &str, at: usize, reader: impl Fn() -> String) -> Result<()> {
        match self.scopes.iter().rposition(|scope| scope.contains(name)) {
            Some(0) if self.scopes.len() > 1 => self.captured.push(name.into()),
            Some(_) => {}
            None => {
                let message = format!("{} reads `{name}`, which nothing before it computes", reader());
                return Err(Error::invalid(at, message));
            }
        }
        Ok(())
    }

    fn tensor(&mut self, field: &Field) -> Result<Arc<Stored>> {
        let tensor = Arc::new(Stored::read(self.file, field.bytes()?, self.folder)?);
        if matches!(tensor.content, Content::External(_)) {
            self.external.push(tensor.clone());
        }
        Ok(tensor)
    }

    /// Reads a sparse tensor, and returns the name of its values.
    fn sparse_tensor(&mut self, field: &Field) -> Result<String> {
        let (mut once, mut name, mut dims) = (Once::default(), String::new(), Vec::new());
        let mut element = ElementType::F64;
        for part in self.fields(field.bytes()?) {
            let part = part?;
            match part.number {
                1 | 2 => {
                    once.check(&part)?;
                    let tensor = self.tensor(&part)?;
                    if part.number == 1 {
                        (name, element) = (tensor.name.clone(), tensor.element);
                    }
                }
                3 => part.integers(self.file, &mut dims, MOST_DIMENSIONS)?,
                _ => {}
            }
        }
        let sizes = dims.iter().map(|&dim| u64::try_from(dim).unwrap_or(u64::MAX));
        if !fits_in_memory(sizes, element) {
            return Err(Error::invalid(field.whole.start, format!("a sparse tensor has the dimensions {dims:?}")));
        }
        self.names.insert(name.clone());
        Ok(name)
    }

    fn annotation(&mut self, field: &Field, names: &mut HashSet<String>) -> Result<()> {
        for part in self.fields(field.bytes()?) {
            let part = part?;
            match part.number {
                1 => drop(names.insert(self.text(&part)?)),
                2 => {
                    for entry in self.fields(part.bytes()?) {
                        let entry = entry?;
                        self.count(1, &entry)?;
                        if entry.number == 2 {
                            names.insert(self.text(&entry)?);
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn node(&mut self, field: &Field) -> Result<Node> {
        let (mut once, message) = (Once::default(), field.bytes()?);
        let mut node = Node {
            whole: field.whole.clone(),
            message: message.clone(),
            name: String::new(),
            operator: String::new(),
            domain: String::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            attributes: Vec::new(),
            captured: Vec::new(),
            inner: Vec::new(),
        };
        let mut attributes = Vec::new();
        for part in self.fields(message) {
            let part = part?;
            self.count(1, &part)?;
            match part.number {
                3 | 4 | 7 | 8 => once.check(&part)?,
                _ => {}
            }
            match part.number {
                1 => node.inputs.push(self.text(&part)?),
                2 => node.outputs.push(self.text(&part)?),
                3 => node.name = self.text(&part)?,
                4 => node.operator = self.text(&part)?,
                5 => attributes.push(part),
                7 => node.domain = self.text(&part)?,
                _ => {}
            }
        }
        let title = format!("the node `{}` ({})", node.name, node.operator);
        for input in node.inputs.iter().filter(|input| !input.is_empty()) {
            self.require_known(input, field.whole.start, || title.clone())?;
        }
        for part in attributes {
            let (name, value) = self.attribute(&part)?;
            if node.attribute(&name).is_some() {
                return Err(Error::invalid(part.whole.start, format!("{title} has two attributes `{name}`")));
            }
            node.attributes.push((name, value));
        }
        let depth = self.scopes.len();
        for output in node.outputs.iter().filter(|output| !output.is_empty()) {
            if self.scopes.last_mut().is_some_and(|scope| !scope.insert(output.clone())) {
                return Err(Error::invalid(field.whole.start, format!("two nodes or inputs have the name `{output}`")));
            }
            self.names.insert(output.clone());
        }
        self.names.insert(node.name.clone());
        if depth > 1 {
            let name = if node.name.is_empty() { node.outputs.first() } else { Some(&node.name) };
            self.inner.push((name.cloned().unwrap_or_default(), node.operator.clone()));
        } else {
            node.captured = mem::take(&mut self.captured);
            node.inner = mem::take(&mut self.inner);
        }
        *self.calls.entry((node.domain.clone(), node.operator.clone())).or_default() += 1;
        Ok(node)
    }

    fn attribute(&mut self, field: &Field) -> Result<(String, Attribute)> {
        let (mut once, mut name, mut value) = (Once::default(), String::new(), Attribute::Other);
        let mut ints = Vec::new();
        for part in self.fields(field.bytes()?) {
            let part = part?;
            self.count(1, &part)?;
            match part.number {
                1..=6 | 14 | 20 | 21 | 22 => once.check(&part)?,
                _ => {}
            }
            match part.number {
                1 => name = self.text(&part)?,
                2 => value = Attribute::Float(part.float()?),
                3 => value = Attribute::Int(part.varint()? as i64),
                4 => {
                    // Other operators may keep any bytes in a text.
                    part.bytes()?;
                    value = part.text(self.file).map_or(Attribute::Other, |text| Attribute::Text(text.into()));
                }
                5 => value = Attribute::Tensor(self.tensor(&part)?),
                6 | 11 => drop(self.graph(part.bytes()?)?),
                7 => drop(part.fixed(self.file, 4)?),
                8 => {
                    let before = ints.len();
                    part.integers(self.file, &mut ints, PARTS)?;
                    self.count(ints.len() - before, &part)?;
                }
                9 => {
                    part.bytes()?;
                }
                10 => drop(self.tensor(&part)?),
                14 | 15 => drop(self.type_of(part.bytes()?, 0)?),
                22 | 23 => drop(self.sparse_tensor(&part)?),
                _ => {}
            }
        }
        if !ints.is_empty() {
            value = Attribute::Ints(ints);
        }
        Ok((name, value))
    }

    fn value(&mut self, field: &Field) -> Result<ValueInfo> {
        let mut once = Once::default();
        let mut info = ValueInfo { name: String::new(), element: None, shape: None };
        for part in self.fields(field.bytes()?) {
            let part = part?;
            self.count(1, &part)?;
            match part.number {
                1 | 2 => once.check(&part)?,
                _ => {}
            }
            match part.number {
                1 => info.name = self.text(&part)?,
                2 => (info.element, info.shape) = self.type_of(part.bytes()?, 0)?,
                _ => {}
            }
        }
        let fixed = info.shape.iter().flatten().filter_map(|dimension| match dimension {
            Dimension::Fixed(size) => Some(*size as u64),
            _ => None,
        });
        if !fits_in_memory(fixed, info.element.unwrap_or(ElementType::U8)) {
            let message = format!("the value `{}` has more entries than memory can hold", info.name);
            return Err(Error::invalid(field.whole.start, message));
        }
        self.names.insert(info.name.clone());
        Ok(info)
    }

    /// Reads a type. Returns element type and shape if it is that of a tensor.
    #[allow(clippy::type_complexity, reason = "the two parts of a value's type")]
    fn type_of(
        &mut self,
        message: Range<usize>,
        depth: usize,
    ) -> Result<(Option<ElementType>, Option<Vec<Dimension>>)> {
        if depth >= DEPTH {
            return Err(Error::invalid(message.start, format!("more than {DEPTH} types within each other")));
        }
        let (mut once, mut element, mut shape) = (Once::default(), None, None);
        for part in self.fields(message) {
            let part = part?;
            self.count(1, &part)?;
            match part.number {
                1 | 8 => {
                    once.check(&part)?;
                    for inner in self.fields(part.bytes()?) {
                        let inner = inner?;
                        match inner.number {
                            1 => {
                                let code = i32::try_from(inner.varint()?).unwrap_or(0);
                                element = Some(ElementType::from_code(code)).filter(|_| code != 0);
                            }
                            2 => shape = Some(self.shape(inner.bytes()?)?),
                            _ => {}
                        }
                    }
                    if part.number == 8 {
                        (element, shape) = (None, None);
                    }
                }
                // A sequence, a map or an optional value, whose elements have a type again.
                4 | 5 | 9 => {
                    let of_elements = if part.number == 5 { 2 } else { 1 };
                    for inner in self.fields(part.bytes()?) {
                        let inner = inner?;
                        if inner.number == of_elements {
                            self.type_of(inner.bytes()?, depth + 1)?;
                        }
                    }
                }
                _ => {}
            }
        }
        Ok((element, shape))
    }

    fn shape(&mut self, message: Range<usize>) -> Result<Vec<Dimension>> {
        let mut shape = Vec::new();
        for dimension in self.fields(message.clone()) {
            let dimension = dimension?;
            if dimension.number != 1 {
                continue;
            }
            let mut found = Dimension::Unknown;
            for part in self.fields(dimension.bytes()?) {
                let part = part?;
                match part.number {
                    1 => {
                        // Some exporters write -1 for a dimension that is not known.
                        let size = usize::try_from(part.varint()? as i64);
                        found = size.map_or(Dimension::Unknown, Dimension::Fixed);
                    }
                    2 => {
                        // Some exporters write `?` for all dimensions that are not known.
                        let name = self.text(&part)?;
                        let is_name = name.chars().any(char::is_alphanumeric);
                        found = if is_name { Dimension::Named(name) } else { Dimension::Unknown };
                    }
                    _ => {}
                }
            }
            shape.push(found);
            if shape.len() > MOST_DIMENSIONS {
                return Err(Error::invalid(
                    message.start,
                    format!("a value of more than {MOST_DIMENSIONS} dimensions"),
                ));
            }
        }
        Ok(shape)
    }
}

/// Refuses external tensors of which one has a part of another's data. Two may have the same.
fn require_apart(external: &[Arc<Stored>]) -> Result<()> {
    let place = |tensor: &Arc<Stored>| match &tensor.content {
        Content::External(external) => Some((external.path.clone(), external.offset, external.length, tensor.clone())),
        _ => None,
    };
    let mut places: Vec<_> = external.iter().filter_map(place).filter(|(_, _, length, _)| *length > 0).collect();
    places.sort_by(|a, b| (&a.0, a.1, a.2).cmp(&(&b.0, b.1, b.2)));
    for (first, second) in places.iter().zip(places.iter().skip(1)) {
        let same = (first.1, first.2) == (second.1, second.2);
        if first.0 == second.0 && !same && first.1 + first.2 > second.1 {
            let names = (&first.3.name, &second.3.name);
            let message = format!("the external data of `{}` overlaps that of `{}`", names.0, names.1);
            return Err(Error::invalid(second.3.message.start, message));
        }
    }
    Ok(())
}
