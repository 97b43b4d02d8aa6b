//! A layer of some of its rows and the coefficients of the others.

use core::fmt;

use faer::{Col, ColRef, Mat, MatMut, MatRef};

use crate::error::during;
use crate::layer::{check_bias, check_inputs, finish};
use crate::linalg;
use crate::{Error, Linear, Result, Scalar};

/// A compressed layer in pivoted storage: `k` rows of its weight `C`, and the other rows as
/// combinations of these.
///
/// The `k` rows are the *pivot rows*, `C_p`. The other `m − k` rows are `A C_p`, and the entries of
/// `A` are the *coefficients*. A rank of `k` takes `k (m + n − k)` parameters instead of the
/// `k (m + n)` of a [`LowRankLinear`](crate::LowRankLinear), and as many multiply–adds. So every
/// rank below `min(m, n)` takes fewer than the original layer. The two forms differ by rounding
/// only.
///
/// [`LowRankLinear::to_pivoted`](crate::LowRankLinear::to_pivoted) makes one, with coefficients of
/// at most 2 in magnitude, so that rounding does not grow.
///
/// ```
/// use dalr::LowRankLinear;
/// use dalr::factors::PivotedLinear;
/// use faer::{col, mat};
///
/// # fn main() -> dalr::Result<()> {
/// let up = mat![[1.0], [4.0], [2.0]];
/// let factors = LowRankLinear::new(mat![[1.0, 2.0, 3.0]], up, Some(col![0.5, 0.5, 0.5]))?;
/// let layer: PivotedLinear<f64> = factors.to_pivoted()?;
/// assert_eq!((layer.pivots(), layer.pivot_rows()), (&[1][..], mat![[4.0, 8.0, 12.0]].as_ref()));
/// assert_eq!(layer.coefficients(), mat![[0.25], [0.5]]);
/// assert_eq!((factors.parameters(), layer.parameters()), (6 + 3, 5 + 3));
/// let inputs = mat![[1.0, 1.0, 1.0]];
/// assert_eq!(layer.forward(inputs.as_ref())?, factors.forward(inputs.as_ref())?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq)]
pub struct PivotedLinear<T> {
    pivot_rows: Mat<T>,
    coefficients: Mat<T>,
    pivots: Vec<usize>,
    bias: Option<Col<T>>,
}

impl<T: Scalar> PivotedLinear<T> {
    /// A layer from its pivot rows, rank × in, the coefficients of the other rows, (out − rank) ×
    /// rank, the outputs that the pivot rows belong to, ascending, and a bias of length out.
    ///
    /// A layer of full rank has coefficients of no rows, `0 × rank`.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::Shape`] or [`Error::NonFinite`], as [`Linear::new`];
    /// [`Error::OutOfRange`] for pivots that do not ascend or that are not below out.
    ///
    /// ```
    /// use dalr::{Error, factors::PivotedLinear};
    /// use faer::mat;
    /// let (rows, coefficients) = (mat![[1.0, 2.0]], mat![[3.0]]); // two outputs, 0 and 1
    /// let error = PivotedLinear::new(rows, coefficients, vec![2], None).unwrap_err();
    /// assert_eq!(error.to_string(), "PivotedLinear::new: expected a pivot from 0 to 1, got 2");
    /// ```
    pub fn new(pivot_rows: Mat<T>, coefficients: Mat<T>, pivots: Vec<usize>, bias: Option<Col<T>>) -> Result<Self> {
        during("PivotedLinear::new", || {
            let rank = pivot_rows.nrows();
            if rank == 0 || pivot_rows.ncols() == 0 {
                return Err(Error::empty("the pivot rows"));
            }
            if coefficients.ncols() != rank {
                let what = "columns in the coefficients (one per pivot row)";
                return Err(Error::shape(what, rank, coefficients.ncols()));
            }
            let outputs = rank + coefficients.nrows();
            require_pivots(&pivots, rank, outputs)?;
            linalg::require_finite("the pivot rows", pivot_rows.as_ref())?;
            linalg::require_finite("the coefficients", coefficients.as_ref())?;
            check_bias(bias.as_ref(), outputs)?;
            Ok(Self { pivot_rows, coefficients, pivots, bias })
        })
    }

    /// The rows of the weight that are stored, rank × in.
    pub fn pivot_rows(&self) -> MatRef<'_, T> {
        self.pivot_rows.as_ref()
    }

    /// The coefficients of the other rows, (out − rank) × rank. The product with the pivot rows is
    /// the other rows.
    pub fn coefficients(&self) -> MatRef<'_, T> {
        self.coefficients.as_ref()
    }

    /// The outputs that the pivot rows belong to, ascending. The other rows belong to the other
    /// outputs, in ascending order too.
    pub fn pivots(&self) -> &[usize] {
        &self.pivots
    }

    /// The position of each output among the pivot rows followed by the other rows.
    ///
    /// Use it to gather the outputs from the results of the two products, as libraries with an
    /// operation such as `index_select` do.
    ///
    /// ```
    /// use dalr::factors::PivotedLinear;
    /// use faer::mat;
    /// # fn main() -> dalr::Result<()> {
    /// let layer = PivotedLinear::new(mat![[1.0], [2.0]], mat![[1.0, 0.0], [0.0, 1.0]], vec![1, 3], None)?;
    /// assert_eq!(layer.order(), [2, 0, 3, 1]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn order(&self) -> Vec<usize> {
        order(&self.pivots, self.out_features())
    }

    /// The bias, of length out.
    pub fn bias(&self) -> Option<ColRef<'_, T>> {
        self.bias.as_ref().map(Col::as_ref)
    }

    /// Rank: the number of pivot rows.
    pub fn rank(&self) -> usize {
        self.pivot_rows.nrows()
    }

    /// Number of inputs.
    pub fn in_features(&self) -> usize {
        self.pivot_rows.ncols()
    }

    /// Number of outputs.
    pub fn out_features(&self) -> usize {
        self.rank() + self.coefficients.nrows()
    }

    /// Number of parameters `k(m + n − k)`, and the bias. The `k` indices of the pivots are not
    /// parameters and do not count.
    pub fn parameters(&self) -> usize {
        self.multiply_adds() + self.bias.as_ref().map_or(0, Col::nrows)
    }

    /// Multiply–adds of one sample's forward pass, `k(m + n − k)`.
    pub fn multiply_adds(&self) -> usize {
        self.rank() * (self.in_features() + self.coefficients.nrows())
    }

    /// Outputs, samples × out, of inputs, samples × in. Cost: `O(p·k·(m + n − k))`.
    ///
    /// # Errors
    ///
    /// Inputs of another width, without rows, or not finite; outputs that overflow `T`.
    pub fn forward(&self, inputs: MatRef<'_, T>) -> Result<Mat<T>> {
        during("PivotedLinear::forward", || {
            check_inputs(inputs, self.in_features())?;
            let par = linalg::threads(0);
            let pivots = linalg::product(inputs, self.pivot_rows.transpose(), par)?;
            let others = linalg::product(pivots.as_ref(), self.coefficients.transpose(), par)?;
            // Columns are contiguous, so that putting them in order is fast.
            let mut outputs = linalg::zeros(inputs.nrows(), self.out_features())?;
            self.put_in_order(outputs.as_mut(), pivots.as_ref(), others.as_ref());
            finish(outputs, self.bias())
        })
    }

    /// The layer with the same weight, all rows in one matrix. Cost: `O((m − k)·n·k)`.
    ///
    /// # Errors
    ///
    /// [`Error::Overflow`] if an entry of the weight overflows `T`.
    pub fn to_linear(&self) -> Result<Linear<T>> {
        during("PivotedLinear::to_linear", || {
            let others = linalg::product(self.coefficients(), self.pivot_rows(), linalg::threads(0))?;
            let mut weight = linalg::zeros(self.out_features(), self.in_features())?;
            let target = weight.as_mut().transpose_mut();
            self.put_in_order(target, self.pivot_rows.transpose(), others.transpose());
            Linear::new(finish(weight, None)?, self.bias.clone())
        })
    }

    /// Copies the columns of the pivots and of the other outputs to the places of their outputs.
    fn put_in_order(&self, target: MatMut<'_, T>, pivots: MatRef<'_, T>, others: MatRef<'_, T>) {
        for (mut column, position) in target.col_iter_mut().zip(self.order()) {
            column.copy_from(match position.checked_sub(self.rank()) {
                Some(other) => others.col(other),
                None => pivots.col(position),
            });
        }
    }
}

/// Refuses another number of pivots than `rank`, and pivots that do not ascend below `outputs`.
pub(crate) fn require_pivots(pivots: &[usize], rank: usize, outputs: usize) -> Result<()> {
    if pivots.len() != rank {
        return Err(Error::shape("pivots (one per pivot row)", rank, pivots.len()));
    }
    let mut least = 0;
    for &pivot in pivots {
        if !(least..outputs).contains(&pivot) {
            let expected = match least {
                0 => format!("from 0 to {}", outputs.saturating_sub(1)),
                _ => format!("above the one before it, {}, and below {outputs}", least - 1),
            };
            return Err(Error::out_of_range("a pivot", expected, pivot as f64));
        }
        least = pivot + 1;
    }
    Ok(())
}

/// The position of each output among the pivots followed by the others.
pub(crate) fn order(pivots: &[usize], outputs: usize) -> Vec<usize> {
    let mut others = pivots.len()..;
    let mut pivots = pivots.iter().zip(0..).peekable();
    let position = |output| match pivots.next_if(|&(&pivot, _)| pivot == output) {
        Some((_, position)) => Some(position),
        None => others.next(),
    };
    (0..outputs).filter_map(position).collect()
}

impl<T> fmt::Debug for PivotedLinear<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PivotedLinear")
            .field("out_features", &(self.pivot_rows.nrows() + self.coefficients.nrows()))
            .field("rank", &self.pivot_rows.nrows())
            .field("in_features", &self.pivot_rows.ncols())
            .field("bias", &self.bias.is_some())
            .finish()
    }
}

/// The layer with the same weight, as [`PivotedLinear::to_linear`].
impl<T: Scalar> TryFrom<&PivotedLinear<T>> for Linear<T> {
    type Error = Error;

    fn try_from(layer: &PivotedLinear<T>) -> Result<Self> {
        layer.to_linear()
    }
}

/// `400 → 8 → 120, pivoted`: inputs, rank and outputs.
impl<T: Scalar> fmt::Display for PivotedLinear<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {} → {}, pivoted", self.in_features(), self.rank(), self.out_features())
    }
}
