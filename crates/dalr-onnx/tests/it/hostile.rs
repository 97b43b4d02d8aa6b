//! Files that are damaged or made to do harm are errors, at once.

use std::time::Duration;

use dalr_onnx::{Error, Model};

use super::build::{self, Builder, Storage, Value, attribute, bytes, int, varint};

fn sound() -> Builder {
    let builder = Builder::new().input("x", &["4", "5"]).weight("w", &[5, 6]).bias("b", &[6]);
    builder.node("Gemm", "x w b", "y", &[]).output("y", &["4", "6"])
}

/// Time on the processor for one model. With optimisation, all models take less than a second.
const AT_ONCE: Duration = Duration::from_secs(4);

/// The time that this thread has run, where the system tells: a busy machine does not change it.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|nanoseconds| nanoseconds.parse().ok()).unwrap_or(0))
}

/// The message of the error, which comes at once.
#[track_caller]
fn refused(model: Vec<u8>) -> String {
    let start = processor_time();
    let error = Model::from_bytes(model, None).expect_err("the model is refused");
    assert!(processor_time() - start < AT_ONCE, "{:?}: {error}", processor_time() - start);
    error.to_string()
}

#[track_caller]
fn refused_with(model: Vec<u8>, expected: &str) {
    let message = refused(model);
    assert!(message.contains(expected), "expected `{expected}`, got `{message}`");
}

/// The sound model with further fields of its graph.
fn with(fields: &[Vec<u8>]) -> Vec<u8> {
    let mut builder = sound();
    builder.graph.extend(fields.concat());
    builder.build()
}

#[test]
fn truncated_and_garbled() {
    let good = sound().build();
    Model::from_bytes(good.clone(), None).unwrap();
    // The opset comes last, so every shorter file lacks it or ends inside of a field.
    for length in 0..good.len() {
        refused(good[..length].to_vec());
    }
    refused_with(b"this is no model at all, but a text".to_vec(), "not a valid ONNX model");
    refused_with(vec![0xff; 1000], "more than ten bytes");
    refused_with(vec![0; 1000], "no tag of a field");
    refused_with([good.clone(), vec![0x0b]].concat(), "the wire type 3");
    refused_with([good.clone(), bytes(7, "")].concat(), "field 7 occurs twice");
    refused_with([good.clone(), varint(99 << 3 | 2), varint(u64::MAX)].concat(), "exceeds the 0 that are left");
    refused_with(with(&[bytes(1, bytes(4, [0xff, 0xfe]))]), "not UTF-8");
    refused_with(with(&[bytes(1, int(4, 3))]), "field 4 has the wrong type");
    // Bits that are flipped anywhere give an error or a model that can be read.
    for at in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[at / 8] ^= 1 << (at % 8);
        if let Ok(model) = Model::from_bytes(bytes, None) {
            for layer in model.layers() {
                let _ = model.linear_layers::<f32>(&layer.name);
            }
        }
    }
}

#[test]
fn models_without_an_opset_or_with_an_old_one() {
    let graph = bytes(7, &sound().graph);
    refused_with([int(1, 8), graph.clone()].concat(), "does not state its opset");
    refused_with([int(1, 8), graph.clone(), bytes(8, int(2, 6))].concat(), "opset 6: convert it to opset 7");
    refused_with([int(1, 8), bytes(8, int(2, 13))].concat(), "there is no graph");
    let two = [bytes(8, int(2, 13)), bytes(8, [bytes(1, "ai.onnx"), int(2, 12)].concat())].concat();
    refused_with([int(1, 8), graph, two].concat(), "two versions");
    refused_with([sound().build(), bytes(20, "")].concat(), "training information");
}

#[test]
fn cycles_and_double_names() {
    let node = |inputs: &str, output: &str| bytes(1, build::node("Add", inputs, output, &[]));
    refused_with(with(&[node("y self", "self")]), "reads `self`, which nothing before it computes");
    refused_with(with(&[node("y two", "one"), node("y one", "two")]), "reads `two`, which nothing before");
    refused_with(with(&[node("y nowhere", "one")]), "reads `nowhere`");
    refused_with(with(&[node("y y", "y")]), "two nodes or inputs have the name `y`");
    refused_with(with(&[node("y y", "w")]), "two nodes or inputs have the name `w`");
    refused_with(with(&[bytes(5, build::tensor("w", &[1], &[1.0], Storage::F32))]), "two initializers");
    refused_with(with(&[bytes(11, build::value("x", 1, &[]))]), "two inputs have the name `x`");
    refused_with(with(&[bytes(12, bytes(1, "z"))]), "the graph's list of outputs reads `z`");
    // A long line of nodes is no cycle, and takes no time.
    let line: Vec<Vec<u8>> = (0..100_000).map(|at| node(&format!("y {}", chain(at)), &chain(at + 1))).collect();
    let start = processor_time();
    let model = Model::from_bytes(with(&line), None).unwrap();
    assert_eq!(model.layers().len(), 1);
    assert!(processor_time() - start < AT_ONCE, "{:?}", processor_time() - start);
    let mut broken = line;
    broken.push(node("y missing", "end"));
    refused_with(with(&broken), "reads `missing`");
}

fn chain(at: usize) -> String {
    if at == 0 { "y".into() } else { format!("c{at}") }
}

#[test]
fn absurd_sizes() {
    let huge = 1_i64 << 62;
    let tensor = |dims: &[i64], rest: Vec<u8>| {
        let dims: Vec<u8> = dims.iter().flat_map(|&dim| int(1, dim)).collect();
        bytes(5, [dims, int(2, 1), bytes(8, "t"), rest].concat())
    };
    let raw = |length: usize| bytes(9, vec![0; length]);
    refused_with(with(&[tensor(&[huge], vec![])]), "more entries than memory can hold");
    refused_with(with(&[tensor(&[huge, huge, 0], vec![])]), "more entries than memory can hold");
    refused_with(with(&[tensor(&[1 << 31, 1 << 31, 1 << 31], raw(4))]), "more entries than memory can hold");
    refused_with(with(&[tensor(&[-1], raw(4))]), "has the dimensions [-1]");
    refused_with(with(&[tensor(&[1 << 40], raw(4))]), "has 4 bytes of data");
    refused_with(with(&[tensor(&[3], raw(13))]), "has 13 bytes of data, and [3] takes 12");
    refused_with(with(&[tensor(&[3], vec![])]), "has 0 numbers");
    refused_with(with(&[tensor(&[1], [raw(4), bytes(4, [0; 4])].concat())]), "has its data twice");
    refused_with(with(&[tensor(&[1], bytes(10, [0; 8]))]), "has 1 numbers");
    refused_with(with(&[tensor(&[1; 1000], raw(4))]), "more than 64 numbers in field 1");
    refused_with(with(&[tensor(&[1], bytes(7, [0x80; 100]))]), "packed numbers are incomplete");
    for dims in [&["4611686018427387904"][..], &["4294967296", "4294967296"], &["2147483648"; 5]] {
        refused_with(with(&[bytes(11, build::value("v", 1, dims))]), "the value `v` has more entries than memory");
        refused_with(with(&[bytes(13, build::value("v", 1, dims))]), "the value `v` has more entries than memory");
    }
    refused_with(with(&[bytes(13, build::value("v", 1, &["1"; 100]))]), "more than 64 dimensions");
    let values = bytes(1, build::tensor("s", &[1], &[1.0], Storage::F32));
    let sparse = [values, int(3, huge), int(3, huge)].concat();
    refused_with(with(&[bytes(15, sparse)]), "a sparse tensor has the dimensions");
    // Many small parts.
    let many: Vec<u8> = bytes(1, [bytes(1, "x").repeat(2_500_000), bytes(4, "Sum")].concat());
    refused_with(with(&[many]), "parts");
    let many = attribute("many", &Value::Ints(&[])).into_iter().chain(bytes(8, vec![1; 2_500_000])).collect::<Vec<_>>();
    refused_with(with(&[bytes(1, [bytes(4, "Sum"), bytes(5, many)].concat())]), "more than 2097152 numbers");
    // A convolution whose numbers overflow when they are multiplied.
    let window = [("strides", Value::Ints(&[i64::MAX, i64::MAX])), ("dilations", Value::Ints(&[i64::MAX, 1 << 62]))];
    let builder = Builder::new().input("x", &["1", "1", "4", "4"]).weight("w", &[2, 1, 3, 3]);
    let model = builder.node("Conv", "x w", "y", &window).output("y", &[]).build();
    let model = Model::from_bytes(model, None).unwrap();
    let conv = model.conv2d::<f32>("Conv of y", (4, 4)).unwrap();
    assert!(conv.positions((4, 4)).is_err());
}

/// A message inside of a message inside of …, 100 000 deep.
fn nested(levels: &[(u64, Vec<u8>)]) -> Vec<u8> {
    // Written from the inside outwards, backwards, so that the work grows with the length only.
    let mut reversed: Vec<u8> = Vec::new();
    for _ in 0..100_000 {
        for (field, before) in levels {
            reversed.extend([varint(field << 3 | 2), varint(reversed.len() as u64)].concat().iter().rev());
            reversed.extend(before.iter().rev());
        }
    }
    reversed.reverse();
    reversed
}

#[test]
fn nesting_of_a_hundred_thousand_levels() {
    // Graph in attribute in node in graph.
    let graphs = nested(&[(6, bytes(1, "g")), (5, bytes(4, "If")), (1, Vec::new())]);
    refused_with(with(&[graphs]), "graphs within each other");
    let sequences = nested(&[(1, Vec::new()), (4, Vec::new())]);
    refused_with(with(&[bytes(13, [bytes(1, "v"), bytes(2, sequences)].concat())]), "types within each other");
    // Unknown fields are bytes, however deep they are.
    let unknown = nested(&[(9, Vec::new())]);
    Model::from_bytes(with(&[bytes(500, unknown)]), None).unwrap();
}

#[test]
fn functions() {
    let function = |name: &str, calls: &[&str]| {
        let node = |call: &&str| {
            bytes(7, [bytes(1, "a"), bytes(2, format!("result of {call}")), bytes(4, call), bytes(7, "f")].concat())
        };
        let nodes: Vec<u8> = calls.iter().flat_map(node).collect();
        bytes(25, [bytes(1, name), bytes(4, "a"), nodes, bytes(10, "f")].concat())
    };
    let model = |functions: &[Vec<u8>]| [sound().build(), functions.concat()].concat();
    Model::from_bytes(model(&[function("one", &["two"]), function("two", &["three"])]), None).unwrap();
    refused_with(model(&[function("one", &["two"]), function("two", &["one"])]), "call each other in a circle");
    refused_with(model(&[function("one", &["one"])]), "call each other in a circle");
    refused_with(model(&[function("one", &[]), function("one", &[])]), "two functions have the name `one`");
    let chain: Vec<Vec<u8>> = (0..100_000).map(|at| function(&format!("f{at}"), &[&format!("f{}", at + 1)])).collect();
    refused_with(model(&chain), "51 functions deep");
    // Each calls the next ten times: 10¹² nodes.
    let tens: Vec<Vec<u8>> = (0..12)
        .map(|at| {
            let call = |nth| {
                let callee = format!("t{}", at + 1);
                bytes(7, [bytes(1, "a"), bytes(2, format!("{nth}")), bytes(4, callee), bytes(7, "f")].concat())
            };
            let calls: Vec<u8> = (0..10).flat_map(call).collect();
            bytes(25, [bytes(1, format!("t{at}")), bytes(4, "a"), calls, bytes(10, "f")].concat())
        })
        .collect();
    refused_with(model(&tens), "functions have 10000000 nodes");
    // Few in the functions, and many in the graph.
    let wide = (0..1000)
        .map(|at| bytes(1, [bytes(1, "y"), bytes(2, format!("wide{at}")), bytes(4, "t7"), bytes(7, "f")].concat()));
    let thousands = [with(&wide.collect::<Vec<_>>()), tens[7..].concat()].concat();
    refused_with(thousands, "the graph has 100000001 nodes with those of its functions");
    let standard = bytes(25, [bytes(1, "MatMul"), bytes(4, "a")].concat());
    refused_with(model(&[standard]), "replaces ONNX's operator `MatMul`");
    let inner = bytes(7, build::node("MatMul", "a a", "b", &[]));
    let layers = bytes(25, [bytes(1, "block"), bytes(4, "a"), inner, bytes(10, "f")].concat());
    let listed = Model::from_bytes(model(&[layers]), None).unwrap().left_alone().to_vec();
    assert_eq!((listed.len(), listed[0].reason.as_str()), (1, "inside of the function `block`"));
}

#[test]
fn weights_that_are_not_finite() {
    let mut numbers = vec![1.0; 30];
    numbers[7] = f32::NAN;
    let builder = Builder::new().input("x", &["4", "5"]).tensor("w", &[5, 6], &numbers);
    let model = builder.node("MatMul", "x w", "y", &[]).output("y", &["4", "6"]).build();
    let model = Model::from_bytes(model, None).unwrap();
    let error = model.linear_layers::<f32>("MatMul of y").unwrap_err();
    assert!(matches!(&error, Error::Layer { message, .. } if message.contains("expected finite numbers")), "{error}");
}
