//! Methods, their options and results.

use dalr::factors::Form;
use dalr::{Calibration, LowRankCompressor};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::array::{Real, Typed, each, map, matrix, mismatch, read, typed};
use crate::error::OrRaise;
use crate::layers::{Linear, LowRankLinear, PivotedLinear};
use crate::pickle;
use crate::report::Report;
use crate::stats::{ActivationStats, PairedStats};

/// The rank of a compressed layer, or a rule that determines it. An int is a rank, too.
#[pyclass(module = "dalr", frozen, eq, from_py_object)]
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Rank(dalr::Rank);

#[pymethods]
#[allow(non_snake_case, reason = "the names of the Rust variants")]
impl Rank {
    /// Read `64`, `ratio:0.4`, `energy:0.99` or `error:0.05`.
    #[new]
    fn new(text: &str) -> PyResult<Self> {
        Ok(Self(text.parse().or_raise()?))
    }

    /// This rank.
    #[staticmethod]
    fn Fixed(rank: usize) -> Self {
        Self(dalr::Rank::Fixed(rank))
    }

    /// The largest rank with at most this fraction of the weight's parameters.
    #[staticmethod]
    fn ParameterRatio(fraction: f64) -> Self {
        Self(dalr::Rank::ParameterRatio(fraction))
    }

    /// The smallest rank whose eigenvalues sum to this fraction of the sum of all.
    #[staticmethod]
    fn Energy(fraction: f64) -> Self {
        Self(dalr::Rank::Energy(fraction))
    }

    /// The smallest rank whose predicted relative error is at most this number.
    #[staticmethod]
    fn RelativeError(error: f64) -> Self {
        Self(dalr::Rank::RelativeError(error))
    }

    /// The rank at which two factors have as many parameters as the weight.
    #[staticmethod]
    fn break_even(out_features: usize, in_features: usize) -> f64 {
        dalr::Rank::break_even(out_features, in_features)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> (Bound<'py, PyAny>, (String,)) {
        (slf.py().get_type::<Self>().into_any(), (slf.get().0.to_string(),))
    }

    fn __repr__(&self) -> String {
        format!("Rank('{}')", self.0)
    }
}

/// A rank as an argument.
#[derive(FromPyObject)]
pub(crate) enum AnyRank {
    Number(usize),
    Rule(Rank),
}

impl From<AnyRank> for dalr::Rank {
    fn from(rank: AnyRank) -> Self {
        match rank {
            AnyRank::Number(rank) => Self::Fixed(rank),
            AnyRank::Rule(rule) => rule.0,
        }
    }
}

/// The regularization of the second moment `S` of the inputs.
#[pyclass(module = "dalr", frozen, eq, from_py_object)]
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Ridge(dalr::Ridge);

#[pymethods]
#[allow(non_snake_case, reason = "the names of the Rust variants")]
impl Ridge {
    /// Read `none`, `shrinkage`, `relative:0.1`, `paper:1000` or `exact:1000`.
    #[new]
    fn new(text: &str) -> PyResult<Self> {
        Ok(Self(text.parse().or_raise()?))
    }

    /// Shrinkage whose strength is estimated from the data.
    #[staticmethod]
    fn Shrinkage() -> Self {
        Self(dalr::Ridge::Shrinkage)
    }

    /// `S + λI` with `λ = ratio · tr S / n`.
    #[staticmethod]
    fn Relative(ratio: f64) -> Self {
        Self(dalr::Ridge::Relative(ratio))
    }

    /// Eq. 11 of the paper as published.
    #[staticmethod]
    fn Paper(value: f64) -> Self {
        Self(dalr::Ridge::Paper(value))
    }

    /// The minimizer of eq. 7 of the paper.
    #[staticmethod]
    fn Exact(value: f64) -> Self {
        Self(dalr::Ridge::Exact(value))
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> (Bound<'py, PyAny>, (String,)) {
        (slf.py().get_type::<Self>().into_any(), (slf.get().0.to_string(),))
    }

    fn __repr__(&self) -> String {
        format!("Ridge('{}')", self.0)
    }
}

/// A regularization as an argument: a Ridge or its text.
#[derive(FromPyObject)]
pub(crate) enum AnyRidge {
    Ridge(Ridge),
    Text(String),
}

impl AnyRidge {
    pub(crate) fn get(self) -> PyResult<dalr::Ridge> {
        match self {
            Self::Ridge(ridge) => Ok(ridge.0),
            Self::Text(text) => text.parse().or_raise(),
        }
    }
}

/// A metric `G` on a layer's outputs: an error `e` counts `eᵀ G e`.
#[pyclass(module = "dalr", frozen)]
pub(crate) struct OutputMetric(pub(crate) dalr::compress::OutputMetric);

#[pymethods]
impl OutputMetric {
    /// Create a metric from a symmetric positive semidefinite matrix, out × out.
    #[new]
    fn new(matrix: &Bound<'_, PyAny>) -> PyResult<Self> {
        let metric = self::matrix::<f64>(&read(matrix, "the output metric")?, "the output metric")?;
        Ok(Self(dalr::compress::OutputMetric::new(metric.as_ref()).or_raise()?))
    }

    /// The metric `E[g gᵀ]` from statistics of the gradients `g` with respect to the outputs.
    #[staticmethod]
    fn from_gradients(py: Python<'_>, gradients: PyRef<'_, ActivationStats>) -> PyResult<Self> {
        let stats = &gradients.inner;
        let metric = py.detach(|| each!(stats, stats => dalr::compress::OutputMetric::from_gradients(stats)));
        Ok(Self(metric.or_raise()?))
    }

    /// The metric of the outputs that the next layer reads after an activation function, without
    /// gradients.
    ///
    /// `slopes` are statistics of the derivative of that function at the outputs, and `behind` is the
    /// metric of the next layer's outputs.
    #[staticmethod]
    #[pyo3(signature = (next_layer, slopes, behind=None))]
    fn from_next_layer(
        py: Python<'_>,
        next_layer: &Linear,
        slopes: PyRef<'_, ActivationStats>,
        behind: Option<&Self>,
    ) -> PyResult<Self> {
        let behind = behind.map(|behind| &behind.0);
        each!(&next_layer.inner, next => {
            let slopes = activations(&slopes)?;
            py.detach(|| dalr::compress::OutputMetric::from_next_layer(next, slopes, behind)).or_raise().map(Self)
        })
    }

    /// A metric that weighs each output on its own.
    #[staticmethod]
    fn diagonal(weights: Vec<f64>) -> PyResult<Self> {
        Ok(Self(dalr::compress::OutputMetric::diagonal(&weights).or_raise()?))
    }

    /// The metric with another floor, relative to its mean diagonal entry; 0.001 by default.
    fn with_floor(&self, ratio: f64) -> PyResult<Self> {
        Ok(Self(self.0.clone().with_floor(ratio).or_raise()?))
    }

    /// Number of outputs.
    #[getter]
    fn outputs(&self) -> usize {
        self.0.outputs()
    }

    #[staticmethod]
    fn _from_bytes(data: &[u8]) -> PyResult<Self> {
        pickle::read(data).map(Self)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<pickle::Reduced<'py>> {
        pickle::reduce(slf, &slf.get().0)
    }
}

/// How compressed layers are stored, which decides what a rank costs.
fn form(storage: &str) -> PyResult<Form> {
    match storage {
        "factors" => Ok(Form::Factors),
        "pivoted" => Ok(Form::Pivoted),
        _ => Err(PyValueError::new_err(format!("expected the storage \"factors\" or \"pivoted\", got {storage:?}"))),
    }
}

/// Statistics as an argument.
#[derive(FromPyObject)]
pub(crate) enum Inputs<'py> {
    Activations(PyRef<'py, ActivationStats>),
    Paired(PyRef<'py, PairedStats>),
}

/// The element types, chosen by a trait.
pub(crate) trait Choose: Real {
    fn activations(stats: &typed!(dalr::ActivationStats)) -> Option<&dalr::ActivationStats<Self>>;
    fn paired(stats: &typed!(dalr::covariance::PairedStats)) -> Option<&dalr::covariance::PairedStats<Self>>;
    fn linear(layer: &Linear) -> Option<&dalr::Linear<Self>>;
    fn decomposition(one: &typed!(dalr::Decomposition)) -> Option<&dalr::Decomposition<Self>>;
}

macro_rules! choose {
    ($scalar:ty, $variant:ident) => {
        impl Choose for $scalar {
            fn activations(stats: &typed!(dalr::ActivationStats)) -> Option<&dalr::ActivationStats<Self>> {
                if let Typed::$variant(stats) = stats { Some(stats) } else { None }
            }
            fn paired(stats: &typed!(dalr::covariance::PairedStats)) -> Option<&dalr::covariance::PairedStats<Self>> {
                if let Typed::$variant(stats) = stats { Some(stats) } else { None }
            }
            fn linear(layer: &Linear) -> Option<&dalr::Linear<Self>> {
                if let Typed::$variant(layer) = &layer.inner { Some(layer) } else { None }
            }
            fn decomposition(one: &typed!(dalr::Decomposition)) -> Option<&dalr::Decomposition<Self>> {
                if let Typed::$variant(one) = one { Some(one) } else { None }
            }
        }
    };
}

choose!(f32, F32);
choose!(f64, F64);

const STATISTICS: &str = "the statistics (as the layer has)";

fn activations<T: Choose>(stats: &ActivationStats) -> PyResult<&dalr::ActivationStats<T>> {
    T::activations(&stats.inner).ok_or_else(|| mismatch(STATISTICS, T::NAME, stats.inner.dtype()))
}

/// The calibration data of a layer of this type.
pub(crate) fn calibration<'a, T: Choose>(
    inputs: Option<&'a Inputs<'_>>,
    metric: Option<&'a OutputMetric>,
) -> PyResult<Calibration<'a, T>> {
    let calibration = match inputs {
        None => Calibration::none(),
        Some(Inputs::Activations(stats)) => activations(stats)?.into(),
        Some(Inputs::Paired(stats)) => {
            T::paired(&stats.inner).ok_or_else(|| mismatch(STATISTICS, T::NAME, stats.inner.dtype()))?.into()
        }
    };
    Ok(match metric {
        Some(metric) => calibration.with_output_metric(&metric.0),
        None => calibration,
    })
}

/// Another layer of the same type as the first.
pub(crate) fn same_type<'a, T: Choose>(layer: &'a Linear, what: &str) -> PyResult<&'a dalr::Linear<T>> {
    T::linear(layer).ok_or_else(|| mismatch(what, T::NAME, layer.inner.dtype()))
}

fn decompose(
    py: Python<'_>,
    method: &(impl LowRankCompressor<f32> + LowRankCompressor<f64> + Sync),
    layer: &Linear,
    inputs: Option<&Inputs<'_>>,
    max_rank: Option<usize>,
    metric: Option<&OutputMetric>,
) -> PyResult<Decomposition> {
    let inner = map!(&layer.inner, layer => {
        let calibration = calibration(inputs, metric)?;
        let max_rank = max_rank.unwrap_or_else(|| layer.out_features().min(layer.in_features()));
        py.detach(|| method.decompose(layer, calibration, max_rank)).or_raise()?
    });
    Ok(Decomposition { inner })
}

fn compress(
    py: Python<'_>,
    method: &(impl LowRankCompressor<f32> + LowRankCompressor<f64> + Sync),
    layer: &Linear,
    inputs: Option<&Inputs<'_>>,
    rank: AnyRank,
    metric: Option<&OutputMetric>,
) -> PyResult<Compressed> {
    let rank = rank.into();
    let inner = map!(&layer.inner, layer => {
        let calibration = calibration(inputs, metric)?;
        py.detach(|| method.compress_with(layer, calibration, rank)).or_raise()?
    });
    Ok(Compressed { inner })
}

/// Adds `compress` and `decompose`.
macro_rules! method {
    ($name:ident, { $($methods:tt)* }) => {
        #[pymethods]
        impl $name {
            $($methods)*

            /// Compress a layer to a rank, or by a rule that determines the rank.
            ///
            /// `storage` is "factors" or "pivoted": the form whose parameters count in the rank and
            /// in the report. `to_pivoted` makes a layer in the second one.
            #[pyo3(signature = (layer, stats, rank, *, output_metric=None, storage="factors"))]
            fn compress(
                &self,
                py: Python<'_>,
                layer: &Linear,
                stats: Option<Inputs<'_>>,
                rank: AnyRank,
                output_metric: Option<&OutputMetric>,
                storage: &str,
            ) -> PyResult<Compressed> {
                compress(py, &self.0.clone().with_form(form(storage)?), layer, stats.as_ref(), rank, output_metric)
            }

            /// Decompose a layer once, for every rank up to `max_rank`; by default for every rank.
            #[pyo3(signature = (layer, stats, max_rank=None, *, output_metric=None, storage="factors"))]
            fn decompose(
                &self,
                py: Python<'_>,
                layer: &Linear,
                stats: Option<Inputs<'_>>,
                max_rank: Option<usize>,
                output_metric: Option<&OutputMetric>,
                storage: &str,
            ) -> PyResult<Decomposition> {
                decompose(py, &self.0.clone().with_form(form(storage)?), layer, stats.as_ref(), max_rank, output_metric)
            }

            #[staticmethod]
            fn _from_bytes(data: &[u8]) -> PyResult<Self> {
                pickle::read(data).map(Self)
            }

            fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<pickle::Reduced<'py>> {
                pickle::reduce(slf, &slf.get().0)
            }
        }
    };
}

/// Activation-aware compression: the factors whose outputs on the calibration data change least.
#[pyclass(module = "dalr", frozen)]
pub(crate) struct Dalr(dalr::Dalr);

method!(Dalr, {
    /// Create the method. The defaults are recommended.
    #[new]
    #[pyo3(signature = (*, ridge=None, bias_correction=None, rank_multiple=1, threads=0))]
    fn new(
        ridge: Option<AnyRidge>,
        bias_correction: Option<bool>,
        rank_multiple: usize,
        threads: usize,
    ) -> PyResult<Self> {
        let mut method = dalr::Dalr::new().with_rank_multiple(rank_multiple).with_threads(threads);
        if let Some(ridge) = ridge {
            method = method.with_ridge(ridge.get()?);
        }
        if let Some(correct) = bias_correction {
            method = method.with_bias_correction(correct);
        }
        Ok(Self(method))
    }

    /// Eq. 11 of the paper as published.
    #[staticmethod]
    fn paper(value: f64) -> Self {
        Self(dalr::Dalr::paper(value))
    }
});

/// The singular value decomposition of the weight, which does not need samples.
#[pyclass(module = "dalr", frozen)]
pub(crate) struct TruncatedSvd(dalr::TruncatedSvd);

method!(TruncatedSvd, {
    /// Create the method.
    #[new]
    #[pyo3(signature = (*, bias_correction=false, rank_multiple=1, threads=0))]
    fn new(bias_correction: bool, rank_multiple: usize, threads: usize) -> Self {
        let method = dalr::TruncatedSvd::new().with_bias_correction(bias_correction);
        Self(method.with_rank_multiple(rank_multiple).with_threads(threads))
    }
});

/// One solve of a layer, from which any rank can be cut.
#[pyclass(module = "dalr", frozen)]
pub(crate) struct Decomposition {
    pub(crate) inner: typed!(dalr::Decomposition),
}

#[pymethods]
impl Decomposition {
    /// The largest rank that was solved for.
    #[getter]
    fn max_rank(&self) -> usize {
        each!(&self.inner, decomposition => decomposition.max_rank())
    }

    /// The eigenvalues of the problem, descending.
    #[getter]
    fn energies(&self) -> Vec<f64> {
        each!(&self.inner, decomposition => decomposition.energies().to_vec())
    }

    /// The sum of all eigenvalues.
    #[getter]
    fn total_energy(&self) -> f64 {
        each!(&self.inner, decomposition => decomposition.total_energy())
    }

    /// The predicted error at this rank; None without samples.
    fn relative_error(&self, rank: usize) -> Option<f64> {
        each!(&self.inner, decomposition => decomposition.relative_error(rank))
    }

    /// The predicted error in the output metric at this rank; None without a metric or samples.
    fn metric_error(&self, rank: usize) -> Option<f64> {
        each!(&self.inner, decomposition => decomposition.metric_error(rank))
    }

    /// The rank that a rule gives.
    #[pyo3(signature = (rank, multiple=1))]
    fn rank_for(&self, rank: AnyRank, multiple: usize) -> PyResult<usize> {
        each!(&self.inner, decomposition => decomposition.rank_for(rank.into(), multiple)).or_raise()
    }

    /// The compressed layer of this rank.
    fn truncate(&self, py: Python<'_>, rank: usize) -> PyResult<Compressed> {
        let inner = py.detach(|| Ok(map!(&self.inner, decomposition => decomposition.truncate(rank)?))).or_raise()?;
        Ok(Compressed { inner })
    }

    #[staticmethod]
    fn _from_bytes(data: &[u8]) -> PyResult<Self> {
        pickle::read(data).map(|inner| Self { inner })
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<pickle::Reduced<'py>> {
        pickle::reduce(slf, &slf.get().inner)
    }
}

/// A compressed layer with the report on it.
#[pyclass(module = "dalr", frozen)]
pub(crate) struct Compressed {
    inner: typed!(dalr::Compressed),
}

#[pymethods]
impl Compressed {
    /// The layer, as two factors.
    #[getter]
    fn layer(&self) -> LowRankLinear {
        map!(&self.inner, compressed => compressed.layer().clone()).into()
    }

    /// The layer in pivoted storage.
    fn to_pivoted(&self, py: Python<'_>) -> PyResult<PivotedLinear> {
        let inner = py.detach(|| Ok(map!(&self.inner, compressed => compressed.to_pivoted()?))).or_raise()?;
        Ok(inner.into())
    }

    /// The report.
    #[getter]
    fn report(&self) -> Report {
        Report::from(each!(&self.inner, compressed => compressed.report()))
    }

    /// The relative error of the outputs on other data.
    fn evaluate(&self, py: Python<'_>, layer: &Linear, stats: Inputs<'_>) -> PyResult<f64> {
        each!(&self.inner, compressed => {
            let (layer, data) = (same_type(layer, "the layer")?, calibration(Some(&stats), None)?);
            py.detach(|| compressed.evaluate(layer, data)).or_raise()
        })
    }

    #[staticmethod]
    fn _from_bytes(data: &[u8]) -> PyResult<Self> {
        pickle::read(data).map(|inner| Self { inner })
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<pickle::Reduced<'py>> {
        pickle::reduce(slf, &slf.get().inner)
    }
}

/// Choose, among regularizations, that with the least error on held-out samples.
#[pyfunction]
pub(crate) fn select_ridge(
    py: Python<'_>,
    layer: &Linear,
    stats: PyRef<'_, ActivationStats>,
    held_out: PyRef<'_, ActivationStats>,
    rank: AnyRank,
    candidates: Vec<AnyRidge>,
) -> PyResult<Ridge> {
    let candidates: Vec<dalr::Ridge> = candidates.into_iter().map(AnyRidge::get).collect::<PyResult<_>>()?;
    let rank = rank.into();
    each!(&layer.inner, layer => {
        let (stats, held_out) = (activations(&stats)?, activations(&held_out)?);
        py.detach(|| dalr::select_ridge(layer, stats, held_out, rank, &candidates)).or_raise().map(Ridge)
    })
}
