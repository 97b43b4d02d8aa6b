//! Metrics on the outputs of the linear layers, from gradients of the embeddings.

use std::collections::BTreeMap;

use anyhow::Result;
use dalr::compress::OutputMetric;
use dalr::interop::candle::Recorder;

use crate::bert::{Bert, Config, Tensors};
use crate::encoder::Batch;
use crate::progress;

/// Random vectors for each text.
const PROBES: usize = 2;

/// Returns the metric of each linear layer's outputs, by name.
pub fn metrics(tensors: &Tensors, config: &Config, batches: &[Batch]) -> Result<BTreeMap<String, OutputMetric>> {
    let recorder = Recorder::<f32>::new();
    let model = Bert::with_layers(tensors, config, |name, layer| Ok(Box::new(recorder.watch_gradients(name, layer)?)))?;
    let model = model.differentiable();
    let bar = progress::bar("gradients", batches.len());
    for batch in bar.wrap_iter(batches.iter()) {
        recorder.weighted(&batch.mask, || recorder.gradients(PROBES, || batch.embed(&model)))?;
    }
    let gradients = recorder.take();
    let metric = |(name, stats)| -> Result<_> { Ok((name, OutputMetric::from_gradients(&stats)?)) };
    gradients.into_iter().map(metric).collect()
}
