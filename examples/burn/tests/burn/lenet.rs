//! End to end on a real network: the LeNet of the repository as a model of burn, with one layer
//! compressed.

use crate::common::values;
use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{Linear, Relu};
use burn::tensor::{DType, Device, Tensor, TensorData};
use dalr::{ActivationStats, Dalr, LowRankCompressor, Rank, TruncatedSvd, relative_output_error};
use dalr_burn::{LowRankLinear, compress, observe, to_burn, to_dalr};
use faer::{Col, MatRef};
use safetensors::{Dtype, SafeTensors};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/lenet_digits.safetensors");
/// The first images are those that the network was fine-tuned on; the others are for testing.
const TRAIN: usize = 1000;

/// A layer that may be compressed later.
#[derive(Module, Debug)]
enum Layer {
    Original(Linear),
    LowRank(LowRankLinear),
}

impl Layer {
    fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Original(layer) => layer.forward(input),
            Self::LowRank(layer) => layer.forward(input),
        }
    }
}

#[derive(Module, Debug)]
struct LeNet {
    convolutions: [Conv2d; 2],
    pool: MaxPool2d,
    fc1: Layer,
    fc2: Linear,
    fc3: Linear,
}

impl LeNet {
    fn load(tensors: &SafeTensors<'_>, device: &Device) -> Self {
        let linear = |name: &str| {
            let (weight, bias) = (floats(tensors, name, "weight"), floats(tensors, name, "bias"));
            let (outputs, inputs) = (bias.len(), weight.len() / bias.len());
            let weight = MatRef::from_row_major_slice(&weight, outputs, inputs).to_owned();
            let layer = dalr::Linear::new(weight, Some(bias.into_iter().collect::<Col<f32>>())).unwrap();
            to_burn(&layer, device, DType::F32).unwrap()
        };
        let convolution = |name: &str, channels: [usize; 2]| {
            let shape = [channels[1], channels[0], 5, 5];
            let weight = TensorData::new(floats(tensors, name, "weight"), shape);
            let bias = TensorData::new(floats(tensors, name, "bias"), [channels[1]]);
            let mut layer = Conv2dConfig::new(channels, [5, 5]).init(device);
            layer.weight = Param::from_tensor(Tensor::from_data(weight, device));
            layer.bias = Some(Param::from_tensor(Tensor::from_data(bias, device)));
            layer
        };
        Self {
            convolutions: [convolution("conv1", [1, 6]), convolution("conv2", [6, 16])],
            pool: MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init(),
            fc1: Layer::Original(linear("fc1")),
            fc2: linear("fc2"),
            fc3: linear("fc3"),
        }
    }

    /// Returns the inputs of fc1.
    fn features(&self, images: Tensor<4>) -> Tensor<2> {
        let maps = self
            .convolutions
            .iter()
            .fold(images, |maps, layer| self.pool.forward(Relu::new().forward(layer.forward(maps))));
        maps.flatten(1, 3)
    }

    /// Returns the fraction of images that are classified correctly, from their features.
    fn accuracy(&self, features: Tensor<2>, labels: &[u8]) -> f64 {
        let relu = Relu::new();
        let hidden = self.fc2.forward(relu.forward(self.fc1.forward(features)));
        let outputs = values(&self.fc3.forward(relu.forward(hidden)));
        let largest = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        let correct = outputs.chunks(10).zip(labels).filter(|(row, label)| largest(row) == usize::from(**label));
        correct.count() as f64 / labels.len() as f64
    }
}

fn floats(tensors: &SafeTensors<'_>, layer: &str, part: &str) -> Vec<f32> {
    let tensor = tensors.tensor(&format!("target.{layer}.{part}")).unwrap();
    assert_eq!(tensor.dtype(), Dtype::F32);
    tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// Enlarges 8×8 images of values 0 to 16 to 32×32 images of values 0 to 1, by bilinear
/// interpolation between pixel centres.
fn enlarged(pixels: &[u8], device: &Device) -> Tensor<4> {
    let place = |at: usize| {
        let position = ((at as f32 + 0.5) / 4.0 - 0.5).max(0.0);
        let low = position as usize;
        (low, (low + 1).min(7), position.fract())
    };
    let mut images = Vec::with_capacity(pixels.len() * 16);
    for image in pixels.chunks_exact(64) {
        for (row, column) in (0..32).flat_map(|row| (0..32).map(move |column| (row, column))) {
            let ((top, bottom, down), (left, right, across)) = (place(row), place(column));
            let at = |row: usize, column: usize| f32::from(image[row * 8 + column]) / 16.0;
            let upper = at(top, left) * (1.0 - across) + at(top, right) * across;
            let lower = at(bottom, left) * (1.0 - across) + at(bottom, right) * across;
            images.push(upper * (1.0 - down) + lower * down);
        }
    }
    Tensor::from_data(TensorData::new(images, [pixels.len() / 64, 1, 32, 32]), device)
}

#[test]
fn one_layer_of_lenet() {
    let device = Device::default();
    let bytes = std::fs::read(DATA).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let labels = tensors.tensor("digits.labels").unwrap().data()[TRAIN..].to_vec();
    let mut network = LeNet::load(&tensors, &device);
    let images = enlarged(tensors.tensor("digits.images").unwrap().data(), &device);
    let count = images.dims()[0];
    let features = network.features(images);
    let train = features.clone().slice([0..TRAIN, 0..400]);
    let test = features.slice([TRAIN..count, 0..400]);
    // The accuracy that PyTorch measured.
    let original = network.accuracy(test.clone(), &labels);
    assert!((original - 0.9536).abs() < 0.0015, "{original}");

    let Layer::Original(fc1) = network.fc1.clone() else { unreachable!() };
    let (mut stats, mut held_out) = (ActivationStats::<f32>::new(400), ActivationStats::<f32>::new(400));
    observe(&mut stats, &train).unwrap();
    observe(&mut held_out, &test).unwrap();
    let mut accuracy = |method: &dyn LowRankCompressor<f32>, rank| {
        let (low, _) = compress(&fc1, &stats, method, Rank::Fixed(rank)).unwrap();
        let outputs = low.to_dalr::<f32>().unwrap().to_linear().unwrap();
        let error = relative_output_error(&to_dalr(&fc1).unwrap(), &outputs, &held_out).unwrap();
        network.fc1 = Layer::LowRank(low);
        let accuracy = network.accuracy(test.clone(), &labels);
        println!("rank {rank}: relative error {error:.3}, accuracy {accuracy:.3}");
        (error, accuracy)
    };
    // The errors of the table in docs/benchmarks.md.
    for (rank, expected, least) in [(4, 0.496, 0.75), (8, 0.249, 0.90), (16, 0.113, 0.94)] {
        let (error, accuracy) = accuracy(&Dalr::new(), rank);
        assert!((error - expected).abs() < 0.002, "rank {rank}: relative error {error}");
        assert!(accuracy > least, "rank {rank}: accuracy {accuracy}");
    }
    let (error, _) = accuracy(&TruncatedSvd::new(), 4);
    assert!((error - 1.486).abs() < 0.002, "{error}");
}
