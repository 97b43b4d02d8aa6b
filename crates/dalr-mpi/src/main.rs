//! The program that every rank runs. `README.md` describes it.

mod args;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use dalr::interop::safetensors::ModelFile;
use dalr::{ActivationStats, Decomposition, Solver};

use args::{Arguments, Command, Data, Keeping};
use dalr_mpi::calibrate::calibrate;
use dalr_mpi::checkpoint::Checkpoints;
use dalr_mpi::error::{Failure, Result};
use dalr_mpi::layers::compress;
use dalr_mpi::measure::measure;
use dalr_mpi::model::{Model, Shape};
use dalr_mpi::output::write;
use dalr_mpi::ranks::Ranks;
use dalr_mpi::reduce::reduce;
use dalr_mpi::shard::Shard;
use dalr_mpi::solve::{Options, solve};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Some(universe) = mpi::initialize() else {
        eprintln!("MPI cannot be started");
        return ExitCode::FAILURE;
    };
    let ranks = Ranks::new(universe.world());
    // The bits of this program's products must not depend on the machine's number of processors.
    faer::set_global_parallelism(faer::Par::Seq);
    // A rank that panics cannot take part in an agreement, and the others would wait for it.
    let result = catch_unwind(AssertUnwindSafe(|| run(&ranks, &arguments.command))).unwrap_or_else(|_| ranks.abort());
    match ranks.agree("the end", result) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // One call writes the whole line, because all ranks write at the same time.
            let line = format!("rank {} of {} stops: {failure}\n", ranks.rank(), ranks.size());
            let _ = std::io::stderr().write_all(line.as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn run(ranks: &Ranks, command: &Command) -> Result<()> {
    match command {
        Command::Calibrate { data, keeping, out } => {
            let prepared = prepare(ranks, data)?;
            ranks.same("command", "calibrate")?;
            let stats = gather(ranks, &prepared, data, keeping)?;
            let made = if ranks.rank() == 0 { make_folder(out) } else { Ok(()) };
            ranks.agree("making the folder", made)?;
            for (shape, stats) in prepared.layers.iter().zip(stats) {
                let saved = match reduce(ranks, stats, 0)? {
                    Some(merged) => merged.save(out.join(format!("{}.input.safetensors", shape.name))),
                    None => Ok(()),
                };
                ranks.agree("saving statistics", saved.map_err(Failure::from))?;
            }
            Ok(())
        }
        Command::Compress { data, keeping, keep, out } => {
            let legal = if *keep > 0.0 && *keep <= 1.0 {
                Ok(())
            } else {
                Err(Failure::Refused(format!("expected --keep in (0, 1], got {keep}")))
            };
            ranks.agree("the fraction to keep", legal)?;
            let prepared = prepare(ranks, data)?;
            ranks.same("fraction to keep", &keep.to_string())?;
            let stats = gather(ranks, &prepared, data, keeping)?;
            let Prepared { model, layers, .. } = &prepared;
            let compressed = compress(ranks, model, layers, stats, *keep, data.threads)?;
            let written = if ranks.rank() == 0 {
                for layer in &compressed {
                    println!("{}, on rank {}: {}", layer.shape.name, layer.solved_by, layer.report);
                }
                for shape in layers.iter().filter(|shape| shape.rank(*keep) == 0) {
                    println!("{}: unchanged, no rank is small enough", shape.name);
                }
                let factors: Vec<_> =
                    compressed.iter().map(|layer| (layer.shape.name.as_str(), &layer.layer)).collect();
                write(out, file_of(model), &factors)
            } else {
                Ok(())
            };
            ranks.agree("writing the model", written)
        }
        Command::Solve { data, layer, rank, ridge, keep_bias, solver, out } => {
            let prepared = prepare(ranks, data)?;
            let Prepared { model, shard, layers } = &prepared;
            let options = format!("{layer:?}, rank {rank}, ridge {ridge}, keep bias {keep_bias}, solver {solver}");
            ranks.same("options", &options)?;
            let chosen = choose(layers, layer.as_deref()).and_then(|shape| {
                let solver = match solver.as_str() {
                    "auto" => Solver::Auto,
                    "dense" => Solver::DenseEigen,
                    "lanczos" => Solver::BlockLanczos,
                    other => {
                        let message = format!("expected the solver `auto`, `dense` or `lanczos`, got `{other}`");
                        return Err(Failure::Refused(message));
                    }
                };
                Ok((shape, model.layer(shape)?, solver))
            });
            let (shape, linear, solver) = ranks.agree("reading the layer", chosen)?;
            let correct_bias = linear.bias().is_some() && !keep_bias;
            let options = Options { rank: *rank, ridge: *ridge, correct_bias, solver, threads: data.threads };
            let batches = (0..shard.batches()).map(|index| shard.open(index)?.inputs(shape));
            let solved = solve(ranks, &linear, batches, &options)?;
            let written =
                if ranks.rank() == 0 { write_factors(out, &shape.name, &solved.decomposition) } else { Ok(()) };
            ranks.agree("writing the factors", written)
        }
        Command::Measure(sizes) => measure(ranks, sizes),
    }
}

/// The model, this rank's shard, and the layers whose inputs the shards contain. The layers are the
/// same on every rank.
struct Prepared {
    model: Model,
    shard: Shard,
    layers: Vec<Shape>,
}

fn prepare(ranks: &Ranks, data: &Data) -> Result<Prepared> {
    let opened = data.open(ranks.rank(), ranks.size()).and_then(|(model, shard)| {
        let identity = model.identity()?;
        Ok((model, shard, identity))
    });
    let (model, shard, identity) = ranks.agree("opening model and shards", opened)?;
    ranks.same("model", &identity)?;
    // A rank without a file uses the layers of the others.
    let layers = shard.layers(model.shapes()).map(|layers| (shard.batches() > 0).then_some(layers));
    let layers = ranks.agree("finding the layers", layers)?;
    let names = |layers: &[Shape]| layers.iter().map(|shape| shape.name.as_str()).collect::<Vec<_>>().join(", ");
    let having = ranks.gather(u64::from(layers.is_some())).iter().position(|&has| has == 1);
    let Some(having) = having else {
        let nothing = Failure::Refused("expected batches on some rank, got none on any".into());
        return ranks.agree("finding the layers", Err(nothing));
    };
    let mut theirs = layers.as_deref().map(names).unwrap_or_default().into_bytes();
    ranks.broadcast(&mut theirs, having);
    let theirs = String::from_utf8_lossy(&theirs).into_owned();
    let layers = layers.unwrap_or_else(|| {
        let listed: Vec<&str> = theirs.split(", ").collect();
        model.shapes().into_iter().filter(|shape| listed.contains(&shape.name.as_str())).collect()
    });
    ranks.same("layers", &names(&layers))?;
    Ok(Prepared { model, shard, layers })
}

/// Computes this rank's statistics of its shard, starting from its checkpoint if there is one.
fn gather(ranks: &Ranks, prepared: &Prepared, data: &Data, keeping: &Keeping) -> Result<Vec<ActivationStats<f32>>> {
    let Prepared { model, shard, layers } = prepared;
    ranks.same("checkpoint options", &format!("{} {}", keeping.checkpoints.is_some(), keeping.every))?;
    let checkpoints = keeping.checkpoints.as_ref().map(|folder| {
        let names: Vec<String> = layers.iter().map(|s| format!("{} {}x{}", s.name, s.outputs, s.inputs)).collect();
        let rank = format!("{} of {}", ranks.rank(), ranks.size());
        let identity = [
            ("model", model.identity()?),
            ("shard", shard.identity()?),
            ("list of layers", names.join(", ")),
            ("rank", rank),
        ];
        let identity: BTreeMap<_, _> = identity.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
        Checkpoints::open(folder, ranks.rank(), identity)
    });
    let checkpoints = ranks.agree("opening the checkpoints", checkpoints.transpose())?;
    calibrate(ranks, shard, layers, checkpoints.as_ref(), keeping.every as usize, data.threads)
}

fn choose<'a>(layers: &'a [Shape], name: Option<&str>) -> Result<&'a Shape> {
    let names = || layers.iter().map(|shape| shape.name.as_str()).collect::<Vec<_>>().join("`, `");
    match name {
        Some(name) => layers
            .iter()
            .find(|shape| shape.name == name)
            .ok_or_else(|| Failure::Refused(format!("expected one of the layers `{}`, got `{name}`", names()))),
        None => match layers {
            [only] => Ok(only),
            _ => Err(Failure::Refused(format!("expected `--layer` with one of `{}`, got none", names()))),
        },
    }
}

/// Prints a line about one layer at its largest rank, and writes its factors.
fn write_factors(path: &Path, name: &str, decomposition: &Decomposition<f32>) -> Result<()> {
    let compressed = decomposition.truncate(decomposition.max_rank())?;
    let report = compressed.report();
    println!(
        "{name}: {} samples, rank {}, relative error {:.6e}, energy {:.12e} of {:.12e}, {}",
        report.samples,
        report.rank,
        report.relative_error.unwrap_or_default(),
        decomposition.energies().iter().sum::<f64>(),
        decomposition.total_energy(),
        report.solver
    );
    write(path, None, &[(name, compressed.layer())])
}

fn file_of(model: &Model) -> Option<&ModelFile> {
    match model {
        Model::File(file) => Some(file),
        Model::Generated { .. } => None,
    }
}

fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|error| Failure::file(folder, error))
}
