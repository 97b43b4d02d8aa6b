//! The headers of `.npy` files, and their numbers.
//!
//! The format is that of `numpy.lib.format`, versions 1 to 3. Python objects are refused.

use std::io::Read;

use crate::tensor::{Data, Tensor};

/// The longest header that is read. A header of a plain array has some hundred bytes.
const LONGEST: usize = 1 << 16;

/// Type, order and shape of an array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    kind: Kind,
    width: usize,
    big_endian: bool,
    column_major: bool,
    pub(crate) shape: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Float,
    Signed,
    Unsigned,
    Boolean,
}

impl Header {
    /// Reads a header and leaves the reader at the first number.
    pub(crate) fn read(reader: &mut impl Read) -> Result<Self, String> {
        let mut start = [0; 8];
        let mut fill =
            |bytes: &mut [u8]| reader.read_exact(bytes).map_err(|error| format!("a header cut off ({error})"));
        fill(&mut start)?;
        if start[..6] != *b"\x93NUMPY" {
            return Err("another kind of file".into());
        }
        let mut length = [0; 4];
        fill(&mut length[..if start[6] == 1 { 2 } else { 4 }])?;
        let length = u32::from_le_bytes(length) as usize;
        if !(1..=3).contains(&start[6]) || length > LONGEST {
            return Err(format!("version {} with a header of {length} bytes", start[6]));
        }
        let mut text = vec![0; length];
        fill(&mut text)?;
        Self::parse(&String::from_utf8_lossy(&text)).ok_or_else(|| {
            let text: String = String::from_utf8_lossy(&text).trim().chars().take(200).collect();
            format!("an array of another kind, {text}")
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let after = |key: &str| Some(text.split_once(key)?.1.trim_start().strip_prefix(':')?.trim_start());
        let quoted = after("'descr'")?.strip_prefix('\'')?.split('\'').next()?;
        let (order, kind, width) = (quoted.get(..1)?, quoted.get(1..2)?, quoted.get(2..)?.parse().ok()?);
        let kind = match (kind, width) {
            ("f", 2 | 4 | 8) => Kind::Float,
            ("i", 1 | 2 | 4 | 8) => Kind::Signed,
            ("u", 1 | 2 | 4 | 8) => Kind::Unsigned,
            ("b", 1) => Kind::Boolean,
            _ => return None,
        };
        let order_of_axes = after("'fortran_order'")?;
        let shape = after("'shape'")?.strip_prefix('(')?.split_once(')')?.0;
        let sizes = shape.split(',').map(str::trim).filter(|size| !size.is_empty());
        let shape = sizes.map(|size| size.parse().ok()).collect::<Option<Vec<usize>>>()?;
        let header =
            Self { kind, width, big_endian: order == ">", column_major: order_of_axes.starts_with("True"), shape };
        header.bytes().map(|_| header)
    }

    /// Returns the bytes of all numbers; `None` if they cannot be counted.
    pub(crate) fn bytes(&self) -> Option<usize> {
        self.shape.iter().try_fold(self.width, |product, &size| product.checked_mul(size))
    }

    /// Returns whether the numbers are integers or booleans.
    pub(crate) fn is_integer(&self) -> bool {
        self.kind != Kind::Float
    }

    /// Reads the numbers. Memory is taken as they come, so that a false shape takes no more than
    /// the file has.
    pub(crate) fn numbers(&self, reader: impl Read) -> Result<Tensor, String> {
        let expected = self.bytes().ok_or("a shape whose entries cannot be counted")?;
        let mut bytes = Vec::new();
        reader.take(expected as u64).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        if bytes.len() != expected {
            return Err(format!("{} of {expected} bytes of shape {:?}", bytes.len(), self.shape));
        }
        if self.big_endian {
            bytes.chunks_exact_mut(self.width).for_each(<[u8]>::reverse);
        }
        let data = match self.kind {
            Kind::Float => Data::Float(self.in_rows(bytes.chunks_exact(self.width).map(float).collect())),
            kind => {
                let integers: Option<Vec<i64>> =
                    bytes.chunks_exact(self.width).map(|bytes| integer(bytes, kind == Kind::Signed)).collect();
                Data::Integer(self.in_rows(integers.ok_or("an integer above 2⁶³")?))
            }
        };
        Ok(Tensor { shape: self.shape.clone(), data })
    }

    /// Returns the numbers in row-major order.
    fn in_rows<T: Copy>(&self, data: Vec<T>) -> Vec<T> {
        if !self.column_major || self.shape.len() < 2 {
            return data;
        }
        // The place of each entry in column-major order, as its row-major index counts up.
        let mut strides = vec![1; self.shape.len()];
        for axis in 1..self.shape.len() {
            strides[axis] = strides[axis - 1] * self.shape[axis - 1];
        }
        let mut index = vec![0; self.shape.len()];
        let mut place = 0;
        let mut rows = Vec::with_capacity(data.len());
        for _ in 0..data.len() {
            rows.push(data[place]);
            for axis in (0..self.shape.len()).rev() {
                index[axis] += 1;
                place += strides[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                place -= strides[axis] * self.shape[axis];
                index[axis] = 0;
            }
        }
        rows
    }
}

fn float(bytes: &[u8]) -> f32 {
    match *bytes {
        [a, b] => half::f16::from_le_bytes([a, b]).to_f32(),
        [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
        [a, b, c, d, e, f, g, h] => f64::from_le_bytes([a, b, c, d, e, f, g, h]) as f32,
        _ => f32::NAN,
    }
}

/// Returns a little-endian integer; `None` if it does not fit.
fn integer(bytes: &[u8], signed: bool) -> Option<i64> {
    let negative = signed && bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    wide.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    let number = i64::from_le_bytes(wide);
    (signed || number >= 0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn read(header: &str, data: &[u8]) -> Result<Tensor, String> {
        let bytes = file(header, data);
        let mut reader = &bytes[..];
        Header::read(&mut reader)?.numbers(reader)
    }

    #[test]
    fn numbers_of_every_type_and_order() {
        let header = |descr: &str, fortran: &str, shape: &str| {
            format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n")
        };
        let floats: Vec<u8> = (0..6).flat_map(|x| (x as f32).to_le_bytes()).collect();
        let rows = read(&header("<f4", "False", "(2, 3)"), &floats).unwrap();
        assert_eq!(rows, Tensor::floats(&[2, 3], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]));
        let columns = read(&header("<f4", "True", "(2, 3)"), &floats).unwrap();
        assert_eq!(columns, Tensor::floats(&[2, 3], vec![0.0, 2.0, 4.0, 1.0, 3.0, 5.0]));
        let big: Vec<u8> = [-2_i16, 300].iter().flat_map(|x| x.to_be_bytes()).collect();
        assert_eq!(read(&header(">i2", "False", "(2,)"), &big).unwrap(), Tensor::integers(&[2], vec![-2, 300]));
        assert_eq!(read(&header("|b1", "False", "()"), &[1]).unwrap(), Tensor::integers(&[], vec![1]));
        assert_eq!(read(&header("|u1", "False", "(1,)"), &[200]).unwrap(), Tensor::integers(&[1], vec![200]));
    }

    #[test]
    fn false_headers_are_errors() {
        let whole = "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904,), }";
        for (header, data) in [
            (whole, &[0; 8][..]),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }", &[0; 8]),
            ("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }", &[0; 8]),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", &[0; 8]),
            ("{'descr': '<u8', 'fortran_order': False, 'shape': (1,), }", &[255; 8]),
            ("{'descr': 'é', 'shape': (1,), }", &[0; 8]),
            ("", &[]),
        ] {
            assert!(read(header, data).is_err(), "{header}");
        }
        assert!(Header::read(&mut &b"PK\x03\x04 and more"[..]).is_err());
    }
}
