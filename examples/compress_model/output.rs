//! The second pass: the model with its layers cut to their ranks, streamed to the disk.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use dalr::network::Choice;
use serde_json::{Map, Value, json};

use crate::container::{self, Entry};
use crate::error::{Error, Result};
use crate::factors::{Factors, bias_bytes};
use crate::numbers;
use crate::progress::Progress;
use crate::selection::Layer;
use crate::source::{CHUNK, Source, Tensor};
use crate::work::Work;

/// What goes out.
pub struct Output<'a> {
    pub model: &'a Source,
    pub layers: &'a [Layer],
    pub choices: &'a [Choice],
    pub work: &'a Work,
    pub method: &'a str,
}

/// Where the data of an output tensor come from.
enum Content<'a> {
    Copy(&'a Tensor),
    Down(usize),
    Up(usize),
    Bias(usize),
}

impl Output<'_> {
    /// Writes header and tensors, a piece at a time.
    pub fn write(&self, path: &Path, writer: &mut dyn Write, progress: &mut Progress) -> Result<()> {
        let entries = self.entries()?;
        let mut write = |bytes: &[u8]| writer.write_all(bytes).map_err(Error::io("cannot write", path));
        write(&container::header(&self.metadata(), &entries))?;
        progress.begin_writing(entries.iter().map(bytes).sum());
        for entry in &entries {
            let mut written = 0;
            let counted = |piece: &[u8]| {
                written += piece.len() as u64;
                write(piece)
            };
            self.content(entry, counted)?;
            if written != bytes(entry) {
                let found = format!("{written}: the work folder changed");
                return Err(Error::format(path, format!("{} bytes of `{}`", bytes(entry), entry.name), found));
            }
            progress.wrote(written);
        }
        Ok(())
    }

    fn content(&self, entry: &Entry<Content<'_>>, mut write: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        match entry.content {
            Content::Copy(tensor) => self.model.visit(tensor, CHUNK, write),
            Content::Down(index) => self.factors(index)?.down(self.rank(index), write),
            Content::Up(index) => self.factors(index)?.up(self.rank(index), write),
            Content::Bias(index) => {
                let layer = &self.layers[index];
                if let Some(corrected) = self.factors(index)?.bias(layer, self.rank(index))? {
                    return write(&corrected);
                }
                let kept = &self.model.tensors()[&layer.bias()];
                let kept = numbers::list(self.model, kept, &mut crc32fast::Hasher::new())?;
                write(&bias_bytes(layer, &kept)?)
            }
        }
    }

    fn factors(&self, index: usize) -> Result<Factors> {
        let path = self.work.layer(index);
        Factors::open(&path)?.ok_or_else(|| Error::format(&path, "a solved layer", "no such file"))
    }

    /// 0 for a layer that stays dense.
    fn rank(&self, index: usize) -> usize {
        rank(self.choices[index])
    }

    /// The tensors of the output in the order of the file.
    fn entries(&self) -> Result<Vec<Entry<Content<'_>>>> {
        let mut replaced: BTreeMap<String, usize> = BTreeMap::new();
        let mut entries = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let rank = self.rank(index);
            if rank == 0 {
                continue;
            }
            replaced.insert(layer.weight(), index);
            replaced.insert(layer.bias(), index);
            let mut add = |part: &str, shape, content| {
                entries.push(Entry { name: format!("{}.{part}", layer.name), dtype: layer.dtype, shape, content });
            };
            add("0.weight", vec![rank, layer.in_features], Content::Down(index));
            add("1.weight", vec![layer.out_features, rank], Content::Up(index));
            if layer.has_bias || self.factors(index)?.has_bias() {
                add("1.bias", vec![layer.out_features], Content::Bias(index));
            }
        }
        for (name, tensor) in self.model.tensors() {
            if !replaced.contains_key(name) {
                let (dtype, shape) = (tensor.dtype, tensor.shape.clone());
                entries.push(Entry { name: name.clone(), dtype, shape, content: Content::Copy(tensor) });
            }
        }
        container::sort(&mut entries);
        Ok(entries)
    }

    /// The model's metadata and ours: the method, the ranks and the version of this crate.
    fn metadata(&self) -> BTreeMap<String, String> {
        let mut metadata = self.model.metadata().clone();
        // A model that was compressed before keeps the ranks it had.
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

fn bytes(entry: &Entry<Content<'_>>) -> u64 {
    match entry.content {
        Content::Copy(tensor) => tensor.length,
        _ => (entry.shape.iter().product::<usize>() * numbers::width(entry.dtype)) as u64,
    }
}

/// The rank of a choice; 0 for a layer that stays dense.
pub fn rank(choice: Choice) -> usize {
    match choice {
        Choice::Rank(rank) => rank,
        _ => 0,
    }
}
