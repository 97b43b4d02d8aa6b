//! Loads and runs the LeNet of `data/lenet_digits.safetensors`, and loads its digits.

use std::path::Path;

use dalr::factors::PrunedLinear;
use dalr::{Linear, LowRankLinear, Result};
use faer::{Col, Mat, MatRef};
use safetensors::{Dtype, SafeTensors};

/// Height and width of the network's input images.
const SIDE: usize = 32;

/// A fully connected layer, original or compressed.
#[derive(Clone)]
pub enum Layer {
    Original(Linear<f32>),
    LowRank(LowRankLinear<f32>),
    Pruned(PrunedLinear<f32>),
}

impl Layer {
    pub fn forward(&self, inputs: MatRef<'_, f32>) -> Result<Mat<f32>> {
        match self {
            Self::Original(layer) => layer.forward(inputs),
            Self::LowRank(layer) => layer.forward(inputs),
            Self::Pruned(layer) => layer.forward(inputs),
        }
    }

    pub fn parameters(&self) -> usize {
        match self {
            Self::Original(layer) => layer.parameters(),
            Self::LowRank(layer) => layer.parameters(),
            Self::Pruned(layer) => layer.parameters(),
        }
    }
}

/// conv 6@5×5 – pool – conv 16@5×5 – pool – fc1 – fc2 – fc3, with ReLU between.
pub struct Network {
    convolutions: [Linear<f32>; 2],
    pub linear: [Linear<f32>; 3],
}

pub struct Digits {
    /// One image a row: SIDE × SIDE pixels in [0, 1].
    pub images: Mat<f32>,
    pub labels: Vec<u8>,
}

pub struct Data {
    /// The network trained on MNIST only.
    pub source: Network,
    /// The same network fine-tuned on `train`.
    pub target: Network,
    /// Images for fine-tuning and calibration.
    pub train: Digits,
    pub test: Digits,
}

impl Data {
    pub fn load(path: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes)?;
        let metadata = metadata.metadata().clone().unwrap_or_default();
        let train: usize = metadata.get("train").ok_or("metadata has no `train`")?.parse()?;
        let tensors = SafeTensors::deserialize(&bytes)?;
        let images = tensors.tensor("digits.images")?;
        let labels = tensors.tensor("digits.labels")?.data();
        let pixels: Vec<&[u8]> = images.data().chunks_exact(64).collect();
        let digits =
            |from: usize, to: usize| Digits { images: enlarged(&pixels[from..to]), labels: labels[from..to].to_vec() };
        Ok(Self {
            source: Network::load(&tensors, "source")?,
            target: Network::load(&tensors, "target")?,
            train: digits(0, train),
            test: digits(train, pixels.len()),
        })
    }
}

impl Network {
    fn load(tensors: &SafeTensors<'_>, domain: &str) -> Result<Self, Box<dyn std::error::Error>> {
        let layer = |name: &str| -> Result<Linear<f32>, Box<dyn std::error::Error>> {
            let weight = floats(tensors, &format!("{domain}.{name}.weight"))?;
            let bias: Col<f32> = floats(tensors, &format!("{domain}.{name}.bias"))?.into_iter().collect();
            let columns = weight.len() / bias.nrows();
            let weight = MatRef::from_row_major_slice(&weight, bias.nrows(), columns).to_owned();
            Ok(Linear::new(weight, Some(bias))?)
        };
        Ok(Self {
            convolutions: [layer("conv1")?, layer("conv2")?],
            linear: [layer("fc1")?, layer("fc2")?, layer("fc3")?],
        })
    }

    /// Returns the outputs of the convolutions, which are the inputs of fc1.
    pub fn features(&self, images: MatRef<'_, f32>) -> Result<Mat<f32>> {
        let mut maps = images.to_owned();
        let mut side = SIDE;
        for convolution in &self.convolutions {
            maps = pooled_convolution(convolution, maps.as_ref(), side)?;
            side = (side - 4) / 2;
        }
        Ok(maps)
    }

    /// Returns the fully connected layers, which can then be replaced one by one.
    pub fn layers(&self) -> [Layer; 3] {
        self.linear.clone().map(Layer::Original)
    }
}

/// Returns the inputs of each fully connected layer, and the outputs of the last.
pub fn activations(layers: &[Layer; 3], features: MatRef<'_, f32>) -> Result<[Mat<f32>; 4]> {
    let first = relu(layers[0].forward(features)?);
    let second = relu(layers[1].forward(first.as_ref())?);
    let outputs = layers[2].forward(second.as_ref())?;
    Ok([features.to_owned(), first, second, outputs])
}

/// Returns the fraction of rows whose largest entry has the index of the label.
pub fn accuracy(outputs: MatRef<'_, f32>, labels: &[u8]) -> f64 {
    let largest = |row: usize| (0..outputs.ncols()).max_by(|&a, &b| outputs[(row, a)].total_cmp(&outputs[(row, b)]));
    let correct = labels.iter().enumerate().filter(|&(row, &label)| largest(row) == Some(usize::from(label)));
    correct.count() as f64 / labels.len() as f64
}

fn relu(mut matrix: Mat<f32>) -> Mat<f32> {
    matrix.as_mut().col_iter_mut().for_each(|column| column.iter_mut().for_each(|x| *x = x.max(0.0)));
    matrix
}

/// Applies a 5×5 convolution as a linear layer on unfolded patches, ReLU, and the maximum over 2×2
/// squares. Rows have `channels × side × side` numbers.
fn pooled_convolution(kernel: &Linear<f32>, images: MatRef<'_, f32>, side: usize) -> Result<Mat<f32>> {
    let (inner, half) = (side - 4, (side - 4) / 2);
    let channels = kernel.out_features();
    let mut result = Mat::zeros(images.nrows(), channels * half * half);
    for (index, image) in images.row_iter().enumerate() {
        let patches = Mat::from_fn(inner * inner, kernel.in_features(), |place, entry| {
            let (channel, row, column) = (entry / 25, entry / 5 % 5, entry % 5);
            image[channel * side * side + (place / inner + row) * side + place % inner + column]
        });
        let maps = relu(kernel.forward(patches.as_ref())?);
        for channel in 0..channels {
            for (row, column) in (0..half).flat_map(|row| (0..half).map(move |column| (row, column))) {
                let at = |down: usize, right: usize| maps[((2 * row + down) * inner + 2 * column + right, channel)];
                let largest = at(0, 0).max(at(0, 1)).max(at(1, 0)).max(at(1, 1));
                result[(index, (channel * half + row) * half + column)] = largest;
            }
        }
    }
    Ok(result)
}

/// Enlarges 8×8 images of values 0 to 16 to SIDE × SIDE images of values 0 to 1, by bilinear
/// interpolation between pixel centres, as in `data/train_lenet.py`.
fn enlarged(images: &[&[u8]]) -> Mat<f32> {
    let place = |at: usize| {
        let position = ((at as f32 + 0.5) * 8.0 / SIDE as f32 - 0.5).max(0.0);
        let low = position as usize;
        (low, (low + 1).min(7), position - low as f32)
    };
    Mat::from_fn(images.len(), SIDE * SIDE, |image, pixel| {
        let ((top, bottom, down), (left, right, across)) = (place(pixel / SIDE), place(pixel % SIDE));
        let at = |row: usize, column: usize| f32::from(images[image][row * 8 + column]) / 16.0;
        let upper = at(top, left) * (1.0 - across) + at(top, right) * across;
        let lower = at(bottom, left) * (1.0 - across) + at(bottom, right) * across;
        upper * (1.0 - down) + lower * down
    })
}

fn floats(tensors: &SafeTensors<'_>, name: &str) -> Result<Vec<f32>, Box<dyn std::error::Error>> {
    let tensor = tensors.tensor(name)?;
    if tensor.dtype() != Dtype::F32 {
        return Err(format!("{name}: expected f32, got {:?}", tensor.dtype()).into());
    }
    Ok(tensor
        .data()
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        .collect())
}
