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
mod error;
mod functions;
mod graph;
mod index;
mod layers;
mod model;
mod read;
mod rewrite;
mod stored;
mod units;
mod wire;
mod write;

pub use element::ElementType;
pub use error::{Error, Result};
pub use graph::{Dimension, ValueInfo};
pub use layers::{Axis, Convolution, Layer, LayerKind, LeftAlone, Padding};
pub use model::Model;
pub use rewrite::Replacement;
pub use units::UnitPair;
