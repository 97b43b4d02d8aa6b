//! Reads samples and weights from tensors, and writes tensors.

use candle_core::{CpuStorage, DType, Device, Storage, Tensor, WithDType};
use faer::{Col, Mat, MatRef};

use super::refused;
use crate::error::during;
use crate::interop::half::{Half, widen};
use crate::interop::samples_and_inputs;
use crate::linalg;
use crate::{ActivationStats, Error, Result, Scalar};

/// Adds a batch to statistics. The last axis is the inputs: each token of a batch × sequence × in
/// tensor is a sample.
///
/// Tensors with another dtype than the statistics, with strides or on other devices are copied
/// first.
///
/// # Errors
///
/// Those of [`ActivationStats::update`]; [`Error::Shape`] for a tensor without axes,
/// [`Error::NumberType`] for a dtype that `T` cannot represent, [`Error::Library`] if candle cannot
/// copy from the tensor's device.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut stats = dalr::ActivationStats::<f32>::new(4);
/// let batch = Tensor::ones((2, 5, 4), DType::BF16, &Device::Cpu)?;
/// dalr::interop::candle::update(&mut stats, &batch)?;
/// dalr::interop::candle::update(&mut stats, &batch.narrow(1, 0, 3)?)?;
/// assert_eq!(stats.samples(), 16);
/// # Ok(())
/// # }
/// ```
pub fn update<T: Scalar + WithDType>(stats: &mut ActivationStats<T>, batch: &Tensor) -> Result<()> {
    during("interop::candle::update", || {
        let (rows, columns) = samples_and_inputs(batch.dims())?;
        read(batch, rows, columns, |samples| stats.update(samples))
    })
}

/// Adds a batch as [`update`] does, with a weight for each sample: 0 for padding.
///
/// The weights have the batch's axes except the last, like an attention mask: batch × sequence for
/// a batch × sequence × in tensor. Their dtype is a float that `T` can represent, `U8`, `U32` or
/// `I64`.
///
/// # Errors
///
/// Those of [`update`] and of [`ActivationStats::update_weighted`]; [`Error::Shape`] for weights
/// with other axes.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut stats = dalr::ActivationStats::<f32>::new(4);
/// let batch = Tensor::ones((2, 3, 4), DType::F32, &Device::Cpu)?;
/// let mask = Tensor::new(&[[1_u32, 1, 1], [1, 0, 0]], &Device::Cpu)?; // as a tokenizer gives it
/// dalr::interop::candle::update_weighted(&mut stats, &batch, &mask)?;
/// assert_eq!(stats.samples(), 4);
/// # Ok(())
/// # }
/// ```
pub fn update_weighted<T: Scalar + WithDType>(
    stats: &mut ActivationStats<T>,
    batch: &Tensor,
    weights: &Tensor,
) -> Result<()> {
    during("interop::candle::update_weighted", || {
        let (rows, columns) = samples_and_inputs(batch.dims())?;
        let leading = batch.dims().split_last().map_or(&[][..], |(_, leading)| leading);
        if weights.rank() != leading.len() {
            let what = "axes of the weights (those of the batch but the last)";
            return Err(Error::shape(what, leading.len(), weights.rank()));
        }
        for (&expected, &found) in leading.iter().zip(weights.dims()) {
            if expected != found {
                let what = "weights along an axis (as many as the batch has there)";
                return Err(Error::shape(what, expected, found));
            }
        }
        let weights = match weights.dtype() {
            // Counts and masks are small whole numbers, which `f64` represents without rounding.
            DType::U8 | DType::U32 | DType::I64 => &weights.to_dtype(DType::F64).map_err(refused)?,
            _ => weights,
        };
        let weights = read(weights, rows, 1, |weights: MatRef<'_, f64>| {
            Ok(weights.col(0).iter().copied().collect::<Vec<f64>>())
        })?;
        read(batch, rows, columns, |samples| stats.update_weighted(samples, &weights))
    })
}

/// Copies a batch into a samples × in matrix. The last axis of the batch is the inputs.
///
/// [`LowRankLinear::forward`](crate::LowRankLinear::forward) accepts the result. For statistics,
/// [`update`] avoids the copy if it can.
///
/// # Errors
///
/// [`Error::Shape`], [`Error::NumberType`] and [`Error::Library`], as [`update`]; [`Error::Memory`]
/// if the copy does not fit.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let batch = Tensor::arange(0_f32, 24.0, &Device::Cpu)?.reshape((2, 3, 4))?;
/// let samples = dalr::interop::candle::samples::<f64>(&batch)?;
/// assert_eq!((samples.shape(), samples[(4, 1)]), ((6, 4), 17.0));
/// # Ok(())
/// # }
/// ```
pub fn samples<T: Scalar + WithDType>(batch: &Tensor) -> Result<Mat<T>> {
    during("interop::candle::samples", || {
        let (rows, columns) = samples_and_inputs(batch.dims())?;
        matrix(batch, rows, columns)
    })
}

/// Copies a matrix into a tensor of the same shape, each entry rounded once to `dtype`.
///
/// # Errors
///
/// [`Error::NumberType`] for a dtype other than `F64`, `F32`, `F16` and `BF16`, [`Error::Overflow`]
/// if an entry is beyond its range, [`Error::Memory`] if the copy does not fit, [`Error::Library`]
/// if candle cannot copy to the device.
///
/// ```
/// use candle_core::{DType, Device};
/// use dalr::interop::candle::to_tensor;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let tensor = to_tensor(faer::mat![[1.0, 2.0], [3.0, 1e5]].as_ref(), DType::F32, &Device::Cpu)?;
/// assert_eq!(tensor.to_vec2::<f32>()?, [[1.0, 2.0], [3.0, 1e5]]);
/// assert!(to_tensor(faer::mat![[1e5]].as_ref(), DType::F16, &Device::Cpu).is_err());
/// # Ok(())
/// # }
/// ```
pub fn to_tensor<T: Scalar>(matrix: MatRef<'_, T>, dtype: DType, device: &Device) -> Result<Tensor> {
    during("interop::candle::to_tensor", || write(matrix, matrix.shape().into(), dtype, device))
}

/// Returns a copy of a tensor with two axes.
pub(super) fn to_matrix<T: Scalar + WithDType>(tensor: &Tensor) -> Result<Mat<T>> {
    let &[rows, columns] = tensor.dims() else {
        let what = "axes in the weight (out × in)";
        return Err(Error::shape(what, 2, tensor.rank()));
    };
    matrix(tensor, rows, columns)
}

/// Returns a copy of a tensor with one axis.
pub(super) fn to_column<T: Scalar + WithDType>(tensor: &Tensor) -> Result<Col<T>> {
    let &[length] = tensor.dims() else {
        let what = "axis in the bias (out)";
        return Err(Error::shape(what, 1, tensor.rank()));
    };
    read(tensor, length, 1, |column: MatRef<'_, T>| Ok(column.col(0).to_owned()))
}

pub(super) fn matrix<T: Scalar + WithDType>(tensor: &Tensor, rows: usize, columns: usize) -> Result<Mat<T>> {
    read(tensor, rows, columns, |view: MatRef<'_, T>| {
        let mut copy = linalg::zeros(rows, columns)?;
        copy.copy_from(view);
        Ok(copy)
    })
}

/// Calls `use_numbers` with a tensor's numbers as rows × columns in row-major order, without a copy
/// if the tensor is contiguous and of type `T`.
pub(super) fn read<T: Scalar + WithDType, R>(
    tensor: &Tensor,
    rows: usize,
    columns: usize,
    use_numbers: impl FnOnce(MatRef<'_, T>) -> Result<R>,
) -> Result<R> {
    let here = tensor.detach().contiguous().and_then(|tensor| tensor.to_device(&Device::Cpu));
    let here = here.map_err(refused)?;
    let (storage, layout) = here.storage_and_layout();
    let start = layout.start_offset();
    let window = start..start.saturating_add(layout.shape().elem_count());
    let numbers = match &*storage {
        Storage::Cpu(numbers) => numbers,
        Storage::Cuda(_) | Storage::Metal(_) => return Err(misplaced()),
    };
    match numbers {
        CpuStorage::F16(numbers) => use_numbers(widened(numbers, window, rows, columns)?.as_ref()),
        CpuStorage::BF16(numbers) => use_numbers(widened(numbers, window, rows, columns)?.as_ref()),
        CpuStorage::F32(numbers) if T::DTYPE == DType::F64 => {
            let numbers = rows_of(numbers, window, rows, columns)?;
            let mut wide = linalg::zeros(rows, columns)?;
            for (to, from) in wide.as_mut().col_iter_mut().zip(numbers.col_iter()) {
                to.iter_mut().zip(from.iter()).for_each(|(to, from)| *to = Scalar::from_f64(f64::from(*from)));
            }
            use_numbers(wide.as_ref())
        }
        numbers if here.dtype() == T::DTYPE => {
            let numbers = T::cpu_storage_as_slice(numbers).map_err(refused)?;
            use_numbers(rows_of(numbers, window, rows, columns)?)
        }
        _ => {
            let expected = if T::DTYPE == DType::F64 { "F64, F32, F16 or BF16" } else { "F32, F16 or BF16" };
            let found = format!("{:?}", here.dtype());
            Err(Error::number_type("the tensor", expected, found))
        }
    }
}

fn widened<T: Scalar, H: Half>(
    numbers: &[H],
    window: core::ops::Range<usize>,
    rows: usize,
    columns: usize,
) -> Result<Mat<T>> {
    widen(rows_of(numbers, window, rows, columns)?)
}

/// Returns a part of a tensor's memory as a matrix. candle's operations keep this part within the
/// memory.
fn rows_of<'a, E>(
    numbers: &'a [E],
    window: core::ops::Range<usize>,
    rows: usize,
    columns: usize,
) -> Result<MatRef<'a, E>> {
    let numbers = numbers.get(window).filter(|numbers| Some(numbers.len()) == rows.checked_mul(columns));
    Ok(MatRef::from_row_major_slice(numbers.ok_or_else(misplaced)?, rows, columns))
}

/// Returns the error for a tensor whose layout does not fit its memory.
fn misplaced() -> Error {
    refused(candle_core::Error::msg("the tensor's numbers are not where its layout says"))
}

/// Copies a matrix into a tensor with the same number of entries.
pub(super) fn write<T: Scalar>(
    matrix: MatRef<'_, T>,
    shape: candle_core::Shape,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    let tensor = match dtype {
        DType::F64 => tensor_of(matrix, shape, Scalar::to_f64, f64::is_finite, device)?,
        DType::F32 => tensor_of(matrix, shape, |number| number.to_f64() as f32, f32::is_finite, device)?,
        DType::F16 => tensor_of(matrix, shape, half::f16::round, half::f16::is_finite, device)?,
        DType::BF16 => tensor_of(matrix, shape, half::bf16::round, half::bf16::is_finite, device)?,
        other => {
            let (what, expected) = ("the tensor to write", "F64, F32, F16 or BF16");
            return Err(Error::number_type(what, expected, format!("{other:?}")));
        }
    };
    Ok(tensor)
}

fn tensor_of<T: Scalar, E: WithDType>(
    matrix: MatRef<'_, T>,
    shape: candle_core::Shape,
    convert: impl Fn(T) -> E,
    finite: impl Fn(E) -> bool,
    device: &Device,
) -> Result<Tensor> {
    let count = matrix.nrows().saturating_mul(matrix.ncols());
    let mut numbers = Vec::new();
    let too_large = |_| linalg::out_of_memory(count.saturating_mul(size_of::<E>()));
    numbers.try_reserve_exact(count).map_err(too_large)?;
    for row in matrix.row_iter() {
        numbers.extend(row.iter().map(|&number| convert(number)));
    }
    if !numbers.iter().all(|&number| finite(number)) {
        return Err(Error::overflow("an entry"));
    }
    Tensor::from_vec(numbers, shape, device).map_err(refused)
}
