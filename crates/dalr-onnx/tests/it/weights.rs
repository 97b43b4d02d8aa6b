//! Where weights are, who else reads them, and what stays of the model.

use dalr_onnx::{Dimension, ElementType, Model};

use super::build::{self, Builder, STORAGES, Storage, Value, bytes, int};
use super::forms::contains;
use super::run::Message;
use super::{Form, check, check_to, keep, replacement, same_outputs};

fn graph(bytes: &[u8]) -> Message {
    Message::new(bytes).messages(7).pop().unwrap()
}

fn initializers(bytes: &[u8]) -> Vec<String> {
    graph(bytes).messages(5).iter().map(|tensor| tensor.text(8)).collect()
}

#[test]
fn every_way_to_store_the_numbers() {
    for storage in STORAGES {
        let mut builder = Builder::new();
        builder.storage = storage;
        let builder = builder.input("x", &["4", "5"]).weight("w", &[5, 6]).bias("b", &[6]);
        let bytes = builder.node("Gemm", "x w b", "y", &[]).output("y", &["4", "6"]).build();
        // Factors are rounded to the element type of the weight, and so was the weight.
        let (tolerance, element) = match storage {
            Storage::F16 | Storage::HalfInts => (4e-3, ElementType::F16),
            Storage::Bf16 => (4e-2, ElementType::Bf16),
            Storage::F64 | Storage::Doubles => (1e-5, ElementType::F64),
            _ => (1e-5, ElementType::F32),
        };
        let compressed = check_to(&format!("storage_{storage:?}"), &bytes, tolerance);
        assert!(compressed.layers().iter().all(|layer| layer.element == element), "{storage:?}");
        assert_eq!(compressed.inputs()[0].element, Some(element));
    }
}

#[test]
fn numbers_that_the_element_type_cannot_hold() {
    let mut builder = Builder::new();
    builder.storage = Storage::F16;
    let bytes =
        builder.input("x", &["4", "5"]).weight("w", &[5, 6]).node("MatMul", "x w", "y", &[]).output("y", &["4", "6"]);
    let mut model = Model::from_bytes(bytes.build(), None).unwrap();
    let before = model.to_bytes().unwrap();
    let large = dalr::LowRankLinear::new(dalr::faer::Mat::full(1, 5, 1e5), dalr::faer::Mat::full(6, 1, 1.0), None);
    let message = model.replace("MatMul of y", &dalr_onnx::Replacement::Factors(vec![large.unwrap()])).unwrap_err();
    assert!(message.to_string().contains("100000 is out of the range of f16"), "{message}");
    assert_eq!(model.to_bytes().unwrap(), before);
}

/// Weights in `Constant` nodes, behind `Identity`, and transposed when the model runs.
#[test]
fn weights_in_nodes() {
    let mut builder = Builder::new().input("x", &["4", "5"]);
    let weight = builder.low_rank(&[6, 5]);
    let tensor = build::tensor("ignored", &[6, 5], &weight, Storage::F32);
    let constant = builder.clone().node("Constant", "", "k", &[("value", Value::Tensor(tensor))]);
    let initializer = builder.tensor("k", &[6, 5], &weight);
    for (name, builder) in [("constant", constant), ("initializer", initializer)] {
        let builder = builder.node("Identity", "k", "i", &[]);
        let order = [("perm", Value::Ints(&[1, 0]))];
        let builder = builder.node("Transpose", "i", "w", &order).node("MatMul", "x w", "y", &[]);
        let bytes = builder.output("y", &["4", "6"]).build();
        let compressed = check(&format!("weight_{name}"), &bytes).to_bytes().unwrap();
        for gone in ["Constant", "Identity", "Transpose"] {
            assert!(!contains(&compressed, gone.as_bytes()), "{name}: {gone} stays");
        }
        let [layer] = &Model::from_bytes(bytes, None).unwrap().layers().to_vec()[..] else { panic!("{name}") };
        assert!(!layer.weight_stays);
    }
}

#[test]
fn a_transposed_weight_on_the_left() {
    let order = [("perm", Value::Ints(&[1, 0]))];
    let builder = Builder::new().input("x", &["5", "4"]).weight("k", &[5, 6]).node("Transpose", "k", "w", &order);
    let bytes = builder.node("MatMul", "w x", "y", &[]).output("y", &["6", "4"]).build();
    check("transposed_left", &bytes);
}

#[test]
fn weights_of_several_layers() {
    let start = || Builder::new().input("x", &["4", "5"]).input("z", &["4", "5"]).weight("w", &[5, 6]).bias("b", &[6]);
    let builder = start().node("MatMul", "x w", "p", &[]).node("Add", "p b", "y", &[]).node("MatMul", "z w", "q", &[]);
    let original = builder.output("y", &["4", "6"]).output("q", &["4", "6"]).build();
    let both = check("shared", &original).to_bytes().unwrap();
    // Equal factors are stored once; the bias belongs to one layer.
    assert_eq!(initializers(&both).len(), 3, "{:?}", initializers(&both));
    let mut model = Model::from_bytes(original.clone(), None).unwrap();
    let names: Vec<String> = model.layers().iter().map(|layer| layer.name.clone()).collect();
    assert_eq!(names, ["MatMul of p", "MatMul of q"]);
    assert_eq!(model.layers()[0].shared_with, ["MatMul of q"]);
    assert!(!model.layers()[0].weight_stays);
    // One of two: the other keeps the weight.
    model.replace(&names[0], &replacement(&model, &names[0], Form::Factors, 2)).unwrap();
    let one = model.to_bytes().unwrap();
    assert!(initializers(&one).contains(&"w".into()));
    keep("shared_one", &one);
    same_outputs(&original, &one, 1e-5, "one of two");
    // A lookup reads the weight, too.
    let mut lookup = start().node("MatMul", "x w", "y", &[]).output("y", &["4", "6"]);
    let rows: Vec<u8> = [2_i64, 0].iter().flat_map(|row| row.to_le_bytes()).collect();
    let rows = [int(1, 2), int(2, 7), bytes(9, rows), bytes(8, "rows")].concat();
    lookup.graph.extend(bytes(5, rows));
    let lookup = lookup.node("Gather", "w rows", "e", &[]).output("e", &["2", "6"]).build();
    let compressed = check("shared_lookup", &lookup).to_bytes().unwrap();
    assert!(initializers(&compressed).contains(&"w".into()));
    let model = Model::from_bytes(lookup, None).unwrap();
    assert!(model.layers()[0].weight_stays);
    assert_eq!(model.left_alone()[0].operator, "Gather");
}

/// A subgraph reads the weight, the product and the bias by name.
#[test]
fn subgraphs_stay_and_count_as_readers() {
    let body = |reads: &str| {
        let inner = build::node("MatMul", &format!("x {reads}"), "inner", &[]);
        [bytes(1, inner), bytes(2, "body"), bytes(12, bytes(1, "inner"))].concat()
    };
    for (reads, stays, has_bias) in [("w", true, true), ("v", false, true), ("p", false, false)] {
        let builder = Builder::new().input("x", &["4", "5"]).weight("w", &[5, 6]).weight("v", &[5, 6]).bias("b", &[6]);
        let builder = builder.node("MatMul", "x w", "p", &[]).node("Add", "p b", "y", &[]);
        let mut builder = builder.output("y", &["4", "6"]).output("z", &[]);
        let condition = [int(2, 9), bytes(9, [1]), bytes(8, "condition")].concat();
        builder.graph.extend(bytes(5, condition));
        let branches = || [("then_branch", Value::Graph(body(reads))), ("else_branch", Value::Graph(body(reads)))];
        let model = builder.node("If", "condition", "z", &branches()).build();
        let mut model = Model::from_bytes(model, None).unwrap();
        let layer = model.layers()[0].clone();
        assert_eq!((model.layers().len(), layer.weight_stays, layer.has_bias), (1, stays, has_bias), "{reads}");
        let listed: Vec<&str> = model.left_alone().iter().map(|node| node.reason.as_str()).collect();
        let inside = "inside of the subgraph of `If of z` (If)";
        assert_eq!(listed, [inside, inside], "{reads}");
        let branch = bytes(5, build::attribute("then_branch", &Value::Graph(body(reads))));
        model.replace(&layer.name, &replacement(&model, &layer.name, Form::Factors, 2)).unwrap();
        let result = model.to_bytes().unwrap();
        assert!(contains(&result, &branch), "{reads}");
        assert_eq!(initializers(&result).contains(&"w".into()), stays, "{reads}");
        Model::from_bytes(result, None).unwrap();
    }
}

/// Annotations of quantised models mention values by name, and so do sparse tensors.
#[test]
fn annotations_and_sparse_tensors() {
    let builder = Builder::new().input("x", &["4", "5"]).weight("w", &[5, 6]).bias("b", &[6]);
    let mut builder = builder.node("MatMul", "x w", "p", &[]);
    let scale = [bytes(1, "SCALE_TENSOR"), bytes(2, "w")].concat();
    builder.graph.extend(bytes(14, [bytes(1, "p"), bytes(2, scale)].concat()));
    let sparse = [bytes(1, build::tensor("b2", &[0], &[], Storage::F32)), int(3, 6)].concat();
    builder.graph.extend(bytes(15, sparse));
    let builder = builder.node("Add", "p b", "y", &[]).node("Add", "y b2", "z", &[]).output("z", &[]);
    let mut model = Model::from_bytes(builder.build(), None).unwrap();
    let layer = model.layers()[0].clone();
    assert_eq!((layer.has_bias, layer.weight_stays), (false, true));
    model.replace(&layer.name, &replacement(&model, &layer.name, Form::Factors, 2)).unwrap();
    assert!(initializers(&model.to_bytes().unwrap()).contains(&"w".into()));
}

#[test]
fn loops_stay() {
    let body = [
        [11, 11, 11].iter().zip(["i", "go", "state"]).flat_map(|(&field, name)| bytes(field, bytes(1, name))).collect(),
        bytes(1, build::node("Identity", "go", "go_on", &[])),
        bytes(1, build::node("MatMul", "state w", "next", &[])),
        bytes(12, bytes(1, "go_on")),
        bytes(12, bytes(1, "next")),
    ];
    let builder = Builder::new().input("x", &["4", "5"]).weight("w", &[5, 5]).node("MatMul", "x w", "y", &[]);
    let mut builder = builder.output("z", &[]);
    for (name, code, raw) in [("count", 7, 3_i64.to_le_bytes().to_vec()), ("go_in", 9, vec![1])] {
        builder.graph.extend(bytes(5, [int(2, code), bytes(9, raw), bytes(8, name)].concat()));
    }
    let body = body.concat();
    let model = builder.node("Loop", "count go_in y", "z", &[("body", Value::Graph(body.clone()))]).build();
    let mut model = Model::from_bytes(model, None).unwrap();
    let listed: Vec<_> = model.left_alone().iter().map(|node| (node.operator.as_str(), node.reason.as_str())).collect();
    assert_eq!(listed, [("MatMul", "inside of the subgraph of `Loop of z` (Loop)")]);
    assert!(model.layers()[0].weight_stays);
    model.replace("MatMul of y", &replacement(&model, "MatMul of y", Form::Factors, 2)).unwrap();
    let result = model.to_bytes().unwrap();
    assert!(contains(&result, &body) && initializers(&result).contains(&"w".into()));
}

/// Before version 4 of the format, initializers are inputs of the graph, too.
#[test]
fn initializers_that_are_inputs() {
    let mut builder = Builder::new().opset(8);
    builder.ir_version = 3;
    let builder = builder.input("w", &["5", "6"]).input("x", &["4", "5"]).input("b", &["6"]).weight("w", &[5, 6]);
    let bytes = builder.bias("b", &[6]).node("Gemm", "x w b", "y", &[]).output("y", &["4", "6"]).build();
    let model = Model::from_bytes(bytes.clone(), None).unwrap();
    assert_eq!(model.inputs().len(), 1);
    let compressed = check("inputs", &bytes);
    assert_eq!(compressed.inputs(), model.inputs());
    let result = compressed.to_bytes().unwrap();
    let mut inputs: Vec<String> = graph(&result).messages(11).iter().map(|input| input.text(1)).collect();
    assert_eq!(inputs.remove(0), "x");
    assert_eq!(inputs, initializers(&result));
}

/// Unknown fields, metadata, other domains and the order of fields stay to the byte.
#[test]
fn what_is_not_replaced_stays_to_the_byte() {
    let unknown = bytes(777, "a field of the future");
    let float = [build::varint(778 << 3 | 5), vec![1, 2, 3, 4]].concat();
    let custom = [build::node("Mystery", "y", "m", &[]), bytes(7, "example.org"), unknown.clone()].concat();
    let mut builder = Builder::new().input("x", &["4", "5"]).weight("w", &[5, 6]);
    let described = [
        build::node("MatMul", "x w", "y", &[]),
        bytes(6, "a description"),
        bytes(9, [bytes(1, "k"), bytes(2, "v")].concat()),
    ];
    builder.graph.extend(bytes(1, described.concat()));
    builder.graph.extend(bytes(1, custom.clone()));
    builder.graph.extend([unknown.clone(), float.clone()].concat());
    let tensor = [build::tensor("other", &[2], &[1.0, 2.0], Storage::F32), bytes(12, "text"), unknown.clone()].concat();
    builder.graph.extend(bytes(5, tensor.clone()));
    let mut builder = builder.output("m", &["4", "6"]);
    let metadata = bytes(14, [bytes(1, "author"), bytes(2, "somebody")].concat());
    let domain = bytes(8, [bytes(1, "example.org"), int(2, 3)].concat());
    builder.rest = [metadata, domain, unknown.clone(), float.clone()].concat();
    let original = builder.build();
    let mut model = Model::from_bytes(original.clone(), None).unwrap();
    assert_eq!(model.to_bytes().unwrap(), original);
    model.replace("MatMul of y", &replacement(&model, "MatMul of y", Form::Factors, 2)).unwrap();
    let changed = model.to_bytes().unwrap();
    assert!(changed.ends_with(&builder.rest));
    for part in [bytes(1, custom), [unknown, float].concat(), bytes(5, tensor), bytes(6, "a description")] {
        assert!(contains(&changed, &part), "{part:?}");
    }
    assert!(changed.starts_with(&[int(1, 8), bytes(2, "tests")].concat()));
    Model::from_bytes(changed, None).unwrap();
}

/// New names differ from all others, in subgraphs, too; nodes may have no names, or the same.
#[test]
fn names() {
    let nameless = |operator: &str, inputs: [&str; 2], output: &str, name: &str| {
        let inputs = inputs.map(|input| bytes(1, input)).concat();
        let name = if name.is_empty() { Vec::new() } else { bytes(3, name) };
        bytes(1, [inputs, bytes(2, output), name, bytes(4, operator)].concat())
    };
    let builder =
        || Builder::new().input("x", &["4", "5"]).weight("w", &[5, 5]).weight("v", &[5, 5]).weight("u", &[5, 5]);
    for [first, second, third] in [["", "", ""], ["same", "same", "same"], ["one", "", "a"], ["b", "a", "y"]] {
        let mut builder = builder();
        builder.graph.extend(nameless("MatMul", ["x", "w"], "a", first));
        builder.graph.extend(nameless("MatMul", ["a", "v"], "b", second));
        builder.graph.extend(nameless("MatMul", ["b", "u"], "y", third));
        // Names that new nodes and values would have.
        let builder = builder.node("Relu", "x", "a/latent", &[]).node("Relu", "x", "a/down/weight", &[]);
        let builder = builder.node("Relu", "x", "one/up", &[]).node("Relu", "x", "one/up_1", &[]);
        let bytes = builder.output("y", &["4", "5"]).output("a/latent", &["4", "5"]).build();
        check(&format!("names_{first}_{second}_{third}"), &bytes);
        let model = Model::from_bytes(bytes, None).unwrap();
        let mut names: Vec<&str> = model.layers().iter().map(|layer| layer.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 3, "{names:?}");
    }
}

/// Operators are those of the model's own opset.
#[test]
fn pivoted_storage_before_opset_11() {
    let builder = |opset| Builder::new().opset(opset).input("x", &["2", "4", "5"]).weight("w", &[5, 6]);
    for opset in [7, 10, 11] {
        let known = builder(opset).node("MatMul", "x w", "y", &[]).output("y", &["2", "4", "6"]).build();
        check(&format!("pivoted_{opset}"), &known);
        let mut unknown = builder(opset).node("Tile", "x", "t", &[]).node("MatMul", "t w", "y", &[]);
        unknown.graph.extend(bytes(12, bytes(1, "y")));
        let mut model = Model::from_bytes(unknown.build(), None).unwrap();
        let layer = model.layers()[0].clone();
        assert_eq!(layer.can_be_pivoted, opset >= 11);
        let replaced = model.replace(&layer.name, &replacement(&model, &layer.name, Form::Pivoted, 2));
        assert_eq!(replaced.is_ok(), opset >= 11, "{replaced:?}");
    }
}

/// At full rank, no other outputs are left.
#[test]
fn pivoted_storage_of_full_rank() {
    let builder = Builder::new().input("x", &["4", "5"]).bias("w", &[5, 3]).bias("b", &[3]);
    let bytes = builder.node("Gemm", "x w b", "y", &[]).output("y", &["4", "3"]).build();
    let mut model = Model::from_bytes(bytes.clone(), None).unwrap();
    model.replace("Gemm of y", &replacement(&model, "Gemm of y", Form::Pivoted, 3)).unwrap();
    same_outputs(&bytes, &model.to_bytes().unwrap(), 1e-5, "full rank");
}

#[test]
fn inputs_and_outputs() {
    let builder = Builder::new().input("x", &["batch", "5"]).input("z", &["3", "5"]).weight("w", &[5, 6]);
    let mut builder = builder.node("MatMul", "x w", "y", &[]).node("MatMul", "z w", "v", &[]);
    // An input whose type is not stated, and one with -1 and ? for dimensions that are not known.
    builder.graph.extend(bytes(11, bytes(1, "untyped")));
    builder.graph.extend(bytes(11, build::value("negative", 7, &["-1", "?"])));
    let bytes = builder.output("y", &["batch", "6"]).output("v", &["3", "6"]).build();
    let model = Model::from_bytes(bytes, None).unwrap();
    let names: Vec<&str> = model.inputs().iter().map(|input| input.name.as_str()).collect();
    assert_eq!(names, ["x", "z", "untyped", "negative"]);
    let shape = |at: usize| model.inputs()[at].shape.clone();
    assert_eq!(shape(0), Some(vec![Dimension::Named("batch".into()), Dimension::Fixed(5)]));
    assert_eq!((shape(2), shape(3)), (None, Some(vec![Dimension::Unknown; 2])));
    assert_eq!(model.inputs()[3].element, Some(ElementType::I64));
    assert_eq!(model.outputs()[1].name, "v");
}

#[test]
fn replacements_that_do_not_fit() {
    let builder = Builder::new().input("x", &["1", "4", "6"]).weight("w", &[6, 2, 3]);
    let builder = builder.node("Conv", "x w", "y", &[("group", Value::Int(2))]).output("y", &["1", "6", "4"]);
    let mut model = Model::from_bytes(builder.build(), None).unwrap();
    let before = model.to_bytes().unwrap();
    let factors = |m, n, k| {
        let (down, up) = (dalr::faer::Mat::<f32>::zeros(k, n), dalr::faer::Mat::zeros(m, k));
        dalr::LowRankLinear::new(down, up, None).unwrap()
    };
    for (groups, expected) in [
        (vec![factors(3, 6, 1)], "expected 2 layers, one per group, got 1"),
        (vec![factors(3, 6, 1), factors(3, 5, 1)], "expected factors of an 3 × 6 weight, got 3 × 5"),
        (vec![factors(3, 6, 1), factors(3, 6, 2)], "expected groups of the same rank"),
    ] {
        let message = model.replace("Conv of y", &dalr_onnx::Replacement::Factors(groups)).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        assert_eq!(model.to_bytes().unwrap(), before);
    }
    let good = dalr_onnx::Replacement::Factors(vec![factors(3, 6, 1), factors(3, 6, 1)]);
    assert!(model.replace("another", &good).unwrap_err().to_string().contains("there is no layer of this name"));
    model.replace("Conv of y", &good).unwrap();
    assert!(model.replace("Conv of y", &good).unwrap_err().to_string().contains("replaced already"));
}
