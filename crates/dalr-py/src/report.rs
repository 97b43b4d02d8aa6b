//! The report on one compressed layer.

use pyo3::prelude::*;
use serde::{Deserialize, Serialize};

use crate::pickle;

/// The result of compressing one layer: method, size, predicted error and warnings.
///
/// Print it for a summary.
#[pyclass(module = "dalr", frozen, get_all)]
#[derive(Serialize, Deserialize)]
pub(crate) struct Report {
    /// Name of the method.
    method: String,
    /// Rank of the compressed layer.
    rank: usize,
    /// Number of outputs of the layer.
    out_features: usize,
    /// Number of inputs of the layer.
    in_features: usize,
    /// Parameters of the original layer, bias included.
    parameters_before: usize,
    /// Parameters of the compressed layer, bias included.
    parameters_after: usize,
    /// Multiply–adds of the original layer for one sample.
    multiply_adds_before: usize,
    /// Multiply–adds of the compressed layer for one sample.
    multiply_adds_after: usize,
    /// Predicted error of the outputs on the calibration data; None without samples.
    relative_error: Option<f64>,
    /// Predicted error in the output metric; None without a metric or samples.
    metric_error: Option<f64>,
    /// Number of calibration samples.
    samples: u64,
    /// Estimated shrinkage; None if the method does not shrink.
    shrinkage: Option<f64>,
    /// Name of the algorithm that computed the eigenpairs.
    solver: String,
    /// Residual of the eigenpairs, relative to the largest eigenvalue.
    residual: f64,
    /// Reasons to check the result.
    warnings: Vec<String>,
    #[pyo3(name = "_text")]
    text: String,
}

impl From<&dalr::Report> for Report {
    fn from(report: &dalr::Report) -> Self {
        Self {
            method: report.method.clone(),
            rank: report.rank,
            out_features: report.out_features,
            in_features: report.in_features,
            parameters_before: report.parameters_before,
            parameters_after: report.parameters_after,
            multiply_adds_before: report.multiply_adds_before,
            multiply_adds_after: report.multiply_adds_after,
            relative_error: report.relative_error,
            metric_error: report.metric_error,
            samples: report.samples,
            shrinkage: report.shrinkage,
            solver: report.solver.clone(),
            residual: report.residual,
            warnings: report.warnings.iter().map(ToString::to_string).collect(),
            text: report.to_string(),
        }
    }
}

#[pymethods]
impl Report {
    fn __repr__(&self) -> &str {
        &self.text
    }

    #[staticmethod]
    fn _from_bytes(data: &[u8]) -> PyResult<Self> {
        pickle::read(data)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<pickle::Reduced<'py>> {
        pickle::reduce(slf, slf.get())
    }
}
