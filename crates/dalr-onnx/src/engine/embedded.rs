//! `rten`: pure Rust, any shape, and any value of a graph that was not optimized.
//!
//! It has no 64-bit and no half-precision tensors: integers are 32 bits wide, and `f16` and `f64`
//! weights become `f32` when the model is loaded.

use std::sync::Arc;

use rten::{DataType, ModelOptions, RunOptions, ThreadPool, Value, ValueOrView, ValueType};
use rten_tensor::{AsView, Layout};

use super::Loaded;
use crate::model::Model;
use crate::tensor::{Data, Tensor};

struct Rten {
    model: rten::Model,
    pool: Arc<ThreadPool>,
}

pub(super) fn load(model: &Model, threads: usize, keep_values: bool) -> Result<Box<dyn Loaded>, String> {
    let mut options = ModelOptions::with_all_ops();
    options.enable_optimization(!keep_values).prepack_weights(!keep_values);
    let model =
        options.load(model.to_bytes().map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
    Ok(Box::new(Rten { model, pool: Arc::new(ThreadPool::with_num_threads(threads)) }))
}

impl Loaded for Rten {
    fn run(&self, inputs: &[(String, Tensor)], values: &[String]) -> Result<Vec<Tensor>, String> {
        let node = |name: &String| self.model.find_node(name).ok_or_else(|| format!("no value `{name}`"));
        let mut given = Vec::with_capacity(inputs.len());
        for (name, tensor) in inputs {
            // The engine drops inputs that no operator reads.
            let Ok(id) = node(name) else { continue };
            let dtype = self.model.node_info(id).and_then(|info| info.dtype());
            given.push((id, ValueOrView::from(value(name, tensor, dtype)?)));
        }
        let wanted = values.iter().map(node).collect::<Result<Vec<_>, _>>()?;
        let options = RunOptions::default().with_thread_pool(Some(self.pool.clone()));
        let found = self.model.run(given, &wanted, Some(options)).map_err(|error| error.to_string())?;
        found.into_iter().zip(values).map(|(found, name)| tensor(name, found)).collect()
    }
}

/// Returns a tensor as the engine's value of this type.
fn value(name: &str, tensor: &Tensor, dtype: Option<ValueType>) -> Result<Value, String> {
    fn narrow<T: TryFrom<i64>>(name: &str, numbers: &[i64]) -> Result<Vec<T>, String> {
        let each = |&number: &i64| T::try_from(number).map_err(|_| format!("`{name}`: {number} has too many bits"));
        numbers.iter().map(each).collect()
    }
    let value = match (&tensor.data, dtype) {
        (Data::Float(numbers), _) => Value::from_shape(&tensor.shape, numbers.clone()),
        (Data::Integer(numbers), Some(ValueType::Tensor(DataType::Int8))) => {
            return Value::from_shape(&tensor.shape, narrow::<i8>(name, numbers)?).map_err(|error| error.to_string());
        }
        (Data::Integer(numbers), Some(ValueType::Tensor(DataType::UInt8))) => {
            return Value::from_shape(&tensor.shape, narrow::<u8>(name, numbers)?).map_err(|error| error.to_string());
        }
        (Data::Integer(numbers), _) => {
            return Value::from_shape(&tensor.shape, narrow::<i32>(name, numbers)?).map_err(|error| error.to_string());
        }
    };
    value.map_err(|error| error.to_string())
}

fn tensor(name: &str, value: Value) -> Result<Tensor, String> {
    Ok(match value {
        Value::FloatTensor(tensor) => Tensor::floats(tensor.shape(), tensor.to_vec()),
        Value::Int32Tensor(tensor) => integers(tensor.shape(), tensor.to_vec()),
        Value::Int8Tensor(tensor) => integers(tensor.shape(), tensor.to_vec()),
        Value::UInt8Tensor(tensor) => integers(tensor.shape(), tensor.to_vec()),
        _ => return Err(format!("`{name}` is a list of tensors")),
    })
}

fn integers<T: Into<i64>>(shape: &[usize], numbers: Vec<T>) -> Tensor {
    Tensor::integers(shape, numbers.into_iter().map(Into::into).collect())
}
