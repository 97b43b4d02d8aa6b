//! Writes the compressed model: factors in place of weights, all other tensors unchanged.

use std::path::Path;

use dalr::LowRankLinear;
use dalr::interop::safetensors::{Dtype, ModelFile, ModelWriter};
use faer::MatRef;

use crate::error::Result;

/// The source of an output tensor's data.
enum Content<'a> {
    Factor(MatRef<'a, f32>),
    Copy { model: &'a ModelFile, name: &'a str },
}

/// Writes `NAME.0.weight`, `NAME.1.weight` and `NAME.1.bias` for every layer, in `F32`, and copies
/// all tensors of the model that these do not replace. The file appears complete or not at all.
pub fn write(path: &Path, model: Option<&ModelFile>, layers: &[(&str, &LowRankLinear<f32>)]) -> Result<()> {
    let mut writer = ModelWriter::new();
    for &(name, layer) in layers {
        let mut add = |part: &str, shape: &[usize], factor| {
            writer.add(format!("{name}.{part}"), Dtype::F32, shape, Content::Factor(factor))
        };
        add("0.weight", &[layer.rank(), layer.in_features()], layer.down())?;
        add("1.weight", &[layer.out_features(), layer.rank()], layer.up())?;
        if let Some(bias) = layer.bias() {
            add("1.bias", &[layer.out_features()], bias.as_mat())?;
        }
    }
    let replaced = |tensor: &str| {
        let name = tensor.strip_suffix(".weight").or(tensor.strip_suffix(".bias"));
        layers.iter().any(|(layer, _)| Some(*layer) == name)
    };
    if let Some(model) = model {
        for (name, tensor) in model.tensors().filter(|(name, _)| !replaced(name)) {
            writer.add(name, tensor.dtype, &tensor.shape, Content::Copy { model, name })?;
        }
        writer = writer.with_metadata(model.metadata().clone());
    }
    writer.write(path, |content, target| match *content {
        Content::Factor(factor) => Ok(target.matrix(factor)?),
        Content::Copy { model, name } => Ok(model.copy(name, target)?),
    })
}
