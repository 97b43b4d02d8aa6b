//! The command `dalr`. `docs/command-line.md` describes it.

mod args;
mod calibration;
mod compress;
mod error;
mod factors;
mod files;
mod inspect;
mod interrupt;
mod layer;
mod lora;
mod onnx;
mod progress;
mod report;
mod selection;
mod shared;
mod solve;
mod unfinished_run;
mod write_model;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command};
use error::{Error, Result};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dalr: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let verbosity = progress::Verbosity::of(cli);
    match &cli.command {
        Command::Compress(args) => compress::run(args, verbosity),
        Command::Inspect(args) => inspect::run(args, verbosity),
        Command::Lora(command) => lora::run(command, verbosity),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "dalr", &mut script);
            print(&script)
        }
    }
}

/// Starts to listen for interrupts, and creates the pool of `--threads` threads.
fn prepare(threads: usize) -> Result<()> {
    interrupt::listen()?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    pool.map_err(|error| Error::Refused(format!("--threads {threads}: {error}")))
}

/// Writes to standard output. It is not a failure if the reader, such as `head`, has closed the
/// pipe.
fn print(text: &[u8]) -> Result<()> {
    match std::io::stdout().write_all(text) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::Refused(format!("cannot write to the standard output: {error}")))
        }
        _ => Ok(()),
    }
}
