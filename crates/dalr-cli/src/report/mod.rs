//! The result of `dalr compress`: a summary on the terminal, JSON for programs, a page for people.

mod comparison;
mod page;
mod spectrum;

use std::path::PathBuf;

use dalr::network::{Choice, LayerPlan, LayerProfile, OriginalReason, Plan};
use serde_json::{Value, json};

pub use comparison::{Comparison, Latency, OutputChange};

use crate::args::CompressArgs;
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::selection::{Passed, Selection};

/// The content of the reports.
pub struct Outcome<'a> {
    pub args: &'a CompressArgs,
    /// The files of the model.
    pub files: Vec<PathBuf>,
    pub selection: &'a Selection,
    pub profiles: &'a [LayerProfile],
    pub plan: &'a Plan,
    /// Both models on held-out inputs, if the program can run them.
    pub comparison: Option<&'a Comparison>,
}

impl Outcome<'_> {
    /// Returns the self-contained page.
    pub fn page(&self) -> String {
        page::page(self)
    }

    /// Returns every layer, the totals, and all other tensors with the reasons.
    pub fn json(&self) -> Result<String> {
        let Plan { budget, strategy, objective, lower_bound, layers, warnings, .. } = self.plan;
        let layers = layers.iter().zip(&self.selection.layers);
        pretty(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": self.files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
            "output": self.args.out.display().to_string(),
            "method": self.args.method.name(),
            "parameters": {"before": self.plan.parameters_before(), "after": self.plan.parameters_after()},
            "multiply_adds": {"before": self.plan.multiply_adds_before(), "after": self.plan.multiply_adds_after()},
            "predicted_output_error": self.output_error(),
            "total_error": self.plan.total_error(),
            "budget": budget,
            "allocation": strategy,
            "objective": objective,
            "lower_bound": lower_bound,
            "warnings": texts(warnings),
            "layers": layers.map(layer_json).collect::<Vec<_>>(),
            "passed_through": passed(&self.selection.passed),
            "notes": self.selection.notes,
            "comparison": self.comparison,
        }))
    }

    /// Returns the root mean square of the layers' predicted output errors. The library's
    /// `total_error` may include regularization, as the allocator's objective does.
    fn output_error(&self) -> Option<f64> {
        let layers = &self.plan.layers;
        let squares: Option<f64> = layers.iter().map(|layer| Some(layer.relative_error?.powi(2))).sum();
        Some((squares? / layers.len() as f64).sqrt())
    }

    /// Returns a table of the layers, the number of copied tensors, warnings, and the result in one
    /// line. With `verbose`, also every copied tensor, the objective and its bound.
    pub fn summary(&self, verbose: bool) -> String {
        let plan = self.plan;
        let headings = ["layer", "out × in", "rank", "parameters kept", "predicted error"];
        let mut rows = vec![headings.map(String::from).to_vec()];
        rows.extend(plan.layers.iter().map(row));
        let remarks = std::iter::once(String::from("remarks")).chain(plan.layers.iter().map(remarks));
        let mut text = String::new();
        for (line, remarks) in table(&rows).iter().zip(remarks) {
            text += format!("{line}  {remarks}").trim_end();
            text.push('\n');
        }
        text += &copied(self.selection, verbose);
        for warning in &plan.warnings {
            text += &format!("warning: {warning}\n");
        }
        if verbose {
            text += &format!("objective {:.4e}, lower bound {:.4e}\n", plan.objective, plan.lower_bound);
        }
        text += &self.comparison.map(Comparison::text).unwrap_or_default();
        let error = self.output_error().map_or("unknown without samples".into(), percent);
        let fraction = kept(plan.parameters_after(), plan.parameters_before());
        // Multiply–adds differ from parameters if some layers run more often than others.
        let macs = kept(plan.multiply_adds_after(), plan.multiply_adds_before());
        let macs =
            if self.comparison.is_some() { format!(" and {macs} of the multiply–adds") } else { String::new() };
        text + &format!("kept {fraction} of the parameters{macs}; predicted output error {error}\n")
    }
}

fn layer_json((plan, layer): (&LayerPlan, &Layer)) -> Value {
    json!({
        "name": layer.name,
        "input": layer.input,
        "out_features": layer.out_features,
        "in_features": layer.in_features,
        "rank": rank(plan),
        "hidden_units": match plan.choice {
            Choice::HiddenUnits { kept, .. } => Some(kept),
            _ => None,
        },
        "shares_down": matches!(plan.choice, Choice::Shared { .. }),
        "reason": plan.reason.map(reason),
        "parameters": {"before": plan.parameters_before, "after": plan.parameters_after},
        "multiply_adds": {"before": plan.multiply_adds_before, "after": plan.multiply_adds_after},
        "relative_error": plan.relative_error,
        "warnings": texts(&plan.warnings),
        "report": plan.report,
    })
}

/// Returns the rank of a layer; `None` for an original layer.
fn rank(layer: &LayerPlan) -> Option<usize> {
    match layer.choice {
        Choice::Rank(rank) | Choice::Shared { rank, .. } => Some(rank),
        _ => None,
    }
}

fn texts(warnings: &[impl ToString]) -> Vec<String> {
    warnings.iter().map(ToString::to_string).collect()
}

fn row(layer: &LayerPlan) -> Vec<String> {
    vec![
        layer.name.clone(),
        format!("{} × {}", layer.out_features, layer.in_features),
        rank(layer).map_or("–".into(), |rank| rank.to_string()),
        kept(layer.parameters_after, layer.parameters_before),
        layer.relative_error.map_or("unknown".into(), percent),
    ]
}

/// Returns the reason why a layer stays original, or the warnings about its factors.
fn remarks(layer: &LayerPlan) -> String {
    match layer.reason {
        Some(why) => format!("original layer: {}", reason(why)),
        None => {
            let how = match layer.choice {
                Choice::Shared { .. } => Some("one `down` with its group".into()),
                Choice::HiddenUnits { kept, .. } => Some(format!("{kept} hidden units, shared with its pair")),
                _ => None,
            };
            how.into_iter().chain(texts(&layer.warnings)).collect::<Vec<String>>().join("; ")
        }
    }
}

/// Returns the words for a reason.
fn reason(reason: OriginalReason) -> String {
    match reason {
        OriginalReason::NoSavings => "no allowed rank saves parameters".into(),
        OriginalReason::ErrorTooLarge => "no smaller form is within the error".into(),
        OriginalReason::Affordable => "the budget allows it".into(),
        other => other.to_string(),
    }
}

/// Returns the number of parts that are not layers by reason, or with `verbose` each of them.
pub fn copied(selection: &Selection, verbose: bool) -> String {
    let Selection { passed: tensors, others, .. } = selection;
    let mut text = format!("{others}: {}", tensors.len());
    if verbose {
        text += if tensors.is_empty() { "\n" } else { ":\n" };
        for Passed { name, dtype, shape, reason } in tensors {
            let shape = if shape.is_empty() { String::new() } else { format!(" {shape:?}") };
            text += &format!("  {name} {dtype}{shape}: {reason}\n");
        }
        return text;
    }
    let mut reasons: Vec<(&str, usize)> = Vec::new();
    for Passed { name, reason, .. } in tensors {
        // The reason contains the name of the missing input. Without the name, equal reasons are
        // counted together.
        let reason = if reason.starts_with("no `") { "no calibration data" } else { reason };
        let reason =
            if reason == "not a weight" && name.ends_with(".bias") { "a bias without a layer" } else { reason };
        match reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count += 1,
            None => reasons.push((reason, 1)),
        }
    }
    let reasons: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} × {reason}")).collect();
    if reasons.is_empty() { text + "\n" } else { text + &format!(" ({})\n", reasons.join("; ")) }
}

/// Returns the copied tensors for programs.
pub fn passed(tensors: &[Passed]) -> Value {
    let tensor = |Passed { name, dtype, shape, reason }: &Passed| json!({"name": name, "dtype": dtype, "shape": shape, "reason": reason});
    tensors.iter().map(tensor).collect()
}

pub fn pretty(value: &Value) -> Result<String> {
    let text = serde_json::to_string_pretty(value);
    text.map(|text| text + "\n").map_err(|error| Error::Refused(format!("cannot convert the report to JSON: {error}")))
}

/// Returns one line for each row, with the first column aligned to the left and the others to the
/// right.
pub fn table(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(
            |(column, (cell, width))| {
                if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            },
        );
        cells.collect::<Vec<_>>().join("  ")
    };
    rows.iter().map(line).collect()
}

pub fn percent(fraction: f64) -> String {
    format!("{:.1} %", 100.0 * fraction)
}

fn kept(after: u64, before: u64) -> String {
    percent(after as f64 / before as f64)
}
