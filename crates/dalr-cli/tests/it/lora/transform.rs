//! Resized and merged adapters.

use dalr::faer::{Mat, Scale};
use safetensors::tensor::Dtype;
use serde_json::json;

use super::{
    KOHYA, PEFT, json_of, kohya_update, least_error, matrix, peft_update, refuses, reported, succeeds, tensor,
    write_kohya, write_peft,
};
use crate::harness::{Folder, Tensors, random};

#[test]
fn a_resized_adapter_is_the_closest_one_of_its_ranks() {
    let folder = Folder::new();
    write_peft(&folder.path("in"), 1, &PEFT, json!({"lora_alpha": 24}));
    write_kohya(&folder.path("in.safetensors"), 1, &KOHYA, Some(4.0));
    for rank in ["1", "3", "8"] {
        succeeds(&folder, &["resize", "in", "--rank", rank, "-o", "out", "--json", "peft.json", "--force"]);
        succeeds(
            &folder,
            &[
                "resize",
                "in.safetensors",
                "--rank",
                rank,
                "-o",
                "out.safetensors",
                "--json",
                "kohya.json",
                "--force",
                "--dtype",
                "f32",
            ],
        );
        let check = |report: &str, name: &str, before: Mat<f64>, after: Mat<f64>| {
            let module = reported(&json_of(&folder.path(report)), name).clone();
            assert_eq!(module["rank"].to_string(), rank, "{name}");
            let (error, norm) = ((&before - after).norm_l2(), before.norm_l2());
            let least = least_error(&before, rank.parse().unwrap());
            assert!(error <= least + 1e-6 * norm, "{name} {rank}: {error} {least}");
            assert!((module["relative_error"].as_f64().unwrap() - least / norm).abs() < 1e-6, "{module}");
        };
        for (name, ..) in PEFT {
            check("peft.json", name, peft_update(&folder.path("in"), name), peft_update(&folder.path("out"), name));
        }
        for (name, ..) in KOHYA {
            let updates = ["in.safetensors", "out.safetensors"].map(|file| kohya_update(&folder.path(file), name));
            let [before, after] = updates;
            check("kohya.json", name, before, after);
        }
    }
    // The settings that do not depend on the ranks are kept, and so are the dtypes.
    let config = json_of(&folder.path("out/adapter_config.json"));
    assert_eq!((&config["target_modules"], &config["lora_dropout"]), (&json!(["q_proj", "up"]), &json!(0.05)));
    assert_eq!((&config["r"], &config["lora_alpha"], &config["rank_pattern"]), (&json!(8), &json!(8), &json!({})));
    succeeds(&folder, &["resize", "in.safetensors", "--rank", "3", "-o", "half.safetensors"]);
    let half = Tensors::read(&folder.path("half.safetensors"));
    let down = &half.tensors["lora_unet_mid_conv.lora_down.weight"];
    assert_eq!((down.dtype, &down.shape[..]), (Dtype::F16, &[3, 6, 3, 3][..]));
    assert_eq!(half.tensors["lora_unet_mid_conv.lora_up.weight"].shape, [16, 3, 1, 1]);
    assert_eq!(half.metadata["ss_output_name"], "style");
    assert_eq!((&*half.metadata["ss_network_dim"], &*half.metadata["ss_network_alpha"]), ("3", "3"));
    assert!(!half.metadata.contains_key("sshs_model_hash"), "the checksum is of other tensors");
}

#[test]
fn scales_of_all_kinds_are_honoured() {
    let folder = Folder::new();
    let mixed = [
        ("model.layers.0.q_proj", &[24, 20][..], 4),
        ("model.layers.0.up", &[40, 20], 8),
        ("model.layers.10.q_proj", &[24, 20], 8),
    ];
    for settings in [
        json!({"r": 8, "lora_alpha": 2, "rank_pattern": {"model.layers.0.q_proj": 4}, "alpha_pattern": {"model.layers.0.up": 32}}),
        json!({"r": 8, "rank_pattern": {"layers.0.q_proj": 4}, "alpha_pattern": {"layers\\.[0-9]+\\.q_proj": 3.5}, "use_rslora": true}),
        json!({"r": 8, "lora_alpha": 0.5, "rank_pattern": {"^model.layers.0.q_proj": 4}}),
    ] {
        write_peft(&folder.path("in"), 3, &mixed, settings.clone());
        succeeds(&folder, &["resize", "in", "--rank", "8", "-o", "out", "--force"]);
        // The oracle knows only full names.
        let config = json_of(&folder.path("in/adapter_config.json"));
        let root = config["use_rslora"] == json!(true);
        let tensors = Tensors::read(&folder.path("in/adapter_model.safetensors")).tensors;
        for (name, _, rank) in mixed {
            let alpha = match (config["alpha_pattern"].as_object().unwrap().keys().next().map(String::as_str), name) {
                (Some("model.layers.0.up"), "model.layers.0.up") => 32.0,
                (Some("layers\\.[0-9]+\\.q_proj"), "model.layers.0.q_proj" | "model.layers.10.q_proj") => 3.5,
                _ => config["lora_alpha"].as_f64().unwrap(),
            };
            let scale = alpha / if root { (rank as f64).sqrt() } else { rank as f64 };
            let part = |part: &str| matrix(&tensors[&format!("base_model.model.{name}.lora_{part}.weight")]);
            let expected = part("B") * part("A") * Scale(scale);
            let found = peft_update(&folder.path("out"), name);
            assert!((&expected - found).norm_l2() < 1e-6 * expected.norm_l2(), "{name} {settings}");
        }
    }
    // A file of kohya-ss without alpha has a scale of 1.
    for (alpha, file) in
        [(None, "none.safetensors"), (Some(1.0), "one.safetensors"), (Some(512.0), "large.safetensors")]
    {
        write_kohya(&folder.path(file), 4, &KOHYA, alpha);
        succeeds(&folder, &["resize", file, "--rank", "8", "-o", "out.safetensors", "--force", "--dtype", "f32"]);
        for (name, ..) in KOHYA {
            let (before, after) =
                (kohya_update(&folder.path(file), name), kohya_update(&folder.path("out.safetensors"), name));
            assert!((&before - after).norm_l2() < 1e-6 * before.norm_l2(), "{name} {alpha:?}");
        }
    }
}

#[test]
fn ranks_that_differ_between_modules_are_written_as_patterns() {
    let folder = Folder::new();
    write_peft(&folder.path("in"), 7, &PEFT, json!({}));
    succeeds(&folder, &["resize", "in", "--total-rank", "13", "-o", "out", "--json", "report.json"]);
    let (config, report) = (json_of(&folder.path("out/adapter_config.json")), json_of(&folder.path("report.json")));
    let ranks: Vec<u64> = PEFT.iter().map(|(name, ..)| reported(&report, name)["rank"].as_u64().unwrap()).collect();
    assert_eq!(ranks.iter().sum::<u64>(), 13);
    assert_eq!(config["rank_pattern"].as_object().unwrap().len(), 3);
    let mut squared = 0.0;
    for (name, ..) in PEFT {
        // Reads the patterns.
        let (before, after) = (peft_update(&folder.path("in"), name), peft_update(&folder.path("out"), name));
        squared += (before - after).squared_norm_l2();
    }
    let norm: f64 = PEFT.iter().map(|(name, ..)| peft_update(&folder.path("in"), name).squared_norm_l2()).sum();
    assert!((report["relative_error"].as_f64().unwrap() - (squared / norm).sqrt()).abs() < 1e-6);
    // Resized again, the patterns are read as they were written.
    succeeds(&folder, &["resize", "out", "--rank", "8", "-o", "again"]);
    for (name, ..) in PEFT {
        let (before, after) = (peft_update(&folder.path("out"), name), peft_update(&folder.path("again"), name));
        assert!((&before - after).norm_l2() < 1e-6 * before.norm_l2(), "{name}");
    }
}

#[test]
fn names_that_end_like_other_names_get_their_own_rank_and_no_other_module() {
    let folder = Folder::new();
    let modules = [("proj", &[20, 20][..], 2), ("block.proj", &[20, 20], 4), ("a.block.proj", &[20, 20], 3)];
    // As PEFT reads it: the first pattern that matches the name or its end.
    let pattern = json!({"^proj": 2, "^block.proj": 4, "a.block.proj": 3});
    write_peft(&folder.path("in"), 7, &modules, json!({"r": 9, "rank_pattern": pattern, "alpha_pattern": pattern}));
    succeeds(&folder, &["resize", "in", "--rank", "4", "-o", "out"]);
    assert_eq!(json_of(&folder.path("out/adapter_config.json"))["rank_pattern"], pattern);

    let weights = |size: f64| {
        let part = |seed: u64| tensor(Dtype::F32, &[6, 6], &(super::decaying(seed, (6, 6), 0.5) * Scale(size)));
        Tensors::default().with("proj.weight", part(1)).with("block.proj.weight", part(2))
    };
    weights(1.0).write(&folder.path("base.safetensors"));
    weights(2.0).write(&folder.path("tuned.safetensors"));
    let options = ["--rank", "2", "-o", "only", "--exclude", "block.*"];
    succeeds(&folder, &super::extract(&options));
    assert_eq!(json_of(&folder.path("only/adapter_config.json"))["target_modules"], "proj");
    succeeds(&folder, &super::extract(&["--rank", "2", "-o", "both"]));
    assert_eq!(json_of(&folder.path("both/adapter_config.json"))["target_modules"], json!(["block.proj", "proj"]));
}

#[test]
fn merging_is_the_weighted_sum() {
    let folder = Folder::new();
    write_peft(&folder.path("a"), 1, &PEFT, json!({"lora_alpha": 4}));
    write_peft(&folder.path("b"), 2, &PEFT[..2], json!({"lora_alpha": 32}));
    succeeds(&folder, &["merge", "a:0.7", "b:-0.25", "-o", "exact", "--json", "report.json"]);
    succeeds(&folder, &["merge", "a:0.7", "b:-0.25", "-o", "small", "--rank", "6"]);
    let report = json_of(&folder.path("report.json"));
    for (index, (name, ..)) in PEFT.into_iter().enumerate() {
        let mut sum = peft_update(&folder.path("a"), name) * Scale(0.7);
        if index < 2 {
            sum -= peft_update(&folder.path("b"), name) * Scale(0.25);
        }
        let module = reported(&report, name);
        assert_eq!(module["rank"], if index < 2 { 16 } else { 8 }, "{module}");
        assert_eq!(module["remarks"].to_string().contains("in 1 of 2 adapters"), index == 2, "{module}");
        assert!((&sum - peft_update(&folder.path("exact"), name)).norm_l2() < 1e-6 * sum.norm_l2(), "{name}");
        let error = (&sum - peft_update(&folder.path("small"), name)).norm_l2();
        assert!(error <= least_error(&sum, 6) + 1e-6 * sum.norm_l2(), "{name}");
    }
    // A weight of 1 by default, and both formats together.
    write_kohya(&folder.path("c.safetensors"), 1, &[("lora_unet_model_layers_0_up", &[40, 20], 5)], Some(2.0));
    succeeds(&folder, &["merge", "a", "c.safetensors", "-o", "sum.safetensors", "--dtype", "f32"]);
    let sum = peft_update(&folder.path("a"), PEFT[1].0)
        + kohya_update(&folder.path("c.safetensors"), "lora_unet_model_layers_0_up");
    let found = kohya_update(&folder.path("sum.safetensors"), "lora_unet_model_layers_0_up");
    assert!((&sum - found).norm_l2() < 1e-6 * sum.norm_l2());
    // More ranks in all than the weight has.
    let options = ["merge", "a", "a", "a", "b", "-o", "many", "--json", "many.json"];
    succeeds(&folder, &options);
    assert_eq!(reported(&json_of(&folder.path("many.json")), PEFT[0].0)["rank"], 16);
    refuses(&folder, &["merge", "a:inf", "b", "-o", "none"], "expected a finite weight");
}

#[test]
fn calibration_data_make_a_resized_adapter_change_the_outputs_least() {
    let folder = Folder::new();
    write_peft(&folder.path("in"), 1, &PEFT, json!({}));
    let samples = random(5, 300, 20, 0.7);
    let file = PEFT.iter().fold(Tensors::default(), |file, (name, ..)| {
        file.with(&format!("{name}.input"), crate::harness::Tensor::of(Dtype::F32, &[300, 20], &samples))
    });
    file.write(&folder.path("samples.safetensors"));
    succeeds(&folder, &["resize", "in", "--rank", "2", "-o", "blind"]);
    let options =
        ["resize", "in", "--rank", "2", "-o", "aware", "--calibration", "samples.safetensors", "--json", "report.json"];
    succeeds(&folder, &options);
    let inputs = dalr::faer::MatRef::from_row_major_slice(&samples, 300, 20);
    for (name, ..) in PEFT {
        let update = peft_update(&folder.path("in"), name);
        let error = |out: &str| (inputs * (&update - peft_update(&folder.path(out), name)).transpose()).norm_l2();
        assert!(error("aware") < 0.9 * error("blind"), "{name}: {} {}", error("aware"), error("blind"));
        assert_eq!(reported(&json_of(&folder.path("report.json")), name)["error_of"], "outputs");
    }
}
