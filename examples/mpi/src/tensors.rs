//! Safetensors files, read tensor by tensor: models and activations are larger than memory.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use faer::{Col, Mat};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use crate::error::{Failure, Result};

/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;

/// Bytes that the longest header of the format has.
const LONGEST: u64 = 100_000_000;

/// A file and what is in it.
pub struct Tensors {
    path: PathBuf,
    file: File,
    start: u64,
    metadata: Metadata,
    length: u64,
}

impl Tensors {
    /// Reads the header and checks that the file is as long as it says.
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |error: io::Error| Failure::file(path, error);
        let mut file = File::open(path).map_err(fail)?;
        let length = file.metadata().map_err(fail)?.len();
        let mut header = [0; 8];
        file.read_exact(&mut header).map_err(fail)?;
        let header = u64::from_le_bytes(header);
        if header > LONGEST.min(length.saturating_sub(8)) {
            return Err(Failure::file(path, format!("expected a safetensors file, got a header of {header} bytes")));
        }
        let mut text = vec![0; header as usize];
        file.read_exact(&mut text).map_err(fail)?;
        let metadata: Metadata = serde_json::from_slice(&text)
            .map_err(|error| Failure::file(path, format!("expected a header in the safetensors format: {error}")))?;
        let start = 8 + header;
        let expected = start + metadata.data_len() as u64;
        if expected != length {
            return Err(Failure::file(path, format!("expected {expected} bytes, got {length}")));
        }
        Ok(Self { path: path.into(), file, start, metadata, length })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all tensors, in the file's order.
    pub fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// Type, shape and place of a tensor, if there is one of this name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.metadata.info(name)
    }

    fn require(&self, name: &str) -> Result<&TensorInfo> {
        self.info(name).ok_or_else(|| Failure::file(&self.path, format!("expected a tensor `{name}`, got none")))
    }

    /// A tensor as a matrix, all axes but the last one flattened into rows.
    pub fn matrix(&self, name: &str) -> Result<Mat<f32>> {
        let info = self.require(name)?;
        let columns = info.shape.last().copied().unwrap_or(0);
        let rows = info.shape.iter().rev().skip(1).product();
        let mut matrix = Mat::zeros(rows, columns);
        let mut place = 0;
        self.for_each(name, |x| {
            matrix[(place / columns, place % columns)] = x;
            place += 1;
        })?;
        Ok(matrix)
    }

    /// A tensor as one vector.
    pub fn vector(&self, name: &str) -> Result<Col<f32>> {
        let mut numbers = Vec::new();
        self.for_each(name, |x| numbers.push(x))?;
        Ok(numbers.into_iter().collect())
    }

    fn for_each(&self, name: &str, mut visit: impl FnMut(f32)) -> Result<()> {
        let info = self.require(name)?;
        let convert: fn(&[u8]) -> f32 = match info.dtype {
            Dtype::F32 => |bytes| f32::from_le_bytes(bytes.try_into().unwrap_or_default()),
            Dtype::F16 => |bytes| half::f16::from_le_bytes(bytes.try_into().unwrap_or_default()).to_f32(),
            Dtype::BF16 => |bytes| half::bf16::from_le_bytes(bytes.try_into().unwrap_or_default()).to_f32(),
            other => {
                let message = format!("expected `{name}` of type F32, F16 or BF16, got {other:?}");
                return Err(Failure::file(&self.path, message));
            }
        };
        let width = info.dtype.bitsize() / 8;
        self.pieces(info.data_offsets, |bytes| {
            bytes.chunks_exact(width).for_each(|number| visit(convert(number)));
            Ok(())
        })
    }

    /// A tensor's bytes as they are.
    pub fn copy(&self, name: &str, target: &mut impl Write) -> Result<()> {
        let offsets = self.require(name)?.data_offsets;
        self.pieces(offsets, |bytes| target.write_all(bytes))
    }

    /// A checksum of the whole file: two models of one architecture differ in their numbers alone.
    pub fn checksum(&self) -> Result<u32> {
        let mut sum = crc32fast::Hasher::new();
        let end = self.length as usize - self.start as usize;
        self.pieces((0, end), |bytes| {
            sum.update(bytes);
            Ok(())
        })?;
        // The header, by what it says: names, types, shapes and places.
        let mut names = self.names();
        names.sort();
        names.iter().for_each(|name| sum.update(format!("{name} {:?}", self.info(name)).as_bytes()));
        Ok(sum.finalize())
    }

    fn pieces(&self, (start, end): (usize, usize), mut visit: impl FnMut(&[u8]) -> io::Result<()>) -> Result<()> {
        let mut bytes = vec![0; PIECE.min(end - start)];
        for at in (start..end).step_by(PIECE) {
            let bytes = &mut bytes[..PIECE.min(end - at)];
            self.file
                .read_exact_at(bytes, self.start + at as u64)
                .and_then(|()| visit(bytes))
                .map_err(|error| Failure::file(&self.path, error))?;
        }
        Ok(())
    }
}
