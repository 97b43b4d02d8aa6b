//! [Safetensors](https://github.com/huggingface/safetensors) files: activation statistics,
//! compressed layers and whole models.
//!
//! | item | purpose |
//! |---|---|
//! | [`ActivationStats::save`](crate::ActivationStats::save) and its relatives | statistics on disk and in streams; the [format](#statistics-format-version-1) is below |
//! | [`LowRankLinear::save`](crate::LowRankLinear::save), [`PivotedLinear::save`](crate::factors::PivotedLinear::save) and their `load`, [`save_layers`] | compressed layers; `docs/file-formats.md` lists the tensors |
//! | [`ModelFile`] | reads a model, one tensor at a time, from one file or from the shards of an index |
//! | [`ModelWriter`] | writes a model as a stream, and replaces the file atomically |
//! | [`FloatDtype`] | converts numbers of the dtypes `F64`, `F32`, `F16` and `BF16` |
//! | [`replace_file`] | writes any file atomically |
//!
//! Loaded statistics give the same bits as the saved ones, and have the same settings:
//!
//! ```
//! use dalr::ActivationStats;
//!
//! # fn main() -> dalr::Result<()> {
//! # let path = std::env::temp_dir().join(format!("dalr-{}-fc7.safetensors", std::process::id()));
//! let mut stats = ActivationStats::<f32>::new(2);
//! stats.update(faer::mat![[1.0, 0.0], [3.0, 4.0]].as_ref())?;
//! stats.save(&path)?;
//!
//! let mut resumed = ActivationStats::<f32>::load(&path)?;
//! resumed.update(faer::mat![[5.0, 6.0]].as_ref())?;
//! assert_eq!(resumed.samples(), 3);
//! # std::fs::remove_file(&path).unwrap();
//! # Ok(())
//! # }
//! ```
//!
//! A model file does not have to fit into memory:
//!
//! ```
//! use dalr::interop::safetensors::{Dtype, ModelFile, ModelWriter};
//!
//! # fn main() -> dalr::Result<()> {
//! # let path = std::env::temp_dir().join(format!("dalr-{}-model.safetensors", std::process::id()));
//! let weight = faer::mat![[1.0_f32, 2.0, 3.0], [4.0, 5.0, 6.0]];
//! let mut writer = ModelWriter::new();
//! writer.add("fc.weight", Dtype::F16, &[2, 3], weight.as_ref())?;
//! writer.write(&path, |weight, out| out.matrix(*weight))?;
//!
//! let model = ModelFile::open(&path)?;
//! for (name, tensor) in model.tensors() {
//!     println!("{name}: {:?} {:?}", tensor.dtype, tensor.shape);
//! }
//! assert_eq!(model.matrix::<f32>("fc.weight")?, weight);
//! # std::fs::remove_file(&path).unwrap();
//! # Ok(())
//! # }
//! ```
//!
//! # Statistics format, version 1
//!
//! The format is a safetensors file, little endian, with these tensors in this order, without gaps,
//! for `n` inputs. Before the first sample, `n` is 0 in the arrays over the inputs.
//!
//! | tensor | dtype | shape | content |
//! |---|---|---|---|
//! | `mean` | F64 | `[n]` | mean of each input, `origin + offset` rounded |
//! | `origin` | F64 | `[n]` | a sample, which is subtracted from the others |
//! | `offset` | F64 | `[n]` | mean minus origin |
//! | `minimum`, `maximum` | F64 | `[n]` | extremes |
//! | `absolute` | F64 | `[n]` | `Σ wᵢ abs(xᵢ)` |
//! | `active` | F64 | `[n]` | `Σ wᵢ [xᵢ ≠ 0]` |
//! | `weights` | F64 | `[p]` | weights of the samples that are kept as rows |
//! | `scatter_offset` | F64 | `[n]` | mean `μ` of the samples in the scatter, minus origin; form `scatter` only |
//! | `scatter` | F64 | `[entries]` | `Σ wᵢ (xᵢ − μ)(xᵢ − μ)ᵀ`, see below; form `scatter` only |
//! | `samples` | F32 or F64 | `[p, n]` | the samples that are kept as rows |
//! | `checksum` | U32 | `[1]` | CRC-32 (that of zlib) of all bytes of the file before these four |
//!
//! `__metadata__` holds these fields in this order: `kind` (`dalr.ActivationStats`), `version`,
//! `precision` (`f32` or `f64`), `form` (`samples` for the sample form, `scatter` for the
//! covariance form), `features` (`n`), `sample_count`, `total_weight` (`Σ wᵢ`), `weight_squares`
//! (`Σ wᵢ²`), `memory_limit` (bytes, or `none`), `threads`, `block_width` (256). Paired statistics
//! without the covariance of the original inputs add `original_covariance` (`none`). The form `scatter`
//! adds `scatter_weight` (`Σ wᵢ` of the samples in the scatter), `scatter_precision` and `gathered`
//! (`p`). `scatter_precision` is 0 for an empty scatter. Otherwise it is the epsilon, `2⁻²³` or
//! `2⁻⁵²`, of the least precise products in the scatter. The form `samples` keeps all samples, so
//! `p` is `sample_count`. The form `scatter` keeps only the samples that are not yet added to the
//! scatter.
//!
//! The scatter is stored in blocks of 256 columns; the last one is narrower. The block of `w`
//! columns from column `s` on contains the rows from `s` on: `w · (n − s)` numbers, one column
//! after the other. In Python:
//!
//! ```python
//! import zlib, numpy as np
//! from safetensors import safe_open
//!
//! raw = open(path, "rb").read()
//! with safe_open(path, "np") as file:
//!     about = file.metadata()
//!     tensors = {name: file.get_tensor(name) for name in file.keys()}
//! assert about["version"] == "1" and zlib.crc32(raw[:-4]) == tensors["checksum"][0]
//! n, total = int(about["features"]), float(about["total_weight"])
//! centred = tensors["samples"] - tensors["origin"] - tensors["offset"]
//! scatter = (centred.T * tensors["weights"]) @ centred
//! if about["form"] == "scatter":
//!     distance = tensors["scatter_offset"] - tensors["offset"]
//!     scatter += float(about["scatter_weight"]) * np.outer(distance, distance)
//!     stored, start = np.empty((n, n)), 0
//!     for s in range(0, n, 256):
//!         w = min(256, n - s)
//!         block = tensors["scatter"][start : start + w * (n - s)].reshape(w, n - s)
//!         stored[s : s + w, s:], stored[s:, s : s + w] = block, block.T
//!         start += block.size
//!     scatter += stored
//! covariance = scatter / total
//! ```
//!
//! A new version only adds fields. A release reads all versions up to its own, and returns an error
//! for later ones.

mod dtype;
mod layers;
mod model;
mod positioned_read;
mod replace_file;
mod statistics;
mod writer;

use std::io;
use std::path::Path;

use crate::Error;

/// The dtype of a tensor, as the `safetensors` crate names it.
#[doc(no_inline)]
pub use ::safetensors::tensor::Dtype;

pub use self::dtype::FloatDtype;
pub use self::layers::{StoredLayer, save_layers};
pub use self::model::{ModelFile, TensorInfo};
pub use self::replace_file::replace_file;
pub use self::writer::{ModelWriter, TensorWriter};

/// Number of bytes that are read or written at a time.
const PIECE: usize = 1 << 20;

fn io_error(path: &Path, error: io::Error) -> Error {
    Error::io(path.display().to_string(), error)
}

fn format_error(path: &Path, expected: impl Into<String>, found: impl Into<String>) -> Error {
    Error::format(path.display().to_string(), expected.into(), found.into())
}
