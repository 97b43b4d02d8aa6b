//! Reads ONNX models, finds their layers, and replaces layers by compressed ones.
//!
//! ```no_run
//! use dalr::{ActivationStats, Dalr, LowRankCompressor, Rank};
//! use dalr_onnx::{Model, Replacement};
//!
//! # fn main() -> dalr_onnx::Result<()> {
//! let mut model = Model::open("model.onnx")?;
//! let layer = model.layers()[0].clone();
//! # let run = |_: &str| dalr::faer::Mat::<f32>::zeros(100, 64);
//! let mut compressed = Vec::new();
//! for group in model.linear_layers::<f32>(&layer.name)? {
//!     let mut stats = ActivationStats::new(layer.inputs);
//!     let inputs = run(&layer.input); // samples × inputs, from an engine that runs the model
//!     stats.update(inputs.as_ref())?;
//!     compressed.push(Dalr::new().compress(&group, &stats, Rank::Fixed(16))?.into_layer());
//! }
//! model.replace(&layer.name, &Replacement::Factors(compressed))?;
//! model.save("smaller.onnx")?;
//! # Ok(())
//! # }
//! ```
//!
//! # Supported graphs
//!
//! Opsets from 7 on. [`Model::layers`] lists the layers that can be compressed:
//!
//! | operator | forms |
//! |---|---|
//! | `MatMul` | a constant matrix on the right or the left; an input of any number of dimensions |
//! | `Gemm` | a constant matrix as `A` or `B`, with `transA`, `transB`, `alpha`, `beta`; a constant `C` with one entry for each output, or one for all |
//! | `Conv` | one or two dimensions, with groups, strides, dilations, `pads` and `auto_pad`; a constant bias |
//! | `Add` after one of these | part of the layer if it adds one constant to each output, in either order, and nothing else reads the product |
//! | `BatchNormalization` after `Conv` | part of the layer if nothing else reads the convolution; folded when the layer is replaced |
//!
//! | weights | |
//! |---|---|
//! | element types | `f32`, `f64`, `f16` and `bf16`; factors are stored in the type of the weight |
//! | places | initializers, also those that are inputs of the graph; `Constant` nodes; external data |
//! | between weight and layer | `Identity`, and `Transpose` of a matrix |
//! | several readers | the weight stays until all its readers are replaced; equal factors are stored once |
//!
//! A weight that is an input of the graph with a default value counts as constant. When its layer is
//! replaced, callers can no longer give another value.
//!
//! | replacement | nodes |
//! |---|---|
//! | [`Replacement::Factors`] | two of `MatMul`, `MatMul` and `Add`, or `Gemm`; for a convolution, one `Conv` with the original kernel and attributes, and one of 1 × 1 |
//! | [`Replacement::Pivoted`] | the same with pivot rows and coefficients, then `Concat` and `Gather` along the axis of the outputs |
//! | [`Model::replace_units`] | the layers' own operators with smaller weights, around an element-wise activation or gate; for convolutions also around pooling |
//!
//! [`Model::left_alone`] lists the other nodes with weights, and says why they stay: weights that
//! are computed when the model runs, depthwise convolutions and those in three dimensions,
//! quantised and recurrent operators, lookups, other domains, and everything inside of subgraphs
//! (`If`, `Loop`) and functions.
//!
//! # What stays
//!
//! The model is edited at the level of the wire format: everything but the replaced nodes, their
//! weights and the types of values that are gone stays as it is to the byte, such as unknown fields,
//! metadata and nodes of other domains. Names of inputs and outputs do not change. New operators are
//! those of the model's own opset, and new names differ from all others.
//!
//! # Files that are not to be trusted
//!
//! Reading checks the whole structure: lengths, dimensions against the data, names, the order of the
//! nodes (so that there is no cycle), the depth of graphs, types and functions, and their size when
//! functions are put in their places. External data must be inside of the model's folder, also
//! after following links. Every violation is an [`Error`]; time and memory grow with the size of the
//! file only. Weights are read when they are asked for, and checked for NaN and infinity then.
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
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::unwrap_used))]

#[cfg(test)]
#[allow(dead_code, reason = "the other tests use more of it")]
#[path = "../tests/it/build.rs"]
mod build;
mod calibration_inputs;
mod element;
mod engine;
mod error;
mod find_layers;
mod functions;
mod graph;
mod graph_reader;
mod index;
mod layer;
mod model;
#[allow(
    clippy::indexing_slicing,
    reason = "indices run over the axes of one shape, or over fewer bytes than there are"
)]
mod npy;
mod read_weights;
mod rewrite;
mod stored_tensor;
mod tensor;
mod units;
mod wire;
mod write;

pub use calibration_inputs::{Batch, Inputs};
pub use element::ElementType;
pub use engine::{Engine, Session};
pub use error::{Error, Result};
pub use graph::{Dimension, ValueInfo};
pub use layer::{Axis, Convolution, Layer, LayerKind, LeftAlone, Padding};
pub use model::Model;
pub use rewrite::Replacement;
pub use tensor::{Data, Tensor};
pub use units::UnitPair;
