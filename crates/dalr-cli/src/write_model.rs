//! The second pass: writes the model with its compressed layers to the disk, as a stream.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use dalr::interop::safetensors::{ModelFile, ModelWriter, TensorWriter};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::factors::{Factors, write_bias};
use crate::interrupt;
use crate::layer::Layer;
use crate::progress::Progress;
use crate::unfinished_run::UnfinishedRun;

/// Number of bytes that are copied at a time.
const PIECE: usize = 1 << 20;

/// The content of the output file.
pub struct Output<'a> {
    pub model: &'a ModelFile,
    pub layers: &'a [Layer],
    /// The layers that are compressed, by index.
    pub replacements: &'a BTreeMap<usize, Replacement>,
    pub unfinished: &'a UnfinishedRun,
    pub method: &'a str,
}

/// The factors of a layer.
pub struct Replacement {
    /// The index of the file with the factors.
    pub file: usize,
    pub rank: usize,
    /// The rows of `up` in that file.
    pub rows: Range<usize>,
    /// The index of the layer with whose name `down` is stored.
    pub down_of: usize,
}

/// The source of an output tensor's data: a tensor of the model, or a part of a solved layer.
enum Content<'a> {
    Copy(&'a str),
    Down(&'a Replacement),
    Up(&'a Replacement),
    Bias(&'a Layer, &'a Replacement),
}

impl Output<'_> {
    pub fn write(&self, path: &Path, progress: &mut Progress) -> Result<()> {
        let writer = self.plan()?;
        progress.begin_writing(writer.data_bytes());
        writer.write(path, |content, target| self.content(content, target, progress))
    }

    fn content(&self, content: &Content<'_>, target: &mut TensorWriter<'_>, progress: &mut Progress) -> Result<()> {
        let mut write = |bytes: &[u8]| {
            interrupt::check()?;
            progress.wrote(bytes.len());
            Ok(target.bytes(bytes)?)
        };
        match *content {
            Content::Copy(name) => self.model.visit(name, .., PIECE, write),
            Content::Down(part) => self.factors(part)?.down(part.rank, write),
            Content::Up(part) => self.factors(part)?.up(part.rank, part.rows.clone(), write),
            Content::Bias(layer, part) => {
                let bias = match self.factors(part)?.bias(layer, part.rank, part.rows.clone())? {
                    Some(corrected) => corrected,
                    None => self.model.vector::<f64>(&layer.bias())?.iter().copied().collect(),
                };
                write(&write_bias(layer, &bias)?)
            }
        }
    }

    fn factors(&self, part: &Replacement) -> Result<Factors> {
        let path = self.unfinished.layer(part.file);
        let found = "no such file: run again with --resume to compute them";
        Factors::open(&path)?.ok_or_else(|| Error::format(&path, "the factors of a layer", found))
    }

    fn plan(&self) -> Result<ModelWriter<Content<'_>>> {
        let mut writer = ModelWriter::new().with_metadata(self.metadata());
        let mut replaced = BTreeSet::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let Some(part) = self.replacements.get(&index) else { continue };
            let rank = part.rank;
            replaced.extend([layer.weight(), layer.bias()]);
            let mut add = |part: &str, shape: &[usize], content| {
                writer.add(format!("{}.{part}", layer.name), layer.dtype.into(), shape, content)
            };
            if part.down_of == index {
                add("0.weight", &[rank, layer.in_features], Content::Down(part))?;
            }
            add("1.weight", &[layer.out_features, rank], Content::Up(part))?;
            if layer.has_bias || self.factors(part)?.has_bias() {
                add("1.bias", &[layer.out_features], Content::Bias(layer, part))?;
            }
        }
        for (name, tensor) in self.model.tensors().filter(|(name, _)| !replaced.contains(*name)) {
            writer.add(name, tensor.dtype, &tensor.shape, Content::Copy(name))?;
        }
        Ok(writer)
    }

    /// Returns the model's metadata, with the method, the ranks, the layers whose `down` has the
    /// name of another layer, and the version added.
    fn metadata(&self) -> BTreeMap<String, String> {
        let mut metadata = self.model.metadata().clone();
        // If the model was compressed before, the ranks of its other layers are kept.
        let before = metadata.get("dalr.ranks").and_then(|text| serde_json::from_str::<Map<String, Value>>(text).ok());
        let mut ranks = before.unwrap_or_default();
        let layers = || self.replacements.iter().map(|(index, part)| (index, &self.layers[*index].name, part));
        ranks.extend(layers().map(|(_, name, part)| (name.clone(), json!(part.rank))));
        let shared = layers().filter(|(index, _, part)| part.down_of != **index);
        let shared: Map<String, Value> =
            shared.map(|(_, name, part)| (name.clone(), json!(self.layers[part.down_of].name))).collect();
        if !shared.is_empty() {
            metadata.insert("dalr.shared".into(), Value::Object(shared).to_string());
        }
        metadata.insert("dalr.method".into(), self.method.into());
        metadata.insert("dalr.ranks".into(), Value::Object(ranks).to_string());
        metadata.insert("dalr.version".into(), env!("CARGO_PKG_VERSION").into());
        metadata
    }
}
