//! Which tensors are layers, and why the others are not: nothing is guessed.

use std::collections::{BTreeMap, BTreeSet};

use globset::{Glob, GlobSet, GlobSetBuilder};
use safetensors::tensor::Dtype;

use crate::args::Args;
use crate::calibration::Calibration;
use crate::error::{Error, Result};
use crate::numbers;
use crate::source::{Source, Tensor};

const NOT_INCLUDED: &str = "not included";
const EXCLUDED: &str = "excluded";

/// A layer that is to be compressed.
#[derive(Clone, Debug)]
pub struct Layer {
    pub name: String,
    pub out_features: usize,
    pub in_features: usize,
    pub dtype: Dtype,
    pub has_bias: bool,
    /// The name of what it reads in the calibration data.
    pub input: String,
}

impl Layer {
    pub fn weight(&self) -> String {
        format!("{}.weight", self.name)
    }

    pub fn bias(&self) -> String {
        format!("{}.bias", self.name)
    }

    /// The largest rank with fewer parameters than the weight, and at least 1.
    pub fn useful_rank(&self) -> usize {
        let (m, n) = (self.out_features, self.in_features);
        let saving = (dalr::Rank::break_even(m, n).ceil() as usize).saturating_sub(1);
        saving.clamp(1, m.min(n))
    }
}

/// A tensor that is copied as it is.
#[derive(Clone, Debug)]
pub struct Passed {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    pub reason: String,
}

/// The layers in natural order of their names, the other tensors, and what a user may want to know.
pub struct Selection {
    pub layers: Vec<Layer>,
    pub passed: Vec<Passed>,
    pub notes: Vec<String>,
}

/// Applies the rules of the README to every tensor of the model.
pub fn select(args: &Args, model: &Source, calibration: &Calibration) -> Result<Selection> {
    let inputs = args.inputs()?;
    let (include, exclude) = (globs("--include", &args.include)?, globs("--exclude", &args.exclude)?);
    let mut selection = Selection { layers: Vec::new(), passed: Vec::new(), notes: Vec::new() };
    let mut included = vec![false; args.include.len()];
    for (name, tensor) in model.tensors() {
        let reason = match candidate(name, tensor) {
            Err(reason) => reason,
            Ok(layer) if !args.include.is_empty() && !include.is_match(layer) => NOT_INCLUDED.into(),
            Ok(layer) if exclude.is_match(layer) => EXCLUDED.into(),
            Ok(layer) => {
                include.matches(layer).into_iter().for_each(|index| included[index] = true);
                let input = inputs.get(layer).cloned().unwrap_or_else(|| format!("{layer}.input"));
                if args.calibration.is_empty() || calibration.holds(&input) {
                    selection.layers.push(checked(model, layer, tensor, input)?);
                    continue;
                }
                let missing = format!("no `{input}` in the calibration data");
                // Whoever names a layer wants it compressed; a weight that nobody named may well be an embedding.
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
            name: name.clone(),
            dtype: tensor.dtype_name(),
            shape: tensor.shape.clone(),
            reason,
        });
    }
    if let Some(layer) = inputs.keys().find(|layer| !model.tensors().contains_key(&format!("{layer}.weight"))) {
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
    selection.layers.sort_by_cached_key(|layer| natural(&layer.name));
    settle(&mut selection, calibration);
    Ok(selection)
}

/// The name of the layer that this may be the weight of, or why it is not one.
fn candidate<'a>(name: &'a str, tensor: &Tensor) -> std::result::Result<&'a str, String> {
    let Some(layer) = name.strip_suffix(".weight") else { return Err("not a weight".into()) };
    if tensor.shape.len() != 2 {
        return Err(format!("{}-D: only 2-D weights are compressed", tensor.shape.len()));
    }
    if !numbers::is_supported(tensor.dtype) {
        return Err(format!("{}: only F32, F16, BF16 and F64 are compressed", tensor.dtype_name()));
    }
    if tensor.shape.contains(&0) { Err("empty".into()) } else { Ok(layer) }
}

fn checked(model: &Source, name: &str, weight: &Tensor, input: String) -> Result<Layer> {
    let refuse = |message: String| Error::Layer { layer: name.into(), message };
    let out_features = weight.shape[0];
    let bias = model.tensors().get(&format!("{name}.bias"));
    if let Some(bias) = bias
        && (bias.shape != [out_features] || !numbers::is_supported(bias.dtype))
    {
        let found = format!("{} {:?}", bias.dtype_name(), bias.shape);
        return Err(refuse(format!("expected a bias of {out_features} floating-point numbers, got {found}")));
    }
    for taken in ["0.weight", "1.weight", "1.bias"].map(|part| format!("{name}.{part}")) {
        if model.tensors().contains_key(&taken) {
            return Err(refuse(format!("`{taken}` is already in the model: exclude the layer")));
        }
    }
    let layer = Layer {
        name: name.into(),
        out_features,
        in_features: weight.shape[1],
        dtype: weight.dtype,
        has_bias: bias.is_some(),
        input,
    };
    Ok(layer)
}

/// Takes the biases of layers from what is passed through, and notes calibration data that nobody reads.
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

fn globs(option: &str, patterns: &[String]) -> Result<GlobSet> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(Glob::new(pattern).map_err(|error| Error::Refused(format!("{option}: {error}")))?);
    }
    set.build().map_err(|error| Error::Refused(format!("{option}: {error}")))
}

/// Sorts `layer.2` before `layer.10`.
fn natural(name: &str) -> Vec<(String, u64)> {
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
