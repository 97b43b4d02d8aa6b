//! Reads model files tensor by tensor, by position.

use core::ops::{Bound, RangeBounds};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ::safetensors::tensor::Metadata;
use crc32fast::Hasher;
use faer::{Col, Mat, MatRef};

use super::positioned_read::Positioned;
use super::{Dtype, FloatDtype, PIECE, TensorWriter, format_error, io_error};
use crate::error::during;
use crate::{Error, Result, Scalar, linalg};

/// The longest header that the format's own implementation accepts.
const LONGEST_HEADER: u64 = 100_000_000;

/// The smallest number of rows that [`ModelFile::matrix`] converts together. It fills columns, and
/// shorter pieces would waste cache lines.
const ROWS: usize = 16;

/// The dtype and the shape of a tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// The dtype of its numbers.
    pub dtype: Dtype,
    /// Its axes, the slowest first.
    pub shape: Vec<usize>,
    /// The length of its data in bytes.
    pub bytes: u64,
}

impl TensorInfo {
    /// Creates the description of a tensor; `None` if the length of its data exceeds `u64`.
    pub(super) fn new(dtype: Dtype, shape: &[usize]) -> Option<Self> {
        let bits = shape.iter().try_fold(dtype.bitsize() as u64, |bits, &axis| bits.checked_mul(axis as u64))?;
        Some(Self { dtype, shape: shape.into(), bytes: bits.div_ceil(8) })
    }
}

/// The position of a tensor in the files.
#[derive(Debug)]
struct Place {
    info: TensorInfo,
    file: usize,
    start: u64,
}

/// A model: one safetensors file, or all shards of an index. Only headers are in memory.
///
/// Lengths, shapes and offsets are checked before memory is allocated for them, so damaged or
/// malicious files are safe to open. Several threads may read from one `ModelFile`.
#[derive(Debug)]
pub struct ModelFile {
    path: PathBuf,
    files: Vec<Positioned>,
    tensors: BTreeMap<String, Place>,
    metadata: BTreeMap<String, String>,
    headers: Hasher,
}

impl ModelFile {
    /// Opens a safetensors file, or, if the name ends in `.json`, all shards that this index lists.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Format`] for a damaged header, for a file whose length does not
    /// match its header, for a tensor in two shards, and for an index that names files outside of
    /// its own folder.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (tensors, metadata, headers) = (BTreeMap::new(), BTreeMap::new(), Hasher::new());
        let mut model = Self { path: path.into(), files: Vec::new(), tensors, metadata, headers };
        if path.extension().is_some_and(|extension| extension == "json") {
            for shard in shards(path).map_err(|error| error.during("ModelFile::open"))? {
                model.add(&shard)?;
            }
        } else {
            model.add(path)?;
        }
        Ok(model)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        during("ModelFile::open", || {
            let file = Positioned::open(path)?;
            let (header, data) = header(&file)?;
            let refuse = |expected: String, found: String| format_error(path, expected, found);
            let metadata: Metadata = serde_json::from_slice(&header)
                .map_err(|error| refuse("a header in the safetensors format".into(), error.to_string()))?;
            let length = data.checked_add(metadata.data_len() as u64);
            if length != Some(file.length()) {
                let expected =
                    length.map_or("a length that can be addressed".into(), |length| format!("{length} bytes"));
                return Err(refuse(expected, format!("{} bytes", file.length())));
            }
            self.headers.update(&header);
            for (name, info) in metadata.tensors() {
                let (start, end) = info.data_offsets;
                let bytes = (end - start) as u64;
                let info = TensorInfo { dtype: info.dtype, shape: info.shape.clone(), bytes };
                let place = Place { info, file: self.files.len(), start: data + start as u64 };
                if self.tensors.insert(name.clone(), place).is_some() {
                    return Err(refuse("every tensor in one shard only".into(), format!("`{name}` a second time")));
                }
            }
            for (key, value) in metadata.metadata().iter().flatten() {
                self.metadata.entry(key.clone()).or_insert_with(|| value.clone());
            }
            self.files.push(file);
            Ok(())
        })
    }

    /// Returns the path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the files with tensors: one, or the shards by name.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(Positioned::path)
    }

    /// Returns the names and descriptions of all tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(name, place)| (name.as_str(), &place.info))
    }

    /// Returns the description of the tensor of this name, if there is one.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        Some(&self.tensors.get(name)?.info)
    }

    /// Returns the `__metadata__` of all shards. If shards differ in a value, returns that of the
    /// first shard.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Returns a CRC-32 of all headers: names, dtypes, shapes and metadata.
    pub fn header_checksum(&self) -> u32 {
        self.headers.clone().finalize()
    }

    /// Returns a CRC-32 of a tensor's data.
    ///
    /// # Errors
    ///
    /// As [`visit`](Self::visit).
    pub fn checksum(&self, name: &str) -> Result<u32> {
        let mut sum = Hasher::new();
        self.visit(name, .., PIECE, |bytes| {
            sum.update(bytes);
            Ok::<_, Error>(())
        })?;
        Ok(sum.finalize())
    }

    /// Passes a tensor's data, or those of its bytes in `range`, to `visit`, in pieces of `piece`
    /// bytes; the last piece can be shorter. Stops at the first error of `visit`. Bytes of the
    /// range beyond the data are ignored. One piece is in memory at a time.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Format`] if there is no tensor of this name; the errors of `visit`.
    pub fn visit<E: From<Error>>(
        &self,
        name: &str,
        range: impl RangeBounds<u64>,
        piece: usize,
        mut visit: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let named = |error: Error| error.during("ModelFile::visit");
        let (file, place) = self.place(name).map_err(named)?;
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1).min(place.info.bytes),
            Bound::Excluded(end) => (*end).min(place.info.bytes),
            Bound::Unbounded => place.info.bytes,
        };
        let mut offset = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let room = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX).min(piece.max(1));
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(room).map_err(|_| named(linalg::out_of_memory(room)))?;
        while offset < end {
            buffer.resize(usize::try_from(end - offset).unwrap_or(usize::MAX).min(room), 0);
            file.read(&mut buffer, place.start + offset).map_err(named)?;
            visit(&buffer)?;
            offset += buffer.len() as u64;
        }
        Ok(())
    }

    /// Reads a tensor as a matrix, converted to `T`. All axes but the last are flattened into rows.
    ///
    /// # Errors
    ///
    /// As [`visit`](Self::visit); [`Error::NumberType`] for a dtype that is not a [`FloatDtype`];
    /// [`Error::Memory`].
    pub fn matrix<T: Scalar>(&self, name: &str) -> Result<Mat<T>> {
        during("ModelFile::matrix", || {
            let (_, Place { info, .. }) = self.place(name)?;
            if info.bytes == 0 {
                // The length of the data does not limit the axes of an empty tensor.
                return Err(Error::empty("the tensor"));
            }
            self.read(name, info.shape.last().copied().unwrap_or(1))
        })
    }

    /// Reads a tensor as one vector, converted to `T`, whatever its axes.
    ///
    /// # Errors
    ///
    /// As [`matrix`](Self::matrix).
    pub fn vector<T: Scalar>(&self, name: &str) -> Result<Col<T>> {
        during("ModelFile::vector", || Ok(self.read::<T>(name, 1)?.col(0).to_owned()))
    }

    /// Reads a tensor as rows of this many numbers.
    fn read<T: Scalar>(&self, name: &str, columns: usize) -> Result<Mat<T>> {
        let (_, Place { info, .. }) = self.place(name)?;
        let (what, expected) = ("the tensor", "F64, F32, F16 or BF16");
        let dtype = FloatDtype::of(info.dtype)
            .ok_or_else(|| Error::number_type(what, expected, format!("{:?}", info.dtype)))?;
        let row = columns * dtype.width();
        let rows = usize::try_from(info.bytes).unwrap_or(usize::MAX) / row;
        let mut matrix = linalg::zeros::<T>(rows, columns)?;
        let mut numbers = Vec::new();
        let mut first = 0;
        self.visit(name, .., (PIECE / row).max(ROWS) * row, |bytes| {
            numbers.clear();
            dtype.decode(bytes, |number| numbers.push(T::from_f64(number)));
            let count = numbers.len() / columns;
            let piece = MatRef::from_row_major_slice(&numbers, count, columns);
            linalg::copy_in_tiles(matrix.as_mut().subrows_mut(first, count), piece);
            first += count;
            Ok::<_, Error>(())
        })?;
        Ok(matrix)
    }

    /// Copies a tensor's data to a file that is being written, byte for byte.
    ///
    /// # Errors
    ///
    /// As [`visit`](Self::visit), and those of the writer.
    pub fn copy(&self, name: &str, target: &mut TensorWriter<'_>) -> Result<()> {
        self.visit(name, .., PIECE, |bytes| target.bytes(bytes))
    }

    fn place(&self, name: &str) -> Result<(&Positioned, &Place)> {
        let place = self.tensors.get(name).and_then(|place| Some((self.files.get(place.file)?, place)));
        place.ok_or_else(|| format_error(&self.path, format!("a tensor `{name}`"), "none"))
    }
}

/// Returns the header of a file and the position of its data. Allocates no more bytes than the file
/// has.
fn header(file: &Positioned) -> Result<(Vec<u8>, u64)> {
    let refuse = |expected: String, found: String| Err(format_error(file.path(), expected, found));
    let Some(rest) = file.length().checked_sub(8) else {
        return refuse("a safetensors file".into(), format!("{} bytes", file.length()));
    };
    let mut length = [0; 8];
    file.read(&mut length, 0)?;
    let length = u64::from_le_bytes(length);
    let most = LONGEST_HEADER.min(rest);
    if length > most {
        return refuse(format!("a header of at most {most} bytes"), format!("one of {length}"));
    }
    let mut header = vec![0; length as usize];
    file.read(&mut header, 8)?;
    Ok((header, 8 + length))
}

/// Returns the distinct files of an index, which are in its folder, sorted by name.
fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    during("ModelFile::open", || {
        let text = std::fs::read(index).map_err(|error| io_error(index, error))?;
        let expected = "a `weight_map` from tensor names to file names without folders";
        let refuse = |found: String| format_error(index, expected, found);
        let json: serde_json::Value = serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?;
        let map = json.get("weight_map").and_then(|map| map.as_object()).ok_or_else(|| refuse("none".into()))?;
        let mut shards = Vec::new();
        for file in map.values() {
            let name = file.as_str().ok_or_else(|| refuse(file.to_string()))?;
            // An index must not name files outside of its folder.
            if Path::new(name).file_name().is_none_or(|file| file != name) {
                return Err(refuse(format!("`{name}`")));
            }
            shards.push(index.with_file_name(name));
        }
        shards.sort();
        shards.dedup();
        if shards.is_empty() { Err(refuse("an empty one".into())) } else { Ok(shards) }
    })
}
