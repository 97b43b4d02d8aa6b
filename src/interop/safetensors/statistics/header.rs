//! The header of a file of statistics: its arrays, their places, and the length of the file.
//!
//! Given statistics have exactly one header, down to the byte. A header from a file is parsed,
//! checked by the `safetensors` crate, and then compared with the header that its own numbers call
//! for. This refuses unknown, repeated and misplaced entries without a rule for each.

use core::fmt::Write;

use ::safetensors::tensor::Metadata;

use super::Origin;
use crate::covariance::{BLOCK, Head, ScatterHead};
use crate::{ActivationStats, Result, Scalar};

/// Marks a safetensors file as one of statistics.
const KIND: &str = "dalr.ActivationStats";

/// Written into every file. A change of the content or of its meaning takes the next number. Older
/// versions are still read, with defaults for the fields that they lack.
const VERSION: u32 = 1;

/// Bytes that the longest header of any version stays below.
const LONGEST: u64 = 4096;

/// Header and length of the file of some statistics.
pub(super) struct Layout {
    /// The header, padded to a multiple of eight bytes.
    pub(super) text: String,
    arrays: Vec<Array>,
    /// Of the whole file, in bytes.
    pub(super) length: u64,
}

struct Array {
    name: &'static str,
    dtype: &'static str,
    shape: Vec<usize>,
}

/// The name of the precision of the samples, and their type in the file.
fn precision<T>() -> (&'static str, &'static str) {
    if size_of::<T>() == size_of::<f32>() { ("f32", "F32") } else { ("f64", "F64") }
}

impl Layout {
    /// `None` if the file would be longer than can be addressed.
    pub(super) fn of<T: Scalar>(head: &Head) -> Option<Self> {
        let mut arrays = Vec::new();
        let mut tensor = |name, dtype, shape: &[usize]| arrays.push(Array { name, dtype, shape: shape.to_vec() });
        tensor("mean", "F64", &[head.channels()]);
        for name in ActivationStats::<T>::channel_names() {
            tensor(name, "F64", &[head.channels()]);
        }
        tensor("weights", "F64", &[head.samples_kept()?]);
        if head.scatter.is_some() {
            tensor("scatter_offset", "F64", &[head.features]);
            tensor("scatter", "F64", &[head.scatter_entries()?]);
        }
        // After the `f64` arrays, so that every tensor is aligned.
        tensor("samples", precision::<T>().1, &[head.samples_kept()?, head.features]);
        tensor("checksum", "U32", &[1]);

        let mut text = String::from("{\"__metadata__\":{");
        for (index, (key, value)) in fields::<T>(head).iter().enumerate() {
            write!(text, "{}\"{key}\":\"{value}\"", if index == 0 { "" } else { "," }).ok()?;
        }
        text.push('}');
        let mut end = 0_usize;
        for Array { name, dtype, shape } in &arrays {
            let bytes = if *dtype == "F64" { 8 } else { 4 };
            let entries = shape.iter().try_fold(1_usize, |product, &length| product.checked_mul(length))?;
            let start = end;
            end = end.checked_add(entries.checked_mul(bytes)?)?;
            let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
            let shape = shape.join(",");
            write!(text, ",\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":[{shape}],\"data_offsets\":[{start},{end}]}}")
                .ok()?;
        }
        text.push('}');
        while text.len() % 8 != 0 {
            text.push(' ');
        }
        let length = (8 + text.len() as u64).checked_add(end as u64)?;
        Some(Self { text, arrays, length })
    }

    /// Returns the head that a header describes, after it has checked the header against itself and
    /// the file's length.
    pub(super) fn parse<T: Scalar>(origin: &Origin<'_>, text: &[u8], length: u64) -> Result<Head> {
        let metadata: Metadata = serde_json::from_slice(text)
            .map_err(|error| origin.refuse("a header in the safetensors format", error.to_string()))?;
        let head = head_of::<T>(origin, &metadata)?;
        let layout =
            Self::of::<T>(&head).ok_or_else(|| origin.refuse("sizes that can be addressed", format!("{head:?}")))?;
        for Array { name, dtype, shape } in &layout.arrays {
            let found = metadata.info(name).map(|info| (format!("{:?}", info.dtype), &info.shape));
            if found.as_ref().is_none_or(|(found_dtype, found_shape)| found_dtype != dtype || *found_shape != shape) {
                let expected = format!("a tensor `{name}` of type {dtype} and shape {shape:?}");
                let found =
                    found.map_or("none".into(), |(dtype, shape)| format!("one of type {dtype} and shape {shape:?}"));
                return Err(origin.refuse(&expected, found));
            }
        }
        if layout.text.as_bytes() != text {
            return Err(origin.refuse(
                "exactly the header that its own numbers call for",
                "one with unknown, repeated or reordered entries, or other spelling".into(),
            ));
        }
        if layout.length != length {
            return Err(origin.refuse(&format!("{} bytes", layout.length), length.to_string()));
        }
        Ok(head)
    }
}

/// Refuses an impossible length of a header.
pub(super) fn require_length(origin: &Origin<'_>, header: u64, file: u64) -> Result<()> {
    let most = LONGEST.min(file.saturating_sub(8));
    if header <= most {
        return Ok(());
    }
    Err(origin.refuse(&format!("a header of at most {most} bytes"), format!("one of {header}")))
}

/// Keys and values of the metadata, in their order.
fn fields<T>(head: &Head) -> Vec<(&'static str, String)> {
    // The shortest decimal that reads back as the same number.
    let decimal = |number: f64| format!("{number:e}");
    let mut fields = vec![
        ("kind", KIND.into()),
        ("version", VERSION.to_string()),
        ("precision", precision::<T>().0.into()),
        ("form", if head.scatter.is_some() { "scatter" } else { "samples" }.into()),
        ("features", head.features.to_string()),
        ("sample_count", head.samples.to_string()),
        ("total_weight", decimal(head.weight)),
        ("weight_squares", decimal(head.weight_squares)),
        ("memory_limit", head.memory_limit.map_or("none".into(), |limit| limit.to_string())),
        ("threads", head.threads.to_string()),
        ("block_width", BLOCK.to_string()),
    ];
    if let Some(ScatterHead { weight, precision, gathered }) = head.scatter {
        fields.push(("scatter_weight", decimal(weight)));
        fields.push(("scatter_precision", decimal(precision)));
        fields.push(("gathered", gathered.to_string()));
    }
    fields
}

fn head_of<T>(origin: &Origin<'_>, metadata: &Metadata) -> Result<Head> {
    let field = |key: &str| {
        let value = metadata.metadata().as_ref().and_then(|map| map.get(key));
        value
            .map(String::as_str)
            .ok_or_else(|| origin.refuse(&format!("a field `{key}` in the metadata"), "none".into()))
    };
    let require = |key: &str, expected: &str| {
        let found = field(key)?;
        if found == expected {
            Ok(())
        } else {
            Err(origin.refuse(&format!("{key} `{expected}`"), format!("`{found}`")))
        }
    };
    fn number<N: core::str::FromStr>(origin: &Origin<'_>, key: &str, text: &str) -> Result<N> {
        text.parse().map_err(|_| origin.refuse(&format!("a number for {key}"), format!("`{text}`")))
    }
    require("kind", KIND)?;
    let version: u32 = number(origin, "version", field("version")?)?;
    if !(1..=VERSION).contains(&version) {
        let expected = format!("a version from 1 to {VERSION}, which this release reads,");
        return Err(origin.refuse(&expected, version.to_string()));
    }
    require("precision", precision::<T>().0)?;
    let form = field("form")?;
    if form != "samples" && form != "scatter" {
        return Err(origin.refuse("form `samples` or `scatter`", format!("`{form}`")));
    }
    let scatter = match form {
        "scatter" => Some(ScatterHead {
            weight: number(origin, "scatter_weight", field("scatter_weight")?)?,
            precision: number(origin, "scatter_precision", field("scatter_precision")?)?,
            gathered: number(origin, "gathered", field("gathered")?)?,
        }),
        _ => None,
    };
    let limit = field("memory_limit")?;
    Ok(Head {
        features: number(origin, "features", field("features")?)?,
        samples: number(origin, "sample_count", field("sample_count")?)?,
        weight: number(origin, "total_weight", field("total_weight")?)?,
        weight_squares: number(origin, "weight_squares", field("weight_squares")?)?,
        scatter,
        memory_limit: if limit == "none" { None } else { Some(number(origin, "memory_limit", limit)?) },
        threads: number(origin, "threads", field("threads")?)?,
    })
}
