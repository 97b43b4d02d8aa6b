//! Reads ONNX models, finds their layers, and replaces layers by compressed ones.
#![forbid(unsafe_code)]
#![deny(
    clippy::exit,
    clippy::expect_used,
    clippy::get_unwrap,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::panic_in_result_fn,
    clippy::string_slice,
    clippy::todo,
    clippy::unimplemented,
    clippy::unreachable,
    clippy::unwrap_in_result,
    clippy::unwrap_used
)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod element;
mod engine;
mod error;
mod functions;
mod graph;
mod index;
mod inputs;
mod layers;
mod model;
#[allow(
    clippy::indexing_slicing,
    reason = "indices run over the axes of one shape, or over fewer bytes than there are"
)]
mod npy;
mod read;
mod rewrite;
mod stored;
mod tensor;
mod units;
mod wire;
mod write;

pub use element::ElementType;
pub use engine::{Engine, Session};
pub use error::{Error, Result};
pub use graph::{Dimension, ValueInfo};
pub use inputs::{Batch, Inputs};
pub use layers::{Axis, Convolution, Layer, LayerKind, LeftAlone, Padding};
pub use model::Model;
pub use rewrite::Replacement;
pub use tensor::{Data, Tensor};
pub use units::UnitPair;
