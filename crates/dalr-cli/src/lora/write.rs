//! Writes an adapter in either format.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dalr::Scalar;
use dalr::interop::safetensors::{Dtype, FloatDtype, ModelFile, ModelWriter};
use serde_json::{Map, Value};

use super::args::CommonArgs;
use super::module::Module;
use super::names::Format;
use super::solve::Solved;
use super::{kohya, peft};
use crate::error::{Error, Result};
use crate::files::{require_free, save};
use crate::interrupt;
use crate::report::pretty;

/// The place and the form of the adapter to write.
pub struct Target<'a> {
    out: &'a Path,
    pub format: Format,
    pub dtype: FloatDtype,
}

/// The adapter that was resized: its settings, and its tensors that are copied.
#[derive(Default)]
pub struct Template<'a> {
    pub config: Option<&'a Map<String, Value>>,
    pub metadata: Option<&'a BTreeMap<String, String>>,
    pub copied: Option<(&'a ModelFile, &'a [String])>,
    /// Whether the adapter still has all of its modules.
    pub complete: bool,
}

/// The content of a tensor: a factor of the module with this index, its alpha, or a tensor of the
/// adapter that was resized.
enum Content<'a> {
    Down(usize),
    Up(usize),
    Alpha(usize),
    Copy(&'a ModelFile, &'a str),
}

impl<'a> Target<'a> {
    /// Returns an error if the adapter exists and `--force` is not set.
    pub fn new(args: &'a CommonArgs, dtype: FloatDtype) -> Result<Self> {
        let target = Self { out: &args.out, format: Format::of(&args.out), dtype };
        if target.format == Format::Peft {
            if target.out.exists() && !target.out.is_dir() {
                let expected = "a folder for a PEFT adapter, or a name that ends in .safetensors";
                return Err(Error::format(target.out, expected, "a file of another kind"));
            }
            require_free(&target.out.join(peft::CONFIG), args.force)?;
        }
        require_free(&target.weights(), args.force)?;
        Ok(target)
    }

    fn weights(&self) -> PathBuf {
        match self.format {
            Format::Peft => self.out.join(peft::WEIGHTS),
            Format::Kohya => self.out.into(),
        }
    }

    /// Writes the adapter. `others` are modules of the model that it must not change.
    ///
    /// A PEFT adapter has two files. Its configuration is removed first and written last, so that an
    /// interrupted run leaves no adapter that can be loaded.
    pub fn write<T: Scalar>(&self, solved: &[Solved<T>], template: &Template<'_>, others: &[String]) -> Result<()> {
        let writer = self.plan(solved, template)?;
        let config = self.out.join(peft::CONFIG);
        if self.format == Format::Peft {
            std::fs::create_dir_all(self.out).map_err(Error::io(self.out))?;
            if config.exists() {
                std::fs::remove_file(&config).map_err(Error::io(&config))?;
            }
        }
        writer.write(self.weights(), |content, target| {
            interrupt::check()?;
            match *content {
                Content::Down(index) => target.matrix(solved[index].adapter.down())?,
                Content::Up(index) => target.matrix(solved[index].adapter.up())?,
                Content::Alpha(index) => target.numbers([solved[index].adapter.rank() as f64])?,
                Content::Copy(file, name) => file.copy(name, target)?,
            }
            Ok::<_, Error>(())
        })?;
        if self.format == Format::Kohya {
            return Ok(());
        }
        let modules: Vec<(&Module, usize)> =
            solved.iter().map(|solved| (&solved.module, solved.adapter.rank())).collect();
        save(&config, &pretty(&peft::config(template.config, &modules, others, template.complete))?)
    }

    fn plan<'b, T: Scalar>(&self, solved: &[Solved<T>], template: &Template<'b>) -> Result<ModelWriter<Content<'b>>> {
        let ranks: Vec<usize> = solved.iter().map(|solved| solved.adapter.rank()).collect();
        let metadata = match self.format {
            Format::Peft => BTreeMap::from([("format".into(), "pt".into())]),
            Format::Kohya => kohya::metadata(template.metadata, &ranks),
        };
        let mut writer = ModelWriter::new().with_metadata(metadata);
        for (index, Solved { module, adapter, .. }) in solved.iter().enumerate() {
            let names = match self.format {
                Format::Peft => peft::tensors(module),
                Format::Kohya => {
                    // In half precision, large ranks would be rounded.
                    writer.add(kohya::alpha(&module.name), Dtype::F32, &[], Content::Alpha(index))?;
                    kohya::tensors(&module.name)
                }
            };
            let contents = [Content::Down(index), Content::Up(index)];
            for ((name, shape), content) in names.into_iter().zip(module.factor_shapes(adapter.rank())).zip(contents) {
                writer.add(name, self.dtype.into(), &shape, content)?;
            }
        }
        if let Some((file, names)) = template.copied {
            for name in names {
                let Some(info) = file.tensor(name) else { continue };
                writer.add(name.clone(), info.dtype, &info.shape, Content::Copy(file, name))?;
            }
        }
        Ok(writer)
    }
}
