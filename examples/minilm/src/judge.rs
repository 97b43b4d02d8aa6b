//! What a compressed network is worth, and what it saves.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;

use crate::bert::Bert;
use crate::encoder::Batch;
use crate::progress;

/// Embeddings of unit length of all batches, texts × width.
pub fn embeddings(model: &Bert, batches: &[Batch]) -> Result<Tensor> {
    let all: Vec<Tensor> = batches.iter().map(|batch| batch.embed(model)).collect::<candle_core::Result<_>>()?;
    Ok(Tensor::cat(&all, 0)?)
}

/// Mean cosine between the rows of two tables of unit rows.
pub fn cosine(one: &Tensor, other: &Tensor) -> Result<f64> {
    ensure!(one.dims() == other.dims(), "{:?} embeddings cannot be compared with {:?}", one.dims(), other.dims());
    Ok(f64::from((one * other)?.sum(1)?.mean_all()?.to_scalar::<f32>()?))
}

/// Seconds of a forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    /// Texts in the batch.
    pub texts: usize,
    /// Tokens in the longest of them.
    pub tokens: usize,
    /// Median for the first network.
    pub before: f64,
    /// Median for the second.
    pub after: f64,
    /// Median of the ratios of passes that followed each other: a machine that slows down slows both.
    pub speedup: f64,
}

/// Times a forward pass of two networks in turn on each of the batches.
pub fn time(before: &Bert, after: &Bert, batches: &[Batch], passes: usize) -> Result<Vec<Time>> {
    ensure!(passes > 0, "at least one pass has to be timed");
    let bar = progress::bar("timing", batches.len() * passes);
    let mut times = Vec::new();
    for batch in batches {
        let pass = |model: &Bert| -> Result<f64> {
            let started = Instant::now();
            batch.embed(model)?;
            Ok(started.elapsed().as_secs_f64())
        };
        let _ = (pass(before)?, pass(after)?); // to have everything in place
        let (mut first, mut second, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in bar.wrap_iter(0..passes) {
            let (slow, fast) = (pass(before)?, pass(after)?);
            first.push(slow);
            second.push(fast);
            ratios.push(slow / fast);
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
    numbers.get(numbers.len() / 2).copied().context("a median of nothing")
}
