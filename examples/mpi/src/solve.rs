//! One layer compressed from samples that lie on all ranks and stay there.

use std::time::Instant;

use dalr::solver::{Solver, top_eigenpairs};
use dalr::{Error, Linear, LowRankLinear, Scalar};
use faer::linalg::matmul::matmul;
use faer::{Accum, Col, Mat, MatRef, Par};

use crate::complement::complete;
use crate::error::Result;
use crate::operator::{Facts, Seconds, ShardOperator, fingerprint};
use crate::ranks::Ranks;

/// Samples that are widened and multiplied at a time.
const PIECE: usize = 512;

/// Variances this far below the squared mean of their input are rounding of a constant, as in the library: `(2⁻⁴⁴)²`.
const NEGLIGIBLE: f64 = 1.0 / (1_u128 << 88) as f64;

/// What to solve, and how.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Dimensions to keep.
    pub rank: usize,
    /// `r` in `S + r (tr S / n) I`: 0 is the library's `Ridge::None`, more is `Ridge::Anchored(r)`.
    pub ridge: f64,
    /// Whether inputs are centred and the bias makes up for what the weight loses on the mean.
    pub correct_bias: bool,
    /// The library's choice of an algorithm.
    pub solver: Solver,
    /// Threads of this rank.
    pub threads: usize,
}

/// The compressed layer, the same to the bit on every rank.
#[derive(Debug)]
pub struct Solved<T> {
    /// The two factors and the bias.
    pub layer: LowRankLinear<T>,
    /// The leading eigenvalues of `W (S + λI) Wᵀ`.
    pub energies: Vec<f64>,
    /// The sum of all of them.
    pub total_energy: f64,
    /// The relative error on the samples at every rank from 1.
    pub relative_errors: Vec<f64>,
    /// Samples on all ranks.
    pub samples: u64,
    /// Products with a block of vectors.
    pub steps: usize,
    /// Which algorithm answered.
    pub solver: String,
    /// Where the time of the products went, on this rank.
    pub seconds: Seconds,
}

/// Sums over one rank's samples, and then over all.
struct Sums {
    samples: u64,
    /// `Σ (x − origin)`, by input.
    offsets: Vec<f64>,
    /// `Σ (x − origin)²`, by input.
    squares: Vec<f64>,
}

/// Solves as `Dalr` does on one machine with the same samples, in `f64` throughout, up to rounding.
///
/// `batches` are this rank's, samples × inputs; each is read once, and what is kept of it are its outputs on the smaller side of the weight: `8 min(m, n)` bytes
/// for a sample. Sums are taken about the first sample of all, so that a large mean costs no digits.
pub fn solve<T: Scalar>(
    ranks: &Ranks,
    layer: &Linear<T>,
    batches: impl Iterator<Item = Result<Mat<T>>>,
    options: &Options,
) -> Result<Solved<T>> {
    let (m, n) = (layer.out_features(), layer.in_features());
    let operation = "solve";
    let &Options { rank, ridge, correct_bias, threads, .. } = options;
    let legal = if !(1..=m.min(n)).contains(&rank) {
        let expected = format!("a rank from 1 to {}", m.min(n));
        Err(Error::Rank { operation, expected, found: rank.to_string() }.into())
    } else if !(ridge >= 0.0 && ridge.is_finite()) {
        let expected = "to be finite and not negative".into();
        Err(Error::OutOfRange { operation, parameter: "the ridge", expected, found: ridge }.into())
    } else {
        Ok(())
    };
    ranks.agree("the problem", legal)?;

    // A power of two brings the weight's entries near 1, so that squares stay in range.
    let largest =
        layer.weight().col_iter().flat_map(|column| column.iter()).fold(0.0, |a: f64, x| a.max(x.to_f64().abs()));
    let scale = if largest > 0.0 { 2_f64.powi((largest.log2().floor() as i32).clamp(-1000, 1000)) } else { 1.0 };
    let weight = Mat::from_fn(m, n, |i, j| layer.weight()[(i, j)].to_f64() / scale);
    // With `W = Q R`, the eigenvectors of `W S Wᵀ` are `Q` times those of `R S Rᵀ`: the smaller side decides what is kept and sent.
    let tall = (m > n).then(|| weight.qr());
    let basis = tall.as_ref().map(|qr| qr.compute_thin_Q());
    let factor = tall.as_ref().map_or(weight.as_ref(), |qr| qr.thin_R());

    let mut batches = batches.peekable();
    let origin = origin(ranks, &mut batches, correct_bias, n)?;
    let start = Instant::now();
    let gathered = gather(factor, &origin, batches, threads);
    let outputs = start.elapsed().as_secs_f64();
    let (mut sums, mut segments) = ranks.agree("reading the samples", gathered)?;
    let most = ranks.max(sums.samples);
    sums.add_up(ranks);
    if sums.samples == 0 {
        return ranks.agree("counting the samples", Err(Error::NoSamples { operation }.into()));
    }
    let count = sums.samples as f64;
    // Mean less origin; about zero nothing is taken off.
    let offset: Col<f64> = sums.offsets.iter().map(|sum| sum / count).collect();
    let mean: Vec<f64> = origin.iter().zip(offset.iter()).map(|(origin, offset)| origin + offset).collect();
    let variances: Vec<f64> = if correct_bias {
        sums.squares.iter().zip(offset.iter()).map(|(sum, offset)| (sum / count - offset * offset).max(0.0)).collect()
    } else {
        sums.squares.iter().map(|sum| sum / count).collect()
    };
    if correct_bias {
        let shift = factor * &offset;
        for segment in &mut segments {
            segment.col_iter_mut().for_each(|column| column.iter_mut().zip(shift.iter()).for_each(|(z, s)| *z -= s));
        }
    }
    let varying = variances.iter().zip(&mean).filter(|&(variance, mean)| *variance > NEGLIGIBLE * mean * mean);
    let lambda = ridge * varying.map(|(variance, _)| variance).sum::<f64>() / n as f64;

    // Rounding in `F S Fᵀ` is that of the terms that add up to it, however they cancel.
    let terms = factor.col_iter().zip(&variances).map(|(column, s)| column.squared_norm_l2() * (s + lambda));
    let noise = 4.0 * n.max(factor.nrows()) as f64 * f64::EPSILON * terms.sum::<f64>();
    let facts = Facts { samples: sums.samples, most, ridge: lambda, noise };
    let operator = ShardOperator::new(ranks, &segments, factor, &facts, threads);
    let total = operator.data_trace();
    let overflow = Error::Overflow { operation, what: "the energy of the outputs" };
    ranks.agree("the energy", if total.is_finite() { Ok(()) } else { Err(overflow.into()) })?;

    let pairs =
        ranks.agree("solving", Ok(())).and_then(|()| Ok(top_eigenpairs(&operator, rank, options.solver, threads)?));
    // Here meets the others whoever left the iteration by an error of its own; see `ShardOperator::apply`.
    let pairs = ranks.agree("a product", pairs)?;
    let determined = pairs.numerical_rank().min(rank);
    let vectors = if determined < rank {
        complete(pairs.vectors().subcols(0, determined), factor, rank, threads)
    } else {
        Ok(pairs.vectors().to_owned())
    };
    let vectors = ranks.agree("completing the basis", vectors)?;
    let errors = relative_errors(&operator.captured(vectors.as_ref()), total);
    let mut up = match &basis {
        Some(basis) => basis * &vectors,
        None => vectors,
    };
    fix_signs(&mut up);
    let down = up.transpose() * &weight;

    let up = Mat::from_fn(m, rank, |i, j| T::from_f64(up[(i, j)]));
    let down = Mat::from_fn(rank, n, |i, j| T::from_f64(down[(i, j)] * scale));
    let bias = match correct_bias {
        true => Some(corrected_bias(layer, up.as_ref(), down.as_ref(), &mean)),
        false => layer.bias().map(|bias| bias.to_owned()),
    };
    let state = fingerprint(Mat::from_fn(m, rank, |i, j| up[(i, j)].to_f64()).as_ref());
    let low = LowRankLinear::new(down, up, bias).map_err(Into::into);
    let energy = scale * scale;
    Ok(Solved {
        layer: ranks.agree_on("the compressed layer", state, low)?,
        energies: pairs.values().iter().map(|value| value * energy).collect(),
        total_energy: (total + lambda * factor.squared_norm_l2()) * energy,
        relative_errors: errors,
        samples: sums.samples,
        steps: pairs.steps(),
        solver: pairs.to_string(),
        seconds: Seconds { outputs, ..operator.seconds() },
    })
}

/// The first sample of the first rank that has one, where inputs are centred; else zero.
fn origin<T: Scalar>(
    ranks: &Ranks,
    batches: &mut core::iter::Peekable<impl Iterator<Item = Result<Mat<T>>>>,
    centred: bool,
    features: usize,
) -> Result<Vec<f64>> {
    let first = match batches.peek() {
        Some(Err(failure)) => Err(failure.clone()),
        Some(Ok(batch)) if batch.ncols() != features => {
            let what = "columns in the batch (one per input)";
            Err(Error::Shape { operation: "solve", what, expected: features, found: batch.ncols() }.into())
        }
        Some(Ok(batch)) if batch.nrows() > 0 => Ok(Some(batch.row(0).iter().map(|x| x.to_f64()).collect::<Vec<_>>())),
        _ => Ok(None),
    };
    let first = ranks.agree("reading the first samples", first)?;
    let having = ranks.gather(u64::from(first.is_some())).iter().position(|&has| has == 1);
    let (Some(having), true) = (having, centred) else { return Ok(vec![0.0; features]) };
    let mut bytes: Vec<u8> = first.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
    ranks.broadcast(&mut bytes, having);
    Ok(bytes.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap_or_default())).collect())
}

/// Sums over this rank's samples, and their outputs by `factor`, from `origin`.
fn gather<T: Scalar>(
    factor: MatRef<'_, f64>,
    origin: &[f64],
    batches: impl Iterator<Item = Result<Mat<T>>>,
    threads: usize,
) -> Result<(Sums, Vec<Mat<f64>>)> {
    let features = origin.len();
    let mut sums = Sums { samples: 0, offsets: vec![0.0; features], squares: vec![0.0; features] };
    let mut segments = Vec::new();
    let par = if threads == 1 { Par::Seq } else { Par::rayon(threads) };
    for batch in batches {
        let batch = batch?;
        if batch.ncols() != features {
            let what = "columns in the batch (one per input)";
            return Err(Error::Shape { operation: "solve", what, expected: features, found: batch.ncols() }.into());
        }
        for start in (0..batch.nrows()).step_by(PIECE) {
            let rows = batch.as_ref().subrows(start, PIECE.min(batch.nrows() - start));
            let columns = Mat::from_fn(features, rows.nrows(), |i, j| rows[(j, i)].to_f64() - origin[i]);
            if let Some((column, row)) = first_non_finite(columns.as_ref()) {
                let value = rows[(row, column)].to_f64();
                let what = "the batch";
                return Err(Error::NonFinite { operation: "solve", what, row: start + row, column, value }.into());
            }
            for column in columns.col_iter() {
                let places = sums.offsets.iter_mut().zip(&mut sums.squares);
                for ((sum, square), x) in places.zip(column.iter()) {
                    *sum += x;
                    *square += x * x;
                }
            }
            let mut outputs = Mat::zeros(factor.nrows(), columns.ncols());
            matmul(outputs.as_mut(), Accum::Replace, factor, columns.as_ref(), 1.0, par);
            segments.push(outputs);
            sums.samples += rows.nrows() as u64;
        }
    }
    Ok((sums, segments))
}

/// Row and column of the first number that is none.
fn first_non_finite(matrix: MatRef<'_, f64>) -> Option<(usize, usize)> {
    (0..matrix.ncols()).find_map(|column| {
        let row = matrix.col(column).iter().position(|x| !x.is_finite())?;
        Some((row, column))
    })
}

impl Sums {
    /// Those of all ranks; a count below 2⁵³ is exact.
    fn add_up(&mut self, ranks: &Ranks) {
        let features = self.offsets.len();
        let mut all = vec![self.samples as f64];
        all.extend(&self.offsets);
        all.extend(&self.squares);
        ranks.sum(&mut all);
        self.samples = all[0] as u64;
        self.offsets.copy_from_slice(&all[1..=features]);
        self.squares.copy_from_slice(&all[1 + features..]);
    }
}

/// `√(1 − Σ_{i≤k} capturedᵢ / total)` for every `k` from 1; zero where there is nothing to lose.
fn relative_errors(captured: &[f64], total: f64) -> Vec<f64> {
    let mut rest = total;
    let error = |captured: &f64| {
        rest -= captured;
        if total > 0.0 { (rest / total).max(0.0).sqrt() } else { 0.0 }
    };
    captured.iter().map(error).collect()
}

/// The largest entry of every column positive, as the library has it.
fn fix_signs(vectors: &mut Mat<f64>) {
    for column in vectors.as_mut().col_iter_mut() {
        let largest =
            column.as_ref().iter().fold(0.0_f64, |largest, &x| if x.abs() > largest.abs() { x } else { largest });
        if largest < 0.0 {
            column.iter_mut().for_each(|x| *x = -*x);
        }
    }
}

/// `b + (W − up · down) μ` for the factors as they are stored: their rounding is corrected for as well.
fn corrected_bias<T: Scalar>(layer: &Linear<T>, up: MatRef<'_, T>, down: MatRef<'_, T>, mean: &[f64]) -> Col<T> {
    let times = |matrix: MatRef<'_, T>, vector: &[f64]| {
        let mut product = vec![0.0; matrix.nrows()];
        for (column, x) in matrix.col_iter().zip(vector) {
            product.iter_mut().zip(column.iter()).for_each(|(sum, entry)| *sum += entry.to_f64() * x);
        }
        product
    };
    let dense = times(layer.weight(), mean);
    let low = times(up, &times(down, mean));
    let bias = |row: usize| layer.bias().map_or(0.0, |bias| bias[row].to_f64());
    Col::from_fn(up.nrows(), |row| T::from_f64(bias(row) + dense[row] - low[row]))
}
