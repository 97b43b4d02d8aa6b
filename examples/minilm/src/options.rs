//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Compresses a sentence transformer in candle and says what its embeddings and a forward pass are like afterwards.
#[derive(Clone, Debug, Parser)]
#[command(name = "dalr-minilm")]
pub struct Options {
    /// Folder with model.safetensors, config.json and tokenizer.json.
    pub model: PathBuf,
    /// File of texts, one of a line; or WordNet's data.noun.
    pub texts: PathBuf,
    /// Share of the linear layers' parameters to keep.
    #[arg(long, default_value_t = 0.4)]
    pub keep: f64,
    /// How layers are compressed.
    #[arg(long, value_enum, default_value = "dalr")]
    pub method: Method,
    /// How the budget is shared.
    #[arg(long, value_enum, default_value = "sensitivity")]
    pub allocation: Allocation,
    /// Ranks are multiples of this.
    #[arg(long, default_value_t = 8)]
    pub rank_multiple: usize,
    /// Texts to calibrate on.
    #[arg(long, default_value_t = 600)]
    pub calibration: usize,
    /// How many of these to probe sensitivities with.
    #[arg(long, default_value_t = 200)]
    pub probes: usize,
    /// Other texts, to judge by.
    #[arg(long, default_value_t = 1000)]
    pub held_out: usize,
    /// Batch sizes at which a forward pass is timed.
    #[arg(long, value_delimiter = ',', default_value = "1,8,32,128")]
    pub batch_sizes: Vec<usize>,
    /// Passes of each network at each batch size, one after the other in turn.
    #[arg(long, default_value_t = 30)]
    pub passes: usize,
    /// Writes the compressed model as a safetensors file.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Prints what became of every layer.
    #[arg(long)]
    pub layers: bool,
}

/// How layers are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// Outputs on the texts change least.
    Dalr,
    /// Truncated SVD of the weight.
    Svd,
    /// The same, with the bias corrected.
    SvdBc,
}

/// How the budget is shared among the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Allocation {
    /// The same share for all.
    Uniform,
    /// By what the network loses when one layer alone is compressed.
    Sensitivity,
}
