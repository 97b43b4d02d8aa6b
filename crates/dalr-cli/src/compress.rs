//! `dalr compress`: decomposes every layer, allocates the budget, writes the smaller model.

use std::collections::BTreeMap;
use std::path::Path;

use dalr::interop::safetensors::ModelFile;
use dalr::network::{Allocator, Budget, Choice, LayerProfile, Plan, Sensitivities, SharedInput, Strategy};

use crate::args::{Allocation, BudgetArgs, CompressArgs, Method};
use crate::calibration::Calibration;
use crate::error::{Error, Result};
use crate::files::{json_map, require_free, save};
use crate::layer::Layer;
use crate::progress::{Progress, Verbosity};
use crate::report::Outcome;
use crate::selection::{Selection, select};
use crate::shared::SharedGroup;
use crate::solve::Pass;
use crate::unfinished_run::{Settings, UnfinishedRun};
use crate::write_model::{Output, Replacement};

pub fn run(args: &CompressArgs, verbosity: Verbosity) -> Result<()> {
    args.validate()?;
    crate::prepare(args.source.threads)?;
    if args.source.is_onnx() {
        return crate::onnx::compress(args, verbosity);
    }
    let model = ModelFile::open(&args.source.model)?;
    let calibration = Calibration::open(&args.source.calibration)?;
    let selection = select(&args.source, &model, &calibration)?;
    let sensitivities = sensitivities(args, &selection.layers)?;
    let allocator = allocator(args, sensitivities.clone());

    let mut progress = Progress::new(&selection.layers, verbosity);
    selection.notes.iter().for_each(|note| progress.note(note));
    let unfinished =
        UnfinishedRun::open(&args.out, &settings(args, &model, &selection.layers), args.resume, args.force)?;
    let pass = Pass {
        args,
        model: &model,
        calibration: &calibration,
        unfinished: &unfinished,
        layers: &selection.layers,
        sensitivities: sensitivities.as_ref(),
    };
    let result = both_passes(&pass, &selection, &allocator, &mut progress, verbosity);
    progress.end();
    unfinished.conclude(result, verbosity, |_| false)
}

/// Runs both passes, writes the reports, and returns the summary.
fn both_passes(
    pass: &Pass<'_>,
    selection: &Selection,
    allocator: &Allocator,
    progress: &mut Progress,
    verbosity: Verbosity,
) -> Result<String> {
    let Pass { args, model, unfinished, layers, .. } = *pass;
    let (profiles, shared) = pass.run(progress)?;
    let profiles: Vec<LayerProfile> = profiles.into_iter().map(|profile| by_outputs(args, profile)).collect();
    let inputs: Vec<SharedInput> = shared.iter().map(|group| group.input.clone()).collect();
    let plan = allocator.allocate_shared(&profiles, &inputs).map_err(|error| Error::Refused(error.to_string()))?;

    let files = model.files().map(Path::to_path_buf).collect();
    let outcome = Outcome { args, files, selection, profiles: &profiles, plan: &plan, comparison: None };
    if let Some(path) = &args.json {
        save(path, &outcome.json()?)?;
    }
    if let Some(path) = &args.html {
        save(path, &outcome.page())?;
    }
    let replacements = replacements(&plan, layers, &shared);
    let output = Output { model, layers, replacements: &replacements, unfinished, method: &args.method.name() };
    // Another program may have created the file since the start.
    require_free(&args.out, args.force)?;
    output.write(&args.out, progress)?;
    Ok(outcome.summary(verbosity == Verbosity::Verbose))
}

/// Returns the files and ranks of the layers that are compressed, by index.
fn replacements(plan: &Plan, layers: &[Layer], shared: &[SharedGroup]) -> BTreeMap<usize, Replacement> {
    let mut replacements = BTreeMap::new();
    for (index, (plan, layer)) in plan.layers.iter().zip(layers).enumerate() {
        match plan.choice {
            Choice::Rank(rank) => {
                let rows = 0..layer.out_features;
                replacements.insert(index, Replacement { file: index, rank, rows, down_of: index });
            }
            Choice::Shared { group, rank } => {
                let SharedGroup { layers: members, file, .. } = &shared[group];
                let before = members.iter().take_while(|&&member| member != index);
                let start = before.map(|&member| layers[member].out_features).sum::<usize>();
                let rows = start..start + layer.out_features;
                replacements.insert(index, Replacement { file: *file, rank, rows, down_of: members[0] });
            }
            _ => {}
        }
    }
    replacements
}

/// Returns the allocator for the options.
pub fn allocator(args: &CompressArgs, sensitivities: Option<Sensitivities>) -> Allocator {
    let budget = match args.budget {
        BudgetArgs { keep: Some(fraction), .. } => Budget::ParameterFraction(fraction),
        BudgetArgs { macs: Some(fraction), .. } => Budget::MultiplyAddFraction(fraction),
        BudgetArgs { rank: Some(rank), .. } => Budget::Rank(rank),
        BudgetArgs { max_error: Some(error), .. } if args.allocation() == Allocation::Uniform => {
            Budget::LayerError(error)
        }
        BudgetArgs { max_error, .. } => Budget::TotalError(max_error.unwrap_or(f64::NAN)),
    };
    let strategy = match (args.allocation(), sensitivities) {
        (Allocation::Sensitivity, Some(sensitivities)) => Strategy::Sensitivity(sensitivities),
        (Allocation::Energy, _) => Strategy::Energy,
        _ => Strategy::Uniform,
    };
    Allocator::new(budget).with_strategy(strategy).with_rank_multiple(args.rank_multiple)
}

/// Returns the sensitivities that the options give; `None` if the allocation needs none, or if they
/// are to be measured.
pub fn sensitivities(args: &CompressArgs, layers: &[Layer]) -> Result<Option<Sensitivities>> {
    let Some(path) = args.sensitivity.as_deref() else { return Ok(None) };
    let mut weights = json_map::<f64>(path, "a JSON object {\"layer\": weight, …}")?;
    let mut named = Vec::new();
    for Layer { name, .. } in layers {
        let weight = weights.remove(name);
        named.push((
            name.as_str(),
            weight.ok_or_else(|| Error::format(path, format!("a weight for `{name}`"), "none"))?,
        ));
    }
    if let Some(name) = weights.keys().next() {
        return Err(Error::format(path, "only names of layers to compress", format!("`{name}`")));
    }
    Sensitivities::new(named).map(Some).map_err(|error| Error::format(path, "sensitivities", error.to_string()))
}

/// Sets the loss of a layer to its output error if the method minimises another error. Does not
/// change profiles for the allocation by energy.
pub fn by_outputs(args: &CompressArgs, profile: LayerProfile) -> LayerProfile {
    let known =
        (1..=profile.max_rank()).all(|rank| profile.relative_error(rank).is_some_and(|error| error.is_finite()));
    if args.method == Method::Dalr || args.allocation() == Allocation::Energy || !known {
        return profile;
    }
    profile.clone().with_data_errors().unwrap_or(profile)
}

/// Returns the settings on which a solved layer depends, in addition to its own weight, bias and
/// input.
fn settings(args: &CompressArgs, model: &ModelFile, layers: &[Layer]) -> Settings {
    let mut settings = Settings::from([
        ("version".into(), env!("CARGO_PKG_VERSION").into()),
        ("model".into(), format!("header {:08x}", model.header_checksum())),
        ("--method".into(), args.method.name()),
        ("--rank".into(), args.budget.rank.map_or("none".into(), |rank| rank.to_string())),
    ]);
    if args.method == Method::DalrPaper {
        settings.insert("--lambda".into(), args.lambda.unwrap_or(crate::solve::PAPER_LAMBDA).to_string());
    }
    for layer in layers {
        settings.insert(format!("layer {}", layer.name), format!("reads {}", layer.input));
    }
    settings
}
