//! The first pass: every layer is decomposed once, one at a time, and kept on disk.

use crc32fast::Hasher;
use dalr::network::LayerProfile;
use dalr::{ActivationStats, Linear, Scalar};
use faer::{Col, Mat};
use safetensors::tensor::Dtype;
use serde_json::json;

use crate::args::Args;
use crate::calibration::Calibration;
use crate::error::{Error, Result};
use crate::factors::{Factors, Solved};
use crate::interrupt;
use crate::numbers;
use crate::progress::Progress;
use crate::selection::Layer;
use crate::source::Source;
use crate::work::Work;

/// What the first pass works on.
pub struct Pass<'a> {
    pub args: &'a Args,
    pub model: &'a Source,
    pub calibration: &'a Calibration,
    pub work: &'a Work,
    pub layers: &'a [Layer],
}

/// Statistics of one input, in the precision of the layers that read it.
enum Statistics {
    Single(ActivationStats<f32>),
    Double(ActivationStats<f64>),
}

impl Pass<'_> {
    /// The profile of every layer, solved now or by the run that is resumed. Layers that read the same input come one after the
    /// other, so that its statistics are gathered once and only one statistics object is in memory.
    pub fn run(&self, progress: &mut Progress) -> Result<Vec<LayerProfile>> {
        let mut profiles: Vec<Option<LayerProfile>> = vec![None; self.layers.len()];
        for group in groups(self.layers) {
            let first = &self.layers[group[0]];
            let finished: Vec<Option<Factors>> =
                group.iter().map(|&index| Factors::open(&self.work.layer(index))).collect::<Result<_>>()?;
            let (statistics, sum) = if finished.iter().all(Option::is_some) {
                (None, self.calibration.sum(&first.input)?)
            } else {
                let (statistics, sum) = self.gather(first)?;
                (Some(statistics), sum)
            };
            for (&index, finished) in group.iter().zip(finished) {
                interrupt::check()?;
                let layer = &self.layers[index];
                let profile = match (finished, &statistics) {
                    (Some(factors), _) => {
                        self.verify(layer, &factors, sum)?;
                        progress.resumed(layer);
                        factors.profile().clone()
                    }
                    (None, Some(Statistics::Single(stats))) => self.solve(index, stats, sum, progress)?,
                    (None, Some(Statistics::Double(stats))) => self.solve(index, stats, sum, progress)?,
                    (None, None) => unreachable!("statistics were gathered for what is not finished"),
                };
                profiles[index] = Some(profile);
            }
        }
        Ok(profiles.into_iter().flatten().collect())
    }

    fn gather(&self, layer: &Layer) -> Result<(Statistics, u32)> {
        let Layer { input, in_features, .. } = layer;
        if self.args.calibration.is_empty() {
            // Truncated SVD looks at the weight alone.
            let none = if layer.dtype == Dtype::F64 {
                Statistics::Double(ActivationStats::new(*in_features))
            } else {
                Statistics::Single(ActivationStats::new(*in_features))
            };
            return Ok((none, 0));
        }
        let gathered = if layer.dtype == Dtype::F64 {
            self.calibration.gather(input, *in_features).map(|(stats, sum)| (Statistics::Double(stats), sum))
        } else {
            self.calibration.gather(input, *in_features).map(|(stats, sum)| (Statistics::Single(stats), sum))
        };
        gathered.map_err(|error| match error {
            Error::Interrupted | Error::Io { .. } => error,
            other => Error::layer(&layer.name)(other),
        })
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
        let (weight, weight_sum) = self.weight::<T>(layer)?;
        let (bias, bias_sum) = self.bias(layer)?;
        let mut correction = None;
        if self.args.corrects_bias(layer.has_bias) {
            let mean: Vec<f64> = stats.mean().map_err(Error::layer(&layer.name))?.iter().copied().collect();
            correction = Some((output_mean(&weight, bias.as_deref(), &mean), mean));
        }
        let bias: Option<Col<T>> = bias.map(|bias| bias.into_iter().map(T::from_f64).collect());
        let dense = Linear::new(weight, bias).map_err(Error::layer(&layer.name))?;
        let compressor = self.args.compressor::<T>();
        let decomposition =
            compressor.decompose(&dense, stats, self.max_rank(layer)).map_err(Error::layer(&layer.name))?;
        drop(dense);
        let fingerprint = self.fingerprint(layer, [weight_sum, bias_sum, input_sum]);
        let solved = Solved { layer, decomposition: &decomposition, means: correction, fingerprint };
        let profile = solved.save(&self.work.layer(index))?;
        progress.solved(layer, stats.samples());
        Ok(profile)
    }

    /// The largest rank that can be chosen.
    fn max_rank(&self, layer: &Layer) -> usize {
        let useful = layer.useful_rank();
        self.args.budget.rank.map_or(useful, |rank| rank.clamp(1, useful))
    }

    fn weight<T: Scalar>(&self, layer: &Layer) -> Result<(Mat<T>, u32)> {
        let mut sum = Hasher::new();
        let weight = numbers::matrix(self.model, &self.model.tensors()[&layer.weight()], &mut sum)?;
        Ok((weight, sum.finalize()))
    }

    fn bias(&self, layer: &Layer) -> Result<(Option<Vec<f64>>, u32)> {
        let mut sum = Hasher::new();
        let tensor = self.model.tensors().get(&layer.bias()).filter(|_| layer.has_bias);
        let bias = tensor.map(|tensor| numbers::list(self.model, tensor, &mut sum)).transpose()?;
        Ok((bias, sum.finalize()))
    }

    /// Refuses a finished layer whose weight, bias or input have changed since.
    fn verify(&self, layer: &Layer, factors: &Factors, input_sum: u32) -> Result<()> {
        let mut weight_sum = Hasher::new();
        self.model.sum(&self.model.tensors()[&layer.weight()], &mut weight_sum)?;
        let (_, bias_sum) = self.bias(layer)?;
        let expected = self.fingerprint(layer, [weight_sum.finalize(), bias_sum, input_sum]);
        if factors.fingerprint() == expected {
            return Ok(());
        }
        let (was, is) = (factors.fingerprint(), expected);
        Err(Error::Changed(format!("layer {} was computed from {was}, and there is now {is}", layer.name)))
    }

    /// What a layer's factors were computed from. That of the settings is the work folder's business.
    fn fingerprint(&self, layer: &Layer, [weight, bias, input]: [u32; 3]) -> String {
        let sum = |sum: u32| format!("{sum:08x}");
        json!({"layer": layer.name, "weight": sum(weight), "bias": sum(bias), "input": sum(input)}).to_string()
    }
}

/// `b + W μ`, accumulated in `f64`.
fn output_mean<T: Scalar>(weight: &Mat<T>, bias: Option<&[f64]>, mean: &[f64]) -> Vec<f64> {
    let mut sums = vec![0.0; weight.nrows()];
    for (column, mean) in weight.col_iter().zip(mean) {
        sums.iter_mut().zip(column.iter()).for_each(|(sum, entry)| *sum += entry.to_f64() * mean);
    }
    sums.iter_mut().zip(bias.unwrap_or_default()).for_each(|(sum, bias)| *sum += bias);
    sums
}

/// Indices of layers that read the same input in the same precision, in the order of the first of each.
fn groups(layers: &[Layer]) -> Vec<Vec<usize>> {
    let key = |layer: &Layer| (layer.input.clone(), layer.dtype == Dtype::F64, layer.in_features);
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut places = std::collections::BTreeMap::new();
    for (index, layer) in layers.iter().enumerate() {
        let place = *places.entry(key(layer)).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[place].push(index);
    }
    groups
}
