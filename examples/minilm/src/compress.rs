//! Calibrates, decomposes the linear layers, plans their ranks, and builds the compressed model.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use dalr::compress::OutputMetric;
use dalr::interop::candle::{LowRankLinear, Recorder};
use dalr::network::{Allocator, Budget, LayerProfile, Network, Plan, Sensitivities, Strategy};
use dalr::{ActivationStats, Calibration, Dalr, Decomposition, Linear, LowRankCompressor, TruncatedSvd};

use crate::bert::{Bert, Config, Tensors, linear};
use crate::encoder::Batch;
use crate::evaluation::{cosine, embeddings};
use crate::options::{Allocation, Method, Options, Storage};
use crate::progress;

/// Sensitivities are raised to this fraction of their mean: a single measurement is noisy.
const SENSITIVITY_FLOOR: f64 = 0.05;

/// Returns the statistics of the layers' inputs on these texts. Layers with a shared input are
/// recorded once, under the name of the first one.
pub fn calibrate(
    tensors: &Tensors,
    config: &Config,
    batches: &[Batch],
) -> Result<BTreeMap<String, ActivationStats<f32>>> {
    let recorder = Recorder::<f32>::new();
    let recorded: Vec<String> = config.layers().map(|(_, recorded)| recorded).collect();
    let model = Bert::with_layers(tensors, config, |name, layer| {
        if recorded.iter().any(|recorded| recorded == name) {
            Ok(Box::new(recorder.watch(name, layer)?))
        } else {
            Ok(Box::new(layer))
        }
    })?;
    let bar = progress::bar("calibrating", batches.len());
    for batch in bar.wrap_iter(batches.iter()) {
        recorder.weighted(&batch.mask, || batch.embed(&model))?; // padding has weight 0
    }
    Ok(recorder.take())
}

/// The linear layers of all blocks, in the order of execution.
pub fn originals(tensors: &Tensors, config: &Config) -> Result<Vec<(String, Linear<f32>)>> {
    let original = |(name, _): (String, String)| {
        ensure!(tensors.contains_key(&format!("{name}.weight")), "`{name}` is compressed already, or missing");
        let layer = Linear::<f32>::try_from(&linear(tensors, &name)?).with_context(|| format!("layer `{name}`"))?;
        Ok((name, layer))
    };
    config.layers().map(original).collect()
}

/// The ranks for a budget, and their cost.
pub struct Allocated {
    /// The ranks, by name. The other layers stay original.
    pub ranks: BTreeMap<String, usize>,
    /// Parameters of all linear layers before and after.
    pub parameters: (u64, u64),
    /// The choice for each layer, as text.
    pub listing: String,
}

/// The decompositions of all linear layers, for every rank that saves parameters.
pub struct Layers {
    decompositions: BTreeMap<String, Decomposition<f32>>,
    profiles: Vec<LayerProfile>,
}

impl Layers {
    /// Decomposes the linear layers of all blocks, in the metrics of their outputs if there are
    /// any.
    pub fn decompose(
        tensors: &Tensors,
        config: &Config,
        (stats, metrics): (&BTreeMap<String, ActivationStats<f32>>, &BTreeMap<String, OutputMetric>),
        method: Method,
        storage: Storage,
    ) -> Result<Self> {
        let layers = originals(tensors, config)?;
        let mut network = Network::new();
        for ((name, layer), (_, recorded)) in layers.iter().zip(config.layers()) {
            let stats = stats.get(&recorded).with_context(|| format!("no statistics of `{recorded}`"))?;
            let mut calibration = Calibration::from(stats);
            if let Some(metric) = metrics.get(name) {
                calibration = calibration.with_output_metric(metric);
            }
            network = network.with_layer(name, layer, calibration);
        }
        let mut decompositions = BTreeMap::new();
        let keep = |name: &str, decomposition| {
            decompositions.insert(name.to_owned(), decomposition);
            Ok(())
        };
        let bar = progress::bar("decomposing", layers.len());
        network.decompose(compressor(method, storage).as_ref(), keep, &mut progress::follow(&bar))?;
        bar.finish_and_clear();
        let profile = |(name, _): &(String, _)| -> Result<LayerProfile> {
            let decomposition = decompositions.get(name).with_context(|| format!("no decomposition of `{name}`"))?;
            Ok(LayerProfile::new(name, decomposition))
        };
        Ok(Self { profiles: layers.iter().map(profile).collect::<Result<_>>()?, decompositions })
    }

    /// Allocates a fraction of the parameters to the layers. Sensitivities are measured on
    /// `batches`.
    pub fn allocate(
        &self,
        tensors: &Tensors,
        config: &Config,
        batches: &[Batch],
        keep: f64,
        options: &Options,
    ) -> Result<Allocated> {
        let allocator = Allocator::new(Budget::ParameterFraction(keep)).with_rank_multiple(options.rank_multiple);
        let uniform = allocator.allocate(&self.profiles)?;
        let plan = match options.allocation {
            Allocation::Uniform => uniform,
            Allocation::Sensitivity => {
                let sensitivities = self.sensitivities(tensors, config, batches, &uniform)?;
                allocator.with_strategy(Strategy::Sensitivity(sensitivities)).allocate(&self.profiles)?
            }
        };
        let parameters = (plan.parameters_before(), plan.parameters_after());
        Ok(Allocated { ranks: plan.ranks(), parameters, listing: plan.to_string() })
    }

    fn sensitivities(
        &self,
        tensors: &Tensors,
        config: &Config,
        batches: &[Batch],
        plan: &Plan,
    ) -> Result<Sensitivities> {
        let original = embeddings(&Bert::new(tensors, config)?, batches)?;
        let evaluate = |ranks: &BTreeMap<String, usize>| -> Result<f64> {
            let model = with_compressed(tensors, config, &self.compressed(ranks)?)?;
            Ok(1.0 - cosine(&original, &embeddings(&model, batches)?)?)
        };
        let bar = progress::bar("sensitivity", self.profiles.len());
        let mut follow = progress::follow(&bar);
        let measured = Sensitivities::measure(&self.profiles, plan, &mut Vec::new(), evaluate, &mut follow)?;
        bar.finish_and_clear();
        Ok(measured.context("the measurement was cancelled")?.with_floor(SENSITIVITY_FLOOR)?)
    }

    /// Returns the layers of these names, compressed to these ranks, as modules.
    pub fn compressed(&self, ranks: &BTreeMap<String, usize>) -> Result<BTreeMap<String, LowRankLinear>> {
        let compress = |(name, &rank): (&String, &usize)| {
            let decomposition = self.decompositions.get(name).with_context(|| format!("no layer `{name}`"))?;
            let layer = decomposition.truncate(rank)?.into_layer();
            Ok((name.clone(), LowRankLinear::new(&layer, DType::F32, &Device::Cpu)?))
        };
        ranks.iter().map(compress).collect()
    }
}

/// Returns the method as the library knows it.
pub fn compressor(method: Method, storage: Storage) -> Box<dyn LowRankCompressor<f32> + Sync> {
    let form = storage.form();
    match method {
        Method::Dalr => Box::new(Dalr::new().with_form(form)),
        Method::Svd => Box::new(TruncatedSvd::new().with_form(form)),
        Method::SvdBc => Box::new(TruncatedSvd::new().with_bias_correction(true).with_form(form)),
    }
}

/// Returns the network with compressed layers in place of the original ones.
pub fn with_compressed(tensors: &Tensors, config: &Config, layers: &BTreeMap<String, LowRankLinear>) -> Result<Bert> {
    Bert::with_layers(tensors, config, |name, original| match layers.get(name) {
        Some(compressed) => Ok(Box::new(compressed.clone())),
        None => Ok(Box::new(original)),
    })
}

/// Returns the tensors of the compressed model, with the names that PyTorch and [`Bert`] expect.
pub fn compressed_tensors(tensors: &Tensors, layers: &BTreeMap<String, LowRankLinear>) -> Tensors {
    let mut all = tensors.clone();
    for (name, layer) in layers {
        all.remove(&format!("{name}.weight"));
        all.remove(&format!("{name}.bias"));
        all.extend(layer.tensors(name));
    }
    all
}
