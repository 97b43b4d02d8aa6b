//! The original layer.

use core::fmt;

use faer::{Col, ColRef, Mat, MatRef};

use crate::error::during;
use crate::linalg;
use crate::{Error, Result, Scalar};

/// A fully connected layer `y = W x + b`, with `W` of shape out × in, as PyTorch stores it.
///
/// ```
/// use dalr::Linear;
/// use faer::{col, mat};
///
/// # fn main() -> dalr::Result<()> {
/// let layer = Linear::new(mat![[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]], Some(col![10.0, 20.0]))?;
/// let outputs = layer.forward(mat![[1.0, 1.0, 1.0]].as_ref())?;
/// assert_eq!(outputs, mat![[16.0, 21.0]]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq)]
pub struct Linear<T> {
    weight: Mat<T>,
    bias: Option<Col<T>>,
}

impl<T: Scalar> Linear<T> {
    /// Creates a layer from its weight, out × in, and an optional bias with one entry per output.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`] for a weight without rows or columns, [`Error::Shape`] for a bias of
    /// another length, [`Error::NonFinite`] for a NaN or an infinity, with its position.
    ///
    /// ```
    /// use dalr::{Error, Linear};
    /// let weight = faer::mat![[1.0_f32, f32::NAN]];
    /// assert!(matches!(Linear::new(weight, None), Err(Error::NonFinite { row: 0, column: 1, .. })));
    /// ```
    pub fn new(weight: Mat<T>, bias: Option<Col<T>>) -> Result<Self> {
        during("Linear::new", || {
            if weight.nrows() == 0 || weight.ncols() == 0 {
                return Err(Error::empty("the weight"));
            }
            linalg::require_finite("the weight", weight.as_ref())?;
            check_bias(bias.as_ref(), weight.nrows())?;
            Ok(Self { weight, bias })
        })
    }

    /// Returns the weight, out × in.
    pub fn weight(&self) -> MatRef<'_, T> {
        self.weight.as_ref()
    }

    /// Returns the bias, one entry per output; `None` if the layer has none.
    pub fn bias(&self) -> Option<ColRef<'_, T>> {
        self.bias.as_ref().map(Col::as_ref)
    }

    /// Returns the number of inputs, the columns of the weight.
    pub fn in_features(&self) -> usize {
        self.weight.ncols()
    }

    /// Returns the number of outputs, the rows of the weight.
    pub fn out_features(&self) -> usize {
        self.weight.nrows()
    }

    /// Returns the number of parameters, the bias included.
    pub fn parameters(&self) -> usize {
        self.multiply_adds() + self.bias.as_ref().map_or(0, Col::nrows)
    }

    /// Returns the multiply–adds of one sample's forward pass.
    pub fn multiply_adds(&self) -> usize {
        self.weight.nrows() * self.weight.ncols()
    }

    /// Returns the outputs, samples × out, of inputs, samples × in. Cost: `O(p·m·n)`.
    ///
    /// # Errors
    ///
    /// Inputs with another number of columns, without rows, or not finite; outputs that overflow
    /// `T`.
    pub fn forward(&self, inputs: MatRef<'_, T>) -> Result<Mat<T>> {
        during("Linear::forward", || {
            check_inputs(inputs, self.in_features())?;
            let outputs = linalg::product(inputs, self.weight.transpose(), linalg::threads(0))?;
            finish(outputs, self.bias())
        })
    }
}

impl<T> fmt::Debug for Linear<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Linear")
            .field("out_features", &self.weight.nrows())
            .field("in_features", &self.weight.ncols())
            .field("bias", &self.bias.is_some())
            .finish()
    }
}

/// Refuses a bias of another length than the outputs, or one that is not finite.
pub(crate) fn check_bias<T: Scalar>(bias: Option<&Col<T>>, outputs: usize) -> Result<()> {
    let Some(bias) = bias else { return Ok(()) };
    if bias.nrows() != outputs {
        return Err(Error::shape("entries in the bias (one per output)", outputs, bias.nrows()));
    }
    linalg::require_finite("the bias", bias.as_mat())
}

/// Returns an error for inputs with another number of columns than `width`, without rows, or not
/// finite.
pub(crate) fn check_inputs<T: Scalar>(inputs: MatRef<'_, T>, width: usize) -> Result<()> {
    if inputs.ncols() != width {
        let what = "columns in the inputs (one per input of the layer)";
        return Err(Error::shape(what, width, inputs.ncols()));
    }
    if inputs.nrows() == 0 {
        return Err(Error::empty("the batch of inputs"));
    }
    linalg::require_finite("the inputs", inputs)
}

/// Adds the bias to every row, and returns an error if the result overflows.
pub(crate) fn finish<T: Scalar>(mut outputs: Mat<T>, bias: Option<ColRef<'_, T>>) -> Result<Mat<T>> {
    if let Some(bias) = bias {
        for (column, &bias) in outputs.as_mut().col_iter_mut().zip(bias.iter()) {
            column.iter_mut().for_each(|output| *output += bias);
        }
    }
    match linalg::first_non_finite(outputs.as_ref()) {
        Some(_) => Err(Error::overflow("the result")),
        None => Ok(outputs),
    }
}

/// `400 → 120`, inputs and outputs.
impl<T: Scalar> fmt::Display for Linear<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {}", self.in_features(), self.out_features())
    }
}
