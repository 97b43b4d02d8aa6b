//! NumPy arrays in and out.
//!
//! An array of `float32` or `float64` is read in place, with any strides. `float16` becomes
//! `float32`, and integers become `float64`. Results are copied once into arrays of their own.

use dalr::faer::{Col, ColRef, Mat, MatRef};
use dalr::interop::ndarray::{samples, to_column, to_ndarray, to_vector, view};
use ndarray::{ArrayD, ArrayViewD};
use numpy::prelude::*;
use numpy::{Element, PyArrayDescr, PyArrayDyn, PyReadonlyArrayDyn, PyUntypedArray};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::OrRaise;

/// Something for data of `float32` or of `float64`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Typed<A, B> {
    F32(A),
    F64(B),
}

/// `typed!(dalr::Linear)`: the type for both element types.
macro_rules! typed {
    ($($name:ident)::+) => { $crate::array::Typed<$($name)::+<f32>, $($name)::+<f64>> };
}

/// The same expression for both element types.
macro_rules! each {
    ($typed:expr, $value:pat => $body:expr) => {
        match $typed {
            $crate::array::Typed::F32($value) => $body,
            $crate::array::Typed::F64($value) => $body,
        }
    };
}

/// An expression for both element types whose result is typed, too.
macro_rules! map {
    ($typed:expr, $value:pat => $body:expr) => {
        match $typed {
            $crate::array::Typed::F32($value) => $crate::array::Typed::F32($body),
            $crate::array::Typed::F64($value) => $crate::array::Typed::F64($body),
        }
    };
}

pub(crate) use {each, map, typed};

impl<A, B> Typed<A, B> {
    /// The name of the element type.
    pub(crate) fn dtype(&self) -> &'static str {
        match self {
            Self::F32(_) => f32::NAME,
            Self::F64(_) => f64::NAME,
        }
    }
}

/// The exception for arguments of different element types.
pub(crate) fn mismatch(what: &str, expected: &str, found: &str) -> PyErr {
    PyTypeError::new_err(format!("expected dtype {expected} in {what}, got {found}"))
}

/// An element type.
pub(crate) trait Real: dalr::Scalar + Element {
    const NAME: &'static str;
}

impl Real for f32 {
    const NAME: &'static str = "float32";
}

impl Real for f64 {
    const NAME: &'static str = "float64";
}

/// An array of `float32` or `float64`, or one that was converted.
pub(crate) type Array<'py> = Typed<PyReadonlyArrayDyn<'py, f32>, PyReadonlyArrayDyn<'py, f64>>;

/// Reads an array, or anything that NumPy makes an array of, in the smaller type that holds its
/// numbers.
pub(crate) fn array<'py>(object: &Bound<'py, PyAny>, what: &str) -> PyResult<Array<'py>> {
    let array = as_array(object)?;
    let dtype = array.dtype();
    Ok(match dtype.kind() == b'f' && dtype.itemsize() <= 4 {
        true => Typed::F32(typed_array(&array, what)?),
        false => Typed::F64(typed_array(&array, what)?),
    })
}

/// Reads an array of this type, or of one that converts to it without loss.
pub(crate) fn read<'py, T: Real>(object: &Bound<'py, PyAny>, what: &str) -> PyResult<PyReadonlyArrayDyn<'py, T>> {
    typed_array(&as_array(object)?, what)
}

fn as_array<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyUntypedArray>> {
    // Memory that is not aligned cannot be read in place.
    let numpy = object.py().import("numpy")?;
    let array = numpy.call_method1("require", (object, object.py().None(), ["A"]))?.cast_into::<PyUntypedArray>()?;
    let itemsize = array.dtype().itemsize() as isize;
    if array.strides().iter().all(|stride| itemsize > 0 && stride % itemsize == 0) {
        return Ok(array);
    }
    // A field of a structured array, for example.
    Ok(numpy.call_method1("array", (array,))?.call_method1("copy", ("C",))?.cast_into()?)
}

fn typed_array<'py, T: Real>(array: &Bound<'py, PyUntypedArray>, what: &str) -> PyResult<PyReadonlyArrayDyn<'py, T>> {
    let py = array.py();
    let array = match array.cast::<PyArrayDyn<T>>() {
        Ok(array) => array.clone(),
        Err(_) => {
            let (from, to) = (array.dtype(), PyArrayDescr::new(py, T::NAME)?);
            if !py.import("numpy")?.call_method1("can_cast", (&from, &to))?.extract::<bool>()? {
                return Err(mismatch(what, T::NAME, &from.str()?.to_string()));
            }
            array.call_method1("astype", (to,))?.cast_into()?
        }
    };
    array.try_readonly().map_err(|error| PyValueError::new_err(format!("{what}: {error}")))
}

/// Calls a function with the samples of a batch whose last axis is the inputs.
pub(crate) fn with_samples<T: Real, R>(
    batch: &ArrayViewD<'_, T>,
    body: impl FnOnce(MatRef<'_, T>) -> dalr::Result<R>,
) -> dalr::Result<R> {
    let samples = samples(batch)?;
    body(view(&samples))
}

/// Copies an array of two axes.
pub(crate) fn matrix<T: Real>(array: &PyReadonlyArrayDyn<'_, T>, what: &str) -> PyResult<Mat<T>> {
    let array = array.as_array().into_dimensionality().map_err(|_| axes(what, 2, array.shape()))?;
    Ok(view(&array).to_owned())
}

/// Copies an array of one axis.
pub(crate) fn column<T: Real>(array: &PyReadonlyArrayDyn<'_, T>, what: &str) -> PyResult<Col<T>> {
    let array = array.as_array().into_dimensionality().map_err(|_| axes(what, 1, array.shape()))?;
    Ok(to_column(&array))
}

fn axes(what: &str, expected: usize, shape: &[usize]) -> PyErr {
    let noun = if expected == 1 { "axis" } else { "axes" };
    PyValueError::new_err(format!("expected {expected} {noun} in {what}, got the shape {shape:?}"))
}

/// Returns a new array of one axis.
pub(crate) fn from_column<'py, T: Real>(py: Python<'py>, column: ColRef<'_, T>) -> Bound<'py, PyAny> {
    to_vector(column).into_pyarray(py).into_any()
}

/// Returns a new array of two axes, row by row.
pub(crate) fn from_matrix<'py, T: Real>(py: Python<'py>, matrix: MatRef<'_, T>) -> Bound<'py, PyAny> {
    to_ndarray(matrix).into_pyarray(py).into_any()
}

/// Calls `forward` with the samples of a batch of any number of axes, and gives the outputs the
/// leading axes of the batch.
pub(crate) fn forward<'py, T: Real>(
    batch: &Bound<'py, PyAny>,
    forward: impl Fn(MatRef<'_, T>) -> dalr::Result<Mat<T>> + Send,
) -> PyResult<Bound<'py, PyAny>> {
    let py = batch.py();
    let batch = read::<T>(batch, "the inputs")?;
    let (batch, mut shape) = (batch.as_array(), batch.shape().to_vec());
    let outputs = py.detach(|| with_samples(&batch, forward)).or_raise()?;
    if let Some(last) = shape.last_mut() {
        *last = outputs.ncols();
    }
    let outputs: ArrayD<T> = to_ndarray(outputs.as_ref()).into_dyn();
    let outputs = outputs.into_shape_with_order(shape).map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok(outputs.into_pyarray(py).into_any())
}
