//! Decides which tensors are layers, by fixed rules and with a reason for every other tensor.

use std::collections::{BTreeMap, BTreeSet};

use dalr::interop::safetensors::{FloatDtype, ModelFile, TensorInfo};
use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::args::SourceArgs;
use crate::calibration::Calibration;
use crate::error::{Error, Result};
use crate::layer::Layer;

const NOT_INCLUDED: &str = "not included";
const EXCLUDED: &str = "excluded";

/// A tensor that is not a layer, and is copied.
#[derive(Clone, Debug)]
pub struct Passed {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    pub reason: String,
}

/// The layers, sorted by name with numbers in numeric order, the other tensors, and notes for the
/// user.
pub struct Selection {
    pub layers: Vec<Layer>,
    pub passed: Vec<Passed>,
    /// A heading for `passed`.
    pub others: &'static str,
    pub notes: Vec<String>,
}

/// Applies the rules of `docs/command-line.md` to every tensor of the model.
pub fn select(args: &SourceArgs, model: &ModelFile, calibration: &Calibration) -> Result<Selection> {
    let inputs = args.inputs()?;
    let (include, exclude) = (globs("--include", &args.include)?, globs("--exclude", &args.exclude)?);
    let mut selection =
        Selection { layers: Vec::new(), passed: Vec::new(), others: "other tensors, copied", notes: Vec::new() };
    let mut included = vec![false; args.include.len()];
    for (name, tensor) in model.tensors() {
        let reason = match candidate(name, tensor) {
            Err(reason) => reason,
            Ok((layer, _)) if !args.include.is_empty() && !include.is_match(layer) => NOT_INCLUDED.into(),
            Ok((layer, _)) if exclude.is_match(layer) => EXCLUDED.into(),
            Ok((layer, dtype)) => {
                include.matches(layer).into_iter().for_each(|index| included[index] = true);
                let input = inputs.get(layer).cloned().unwrap_or_else(|| format!("{layer}.input"));
                if args.calibration.is_empty() || calibration.holds(&input) {
                    selection.layers.push(checked(model, layer, dtype, &tensor.shape, input)?);
                    continue;
                }
                let missing = format!("no `{input}` in the calibration data");
                // If an option names the layer, missing data are an error. Any other weight may be
                // an embedding.
                if !args.include.is_empty() || inputs.contains_key(layer) {
                    return Err(Error::Layer { layer: layer.into(), message: missing });
                }
                missing
            }
        };
        let layer = name.strip_suffix(".weight").unwrap_or(name);
        let wanted = inputs.contains_key(layer) && name.ends_with(".weight");
        if wanted && reason != NOT_INCLUDED && reason != EXCLUDED {
            return Err(Error::Layer { layer: layer.into(), message: format!("named by --inputs, but {reason}") });
        }
        selection.passed.push(Passed {
            name: name.into(),
            dtype: format!("{:?}", tensor.dtype),
            shape: tensor.shape.clone(),
            reason,
        });
    }
    if let Some(layer) = inputs.keys().find(|layer| model.tensor(&format!("{layer}.weight")).is_none()) {
        return Err(Error::Layer { layer: layer.clone(), message: "named by --inputs, but not in the model".into() });
    }
    if let Some(unused) = included.iter().position(|used| !used) {
        return Err(Error::Refused(format!("--include {}: matches no layer", args.include[unused])));
    }
    if selection.layers.is_empty() {
        let some: Vec<&str> = calibration.names().take(3).collect();
        let message = format!(
            "no tensor of the model is a layer: expected a 2-D NAME.weight with NAME.input in the calibration data, which holds {}",
            if some.is_empty() { "nothing".into() } else { format!("`{}` …", some.join("`, `")) }
        );
        return Err(Error::Refused(message));
    }
    for layer in &selection.layers {
        calibration.check(&layer.input, layer.in_features).map_err(Error::layer(&layer.name))?;
    }
    selection.layers.sort_by_cached_key(|layer| natural(&layer.name));
    settle(&mut selection, calibration);
    Ok(selection)
}

/// Returns the name and the dtype of the layer if the tensor can be its weight, or the reason why
/// it cannot.
fn candidate<'a>(name: &'a str, tensor: &TensorInfo) -> std::result::Result<(&'a str, FloatDtype), String> {
    let Some(layer) = name.strip_suffix(".weight") else { return Err("not a weight".into()) };
    if tensor.shape.len() != 2 {
        return Err(format!("{}-D: only 2-D weights are compressed", tensor.shape.len()));
    }
    let Some(dtype) = FloatDtype::of(tensor.dtype) else {
        return Err(format!("{:?}: only F32, F16, BF16 and F64 are compressed", tensor.dtype));
    };
    if tensor.shape.contains(&0) { Err("empty".into()) } else { Ok((layer, dtype)) }
}

fn checked(model: &ModelFile, name: &str, dtype: FloatDtype, shape: &[usize], input: String) -> Result<Layer> {
    let refuse = |message: String| Error::Layer { layer: name.into(), message };
    let (out_features, in_features) = (shape[0], shape[1]);
    let bias = model.tensor(&format!("{name}.bias"));
    if let Some(bias) = bias
        && (bias.shape != [out_features] || FloatDtype::of(bias.dtype).is_none())
    {
        let found = format!("{:?} {:?}", bias.dtype, bias.shape);
        return Err(refuse(format!("expected a bias of {out_features} floating-point numbers, got {found}")));
    }
    for taken in ["0.weight", "1.weight", "1.bias"].map(|part| format!("{name}.{part}")) {
        if model.tensor(&taken).is_some() {
            return Err(refuse(format!("`{taken}` is already in the model: exclude the layer")));
        }
    }
    Ok(Layer { name: name.into(), out_features, in_features, dtype, has_bias: bias.is_some(), input })
}

/// Removes the layers' biases from the copied tensors, and notes calibration data that no layer
/// reads.
fn settle(selection: &mut Selection, calibration: &Calibration) {
    let biases: BTreeSet<String> = selection.layers.iter().map(Layer::bias).collect();
    selection.passed.retain(|passed| !biases.contains(&passed.name));
    let read: BTreeSet<&str> = selection.layers.iter().map(|layer| layer.input.as_str()).collect();
    let reasons: BTreeMap<&str, &str> =
        selection.passed.iter().map(|passed| (passed.name.as_str(), passed.reason.as_str())).collect();
    for name in calibration.names() {
        let layer = name.strip_suffix(".input").unwrap_or(name);
        if read.contains(name) || read.contains(format!("{layer}.input").as_str()) {
            continue;
        }
        let why = reasons.get(format!("{layer}.weight").as_str());
        let why = why.map(|reason| format!(" (`{layer}.weight`: {reason})")).unwrap_or_default();
        selection.notes.push(format!("no layer reads `{name}` of the calibration data{why}"));
    }
}

pub fn globs(option: &str, patterns: &[String]) -> Result<GlobSet> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(Glob::new(pattern).map_err(|error| Error::Usage(format!("{option}: {error}")))?);
    }
    set.build().map_err(|error| Error::Usage(format!("{option}: {error}")))
}

/// Sorts `layer.2` before `layer.10`.
pub fn natural(name: &str) -> Vec<(String, u64)> {
    let mut parts = vec![(String::new(), 0_u64)];
    let mut in_number = false;
    for character in name.chars() {
        if let Some(digit) = character.to_digit(10) {
            in_number = true;
            if let Some((_, number)) = parts.last_mut() {
                *number = number.saturating_mul(10).saturating_add(digit.into());
            }
            continue;
        }
        if in_number {
            parts.push((String::new(), 0));
            in_number = false;
        }
        if let Some((text, _)) = parts.last_mut() {
            text.push(character);
        }
    }
    parts
}
