//! Decides which tensors of two checkpoints are modules of an adapter, and compares the others.

use std::collections::BTreeSet;

use dalr::interop::safetensors::{FloatDtype, ModelFile, TensorInfo};

use super::args::ExtractArgs;
use super::module::Module;
use super::names::Format;
use super::solve::LeftOut;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::selection::{globs, natural};

/// The tensors of both checkpoints.
pub struct Selection {
    /// The modules, under the names of the checkpoints.
    pub modules: Vec<Module>,
    /// The tensors that an adapter cannot hold or must not.
    pub others: Vec<LeftOut>,
}

/// Sorts all tensors of both checkpoints.
pub fn select(args: &ExtractArgs, base: &ModelFile, tuned: &ModelFile) -> Result<Selection> {
    let (include, exclude) = (globs("--include", &args.include)?, globs("--exclude", &args.exclude)?);
    let names: BTreeSet<&str> = base.tensors().chain(tuned.tensors()).map(|(name, _)| name).collect();
    let (mut modules, mut others, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    let mut included = vec![false; args.include.len()];
    let mut excluded = vec![false; args.exclude.len()];
    for name in names {
        interrupt::check()?;
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let matches: Vec<usize> = [exclude.matches(name), exclude.matches(module)].concat();
        let found = (base.tensor(name), tuned.tensor(name));
        let Some(info) = found.1.or(found.0) else { continue };
        let mut leave_out = |reason: String, changed| {
            let (name, dtype) = (name.into(), format!("{:?}", info.dtype));
            others.push(LeftOut { name, shape: info.shape.clone(), dtype, reason, changed });
        };
        if !matches.is_empty() {
            matches.into_iter().for_each(|index| excluded[index] = true);
            leave_out("excluded".into(), false);
            continue;
        }
        let (first, second) = match found {
            (Some(first), Some(second)) if first.shape == second.shape => (first, second),
            (Some(first), Some(second)) => {
                refused.push(format!(
                    "`{name}` is {:?} in the base and {:?} in the tuned model",
                    first.shape, second.shape
                ));
                continue;
            }
            (found, _) => {
                let which = if found.is_some() { "tuned" } else { "base" };
                refused.push(format!("`{name}` is not in the {which} model"));
                continue;
            }
        };
        let wanted = include.matches(module);
        let exactly = args.include.iter().any(|pattern| pattern == module);
        match reason(name, info, exactly, Format::of(&args.common.out)) {
            None if args.include.is_empty() || !wanted.is_empty() => {
                wanted.into_iter().for_each(|index| included[index] = true);
                let mut shape = info.shape.clone();
                if args.fan_in_fan_out && shape.len() == 2 {
                    shape.swap(0, 1);
                }
                modules.push(Module { name: module.into(), shape, is_embedding: false });
            }
            reason => leave_out(reason.unwrap_or("not included").into(), differ(name, (base, first), (tuned, second))?),
        }
    }
    if !refused.is_empty() {
        let more = if refused.len() > 3 { format!(", and {} more", refused.len() - 3) } else { String::new() };
        refused.truncate(3);
        let message = format!(
            "{}{more}: pass two checkpoints of one model, or leave them out with --exclude",
            refused.join("; ")
        );
        return Err(Error::Refused(message));
    }
    for (option, patterns, used) in [("--include", &args.include, included), ("--exclude", &args.exclude, excluded)] {
        if let Some(unused) = used.iter().position(|used| !used) {
            return Err(Error::Refused(format!("{option} {}: matches no module", patterns[unused])));
        }
    }
    modules.sort_by_cached_key(|module| natural(&module.name));
    Ok(Selection { modules, others })
}

/// Returns the reason why a tensor cannot be the weight of a module; `None` if it can. `exactly`
/// means that an option names the module, not only matches it.
fn reason(name: &str, info: &TensorInfo, exactly: bool, format: Format) -> Option<&'static str> {
    let Some(module) = name.strip_suffix(".weight") else {
        return Some(if name.ends_with(".bias") { "a bias" } else { "not a weight" });
    };
    let axes = info.shape.len();
    let last = module.rsplit('.').next().unwrap_or(module);
    if axes < 2 {
        Some("a norm or another vector")
    } else if FloatDtype::of(info.dtype).is_none() {
        Some("of a dtype other than F32, F16, BF16 and F64")
    } else if info.shape.contains(&0) {
        Some("empty")
    } else if axes == 2 && !exactly && (last.contains("embed") || ["wte", "wpe", "shared"].contains(&last)) {
        Some("an embedding, by its name")
    } else if axes > 2 && info.shape[1] == 1 && info.shape[0] > 1 {
        Some("a depthwise convolution")
    } else if !format.holds(axes) {
        Some("neither a linear layer nor a convolution that the format can hold")
    } else {
        None
    }
}

/// Returns whether a tensor differs between the checkpoints.
fn differ(
    name: &str,
    (base, first): (&ModelFile, &TensorInfo),
    (tuned, second): (&ModelFile, &TensorInfo),
) -> Result<bool> {
    let floats = [first, second].iter().all(|info| FloatDtype::of(info.dtype).is_some());
    if first.dtype == second.dtype || !floats {
        return Ok(first.dtype != second.dtype || base.checksum(name)? != tuned.checksum(name)?);
    }
    Ok(base.vector::<f64>(name)? != tuned.vector::<f64>(name)?)
}
