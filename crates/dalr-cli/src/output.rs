//! The second pass: streams the model, with its layers cut to their ranks, to the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use dalr::interop::safetensors::{ModelFile, ModelWriter, TensorWriter};
use dalr::network::Choice;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::factors::{Factors, write_bias};
use crate::interrupt;
use crate::progress::Progress;
use crate::selection::Layer;
use crate::work::Work;

/// Bytes that are copied at a time.
const PIECE: usize = 1 << 20;

/// The content of the output file.
pub struct Output<'a> {
    pub model: &'a ModelFile,
    pub layers: &'a [Layer],
    pub choices: &'a [Choice],
    pub work: &'a Work,
    pub method: &'a str,
}

/// The source of an output tensor's data. Numbers are indices of layers.
enum Content<'a> {
    Copy(&'a str),
    Down(usize),
    Up(usize),
    Bias(usize),
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
            Content::Down(index) => self.factors(index)?.down(self.rank(index), write),
            Content::Up(index) => self.factors(index)?.up(self.rank(index), write),
            Content::Bias(index) => {
                let layer = &self.layers[index];
                let bias = match self.factors(index)?.bias(layer, self.rank(index))? {
                    Some(corrected) => corrected,
                    None => self.model.vector::<f64>(&layer.bias())?.iter().copied().collect(),
                };
                write(&write_bias(layer, &bias)?)
            }
        }
    }

    fn factors(&self, index: usize) -> Result<Factors> {
        let path = self.work.layer(index);
        Factors::open(&path)?.ok_or_else(|| Error::format(&path, "a solved layer", "no such file"))
    }

    /// 0 for an original layer.
    fn rank(&self, index: usize) -> usize {
        rank(self.choices[index])
    }

    fn plan(&self) -> Result<ModelWriter<Content<'_>>> {
        let mut writer = ModelWriter::new().with_metadata(self.metadata());
        let mut replaced = BTreeSet::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let rank = self.rank(index);
            if rank == 0 {
                continue;
            }
            replaced.extend([layer.weight(), layer.bias()]);
            let mut add = |part: &str, shape: &[usize], content| {
                writer.add(format!("{}.{part}", layer.name), layer.dtype.into(), shape, content)
            };
            add("0.weight", &[rank, layer.in_features], Content::Down(index))?;
            add("1.weight", &[layer.out_features, rank], Content::Up(index))?;
            if layer.has_bias || self.factors(index)?.has_bias() {
                add("1.bias", &[layer.out_features], Content::Bias(index))?;
            }
        }
        for (name, tensor) in self.model.tensors().filter(|(name, _)| !replaced.contains(*name)) {
            writer.add(name, tensor.dtype, &tensor.shape, Content::Copy(name))?;
        }
        Ok(writer)
    }

    /// The model's metadata, with the method, the ranks and the version added.
    fn metadata(&self) -> BTreeMap<String, String> {
        let mut metadata = self.model.metadata().clone();
        // A model that was compressed before keeps the ranks of its other layers.
        let before = metadata.get("dalr.ranks").and_then(|text| serde_json::from_str::<Map<String, Value>>(text).ok());
        let mut ranks = before.unwrap_or_default();
        for (index, layer) in self.layers.iter().enumerate().filter(|(index, _)| self.rank(*index) > 0) {
            ranks.insert(layer.name.clone(), json!(self.rank(index)));
        }
        metadata.insert("dalr.method".into(), self.method.into());
        metadata.insert("dalr.ranks".into(), Value::Object(ranks).to_string());
        metadata.insert("dalr.version".into(), env!("CARGO_PKG_VERSION").into());
        metadata
    }
}

/// The rank of a choice; 0 for an original layer.
pub fn rank(choice: Choice) -> usize {
    match choice {
        Choice::Rank(rank) => rank,
        _ => 0,
    }
}
