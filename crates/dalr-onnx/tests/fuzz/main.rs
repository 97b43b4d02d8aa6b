//! Damaged models of every kind, for a chosen time: each is an error, or a model whose layers can be
//! replaced and that is then valid again.
//!
//! `cargo test -p dalr-onnx --test fuzz` takes a second and tries the same cases every time.
//! `DALR_FUZZ_SECONDS=60` tries new cases for a minute. A failure prints the line that repeats it,
//! with `DALR_FUZZ_SEED`.

#[allow(dead_code, reason = "the other tests use more of it")]
#[path = "../it/build.rs"]
mod build;
#[path = "../../../../tests/fuzz/runner.rs"]
mod runner;

use std::path::Path;

use dalr::compress::HiddenUnitSelection;
use dalr::faer::Mat;
use dalr::{ActivationStats, Linear, LowRankLinear};
use dalr_onnx::{Layer, Model, Replacement, UnitPair};
use rand::Rng;
use rand::rngs::StdRng;

use self::build::{Builder, Storage, Value, attribute, bytes, int, node, tensor, varint};

#[test]
fn models() {
    let folder = std::env::temp_dir().join(format!("dalr-onnx-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("weights.bin"), vec![0; 400]).unwrap();
    let good = good_models();
    good.iter().for_each(|model| drop(Model::from_bytes(model.clone(), Some(&folder)).unwrap()));
    runner::fuzz("cargo test -p dalr-onnx --test fuzz", 1.0, &[], |rng| {
        let mut model = good[rng.random_range(0..good.len())].clone();
        for _ in 0..rng.random_range(1..5) {
            model = match rng.random_range(0..4) {
                0 => bytes_mutated(rng, &model),
                _ => fields_mutated(rng, &model, 0),
            };
        }
        check(rng, &model, &folder);
    });
    std::fs::remove_dir_all(folder).unwrap();
}

fn check(rng: &mut StdRng, bytes: &[u8], folder: &Path) {
    let Ok(mut model) = Model::from_bytes(bytes.to_vec(), Some(folder)) else { return };
    if !bytes.windows(11).any(|window| window == b"weights.bin") {
        assert!(model.to_bytes().unwrap() == bytes, "a model that is not changed has other bytes");
    }
    let pairs = model.unit_pairs().to_vec();
    assert!(pairs.iter().all(|pair| pair.units > 0 && pair.inputs_per_unit > 0));
    for pair in &pairs {
        if rng.random_ratio(1, 3) {
            fewer_units(rng, &mut model, pair);
        }
    }
    for layer in model.layers().to_vec() {
        // Some layers stay, so that weights of several layers do.
        if rng.random_ratio(1, 4) || layer.inputs.saturating_mul(layer.outputs) > 1 << 16 {
            continue;
        }
        let Ok(groups) = model.linear_layers::<f32>(&layer.name) else { continue };
        assert_eq!(groups.len(), layer.groups());
        let replacement = replacement(rng, &layer, &groups);
        let pivoted = matches!(replacement, Replacement::Pivoted(_));
        match model.replace(&layer.name, &replacement) {
            Ok(()) => {}
            Err(error) if error.to_string().contains("replaced already") => {}
            Err(error) => assert!(pivoted && !layer.can_be_pivoted, "{error}"),
        }
    }
    let changed = model.to_bytes().unwrap();
    let again = Model::from_bytes(changed, None);
    let again = again.unwrap_or_else(|error| panic!("the changed model is not valid: {error}"));
    assert_eq!(again.inputs(), model.inputs());
    assert_eq!(again.outputs(), model.outputs());
}

/// Replaces a pair, unless one of its layers has been replaced.
fn fewer_units(rng: &mut StdRng, model: &mut Model, pair: &UnitPair) {
    let read = |layer: &str| {
        let small = model.layer(layer).is_ok_and(|layer| layer.inputs.saturating_mul(layer.outputs) < 1 << 12);
        model.linear_layers::<f32>(layer).ok().filter(|_| small).map(|mut groups| groups.remove(0))
    };
    let (Some(first), Some(second)) = (read(&pair.first), read(&pair.second)) else { return };
    let mut stats = ActivationStats::new(second.in_features());
    stats.update(Mat::from_fn(20, second.in_features(), |i, j| ((i * 7 + j * 5) % 11) as f32).as_ref()).unwrap();
    let options = HiddenUnitSelection::new().with_inputs_per_unit(pair.inputs_per_unit);
    let units = match &pair.gate {
        None => options.solve(&first, &second, &stats),
        Some(gate) => {
            let Some(gate) = read(gate) else { return };
            options.solve_gated(&gate, &first, &second, &stats)
        }
    };
    let Ok(units) = units else { return };
    let selected = units.select(rng.random_range(1..=pair.units)).unwrap();
    if let Err(error) = model.replace_units(&pair.second, &selected) {
        assert!(error.to_string().contains("replaced already"), "{error}");
    }
}

fn replacement(rng: &mut StdRng, layer: &Layer, groups: &[Linear<f32>]) -> Replacement<f32> {
    let rank = rng.random_range(1..4);
    let biased = rng.random::<bool>();
    let factors = groups.iter().map(|group| {
        let (m, n) = (group.out_features(), group.in_features());
        let down = Mat::from_fn(rank, n, |i, j| ((i * 5 + j * 3) % 7) as f32 - 3.0);
        let up = Mat::from_fn(m, rank, |i, j| ((i * 3 + j * 5) % 7) as f32 - 2.5);
        let bias = biased.then(|| (0..m).map(|i| i as f32).collect());
        LowRankLinear::new(down, up, bias).unwrap()
    });
    let factors: Vec<_> = factors.collect();
    let pivoted: Option<Vec<_>> = factors.iter().map(|layer| layer.to_pivoted().ok()).collect();
    match pivoted.filter(|_| rng.random::<bool>() && rank <= layer.outputs / layer.groups()) {
        Some(pivoted) => Replacement::Pivoted(pivoted),
        None => Replacement::Factors(factors),
    }
}

fn good_models() -> Vec<Vec<u8>> {
    let perceptron =
        Builder::new().input("x", &["batch", "5"]).weight("w", &[5, 6]).bias("b", &[6]).weight("v", &[6, 3]);
    let perceptron = perceptron.node("MatMul", "x w", "p", &[]).node("Add", "p b", "h", &[]).info("h", &["batch", "6"]);
    let perceptron =
        perceptron.node("Relu", "h", "a", &[]).node("MatMul", "a v", "y", &[]).output("y", &["batch", "3"]);
    let gated =
        Builder::new().input("x", &["batch", "5"]).weight("w", &[5, 6]).weight("g", &[5, 6]).weight("v", &[6, 3]);
    let gated = gated.node("MatMul", "x g", "k", &[]).node("Sigmoid", "k", "s", &[]).node("Mul", "k s", "t", &[]);
    let gated = gated.node("MatMul", "x w", "u", &[]).node("Mul", "t u", "a", &[]).node("MatMul", "a v", "y", &[]);
    let gated = gated.output("y", &["batch", "3"]);
    let pair = Builder::new().input("x", &["1", "2", "8"]).weight("w", &[4, 2, 3]).weight("v", &[3, 4, 2]);
    let pair = pair.node("Conv", "x w", "c", &[]).node("Relu", "c", "a", &[]).node("Conv", "a v", "y", &[]);
    let pair = pair.output("y", &["1", "3", "5"]);
    let mut old = Builder::new().opset(8).input("w", &["6", "5"]).input("x", &["4", "5"]);
    old.ir_version = 3;
    let old = old.weight("w", &[6, 5]).input("b", &["1", "6"]).bias("b", &[1, 6]);
    let flags = [("transB", Value::Int(1)), ("alpha", Value::Float(0.5)), ("beta", Value::Float(2.0))];
    let old = old.node("Gemm", "x w b", "y", &flags).output("y", &["4", "6"]);
    let images = Builder::new().input("x", &["1", "4", "8", "8"]).weight("w", &[6, 2, 3, 3]).bias("s", &[6]);
    let window = [("group", Value::Int(2)), ("pads", Value::Ints(&[1, 0, 1, 0])), ("strides", Value::Ints(&[1, 2]))];
    let images = images.node("Conv", "x w", "c", &window).node("BatchNormalization", "c s s s s", "n", &[]);
    let same = [("auto_pad", Value::Text("SAME_UPPER")), ("dilations", Value::Ints(&[2, 2]))];
    let images = images.weight("v", &[3, 6, 2, 2]).bias("d", &[3]).node("Conv", "n v d", "y", &same).output("y", &[]);
    let mut builder = Builder::new();
    builder.storage = Storage::F16;
    let numbers = builder.low_rank(&[5, 6]);
    let constant = [("value", Value::Tensor(tensor("", &[5, 6], &numbers, Storage::HalfInts)))];
    let mut shared =
        builder.input("x", &["4", "5"]).node("Constant", "", "k", &constant).node("Identity", "k", "w", &[]);
    let body = [bytes(1, node("MatMul", "x w", "inner", &[])), bytes(12, bytes(1, "inner"))].concat();
    shared.graph.extend(bytes(5, [int(2, 9), bytes(9, [1]), bytes(8, "condition")].concat()));
    let branches = [("then_branch", Value::Graph(body.clone())), ("else_branch", Value::Graph(body))];
    let mut shared = shared.node("If", "condition", "z", &branches).node("MatMul", "x w", "y", &[]).output("y", &[]);
    shared.rest =
        bytes(25, [bytes(1, "f"), bytes(4, "a"), bytes(7, node("Relu", "a", "b", &[])), bytes(10, "d")].concat());
    let mut outside = Builder::new().input("x", &["3", "5", "4"]).info("t", &["3", "5", "4"]);
    let keys = [("location", "weights.bin"), ("offset", "40"), ("length", "120")];
    let entries: Vec<u8> =
        keys.iter().flat_map(|(key, value)| bytes(13, [bytes(1, key), bytes(2, value)].concat())).collect();
    outside.graph.extend(bytes(5, [int(1, 6), int(1, 5), int(2, 1), bytes(8, "w"), entries, int(14, 1)].concat()));
    let outside = outside.node("MatMul", "w x", "p", &[]).bias("b", &[6, 1]).node("Add", "b p", "y", &[]);
    let outside = outside.output("y", &["3", "6", "4"]);
    [perceptron, gated, pair, old, images, shared, outside].map(|builder| builder.build()).into()
}

fn bytes_mutated(rng: &mut StdRng, model: &[u8]) -> Vec<u8> {
    let mut model = model.to_vec();
    let at = rng.random_range(0..model.len().max(1));
    match rng.random_range(0..4) {
        0 => model.truncate(at),
        1 => model.insert(at.min(model.len()), rng.random()),
        2 => model.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << rng.random_range(0..8)),
        _ => model.iter_mut().skip(at).take(8).for_each(|byte| *byte = rng.random()),
    }
    model
}

enum Content {
    Number(u64),
    Fixed(Vec<u8>),
    Bytes(Vec<u8>),
}

/// The fields of a message, if the bytes are one.
fn fields(bytes: &[u8]) -> Option<Vec<(u64, Content)>> {
    let mut fields = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let tag = read_varint(&mut rest)?;
        let content = match tag & 7 {
            0 => Content::Number(read_varint(&mut rest)?),
            1 => Content::Fixed(rest.split_off(..8)?.into()),
            2 => {
                let length = usize::try_from(read_varint(&mut rest)?).ok()?;
                Content::Bytes(rest.split_off(..length)?.into())
            }
            5 => Content::Fixed(rest.split_off(..4)?.into()),
            _ => return None,
        };
        fields.push((tag >> 3, content));
    }
    Some(fields)
}

fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let (mut number, mut shift) = (0_u64, 0);
    loop {
        let byte = *bytes.split_off_first()?;
        number |= u64::from(byte & 0x7f).checked_shl(shift)?;
        shift += 7;
        if byte < 0x80 {
            return Some(number);
        }
    }
}

fn written(fields: &[(u64, Content)]) -> Vec<u8> {
    let field = |(number, content): &(u64, Content)| match content {
        Content::Number(value) => [varint(number << 3), varint(*value)].concat(),
        Content::Fixed(bytes) => [varint(number << 3 | if bytes.len() == 4 { 5 } else { 1 }), bytes.clone()].concat(),
        Content::Bytes(content) => bytes(*number, content),
    };
    fields.iter().flat_map(field).collect()
}

/// Changes one field somewhere in the message, whose lengths stay right.
fn fields_mutated(rng: &mut StdRng, message: &[u8], depth: usize) -> Vec<u8> {
    let Some(mut fields) = fields(message).filter(|fields| !fields.is_empty()) else {
        return bytes_mutated(rng, message);
    };
    let at = rng.random_range(0..fields.len());
    let go_inside = rng.random_ratio(4, 5) && depth < 9;
    if let Content::Bytes(content) = &fields[at].1
        && go_inside
    {
        let content = match fields[at].0 {
            // Most changes of a model's numbers say nothing new.
            4 | 9 if rng.random_ratio(3, 4) => content.clone(),
            _ => fields_mutated(rng, content, depth + 1),
        };
        fields[at].1 = Content::Bytes(content);
        return written(&fields);
    }
    const NUMBERS: [u64; 14] = [0, 1, 2, 3, 5, 7, 10, 16, 64, 1 << 31, 1 << 62, 1 << 63, u64::MAX, u64::MAX - 4];
    const TEXTS: [&str; 20] = [
        "x",
        "w",
        "b",
        "y",
        "p",
        "h",
        "a",
        "",
        "MatMul",
        "Gemm",
        "Conv",
        "Add",
        "Relu",
        "Transpose",
        "Identity",
        "../weights.bin",
        "p/latent",
        "f",
        "ai.onnx",
        "group",
    ];
    match rng.random_range(0..7) {
        0 => drop(fields.remove(at)),
        1 => {
            let other = rng.random_range(0..fields.len());
            fields.swap(at, other);
        }
        2 => {
            let copied = written(&fields[at..=at]);
            return [written(&fields), copied].concat();
        }
        3 => fields[at].1 = Content::Number(NUMBERS[rng.random_range(0..NUMBERS.len())]),
        4 => fields[at].1 = Content::Bytes(TEXTS[rng.random_range(0..TEXTS.len())].into()),
        5 => fields[at].0 = rng.random_range(1..27),
        _ => {
            let value = Value::Ints(&[rng.random_range(-2..5)]);
            let names = ["strides", "pads", "dilations", "group", "transA", "transB", "perm", "axis"];
            let attribute = attribute(names[rng.random_range(0..names.len())], &value);
            fields.push((5, Content::Bytes(attribute)));
        }
    }
    written(&fields)
}
