//! Running a model: the embedded engine, and ONNX Runtime as an option.

mod embedded;
#[cfg(feature = "onnxruntime")]
mod onnx_runtime;

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Error, Result};
use crate::model::Model;
use crate::tensor::Tensor;

/// A program that runs models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Engine {
    /// `rten`, which is compiled into this library.
    #[default]
    Embedded,
    /// ONNX Runtime, loaded from the shared library that the environment variable `ORT_DYLIB_PATH`
    /// names, or that the system finds.
    #[cfg(feature = "onnxruntime")]
    OnnxRuntime,
}

/// A model, loaded by an engine.
///
/// Only a [`Model`] can be loaded, so that no engine reads a file which was not validated before. A
/// panic inside an engine is an [`Error`] here. That does not hold for what ends a process without
/// unwinding: a stack or memory that is used up, a crash inside ONNX Runtime, a build with
/// `panic = "abort"`.
pub struct Session {
    engine: Engine,
    loaded: Box<dyn Loaded>,
    outputs: Vec<String>,
}

/// What an engine can do with a model that it has loaded.
trait Loaded {
    /// Returns these values, given a tensor for each input of the model.
    fn run(&self, inputs: &[(String, Tensor)], values: &[String]) -> Result<Vec<Tensor>, String>;
}

impl Engine {
    /// Returns the engine's name and version.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedded => "rten 0.27",
            #[cfg(feature = "onnxruntime")]
            Self::OnnxRuntime => "ONNX Runtime",
        }
    }

    /// Loads a model to compute its outputs as fast as the engine can.
    ///
    /// # Errors
    ///
    /// [`Error::Engine`] for a model that the engine cannot run; the message names the operator.
    pub fn load(self, model: &Model, threads: usize) -> Result<Session> {
        let outputs: Vec<String> = model.outputs().iter().map(|output| output.name.clone()).collect();
        self.session(model, threads, &[], outputs)
    }

    /// Loads a model to compute these of its values, whether they are outputs or not. It runs
    /// without the optimizations that would remove them.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load); a value that the model does not have.
    pub fn load_for_values(self, model: &Model, threads: usize, values: &[String]) -> Result<Session> {
        self.session(model, threads, values, values.to_vec())
    }

    fn session(self, model: &Model, threads: usize, values: &[String], outputs: Vec<String>) -> Result<Session> {
        let loaded = self.guarded("load the model", || match self {
            Self::Embedded => embedded::load(model, threads, !values.is_empty()),
            #[cfg(feature = "onnxruntime")]
            Self::OnnxRuntime => onnx_runtime::load(model, threads, values),
        })?;
        Ok(Session { engine: self, loaded, outputs })
    }

    /// Turns errors and panics into errors that name the engine.
    fn guarded<R>(self, what: &str, body: impl FnOnce() -> Result<R, String>) -> Result<R> {
        let failed = |message: String| Error::engine(self.name(), what, message);
        match catch_unwind(AssertUnwindSafe(body)) {
            Ok(result) => result.map_err(failed),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
                Err(failed(format!("the engine panicked: {text}")))
            }
        }
    }
}

impl Session {
    /// Returns the outputs, or the values that the session was loaded for, for these inputs.
    ///
    /// # Errors
    ///
    /// [`Error::Engine`]: a missing input, a shape that an operator refuses, integers that the
    /// embedded engine cannot hold (it computes with 32 bits), a failure of the engine.
    pub fn run(&self, inputs: &[(String, Tensor)]) -> Result<Vec<Tensor>> {
        self.values(inputs, &self.outputs)
    }

    /// Returns some of the values that the session was loaded for. No more of the model runs than
    /// they need, if the engine can do that.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run); a value that the session was not loaded for.
    pub fn values(&self, inputs: &[(String, Tensor)], values: &[String]) -> Result<Vec<Tensor>> {
        // An engine may return an input as it is, without a copy.
        let given = |name: &String| inputs.iter().find(|(input, _)| input == name).map(|(_, tensor)| tensor.clone());
        let computed: Vec<String> = values.iter().filter(|name| given(name).is_none()).cloned().collect();
        let found = self.engine.guarded("run the model", || self.loaded.run(inputs, &computed))?;
        let mut found = found.into_iter();
        let value = |name: &String| {
            let missing = || Error::engine(self.engine.name(), "run the model", format!("no value `{name}`"));
            given(name).or_else(|| found.next()).ok_or_else(missing)
        };
        values.iter().map(value).collect()
    }

    /// Returns the names of the outputs, or of the values that the session was loaded for.
    pub fn outputs(&self) -> &[String] {
        &self.outputs
    }
}
