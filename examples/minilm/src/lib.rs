//! all-MiniLM-L6-v2, or another BERT with mean pooling, compressed in candle: calibrated on texts, all linear layers replaced, and judged by its
//! embeddings and by the time that a forward pass takes.
#![forbid(unsafe_code)]

pub mod bert;
pub mod compress;
pub mod encoder;
pub mod judge;
pub mod options;
pub mod progress;
pub mod texts;
