//! The layer behind hidden units, refitted for those that are kept.

use faer::{Col, Mat};

use super::selection::{UnitOrder, triangle};
use crate::bias::times;
use crate::linalg::{self, Par, even_exponent, power_of_two};
use crate::{Error, Linear, Result, Scalar};

/// The layer that reads the units, and everything that its refit for a number of units needs.
#[derive(Clone)]
pub(super) struct UnitRefit<T> {
    layer: Linear<T>,
    order: UnitOrder,
    /// The factor `L` of [`Selection`](super::selection::Selection).
    factor: Mat<f64>,
    /// `Y` in plain outputs, for the weight scaled to entries near 1; `None` unless the inputs are
    /// paired.
    outputs: Option<Mat<f64>>,
    /// The means of the original units and of those that the new layer reads; `None` if the bias is
    /// kept.
    means: Option<(Vec<f64>, Vec<f64>)>,
    par: Par,
}

impl<T: Scalar> UnitRefit<T> {
    pub(super) fn new(
        layer: Linear<T>,
        (order, factor, outputs): (UnitOrder, Mat<f64>, Option<Mat<f64>>),
        means: Option<(Vec<f64>, Vec<f64>)>,
        par: Par,
    ) -> Self {
        Self { layer, order, factor, outputs, means, par }
    }

    pub(super) fn original(&self) -> &Linear<T> {
        &self.layer
    }

    /// The selected units, in the order of the selection.
    pub(super) fn units(&self) -> &[usize] {
        &self.order.units
    }

    pub(super) fn has_bias(&self) -> bool {
        self.means.is_some() || self.layer.bias().is_some()
    }

    /// The number of units that the original layer reads.
    pub(super) fn all_units(&self) -> usize {
        self.layer.in_features() / self.order.inputs_per_unit
    }

    /// Whether the layer with this number of units is the original one.
    pub(super) fn is_identity(&self, count: usize) -> bool {
        count == self.all_units() && self.outputs.is_none()
    }

    /// The first units of the order, filled up by others if these are too few, ascending.
    pub(super) fn kept(&self, count: usize) -> Vec<usize> {
        self.order.kept(count, self.all_units())
    }

    /// The layer that reads the units `kept`, which are the [`kept`](Self::kept) ones for `count`.
    ///
    /// With the selected inputs `P`, the other kept inputs and the dropped inputs `Q`, the new
    /// columns for `P` are
    ///
    /// ```text
    /// W_P + W_Q L_Q L_P⁻¹      (= W M_{:P} M_PP⁻¹)
    /// ```
    ///
    /// so that nothing is added if no unit is dropped. For paired inputs they are `Y L_P⁻¹`.
    pub(super) fn layer(&self, kept: &[usize], count: usize) -> Result<Linear<T>> {
        let inputs_per_unit = self.order.inputs_per_unit;
        let inputs_of = |unit: &usize| unit * inputs_per_unit..(unit + 1) * inputs_per_unit;
        let kept: Vec<usize> = kept.iter().flat_map(inputs_of).collect();
        let exponent = even_exponent(linalg::max_abs(self.layer.weight()));
        let original = linalg::widened(self.layer.weight(), power_of_two(-exponent))?;
        let (m, size) = original.shape();
        let selected = self.order.inputs_of(count);
        let steps = selected.len();
        let triangle = triangle(self.factor.as_ref(), selected)?;
        let mut change = match &self.outputs {
            Some(outputs) => linalg::widened(outputs.subcols(0, steps), 1.0)?,
            None => {
                let mut place = kept.iter().peekable();
                let dropped: Vec<usize> = (0..size).filter(|input| place.next_if_eq(&input).is_none()).collect();
                let mut lost = linalg::zeros(m, dropped.len())?;
                let mut explained = linalg::zeros(dropped.len(), steps)?;
                for (index, &input) in dropped.iter().enumerate() {
                    lost.as_mut().col_mut(index).copy_from(original.col(input));
                    explained.as_mut().row_mut(index).copy_from(self.factor.row(input).subcols(0, steps));
                }
                linalg::product(lost.as_ref(), explained.as_ref(), self.par)?
            }
        };
        linalg::solve_upper_triangular(triangle.transpose(), change.as_mut().transpose_mut(), self.par);

        let mut columns = linalg::zeros(m, kept.len())?;
        for (mut column, &input) in columns.as_mut().col_iter_mut().zip(&kept) {
            column.copy_from(original.col(input));
        }
        for (step, input) in selected.iter().enumerate() {
            let Ok(place) = kept.binary_search(input) else { continue };
            let mut column = columns.as_mut().col_mut(place);
            if self.outputs.is_some() {
                column.copy_from(change.col(step));
            } else {
                column += change.col(step);
            }
        }
        columns *= faer::Scale(power_of_two(exponent));
        let weight = linalg::rounded::<T>("the refitted weight", columns.as_ref())?;
        let bias = match &self.means {
            None => self.layer.bias().map(|bias| bias.to_owned()),
            Some(means) => Some(self.bias(&weight, &kept, means)?),
        };
        Linear::new(weight, bias)
    }

    /// `b + W μ − C μ̂`, as a sum of changes, so that nothing is added if nothing changes.
    fn bias(&self, weight: &Mat<T>, kept: &[usize], (original, inputs): &(Vec<f64>, Vec<f64>)) -> Result<Col<T>> {
        let mut change = linalg::widened(self.layer.weight(), 1.0)?;
        for (column, &input) in weight.col_iter().zip(kept) {
            for (entry, new) in change.as_mut().col_mut(input).iter_mut().zip(column.iter()) {
                *entry -= new.to_f64();
            }
        }
        let moved: Vec<f64> = original.iter().zip(inputs).map(|(original, input)| original - input).collect();
        let shifts = times(change.as_ref(), inputs);
        let shifts = shifts.into_iter().zip(times(self.layer.weight(), &moved)).enumerate();
        let old = |output: usize| self.layer.bias().map_or(0.0, |bias| bias[output].to_f64());
        let bias: Col<T> = shifts.map(|(output, (a, b))| T::from_f64(old(output) + a + b)).collect();
        match linalg::first_non_finite(bias.as_mat()) {
            Some(_) => Err(Error::overflow("the corrected bias")),
            None => Ok(bias),
        }
    }
}
