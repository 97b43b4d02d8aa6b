//! The original and the compressed model on held-out inputs.

use serde::Serialize;

use super::percent;

/// The change of a model by its compression.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    pub engine: String,
    pub samples: usize,
    pub outputs: Vec<OutputChange>,
    /// Bytes of the model, external data included, before and after.
    pub bytes: (u64, u64),
    pub latency: Latency,
    pub notes: Vec<String>,
}

/// The change of one output.
#[derive(Clone, Debug, Serialize)]
pub struct OutputChange {
    pub name: String,
    /// The root of the sum of the squared changes, divided by that of the squared original outputs.
    pub relative_error: f64,
    /// The mean over the samples of the cosine between the original and the new output.
    pub cosine: f64,
    /// The fraction of rows whose largest entry stays in its place, for outputs that are scores or
    /// probabilities of classes.
    pub top1: Option<f64>,
}

/// Seconds for one run of this many samples: the medians of runs in turn.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    pub before: f64,
    pub after: f64,
    pub samples: usize,
    pub threads: usize,
}

impl Comparison {
    /// Returns the quantities, each with its change.
    pub fn rows(&self) -> Vec<(String, String)> {
        let change = |(before, after): (u64, u64)| {
            format!("{before} → {after} ({})", percent(after as f64 / (before as f64).max(1.0)))
        };
        let Latency { before, after, samples, threads } = self.latency;
        let mut rows = vec![
            ("bytes of the file".into(), change(self.bytes)),
            (
                format!("time of a run of {samples} samples, {threads} threads"),
                format!("{} → {} ({})", milliseconds(before), milliseconds(after), percent(after / before)),
            ),
        ];
        for output in &self.outputs {
            let top1 = output.top1.map(|same| format!(", same class in {}", percent(same))).unwrap_or_default();
            rows.push((
                format!("output `{}`", output.name),
                format!("relative error {}, cosine {:.5}{top1}", percent(output.relative_error), output.cosine),
            ));
        }
        rows
    }

    pub fn text(&self) -> String {
        let mut text = format!("on {} held-out samples, run by {}:\n", self.samples, self.engine);
        for (name, change) in self.rows() {
            text += &format!("  {name}: {change}\n");
        }
        for note in &self.notes {
            text += &format!("note: {note}\n");
        }
        text
    }
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.2} ms", 1e3 * seconds)
}
