//! The second pass: writes the model with its compressed layers to the disk, as a stream.

use std::collections::{BTreeMap, BTreeSet};
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
    /// The ranks of the layers that are compressed.
    pub ranks: &'a BTreeMap<String, usize>,
    pub unfinished: &'a UnfinishedRun,
    pub method: &'a str,
}

/// The source of an output tensor's data: a tensor of the model, or a part of the layer with this
/// index.
enum Content<'a> {
    Copy(&'a str),
    Down { index: usize, rank: usize },
    Up { index: usize, rank: usize },
    Bias { index: usize, rank: usize },
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
            Content::Down { index, rank } => self.factors(index)?.down(rank, write),
            Content::Up { index, rank } => self.factors(index)?.up(rank, write),
            Content::Bias { index, rank } => {
                let layer = &self.layers[index];
                let bias = match self.factors(index)?.bias(layer, rank)? {
                    Some(corrected) => corrected,
                    None => self.model.vector::<f64>(&layer.bias())?.iter().copied().collect(),
                };
                write(&write_bias(layer, &bias)?)
            }
        }
    }

    fn factors(&self, index: usize) -> Result<Factors> {
        let path = self.unfinished.layer(index);
        let found = "no such file: run again with --resume to compute them";
        Factors::open(&path)?.ok_or_else(|| Error::format(&path, "the factors of a layer", found))
    }

    fn plan(&self) -> Result<ModelWriter<Content<'_>>> {
        let mut writer = ModelWriter::new().with_metadata(self.metadata());
        let mut replaced = BTreeSet::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let Some(&rank) = self.ranks.get(&layer.name) else { continue };
            replaced.extend([layer.weight(), layer.bias()]);
            let mut add = |part: &str, shape: &[usize], content| {
                writer.add(format!("{}.{part}", layer.name), layer.dtype.into(), shape, content)
            };
            add("0.weight", &[rank, layer.in_features], Content::Down { index, rank })?;
            add("1.weight", &[layer.out_features, rank], Content::Up { index, rank })?;
            if layer.has_bias || self.factors(index)?.has_bias() {
                add("1.bias", &[layer.out_features], Content::Bias { index, rank })?;
            }
        }
        for (name, tensor) in self.model.tensors().filter(|(name, _)| !replaced.contains(*name)) {
            writer.add(name, tensor.dtype, &tensor.shape, Content::Copy(name))?;
        }
        Ok(writer)
    }

    /// Returns the model's metadata, with the method, the ranks and the version added.
    fn metadata(&self) -> BTreeMap<String, String> {
        let mut metadata = self.model.metadata().clone();
        // If the model was compressed before, the ranks of its other layers are kept.
        let before = metadata.get("dalr.ranks").and_then(|text| serde_json::from_str::<Map<String, Value>>(text).ok());
        let mut ranks = before.unwrap_or_default();
        ranks.extend(self.ranks.iter().map(|(name, rank)| (name.clone(), json!(rank))));
        metadata.insert("dalr.method".into(), self.method.into());
        metadata.insert("dalr.ranks".into(), Value::Object(ranks).to_string());
        metadata.insert("dalr.version".into(), env!("CARGO_PKG_VERSION").into());
        metadata
    }
}
