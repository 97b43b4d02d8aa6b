//! Progress on standard error: a bar with the time left on a terminal, a line for each layer with
//! `--verbose`.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::args::Cli;
use crate::layer::Layer;

/// The amount of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    Quiet,
    Normal,
    Verbose,
}

impl Verbosity {
    pub fn of(cli: &Cli) -> Self {
        match (cli.quiet, cli.verbose) {
            (true, _) => Self::Quiet,
            (_, true) => Self::Verbose,
            _ => Self::Normal,
        }
    }
}

/// Progress over layers, weighted by their cost.
pub struct Progress {
    bar: Option<ProgressBar>,
    verbosity: Verbosity,
    layers: usize,
    done: usize,
    /// Cost in total, solved now, and solved by the run that is resumed.
    total: f64,
    solved: f64,
    resumed: f64,
    started: Instant,
    since: Instant,
}

/// The time left is estimated after this fraction of the cost.
const CERTAIN: f64 = 0.02;

/// Number of positions of the bar.
const STEPS: f64 = 1000.0;

impl Progress {
    pub fn new(layers: &[Layer], verbosity: Verbosity) -> Self {
        let visible = verbosity != Verbosity::Quiet && std::io::stderr().is_terminal();
        let bar = visible.then(|| {
            let style = ProgressStyle::with_template("{bar:30} {percent:>3} % {msg}");
            let bar = ProgressBar::new(STEPS as u64);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        let now = Instant::now();
        let total = layers.iter().map(cost).sum();
        Self {
            bar,
            verbosity,
            layers: layers.len(),
            done: 0,
            total,
            solved: 0.0,
            resumed: 0.0,
            started: now,
            since: now,
        }
    }

    /// Prints a note for the user.
    pub fn note(&self, text: &str) {
        if self.verbosity != Verbosity::Quiet {
            self.line(&format!("note: {text}"));
        }
    }

    /// Shows work that is not on one layer.
    pub fn stage(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_string()),
            None if self.verbosity == Verbosity::Verbose => eprintln!("{text}"),
            None => {}
        }
    }

    /// Prints a line above the bar.
    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    /// Shows that a layer is being solved.
    pub fn begin(&mut self, layer: &Layer) {
        self.since = Instant::now();
        self.show(&layer.name);
    }

    /// Shows that the resumed run has solved a layer.
    pub fn resumed(&mut self, layer: &Layer) {
        self.resumed += cost(layer);
        self.finish(layer, "solved before");
    }

    /// Shows that a layer is solved.
    pub fn solved(&mut self, layer: &Layer, samples: u64) {
        self.solved += cost(layer);
        let seconds = self.since.elapsed().as_secs_f64();
        self.finish(
            layer,
            &format!("{} × {}, {samples} samples, {seconds:.2} s", layer.out_features, layer.in_features),
        );
    }

    fn finish(&mut self, layer: &Layer, what: &str) {
        self.done += 1;
        if self.verbosity == Verbosity::Verbose {
            let left = self.left().map(|left| format!(", {} left", clock(left))).unwrap_or_default();
            self.line(&format!("layer {}/{} {}: {what}{left}", self.done, self.layers, layer.name));
        }
        self.show(&layer.name);
    }

    fn show(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(((self.solved + self.resumed) / self.total * STEPS) as u64);
            let left = self.left().map(|left| format!("{} left, ", clock(left))).unwrap_or_default();
            bar.set_message(format!("{left}{} of {} layers: {what}", self.done, self.layers));
        }
    }

    /// Returns the estimated time left, from the times of the solved layers; `None` before the
    /// fraction `CERTAIN`.
    fn left(&self) -> Option<Duration> {
        if self.solved < CERTAIN * self.total {
            return None;
        }
        let left = self.started.elapsed().as_secs_f64() * (self.total - self.solved - self.resumed) / self.solved;
        Duration::try_from_secs_f64(left.max(0.0)).ok()
    }

    /// Shows that the output is being written.
    pub fn begin_writing(&mut self, bytes: u64) {
        (self.total, self.solved, self.resumed) = (bytes as f64, 0.0, 0.0);
        if let Some(bar) = &self.bar {
            bar.set_position(0);
            bar.set_message("writing");
        }
    }

    pub fn wrote(&mut self, bytes: usize) {
        self.solved += bytes as f64;
        if let Some(bar) = &self.bar {
            bar.set_position((self.solved / self.total * STEPS) as u64);
        }
    }

    /// Removes the bar.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Returns the cost of a solve up to a factor: products of the weight with the input's covariance,
/// and an eigendecomposition.
fn cost(layer: &Layer) -> f64 {
    let (m, n) = (layer.out_features as f64, layer.in_features as f64);
    m * n * (m.min(n) + n)
}

fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{}:{:02} min", seconds / 60, seconds % 60),
        _ => format!("{}:{:02} h", seconds / 3600, seconds / 60 % 60),
    }
}
