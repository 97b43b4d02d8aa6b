//! Numbers in files: `f64`, `f32`, `f16` and `bf16`, converted a piece at a time.

use crc32fast::Hasher;
use dalr::Scalar;
use dalr::interop::half::Half;
use faer::Mat;
use half::{bf16, f16};
use safetensors::tensor::Dtype;

use crate::error::{Error, Result};
use crate::source::{CHUNK, Source, Tensor};

/// Whether layers and activations may be of this type.
pub fn is_supported(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Bytes of one number of a supported type.
pub fn width(dtype: Dtype) -> usize {
    dtype.bitsize() / 8
}

/// Calls `visit` with every number of `bytes` in turn.
pub fn decode(dtype: Dtype, bytes: &[u8], visit: impl FnMut(f64)) {
    fn each<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f64, mut visit: impl FnMut(f64)) {
        for bytes in bytes.as_chunks().0 {
            visit(number(*bytes));
        }
    }
    match dtype {
        Dtype::F64 => each(bytes, f64::from_le_bytes, visit),
        Dtype::F32 => each(bytes, |bytes| f64::from(f32::from_le_bytes(bytes)), visit),
        Dtype::F16 => each(bytes, |bytes| f16::from_le_bytes(bytes).widen(), visit),
        Dtype::BF16 => each(bytes, |bytes| bf16::from_le_bytes(bytes).widen(), visit),
        other => unreachable!("{other:?} was refused before"),
    }
}

/// Appends the bytes of `number`, rounded to `dtype`, and returns what it was rounded to: an infinity if it is too large.
pub fn encode(dtype: Dtype, number: f64, bytes: &mut Vec<u8>) -> f64 {
    fn half<H: Half>(number: f64, bytes: &mut Vec<u8>) -> f64 {
        let rounded = H::round(number);
        bytes.extend(rounded.to_le_bytes());
        rounded.widen()
    }
    match dtype {
        Dtype::F64 => {
            bytes.extend(number.to_le_bytes());
            number
        }
        Dtype::F32 => {
            bytes.extend((number as f32).to_le_bytes());
            f64::from(number as f32)
        }
        Dtype::F16 => half::<f16>(number, bytes),
        Dtype::BF16 => half::<bf16>(number, bytes),
        other => unreachable!("{other:?} was refused before"),
    }
}

/// A tensor of rows as a matrix; its bytes are added to the checksum.
pub fn matrix<T: Scalar>(source: &Source, tensor: &Tensor, sum: &mut Hasher) -> Result<Mat<T>> {
    let columns = tensor.shape[tensor.shape.len() - 1];
    let rows = tensor.shape[..tensor.shape.len() - 1].iter().product();
    let mut matrix = Mat::new();
    matrix.try_reserve(rows, columns).map_err(|_| {
        let needed = rows as f64 * columns as f64 * size_of::<T>() as f64;
        Error::Refused(format!("no memory for {rows} × {columns} numbers, {needed:.0} bytes"))
    })?;
    matrix.resize_with(rows, columns, |_, _| T::default());
    let width = width(tensor.dtype);
    // Several rows at a time, since the matrix holds columns.
    let together = (CHUNK / (width * columns).max(1)).max(16);
    let mut piece = Vec::with_capacity(together * columns);
    let mut first = 0;
    source.visit(tensor, together * columns * width, |bytes| {
        sum.update(bytes);
        piece.clear();
        decode(tensor.dtype, bytes, |number| piece.push(T::from_f64(number)));
        let count = piece.len() / columns;
        for column in 0..columns {
            let target = &mut matrix.col_as_slice_mut(column)[first..first + count];
            target.iter_mut().enumerate().for_each(|(row, to)| *to = piece[row * columns + column]);
        }
        first += count;
        Ok(())
    })?;
    Ok(matrix)
}

/// A tensor as a list; its bytes are added to the checksum.
pub fn list(source: &Source, tensor: &Tensor, sum: &mut Hasher) -> Result<Vec<f64>> {
    let mut numbers = Vec::new();
    source.visit(tensor, CHUNK, |bytes| {
        sum.update(bytes);
        decode(tensor.dtype, bytes, |number| numbers.push(number));
        Ok(())
    })?;
    Ok(numbers)
}
