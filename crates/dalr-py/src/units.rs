//! Fewer hidden units between two layers.

use dalr::compress::HiddenUnitSelection;
use pyo3::prelude::*;

use crate::array::{each, map, typed};
use crate::compress::{AnyRidge, Inputs, OutputMetric, calibration, same_type};
use crate::error::OrRaise;
use crate::layers::Linear;
use crate::pickle;

/// The hidden units between two layers, in the order in which they are worth keeping.
#[pyclass(module = "dalr", frozen)]
pub(crate) struct HiddenUnits {
    pub(crate) inner: typed!(dalr::compress::HiddenUnits),
}

#[pymethods]
impl HiddenUnits {
    /// Order the units between `first` and `second`, given statistics of the inputs of `second`.
    ///
    /// With a `gate`, the units are the products of its activated outputs and those of `first`.
    #[new]
    #[pyo3(signature = (
        first, second, hidden, *, gate=None, output_metric=None, ridge=None, bias_correction=None, max_units=None,
        inputs_per_unit=1, threads=0,
    ))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn new(
        py: Python<'_>,
        first: &Linear,
        second: &Linear,
        hidden: Inputs<'_>,
        gate: Option<&Linear>,
        output_metric: Option<&OutputMetric>,
        ridge: Option<AnyRidge>,
        bias_correction: Option<bool>,
        max_units: Option<usize>,
        inputs_per_unit: usize,
        threads: usize,
    ) -> PyResult<Self> {
        let mut options = HiddenUnitSelection::new().with_inputs_per_unit(inputs_per_unit).with_threads(threads);
        if let Some(ridge) = ridge {
            options = options.with_ridge(ridge.get()?);
        }
        if let Some(correct) = bias_correction {
            options = options.with_bias_correction(correct);
        }
        if let Some(count) = max_units {
            options = options.with_max_units(count);
        }
        let inner = map!(&first.inner, first => {
            let second = same_type(second, "the second layer")?;
            let gate = gate.map(|gate| same_type(gate, "the gate")).transpose()?;
            let hidden = calibration(Some(&hidden), output_metric)?;
            py.detach(|| match gate {
                Some(gate) => options.solve_gated(gate, first, second, hidden),
                None => options.solve(first, second, hidden),
            })
            .or_raise()?
        });
        Ok(Self { inner })
    }

    /// The units in the order of the selection.
    #[getter]
    fn order(&self) -> Vec<usize> {
        each!(&self.inner, units => units.order().to_vec())
    }

    /// The predicted error of the second layer's outputs with this many units.
    fn relative_error(&self, units: usize) -> Option<f64> {
        each!(&self.inner, all => all.relative_error(units))
    }

    /// The predicted error in the output metric with this many units.
    fn metric_error(&self, units: usize) -> Option<f64> {
        each!(&self.inner, all => all.metric_error(units))
    }

    /// The layers with the first units of the order.
    fn select(&self, py: Python<'_>, units: usize) -> PyResult<SelectedUnits> {
        let selected = py.detach(|| Ok(map!(&self.inner, all => all.select(units)?))).or_raise()?;
        Ok(SelectedUnits { inner: selected })
    }
}

/// The layers with some of the hidden units.
#[pyclass(module = "dalr", frozen)]
pub(crate) struct SelectedUnits {
    inner: typed!(dalr::compress::SelectedUnits),
}

#[pymethods]
impl SelectedUnits {
    /// The kept units, ascending.
    #[getter]
    fn kept(&self) -> Vec<usize> {
        each!(&self.inner, selected => selected.kept.clone())
    }

    /// The first layer with the rows of the kept units.
    #[getter]
    fn first(&self) -> Linear {
        Linear { inner: map!(&self.inner, selected => selected.first.clone()) }
    }

    /// The gate with the rows of the kept units; None unless the units are gated.
    #[getter]
    fn gate(&self) -> Option<Linear> {
        Some(Linear { inner: map!(&self.inner, selected => selected.gate.clone()?) })
    }

    /// The refitted second layer.
    #[getter]
    fn second(&self) -> Linear {
        Linear { inner: map!(&self.inner, selected => selected.second.clone()) }
    }

    /// The predicted error of the second layer's outputs on the calibration data.
    #[getter]
    fn relative_error(&self) -> Option<f64> {
        each!(&self.inner, selected => selected.relative_error)
    }

    /// The predicted error in the output metric; None without a metric.
    #[getter]
    fn metric_error(&self) -> Option<f64> {
        each!(&self.inner, selected => selected.metric_error)
    }

    #[staticmethod]
    fn _from_bytes(data: &[u8]) -> PyResult<Self> {
        pickle::read(data).map(|inner| Self { inner })
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<pickle::Reduced<'py>> {
        pickle::reduce(slf, &slf.get().inner)
    }
}
