//! Runs a model on inputs, and writes its outputs.
//!
//! ```sh
//! cargo run --release -p dalr-onnx --example run -- MODEL.onnx INPUTS OUTPUTS.safetensors
//! ```
//!
//! `INPUTS` is an `.npz`, `.npy` or `.safetensors` file, or a folder of them. The output `NAME` of
//! the batch with the number `i` is the tensor `NAME.i`.

use std::error::Error;
use std::path::{Path, PathBuf};

use dalr_onnx::{Data, Engine, Inputs, Model};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, inputs, outputs] = &arguments[..] else {
        return Err("usage: run MODEL.onnx INPUTS OUTPUTS.safetensors".into());
    };
    let model = Model::open(model)?;
    let session = Engine::Embedded.load(&model, 1)?;
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    let mut number = 0;
    Inputs::open(&[PathBuf::from(inputs)], model.inputs())?.for_each(|batch| {
        for (name, tensor) in session.outputs().iter().zip(session.run(&batch.inputs)?) {
            let (dtype, bytes) = match &tensor.data {
                Data::Float(numbers) => (Dtype::F32, numbers.iter().flat_map(|x| x.to_le_bytes()).collect()),
                Data::Integer(numbers) => (Dtype::I64, numbers.iter().flat_map(|x| x.to_le_bytes()).collect()),
            };
            tensors.push((format!("{name}.{number}"), dtype, tensor.shape.clone(), bytes));
        }
        number += 1;
        Ok::<_, dalr_onnx::Error>(())
    })?;
    let views: Result<Vec<_>, _> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            Ok::<_, Box<dyn Error>>((name, TensorView::new(*dtype, shape.clone(), bytes)?))
        })
        .collect();
    serialize_to_file(views?, None, Path::new(outputs))?;
    Ok(())
}
