//! The format of PEFT: a folder with `adapter_config.json` and `adapter_model.safetensors`.

use std::path::Path;

use dalr::interop::safetensors::ModelFile;
use regex_lite::Regex;
use serde_json::{Map, Value, json};

use super::module::Module;
use super::source::{Pair, Source};
use crate::error::{Error, Result};

pub const CONFIG: &str = "adapter_config.json";
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// The start of the names of all tensors.
const PREFIX: &str = "base_model.model.";

/// The ends of the names of `down` and `up`, for layers and for embeddings.
const LAYER: [&str; 2] = [".lora_A.weight", ".lora_B.weight"];
const EMBEDDING: [&str; 2] = [".lora_embedding_A", ".lora_embedding_B"];

/// Returns the names of a module's two tensors.
pub fn tensors(module: &Module) -> [String; 2] {
    (if module.is_embedding { EMBEDDING } else { LAYER }).map(|end| format!("{PREFIX}{}{end}", module.name))
}

/// Reads the headers and the configuration of an adapter.
pub fn open(folder: &Path) -> Result<Source> {
    let path = folder.join(CONFIG);
    let text = std::fs::read(&path).map_err(Error::io(&path))?;
    let refuse = |expected: &str, found: String| Error::format(&path, expected, found);
    let config: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|error| refuse("a JSON object", error.to_string()))?;
    if config.get("peft_type") != Some(&json!("LORA")) {
        let found = config.get("peft_type").map_or("none".into(), Value::to_string);
        return Err(refuse("\"peft_type\": \"LORA\"", found));
    }
    for (key, what) in [("use_dora", "no DoRA, whose result is not a sum"), ("lora_bias", "no biases of LoRA")] {
        if config.get(key) == Some(&json!(true)) {
            return Err(refuse(what, format!("\"{key}\": true")));
        }
    }
    let file = ModelFile::open(folder.join(WEIGHTS))?;
    let scales = Scales::read(&path, &config)?;
    let mut source = Source::new(folder, file);
    let names: Vec<String> = source.file.tensors().map(|(name, _)| name.into()).collect();
    for name in &names {
        if !name.contains(".lora_") {
            source.others.push(name.clone());
            continue;
        }
        let found = [(LAYER, false), (EMBEDDING, true)].into_iter().find_map(|(ends, is_embedding)| {
            let part = ends.iter().position(|end| name.ends_with(end))?;
            Some((name.strip_suffix(ends[part])?, part, ends[1 - part], is_embedding))
        });
        let Some((start, part, other, is_embedding)) = found else {
            let expected = "only tensors of LoRA, named like `….lora_A.weight`";
            return Err(Error::format(source.file.path(), expected, format!("`{name}`")));
        };
        let partner = format!("{start}{other}");
        if source.file.tensor(&partner).is_none() {
            let expected = format!("a tensor `{partner}`, which belongs to `{name}`");
            return Err(Error::format(source.file.path(), expected, "none"));
        }
        if part == 0 {
            let module = start.strip_prefix(PREFIX).unwrap_or(start);
            let pair = Pair { down: name.clone(), up: partner };
            source.add(module, pair, is_embedding, |rank| scales.of(&path, module, rank))?;
        }
    }
    source.config = Some(config);
    Ok(source)
}

/// The part of a configuration that determines the scale of a module: `alpha / r`.
struct Scales {
    rank: f64,
    alpha: f64,
    ranks: Vec<(Regex, f64)>,
    alphas: Vec<(Regex, f64)>,
    /// Whether the scale is `alpha / √r`.
    by_root: bool,
}

impl Scales {
    fn read(path: &Path, config: &Map<String, Value>) -> Result<Self> {
        let number = |key: &str| {
            let value = config.get(key);
            let found = || value.map_or("none".into(), Value::to_string);
            value.and_then(Value::as_f64).ok_or_else(|| Error::format(path, format!("a number \"{key}\""), found()))
        };
        Ok(Self {
            rank: number("r")?,
            alpha: number("lora_alpha")?,
            ranks: patterns(path, config, "rank_pattern")?,
            alphas: patterns(path, config, "alpha_pattern")?,
            by_root: config.get("use_rslora") == Some(&json!(true)),
        })
    }

    /// Returns the scale of a module, whose factors have this rank.
    fn of(&self, path: &Path, module: &str, rank: usize) -> Result<f64> {
        let find = |patterns: &[(Regex, f64)], default| {
            patterns.iter().find(|(pattern, _)| pattern.is_match(module)).map_or(default, |(_, value)| *value)
        };
        let expected = find(&self.ranks, self.rank);
        if expected != rank as f64 {
            let expected = format!("rank {rank} for `{module}`, as its tensors have");
            let found = find(&self.ranks, self.rank).to_string();
            return Err(Error::format(path, expected, found));
        }
        let divisor = if self.by_root { (rank as f64).sqrt() } else { rank as f64 };
        Ok(find(&self.alphas, self.alpha) / divisor)
    }
}

/// Reads a map from patterns of module names to numbers. As in PEFT, the first one counts that
/// matches the name, or all of it behind a dot.
fn patterns(path: &Path, config: &Map<String, Value>, key: &str) -> Result<Vec<(Regex, f64)>> {
    let Some(map) = config.get(key).filter(|value| !value.is_null()) else { return Ok(Vec::new()) };
    let refuse = |found: String| Error::format(path, format!("patterns and numbers in \"{key}\""), found);
    let map = map.as_object().ok_or_else(|| refuse(map.to_string()))?;
    let mut patterns = Vec::new();
    for (pattern, value) in map {
        let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$")).map_err(|error| refuse(error.to_string()))?;
        patterns.push((regex, value.as_f64().ok_or_else(|| refuse(format!("{pattern}: {value}")))?));
    }
    Ok(patterns)
}

/// Returns the configuration of an adapter with these modules and ranks, all of scale 1. `others`
/// are modules of the model that the adapter must not change.
///
/// The settings of `template`, such as the configuration of an adapter that was resized, are kept. Its
/// target modules are kept if the adapter still has `all` of its modules.
pub fn config(
    template: Option<&Map<String, Value>>,
    modules: &[(&Module, usize)],
    others: &[String],
    all: bool,
) -> Value {
    let defaults = json!({
        "peft_type": "LORA", "task_type": null, "base_model_name_or_path": null, "bias": "none",
        "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true, "lora_dropout": 0.0,
    });
    let given = defaults.as_object().into_iter().chain(template).flatten();
    let mut config: Map<String, Value> = given.map(|(key, value)| (key.clone(), value.clone())).collect();
    let names: Vec<&str> = modules.iter().map(|(module, _)| &*module.name).collect();
    let rank = modules.iter().map(|(_, rank)| *rank).max().unwrap_or(1);
    let uniform = modules.iter().all(|(_, other)| *other == rank);
    let patterns: Map<String, Value> = match uniform {
        true => Map::new(),
        false => modules.iter().map(|(module, rank)| (pattern(&module.name, &names), json!(rank))).collect(),
    };
    config.insert("r".into(), json!(rank));
    config.insert("lora_alpha".into(), json!(rank));
    config.insert("rank_pattern".into(), Value::Object(patterns.clone()));
    config.insert("alpha_pattern".into(), Value::Object(patterns));
    config.insert("use_rslora".into(), json!(false));
    if !(all && config.contains_key("target_modules")) {
        config.insert("target_modules".into(), targets(&names, others));
    }
    Value::Object(config)
}

/// Returns whether the pattern `name` would match `other` as well.
fn ends_with(other: &str, name: &str) -> bool {
    other.strip_suffix(name).is_some_and(|start| start.ends_with('.'))
}

/// Returns the pattern of a module. PEFT also matches the ends of names. Old releases do not know the
/// anchor, which is used only if another module's name has the same end.
fn pattern(name: &str, names: &[&str]) -> String {
    if names.iter().any(|other| ends_with(other, name)) { format!("^{name}") } else { name.into() }
}

/// Returns the target modules: a list of names, or a regular expression if a name in the list would
/// match other modules of the model, too.
fn targets(names: &[&str], others: &[String]) -> Value {
    if !names.iter().any(|name| others.iter().any(|other| ends_with(other, name))) {
        return json!(names);
    }
    let escaped: Vec<String> = names.iter().map(|name| regex_lite::escape(name)).collect();
    json!(escaped.join("|"))
}
