//! `dalr lora`: extracts, resizes and merges LoRA adapters.

mod args;
mod extract;
mod kohya;
mod module;
mod names;
mod peft;
mod report;
mod rule;
mod select;
mod solve;
mod source;
mod transform;
mod write;

pub use args::LoraCommand;

use crate::error::Result;
use crate::progress::Verbosity;

pub fn run(command: &LoraCommand, verbosity: Verbosity) -> Result<()> {
    match command {
        LoraCommand::Extract(args) => extract::run(args, verbosity),
        LoraCommand::Resize(args) => transform::resize(args, verbosity),
        LoraCommand::Merge(args) => transform::merge(args, verbosity),
    }
}
