//! Compresses a LeNet that was fine-tuned on optical digits by every method of the DALR paper.
//!
//! `cargo run --release --example lenet_digits [-- --json FILE]` prints accuracies, errors and
//! parameters, and draws `target/lenet_digits.svg`.

mod comparison;
mod figure;
mod network;
mod whole_network;

use std::error::Error;
use std::path::{Path, PathBuf};

use comparison::{Comparison, LAYERS, METHODS, NOTEBOOK_RANKS, RANKS, UNIT_METHODS, compare, saves};
use network::Data;
use whole_network::{BudgetRow, compare_budgets};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let json = match arguments.next() {
        None => None,
        Some(flag) if flag == "--json" => Some(PathBuf::from(arguments.next().ok_or("--json: expected a file")?)),
        Some(other) => return Err(format!("expected --json FILE, got {}", other.display()).into()),
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let data = Data::load(&root.join("data/lenet_digits.safetensors"))?;
    let comparison = compare(&data)?;
    print(&data, &comparison);
    print_budgets(&compare_budgets(&data)?);
    let picture = root.join("target/lenet_digits.svg");
    figure::draw(&comparison, &picture)?;
    println!("\npicture: target/lenet_digits.svg");
    if let Some(path) = json {
        std::fs::write(&path, serde_json::to_string_pretty(&comparison)? + "\n")?;
        println!("numbers: {}", path.display());
    }
    Ok(())
}

fn print(data: &Data, comparison: &Comparison) {
    println!(
        "LeNet on optical digits: {} test images that neither training nor calibration saw",
        data.test.labels.len()
    );
    println!("  trained on MNIST only      accuracy {:.4}", comparison.source_accuracy);
    println!("  fine-tuned on {} digits  accuracy {:.4}", data.train.labels.len(), comparison.original_accuracy);
    println!("\nEach cell: accuracy of the network / relative error of the layer's outputs, on the test images.");
    println!("Optimum: the smallest error that any weight of the rank can have. All methods except pruning have");
    println!("the parameters given; pruning keeps as many inputs as fit into that number.");
    for (index, name) in LAYERS.into_iter().take(2).enumerate() {
        let layer = &data.target.linear[index];
        let original = comparison.original_parameters[index];
        println!("\n{name}: {} → {}, {original} parameters", layer.in_features(), layer.out_features());
        print!("rank parameters");
        METHODS.iter().for_each(|method| print!(" {method:>13}"));
        println!("  optimum");
        for (at, rank) in RANKS.into_iter().enumerate() {
            let rows = METHODS.map(|method| comparison.find(name, method, rank));
            let parameters = rows[0].map_or(0, |row| row.parameters);
            print!("{rank:>4} {parameters:>5} {:>3.0}%", 100.0 * parameters as f64 / original as f64);
            for row in rows.into_iter().flatten() {
                print!("  {:.3} / {:.3}", row.accuracy, row.relative_error);
            }
            println!(
                "    {:.3}{}",
                comparison.optimum[index][at],
                if saves(rank, layer) { "" } else { "  saves nothing" }
            );
        }
    }
    let original: usize = comparison.original_parameters.iter().sum();
    println!(
        "\nfc1, fc2 and fc3 at the ranks {NOTEBOOK_RANKS:?} of the paper's notebook, originally {original} parameters"
    );
    println!("(the error is that of the network's outputs)");
    for row in comparison.rows.iter().filter(|row| row.layer == "all") {
        let (name, percent) = (row.method, 100.0 * comparison.fraction(row));
        println!(
            "  {name:<13} {:>6} parameters ({percent:.0} %)  accuracy {:.3}  error {:.3}",
            row.parameters, row.accuracy, row.relative_error
        );
    }
    for warning in &comparison.warnings {
        println!("  warning: {warning}");
    }
    println!("\nAccuracy with dalr, when errors of the outputs count alike / as the layers behind see them");
    println!("(`OutputMetric::from_next_layer`)");
    for row in &comparison.metric_rows {
        let layers = format!("{} at rank {}", row.layers.join(" and "), row.rank);
        println!("  {layers:<21}  {:.3} / {:.3}", row.plain_accuracy, row.metric_accuracy);
    }
    println!("\nAccuracy / error of the outputs of fc2 with some of the 120 hidden units between fc1 and fc2");
    println!("(`HiddenUnits`; pruning keeps as many)");
    for (index, method) in UNIT_METHODS.into_iter().enumerate() {
        let rows: Vec<_> = comparison.unit_rows.iter().filter(|row| row.method == method).collect();
        if index == 0 {
            print!("  {:<22}", "kept units");
            rows.iter().for_each(|row| print!("  {:>13}", row.kept));
            print!("\n  {:<22}", "parameters of both");
            rows.iter().for_each(|row| print!("  {:>13}", row.parameters));
            println!();
        }
        print!("  {method:<22}");
        rows.iter().for_each(|row| print!("  {:.3} / {:.3}", row.accuracy, row.relative_error));
        println!();
    }
}

fn print_budgets(rows: &[BudgetRow]) {
    println!("\nAll five layers under one budget: uniform ranks, or the allocator's choice among original layers,");
    println!("ranks (pivoted from fc1 on) and fewer channels or hidden units, by measured sensitivities");
    for row in rows {
        let (parameters, multiply_adds) = (100.0 * row.parameters, 100.0 * row.multiply_adds);
        println!(
            "  {:<25}  {:<22}  {parameters:>4.1} % of the parameters, {multiply_adds:>4.1} % of the MACs  accuracy {:.3}",
            row.budget, row.method, row.accuracy
        );
    }
    for row in rows.iter().filter(|row| row.method == "all kinds") {
        println!("  {}, all kinds:", row.budget);
        row.choices.iter().for_each(|choice| println!("    {choice}"));
    }
}
