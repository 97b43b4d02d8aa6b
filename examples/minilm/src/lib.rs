//! Compresses all-MiniLM-L6-v2, or another BERT with mean pooling, in candle.
//!
//! Calibrates on texts, replaces the linear layers, and compares embeddings and forward passes with
//! the original network.
#![forbid(unsafe_code)]

pub mod bert;
pub mod compress;
pub mod encoder;
pub mod evaluation;
pub mod metrics;
pub mod options;
pub mod progress;
pub mod sequential;
pub mod texts;
