//! Calibrates, decomposes the linear layers, plans their ranks, and builds the compressed model.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use dalr::compress::{HiddenUnits, OutputMetric};
use dalr::interop::candle::{LowRankLinear, Recorder, to_candle_linear};
use dalr::network::{
    Allocator, Budget, CompressedLayer, LayerProfile, Network, Plan, Sensitivities, Strategy, UnitProfile,
};
use dalr::{ActivationStats, Calibration, Dalr, Decomposition, Linear, LowRankCompressor, TruncatedSvd};

use crate::bert::{Bert, Config, Layer, Tensors, linear};
use crate::encoder::Batch;
use crate::evaluation::{cosine, embeddings};
use crate::options::{Allocation, Kinds, Method, Options, Storage};
use crate::progress;

/// Sensitivities of layers are raised to this fraction of their mean.
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

/// The ranks and numbers of hidden units for a budget, and their cost.
pub struct Allocated {
    /// The ranks, by name.
    pub ranks: BTreeMap<String, usize>,
    /// The number of kept hidden units of a block, by the block's number.
    pub units: BTreeMap<usize, usize>,
    /// Parameters of all linear layers before and after.
    pub parameters: (u64, u64),
    /// The choice for each layer, as text.
    pub listing: String,
}

/// The layers that replace original ones, by name.
pub type Compressed = BTreeMap<String, CompressedLayer<f32>>;

/// The decompositions of all linear layers, for every rank that saves parameters, and the order of
/// the hidden units of every block.
pub struct Layers {
    decompositions: BTreeMap<String, Decomposition<f32>>,
    profiles: Vec<LayerProfile>,
    units: Vec<HiddenUnits<f32>>,
    pairs: Vec<UnitProfile>,
}

impl Layers {
    /// Decomposes the linear layers of all blocks and orders the hidden units, in the metrics of the
    /// layers' outputs if there are any.
    pub fn decompose(
        tensors: &Tensors,
        config: &Config,
        (stats, metrics): (&BTreeMap<String, ActivationStats<f32>>, &BTreeMap<String, OutputMetric>),
        options: &Options,
    ) -> Result<Self> {
        let layers = originals(tensors, config)?;
        let recorded: BTreeMap<String, String> = config.layers().collect();
        let calibration = |name: &str| -> Result<_> {
            let stats = recorded.get(name).and_then(|recorded| stats.get(recorded));
            let calibration = Calibration::from(stats.with_context(|| format!("no statistics of `{name}`"))?);
            let metric = metrics.get(name);
            Ok(metric.map_or(calibration, |metric| calibration.with_output_metric(metric)))
        };
        let mut network = Network::new();
        for (name, layer) in &layers {
            network = network.with_layer(name, layer, calibration(name)?);
        }
        let mut decompositions = BTreeMap::new();
        let keep = |name: &str, decomposition| {
            decompositions.insert(name.to_owned(), decomposition);
            Ok(())
        };
        let bar = progress::bar("decomposing", layers.len());
        let compressor = compressor(options.method, options.storage);
        network.decompose(compressor.as_ref(), keep, &mut progress::follow(&bar))?;
        bar.finish_and_clear();
        let profile = |(name, _): &(String, _)| -> Result<LayerProfile> {
            let decomposition = decompositions.get(name).with_context(|| format!("no decomposition of `{name}`"))?;
            Ok(LayerProfile::new(name, decomposition))
        };
        let profiles = layers.iter().map(profile).collect::<Result<_>>()?;
        let layer = |name: &str| {
            let found = layers.iter().find(|(other, _)| other == name);
            found.map(|(_, layer)| layer).with_context(|| format!("no layer `{name}`"))
        };
        let (mut units, mut pairs) = (Vec::new(), Vec::new());
        if options.kinds != Kinds::LowRank {
            for [first, second] in config.units() {
                let order = HiddenUnits::new(layer(&first)?, layer(&second)?, calibration(&second)?)?;
                pairs.push(UnitProfile::new(first, second, &order));
                units.push(order);
            }
        }
        Ok(Self { decompositions, profiles, units, pairs })
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
        let original = |layer: &LayerProfile| {
            LayerProfile::original(layer.name(), (layer.out_features(), layer.in_features()), true)
        };
        let candidates = match options.kinds {
            Kinds::HiddenUnits => self.profiles.iter().map(original).collect::<dalr::Result<_>>()?,
            Kinds::LowRank | Kinds::All => self.profiles.clone(),
        };
        let allocator = match options.allocation {
            Allocation::Uniform => allocator,
            Allocation::Sensitivity => {
                let uniform = allocator.allocate(&self.profiles)?;
                let sensitivities = self.sensitivities(tensors, config, batches, &uniform)?;
                allocator.with_strategy(Strategy::Sensitivity(sensitivities))
            }
        };
        let plan = allocator.allocate_joint(&candidates, &[], &self.pairs)?;
        let parameters = (plan.parameters_before(), plan.parameters_after());
        Ok(Allocated { ranks: plan.ranks(), units: plan.hidden_units(), parameters, listing: plan.to_string() })
    }

    fn sensitivities(
        &self,
        tensors: &Tensors,
        config: &Config,
        batches: &[Batch],
        plan: &Plan,
    ) -> Result<Sensitivities> {
        let original = embeddings(&Bert::new(tensors, config)?, batches)?;
        let loss = |compressed: &Compressed| -> Result<f64> {
            let model = with_compressed(tensors, config, compressed)?;
            Ok(1.0 - cosine(&original, &embeddings(&model, batches)?)?)
        };
        let evaluate = |ranks: &BTreeMap<String, usize>| loss(&self.low_rank(ranks)?);
        let bar = progress::bar("sensitivity", self.profiles.len());
        let mut follow = progress::follow(&bar);
        let measured = Sensitivities::measure(&self.profiles, plan, &mut Vec::new(), evaluate, &mut follow)?;
        let mut measured = measured.context("the measurement was cancelled")?.with_floor(SENSITIVITY_FLOOR)?;
        let evaluate = |block: usize, kept: usize| loss(&self.fewer_units(block, kept)?);
        measured.measure_units(&self.pairs, plan, 0.0, evaluate, &mut follow)?;
        bar.finish_and_clear();
        Ok(measured)
    }

    /// Returns the layers of these names, compressed to these ranks.
    fn low_rank(&self, ranks: &BTreeMap<String, usize>) -> Result<Compressed> {
        let compress = |(name, &rank): (&String, &usize)| {
            let decomposition = self.decompositions.get(name).with_context(|| format!("no layer `{name}`"))?;
            Ok((name.clone(), CompressedLayer::LowRank(decomposition.truncate(rank)?.into_layer())))
        };
        ranks.iter().map(compress).collect()
    }

    /// Returns the compressed layers as allocated.
    pub fn compressed(&self, allocated: &Allocated) -> Result<Compressed> {
        let mut compressed = self.low_rank(&allocated.ranks)?;
        for (&block, &kept) in &allocated.units {
            compressed.extend(self.fewer_units(block, kept)?);
        }
        Ok(compressed)
    }

    /// Returns the two layers after attention in a block, with this number of units between them.
    fn fewer_units(&self, block: usize, kept: usize) -> Result<Compressed> {
        let (units, pair) = self.units.get(block).zip(self.pairs.get(block)).context("no hidden units")?;
        let selected = units.select(kept)?;
        let layers = [selected.first, selected.second].map(CompressedLayer::Smaller);
        Ok(pair.names().map(str::to_owned).zip(layers).collect())
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
pub fn with_compressed(tensors: &Tensors, config: &Config, layers: &Compressed) -> Result<Bert> {
    Bert::with_layers(tensors, config, |name, original| match layers.get(name) {
        Some(compressed) => module(compressed),
        None => Ok(Box::new(original)),
    })
}

/// Returns a compressed layer as a module.
pub fn module(layer: &CompressedLayer<f32>) -> Result<Layer> {
    Ok(match layer {
        CompressedLayer::LowRank(layer) => Box::new(LowRankLinear::new(layer, DType::F32, &Device::Cpu)?),
        CompressedLayer::Smaller(layer) => Box::new(to_candle_linear(layer, DType::F32, &Device::Cpu)?),
    })
}

/// Returns the tensors of the compressed model, with the names that PyTorch and [`Bert`] expect.
pub fn compressed_tensors(tensors: &Tensors, layers: &Compressed) -> Result<Tensors> {
    let mut all = tensors.clone();
    for (name, layer) in layers {
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        all.remove(&weight);
        all.remove(&bias);
        match layer {
            CompressedLayer::LowRank(layer) => {
                all.extend(LowRankLinear::new(layer, DType::F32, &Device::Cpu)?.tensors(name));
            }
            CompressedLayer::Smaller(layer) => {
                let layer = to_candle_linear(layer, DType::F32, &Device::Cpu)?;
                all.insert(weight, layer.weight().clone());
                all.extend(layer.bias().map(|tensor| (bias, tensor.clone())));
            }
        }
    }
    Ok(all)
}
