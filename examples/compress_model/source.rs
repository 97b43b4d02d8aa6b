//! Models and calibration data: safetensors files, one or several, read by position.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crc32fast::Hasher;
use safetensors::tensor::{Dtype, Metadata};

use crate::error::{Error, Result};
use crate::interrupt;
use crate::positioned::Positioned;

/// The longest header that the format's own implementation accepts.
const LONGEST_HEADER: u64 = 100_000_000;

/// Bytes read at a time.
pub const CHUNK: usize = 1 << 20;

/// Where a tensor lies and how to read it.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Of its data, in bytes.
    pub length: u64,
    file: usize,
    start: u64,
}

impl Tensor {
    /// The type's name in a file, `F32`.
    pub fn dtype_name(&self) -> String {
        format!("{:?}", self.dtype)
    }
}

/// The tensors of a safetensors file, or of the shards of an index. Only headers are in memory.
pub struct Source {
    files: Vec<Positioned>,
    tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
    headers: Hasher,
}

impl Source {
    /// Opens `NAME.safetensors`, or all shards that `NAME.safetensors.index.json` lists.
    pub fn open(path: &Path) -> Result<Self> {
        let mut source =
            Self { files: Vec::new(), tensors: BTreeMap::new(), metadata: BTreeMap::new(), headers: Hasher::new() };
        if path.extension().is_some_and(|extension| extension == "json") {
            for shard in shards(path)? {
                source.add(&shard)?;
            }
        } else {
            source.add(path)?;
        }
        Ok(source)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let file = Positioned::open(path)?;
        let (header, data) = header(&file)?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| Error::format(path, "a header in the safetensors format", error.to_string()))?;
        let length = data.checked_add(metadata.data_len() as u64);
        if length != Some(file.length()) {
            let expected = length.map_or("a length that can be addressed".into(), |length| format!("{length} bytes"));
            return Err(Error::format(path, expected, format!("{} bytes", file.length())));
        }
        self.headers.update(&header);
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let tensor = Tensor {
                dtype: info.dtype,
                shape: info.shape.clone(),
                length: (end - start) as u64,
                file: self.files.len(),
                start: data + start as u64,
            };
            if self.tensors.insert(name.clone(), tensor).is_some() {
                return Err(Error::format(path, "every tensor in one shard alone", format!("`{name}` a second time")));
            }
        }
        for (key, value) in metadata.metadata().iter().flatten() {
            self.metadata.entry(key.clone()).or_insert_with(|| value.clone());
        }
        self.files.push(file);
        Ok(())
    }

    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// The `__metadata__` of all shards; of the first one where they differ.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(Positioned::path)
    }

    /// A checksum of all headers: names, types, shapes and metadata.
    pub fn headers(&self) -> u32 {
        self.headers.clone().finalize()
    }

    /// Fills `bytes` from a tensor's data, from the byte at `offset` on.
    pub fn read(&self, tensor: &Tensor, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.files[tensor.file].read_exact_at(bytes, tensor.start + offset)
    }

    /// Visits a tensor's data from beginning to end, in pieces of `step` bytes but for the last. Can be interrupted between two.
    pub fn visit(&self, tensor: &Tensor, step: usize, visit: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.visit_part(tensor, tensor.length, step, visit)
    }

    /// The same up to the byte at `end`.
    pub fn visit_part(
        &self,
        tensor: &Tensor,
        end: u64,
        step: usize,
        mut visit: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let end = end.min(tensor.length);
        let mut buffer = vec![0; step.min(usize::try_from(end).unwrap_or(usize::MAX))];
        let mut offset = 0;
        while offset < end {
            interrupt::check()?;
            let count = (end - offset).min(buffer.len() as u64) as usize;
            self.read(tensor, offset, &mut buffer[..count])?;
            visit(&buffer[..count])?;
            offset += count as u64;
        }
        Ok(())
    }

    /// Adds a tensor's data to a checksum.
    pub fn sum(&self, tensor: &Tensor, sum: &mut Hasher) -> Result<()> {
        self.visit(tensor, CHUNK, |bytes| {
            sum.update(bytes);
            Ok(())
        })
    }
}

/// The header of a file and the position at which its data begin. Nothing is allocated that the file does not hold.
fn header(file: &Positioned) -> Result<(Vec<u8>, u64)> {
    let path = file.path();
    let mut length = [0; 8];
    if file.length() < 8 {
        return Err(Error::format(path, "a safetensors file", format!("{} bytes", file.length())));
    }
    file.read_exact_at(&mut length, 0)?;
    let length = u64::from_le_bytes(length);
    let most = LONGEST_HEADER.min(file.length() - 8);
    if length > most {
        return Err(Error::format(path, format!("a header of at most {most} bytes"), format!("one of {length}")));
    }
    let mut header = vec![0; length as usize];
    file.read_exact_at(&mut header, 8)?;
    Ok((header, 8 + length))
}

/// The distinct files of an index, beside it, in the order of their names.
fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    let text = std::fs::read(index).map_err(Error::io("cannot read", index))?;
    let refuse = |found: String| Error::format(index, "an index with a `weight_map` of tensors to file names", found);
    let index_: serde_json::Value = serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?;
    let map = index_["weight_map"].as_object().ok_or_else(|| refuse("none".into()))?;
    let mut shards = Vec::new();
    for file in map.values() {
        let name = file.as_str().ok_or_else(|| refuse(file.to_string()))?;
        // A name, not a path: an index must not lead out of its folder.
        if Path::new(name).file_name().is_none_or(|file| file != name) {
            return Err(refuse(format!("`{name}`")));
        }
        shards.push(index.with_file_name(name));
    }
    shards.sort();
    shards.dedup();
    if shards.is_empty() { Err(refuse("an empty one".into())) } else { Ok(shards) }
}
