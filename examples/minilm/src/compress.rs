//! Calibration, decompositions, ranks, and the layers that come of them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use dalr::interop::candle::{LowRankLinear, Recorder};
use dalr::network::{Allocator, Budget, Choice, Decomposer, Job, LayerProfile, Plan, Probe, Probes, Strategy};
use dalr::{ActivationStats, Dalr, Decomposition, Linear, LowRankCompressor, TruncatedSvd};

use crate::bert::{Bert, Config, Tensors, dense};
use crate::encoder::Batch;
use crate::judge::{cosine, embeddings};
use crate::options::{Allocation, Method, Options};
use crate::progress;

/// What every layer reads on the texts, by the name of the layer that was watched.
pub fn calibrate(
    tensors: &Tensors,
    config: &Config,
    batches: &[Batch],
) -> Result<BTreeMap<String, ActivationStats<f32>>> {
    let recorder = Recorder::<f32>::new();
    let watched: Vec<String> = config.layers().map(|(_, read)| read).collect();
    let model = Bert::with_slots(tensors, config, |name, layer| {
        // Query, key and value read the same: it is seen once.
        if watched.iter().any(|read| read == name) {
            Ok(Box::new(recorder.watch(name, layer)?))
        } else {
            Ok(Box::new(layer))
        }
    })?;
    let bar = progress::bar("calibrating", batches.len());
    for batch in bar.wrap_iter(batches.iter()) {
        recorder.weighted(&batch.mask, || batch.embed(&model))?; // padding counts nothing
    }
    Ok(recorder.take())
}

/// The layers, decomposed for every rank that saves anything, and what they lose at each.
pub struct Layers {
    names: Vec<String>,
    decompositions: Vec<Decomposition<f32>>,
    profiles: Vec<LayerProfile>,
}

impl Layers {
    /// Decomposes every linear layer of the blocks.
    pub fn decompose(
        tensors: &Tensors,
        config: &Config,
        seen: &BTreeMap<String, ActivationStats<f32>>,
        method: Method,
    ) -> Result<Self> {
        let mut layers = Vec::new();
        for (name, read) in config.layers() {
            ensure!(tensors.contains_key(&format!("{name}.weight")), "`{name}` is compressed already, or missing");
            let layer = Linear::<f32>::try_from(&dense(tensors, &name)?).with_context(|| format!("layer `{name}`"))?;
            layers.push((name, layer, seen.get(&read).with_context(|| format!("`{read}` never ran"))?));
        }
        let jobs: Vec<_> = layers.iter().map(|(name, layer, stats)| Job::new(name, layer, *stats)).collect();
        let mut found: Vec<Option<Decomposition<f32>>> = vec![None; jobs.len()];
        let keep = |index: usize, decomposition| {
            if let Some(place) = found.get_mut(index) {
                *place = Some(decomposition);
            }
            Ok(())
        };
        let bar = progress::bar("decomposing", jobs.len());
        let _ = Decomposer::new().decompose(compressor(method).as_ref(), &jobs, keep, &mut progress::follow(&bar))?;
        bar.finish_and_clear();
        drop(jobs);
        let decompositions: Vec<_> = found.into_iter().flatten().collect();
        let names: Vec<String> = layers.into_iter().map(|(name, ..)| name).collect();
        let profiles = names.iter().zip(&decompositions).map(|(name, layer)| LayerProfile::new(name, layer)).collect();
        Ok(Self { names, decompositions, profiles })
    }

    /// Shares the budget among them.
    pub fn plan(&self, tensors: &Tensors, config: &Config, probes: &[Batch], options: &Options) -> Result<Plan> {
        let budget = Budget::ParameterShare(options.keep);
        let allocator = Allocator::new(budget).with_rank_multiple(options.rank_multiple);
        let uniform = allocator.allocate(&self.profiles)?;
        if options.allocation == Allocation::Uniform {
            return Ok(uniform);
        }
        let original = embeddings(&Bert::new(tensors, config)?, probes)?;
        let evaluate = |probe: Probe<'_>| -> Result<f64> {
            let Probe::Layer { name, rank } = probe else { return Ok(0.0) };
            let one = BTreeMap::from([(name.to_owned(), self.layer(name, rank)?)]);
            let model = with_layers(tensors, config, &one)?;
            Ok(1.0 - cosine(&original, &embeddings(&model, probes)?)?)
        };
        let mut measured = Probes::new();
        let bar = progress::bar("probing", self.names.len());
        let _ = measured.measure(&self.profiles, &uniform, evaluate, &mut progress::follow(&bar))?;
        bar.finish_and_clear();
        let strategy = Strategy::Sensitivity(measured.sensitivities()?.with_floor(0.05)?);
        Ok(allocator.with_strategy(strategy).allocate(&self.profiles)?)
    }

    /// The layers of a plan as modules; those that stay dense are not among them.
    pub fn compressed(&self, plan: &Plan) -> Result<BTreeMap<String, LowRankLinear>> {
        let mut layers = BTreeMap::new();
        for (name, choice) in self.names.iter().zip(plan.choices()) {
            if let Choice::Rank(rank) = choice {
                layers.insert(name.clone(), self.layer(name, rank)?);
            }
        }
        Ok(layers)
    }

    fn layer(&self, name: &str, rank: usize) -> Result<LowRankLinear> {
        let mut layers = self.names.iter().zip(&self.decompositions);
        let (_, decomposition) = layers.find(|(own, _)| *own == name).with_context(|| format!("no layer `{name}`"))?;
        Ok(LowRankLinear::new(decomposition.truncate(rank)?.layer(), DType::F32, &Device::Cpu)?)
    }
}

fn compressor(method: Method) -> Box<dyn LowRankCompressor<f32> + Send + Sync> {
    match method {
        Method::Dalr => Box::new(Dalr::new()),
        Method::Svd => Box::new(TruncatedSvd::new()),
        Method::SvdBc => Box::new(TruncatedSvd::new().with_bias_correction(true)),
    }
}

/// The network with some of its layers replaced.
pub fn with_layers(tensors: &Tensors, config: &Config, layers: &BTreeMap<String, LowRankLinear>) -> Result<Bert> {
    Bert::with_slots(tensors, config, |name, layer| match layers.get(name) {
        Some(replacement) => Ok(Box::new(replacement.clone())),
        None => Ok(Box::new(layer)),
    })
}

/// The tensors of the compressed model, named as PyTorch and [`Bert`] find them.
pub fn replaced(tensors: &Tensors, layers: &BTreeMap<String, LowRankLinear>) -> Tensors {
    let mut all = tensors.clone();
    for (name, layer) in layers {
        all.remove(&format!("{name}.weight"));
        all.remove(&format!("{name}.bias"));
        all.extend(layer.tensors(name));
    }
    all
}
