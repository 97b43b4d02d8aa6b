//! What users of other extractors and resizers complain of.

use safetensors::tensor::Dtype;
use serde_json::json;

use dalr::faer::Mat;

use super::{
    KOHYA, PEFT, checkpoints, decaying, extract, json_of, kohya_update, left_out, matrix, peft_update, refuses,
    reported, succeeds, tensor, write_kohya, write_peft,
};
use crate::harness::{Folder, Tensor, Tensors, random};

/// Off-by-one ranks: the rank is exactly the requested one in every tensor.
#[test]
fn the_rank_is_the_one_requested() {
    let folder = Folder::new();
    checkpoints(&folder, Dtype::F32);
    write_kohya(&folder.path("in.safetensors"), 1, &KOHYA, Some(8.0));
    for rank in 1..=5_usize {
        let text = rank.to_string();
        succeeds(&folder, &extract(&["--rank", &text, "-o", "out.safetensors", "--force"]));
        succeeds(&folder, &["resize", "in.safetensors", "--rank", &text, "-o", "resized.safetensors", "--force"]);
        for file in ["out.safetensors", "resized.safetensors"] {
            for (name, tensor) in Tensors::read(&folder.path(file)).tensors {
                let found = if name.ends_with(".alpha") {
                    tensor.numbers()[0] as usize
                } else {
                    tensor.shape[usize::from(name.contains("lora_up"))]
                };
                assert_eq!(found, rank, "{name}");
            }
        }
    }
}

/// A rank above the smaller dimension of a module: this module gets all that it can have.
#[test]
fn a_rank_above_the_dimension_is_reduced_for_that_module_only() {
    let folder = Folder::new();
    let updates = checkpoints(&folder, Dtype::F64);
    succeeds(&folder, &extract(&["--rank", "10", "-o", "out", "--json", "report.json"]));
    let report = json_of(&folder.path("report.json"));
    for (name, update) in &updates {
        let most = update.nrows().min(update.ncols());
        let module = reported(&report, name);
        assert_eq!(module["rank"], json!(most.min(10)), "{module}");
        let remarks = module["remarks"].to_string();
        assert_eq!(remarks.contains(&format!("rank {most} is the largest that it can have")), most < 10, "{module}");
        if most < 10 {
            assert!((peft_update(&folder.path("out"), name) - update).norm_l2() < 1e-6 * update.norm_l2(), "{name}");
        }
    }
}

/// "linalg.svd: the algorithm failed to converge because the input matrix is ill-conditioned or has
/// too many repeated singular values", and "not implemented for 'BFloat16'".
#[test]
fn repeated_and_tiny_singular_values_converge_in_every_dtype() {
    let identity = Mat::from_fn(40, 40, |i, j| if i == j { 1.0 } else { 0.0 });
    let one = Mat::from_fn(40, 40, |i, j| if (i, j) == (3, 5) { 1.0 } else { 0.0 });
    let steep = decaying(1, (40, 40), 1e-2);
    let equal = Mat::full(40, 40, 0.5);
    for dtype in [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16] {
        let folder = Folder::new();
        let (mut base, mut tuned) = (Tensors::default(), Tensors::default());
        for (name, update) in [("identity", &identity), ("one", &one), ("steep", &steep), ("equal", &equal)] {
            base = base.with(&format!("{name}.weight"), Tensor::of(dtype, &[40, 40], &[0.0; 1600]));
            tuned = tuned.with(&format!("{name}.weight"), tensor(dtype, &[40, 40], update));
        }
        base.write(&folder.path("base.safetensors"));
        tuned.write(&folder.path("tuned.safetensors"));
        succeeds(&folder, &extract(&["--rank", "10", "-o", "out"]));
        for (name, least) in [("identity", 30_f64.sqrt()), ("one", 0.0), ("steep", 0.0), ("equal", 0.0)] {
            let update = matrix(&tuned.tensors[&format!("{name}.weight")]);
            let error = (&update - peft_update(&folder.path("out"), name)).norm_l2();
            // The rounding of the update to a 16-bit dtype is noise of full rank.
            let noise = if name == "steep" { super::least_error(&update, 10) } else { 0.0 };
            assert!((error - least - noise).abs() < 1e-5 * update.norm_l2(), "{name} {dtype:?}: {error}");
        }
    }
}

/// "Text encoder is same. Extract U-Net only", and modules that are left out without a word.
#[test]
fn small_changes_count_and_no_module_is_skipped_silently() {
    let folder = Folder::new();
    let updates = checkpoints(&folder, Dtype::F32);
    // One module changes by less than any threshold, one does not change.
    let base = Tensors::read(&folder.path("base.safetensors"));
    let mut tuned = Tensors::read(&folder.path("tuned.safetensors"));
    tuned = tuned.with("point.weight", base.tensors["point.weight"].clone());
    let small = &base.tensors["model.layers.0.up.weight"];
    let numbers: Vec<f64> = small.numbers().iter().map(|number| number * (1.0 + 2e-7)).collect();
    tuned = tuned.with("model.layers.0.up.weight", Tensor::of(Dtype::F32, &small.shape, &numbers));
    tuned.write(&folder.path("tuned.safetensors"));
    let text = succeeds(&folder, &extract(&["--rank", "2", "-o", "out", "--json", "report.json"]));
    let report = json_of(&folder.path("report.json"));
    assert_eq!(reported(&report, "model.layers.0.up")["rank"], 2);
    assert_eq!(left_out(&report, "point")["reason"], "equal in both models");
    assert!(text.contains("point F32 [8, 5, 1, 1]: equal in both models"), "{text}");
    let listed = report["modules"].as_array().unwrap().len() + report["left_out"].as_array().unwrap().len();
    assert_eq!(listed, updates.len() + 5);
    // Nothing differs at all.
    base.write(&folder.path("tuned.safetensors"));
    refuses(&folder, &extract(&["--rank", "2", "-o", "none"]), "no weight differs from that of the base model");
}

/// Factors that are clamped at a quantile of their entries: a few large entries are kept.
#[test]
fn large_entries_are_not_clamped() {
    let folder = Folder::new();
    let (mut base, mut tuned) = (random(1, 50, 60, 1.0), random(1, 50, 60, 1.0));
    base.iter_mut().chain(&mut tuned).for_each(|number| *number *= 0.01);
    tuned[7 * 60 + 11] += 100.0;
    tuned[40 * 60 + 30] -= 1.0;
    for (name, numbers) in [("base", &base), ("tuned", &tuned)] {
        let tensor = Tensor::of(Dtype::F32, &[50, 60], numbers);
        Tensors::default().with("fc.weight", tensor).write(&folder.path(&format!("{name}.safetensors")));
    }
    succeeds(&folder, &extract(&["--rank", "2", "-o", "out.safetensors"]));
    let update = kohya_update(&folder.path("out.safetensors"), "lora_unet_fc");
    assert!((update[(7, 11)] - 100.0).abs() < 1e-4 && (update[(40, 30)] + 1.0).abs() < 1e-4, "{}", update[(7, 11)]);
}

/// A scale that is lost on the way: `alpha / rank` stays what it was for the whole update.
#[test]
fn the_scale_survives_every_operation() {
    let folder = Folder::new();
    write_kohya(&folder.path("in.safetensors"), 1, &KOHYA, Some(2.0));
    succeeds(&folder, &["resize", "in.safetensors", "--rank", "8", "-o", "same.safetensors", "--dtype", "f32"]);
    succeeds(
        &folder,
        &["merge", "in.safetensors:0.5", "in.safetensors:0.5", "-o", "mean.safetensors", "--dtype", "f32"],
    );
    for (name, ..) in KOHYA {
        let expected = kohya_update(&folder.path("in.safetensors"), name);
        for file in ["same.safetensors", "mean.safetensors"] {
            let found = kohya_update(&folder.path(file), name);
            assert!((&expected - found).norm_l2() < 1e-6 * expected.norm_l2(), "{name} {file}");
        }
    }
}

/// Half precision that destroys small updates: the loss is stated, and is only that of rounding.
#[test]
fn the_loss_of_half_precision_is_stated_and_small() {
    let folder = Folder::new();
    let (mut base, mut tuned) = (Tensors::default(), Tensors::default());
    // The entries of the factors of an SVD would be below the normal range of f16.
    let update = decaying(3, (30, 40), 0.8) * dalr::faer::Scale(3e-5);
    let weight = matrix(&Tensor::of(Dtype::F64, &[30, 40], &random(1, 30, 40, 1.0)));
    base = base.with("fc.weight", tensor(Dtype::F64, &[30, 40], &weight));
    tuned = tuned.with("fc.weight", tensor(Dtype::F64, &[30, 40], &(weight + &update)));
    base.write(&folder.path("base.safetensors"));
    tuned.write(&folder.path("tuned.safetensors"));
    for (dtype, most) in [("f16", 1e-3), ("bf16", 4e-3), ("f32", 1e-7), ("f64", 0.0)] {
        succeeds(
            &folder,
            &extract(&["--rank", "30", "-o", "out", "--dtype", dtype, "--json", "report.json", "--force"]),
        );
        let stated = reported(&json_of(&folder.path("report.json")), "fc")["rounding_error"].as_f64().unwrap();
        let error = (&update - peft_update(&folder.path("out"), "fc")).norm_l2() / update.norm_l2();
        assert!((stated - error).abs() < 1e-9 + 1e-3 * stated, "{dtype}: {stated} {error}");
        assert!(stated <= most && (dtype == "f64" || stated > most / 20.0), "{dtype}: {stated}");
    }
}

/// Convolutions: 1×1 and k×k kernels keep their axes in both formats.
#[test]
fn convolutions_are_not_transposed() {
    let folder = Folder::new();
    let updates = checkpoints(&folder, Dtype::F32);
    succeeds(&folder, &extract(&["--rank", "6", "-o", "out.safetensors"]));
    succeeds(&folder, &["resize", "out.safetensors", "--rank", "5", "-o", "resized.safetensors"]);
    let tensors = Tensors::read(&folder.path("resized.safetensors")).tensors;
    for (name, [out, inputs, height, width]) in [("conv", [6, 4, 3, 3]), ("point", [8, 5, 1, 1])] {
        let (down, up) = (
            &tensors[&format!("lora_unet_{name}.lora_down.weight")],
            &tensors[&format!("lora_unet_{name}.lora_up.weight")],
        );
        assert_eq!((&down.shape[..], &up.shape[..]), (&[5, inputs, height, width][..], &[out, 5, 1, 1][..]));
        // As kohya's programs apply it: the pointwise convolution of a convolution.
        let (down, up) = (down.numbers(), up.numbers());
        let update = &updates.iter().find(|(other, _)| *other == name).unwrap().1;
        let mut squared = 0.0;
        for o in 0..out {
            for rest in 0..inputs * height * width {
                let entry: f64 = (0..5).map(|r| up[o * 5 + r] * down[r * inputs * height * width + rest]).sum();
                squared += (entry - update[(o, rest)]).powi(2);
            }
        }
        let least = super::least_error(update, 5);
        assert!((squared.sqrt() - least).abs() < 1e-5 * update.norm_l2(), "{name}");
    }
}

/// "Found missing adapter keys", "size mismatch", "does not match".
#[test]
fn shapes_and_names_that_differ_are_named() {
    let folder = Folder::new();
    checkpoints(&folder, Dtype::F32);
    let tuned = Tensors::read(&folder.path("tuned.safetensors"));
    let with = |change: &dyn Fn(&mut Tensors), expected: &str| {
        let mut changed = tuned.clone();
        change(&mut changed);
        changed.write(&folder.path("tuned.safetensors"));
        refuses(&folder, &extract(&["--rank", "2", "-o", "none"]), expected);
    };
    let larger = Tensor::of(Dtype::F32, &[24, 16], &random(1, 24, 16, 1.0));
    with(
        &|tensors| drop(tensors.tensors.insert("model.embed_tokens.weight".into(), larger.clone())),
        "`model.embed_tokens.weight` is [20, 16] in the base and [24, 16] in the tuned model: pass two checkpoints of one model, or leave them out with --exclude",
    );
    with(&|tensors| drop(tensors.tensors.remove("conv.weight")), "`conv.weight` is not in the tuned model");
    with(
        &|tensors| drop(tensors.tensors.insert("extra.weight".into(), larger.clone())),
        "`extra.weight` is not in the base model",
    );
    with(&|tensors| tensors.tensors.retain(|name, _| name == "positions"), "and 6 more");
    let nan = |tensors: &mut Tensors| {
        let mut numbers = tensors.tensors["point.weight"].numbers();
        numbers[7] = f64::NAN;
        tensors.tensors.insert("point.weight".into(), Tensor::of(Dtype::F32, &[8, 5, 1, 1], &numbers));
    };
    with(
        &nan,
        "layer point: Adapter::extract: expected finite numbers in the tuned weight, got NaN at row 1, column 2",
    );
    // What is excluded may differ, and is listed.
    let mut changed = tuned.clone();
    changed.tensors.insert("model.embed_tokens.weight".into(), larger);
    changed.write(&folder.path("tuned.safetensors"));
    succeeds(&folder, &extract(&["--rank", "2", "-o", "out", "--exclude", "*embed*", "--json", "report.json"]));
    let report = json_of(&folder.path("report.json"));
    assert_eq!(left_out(&report, "model.embed_tokens.weight")["reason"], "excluded");
    // Every module that the configuration names has both of its tensors.
    let config = json_of(&folder.path("out/adapter_config.json"));
    let tensors = Tensors::read(&folder.path("out/adapter_model.safetensors")).tensors;
    for name in config["target_modules"].as_array().unwrap() {
        let name = name.as_str().unwrap();
        assert!(
            ["A", "B"].iter().all(|part| tensors.contains_key(&format!("base_model.model.{name}.lora_{part}.weight")))
        );
    }
}

/// A merge that ignores `rank_pattern`, or multiplies the scale twice with rslora.
#[test]
fn merging_keeps_patterns_and_rslora() {
    let folder = Folder::new();
    let mixed = [("model.layers.0.q_proj", &[24, 20][..], 4), ("model.layers.0.up", &[40, 20], 8)];
    write_peft(
        &folder.path("a"),
        1,
        &mixed,
        json!({"r": 8, "rank_pattern": {"model.layers.0.q_proj": 4}, "use_rslora": true}),
    );
    write_peft(&folder.path("b"), 2, &PEFT[..2], json!({}));
    succeeds(&folder, &["merge", "a", "b", "-o", "out"]);
    for (name, ..) in mixed {
        let sum = peft_update(&folder.path("a"), name) + peft_update(&folder.path("b"), name);
        assert!((&sum - peft_update(&folder.path("out"), name)).norm_l2() < 1e-6 * sum.norm_l2(), "{name}");
    }
}
