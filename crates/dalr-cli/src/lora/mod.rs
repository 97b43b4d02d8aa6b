//! `dalr lora`: extracts, resizes and merges LoRA adapters.

mod args;
mod extract;
mod kohya;
mod module;
mod names;
mod peft;
mod report;
mod resize_and_merge;
mod rule;
mod select;
mod solve;
mod source;
mod write;

pub use args::LoraCommand;

use crate::error::Result;
use crate::progress::Verbosity;

pub fn run(command: &LoraCommand, verbosity: Verbosity) -> Result<()> {
    match command {
        LoraCommand::Extract(args) => extract::run(args, verbosity),
        LoraCommand::Resize(args) => resize_and_merge::resize(args, verbosity),
        LoraCommand::Merge(args) => resize_and_merge::merge(args, verbosity),
    }
}
