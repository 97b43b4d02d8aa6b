//! Adapters from the difference of two checkpoints.

use dalr::faer::Mat;
use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor};
use safetensors::tensor::Dtype;
use serde_json::json;

use super::{
    MODULES, checkpoints, extract, json_of, kohya_update, least_error, left_out, matrix, peft_update, refuses,
    reported, succeeds, tensor,
};
use crate::harness::{Folder, Tensor, Tensors, random};

#[test]
fn base_and_adapter_are_within_the_reported_error_of_the_tuned_model() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
        let folder = Folder::new();
        let updates = checkpoints(&folder, dtype);
        succeeds(&folder, &extract(&["--rank", "4", "-o", "peft", "--json", "report.json"]));
        succeeds(&folder, &extract(&["--rank", "4", "-o", "kohya.safetensors"]));
        let report = json_of(&folder.path("report.json"));
        for (name, update) in &updates {
            let module = reported(&report, name);
            assert_eq!((&module["rank"], &module["error_of"]), (&json!(4), &json!("weight")), "{name}");
            let optimum = least_error(update, 4) / update.norm_l2();
            let predicted = module["relative_error"].as_f64().unwrap();
            assert!((predicted - optimum).abs() < 1e-5, "{name}: {predicted} {optimum}");
            for found in [
                peft_update(&folder.path("peft"), name),
                kohya_update(&folder.path("kohya.safetensors"), &format!("lora_unet_{}", name.replace('.', "_"))),
            ] {
                let error = (update - found).norm_l2() / update.norm_l2();
                assert!((error - predicted).abs() < 1e-5, "{name} {dtype:?}: {error} {predicted}");
            }
        }
        let tensors = Tensors::read(&folder.path("peft/adapter_model.safetensors")).tensors;
        assert_eq!(tensors.len(), 2 * MODULES.len(), "{:?}", tensors.keys());
        assert!(tensors.values().all(|tensor| tensor.dtype == Dtype::F32));
        assert_eq!(tensors["base_model.model.conv.lora_A.weight"].shape, [4, 4, 3, 3]);
        assert_eq!(tensors["base_model.model.conv.lora_B.weight"].shape, [6, 4, 1, 1]);
    }
}

#[test]
fn everything_that_is_not_in_the_adapter_is_listed_and_can_be_written_beside_it() {
    let folder = Folder::new();
    checkpoints(&folder, Dtype::BF16);
    let options = [
        "--rank",
        "3",
        "-o",
        "out",
        "--rest",
        "rest.safetensors",
        "--json",
        "report.json",
        "--include",
        "model.*",
        "--include",
        "model.embed_tokens",
    ];
    let text = succeeds(&folder, &extract(&options));
    let report = json_of(&folder.path("report.json"));
    let all = report["left_out"].as_array().unwrap();
    assert_eq!(all.len() + report["modules"].as_array().unwrap().len(), MODULES.len() + 5);
    for (name, reason, changed) in [
        ("model.layers.0.q_proj.bias", "a bias", true),
        ("model.norm.weight", "a norm or another vector", true),
        ("model.other.bias", "a bias", false),
        ("positions", "not a weight", false),
        ("conv.weight", "not included", true),
        ("point.weight", "not included", true),
    ] {
        let other = left_out(&report, name);
        assert_eq!((&other["reason"], &other["changed"]), (&json!(reason), &json!(changed)), "{name}");
        assert!(text.contains(name), "{text}");
    }
    // The option names it, so it is taken for a linear layer.
    assert_eq!(reported(&report, "model.embed_tokens")["rank"], 3);
    let (rest, tuned) =
        (Tensors::read(&folder.path("rest.safetensors")), Tensors::read(&folder.path("tuned.safetensors")));
    let names: Vec<&str> = rest.tensors.keys().map(String::as_str).collect();
    assert_eq!(names, ["conv.weight", "model.layers.0.q_proj.bias", "model.norm.weight", "point.weight"]);
    assert!(rest.tensors.iter().all(|(name, tensor)| tuned.tensors[name] == *tensor));

    let text = succeeds(&folder, &extract(&["--rank", "3", "-o", "other", "--json", "other.json"]));
    let report = json_of(&folder.path("other.json"));
    assert_eq!(left_out(&report, "model.embed_tokens.weight")["reason"], "an embedding, by its name");
    assert!(text.contains("changed, but not in the adapter: 3"), "{text}");
}

#[test]
fn one_budget_is_allocated_to_all_modules() {
    let folder = Folder::new();
    let mut updates = checkpoints(&folder, Dtype::F64);
    // One update is so small that it is not worth a rank, one is large.
    let mut tuned = Tensors::read(&folder.path("tuned.safetensors"));
    let base = Tensors::read(&folder.path("base.safetensors"));
    for (index, size) in [(0, 1e-5), (1, 20.0)] {
        let (name, update) = &mut updates[index];
        *update *= dalr::faer::Scale(size);
        let name = format!("{name}.weight");
        let before = &base.tensors[&name];
        tuned = tuned.with(&name, tensor(Dtype::F64, &before.shape, &(matrix(before) + &*update)));
    }
    tuned.write(&folder.path("tuned.safetensors"));
    // The optimum: always the largest of the singular values that are left.
    let mut values: Vec<(f64, usize)> = Vec::new();
    for (index, (_, update)) in updates.iter().enumerate() {
        values.extend(update.singular_values().unwrap().into_iter().map(|value| (value, index)));
    }
    values.sort_by(|a, b| b.0.total_cmp(&a.0));
    for total in [5, 11, 20] {
        let total_text = total.to_string();
        succeeds(
            &folder,
            &extract(&[
                "--total-rank",
                &total_text,
                "-o",
                "out",
                "--json",
                "report.json",
                "--force",
                "--max-rank",
                "12",
            ]),
        );
        let report = json_of(&folder.path("report.json"));
        for (index, (name, _)) in updates.iter().enumerate() {
            let expected = values[..total].iter().filter(|(_, of)| *of == index).count();
            if expected == 0 {
                assert_eq!(left_out(&report, name)["reason"], "its change is too small for the budget", "{name}");
                assert_eq!(left_out(&report, name)["changed"], true);
            } else {
                assert_eq!(reported(&report, name)["rank"], json!(expected), "{name} of {total}");
                peft_update(&folder.path("out"), name);
            }
        }
        let squared = |values: &[(f64, usize)]| values.iter().map(|(value, _)| value * value).sum::<f64>();
        let expected = (squared(&values[total..]) / squared(&values)).sqrt();
        assert!((report["relative_error"].as_f64().unwrap() - expected).abs() < 1e-6, "{total}");
    }
    succeeds(&folder, &extract(&["--parameters", "300", "-o", "out", "--json", "report.json", "--force"]));
    let report = json_of(&folder.path("report.json"));
    assert!((200..=300).contains(&report["parameters"].as_u64().unwrap()), "{report}");
    refuses(&folder, &extract(&["--parameters", "5", "-o", "none"]), "the budget is too small for any module");
}

#[test]
fn rules_give_the_smallest_rank_of_each_module() {
    let folder = Folder::new();
    let updates = checkpoints(&folder, Dtype::F64);
    for (option, goal) in [("--error", 0.2), ("--energy", 1.0 - 0.05_f64.powi(2))] {
        let text = goal.to_string();
        succeeds(&folder, &extract(&[option, &text, "-o", "out", "--json", "report.json", "--force"]));
        let report = json_of(&folder.path("report.json"));
        let error = if option == "--error" { goal } else { 0.05 };
        for (name, update) in &updates {
            let rank = reported(&report, name)["rank"].as_u64().unwrap() as usize;
            let limit = error * update.norm_l2();
            assert!(
                least_error(update, rank) <= limit * (1.0 + 1e-9) && least_error(update, rank - 1) > limit,
                "{name}"
            );
        }
    }
    succeeds(
        &folder,
        &extract(&["--error", "0.01", "--max-rank", "2", "-o", "out", "--json", "report.json", "--force"]),
    );
    let module = reported(&json_of(&folder.path("report.json")), "conv").clone();
    assert_eq!(module["rank"], 2);
    assert!(module["remarks"][0].as_str().unwrap().contains("needs more than rank 2"), "{module}");
}

#[test]
fn with_calibration_data_the_outputs_count() {
    let folder = Folder::new();
    let updates = checkpoints(&folder, Dtype::F32);
    let (name, update) = &updates[1];
    let samples = Tensor::of(Dtype::F32, &[50, 2, 16], &random(9, 100, 16, 0.6));
    let shared = Tensors::default().with("shared", samples.clone()).with("unread.input", samples.clone());
    shared.write(&folder.path("samples.safetensors"));
    let map = json!({(*name): "shared", "model.layers.0.q_proj": "shared"});
    std::fs::write(folder.path("map.json"), map.to_string()).unwrap();
    let options = [
        "--calibration",
        "samples.safetensors",
        "--inputs",
        "map.json",
        "--rank",
        "2",
        "-o",
        "aware",
        "--json",
        "aware.json",
    ];
    succeeds(&folder, &extract(&options));
    succeeds(&folder, &extract(&["--rank", "2", "-o", "blind"]));

    let inputs = matrix(&Tensor { shape: vec![100, 16], ..samples });
    let outputs = &inputs * update.transpose();
    let mean = Mat::<f64>::ones(1, 100) * &outputs * dalr::faer::Scale(0.01);
    let spread = (&outputs - Mat::<f64>::ones(100, 1) * mean).norm_l2();
    let error = |folder_name: &str| {
        let found = peft_update(&folder.path(folder_name), name);
        (&inputs * (update - found).transpose()).norm_l2() / spread
    };
    let report = json_of(&folder.path("aware.json"));
    let module = reported(&report, name);
    assert_eq!((&module["error_of"], &module["samples"]), (&json!("outputs"), &json!(100)));
    assert!((error("aware") - module["relative_error"].as_f64().unwrap()).abs() < 1e-5, "{module}");
    assert!(error("aware") < 0.9 * error("blind"), "{} {}", error("aware"), error("blind"));
    // The library with the same data.
    let mut stats = ActivationStats::<f64>::new(16);
    stats.update(inputs.as_ref()).unwrap();
    let layer = Linear::new(update.clone(), None).unwrap();
    let expected = Dalr::new().decompose(&layer, &stats, 2).unwrap().relative_error(2).unwrap();
    assert!((error("aware") - expected).abs() < 1e-5);
    // The other modules have no data, and say so.
    let module = reported(&report, "conv");
    assert_eq!(module["error_of"], "weight");
    assert!(module["remarks"].to_string().contains("no calibration data"), "{module}");
    let options = ["--calibration", "samples.safetensors", "--inputs", "map.json", "--total-rank", "9", "-o", "none"];
    refuses(&folder, &extract(&options), "no calibration data, so that its error cannot be compared");
    refuses(
        &folder,
        &extract(&["--calibration", "samples.safetensors", "--rank", "2", "-o", "none"]),
        "no module has data",
    );
}

#[test]
fn weights_stored_as_inputs_by_outputs_are_transposed() {
    let folder = Folder::new();
    let (before, update) = (random(1, 10, 30, 1.0), decaying_between(10, 30));
    let before = Tensor::of(Dtype::F32, &[10, 30], &before);
    let after = tensor(Dtype::F32, &[10, 30], &(matrix(&before) + &update));
    Tensors::default().with("h.c_attn.weight", before).write(&folder.path("base.safetensors"));
    Tensors::default().with("h.c_attn.weight", after).write(&folder.path("tuned.safetensors"));
    succeeds(&folder, &extract(&["--rank", "10", "-o", "out", "--fan-in-fan-out"]));
    let tensors = Tensors::read(&folder.path("out/adapter_model.safetensors")).tensors;
    assert_eq!(tensors["base_model.model.h.c_attn.lora_A.weight"].shape, [10, 10]);
    assert_eq!(tensors["base_model.model.h.c_attn.lora_B.weight"].shape, [30, 10]);
    assert_eq!(json_of(&folder.path("out/adapter_config.json"))["fan_in_fan_out"], true);
    assert!((peft_update(&folder.path("out"), "h.c_attn") - &update).norm_l2() < 1e-5 * update.norm_l2());
}

fn decaying_between(rows: usize, columns: usize) -> Mat<f64> {
    super::decaying(3, (rows, columns), 0.5)
}
