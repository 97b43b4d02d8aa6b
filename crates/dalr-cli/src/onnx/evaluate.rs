//! Runs the original and a compressed model on the same inputs, and compares them.

use std::time::{Duration, Instant};

use dalr_onnx::{Inputs, Session, Tensor};

use crate::error::{Error, Result};
use crate::interrupt;
use crate::report::{Latency, OutputChange};

/// The time that the two models run in turn to measure their latency, and the number of runs.
const TIME: Duration = Duration::from_secs(4);
const RUNS: std::ops::Range<usize> = 5..41;

/// Sums over the samples for one output.
#[derive(Clone, Default)]
struct Sums {
    change: f64,
    original: f64,
    cosines: f64,
    samples: usize,
    same: usize,
    rows: usize,
    is_classes: bool,
}

impl Sums {
    /// Returns the squared change, relative to the original output.
    fn relative(&self) -> f64 {
        self.change / self.original.max(f64::MIN_POSITIVE)
    }
}

/// The outputs of the original model on some inputs, batch by batch.
pub struct Reference<'a> {
    inputs: &'a Inputs,
    outputs: Vec<Vec<Tensor>>,
}

impl<'a> Reference<'a> {
    pub fn new(session: &Session, inputs: &'a Inputs) -> Result<Self> {
        let mut outputs = Vec::new();
        inputs.for_each(|batch| {
            interrupt::check()?;
            outputs.push(session.run(&batch.inputs)?);
            Ok::<_, Error>(())
        })?;
        Ok(Self { inputs, outputs })
    }

    /// Returns the mean over the outputs of the squared relative change by another model.
    pub fn loss(&self, session: &Session) -> Result<f64> {
        let mut sums: Vec<Sums> = Vec::new();
        let mut before = self.outputs.iter();
        self.inputs.for_each(|batch| {
            interrupt::check()?;
            let after = session.run(&batch.inputs)?;
            if let Some(before) = before.next() {
                add(&mut sums, before, &after, batch.samples);
            }
            Ok::<_, Error>(())
        })?;
        let compared = sums.iter().filter(|sums| sums.samples > 0);
        let count = compared.clone().count().max(1) as f64;
        Ok(compared.map(Sums::relative).sum::<f64>() / count)
    }
}

/// Returns the change of each output. The outputs of one batch at a time are in memory.
pub fn changes(original: &Session, compressed: &Session, inputs: &Inputs) -> Result<Vec<OutputChange>> {
    let mut sums: Vec<Sums> = Vec::new();
    inputs.for_each(|batch| {
        interrupt::check()?;
        let (before, after) = (original.run(&batch.inputs)?, compressed.run(&batch.inputs)?);
        add(&mut sums, &before, &after, batch.samples);
        Ok::<_, Error>(())
    })?;
    let change = |(name, sums): (&String, Sums)| OutputChange {
        name: name.clone(),
        relative_error: sums.relative().sqrt(),
        cosine: sums.cosines / sums.samples.max(1) as f64,
        top1: (sums.is_classes && sums.rows > 0).then(|| sums.same as f64 / sums.rows as f64),
    };
    Ok(original.outputs().iter().zip(sums).filter(|(_, sums)| sums.samples > 0).map(change).collect())
}

/// Adds the outputs of both models for some samples. Outputs of integers do not count.
fn add(sums: &mut Vec<Sums>, before: &[Tensor], after: &[Tensor], samples: usize) {
    sums.resize(before.len(), Sums::default());
    for ((sums, before), after) in sums.iter_mut().zip(before).zip(after) {
        let (Some(x), Some(y)) = (before.as_floats(), after.as_floats()) else { continue };
        if x.len() != y.len() || x.is_empty() {
            // An output of another size counts as changed completely.
            let energy: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
            (sums.change, sums.original) = (sums.change + energy, sums.original + energy);
            sums.samples += samples;
            continue;
        }
        let parts = if before.shape.first() == Some(&samples) { samples } else { 1 };
        for (x, y) in x.chunks_exact(x.len() / parts).zip(y.chunks_exact(x.len() / parts)) {
            let (mut xx, mut yy, mut xy, mut change) = (0.0, 0.0, 0.0, 0.0);
            for (x, y) in x.iter().zip(y).map(|(&x, &y)| (f64::from(x), f64::from(y))) {
                xx += x * x;
                yy += y * y;
                xy += x * y;
                change += (x - y) * (x - y);
            }
            sums.change += change;
            sums.original += xx;
            sums.cosines += if xx > 0.0 && yy > 0.0 { xy / (xx * yy).sqrt() } else { f64::from(xx == yy) };
            sums.samples += 1;
        }
        let classes = before.shape.last().copied().unwrap_or(1);
        if classes < 2 || before.shape.len() < 2 {
            continue;
        }
        sums.is_classes |= before.shape.len() == 2 || x.chunks_exact(classes).all(is_distribution);
        for (x, y) in x.chunks_exact(classes).zip(y.chunks_exact(classes)) {
            sums.same += usize::from(largest(x) == largest(y));
            sums.rows += 1;
        }
    }
}

/// Returns whether these are probabilities, with some room for approximations.
fn is_distribution(row: &[f32]) -> bool {
    row.iter().all(|&x| x >= 0.0) && (row.iter().sum::<f32>() - 1.0).abs() < 0.01
}

fn largest(row: &[f32]) -> Option<usize> {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]))
}

/// Runs both models in turn on the first batch, and returns the median times.
pub fn latency(original: &Session, compressed: &Session, inputs: &Inputs, threads: usize) -> Result<Latency> {
    let mut first = None;
    // Only one batch is needed: the rest of the files is not read.
    let read = inputs.for_each(|batch| {
        first = Some(batch);
        Err(Stop::Enough)
    });
    if let Err(Stop::Failed(error)) = read {
        return Err(error);
    }
    let batch = first.ok_or_else(|| Error::Refused("no inputs to compare the models on".into()))?;
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let started = Instant::now();
    while before.len() < RUNS.start || (before.len() < RUNS.end && started.elapsed() < TIME) {
        interrupt::check()?;
        for (session, times) in [(original, &mut before), (compressed, &mut after)] {
            let begun = Instant::now();
            session.run(&batch.inputs)?;
            times.push(begun.elapsed().as_secs_f64());
        }
    }
    Ok(Latency { before: median(before), after: median(after), samples: batch.samples, threads })
}

enum Stop {
    Enough,
    Failed(Error),
}

impl From<dalr_onnx::Error> for Stop {
    fn from(error: dalr_onnx::Error) -> Self {
        Self::Failed(error.into())
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    // The first runs are slower: memory is taken then.
    times.drain(..1.min(times.len() - 1));
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
