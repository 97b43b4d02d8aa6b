//! Layers and batches for the tests.

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor, TensorData};
use dalr::LowRankLinear;
use faer::MatRef;

/// Returns pseudorandom numbers in (−1, 1), the same on every machine.
pub fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).skip(8).take(count).collect()
}

/// Returns a batch whose inputs have different scales and means, as activations have.
pub fn inputs(samples: usize, width: usize, seed: u64, device: &Device) -> Tensor<2> {
    let mut values = noise(samples * width, seed);
    for row in values.chunks_mut(width) {
        for (place, value) in row.iter_mut().enumerate() {
            *value = (*value + 0.3) / (1.0 + place as f32 * 0.5);
        }
    }
    Tensor::from_data(TensorData::new(values, [samples, width]), device)
}

/// Returns a layer whose outputs have decreasing scales.
pub fn decaying(inputs: usize, outputs: usize, bias: bool, device: &Device) -> Linear {
    let mut weight = noise(inputs * outputs, 9);
    for (place, value) in weight.iter_mut().enumerate() {
        *value *= 0.8_f32.powi((place % outputs) as i32);
    }
    let bias = bias.then(|| TensorData::new(noise(outputs, 10), [outputs]));
    Linear {
        weight: Param::from_tensor(Tensor::from_data(TensorData::new(weight, [inputs, outputs]), device)),
        bias: bias.map(|data| Param::from_tensor(Tensor::from_data(data, device))),
    }
}

/// Returns two factors for a layer of these outputs, rank and inputs.
pub fn factors((outputs, rank, inputs): (usize, usize, usize), bias: bool) -> LowRankLinear<f32> {
    let (down, up) = (noise(rank * inputs, 11), noise(outputs * rank, 12));
    let down = MatRef::from_row_major_slice(&down, rank, inputs).to_owned();
    let up = MatRef::from_row_major_slice(&up, outputs, rank).to_owned();
    LowRankLinear::new(down, up, bias.then(|| noise(outputs, 13).into_iter().collect())).unwrap()
}

pub fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.try_to_vec_as().unwrap()
}

/// Checks that tensors are equal up to a fraction of the largest entry.
pub fn close<const D: usize>(found: &Tensor<D>, expected: &Tensor<D>, tolerance: f32) {
    assert_eq!(found.dims(), expected.dims());
    let (found, expected) = (values(found), values(expected));
    let scale = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() <= tolerance * scale, "{found} is not {expected}");
    }
}
