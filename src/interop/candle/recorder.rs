//! Statistics of the inputs of chosen layers, collected while a model runs. `gradients.rs` adds
//! those of gradients.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Tensor, Var, WithDType};
use candle_nn::Module;

use super::tensor::{update, update_weighted};
use crate::error::during;
use crate::interop::samples_and_inputs;
use crate::linalg::SplitMix64;
use crate::{ActivationStats, Error, Result, Scalar};

/// Collects statistics of the inputs of chosen layers, by name, while a model runs; or of the
/// gradients with respect to their outputs.
///
/// candle's modules have no hooks, so build the model with [`watch`](Self::watch) around the layers
/// to compress. If several layers have a shared input (query, key and value), watch one of them and
/// use its statistics for all. Clones of a recorder share their statistics.
///
/// Use `Recorder<f32>` for models in `F32`, `F16` or `BF16`, as for [`update`].
#[derive(Clone, Debug)]
pub struct Recorder<T> {
    pub(super) shared: Arc<Shared<T>>,
    memory_limit: Option<usize>,
}

#[derive(Debug)]
pub(super) struct Shared<T> {
    /// The statistics of each name; `None` until its layer runs.
    layers: Mutex<BTreeMap<String, Option<ActivationStats<T>>>>,
    weights: Mutex<Option<Tensor>>,
    paused: AtomicBool,
    /// Zeros that were added to the outputs of layers; `None` unless gradients are recorded.
    pub(super) added: Mutex<Option<Vec<(String, Var)>>>,
    pub(super) random: Mutex<SplitMix64>,
}

impl<T> Default for Recorder<T> {
    fn default() -> Self {
        let shared = Shared {
            layers: Mutex::default(),
            weights: Mutex::default(),
            paused: AtomicBool::new(false),
            added: Mutex::default(),
            random: Mutex::new(SplitMix64::new()),
        };
        Self { shared: Arc::new(shared), memory_limit: None }
    }
}

impl<T: Scalar + WithDType> Recorder<T> {
    /// Creates a recorder that watches no layer yet.
    ///
    /// ```
    /// let recorder = dalr::interop::candle::Recorder::<f32>::new();
    /// assert!(recorder.take().is_empty());
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// Limits the bytes of each layer's statistics, for layers watched from now on.
    ///
    /// A forward pass that exceeds the limit fails, as with [`ActivationStats::with_memory_limit`].
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_nn::{Activation, Module};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let recorder = dalr::interop::candle::Recorder::<f32>::new().with_memory_limit(1000);
    /// let model = recorder.watch("wide", Activation::Relu)?;
    /// assert!(model.forward(&Tensor::zeros((10, 1000), DType::F32, &Device::Cpu)?).is_err());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_memory_limit(mut self, bytes: usize) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// Wraps a layer, or any other module, so that the recorder adds its inputs to statistics.
    ///
    /// A forward pass fails if the inputs cannot be recorded, because statistics without a batch
    /// would be wrong. Examples are NaN, and another number of inputs than before.
    ///
    /// # Errors
    ///
    /// [`Error::Layers`] for a name that is already watched.
    ///
    /// ```
    /// use candle_nn::Activation;
    /// # fn main() -> dalr::Result<()> {
    /// let recorder = dalr::interop::candle::Recorder::<f32>::new();
    /// let _ = recorder.watch("dense", Activation::Relu)?;
    /// assert!(recorder.watch("dense", Activation::Relu).is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub fn watch<M: Module>(&self, name: impl Into<String>, module: M) -> Result<Recorded<M, T>> {
        during("Recorder::watch", || self.wrap(name.into(), module, Watched::Inputs))
    }

    pub(super) fn wrap<M>(&self, name: String, module: M, watched: Watched) -> Result<Recorded<M, T>> {
        let mut layers = lock(&self.shared.layers);
        if layers.contains_key(&name) {
            let expected = "a name that is not watched yet".to_owned();
            return Err(Error::layers(expected, format!("`{name}` again")));
        }
        layers.insert(name.clone(), None);
        Ok(Recorded { module, name, watched, recorder: self.clone() })
    }

    /// Runs a model on a batch with padding. `weights`, batch × sequence, contains the weight of
    /// each sample, 0 for padding.
    ///
    /// The weights apply to every watched layer and to all forward passes within `run`. Parallel
    /// threads need one recorder each; [`ActivationStats::merge`] combines their statistics.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_nn::{Activation, Module};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let recorder = dalr::interop::candle::Recorder::<f32>::new();
    /// let model = recorder.watch("dense", Activation::Relu)?;
    /// let batch = Tensor::ones((2, 3, 4), DType::F32, &Device::Cpu)?;
    /// let mask = Tensor::new(&[[1_u32, 1, 1], [1, 0, 0]], &Device::Cpu)?;
    /// recorder.weighted(&mask, || model.forward(&batch))?;
    /// assert_eq!(recorder.take()["dense"].samples(), 4);
    /// # Ok(())
    /// # }
    /// ```
    pub fn weighted<R>(&self, weights: &Tensor, run: impl FnOnce() -> R) -> R {
        /// Restores the previous weights, even if `run` panics.
        struct Restored<'a>(&'a Mutex<Option<Tensor>>, Option<Tensor>);
        impl Drop for Restored<'_> {
            fn drop(&mut self) {
                *lock(self.0) = self.1.take();
            }
        }
        let before = lock(&self.shared.weights).replace(weights.clone());
        let _restored = Restored(&self.shared.weights, before);
        run()
    }

    /// Stops recording, or continues it. Watched layers run as usual while it is stopped.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_nn::{Activation, Module};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let recorder = dalr::interop::candle::Recorder::<f32>::new();
    /// let model = recorder.watch("dense", Activation::Relu)?;
    /// recorder.pause(true);
    /// model.forward(&Tensor::ones((3, 4), DType::F32, &Device::Cpu)?)?; // to evaluate, say
    /// assert!(recorder.take().is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub fn pause(&self, paused: bool) {
        self.shared.paused.store(paused, Ordering::Relaxed);
    }

    /// Returns the statistics of every layer that ran, by name, and resets the recorder.
    pub fn take(&self) -> BTreeMap<String, ActivationStats<T>> {
        let mut layers = lock(&self.shared.layers);
        layers.iter_mut().filter_map(|(name, seen)| Some((name.clone(), seen.take()?))).collect()
    }

    pub(super) fn is_paused(&self) -> bool {
        self.shared.paused.load(Ordering::Relaxed)
    }

    /// Adds the inputs of the layer of this name, or the gradients of its outputs.
    pub(super) fn record(&self, name: &str, inputs: &Tensor) -> Result<()> {
        if self.is_paused() {
            return Ok(());
        }
        let weights = lock(&self.shared.weights).clone();
        let add = |stats: &mut ActivationStats<T>| match &weights {
            Some(weights) => update_weighted(stats, inputs, weights),
            None => update(stats, inputs),
        };
        let mut layers = lock(&self.shared.layers);
        let seen = layers.entry(name.to_owned()).or_default();
        if let Some(stats) = seen {
            return add(stats);
        }
        let (_, features) = during("Recorder::record", || samples_and_inputs(inputs.dims()))?;
        let mut stats = ActivationStats::new(features);
        if let Some(bytes) = self.memory_limit {
            stats = stats.with_memory_limit(bytes);
        }
        // If the first batch fails, its number of inputs must not apply to later batches.
        add(&mut stats)?;
        *seen = Some(stats);
        Ok(())
    }
}

/// Locks a mutex, also after a panic of another thread: an update changes statistics completely or
/// not at all, so they are valid.
pub(super) fn lock<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A module whose inputs, or the gradients of whose outputs, a [`Recorder`] records.
///
/// ```
/// use candle_nn::Activation;
/// # fn main() -> dalr::Result<()> {
/// let recorder = dalr::interop::candle::Recorder::<f32>::new();
/// let recorded = recorder.watch("dense", Activation::Relu)?;
/// assert_eq!(recorded.name(), "dense");
/// assert!(matches!(recorded.into_inner(), Activation::Relu));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Recorded<M, T> {
    module: M,
    name: String,
    watched: Watched,
    recorder: Recorder<T>,
}

/// The numbers of a layer that are recorded.
#[derive(Clone, Copy, Debug)]
pub(super) enum Watched {
    Inputs,
    OutputGradients,
}

impl<M, T> Recorded<M, T> {
    /// Returns the name of the layer in the recorder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the wrapped module.
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let recorder = dalr::interop::candle::Recorder::<f32>::new();
    /// assert!(matches!(recorder.watch("dense", candle_nn::Activation::Relu)?.inner(), candle_nn::Activation::Relu));
    /// # Ok(())
    /// # }
    /// ```
    pub fn inner(&self) -> &M {
        &self.module
    }

    /// Returns the wrapped module.
    pub fn into_inner(self) -> M {
        self.module
    }
}

impl<M: Module, T: Scalar + WithDType> Module for Recorded<M, T> {
    fn forward(&self, inputs: &Tensor) -> candle_core::Result<Tensor> {
        let in_layer = |source| Error::InLayer { layer: self.name.clone(), source: Box::new(source) };
        match self.watched {
            Watched::Inputs => {
                self.recorder.record(&self.name, inputs).map_err(in_layer)?;
                self.module.forward(inputs)
            }
            Watched::OutputGradients => self.recorder.tracked(&self.name, self.module.forward(inputs)?),
        }
    }
}
