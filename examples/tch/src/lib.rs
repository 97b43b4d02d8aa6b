//! Loads model files that `dalr compress` wrote in tch.
//!
//! ```no_run
//! use tch::nn::{self, Module};
//!
//! # fn main() -> dalr_tch::Result<()> {
//! let file = "OUT.safetensors";
//! let ranks = dalr_tch::ranks(file)?;
//! let mut variables = nn::VarStore::new(tch::Device::Cpu);
//! let root = variables.root();
//! // Replaces `nn::linear(&root / "fc1", 400, 120, Default::default())`:
//! let fc1 = dalr_tch::linear(&root / "fc1", 400, 120, Default::default(), ranks.get("fc1").copied());
//! variables.load(file)?;
//! let outputs = fc1.forward(&tch::Tensor::zeros([1, 400], tch::kind::FLOAT_CPU));
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]
#![deny(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use serde_json::Value;
use tch::nn::{self, LinearConfig, Sequential};

/// The reason why a file could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read.
    #[error("expected to read the model file, got an I/O error: {0}")]
    Io(#[from] std::io::Error),

    /// It is not a safetensors file.
    #[error("expected the header of a safetensors file, got an error: {0}")]
    Header(String),

    /// Its metadata do not list the compressed layers.
    #[error("expected the ranks of compressed layers in the metadata `dalr.ranks`, got {0}")]
    Ranks(String),

    /// tch could not load it.
    #[error(transparent)]
    Tch(#[from] tch::TchError),
}

/// A `Result` with this package's [`Error`].
pub type Result<T, E = Error> = core::result::Result<T, E>;

/// The largest header that is read, in bytes; the same limit as in the crate `safetensors`.
const LARGEST_HEADER: u64 = 100_000_000;

/// Returns the names and ranks of the compressed layers in a file. Reads only the header.
///
/// # Errors
///
/// [`Error::Io`]; [`Error::Header`] if it is not a safetensors file; [`Error::Ranks`] if `dalr
/// compress` did not write it.
pub fn ranks(path: impl AsRef<Path>) -> Result<BTreeMap<String, i64>> {
    let mut file = std::fs::File::open(path)?;
    let mut length = Vec::new();
    file.by_ref().take(8).read_to_end(&mut length)?;
    let length = <[u8; 8]>::try_from(length.as_slice()).map(u64::from_le_bytes);
    let length = length.ok().filter(|&length| length <= LARGEST_HEADER);
    let length = length.ok_or_else(|| Error::Header("its length is missing or too large".into()))?;
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header)?;
    let header: Value = serde_json::from_slice(&header).map_err(|error| Error::Header(error.to_string()))?;
    let ranks = header.pointer("/__metadata__/dalr.ranks").and_then(Value::as_str);
    let ranks = ranks.ok_or_else(|| Error::Ranks("none".into()))?;
    serde_json::from_str(ranks).map_err(|error| Error::Ranks(format!("{ranks}: {error}")))
}

/// Creates a linear layer. With a rank it consists of two layers, named `0` and `1` below `path` as
/// in the file; without one it is a single layer.
pub fn linear(path: nn::Path<'_>, inputs: i64, outputs: i64, config: LinearConfig, rank: Option<i64>) -> Sequential {
    let Some(rank) = rank else {
        return nn::seq().add(nn::linear(path, inputs, outputs, config));
    };
    let down = LinearConfig { bias: false, ..config };
    nn::seq().add(nn::linear(&path / "0", inputs, rank, down)).add(nn::linear(&path / "1", rank, outputs, config))
}
