//! The model that goes out: factors in the place of weights, all else as it was.

use std::cmp::Reverse;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use dalr::LowRankLinear;
use serde_json::{Map, Value, json};

use crate::error::{Failure, Result};
use crate::tensors::Tensors;

/// A tensor of the file: of a factor, or of the model as it was.
enum Content<'a> {
    Matrix(faer::MatRef<'a, f32>),
    Copied(&'a Tensors),
}

struct Entry<'a> {
    name: String,
    dtype: String,
    bits: usize,
    shape: Vec<usize>,
    content: Content<'a>,
}

/// Writes `NAME.0.weight`, `NAME.1.weight` and `NAME.1.bias` for every layer, as `dalr compress` does (factors are `F32` here), and everything else
/// of the model that they are to replace. The file is in its place when it is whole, and not before.
pub fn write(path: &Path, model: Option<&Tensors>, layers: &[(&str, &LowRankLinear<f32>)]) -> Result<()> {
    let mut entries = Vec::new();
    for &(name, layer) in layers {
        let mut add = |part: &str, shape, matrix| {
            let (name, content) = (format!("{name}.{part}"), Content::Matrix(matrix));
            entries.push(Entry { name, dtype: "F32".into(), bits: 32, shape, content });
        };
        add("0.weight", vec![layer.rank(), layer.in_features()], layer.down());
        add("1.weight", vec![layer.out_features(), layer.rank()], layer.up());
        if let Some(bias) = layer.bias() {
            add("1.bias", vec![layer.out_features()], bias.as_mat());
        }
    }
    let replaced = |tensor: &str| {
        let name = tensor.strip_suffix(".weight").or(tensor.strip_suffix(".bias"));
        layers.iter().any(|(layer, _)| Some(*layer) == name)
    };
    if let Some(tensors) = model {
        for name in tensors.names().into_iter().filter(|name| !replaced(name)) {
            let Some(info) = tensors.info(&name) else { continue };
            let (dtype, bits, shape) = (format!("{:?}", info.dtype), info.dtype.bitsize(), info.shape.clone());
            entries.push(Entry { name, dtype, bits, shape, content: Content::Copied(tensors) });
        }
    }
    // Larger types first, so that each lies at a multiple of its size.
    entries.sort_by(|a, b| (Reverse(a.bits), &a.name).cmp(&(Reverse(b.bits), &b.name)));

    let mut partial = path.as_os_str().to_os_string();
    partial.push(".partial");
    let partial = Path::new(&partial);
    let fail = |error: io::Error| Failure::file(partial, error);
    let mut file = BufWriter::new(File::create(partial).map_err(fail)?);
    file.write_all(&header(&entries)).map_err(fail)?;
    for entry in &entries {
        match &entry.content {
            Content::Copied(tensors) => tensors.copy(&entry.name, &mut file)?,
            Content::Matrix(matrix) => matrix
                .row_iter()
                .flat_map(|row| row.iter())
                .try_for_each(|x| file.write_all(&x.to_le_bytes()))
                .map_err(fail)?,
        }
    }
    let file = file.into_inner().map_err(|error| fail(error.into_error()))?;
    file.sync_all().map_err(fail)?;
    fs::rename(partial, path).map_err(|error| Failure::file(path, error))
}

/// The length of the header and the header.
fn header(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut map = Map::new();
    let mut end = 0;
    for Entry { name, dtype, bits, shape, .. } in entries {
        let start = end;
        end += shape.iter().product::<usize>() * bits / 8;
        map.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}));
    }
    let mut text = Value::Object(map).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.append(&mut text);
    header
}
