//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use dalr_mpi::error::{Failure, Result};
use dalr_mpi::model::{Model, Shape};
use dalr_mpi::shard::{Shard, with_rank};

/// Calibration and compression on many machines, with dalr over MPI. `mpirun` starts it.
#[derive(Parser)]
#[command(name = "dalr-mpi")]
pub struct Arguments {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    /// Merges the statistics of all ranks and saves them as files `NAME.input.safetensors`.
    Calibrate {
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        keeping: Keeping,
        /// The folder for the statistics, on rank 0's machine.
        #[arg(long)]
        out: PathBuf,
    },
    /// Calibrates, compresses all layers, each on one rank, and writes the model.
    Compress {
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        keeping: Keeping,
        /// The fraction of each weight's parameters to keep, in (0, 1].
        #[arg(long)]
        keep: f64,
        /// The compressed model, on rank 0's machine.
        #[arg(long)]
        out: PathBuf,
    },
    /// Compresses one layer from samples that stay on their ranks.
    Solve {
        #[command(flatten)]
        data: Data,
        /// The layer's name. Optional if there is only one layer.
        #[arg(long)]
        layer: Option<String>,
        /// The rank of the compressed layer.
        #[arg(long)]
        rank: usize,
        /// The ridge, relative to the mean second moment of an input; 0 for none.
        #[arg(long, default_value_t = 0.0)]
        ridge: f64,
        /// Keeps the bias, and takes second moments about zero instead of the mean.
        #[arg(long)]
        keep_bias: bool,
        /// `auto`, `dense` or `lanczos`.
        #[arg(long, default_value = "auto")]
        solver: String,
        /// The file of the factors, on rank 0's machine.
        #[arg(long)]
        out: PathBuf,
    },
    /// Measures time, bytes sent and memory of each part on generated data. Rank 0 prints a line of
    /// JSON; the program `scale` prints tables.
    Measure(dalr_mpi::measure::Sizes),
}

/// The sources of weights and samples.
#[derive(Args)]
pub struct Data {
    /// The model, a safetensors file. `{rank}` stands for the rank.
    #[arg(long, requires = "shards", conflicts_with = "generate")]
    model: Option<PathBuf>,
    /// A folder of safetensors files with tensors `NAME.input`, divided among the ranks. With
    /// `{rank}` in it: one folder for each rank.
    #[arg(long, requires = "model")]
    shards: Option<PathBuf>,
    /// Generates a model and samples. Sizes of layers as `OUTxIN,OUTxIN`.
    #[arg(long, required_unless_present = "model")]
    generate: Option<String>,
    /// With `--generate`: the seed of the numbers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// With `--generate`: number of batches of all ranks together.
    #[arg(long, default_value_t = 64)]
    batches: usize,
    /// With `--generate`: samples in a batch.
    #[arg(long, default_value_t = 256)]
    rows: usize,
    /// Threads of each rank: 1 for one rank on each core, more for one rank on each machine.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
}

/// The options of checkpoints.
#[derive(Args)]
pub struct Keeping {
    /// The folder for checkpoints. The same command continues from them.
    #[arg(long)]
    pub checkpoints: Option<PathBuf>,
    /// Number of batches between two checkpoints. After so many batches, the ranks also exchange
    /// whether to continue.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    pub every: u32,
}

impl Data {
    /// Opens the model and this rank's shard.
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
