//! Compresses one layer from samples that stay on their MPI ranks.

use std::iter::Peekable;
use std::time::Instant;

use dalr::compress::OperatorProblem;
use dalr::solver::Solver;
use dalr::{Decomposition, Error, Linear, Scalar};
use faer::linalg::matmul::matmul;
use faer::{Accum, Col, Mat, MatRef};

use crate::error::Result;
use crate::operator::{Facts, Seconds, ShardOperator, fingerprint, parallelism};
use crate::ranks::Ranks;

/// Number of samples that are converted to `f64` and multiplied at a time.
const PIECE: usize = 512;

/// A variance below this fraction of the squared mean is the rounding of a constant input, as in
/// the library: `(2⁻⁴⁴)²`.
const NEGLIGIBLE: f64 = 1.0 / (1_u128 << 88) as f64;

/// The operation in errors.
const OPERATION: &str = "solve";

/// The options of a solve.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The largest rank to solve for.
    pub rank: usize,
    /// `r` in `λ = r · tr S / n`. 0 is the library's `Ridge::None`, more is `Ridge::Relative(r)`.
    pub ridge: f64,
    /// Whether the bias is corrected. If so, the inputs are centred.
    pub correct_bias: bool,
    /// The algorithm.
    pub solver: Solver,
    /// Threads of this rank.
    pub threads: usize,
}

/// The result of a solve.
#[derive(Debug)]
pub struct Solved<T> {
    /// The decomposition, the same on every rank, bit for bit.
    pub decomposition: Decomposition<T>,
    /// Products with a block of vectors.
    pub steps: usize,
    /// Time of this rank's parts.
    pub seconds: Seconds,
}

/// Sums over samples.
struct Sums {
    samples: u64,
    /// `Σ (x − origin)`, by input.
    offsets: Vec<f64>,
    /// `Σ (x − origin)²`, by input.
    squares: Vec<f64>,
}

/// Solves as `Dalr` does on one machine with all samples, in `f64` and up to rounding.
///
/// `batches` are this rank's, samples × inputs. Each is read once. This rank keeps the outputs of
/// its samples on the smaller side of the weight, `8 min(m, n)` bytes for a sample. Sums are taken
/// about the first sample of all, so that a large mean costs no accuracy.
pub fn solve<T: Scalar>(
    ranks: &Ranks,
    layer: &Linear<T>,
    batches: impl Iterator<Item = Result<Mat<T>>>,
    options: &Options,
) -> Result<Solved<T>> {
    let n = layer.in_features();
    let &Options { rank, ridge, correct_bias, solver, threads } = options;
    // Reading the samples takes long, so errors in the options must come before it.
    let prepared = validate(layer, options).and_then(|()| Ok(OperatorProblem::new(layer, threads)?));
    let problem = ranks.agree("the problem", prepared)?;
    let factor = problem.factor();

    let mut batches = batches.peekable();
    let origin = origin(ranks, &mut batches, correct_bias, n)?;
    let start = Instant::now();
    let gathered = gather(factor, &origin, batches, threads);
    let outputs = start.elapsed().as_secs_f64();
    let (mut sums, mut segments) = ranks.agree("reading the samples", gathered)?;
    let most = ranks.max(sums.samples);
    sums.add_up(ranks);
    if sums.samples == 0 {
        return ranks.agree("counting the samples", Err(Error::NoSamples { operation: OPERATION }.into()));
    }
    let count = sums.samples as f64;
    let offset: Col<f64> = sums.offsets.iter().map(|sum| sum / count).collect();
    let mean: Vec<f64> = origin.iter().zip(offset.iter()).map(|(origin, offset)| origin + offset).collect();
    let mut variances: Vec<f64> = sums.squares.iter().map(|sum| sum / count).collect();
    if correct_bias {
        let about_mean = |(square, offset): (&mut f64, &f64)| *square = (*square - offset * offset).max(0.0);
        variances.iter_mut().zip(offset.iter()).for_each(about_mean);
        let shift = factor * &offset;
        for column in segments.iter_mut().flat_map(|segment| segment.col_iter_mut()) {
            column.iter_mut().zip(shift.iter()).for_each(|(output, shift)| *output -= shift);
        }
    }
    let varying = variances.iter().zip(&mean).filter(|&(variance, mean)| *variance > NEGLIGIBLE * mean * mean);
    let lambda = ridge * varying.map(|(variance, _)| variance).sum::<f64>() / n as f64;

    // Rounding in `F S Fᵀ` is relative to its terms, even if they cancel in the sum.
    let terms = factor.col_iter().zip(&variances).map(|(column, s)| column.squared_norm_l2() * (s + lambda));
    let noise = 4.0 * n as f64 * f64::EPSILON * terms.sum::<f64>();
    let facts = Facts { samples: sums.samples, most, ridge: lambda, noise };
    let problem = problem.with_samples(sums.samples).with_ridge(lambda);
    let problem = problem.with_bias_correction(correct_bias).with_solver(solver);
    let operator = ShardOperator::new(ranks, &segments, problem.factor(), facts, threads);

    ranks.agree("solving", Ok(()))?;
    let solved = problem.solve(&operator, &mean, rank).map_err(Into::into);
    // If a rank stops the iteration by its own error, it joins the others here. They are in
    // `ShardOperator::apply`, or have finished.
    let decomposition = ranks.agree("a product", solved)?;
    let state = decomposition.truncate(rank).map_err(Into::into).map(|compressed| {
        let up = compressed.layer().up();
        fingerprint(Mat::from_fn(up.nrows(), rank, |i, j| up[(i, j)].to_f64()).as_ref())
    });
    let state = ranks.agree("the factors", state)?;
    ranks.agree_on("the compressed layer", state, Ok(()))?;
    let (steps, seconds) = (operator.steps(), Seconds { outputs, ..operator.seconds() });
    Ok(Solved { decomposition, steps, seconds })
}

fn validate<T: Scalar>(layer: &Linear<T>, options: &Options) -> Result<()> {
    let full = layer.out_features().min(layer.in_features());
    if !(1..=full).contains(&options.rank) {
        let (expected, found) = (format!("a rank from 1 to {full}"), options.rank.to_string());
        return Err(Error::Rank { operation: OPERATION, expected, found }.into());
    }
    if !(options.ridge >= 0.0 && options.ridge.is_finite()) {
        let (parameter, expected) = ("the ridge", "to be finite and not negative".into());
        return Err(Error::OutOfRange { operation: OPERATION, parameter, expected, found: options.ridge }.into());
    }
    Ok(())
}

/// Returns the first sample of the first rank that has one if the inputs are centred; zero
/// otherwise.
fn origin<T: Scalar>(
    ranks: &Ranks,
    batches: &mut Peekable<impl Iterator<Item = Result<Mat<T>>>>,
    centred: bool,
    features: usize,
) -> Result<Vec<f64>> {
    let first = match batches.peek() {
        Some(Err(failure)) => Err(failure.clone()),
        Some(Ok(batch)) => require_features(batch, features)
            .map(|()| (batch.nrows() > 0).then(|| batch.row(0).iter().map(|x| x.to_f64()).collect::<Vec<_>>())),
        None => Ok(None),
    };
    let first = ranks.agree("reading the first samples", first)?;
    let having = ranks.gather(u64::from(first.is_some())).iter().position(|&has| has == 1);
    let (Some(having), true) = (having, centred) else { return Ok(vec![0.0; features]) };
    let mut bytes: Vec<u8> = first.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
    ranks.broadcast(&mut bytes, having);
    Ok(bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect())
}

fn require_features<T>(batch: &Mat<T>, expected: usize) -> Result<()> {
    let (what, found) = ("columns in the batch (one per input)", batch.ncols());
    if found == expected { Ok(()) } else { Err(Error::Shape { operation: OPERATION, what, expected, found }.into()) }
}

/// Computes sums over this rank's samples minus `origin`, and the products of these differences
/// with `factor`.
fn gather<T: Scalar>(
    factor: MatRef<'_, f64>,
    origin: &[f64],
    batches: impl Iterator<Item = Result<Mat<T>>>,
    threads: usize,
) -> Result<(Sums, Vec<Mat<f64>>)> {
    let features = origin.len();
    let mut sums = Sums { samples: 0, offsets: vec![0.0; features], squares: vec![0.0; features] };
    let mut segments = Vec::new();
    for batch in batches {
        let batch = batch?;
        require_features(&batch, features)?;
        for start in (0..batch.nrows()).step_by(PIECE) {
            let rows = batch.as_ref().subrows(start, PIECE.min(batch.nrows() - start));
            let columns = Mat::from_fn(features, rows.nrows(), |i, j| rows[(j, i)].to_f64() - origin[i]);
            if let Some((column, row)) = first_non_finite(columns.as_ref()) {
                let (what, value) = ("the batch", rows[(row, column)].to_f64());
                return Err(Error::NonFinite { operation: OPERATION, what, row: start + row, column, value }.into());
            }
            for column in columns.col_iter() {
                let places = sums.offsets.iter_mut().zip(&mut sums.squares);
                for ((sum, square), x) in places.zip(column.iter()) {
                    *sum += x;
                    *square += x * x;
                }
            }
            let mut outputs = Mat::zeros(factor.nrows(), columns.ncols());
            matmul(outputs.as_mut(), Accum::Replace, factor, columns.as_ref(), 1.0, parallelism(threads));
            segments.push(outputs);
            sums.samples += rows.nrows() as u64;
        }
    }
    Ok((sums, segments))
}

/// Returns the row and column of the first NaN or infinity.
fn first_non_finite(matrix: MatRef<'_, f64>) -> Option<(usize, usize)> {
    matrix.col_iter().enumerate().find_map(|(column, entries)| {
        let row = entries.iter().position(|x| !x.is_finite())?;
        Some((row, column))
    })
}

impl Sums {
    /// Adds the sums of all ranks. A count below 2⁵³ is exact in `f64`.
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
