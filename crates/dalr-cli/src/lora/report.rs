//! The result of `dalr lora`: every module and every tensor that was left out, as text and JSON.

use dalr::Scalar;
use serde_json::json;

use super::args::CommonArgs;
use super::solve::{LeftOut, Solved};
use super::write::Target;
use crate::error::Result;
use crate::files::save;
use crate::progress::Verbosity;
use crate::report::{percent, pretty, table};

/// The content of the report.
pub struct Outcome<'a, T> {
    pub command: &'static str,
    pub args: &'a CommonArgs,
    pub target: &'a Target<'a>,
    pub solved: &'a [Solved<T>],
    pub left_out: &'a [LeftOut],
    /// The sum of the energies of the updates that got no adapter.
    pub lost: f64,
}

impl<T: Scalar> Outcome<'_, T> {
    /// Writes the report for programs, if `--json` is set.
    pub fn save_json(&self) -> Result<()> {
        let Some(path) = &self.args.json else { return Ok(()) };
        let module = |solved: &Solved<T>| {
            json!({
                "name": solved.module.name,
                "shape": solved.module.shape,
                "rank": solved.adapter.rank(),
                "full_rank": solved.full_rank,
                "parameters": solved.adapter.parameters(),
                "relative_error": error(solved),
                "error_of": if solved.samples > 0 { "outputs" } else { "weight" },
                "samples": solved.samples,
                "energy": solved.energy,
                "rounding_error": solved.rounding,
                "remarks": solved.remarks,
            })
        };
        let left_out = |other: &LeftOut| {
            json!({
                "name": other.name, "shape": other.shape, "dtype": other.dtype, "reason": other.reason,
                "changed": other.changed,
            })
        };
        let text = pretty(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "command": self.command,
            "output": self.args.out,
            "format": self.target.format.name(),
            "dtype": format!("{:?}", self.target.dtype),
            "parameters": self.parameters(),
            "relative_error": self.total_error(),
            "modules": self.solved.iter().map(module).collect::<Vec<_>>(),
            "left_out": self.left_out.iter().map(left_out).collect::<Vec<_>>(),
        }))?;
        save(path, &text)
    }

    /// Prints a table of the modules, the tensors that differ and are not in the adapter, the number
    /// of the others, and the result in one line. With `--verbose`, also every other tensor.
    pub fn print(&self, verbosity: Verbosity) -> Result<()> {
        if verbosity == Verbosity::Quiet {
            return Ok(());
        }
        let mut rows = vec![["module", "out × in", "rank", "error", "rounding"].map(String::from).to_vec()];
        rows.extend(self.solved.iter().map(row));
        let remarks =
            std::iter::once("remarks".into()).chain(self.solved.iter().map(|solved| solved.remarks.join("; ")));
        let mut text = String::new();
        for (line, remarks) in table(&rows).iter().zip(remarks) {
            text += format!("{line}  {remarks}").trim_end();
            text.push('\n');
        }
        let line = |other: &LeftOut| format!("  {} {} {:?}: {}\n", other.name, other.dtype, other.shape, other.reason);
        let (changed, others): (Vec<&LeftOut>, Vec<&LeftOut>) = self.left_out.iter().partition(|other| other.changed);
        if !changed.is_empty() {
            text += &format!("changed, but not in the adapter: {}\n", changed.len());
            text.extend(changed.into_iter().map(line));
        }
        if !others.is_empty() {
            let excluded = others.iter().filter(|other| other.reason == "excluded").count();
            text += &format!("other tensors: {} unchanged, {excluded} excluded\n", others.len() - excluded);
            if verbosity == Verbosity::Verbose {
                text.extend(others.into_iter().map(line));
            }
        }
        let total = self.total_error().map(|error| format!("; error of all updates {}", percent(error)));
        text += &format!(
            "{} modules with {} parameters, {} in {:?}{}\n",
            self.solved.len(),
            self.parameters(),
            self.target.format.name(),
            self.target.dtype,
            total.unwrap_or_default()
        );
        crate::print(text.as_bytes())
    }

    fn parameters(&self) -> usize {
        self.solved.iter().map(|solved| solved.adapter.parameters()).sum()
    }

    /// Returns the relative error of all updates together; `None` with calibration data.
    fn total_error(&self) -> Option<f64> {
        if self.solved.iter().any(|solved| solved.samples > 0) {
            return None;
        }
        let part = |solved: &Solved<T>| Some(solved.energy * error(solved)?.powi(2));
        let squared = self.lost + self.solved.iter().map(part).sum::<Option<f64>>()?;
        let energy = self.lost + self.solved.iter().map(|solved| solved.energy).sum::<f64>();
        Some((squared / energy.max(f64::MIN_POSITIVE)).sqrt())
    }
}

/// Returns the predicted error of a module before its factors are rounded.
fn error<T: Scalar>(solved: &Solved<T>) -> Option<f64> {
    solved.profile.relative_error(solved.adapter.rank())
}

fn row<T: Scalar>(solved: &Solved<T>) -> Vec<String> {
    let Solved { module, adapter, rounding, .. } = solved;
    let inputs: Vec<String> = module.shape[1..].iter().map(ToString::to_string).collect();
    vec![
        module.name.clone(),
        format!("{} × {}", module.out_features(), inputs.join("·")),
        adapter.rank().to_string(),
        error(solved).map_or("unknown".into(), percent),
        format!("{rounding:.0e}"),
    ]
}
