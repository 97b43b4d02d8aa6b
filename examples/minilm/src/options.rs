//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Compresses a sentence transformer in candle, and compares embeddings and speed with the
/// original.
#[derive(Clone, Debug, Parser)]
#[command(name = "dalr-minilm")]
pub struct Options {
    /// Folder with model.safetensors, config.json and tokenizer.json.
    pub model: PathBuf,
    /// File with one text a line, or WordNet's data.noun.
    pub texts: PathBuf,
    /// Fraction of the linear layers' parameters to keep.
    #[arg(long, default_value_t = 0.4)]
    pub keep: f64,
    /// Method of compression.
    #[arg(long, value_enum, default_value = "dalr")]
    pub method: Method,
    /// Allocation of the budget to the layers.
    #[arg(long, value_enum, default_value = "sensitivity")]
    pub allocation: Allocation,
    /// Number of which every rank is a multiple.
    #[arg(long, default_value_t = 8)]
    pub rank_multiple: usize,
    /// Number of texts for the calibration.
    #[arg(long, default_value_t = 600)]
    pub calibration: usize,
    /// Number of these texts to measure sensitivities with.
    #[arg(long, default_value_t = 200)]
    pub sensitivity_texts: usize,
    /// Number of other texts, on which embeddings are compared.
    #[arg(long, default_value_t = 1000)]
    pub held_out: usize,
    /// Batch sizes for which a forward pass is timed.
    #[arg(long, value_delimiter = ',', default_value = "1,8,32,128")]
    pub batch_sizes: Vec<usize>,
    /// Number of timed passes of each network at each batch size.
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

/// Allocations of the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Allocation {
    /// The same fraction for every layer.
    Uniform,
    /// By the effect of each layer on the embeddings, measured with that layer alone compressed.
    Sensitivity,
}
