//! Statistics of a layer's inputs.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::array::{Real, Typed, array, each, from_column, from_matrix, map, mismatch, read, typed, with_samples};
use crate::error::OrRaise;

/// Whether the numbers of a file are those of the other type.
fn is_other_type(error: &dalr::Error) -> bool {
    matches!(error, dalr::Error::Format { expected, .. } if expected.starts_with("dtype"))
}

/// Whether a batch, or the statistics that are to be merged, are `float32`, and the object that
/// they are added to is `float64`, or the other way round.
fn differ<A, B, C, D>(one: &Typed<A, B>, other: &Typed<C, D>) -> bool {
    one.dtype() != other.dtype()
}

/// Adds the constructor, `merge`, numbers of samples and storage: the methods that both kinds of
/// statistics have.
macro_rules! statistics {
    ($name:ident, $new:expr, { $($methods:tt)* }) => {
        impl $name {
            /// Empty statistics with the options of these.
            fn empty<T: Real>(&self) -> dalr::covariance::$name<T> {
                let mut stats = $new(self)(self.inner_features());
                if let Some(bytes) = self.memory_limit {
                    stats = stats.with_memory_limit(bytes);
                }
                stats.with_threads(self.threads)
            }

            fn inner_features(&self) -> usize {
                each!(&self.inner, stats => stats.features())
            }

            /// Gives empty statistics the dtype of the first batch.
            fn adopt<A, B>(&mut self, first: &Typed<A, B>) {
                if differ(&self.inner, first) && each!(&self.inner, stats => stats.samples()) == 0 {
                    self.inner = map!(first, _ => self.empty());
                }
            }
        }

        #[pymethods]
        impl $name {
            $($methods)*

            /// Add the statistics of other samples.
            fn merge(&mut self, py: Python<'_>, other: PyRef<'_, Self>) -> PyResult<()> {
                if other.samples() > 0 {
                    self.adopt(&other.inner);
                }
                let (to, from) = (&mut self.inner, &other.inner);
                match (to, from) {
                    (Typed::F32(to), Typed::F32(from)) => py.detach(|| to.merge(from)).or_raise(),
                    (Typed::F64(to), Typed::F64(from)) => py.detach(|| to.merge(from)).or_raise(),
                    // One of them is empty.
                    (to, from) if each!(from, from => from.samples()) == 0 => {
                        each!(to, to => to.merge(&dalr::covariance::$name::new(each!(from, from => from.features()))))
                            .or_raise()
                    }
                    (to, from) => Err(mismatch("the other statistics", to.dtype(), from.dtype())),
                }
            }

            /// Number of samples, also those of weight zero.
            #[getter]
            fn samples(&self) -> u64 {
                each!(&self.inner, stats => stats.samples())
            }

            /// Sum of the weights of the samples; their number without weights.
            #[getter]
            fn total_weight(&self) -> f64 {
                each!(&self.inner, stats => stats.total_weight())
            }

            /// Effective number of samples, `(Σ wᵢ)² / Σ wᵢ²`.
            #[getter]
            fn effective_samples(&self) -> f64 {
                each!(&self.inner, stats => stats.effective_samples())
            }

            /// Number of inputs.
            #[getter]
            fn features(&self) -> usize {
                self.inner_features()
            }

            /// The dtype: that of the first batch.
            #[getter]
            fn dtype(&self) -> &'static str {
                self.inner.dtype()
            }

            /// Write the statistics to a safetensors file, which the library reads in Rust, too.
            fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
                py.detach(|| each!(&self.inner, stats => stats.save(path))).or_raise()
            }

            /// Read statistics that `save` wrote.
            #[staticmethod]
            fn load(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
                py.detach(|| match dalr::covariance::$name::<f32>::load(&path) {
                    Ok(stats) => Ok(Typed::F32(stats)),
                    Err(error) if is_other_type(&error) => dalr::covariance::$name::load(&path).map(Typed::F64),
                    Err(error) => Err(error),
                })
                .or_raise()
                .map(Self::from)
            }

            /// The content of the file that `save` writes.
            fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
                let bytes = py.detach(|| each!(&self.inner, stats => stats.to_safetensors())).or_raise()?;
                Ok(PyBytes::new(py, &bytes))
            }

            /// Statistics from the content of such a file.
            #[staticmethod]
            fn from_bytes(py: Python<'_>, data: &[u8]) -> PyResult<Self> {
                py.detach(|| match dalr::covariance::$name::<f32>::from_safetensors(data) {
                    Ok(stats) => Ok(Typed::F32(stats)),
                    Err(error) if is_other_type(&error) => {
                        dalr::covariance::$name::from_safetensors(data).map(Typed::F64)
                    }
                    Err(error) => Err(error),
                })
                .or_raise()
                .map(Self::from)
            }

            fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyBytes>,))> {
                let py = slf.py();
                Ok((py.get_type::<Self>().getattr("from_bytes")?, (slf.borrow().to_bytes(py)?,)))
            }

            fn __copy__(&self) -> Self {
                self.clone()
            }

            fn __deepcopy__(&self, _memo: &Bound<'_, PyAny>) -> Self {
                self.clone()
            }

            fn __repr__(&self) -> String {
                let (name, dtype) = (stringify!($name), self.inner.dtype());
                format!("{name}({} features, {} samples, {dtype})", self.inner_features(), self.samples())
            }
        }
    };
}

/// Statistics of a layer's inputs: mean, covariance and more, updated batch by batch.
///
/// Samples are rows, and inputs are the last axis of a batch. The dtype is that of the first batch.
/// The numbers are summed in float64 in any case. Memory does not grow with the number of samples.
#[pyclass(module = "dalr")]
#[derive(Clone)]
pub(crate) struct ActivationStats {
    pub(crate) inner: typed!(dalr::ActivationStats),
    memory_limit: Option<usize>,
    threads: usize,
}

impl From<typed!(dalr::ActivationStats)> for ActivationStats {
    fn from(inner: typed!(dalr::ActivationStats)) -> Self {
        Self { inner, memory_limit: None, threads: 0 }
    }
}

statistics!(ActivationStats, |_| dalr::ActivationStats::new, {
    /// Create empty statistics of this many inputs.
    ///
    /// An update that would exceed `memory_limit`, in bytes, raises MemoryError. `threads=0` means
    /// all.
    #[new]
    #[pyo3(signature = (features, *, memory_limit=None, threads=0))]
    fn new(features: usize, memory_limit: Option<usize>, threads: usize) -> Self {
        let mut new = Self { inner: Typed::F64(dalr::ActivationStats::new(features)), memory_limit, threads };
        new.inner = Typed::F64(new.empty());
        new
    }

    /// Add a batch, … × inputs, and perhaps a weight for each sample.
    ///
    /// The batch is not copied if its dtype is that of the statistics and its samples have a
    /// constant distance in memory. No other thread may write to it meanwhile.
    #[pyo3(signature = (batch, weights=None))]
    fn update(&mut self, batch: &Bound<'_, PyAny>, weights: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let py = batch.py();
        self.adopt(&array(batch, "the batch")?);
        let weights = weights.map(|weights| read::<f64>(weights, "the weights")).transpose()?;
        let weights: Option<Vec<f64>> = weights.map(|weights| weights.as_array().iter().copied().collect());
        each!(&mut self.inner, stats => {
            let batch = read(batch, "the batch")?;
            let batch = batch.as_array();
            py.detach(|| with_samples(&batch, |batch| match &weights {
                Some(weights) => stats.update_weighted(batch, weights),
                None => stats.update(batch),
            })).or_raise()
        })
    }

    /// The mean of each input.
    #[getter]
    fn mean<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(from_column(py, each!(&self.inner, stats => stats.mean()).or_raise()?.as_ref()))
    }

    /// The largest value of each input.
    #[getter]
    fn maximum<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(from_column(py, each!(&self.inner, stats => stats.maximum()).or_raise()?.as_ref()))
    }

    /// The smallest value of each input.
    #[getter]
    fn minimum<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(from_column(py, each!(&self.inner, stats => stats.minimum()).or_raise()?.as_ref()))
    }

    /// The mean of the absolute value of each input.
    #[getter]
    fn mean_absolute<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(from_column(py, each!(&self.inner, stats => stats.mean_absolute()).or_raise()?.as_ref()))
    }

    /// The fraction of samples in which each input is positive.
    #[getter]
    fn activation_rates<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(from_column(py, each!(&self.inner, stats => stats.activation_rates()).or_raise()?.as_ref()))
    }

    /// The covariance of the inputs, divided by the total weight.
    fn covariance<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let covariance = py.detach(|| each!(&self.inner, stats => stats.covariance())).or_raise()?;
        Ok(from_matrix(py, covariance.as_ref()))
    }
});

/// Statistics of the inputs of the same samples in the original and in the partly compressed
/// network.
#[pyclass(module = "dalr")]
#[derive(Clone)]
pub(crate) struct PairedStats {
    pub(crate) inner: typed!(dalr::covariance::PairedStats),
    original_covariance: bool,
    memory_limit: Option<usize>,
    threads: usize,
}

impl From<typed!(dalr::covariance::PairedStats)> for PairedStats {
    fn from(inner: typed!(dalr::covariance::PairedStats)) -> Self {
        Self { inner, original_covariance: true, memory_limit: None, threads: 0 }
    }
}

fn new_pairs<T: Real>(of: &PairedStats) -> impl Fn(usize) -> dalr::covariance::PairedStats<T> {
    let original = of.original_covariance;
    move |features| match dalr::covariance::PairedStats::new(features) {
        stats if original => stats,
        stats => stats.without_original_covariance(),
    }
}

statistics!(PairedStats, new_pairs, {
    /// Create empty statistics of this many inputs.
    ///
    /// Without the covariance of the original inputs, no error is predicted.
    #[new]
    #[pyo3(signature = (features, *, original_covariance=true, memory_limit=None, threads=0))]
    fn new(features: usize, original_covariance: bool, memory_limit: Option<usize>, threads: usize) -> Self {
        let inner = Typed::F64(dalr::covariance::PairedStats::new(features));
        let mut new = Self { inner, original_covariance, memory_limit, threads };
        new.inner = Typed::F64(new.empty());
        new
    }

    /// Add the inputs of the same samples in both networks, … × inputs each, and perhaps a weight
    /// for each sample.
    #[pyo3(signature = (original, compressed, weights=None))]
    fn update(
        &mut self,
        original: &Bound<'_, PyAny>,
        compressed: &Bound<'_, PyAny>,
        weights: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let py = original.py();
        self.adopt(&array(original, "the original inputs")?);
        let weights = weights.map(|weights| read::<f64>(weights, "the weights")).transpose()?;
        let weights: Option<Vec<f64>> = weights.map(|weights| weights.as_array().iter().copied().collect());
        each!(&mut self.inner, stats => {
            let original = read(original, "the original inputs")?;
            let compressed = read(compressed, "the compressed inputs")?;
            let (original, compressed) = (original.as_array(), compressed.as_array());
            py.detach(|| with_samples(&original, |original| with_samples(&compressed, |compressed| match &weights {
                Some(weights) => stats.update_weighted(original, compressed, weights),
                None => stats.update(original, compressed),
            }))).or_raise()
        })
    }

    /// The mean of each original input.
    #[getter]
    fn original_mean<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(from_column(py, each!(&self.inner, stats => stats.original_mean()).or_raise()?.as_ref()))
    }

    /// The mean of each input of the compressed network.
    #[getter]
    fn compressed_mean<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(from_column(py, each!(&self.inner, stats => stats.compressed_mean()).or_raise()?.as_ref()))
    }

    /// The covariance of the original inputs.
    fn original_covariance<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let covariance = py.detach(|| each!(&self.inner, stats => stats.original_covariance())).or_raise()?;
        Ok(from_matrix(py, covariance.as_ref()))
    }

    /// The covariance of the inputs of the compressed network.
    fn covariance<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let covariance = py.detach(|| each!(&self.inner, stats => stats.covariance())).or_raise()?;
        Ok(from_matrix(py, covariance.as_ref()))
    }

    /// The covariance of the original inputs with those of the compressed network.
    fn cross_covariance<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let covariance = py.detach(|| each!(&self.inner, stats => stats.cross_covariance())).or_raise()?;
        Ok(from_matrix(py, covariance.as_ref()))
    }
});
