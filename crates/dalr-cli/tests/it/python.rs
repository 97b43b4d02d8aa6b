//! Python programs: PyTorch loads compressed models, and the texts of MiniLM are the same.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use dalr::LowRankLinear;
use dalr::faer::{Col, Mat};
use dalr::interop::safetensors::save_layers;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use safetensors::tensor::Dtype;

use crate::harness::{Folder, Tensor, Tensors, program};

/// Returns a Python interpreter with PyTorch. Prints a note if there is none.
fn python() -> Option<String> {
    python_with("torch, safetensors, numpy")
}

/// Returns a Python interpreter with these modules: `DALR_PYTHON`, the one that `benches/peers`
/// uses, or the system's. Prints a note if there is none.
fn python_with(modules: &str) -> Option<String> {
    let peers = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/peers/bin/python");
    let candidates = [std::env::var("DALR_PYTHON").ok(), Some(peers.into()), Some("python3".into())];
    let found = candidates.into_iter().flatten().find(|python| {
        let imports = Command::new(python).args(["-c", &format!("import {modules}")]).output();
        imports.is_ok_and(|output| output.status.success())
    });
    if found.is_none() {
        eprintln!("skipped: no Python with {modules} (set DALR_PYTHON to one)");
    }
    found
}

/// Runs a script of the folder `python`, which must print this text.
fn run_script(python: &str, script: &str, arguments: &[&Path], expected: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python").join(script);
    let output = Command::new(python).arg(script).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains(expected));
}

#[test]
fn peft_loads_adapters() {
    let Some(python) = python_with("torch, safetensors, peft, transformers") else { return };
    run_script(&python, "test_lora_peft.py", &[program()], "all adapters loaded");
}

#[test]
fn a_quantised_base_is_corrected_as_well_as_by_the_closed_form() {
    let Some(python) = python_with("safetensors, numpy") else { return };
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/minilm_value.safetensors");
    run_script(&python, "quantised_base.py", &[program(), &weights], "as good as the closed form");
}

#[test]
fn pytorch_loads_compressed_models() {
    let Some(python) = python() else { return };
    run_script(&python, "test_load_compressed.py", &[program()], "all modules loaded");
}

#[test]
fn pytorch_loads_pivoted_layers() {
    let Some(python) = python() else { return };
    let folder = Folder::new();
    let random = &mut StdRng::seed_from_u64(3);
    let mut matrix = |rows, columns| Mat::from_fn(rows, columns, |_, _| random.random_range(-1.0..1.0));
    // The pivots are some of the outputs, or all of them.
    let mut layer = |outputs, rank, inputs, bias: bool| {
        let bias = bias.then(|| Col::from_fn(outputs, |output| output as f64));
        LowRankLinear::new(matrix(rank, inputs), matrix(outputs, rank), bias).unwrap()
    };
    let layers = [("some", layer(9, 4, 7, true)), ("all", layer(5, 5, 6, false)), ("factors", layer(6, 2, 5, true))];
    let pivoted = [&layers[0].1, &layers[1].1].map(|layer| layer.to_pivoted().unwrap());
    assert_ne!(pivoted[0].pivots(), [0, 1, 2, 3], "the outputs would be in order already");
    let stored = [("some", (&pivoted[0]).into()), ("all", (&pivoted[1]).into()), ("factors", (&layers[2].1).into())];
    let [compressed, expected] = ["compressed.safetensors", "expected.safetensors"].map(|name| folder.path(name));
    save_layers(&compressed, stored, BTreeMap::new()).unwrap();

    let tensor = |matrix: &Mat<f64>| {
        let rows = matrix.row_iter().flat_map(|row| row.iter().copied().collect::<Vec<_>>());
        Tensor::of(Dtype::F64, &[matrix.nrows(), matrix.ncols()], &rows.collect::<Vec<_>>())
    };
    let samples = layers.iter().fold(Tensors::default(), |samples, (name, layer)| {
        let inputs = Mat::from_fn(8, layer.in_features(), |row, column| (row * 3 + column * 5) as f64 % 7.0 - 3.0);
        // The factors decide, so that the order of the pivots is not part of the expectation.
        let outputs = layer.forward(inputs.as_ref()).unwrap();
        samples.with(&format!("{name}.input"), tensor(&inputs)).with(&format!("{name}.output"), tensor(&outputs))
    });
    samples.write(&expected);

    let arguments = [Path::new("--library"), &compressed, &expected];
    run_script(&python, "test_load_compressed.py", &arguments, "all layers of the library loaded");
}

#[test]
fn the_texts_of_minilm_are_shuffled_as_in_rust() {
    let folder = Folder::new();
    let file = folder.path("data.noun");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/minilm_texts.py");
    // Several indices of a small list come from one random number, each index of a large list from
    // its own.
    for count in [1, 2, 20, 70_000] {
        let lines = (0..count).map(|line| format!("{line:08} n word | text {line}  \r\n\n"));
        std::fs::write(&file, format!("  1 licence | not a text\n\n{}", lines.collect::<String>())).unwrap();
        let Ok(output) = Command::new("python3").arg(script).arg(&file).output() else {
            eprintln!("skipped: no python3");
            return;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut expected: Vec<String> = (0..count).map(|line| format!("text {line}")).collect();
        // As `examples/minilm/src/texts.rs` does.
        expected.shuffle(&mut StdRng::seed_from_u64(1));
        assert!(String::from_utf8_lossy(&output.stdout).lines().eq(&expected), "{count} texts");
    }
}
