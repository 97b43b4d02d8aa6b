//! Pickles of what the library has no file format for: its fields as MessagePack, which has infinities.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What `__reduce__` returns: a function and its arguments.
pub(crate) type Reduced<'py> = (Bound<'py, PyAny>, (Bound<'py, PyBytes>,));

/// The call of `_from_bytes` of the object's class that makes it again.
pub(crate) fn reduce<'py, T>(object: &Bound<'py, T>, fields: &impl Serialize) -> PyResult<Reduced<'py>> {
    let object = object.as_any();
    let bytes = rmp_serde::to_vec_named(fields).map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok((object.get_type().getattr("_from_bytes")?, (PyBytes::new(object.py(), &bytes),)))
}

/// The fields that `reduce` wrote.
pub(crate) fn read<T: DeserializeOwned>(data: &[u8]) -> PyResult<T> {
    rmp_serde::from_slice(data).map_err(|error| PyValueError::new_err(format!("damaged pickle: {error}")))
}
