//! The first pass: decomposes every layer once, one at a time, and keeps the factors on disk.

use std::collections::BTreeMap;

use dalr::faer::MatRef;
use dalr::interop::safetensors::{FloatDtype, ModelFile};
use dalr::network::{LayerProfile, Sensitivities};
use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Scalar, TruncatedSvd};
use serde_json::json;

use crate::args::{CompressArgs, Method};
use crate::calibration::{Calibration, Statistics};
use crate::error::{Error, Result};
use crate::factors::{Factors, Solved};
use crate::interrupt;
use crate::layer::Layer;
use crate::progress::Progress;
use crate::shared::SharedGroup;
use crate::unfinished_run::UnfinishedRun;

/// The ridge of the authors' code.
pub const PAPER_LAMBDA: f64 = 1000.0;

/// The input of the first pass.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    pub args: &'a CompressArgs,
    pub model: &'a ModelFile,
    pub calibration: &'a Calibration,
    pub unfinished: &'a UnfinishedRun,
    pub layers: &'a [Layer],
    pub sensitivities: Option<&'a Sensitivities>,
}

impl Pass<'_> {
    /// Returns the profile of every layer and the groups that can have one `down`, solved now or by
    /// the run that is resumed. Layers with a shared input follow each other, so that its
    /// statistics are computed once and only one statistics object is in memory.
    pub fn run(&self, progress: &mut Progress) -> Result<(Vec<LayerProfile>, Vec<SharedGroup>)> {
        let (mut profiles, mut shared) = (BTreeMap::new(), Vec::new());
        for (number, group) in groups(self.layers).into_iter().enumerate() {
            let mut solved = Vec::new();
            for &index in &group {
                solved.push((index, &self.layers[index], Factors::open(&self.unfinished.layer(index))?));
            }
            let mut gathered = None;
            let mut input_sum = None;
            for (index, layer, factors) in solved {
                interrupt::check()?;
                let profile = match factors {
                    Some(factors) => {
                        let sum = match input_sum {
                            Some(sum) => sum,
                            None => *input_sum.insert(self.calibration.sum(&layer.input)?),
                        };
                        self.verify(layer, &factors, sum)?;
                        progress.resumed(layer);
                        factors.into_profile()
                    }
                    None => {
                        let (statistics, sum) = match &gathered {
                            Some(gathered) => gathered,
                            None => &*gathered.insert(self.calibration.statistics(layer)?),
                        };
                        input_sum = Some(*sum);
                        match statistics {
                            Statistics::Single(stats) => self.solve(index, stats, *sum, progress)?,
                            Statistics::Double(stats) => self.solve(index, stats, *sum, progress)?,
                        }
                    }
                };
                profiles.insert(index, profile);
            }
            if self.can_share(&group, progress) {
                interrupt::check()?;
                let first = &self.layers[group[0]];
                let sum = match input_sum {
                    Some(sum) => sum,
                    None => self.calibration.sum(&first.input)?,
                };
                shared.push(self.share((&group, self.layers.len() + number), &profiles, sum, &mut gathered)?);
            }
        }
        Ok((profiles.into_values().collect(), shared))
    }

    fn solve<T: Scalar>(
        &self,
        index: usize,
        stats: &ActivationStats<T>,
        input_sum: u32,
        progress: &mut Progress,
    ) -> Result<LayerProfile> {
        let layer = &self.layers[index];
        progress.begin(layer);
        let original = read::<T>(self.model, layer)?;
        let means = target_means(self.args.method, layer, &original, stats, || self.bias(layer))?;
        let compressor = compressor::<T>(self.args);
        let useful = layer.useful_rank();
        let max_rank = self.args.budget.rank.map_or(useful, |rank| rank.clamp(1, useful));
        let decomposition = compressor.solve(&original, stats.into(), max_rank).map_err(Error::layer(&layer.name))?;
        drop(original);
        let fingerprint = self.fingerprint(layer, input_sum)?;
        let profile = LayerProfile::new(layer.name.clone(), &decomposition);
        let solved =
            Solved { layer, decomposition: &decomposition, profile: &profile, means, fingerprint, shared: None };
        solved.save(&self.unfinished.layer(index))?;
        progress.solved(layer, stats.samples());
        Ok(profile)
    }

    /// Returns the bias of a layer in `f64`, empty if there is none.
    pub fn bias(&self, layer: &Layer) -> Result<Vec<f64>> {
        let bias = layer.has_bias.then(|| self.model.vector::<f64>(&layer.bias())).transpose()?;
        Ok(bias.iter().flat_map(|bias| bias.iter().copied()).collect())
    }

    /// Returns an error if the weight, bias or input of a solved layer has changed since.
    fn verify(&self, layer: &Layer, factors: &Factors, input_sum: u32) -> Result<()> {
        let (was, is) = (factors.fingerprint(), self.fingerprint(layer, input_sum)?);
        if was == is {
            return Ok(());
        }
        Err(Error::Changed(format!("layer {} was computed from {was}, and the files now hold {is}", layer.name)))
    }

    /// Returns a text that identifies the data from which a layer's factors are computed. The
    /// folder of the unfinished run identifies the settings.
    pub fn fingerprint(&self, layer: &Layer, input: u32) -> Result<String> {
        let sum = |sum: u32| format!("{sum:08x}");
        let weight = self.model.checksum(&layer.weight())?;
        let bias = if layer.has_bias { self.model.checksum(&layer.bias())? } else { 0 };
        Ok(json!({"layer": layer.name, "weight": sum(weight), "bias": sum(bias), "input": sum(input)}).to_string())
    }
}

/// Reads a layer of the model.
pub fn read<T: Scalar>(model: &ModelFile, layer: &Layer) -> Result<Linear<T>> {
    let weight = model.matrix(&layer.weight())?;
    let bias = layer.has_bias.then(|| model.vector(&layer.bias())).transpose()?;
    Linear::new(weight, bias).map_err(Error::layer(&layer.name))
}

/// Returns the means of the outputs and of the inputs, if the method corrects the bias. `bias`
/// reads the layer's bias in `f64`; an empty one counts as zero.
pub fn target_means<T: Scalar>(
    method: Method,
    layer: &Layer,
    original: &Linear<T>,
    stats: &ActivationStats<T>,
    bias: impl FnOnce() -> Result<Vec<f64>>,
) -> Result<Option<(Vec<f64>, Vec<f64>)>> {
    if !corrects_bias(method, layer.has_bias) {
        return Ok(None);
    }
    let mean: Vec<f64> = stats.mean().map_err(Error::layer(&layer.name))?.iter().copied().collect();
    Ok(Some((output_mean(original.weight(), &bias()?, &mean), mean)))
}

/// Returns the method for layers of this precision.
pub fn compressor<T: Scalar>(args: &CompressArgs) -> Box<dyn LowRankCompressor<T>> {
    match args.method {
        Method::Dalr => Box::new(Dalr::new()),
        Method::DalrPaper => Box::new(Dalr::paper(args.lambda.unwrap_or(PAPER_LAMBDA))),
        Method::Svd => Box::new(TruncatedSvd::new()),
        Method::SvdBc => Box::new(TruncatedSvd::new().with_bias_correction(true)),
    }
}

/// Returns whether the method changes or adds the bias of a layer with or without a bias.
fn corrects_bias(method: Method, has_bias: bool) -> bool {
    match method {
        Method::Dalr => has_bias,
        Method::SvdBc => true,
        Method::DalrPaper | Method::Svd => false,
    }
}

/// Returns `b + W μ`, accumulated in `f64` whatever `T` is.
fn output_mean<T: Scalar>(weight: MatRef<'_, T>, bias: &[f64], mean: &[f64]) -> Vec<f64> {
    let mut sums = vec![0.0; weight.nrows()];
    for (column, mean) in weight.col_iter().zip(mean) {
        sums.iter_mut().zip(column.iter()).for_each(|(sum, entry)| *sum += entry.to_f64() * mean);
    }
    sums.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
    sums
}

/// Returns the indices of layers that read the same input in the same precision, in the order of
/// each group's first layer.
pub fn groups(layers: &[Layer]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut places = BTreeMap::new();
    for (index, layer) in layers.iter().enumerate() {
        let key = (layer.input.as_str(), layer.dtype == FloatDtype::F64, layer.in_features);
        let place = *places.entry(key).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[place].push(index);
    }
    groups
}
