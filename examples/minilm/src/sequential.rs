//! Sequential recalibration: each layer is compressed for the inputs that the layers compressed
//! before it produce.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use candle_core::{DType, Tensor};
use candle_nn::Module;
use dalr::Calibration;
use dalr::compress::{HiddenUnitSelection, OutputMetric};
use dalr::covariance::PairedStats;
use dalr::interop::candle::samples;
use dalr::network::Network;

use crate::bert::{Bert, Config, Layer, Tensors};
use crate::compress::{Allocated, Compressed, compressor, module, originals};
use crate::encoder::Batch;
use crate::options::{Method, Storage};
use crate::progress;

/// Compresses the layers as allocated, in the order of execution.
pub fn recalibrate(
    tensors: &Tensors,
    config: &Config,
    batches: &[Batch],
    (allocated, metrics): (&Allocated, &BTreeMap<String, OutputMetric>),
    method: Method,
) -> Result<Compressed> {
    let originals = originals(tensors, config)?;
    let mut network = Network::new();
    for (name, layer) in &originals {
        let mut calibration = Calibration::none();
        if let Some(metric) = metrics.get(name) {
            calibration = calibration.with_output_metric(metric);
        }
        network = network.with_layer(name, layer, calibration);
    }
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, recorded) in config.layers() {
        groups.entry(recorded).or_default().push(name);
    }
    for group in groups.into_values() {
        network = network.with_shared_input(group);
    }
    for (block, names) in config.units().enumerate() {
        if let Some(&kept) = allocated.units.get(&block) {
            network = network.with_hidden_units(names, kept, HiddenUnitSelection::new());
        }
    }
    let mut states = States::new(tensors, config, batches)?;
    let feed = |group: &str, layers: &Compressed, stats: &mut PairedStats<f32>| states.feed(group, layers, stats);
    let bar = progress::bar("recalibrating", allocated.ranks.len() + allocated.units.len());
    let mut layers = Compressed::new();
    network.compress_sequentially(
        compressor(method, Storage::Factors).as_ref(),
        &allocated.ranks,
        &mut layers,
        feed,
        &mut progress::follow(&bar),
    )?;
    bar.finish_and_clear();
    Ok(layers)
}

/// The inputs of one block in the original and in the compressed network, so that a group of layers
/// takes a pass through its own block only.
struct States<'a> {
    tensors: &'a Tensors,
    config: &'a Config,
    batches: &'a [Batch],
    block: usize,
    /// For each batch, in the original and in the compressed network.
    inputs: Vec<(Tensor, Tensor)>,
}

impl<'a> States<'a> {
    fn new(tensors: &'a Tensors, config: &'a Config, batches: &'a [Batch]) -> Result<Self> {
        let model = Bert::new(tensors, config)?;
        let start = |batch: &Batch| model.start(&batch.ids).map(|state| (state.clone(), state));
        let inputs = batches.iter().map(start).collect::<candle_core::Result<_>>()?;
        Ok(Self { tensors, config, batches, block: 0, inputs })
    }

    /// Adds the inputs of a layer in both networks.
    fn feed(&mut self, layer: &str, compressed: &Compressed, stats: &mut PairedStats<f32>) -> Result<()> {
        let block = layer.strip_prefix("encoder.layer.").and_then(|rest| rest.split('.').next());
        let block: usize =
            block.and_then(|block| block.parse().ok()).with_context(|| format!("no block in `{layer}`"))?;
        let (original_tap, compressed_tap) = (Tap::default(), Tap::default());
        let original = self.model(&Compressed::new(), layer, &original_tap)?;
        let compressed = self.model(compressed, layer, &compressed_tap)?;
        for (batch, (one, other)) in self.batches.iter().zip(&mut self.inputs) {
            for earlier in self.block..block {
                *one = original.block(earlier, one, &batch.mask)?;
                *other = compressed.block(earlier, other, &batch.mask)?;
            }
            original.block(block, one, &batch.mask)?;
            compressed.block(block, other, &batch.mask)?;
            let weights = batch.mask.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
            let (one, other) = (samples(&original_tap.take()?)?, samples(&compressed_tap.take()?)?);
            stats.update_weighted(one.as_ref(), other.as_ref(), &weights)?;
        }
        self.block = block;
        Ok(())
    }

    fn model(&self, compressed: &Compressed, layer: &str, tap: &Tap) -> Result<Bert> {
        Bert::with_layers(self.tensors, self.config, |name, original| {
            let module: Layer = match compressed.get(name) {
                Some(compressed) => module(compressed)?,
                None => Box::new(original),
            };
            Ok(if name == layer { Box::new(Tapped { module, tap: tap.clone() }) } else { module })
        })
    }
}

/// The latest inputs of a layer.
#[derive(Clone, Default)]
struct Tap(Arc<Mutex<Option<Tensor>>>);

impl Tap {
    fn take(&self) -> Result<Tensor> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().context("the layer did not run")
    }
}

struct Tapped {
    module: Layer,
    tap: Tap,
}

impl Module for Tapped {
    fn forward(&self, inputs: &Tensor) -> candle_core::Result<Tensor> {
        *self.tap.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(inputs.clone());
        self.module.forward(inputs)
    }
}
