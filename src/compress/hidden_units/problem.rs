//! The problem that chooses hidden units: the regularized second moment, and the errors of every
//! number of units.

use faer::{Mat, MatRef};

use super::refit::UnitRefit;
use super::selection::{Selection, SelectionLimits, select_units, triangle};
use crate::compress::Calibration;
use crate::compress::operators::term_size;
use crate::compress::problem_builder::Regularization;
use crate::compress::relative_error::{SquaredErrors, captured_by_rank};
use crate::compress::ridge::paired_needs_ridge;
use crate::covariance::varies;
use crate::linalg::{self, BlockStructure, Par, even_exponent, power_of_two};
use crate::{Error, Linear, Result, Scalar, solver};

/// A unit counts as explained by the selected ones up to this multiple of the rounding of a
/// factorization of [`MARGIN`] more units. The moments of two copies of a unit already differ by
/// their rounding, and the elimination amplifies it.
const EXPLAINED: f64 = 4.0;
const MARGIN: usize = 16;

/// The requirements of a selection for the problem to solve.
pub(super) struct UnitProblem {
    /// Whether the second moment is taken about the mean, and the bias makes up for the change of
    /// the mean output.
    pub(super) correct_bias: bool,
    pub(super) regularization: Regularization,
    /// Number of successive inputs of the layer that belong to one unit.
    pub(super) inputs_per_unit: usize,
    pub(super) par: Par,
}

/// The predicted relative errors with 0, 1, … of the selected units.
#[derive(Clone)]
pub(super) struct UnitErrors {
    pub(super) plain: Vec<f64>,
    pub(super) metric: Option<Vec<f64>>,
    /// The squared errors of the regularized problem, relative to its total; `None` for paired
    /// inputs.
    pub(super) losses: Option<Vec<f64>>,
    /// Plain errors up to this size are rounding.
    pub(super) resolution: f64,
}

impl UnitProblem {
    /// Selects up to `units` units that the layer reads.
    pub(super) fn solve<T: Scalar>(
        &self,
        layer: &Linear<T>,
        hidden: Calibration<'_, T>,
        units: usize,
    ) -> Result<(UnitRefit<T>, UnitErrors)> {
        let &Self { correct_bias, regularization, inputs_per_unit, par } = self;
        let moment = hidden.moment(correct_bias)?.ok_or_else(Error::no_samples)?;
        let (keep, ridge, _) = regularization.parameters(&*moment, hidden, correct_bias, par)?;
        let ridge = ridge / keep;
        let cross = hidden.cross_moment(correct_bias, &*moment)?;
        let noise = solver::noise_level(moment.features()) * moment.trace();
        if cross.is_some() && ridge <= noise && moment.trace() > 0.0 {
            return Err(paired_needs_ridge(noise, ridge));
        }

        let weight = linalg::widened(layer.weight(), power_of_two(-even_exponent(linalg::max_abs(layer.weight()))))?;
        let root = hidden.output_metric().map(|metric| metric.root());
        let transformed = root.map(|root| root.transform(weight.as_ref(), par)).transpose()?;
        let seen = transformed.as_ref().unwrap_or(&weight);

        let means = hidden.means().ok_or_else(Error::no_samples)?;
        let unit = power_of_two(moment.exponent());
        let varies: Vec<bool> =
            moment.diagonal().iter().zip(&means.1).map(|(square, mean)| varies(square * unit, *mean)).collect();
        // T = W (K + λI) and M = S + λI; K = S for inputs that are not paired.
        let mut dense = moment.scaled(par)?;
        let products = match &cross {
            None => linalg::product(weight.as_ref(), dense.as_ref(), par)?,
            Some(cross) => cross.left_multiply(weight.as_ref(), par)?,
        };
        let in_metric = root.map(|root| root.transform(products.as_ref(), par)).transpose()?;
        let mut outputs = linalg::widened(in_metric.as_ref().unwrap_or(&products).as_ref(), 1.0)?;
        faer::zip!(&mut outputs, seen).for_each(|faer::unzip!(output, weight)| *output += ridge * weight);
        dense.as_mut().diagonal_mut().column_vector_mut().iter_mut().for_each(|square| *square += ridge);
        let tolerance = EXPLAINED * solver::noise_level(moment.features() + MARGIN) + moment.rounding();
        let total: f64 = outputs.col_iter().zip(seen.col_iter()).map(|(a, b)| a.transpose() * b).sum();
        let limits = SelectionLimits { inputs_per_unit, units, tolerance };
        let selection = select_units(dense, outputs, &varies, limits, par)?;
        // The errors after each unit, from those after each step.
        let ends = selection.order.ends.clone();
        let by_unit = |errors: &[f64]| ends.iter().filter_map(|&end| errors.get(end).copied()).collect();
        let losses = cross.is_none().then(|| {
            let gains = linalg::squared_column_norms(selection.outputs.as_ref());
            let mut losses = SquaredErrors::left_of(total, &gains, 0.0).by_rank;
            losses.insert(0, total);
            losses.iter_mut().for_each(|loss| *loss /= total.max(f64::MIN_POSITIVE));
            by_unit(&losses)
        });

        let down = Down::new(&selection, moment.diagonal(), par)?;
        let errors = |weight: MatRef<'_, f64>, products: MatRef<'_, f64>, up: MatRef<'_, f64>| {
            // The energy of the original outputs, as the bias is treated and about their mean.
            let energy = |centred: bool| {
                let original = hidden.original_moment(centred)?;
                Result::Ok(original.energy(weight, par)? * power_of_two(original.exponent() - moment.exponent()))
            };
            let total = match cross {
                None => weight.col_iter().zip(products.col_iter()).map(|(a, b)| a.transpose() * b).sum(),
                Some(_) => energy(correct_bias)?,
            };
            let captured = down.captured(products, up, par)?;
            let terms = term_size(&linalg::squared_column_norms(weight), &*moment, (1.0, 0.0));
            let noise =
                (solver::noise_level(weight.nrows().max(weight.ncols())) + moment.rounding()) * terms.max(total);
            let mut squared = SquaredErrors::left_of(total, &captured, noise);
            squared.by_rank.insert(0, total);
            let variance = if correct_bias { total } else { energy(true)? };
            let (relative, resolution) = squared.relative_to(variance);
            Result::Ok((by_unit(&relative), resolution))
        };
        let (mut metric, mut plain) = (None, None);
        if let (Some(root), Some(products)) = (root, &in_metric) {
            metric = Some(errors(seen.as_ref(), products.as_ref(), selection.outputs.as_ref())?.0);
            plain = Some(root.solve_transposed(linalg::widened(selection.outputs.as_ref(), 1.0)?, par)?);
        }
        let outputs = plain.as_ref().unwrap_or(&selection.outputs);
        let (plain_errors, resolution) = errors(weight.as_ref(), products.as_ref(), outputs.as_ref())?;
        let errors = UnitErrors { plain: plain_errors, metric, losses, resolution };
        let outputs = cross.is_some().then(|| plain.unwrap_or(selection.outputs));
        let means = correct_bias.then_some(means);
        Ok((UnitRefit::new(layer.clone(), (selection.order, selection.factor, outputs), means, par), errors))
    }
}

/// The rows of `L_P⁻¹`. The weight refitted for the first `k` selected inputs is the sum of `k`
/// products of a column of `Y` with such a row.
struct Down {
    inputs: Vec<usize>,
    /// `L_P⁻ᵀ`, upper triangular.
    transposed: Mat<f64>,
    /// The second moment of the latent numbers `L_P⁻¹ x_P`, lower triangle.
    gram: Mat<f64>,
}

impl Down {
    /// `diagonal` is that of the second moment without regularization.
    fn new(selection: &Selection, diagonal: &[f64], par: Par) -> Result<Self> {
        let inputs = selection.order.inputs.clone();
        let steps = inputs.len();
        let factor = triangle(selection.factor.as_ref(), &inputs)?;
        let mut transposed = linalg::zeros(steps, steps)?;
        transposed.as_mut().diagonal_mut().column_vector_mut().fill(1.0);
        linalg::solve_upper_triangular(factor.transpose(), transposed.as_mut(), par);
        drop(factor);
        let mut moment = linalg::zeros(steps, steps)?;
        for (column, &a) in inputs.iter().enumerate() {
            for (row, &b) in inputs.iter().enumerate() {
                moment[(row, column)] = selection.moment[(a.min(b), a.max(b))];
            }
            moment[(column, column)] = diagonal.get(a).copied().unwrap_or_default();
        }
        let triangle = BlockStructure::TriangularUpper;
        let applied = linalg::triangular_product(moment.as_ref(), transposed.as_ref(), triangle, par)?;
        drop(moment);
        let mut gram = linalg::zeros(steps, steps)?;
        linalg::add_symmetric_product(gram.as_mut(), 1.0, transposed.transpose(), applied.as_ref(), par);
        Ok(Self { inputs, transposed, gram })
    }

    /// The decrease of the squared error by each selected input, from `products`, `W K`, and the
    /// columns `up` of `Y`.
    fn captured(&self, products: MatRef<'_, f64>, up: MatRef<'_, f64>, par: Par) -> Result<Vec<f64>> {
        let mut selected = linalg::zeros(products.nrows(), self.inputs.len())?;
        for (column, &input) in selected.as_mut().col_iter_mut().zip(&self.inputs) {
            { column }.copy_from(products.col(input));
        }
        let triangle = BlockStructure::TriangularUpper;
        let latent = linalg::triangular_product(selected.as_ref(), self.transposed.as_ref(), triangle, par)?;
        let cross: Vec<f64> =
            up.col_iter().zip(latent.col_iter()).map(|(up, latent)| up.transpose() * latent).collect();
        Ok(captured_by_rank(&cross, &self.gram, &linalg::gram(up, par)?))
    }
}
