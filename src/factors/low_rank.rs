//! A layer of two factors.

use core::fmt;

use faer::{Col, ColRef, Mat, MatRef};

use super::PivotedLinear;
use super::pivot_selection::pivots;
use crate::error::during;
use crate::layer::{check_bias, check_inputs, finish};
use crate::linalg;
use crate::{Error, Linear, Result, Scalar};

/// A compressed layer `y = up · (down · x) + b`, which replaces a [`Linear`] by two factors.
///
/// `down` is rank × in (the paper's `B`, LoRA's A) and has no bias; `up` is out × rank (the paper's
/// `A`, LoRA's B).
///
/// ```
/// use dalr::LowRankLinear;
/// use faer::{col, mat};
///
/// # fn main() -> dalr::Result<()> {
/// let layer = LowRankLinear::new(mat![[1.0, 2.0, 3.0]], mat![[1.0], [2.0]], Some(col![0.5, 0.5]))?;
/// assert_eq!((layer.rank(), layer.parameters()), (1, 7));
/// assert_eq!(layer.bias().map(|bias| bias[1]), Some(0.5));
/// assert_eq!(layer.forward(mat![[1.0, 1.0, 1.0]].as_ref())?, mat![[6.5, 12.5]]);
/// assert_eq!(layer.to_linear()?.weight(), mat![[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq)]
pub struct LowRankLinear<T> {
    down: Mat<T>,
    up: Mat<T>,
    bias: Option<Col<T>>,
}

impl<T: Scalar> LowRankLinear<T> {
    /// Creates a layer from its factors: `down`, rank × in, `up`, out × rank, and a bias with one
    /// entry per output.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::Shape`] or [`Error::NonFinite`], as [`Linear::new`].
    ///
    /// ```
    /// use faer::Mat;
    /// let (down, up) = (Mat::<f32>::zeros(3, 10), Mat::<f32>::zeros(20, 4));
    /// assert!(dalr::LowRankLinear::new(down, up, None).is_err());
    /// ```
    pub fn new(down: Mat<T>, up: Mat<T>, bias: Option<Col<T>>) -> Result<Self> {
        during("LowRankLinear::new", || Self::checked(down, up, bias))
    }

    /// [`new`](Self::new) for another operation, which puts its own name into the errors.
    pub(crate) fn checked(down: Mat<T>, up: Mat<T>, bias: Option<Col<T>>) -> Result<Self> {
        for (what, matrix) in [("the factor `down`", &down), ("the factor `up`", &up)] {
            if matrix.nrows() == 0 || matrix.ncols() == 0 {
                return Err(Error::empty(what));
            }
            linalg::require_finite(what, matrix.as_ref())?;
        }
        if up.ncols() != down.nrows() {
            let what = "columns in the factor `up` (one per row of `down`)";
            return Err(Error::shape(what, down.nrows(), up.ncols()));
        }
        check_bias(bias.as_ref(), up.nrows())?;
        Ok(Self { down, up, bias })
    }

    /// Returns the first factor, rank × in.
    pub fn down(&self) -> MatRef<'_, T> {
        self.down.as_ref()
    }

    /// Returns the second factor, out × rank. The compressors make its columns orthonormal.
    pub fn up(&self) -> MatRef<'_, T> {
        self.up.as_ref()
    }

    /// Returns `down` and `up`.
    pub(crate) fn into_factors(self) -> (Mat<T>, Mat<T>) {
        (self.down, self.up)
    }

    /// Returns the bias, one entry per output; `None` if the layer has none.
    pub fn bias(&self) -> Option<ColRef<'_, T>> {
        self.bias.as_ref().map(Col::as_ref)
    }

    /// Returns the rank: the number of rows of `down` and of columns of `up`.
    pub fn rank(&self) -> usize {
        self.down.nrows()
    }

    /// Returns the number of inputs.
    pub fn in_features(&self) -> usize {
        self.down.ncols()
    }

    /// Returns the number of outputs.
    pub fn out_features(&self) -> usize {
        self.up.nrows()
    }

    /// Returns the number of parameters, `k(m + n)` and those of the bias.
    pub fn parameters(&self) -> usize {
        self.multiply_adds() + self.bias.as_ref().map_or(0, Col::nrows)
    }

    /// Returns the multiply–adds of one sample's forward pass, `k(m + n)`.
    pub fn multiply_adds(&self) -> usize {
        self.rank() * (self.in_features() + self.out_features())
    }

    /// Returns the outputs, samples × out, of inputs, samples × in. Cost: `O(p·k·(m + n))`.
    ///
    /// # Errors
    ///
    /// Inputs with another number of columns, without rows, or not finite; outputs that overflow
    /// `T`.
    pub fn forward(&self, inputs: MatRef<'_, T>) -> Result<Mat<T>> {
        during("LowRankLinear::forward", || {
            check_inputs(inputs, self.in_features())?;
            let latent = linalg::product(inputs, self.down.transpose(), linalg::threads(0))?;
            let outputs = linalg::product(latent.as_ref(), self.up.transpose(), linalg::threads(0))?;
            finish(outputs, self.bias())
        })
    }

    /// Returns the layer with the weight `up · down`. Cost: `O(m·n·k)`.
    ///
    /// # Errors
    ///
    /// [`Error::Overflow`] if an entry of the product overflows `T`.
    pub fn to_linear(&self) -> Result<Linear<T>> {
        during("LowRankLinear::to_linear", || {
            let weight = linalg::product(self.up(), self.down(), linalg::threads(0))?;
            Linear::new(finish(weight, None)?, self.bias.clone())
        })
    }

    /// The same layer in pivoted storage, which takes `k(m + n − k)` parameters: fewer than these
    /// factors at every rank, and fewer than the original layer at every rank below `min(m, n)`.
    ///
    /// The weights agree up to rounding. No coefficient is larger than 2 in magnitude, up to
    /// rounding. A rank above the number of outputs becomes that number. `docs/mathematics.md`,
    /// "Pivoted storage", has the algorithm and proofs.
    ///
    /// # Errors
    ///
    /// [`Error::Overflow`] if an entry of the weight overflows `T`; [`Error::Memory`].
    ///
    /// # Cost
    ///
    /// `O(m·k² + n·k²)`, in `f64`.
    pub fn to_pivoted(&self) -> Result<PivotedLinear<T>> {
        during("LowRankLinear::to_pivoted", || {
            let par = linalg::threads(0);
            let (pivots, coefficients) = pivots(self.up(), par)?;
            let mut up = linalg::zeros(pivots.len(), self.rank())?;
            for (row, &pivot) in up.as_mut().row_iter_mut().zip(&pivots) {
                row.iter_mut().zip(self.up.row(pivot).iter()).for_each(|(to, from)| *to = from.to_f64());
            }
            let down = linalg::widened(self.down(), 1.0)?;
            let pivot_rows = linalg::product(up.as_ref(), down.as_ref(), par)?;
            let pivot_rows = linalg::rounded("the pivot rows", pivot_rows.as_ref())?;
            let coefficients = linalg::rounded("the coefficients", coefficients.as_ref())?;
            PivotedLinear::new(pivot_rows, coefficients, pivots, self.bias.clone())
        })
    }
}

impl<T> fmt::Debug for LowRankLinear<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("LowRankLinear")
            .field("out_features", &self.up.nrows())
            .field("rank", &self.down.nrows())
            .field("in_features", &self.down.ncols())
            .field("bias", &self.bias.is_some())
            .finish()
    }
}

/// Returns the layer with the weight `up · down`, as [`LowRankLinear::to_linear`].
impl<T: Scalar> TryFrom<&LowRankLinear<T>> for Linear<T> {
    type Error = Error;

    fn try_from(layer: &LowRankLinear<T>) -> Result<Self> {
        layer.to_linear()
    }
}

/// `400 → 8 → 120`, inputs, rank and outputs.
impl<T: Scalar> fmt::Display for LowRankLinear<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {} → {}", self.in_features(), self.rank(), self.out_features())
    }
}
