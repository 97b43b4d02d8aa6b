//! Gradients with respect to the outputs of chosen layers, for output metrics.

use std::sync::Mutex;

use candle_core::{Device, Tensor, Var, WithDType};
use candle_nn::Module;

use super::recorder::{Recorded, Recorder, Watched, lock};
use super::refused;
use crate::error::during;
use crate::{Error, Result, Scalar};

impl<T: Scalar + WithDType> Recorder<T> {
    /// Wraps a layer, or any other module, so that [`gradients`](Self::gradients) records the
    /// gradients with respect to its outputs. Outside of that function it runs as usual.
    ///
    /// # Errors
    ///
    /// [`Error::Layers`] for a name that is already watched.
    pub fn watch_gradients<M: Module>(&self, name: impl Into<String>, module: M) -> Result<Recorded<M, T>> {
        during("Recorder::watch_gradients", || self.wrap(name.into(), module, Watched::OutputGradients))
    }

    /// Runs a model on a batch, and records gradients with respect to the outputs of the layers
    /// watched for it: those of `vᵀ z` for the model's output `z` and random vectors `v`.
    ///
    /// `run` returns `z`, of any shape. The entries of `v` are −1 or 1 with equal probability, from
    /// a sequence that is the same in every program. The covariance of `v` is the identity, so the
    /// second moment of the gradients estimates `E[Jᵀ J]` for the Jacobian `J` of the output. Each
    /// of the `probes` takes a backward pass. For a loss, return the sum of the samples' losses:
    /// the sign of a gradient does not matter.
    ///
    /// [`take`](Self::take) returns the statistics, from which
    /// [`OutputMetric::from_gradients`](crate::compress::OutputMetric::from_gradients) makes the
    /// metric. The weights of [`weighted`](Self::weighted) apply, and should be 0 for padding.
    ///
    /// Some fused operations of candle have no backward pass, and cut gradients silently:
    /// `softmax_last_dim` and `rms_norm` in
    /// [`candle_nn::ops`](https://docs.rs/candle-nn/0.11/candle_nn/ops/index.html), and
    /// [`LayerNorm`](https://docs.rs/candle-nn/0.11/candle_nn/struct.LayerNorm.html) on contiguous
    /// inputs. Use `softmax`, `rms_norm_slow` and `layer_norm_slow` instead. A layer is found out
    /// if all ways from it to the output are cut, and not if a residual connection goes around the
    /// operation. So watch all layers, those directly before such an operation included.
    ///
    /// # Errors
    ///
    /// [`Error::InLayer`] for a layer that receives no gradient. No probes; no watched layer that
    /// ran; errors of `run` and of candle's backward pass, as [`Error::Library`]; gradients that
    /// are not finite.
    ///
    /// # Cost
    ///
    /// A forward pass, and for each probe a backward pass, which computes the gradients of the
    /// weights too. The memory is that of one batch: all intermediate results, and their gradients.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_nn::{Activation, Linear, Module, seq};
    /// use dalr::compress::OutputMetric;
    /// use dalr::interop::candle::Recorder;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let wave = |rows: usize, columns: usize, step: f64| {
    ///     Tensor::arange(0.0, (rows * columns) as f64, &Device::Cpu)?.affine(step, 0.0)?.sin()?.reshape((rows, columns))?.to_dtype(DType::F32)
    /// };
    /// let (fc1, fc2) = (Linear::new(wave(16, 8, 0.7)?, None), Linear::new(wave(4, 16, 1.3)?, None));
    /// let recorder = Recorder::<f32>::new();
    /// let model = seq().add(recorder.watch_gradients("fc1", fc1)?).add(Activation::Gelu).add(fc2);
    /// for batch in [wave(20, 8, 0.3)?, wave(20, 8, 0.9)?] {
    ///     recorder.gradients(2, || model.forward(&batch))?;
    /// }
    /// let metric = OutputMetric::from_gradients(&recorder.take()["fc1"])?;
    /// assert_eq!(metric.outputs(), 16);
    /// # Ok(())
    /// # }
    /// ```
    pub fn gradients(&self, probes: usize, run: impl FnOnce() -> candle_core::Result<Tensor>) -> Result<()> {
        /// Stops adding zeros, even if `run` panics.
        struct Stopped<'a>(&'a Mutex<Option<Vec<(String, Var)>>>);
        impl Drop for Stopped<'_> {
            fn drop(&mut self) {
                *lock(self.0) = None;
            }
        }
        during("Recorder::gradients", || {
            if probes == 0 {
                return Err(Error::out_of_range("the number of probes", "to be at least 1".into(), 0.0));
            }
            *lock(&self.shared.added) = Some(Vec::new());
            let stopped = Stopped(&self.shared.added);
            let output = run().map_err(refused)?;
            let added = lock(&self.shared.added).take().unwrap_or_default();
            drop(stopped);
            if added.is_empty() {
                let expected = "a layer that is watched for gradients".into();
                return Err(Error::layers(expected, "a model that runs none".into()));
            }
            for _ in 0..probes {
                let projected = self.signs(&output).and_then(|signs| (&output * signs)?.sum_all());
                let store = projected.and_then(|sum| sum.backward()).map_err(refused)?;
                let gradient = |(name, zeros): &(String, Var)| {
                    let gradient = store.get(zeros).cloned().ok_or_else(|| {
                        let found = "none: the output does not depend on the layer, or an operation after it has no \
                                     backward pass (use `softmax`, `rms_norm_slow` and `layer_norm_slow`)";
                        Error::layers("a gradient".into(), found.into()).in_layer(name)
                    });
                    Ok((name.clone(), gradient?))
                };
                // Nothing is recorded unless all are there.
                for (name, gradient) in added.iter().map(gradient).collect::<Result<Vec<_>>>()? {
                    self.record(&name, &gradient).map_err(|error| error.in_layer(&name))?;
                }
            }
            Ok(())
        })
    }

    /// The outputs plus zeros, whose gradient is the gradient with respect to the outputs. candle
    /// returns gradients of variables only, and a variable in place of the outputs would cut those
    /// of the layers before.
    pub(super) fn tracked(&self, name: &str, outputs: Tensor) -> candle_core::Result<Tensor> {
        let mut added = lock(&self.shared.added);
        let Some(added) = added.as_mut().filter(|_| !self.is_paused()) else { return Ok(outputs) };
        let zeros = Var::zeros(outputs.shape(), outputs.dtype(), outputs.device())?;
        let sum = (outputs + zeros.as_tensor())?;
        added.push((name.to_owned(), zeros));
        Ok(sum)
    }

    /// Random signs in the shape of a tensor.
    fn signs(&self, like: &Tensor) -> candle_core::Result<Tensor> {
        let mut random = lock(&self.shared.random);
        let signs = (0..like.elem_count()).map(|_| if random.next() < 0.0 { -1.0_f32 } else { 1.0 }).collect();
        Tensor::from_vec(signs, like.shape(), &Device::Cpu)?.to_dtype(like.dtype())?.to_device(like.device())
    }
}
