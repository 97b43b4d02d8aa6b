//! A model file: reading, checks and writing.

use core::ops::Range;
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use crate::find_layers;
use crate::functions;
use crate::graph::{Graph, ValueInfo};
use crate::graph_reader::GraphReader;
use crate::index::Index;
use crate::layer::{Layer, LeftAlone};
use crate::units::{self, UnitPair};
use crate::wire::{Once, fields};
use crate::{Error, Result};

/// Protocol buffers have at most this many bytes.
pub(crate) const LARGEST: u64 = (1 << 31) - 1;

/// The oldest opset whose operators broadcast as today's do.
const OLDEST_OPSET: i64 = 7;

/// An ONNX model, read and checked. See the [crate's documentation](crate) for what is read.
///
/// The model keeps the bytes of its file, and edits change only the nodes and tensors of replaced
/// layers. Clones share the bytes.
#[derive(Clone, Debug)]
pub struct Model {
    pub(crate) file: Arc<Vec<u8>>,
    pub(crate) graph: Arc<Graph>,
    pub(crate) index: Arc<Index>,
    /// The field of the model that has the graph, with its tag.
    pub(crate) graph_field: Range<usize>,
    pub(crate) opset: i64,
    pub(crate) ir_version: i64,
    inputs: Vec<ValueInfo>,
    layers: Vec<Layer>,
    left_alone: Vec<LeftAlone>,
    unit_pairs: Vec<UnitPair>,
    pub(crate) edits: Edits,
}

/// What differs from the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Edits {
    /// Nodes by their number, and the fields in their place.
    pub nodes: BTreeMap<usize, Vec<u8>>,
    /// Other fields of the graph that are left out, by their start.
    pub left_out: BTreeMap<usize, Range<usize>>,
    pub added: Vec<Added>,
    /// Names that the file does not have.
    pub names: HashSet<String>,
    pub replaced: HashSet<String>,
}

/// A tensor that the file does not have.
#[derive(Clone, Debug)]
pub(crate) struct Added {
    pub name: String,
    /// The fields of the tensor without its data.
    pub header: Vec<u8>,
    /// Element type and dimensions, as in `header`.
    pub code: i32,
    pub dims: Vec<usize>,
    pub data: Arc<Vec<u8>>,
    /// Whether its data is outside of the file, as that of the tensor it replaces.
    pub external: bool,
}

impl Model {
    /// Reads a model. External data must be in the folder of the file, and is read when it is
    /// needed.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Invalid`] for a file that is damaged or breaks a rule of ONNX:
    /// nodes that read what nothing before them computes, data that does not have the size that the
    /// dimensions say, external data outside of the folder or the file; [`Error::Unsupported`] for
    /// an opset below 7 and for models with training information.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = || Error::io(path);
        let metadata = fs::metadata(path).map_err(io())?;
        if !metadata.is_file() {
            return Err(Error::Unsupported(format!("{} is no file", path.display())));
        }
        if metadata.len() > LARGEST {
            let message = format!("{} has more than 2 GiB: larger models have external data", path.display());
            return Err(Error::Unsupported(message));
        }
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(io())?;
        file.take(LARGEST).read_to_end(&mut bytes).map_err(io())?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Self::from_bytes(bytes, Some(folder))
    }

    /// Reads a model from memory. `folder` has its external data.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open); external data without a folder.
    pub fn from_bytes(bytes: Vec<u8>, folder: Option<&Path>) -> Result<Self> {
        let (mut once, mut graph, mut ir_version, mut opset) = (Once::default(), None, 0, None);
        let mut functions = Vec::new();
        for field in fields(&bytes, 0..bytes.len()) {
            let field = field?;
            match field.number {
                1 | 7 => once.check(&field)?,
                _ => {}
            }
            match field.number {
                1 => ir_version = field.varint()? as i64,
                7 => graph = Some((field.whole.clone(), field.bytes()?)),
                8 => {
                    let (mut domain, mut version) = (String::new(), 0);
                    for part in fields(&bytes, field.bytes()?) {
                        let part = part?;
                        match part.number {
                            1 => domain = part.text(&bytes)?.into(),
                            2 => version = part.varint()? as i64,
                            _ => {}
                        }
                    }
                    if matches!(domain.as_str(), "" | "ai.onnx") {
                        if opset.is_some_and(|found| found != version) {
                            return Err(Error::invalid(field.whole.start, "two versions of ONNX's operators"));
                        }
                        opset = Some(version);
                    }
                }
                20 => return Err(Error::Unsupported("the model has training information".into())),
                25 => functions.push(field.bytes()?),
                _ => {}
            }
        }
        let (graph_field, message) = graph.ok_or_else(|| Error::invalid(0, "there is no graph"))?;
        let opset = opset.ok_or_else(|| Error::invalid(0, "the model does not state its opset"))?;
        if opset < OLDEST_OPSET {
            let message = format!("the model has opset {opset}: convert it to opset {OLDEST_OPSET} or newer");
            return Err(Error::Unsupported(message));
        }
        let graph = GraphReader::new(&bytes, folder).main(message)?;
        let mut left_alone = Vec::new();
        let functions = functions.into_iter().map(|message| GraphReader::new(&bytes, folder).function(message));
        functions::check(functions.collect::<Result<_>>()?, &graph.calls, &mut left_alone)?;
        let index = Index::new(&graph);
        let (layers, others) = find_layers::find(&graph, &index, opset);
        left_alone.splice(0..0, others);
        let unit_pairs = units::find(&graph, &index, &layers);
        let inputs = graph.inputs.iter().map(|(_, info)| info);
        let inputs = inputs.filter(|info| !graph.initializers.contains_key(&info.name)).cloned().collect();
        Ok(Self {
            file: Arc::new(bytes),
            graph: Arc::new(graph),
            index: Arc::new(index),
            graph_field,
            opset,
            ir_version,
            inputs,
            layers,
            left_alone,
            unit_pairs,
            edits: Edits::default(),
        })
    }

    /// Returns the version of ONNX's operators that the model uses.
    pub fn opset(&self) -> i64 {
        self.opset
    }

    /// Returns the inputs that a caller must give: initializers are not among them.
    pub fn inputs(&self) -> &[ValueInfo] {
        &self.inputs
    }

    /// Returns the outputs.
    pub fn outputs(&self) -> &[ValueInfo] {
        &self.graph.outputs
    }

    /// Returns the layers that can be compressed, in the order in which they run. Replaced layers
    /// stay in this list.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Returns the nodes with weights that stay as they are, and why.
    pub fn left_alone(&self) -> &[LeftAlone] {
        &self.left_alone
    }

    /// Returns the pairs of layers whose hidden units can be made fewer. A layer can be in two
    /// pairs; it can be replaced once.
    pub fn unit_pairs(&self) -> &[UnitPair] {
        &self.unit_pairs
    }

    /// Returns the layer of this name.
    ///
    /// # Errors
    ///
    /// [`Error::Layer`] if there is none.
    pub fn layer(&self, name: &str) -> Result<&Layer> {
        let found = self.layers.iter().find(|layer| layer.name == name);
        found.ok_or_else(|| Error::layer(name, "there is no layer of this name"))
    }
}
