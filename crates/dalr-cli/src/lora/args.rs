//! The command line of `dalr lora`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use dalr::Rank;
use dalr::interop::safetensors::FloatDtype;
use dalr::network::Budget;

use super::rule::Rule;
use crate::error::{Error, Result};
use crate::files::require_free;

/// Extracts, resizes and merges LoRA adapters.
///
/// An adapter is a folder in the format of PEFT, or a .safetensors file in that of kohya-ss. The
/// name given by --out decides which one is written.
#[derive(Subcommand, Debug)]
pub enum LoraCommand {
    Extract(ExtractArgs),
    Resize(ResizeArgs),
    Merge(MergeArgs),
}

/// Makes an adapter from the difference of two checkpoints.
///
/// Every tensor NAME.weight with two or more axes becomes a module of the adapter, except
/// embeddings. All other tensors are compared and listed.
#[derive(Args, Debug)]
pub struct ExtractArgs {
    /// The checkpoint before the fine-tuning: a safetensors file, or the index (.json) of several.
    #[arg(long, value_name = "MODEL")]
    pub base: PathBuf,

    /// The checkpoint after the fine-tuning.
    #[arg(long, value_name = "MODEL")]
    pub tuned: PathBuf,

    #[command(flatten)]
    pub ranks: RankArgs,

    /// Extracts only modules whose name matches one of these globs. A module whose name looks like
    /// that of an embedding must be named without wildcards.
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,

    /// Ignores modules and tensors whose name matches one of these globs.
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,

    /// Reads 2-D weights as in × out, as GPT-2's Conv1D in transformers stores them.
    #[arg(long)]
    pub fan_in_fan_out: bool,

    /// Writes the tuned tensors that differ and that the adapter does not hold: biases, norms,
    /// embeddings, modules that were left out.
    #[arg(long, value_name = "FILE")]
    pub rest: Option<PathBuf>,

    /// The start of the names in a kohya-ss file.
    #[arg(long, value_name = "NAME", default_value = "lora_unet")]
    pub prefix: String,

    #[command(flatten)]
    pub common: CommonArgs,
}

/// Changes the ranks of an adapter.
///
/// The result is the closest adapter of these ranks. A module whose rank is not above the requested
/// one keeps its rank.
#[derive(Args, Debug)]
pub struct ResizeArgs {
    /// The adapter: a folder with adapter_config.json (PEFT), or a .safetensors file (kohya-ss).
    pub adapter: PathBuf,

    #[command(flatten)]
    pub ranks: RankArgs,

    #[command(flatten)]
    pub names: NamesArgs,

    #[command(flatten)]
    pub common: CommonArgs,
}

/// Merges adapters: the weighted sum of their updates, then resized.
///
/// Without a rank, the sum is exact, at the smallest rank that loses nothing.
#[derive(Args, Debug)]
pub struct MergeArgs {
    /// The adapters, each with its weight; 1 if there is none.
    #[arg(value_name = "ADAPTER[:WEIGHT]", required = true)]
    pub adapters: Vec<String>,

    #[command(flatten)]
    pub ranks: RankArgs,

    #[command(flatten)]
    pub names: NamesArgs,

    #[command(flatten)]
    pub common: CommonArgs,
}

/// The rule for the ranks.
#[derive(Args, Debug)]
pub struct RankArgs {
    /// The same rank for every module that can have it.
    #[arg(long, value_name = "N", group = "rule")]
    pub rank: Option<usize>,

    /// The smallest rank of each module that explains this fraction of its energy.
    #[arg(long, value_name = "FRACTION", group = "rule")]
    pub energy: Option<f64>,

    /// The smallest rank of each module with at most this relative error.
    #[arg(long, value_name = "E", group = "rule")]
    pub error: Option<f64>,

    /// The largest number of parameters, allocated to all modules so that the error of all updates
    /// together is smallest.
    #[arg(long, value_name = "N", group = "rule")]
    pub parameters: Option<u64>,

    /// The largest sum of ranks, allocated in the same way.
    #[arg(long, value_name = "N", group = "rule")]
    pub total_rank: Option<u64>,

    /// The largest rank of a module, for all rules but --rank.
    #[arg(long, value_name = "N", conflicts_with = "rank")]
    pub max_rank: Option<usize>,
}

/// Conversion between the names of PEFT and of kohya-ss.
#[derive(Args, Debug)]
pub struct NamesArgs {
    /// The start of the names in a kohya-ss file that is made from a PEFT adapter.
    #[arg(long, value_name = "NAME", default_value = "lora_unet")]
    pub prefix: String,

    /// A checkpoint with the names of the modules, to make a PEFT adapter from a kohya-ss file.
    #[arg(long, value_name = "MODEL")]
    pub base: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct CommonArgs {
    /// The adapter to write: a folder (PEFT), or a .safetensors file (kohya-ss).
    #[arg(short, long, value_name = "PATH")]
    pub out: PathBuf,

    /// The dtype of the adapter. [default: that of the input adapter; F32 for extract]
    #[arg(long, value_enum)]
    pub dtype: Option<DtypeName>,

    /// The modules' inputs on the target domain, as for `dalr compress`: the outputs on them then
    /// change least.
    #[arg(long, value_name = "FILE")]
    pub calibration: Vec<PathBuf>,

    /// Names the input tensor of modules whose input is not NAME.input: {"module": "tensor", …}.
    #[arg(long, value_name = "FILE.json", requires = "calibration")]
    pub inputs: Option<PathBuf>,

    /// Writes every module with its rank, error and remarks for programs.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Number of threads; 0 means one for each core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,

    /// Replaces existing files.
    #[arg(long)]
    pub force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum DtypeName {
    F64,
    F32,
    F16,
    Bf16,
}

impl From<DtypeName> for FloatDtype {
    fn from(name: DtypeName) -> Self {
        match name {
            DtypeName::F64 => Self::F64,
            DtypeName::F32 => Self::F32,
            DtypeName::F16 => Self::F16,
            DtypeName::Bf16 => Self::BF16,
        }
    }
}

impl RankArgs {
    /// Returns the rule for the ranks; `None` without an option.
    pub fn rule(&self) -> Result<Option<Rule>> {
        let at_least_one = |option: &str, count: Option<u64>| match count {
            Some(0) => Err(Error::Usage(format!("{option}: expected at least 1, got 0"))),
            _ => Ok(()),
        };
        at_least_one("--rank", self.rank.map(|rank| rank as u64))?;
        at_least_one("--max-rank", self.max_rank.map(|rank| rank as u64))?;
        at_least_one("--parameters", self.parameters)?;
        at_least_one("--total-rank", self.total_rank)?;
        for (option, fraction) in [("--energy", self.energy), ("--error", self.error)] {
            if let Some(fraction) = fraction.filter(|fraction| !(*fraction > 0.0 && *fraction <= 1.0)) {
                return Err(Error::Usage(format!("{option}: expected a number in (0, 1], got {fraction}")));
            }
        }
        let rule = |rank| Some(Rule::Each { rank, max_rank: self.max_rank });
        let allocate = |budget| Some(Rule::Together { budget, max_rank: self.max_rank });
        Ok(match self {
            Self { rank: Some(rank), .. } => rule(Rank::Fixed(*rank)),
            Self { energy: Some(energy), .. } => rule(Rank::Energy(*energy)),
            Self { error: Some(error), .. } => rule(Rank::RelativeError(*error)),
            Self { parameters: Some(count), .. } => allocate(Budget::Parameters(*count)),
            Self { total_rank: Some(count), .. } => allocate(Budget::TotalRank(*count)),
            _ => None,
        })
    }

    /// Returns the rule for the ranks, or an error without an option.
    pub fn required(&self) -> Result<Rule> {
        let options = "--rank, --energy, --error, --parameters or --total-rank";
        self.rule()?.ok_or_else(|| Error::Usage(format!("one of {options} is required")))
    }
}

impl CommonArgs {
    /// Returns an error if an output exists, or is an input or another output.
    pub fn validate(&self, inputs: &[&Path], rest: Option<&Path>) -> Result<()> {
        let outputs: Vec<&Path> = [Some(&*self.out), self.json.as_deref(), rest].into_iter().flatten().collect();
        for (index, path) in outputs.iter().enumerate() {
            if outputs[..index].contains(path) {
                return Err(Error::Usage(format!("{}: two outputs cannot be one file", path.display())));
            }
            let same =
                |input: &&Path| path.canonicalize().is_ok_and(|path| input.canonicalize().is_ok_and(|i| i == path));
            if inputs.iter().copied().chain(self.calibration.iter().map(|path| &**path)).any(|input| same(&input)) {
                return Err(Error::Usage(format!("{}: an output cannot replace an input", path.display())));
            }
        }
        for path in &outputs[1..] {
            require_free(path, self.force)?;
        }
        Ok(())
    }
}
