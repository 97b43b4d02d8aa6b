//! ONNX models: the LeNet of the repository, run and compressed by the program.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use dalr_onnx::{Engine, Model, Tensor};
use safetensors::tensor::SafeTensors;
use serde_json::Value;

use crate::harness::{Folder, program, said};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data").join(name)
}

/// Returns a command on the LeNet, or on a model and calibration inputs of the folder.
fn command(folder: &Folder, options: &[&str]) -> Command {
    let given = |name: &str, ours: &str| if folder.path(name).exists() { folder.path(name) } else { data(ours) };
    let mut command = Command::new(program());
    command.current_dir(folder.path("")).arg("compress").arg(given("model.onnx", "lenet_digits.onnx"));
    command.arg("--calibration").arg(given("inputs.npz", "digits.npz"));
    command.args(["-o", "out.onnx", "--json", "out.json", "--threads", "1"]).args(options);
    command
}

fn run(folder: &Folder, options: &[&str]) -> Output {
    command(folder, options).output().unwrap()
}

fn compress(folder: &Folder, options: &[&str]) -> Value {
    let output = run(folder, options);
    assert!(output.status.success(), "{options:?}: {}", said(&output));
    serde_json::from_slice(&std::fs::read(folder.path("out.json")).unwrap()).unwrap()
}

fn refuses(folder: &Folder, options: &[&str], code: i32, expected: &str) {
    let output = run(folder, options);
    assert_eq!(output.status.code(), Some(code), "{options:?}: {}", said(&output));
    assert!(said(&output).contains(expected), "{options:?}: expected `{expected}`, got {}", said(&output));
    let left = folder.names();
    assert!(!left.iter().any(|name| name.starts_with("out.")), "{left:?}");
}

/// Returns the scores of the 797 digits that calibration does not see, and their labels.
fn test_scores(model: &Path) -> (Vec<f32>, Vec<u8>) {
    let bytes = std::fs::read(data("lenet_digits.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let images = tensors.tensor("digits.images").unwrap().data()[1000 * 64..].to_vec();
    let labels = tensors.tensor("digits.labels").unwrap().data()[1000..].to_vec();
    let images = Tensor::integers(&[labels.len(), 8, 8], images.into_iter().map(i64::from).collect());
    let session = Engine::Embedded.load(&Model::open(model).unwrap(), 1).unwrap();
    let scores = session.run(&[("digits".into(), images)]).unwrap().remove(0);
    (scores.as_floats().unwrap().to_vec(), labels)
}

fn accuracy((scores, labels): &(Vec<f32>, Vec<u8>)) -> f64 {
    let best = |row: &[f32]| (0..10).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
    let right = scores.chunks_exact(10).zip(labels).filter(|(row, label)| best(row) == usize::from(**label));
    right.count() as f64 / labels.len() as f64
}

#[test]
fn a_network_keeps_its_accuracy() {
    let original = test_scores(&data("lenet_digits.onnx"));
    assert!((accuracy(&original) - 0.9536).abs() < 1e-4, "{}", accuracy(&original));
    // The budget, the fraction that it leaves, and the accuracy that the compressed model reaches.
    for (options, quantity, fraction, least) in [
        (&["--keep", "0.3"][..], "parameters", 0.3, 0.94),
        (&["--keep", "0.3", "--storage", "pivoted"], "parameters", 0.3, 0.94),
        (&["--keep", "0.3", "--sequential"], "parameters", 0.3, 0.94),
        (&["--macs", "0.5"], "multiply_adds", 0.5, 0.94),
        (&["--keep", "0.5", "--method", "svd", "--allocation", "uniform"], "parameters", 0.5, 0.25),
    ] {
        let folder = Folder::new();
        let report = compress(&folder, options);
        let count = |when: &str| report[quantity][when].as_f64().unwrap();
        assert!(count("after") <= fraction * count("before") && count("after") > 0.8 * fraction * count("before"));
        let compressed = test_scores(&folder.path("out.onnx"));
        assert!(accuracy(&compressed) >= least, "{options:?}: {}", accuracy(&compressed));
        let comparison = &report["comparison"];
        assert_eq!(comparison["samples"], 200);
        let bytes = std::fs::metadata(folder.path("out.onnx")).unwrap().len();
        assert_eq!(comparison["bytes"], serde_json::json!([248_174, bytes]));
        assert_eq!(folder.names(), ["out.json", "out.onnx"]);
    }
}

#[test]
fn the_comparison_is_that_of_the_held_out_inputs() {
    let folder = Folder::new();
    let digits = data("digits.npz");
    let report = compress(&folder, &["--rank", "5", "--held-out", digits.to_str().unwrap()]);
    // The same by the library, on the inputs of the other file.
    let model = |path: &Path| Engine::Embedded.load(&Model::open(path).unwrap(), 1).unwrap();
    let (before, after) = (model(&data("lenet_digits.onnx")), model(&folder.path("out.onnx")));
    let inputs = dalr_onnx::Inputs::open(&[digits], Model::open(data("lenet_digits.onnx")).unwrap().inputs()).unwrap();
    let (mut change, mut energy, mut same, mut samples) = (0.0, 0.0, 0, 0);
    inputs
        .for_each(|batch| {
            let scores = |session: &dalr_onnx::Session| session.run(&batch.inputs).unwrap().remove(0);
            let (x, y) = (scores(&before), scores(&after));
            let (x, y) = (x.as_floats().unwrap(), y.as_floats().unwrap());
            change += x.iter().zip(y).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>();
            energy += x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
            let best = |row: &[f32]| (0..10).max_by(|&a, &b| row[a].total_cmp(&row[b]));
            same += x.chunks_exact(10).zip(y.chunks_exact(10)).filter(|(x, y)| best(x) == best(y)).count();
            samples += batch.samples;
            Ok::<_, dalr_onnx::Error>(())
        })
        .unwrap();
    let output = &report["comparison"]["outputs"][0];
    assert_eq!((output["name"].as_str(), samples), (Some("scores"), 1000));
    let close = |found: &Value, expected: f64| (found.as_f64().unwrap() - expected).abs() < 1e-4 * expected;
    assert!(close(&output["relative_error"], f64::sqrt(change / energy)), "{output}");
    assert!(close(&output["top1"], same as f64 / 1000.0), "{output}");
}

#[test]
fn little_memory_gives_the_same_model() {
    let (one, many) = (Folder::new(), Folder::new());
    // The statistics of fc1 take 1.6 MB, those of all layers more.
    compress(&one, &["--keep", "0.3"]);
    compress(&many, &["--keep", "0.3", "--memory", "1.7M"]);
    let read = |folder: &Folder| std::fs::read(folder.path("out.onnx")).unwrap();
    assert!(read(&one) == read(&many));
    refuses(&Folder::new(), &["--keep", "0.3", "--memory", "1M"], 1, "the statistics of layer fc1 alone take 1600000");
}

#[test]
fn an_interrupted_sequential_run_is_resumed() {
    let (whole, folder) = (Folder::new(), Folder::new());
    let options = ["--keep", "0.3", "--sequential", "-v"];
    compress(&whole, &options);
    for signal in ["-INT", "-KILL"] {
        let mut child = command(&folder, &["--keep", "0.3", "--sequential", "-v", "--resume"])
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().starts_with("sequential: 1 of")));
        std::thread::spawn(move || lines.count());
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let status = child.wait().unwrap();
        assert!(!status.success(), "{status}");
        assert_eq!(folder.names(), ["out.onnx.work"]);
    }
    refuses_with_work(&folder, &["--keep", "0.4", "--sequential", "--resume"], "cannot resume, budget was");
    let resumed = [&options[..], &["--resume"]].concat();
    compress(&folder, &resumed);
    let read = |folder: &Folder| std::fs::read(folder.path("out.onnx")).unwrap();
    assert!(read(&folder) == read(&whole));
    assert_eq!(folder.names(), ["out.json", "out.onnx"]);
}

fn refuses_with_work(folder: &Folder, options: &[&str], expected: &str) {
    let output = run(folder, options);
    assert!(said(&output).contains(expected), "{}", said(&output));
    assert_eq!(folder.names(), ["out.onnx.work"]);
}

/// Writes an array as an archive without compression.
fn write_npz(path: &Path, name: &str, descr: &str, shape: &str, numbers: &[u8]) {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut array = b"\x93NUMPY\x01\x00".to_vec();
    array.extend((header.len() as u16).to_le_bytes());
    array.extend(header.as_bytes());
    array.extend(numbers);
    let name = format!("{name}.npy");
    let mut sum = crc32fast::Hasher::new();
    sum.update(&array);
    // The fields that a local header and the directory share.
    let mut common = [20_u16, 0, 0, 0, 0].map(u16::to_le_bytes).concat();
    common.extend(sum.finalize().to_le_bytes());
    common.extend([array.len() as u32, array.len() as u32].map(u32::to_le_bytes).concat());
    common.extend([name.len() as u16, 0].map(u16::to_le_bytes).concat());
    let mut file = [b"PK\x03\x04", &common[..], name.as_bytes(), &array].concat();
    let start = file.len() as u32;
    file.extend([b"PK\x01\x02\x14\x00", &common[..], &[0; 14], name.as_bytes()].concat());
    let size = file.len() as u32 - start;
    file.extend(b"PK\x05\x06\x00\x00\x00\x00\x01\x00\x01\x00");
    file.extend([size, start].map(u32::to_le_bytes).concat());
    file.extend([0, 0]);
    std::fs::write(path, file).unwrap();
}

#[test]
fn bad_inputs_and_budgets_are_refused() {
    let keep = ["--keep", "0.3"];
    let folder = Folder::new();
    let inputs = folder.path("inputs.npz");
    write_npz(&inputs, "digits", "|u1", "(10, 8, 8)", &[3; 640]);
    assert!(run(&folder, &["--keep", "0.5", "--force"]).status.success());
    for name in ["out.onnx", "out.json"] {
        std::fs::remove_file(folder.path(name)).unwrap();
    }
    write_npz(&inputs, "images", "|u1", "(10, 8, 8)", &[3; 640]);
    refuses(&folder, &keep, 1, "expected an entry for the model's input `digits`, got only `images`");
    write_npz(&inputs, "digits", "|u1", "(10, 8, 9)", &[3; 720]);
    refuses(&folder, &keep, 1, "expected `digits` of shape [any, 8, 8], got [10, 8, 9]");
    write_npz(&inputs, "digits", "<f4", "(10, 8, 8)", &[0; 2560]);
    refuses(&folder, &keep, 1, "expected `digits` of type u8, got floating-point numbers");
    write_npz(&inputs, "digits", "|u1", "(10, 8, 8)", &[3; 639]);
    refuses(&folder, &keep, 1, "639 of 640 bytes");
    std::fs::write(&inputs, b"PK\x03\x04 and no more").unwrap();
    refuses(&folder, &keep, 1, "inputs.npz: expected an archive of arrays");

    let folder = Folder::new();
    refuses(&folder, &["--keep", "1"], 1, "no layer is worth compressing");
    refuses(&folder, &["--keep", "0.3", "--include", "fc9"], 1, "--include fc9: matches no layer");
    refuses(&folder, &["--keep", "0.3", "--share-down"], 2, "--share-down goes with MODEL.safetensors");
    refuses(&folder, &["--keep", "0.3", "--macs", "0.3"], 2, "cannot be used with");
    refuses(&folder, &["--keep", "0.3", "--memory", "lots"], 2, "such as 500M or 2G");

    // The activations are NaN if the model divides by NaN.
    let mut model = std::fs::read(data("lenet_digits.onnx")).unwrap();
    let sixteen = 16_f32.to_le_bytes();
    let place = model.windows(4).rposition(|bytes| bytes == sixteen).unwrap();
    model[place..place + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(folder.path("model.onnx"), model).unwrap();
    refuses(&folder, &keep, 1, "layer conv1:");
    std::fs::write(folder.path("model.onnx"), b"no model").unwrap();
    refuses(&folder, &keep, 1, "not a valid ONNX model");
}

#[test]
fn inspection_lists_every_layer() {
    let inspect = |options: &[&str]| {
        let mut command = Command::new(program());
        command.arg("inspect").arg(data("lenet_digits.onnx")).args(options);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let digits = data("digits.npz");
    let text = inspect(&["--calibration", digits.to_str().unwrap()]);
    // 16 channels of 6 · 25 inputs at 10 × 10 positions.
    let row = |text: &str, name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_string();
    assert!(row(&text, "conv2 ").contains("16 × 150"), "{text}");
    assert!(row(&text, "conv2 ").contains(" 240000 "), "{text}");
    assert!(row(&text, "fc1 ").contains(" 48000 "), "{text}");
    assert!(text.contains("predicted output error") && text.contains("layers: 5, with 61706 parameters"), "{text}");
    let text = inspect(&[]);
    assert!(text.contains("weight error") && !text.contains("multiply–adds"), "{text}");
}
