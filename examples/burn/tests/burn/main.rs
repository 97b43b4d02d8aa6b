//! One program for all tests, because each test program compiles the library's generic code again.

mod common;
mod conversion;
mod lenet;
mod training;
