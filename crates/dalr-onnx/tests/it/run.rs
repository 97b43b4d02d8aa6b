//! Runs small models in `f64`, without the code under test.

use std::collections::HashMap;

#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub dims: Vec<usize>,
    pub data: Vec<f64>,
}

impl Array {
    pub fn new(dims: &[usize], data: impl IntoIterator<Item = f32>) -> Self {
        let array = Self { dims: dims.into(), data: data.into_iter().map(f64::from).collect() };
        assert_eq!(array.data.len(), dims.iter().product::<usize>());
        array
    }

    /// The entry at this place of a shape to which the array is broadcast.
    fn at(&self, place: &[usize]) -> f64 {
        let place = &place[place.len() - self.dims.len()..];
        let index = place.iter().zip(&self.dims).fold(0, |index, (&i, &dim)| index * dim + i.min(dim - 1));
        self.data[index]
    }
}

enum Value {
    Number(u64),
    Bytes(Vec<u8>),
}

/// The fields of a message.
pub struct Message(Vec<(u64, Value)>);

impl Message {
    pub fn new(mut bytes: &[u8]) -> Self {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let tag = varint(&mut bytes);
            let value = match tag & 7 {
                0 => Value::Number(varint(&mut bytes)),
                5 => Value::Bytes(bytes.split_off(..4).unwrap().into()),
                1 => Value::Bytes(bytes.split_off(..8).unwrap().into()),
                2 => {
                    let length = varint(&mut bytes) as usize;
                    Value::Bytes(bytes.split_off(..length).unwrap().into())
                }
                kind => panic!("wire type {kind}"),
            };
            fields.push((tag >> 3, value));
        }
        Self(fields)
    }

    pub fn all(&self, field: u64) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter_map(move |(number, value)| match value {
            Value::Bytes(bytes) if *number == field => Some(bytes.as_slice()),
            _ => None,
        })
    }

    pub fn messages(&self, field: u64) -> Vec<Message> {
        self.all(field).map(Message::new).collect()
    }

    pub fn texts(&self, field: u64) -> Vec<String> {
        self.all(field).map(|bytes| String::from_utf8(bytes.into()).unwrap()).collect()
    }

    pub fn text(&self, field: u64) -> String {
        self.texts(field).pop().unwrap_or_default()
    }

    pub fn ints(&self, field: u64) -> Vec<i64> {
        let mut numbers = Vec::new();
        for (number, value) in &self.0 {
            match value {
                Value::Number(value) if *number == field => numbers.push(*value as i64),
                Value::Bytes(bytes) if *number == field => {
                    let mut bytes = bytes.as_slice();
                    while !bytes.is_empty() {
                        numbers.push(varint(&mut bytes) as i64);
                    }
                }
                _ => {}
            }
        }
        numbers
    }

    fn float(&self, field: u64) -> Option<f64> {
        self.all(field).last().map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()).into())
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let (mut number, mut shift) = (0, 0);
    loop {
        let byte = *bytes.split_off_first().unwrap();
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return number;
        }
        shift += 7;
    }
}

pub fn tensor(message: &Message) -> (String, Array) {
    let dims: Vec<usize> = message.ints(1).into_iter().map(|dim| dim as usize).collect();
    let raw: Vec<u8> = message.all(9).flatten().copied().collect();
    let halves: Vec<u8> = message.ints(5).into_iter().flat_map(|bits| (bits as u16).to_le_bytes()).collect();
    let data = match message.ints(2)[0] {
        1 => words(&[raw, message.all(4).flatten().copied().collect()].concat(), f32::from_le_bytes),
        11 => words(&[raw, message.all(10).flatten().copied().collect()].concat(), f64::from_le_bytes),
        10 => words(&[raw, halves].concat(), half::f16::from_le_bytes),
        16 => words(&[raw, halves].concat(), half::bf16::from_le_bytes),
        7 => {
            let raw = words(&raw, |bytes| i64::from_le_bytes(bytes) as f32);
            if raw.is_empty() { message.ints(7).into_iter().map(|x| x as f64).collect() } else { raw }
        }
        code => panic!("element type {code}"),
    };
    assert_eq!(data.len(), dims.iter().product::<usize>(), "{}", message.text(8));
    (message.text(8), Array { dims, data })
}

fn words<const N: usize, V: Into<f64>>(bytes: &[u8], read: impl Fn([u8; N]) -> V) -> Vec<f64> {
    bytes.chunks_exact(N).map(|chunk| read(chunk.try_into().unwrap()).into()).collect()
}

/// Computes the outputs of a model.
pub fn run(model: &[u8], inputs: &HashMap<String, Array>) -> Vec<(String, Array)> {
    let model = Message::new(model);
    let graph = model.messages(7).pop().unwrap();
    let mut values = inputs.clone();
    values.extend(graph.messages(5).iter().map(tensor));
    for node in graph.messages(1) {
        let inputs: Vec<Option<&Array>> = node.texts(1).iter().map(|name| values.get(name)).collect();
        let result = operator(&node, &inputs);
        values.insert(node.texts(2)[0].clone(), result);
    }
    let outputs = graph.messages(12).into_iter().map(|output| output.text(1));
    outputs.map(|name| (name.clone(), values[&name].clone())).collect()
}

fn operator(node: &Message, inputs: &[Option<&Array>]) -> Array {
    let attributes = node.messages(5);
    let attribute = |name: &str| attributes.iter().find(|attribute| attribute.text(1) == name);
    let int = |name: &str, default: i64| attribute(name).map_or(default, |a| a.ints(3)[0]);
    let ints = |name: &str| attribute(name).map(|a| a.ints(8));
    let float = |name: &str, default: f64| attribute(name).and_then(|a| a.float(2)).unwrap_or(default);
    let x = || inputs[0].unwrap();
    let map = |f: fn(f64) -> f64| Array { dims: x().dims.clone(), data: x().data.iter().map(|&x| f(x)).collect() };
    match node.text(4).as_str() {
        "Constant" => tensor(&attribute("value").unwrap().messages(5)[0]).1,
        "Identity" => x().clone(),
        "Transpose" => transpose(x()),
        "Relu" => map(|x| x.max(0.0)),
        "Tanh" => map(f64::tanh),
        "Sigmoid" => map(|x| 1.0 / (1.0 + (-x).exp())),
        "Add" => broadcast(x(), inputs[1].unwrap(), |a, b| a + b),
        "Mul" => broadcast(x(), inputs[1].unwrap(), |a, b| a * b),
        "MatMul" => product(x(), inputs[1].unwrap()),
        "Gemm" => {
            let side = |at: usize, name| {
                let matrix = inputs[at].unwrap();
                if int(name, 0) == 1 { transpose(matrix) } else { matrix.clone() }
            };
            let mut result = product(&side(0, "transA"), &side(1, "transB"));
            result.data.iter_mut().for_each(|x| *x *= float("alpha", 1.0));
            match inputs.get(2).copied().flatten() {
                None => result,
                Some(c) => {
                    let dims = result.dims.clone();
                    let beta = float("beta", 1.0);
                    let sum = broadcast(&result, c, |a, b| a + beta * b);
                    assert_eq!(sum.dims, dims, "the C of Gemm is broadcast in one direction");
                    sum
                }
            }
        }
        "Conv" => {
            let text = attribute("auto_pad").map_or("NOTSET".into(), |a| a.text(4));
            let window = [ints("strides"), ints("dilations"), ints("pads")];
            convolution(x(), inputs[1].unwrap(), inputs.get(2).copied().flatten(), window, &text, int("group", 1))
        }
        "BatchNormalization" => {
            let mut result = x().clone();
            let inner: usize = x().dims[2..].iter().product();
            for (at, entry) in result.data.iter_mut().enumerate() {
                let [scale, shift, mean, variance] =
                    [1, 2, 3, 4].map(|input| inputs[input].unwrap().data[at / inner % x().dims[1]]);
                *entry = scale * (*entry - mean) / (variance + float("epsilon", 1e-5)).sqrt() + shift;
            }
            result
        }
        "Concat" => {
            let axis = axis(int("axis", 0), x());
            let inner = |array: &Array| array.dims[axis..].iter().product::<usize>();
            let outer: usize = x().dims[..axis].iter().product();
            let arrays: Vec<&Array> = inputs.iter().map(|array| array.unwrap()).collect();
            let mut dims = x().dims.clone();
            dims[axis] = arrays.iter().map(|array| array.dims[axis]).sum();
            let rows = (0..outer).flat_map(|at| {
                arrays.iter().flat_map(move |array| &array.data[at * inner(array)..(at + 1) * inner(array)])
            });
            Array { dims, data: rows.copied().collect() }
        }
        "Gather" => {
            let axis = axis(int("axis", 0), x());
            let order = inputs[1].unwrap();
            let inner: usize = x().dims[axis + 1..].iter().product();
            let outer: usize = x().dims[..axis].iter().product();
            let mut dims = x().dims.clone();
            dims[axis] = order.data.len();
            let data = (0..outer).flat_map(|at| {
                order.data.iter().flat_map(move |&index| {
                    let start = (at * x().dims[axis] + index as usize) * inner;
                    x().data[start..start + inner].iter().copied()
                })
            });
            Array { dims, data: data.collect() }
        }
        other => panic!("operator {other}"),
    }
}

fn axis(axis: i64, array: &Array) -> usize {
    if axis < 0 { array.dims.len() - axis.unsigned_abs() as usize } else { axis as usize }
}

fn transpose(matrix: &Array) -> Array {
    let (rows, columns) = (matrix.dims[0], matrix.dims[1]);
    let data = (0..rows * columns).map(|at| matrix.data[at % rows * columns + at / rows]);
    Array { dims: vec![columns, rows], data: data.collect() }
}

fn places(dims: &[usize]) -> impl Iterator<Item = Vec<usize>> {
    let dims = dims.to_vec();
    (0..dims.iter().product::<usize>()).map(move |mut at| {
        let mut place = vec![0; dims.len()];
        for (index, &dim) in place.iter_mut().zip(&dims).rev() {
            (*index, at) = (at % dim, at / dim);
        }
        place
    })
}

fn broadcast(a: &Array, b: &Array, f: impl Fn(f64, f64) -> f64) -> Array {
    let rank = a.dims.len().max(b.dims.len());
    let dim =
        |array: &Array, axis: usize| (axis + array.dims.len()).checked_sub(rank).map_or(1, |axis| array.dims[axis]);
    let dims: Vec<usize> = (0..rank).map(|axis| dim(a, axis).max(dim(b, axis))).collect();
    let data = places(&dims).map(|place| f(a.at(&place), b.at(&place))).collect();
    Array { dims, data }
}

/// `MatMul` of arrays of which one has at most two dimensions.
fn product(a: &Array, b: &Array) -> Array {
    let (left, right) = (a.dims.len(), b.dims.len());
    let inner = a.dims[left - 1];
    let (m, n) = (if left > 1 { a.dims[left - 2] } else { 1 }, if right > 1 { b.dims[right - 1] } else { 1 });
    assert_eq!(inner, b.dims[right.saturating_sub(2)]);
    let batch: Vec<usize> = if left > 2 { a.dims[..left - 2].into() } else { b.dims[..right.saturating_sub(2)].into() };
    let count: usize = batch.iter().product();
    let mut data = Vec::new();
    for at in 0..count {
        let (a_start, b_start) =
            (if left > 2 { at * m * inner } else { 0 }, if right > 2 { at * inner * n } else { 0 });
        for i in 0..m {
            for j in 0..n {
                data.push((0..inner).map(|k| a.data[a_start + i * inner + k] * b.data[b_start + k * n + j]).sum());
            }
        }
    }
    let mut dims = batch;
    dims.extend((left > 1).then_some(m));
    dims.extend((right > 1).then_some(n));
    Array { dims, data }
}

/// A convolution in one or two dimensions.
fn convolution(
    x: &Array,
    weight: &Array,
    bias: Option<&Array>,
    [strides, dilations, pads]: [Option<Vec<i64>>; 3],
    automatic: &str,
    groups: i64,
) -> Array {
    let dimensions = x.dims.len() - 2;
    let (size, kernel) = (&x.dims[2..], &weight.dims[2..]);
    let pair = |numbers: Option<Vec<i64>>| numbers.unwrap_or(vec![1; dimensions]);
    let (strides, dilations) = (pair(strides), pair(dilations));
    let mut begin = vec![0; dimensions];
    let mut out = Vec::new();
    for axis in 0..dimensions {
        let (size, stride) = (size[axis] as i64, strides[axis]);
        let extent = (kernel[axis] as i64 - 1) * dilations[axis] + 1;
        let total = match automatic {
            "NOTSET" => {
                let pads = pads.clone().unwrap_or(vec![0; 2 * dimensions]);
                begin[axis] = pads[axis];
                pads[axis] + pads[axis + dimensions]
            }
            "VALID" => 0,
            _ => {
                let total = (((size + stride - 1) / stride - 1) * stride + extent - size).max(0);
                begin[axis] = if automatic == "SAME_UPPER" { total / 2 } else { total - total / 2 };
                total
            }
        };
        out.push(((size + total - extent) / stride + 1) as usize);
    }
    let (outputs, channels) = (weight.dims[0], weight.dims[1]);
    let dims = [&[x.dims[0], outputs], &out[..]].concat();
    let data = places(&dims).map(|place| {
        let (image, output) = (place[0], place[1]);
        let first = output / (outputs / groups as usize) * channels;
        let mut sum = bias.map_or(0.0, |bias| bias.data[output]);
        for tap in places(&weight.dims[1..]) {
            let position: Option<Vec<usize>> = (0..dimensions)
                .map(|axis| {
                    let at =
                        place[2 + axis] as i64 * strides[axis] + tap[1 + axis] as i64 * dilations[axis] - begin[axis];
                    usize::try_from(at).ok().filter(|&at| at < size[axis])
                })
                .collect();
            if let Some(position) = position {
                let source = [&[image, first + tap[0]], &position[..]].concat();
                sum += weight.at(&[&[output], &tap[..]].concat()) * x.at(&source);
            }
        }
        sum
    });
    let data = data.collect();
    Array { dims, data }
}
