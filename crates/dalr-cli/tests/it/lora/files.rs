//! Names, formats, and files of an adapter.

use safetensors::tensor::Dtype;
use serde_json::json;

use super::{
    KOHYA, PEFT, checkpoints, extract, json_of, kohya_update, lora, peft_update, refuses, succeeds, write_kohya,
    write_peft,
};
use crate::harness::{Folder, Tensor, Tensors, random, said};

#[test]
fn names_of_kohya_round_trip() {
    let folder = Folder::new();
    let updates = checkpoints(&folder, Dtype::F32);
    succeeds(&folder, &extract(&["--rank", "4", "-o", "first.safetensors", "--prefix", "lora_te1"]));
    succeeds(&folder, &["resize", "first.safetensors", "--rank", "4", "-o", "second.safetensors"]);
    let names = |file: &str| Tensors::read(&folder.path(file)).tensors.into_keys().collect::<Vec<_>>();
    assert_eq!(names("first.safetensors"), names("second.safetensors"));
    assert!(names("first.safetensors").contains(&"lora_te1_model_layers_10_q_proj.lora_down.weight".to_owned()));

    // To PEFT, with the names of the model, and back.
    let options = ["--rank", "4", "--prefix", "lora_te1"];
    refuses(&folder, &[&["resize", "first.safetensors", "-o", "peft"], &options[..]].concat(), "pass --base MODEL");
    succeeds(
        &folder,
        &[&["resize", "first.safetensors", "-o", "peft", "--base", "base.safetensors"], &options[..]].concat(),
    );
    succeeds(&folder, &[&["resize", "peft", "-o", "back.safetensors"], &options[..]].concat());
    assert_eq!(names("first.safetensors"), names("back.safetensors"));
    for (name, update) in &updates {
        let expected = kohya_update(&folder.path("first.safetensors"), &format!("lora_te1_{}", name.replace('.', "_")));
        assert!((&expected - peft_update(&folder.path("peft"), name)).norm_l2() < 1e-6 * update.norm_l2(), "{name}");
    }
    let wrong = ["resize", "first.safetensors", "-o", "none", "--base", "base.safetensors", "--rank", "4"];
    refuses(&folder, &wrong, "none with the prefix `lora_unet`");
    // Two modules that kohya cannot tell apart.
    write_peft(&folder.path("same"), 1, &[("a.b_c", &[9, 9], 2), ("a_b.c", &[9, 9], 2)], json!({}));
    refuses(&folder, &["resize", "same", "--rank", "1", "-o", "none.safetensors"], "`lora_unet_a_b_c` twice");
}

#[test]
fn a_checkpoint_of_several_shards_gives_the_same_adapter() {
    let folder = Folder::new();
    checkpoints(&folder, Dtype::BF16);
    let whole = Tensors::read(&folder.path("tuned.safetensors"));
    let (mut shards, mut map) = ([Tensors::default(), Tensors::default()], serde_json::Map::new());
    for (index, (name, tensor)) in whole.tensors.iter().enumerate() {
        shards[index % 2] = std::mem::take(&mut shards[index % 2]).with(name, tensor.clone());
        map.insert(name.clone(), json!(format!("shard{}.safetensors", index % 2)));
    }
    shards
        .iter()
        .enumerate()
        .for_each(|(index, shard)| shard.write(&folder.path(&format!("shard{index}.safetensors"))));
    std::fs::write(folder.path("tuned.index.json"), json!({"weight_map": map}).to_string()).unwrap();
    succeeds(&folder, &extract(&["--rank", "3", "-o", "whole"]));
    succeeds(
        &folder,
        &["extract", "--base", "base.safetensors", "--tuned", "tuned.index.json", "--rank", "3", "-o", "sharded"],
    );
    for file in ["adapter_model.safetensors", "adapter_config.json"] {
        let bytes = |name: &str| std::fs::read(folder.path(name).join(file)).unwrap();
        assert_eq!(bytes("whole"), bytes("sharded"));
    }
}

#[test]
fn tensors_beside_the_adapter_are_copied() {
    let folder = Folder::new();
    write_peft(&folder.path("in"), 1, &PEFT, json!({"modules_to_save": ["head"]}));
    let path = folder.path("in/adapter_model.safetensors");
    let head = Tensor::of(Dtype::BF16, &[3, 5], &random(1, 3, 5, 1.0));
    let embedding = [
        Tensor::of(Dtype::F32, &[8, 50], &random(2, 8, 50, 0.9)),
        Tensor::of(Dtype::F32, &[12, 8], &random(3, 12, 8, 0.9)),
    ];
    let [down, up] = embedding;
    Tensors::read(&path)
        .with("base_model.model.head.weight", head.clone())
        .with("base_model.model.wte.lora_embedding_A", down)
        .with("base_model.model.wte.lora_embedding_B", up)
        .write(&path);
    succeeds(&folder, &["resize", "in", "--rank", "2", "-o", "out"]);
    let tensors = Tensors::read(&folder.path("out/adapter_model.safetensors")).tensors;
    assert_eq!(tensors["base_model.model.head.weight"], head);
    assert_eq!(tensors["base_model.model.wte.lora_embedding_A"].shape, [2, 50]);
    assert_eq!(tensors["base_model.model.wte.lora_embedding_B"].shape, [12, 2]);
    // A weight of the file names the folder.
    succeeds(&folder, &["resize", "in/adapter_model.safetensors", "--rank", "2", "-o", "again"]);
    refuses(
        &folder,
        &["merge", "in", "in", "-o", "none"],
        "which have no weighted sum, got `base_model.model.head.weight`",
    );
    refuses(&folder, &["resize", "in", "--rank", "2", "-o", "none.safetensors"], "which a kohya-ss file can hold");
}

#[test]
fn files_that_are_no_adapters_are_refused() {
    let folder = Folder::new();
    checkpoints(&folder, Dtype::F32);
    let resize =
        |path: &str, expected: &str| refuses(&folder, &["resize", path, "--rank", "2", "-o", "none"], expected);
    resize(
        "base.safetensors",
        "a kohya-ss adapter with tensors `….lora_down.weight`, or the folder of a PEFT adapter, got the tensors `conv.weight`",
    );
    resize("missing.safetensors", "missing.safetensors");
    std::fs::create_dir(folder.path("empty")).unwrap();
    resize("empty", "expected a folder with adapter_config.json and adapter_model.safetensors");

    let config = |settings: serde_json::Value, expected: &str| {
        write_peft(&folder.path("in"), 1, &PEFT, settings);
        resize("in", expected);
    };
    config(json!({"peft_type": "LOHA"}), "expected \"peft_type\": \"LORA\", got \"LOHA\"");
    config(json!({"use_dora": true}), "DoRA");
    config(json!({"lora_alpha": "much"}), "a number \"lora_alpha\", got \"much\"");
    config(json!({"rank_pattern": {"(": 3}}), "\"rank_pattern\"");
    config(json!({"r": 7}), "expected rank 8 for `model.layers.0.q_proj`, as its tensors have, got 7");
    std::fs::write(folder.path("in/adapter_config.json"), "{").unwrap();
    resize("in", "expected a JSON object");

    let changed = |change: &dyn Fn(&mut Tensors), expected: &str| {
        write_kohya(&folder.path("in.safetensors"), 1, &KOHYA, Some(4.0));
        let mut tensors = Tensors::read(&folder.path("in.safetensors"));
        change(&mut tensors);
        tensors.write(&folder.path("in.safetensors"));
        refuses(&folder, &["resize", "in.safetensors", "--rank", "2", "-o", "none.safetensors"], expected);
    };
    let add = |name: &'static str, shape: &'static [usize]| {
        move |tensors: &mut Tensors| {
            let numbers = vec![1.0; shape.iter().product()];
            tensors.tensors.insert(name.into(), Tensor::of(Dtype::F32, shape, &numbers));
        }
    };
    changed(&add("lora_unet_a.hada_w1_a", &[2, 2]), "got `lora_unet_a.hada_w1_a`");
    changed(&add("lora_unet_mid_conv.lora_mid.weight", &[8, 8, 3, 3]), "got `lora_unet_mid_conv.lora_mid.weight`");
    changed(&add("lora_unet_mid_attn_to_q.dora_scale", &[24, 1]), "got `lora_unet_mid_attn_to_q.dora_scale`");
    changed(&add("lora_unet_mid_attn_to_q.alpha", &[2]), "one number in `lora_unet_mid_attn_to_q.alpha`");
    changed(
        &add("lora_unet_mid_attn_to_q.lora_up.weight", &[24, 7]),
        "`lora_unet_mid_attn_to_q.lora_up.weight` of shape [out, 8]",
    );
    changed(&add("lora_unet_mid_attn_to_q.lora_up.weight", &[24]), "two axes or more");
    for part in ["lora_down", "lora_up"] {
        let name = format!("lora_unet_mid_attn_to_q.{part}.weight");
        changed(&|tensors| drop(tensors.tensors.remove(&name)), &format!("expected a tensor `{name}`"));
    }
    changed(
        &|tensors| {
            let tensor = tensors.tensors.get_mut("lora_unet_mid_conv.lora_up.weight").unwrap();
            tensor.data[..2].fill(0xff);
        },
        "layer lora_unet_mid_conv: Adapter::new: expected finite numbers in the factor `up`",
    );

    write_peft(&folder.path("in"), 1, &PEFT, json!({}));
    write_peft(&folder.path("other"), 1, &[("model.layers.0.up", &[41, 20], 8)], json!({}));
    refuses(
        &folder,
        &["merge", "in", "other", "-o", "none"],
        "`model.layers.0.up` of shape [40, 20], as in the adapters before, got [41, 20]",
    );
}

#[test]
fn outputs_are_complete_and_replace_nothing_by_accident() {
    let folder = Folder::new();
    checkpoints(&folder, Dtype::F32);
    let usage = |options: &[&str], expected: &str| {
        refuses(&folder, &extract(options), expected);
        assert_eq!(lora(&folder, &extract(options)).status.code(), Some(2), "{options:?}");
    };
    usage(&["-o", "out"], "one of --rank, --energy, --error, --parameters or --total-rank is required");
    usage(&["-o", "out", "--rank", "2", "--energy", "0.5"], "cannot be used with");
    usage(&["-o", "out", "--rank", "0"], "--rank: expected at least 1");
    usage(&["-o", "out", "--error", "1.5"], "--error: expected a number in (0, 1], got 1.5");
    usage(&["-o", "out", "--total-rank", "0"], "--total-rank: expected at least 1");
    usage(&["-o", "base.safetensors", "--rank", "2", "--force"], "an output cannot replace an input");
    usage(&["-o", "out", "--rank", "2", "--json", "out"], "two outputs cannot be one file");
    refuses(
        &folder,
        &extract(&["-o", "out", "--rank", "2", "--include", "nothing*"]),
        "--include nothing*: matches no module",
    );
    refuses(
        &folder,
        &extract(&["-o", "out", "--rank", "2", "--exclude", "nothing*"]),
        "--exclude nothing*: matches no module",
    );
    std::fs::write(folder.path("text"), "").unwrap();
    refuses(&folder, &extract(&["-o", "text", "--rank", "2"]), "expected a folder for a PEFT adapter");

    succeeds(&folder, &extract(&["-o", "out", "--rank", "2"]));
    let before = std::fs::read(folder.path("out/adapter_model.safetensors")).unwrap();
    let output = lora(&folder, &extract(&["-o", "out", "--rank", "3"]));
    assert!(said(&output).contains("exists: pass --force"), "{}", said(&output));
    assert_eq!(std::fs::read(folder.path("out/adapter_model.safetensors")).unwrap(), before);
    succeeds(&folder, &extract(&["-o", "out", "--rank", "3", "--force"]));
    assert_eq!(json_of(&folder.path("out/adapter_config.json"))["r"], 3);

    // A run that fails while it writes leaves no configuration, without which PEFT loads nothing.
    let mut tuned = Tensors::read(&folder.path("tuned.safetensors"));
    let weight = tuned.tensors.get_mut("point.weight").unwrap();
    *weight = Tensor::of(Dtype::F32, &weight.shape, &vec![3e10; 40]);
    tuned.write(&folder.path("tuned.safetensors"));
    let output = lora(&folder, &extract(&["-o", "out", "--rank", "3", "--force", "--dtype", "f16"]));
    assert!(said(&output).contains("layer point") && said(&output).contains("F16"), "{}", said(&output));
}
