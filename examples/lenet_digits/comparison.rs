//! Compares all methods at all ranks: accuracy of the network, error of the layer, parameters.

use dalr::compress::{ActivationFunction, HiddenUnits, OutputMetric};
use dalr::{
    ActivationPruning, ActivationStats, Calibration, Dalr, Decomposition, Linear, LowRankCompressor, Rank, Result,
    Ridge, TruncatedSvd, relative_output_error,
};
use faer::{Mat, MatRef};
use serde::Serialize;

use super::network::{Data, Layer, accuracy, activations};

pub const RANKS: [usize; 9] = [1, 2, 3, 4, 6, 8, 12, 16, 32];
pub const LAYERS: [&str; 3] = ["fc1", "fc2", "fc3"];

/// The notebook of the paper compresses the three layers to these ranks, with this `λ`.
pub const NOTEBOOK_RANKS: [usize; 3] = [15, 15, 10];
const NOTEBOOK_LAMBDA: f64 = 10.0;

pub const METHODS: [&str; 6] = ["svd", "svd+bc", "pruning-mean", "pruning-max", "dalr-paper", "dalr"];

#[derive(Serialize)]
pub struct Row {
    pub layer: &'static str,
    pub method: &'static str,
    /// Rank of the layer; that of fc1 if all layers are compressed.
    pub rank: usize,
    /// Parameters of the layer, or of all three, biases included.
    pub parameters: usize,
    /// Accuracy of the network on the test images.
    pub accuracy: f64,
    /// Error of the layer's outputs on the test images, or of the network's if all layers are
    /// compressed. The denominator is the original outputs about their mean.
    pub relative_error: f64,
}

#[derive(Serialize)]
pub struct Comparison {
    pub original_accuracy: f64,
    pub source_accuracy: f64,
    pub rows: Vec<Row>,
    /// The smallest error that any weight of a rank can have on the test images: fc1 and fc2, by
    /// rank.
    #[serde(skip)]
    pub optimum: [Vec<f64>; 2],
    /// `dalr` with and without the metric of the layers behind.
    pub metric_rows: Vec<MetricRow>,
    /// The network with some of the hidden units between fc1 and fc2.
    pub unit_rows: Vec<UnitRow>,
    /// Warnings of `dalr` when all three layers are compressed.
    #[serde(skip)]
    pub warnings: Vec<String>,
    /// Parameters of the original fc1, fc2 and fc3.
    #[serde(skip)]
    pub original_parameters: [usize; 3],
}

/// Accuracies of the network with `dalr`, when all errors of a layer's outputs count alike and when
/// they count as the layers behind see them.
#[derive(Serialize)]
pub struct MetricRow {
    pub layers: &'static [&'static str],
    pub rank: usize,
    pub plain_accuracy: f64,
    pub metric_accuracy: f64,
}

/// The network with some of the hidden units between fc1 and fc2.
#[derive(Serialize)]
pub struct UnitRow {
    pub method: &'static str,
    pub kept: usize,
    /// Parameters of fc1 and fc2, biases included.
    pub parameters: usize,
    pub accuracy: f64,
    /// Error of the outputs of fc2 on the test images.
    pub relative_error: f64,
}

pub const UNIT_METHODS: [&str; 3] = ["pruning-mean", "pruning-max", "hidden units, refitted"];

/// The budgets of pruning at which hidden units are compared, as ranks of fc2.
pub const UNIT_RANKS: [usize; 4] = [4, 8, 16, 32];

/// The ranks of fc1, and of fc1 and fc2 together, at which the metric is compared.
const METRIC_CASES: [(&[&str], usize); 4] = [(&["fc1"], 4), (&["fc1"], 6), (&["fc1"], 8), (&["fc1", "fc2"], 6)];

/// The solutions of one method for a layer, for every rank.
enum Solutions {
    LowRank(Box<Decomposition<f32>>),
    Pruning(ActivationPruning),
}

impl Solutions {
    fn solve(method: &str, layer: &Linear<f32>, stats: &ActivationStats<f32>) -> Result<Self> {
        let compressor: Box<dyn LowRankCompressor<f32>> = match method {
            "svd" => Box::new(TruncatedSvd::new()),
            "svd+bc" => Box::new(TruncatedSvd::new().with_bias_correction(true)),
            "dalr-paper" => Box::new(Dalr::paper(NOTEBOOK_LAMBDA)),
            "dalr" => Box::new(Dalr::new()),
            "pruning-mean" => return Ok(Self::Pruning(ActivationPruning::mean())),
            _ => return Ok(Self::Pruning(ActivationPruning::max())),
        };
        let full = layer.out_features().min(layer.in_features());
        compressor.solve(layer, stats.into(), full).map(Box::new).map(Self::LowRank)
    }

    fn at(&self, rank: usize, layer: &Linear<f32>, stats: &ActivationStats<f32>) -> Result<(Layer, Vec<String>)> {
        Ok(match self {
            Self::LowRank(decomposition) => {
                let compressed = decomposition.truncate(rank)?;
                let warnings = compressed.report().warnings.iter().map(ToString::to_string).collect();
                (Layer::LowRank(compressed.into_layer()), warnings)
            }
            Self::Pruning(pruning) => (Layer::Pruned(pruning.inputs(layer, stats, rank)?), Vec::new()),
        })
    }
}

pub fn compare(data: &Data) -> Result<Comparison> {
    let labels = &data.test.labels;
    let source_features = data.source.features(data.test.images.as_ref())?;
    let source_outputs = activations(&data.source.layers(), source_features.as_ref())?;
    let original = data.target.layers();
    let calibration = activations(&original, data.target.features(data.train.images.as_ref())?.as_ref())?;
    let test = activations(&original, data.target.features(data.test.images.as_ref())?.as_ref())?;

    let statistics = |inputs: &Mat<f32>| {
        let mut stats = ActivationStats::new(inputs.ncols());
        stats.update(inputs.as_ref())?;
        Result::Ok(stats)
    };
    let stats = [statistics(&calibration[0])?, statistics(&calibration[1])?, statistics(&calibration[2])?];
    let test_stats = [statistics(&test[0])?, statistics(&test[1])?];

    let run = |layers: &[Layer; 3]| activations(layers, test[0].as_ref()).map(|[.., outputs]| outputs);
    let mut rows = Vec::new();
    let mut warnings = Vec::new();
    for method in METHODS {
        let mut joint = original.clone();
        for index in 0..3 {
            let layer = &data.target.linear[index];
            let solutions = Solutions::solve(method, layer, &stats[index])?;
            let (replacement, warned) = solutions.at(NOTEBOOK_RANKS[index], layer, &stats[index])?;
            joint[index] = replacement;
            if method == "dalr" {
                warnings.extend(warned.into_iter().map(|warning| format!("{}: {warning}", LAYERS[index])));
            }
            if index == 2 {
                continue;
            }
            for rank in RANKS {
                let (replacement, _) = solutions.at(rank, layer, &stats[index])?;
                let as_one_matrix = match &replacement {
                    Layer::Original(layer) => layer.clone(),
                    Layer::LowRank(layer) => layer.to_linear()?,
                    Layer::Pivoted(layer) => layer.to_linear()?,
                    Layer::Pruned(layer) => layer.to_linear()?,
                };
                let mut layers = original.clone();
                layers[index] = replacement;
                rows.push(Row {
                    layer: LAYERS[index],
                    method,
                    rank,
                    parameters: layers[index].parameters(),
                    accuracy: accuracy(run(&layers)?.as_ref(), labels),
                    relative_error: relative_output_error(layer, &as_one_matrix, &test_stats[index])?,
                });
            }
        }
        let outputs = run(&joint)?;
        rows.push(Row {
            layer: "all",
            method,
            rank: NOTEBOOK_RANKS[0],
            parameters: joint.iter().map(Layer::parameters).sum(),
            accuracy: accuracy(outputs.as_ref(), labels),
            relative_error: distance(test[3].as_ref(), outputs.as_ref()),
        });
    }

    // No layer lies behind fc3, whose outputs are the network's.
    let slopes = |index: usize| statistics(&ActivationFunction::Relu.slopes(calibration[index].as_ref())?);
    let metric_of_fc2 = OutputMetric::from_next_layer(&data.target.linear[2], &slopes(2)?, None)?;
    let metric_of_fc1 = OutputMetric::from_next_layer(&data.target.linear[1], &slopes(1)?, Some(&metric_of_fc2))?;
    let metrics = [metric_of_fc1, metric_of_fc2];
    let mut metric_rows = Vec::new();
    for (names, rank) in METRIC_CASES {
        let accuracy_with = |metric: bool| {
            let mut layers = original.clone();
            for index in 0..names.len() {
                let mut given = Calibration::from(&stats[index]);
                if metric {
                    given = given.with_output_metric(&metrics[index]);
                }
                let compressed = Dalr::new().compress(&data.target.linear[index], given, Rank::Fixed(rank))?;
                layers[index] = Layer::LowRank(compressed.into_layer());
            }
            Result::Ok(accuracy(run(&layers)?.as_ref(), labels))
        };
        let (plain_accuracy, metric_accuracy) = (accuracy_with(false)?, accuracy_with(true)?);
        metric_rows.push(MetricRow { layers: names, rank, plain_accuracy, metric_accuracy });
    }

    let [fc1, fc2, _] = &data.target.linear;
    let units = HiddenUnits::new(fc1, fc2, &stats[1])?;
    let mut unit_rows = Vec::new();
    for rank in UNIT_RANKS {
        for method in UNIT_METHODS {
            let pruning = match method {
                "pruning-max" => ActivationPruning::max(),
                _ => ActivationPruning::mean(),
            };
            let pruned = pruning.inputs(fc2, &stats[1], rank)?;
            let kept = pruned.kept().len();
            let mut layers = original.clone();
            let parameters = if method == UNIT_METHODS[2] {
                let smaller = units.select(kept)?;
                layers[0] = Layer::Original(smaller.first);
                layers[1] = Layer::Original(smaller.second);
                layers[0].parameters() + layers[1].parameters()
            } else {
                layers[1] = Layer::Pruned(pruned);
                // fc1 does not compute the units that fc2 ignores.
                kept * (fc1.in_features() + 1) + layers[1].parameters()
            };
            let [_, hidden, _, outputs] = activations(&layers, test[0].as_ref())?;
            let outputs_of_fc2 = layers[1].forward(hidden.as_ref())?;
            unit_rows.push(UnitRow {
                method,
                kept,
                parameters,
                accuracy: accuracy(outputs.as_ref(), labels),
                relative_error: distance(fc2.forward(test[1].as_ref())?.as_ref(), outputs_of_fc2.as_ref()),
            });
        }
    }

    let optimum = |index: usize| {
        let ideal = Dalr::new().with_ridge(Ridge::None).with_bias_correction(true);
        let ideal = ideal.decompose(&data.target.linear[index], &test_stats[index], RANKS[RANKS.len() - 1])?;
        Result::Ok(RANKS.iter().filter_map(|&rank| ideal.relative_error(rank)).collect())
    };
    Ok(Comparison {
        original_accuracy: accuracy(test[3].as_ref(), labels),
        source_accuracy: accuracy(source_outputs[3].as_ref(), labels),
        rows,
        optimum: [optimum(0)?, optimum(1)?],
        metric_rows,
        unit_rows,
        warnings,
        original_parameters: data.target.linear.each_ref().map(Linear::parameters),
    })
}

impl Comparison {
    /// Returns the parameters of a row as a fraction of the original ones.
    pub fn fraction(&self, row: &Row) -> f64 {
        let original: usize = match LAYERS.iter().position(|&name| name == row.layer) {
            Some(index) => self.original_parameters[index],
            None => self.original_parameters.iter().sum(),
        };
        row.parameters as f64 / original as f64
    }

    pub fn find(&self, layer: &str, method: &str, rank: usize) -> Option<&Row> {
        self.rows.iter().find(|row| (row.layer, row.method, row.rank) == (layer, method, rank))
    }
}

/// Returns the root of the squared difference over the squared `original` about its mean.
fn distance(original: MatRef<'_, f32>, other: MatRef<'_, f32>) -> f64 {
    let (mut error, mut total) = (0.0, 0.0);
    for (original, other) in original.col_iter().zip(other.col_iter()) {
        let mean = original.iter().map(|&x| f64::from(x)).sum::<f64>() / original.nrows() as f64;
        error += original.iter().zip(other.iter()).map(|(&a, &b)| f64::from(a - b).powi(2)).sum::<f64>();
        total += original.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>();
    }
    (error / total).sqrt()
}

/// Returns whether two factors of this rank have fewer parameters than the layer.
pub fn saves(rank: usize, layer: &Linear<f32>) -> bool {
    (rank as f64) < Rank::break_even(layer.out_features(), layer.in_features())
}
