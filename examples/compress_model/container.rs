//! Writing safetensors files as a stream: the header first, then the tensors one after the other, in pieces.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};

/// A tensor to be written.
pub struct Entry<C> {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Where its data come from: the caller's business.
    pub content: C,
}

/// Puts tensors into the order of the format's own writer: larger types first, so that each lies at a multiple of its
/// size, and by name.
pub fn sort<C>(entries: &mut [Entry<C>]) {
    entries.sort_by(|a, b| (Reverse(a.dtype.bitsize()), &a.name).cmp(&(Reverse(b.dtype.bitsize()), &b.name)));
}

/// The length and the header that come before the data of these tensors, in this order.
pub fn header<C>(metadata: &BTreeMap<String, String>, entries: &[Entry<C>]) -> Vec<u8> {
    let mut map = Map::new();
    if !metadata.is_empty() {
        map.insert("__metadata__".into(), json!(metadata));
    }
    let mut end = 0;
    for Entry { name, dtype, shape, .. } in entries {
        let start = end;
        end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
        map.insert(name.clone(), json!({"dtype": format!("{dtype:?}"), "shape": shape, "data_offsets": [start, end]}));
    }
    let mut text = Value::Object(map).to_string().into_bytes();
    while !text.len().is_multiple_of(8) {
        text.push(b' ');
    }
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.append(&mut text);
    header
}
