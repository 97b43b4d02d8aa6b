//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use dalr_mpi::error::{Failure, Result};
use dalr_mpi::model::{Model, Shape};
use dalr_mpi::shard::{Shard, with_rank};

/// Calibration and compression over many machines, with dalr on MPI. Run by `mpirun`.
#[derive(Parser)]
#[command(name = "dalr-mpi")]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    /// Merge every rank's statistics, and save them as files `NAME.input.safetensors`.
    Calibrate {
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        keeping: Keeping,
        /// The folder to save to, on rank 0's machine.
        #[arg(long)]
        out: PathBuf,
    },
    /// Calibrate, compress all layers, each on one rank, and write the model.
    Compress {
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        keeping: Keeping,
        /// Share of a weight's parameters to keep.
        #[arg(long)]
        keep: f64,
        /// The model to write, on rank 0's machine.
        #[arg(long)]
        out: PathBuf,
    },
    /// Compress one layer from samples that stay where they are.
    Solve {
        #[command(flatten)]
        data: Data,
        /// The layer's name; may be left out where there is only one.
        #[arg(long)]
        layer: Option<String>,
        /// Dimensions to keep.
        #[arg(long)]
        rank: usize,
        /// Ridge, relative to the mean second moment of an input; 0 is none.
        #[arg(long, default_value_t = 0.0)]
        ridge: f64,
        /// Keep the bias as it is and measure inputs from zero.
        #[arg(long)]
        keep_bias: bool,
        /// `auto`, `dense` or `lanczos`.
        #[arg(long, default_value = "auto")]
        solver: String,
        /// The factors to write, on rank 0's machine.
        #[arg(long)]
        out: PathBuf,
    },
    /// Measure time, bytes sent and memory of each part on made-up data; rank 0 prints a line of JSON. For tables see the program `scale`.
    Measure(dalr_mpi::measure::Sizes),
}

/// Where weights and samples come from.
#[derive(Args)]
pub struct Data {
    /// The model, a safetensors file. `{rank}` stands for the rank.
    #[arg(long, requires = "shards", conflicts_with = "generate")]
    model: Option<PathBuf>,
    /// A folder of safetensors files with tensors `NAME.input`, shared out over the ranks; or, with `{rank}` in it, a folder for each.
    #[arg(long, requires = "model")]
    shards: Option<PathBuf>,
    /// Make a model and samples up: sizes of layers as `OUTxIN,OUTxIN`.
    #[arg(long, required_unless_present = "model")]
    generate: Option<String>,
    /// With `--generate`: what decides the numbers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// With `--generate`: batches of all ranks together.
    #[arg(long, default_value_t = 64)]
    batches: usize,
    /// With `--generate`: samples of a batch.
    #[arg(long, default_value_t = 256)]
    rows: usize,
    /// Threads of each rank: 1 for a rank on each core, more for a rank on each machine.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
}

/// Whether and how checkpoints are kept.
#[derive(Args)]
pub struct Keeping {
    /// Folder for checkpoints, one below it for each rank. A job started again goes on from what is there.
    #[arg(long)]
    pub checkpoints: Option<PathBuf>,
    /// Batches from one checkpoint to the next, and from one agreement of the ranks to the next.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    pub every: u32,
}

impl Data {
    /// The model and this rank's shard.
    pub fn open(&self, rank: usize, size: usize) -> Result<(Model, Shard)> {
        if let (Some(model), Some(shards)) = (&self.model, &self.shards) {
            return Ok((Model::open(&with_rank(model, rank))?, Shard::files(shards, rank, size)?));
        }
        let shapes = self.generate.iter().flat_map(|sizes| sizes.split(',')).enumerate().map(|(index, size)| {
            let refuse = || Failure::Refused(format!("expected sizes as `OUTxIN,OUTxIN`, got `{size}`"));
            let (outputs, inputs) = size.split_once('x').ok_or_else(refuse)?;
            let number = |text: &str| text.parse().ok().filter(|&number| number > 0).ok_or_else(refuse);
            Ok(Shape { name: format!("layer{index}"), outputs: number(outputs)?, inputs: number(inputs)? })
        });
        let shapes = shapes.collect::<Result<_>>()?;
        let shard = Shard::generated(self.seed, self.rows, self.batches, rank, size);
        Ok((Model::Generated { shapes, seed: self.seed }, shard))
    }
}
