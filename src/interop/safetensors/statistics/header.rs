//! The header of a file of statistics: its arrays, their positions, and the length of the file.
//!
//! The same statistics always have the same header, byte for byte. A header from a file is parsed
//! and checked by the `safetensors` crate. It is then compared with the header that the code writes
//! for its numbers. This detects unknown, repeated and misplaced entries without a rule for each.

use core::str::FromStr;
use std::collections::HashMap;
use std::path::Path;

use ::safetensors::tensor::Metadata;

use crate::covariance::{BLOCK, Head, ScatterHead};
use crate::interop::safetensors::{Dtype, FloatDtype, TensorInfo, format_error, writer::header};
use crate::{ActivationStats, Error, Result, Scalar};

/// Identifies a safetensors file as one of statistics.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Activations,
    /// Of the compressed inputs and, after them, the original ones.
    Paired,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Activations => "dalr.ActivationStats",
            Self::Paired => "dalr.PairedStats",
        }
    }
}

/// The version in every file. Increase it if the content or its meaning changes. Older versions
/// must remain readable, with defaults for missing fields.
const VERSION: u32 = 1;

/// The field of paired statistics that do not keep the covariance of the original inputs.
const ORIGINAL_COVARIANCE: &str = "original_covariance";

/// Upper bound on the length of a header of any version, in bytes.
pub(super) const LONGEST: u64 = 4096;

/// Header and length of the file of some statistics.
pub(super) struct Layout {
    /// The length and the text of the header.
    pub(super) header: Vec<u8>,
    arrays: Vec<(&'static str, TensorInfo)>,
    /// The length of the whole file in bytes.
    pub(super) length: u64,
}

/// Returns the dtype of numbers of this type.
pub(super) fn precision<T>() -> FloatDtype {
    if size_of::<T>() == size_of::<f32>() { FloatDtype::F32 } else { FloatDtype::F64 }
}

/// Returns the name of the dtype of `T` in the metadata of a file.
fn precision_name<T>() -> &'static str {
    if precision::<T>() == FloatDtype::F32 { "f32" } else { "f64" }
}

impl Layout {
    /// Returns the layout of a file with this head; `None` if its length exceeds the address space.
    pub(super) fn of<T: Scalar>(kind: Kind, head: &Head) -> Option<Self> {
        let channels = [head.channels()];
        let kept = head.samples_kept()?;
        let mut shapes = vec![("mean", Dtype::F64, channels.to_vec())];
        shapes.extend(ActivationStats::<T>::channel_names().map(|name| (name, Dtype::F64, channels.to_vec())));
        shapes.push(("weights", Dtype::F64, vec![kept]));
        if head.scatter.is_some() {
            shapes.push(("scatter_offset", Dtype::F64, vec![head.features]));
            shapes.push(("scatter", Dtype::F64, vec![head.scatter_entries()?]));
        }
        // The samples come after the `f64` arrays, so that every tensor is aligned.
        shapes.push(("samples", precision::<T>().into(), vec![kept, head.features]));
        shapes.push(("checksum", Dtype::U32, vec![1]));
        let info = |(name, dtype, shape): (_, _, Vec<_>)| Some((name, TensorInfo::new(dtype, &shape)?));
        let arrays: Vec<_> = shapes.into_iter().map(info).collect::<Option<_>>()?;
        let data = arrays.iter().try_fold(0_u64, |sum, (_, info)| sum.checked_add(info.bytes))?;
        let fields = fields::<T>(kind, head);
        let fields = fields.iter().map(|(key, value)| (*key, value.as_str()));
        let header = header(fields, arrays.iter().map(|(name, info)| (*name, info)));
        let length = (header.len() as u64).checked_add(data)?;
        Some(Self { header, arrays, length })
    }

    /// Returns the head that a header describes, after checking that the header is consistent and
    /// fits the file's length.
    pub(super) fn parse<T: Scalar>(kind: Kind, path: &Path, text: &[u8], length: u64) -> Result<Head> {
        let metadata: Metadata = serde_json::from_slice(text)
            .map_err(|error| format_error(path, "a header in the safetensors format", error.to_string()))?;
        let head = head_of::<T>(kind, &Fields { path, metadata: metadata.metadata().as_ref() })?;
        let layout = Self::of::<T>(kind, &head)
            .ok_or_else(|| format_error(path, "sizes that can be addressed", format!("{head:?}")))?;
        for (name, TensorInfo { dtype, shape, .. }) in &layout.arrays {
            let words = |dtype, shape| format!("of type {dtype:?} and shape {shape:?}");
            let expected = words(*dtype, shape);
            let found = metadata.info(name).map_or("none".into(), |info| words(info.dtype, &info.shape));
            if found != expected {
                return Err(format_error(path, format!("a tensor `{name}` {expected}"), found));
            }
        }
        if layout.header.get(8..) != Some(text) {
            let expected = "exactly the header that its own numbers call for";
            let found = "one with unknown, repeated or reordered entries, or other spelling";
            return Err(format_error(path, expected, found));
        }
        if layout.length != length {
            return Err(format_error(path, format!("{} bytes", layout.length), length.to_string()));
        }
        Ok(head)
    }
}

/// Returns the keys and values of the metadata, in their order.
fn fields<T>(kind: Kind, head: &Head) -> Vec<(&'static str, String)> {
    // `{:e}` prints the shortest decimal that is parsed as the same number.
    let decimal = |number: f64| format!("{number:e}");
    let mut fields = vec![
        ("kind", kind.name().into()),
        ("version", VERSION.to_string()),
        ("precision", precision_name::<T>().into()),
        ("form", if head.scatter.is_some() { "scatter" } else { "samples" }.into()),
        ("features", head.features.to_string()),
        ("sample_count", head.samples.to_string()),
        ("total_weight", decimal(head.weight)),
        ("weight_squares", decimal(head.weight_squares)),
        ("memory_limit", head.memory_limit.map_or("none".into(), |limit| limit.to_string())),
        ("threads", head.threads.to_string()),
        ("block_width", BLOCK.to_string()),
    ];
    if head.columns < head.features {
        fields.push((ORIGINAL_COVARIANCE, "none".into()));
    }
    if let Some(ScatterHead { weight, precision, gathered }) = head.scatter {
        fields.push(("scatter_weight", decimal(weight)));
        fields.push(("scatter_precision", decimal(precision)));
        fields.push(("gathered", gathered.to_string()));
    }
    fields
}

/// The metadata of a file.
struct Fields<'a> {
    path: &'a Path,
    metadata: Option<&'a HashMap<String, String>>,
}

impl Fields<'_> {
    fn text(&self, key: &str) -> Result<&str> {
        let value = self.metadata.and_then(|metadata| metadata.get(key));
        value.map(String::as_str).ok_or_else(|| self.refuse(format!("a field `{key}` in the metadata"), "none"))
    }

    fn number<N: FromStr>(&self, key: &str) -> Result<N> {
        let text = self.text(key)?;
        text.parse().map_err(|_| self.refuse(format!("a number for {key}"), format!("`{text}`")))
    }

    fn has(&self, key: &str) -> bool {
        self.metadata.is_some_and(|metadata| metadata.contains_key(key))
    }

    fn require(&self, key: &str, expected: &str) -> Result<()> {
        let found = self.text(key)?;
        if found == expected {
            return Ok(());
        }
        Err(self.refuse(format!("{key} `{expected}`"), format!("`{found}`")))
    }

    fn refuse(&self, expected: impl Into<String>, found: impl Into<String>) -> Error {
        format_error(self.path, expected, found)
    }
}

fn head_of<T>(kind: Kind, fields: &Fields<'_>) -> Result<Head> {
    fields.require("kind", kind.name())?;
    let version: u32 = fields.number("version")?;
    if !(1..=VERSION).contains(&version) {
        let expected = format!("a version from 1 to {VERSION}, which this release reads,");
        return Err(fields.refuse(expected, version.to_string()));
    }
    let (name, found) = (precision_name::<T>(), fields.text("precision")?);
    if found != name {
        let expected = format!("dtype `{name}`, as in `ActivationStats<{name}>`,");
        return Err(fields.refuse(expected, format!("`{found}`: load with that type")));
    }
    let scatter = match fields.text("form")? {
        "samples" => None,
        "scatter" => Some(ScatterHead {
            weight: fields.number("scatter_weight")?,
            precision: fields.number("scatter_precision")?,
            gathered: fields.number("gathered")?,
        }),
        other => return Err(fields.refuse("form `samples` or `scatter`", format!("`{other}`"))),
    };
    let features = fields.number("features")?;
    let complete = kind == Kind::Activations || !fields.has(ORIGINAL_COVARIANCE);
    Ok(Head {
        features,
        columns: if complete { features } else { features / 2 },
        samples: fields.number("sample_count")?,
        weight: fields.number("total_weight")?,
        weight_squares: fields.number("weight_squares")?,
        scatter,
        memory_limit: if fields.text("memory_limit")? == "none" { None } else { Some(fields.number("memory_limit")?) },
        threads: fields.number("threads")?,
    })
}
