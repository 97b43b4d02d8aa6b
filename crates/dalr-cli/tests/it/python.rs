//! Python programs: PyTorch loads compressed models, and the texts of MiniLM are the same.

use std::process::Command;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::harness::{Folder, program};

/// Returns a Python interpreter with PyTorch: `DALR_PYTHON`, the one that `benches/peers` uses, or
/// the system's.
fn python() -> Option<String> {
    let peers = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/peers/bin/python");
    let candidates = [std::env::var("DALR_PYTHON").ok(), Some(peers.into()), Some("python3".into())];
    candidates.into_iter().flatten().find(|python| {
        let imports = Command::new(python).args(["-c", "import torch, safetensors, numpy"]).output();
        imports.is_ok_and(|output| output.status.success())
    })
}

#[test]
fn pytorch_loads_compressed_models() {
    let Some(python) = python() else {
        eprintln!("skipped: no Python with torch, numpy and safetensors (set DALR_PYTHON to one)");
        return;
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/test_load_compressed.py");
    let output = Command::new(python).arg(script).arg(program()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("all modules loaded"));
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
