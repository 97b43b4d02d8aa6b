//! `dalr lora extract`: an adapter from the difference of two checkpoints.

use std::collections::BTreeSet;
use std::path::Path;

use dalr::adapter::Adapter;
use dalr::interop::safetensors::{Dtype, FloatDtype, ModelFile, ModelWriter};
use dalr::{ActivationStats, Calibration, Scalar};
use serde_json::json;

use super::args::{DtypeName, ExtractArgs};
use super::module::{Module, flat};
use super::names::Format;
use super::report::Outcome;
use super::rule::Rule;
use super::select::{Selection, select};
use super::solve::{Inputs, LeftOut, finish};
use super::write::{Target, Template};
use super::{kohya, names};
use crate::error::{Error, Result};
use crate::progress::{Progress, Verbosity};

pub fn run(args: &ExtractArgs, verbosity: Verbosity) -> Result<()> {
    let rule = args.ranks.required()?;
    args.common.validate(&[&args.base, &args.tuned], args.rest.as_deref())?;
    let target = Target::new(&args.common, FloatDtype::from(args.common.dtype.unwrap_or(DtypeName::F32)))?;
    crate::prepare(args.common.threads)?;
    let models = [ModelFile::open(&args.base)?, ModelFile::open(&args.tuned)?];
    let selection = select(args, &models[0], &models[1])?;
    let is_double = |module: &Module| {
        let name = format!("{}.weight", module.name);
        models.iter().any(|model| model.tensor(&name).is_some_and(|info| info.dtype == Dtype::F64))
    };
    if selection.modules.iter().any(is_double) {
        extract::<f64>(args, rule, &models, selection, &target, verbosity)
    } else {
        extract::<f32>(args, rule, &models, selection, &target, verbosity)
    }
}

fn extract<T: Scalar>(
    args: &ExtractArgs,
    rule: Rule,
    [base, tuned]: &[ModelFile; 2],
    Selection { modules, mut others }: Selection,
    target: &Target<'_>,
    verbosity: Verbosity,
) -> Result<()> {
    let written = |module: &Module| match target.format {
        Format::Peft => module.name.clone(),
        Format::Kohya => kohya::name(&args.prefix, &module.name),
    };
    names::require_distinct(modules.iter().map(written), &args.common.out)?;
    let dtype = if T::EPSILON == f64::EPSILON { FloatDtype::F64 } else { FloatDtype::F32 };
    let inputs = Inputs::open(&args.common, &modules, rule, dtype)?;
    let mut progress = Progress::new(&inputs.layers, verbosity);
    inputs.notes.iter().for_each(|note| progress.note(note));
    let shapes: Vec<(usize, usize)> =
        modules.iter().map(|module| (module.out_features(), module.in_features())).collect();
    let decompose = |index: usize, stats: Option<&ActivationStats<T>>| {
        let module = &modules[index];
        let name = format!("{}.weight", module.name);
        let read = |model: &ModelFile| {
            let weight = flat::<T>(model, &name)?;
            Ok::<_, Error>(if args.fan_in_fan_out && module.shape.len() == 2 {
                weight.transpose().to_owned()
            } else {
                weight
            })
        };
        let weights = (read(base)?, read(tuned)?);
        if weights.0 == weights.1 {
            return Ok(None);
        }
        let full_rank = module.full_rank();
        let calibration = stats.map_or(Calibration::none(), Calibration::from);
        let bound = rule.bound(full_rank, &shapes);
        let decomposition = Adapter::extract(weights.0.as_ref(), weights.1.as_ref(), calibration, bound);
        Ok(Some((decomposition.map_err(Error::layer(&module.name))?, full_rank)))
    };
    let solved = inputs.solve(&modules, rule, &mut progress, decompose);
    progress.end();
    let solved = solved?;
    for (module, layer) in modules.iter().zip(&inputs.layers) {
        if !solved.iter().any(|solved| solved.module.name == layer.name) {
            others.push(LeftOut::new(module, dtype, "equal in both models", false));
        }
    }
    if solved.is_empty() {
        let message = format!("{}: no weight differs from that of the base model", args.tuned.display());
        return Err(Error::Refused(message));
    }
    let (mut solved, left_out, lost) = finish(solved, rule, target.dtype)?;
    others.extend(left_out);

    let names: BTreeSet<String> = solved.iter().map(|solved| solved.module.name.clone()).collect();
    let weights = base.tensors().filter_map(|(name, _)| name.strip_suffix(".weight"));
    let untouched: Vec<String> = weights.filter(|name| !names.contains(*name)).map(Into::into).collect();
    let rest = rest(tuned, &others);
    solved.iter_mut().for_each(|solved| solved.module.name = written(&solved.module));
    let outcome = Outcome { command: "extract", args: &args.common, target, solved: &solved, left_out: &others, lost };
    outcome.save_json()?;
    if let Some(path) = &args.rest {
        write_rest(path, tuned, &rest)?;
    }
    let template = json!({"fan_in_fan_out": args.fan_in_fan_out, "base_model_name_or_path": args.base});
    target.write(&solved, &Template { config: template.as_object(), ..Template::default() }, &untouched)?;
    outcome.print(verbosity)
}

/// Returns the tensors of the tuned model that differ and are not in the adapter.
fn rest<'a>(tuned: &'a ModelFile, others: &[LeftOut]) -> Vec<&'a str> {
    let changed: BTreeSet<&str> = others.iter().filter(|other| other.changed).map(|other| &*other.name).collect();
    let names = tuned.tensors().map(|(name, _)| name);
    names
        .filter(|name| changed.contains(name) || changed.contains(name.strip_suffix(".weight").unwrap_or(name)))
        .collect()
}

fn write_rest(path: &Path, tuned: &ModelFile, names: &[&str]) -> Result<()> {
    let mut writer = ModelWriter::new();
    for &name in names {
        let Some(info) = tuned.tensor(name) else { continue };
        writer.add(name, info.dtype, &info.shape, name)?;
    }
    writer.write(path, |name, target| tuned.copy(name, target).map_err(Error::from))
}
