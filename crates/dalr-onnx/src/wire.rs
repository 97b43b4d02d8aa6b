//! The wire format of protocol buffers: reads the fields of a message, and edits messages without
//! changing the bytes of other fields.

use core::ops::Range;
use core::str;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use crate::stored_tensor::External;
use crate::{Error, Result};

/// One field of a message. Ranges are positions in the whole file.
pub struct Field {
    pub number: u32,
    pub value: Value,
    /// The field with its tag.
    pub whole: Range<usize>,
}

pub enum Value {
    Varint(u64),
    Fixed32([u8; 4]),
    Fixed64([u8; 8]),
    /// A text, bytes, a message or packed numbers.
    Bytes(Range<usize>),
}

impl Field {
    /// Returns the payload of a text or message.
    pub fn bytes(&self) -> Result<Range<usize>> {
        match &self.value {
            Value::Bytes(range) => Ok(range.clone()),
            _ => Err(self.wrong_type()),
        }
    }

    pub fn varint(&self) -> Result<u64> {
        match self.value {
            Value::Varint(number) => Ok(number),
            _ => Err(self.wrong_type()),
        }
    }

    pub fn float(&self) -> Result<f32> {
        match self.value {
            Value::Fixed32(bytes) => Ok(f32::from_le_bytes(bytes)),
            _ => Err(self.wrong_type()),
        }
    }

    pub fn text<'a>(&self, file: &'a [u8]) -> Result<&'a str> {
        let bytes = slice(file, self.bytes()?)?;
        str::from_utf8(bytes).map_err(|_| Error::invalid(self.whole.start, "a text is not UTF-8"))
    }

    /// Appends the numbers of a repeated integer field, packed or not, up to `limit` numbers.
    pub fn integers(&self, file: &[u8], numbers: &mut Vec<i64>, limit: usize) -> Result<()> {
        match &self.value {
            Value::Varint(number) => numbers.push(*number as i64),
            Value::Bytes(range) => {
                let mut reader = Reader { file, at: range.start, end: range.end };
                while reader.at < reader.end && numbers.len() <= limit {
                    numbers.push(reader.varint()? as i64);
                }
            }
            _ => return Err(self.wrong_type()),
        }
        if numbers.len() > limit {
            return Err(Error::invalid(
                self.whole.start,
                format!("more than {limit} numbers in field {}", self.number),
            ));
        }
        Ok(())
    }

    /// Returns the bytes of a repeated field of fixed width, packed or not.
    pub fn fixed<'a>(&'a self, file: &'a [u8], width: usize) -> Result<&'a [u8]> {
        match &self.value {
            Value::Fixed32(bytes) if width == 4 => Ok(bytes),
            Value::Fixed64(bytes) if width == 8 => Ok(bytes),
            Value::Bytes(range) if range.len().is_multiple_of(width) => slice(file, range.clone()),
            _ => Err(self.wrong_type()),
        }
    }

    fn wrong_type(&self) -> Error {
        Error::invalid(self.whole.start, format!("field {} has the wrong type", self.number))
    }
}

/// Reads a varint, a tag or the fields of a message one after the other.
pub struct Reader<'a> {
    file: &'a [u8],
    at: usize,
    end: usize,
}

/// Returns the fields of the message at this range of the file.
pub fn fields(file: &[u8], message: Range<usize>) -> Reader<'_> {
    Reader { file, at: message.start, end: message.end.min(file.len()) }
}

impl Reader<'_> {
    fn varint(&mut self) -> Result<u64> {
        let (start, mut number) = (self.at, 0_u64);
        for shift in (0..64).step_by(7) {
            let byte = self.file.get(self.at..self.end).and_then(<[u8]>::first).copied();
            let byte = byte.ok_or_else(|| Error::invalid(start, "the file ends inside of a number"))?;
            self.at += 1;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Error::invalid(start, "a number takes more than ten bytes"))
    }

    fn take(&mut self, length: u64) -> Result<Range<usize>> {
        let start = self.at;
        let end = usize::try_from(length).ok().and_then(|length| start.checked_add(length));
        match end.filter(|&end| end <= self.end) {
            Some(end) => {
                self.at = end;
                Ok(start..end)
            }
            None => {
                let left = self.end - start;
                Err(Error::invalid(start, format!("a field of {length} bytes exceeds the {left} that are left")))
            }
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let range = self.take(N as u64)?;
        let bytes = slice(self.file, range.clone())?.try_into();
        bytes.map_err(|_| Error::invalid(range.start, "a number is incomplete"))
    }

    fn field(&mut self) -> Result<Field> {
        let start = self.at;
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|number| (1..1 << 29).contains(number));
        let number = number.ok_or_else(|| Error::invalid(start, format!("{tag} is no tag of a field")))?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(self.array()?),
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Fixed32(self.array()?),
            kind => return Err(Error::invalid(start, format!("a field has the wire type {kind}"))),
        };
        Ok(Field { number, value, whole: start..self.at })
    }
}

impl Iterator for Reader<'_> {
    type Item = Result<Field>;

    fn next(&mut self) -> Option<Self::Item> {
        (self.at < self.end).then(|| {
            let field = self.field();
            if field.is_err() {
                self.at = self.end;
            }
            field
        })
    }
}

/// Refuses a second value of a field that a message has once: readers differ in which one counts.
#[derive(Default)]
pub struct Once(u64);

impl Once {
    pub fn check(&mut self, field: &Field) -> Result<()> {
        let bit = 1_u64.checked_shl(field.number).unwrap_or(0);
        if self.0 & bit != 0 {
            return Err(Error::invalid(field.whole.start, format!("field {} occurs twice", field.number)));
        }
        self.0 |= bit;
        Ok(())
    }
}

pub fn slice(file: &[u8], range: Range<usize>) -> Result<&[u8]> {
    file.get(range.clone()).ok_or_else(|| Error::invalid(range.start, "the file ends here"))
}

pub fn put_varint(target: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        target.push(number as u8 | 0x80);
        number >>= 7;
    }
    target.push(number as u8);
}

pub fn put_integer(target: &mut Vec<u8>, field: u32, number: i64) {
    put_varint(target, u64::from(field) << 3);
    put_varint(target, number as u64);
}

pub fn put_bytes(target: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    target.extend(head(field, bytes.len() as u64));
    target.extend_from_slice(bytes);
}

/// The replacement of a field by others, or, at an empty range, fields to add at the end of a
/// message.
#[derive(Debug)]
pub struct Edit {
    /// The field with its tag.
    pub range: Range<usize>,
    pub by: Vec<Piece>,
}

/// Bytes to write.
#[derive(Clone, Debug)]
pub enum Piece {
    Bytes(Arc<Vec<u8>>),
    /// A part of a file, which is read when it is written.
    External(External),
}

impl Piece {
    pub fn bytes(bytes: Vec<u8>) -> Self {
        Self::Bytes(Arc::new(bytes))
    }

    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::External(external) => external.length,
        }
    }

    pub fn write(&self, output: &mut Output<'_>) -> Result<()> {
        match self {
            Self::Bytes(bytes) => output.put(bytes),
            Self::External(external) => external.copy(output),
        }
    }
}

/// A file or buffer that is written.
pub struct Output<'a> {
    pub target: &'a mut dyn Write,
    /// For error messages.
    pub path: &'a Path,
}

impl Output<'_> {
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.target.write_all(bytes).map_err(Error::io(self.path))
    }
}

/// A message with edits, which are in order and do not overlap. Edits may be in messages within the
/// message: the lengths of these are adapted. All other bytes stay.
pub struct Edited<'a> {
    pub file: &'a [u8],
    pub message: Range<usize>,
    pub edits: &'a [Edit],
}

/// A part of an edited message.
enum Part<'a> {
    Copied(Range<usize>),
    Replaced(&'a Edit),
    Inner(u32, Edited<'a>),
}

impl Edited<'_> {
    pub fn len(&self) -> Result<u64> {
        let mut length = 0_u64;
        self.visit(&mut |part| {
            length += match part {
                Part::Copied(range) => range.len() as u64,
                Part::Replaced(edit) => edit.by.iter().map(Piece::len).sum(),
                Part::Inner(number, inner) => {
                    let content = inner.len()?;
                    head(number, content).len() as u64 + content
                }
            };
            Ok(())
        })?;
        Ok(length)
    }

    pub fn write(&self, output: &mut Output<'_>) -> Result<()> {
        self.visit(&mut |part| match part {
            Part::Copied(range) => output.put(slice(self.file, range)?),
            Part::Replaced(edit) => edit.by.iter().try_for_each(|piece| piece.write(output)),
            Part::Inner(number, inner) => {
                output.put(&head(number, inner.len()?))?;
                inner.write(output)
            }
        })
    }

    fn visit(&self, visit: &mut dyn FnMut(Part<'_>) -> Result<()>) -> Result<()> {
        let (mut edits, mut copied) = (self.edits, self.message.start);
        for field in fields(self.file, self.message.clone()) {
            let field = field?;
            let inside = edits.iter().take_while(|edit| edit.range.start < field.whole.end).count();
            let (here, later) = edits.split_at_checked(inside).unwrap_or((edits, &[]));
            if here.is_empty() {
                continue;
            }
            visit(Part::Copied(copied..field.whole.start))?;
            (copied, edits) = (field.whole.end, later);
            match (here, &field.value) {
                ([edit], _) if edit.range == field.whole => visit(Part::Replaced(edit))?,
                (edits, Value::Bytes(message)) => {
                    let inner = Edited { file: self.file, message: message.clone(), edits };
                    visit(Part::Inner(field.number, inner))?;
                }
                _ => return Err(Error::invalid(field.whole.start, "a number cannot be edited in parts")),
            }
        }
        visit(Part::Copied(copied..self.message.end))?;
        edits.iter().try_for_each(|edit| visit(Part::Replaced(edit)))
    }
}

/// Tag and length of a field of bytes.
pub fn head(field: u32, length: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_varint(&mut bytes, u64::from(field) << 3 | 2);
    put_varint(&mut bytes, length);
    bytes
}
