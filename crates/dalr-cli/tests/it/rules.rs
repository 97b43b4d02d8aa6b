//! The rules for layers, their inputs and their ranks.

use dalr::faer::MatRef;
use dalr::{ActivationStats, LowRankLinear};
use safetensors::tensor::Dtype;
use serde_json::json;

use crate::harness::{Folder, Tensor, Tensors, layer, random, said, stack};

fn rank(out: &Tensors, name: &str) -> Option<usize> {
    out.tensors.get(&format!("{name}.0.weight")).map(|down| down.shape[0])
}

fn close(a: &Tensor, b: &Tensor) -> bool {
    let (a, b) = (a.numbers(), b.numbers());
    let norm = b.iter().map(|x| x * x).sum::<f64>().sqrt();
    let distance = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
    a.len() == b.len() && distance <= 1e3 * f64::from(f32::EPSILON) * norm
}

#[test]
fn shards_and_saved_statistics_are_merged() {
    let folder = Folder::new();
    let (rows, inputs) = (60, 12);
    layer(Tensors::default(), "fc", Dtype::F32, [16, inputs], true).write(&folder.path("model.safetensors"));
    let numbers = random(5, rows, inputs, 0.8);
    let tensor = |part: &[f64]| Tensor::of(Dtype::F32, &[part.len() / inputs, inputs], part);
    let write = |name: &str, part: &[f64]| {
        Tensors::default().with("fc.input", tensor(part)).write(&folder.path(name));
    };
    write("calibration.safetensors", &numbers);
    let whole = folder.compress(&["--rank", "4"]);

    let parts: Vec<&[f64]> = numbers.chunks(20 * inputs).collect();
    write("calibration.safetensors", parts[0]);
    write("second.safetensors", parts[1]);
    let mut stats = ActivationStats::<f32>::new(inputs);
    let single: Vec<f32> = parts[2].iter().map(|&x| x as f32).collect();
    stats.update(MatRef::from_row_major_slice(&single, 20, inputs)).unwrap();
    std::fs::create_dir(folder.path("saved")).unwrap();
    for name in ["fc", "fc.input"] {
        let saved = folder.path("saved").join(format!("{name}.safetensors"));
        stats.save(&saved).unwrap();
        let merged = folder.compress(&[
            "--rank",
            "4",
            "--force",
            "--calibration",
            "second.safetensors",
            "--calibration",
            "saved",
        ]);
        for part in ["fc.0.weight", "fc.1.weight", "fc.1.bias"] {
            assert!(close(&merged.tensors[part], &whole.tensors[part]), "{name} {part}");
        }
        std::fs::remove_file(saved).unwrap();
    }
    // Two thirds of the samples give another result, so the comparison can fail.
    let less = folder.compress(&["--rank", "4", "--force", "--calibration", "second.safetensors"]);
    assert!(!close(&less.tensors["fc.0.weight"], &whole.tensors["fc.0.weight"]));

    std::fs::remove_file(folder.path("out.safetensors")).unwrap();
    folder.refuses(&["--rank", "4", "--force", "--calibration", "calibration.safetensors"], "given twice");
}

#[test]
fn layers_share_an_input_by_a_map() {
    let folder = Folder::new();
    let (model, calibration) = stack(&folder, 3, 16);
    let own = folder.compress(&["--rank", "5"]);
    // The same samples for all, once under the names of all and once by a map.
    let samples = &calibration.tensors["layer.0.input"];
    let mut all = Tensors::default();
    for name in ["layer.0.input", "layer.1.input", "layer.2.input"] {
        all = all.with(name, samples.clone());
    }
    all.write(&folder.path("calibration.safetensors"));
    let named = folder.compress(&["--rank", "5", "--force"]);
    Tensors::default().with("shared", samples.clone()).write(&folder.path("calibration.safetensors"));
    let map = json!({"layer.0": "shared", "layer.1": "shared", "layer.2": "shared"});
    std::fs::write(folder.path("map.json"), map.to_string()).unwrap();
    let mapped = folder.compress(&["--rank", "5", "--force", "--inputs", "map.json"]);
    assert!(named == mapped);
    assert!(own.tensors["layer.1.0.weight"] != mapped.tensors["layer.1.0.weight"]);
    assert_eq!(model.tensors.len(), 6);

    let write = |map: serde_json::Value| std::fs::write(folder.path("map.json"), map.to_string()).unwrap();
    std::fs::remove_file(folder.path("out.safetensors")).unwrap();
    write(json!({"layer.0": "shared", "layer.1": "other"}));
    folder.refuses(&["--rank", "5", "--inputs", "map.json"], "layer layer.1: no `other` in the calibration data");
    write(json!({"layer.0": "shared", "layer.7": "shared"}));
    folder.refuses(&["--rank", "5", "--inputs", "map.json"], "layer layer.7: named by --inputs, but not in the model");
    write(json!(["layer.0"]));
    folder.refuses(&["--rank", "5", "--inputs", "map.json"], "map.json: expected a JSON object");
}

#[test]
fn globs_choose_layers() {
    let folder = Folder::new();
    stack(&folder, 12, 8);
    let ranks = |out: &Tensors| -> Vec<usize> {
        (0..12).filter(|index| rank(out, &format!("layer.{index}")).is_some()).collect()
    };
    assert_eq!(ranks(&folder.compress(&["--rank", "3", "--include", "layer.1?"])), [10, 11]);
    let options = ["--rank", "3", "--force", "--include", "*.[0-3]", "--include", "layer.9", "--exclude", "*.{1,3}"];
    assert_eq!(ranks(&folder.compress(&options)), [0, 2, 9]);
    assert_eq!(ranks(&folder.compress(&["--rank", "3", "--force", "--exclude", "*1*"])), [0, 2, 3, 4, 5, 6, 7, 8, 9]);
    std::fs::remove_file(folder.path("out.safetensors")).unwrap();
    folder.refuses(
        &["--rank", "3", "--include", "layer.1", "--include", "nowhere*"],
        "--include nowhere*: matches no layer",
    );
    folder.refuses(&["--rank", "3", "--include", "layer.[1"], "--include: ");
    folder.refuses(&["--rank", "3", "--exclude", "*"], "no tensor of the model is a layer");
}

#[test]
fn unsupported_tensors_pass_with_a_reason_and_are_refused_by_name() {
    let folder = Folder::new();
    let samples = || Tensor::of(Dtype::F32, &[20, 8], &random(3, 20, 8, 0.8));
    let model = layer(Tensors::default(), "fc", Dtype::F32, [8, 8], false)
        .with("norm.weight", Tensor::of(Dtype::F32, &[8], &random(1, 1, 8, 1.0)))
        .with("conv.weight", Tensor::of(Dtype::F32, &[8, 8, 3], &random(1, 64, 3, 1.0)))
        .with("quantised.weight", Tensor::of(Dtype::I64, &[8, 8], &random(1, 8, 8, 1.0)))
        .with("table.weight", Tensor::of(Dtype::F32, &[8, 8], &random(1, 8, 8, 1.0)));
    model.write(&folder.path("model.safetensors"));
    let mut calibration = Tensors::default();
    for name in ["fc", "norm", "conv", "quantised"] {
        calibration = calibration.with(&format!("{name}.input"), samples());
    }
    calibration.write(&folder.path("calibration.safetensors"));
    let output = folder.run(&["--rank", "3", "--json", "report.json"]);
    assert!(output.status.success(), "{}", said(&output));
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path("report.json")).unwrap()).unwrap();
    let expected = [
        ("conv", "3-D: only 2-D weights are compressed"),
        ("norm", "1-D: only 2-D weights are compressed"),
        ("quantised", "I64: only F32, F16, BF16 and F64 are compressed"),
        ("table", "no `table.input` in the calibration data"),
    ];
    let passed = report["passed_through"].as_array().unwrap();
    assert_eq!(passed.len(), expected.len());
    let out = Tensors::read(&folder.path("out.safetensors"));
    for (passed, (name, reason)) in passed.iter().zip(expected) {
        assert_eq!(
            (passed["name"].as_str(), passed["reason"].as_str()),
            (Some(&*format!("{name}.weight")), Some(reason))
        );
        assert_eq!(out.tensors[&format!("{name}.weight")], model.tensors[&format!("{name}.weight")]);
    }
    // Samples of a tensor that is not a layer get a note.
    assert!(
        said(&output).contains("no layer reads `conv.input` of the calibration data (`conv.weight`: 3-D"),
        "{}",
        said(&output)
    );

    std::fs::remove_file(folder.path("out.safetensors")).unwrap();
    std::fs::remove_file(folder.path("report.json")).unwrap();
    std::fs::write(folder.path("map.json"), r#"{"quantised": "fc.input"}"#).unwrap();
    folder.refuses(&["--rank", "3", "--inputs", "map.json"], "layer quantised: named by --inputs, but I64");
    folder.refuses(&["--rank", "3", "--include", "table"], "layer table: no `table.input` in the calibration data");
}

#[test]
fn budgets_and_allocations() {
    let folder = Folder::new();
    stack(&folder, 4, 24);
    let ranks = |options: &[&str]| -> Vec<usize> {
        let mut all = vec!["--force"];
        all.extend(options);
        let out = folder.compress(&all);
        (0..4).map(|index| rank(&out, &format!("layer.{index}")).unwrap_or(0)).collect()
    };
    assert_eq!(ranks(&["--rank", "5"]), [5; 4]);
    // From break-even on, the layers stay original.
    assert_eq!(ranks(&["--rank", "12"]), [0; 4]);
    assert_eq!(ranks(&["--keep", "0.5", "--rank-multiple", "4"]), [4; 4]);
    let uniform = ranks(&["--keep", "0.5"]);
    assert!(uniform.iter().all(|rank| (5..=6).contains(rank)), "{uniform:?}");
    let loose = ranks(&["--max-error", "0.6"]);
    let tight = ranks(&["--max-error", "0.5"]);
    assert!(loose.iter().zip(&tight).all(|(loose, tight)| loose < tight || *tight == 0), "{loose:?} {tight:?}");
    // The most sensitive layer gets the largest rank.
    std::fs::write(folder.path("s.json"), r#"{"layer.0": 1, "layer.1": 1, "layer.2": 1, "layer.3": 50}"#).unwrap();
    let skewed = ranks(&["--keep", "0.5", "--sensitivity", "s.json"]);
    assert!(skewed[3] == 0 || skewed[3] > uniform[3], "{skewed:?}");
    assert!(skewed[0] < uniform[0], "{skewed:?}");
    assert_eq!(ranks(&["--keep", "0.5", "--allocation", "energy"]).len(), 4);
    assert_eq!(ranks(&["--keep", "0.5", "--allocation", "energy", "--method", "svd"]).len(), 4);

    std::fs::remove_file(folder.path("out.safetensors")).unwrap();
    std::fs::write(folder.path("s.json"), r#"{"layer.0": 1, "layer.1": 1}"#).unwrap();
    folder.refuses(&["--keep", "0.5", "--sensitivity", "s.json"], "expected a weight for `layer.2`, got none");
    std::fs::write(folder.path("s.json"), r#"{"layer.0": 1, "layer.1": 1, "layer.2": 1, "layer.3": 1, "x": 1}"#)
        .unwrap();
    folder.refuses(&["--keep", "0.5", "--sensitivity", "s.json"], "expected only names of layers to compress, got `x`");
    std::fs::write(folder.path("s.json"), r#"{"layer.0": -1, "layer.1": 1, "layer.2": 1, "layer.3": 1}"#).unwrap();
    folder.refuses(&["--keep", "0.5", "--sensitivity", "s.json"], "s.json: expected sensitivities");
    folder.refuses(&["--keep", "0.5", "--allocation", "sensitivity"], "--allocation sensitivity needs --sensitivity");
    folder.refuses(
        &["--keep", "0.5", "--allocation", "energy", "--sensitivity", "s.json"],
        "goes with --allocation sensitivity",
    );
}

#[test]
fn sharded_models_are_read_through_their_index() {
    let folder = Folder::new();
    let (model, _) = stack(&folder, 2, 12);
    let whole = folder.compress(&["--rank", "4"]);
    let (mut first, mut second) = (Tensors::default(), Tensors::default());
    let mut map = serde_json::Map::new();
    for (index, (name, tensor)) in model.tensors.into_iter().enumerate() {
        let (shard, file) = if index % 2 == 0 { (&mut first, "a.safetensors") } else { (&mut second, "b.safetensors") };
        map.insert(name.clone(), file.into());
        shard.tensors.insert(name, tensor);
    }
    first.write(&folder.path("a.safetensors"));
    second.write(&folder.path("b.safetensors"));
    std::fs::write(folder.path("i.json"), json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    let mut command = std::process::Command::new(crate::harness::program());
    command.args([
        "compress",
        "i.json",
        "--calibration",
        "calibration.safetensors",
        "--out",
        "sharded.safetensors",
        "--rank",
        "4",
    ]);
    assert!(command.arg("--threads=1").current_dir(folder.path("")).status().unwrap().success());
    assert!(Tensors::read(&folder.path("sharded.safetensors")) == whole);
}

#[test]
fn truncated_svd_needs_no_samples() {
    let folder = Folder::new();
    stack(&folder, 2, 12);
    let mut command = std::process::Command::new(crate::harness::program());
    command.args([
        "compress",
        "model.safetensors",
        "--out",
        "svd.safetensors",
        "--rank",
        "4",
        "--method",
        "svd",
        "--threads=1",
    ]);
    let output = command.current_dir(folder.path("")).output().unwrap();
    assert!(said(&output).contains("--include must say which tensors are layers"), "{}", said(&output));
    assert!(command.args(["--include", "layer.1"]).status().unwrap().success());
    let without = Tensors::read(&folder.path("svd.safetensors"));
    assert_eq!((rank(&without, "layer.0"), rank(&without, "layer.1")), (None, Some(4)));
    let with = folder.compress(&["--rank", "4", "--method", "svd"]);
    assert_eq!(without.tensors["layer.1.0.weight"], with.tensors["layer.1.0.weight"]);
}

/// Three layers of the same five directions of their input.
fn alike(folder: &Folder, bias: bool) -> Vec<f64> {
    let (inputs, outputs) = (24, 20);
    let common = random(1, 5, inputs, 1.0);
    let mut model = Tensors::default();
    for (seed, name) in [(2, "query"), (3, "key"), (4, "value")] {
        let (own, noise) = (random(seed, outputs, 5, 1.0), random(seed + 5, outputs, inputs, 1.0));
        let entry = |index: usize| {
            let (row, column) = (index / inputs, index % inputs);
            (0..5).map(|k| own[row * 5 + k] * common[k * inputs + column]).sum::<f64>() + 0.02 * noise[index]
        };
        let weight: Vec<f64> = (0..outputs * inputs).map(entry).collect();
        model = model.with(&format!("{name}.weight"), Tensor::of(Dtype::F32, &[outputs, inputs], &weight));
        if bias {
            let bias = Tensor::of(Dtype::F32, &[outputs], &random(seed + 9, 1, outputs, 1.0));
            model = model.with(&format!("{name}.bias"), bias);
        }
    }
    model.write(&folder.path("model.safetensors"));
    let samples = random(7, 200, inputs, 0.95);
    let calibration = Tensors::default().with("hidden", Tensor::of(Dtype::F32, &[200, inputs], &samples));
    calibration.write(&folder.path("calibration.safetensors"));
    let map = json!({"query": "hidden", "key": "hidden", "value": "hidden"});
    std::fs::write(folder.path("map.json"), map.to_string()).unwrap();
    samples
}

/// The squared error of a layer's outputs on samples, relative to the original outputs about their
/// mean.
fn error(model: &Tensors, out: &Tensors, (name, first): (&str, &str), samples: &[f64]) -> f64 {
    let numbers = |file: &Tensors, part: &str| file.tensors.get(part).map(Tensor::numbers);
    let product = |weight: &[f64], x: &[f64]| -> Vec<f64> {
        weight.chunks(x.len()).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
    };
    let weight = numbers(model, &format!("{name}.weight")).unwrap();
    let down = numbers(out, &format!("{first}.0.weight")).unwrap();
    let up = numbers(out, &format!("{name}.1.weight")).unwrap();
    let biases = [numbers(model, &format!("{name}.bias")), numbers(out, &format!("{name}.1.bias"))];
    let [before, after] = biases.map(|bias| bias.unwrap_or_else(|| vec![0.0; 20]));
    let (mut outputs, mut lost) = (Vec::new(), 0.0);
    for x in samples.chunks(24) {
        let y: Vec<f64> = product(&weight, x).iter().zip(&before).map(|(y, b)| y + b).collect();
        let new = product(&up, &product(&down, x));
        lost += y.iter().zip(new.iter().zip(&after)).map(|(y, (new, b))| (y - new - b).powi(2)).sum::<f64>();
        outputs.push(y);
    }
    let mean = |i: usize| outputs.iter().map(|y| y[i]).sum::<f64>() / outputs.len() as f64;
    let means: Vec<f64> = (0..20).map(mean).collect();
    let spread = |y: &Vec<f64>| y.iter().zip(&means).map(|(y, mean)| (y - mean).powi(2)).sum::<f64>();
    lost / outputs.iter().map(spread).sum::<f64>()
}

#[test]
fn layers_that_read_the_same_may_have_one_down() {
    for bias in [true, false] {
        let folder = Folder::new();
        let samples = alike(&folder, bias);
        let model = Tensors::read(&folder.path("model.safetensors"));
        let options = ["--inputs", "map.json", "--keep", "0.35", "--allocation", "energy", "--json", "report.json"];
        let apart = folder.compress(&options);
        let shared = folder.compress(&[&options[..], &["--share-down", "--force"]].concat());
        assert!(!apart.metadata.contains_key("dalr.shared"));
        let map: serde_json::Value = serde_json::from_str(&shared.metadata["dalr.shared"]).unwrap();
        assert_eq!(map, json!({"query": "key", "value": "key"}));
        let downs = ["key", "query", "value"].map(|name| rank(&shared, name));
        assert!(downs[0].is_some() && downs[1..] == [None, None], "{downs:?}");

        let report: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.path("report.json")).unwrap()).unwrap();
        let count =
            |out: &Tensors| out.tensors.values().map(|tensor| tensor.shape.iter().product::<usize>()).sum::<usize>();
        assert_eq!(report["parameters"]["after"], count(&shared));
        assert!(100 * count(&shared) <= 35 * count(&model));
        let names = ["key", "query", "value"];
        let lost: f64 = names.iter().map(|name| error(&model, &shared, (name, "key"), &samples)).sum();
        let before: f64 = names.iter().map(|name| error(&model, &apart, (name, name), &samples)).sum();
        assert!(lost < 0.1 * before, "{lost} {before}");
        for name in names {
            let layers = report["layers"].as_array().unwrap();
            let layer = layers.iter().find(|layer| layer["name"] == name).unwrap();
            assert_eq!(
                (layer["shares_down"].as_bool(), layer["rank"].as_u64()),
                (Some(true), downs[0].map(|k| k as u64))
            );
            let loaded = LowRankLinear::<f64>::load(folder.path("out.safetensors"), name).unwrap();
            assert_eq!((Some(loaded.rank()), loaded.bias().is_some()), (downs[0], bias), "{name}");
        }

        // A second run with --resume has nothing left to continue, and gives the same bytes.
        let again = folder.compress(&[&options[..], &["--share-down", "--force", "--resume"]].concat());
        assert!(again == shared);
        std::fs::remove_file(folder.path("out.safetensors")).unwrap();
        folder
            .refuses(&["--inputs", "map.json", "--rank", "3", "--share-down"], "--share-down goes with --method dalr");
        folder.refuses(
            &["--inputs", "map.json", "--keep", "0.5", "--share-down", "--method", "svd"],
            "--share-down goes with --method dalr",
        );
    }
}
