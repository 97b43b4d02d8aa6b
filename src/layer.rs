//! Layers: the dense one that comes in, and the pair of thin ones that goes out.

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
    /// A layer from its weight, out × in, and its bias of length out, if it has one.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`] for a weight without rows or columns, [`Error::Shape`] for a bias of another
    /// length, [`Error::NonFinite`] for a NaN or an infinity (it says where).
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
            if let Some(bias) = &bias {
                if bias.nrows() != weight.nrows() {
                    let what = "entries in the bias (one per output)";
                    return Err(Error::shape(what, weight.nrows(), bias.nrows()));
                }
                linalg::require_finite("the bias", bias.as_mat())?;
            }
            Ok(Self { weight, bias })
        })
    }

    /// The weight, out × in.
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let layer = dalr::Linear::new(faer::mat![[1.0, 2.0]], None)?;
    /// assert_eq!(layer.weight()[(0, 1)], 2.0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn weight(&self) -> MatRef<'_, T> {
        self.weight.as_ref()
    }

    /// The bias, of length out.
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// assert!(dalr::Linear::new(faer::mat![[1.0, 2.0]], None)?.bias().is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub fn bias(&self) -> Option<ColRef<'_, T>> {
        self.bias.as_ref().map(Col::as_ref)
    }

    /// Number of inputs, the columns of the weight.
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let layer = dalr::Linear::new(faer::mat![[1.0, 2.0]], None)?;
    /// assert_eq!((layer.in_features(), layer.out_features()), (2, 1));
    /// # Ok(())
    /// # }
    /// ```
    pub fn in_features(&self) -> usize {
        self.weight.ncols()
    }

    /// Number of outputs, the rows of the weight. For an example see [`in_features`](Self::in_features).
    pub fn out_features(&self) -> usize {
        self.weight.nrows()
    }

    /// Number of parameters, the bias included.
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let layer = dalr::Linear::new(faer::mat![[1.0, 2.0]], Some(faer::col![0.0]))?;
    /// assert_eq!((layer.parameters(), layer.multiply_adds()), (3, 2));
    /// # Ok(())
    /// # }
    /// ```
    pub fn parameters(&self) -> usize {
        self.multiply_adds() + self.bias.as_ref().map_or(0, Col::nrows)
    }

    /// Multiply–adds of one sample's forward pass. For an example see [`parameters`](Self::parameters).
    pub fn multiply_adds(&self) -> usize {
        self.weight.nrows() * self.weight.ncols()
    }

    /// Outputs, samples × out, of inputs, samples × in. Cost: `O(p·m·n)`.
    ///
    /// # Errors
    ///
    /// Inputs of another width, without rows, or not finite; outputs that overflow `T`.
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let layer = dalr::Linear::new(faer::mat![[1.0, 2.0]], None)?;
    /// assert_eq!(layer.forward(faer::mat![[3.0, 4.0]].as_ref())?[(0, 0)], 11.0);
    /// # Ok(())
    /// # }
    /// ```
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

/// A compressed layer `y = up · (down · x) + b`, which replaces a [`Linear`] by two thin ones.
///
/// `down` (the paper's `B`) is rank × in and has no bias, `up` (the paper's `A`) is out × rank.
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
    /// A layer from its factors: `down`, rank × in, `up`, out × rank, and a bias of length out.
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
        during("LowRankLinear::new", || {
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
            if let Some(bias) = &bias {
                if bias.nrows() != up.nrows() {
                    let what = "entries in the bias (one per output)";
                    return Err(Error::shape(what, up.nrows(), bias.nrows()));
                }
                linalg::require_finite("the bias", bias.as_mat())?;
            }
            Ok(Self { down, up, bias })
        })
    }

    /// The first factor, rank × in. For an example see [`up`](Self::up).
    pub fn down(&self) -> MatRef<'_, T> {
        self.down.as_ref()
    }

    /// The second factor, out × rank. The compressors make its columns orthonormal.
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let layer = dalr::LowRankLinear::new(faer::mat![[1.0, 2.0]], faer::mat![[3.0]], None)?;
    /// assert_eq!((layer.up().ncols(), layer.down().nrows()), (layer.rank(), layer.rank()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn up(&self) -> MatRef<'_, T> {
        self.up.as_ref()
    }

    /// The bias, of length out. For an example see [`LowRankLinear`].
    pub fn bias(&self) -> Option<ColRef<'_, T>> {
        self.bias.as_ref().map(Col::as_ref)
    }

    /// Width of the waist between the factors. For an example see [`LowRankLinear`].
    pub fn rank(&self) -> usize {
        self.down.nrows()
    }

    /// Number of inputs.
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let layer = dalr::LowRankLinear::new(faer::mat![[1.0, 2.0]], faer::mat![[3.0]], None)?;
    /// assert_eq!((layer.in_features(), layer.out_features()), (2, 1));
    /// # Ok(())
    /// # }
    /// ```
    pub fn in_features(&self) -> usize {
        self.down.ncols()
    }

    /// Number of outputs. For an example see [`in_features`](Self::in_features).
    pub fn out_features(&self) -> usize {
        self.up.nrows()
    }

    /// Number of parameters `k(m + n)`, and the bias. For an example see [`LowRankLinear`].
    pub fn parameters(&self) -> usize {
        self.multiply_adds() + self.bias.as_ref().map_or(0, Col::nrows)
    }

    /// Multiply–adds of one sample's forward pass, `k(m + n)`.
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let layer = dalr::LowRankLinear::new(faer::mat![[1.0, 2.0]], faer::mat![[3.0]], None)?;
    /// assert_eq!(layer.multiply_adds(), 3);
    /// # Ok(())
    /// # }
    /// ```
    pub fn multiply_adds(&self) -> usize {
        self.rank() * (self.in_features() + self.out_features())
    }

    /// Outputs, samples × out, of inputs, samples × in. Cost: `O(p·k·(m + n))`.
    ///
    /// # Errors
    ///
    /// Inputs of another width, without rows, or not finite; outputs that overflow `T`.
    ///
    /// For an example see [`LowRankLinear`].
    pub fn forward(&self, inputs: MatRef<'_, T>) -> Result<Mat<T>> {
        during("LowRankLinear::forward", || {
            check_inputs(inputs, self.in_features())?;
            let waist = linalg::product(inputs, self.down.transpose(), linalg::threads(0))?;
            let outputs = linalg::product(waist.as_ref(), self.up.transpose(), linalg::threads(0))?;
            finish(outputs, self.bias())
        })
    }

    /// The dense layer with the weight `up · down`. Cost: `O(m·n·k)`.
    ///
    /// # Errors
    ///
    /// [`Error::Overflow`] if an entry of the product overflows `T`.
    ///
    /// For an example see [`LowRankLinear`].
    pub fn to_linear(&self) -> Result<Linear<T>> {
        during("LowRankLinear::to_linear", || {
            let weight = linalg::product(self.up(), self.down(), linalg::threads(0))?;
            Ok(Linear { weight: finish(weight, None)?, bias: self.bias.clone() })
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

/// Refuses inputs that a layer of this width cannot take.
pub(crate) fn check_inputs<T: Scalar>(inputs: MatRef<'_, T>, width: usize) -> Result<()> {
    if inputs.ncols() != width {
        let what = "columns in the inputs (one per input of the layer)";
        return Err(Error::shape(what, width, inputs.ncols()));
    }
    if inputs.nrows() == 0 {
        return Err(Error::empty("the inputs' rows"));
    }
    linalg::require_finite("the inputs", inputs)
}

/// Adds the bias to every row, and refuses a result that overflowed.
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
