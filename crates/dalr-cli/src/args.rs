//! The command line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::error::{Error, Result};
use crate::files::{json_map, require_free};
use crate::lora::LoraCommand;

/// Compresses neural networks by activation-aware low-rank factors.
#[derive(Parser, Debug)]
#[command(name = "dalr", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// Prints errors only.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Prints more: one line for each solved layer, the tensors that were copied, the objective and
    /// its bound.
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    Compress(CompressArgs),
    Inspect(InspectArgs),
    #[command(subcommand)]
    Lora(LoraCommand),
    /// Prints a completion script for a shell.
    Completions {
        shell: Shell,
    },
}

/// Compresses the layers of a model to one budget.
///
/// MODEL.onnx: the program runs the model on its calibration inputs. Linear layers and convolutions
/// become two smaller ones; everything else stays as it is.
///
/// MODEL.safetensors: a layer is a tensor NAME.weight with two axes for which the calibration data
/// contain NAME.input (any leading axes; the last axis is the layer's inputs). NAME.weight becomes
/// NAME.0.weight and NAME.1.weight, its bias NAME.1.bias. All other tensors are copied.
#[derive(Args, Debug)]
pub struct CompressArgs {
    #[command(flatten)]
    pub source: SourceArgs,

    /// The compressed model. It is written atomically: an interrupted run leaves no partial file.
    #[arg(short, long, value_name = "FILE")]
    pub out: PathBuf,

    #[command(flatten)]
    pub budget: BudgetArgs,

    /// The compression method of every layer.
    #[arg(long, value_enum, default_value = "dalr")]
    pub method: Method,

    /// The ridge λ of dalr-paper. [default: 1000, as in the authors' code]
    #[arg(long)]
    pub lambda: Option<f64>,

    /// The rule that allocates the budget to the layers. [default: sensitivity for MODEL.onnx and
    /// with --sensitivity, else uniform]
    #[arg(long, value_enum)]
    pub allocation: Option<Allocation>,

    /// The sensitivity of every layer: {"layer": number, …}. It is the increase of the network's
    /// loss by an error of the layer. For MODEL.onnx, the program measures it by default.
    #[arg(long, value_name = "FILE.json")]
    pub sensitivity: Option<PathBuf>,

    /// Makes every rank a multiple of this number.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub rank_multiple: usize,

    /// MODEL.onnx: the form of compressed layers.
    #[arg(long, value_enum, default_value = "factors")]
    pub storage: Storage,

    /// Lets layers that read the same input have one `down`, where they lose less with it within
    /// the budget. The file then holds NAME.0.weight once, with the name of the first layer.
    #[arg(long)]
    pub share_down: bool,

    /// MODEL.onnx: compresses layer by layer, each for the inputs that the layers before it now
    /// produce. It takes longer, and pays when little of the model is kept.
    #[arg(long)]
    pub sequential: bool,

    /// MODEL.onnx: inputs on which both models are compared, in the same formats as --calibration.
    /// [default: the last fifth of the calibration inputs, which then do not calibrate]
    #[arg(long, value_name = "FILE")]
    pub held_out: Vec<PathBuf>,

    /// Writes ranks, errors, parameters and warnings for programs.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Writes a self-contained page for people: rank, error and spectrum of every layer.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,

    /// Continues an interrupted run of the same command.
    #[arg(long)]
    pub resume: bool,

    /// Replaces existing files, and discards the layers that an interrupted run has solved.
    #[arg(long)]
    pub force: bool,
}

/// Lists a model's layers, their sizes, and their error at some fractions of their parameters.
///
/// With calibration data, the errors are predicted errors of the layers' outputs. Without
/// calibration data, they are errors of the weights.
#[derive(Args, Debug)]
pub struct InspectArgs {
    #[command(flatten)]
    pub source: SourceArgs,

    /// Writes the list for programs.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Replaces an existing --json file.
    #[arg(long)]
    pub force: bool,
}

/// The model, its calibration data and the choice of layers.
#[derive(Args, Debug)]
pub struct SourceArgs {
    /// The model: an ONNX file, a safetensors file, or the index (.json) of several.
    pub model: PathBuf,

    /// Data of the target domain. For MODEL.onnx, inputs of the model: .npz, .npy or .safetensors
    /// files with one entry for each input, or a folder of them. For MODEL.safetensors, inputs of
    /// the layers: a safetensors file of tensors NAME.input, saved statistics in a file
    /// NAME.input.safetensors, or a folder of both. May be given several times; the samples are
    /// merged.
    #[arg(long, value_name = "FILE")]
    pub calibration: Vec<PathBuf>,

    /// The program that runs MODEL.onnx.
    #[arg(long, value_enum, default_value = "embedded")]
    pub engine: EngineName,

    /// MODEL.onnx: the largest memory of the statistics that are gathered in one run of the model
    /// over the calibration inputs, such as 500M or 2G. With less memory there are more runs.
    #[arg(long, value_name = "BYTES", default_value = "2G", value_parser = bytes)]
    pub memory: u64,

    /// Names the input tensor of layers whose input is not NAME.input: {"layer": "tensor", …}.
    #[arg(long, value_name = "FILE.json")]
    pub inputs: Option<PathBuf>,

    /// Compresses only layers whose name matches one of these globs.
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,

    /// Leaves out layers whose name matches one of these globs.
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,

    /// Number of threads; 0 means one for each core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct BudgetArgs {
    /// The fraction of the layers' parameters to keep.
    #[arg(long, value_name = "FRACTION")]
    pub keep: Option<f64>,

    /// The fraction of the layers' multiply–adds to keep.
    #[arg(long, value_name = "FRACTION")]
    pub macs: Option<f64>,

    /// The same rank for every layer that it makes smaller.
    #[arg(long, value_name = "N")]
    pub rank: Option<usize>,

    /// The largest predicted relative error: of every layer with uniform allocation, else of all
    /// layers together.
    #[arg(long, value_name = "E")]
    pub max_error: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum EngineName {
    /// The engine inside the program.
    Embedded,
    /// ONNX Runtime, from the shared library that ORT_DYLIB_PATH names.
    #[cfg(feature = "onnxruntime")]
    Onnxruntime,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Storage {
    /// Two products, or two convolutions.
    Factors,
    /// Some outputs, and coefficients that give the others: smaller at every rank, but the outputs
    /// must be put in order afterwards.
    Pivoted,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Method {
    /// Minimises the change of the outputs on the calibration data, with shrinkage for few samples.
    /// Recommended.
    Dalr,
    /// Eq. 11 of the paper.
    DalrPaper,
    /// Truncated SVD of the weight.
    Svd,
    /// Truncated SVD with a bias that corrects the mean output.
    #[value(name = "svd+bc")]
    SvdBc,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Allocation {
    /// The same fraction, or the same error, for every layer.
    Uniform,
    /// The smallest sum of the layers' losses, without sensitivities. Often worse than uniform.
    Energy,
    /// The smallest sum of the layers' losses, each multiplied by its sensitivity.
    Sensitivity,
}

impl Method {
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().into())
    }
}

impl SourceArgs {
    /// Returns the map of `--inputs`, by layer.
    pub fn inputs(&self) -> Result<BTreeMap<String, String>> {
        self.inputs
            .as_deref()
            .map_or(Ok(BTreeMap::new()), |path| json_map(path, "a JSON object {\"layer\": \"tensor\", …}"))
    }

    /// Returns whether the model is an ONNX file.
    pub fn is_onnx(&self) -> bool {
        self.model.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("onnx"))
    }

    fn validate(&self) -> Result<()> {
        if self.is_onnx() && self.inputs.is_some() {
            return Err(Error::Usage("--inputs goes with MODEL.safetensors".into()));
        }
        if !self.is_onnx() && self.engine != EngineName::Embedded {
            return Err(Error::Usage("--engine goes with MODEL.onnx".into()));
        }
        Ok(())
    }

    /// Returns whether a file is an input of the program.
    fn reads(&self, path: &Path) -> bool {
        let same =
            |input: &Path| path.canonicalize().is_ok_and(|path| input.canonicalize().is_ok_and(|input| input == path));
        same(&self.model) || self.calibration.iter().any(|input| same(input))
    }
}

impl CompressArgs {
    pub fn allocation(&self) -> Allocation {
        let measured = self.sensitivity.is_some() || self.source.is_onnx();
        let default = if measured { Allocation::Sensitivity } else { Allocation::Uniform };
        self.allocation.unwrap_or(default)
    }

    /// Returns an error for wrong options before any file is read.
    pub fn validate(&self) -> Result<()> {
        let refuse = |message: String| Err(Error::Usage(message));
        if self.sensitivity.is_some() && self.allocation() != Allocation::Sensitivity {
            return refuse("--sensitivity goes with --allocation sensitivity".into());
        }
        if self.sensitivity.is_none() && self.allocation() == Allocation::Sensitivity && !self.source.is_onnx() {
            return refuse("--allocation sensitivity needs --sensitivity FILE.json".into());
        }
        if self.lambda.is_some() && self.method != Method::DalrPaper {
            return refuse("--lambda goes with --method dalr-paper".into());
        }
        for (option, fraction) in [("--keep", self.budget.keep), ("--macs", self.budget.macs)] {
            if let Some(fraction) = fraction.filter(|fraction| !(*fraction > 0.0 && *fraction <= 1.0)) {
                return refuse(format!("{option}: expected a fraction in (0, 1], got {fraction}"));
            }
        }
        if let Some(error) = self.budget.max_error.filter(|error| !(*error > 0.0 && *error < 1.0)) {
            return refuse(format!("--max-error: expected a relative error in (0, 1), got {error}"));
        }
        if self.budget.rank == Some(0) {
            return refuse("--rank: expected at least 1, got 0".into());
        }
        if self.rank_multiple == 0 {
            return refuse("--rank-multiple: expected at least 1, got 0".into());
        }
        if self.share_down && (self.method != Method::Dalr || self.budget.rank.is_some()) {
            return refuse("--share-down goes with --method dalr, and not with --rank".into());
        }
        match self.source.is_onnx() {
            true if self.source.calibration.is_empty() => {
                return refuse("an ONNX model needs --calibration with inputs of the model".into());
            }
            true if self.share_down => return refuse("--share-down goes with MODEL.safetensors".into()),
            false if self.sequential || self.storage != Storage::Factors || !self.held_out.is_empty() => {
                return refuse("--sequential, --storage and --held-out go with MODEL.onnx".into());
            }
            _ => self.source.validate()?,
        }
        if self.source.calibration.is_empty() {
            if self.method != Method::Svd {
                return refuse(format!("--method {} needs --calibration", self.method.name()));
            }
            if self.source.include.is_empty() {
                return refuse("without --calibration, --include must say which tensors are layers".into());
            }
        }
        let outputs: Vec<&Path> =
            [Some(&self.out), self.json.as_ref(), self.html.as_ref()].into_iter().flatten().map(|p| &**p).collect();
        for (index, path) in outputs.iter().enumerate() {
            if outputs[..index].contains(path) {
                return refuse(format!("{}: two outputs cannot be one file", path.display()));
            }
            require_free(path, self.force)?;
            // This is an error even with --force, because --resume would have no model to read.
            if self.source.reads(path) {
                return refuse(format!("{}: an output cannot replace an input", path.display()));
            }
        }
        Ok(())
    }
}

impl InspectArgs {
    pub fn validate(&self) -> Result<()> {
        self.source.validate()?;
        let Some(path) = &self.json else { return Ok(()) };
        require_free(path, self.force)?;
        if self.source.reads(path) {
            return Err(Error::Usage(format!("{}: an output cannot replace an input", path.display())));
        }
        Ok(())
    }
}

/// Reads a number of bytes, such as 4096, 500M or 2G.
fn bytes(text: &str) -> std::result::Result<u64, String> {
    let (number, unit) = match text.find(|character: char| !character.is_ascii_digit() && character != '.') {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let unit = match unit.trim_end_matches(['B', 'b']) {
        "" => 1.0,
        "K" | "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        _ => f64::NAN,
    };
    match number.parse::<f64>().map(|number| number * unit) {
        Ok(bytes) if (1.0..1e18).contains(&bytes) => Ok(bytes as u64),
        _ => Err("expected a number of bytes such as 500M or 2G".into()),
    }
}
