//! `F (S + λI) Fᵀ` over samples that lie on all ranks, as an operator for the library's solver.

use core::cell::Cell;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use std::time::Instant;

use dalr::Error;
use dalr::solver::PsdOperator;
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};

use crate::error::Failure;
use crate::ranks::Ranks;

/// Columns of the matrix that are formed and summed at a time.
const COLUMNS: usize = 256;

/// One rank's part of the operator: the outputs `Z_r = F X_r` of its samples, dimension × samples,
/// in segments.
///
/// `F S Fᵀ = (1/p) Σ_r Z_r Z_rᵀ`. Each rank computes `Z_r (Z_rᵀ V)` for a block `V`, and a sum over
/// the ranks adds these dimension × block matrices. The size of the messages does not depend on the
/// number of samples. All of the multiplication is shared; if each rank multiplied by `F` in every
/// step, that part would not become faster with more ranks.
pub struct ShardOperator<'a> {
    ranks: &'a Ranks,
    segments: &'a [Mat<f64>],
    factor: MatRef<'a, f64>,
    facts: Facts,
    trace: f64,
    par: Par,
    steps: Cell<usize>,
    seconds: Cell<Seconds>,
}

/// The time of a solve by its parts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seconds {
    /// Reading samples and computing their outputs.
    pub outputs: f64,
    /// Products with this rank's samples.
    pub own: f64,
    /// Sums over all ranks, with the time spent waiting for them.
    pub sums: f64,
}

/// Numbers about the operator, the same on all ranks.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Samples on all ranks.
    pub samples: u64,
    /// Samples on the rank that has the most.
    pub most: u64,
    /// `λ`.
    pub ridge: f64,
    /// Size of the rounding in an eigenvalue.
    pub noise: f64,
}

impl<'a> ShardOperator<'a> {
    /// Creates the operator. All ranks must call this at the same time.
    pub fn new(
        ranks: &'a Ranks,
        segments: &'a [Mat<f64>],
        factor: MatRef<'a, f64>,
        facts: Facts,
        threads: usize,
    ) -> Self {
        let mut energy = [segments.iter().map(|segment| segment.squared_norm_l2()).sum::<f64>()];
        ranks.sum(&mut energy);
        let trace = energy[0] / facts.samples as f64 + facts.ridge * factor.squared_norm_l2();
        let (steps, seconds) = (Cell::default(), Cell::default());
        Self { ranks, segments, factor, facts, trace, par: parallelism(threads), steps, seconds }
    }

    /// Returns the number of products with a block so far.
    pub fn steps(&self) -> usize {
        self.steps.get()
    }

    /// Returns the time of the products so far.
    pub fn seconds(&self) -> Seconds {
        self.seconds.get()
    }

    /// Pairs of a matrix `P` and a weight `w`: the sum of `w P Pᵀ` is this rank's part of the
    /// operator. The columns of the ridge's part `λ F Fᵀ` are divided among the ranks.
    fn parts(&self) -> impl Iterator<Item = (MatRef<'_, f64>, f64)> {
        let (rank, size, columns) = (self.ranks.rank(), self.ranks.size(), self.factor.ncols());
        let (start, end) = (rank * columns / size, (rank + 1) * columns / size);
        let ridge = (self.facts.ridge > 0.0).then(|| (self.factor.subcols(start, end - start), self.facts.ridge));
        let weight = 1.0 / self.facts.samples as f64;
        self.segments.iter().map(move |segment| (segment.as_ref(), weight)).chain(ridge)
    }

    /// Sums a matrix over the ranks.
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

/// Returns the parallelism of this program's own products.
pub fn parallelism(threads: usize) -> Par {
    if threads == 1 { Par::Seq } else { Par::rayon(threads) }
}

/// Returns a hash of a block's bits.
pub fn fingerprint(block: MatRef<'_, f64>) -> u64 {
    let mut hasher = DefaultHasher::new();
    block.col_iter().for_each(|column| column.iter().for_each(|x| hasher.write_u64(x.to_bits())));
    hasher.finish()
}

/// An agreement as an error of the library, which returns it from the solve.
fn as_operator_error(failure: Failure) -> Error {
    let subject = "the samples on all ranks".into();
    Error::Callback { operation: "ShardOperator::apply", subject, source: Arc::new(Box::new(failure)) }
}

impl PsdOperator<f64> for ShardOperator<'_> {
    fn dimension(&self) -> usize {
        self.factor.nrows()
    }

    /// All ranks arrive here together with the same block, bit for bit, or stop together: each runs
    /// the same iteration on the same sums, and a rank that leaves it by an error joins this
    /// agreement.
    fn apply(&self, block: MatRef<'_, f64>, mut result: MatMut<'_, f64>) -> dalr::Result<()> {
        let start = Instant::now();
        result.fill(0.0);
        for (part, weight) in self.parts() {
            let mut inner = Mat::zeros(part.ncols(), block.ncols());
            matmul(inner.as_mut(), Accum::Replace, part.transpose(), block, 1.0, self.par);
            matmul(result.as_mut(), Accum::Add, part, inner.as_ref(), weight, self.par);
        }
        let multiplied = Instant::now();
        self.ranks.agree_on("a product", fingerprint(block), Ok(())).map_err(as_operator_error)?;
        self.sum(result);
        let mut seconds = self.seconds.get();
        seconds.own += (multiplied - start).as_secs_f64();
        seconds.sums += multiplied.elapsed().as_secs_f64();
        self.seconds.set(seconds);
        self.steps.set(self.steps.get() + 1);
        Ok(())
    }

    fn trace(&self) -> dalr::Result<f64> {
        Ok(self.trace)
    }

    fn noise(&self) -> f64 {
        self.facts.noise
    }

    /// Returns the cost on the rank with the most samples: all ranks must choose the same
    /// algorithm.
    fn macs(&self) -> f64 {
        let columns = if self.facts.ridge > 0.0 { self.factor.ncols().div_ceil(self.ranks.size()) } else { 0 };
        2.0 * self.dimension() as f64 * (self.facts.most as f64 + columns as f64)
    }

    fn assembly_macs(&self) -> f64 {
        self.macs() * self.dimension() as f64 / 2.0
    }

    fn assemble(&self) -> dalr::Result<Mat<f64>> {
        let dimension = self.dimension();
        let mut matrix = Mat::zeros(dimension, dimension);
        for start in (0..dimension).step_by(COLUMNS) {
            let width = COLUMNS.min(dimension - start);
            self.ranks.agree("a part of the matrix", Ok(())).map_err(as_operator_error)?;
            let mut columns = matrix.as_mut().subcols_mut(start, width);
            for (part, weight) in self.parts() {
                let across = part.subrows(start, width).transpose();
                matmul(columns.as_mut(), Accum::Add, part, across, weight, self.par);
            }
            self.sum(columns);
        }
        // The triangles were summed in different orders.
        for column in 0..dimension {
            for row in column + 1..dimension {
                matrix[(column, row)] = matrix[(row, column)];
            }
        }
        Ok(matrix)
    }
}
