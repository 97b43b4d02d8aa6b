//! PyTorch loads compressed models.

use std::process::Command;

use crate::harness::program;

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
