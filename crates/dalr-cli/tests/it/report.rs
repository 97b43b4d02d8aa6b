//! The JSON report, the page, the summary, and the lines on standard error.

use serde_json::Value;

use crate::harness::{Folder, Tensors, layer, said, stack};

#[test]
fn the_report_says_what_was_done() {
    let folder = Folder::new();
    let (model, _) = stack(&folder, 3, 24);
    // No rank makes a layer of one output smaller.
    let model = layer(model, "head", safetensors::tensor::Dtype::F32, [1, 24], true);
    model.write(&folder.path("model.safetensors"));
    std::fs::write(folder.path("map.json"), r#"{"head": "layer.0.input"}"#).unwrap();
    let out = folder.compress(&["--keep", "0.5", "--json", "report.json", "--inputs", "map.json"]);
    let report: Value = serde_json::from_slice(&std::fs::read(folder.path("report.json")).unwrap()).unwrap();
    assert_eq!(report["method"], "dalr");
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["layers"][0]["input"], "layer.0.input");
    let count = |tensors: &Tensors| {
        tensors.tensors.values().map(|tensor| tensor.shape.iter().product::<usize>()).sum::<usize>()
    };
    assert_eq!(report["parameters"], serde_json::json!({"before": count(&model), "after": count(&out)}));
    assert!(
        report["total_error"].as_f64().is_some_and(|error| error > 0.0 && error < 1.0),
        "{}",
        report["total_error"]
    );
    let layers = report["layers"].as_array().unwrap();
    assert_eq!(
        layers.iter().map(|layer| layer["name"].as_str().unwrap()).collect::<Vec<_>>(),
        ["head", "layer.0", "layer.1", "layer.2"]
    );
    for layer in &layers[1..] {
        let down = &out.tensors[&format!("{}.0.weight", layer["name"].as_str().unwrap())];
        assert_eq!((&layer["rank"], &layer["report"]["rank"]), (&down.shape[0].into(), &down.shape[0].into()));
    }
    assert!(out.tensors.contains_key("head.weight"));
    let reason = "no allowed rank saves parameters".into();
    assert_eq!((&layers[0]["rank"], &layers[0]["reason"]), (&Value::Null, &reason));
}

/// The error is that of the outputs, whatever the method minimises.
#[test]
fn the_total_error_is_that_of_the_outputs() {
    let folder = Folder::new();
    stack(&folder, 3, 24);
    let mut totals = Vec::new();
    for method in ["dalr", "svd+bc", "svd", "dalr-paper"] {
        folder.compress(&["--rank", "5", "--method", method, "--json", "report.json", "--force"]);
        let report: Value = serde_json::from_slice(&std::fs::read(folder.path("report.json")).unwrap()).unwrap();
        let layers = report["layers"].as_array().unwrap();
        let squares: f64 = layers.iter().map(|layer| layer["relative_error"].as_f64().unwrap().powi(2)).sum();
        let output_error = report["predicted_output_error"].as_f64().unwrap();
        assert!((output_error - (squares / layers.len() as f64).sqrt()).abs() < 1e-12, "{method}");
        let (total, expected) = (report["total_error"].as_f64().unwrap(), (squares / layers.len() as f64).sqrt());
        // Shrinkage alone is between the two for dalr.
        let tolerance = if method == "dalr" { 0.1 } else { 1e-9 };
        assert!((total - expected).abs() <= tolerance * expected, "{method}: {total} {expected}");
        totals.push(total);
    }
    assert!(totals[0] < totals[1], "{totals:?}");
}

#[test]
fn the_page_is_whole_and_loads_nothing() {
    let folder = Folder::new();
    let (mut model, mut calibration) = stack(&folder, 3, 24);
    // A name that contains markup.
    let name = "a<b>&\"";
    model = layer(model, name, safetensors::tensor::Dtype::F32, [24, 24], true);
    calibration = calibration.clone().with(&format!("{name}.input"), calibration.tensors["layer.0.input"].clone());
    model.write(&folder.path("model.safetensors"));
    calibration.write(&folder.path("calibration.safetensors"));
    folder.compress(&["--keep", "0.5", "--html", "page.html"]);
    let page = std::fs::read_to_string(folder.path("page.html")).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</body></html>\n"));
    for outside in ["http", "src=", "href=", "@import", "url(", "<script", "<b>&"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("a&lt;b&gt;&amp;&quot;"));
    assert_eq!(page.matches("<figure>").count(), 4);
    // Every spectrum has a line and, because all layers are compressed, a mark at its rank.
    assert_eq!(page.matches("<polyline class=\"line\"").count(), 4);
    assert_eq!(page.matches("<path class=\"cut\"").count(), 4);
    for tag in ["svg", "table", "tr", "td", "div", "figure", "p", "span"] {
        let (open, close) = (
            page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count(),
            page.matches(&format!("</{tag}>")).count(),
        );
        assert_eq!(open, close, "{tag}");
    }
}

#[test]
fn without_a_terminal_only_verbose_runs_print_progress() {
    let folder = Folder::new();
    stack(&folder, 3, 24);
    let output = folder.run(&["--keep", "0.5"]);
    let text = said(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    for (index, line) in lines.iter().enumerate() {
        assert!(line.starts_with(&format!("layer {}/3 layer.{index}: 24 × 24, 48 samples, ", index + 1)), "{line}");
        assert!(line.ends_with(" left"), "{line}");
    }
    assert!(!text.contains('\u{1b}') && !text.contains('\r'), "{text}");
    let mut plain = std::process::Command::new(crate::harness::program());
    plain.current_dir(folder.path("")).args([
        "compress",
        "model.safetensors",
        "--calibration",
        "calibration.safetensors",
    ]);
    plain.args(["--keep", "0.5", "--threads", "1", "--force", "-o", "out.safetensors"]);
    let normal = plain.output().unwrap();
    assert_eq!(said(&normal), "");
    assert!(!normal.stdout.is_empty());
    let quiet = plain.arg("-q").output().unwrap();
    assert!(quiet.status.success() && quiet.stdout.is_empty() && quiet.stderr.is_empty());
}

#[test]
fn the_summary_lists_every_layer_and_ends_with_the_result() {
    let folder = Folder::new();
    let (model, calibration) = stack(&folder, 11, 24);
    let model = layer(model, "head", safetensors::tensor::Dtype::F32, [1, 24], true)
        .with("table", calibration.tensors["layer.0.input"].clone());
    model.write(&folder.path("model.safetensors"));
    std::fs::write(folder.path("map.json"), r#"{"head": "layer.0.input"}"#).unwrap();
    let options = ["--keep", "0.5", "--inputs", "map.json", "--json", "report.json"];
    let text = String::from_utf8(folder.run(&options).stdout).unwrap();
    let report: Value = serde_json::from_slice(&std::fs::read(folder.path("report.json")).unwrap()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let mut names = vec!["layer".to_string(), "head".into()];
    names.extend((0..11).map(|index| format!("layer.{index}")));
    let listed: Vec<&str> = lines[..13].iter().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(listed, names);
    assert!(lines[1].ends_with("original layer: no allowed rank saves parameters"), "{}", lines[1]);
    assert!(text.contains("other tensors, copied: 1:\n  table F32 [2, 24, 24]: not a weight\n"), "{text}");
    assert!(text.contains("\nobjective ") && text.contains(", lower bound "), "{text}");
    let number = |name: &str| report["parameters"][name].as_f64().unwrap();
    let expected = format!(
        "kept {:.1} % of the parameters; predicted output error {:.1} %",
        100.0 * number("after") / number("before"),
        100.0 * report["predicted_output_error"].as_f64().unwrap()
    );
    assert_eq!(lines.last(), Some(&expected.as_str()));
}

#[test]
fn completions_name_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output =
            std::process::Command::new(crate::harness::program()).args(["completions", shell]).output().unwrap();
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && script.contains("compress") && script.contains("rank-multiple"), "{shell}");
    }
}
