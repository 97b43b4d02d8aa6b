//! Top eigenpairs of symmetric positive semidefinite operators: the one kernel behind every method.
//!
//! Implement [`PsdOperator`] for an operator of your own (statistics in a file, on other machines) and hand it to
//! [`top_eigenpairs`]. The compressors of this crate go the same way.

mod checked;
mod complement;
pub(crate) mod cost;
pub(crate) use self::cost as auto;
mod dense;
mod lanczos;

use core::fmt;
use core::str::FromStr;
use faer::{Mat, MatMut, MatRef};

pub(crate) use self::complement::complete_basis;

use self::checked::Checked;
use crate::error::during;
use crate::linalg::{self, Par};
use crate::{Error, Result, Scalar};

/// A symmetric positive semidefinite operator, known by what it does to a block of vectors.
///
/// ```
/// use dalr::solver::{PsdOperator, Solver, top_eigenpairs};
/// use faer::{MatMut, MatRef, mat};
///
/// /// diag(1, 2, 3)
/// struct Diagonal;
///
/// impl PsdOperator<f64> for Diagonal {
///     fn dimension(&self) -> usize {
///         3
///     }
///     fn apply(&self, block: MatRef<'_, f64>, mut result: MatMut<'_, f64>) -> dalr::Result<()> {
///         for row in 0..3 {
///             for column in 0..block.ncols() {
///                 result[(row, column)] = (row + 1) as f64 * block[(row, column)];
///             }
///         }
///         Ok(())
///     }
///     fn trace(&self) -> dalr::Result<f64> {
///         Ok(6.0)
///     }
/// }
///
/// # fn main() -> dalr::Result<()> {
/// let pairs = top_eigenpairs(&Diagonal, 2, Solver::Auto, 1)?;
/// assert!((pairs.values()[0] - 3.0).abs() < 1e-12 && (pairs.values()[1] - 2.0).abs() < 1e-12);
/// assert!((pairs.vectors()[(2, 0)] - 1.0).abs() < 1e-12);
///
/// // `Eigenpairs` say how they were found.
/// assert!(pairs.solver().starts_with("dense") && !pairs.is_fallback());
/// assert_eq!((pairs.steps(), pairs.basis_size(), pairs.numerical_rank()), (0, 3, 2));
/// assert!(pairs.residual() < 1e-12);
/// # Ok(())
/// # }
/// ```
pub trait PsdOperator<T: Scalar> {
    /// Number of rows and columns.
    fn dimension(&self) -> usize;

    /// Writes the operator times `block` into `result`; both are dimension × any number of vectors.
    ///
    /// # Errors
    ///
    /// Whatever keeps the operator from being applied; the solver passes it on.
    fn apply(&self, block: MatRef<'_, T>, result: MatMut<'_, T>) -> Result<()>;

    /// Sum of the eigenvalues.
    ///
    /// # Errors
    ///
    /// As for [`apply`](Self::apply).
    fn trace(&self) -> Result<f64>;

    /// Eigenvalues up to this size are rounding noise in what [`apply`](Self::apply) computes: they say
    /// nothing, and may come out negative. 0, the default, stands for rounding relative to the largest eigenvalue, which is
    /// counted in any case; say more where large terms cancel.
    fn noise(&self) -> f64 {
        0.0
    }

    /// Multiply–adds of applying the operator to one vector, for the choice of a solver. By default those of a dense matrix.
    fn macs(&self) -> f64 {
        (self.dimension() as f64).powi(2)
    }

    /// Multiply–adds of [`assemble`](Self::assemble). By default those of applying it to the identity.
    fn assembly_work(&self) -> f64 {
        self.dimension() as f64 * self.macs()
    }

    /// The operator as a matrix. By default it is applied to the columns of the identity; implement this
    /// where there is a cheaper way.
    ///
    /// # Errors
    ///
    /// [`Error::Memory`] if the matrix does not fit, and as for [`apply`](Self::apply).
    fn assemble(&self) -> Result<Mat<T>> {
        during("PsdOperator::assemble", || {
            let dimension = self.dimension();
            let mut matrix = linalg::zeros::<T>(dimension, dimension)?;
            let width = dimension.min(256);
            for start in (0..dimension).step_by(width.max(1)) {
                let count = width.min(dimension - start);
                let mut block = linalg::zeros(dimension, count)?;
                for column in 0..count {
                    block[(start + column, column)] = T::from_f64(1.0);
                }
                self.apply(block.as_ref(), matrix.as_mut().subcols_mut(start, count))?;
            }
            Ok(matrix)
        })
    }
}

/// Which algorithm finds the eigenpairs.
///
/// ```
/// use dalr::{Dalr, Solver};
/// let compressor = Dalr::new().with_solver(Solver::DenseEigen);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Solver {
    /// The cheapest that suits the problem.
    #[default]
    Auto,
    /// Forms the matrix and diagonalises it, `O(d³)` for dimension `d`. Where faer's divide and conquer does not
    /// converge, its QR iteration, then its singular value decomposition, then a Jacobi iteration take over.
    DenseEigen,
    /// Never forms the matrix: applies it to blocks of vectors, some `3k` of them for `k` eigenpairs, by block Lanczos with full
    /// reorthogonalisation, and puts the result to the test with random directions. Hands over to
    /// [`DenseEigen`](Self::DenseEigen) if that does not settle.
    BlockLanczos,
}

/// The largest eigenvalues of an operator and their eigenvectors.
///
/// For an example see [`PsdOperator`].
#[derive(Clone, Debug)]
pub struct Eigenpairs {
    /// X
    pub values: Vec<f64>,
    /// X
    pub vectors: Mat<f64>,
    /// X
    pub solver: &'static str,
    /// X
    pub fallback: bool,
    /// X
    pub steps: usize,
    /// X
    pub basis_size: usize,
    /// X
    pub residual: f64,
    /// X
    pub noise: f64,
}

impl Eigenpairs {
    /// Eigenvalues, descending; none is negative.
    ///
    /// For an example see [`Eigenpairs`].
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// Orthonormal eigenvectors, one per column, each with its largest entry positive.
    ///
    /// For an example see [`Eigenpairs`].
    pub fn vectors(&self) -> MatRef<'_, f64> {
        self.vectors.as_ref()
    }

    /// Name of the algorithm that answered.
    ///
    /// For an example see [`Eigenpairs`].
    pub fn solver(&self) -> &'static str {
        self.solver
    }

    /// Whether the algorithm tried first had to be replaced.
    ///
    /// For an example see [`Eigenpairs`].
    pub fn is_fallback(&self) -> bool {
        self.fallback
    }

    /// How often the operator was applied to a block of vectors; 0 for dense algorithms, which form it.
    ///
    /// For an example see [`Eigenpairs`].
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Number of vectors among which the eigenvectors were found; the dimension for dense algorithms.
    ///
    /// For an example see [`Eigenpairs`].
    pub fn basis_size(&self) -> usize {
        self.basis_size
    }

    /// Largest `‖H v − λ v‖` of the pairs, relative to the largest eigenvalue; for block Lanczos, a bound that follows from
    /// its basis, in exact arithmetic.
    ///
    /// For an example see [`Eigenpairs`].
    pub fn residual(&self) -> f64 {
        self.residual
    }

    /// How many of the eigenvalues stand out of rounding noise.
    ///
    /// For an example see [`Eigenpairs`].
    pub fn numerical_rank(&self) -> usize {
        self.values.iter().take_while(|&&value| value > self.noise).count()
    }

    /// The same eigenvalues with other vectors, signs fixed.
    pub(crate) fn with_vectors(mut self, mut vectors: Mat<f64>) -> Self {
        fix_signs(&mut vectors);
        self.vectors = vectors;
        self
    }

    pub(crate) fn as_mat(&self) -> &Mat<f64> {
        &self.vectors
    }
}

impl core::fmt::Display for Eigenpairs {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.steps {
            0 => f.write_str(self.solver),
            steps => write!(f, "{} ({steps} steps, basis {})", self.solver, self.basis_size),
        }
    }
}

/// A residual relative to the largest eigenvalue; where that is zero, any residual that was accepted is noise.
fn relative(residual: f64, largest: f64) -> f64 {
    if largest > 0.0 { residual / largest } else { 0.0 }
}

/// Eigenvalues below this share of the largest are rounding noise.
pub(crate) fn noise_level(dimension: usize) -> f64 {
    4.0 * dimension as f64 * f64::EPSILON
}

/// The `count` largest eigenvalues of an operator and orthonormal eigenvectors, with signs fixed.
///
/// The result is the same, bit for bit, for the same operator and number of threads. `threads = 0` chooses:
/// one inside a rayon worker, all of rayon's pool elsewhere.
///
/// # Errors
///
/// [`Error::Rank`] unless `1 ≤ count ≤ dimension`, [`Error::Empty`] for dimension 0,
/// [`Error::InvalidOperator`] for one that is not finite, not symmetric, has a negative eigenvalue (beyond
/// rounding), or a trace or noise that it cannot have, [`Error::NoConvergence`] when every algorithm gave up, and errors of the operator itself.
///
/// # Cost
///
/// Dense: `O(d³)` and `8 · 4d²` bytes for dimension `d`, and [`PsdOperator::assemble`]. Block Lanczos: some `3k` products for `k`
/// eigenpairs, `O(d k² + k³)` beside, and `O(d k)` memory.
///
/// For an example see [`PsdOperator`].
pub fn top_eigenpairs<T: Scalar>(
    operator: &dyn PsdOperator<T>,
    count: usize,
    solver: Solver,
    par: Par,
) -> Result<Eigenpairs> {
    during("top_eigenpairs", || {
        let operator: &dyn PsdOperator<T> = &Checked::new(operator)?;
        let dimension = operator.dimension();
        if !(1..=dimension).contains(&count) {
            let expected = format!("a number of eigenpairs from 1 to {dimension}");
            return Err(Error::rank(expected, count.to_string()));
        }
        let iterating = match solver {
            Solver::DenseEigen => false,
            Solver::BlockLanczos => true,
            Solver::Auto => cost::lanczos(dimension, count, operator.macs())
                .is_some_and(|work| work < operator.assembly_work() + cost::dense(dimension)),
        };
        if iterating && let Some(pairs) = iterate(operator, count, par)? {
            return Ok(pairs);
        }
        let mut pairs = dense::top_eigenpairs(operator, count, &dense::LADDER, par)?;
        pairs.fallback = iterating || pairs.fallback;
        Ok(pairs)
    })
}

/// tmp
pub(crate) fn eigenpairs<T: Scalar>(
    operator: &dyn PsdOperator<T>,
    count: usize,
    solver: Solver,
    par: Par,
) -> Result<Eigenpairs> {
    top_eigenpairs(operator, count, solver, par)
}

/// Block Lanczos alone: `None` if it did not settle.
pub(crate) fn iterate<T: Scalar>(operator: &dyn PsdOperator<T>, count: usize, par: Par) -> Result<Option<Eigenpairs>> {
    lanczos::top_eigenpairs(operator, count, lanczos::Layout::new(operator.dimension(), count), par)
}

/// A dense eigendecomposition in the operator's own precision: `None` if it did not succeed.
pub(crate) fn dense_in_native<T: Scalar>(
    operator: &dyn PsdOperator<T>,
    count: usize,
    par: Par,
) -> Result<Option<Eigenpairs>> {
    dense::narrow_eigenpairs(operator, count, par)
}

/// Turns every column so that its largest entry is positive, the first of them where several tie.
pub(crate) fn fix_signs(vectors: &mut Mat<f64>) {
    for column in vectors.as_mut().col_iter_mut() {
        let mut largest = 0.0_f64;
        for &entry in column.as_ref().iter() {
            if entry.abs() > largest.abs() {
                largest = entry;
            }
        }
        if largest < 0.0 {
            column.iter_mut().for_each(|entry| *entry = -*entry);
        }
    }
}

#[cfg(test)]
mod tests;
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
            _ => Err(Error::text("one of auto, dense-eigen, block-lanczos", text.into())),
        }
    }
}
