//! `dalr compress` and `dalr inspect` for ONNX models: the program runs the model itself.

mod entry;
mod evaluate;
mod sequential;
mod solve;
mod statistics;
mod units;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;

use dalr::ActivationStats;
use dalr::network::{Allocator, Choice, LayerProfile, Plan, Sensitivities, Strategy, UnitProfile};
use dalr_onnx::{Engine, Inputs, Model};

use crate::args::{Allocation, CompressArgs, EngineName, InspectArgs, SourceArgs};
use crate::calibration::checksum;
use crate::compress::{allocator, by_outputs, sensitivities};
use crate::error::{Error, Result};
use crate::files::{require_free, save};
use crate::inspect::{Inspection, decompose, points};
use crate::interrupt;
use crate::layer::Layer;
use crate::progress::{Progress, Verbosity};
use crate::report::{Comparison, Latency, Outcome};
use crate::selection::{Passed, Selection, globs};
use crate::unfinished_run::{Settings, UnfinishedRun};

use entry::Entry;
use evaluate::Reference;
use solve::Work;
use statistics::{Run, Source};
use units::Units;

/// The number of calibration samples on which each layer's sensitivity is measured.
const SENSITIVITY_SAMPLES: usize = 48;

/// The smallest sensitivity, as a fraction of the mean. A measured value near zero would allow any
/// error of the layer, although other inputs may show it.
const SENSITIVITY_FLOOR: f64 = 0.05;

/// The part of the multiply–adds below which the program says so if the model is not faster.
const MUCH_FEWER: f64 = 2.0 / 3.0;

pub fn compress(args: &CompressArgs, verbosity: Verbosity) -> Result<()> {
    let model = Model::open(&args.source.model)?;
    let given = Inputs::open(&args.source.calibration, model.inputs())?;
    let (calibration, held_out, notes) = split(args, given, &model)?;
    let (entries, selection) = select(&args.source, &model)?;
    let sensitivities = sensitivities(args, &selection.layers)?;
    let mut progress = Progress::new(&selection.layers, verbosity);
    notes.iter().for_each(|note| progress.note(note));
    let settings = settings(args, &selection.layers, calibration.samples())?;
    let unfinished = UnfinishedRun::open(&args.out, &settings, args.resume, args.force)?;
    let run = run(&args.source, &model, &calibration);
    let work = Work { args, run: &run, entries: &entries, unfinished: &unfinished };
    let result = passes(&work, &held_out, &selection, sensitivities, &notes, &mut progress, verbosity);
    progress.end();
    unfinished.conclude(result, verbosity, |error| matches!(error, Error::Layer { .. } | Error::NothingSmaller(_)))
}

/// Decomposes, allocates, compresses, compares and writes. Returns the summary.
fn passes(
    work: &Work<'_>,
    held_out: &Inputs,
    selection: &Selection,
    given: Option<Sensitivities>,
    notes: &[String],
    progress: &mut Progress,
    verbosity: Verbosity,
) -> Result<String> {
    let args = work.args;
    let (profiles, units) = work.profiles(progress)?;
    let profiles: Vec<LayerProfile> = profiles.into_iter().map(|profile| by_outputs(args, profile)).collect();
    let unit_profiles: Vec<UnitProfile> = units.iter().map(|units| units.profile.clone()).collect();
    let refused = |error: dalr::Error| Error::Refused(error.to_string());
    let sensitivities = match given {
        None if args.allocation() == Allocation::Sensitivity => {
            Some(measure(work, &profiles, (&units, &unit_profiles), progress)?)
        }
        given => given,
    };
    let plan = allocator(args, sensitivities).allocate_joint(&profiles, &[], &unit_profiles).map_err(refused)?;
    if plan.layers.iter().all(|layer| layer.choice == Choice::Original) {
        return Err(Error::NothingSmaller(nothing(&plan)));
    }
    let smaller = work.with_units(&plan, &units)?;
    let compressed = match args.sequential {
        true => work.sequentially(smaller, &plan.ranks(), progress)?,
        false => work.with_ranks(smaller, &plan.ranks())?,
    };
    progress.stage("comparing the models");
    let comparison = compare(work, &compressed, held_out, &plan, notes)?;
    let outcome = Outcome {
        args,
        files: vec![args.source.model.clone()],
        selection,
        profiles: &profiles,
        plan: &plan,
        comparison: Some(&comparison),
    };
    if let Some(path) = &args.json {
        save(path, &outcome.json()?)?;
    }
    if let Some(path) = &args.html {
        save(path, &outcome.page())?;
    }
    // Another program may have created the file since the start.
    require_free(&args.out, args.force)?;
    interrupt::check()?;
    compressed.save(&args.out)?;
    Ok(outcome.summary(verbosity == Verbosity::Verbose))
}

/// Returns the inputs for calibration, those for the comparison, and notes.
fn split(args: &CompressArgs, given: Inputs, model: &Model) -> Result<(Inputs, Inputs, Vec<String>)> {
    let mut notes = Vec::new();
    if !args.held_out.is_empty() {
        return Ok((given, Inputs::open(&args.held_out, model.inputs())?, notes));
    }
    let samples = given.samples();
    let (calibration, held_out) = given.clone().split(samples.div_ceil(5));
    if calibration.samples() == 0 {
        notes.push(format!("{samples} samples cannot be split: the models are compared on the calibration inputs"));
        return Ok((given.clone(), given, notes));
    }
    Ok((calibration, held_out, notes))
}

/// Returns the layers to compress, and why the others stay.
fn select<'a>(args: &SourceArgs, model: &'a Model) -> Result<(Vec<Entry<'a>>, Selection)> {
    let (include, exclude) = (globs("--include", &args.include)?, globs("--exclude", &args.exclude)?);
    let mut selection = Selection {
        layers: Vec::new(),
        passed: Vec::new(),
        others: "operators with weights that stay as they are",
        notes: Vec::new(),
    };
    let mut entries: Vec<Entry<'a>> = Vec::new();
    let mut files = 0;
    let mut included = vec![false; args.include.len()];
    for layer in model.layers() {
        let stays = |reason: &str| Passed {
            name: layer.name.clone(),
            dtype: layer.operator.clone(),
            shape: vec![layer.outputs, layer.inputs],
            reason: reason.into(),
        };
        include.matches(&layer.name).into_iter().for_each(|index| included[index] = true);
        let same = |entry: &&mut Entry<'a>| entry.users.iter().any(|user| layer.shared_with.contains(&user.name));
        if !args.include.is_empty() && !include.is_match(&layer.name) {
            selection.passed.push(stays("not included"));
        } else if exclude.is_match(&layer.name) {
            selection.passed.push(stays("excluded"));
        } else if layer.weight_stays {
            selection.passed.push(stays("other operators read its weight"));
        } else if layer.groups() > 1 && layer.outputs == layer.groups() {
            selection.passed.push(stays("a depthwise convolution: no factors are smaller"));
        } else if let Some(entry) = entries.iter_mut().find(same) {
            let first = entry.users[0];
            if first.kind == layer.kind && first.has_bias == layer.has_bias {
                entry.users.push(layer);
            } else {
                selection.passed.push(stays("it has the weight of a layer of another kind"));
            }
        } else {
            entries.push(Entry::new(model, vec![layer], files));
            files += layer.groups();
        }
    }
    for other in model.left_alone() {
        selection.passed.push(Passed {
            name: other.name.clone(),
            dtype: other.operator.clone(),
            shape: Vec::new(),
            reason: other.reason.clone(),
        });
    }
    if let Some(unused) = included.iter().position(|used| !used) {
        return Err(Error::Refused(format!("--include {}: matches no layer", args.include[unused])));
    }
    if entries.is_empty() {
        let message = "the model has no layer to compress: expected MatMul, Gemm or Conv with a constant weight";
        return Err(Error::Refused(message.into()));
    }
    selection.layers = entries.iter().map(|entry| entry.layer.clone()).collect();
    Ok((entries, selection))
}

/// Measures how much the error of each layer, and fewer units in each pair, change the model's
/// outputs.
fn measure(
    work: &Work<'_>,
    profiles: &[LayerProfile],
    (units, pairs): (&[Units], &[UnitProfile]),
    progress: &mut Progress,
) -> Result<Sensitivities> {
    let refused = |error: dalr::Error| Error::Refused(error.to_string());
    let all = |value: f64| profiles.iter().map(move |profile| (profile.name(), value));
    let uniform: Allocator = allocator(work.args, None).with_strategy(Strategy::Uniform);
    let plan = uniform.allocate(profiles).map_err(refused)?;
    let Run { model, calibration, engine, threads, .. } = *work.run;
    let samples = calibration.thinned(SENSITIVITY_SAMPLES);
    let reference = Reference::new(&engine.load(model, threads)?, &samples)?;
    let loss = |smaller: Model| reference.loss(&engine.load(&smaller, threads)?);
    let evaluate = |ranks: &BTreeMap<String, usize>| -> Result<f64> {
        if ranks.is_empty() { Ok(0.0) } else { loss(work.with_ranks(model.clone(), ranks)?) }
    };
    let mut tell = |event: &dalr::network::Progress| {
        let total = event.total.unwrap_or(0);
        progress.stage(&format!("sensitivity {} of {total}: {}", event.done, event.layer.as_deref().unwrap_or("")));
        if interrupt::check().is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let measured = Sensitivities::measure(profiles, &plan, &mut Vec::new(), evaluate, &mut tell);
    interrupt::check()?;
    let measured = match measured {
        // Every layer reproduces its outputs at every rank: all are alike.
        Err(dalr::Error::Empty { .. }) => return Sensitivities::new(all(1.0)).map_err(refused),
        other => other.map_err(refused)?.ok_or(Error::Interrupted)?,
    };
    // A layer that no rank makes smaller was not measured, but may lose hidden units.
    let mean = measured.iter().map(|(_, value)| value).sum::<f64>() / measured.iter().count().max(1) as f64;
    let measured = all(mean).map(|(name, mean)| (name, measured.get(name).unwrap_or(mean)));
    let floor = |all: Sensitivities| all.with_floor(SENSITIVITY_FLOOR);
    let mut measured = Sensitivities::new(measured).and_then(floor).map_err(refused)?;
    let evaluate = |pair: usize, kept: usize| -> Result<f64> {
        let mut smaller = model.clone();
        units[pair].apply(&mut smaller, kept)?;
        loss(smaller)
    };
    let all_measured = measured.measure_units(pairs, &plan, 0.0, evaluate, &mut tell);
    interrupt::check()?;
    if !all_measured.map_err(refused)? {
        return Err(Error::Interrupted);
    }
    Ok(measured)
}

/// Runs both models on the held-out inputs.
fn compare(
    work: &Work<'_>,
    compressed: &Model,
    held_out: &Inputs,
    plan: &Plan,
    notes: &[String],
) -> Result<Comparison> {
    let Run { model, engine, threads, .. } = *work.run;
    let (original, smaller) = (engine.load(model, threads)?, engine.load(compressed, threads)?);
    let outputs = evaluate::changes(&original, &smaller, held_out)?;
    let latency = evaluate::latency(&original, &smaller, held_out, threads)?;
    let mut notes = notes.to_vec();
    notes.extend(not_faster(plan, &latency));
    Ok(Comparison {
        engine: engine.name().into(),
        samples: held_out.samples(),
        outputs,
        bytes: (model.to_bytes()?.len() as u64, compressed.to_bytes()?.len() as u64),
        latency,
        notes,
    })
}

/// Returns why a model with much fewer multiply–adds is not faster.
fn not_faster(plan: &Plan, latency: &Latency) -> Option<String> {
    let (before, after) = (plan.multiply_adds_before(), plan.multiply_adds_after());
    if after as f64 > MUCH_FEWER * before as f64 || latency.after < latency.before {
        return None;
    }
    let smaller = plan.layers.iter().filter(|layer| layer.choice != Choice::Original);
    let narrow = smaller.clone().filter(|layer| layer.out_features.min(layer.in_features) < 128).count();
    Some(format!(
        "the time did not fall with the multiply–adds: each of the {} smaller layers runs two operators instead of one, \
         and {narrow} of them have fewer than 128 inputs or outputs, too few for a product to run at full speed",
        smaller.count()
    ))
}

/// Returns the error for a plan in which all layers stay.
fn nothing(plan: &Plan) -> String {
    let reasons = plan.layers.iter().filter_map(|layer| layer.reason.map(|reason| reason.to_string()));
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    reasons.for_each(|reason| *counts.entry(reason).or_default() += 1);
    let counts: Vec<String> = counts.into_iter().map(|(reason, count)| format!("{count} × {reason}")).collect();
    format!("no layer is worth compressing ({}): pass a smaller budget", counts.join("; "))
}

fn run<'a>(args: &SourceArgs, model: &'a Model, calibration: &'a Inputs) -> Run<'a> {
    let engine = match args.engine {
        EngineName::Embedded => Engine::Embedded,
        #[cfg(feature = "onnxruntime")]
        EngineName::Onnxruntime => Engine::OnnxRuntime,
    };
    Run { model, calibration, engine, threads: rayon::current_num_threads(), memory: args.memory }
}

/// Returns the settings on which the solved layers depend.
fn settings(args: &CompressArgs, layers: &[Layer], samples: usize) -> Result<Settings> {
    let files: Vec<PathBuf> = Inputs::files_of(&args.source.calibration)?;
    let mut data = String::new();
    for file in &files {
        data += &format!("{:08x} ", checksum(file)?);
    }
    let mut settings = Settings::from([
        ("version".into(), env!("CARGO_PKG_VERSION").into()),
        ("model".into(), format!("{:08x}", checksum(&args.source.model)?)),
        ("calibration".into(), format!("{data}({samples} samples)")),
        ("--method".into(), args.method.name()),
        ("--engine".into(), format!("{:?}", args.source.engine)),
        ("--storage".into(), format!("{:?}", args.storage)),
        ("--rank".into(), args.budget.rank.map_or("none".into(), |rank| rank.to_string())),
        ("--sequential".into(), args.sequential.to_string()),
    ]);
    if let Some(lambda) = args.lambda {
        settings.insert("--lambda".into(), lambda.to_string());
    }
    if args.sequential {
        // The ranks of the layers before decide the inputs of those behind them.
        settings.insert("budget".into(), format!("{:?} {:?}", args.budget, args.allocation()));
    }
    for layer in layers {
        settings.insert(format!("layer {}", layer.name), format!("reads {}", layer.input));
    }
    Ok(settings)
}

/// Returns the layers, and the errors at some fractions of their parameters.
pub fn inspect(args: &InspectArgs, verbosity: Verbosity) -> Result<Inspection> {
    let model = Model::open(&args.source.model)?;
    let (entries, selection) = select(&args.source, &model)?;
    let mut progress = Progress::new(&selection.layers, verbosity);
    let mut found = vec![None; entries.len()];
    let mut add = |index: usize, source: Option<&Source<'_>>, progress: &mut Progress| {
        interrupt::check()?;
        let entry = &entries[index];
        progress.begin(&entry.layer);
        let stats = source.map_or(&[][..], Source::groups);
        let mut solved = Vec::new();
        for (group, linear) in entry.linears()?.iter().enumerate() {
            solved.push(decompose(&entry.piece(group), linear, stats.get(group))?);
        }
        let calls = source.map(Source::calls);
        progress.solved(&entry.layer, stats.first().map_or(0, ActivationStats::samples));
        found[index] = Some((points(&entry.piece(0), &solved), calls));
        Ok(())
    };
    if args.source.calibration.is_empty() {
        (0..entries.len()).try_for_each(|index| add(index, None, &mut progress))?;
    } else {
        let calibration = Inputs::open(&args.source.calibration, model.inputs())?;
        run(&args.source, &model, &calibration).for_each_source(
            Source::of(&entries),
            &mut progress,
            |source, progress| source.entries.iter().try_for_each(|&index| add(index, Some(source), progress)),
        )?;
    }
    progress.end();
    let (points, calls): (Vec<_>, Vec<_>) = found.into_iter().flatten().unzip();
    Ok(Inspection { selection, points, calls: calls.into_iter().collect() })
}
