//! Compares the embeddings and the speed of two networks.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;

use crate::bert::Bert;
use crate::encoder::Batch;
use crate::progress;

/// Returns the embeddings of all batches, texts × width, of unit length.
pub fn embeddings(model: &Bert, batches: &[Batch]) -> Result<Tensor> {
    let all: Vec<Tensor> = batches.iter().map(|batch| batch.embed(model)).collect::<candle_core::Result<_>>()?;
    Ok(Tensor::cat(&all, 0)?)
}

/// Returns the mean cosine between the rows of two tensors of unit rows.
pub fn cosine(one: &Tensor, other: &Tensor) -> Result<f64> {
    ensure!(one.dims() == other.dims(), "{:?} embeddings cannot be compared with {:?}", one.dims(), other.dims());
    Ok(f64::from((one * other)?.sum(1)?.mean_all()?.to_scalar::<f32>()?))
}

/// Seconds of a forward pass of two networks.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    /// Number of texts in the batch.
    pub texts: usize,
    /// Number of tokens in the longest text.
    pub tokens: usize,
    /// Median of the first network.
    pub before: f64,
    /// Median of the second network.
    pub after: f64,
    /// Median of the ratios of consecutive passes, which a change of the machine's speed affects
    /// little.
    pub speedup: f64,
}

/// Times forward passes of two networks on each batch, in alternation.
pub fn time(before: &Bert, after: &Bert, batches: &[Batch], passes: usize) -> Result<Vec<Time>> {
    ensure!(passes > 0, "expected at least one pass to time, got 0");
    let bar = progress::bar("timing", batches.len() * passes);
    let mut times = Vec::new();
    for batch in batches {
        let pass = |model: &Bert| -> Result<f64> {
            let started = Instant::now();
            batch.embed(model)?;
            Ok(started.elapsed().as_secs_f64())
        };
        let _ = (pass(before)?, pass(after)?); // warm-up
        let (mut first, mut second, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in bar.wrap_iter(0..passes) {
            let (one, other) = (pass(before)?, pass(after)?);
            first.push(one);
            second.push(other);
            ratios.push(one / other);
        }
        let (texts, tokens) = batch.shape();
        let (before, after, speedup) = (median(first)?, median(second)?, median(ratios)?);
        times.push(Time { texts, tokens, before, after, speedup });
    }
    bar.finish_and_clear();
    Ok(times)
}

fn median(mut numbers: Vec<f64>) -> Result<f64> {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().context("no numbers to take the median of")
}
