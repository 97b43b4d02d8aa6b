//! Writes model files as a stream: first the header, then one tensor after the other.

use core::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use faer::MatRef;
use serde_json::Value;

use super::{Dtype, FloatDtype, TensorInfo, format_error, io_error, replace_file};
use crate::error::during;
use crate::{Error, Result, Scalar};

/// The plan of a safetensors file, which is written as a stream and replaces a file atomically.
///
/// Every tensor has a `content` of the caller's type `C`. When the file is written, the caller uses
/// it to find the data: a matrix, the name of a tensor to copy, an index.
#[derive(Clone, Debug)]
pub struct ModelWriter<C> {
    metadata: BTreeMap<String, String>,
    /// The planned tensors, by name.
    tensors: BTreeMap<String, Planned<C>>,
}

#[derive(Clone, Debug)]
struct Planned<C> {
    info: TensorInfo,
    content: C,
}

impl<C> Default for ModelWriter<C> {
    fn default() -> Self {
        Self { metadata: BTreeMap::new(), tensors: BTreeMap::new() }
    }
}

impl<C> ModelWriter<C> {
    /// Creates a plan without tensors and without metadata.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the `__metadata__` of the file.
    #[must_use]
    pub fn with_metadata(mut self, metadata: BTreeMap<String, String>) -> Self {
        self.metadata = metadata;
        self
    }

    /// Adds a tensor. The order of the calls does not matter: the file is sorted by the size of the
    /// dtype, so that data are aligned, and then by name.
    ///
    /// # Errors
    ///
    /// [`Error::Format`] for a name that was added before; [`Error::Overflow`] for a tensor of more
    /// than `u64::MAX` bytes.
    pub fn add(&mut self, name: impl Into<String>, dtype: Dtype, shape: &[usize], content: C) -> Result<()> {
        during("ModelWriter::add", || {
            let name = name.into();
            if self.tensors.contains_key(&name) || name == "__metadata__" {
                return Err(Error::format(
                    "the model".into(),
                    "every name once".into(),
                    format!("`{name}` a second time"),
                ));
            }
            let info = TensorInfo::new(dtype, shape).ok_or(Error::overflow("the length of a tensor"))?;
            self.tensors.insert(name, Planned { info, content });
            Ok(())
        })
    }

    /// Returns the length of all tensors' data in bytes.
    pub fn data_bytes(&self) -> u64 {
        self.tensors.values().map(|tensor| tensor.info.bytes).sum()
    }

    /// Writes the file as [`replace_file`] does. Calls `content` for each tensor in the file's
    /// order; it must write exactly the tensor's bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Format`] if `content` wrote another number of bytes than the tensor
    /// has; the errors of `content`.
    pub fn write<E: From<Error>>(
        &self,
        path: impl AsRef<Path>,
        mut content: impl FnMut(&C, &mut TensorWriter<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let path = path.as_ref();
        let mut order: Vec<(&String, &Planned<C>)> = self.tensors.iter().collect();
        order.sort_by_key(|(_, tensor)| Reverse(tensor.info.dtype.bitsize()));
        replace_file(path, |file| {
            let metadata = self.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str()));
            let header = header(metadata, order.iter().map(|(name, tensor)| (name.as_str(), &tensor.info)));
            file.write_all(&header).map_err(|error| io_error(path, error).during("ModelWriter::write"))?;
            for (name, tensor) in order {
                let dtype = FloatDtype::of(tensor.info.dtype);
                let mut target = TensorWriter { file: &mut *file, path, name, dtype, written: 0 };
                content(&tensor.content, &mut target)?;
                let written = target.written;
                if written != tensor.info.bytes {
                    let expected = format!("{} bytes of `{name}`", tensor.info.bytes);
                    return Err(format_error(path, expected, written.to_string()).during("ModelWriter::write").into());
                }
            }
            Ok(())
        })
    }
}

/// The part of one tensor in a file that is being written.
pub struct TensorWriter<'a> {
    file: &'a mut dyn Write,
    path: &'a Path,
    name: &'a str,
    dtype: Option<FloatDtype>,
    written: u64,
}

impl TensorWriter<'_> {
    /// Appends bytes to the tensor's data.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        during("TensorWriter::bytes", || {
            self.written += bytes.len() as u64;
            self.file.write_all(bytes).map_err(|error| io_error(self.path, error))
        })
    }

    /// Appends numbers, rounded to the tensor's dtype.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Format`] if a finite number is out of the dtype's range;
    /// [`Error::NumberType`] if the dtype is not a [`FloatDtype`].
    pub fn numbers<T: Scalar>(&mut self, numbers: impl IntoIterator<Item = T>) -> Result<()> {
        during("TensorWriter::numbers", || {
            let (what, expected) = ("the tensor", "F64, F32, F16 or BF16");
            let other = || Error::number_type(what, expected, "another dtype".into());
            let dtype = self.dtype.ok_or_else(other)?;
            let mut bytes = Vec::new();
            for number in numbers {
                let number = number.to_f64();
                let rounded = dtype.encode(number, &mut bytes);
                if number.is_finite() && !rounded.is_finite() {
                    let expected = format!("numbers of `{}` within the range of {dtype:?}", self.name);
                    return Err(format_error(self.path, expected, format!("{number:e}")));
                }
                if bytes.len() >= super::PIECE {
                    self.bytes(&bytes)?;
                    bytes.clear();
                }
            }
            self.bytes(&bytes)
        })
    }

    /// Appends a matrix row by row, rounded to the tensor's dtype.
    ///
    /// # Errors
    ///
    /// As [`numbers`](Self::numbers).
    pub fn matrix<T: Scalar>(&mut self, matrix: MatRef<'_, T>) -> Result<()> {
        self.numbers(matrix.row_iter().flat_map(|row| row.iter().copied()))
    }
}

/// Returns the length and the text of the header of a file with these tensors, whose data follow in
/// this order.
pub(super) fn header<'a>(
    metadata: impl Iterator<Item = (&'a str, &'a str)>,
    tensors: impl Iterator<Item = (&'a str, &'a TensorInfo)>,
) -> Vec<u8> {
    let json = |text: &str| Value::from(text).to_string();
    let metadata: Vec<String> = metadata.map(|(key, value)| format!("{}:{}", json(key), json(value))).collect();
    let mut entries = Vec::new();
    if !metadata.is_empty() {
        entries.push(format!("\"__metadata__\":{{{}}}", metadata.join(",")));
    }
    let mut end = 0;
    for (name, TensorInfo { dtype, shape, bytes }) in tensors {
        let (name, shape, start) = (json(name), Value::from(shape.as_slice()), end);
        end += bytes;
        entries.push(format!("{name}:{{\"dtype\":\"{dtype:?}\",\"shape\":{shape},\"data_offsets\":[{start},{end}]}}"));
    }
    let mut text = format!("{{{}}}", entries.join(",")).into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes(), text.as_slice()].concat()
}
