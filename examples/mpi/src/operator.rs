//! `F S Fᵀ + λ F Fᵀ` over samples that lie on all ranks, as an operator for the library's solver.

use core::cell::Cell;
use std::hash::{DefaultHasher, Hasher};
use std::time::Instant;

use dalr::solver::PsdOperator;
use dalr::{Cause, Error};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};

use crate::error::{Failure, Result};
use crate::ranks::Ranks;

/// Columns of the matrix that are formed and summed up at a time.
const COLUMNS: usize = 256;

/// What one rank keeps of its samples: the outputs `Z_r = F X_r` of a factor `F`, dimension × samples, in segments.
///
/// `F S Fᵀ = (1/p) Σ_r Z_r Z_rᵀ`, so a block `V` is multiplied as `Z_r (Z_rᵀ V)` where the samples are, and the ranks' results, dimension × block, are
/// summed up. That is all that the network sees: no more than inputs × block, since the dimension is the smaller of inputs and outputs, however many samples there are. All
/// of the work is shared, where multiplying by `F` in every step would be done by each rank again.
pub struct ShardOperator<'a> {
    ranks: &'a Ranks,
    segments: &'a [Mat<f64>],
    factor: MatRef<'a, f64>,
    /// `1/p` for `p` samples on all ranks.
    share: f64,
    /// `λ`.
    ridge: f64,
    data_trace: f64,
    trace: f64,
    noise: f64,
    /// The same on all ranks, as all are to choose the same solver: that of the rank with the most samples.
    work: f64,
    par: Par,
    seconds: Cell<Seconds>,
}

/// Where the time of a solve went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seconds {
    /// Reading samples and making outputs of them.
    pub outputs: f64,
    /// Multiplying by this rank's samples.
    pub own: f64,
    /// Summing up over all ranks, and waiting for them.
    pub sums: f64,
}

/// The numbers that an operator states of itself, the same on all ranks.
pub struct Facts {
    /// Samples on all ranks.
    pub samples: u64,
    /// Samples on the rank that has the most.
    pub most: u64,
    /// `λ`.
    pub ridge: f64,
    /// How large rounding may be in an eigenvalue.
    pub noise: f64,
}

impl<'a> ShardOperator<'a> {
    /// Every rank makes its part at the same time.
    pub fn new(
        ranks: &'a Ranks,
        segments: &'a [Mat<f64>],
        factor: MatRef<'a, f64>,
        facts: &Facts,
        threads: usize,
    ) -> Self {
        let mut sums = [segments.iter().map(|segment| segment.squared_norm_l2()).sum::<f64>()];
        ranks.sum(&mut sums);
        let share = 1.0 / facts.samples as f64;
        let data_trace = sums[0] * share;
        let trace = data_trace + facts.ridge * factor.squared_norm_l2();
        let anchor = if facts.ridge > 0.0 { factor.ncols().div_ceil(ranks.size()) } else { 0 };
        let work = 2.0 * factor.nrows() as f64 * (facts.most as f64 + anchor as f64);
        let par = if threads == 1 { Par::Seq } else { Par::rayon(threads) };
        let (ridge, noise, seconds) = (facts.ridge, facts.noise, Cell::default());
        Self { ranks, segments, factor, share, ridge, data_trace, trace, noise, work, par, seconds }
    }

    /// Where the time of the products so far went.
    pub fn seconds(&self) -> Seconds {
        self.seconds.get()
    }

    /// `tr F S Fᵀ`, the part of the trace that speaks of the data.
    pub fn data_trace(&self) -> f64 {
        self.data_trace
    }

    /// This rank's part of the factor's columns: the ridge's work is shared as well.
    fn anchor(&self) -> MatRef<'a, f64> {
        let (rank, size, columns) = (self.ranks.rank(), self.ranks.size(), self.factor.ncols());
        let (start, end) = (rank * columns / size, (rank + 1) * columns / size);
        self.factor.subcols(start, end - start)
    }

    /// This rank's share of the operator times a block, added to `result`.
    fn add_own(&self, mut result: MatMut<'_, f64>, block: MatRef<'_, f64>) {
        let parts = self.segments.iter().map(|segment| (segment.as_ref(), self.share));
        let anchor = (self.ridge > 0.0).then(|| (self.anchor(), self.ridge));
        for (part, factor) in parts.chain(anchor) {
            let mut inner = Mat::zeros(part.ncols(), block.ncols());
            matmul(inner.as_mut(), Accum::Replace, part.transpose(), block, 1.0, self.par);
            matmul(result.as_mut(), Accum::Add, part, inner.as_ref(), factor, self.par);
        }
    }

    /// This rank's share of some columns of the operator, added to `result`.
    fn add_own_columns(&self, mut result: MatMut<'_, f64>, start: usize) {
        let width = result.ncols();
        let parts = self.segments.iter().map(|segment| (segment.as_ref(), self.share));
        let anchor = (self.ridge > 0.0).then(|| (self.anchor(), self.ridge));
        for (part, factor) in parts.chain(anchor) {
            let across = part.subrows(start, width).transpose();
            matmul(result.as_mut(), Accum::Add, part, across, factor, self.par);
        }
    }

    /// What each unit vector captures of the data's energy: `vᵀ F S Fᵀ v` for every column.
    pub fn captured(&self, vectors: MatRef<'_, f64>) -> Vec<f64> {
        let mut captured = vec![0.0; vectors.ncols()];
        for segment in self.segments {
            let mut outputs = Mat::zeros(segment.ncols(), vectors.ncols());
            matmul(outputs.as_mut(), Accum::Replace, segment.transpose(), vectors, 1.0, self.par);
            for (sum, column) in captured.iter_mut().zip(outputs.col_iter()) {
                *sum += column.squared_norm_l2() * self.share;
            }
        }
        self.ranks.sum(&mut captured);
        captured
    }

    /// Sums up a matrix over the ranks.
    fn sum(&self, mut matrix: MatMut<'_, f64>) {
        let (rows, columns) = matrix.shape();
        let mut packed = Vec::with_capacity(rows * columns);
        matrix.as_ref().col_iter().for_each(|column| packed.extend(column.iter()));
        self.ranks.sum(&mut packed);
        for (column, sums) in matrix.as_mut().col_iter_mut().zip(packed.chunks(rows)) {
            column.iter_mut().zip(sums).for_each(|(to, from)| *to = *from);
        }
    }
}

/// A number that tells one block from another, bit for bit.
pub fn fingerprint(block: MatRef<'_, f64>) -> u64 {
    let mut hasher = DefaultHasher::new();
    block.col_iter().for_each(|column| column.iter().for_each(|x| hasher.write_u64(x.to_bits())));
    hasher.finish()
}

/// An agreement as an error of the library, which hands it back at the end of the solve.
fn as_operator_error(failure: Failure) -> Error {
    let subject = "the samples on all ranks".into();
    Error::Callback { operation: "ShardOperator::apply", subject, source: Cause::new(failure) }
}

impl PsdOperator<f64> for ShardOperator<'_> {
    fn dimension(&self) -> usize {
        self.factor.nrows()
    }

    /// All ranks come here together, with the same block to the bit, or stop together. They do come together: each runs the same iteration on the same
    /// sums, and one that leaves it by an error meets the others at this agreement.
    fn apply(&self, block: MatRef<'_, f64>, mut result: MatMut<'_, f64>) -> dalr::Result<()> {
        let start = Instant::now();
        result.fill(0.0);
        self.add_own(result.as_mut(), block);
        let multiplied = Instant::now();
        let step: Result<()> = self.ranks.agree_on("a product", fingerprint(block), Ok(()));
        step.map_err(as_operator_error)?;
        self.sum(result);
        let mut seconds = self.seconds.get();
        seconds.own += (multiplied - start).as_secs_f64();
        seconds.sums += multiplied.elapsed().as_secs_f64();
        self.seconds.set(seconds);
        Ok(())
    }

    fn trace(&self) -> dalr::Result<f64> {
        Ok(self.trace)
    }

    fn noise(&self) -> f64 {
        self.noise
    }

    fn work(&self) -> f64 {
        self.work
    }

    fn assembly_work(&self) -> f64 {
        self.work * self.dimension() as f64 / 2.0
    }

    fn assemble(&self) -> dalr::Result<Mat<f64>> {
        let dimension = self.dimension();
        let mut matrix = Mat::zeros(dimension, dimension);
        for start in (0..dimension).step_by(COLUMNS) {
            let width = COLUMNS.min(dimension - start);
            self.ranks.agree("a part of the matrix", Ok(())).map_err(as_operator_error)?;
            let mut columns = matrix.as_mut().subcols_mut(start, width);
            self.add_own_columns(columns.as_mut(), start);
            self.sum(columns);
        }
        // Both triangles were computed, in another order of sums.
        for column in 0..dimension {
            for row in column + 1..dimension {
                matrix[(column, row)] = matrix[(row, column)];
            }
        }
        Ok(matrix)
    }
}
