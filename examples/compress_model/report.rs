//! What was done, for programs: one JSON object.

use dalr::network::{LayerProfile, Plan};
use serde_json::json;

use crate::args::Args;
use crate::error::{Error, Result};
use crate::selection::Selection;
use crate::source::Source;

/// All that report and page speak of.
pub struct Outcome<'a> {
    pub args: &'a Args,
    pub model: &'a Source,
    pub selection: &'a Selection,
    pub profiles: &'a [LayerProfile],
    pub plan: &'a Plan,
}

impl Outcome<'_> {
    /// The library's report on the network, what the model's other tensors are and why they are as they were, and the options.
    pub fn json(&self) -> Result<String> {
        let passed: Vec<_> = self.selection.passed.iter().map(|passed| {
            json!({"name": passed.name, "dtype": passed.dtype, "shape": passed.shape, "reason": passed.reason})
        }).collect();
        let inputs: serde_json::Map<_, _> =
            self.selection.layers.iter().map(|layer| (layer.name.clone(), json!(layer.input))).collect();
        let network = self.plan.report();
        let report = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": self.model.files().map(|path| path.display().to_string()).collect::<Vec<_>>(),
            "output": self.args.out.display().to_string(),
            "method": self.args.method_name(),
            "parameters": {"before": network.parameters_before(), "after": network.parameters_after()},
            "multiply_adds": {"before": network.multiply_adds_before(), "after": network.multiply_adds_after()},
            "total_error": network.total_error(),
            "network": network,
            "inputs": inputs,
            "passed_through": passed,
            "notes": self.selection.notes,
        });
        let text = serde_json::to_string_pretty(&report);
        text.map(|text| text + "\n").map_err(|error| Error::Refused(format!("cannot write the report: {error}")))
    }
}
