//! A layer with some of its inputs or outputs dropped.

use faer::{Col, ColRef, Mat, MatRef};

use crate::error::during;
use crate::layer::{check_inputs, finish};
use crate::linalg;
use crate::{Error, Linear, Result, Scalar};

/// Whether inputs (columns of the weight) or outputs (rows) were dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Inputs,
    Outputs,
}

/// A layer without some of its inputs or outputs. Its forward pass takes all inputs of the original
/// layer and returns all its outputs. It ignores dropped inputs, and returns zero for dropped
/// outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct PrunedLinear<T> {
    pub(crate) side: Side,
    pub(crate) kept: Vec<usize>,
    pub(crate) weight: Mat<T>,
    pub(crate) bias: Option<Col<T>>,
    pub(crate) in_features: usize,
    pub(crate) out_features: usize,
}

impl<T: Scalar> PrunedLinear<T> {
    /// Returns the indices of the kept inputs or outputs, ascending.
    pub fn kept(&self) -> &[usize] {
        &self.kept
    }

    /// Returns the smaller weight: out × kept if inputs were dropped, and kept × in if outputs were
    /// dropped.
    pub fn weight(&self) -> MatRef<'_, T> {
        self.weight.as_ref()
    }

    /// Returns the bias: one entry per output if inputs were dropped, and one per kept output if
    /// outputs were dropped. `None` if the layer has no bias.
    pub fn bias(&self) -> Option<ColRef<'_, T>> {
        self.bias.as_ref().map(Col::as_ref)
    }

    /// Returns the number of parameters, the bias included.
    pub fn parameters(&self) -> usize {
        self.multiply_adds() + self.bias.as_ref().map_or(0, Col::nrows)
    }

    /// Returns the multiply–adds of one sample's forward pass.
    pub fn multiply_adds(&self) -> usize {
        self.weight.nrows() * self.weight.ncols()
    }

    /// Returns the outputs, samples × out, of inputs, samples × in. The inputs include the dropped
    /// ones; dropped outputs are zero.
    ///
    /// # Errors
    ///
    /// Inputs with another number of columns, without rows, or not finite; outputs that overflow
    /// `T`.
    pub fn forward(&self, inputs: MatRef<'_, T>) -> Result<Mat<T>> {
        during("PrunedLinear::forward", || {
            check_inputs(inputs, self.in_features)?;
            let mut outputs = linalg::zeros(inputs.nrows(), self.out_features)?;
            match self.side {
                Side::Inputs => {
                    let mut gathered = linalg::zeros(inputs.nrows(), self.kept.len())?;
                    for (mut column, &unit) in gathered.as_mut().col_iter_mut().zip(&self.kept) {
                        column.copy_from(inputs.col(unit));
                    }
                    let one = T::from_f64(1.0);
                    linalg::add_product(
                        outputs.as_mut(),
                        one,
                        gathered.as_ref(),
                        self.weight.transpose(),
                        linalg::threads(0),
                    );
                    finish(outputs, self.bias())
                }
                Side::Outputs => {
                    let kept = linalg::product(inputs, self.weight.transpose(), linalg::threads(0))?;
                    let kept = finish(kept, self.bias())?;
                    for (column, &unit) in kept.col_iter().zip(&self.kept) {
                        outputs.as_mut().col_mut(unit).copy_from(column);
                    }
                    Ok(outputs)
                }
            }
        })
    }

    /// Returns a layer of the original shape with the same outputs. Its weight has zeros for
    /// dropped inputs or outputs.
    ///
    /// # Errors
    ///
    /// [`Error::Memory`] if it does not fit.
    pub fn to_linear(&self) -> Result<Linear<T>> {
        during("PrunedLinear::to_linear", || {
            let mut weight = linalg::zeros(self.out_features, self.in_features)?;
            let mut bias = self.bias.clone();
            for (index, &unit) in self.kept.iter().enumerate() {
                match self.side {
                    Side::Inputs => weight.as_mut().col_mut(unit).copy_from(self.weight.col(index)),
                    Side::Outputs => weight.as_mut().row_mut(unit).copy_from(self.weight.row(index)),
                }
            }
            if let (Side::Outputs, Some(kept)) = (self.side, &self.bias) {
                let mut full = Col::zeros(self.out_features);
                self.kept.iter().zip(kept.iter()).for_each(|(&unit, &entry)| full[unit] = entry);
                bias = Some(full);
            }
            Linear::new(weight, bias)
        })
    }
}

/// Returns a layer with the same outputs, as [`PrunedLinear::to_linear`].
impl<T: Scalar> TryFrom<&PrunedLinear<T>> for Linear<T> {
    type Error = Error;

    fn try_from(layer: &PrunedLinear<T>) -> Result<Self> {
        layer.to_linear()
    }
}
