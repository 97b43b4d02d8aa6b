//! The command line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use dalr::network::{Allocator, Budget, Sensitivities, Strategy};
use dalr::{Dalr, LowRankCompressor, Scalar, TruncatedSvd};

use crate::error::{Error, Result};

/// Compresses the linear layers of a safetensors model to one budget: safetensors in, safetensors out.
///
/// Layers are the 2-D tensors NAME.weight for which the calibration data hold NAME.input (any leading axes, the last one the layer's
/// inputs). NAME.weight becomes NAME.0.weight and NAME.1.weight, its bias NAME.1.bias; everything else stays as it is.
#[derive(Parser, Debug)]
#[command(name = "compress_model")]
pub struct Args {
    /// The model: a safetensors file, or the index (.json) of several.
    pub model: PathBuf,

    /// What the layers read on the domain that matters: a safetensors file of tensors NAME.input, saved statistics in a file
    /// NAME.input.safetensors, or a folder of both. May be given several times: shards are merged.
    #[arg(long, value_name = "FILE")]
    pub calibration: Vec<PathBuf>,

    /// The compressed model. Appears whole or not at all.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    #[command(flatten)]
    pub budget: BudgetArgs,

    /// How each layer is compressed.
    #[arg(long, value_enum, default_value = "dalr")]
    pub method: Method,

    /// The ridge of dalr-paper, absolute. [default: 1000, as in the authors' code]
    #[arg(long)]
    pub lambda: Option<f64>,

    /// How the budget is shared. [default: sensitivity with --sensitivity, else uniform]
    #[arg(long, value_enum)]
    pub allocation: Option<Allocation>,

    /// How much an error of each layer hurts: {"layer": weight, …}, for every layer.
    #[arg(long, value_name = "FILE.json")]
    pub sensitivity: Option<PathBuf>,

    /// Makes every rank a multiple of this number.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub rank_multiple: usize,

    /// Which tensor a layer reads, where it is not NAME.input: {"layer": "tensor", …}.
    #[arg(long, value_name = "MAP.json")]
    pub inputs: Option<PathBuf>,

    /// Compresses only layers whose name matches one of these globs.
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,

    /// Leaves layers alone whose name matches one of these globs.
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,

    /// Threads; 0 for as many as there are cores.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,

    /// Writes ranks, errors, parameters and warnings for programs.
    #[arg(long, value_name = "FILE.json")]
    pub report: Option<PathBuf>,

    /// Writes one self-contained page: spectra with the cut, rank and error by layer.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,

    /// Goes on from where an interrupted run of the same command stopped.
    #[arg(long)]
    pub resume: bool,

    /// Writes over an output that exists, and throws away the work of an interrupted run.
    #[arg(long)]
    pub force: bool,
}

/// What may be spent, or lost.
#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
pub struct BudgetArgs {
    /// The share of the compressed layers' parameters to keep.
    #[arg(long, value_name = "SHARE")]
    pub keep: Option<f64>,

    /// The same rank for every layer that it makes smaller.
    #[arg(long, value_name = "N")]
    pub rank: Option<usize>,

    /// The largest relative error: of every layer if uniform, else of all layers together.
    #[arg(long, value_name = "E")]
    pub max_error: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Method {
    /// Least change of the outputs on the data, shrunk as the samples call for; the recommended one.
    Dalr,
    /// Eq. 11 of the paper.
    DalrPaper,
    /// Truncated SVD of the weight.
    Svd,
    /// Truncated SVD, with the bias made up for what is lost on the mean input.
    #[value(name = "svd+bc")]
    SvdBc,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Allocation {
    /// The same share, or error, for every layer.
    Uniform,
    /// Least energy left out in total.
    Energy,
    /// Least error in total, each layer's weighted by its sensitivity.
    Sensitivity,
}

impl Args {
    /// The method for layers of this precision.
    pub fn compressor<T: Scalar>(&self) -> Box<dyn LowRankCompressor<T>> {
        match self.method {
            Method::Dalr => Box::new(Dalr::new()),
            Method::DalrPaper => Box::new(Dalr::paper(self.lambda.unwrap_or(1000.0))),
            Method::Svd => Box::new(TruncatedSvd::new()),
            Method::SvdBc => Box::new(TruncatedSvd::new().with_bias_correction(true)),
        }
    }

    /// Whether the method changes the bias of a layer that has one, or has none.
    pub fn corrects_bias(&self, has_bias: bool) -> bool {
        match self.method {
            Method::Dalr => has_bias,
            Method::SvdBc => true,
            Method::DalrPaper | Method::Svd => false,
        }
    }

    pub fn method_name(&self) -> String {
        self.method.to_possible_value().map_or_else(String::new, |value| value.get_name().into())
    }

    pub fn allocation(&self) -> Allocation {
        let default = if self.sensitivity.is_some() { Allocation::Sensitivity } else { Allocation::Uniform };
        self.allocation.unwrap_or(default)
    }

    pub fn budget(&self) -> Budget {
        match (self.budget.keep, self.budget.rank, self.budget.max_error) {
            (Some(share), ..) => Budget::ParameterShare(share),
            (_, Some(rank), _) => Budget::Rank(rank),
            (.., Some(error)) if self.allocation() == Allocation::Uniform => Budget::LayerError(error),
            (.., error) => Budget::TotalError(error.unwrap_or(f64::NAN)),
        }
    }

    /// How the budget is shared among these layers.
    pub fn allocator<'a>(&self, layers: impl IntoIterator<Item = &'a str>) -> Result<Allocator> {
        let strategy = match self.allocation() {
            Allocation::Uniform => Strategy::Uniform,
            Allocation::Energy => Strategy::Energy,
            Allocation::Sensitivity => Strategy::Sensitivity(self.sensitivities(layers)?),
        };
        Ok(Allocator::new(self.budget()).with_strategy(strategy).with_rank_multiple(self.rank_multiple))
    }

    fn sensitivities<'a>(&self, layers: impl IntoIterator<Item = &'a str>) -> Result<Sensitivities> {
        let path = self
            .sensitivity
            .as_deref()
            .ok_or_else(|| Error::Refused("--allocation sensitivity needs --sensitivity FILE.json".into()))?;
        let mut map: BTreeMap<String, f64> = map(path, "a JSON object {\"layer\": weight, …}")?;
        let mut weights = Vec::new();
        for layer in layers {
            let weight = map.remove(layer);
            weights
                .push((layer, weight.ok_or_else(|| Error::format(path, format!("a weight for `{layer}`"), "none"))?));
        }
        if let Some(name) = map.keys().next() {
            return Err(Error::format(path, "layers that are to be compressed", format!("`{name}`")));
        }
        Sensitivities::new(weights).map_err(|error| Error::format(path, "sensitivities", error.to_string()))
    }

    /// What `--inputs` says, by layer.
    pub fn inputs(&self) -> Result<BTreeMap<String, String>> {
        self.inputs.as_deref().map_or(Ok(BTreeMap::new()), |path| map(path, "a JSON object {\"layer\": \"tensor\", …}"))
    }

    /// Refuses what can be seen to be wrong before anything is read.
    pub fn validate(&self) -> Result<()> {
        let refuse = |message: String| Err(Error::Refused(message));
        if self.sensitivity.is_some() && self.allocation() != Allocation::Sensitivity {
            return refuse("--sensitivity goes with --allocation sensitivity".into());
        }
        if self.lambda.is_some() && self.method != Method::DalrPaper {
            return refuse("--lambda goes with --method dalr-paper".into());
        }
        if let Some(share) = self.budget.keep.filter(|share| !(*share > 0.0 && *share <= 1.0)) {
            return refuse(format!("--keep: expected a share in (0, 1], got {share}"));
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
        if self.calibration.is_empty() {
            if self.method != Method::Svd {
                return refuse(format!("--method {} needs --calibration", self.method_name()));
            }
            if self.include.is_empty() {
                return refuse("without --calibration, --include must say which tensors are layers".into());
            }
        }
        let outputs: Vec<&Path> = [Some(&self.out), self.report.as_ref(), self.html.as_ref()]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
            .collect();
        for (index, path) in outputs.iter().enumerate() {
            if outputs[..index].contains(path) {
                return refuse(format!("{}: two outputs cannot be one file", path.display()));
            }
            self.require_free(path)?;
            // Even with --force: there would be nothing left to resume from.
            let same = |input: &Path| {
                path.canonicalize().is_ok_and(|path| input.canonicalize().is_ok_and(|input| input == path))
            };
            if same(&self.model) || self.calibration.iter().any(|input| same(input)) {
                return refuse(format!("{}: an output cannot be written over an input", path.display()));
            }
        }
        Ok(())
    }

    /// Refuses to write over a file, unless that is wanted.
    pub fn require_free(&self, path: &Path) -> Result<()> {
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io("cannot write", path)(error)),
            Ok(metadata) if metadata.is_dir() => Err(Error::format(path, "the name of a file", "a folder")),
            Ok(_) if self.force => Ok(()),
            Ok(_) => Err(Error::Refused(format!("{} exists: pass --force to write over it", path.display()))),
        }
    }
}

/// A JSON file of names and values.
fn map<V: serde::de::DeserializeOwned>(path: &Path, expected: &str) -> Result<BTreeMap<String, V>> {
    let text = std::fs::read(path).map_err(Error::io("cannot read", path))?;
    serde_json::from_slice(&text).map_err(|error| Error::format(path, expected, error.to_string()))
}
