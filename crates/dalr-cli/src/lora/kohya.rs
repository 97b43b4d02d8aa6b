//! The format of kohya-ss: one safetensors file with `NAME.lora_down.weight`,
//! `NAME.lora_up.weight` and `NAME.alpha`.

use std::collections::BTreeMap;
use std::path::Path;

use dalr::interop::safetensors::ModelFile;

use super::source::{Pair, Source};
use crate::error::{Error, Result};

const DOWN: &str = ".lora_down.weight";
const UP: &str = ".lora_up.weight";
const ALPHA: &str = ".alpha";

/// Returns the names of a module's two tensors.
pub fn tensors(name: &str) -> [String; 2] {
    [format!("{name}{DOWN}"), format!("{name}{UP}")]
}

/// Returns the name of the tensor that holds a module's alpha.
pub fn alpha(name: &str) -> String {
    format!("{name}{ALPHA}")
}

/// Returns the name of a module in a file whose names have this start.
pub fn name(prefix: &str, module: &str) -> String {
    format!("{prefix}_{}", module.replace('.', "_"))
}

/// Returns whether a file has tensors of this format.
pub fn matches(file: &ModelFile) -> bool {
    file.tensors().any(|(name, _)| name.ends_with(DOWN) || name.ends_with(UP))
}

/// Reads the headers of an adapter, and the scales of all modules.
pub fn open(path: &Path, file: ModelFile) -> Result<Source> {
    let mut source = Source::new(path, file);
    let names: Vec<String> = source.file.tensors().map(|(name, _)| name.into()).collect();
    for name in &names {
        let belonging = [DOWN, UP, ALPHA].into_iter().find_map(|end| Some((name.strip_suffix(end)?, end)));
        let Some((module, end)) = belonging else {
            let expected = format!("only tensors named like `…{DOWN}`, `…{UP}` and `…{ALPHA}`");
            return Err(Error::format(path, expected, format!("`{name}`")));
        };
        let [down, up] = tensors(module);
        for needed in [&down, &up] {
            if source.file.tensor(needed).is_none() {
                let expected = format!("a tensor `{needed}`, which belongs to `{name}`");
                return Err(Error::format(path, expected, "none"));
            }
        }
        if end != DOWN {
            continue;
        }
        // A file without alpha means a scale of 1, as in kohya's programs.
        let mut stored = None;
        let alpha = alpha(module);
        if source.file.tensor(&alpha).is_some() {
            let numbers = source.file.vector::<f64>(&alpha)?;
            if numbers.nrows() != 1 {
                let expected = format!("one number in `{alpha}`");
                return Err(Error::format(path, expected, numbers.nrows().to_string()));
            }
            stored = Some(numbers[0]);
        }
        source.add(module, Pair { down, up }, false, |rank| Ok(stored.map_or(1.0, |alpha| alpha / rank as f64)))?;
    }
    Ok(source)
}

/// Returns the metadata of a file with these ranks. Those of `template`, the file that was resized,
/// are kept, except checksums of its tensors.
pub fn metadata(template: Option<&BTreeMap<String, String>>, ranks: &[usize]) -> BTreeMap<String, String> {
    let mut metadata = template.cloned().unwrap_or_default();
    metadata.retain(|key, _| !key.starts_with("sshs_"));
    let uniform = ranks.first().filter(|rank| ranks.iter().all(|other| other == *rank));
    let text = uniform.map_or("Dynamic".into(), ToString::to_string);
    metadata.entry("ss_network_module".into()).or_insert_with(|| "networks.lora".into());
    metadata.insert("ss_network_dim".into(), text.clone());
    metadata.insert("ss_network_alpha".into(), text);
    metadata
}
