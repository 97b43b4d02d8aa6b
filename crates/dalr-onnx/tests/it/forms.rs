//! The operators that are layers, with all their flags.

use dalr_onnx::{Axis, LayerKind, Model};

use super::build::{Builder, Value};
use super::check;

fn layer(bytes: Vec<u8>) -> dalr_onnx::Layer {
    Model::from_bytes(bytes, None).unwrap().layers()[0].clone()
}

/// The reason why the only node that could be a layer is none.
#[track_caller]
fn reason(builder: &Builder) -> String {
    let model = Model::from_bytes(builder.build(), None).unwrap();
    assert!(model.layers().is_empty(), "{:?}", model.layers());
    assert_eq!(model.left_alone().len(), 1, "{:?}", model.left_alone());
    model.left_alone()[0].reason.clone()
}

#[test]
fn products_with_the_weight_on_the_right() {
    let start = || Builder::new().input("x", &["batch", "4", "5"]).weight("w", &[5, 6]).bias("b", &[6]);
    let plain = start().node("MatMul", "x w", "y", &[]).output("y", &["batch", "4", "6"]).build();
    check("matmul", &plain);
    let plain = layer(plain);
    let kind = LayerKind::Linear { input_axis: Axis::Last, output_axis: Axis::Last };
    assert_eq!((plain.inputs, plain.outputs, plain.has_bias, &plain.kind), (5, 6, false, &kind));
    assert_eq!((plain.input.as_str(), plain.output.as_str()), ("x", "y"));
    assert_eq!((plain.cost(12).parameters, plain.cost(12).multiply_adds), (30, 360));
    for (name, operands) in [("right", "p b"), ("left", "b p")] {
        let with_bias = start().node("MatMul", "x w", "p", &[]).node("Add", operands, "y", &[]);
        let with_bias = with_bias.info("p", &["batch", "4", "6"]).output("y", &["batch", "4", "6"]).build();
        let compressed = check(&format!("matmul_add_{name}"), &with_bias);
        // The product of the original weight is gone, and its type with it.
        assert!(!contains(&compressed.to_bytes().unwrap(), b"\x0a\x01p"));
        let with_bias = layer(with_bias);
        assert_eq!((with_bias.output.as_str(), with_bias.has_bias, with_bias.cost(1).parameters), ("y", true, 36));
    }
}

pub fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// A product stays as it is if something else reads it, and an addend that is no bias stays too.
#[test]
fn products_whose_sum_is_no_bias() {
    let start = || Builder::new().input("x", &["2", "4", "5"]).weight("w", &[5, 6]).node("MatMul", "x w", "p", &[]);
    let sum = |builder: Builder| builder.node("Add", "p b", "y", &[]).output("y", &["2", "4", "6"]);
    let cases = [
        ("two_readers", sum(start().bias("b", &[6])).node("Relu", "p", "z", &[]).output("z", &["2", "4", "6"])),
        ("output", sum(start().bias("b", &[6])).output("p", &["2", "4", "6"])),
        ("positions", sum(start().bias("b", &[4, 6]))),
        ("four_dimensions", sum(start().bias("b", &[1, 1, 1, 6])).output("y", &["1", "2", "4", "6"])),
        ("not_constant", sum(start().input("b", &["6"]))),
    ];
    for (name, builder) in cases {
        let bytes = builder.build();
        let layer = layer(bytes.clone());
        assert_eq!((layer.output.as_str(), layer.has_bias), ("p", false), "{name}");
        if name != "four_dimensions" {
            check(&format!("matmul_{name}"), &bytes);
        }
    }
    // As many samples as outputs: one number for each sample is no bias.
    let square = Builder::new().input("x", &["6", "5"]).weight("w", &[5, 6]).bias("b", &[6, 1]);
    let square = square.node("MatMul", "x w", "p", &[]).node("Add", "p b", "y", &[]).output("y", &["6", "6"]).build();
    check("matmul_square", &square);
    assert!(!layer(square).has_bias);
    for (name, dims) in [("one", &[1][..]), ("scalar", &[]), ("three_dimensions", &[1, 1, 6])] {
        let bytes = sum(start().bias("b", dims)).build();
        check(&format!("matmul_bias_{name}"), &bytes);
        assert!(layer(bytes).has_bias, "{name}");
    }
}

#[test]
fn products_with_the_weight_on_the_left() {
    let start = Builder::new().input("x", &["batch", "5", "4"]).weight("w", &[6, 5]).bias("b", &[6, 1]);
    let bytes = start.clone().node("MatMul", "w x", "p", &[]).node("Add", "p b", "y", &[]);
    let bytes = bytes.output("y", &["batch", "6", "4"]).build();
    check("matmul_left", &bytes);
    let kind = LayerKind::Linear { input_axis: Axis::SecondToLast, output_axis: Axis::SecondToLast };
    let found = layer(bytes);
    assert_eq!((found.kind, found.has_bias, found.inputs, found.outputs), (kind, true, 5, 6));
    // A row is one number for each sample, not for each output.
    let row = start.clone().bias("c", &[1, 4]).node("MatMul", "w x", "p", &[]).node("Add", "p c", "y", &[]);
    let row = row.output("y", &["batch", "6", "4"]).build();
    check("matmul_left_row", &row);
    assert!(!layer(row).has_bias);
    let vector = Builder::new().input("x", &["5"]).weight("w", &[6, 5]).bias("b", &[6]);
    let vector = vector.node("MatMul", "w x", "p", &[]).node("Add", "p b", "y", &[]).output("y", &["6"]).build();
    check("matmul_left_vector", &vector);
    // Without the number of dimensions, the axis of the samples is not known.
    let unknown = Builder::new().input("x", &["5", "4"]).node("Tile", "x", "t", &[]).weight("w", &[6, 5]);
    let mut unknown = unknown.node("MatMul", "w t", "y", &[]);
    unknown.graph.extend(super::build::bytes(12, super::build::bytes(1, "y")));
    assert!(reason(&unknown).contains("the model does not state the input's dimensions"));
}

#[test]
fn gemm_with_every_flag() {
    let mut count = 0;
    for opset in [7, 9, 11, 13, 23] {
        for flags in 0..8 {
            let [on_left, input, weight] = [flags & 1 > 0, flags & 2 > 0, flags & 4 > 0];
            for (alpha, beta, bias) in [
                (1.0, 1.0, None),
                (0.5, 2.0, Some(vec![])),
                (-2.0, 0.25, Some(vec![1])),
                (1.5, 0.5, Some(if on_left { vec![6, 1] } else { vec![6] })),
                (1.0, 1.0, Some(if on_left { vec![1, 1] } else { vec![1, 6] })),
            ] {
                if bias.is_none() && opset < 11 {
                    continue;
                }
                // The samples are 4 rows, or 4 columns with the weight on the left.
                let x = if on_left != input { ["5", "4"] } else { ["4", "5"] };
                let w = if on_left != weight { [6, 5] } else { [5, 6] };
                let mut builder = Builder::new().opset(opset).input("x", &x).weight("w", &w);
                let mut inputs = String::from(if on_left { "w x" } else { "x w" });
                if let Some(dims) = bias {
                    builder = builder.bias("c", &dims);
                    inputs += " c";
                }
                let [a, b] = if on_left { [weight, input] } else { [input, weight] };
                let attributes = [
                    ("alpha", Value::Float(alpha)),
                    ("beta", Value::Float(beta)),
                    ("transA", Value::Int(a.into())),
                    ("transB", Value::Int(b.into())),
                ];
                let y = if on_left { ["6", "4"] } else { ["4", "6"] };
                let bytes = builder.node("Gemm", &inputs, "y", &attributes).output("y", &y).build();
                check(&format!("gemm_{opset}_{count}"), &bytes);
                count += 1;
            }
        }
    }
    // A bias that differs from sample to sample is none.
    for (name, dims) in [("rows", [4, 1]), ("matrix", [4, 6])] {
        let builder = Builder::new().input("x", &["4", "5"]).weight("w", &[5, 6]).bias("c", &dims);
        let builder = builder.node("Gemm", "x w c", "y", &[]).output("y", &["4", "6"]);
        assert!(reason(&builder).contains("its C is no constant"), "{name}");
    }
}

#[test]
fn convolutions_with_every_option() {
    type Case<'a> = (&'a [usize], &'a [&'a str], &'a [&'a str], Vec<(&'a str, Value<'a>)>);
    let (image, series) = (&["batch", "4", "9", "8"][..], &["2", "4", "11"][..]);
    let cases: Vec<Case<'_>> = vec![
        (&[6, 4, 3, 3], image, &["batch", "6", "7", "6"], vec![]),
        (&[6, 4, 1, 1], image, &["batch", "6", "9", "8"], vec![("kernel_shape", Value::Ints(&[1, 1]))]),
        (
            &[6, 4, 3, 2],
            image,
            &["batch", "6", "5", "4"],
            vec![("strides", Value::Ints(&[2, 2])), ("pads", Value::Ints(&[1, 0, 2, 1]))],
        ),
        (&[6, 4, 3, 3], image, &["batch", "6", "5", "6"], vec![("dilations", Value::Ints(&[2, 1]))]),
        (&[6, 2, 3, 3], image, &["batch", "6", "7", "6"], vec![("group", Value::Int(2))]),
        (
            &[6, 4, 3, 4],
            image,
            &["batch", "6", "5", "4"],
            vec![("auto_pad", Value::Text("SAME_UPPER")), ("strides", Value::Ints(&[2, 2]))],
        ),
        (
            &[6, 2, 4, 3],
            image,
            &["batch", "6", "9", "3"],
            vec![("auto_pad", Value::Text("SAME_LOWER")), ("strides", Value::Ints(&[1, 3])), ("group", Value::Int(2))],
        ),
        (&[6, 4, 2, 2], image, &["batch", "6", "8", "7"], vec![("auto_pad", Value::Text("VALID"))]),
        (&[6, 4, 3], series, &["2", "6", "9"], vec![]),
        (
            &[6, 2, 3],
            series,
            &["2", "6", "5"],
            vec![
                ("group", Value::Int(2)),
                ("strides", Value::Ints(&[2])),
                ("dilations", Value::Ints(&[2])),
                ("pads", Value::Ints(&[2, 1])),
            ],
        ),
        (
            &[6, 4, 4],
            series,
            &["2", "6", "4"],
            vec![("auto_pad", Value::Text("SAME_UPPER")), ("strides", Value::Ints(&[3]))],
        ),
    ];
    for (at, (weight, x, y, attributes)) in cases.iter().enumerate() {
        for (bias, add) in [(false, false), (true, false), (false, true)] {
            let mut builder = Builder::new().input("x", x).weight("w", weight).bias("b", &[6]);
            let channels: &[usize] = if weight.len() == 3 { &[6, 1] } else { &[1, 6, 1, 1] };
            builder = builder.bias("c", channels);
            let inputs = if bias { "x w b" } else { "x w" };
            builder = builder.node("Conv", inputs, if add { "p" } else { "y" }, attributes);
            if add {
                builder = builder.node("Add", "c p", "y", &[]);
            }
            let bytes = builder.output("y", y).build();
            check(&format!("conv_{at}_{}", usize::from(bias) + 2 * usize::from(add)), &bytes);
            let found = layer(bytes.clone());
            assert_eq!(found.has_bias, bias || add);
            the_library_computes_the_same(&bytes, &found);
        }
    }
}

/// The convolution that is read gives the outputs of the model.
#[track_caller]
fn the_library_computes_the_same(bytes: &[u8], layer: &dalr_onnx::Layer) {
    let model = Model::from_bytes(bytes.to_vec(), None).unwrap();
    let inputs = super::inputs(&model);
    let x = &inputs["x"];
    let size = if x.dims.len() == 3 { (1, x.dims[2]) } else { (x.dims[2], x.dims[3]) };
    let conv = model.conv2d::<f64>(&layer.name, size).unwrap();
    let columns = x.data.len() / x.dims[0];
    let images = dalr::faer::MatRef::from_row_major_slice(&x.data, x.dims[0], columns);
    let found = conv.forward(images, size).unwrap();
    let (_, expected) = super::run::run(bytes, &inputs).remove(0);
    let expected = dalr::faer::MatRef::from_row_major_slice(&expected.data, found.nrows(), found.ncols());
    assert!((&found - expected).norm_max() < 1e-9, "{layer:?}");
    let cost = layer.cost(conv.positions(size).unwrap() as u64);
    assert_eq!(cost.multiply_adds as usize, conv.multiply_adds(size).unwrap());
    assert_eq!(cost.parameters as usize, conv.parameters());
}

#[test]
fn batch_normalisation_after_a_convolution() {
    for (name, opset, bias) in [("plain", 9, false), ("bias", 15, true)] {
        let mut builder = Builder::new().opset(opset).input("x", &["2", "4", "6", "6"]).weight("w", &[5, 4, 3, 3]);
        builder = builder.bias("b", &[5]).bias("scale", &[5]).bias("shift", &[5]).bias("mean", &[5]);
        builder = builder.tensor("variance", &[5], &[0.5, 1.0, 2.0, 0.25, 4.0]);
        builder = builder.node("Conv", if bias { "x w b" } else { "x w" }, "c", &[]).info("c", &["2", "5", "4", "4"]);
        let epsilon = [("epsilon", Value::Float(0.01))];
        let normalized = builder.node("BatchNormalization", "c scale shift mean variance", "y", &epsilon);
        let bytes = normalized.clone().output("y", &["2", "5", "4", "4"]).build();
        let compressed = check(&format!("norm_{name}"), &bytes);
        let result = compressed.to_bytes().unwrap();
        assert!(!contains(&result, b"BatchNormalization") && !contains(&result, b"variance"), "{name}");
        the_library_computes_the_same(&bytes, &layer(bytes.clone()));
        // Something else reads the convolution: the normalisation stays.
        let read = normalized.node("Relu", "c", "z", &[]).output("y", &["2", "5", "4", "4"]);
        let read = read.output("z", &["2", "5", "4", "4"]).build();
        let compressed = check(&format!("norm_{name}_read"), &read);
        assert!(contains(&compressed.to_bytes().unwrap(), b"BatchNormalization"), "{name}");
    }
    let training = Builder::new().opset(14).input("x", &["2", "4", "6", "6"]).weight("w", &[5, 4, 3, 3]);
    let training = training.bias("s", &[5]).node("Conv", "x w", "c", &[]);
    let mode = [("training_mode", Value::Int(1))];
    let training = training.node("BatchNormalization", "c s s s s", "y", &mode).output("y", &["2", "5", "4", "4"]);
    assert_eq!(layer(training.build()).output, "c");
}

/// New operators are valid at the model's own opset.
#[test]
fn every_opset() {
    for opset in [7, 8, 10, 11, 13, 15, 18, 21, 24] {
        let builder = Builder::new().opset(opset).input("x", &["2", "4", "6", "6"]).weight("w", &[5, 4, 3, 3]);
        let builder = builder.bias("s", &[5]).tensor("variance", &[5], &[0.5, 1.0, 2.0, 0.25, 4.0]);
        let builder = builder.node("Conv", "x w", "c", &[]).node("BatchNormalization", "c s s s variance", "n", &[]);
        let builder = builder.weight("v", &[4, 6]).bias("b", &[6]).node("MatMul", "n v", "p", &[]);
        let builder = builder.node("Add", "p b", "y", &[]).weight("u", &[3, 4]).bias("d", &[3]);
        let transposed = [("transB", Value::Int(1))];
        let builder = builder.input("z", &["batch", "4"]).node("Gemm", "z u d", "g", &transposed);
        let bytes = builder.output("y", &["2", "5", "4", "6"]).output("g", &["batch", "3"]).build();
        check(&format!("opset_{opset}"), &bytes);
    }
}

#[test]
fn nodes_that_stay_are_listed_with_a_reason() {
    let image = || Builder::new().input("x", &["1", "4", "6", "6"]);
    let product = || Builder::new().input("x", &["3", "5"]).input("z", &["5", "6"]);
    let group = |groups| [("group", Value::Int(groups))];
    let cases = [
        (image().weight("w", &[4, 1, 3, 3]).node("Conv", "x w", "y", &group(4)), "a depthwise convolution"),
        (image().weight("w", &[5, 4, 3, 3]).node("Conv", "x w", "y", &group(2)), "5 output channels in 2 groups"),
        (
            Builder::new().input("x", &["1", "2", "4", "4", "4"]).weight("w", &[3, 2, 2, 2, 2]).node(
                "Conv",
                "x w",
                "y",
                &[],
            ),
            "a convolution in 3 dimensions",
        ),
        (image().input("w", &["5", "4", "3", "3"]).node("Conv", "x w", "y", &[]), "computed when the model runs"),
        (
            image().weight("w", &[5, 4, 3, 3]).node("Conv", "x w", "y", &[("strides", Value::Ints(&[0, 1]))]),
            "a stride or dilation of 0",
        ),
        (
            image().weight("w", &[5, 4, 3, 3]).node("Conv", "x w", "y", &[("pads", Value::Ints(&[-1, 0, 0, 0]))]),
            "the attribute `pads` is not valid",
        ),
        (product().node("MatMul", "x z", "y", &[]), "computed when the model runs"),
        (product().weight("w", &[2, 5, 6]).node("MatMul", "x w", "y", &[]), "the weight has 3 dimensions"),
        (
            product().weight("w", &[5, 6]).weight("v", &[6, 5]).node("MatMul", "w v", "y", &[]),
            "both factors are constants",
        ),
        (product().weight("w", &[5, 6]).node("Gather", "w x", "y", &[]), "not an operator that can be factorized"),
        (product().node("LSTM", "x z z", "y", &[]), "not an operator that can be factorized"),
    ];
    for (builder, expected) in cases {
        let found = reason(&builder.output("y", &[]));
        assert!(found.contains(expected), "{expected}: {found}");
    }
}
