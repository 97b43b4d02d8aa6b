//! Conversions from and to other libraries' types, one module per optional feature.

pub mod nalgebra;
