//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use dalr::factors::Form;

/// Compresses a sentence transformer in candle, and compares embeddings and speed with the
/// original.
#[derive(Clone, Debug, Parser)]
#[command(name = "dalr-minilm")]
pub struct Options {
    /// Folder with model.safetensors, config.json and tokenizer.json.
    pub model: PathBuf,
    /// File with one text a line, or WordNet's data.noun.
    pub texts: PathBuf,
    /// Fractions of the linear layers' parameters to keep.
    #[arg(long, value_delimiter = ',', default_value = "0.4")]
    pub keep: Vec<f64>,
    /// Method of compression.
    #[arg(long, value_enum, default_value = "dalr")]
    pub method: Method,
    /// Kinds of compressed layers that the allocation may choose.
    #[arg(long, value_enum, default_value = "low-rank")]
    pub kinds: Kinds,
    /// Allocation of the budget to the layers.
    #[arg(long, value_enum, default_value = "sensitivity")]
    pub allocation: Allocation,
    /// Form in which compressed layers are stored, which decides the ranks that fit the budget.
    #[arg(long, value_enum, default_value = "factors")]
    pub storage: Storage,
    /// Weighs errors by gradients of the embeddings.
    #[arg(long)]
    pub metric: bool,
    /// Compresses each layer for the inputs that the layers compressed before it produce.
    #[arg(long)]
    pub sequential: bool,
    /// Number of which every rank is a multiple.
    #[arg(long, default_value_t = 8)]
    pub rank_multiple: usize,
    /// Number of texts for the calibration.
    #[arg(long, default_value_t = 600)]
    pub calibration: usize,
    /// Number of these texts to measure sensitivities with.
    #[arg(long, default_value_t = 200)]
    pub sensitivity_texts: usize,
    /// Number of these texts to gather gradients with, for the metric.
    #[arg(long, default_value_t = 200)]
    pub metric_texts: usize,
    /// Draw of the texts to calibrate on. The texts held out are the same in all draws.
    #[arg(long, default_value_t = 1)]
    pub draw: usize,
    /// Number of other texts, on which embeddings are compared.
    #[arg(long, default_value_t = 1000)]
    pub held_out: usize,
    /// Batch sizes for which a forward pass is timed.
    #[arg(long, value_delimiter = ',', default_value = "1,8,32,128")]
    pub batch_sizes: Vec<usize>,
    /// Number of timed passes of each network at each batch size; 0 for none.
    #[arg(long, default_value_t = 30)]
    pub passes: usize,
    /// Safetensors file for the compressed model.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Prints the plan: the choice for every layer.
    #[arg(long)]
    pub layers: bool,
}

/// Methods of compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// Smallest change of the outputs on the calibration texts.
    Dalr,
    /// Truncated SVD of the weight.
    Svd,
    /// Truncated SVD of the weight, and a corrected bias.
    SvdBc,
}

/// Kinds of compressed layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kinds {
    /// Low-rank layers.
    LowRank,
    /// Fewer hidden units between the two layers after attention. The layers of attention stay as
    /// they are, and all layers are ordinary ones.
    HiddenUnits,
    /// Both: for each pair of layers after attention, what serves the budget better.
    All,
}

/// Allocations of the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Allocation {
    /// The same fraction for every layer.
    Uniform,
    /// By the effect of each layer on the embeddings, measured with that layer alone compressed.
    Sensitivity,
}

/// Forms in which a compressed layer is stored. They compute the same outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Storage {
    /// Two factors: `k (m + n)` numbers.
    Factors,
    /// `k` rows of the product, and the coefficients of the other rows: `k (m + n − k)` numbers.
    Pivoted,
}

impl Storage {
    /// Returns the library's name for this form.
    pub fn form(self) -> Form {
        match self {
            Self::Factors => Form::Factors,
            Self::Pivoted => Form::Pivoted,
        }
    }
}
