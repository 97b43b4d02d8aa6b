//! `dalr lora resize` and `dalr lora merge`.

use std::path::{Path, PathBuf};

use dalr::adapter::Adapter;
use dalr::interop::safetensors::FloatDtype;
use dalr::{ActivationStats, Calibration, Rank, Scalar};

use super::args::{CommonArgs, MergeArgs, NamesArgs, ResizeArgs};
use super::module::Module;
use super::names::{self, Format};
use super::report::Outcome;
use super::rule::Rule;
use super::solve::{Inputs, finish};
use super::source::{Part, Source, folder_of};
use super::write::{Target, Template};
use crate::error::{Error, Result};
use crate::progress::{Progress, Verbosity};
use crate::selection::natural;

/// The adapters to merge, or the one to resize, and their weights.
struct Transform<'a> {
    command: &'static str,
    sources: Vec<(Source, f64)>,
    rule: Rule,
    args: &'a CommonArgs,
    verbosity: Verbosity,
}

pub fn resize(args: &ResizeArgs, verbosity: Verbosity) -> Result<()> {
    let rule = args.ranks.required()?;
    run("resize", &[(args.adapter.clone(), 1.0)], rule, &args.names, &args.common, verbosity)
}

pub fn merge(args: &MergeArgs, verbosity: Verbosity) -> Result<()> {
    let rule = args.ranks.rule()?.unwrap_or(Rule::Each { rank: Rank::Energy(1.0), max_rank: args.ranks.max_rank });
    let adapters: Vec<(PathBuf, f64)> = args.adapters.iter().map(|text| weighted(text)).collect::<Result<_>>()?;
    run("merge", &adapters, rule, &args.names, &args.common, verbosity)
}

/// Splits `ADAPTER:WEIGHT`.
fn weighted(text: &str) -> Result<(PathBuf, f64)> {
    let parts = text.rsplit_once(':').and_then(|(path, weight)| Some((path, weight.parse::<f64>().ok()?)));
    match parts {
        Some((_, weight)) if !weight.is_finite() => {
            Err(Error::Usage(format!("{text}: expected a finite weight, got {weight}")))
        }
        Some((path, weight)) => Ok((path.into(), weight)),
        None => Ok((text.into(), 1.0)),
    }
}

fn run(
    command: &'static str,
    adapters: &[(PathBuf, f64)],
    rule: Rule,
    names: &NamesArgs,
    args: &CommonArgs,
    verbosity: Verbosity,
) -> Result<()> {
    let paths: Vec<&Path> = adapters.iter().map(|(path, _)| folder_of(path)).collect();
    args.validate(&paths, None)?;
    let format = Format::of(&args.out);
    let mut sources = Vec::new();
    for (path, weight) in adapters {
        let mut source = Source::open(path)?;
        if let (true, Some(name)) = (adapters.len() > 1, source.others.first()) {
            let expected = "adapters without full modules or biases, which have no weighted sum";
            return Err(Error::format(source.file.path(), expected, format!("`{name}`")));
        }
        names::convert(&mut source, format, names)?;
        sources.push((source, *weight));
    }
    let widest = sources.iter().map(|(source, _)| source.dtype()).max_by_key(|dtype| dtype.width());
    let dtype = args.dtype.map(FloatDtype::from).or(widest).unwrap_or(FloatDtype::F32);
    let target = Target::new(args, dtype)?;
    crate::prepare(args.threads)?;
    let transform = Transform { command, sources, rule, args, verbosity };
    if widest == Some(FloatDtype::F64) { transform.run::<f64>(&target) } else { transform.run::<f32>(&target) }
}

impl Transform<'_> {
    fn run<T: Scalar>(&self, target: &Target<'_>) -> Result<()> {
        let Self { command, rule, args, verbosity, .. } = *self;
        let modules = self.modules()?;
        let dtype = if T::EPSILON == f64::EPSILON { FloatDtype::F64 } else { FloatDtype::F32 };
        let inputs = Inputs::open(args, &modules, rule, dtype)?;
        let mut progress = Progress::new(&inputs.layers, verbosity);
        inputs.notes.iter().for_each(|note| progress.note(note));
        let decompose = |index: usize, stats: Option<&ActivationStats<T>>| {
            let name = &modules[index].name;
            let mut parts = Vec::new();
            for (source, weight) in &self.sources {
                if let Some(part) = source.parts.iter().find(|part| part.module.name == *name) {
                    parts.push((source.read::<T>(part)?, *weight));
                }
            }
            let weighted: Vec<(&Adapter<T>, f64)> = parts.iter().map(|(adapter, weight)| (adapter, *weight)).collect();
            let calibration = stats.map_or(Calibration::none(), Calibration::from);
            let decomposition = match weighted[..] {
                [(adapter, 1.0)] => adapter.decompose(calibration),
                _ => Adapter::stack(&weighted).and_then(|stacked| stacked.decompose(calibration)),
            };
            let decomposition = decomposition.map_err(Error::layer(name))?;
            let full_rank = decomposition.max_rank();
            Ok(Some((decomposition, full_rank)))
        };
        let solved = inputs.solve(&modules, rule, &mut progress, decompose);
        progress.end();
        let (mut solved, left_out, lost) = finish(solved?, rule, target.dtype)?;
        for module in &mut solved {
            let holds = |source: &Source| source.parts.iter().any(|part| part.module.name == module.module.name);
            let count = self.sources.iter().filter(|(source, _)| holds(source)).count();
            if count < self.sources.len() {
                module.remarks.push(format!("in {count} of {} adapters", self.sources.len()));
            }
        }
        let outcome = Outcome { command, args, target, solved: &solved, left_out: &left_out, lost };
        outcome.save_json()?;
        let template = self.template(left_out.is_empty());
        target.write(&solved, &template, &[])?;
        outcome.print(verbosity)
    }

    /// Returns the modules of all adapters.
    fn modules(&self) -> Result<Vec<Module>> {
        let mut modules: Vec<Module> = Vec::new();
        for (source, _) in &self.sources {
            for Part { module, .. } in &source.parts {
                match modules.iter().find(|other| other.name == module.name) {
                    None => modules.push(module.clone()),
                    Some(other) if other == module => {}
                    Some(other) => {
                        let expected =
                            format!("`{}` of shape {:?}, as in the adapters before", module.name, other.shape);
                        return Err(Error::format(&source.path, expected, format!("{:?}", module.shape)));
                    }
                }
            }
        }
        modules.sort_by_cached_key(|module| natural(&module.name));
        Ok(modules)
    }

    /// Returns the first adapter, whose settings are kept.
    fn template(&self, complete: bool) -> Template<'_> {
        let Some((first, _)) = self.sources.first() else { return Template::default() };
        Template {
            config: first.config.as_ref(),
            metadata: first.config.is_none().then(|| first.file.metadata()),
            copied: Some((&first.file, &first.others)),
            complete: complete && self.sources.len() == 1,
        }
    }
}
