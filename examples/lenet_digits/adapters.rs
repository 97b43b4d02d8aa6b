//! Adapters from the LeNet trained on MNIST to the one fine-tuned on digits: with and without the
//! activations.

use dalr::adapter::Adapter;
use dalr::{ActivationStats, Calibration, Linear, Result, relative_output_error};
use faer::Mat;
use serde::Serialize;

use super::network::{Data, Layer, accuracy, activations};

pub const ADAPTER_RANKS: [usize; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

/// The fine-tuned network, with the weight of one layer, or of both, as that of MNIST plus an
/// adapter. Pairs are without and with the activations.
#[derive(Serialize)]
pub struct AdapterRow {
    pub layers: &'static [&'static str],
    /// The rank of every adapter; 0 for none.
    pub rank: usize,
    /// Accuracy of the network on the test images.
    pub accuracy: [f64; 2],
    /// Error of the update's outputs on the test images; `None` for both layers.
    pub relative_error: [Option<f64>; 2],
}

/// Extracts adapters for fc1 and fc2, calibrated on the images of the fine-tuning.
pub fn adapters(data: &Data) -> Result<Vec<AdapterRow>> {
    let target = data.target.layers();
    let inputs = |images: &Mat<f32>| activations(&target, data.target.features(images.as_ref())?.as_ref());
    let (calibration, test) = (inputs(&data.train.images)?, inputs(&data.test.images)?);
    let statistics = |inputs: &Mat<f32>| {
        let mut stats = ActivationStats::new(inputs.ncols());
        stats.update(inputs.as_ref())?;
        Result::Ok(stats)
    };
    let most = ADAPTER_RANKS[ADAPTER_RANKS.len() - 1];
    let (mut layers, mut errors) = (Vec::new(), Vec::new());
    for index in 0..2 {
        let (base, tuned) = (data.source.linear[index].weight(), &data.target.linear[index]);
        let update = Linear::new(tuned.weight() - base, None)?;
        let (stats, test) = (statistics(&calibration[index])?, statistics(&test[index])?);
        for calibration in [Calibration::none(), Calibration::from(&stats)] {
            let decomposition = Adapter::extract(base, tuned.weight(), calibration, most)?;
            for rank in 0..=most {
                let adapter = match rank {
                    0 => Adapter::new(Mat::zeros(1, base.ncols()), Mat::zeros(base.nrows(), 1), 1.0)?,
                    _ => Adapter::truncated(&decomposition, rank)?,
                };
                let adapter = adapter.to_linear()?;
                errors.push(relative_output_error(&update, &adapter, &test)?);
                // An adapter does not hold the bias.
                layers.push(Layer::Original(Linear::new(
                    base + adapter.weight(),
                    tuned.bias().map(|bias| bias.to_owned()),
                )?));
            }
        }
    }
    let at = |index: usize, aware: usize, rank: usize| (2 * index + aware) * (most + 1) + rank;
    let mut rows = Vec::new();
    for (names, indices) in [(&["fc1"][..], &[0][..]), (&["fc2"], &[1]), (&["fc1", "fc2"], &[0, 1])] {
        for rank in [0].into_iter().chain(ADAPTER_RANKS) {
            let mut row = AdapterRow { layers: names, rank, accuracy: [0.0; 2], relative_error: [None; 2] };
            for aware in 0..2 {
                let mut network = target.clone();
                indices.iter().for_each(|&index| network[index] = layers[at(index, aware, rank)].clone());
                let [.., outputs] = activations(&network, test[0].as_ref())?;
                row.accuracy[aware] = accuracy(outputs.as_ref(), &data.test.labels);
                row.relative_error[aware] = (indices.len() == 1).then(|| errors[at(indices[0], aware, rank)]);
            }
            rows.push(row);
        }
    }
    Ok(rows)
}
