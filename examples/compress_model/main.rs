//! Compresses the linear layers of a safetensors model to one budget: safetensors in, safetensors out.
//!
//! `cargo run --release --features safetensors --example compress_model -- MODEL.safetensors --calibration ACTIVATIONS.safetensors
//! --out OUT.safetensors --keep 0.4`. See `README.md` beside this file.

mod args;
mod atomic;
mod calibration;
mod container;
mod error;
mod factors;
mod interrupt;
mod numbers;
mod output;
mod page;
mod positioned;
mod progress;
mod report;
mod selection;
mod solve;
mod source;
mod spectrum;
mod work;

use std::process::ExitCode;

use clap::Parser;
use dalr::network::{Allocator, LayerProfile, NetworkReport};

use args::{Allocation, Args, Method};
use calibration::Calibration;
use error::{Error, Result};
use output::Output;
use progress::Progress;
use report::Outcome;
use selection::Selection;
use solve::Pass;
use source::Source;
use work::{Settings, Work};

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compress_model: {error}");
            if matches!(error, Error::Interrupted) {
                eprintln!("what is solved is kept: the same command with --resume goes on with it");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(args: &Args) -> Result<()> {
    args.validate()?;
    interrupt::listen()?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads).build_global();
    pool.map_err(|error| Error::Refused(format!("--threads {}: {error}", args.threads)))?;

    let model = Source::open(&args.model)?;
    let calibration = Calibration::open(&args.calibration)?;
    let selection = selection::select(args, &model, &calibration)?;
    let layers = &selection.layers;
    for layer in layers {
        calibration.check(&layer.input, layer.in_features).map_err(Error::layer(&layer.name))?;
    }
    let allocator = args.allocator(layers.iter().map(|layer| layer.name.as_str()))?;

    let mut progress = Progress::new(layers);
    selection.notes.iter().for_each(|note| progress.line(&format!("note: {note}")));
    let work = Work::open(&args.out, &settings(args, &model, layers), args.resume, args.force)?;
    let result = compress(args, &model, &calibration, &selection, &allocator, &work, &mut progress);
    progress.end();
    // Unless something was solved there is nothing to resume, and nothing to keep.
    if result.is_ok() || work.is_empty()? {
        work.finish()?;
    }
    println!("{}", result?);
    Ok(())
}

/// Both passes, and what is written about them.
fn compress(
    args: &Args,
    model: &Source,
    calibration: &Calibration,
    selection: &Selection,
    allocator: &Allocator,
    work: &Work,
    progress: &mut Progress,
) -> Result<NetworkReport> {
    let layers = &selection.layers;
    let pass = Pass { args, model, calibration, work, layers };
    let profiles = pass.run(progress)?;
    let profiles: Vec<LayerProfile> = profiles.into_iter().map(|profile| judged_by_outputs(args, profile)).collect();
    let plan = allocator.allocate(&profiles).map_err(|error| Error::Refused(error.to_string()))?;

    let outcome = Outcome { args, model, selection, profiles: &profiles, plan: &plan };
    let save = |path: &std::path::Path, text: String| {
        atomic::replace(path, |writer| writer.write_all(text.as_bytes()).map_err(Error::io("cannot write", path)))
    };
    if let Some(path) = &args.report {
        save(path, outcome.json()?)?;
    }
    if let Some(path) = &args.html {
        save(path, page::page(&outcome))?;
    }
    let method = args.method_name();
    let choices = plan.choices();
    let output = Output { model, layers, choices: &choices, work, method: &method };
    atomic::replace(&args.out, |writer| {
        output.write(&args.out, writer, progress)?;
        // Somebody else may have written it in the meantime.
        args.require_free(&args.out)
    })?;
    Ok(plan.report().clone())
}

/// Makes what a layer loses the error of its outputs, where the energies that its method leaves out are another thing: those of the
/// weight alone, or with the paper's ridge. Sharing by energy is sharing by these.
fn judged_by_outputs(args: &Args, profile: LayerProfile) -> LayerProfile {
    let errors = (1..=profile.max_rank()).map(|rank| profile.relative_error(rank));
    let known = errors.into_iter().all(|error| error.is_some_and(f64::is_finite));
    if args.method == Method::Dalr || args.allocation() == Allocation::Energy || !known {
        return profile;
    }
    profile.clone().with_data_errors().unwrap_or(profile)
}

/// What a solved layer depends on beside its own weight, bias and input: with other settings it is another layer.
fn settings(args: &Args, model: &Source, layers: &[selection::Layer]) -> Settings {
    let mut settings = Settings::from([
        ("version".into(), env!("CARGO_PKG_VERSION").into()),
        ("model".into(), format!("header {:08x}", model.headers())),
        ("--method".into(), args.method_name()),
        ("--rank".into(), args.budget.rank.map_or("none".into(), |rank| rank.to_string())),
    ]);
    if args.method == Method::DalrPaper {
        settings.insert("--lambda".into(), args.lambda.unwrap_or(1000.0).to_string());
    }
    for layer in layers {
        settings.insert(format!("layer {}", layer.name), format!("reads {}", layer.input));
    }
    settings
}
