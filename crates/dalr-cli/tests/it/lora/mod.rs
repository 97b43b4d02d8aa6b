//! `dalr lora`, compared with products of the stored factors and an SVD of the whole update.

mod complaints;
mod extract;
mod files;
mod transform;

use std::path::Path;
use std::process::{Command, Output};

use dalr::faer::{Mat, MatRef};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use crate::harness::{Folder, Tensor, Tensors, program, random, said};

/// Runs `dalr lora` in the folder.
fn lora(folder: &Folder, arguments: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.current_dir(folder.path("")).arg("lora").args(arguments).args(["--threads", "1", "-v"]);
    command.output().unwrap()
}

/// Runs `dalr lora` and returns what it printed.
fn succeeds(folder: &Folder, arguments: &[&str]) -> String {
    let output = lora(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `dalr lora`, which must fail with this message, and leave no output.
fn refuses(folder: &Folder, arguments: &[&str], expected: &str) {
    let before = folder.names();
    let output = lora(folder, arguments);
    assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}: {:?} {}", output.status, said(&output));
    assert!(said(&output).contains(expected), "{arguments:?}: expected `{expected}`, got {}", said(&output));
    assert_eq!(folder.names(), before, "{arguments:?}");
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The module of this name in a report.
fn reported<'a>(report: &'a Value, name: &str) -> &'a Value {
    let modules = report["modules"].as_array().unwrap();
    modules.iter().find(|module| module["name"] == name).unwrap_or_else(|| panic!("no {name} in {report}"))
}

/// The tensor or module of this name that a report says is left out.
fn left_out<'a>(report: &'a Value, name: &str) -> &'a Value {
    let others = report["left_out"].as_array().unwrap();
    others.iter().find(|other| other["name"] == name).unwrap_or_else(|| panic!("no {name} in {report}"))
}

/// A tensor as a matrix whose columns are all axes but the first.
fn matrix(tensor: &Tensor) -> Mat<f64> {
    let numbers = tensor.numbers();
    MatRef::from_row_major_slice(&numbers, tensor.shape[0], numbers.len() / tensor.shape[0]).to_owned()
}

fn tensor(dtype: Dtype, shape: &[usize], matrix: &Mat<f64>) -> Tensor {
    let rows = matrix.row_iter().flat_map(|row| row.iter().copied().collect::<Vec<_>>());
    Tensor::of(dtype, shape, &rows.collect::<Vec<_>>())
}

/// The update of a module in an adapter of PEFT, as PEFT computes it.
fn peft_update(folder: &Path, name: &str) -> Mat<f64> {
    let config = json_of(&folder.join("adapter_config.json"));
    let tensors = Tensors::read(&folder.join("adapter_model.safetensors")).tensors;
    let start = format!("base_model.model.{name}");
    let (down, up) = (&tensors[&format!("{start}.lora_A.weight")], &tensors[&format!("{start}.lora_B.weight")]);
    assert_eq!(config["peft_type"], "LORA");
    let of = |pattern: &str, default: &str| {
        config[pattern].get(name).unwrap_or(&config[default]).as_f64().unwrap_or_else(|| panic!("{config}"))
    };
    let (rank, alpha) = (of("rank_pattern", "r"), of("alpha_pattern", "lora_alpha"));
    assert_eq!((down.shape[0] as f64, up.shape[1] as f64), (rank, rank), "{name}");
    let scale = if config["use_rslora"] == json!(true) { alpha / rank.sqrt() } else { alpha / rank };
    let update = matrix(up) * matrix(down) * dalr::faer::Scale(scale);
    if config["fan_in_fan_out"] == json!(true) { update.transpose().to_owned() } else { update }
}

/// The update of a module in a file of kohya-ss, as its programs compute it.
fn kohya_update(path: &Path, name: &str) -> Mat<f64> {
    let tensors = Tensors::read(path).tensors;
    let (down, up) = (&tensors[&format!("{name}.lora_down.weight")], &tensors[&format!("{name}.lora_up.weight")]);
    let rank = down.shape[0] as f64;
    let alpha = tensors.get(&format!("{name}.alpha")).map_or(rank, |alpha| alpha.numbers()[0]);
    matrix(up) * matrix(down) * dalr::faer::Scale(alpha / rank)
}

/// The smallest possible error of an update at this rank.
fn least_error(update: &Mat<f64>, rank: usize) -> f64 {
    let values = update.singular_values().unwrap();
    values.iter().skip(rank).map(|value| value * value).sum::<f64>().sqrt()
}

/// An update whose singular values fall by this factor.
fn decaying(seed: u64, (rows, columns): (usize, usize), factor: f64) -> Mat<f64> {
    let rank = rows.min(columns);
    let orthonormal = |seed: u64, rows: usize| {
        let numbers = random(seed, rows, rank, 1.0);
        MatRef::from_row_major_slice(&numbers, rows, rank).to_owned().qr().compute_thin_Q()
    };
    let (left, right) = (orthonormal(seed, rows), orthonormal(seed + 1000, columns));
    Mat::from_fn(rows, rank, |i, j| left[(i, j)] * factor.powi(j as i32)) * right.transpose()
}

/// The modules of the checkpoints that `checkpoints` makes: names and shapes.
const MODULES: [(&str, &[usize]); 5] = [
    ("model.layers.0.q_proj", &[12, 16]),
    ("model.layers.0.up", &[30, 16]),
    ("model.layers.10.q_proj", &[12, 16]),
    ("conv", &[6, 4, 3, 3]),
    ("point", &[8, 5, 1, 1]),
];

/// Writes `base.safetensors` and `tuned.safetensors`, and returns the updates by module. Norms,
/// biases and an embedding differ, too.
fn checkpoints(folder: &Folder, dtype: Dtype) -> Vec<(&'static str, Mat<f64>)> {
    let (mut base, mut tuned, mut updates) = (Tensors::default(), Tensors::default(), Vec::new());
    for (seed, (name, shape)) in MODULES.into_iter().enumerate() {
        let (rows, columns) = (shape[0], shape[1..].iter().product::<usize>());
        let weight = random(seed as u64, rows, columns, 1.0);
        let update = decaying(50 + seed as u64, (rows, columns), 0.6);
        let before = Tensor::of(dtype, shape, &weight);
        let after = tensor(dtype, shape, &(matrix(&before) + update));
        updates.push((name, matrix(&after) - matrix(&before)));
        base = base.with(&format!("{name}.weight"), before);
        tuned = tuned.with(&format!("{name}.weight"), after);
    }
    let vector = |number: f64| Tensor::of(dtype, &[12], &[number; 12]);
    let table = |number: f64| Tensor::of(dtype, &[20, 16], &random(number as u64, 20, 16, 1.0));
    for (name, before, after) in [
        ("model.layers.0.q_proj.bias", vector(1.0), vector(2.0)),
        ("model.norm.weight", vector(1.0), vector(1.5)),
        ("model.embed_tokens.weight", table(1.0), table(2.0)),
        ("model.other.bias", vector(3.0), vector(3.0)),
        ("positions", Tensor::of(Dtype::I64, &[3], &[0.0, 1.0, 2.0]), Tensor::of(Dtype::I64, &[3], &[0.0, 1.0, 2.0])),
    ] {
        base = base.with(name, before);
        tuned = tuned.with(name, after);
    }
    base.write(&folder.path("base.safetensors"));
    tuned.write(&folder.path("tuned.safetensors"));
    updates
}

const EXTRACT: [&str; 5] = ["extract", "--base", "base.safetensors", "--tuned", "tuned.safetensors"];

fn extract<'a>(options: &[&'a str]) -> Vec<&'a str> {
    [&EXTRACT[..], options].concat()
}

/// A module of an adapter: its name, the axes of its weight, and its rank.
type Shape<'a> = (&'a str, &'a [usize], usize);

/// Random factors of a module, `down` and `up`.
fn factors(seed: u64, (_, shape, rank): Shape<'_>, dtype: Dtype) -> [Tensor; 2] {
    let columns = shape[1..].iter().product::<usize>();
    let down_shape: Vec<usize> = [&[rank], &shape[1..]].concat();
    let mut up_shape = vec![1; shape.len()];
    (up_shape[0], up_shape[1]) = (shape[0], rank);
    let down = Tensor::of(dtype, &down_shape, &random(seed, rank, columns, 0.9));
    [down, Tensor::of(dtype, &up_shape, &random(seed + 500, shape[0], rank, 0.7))]
}

/// Writes an adapter of PEFT with these settings.
fn write_peft(folder: &Path, seed: u64, modules: &[Shape<'_>], settings: Value) {
    let mut tensors = Tensors::default();
    for (index, module) in modules.iter().enumerate() {
        let [down, up] = factors(seed + index as u64, *module, Dtype::F32);
        let start = format!("base_model.model.{}", module.0);
        tensors = tensors.with(&format!("{start}.lora_A.weight"), down).with(&format!("{start}.lora_B.weight"), up);
    }
    let mut config = json!({
        "peft_type": "LORA", "r": modules[0].2, "lora_alpha": 16, "target_modules": ["q_proj", "up"],
        "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": false, "fan_in_fan_out": false,
        "task_type": "CAUSAL_LM", "lora_dropout": 0.05,
    });
    for (key, value) in settings.as_object().unwrap() {
        config[key] = value.clone();
    }
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    tensors.write(&folder.join("adapter_model.safetensors"));
}

/// Writes a file of kohya-ss with this alpha for every module.
fn write_kohya(path: &Path, seed: u64, modules: &[Shape<'_>], alpha: Option<f64>) {
    let mut tensors = Tensors::default();
    for (index, module) in modules.iter().enumerate() {
        let [down, up] = factors(seed + index as u64, *module, Dtype::F16);
        let name = module.0;
        tensors = tensors.with(&format!("{name}.lora_down.weight"), down).with(&format!("{name}.lora_up.weight"), up);
        if let Some(alpha) = alpha {
            tensors = tensors.with(&format!("{name}.alpha"), Tensor::of(Dtype::F16, &[], &[alpha]));
        }
    }
    tensors.metadata = [("ss_output_name", "style"), ("ss_network_dim", "8"), ("sshs_model_hash", "abc")]
        .map(|(key, value)| (key.into(), value.into()))
        .into();
    tensors.write(path);
}

/// Two linear layers and two convolutions.
const KOHYA: [Shape<'static>; 4] = [
    ("lora_unet_mid_attn_to_q", &[24, 20], 8),
    ("lora_te_text_layers_0_fc1", &[20, 30], 8),
    ("lora_unet_mid_conv", &[16, 6, 3, 3], 8),
    ("lora_unet_mid_proj_in", &[18, 14, 1, 1], 8),
];

const PEFT: [Shape<'static>; 3] = [
    ("model.layers.0.q_proj", &[24, 20], 8),
    ("model.layers.0.up", &[40, 20], 8),
    ("model.layers.1.q_proj", &[24, 20], 8),
];
