//! Loads and runs the LeNet of `data/lenet_digits.safetensors`, and loads its digits.

use std::path::Path;

use dalr::convolution::{Conv2d, ConvOptions};
use dalr::factors::{PivotedLinear, PrunedLinear};
use dalr::{Linear, LowRankLinear, Result};
use faer::{Col, Mat, MatRef};
use safetensors::{Dtype, SafeTensors};

/// Height and width of the network's input images.
pub const SIDE: usize = 32;

/// A fully connected layer, original or compressed.
#[derive(Clone)]
pub enum Layer {
    Original(Linear<f32>),
    LowRank(LowRankLinear<f32>),
    Pivoted(PivotedLinear<f32>),
    Pruned(PrunedLinear<f32>),
}

impl Layer {
    pub fn forward(&self, inputs: MatRef<'_, f32>) -> Result<Mat<f32>> {
        match self {
            Self::Original(layer) => layer.forward(inputs),
            Self::LowRank(layer) => layer.forward(inputs),
            Self::Pivoted(layer) => layer.forward(inputs),
            Self::Pruned(layer) => layer.forward(inputs),
        }
    }

    pub fn parameters(&self) -> usize {
        match self {
            Self::Original(layer) => layer.parameters(),
            Self::LowRank(layer) => layer.parameters(),
            Self::Pivoted(layer) => layer.parameters(),
            Self::Pruned(layer) => layer.parameters(),
        }
    }
}

/// conv 6@5×5 – pool – conv 16@5×5 – pool – fc1 – fc2 – fc3, with ReLU between.
pub struct Network {
    pub convolutions: [Conv2d<f32>; 2],
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
        let convolution = |name: &str| -> Result<Conv2d<f32>, Box<dyn std::error::Error>> {
            let layer = layer(name)?;
            let bias = layer.bias().map(|bias| bias.to_owned());
            Ok(Conv2d::new(layer.weight().to_owned(), bias, (5, 5), ConvOptions::new())?)
        };
        Ok(Self {
            convolutions: [convolution("conv1")?, convolution("conv2")?],
            linear: [layer("fc1")?, layer("fc2")?, layer("fc3")?],
        })
    }

    /// Returns the outputs of the convolutions, which are the inputs of fc1.
    pub fn features(&self, images: MatRef<'_, f32>) -> Result<Mat<f32>> {
        let mut maps = images.to_owned();
        let mut side = SIDE;
        for convolution in &self.convolutions {
            maps = pooled(convolution.forward(maps.as_ref(), (side, side))?, side - 4);
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

pub fn relu(mut matrix: Mat<f32>) -> Mat<f32> {
    matrix.as_mut().col_iter_mut().for_each(|column| column.iter_mut().for_each(|x| *x = x.max(0.0)));
    matrix
}

/// Applies ReLU, and takes the maximum over 2×2 squares of maps of this side. Rows have
/// `channels × side × side` numbers.
pub fn pooled(maps: Mat<f32>, side: usize) -> Mat<f32> {
    let (maps, half) = (relu(maps), side / 2);
    Mat::from_fn(maps.nrows(), maps.ncols() / (side * side) * half * half, |image, at| {
        let (channel, row, column) = (at / (half * half), at / half % half, at % half);
        let pixel =
            |down: usize, right: usize| maps[(image, (channel * side + 2 * row + down) * side + 2 * column + right)];
        pixel(0, 0).max(pixel(0, 1)).max(pixel(1, 0)).max(pixel(1, 1))
    })
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
