//! A run that was ended at any moment, by SIGINT or SIGKILL, is resumed to the same bytes.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::tensor::Dtype;

use crate::harness::{Folder, Tensor, said, stack};

const LAYERS: usize = 16;
const KEEP: [&str; 2] = ["--keep", "0.5"];

/// Starts a run and waits until this number of layers is done. Returns false if the run ended
/// before.
fn start(folder: &Folder, options: &[&str], layers: usize) -> (Child, bool) {
    let mut child = folder.command(options).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let reached = lines.any(|line| line.unwrap().starts_with(&format!("layer {layers}/")));
    // The rest of the output is read, so that the program does not block.
    std::thread::spawn(move || lines.count());
    (child, reached)
}

fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

/// Creates the files of a run that was interrupted after some layers.
fn interrupted(folder: &Folder) {
    let (mut child, reached) = start(folder, &KEEP, 3);
    assert!(reached);
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(folder.names(), ["calibration.safetensors", "model.safetensors", "out.safetensors.work"]);
}

#[test]
fn after_sigint_the_rest_is_solved_and_the_bytes_are_the_same() {
    let (whole, folder) = (Folder::new(), Folder::new());
    stack(&whole, LAYERS, 128);
    assert!(whole.run(&KEEP).status.success());
    stack(&folder, LAYERS, 128);
    interrupted(&folder);
    let output = folder.run(&["--keep", "0.5", "--resume"]);
    assert!(output.status.success(), "{}", said(&output));
    let before = said(&output).matches("solved before").count();
    assert!((3..LAYERS).contains(&before), "{}", said(&output));
    let bytes = |folder: &Folder| std::fs::read(folder.path("out.safetensors")).unwrap();
    assert!(bytes(&folder) == bytes(&whole));
    // Nothing is left to resume.
    assert_eq!(folder.names(), ["calibration.safetensors", "model.safetensors", "out.safetensors"]);
}

#[test]
fn after_sigkill_at_any_moment_the_bytes_are_the_same() {
    let (whole, folder) = (Folder::new(), Folder::new());
    stack(&whole, LAYERS, 96);
    assert!(whole.run(&KEEP).status.success());
    stack(&folder, LAYERS, 96);
    let mut rng = StdRng::seed_from_u64(1);
    let (mut kills, mut finished) = (0, 0);
    while finished < 3 {
        let options = ["--keep", "0.5", "--resume", "--force"];
        let (mut child, _) = start(&folder, &options, rng.random_range(1..=LAYERS));
        std::thread::sleep(Duration::from_micros(rng.random_range(0..6000)));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        let path = folder.path("out.safetensors");
        if path.exists() {
            assert!(std::fs::read(&path).unwrap() == std::fs::read(whole.path("out.safetensors")).unwrap());
            finished += 1;
            std::fs::remove_file(&path).unwrap();
        } else {
            assert!(!status.success());
            kills += 1;
        }
    }
    println!("{kills} kills before the end");
    assert!(kills > 0, "no kill came before the end");
    assert!(folder.run(&["--keep", "0.5", "--resume", "--force"]).status.success());
    assert_eq!(folder.names(), ["calibration.safetensors", "model.safetensors", "out.safetensors"]);
}

#[test]
fn another_configuration_is_noticed() {
    let folder = Folder::new();
    stack(&folder, LAYERS, 128);
    interrupted(&folder);
    folder
        .refuses(&KEEP, "holds the work of an unfinished run: pass --resume to continue it, or --force to start again");
    let resume = |options: &[&str], expected: &str| {
        let mut all = vec!["--resume"];
        all.extend(options);
        folder.refuses(&all, expected);
    };
    resume(&["--keep", "0.5", "--method", "svd"], "cannot resume, --method was `dalr` and is `svd`");
    resume(&["--rank", "9"], "--rank was `none` and is `9`");
    resume(&["--keep", "0.5", "--exclude", "layer.7"], "layer layer.7 was `reads layer.7.input` and is absent");
    // Another budget uses the same factors.
    let output = folder.run(&["--keep", "0.3", "--resume"]);
    assert!(output.status.success(), "{}", said(&output));
    let resumed = std::fs::read(folder.path("out.safetensors")).unwrap();
    assert!(folder.run(&["--keep", "0.3", "--force"]).status.success());
    assert!(resumed == std::fs::read(folder.path("out.safetensors")).unwrap());
}

#[test]
fn another_model_or_other_samples_are_noticed() {
    let folder = Folder::new();
    let (model, calibration) = stack(&folder, LAYERS, 128);
    interrupted(&folder);
    let resume = ["--keep", "0.5", "--resume"];
    let changed = |tensors: &crate::harness::Tensors, name: &str| {
        let mut changed = tensors.clone();
        // One bit in one of the last numbers changes.
        *changed.tensors.get_mut(name).unwrap().data.iter_mut().rev().nth(3).unwrap() ^= 1;
        changed
    };
    for name in ["layer.0.weight", "layer.0.bias"] {
        changed(&model, name).write(&folder.path("model.safetensors"));
        folder.refuses(&resume, "cannot resume, layer layer.0 was computed from");
    }
    model.clone().with("more", Tensor::of(Dtype::F32, &[1], &[1.0])).write(&folder.path("model.safetensors"));
    folder.refuses(&resume, "cannot resume, model was");
    model.write(&folder.path("model.safetensors"));
    changed(&calibration, "layer.0.input").write(&folder.path("calibration.safetensors"));
    folder.refuses(&resume, "cannot resume, layer layer.0 was computed from");
    // With the original files the run continues.
    calibration.write(&folder.path("calibration.safetensors"));
    assert!(folder.run(&resume).status.success());
}

#[test]
fn two_runs_do_not_work_on_one_output() {
    let folder = Folder::new();
    stack(&folder, LAYERS, 128);
    let (mut child, reached) = start(&folder, &KEEP, 1);
    assert!(reached);
    let output = folder.run(&["--keep", "0.5", "--resume"]);
    assert!(said(&output).contains("another run is writing this output"), "{}", said(&output));
    assert!(child.wait().unwrap().success());
}
