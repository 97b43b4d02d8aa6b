//! Largest eigenvalues and eigenvectors of symmetric positive semidefinite operators.
//!
//! Every compressor of this crate solves its problem here. To use an operator of your own
//! (statistics in a file, or on other machines), implement [`PsdOperator`] and pass it to
//! [`top_eigenpairs`].
//!
//! In the source, start with `operator` (the trait) and `cost` (the choice of an algorithm).
//! `dense` and `lanczos` contain one algorithm each.

mod basis_completion;
mod checked_operator;
pub(crate) mod cost;
mod dense;
mod eigenpairs;
mod lanczos;
mod operator;

pub(crate) use self::basis_completion::complete_basis;
pub(crate) use self::dense::native_precision as dense_native;
pub use self::eigenpairs::Eigenpairs;
pub(crate) use self::eigenpairs::{fix_signs, noise_level};
pub(crate) use self::lanczos::LEAST_BASIS;
pub use self::operator::PsdOperator;

use core::fmt;
use core::str::FromStr;

use self::checked_operator::Checked;
use crate::error::during;
use crate::linalg::{self, Par};
use crate::{Error, Result, Scalar};

/// The algorithm that computes the eigenpairs.
///
/// ```
/// use dalr::{Dalr, Solver};
/// let compressor = Dalr::new().with_solver(Solver::DenseEigen);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Solver {
    /// The algorithm with the lowest estimated cost.
    #[default]
    Auto,
    /// Forms the matrix and diagonalises it, `O(d³)` for dimension `d`. The algorithm is divide and
    /// conquer. If it fails, the solver falls back to a singular value decomposition.
    DenseEigen,
    /// Multiplies the operator by about `3k` vectors for `k` eigenpairs, and never forms the
    /// matrix. The algorithm is block Lanczos with full reorthogonalisation, and random vectors
    /// verify its convergence. If it does not converge, the solver falls back to
    /// [`DenseEigen`](Self::DenseEigen).
    BlockLanczos,
}

/// Returns the `count` largest eigenvalues of an operator and orthonormal eigenvectors, with signs
/// fixed.
///
/// The result is the same, bit for bit, for the same operator and number of threads. `threads = 0`
/// means one thread inside a rayon worker, and all of rayon's pool elsewhere.
///
/// # Errors
///
/// - [`Error::Rank`] unless `1 ≤ count ≤ dimension`, [`Error::Empty`] for dimension 0.
/// - [`Error::InvalidOperator`] if the operator is not finite, not symmetric, has a negative
///   eigenvalue (beyond rounding), or states an impossible trace or noise.
/// - [`Error::NoConvergence`] if every algorithm failed, and errors of the operator itself.
///
/// # Cost
///
/// Dense: `O(d³)` and `8 · 4d²` bytes for dimension `d`, and [`PsdOperator::assemble`]. Block
/// Lanczos: about `3k` products for `k` eigenpairs, `O(d k² + k³)` other operations, and `O(d k)`
/// memory.
pub fn top_eigenpairs<T: Scalar>(
    operator: &dyn PsdOperator<T>,
    count: usize,
    solver: Solver,
    threads: usize,
) -> Result<Eigenpairs> {
    during("top_eigenpairs", || solve(operator, count, solver, linalg::threads(threads)))
}

/// As [`top_eigenpairs`], for callers inside the crate. Errors get the name of their public
/// function.
pub(crate) fn solve<T: Scalar>(
    operator: &dyn PsdOperator<T>,
    count: usize,
    solver: Solver,
    par: Par,
) -> Result<Eigenpairs> {
    let operator = &Checked::new(operator)?;
    let dimension = operator.dimension();
    if !(1..=dimension).contains(&count) {
        let expected = format!("a number of eigenpairs from 1 to {dimension}");
        return Err(Error::rank(expected, count.to_string()));
    }
    let iterating = cost::prefers_lanczos(operator, count, solver);
    if iterating && let Some(pairs) = block_lanczos(operator, count, par)? {
        return Ok(pairs);
    }
    let mut pairs = dense::double_precision(operator, count, &dense::ALGORITHMS, par)?;
    pairs.fallback |= iterating;
    Ok(pairs)
}

/// Runs block Lanczos without a fallback; returns `None` if it does not converge.
pub(crate) fn block_lanczos<T: Scalar>(
    operator: &dyn PsdOperator<T>,
    count: usize,
    par: Par,
) -> Result<Option<Eigenpairs>> {
    lanczos::top_eigenpairs(operator, count, lanczos::Widths::new(operator.dimension(), count), par)
}

/// `auto`, `dense-eigen` or `block-lanczos`, which [`FromStr`] reads.
impl fmt::Display for Solver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::DenseEigen => "dense-eigen",
            Self::BlockLanczos => "block-lanczos",
        })
    }
}

/// Reads `auto`, `dense-eigen` and `block-lanczos`.
///
/// ```
/// use dalr::Solver;
/// assert_eq!("block-lanczos".parse(), Ok(Solver::BlockLanczos));
/// ```
impl FromStr for Solver {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "dense-eigen" => Ok(Self::DenseEigen),
            "block-lanczos" => Ok(Self::BlockLanczos),
            _ => Err(Error::text("one of auto, dense-eigen, block-lanczos", text.into()).during("Solver::from_str")),
        }
    }
}

#[cfg(test)]
mod tests;
