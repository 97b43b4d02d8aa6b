//! ONNX Runtime through `ort`, loaded while the program runs.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};

use half::f16;
use ort::environment::Environment;
use ort::session::{OutputSelector, RunOptions, Session, SessionInputValue};
use ort::value::{DynValue, Tensor as OrtTensor, TensorElementType, ValueType};

use super::Loaded;
use crate::model::Model;
use crate::tensor::{Data, Tensor};

/// The name by which the system finds the library.
const LIBRARY: &str = if cfg!(windows) {
    "onnxruntime.dll"
} else if cfg!(target_os = "macos") {
    "libonnxruntime.dylib"
} else {
    "libonnxruntime.so"
};

struct OnnxRuntime {
    session: Mutex<Session>,
    types: HashMap<String, TensorElementType>,
}

fn environment() -> Result<&'static Environment, String> {
    static ENVIRONMENT: OnceLock<Result<Environment, String>> = OnceLock::new();
    let made = ENVIRONMENT.get_or_init(|| {
        let library = std::env::var_os("ORT_DYLIB_PATH").unwrap_or_else(|| LIBRARY.into());
        let builder = ort::init_from(&library);
        let builder = builder.map_err(|error| format!("cannot load {}: {error}", library.to_string_lossy()))?;
        builder.build().map_err(|error| error.to_string())
    });
    made.as_ref().map_err(Clone::clone)
}

pub(super) fn load(model: &Model, threads: usize, values: &[String]) -> Result<Box<dyn Loaded>, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let is_input = |value: &&str| model.inputs().iter().any(|input| input.name == **value);
    let values: Vec<&str> = values.iter().map(String::as_str).filter(|value| !is_input(value)).collect();
    let bytes = model.bytes_with_outputs(&values).map_err(|error| text(&error))?;
    let builder = Session::builder(environment()?).map_err(|error| text(&error))?;
    let mut builder = builder.with_intra_threads(threads).map_err(|error| text(&error))?;
    let session = builder.commit_from_memory(&bytes).map_err(|error| text(&error))?;
    let types = session.inputs().iter().filter_map(|input| match input.dtype() {
        ValueType::Tensor { ty, .. } => Some((input.name().to_string(), *ty)),
        _ => None,
    });
    let types = types.collect();
    Ok(Box::new(OnnxRuntime { session: Mutex::new(session), types }))
}

impl Loaded for OnnxRuntime {
    fn run(&self, inputs: &[(String, Tensor)], values: &[String]) -> Result<Vec<Tensor>, String> {
        let text = |error: ort::Error| error.to_string();
        let mut given = HashMap::new();
        for (name, tensor) in inputs {
            let Some(&kind) = self.types.get(name) else { continue };
            given.insert(name.clone(), SessionInputValue::from(value(name, tensor, kind)?));
        }
        let selector = values.iter().fold(OutputSelector::no_default(), |selector, name| selector.with(name.clone()));
        let options = RunOptions::new().map_err(text)?.with_outputs(selector);
        let mut session = self.session.lock().map_err(|_| "the engine failed before".to_string())?;
        let found = session.run_with_options(given, &options).map_err(text)?;
        let read = |name: &String| tensor(name, found.get(name).ok_or_else(|| format!("no value `{name}`"))?);
        values.iter().map(read).collect()
    }
}

/// Returns a tensor as the engine's value of this type.
fn value(name: &str, tensor: &Tensor, kind: TensorElementType) -> Result<DynValue, String> {
    let shape = tensor.shape.clone();
    macro_rules! integers {
        ($numbers:expr, $integer:ty) => {{
            let each = |&number: &i64| {
                <$integer>::try_from(number).map_err(|_| format!("`{name}`: {number} has too many bits"))
            };
            let numbers = $numbers.iter().map(each).collect::<Result<Vec<$integer>, _>>()?;
            OrtTensor::from_array((shape, numbers)).map(|tensor| tensor.into_dyn())
        }};
    }
    let value = match (&tensor.data, kind) {
        (Data::Float(numbers), TensorElementType::Float32) => {
            OrtTensor::from_array((shape, numbers.clone())).map(|tensor| tensor.into_dyn())
        }
        (Data::Float(numbers), TensorElementType::Float64) => {
            let numbers: Vec<f64> = numbers.iter().map(|&number| number.into()).collect();
            OrtTensor::from_array((shape, numbers)).map(|tensor| tensor.into_dyn())
        }
        (Data::Float(numbers), TensorElementType::Float16) => {
            let numbers: Vec<f16> = numbers.iter().map(|&number| f16::from_f32(number)).collect();
            OrtTensor::from_array((shape, numbers)).map(|tensor| tensor.into_dyn())
        }
        (Data::Integer(numbers), TensorElementType::Int64) => {
            OrtTensor::from_array((shape, numbers.clone())).map(|tensor| tensor.into_dyn())
        }
        (Data::Integer(numbers), TensorElementType::Int32) => integers!(numbers, i32),
        (Data::Integer(numbers), TensorElementType::Int16) => integers!(numbers, i16),
        (Data::Integer(numbers), TensorElementType::Int8) => integers!(numbers, i8),
        (Data::Integer(numbers), TensorElementType::Uint8) => integers!(numbers, u8),
        (Data::Integer(numbers), TensorElementType::Uint16) => integers!(numbers, u16),
        (Data::Integer(numbers), TensorElementType::Uint32) => integers!(numbers, u32),
        (Data::Integer(numbers), TensorElementType::Bool) => {
            let numbers: Vec<bool> = numbers.iter().map(|&number| number != 0).collect();
            OrtTensor::from_array((shape, numbers)).map(|tensor| tensor.into_dyn())
        }
        (_, kind) => return Err(format!("`{name}`: a tensor of type {kind} cannot be given")),
    };
    value.map_err(|error| error.to_string())
}

fn tensor(name: &str, value: &DynValue) -> Result<Tensor, String> {
    let ValueType::Tensor { ty, .. } = value.dtype() else { return Err(format!("`{name}` is no tensor")) };
    macro_rules! extract {
        ($number:ty, $make:expr) => {{
            let (shape, numbers) = value.try_extract_tensor::<$number>().map_err(|error| error.to_string())?;
            let shape: Vec<usize> = shape.iter().map(|&size| size as usize).collect();
            Ok($make(shape, numbers))
        }};
    }
    fn floats<T: Copy>(to: impl Fn(T) -> f32) -> impl Fn(Vec<usize>, &[T]) -> Tensor {
        move |shape, numbers| Tensor { shape, data: Data::Float(numbers.iter().map(|&number| to(number)).collect()) }
    }
    fn integers<T: Copy>(to: impl Fn(T) -> i64) -> impl Fn(Vec<usize>, &[T]) -> Tensor {
        move |shape, numbers| Tensor { shape, data: Data::Integer(numbers.iter().map(|&number| to(number)).collect()) }
    }
    match ty {
        TensorElementType::Float32 => extract!(f32, floats(|x| x)),
        TensorElementType::Float64 => extract!(f64, floats(|x| x as f32)),
        TensorElementType::Float16 => extract!(f16, floats(f16::to_f32)),
        TensorElementType::Int64 => extract!(i64, integers(|x| x)),
        TensorElementType::Int32 => extract!(i32, integers(i64::from)),
        TensorElementType::Int16 => extract!(i16, integers(i64::from)),
        TensorElementType::Int8 => extract!(i8, integers(i64::from)),
        TensorElementType::Uint8 => extract!(u8, integers(i64::from)),
        TensorElementType::Uint16 => extract!(u16, integers(i64::from)),
        TensorElementType::Uint32 => extract!(u32, integers(i64::from)),
        TensorElementType::Bool => extract!(bool, integers(i64::from)),
        other => Err(format!("`{name}` has the type {other}")),
    }
}
