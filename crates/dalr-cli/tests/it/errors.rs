//! Every failure is a clear error that leaves no output.

use safetensors::tensor::Dtype;

use crate::harness::{Folder, Tensor, Tensors, layer, random, said, stack};

const OK: [&str; 2] = ["--rank", "3"];

fn samples(rows: usize, columns: usize) -> Tensor {
    Tensor::of(Dtype::F32, &[rows, columns], &random(3, rows, columns, 0.8))
}

#[test]
fn wrong_options_are_refused_with_code_2() {
    let folder = Folder::new();
    stack(&folder, 1, 8);
    let usage = |options: &[&str], expected: &str| {
        folder.refuses(options, expected);
        assert_eq!(folder.run(options).status.code(), Some(2), "{options:?}");
    };
    usage(&[], "required arguments");
    usage(&["--rank", "3", "--keep", "0.5"], "cannot be used with");
    usage(&["--rank", "3", "--method", "magic"], "possible values: dalr, dalr-paper, svd, svd+bc");
    usage(&["--rank", "3", "--rank-multiple", "0"], "--rank-multiple: expected at least 1");
    usage(&["--rank", "3", "--lambda", "3"], "--lambda goes with --method dalr-paper");
    usage(&["--rank", "0"], "--rank: expected at least 1");
    for fraction in ["1.5", "0", "NaN"] {
        usage(&["--keep", fraction], &format!("--keep: expected a fraction in (0, 1], got {fraction}"));
    }
    usage(&["--max-error=-1"], "--max-error: expected a relative error in (0, 1), got -1");
    usage(&["--rank", "3", "--json", "out.safetensors"], "two outputs cannot be one file");
    usage(&["--rank", "3", "--force", "--html", "model.safetensors"], "an output cannot replace an input");
    // Only the solved layers show that a budget is infeasible. A run with another budget can use
    // them.
    folder.refuses(&["--keep", "0.00001"], "0.00001");
    let output = folder.run(&["--keep", "0.9", "--resume"]);
    assert!(said(&output).contains("solved before") && output.status.success(), "{}", said(&output));
}

#[test]
fn calibration_that_does_not_fit_is_refused_before_anything_is_solved() {
    let folder = Folder::new();
    layer(Tensors::default(), "fc", Dtype::F32, [10, 8], true).write(&folder.path("model.safetensors"));
    let path = folder.path("calibration.safetensors");
    let refuses = |tensors: Tensors, expected: &str| {
        tensors.write(&path);
        folder.refuses(&OK, expected);
    };
    refuses(
        Tensors::default().with("fd.input", samples(9, 8)),
        "expected a 2-D NAME.weight with NAME.input in the calibration data, which holds `fd.input`",
    );
    refuses(
        Tensors::default().with("fc.input", samples(9, 10)),
        "layer fc: calibration.safetensors: expected `fc.input` with a last axis of 8, the layer's inputs, got shape [9, 10]",
    );
    // A transposed batch: the right number of values, but the last axis is not the inputs.
    refuses(Tensors::default().with("fc.input", samples(8, 9)), "got shape [8, 9]");
    refuses(Tensors::default().with("fc.input", Tensor::of(Dtype::F32, &[], &[1.0])), "got shape []");
    refuses(
        Tensors::default().with("fc.input", Tensor::of(Dtype::I64, &[1, 8], &[1.0; 8])),
        "of dtype F32, F16, BF16 or F64, got I64",
    );
    refuses(
        Tensors::default().with("fc.input", samples(0, 8)),
        "layer fc: expected at least one sample in `fc.input`, got none",
    );
    for (bad, shown) in [(f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
        let mut numbers = random(1, 9, 8, 0.8);
        numbers[8 * 5 + 2] = bad;
        let tensor = Tensor::of(Dtype::BF16, &[9, 8], &numbers);
        refuses(Tensors::default().with("fc.input", tensor), &format!("got {shown} at row 5, column 2"));
    }
    let mut stats = dalr::ActivationStats::<f32>::new(7);
    stats.update(dalr::faer::Mat::<f32>::ones(3, 7).as_ref()).unwrap();
    std::fs::remove_file(&path).unwrap();
    folder.refuses(&OK, "cannot access calibration.safetensors: No such file");
    Tensors::default().with("fc.input", samples(9, 8)).write(&path);
    stats.save(folder.path("fc.safetensors")).unwrap();
    folder.refuses(
        &["--rank", "3", "--calibration", "fc.safetensors"],
        "expected statistics of 8 inputs, as the layer has, got statistics of 7 inputs",
    );
}

#[test]
fn models_that_are_damaged_are_refused() {
    let folder = Folder::new();
    let (model, _) = stack(&folder, 1, 8);
    let path = folder.path("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let refuses = |bytes: &[u8], expected: &str| {
        std::fs::write(&path, bytes).unwrap();
        folder.refuses(&OK, expected);
    };
    refuses(&[], "expected a safetensors file, got 0 bytes");
    refuses(&whole[..whole.len() - 1], "bytes, got");
    refuses(&[whole.clone(), vec![0]].concat(), "bytes, got");
    refuses(&whole[..100], "expected a header of at most 92 bytes");
    refuses(&[&u64::MAX.to_le_bytes()[..], &whole[8..]].concat(), "expected a header of at most");
    let mut garbled = whole.clone();
    garbled[9] = b'}';
    refuses(&garbled, "expected a header in the safetensors format");
    // The offsets overlap, exceed the file, or contradict the shape.
    let text = String::from_utf8_lossy(&whole[8..300]).into_owned();
    for (from, to) in [("[0,32]", "[0,33]"), ("\"shape\":[8]", "\"shape\":[9]"), ("[0,32]", "[8,40]")] {
        assert!(text.contains(from), "{text}");
        let mut bytes = whole.clone();
        let at = 8 + text.find(from).unwrap();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        refuses(&bytes, "expected a header in the safetensors format");
    }
    let bad = |name: &str, tensor: Tensor, expected: &str| {
        model.clone().with(name, tensor).write(&path);
        folder.refuses(&OK, expected);
    };
    let mut numbers = random(1, 8, 8, 1.0);
    numbers[13] = f64::NAN;
    bad(
        "layer.0.weight",
        Tensor::of(Dtype::F32, &[8, 8], &numbers),
        "layer layer.0: Linear::new: expected finite numbers in the weight, got NaN at row 1, column 5 (counted from 0)",
    );
    bad("layer.0.bias", samples(1, 7), "layer layer.0: expected a bias of 8 floating-point numbers, got F32 [1, 7]");
    bad("layer.0.1.weight", samples(1, 7), "layer layer.0: `layer.0.1.weight` is already in the model");
    std::fs::remove_file(&path).unwrap();
    folder.refuses(&OK, "cannot access model.safetensors: No such file");
    std::fs::create_dir(&path).unwrap();
    folder.refuses(&OK, "expected a regular file");
}

#[test]
fn factors_that_overflow_the_weight_s_dtype_are_an_error() {
    let folder = Folder::new();
    // All entries are near the largest number of f16, and those of the factors are several times
    // larger.
    let weight: Vec<f64> = random(1, 16, 16, 1.0).iter().map(|x| 6e4 - x.abs()).collect();
    Tensors::default()
        .with("fc.weight", Tensor::of(Dtype::F16, &[16, 16], &weight))
        .write(&folder.path("model.safetensors"));
    Tensors::default().with("fc.input", samples(40, 16)).write(&folder.path("calibration.safetensors"));
    folder.refuses(&OK, "layer fc: a factor or the bias overflows F16");
}

#[test]
fn outputs_that_exist_are_kept_without_force() {
    let folder = Folder::new();
    stack(&folder, 1, 8);
    for (option, name) in [("-o", "out.safetensors"), ("--json", "r.json"), ("--html", "p.html")] {
        std::fs::write(folder.path(name), "mine").unwrap();
        let mut options = vec!["--rank", "3"];
        if option != "-o" {
            options.extend([option, name]);
        }
        let output = folder.run(&options);
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains(&format!("{name} exists: pass --force to replace it")), "{}", said(&output));
        assert_eq!(std::fs::read(folder.path(name)).unwrap(), b"mine");
        options.push("--force");
        assert!(folder.run(&options).status.success());
        assert_ne!(std::fs::read(folder.path(name)).unwrap(), b"mine");
        std::fs::remove_file(folder.path("out.safetensors")).unwrap();
    }
    let mut onto = folder.command(&OK);
    let output = onto.args(["--force", "--html", "model.safetensors"]).output().unwrap();
    assert!(!output.status.success(), "the model itself was written over");
    std::fs::create_dir(folder.path("out.safetensors")).unwrap();
    let output = folder.run(&["--rank", "3", "--force"]);
    assert!(said(&output).contains("expected the name of a file, got a folder"), "{}", said(&output));
}

/// A limit on the size of files acts like a full disk.
#[test]
fn a_full_disk_is_an_error_that_leaves_nothing_half_done() {
    let folder = Folder::new();
    let (model, _) = stack(&folder, 2, 64);
    let large = Tensor::of(Dtype::F64, &[40_000], &random(1, 1, 40_000, 1.0));
    model.with("large", large).write(&folder.path("model.safetensors"));
    let limited = |kilobytes: usize| {
        // The signal of the limit is ignored, so a write fails as on a full disk.
        let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", kilobytes * 2);
        let mut command = std::process::Command::new("sh");
        let inner = folder.command(&OK);
        command.args(["-c", &script]).arg(inner.get_program()).args(inner.get_args());
        command.current_dir(folder.path("")).output().unwrap()
    };
    // The limit is too small for a layer's factors, and then for the output.
    for (kilobytes, what) in [(1, "cannot access out.safetensors.work"), (100, "cannot access out.safetensors:")] {
        let output = limited(kilobytes);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains(what), "{}", said(&output));
        let left = folder.names();
        assert!(!left.iter().any(|name| name == "out.safetensors" || name.ends_with(".partial")), "{left:?}");
    }
    // Without the limit, a resumed run uses the solved layers.
    let output = folder.run(&["--rank", "3", "--resume"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("layer 2/2 layer.1: solved before"), "{}", said(&output));
    assert_eq!(folder.names(), ["calibration.safetensors", "model.safetensors", "out.safetensors"]);
}
