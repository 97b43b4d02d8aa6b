//! Errors of the library as Python exceptions of matching kinds, with the library's messages.

use dalr::Error;
use pyo3::PyErr;
use pyo3::exceptions::{PyMemoryError, PyOverflowError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;

/// Converts the error of a result.
pub(crate) trait OrRaise<R> {
    /// Returns the value, or the error as an exception.
    fn or_raise(self) -> PyResult<R>;
}

impl<R> OrRaise<R> for dalr::Result<R> {
    fn or_raise(self) -> PyResult<R> {
        self.map_err(|error| exception(&error, error.to_string()))
    }
}

/// Returns an exception of the error's kind with this message.
fn exception(error: &Error, message: String) -> PyErr {
    match error {
        Error::InLayer { source, .. } => exception(source, message),
        Error::Io { source, .. } => std::io::Error::new(source.kind(), message).into(),
        Error::Memory { .. } => PyMemoryError::new_err(message),
        Error::Overflow { .. } => PyOverflowError::new_err(message),
        Error::NumberType { .. } => PyTypeError::new_err(message),
        Error::NoConvergence { .. } | Error::Library { .. } => PyRuntimeError::new_err(message),
        // An exception that a function of the caller raised stays what it is.
        Error::Callback { source, .. } => match source.downcast_ref::<PyErr>() {
            Some(raised) => Python::attach(|py| raised.clone_ref(py)),
            None => PyRuntimeError::new_err(message),
        },
        _ => PyValueError::new_err(message),
    }
}
