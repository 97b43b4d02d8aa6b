//! Tensors in a model file: place, type and dimensions of their numbers.

use core::ops::Range;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use dalr::Scalar;
use half::{bf16, f16};

use crate::element::ElementType;
use crate::wire::{self, Once, Output, Value, fields};
use crate::{Error, Result};

/// Bytes that a program on today's processors can address. No tensor has more.
const ADDRESSABLE: u64 = 1 << 47;

/// Bytes of external data that are copied at a time.
const BLOCK: usize = 1 << 16;

/// No operator takes tensors of so many dimensions.
pub const MOST_DIMENSIONS: usize = 64;

/// A tensor that was read and checked: its numbers are as many as its dimensions say.
#[derive(Clone, Debug)]
pub struct Stored {
    pub name: String,
    pub element: ElementType,
    pub dims: Vec<usize>,
    /// The message of the tensor in the file.
    pub message: Range<usize>,
    pub content: Content,
}

#[derive(Clone, Debug)]
pub enum Content {
    /// Bytes in the file.
    Raw(Range<usize>),
    /// Numbers in a field of their type.
    Typed,
    /// A part of another file.
    External(External),
}

#[derive(Clone, Debug)]
pub struct External {
    pub path: PathBuf,
    pub offset: u64,
    pub length: u64,
}

impl Stored {
    /// Reads the tensor at this range of the file. `folder` has the external data.
    pub fn read(file: &[u8], message: Range<usize>, folder: Option<&Path>) -> Result<Self> {
        let (mut once, mut dims, mut code) = (Once::default(), Vec::new(), 0);
        let (mut name, mut raw, mut typed) = (String::new(), None, None::<(u32, u64)>);
        let (mut keys, mut is_external) = (Vec::new(), false);
        let start = message.start;
        for field in fields(file, message.clone()) {
            let field = field?;
            match field.number {
                1 => field.integers(file, &mut dims, MOST_DIMENSIONS)?,
                2 | 8 | 9 | 14 => once.check(&field)?,
                _ => {}
            }
            match field.number {
                2 => code = i32::try_from(field.varint()? as i64).unwrap_or(0),
                3 => return Err(Error::Unsupported("tensors in segments cannot be read".into())),
                4..=7 | 10 | 11 => {
                    let (kind, count) = typed.get_or_insert((field.number, 0));
                    if *kind != field.number {
                        return Err(Error::invalid(start, "a tensor has numbers of two types"));
                    }
                    *count += match field.number {
                        4 => field.fixed(file, 4)?.len() as u64 / 4,
                        10 => field.fixed(file, 8)?.len() as u64 / 8,
                        6 => field.bytes().map(|_| 1)?,
                        _ => count_integers(file, &field)?,
                    };
                }
                8 => name = field.text(file)?.into(),
                9 => raw = Some(field.bytes()?),
                13 => keys.push(entry(file, field.bytes()?)?),
                14 => is_external = field.varint()? == 1,
                _ => {}
            }
        }
        let wrong = |what: String| Error::invalid(start, format!("the tensor `{name}` {what}"));
        let element = ElementType::from_code(code);
        let dims = dimensions(&dims).ok_or_else(|| wrong(format!("has the dimensions {dims:?}")))?;
        // An empty tensor may have large dimensions beside the zero.
        let entries = dims.iter().map(|&dim| dim as u64).fold(1, u64::saturating_mul);
        let bits = entries.saturating_mul(element.bits().unwrap_or(8));
        if bits / 8 > ADDRESSABLE || dims.iter().any(|&dim| dim as u64 > ADDRESSABLE) {
            return Err(wrong(format!("has more entries than memory can hold: {dims:?}")));
        }
        let bytes = bits.div_ceil(8);
        let content = match (is_external, raw, typed) {
            (true, None, None) => {
                let length = element.bits().map(|_| bytes);
                let length = length.ok_or_else(|| wrong(format!("has external data of {element}")))?;
                Content::External(External::resolve(&keys, length, folder).map_err(|error| match error {
                    Error::Invalid { message, .. } => wrong(message),
                    error => error,
                })?)
            }
            (true, ..) => return Err(wrong("has its data twice, in the file and outside".into())),
            (false, Some(_), Some(_)) => return Err(wrong("has its data twice".into())),
            (false, Some(raw), None) => {
                if element.bits().is_some() && raw.len() as u64 != bytes {
                    return Err(wrong(format!("has {} bytes of data, and {dims:?} takes {bytes}", raw.len())));
                }
                if element == ElementType::Text {
                    return Err(wrong("has texts as raw data".into()));
                }
                Content::Raw(raw)
            }
            (false, None, typed) => {
                if let Some(expected) = element.typed() {
                    let (times, per) = expected.numbers;
                    let (field, count) = typed.unwrap_or((expected.field, 0));
                    let needed = entries.saturating_mul(times).div_ceil(per);
                    if count != needed || field != expected.field {
                        return Err(wrong(format!("has {count} numbers, and {dims:?} of {element} takes {needed}")));
                    }
                }
                Content::Typed
            }
        };
        Ok(Self { name, element, dims, message, content })
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.dims.iter().copied().fold(1, usize::saturating_mul)
    }

    /// Returns the entries of a tensor of floats, in row-major order. `file` is that which the
    /// tensor was read from.
    pub fn numbers<T: Scalar>(&self, file: &[u8]) -> Result<Vec<T>> {
        let mut numbers = Vec::new();
        let reserved = numbers.try_reserve_exact(self.len());
        reserved.map_err(|_| Error::Unsupported(format!("no memory for the tensor `{}`", self.name)))?;
        match &self.content {
            Content::Raw(range) => self.decode(wire::slice(file, range.clone())?, &mut numbers),
            Content::External(external) => self.decode(&external.bytes()?, &mut numbers),
            Content::Typed => {
                for field in fields(file, self.message.clone()) {
                    let field = field?;
                    match field.number {
                        4 => self.decode(field.fixed(file, 4)?, &mut numbers),
                        10 => self.decode(field.fixed(file, 8)?, &mut numbers),
                        5 => {
                            let mut bits = Vec::new();
                            field.integers(file, &mut bits, usize::MAX)?;
                            let bytes: Vec<u8> = bits.iter().flat_map(|&bits| (bits as u16).to_le_bytes()).collect();
                            self.decode(&bytes, &mut numbers);
                        }
                        _ => {}
                    }
                }
            }
        }
        if !self.element.is_float() || numbers.len() != self.len() {
            return Err(Error::Unsupported(format!("the tensor `{}` has no floats: {}", self.name, self.element)));
        }
        Ok(numbers)
    }

    fn decode<T: Scalar>(&self, bytes: &[u8], numbers: &mut Vec<T>) {
        match self.element {
            ElementType::F16 => numbers.extend(words(bytes).map(|word| T::from_f64(f16::from_le_bytes(word).to_f64()))),
            ElementType::Bf16 => {
                numbers.extend(words(bytes).map(|word| T::from_f64(bf16::from_le_bytes(word).to_f64())));
            }
            ElementType::F32 => {
                numbers.extend(words(bytes).map(|word| T::from_f64(f64::from(f32::from_le_bytes(word)))));
            }
            ElementType::F64 => numbers.extend(words(bytes).map(|word| T::from_f64(f64::from_le_bytes(word)))),
            _ => {}
        }
    }
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.chunks_exact(N).filter_map(|chunk| chunk.try_into().ok())
}

/// Returns the bytes of these numbers in a type of floats, or the first number that it cannot hold.
pub fn encode<T: Scalar>(element: ElementType, numbers: impl Iterator<Item = T>) -> Result<Vec<u8>, f64> {
    let mut bytes = Vec::new();
    for number in numbers {
        let number = number.to_f64();
        let finite = match element {
            ElementType::F16 => {
                let half = f16::from_f64(number);
                bytes.extend(half.to_le_bytes());
                half.is_finite()
            }
            ElementType::Bf16 => {
                let half = bf16::from_f64(number);
                bytes.extend(half.to_le_bytes());
                half.is_finite()
            }
            ElementType::F64 => {
                bytes.extend(number.to_le_bytes());
                number.is_finite()
            }
            _ => {
                bytes.extend((number as f32).to_le_bytes());
                (number as f32).is_finite()
            }
        };
        if !finite {
            return Err(number);
        }
    }
    Ok(bytes)
}

/// Returns dimensions that are not negative.
fn dimensions(dims: &[i64]) -> Option<Vec<usize>> {
    dims.iter().map(|&dim| usize::try_from(dim).ok()).collect()
}

/// Whether a value with these dimensions, as far as they are fixed, can be in memory.
pub fn fits_in_memory(dims: impl Iterator<Item = u64>, element: ElementType) -> bool {
    let entries = dims.map(|dim| dim.max(1)).fold(1, u64::saturating_mul);
    entries.saturating_mul(element.bits().unwrap_or(8)) / 8 <= ADDRESSABLE
}

fn count_integers(file: &[u8], field: &wire::Field) -> Result<u64> {
    match &field.value {
        Value::Bytes(range) => {
            // The last byte of each number has no continuation bit.
            let bytes = wire::slice(file, range.clone())?;
            if bytes.last().is_some_and(|byte| byte & 0x80 != 0) {
                return Err(Error::invalid(range.start, "packed numbers are incomplete"));
            }
            Ok(bytes.iter().filter(|byte| **byte & 0x80 == 0).count() as u64)
        }
        _ => field.varint().map(|_| 1),
    }
}

/// Reads a key and its value.
fn entry(file: &[u8], message: Range<usize>) -> Result<(String, String)> {
    let (mut key, mut value) = (String::new(), String::new());
    for field in fields(file, message) {
        let field = field?;
        match field.number {
            1 => key = field.text(file)?.into(),
            2 => value = field.text(file)?.into(),
            _ => {}
        }
    }
    Ok((key, value))
}

impl External {
    /// Finds the file of a tensor of `length` bytes. It must be in the folder, also after following
    /// symbolic links, and have these bytes.
    fn resolve(keys: &[(String, String)], length: u64, folder: Option<&Path>) -> Result<Self> {
        let refuse = |message: String| Error::invalid(0, message);
        let value = |name: &str| keys.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let number = |name: &str| match value(name) {
            None => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| refuse(format!("has the {name} `{text}`"))),
        };
        let location = value("location").unwrap_or_default();
        let inside =
            Path::new(location).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if location.is_empty() || !inside {
            return Err(refuse(format!(
                "has external data at `{location}`, which is not inside of the model's folder"
            )));
        }
        let folder =
            folder.ok_or_else(|| refuse("has external data, and the model was not read from a file".into()))?;
        let folder = folder.canonicalize().map_err(Error::io(folder))?;
        let path = folder.join(location);
        let path = path.canonicalize().map_err(Error::io(&path))?;
        if !path.starts_with(&folder) {
            return Err(refuse(format!("has external data at `{location}`, a link out of the model's folder")));
        }
        let metadata = path.metadata().map_err(Error::io(&path))?;
        if !metadata.is_file() {
            return Err(refuse(format!("has external data at `{location}`, which is no file")));
        }
        let offset: u64 = number("offset")?.unwrap_or(0);
        let stated = number("length")?.unwrap_or_else(|| metadata.len().saturating_sub(offset));
        if stated != length {
            return Err(refuse(format!("has {stated} bytes of external data, and its dimensions take {length}")));
        }
        if offset.checked_add(length).is_none_or(|end| end > metadata.len()) {
            let size = metadata.len();
            return Err(refuse(format!("has {length} bytes of external data at {offset}, in a file of {size}")));
        }
        Ok(Self { path, offset, length })
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.copy(&mut Output { target: &mut bytes, path: &self.path })?;
        Ok(bytes)
    }

    /// Copies the bytes in blocks.
    pub fn copy(&self, output: &mut Output<'_>) -> Result<()> {
        let mut file = File::open(&self.path).map_err(Error::io(&self.path))?;
        file.seek(SeekFrom::Start(self.offset)).map_err(Error::io(&self.path))?;
        let (mut block, mut left) = (vec![0; BLOCK], self.length);
        while left > 0 {
            let length = usize::try_from(left).map_or(BLOCK, |left| left.min(BLOCK));
            let part = block.get_mut(..length).unwrap_or_default();
            file.read_exact(part).map_err(Error::io(&self.path))?;
            output.put(part)?;
            left -= length as u64;
        }
        Ok(())
    }
}
