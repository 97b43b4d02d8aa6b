//! All five layers of the LeNet under one budget, in parameters or in multiply–adds.

use std::collections::BTreeMap;

use dalr::compress::{ActivationFunction, HiddenUnitSelection, HiddenUnits, OutputMetric, SelectedUnits};
use dalr::convolution::{Conv2d, LowRankConv2d, PatchStats};
use dalr::factors::Form;
use dalr::network::{Allocator, Budget, Choice, LayerProfile, Plan, Progress, Sensitivities, Strategy, UnitProfile};
use dalr::{ActivationStats, Calibration, Dalr, Decomposition, Linear, LowRankCompressor, Result, TruncatedSvd};
use faer::{Mat, MatRef};

use super::network::{Data, Layer, Network, SIDE, accuracy, activations, pooled};

pub const BUDGETS: [Budget; 2] = [Budget::ParameterFraction(0.15), Budget::MultiplyAddFraction(0.5)];

pub const METHODS: [&str; 3] = ["svd, each layer", "dalr-paper, each layer", "all kinds"];

const LAYERS: [&str; 5] = ["conv1", "conv2", "fc1", "fc2", "fc3"];

/// Sides of the images that the convolutions read.
const SIDES: [usize; 2] = [SIDE, (SIDE - 4) / 2];

/// The fraction of the positions of an image whose patches are used.
const POSITIONS: f64 = 0.1;

/// The regularization of the paper's notebook.
const LAMBDA: f64 = 10.0;

/// The network at one budget by one method.
pub struct BudgetRow {
    pub budget: String,
    pub method: &'static str,
    /// Fractions of the original network's.
    pub parameters: f64,
    pub multiply_adds: f64,
    pub accuracy: f64,
    /// The choice for each layer, in words.
    pub choices: Vec<String>,
}

#[derive(Clone)]
enum Convolution {
    Original(Conv2d<f32>),
    LowRank(LowRankConv2d<f32>),
}

/// The network with some layers replaced.
struct Replaced {
    convolutions: [Convolution; 2],
    linear: [Layer; 3],
}

impl Replaced {
    fn parameters(&self) -> usize {
        let convolutions = self.convolutions.iter().map(|convolution| match convolution {
            Convolution::Original(convolution) => convolution.parameters(),
            Convolution::LowRank(convolution) => convolution.parameters(),
        });
        convolutions.chain(self.linear.iter().map(Layer::parameters)).sum()
    }

    fn outputs(&self, images: MatRef<'_, f32>) -> Result<Mat<f32>> {
        let mut maps = images.to_owned();
        for (convolution, side) in self.convolutions.iter().zip(SIDES) {
            let convolved = match convolution {
                Convolution::Original(convolution) => convolution.forward(maps.as_ref(), (side, side))?,
                Convolution::LowRank(convolution) => convolution.forward(maps.as_ref(), (side, side))?,
            };
            maps = pooled(convolved, side - 4);
        }
        let [.., outputs] = activations(&self.linear, maps.as_ref())?;
        Ok(outputs)
    }
}

/// The network, with everything that the calibration images say about its layers.
struct Calibrated<'a> {
    network: &'a Network,
    /// Statistics of the inputs of the five layers.
    stats: Vec<ActivationStats<f32>>,
    /// How often each layer runs for an image.
    positions: [u64; 5],
    /// The metric of the outputs of fc1 and of fc2, as the layers behind see their errors.
    metrics: [OutputMetric; 2],
}

impl<'a> Calibrated<'a> {
    fn new(network: &'a Network, images: MatRef<'_, f32>) -> Result<Self> {
        let (mut stats, mut positions) = (Vec::new(), [1; 5]);
        let mut maps = images.to_owned();
        for ((index, convolution), side) in network.convolutions.iter().enumerate().zip(SIDES) {
            let mut patches = PatchStats::new(convolution, POSITIONS)?;
            patches.update(maps.as_ref(), (side, side))?;
            stats.extend_from_slice(patches.groups());
            positions[index] = convolution.positions((side, side))? as u64;
            maps = pooled(convolution.forward(maps.as_ref(), (side, side))?, side - 4);
        }
        let inputs = activations(&network.layers(), maps.as_ref())?;
        let statistics = |inputs: &Mat<f32>| {
            let mut stats = ActivationStats::new(inputs.ncols());
            stats.update(inputs.as_ref()).map(|()| stats)
        };
        for inputs in &inputs[..3] {
            stats.push(statistics(inputs)?);
        }
        let slopes = |index: usize| statistics(&ActivationFunction::Relu.slopes(inputs[index].as_ref())?);
        let of_fc2 = OutputMetric::from_next_layer(&network.linear[2], &slopes(2)?, None)?;
        let of_fc1 = OutputMetric::from_next_layer(&network.linear[1], &slopes(1)?, Some(&of_fc2))?;
        Ok(Self { network, stats, positions, metrics: [of_fc1, of_fc2] })
    }

    /// The linear layers of the convolutions, and the others.
    fn layers(&self) -> Result<[&Linear<f32>; 5]> {
        let ([conv1, conv2], [fc1, fc2, fc3]) = (&self.network.convolutions, &self.network.linear);
        Ok([conv1.as_linear()?, conv2.as_linear()?, fc1, fc2, fc3])
    }

    /// The calibration data of a layer, with the metric of its outputs if there is one.
    fn calibration(&self, index: usize, in_metric: bool) -> Calibration<'_, f32> {
        let metric = index.checked_sub(2).and_then(|linear| self.metrics.get(linear)).filter(|_| in_metric);
        let plain = Calibration::from(&self.stats[index]);
        metric.map_or(plain, |metric| plain.with_output_metric(metric))
    }

    fn decompose(&self, method: &dyn LowRankCompressor<f32>, in_metric: bool) -> Result<Vec<Decomposition<f32>>> {
        let solve = |(index, layer): (usize, &Linear<f32>)| {
            let full = layer.out_features().min(layer.in_features());
            method.solve(layer, self.calibration(index, in_metric), full)
        };
        self.layers()?.into_iter().enumerate().map(solve).collect()
    }

    /// The profiles of the layers; fully connected layers can be stored in pivoted form.
    fn profiles(&self, decompositions: &[Decomposition<f32>], form: Form) -> Vec<LayerProfile> {
        let layers = LAYERS.iter().zip(decompositions).zip(self.positions).enumerate();
        let profile = |(index, ((name, decomposition), positions)): (usize, ((&&str, &Decomposition<f32>), u64))| {
            let profile = LayerProfile::new(*name, decomposition).with_calls(positions);
            if index < 2 { profile } else { profile.with_form(form) }
        };
        layers.map(profile).collect()
    }

    /// The hidden units between each layer and the next: channels of 5 × 5 inputs up to fc1.
    fn hidden_units(&self) -> Result<Vec<HiddenUnits<f32>>> {
        let layers = self.layers()?;
        let solve = |(index, inputs): (usize, usize)| {
            let options = HiddenUnitSelection::new().with_inputs_per_unit(inputs);
            options.solve(layers[index], layers[index + 1], self.calibration(index + 1, true))
        };
        [25, 25, 1, 1].into_iter().enumerate().map(solve).collect()
    }

    /// The network with the layers that have a rank replaced by two factors.
    fn with_ranks(&self, decompositions: &[Decomposition<f32>], ranks: &BTreeMap<String, usize>) -> Result<Replaced> {
        let mut replaced = Replaced {
            convolutions: self.network.convolutions.clone().map(Convolution::Original),
            linear: self.network.layers(),
        };
        for (index, name) in LAYERS.iter().enumerate() {
            let Some(&rank) = ranks.get(*name) else { continue };
            let factors = decompositions[index].truncate(rank)?.into_layer();
            match index {
                0 | 1 => {
                    let convolution = self.network.convolutions[index].low_rank(vec![factors])?;
                    replaced.convolutions[index] = Convolution::LowRank(convolution);
                }
                _ => replaced.linear[index - 2] = Layer::LowRank(factors),
            }
        }
        Ok(replaced)
    }

    /// Measures sensitivities on the calibration images: each layer at a rank of moderate loss, and
    /// each pair of layers with as many parameters.
    fn strategy(
        &self,
        decompositions: &[Decomposition<f32>],
        (pairs, units): (&[UnitProfile], &[HiddenUnits<f32>]),
        data: &Data,
    ) -> Result<Strategy> {
        let profiles = self.profiles(decompositions, Form::Factors);
        let uniform = Allocator::new(Budget::ParameterFraction(0.15)).allocate(&profiles)?;
        let loss = |network: Replaced| -> Result<f64> {
            Ok(cross_entropy(network.outputs(data.train.images.as_ref())?.as_ref(), &data.train.labels))
        };
        let ranks = |ranks: &BTreeMap<String, usize>| loss(self.with_ranks(decompositions, ranks)?);
        let mut evaluations = Vec::new(); // the first one is that of the original network
        let measured = Sensitivities::measure(&profiles, &uniform, &mut evaluations, ranks, &mut Progress::ignore)?;
        let Some((mut measured, original)) = measured.zip(evaluations.first()) else { return Ok(Strategy::Energy) };
        let fewer = |pair: usize, kept: usize| {
            let mut network = self.with_ranks(decompositions, &BTreeMap::new())?;
            self.leave_out(&mut network, pair, units[pair].select(kept)?)?;
            loss(network)
        };
        measured.measure_units(pairs, &uniform, original.value, fewer, &mut Progress::ignore)?;
        Ok(Strategy::Sensitivity(measured))
    }

    /// Replaces a layer and the next by those with fewer units between them.
    fn leave_out(&self, replaced: &mut Replaced, pair: usize, smaller: SelectedUnits<f32>) -> Result<()> {
        for (at, linear) in [(pair, smaller.first), (pair + 1, smaller.second)] {
            match at {
                0 | 1 => {
                    let convolution = self.network.convolutions[at].with_layers(vec![linear])?;
                    replaced.convolutions[at] = Convolution::Original(convolution);
                }
                _ => replaced.linear[at - 2] = Layer::Original(linear),
            }
        }
        Ok(())
    }

    /// The network as planned.
    fn planned(
        &self,
        plan: &Plan,
        decompositions: &[Decomposition<f32>],
        units: &[HiddenUnits<f32>],
    ) -> Result<Replaced> {
        let mut replaced = self.with_ranks(decompositions, &plan.ranks())?;
        for (index, layer) in plan.layers.iter().enumerate() {
            if let Some(at) = index.checked_sub(2)
                && layer.report.as_ref().is_some_and(|report| report.form == Form::Pivoted)
                && let Layer::LowRank(factors) = &replaced.linear[at]
            {
                replaced.linear[at] = Layer::Pivoted(factors.to_pivoted()?);
            }
            // The pair that this layer is the first of.
            let Choice::HiddenUnits { pair, kept } = layer.choice else { continue };
            if pair != index {
                continue;
            }
            self.leave_out(&mut replaced, pair, units[pair].select(kept)?)?;
        }
        Ok(replaced)
    }
}

pub fn compare_budgets(data: &Data) -> Result<Vec<BudgetRow>> {
    let calibrated = Calibrated::new(&data.target, data.train.images.as_ref())?;
    let units = calibrated.hidden_units()?;
    let pairs: Vec<UnitProfile> = LAYERS
        .iter()
        .zip(&LAYERS[1..])
        .zip(&units)
        .map(|((first, second), units)| UnitProfile::new(*first, *second, units))
        .collect();
    let mut rows = Vec::new();
    for method in METHODS {
        let compressor: Box<dyn LowRankCompressor<f32>> = match method {
            "svd, each layer" => Box::new(TruncatedSvd::new()),
            "dalr-paper, each layer" => Box::new(Dalr::paper(LAMBDA)),
            _ => Box::new(Dalr::new()),
        };
        let one_budget = method == METHODS[2];
        let decompositions = calibrated.decompose(&*compressor, one_budget)?;
        let strategy =
            if one_budget { calibrated.strategy(&decompositions, (&pairs, &units), data)? } else { Strategy::Uniform };
        for budget in BUDGETS {
            let allocator = Allocator::new(budget).with_strategy(strategy.clone());
            let plan = match one_budget {
                true => {
                    let profiles = calibrated.profiles(&decompositions, Form::Pivoted);
                    allocator.allocate_joint(&profiles, &[], &pairs)?
                }
                false => allocator.allocate(&calibrated.profiles(&decompositions, Form::Factors))?,
            };
            let network = calibrated.planned(&plan, &decompositions, &units)?;
            let outputs = network.outputs(data.test.images.as_ref())?;
            rows.push(BudgetRow {
                budget: plan.budget.clone(),
                method,
                parameters: network.parameters() as f64 / plan.parameters_before() as f64,
                multiply_adds: plan.multiply_adds_after() as f64 / plan.multiply_adds_before() as f64,
                accuracy: accuracy(outputs.as_ref(), &data.test.labels),
                choices: plan.layers.iter().map(|layer| format!("{}: {layer}", layer.name)).collect(),
            });
        }
    }
    Ok(rows)
}

/// Returns the mean negative logarithm of the probability of the labels.
fn cross_entropy(outputs: MatRef<'_, f32>, labels: &[u8]) -> f64 {
    let loss = |(row, &label): (usize, &u8)| {
        let outputs = outputs.row(row);
        let largest = outputs.iter().fold(f32::MIN, |most, &x| most.max(x));
        let sum: f64 = outputs.iter().map(|&x| f64::from(x - largest).exp()).sum();
        sum.ln() - f64::from(outputs[usize::from(label)] - largest)
    };
    labels.iter().enumerate().map(loss).sum::<f64>() / labels.len() as f64
}
