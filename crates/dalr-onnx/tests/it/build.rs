//! Writes small models in the wire format, without the code under test.

/// A field of a message: an integer, or the bytes of a text or message.
pub fn int(field: u64, number: i64) -> Vec<u8> {
    [varint(field << 3), varint(number as u64)].concat()
}

pub fn bytes(field: u64, content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    [varint(field << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
}

pub fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// How the numbers of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Storage {
    F32,
    /// In `float_data`, packed.
    Floats,
    /// In `float_data`, one field for each number.
    Unpacked,
    F64,
    Doubles,
    F16,
    /// In `int32_data`.
    HalfInts,
    Bf16,
}

pub const STORAGES: [Storage; 8] = [
    Storage::F32,
    Storage::Floats,
    Storage::Unpacked,
    Storage::F64,
    Storage::Doubles,
    Storage::F16,
    Storage::HalfInts,
    Storage::Bf16,
];

impl Storage {
    pub fn code(self) -> i64 {
        match self {
            Self::F32 | Self::Floats | Self::Unpacked => 1,
            Self::F64 | Self::Doubles => 11,
            Self::F16 | Self::HalfInts => 10,
            Self::Bf16 => 16,
        }
    }
}

/// A tensor's message.
pub fn tensor(name: &str, dims: &[usize], numbers: &[f32], storage: Storage) -> Vec<u8> {
    assert_eq!(dims.iter().product::<usize>(), numbers.len(), "{name}");
    let mut message: Vec<u8> = dims.iter().flat_map(|&dim| int(1, dim as i64)).collect();
    message.extend(int(2, storage.code()));
    let half = |x: &f32| half::f16::from_f32(*x);
    let floats = || numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let doubles = || numbers.iter().flat_map(|x| f64::from(*x).to_le_bytes()).collect::<Vec<u8>>();
    message.extend(match storage {
        Storage::F32 => bytes(9, floats()),
        Storage::Floats => bytes(4, floats()),
        Storage::Unpacked => {
            numbers.iter().flat_map(|x| [varint(4 << 3 | 5), x.to_le_bytes().into()].concat()).collect()
        }
        Storage::F64 => bytes(9, doubles()),
        Storage::Doubles => bytes(10, doubles()),
        Storage::F16 => bytes(9, numbers.iter().flat_map(|x| half(x).to_le_bytes()).collect::<Vec<u8>>()),
        Storage::HalfInts => {
            bytes(5, numbers.iter().flat_map(|x| varint(half(x).to_bits().into())).collect::<Vec<u8>>())
        }
        Storage::Bf16 => {
            bytes(9, numbers.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect::<Vec<u8>>())
        }
    });
    message.extend(bytes(8, name));
    message
}

/// An attribute of a node.
pub enum Value<'a> {
    Int(i64),
    Ints(&'a [i64]),
    Float(f32),
    Text(&'a str),
    Tensor(Vec<u8>),
    Graph(Vec<u8>),
}

pub fn attribute(name: &str, value: &Value<'_>) -> Vec<u8> {
    let (content, kind) = match value {
        Value::Float(number) => ([varint(2 << 3 | 5), number.to_le_bytes().into()].concat(), 1),
        Value::Int(number) => (int(3, *number), 2),
        Value::Text(text) => (bytes(4, text), 3),
        Value::Tensor(tensor) => (bytes(5, tensor), 4),
        Value::Graph(graph) => (bytes(6, graph), 5),
        Value::Ints(numbers) => (numbers.iter().flat_map(|&number| int(8, number)).collect(), 7),
    };
    [bytes(1, name), content, int(20, kind)].concat()
}

/// A node's message. Inputs and outputs are separated by spaces.
pub fn node(operator: &str, inputs: &str, outputs: &str, attributes: &[(&str, Value<'_>)]) -> Vec<u8> {
    let mut message = Vec::new();
    inputs.split_whitespace().for_each(|input| message.extend(bytes(1, input)));
    outputs.split_whitespace().for_each(|output| message.extend(bytes(2, output)));
    message.extend(bytes(3, format!("{operator} of {outputs}")));
    message.extend(bytes(4, operator));
    attributes.iter().for_each(|(name, value)| message.extend(bytes(5, attribute(name, value))));
    message
}

/// A value's name and type. A dimension is a number or a name.
pub fn value(name: &str, code: i64, dims: &[&str]) -> Vec<u8> {
    let dim = |dim: &&str| {
        let size = dim.parse().map_or_else(|_| bytes(2, dim), |size| int(1, size));
        bytes(1, size)
    };
    let shape: Vec<u8> = dims.iter().flat_map(dim).collect();
    let of_tensor = [int(1, code), bytes(2, shape)].concat();
    [bytes(1, name), bytes(2, bytes(1, of_tensor))].concat()
}

/// A model in pieces.
#[derive(Clone)]
pub struct Builder {
    pub opset: i64,
    pub ir_version: i64,
    pub storage: Storage,
    /// Fields of the graph.
    pub graph: Vec<u8>,
    /// Fields of the model after the graph.
    pub rest: Vec<u8>,
    count: usize,
}

impl Builder {
    pub fn new() -> Self {
        Self { opset: 13, ir_version: 8, storage: Storage::F32, graph: Vec::new(), rest: Vec::new(), count: 0 }
    }

    pub fn opset(mut self, opset: i64) -> Self {
        self.opset = opset;
        self
    }

    pub fn node(mut self, operator: &str, inputs: &str, outputs: &str, attributes: &[(&str, Value<'_>)]) -> Self {
        self.graph.extend(bytes(1, node(operator, inputs, outputs, attributes)));
        self
    }

    /// An initializer.
    pub fn tensor(mut self, name: &str, dims: &[usize], numbers: &[f32]) -> Self {
        self.graph.extend(bytes(5, tensor(name, dims, numbers, self.storage)));
        self
    }

    /// An initializer of rank 2 as a matrix of `dims[0]` or of all but the last dimension.
    pub fn weight(mut self, name: &str, dims: &[usize]) -> Self {
        let numbers = self.low_rank(dims);
        self.tensor(name, dims, &numbers)
    }

    /// An initializer of any numbers.
    pub fn bias(mut self, name: &str, dims: &[usize]) -> Self {
        self.count += 1;
        let numbers = numbers(dims.iter().product(), self.count);
        self.tensor(name, dims, &numbers)
    }

    pub fn low_rank(&mut self, dims: &[usize]) -> Vec<f32> {
        self.count += 1;
        let (rows, columns) = (dims[0], dims[1..].iter().product::<usize>());
        let (a, b) = (numbers(rows * 2, self.count), numbers(columns * 2, self.count + 50));
        let entry = |at: usize| {
            let (i, j) = (at / columns, at % columns);
            a[2 * i] * b[2 * j] + a[2 * i + 1] * b[2 * j + 1]
        };
        (0..rows * columns).map(entry).collect()
    }

    pub fn input(mut self, name: &str, dims: &[&str]) -> Self {
        self.graph.extend(bytes(11, value(name, self.storage.code(), dims)));
        self
    }

    pub fn output(mut self, name: &str, dims: &[&str]) -> Self {
        self.graph.extend(bytes(12, value(name, self.storage.code(), dims)));
        self
    }

    /// The type of a value in between.
    pub fn info(mut self, name: &str, dims: &[&str]) -> Self {
        self.graph.extend(bytes(13, value(name, self.storage.code(), dims)));
        self
    }

    pub fn build(&self) -> Vec<u8> {
        let opset = bytes(8, int(2, self.opset));
        let graph = bytes(7, [self.graph.clone(), bytes(2, "graph")].concat());
        [int(1, self.ir_version), bytes(2, "tests"), graph, opset, self.rest.clone()].concat()
    }
}

/// Numbers between -1 and 1 that look random and have few digits.
pub fn numbers(count: usize, seed: usize) -> Vec<f32> {
    let mut state = seed as u64 * 0x9e37_79b9 + 12345;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) % 257) as f32 / 128.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}
