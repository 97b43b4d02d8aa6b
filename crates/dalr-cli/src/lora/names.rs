//! Names of modules in the two formats. kohya-ss writes `_` for every dot, so that a name of its
//! format can only be converted back if the names of the model's modules are known.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use dalr::interop::safetensors::ModelFile;

use super::args::NamesArgs;
use super::kohya;
use super::source::Source;
use crate::error::{Error, Result};

/// The format of an adapter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Format {
    Peft,
    Kohya,
}

impl Format {
    /// Returns the format of the adapter to write: a `.safetensors` file is one of kohya-ss.
    pub fn of(out: &Path) -> Self {
        if out.extension().is_some_and(|extension| extension == "safetensors") { Self::Kohya } else { Self::Peft }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Peft => "PEFT",
            Self::Kohya => "kohya-ss",
        }
    }

    /// Returns whether the format has modules whose weights have this number of axes.
    pub fn holds(self, axes: usize) -> bool {
        self == Self::Peft && (2..=5).contains(&axes) || axes == 2 || axes == 4
    }
}

/// Gives the modules of `source` the names that they have in `format`.
pub fn convert(source: &mut Source, format: Format, args: &NamesArgs) -> Result<()> {
    let from = if source.config.is_some() { Format::Peft } else { Format::Kohya };
    if format == Format::Kohya {
        let refuse = |name: &str| {
            let expected = "only linear layers and 2-D convolutions, which a kohya-ss file can hold";
            Error::format(source.file.path(), expected, format!("`{name}`"))
        };
        if let Some(name) = source.others.first() {
            return Err(refuse(name));
        }
        for part in &mut source.parts {
            if part.module.is_embedding || !format.holds(part.module.shape.len()) {
                return Err(refuse(&part.module.name));
            }
            if from == Format::Peft {
                part.module.name = kohya::name(&args.prefix, &part.module.name);
            }
        }
        return require_distinct(source.parts.iter().map(|part| part.module.name.clone()), &source.path);
    }
    if from == Format::Peft {
        return Ok(());
    }
    let Some(path) = &args.base else {
        let found = "a kohya-ss file, whose names do not say where the dots are: pass --base MODEL";
        return Err(Error::format(&source.path, "names of modules for a PEFT adapter", found));
    };
    let model = ModelFile::open(path)?;
    let mut names = BTreeMap::new();
    for module in model.tensors().filter_map(|(name, _)| name.strip_suffix(".weight")) {
        if let Some(other) = names.insert(kohya::name(&args.prefix, module), module)
            && source.parts.iter().any(|part| part.module.name == kohya::name(&args.prefix, module))
        {
            return Err(Error::format(
                path,
                "modules with different names in a kohya-ss file",
                format!("`{other}` and `{module}`"),
            ));
        }
    }
    for part in &mut source.parts {
        let Some(name) = names.get(&part.module.name) else {
            let expected = format!("a module of the model for `{}`", part.module.name);
            let found = format!("none with the prefix `{}`: see --prefix and --base", args.prefix);
            return Err(Error::format(&source.path, expected, found));
        };
        part.module.name = (*name).into();
    }
    Ok(())
}

/// Returns an error if two modules have the same name.
pub fn require_distinct(mut names: impl Iterator<Item = String>, path: &Path) -> Result<()> {
    let mut seen = BTreeSet::new();
    match names.find(|name| !seen.insert(name.clone())) {
        Some(name) => {
            let expected = "modules with different names in a kohya-ss file";
            Err(Error::format(path, expected, format!("`{name}` twice")))
        }
        None => Ok(()),
    }
}
