//! Reads weights and biases of layers.

use dalr::convolution::Conv2d;
use dalr::faer::{Col, Mat, MatRef};
use dalr::{Linear, Scalar};

use crate::layer::{Form, Layer, LayerKind, Step};
use crate::model::Model;
use crate::{Error, Result};

impl Model {
    /// Returns weight and bias of a layer as it was read: one linear layer, or one for each group
    /// of a convolution.
    ///
    /// A batch normalisation that the layer includes is part of both. Weights of 16 bits are
    /// widened.
    ///
    /// # Errors
    ///
    /// [`Error::Layer`] if there is no such layer, or for numbers that are not finite;
    /// [`Error::Io`] if external data cannot be read.
    pub fn linear_layers<T: Scalar>(&self, layer: &str) -> Result<Vec<Linear<T>>> {
        let layer = self.layer(layer)?;
        let fail = |error: dalr::Error| Error::layer(&layer.name, error.to_string());
        let parts = &layer.parts;
        let constant = self.index.constants.get(&parts.weight);
        let constant = constant.ok_or_else(|| Error::layer(&layer.name, "there is no weight"))?;
        let numbers = constant.tensor.numbers::<T>(&self.file)?;
        let (rows, columns) = match (parts.form, &constant.tensor.dims[..]) {
            (Form::Convolution { .. }, _) => (layer.outputs, layer.inputs),
            (_, &[rows, columns]) => (rows, columns),
            _ => return Err(Error::layer(&layer.name, "the weight is no matrix")),
        };
        let stored = MatRef::from_row_major_slice(&numbers, rows, columns);
        let flips = match parts.form {
            Form::Right { flipped, .. } => flipped == constant.transposed,
            Form::Left { flipped, .. } => flipped != constant.transposed,
            Form::Convolution { .. } => false,
        };
        let weight = if flips { stored.transpose() } else { stored };
        let (scales, shifts) = self.outputs_affine(layer)?;
        let scaled = scales.iter().any(|&scale| scale != 1.0);
        let groups = layer.groups();
        let size = layer.outputs / groups.max(1);
        let group = |group: usize| {
            let start = group * size;
            let mut weight: Mat<T> = weight.subrows(start, size).to_owned();
            if scaled {
                for (row, &scale) in weight.as_mut().row_iter_mut().zip(scales.iter().skip(start)) {
                    row.iter_mut().for_each(|entry| *entry = T::from_f64(entry.to_f64() * scale));
                }
            }
            let bias = shifts.as_ref().map(|shifts| {
                shifts.iter().skip(start).take(size).map(|&shift| T::from_f64(shift)).collect::<Col<T>>()
            });
            Linear::new(weight, bias).map_err(fail)
        };
        (0..groups).map(group).collect()
    }

    /// Returns a convolution as it was read, for images of this height and width: they decide the
    /// padding of [`Padding::SameUpper`](crate::Padding::SameUpper). Images of a convolution in one
    /// dimension have a height of 1.
    ///
    /// # Errors
    ///
    /// As [`linear_layers`](Self::linear_layers); [`Error::Layer`] for another kind of layer.
    pub fn conv2d<T: Scalar>(&self, layer: &str, size: (usize, usize)) -> Result<Conv2d<T>> {
        let layers = self.linear_layers::<T>(layer)?;
        let layer = self.layer(layer)?;
        let LayerKind::Convolution(convolution) = &layer.kind else {
            return Err(Error::layer(&layer.name, "it is no convolution"));
        };
        let fail = |error: dalr::Error| Error::layer(&layer.name, error.to_string());
        let mut weight = Mat::zeros(layer.outputs, layer.inputs);
        let mut start = 0;
        for layer in &layers {
            weight.as_mut().subrows_mut(start, layer.out_features()).copy_from(layer.weight());
            start += layer.out_features();
        }
        let biases: Option<Vec<_>> = layers.iter().map(Linear::bias).collect();
        let bias = biases.map(|biases| biases.into_iter().flat_map(|bias| bias.iter().copied()).collect());
        Conv2d::new(weight, bias, convolution.kernel, convolution.options(size)).map_err(fail)
    }

    /// Returns the factor of each output's row of the stored weight, and its bias.
    fn outputs_affine(&self, layer: &Layer) -> Result<(Vec<f64>, Option<Vec<f64>>)> {
        let (parts, outputs) = (&layer.parts, layer.outputs);
        let mut scales = vec![parts.alpha; outputs];
        let mut shifts = vec![0.0; outputs];
        if let Some(bias) = &parts.bias {
            let bias = self.per_output(layer, bias)?;
            shifts.iter_mut().zip(bias).for_each(|(shift, bias)| *shift = parts.beta * bias);
        }
        for step in &parts.steps {
            match step {
                Step::Add(value) => {
                    let added = self.per_output(layer, value)?;
                    shifts.iter_mut().zip(added).for_each(|(shift, added)| *shift += added);
                }
                Step::Normalize { values: [scale, shift, mean, variance], epsilon } => {
                    let (scale, shift) = (self.per_output(layer, scale)?, self.per_output(layer, shift)?);
                    let (mean, variance) = (self.per_output(layer, mean)?, self.per_output(layer, variance)?);
                    let numbers = scale.into_iter().zip(shift).zip(mean.into_iter().zip(variance));
                    for (((scale, shift), (mean, variance)), (old_scale, old_shift)) in
                        numbers.zip(scales.iter_mut().zip(&mut shifts))
                    {
                        let factor = scale / (variance + epsilon).sqrt();
                        *old_scale *= factor;
                        *old_shift = factor * (*old_shift - mean) + shift;
                    }
                }
            }
        }
        Ok((scales, layer.has_bias.then_some(shifts)))
    }

    /// Returns the numbers of a constant, one for each output.
    fn per_output(&self, layer: &Layer, value: &str) -> Result<Vec<f64>> {
        let constant = self.index.constants.get(value);
        let constant = constant.ok_or_else(|| Error::layer(&layer.name, format!("`{value}` is no constant")))?;
        let numbers = constant.tensor.numbers::<f64>(&self.file)?;
        match numbers[..] {
            [number] => Ok(vec![number; layer.outputs]),
            _ if numbers.len() == layer.outputs => Ok(numbers),
            _ => Err(Error::layer(&layer.name, format!("`{value}` has {} entries", numbers.len()))),
        }
    }
}
