//! One program for all tests: whatever is generic in the library is compiled in each that uses it.

mod common;
mod conversion;
mod lenet;
mod training;
