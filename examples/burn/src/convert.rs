//! Converts burn's tensors to faer's matrices, and back.
//!
//! burn stores the weight of a layer as in × out in row-major order. faer stores out × in in
//! column-major order, which has the same bytes, so no data are transposed.

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{DType, Device, Element, Tensor, TensorData};
use dalr::interop::half::round;
use dalr::{ActivationStats, Scalar};
use faer::{Col, ColRef, Mat, MatRef};
use half::{bf16, f16};

use crate::{Error, Result};

/// An element type of both dalr and burn: `f32` or `f64`.
pub trait Number: Scalar + Element {
    /// The name in error messages.
    const NAME: &'static str;
}

impl Number for f32 {
    const NAME: &'static str = "f32";
}

impl Number for f64 {
    const NAME: &'static str = "f64";
}

/// Copies a layer of burn to one of dalr, without rounding.
///
/// # Errors
///
/// [`Error::Type`] for a dtype that `T` cannot represent exactly, such as `f64` in `f32`, and for
/// quantized numbers; [`Error::Dalr`] for an empty weight, a bias of another length, a NaN or an
/// infinity.
pub fn to_dalr<T: Number>(layer: &Linear) -> Result<dalr::Linear<T>> {
    Ok(dalr::Linear::new(matrix(&layer.weight)?, layer.bias.as_ref().map(column).transpose()?)?)
}

/// Copies a layer of dalr to a trainable one of burn, each number rounded once to `dtype`.
///
/// # Errors
///
/// [`Error::Type`] for a dtype that is not a floating-point type or that the device does not
/// support; [`Error::Dalr`] for numbers beyond its range.
pub fn to_burn<T: Number>(layer: &dalr::Linear<T>, device: &Device, dtype: DType) -> Result<Linear> {
    linear(layer.weight(), layer.bias(), device, dtype)
}

/// Adds a batch of a layer's inputs to its statistics. The last axis has the inputs; all other axes
/// are samples.
///
/// # Errors
///
/// [`Error::Type`] for a dtype that `T` cannot represent exactly; [`Error::Dalr`] for a last axis
/// of another length, a NaN or an infinity. After an error the statistics are unchanged.
pub fn observe<T: Number, const D: usize>(stats: &mut ActivationStats<T>, batch: &Tensor<D>) -> Result<()> {
    let dims = batch.dims();
    let Some((&inputs, leading)) = dims.split_last() else {
        let what = "axis or more in the batch, the last one with the inputs";
        return Err(dalr::Error::Shape { operation: "observe", what, expected: 1, found: 0 }.into());
    };
    let values = read(batch)?;
    Ok(stats.update(MatRef::from_row_major_slice(&values, leading.iter().product(), inputs))?)
}

/// Returns a weight as out × in.
pub(crate) fn matrix<T: Number>(weight: &Param<Tensor<2>>) -> Result<Mat<T>> {
    let weight = weight.val();
    let [inputs, outputs] = weight.dims();
    Ok(MatRef::from_column_major_slice(&read::<T, 2>(&weight)?, outputs, inputs).to_owned())
}

/// Returns a bias.
pub(crate) fn column<T: Number>(bias: &Param<Tensor<1>>) -> Result<Col<T>> {
    Ok(read(&bias.val())?.into_iter().collect())
}

/// Creates a trainable layer of burn from an out × in weight and a bias.
pub(crate) fn linear<T: Number>(
    weight: MatRef<'_, T>,
    bias: Option<ColRef<'_, T>>,
    device: &Device,
    dtype: DType,
) -> Result<Linear> {
    let weight_data = data(weight, [weight.ncols(), weight.nrows()], device, dtype)?;
    let bias = bias.map(|entries| self::bias(entries, device, dtype)).transpose()?;
    Ok(Linear { weight: Param::from_tensor(Tensor::from_data(weight_data, (device, dtype))), bias })
}

/// Creates a trainable bias.
pub(crate) fn bias<T: Number>(bias: ColRef<'_, T>, device: &Device, dtype: DType) -> Result<Param<Tensor<1>>> {
    let data = data(bias.as_mat(), [bias.nrows()], device, dtype)?;
    Ok(Param::from_tensor(Tensor::from_data(data, (device, dtype))))
}

/// Refuses a part of a compressed layer that got a bias of its own.
pub(crate) fn require_no_bias(layer: &Linear, what: &'static str) -> Result<()> {
    match &layer.bias {
        Some(bias) => {
            let found = bias.lazy_shape().num_elements();
            Err(dalr::Error::Shape { operation: "to_dalr", what, expected: 0, found }.into())
        }
        None => Ok(()),
    }
}

/// Returns the numbers of a tensor in row-major order, if `T` represents them exactly.
fn read<T: Number, const D: usize>(tensor: &Tensor<D>) -> Result<Vec<T>> {
    let exact = match tensor.dtype() {
        DType::F32 | DType::Flex32 | DType::F16 | DType::BF16 => true,
        DType::F64 => T::dtype() == DType::F64,
        _ => false,
    };
    if !exact {
        return Err(Error::Type { found: tensor.dtype(), into: T::NAME });
    }
    Ok(tensor.try_to_vec_as()?)
}

/// Returns the numbers of a matrix in column-major order, each rounded once.
fn data<T: Number, const D: usize>(
    matrix: MatRef<'_, T>,
    shape: [usize; D],
    device: &Device,
    dtype: DType,
) -> Result<TensorData> {
    if !device.supports_dtype(dtype) {
        return Err(Error::Type { found: dtype, into: "the device" });
    }
    Ok(match dtype {
        DType::F64 => TensorData::new(columns(matrix, Scalar::to_f64), shape),
        DType::F32 => {
            let values = columns(matrix, |number| Scalar::to_f64(number) as f32);
            if !values.iter().all(|value| value.is_finite()) {
                return Err(dalr::Error::Overflow { operation: "to f32", what: "an entry" }.into());
            }
            TensorData::new(values, shape)
        }
        DType::F16 => TensorData::new(columns(round::<f16, T>(matrix)?.as_ref(), |number| number), shape),
        DType::BF16 => TensorData::new(columns(round::<bf16, T>(matrix)?.as_ref(), |number| number), shape),
        found => return Err(Error::Type { found, into: "a layer" }),
    })
}

fn columns<A: Copy, B>(matrix: MatRef<'_, A>, number: impl Fn(A) -> B) -> Vec<B> {
    let mut values = Vec::with_capacity(matrix.nrows() * matrix.ncols());
    for column in matrix.col_iter() {
        values.extend(column.iter().map(|&entry| number(entry)));
    }
    values
}
