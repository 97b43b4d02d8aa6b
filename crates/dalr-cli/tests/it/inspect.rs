//! `dalr inspect` lists layers, sizes and errors.

use std::process::{Command, Output};

use dalr::faer::MatRef;
use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, TruncatedSvd};
use safetensors::tensor::Dtype;
use serde_json::Value;

use crate::harness::{Folder, Tensor, layer, program, random, said, stack};

fn inspect(folder: &Folder, options: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.current_dir(folder.path("")).args(["inspect", "model.safetensors", "--threads", "1"]).args(options);
    command.output().unwrap()
}

fn report(folder: &Folder, options: &[&str]) -> Value {
    let mut all = vec!["--force", "--json", "report.json"];
    all.extend(options);
    let output = inspect(folder, &all);
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&std::fs::read(folder.path("report.json")).unwrap()).unwrap()
}

#[test]
fn errors_are_the_library_s_with_and_without_calibration() {
    let folder = Folder::new();
    let (model, calibration) = stack(&folder, 2, 24);
    let model = layer(model, "wide", Dtype::F32, [2, 24], true);
    model.write(&folder.path("model.safetensors"));
    let numbers = |tensor: &Tensor| -> Vec<f32> { tensor.numbers().into_iter().map(|x| x as f32).collect() };
    let weight = numbers(&model.tensors["layer.1.weight"]);
    let weight = MatRef::from_row_major_slice(&weight, 24, 24).to_owned();
    let bias = numbers(&model.tensors["layer.1.bias"]).into_iter().collect();
    let original = Linear::new(weight, Some(bias)).unwrap();
    let samples = numbers(&calibration.tensors["layer.1.input"]);
    let mut stats = ActivationStats::new(24);
    stats.update(MatRef::from_row_major_slice(&samples, 48, 24)).unwrap();

    // Without calibration every 2-D weight is a layer.
    let by_weight = report(&folder, &[]);
    assert_eq!(by_weight["error"], "weight error");
    assert_eq!(by_weight["layers"].as_array().unwrap().len(), 3);
    let svd = TruncatedSvd::new().decompose(&original, &ActivationStats::new(24), 11).unwrap();
    // Rank 6 has half of the parameters.
    let kept: f64 = svd.energies().iter().take(6).sum::<f64>() / svd.total_energy();
    let point = &by_weight["layers"][1]["points"][1];
    assert_eq!((&point["fraction"], &point["rank"]), (&0.5.into(), &6.into()));
    assert!((point["relative_error"].as_f64().unwrap() - (1.0 - kept).sqrt()).abs() < 1e-6, "{point}");
    // A tenth of a layer of two outputs is less than rank 1.
    let wide = &by_weight["layers"][2];
    assert_eq!(
        (&wide["name"], &wide["parameters"], &wide["break_even_rank"]),
        (&"wide".into(), &50.into(), &(48.0 / 26.0).into())
    );
    assert_eq!(wide["points"][3]["rank"], Value::Null);

    let by_outputs = report(&folder, &["--calibration", "calibration.safetensors"]);
    assert_eq!(by_outputs["error"], "predicted output error");
    assert_eq!(by_outputs["layers"].as_array().unwrap().len(), 2);
    assert_eq!(by_outputs["passed_through"][1]["reason"], "no `wide.input` in the calibration data");
    let dalr = Dalr::new().decompose(&original, &stats, 11).unwrap();
    for (point, rank) in by_outputs["layers"][1]["points"].as_array().unwrap().iter().zip([9, 6, 3, 1]) {
        assert_eq!(point["rank"], rank);
        let expected = dalr.relative_error(rank).unwrap();
        assert!((point["relative_error"].as_f64().unwrap() - expected).abs() <= 1e-5 * expected, "{point} {expected}");
    }
}

#[test]
fn the_table_has_every_layer_and_the_copied_tensors() {
    let folder = Folder::new();
    let (model, _) = stack(&folder, 2, 24);
    model.with("norm", Tensor::of(Dtype::F32, &[24], &random(1, 1, 24, 1.0))).write(&folder.path("model.safetensors"));
    let output = inspect(&folder, &["--exclude", "layer.0"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let cells: Vec<&str> = lines[1].split_whitespace().collect();
    assert_eq!(cells[..7], ["layer.1", "24", "×", "24", "F32", "600", "12.0"]);
    assert!(
        text.contains("other tensors, copied: 3 (1 × a bias without a layer; 1 × excluded; 1 × not a weight)"),
        "{text}"
    );
    assert_eq!(lines.last(), Some(&"layers: 1, with 600 parameters"));
    let refused = inspect(&folder, &["--json", "model.safetensors", "--force"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(said(&refused).contains("an output cannot replace an input"), "{}", said(&refused));
}
