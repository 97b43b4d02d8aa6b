//! Calibrates, decomposes the linear layers, plans their ranks, and builds the compressed model.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use dalr::interop::candle::{LowRankLinear, Recorder};
use dalr::network::{Allocator, Budget, LayerProfile, Network, Plan, Sensitivities, Strategy};
use dalr::{ActivationStats, Dalr, Decomposition, Linear, LowRankCompressor, TruncatedSvd};

use crate::bert::{Bert, Config, Tensors, linear};
use crate::encoder::Batch;
use crate::evaluation::{cosine, embeddings};
use crate::options::{Allocation, Method, Options};
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

/// The decompositions of all linear layers, for every rank that saves parameters.
pub struct Layers {
    decompositions: BTreeMap<String, Decomposition<f32>>,
    profiles: Vec<LayerProfile>,
}

impl Layers {
    /// Decomposes the linear layers of all blocks.
    pub fn decompose(
        tensors: &Tensors,
        config: &Config,
        stats: &BTreeMap<String, ActivationStats<f32>>,
        method: Method,
    ) -> Result<Self> {
        let mut layers = Vec::new();
        for (name, recorded) in config.layers() {
            ensure!(tensors.contains_key(&format!("{name}.weight")), "`{name}` is compressed already, or missing");
            let layer = Linear::<f32>::try_from(&linear(tensors, &name)?).with_context(|| format!("layer `{name}`"))?;
            let stats = stats.get(&recorded).with_context(|| format!("no statistics of `{recorded}`"))?;
            layers.push((name, layer, stats));
        }
        let mut network = Network::new();
        for (name, layer, stats) in &layers {
            network = network.with_layer(name, layer, *stats);
        }
        let mut decompositions = BTreeMap::new();
        let keep = |name: &str, decomposition| {
            decompositions.insert(name.to_owned(), decomposition);
            Ok(())
        };
        let bar = progress::bar("decomposing", layers.len());
        network.decompose(compressor(method).as_ref(), keep, &mut progress::follow(&bar))?;
        bar.finish_and_clear();
        let profile = |(name, ..): &(String, _, _)| -> Result<LayerProfile> {
            let decomposition = decompositions.get(name).with_context(|| format!("no decomposition of `{name}`"))?;
            Ok(LayerProfile::new(name, decomposition))
        };
        Ok(Self { profiles: layers.iter().map(profile).collect::<Result<_>>()?, decompositions })
    }

    /// Allocates the budget to the layers. Sensitivities are measured on `batches`.
    pub fn plan(&self, tensors: &Tensors, config: &Config, batches: &[Batch], options: &Options) -> Result<Plan> {
        let budget = Budget::ParameterFraction(options.keep);
        let allocator = Allocator::new(budget).with_rank_multiple(options.rank_multiple);
        let uniform = allocator.allocate(&self.profiles)?;
        if options.allocation == Allocation::Uniform {
            return Ok(uniform);
        }
        let original = embeddings(&Bert::new(tensors, config)?, batches)?;
        let evaluate = |ranks: &BTreeMap<String, usize>| -> Result<f64> {
            let model = with_compressed(tensors, config, &self.compressed(ranks)?)?;
            Ok(1.0 - cosine(&original, &embeddings(&model, batches)?)?)
        };
        let bar = progress::bar("sensitivity", self.profiles.len());
        let (mut evaluations, mut follow) = (Vec::new(), progress::follow(&bar));
        let measured = Sensitivities::measure(&self.profiles, &uniform, &mut evaluations, evaluate, &mut follow)?;
        bar.finish_and_clear();
        let sensitivities = measured.context("the measurement was cancelled")?.with_floor(SENSITIVITY_FLOOR)?;
        Ok(allocator.with_strategy(Strategy::Sensitivity(sensitivities)).allocate(&self.profiles)?)
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

fn compressor(method: Method) -> Box<dyn LowRankCompressor<f32> + Sync> {
    match method {
        Method::Dalr => Box::new(Dalr::new()),
        Method::Svd => Box::new(TruncatedSvd::new()),
        Method::SvdBc => Box::new(TruncatedSvd::new().with_bias_correction(true)),
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
