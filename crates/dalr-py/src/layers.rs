//! Original and compressed layers.

use std::path::PathBuf;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::array::{Typed, array, column, each, forward, from_column, from_matrix, map, matrix, read, typed};
use crate::error::OrRaise;

/// Adds sizes, `forward` and what else all kinds of layers have.
macro_rules! layer {
    ($name:ident, { $($methods:tt)* }) => {
        impl From<typed!(dalr::factors::$name)> for $name {
            fn from(inner: typed!(dalr::factors::$name)) -> Self {
                Self { inner }
            }
        }

        layer!(methods $name, {
            /// The bias, of length out; None if there is none.
            #[getter]
            fn bias<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
                each!(&self.inner, layer => layer.bias().map(|bias| from_column(py, bias)))
            }

            /// The rank.
            #[getter]
            fn rank(&self) -> usize {
                each!(&self.inner, layer => layer.rank())
            }

            /// The layer with the same weight in one matrix.
            fn to_linear(&self, py: Python<'_>) -> PyResult<Linear> {
                let inner = py.detach(|| Ok(map!(&self.inner, layer => layer.to_linear()?))).or_raise()?;
                Ok(Linear { inner })
            }

            /// Write the layer to a safetensors file, under this name.
            fn save(&self, py: Python<'_>, path: PathBuf, name: &str) -> PyResult<()> {
                py.detach(|| each!(&self.inner, layer => layer.save(path, name))).or_raise()
            }

            /// Read the layer of this name from a safetensors file.
            #[staticmethod]
            #[pyo3(signature = (path, name, dtype="float32"))]
            fn load(py: Python<'_>, path: PathBuf, name: &str, dtype: &str) -> PyResult<Self> {
                let empty = match dtype {
                    "float32" => Typed::F32(()),
                    "float64" => Typed::F64(()),
                    _ => return Err(PyTypeError::new_err(format!("expected dtype float32 or float64, got {dtype}"))),
                };
                let inner = py.detach(|| Ok(map!(empty, () => dalr::factors::$name::load(path, name)?))).or_raise()?;
                Ok(Self { inner })
            }

            $($methods)*
        });
    };
    (methods $name:ident, { $($methods:tt)* }) => {
        #[pymethods]
        impl $name {
            $($methods)*

            /// Number of inputs.
            #[getter]
            fn in_features(&self) -> usize {
                each!(&self.inner, layer => layer.in_features())
            }

            /// Number of outputs.
            #[getter]
            fn out_features(&self) -> usize {
                each!(&self.inner, layer => layer.out_features())
            }

            /// Number of parameters, the bias included.
            #[getter]
            fn parameters(&self) -> usize {
                each!(&self.inner, layer => layer.parameters())
            }

            /// Multiply–adds of one sample's forward pass.
            #[getter]
            fn multiply_adds(&self) -> usize {
                each!(&self.inner, layer => layer.multiply_adds())
            }

            /// The dtype, float32 or float64.
            #[getter]
            fn dtype(&self) -> &'static str {
                self.inner.dtype()
            }

            /// The outputs, … × out, of inputs, … × in.
            fn forward<'py>(&self, inputs: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
                each!(&self.inner, layer => forward(inputs, |inputs| layer.forward(inputs)))
            }

            fn __eq__(&self, other: &Self) -> bool {
                self.inner == other.inner
            }

            fn __repr__(&self) -> String {
                each!(&self.inner, layer => format!("{layer:?}"))
            }
        }
    };
}

/// A fully connected layer, `y = W x + b`.
#[pyclass(module = "dalr", frozen)]
pub(crate) struct Linear {
    pub(crate) inner: typed!(dalr::Linear),
}

layer!(methods Linear, {
    /// Create a layer from its weight, out × in, and its bias.
    ///
    /// Both are copied. The dtype is that of the weight.
    #[new]
    #[pyo3(signature = (weight, bias=None))]
    fn new(weight: &Bound<'_, PyAny>, bias: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let inner = map!(array(weight, "the weight")?, weight => {
            let weight = matrix(&weight, "the weight")?;
            let bias = bias.map(|bias| column(&read(bias, "the bias")?, "the bias")).transpose()?;
            dalr::Linear::new(weight, bias).or_raise()?
        });
        Ok(Self { inner })
    }

    /// The weight, out × in.
    #[getter]
    fn weight<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        each!(&self.inner, layer => from_matrix(py, layer.weight()))
    }

    /// The bias, of length out; None if there is none.
    #[getter]
    fn bias<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        each!(&self.inner, layer => layer.bias().map(|bias| from_column(py, bias)))
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let (py, layer) = (slf.py(), slf.get());
        Ok((py.get_type::<Self>().into_any(), (layer.weight(py), layer.bias(py)).into_pyobject(py)?))
    }
});

/// A compressed layer: two factors, `ŷ = up (down x) + b̂`.
#[pyclass(module = "dalr", frozen)]
pub(crate) struct LowRankLinear {
    pub(crate) inner: typed!(dalr::factors::LowRankLinear),
}

layer!(LowRankLinear, {
    /// Create a layer from its factors, rank × in and out × rank, and its bias.
    #[new]
    #[pyo3(signature = (down, up, bias=None))]
    fn new(down: &Bound<'_, PyAny>, up: &Bound<'_, PyAny>, bias: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let inner = map!(array(down, "`down`")?, down => {
            let (down, up) = (matrix(&down, "`down`")?, matrix(&read(up, "`up`")?, "`up`")?);
            let bias = bias.map(|bias| column(&read(bias, "the bias")?, "the bias")).transpose()?;
            dalr::LowRankLinear::new(down, up, bias).or_raise()?
        });
        Ok(Self { inner })
    }

    /// The first factor, rank × in.
    #[getter]
    fn down<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        each!(&self.inner, layer => from_matrix(py, layer.down()))
    }

    /// The second factor, out × rank.
    #[getter]
    fn up<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        each!(&self.inner, layer => from_matrix(py, layer.up()))
    }

    /// The layer in pivoted storage, with k (m + n − k) parameters instead of k (m + n).
    fn to_pivoted(&self, py: Python<'_>) -> PyResult<PivotedLinear> {
        let inner = py.detach(|| Ok(map!(&self.inner, layer => layer.to_pivoted()?))).or_raise()?;
        Ok(PivotedLinear { inner })
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let (py, layer) = (slf.py(), slf.get());
        let parts = (layer.down(py), layer.up(py), layer.bias(py));
        Ok((py.get_type::<Self>().into_any(), parts.into_pyobject(py)?))
    }
});

/// A compressed layer in pivoted storage: some rows of its weight, and the others as combinations of
/// these.
#[pyclass(module = "dalr", frozen)]
pub(crate) struct PivotedLinear {
    pub(crate) inner: typed!(dalr::factors::PivotedLinear),
}

layer!(PivotedLinear, {
    /// Create a layer from its pivot rows, rank × in, the coefficients of the other rows,
    /// (out − rank) × rank, the ascending outputs of the pivot rows, and its bias.
    #[new]
    #[pyo3(signature = (pivot_rows, coefficients, pivots, bias=None))]
    fn new(
        pivot_rows: &Bound<'_, PyAny>,
        coefficients: &Bound<'_, PyAny>,
        pivots: Vec<usize>,
        bias: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let inner = map!(array(pivot_rows, "the pivot rows")?, rows => {
            let rows = matrix(&rows, "the pivot rows")?;
            let coefficients = matrix(&read(coefficients, "the coefficients")?, "the coefficients")?;
            let bias = bias.map(|bias| column(&read(bias, "the bias")?, "the bias")).transpose()?;
            dalr::factors::PivotedLinear::new(rows, coefficients, pivots, bias).or_raise()?
        });
        Ok(Self { inner })
    }

    /// The stored rows of the weight, rank × in.
    #[getter]
    fn pivot_rows<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        each!(&self.inner, layer => from_matrix(py, layer.pivot_rows()))
    }

    /// The coefficients of the other rows, (out − rank) × rank.
    #[getter]
    fn coefficients<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        each!(&self.inner, layer => from_matrix(py, layer.coefficients()))
    }

    /// The outputs that the pivot rows belong to, ascending.
    #[getter]
    fn pivots(&self) -> Vec<usize> {
        each!(&self.inner, layer => layer.pivots().to_vec())
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let (py, layer) = (slf.py(), slf.get());
        let parts = (layer.pivot_rows(py), layer.coefficients(py), layer.pivots(), layer.bias(py));
        Ok((py.get_type::<Self>().into_any(), parts.into_pyobject(py)?))
    }
});
