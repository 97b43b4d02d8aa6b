//! The error of a replacement layer's outputs on any data.

use faer::{ColRef, Mat, MatRef};

use super::operators::term_size;
use super::solve::{LEAST_LEFT_OUT, ROUNDING};
use super::solver_choice::NATIVE_EXPONENTS;
use crate::bias::times;
use crate::covariance::{CrossMoment, PairedStats, SecondMoment, identity, second_moment};
use crate::error::during;
use crate::linalg::{self, Par, even_exponent, power_of_two};
use crate::{ActivationStats, Error, Linear, LowRankLinear, Result, Scalar, solver};

/// Mean squares over the samples, all divided by one power of two.
pub(super) struct OutputError {
    pub(super) squared: f64,
    /// Of the original outputs about their mean.
    total: f64,
}

impl OutputError {
    pub(super) fn relative(&self) -> Result<f64> {
        if self.squared == 0.0 {
            return Ok(0.0);
        }
        let error = (self.squared / self.total).sqrt();
        if error.is_finite() {
            return Ok(error);
        }
        let expected = "to be positive, so that an error can be relative to it".into();
        Err(Error::out_of_range("the variance of the original outputs", expected, self.total))
    }
}

/// The squared errors of a solution for every rank from 1, on the data without regularization.
#[derive(Clone)]
pub(super) struct SquaredErrors {
    pub(super) by_rank: Vec<f64>,
    /// The energy of the original outputs. The errors are parts of it.
    pub(super) total: f64,
    /// Squared errors up to this size are rounding.
    pub(super) noise: f64,
}

impl SquaredErrors {
    /// Computes the errors, given that rank `k` explains `captured[k - 1]` more of the energy
    /// `total` than rank `k − 1`.
    pub(super) fn left_of(total: f64, captured: &[f64], noise: f64) -> Self {
        let mut rest = total;
        let left = |captured: &f64| {
            rest -= captured;
            rest.max(0.0)
        };
        Self { by_rank: captured.iter().map(left).collect(), total, noise }
    }

    /// Returns the errors relative to the energy `variance` of the original outputs about their
    /// mean, and the size up to which such errors are rounding.
    ///
    /// If the original outputs do not vary, an error above rounding is infinite.
    pub(super) fn relative_to(&self, variance: f64) -> (Vec<f64>, f64) {
        if variance > 0.0 {
            let relative = |squared: f64| (squared / variance).sqrt();
            return (self.by_rank.iter().map(|&squared| relative(squared)).collect(), relative(self.noise));
        }
        let relative = |&squared: &f64| if squared <= self.noise { 0.0 } else { f64::INFINITY };
        (self.by_rank.iter().map(relative).collect(), 0.0)
    }
}

/// The relative errors for every rank from 1, and the smallest that can be told from zero.
pub(super) struct PredictedErrors {
    /// In plain outputs.
    pub(super) plain: Option<(Vec<f64>, f64)>,
    /// In the output metric.
    pub(super) metric: Option<(Vec<f64>, f64)>,
}

/// The second moments of the data that an error is predicted for.
pub(super) struct DataMoments<'a, T> {
    /// Of the inputs `x̂` that the compressed layer sees.
    pub(super) inputs: &'a dyn SecondMoment<T>,
    /// Of the original inputs `x`.
    pub(super) original: Box<dyn SecondMoment<T> + 'a>,
    /// Between `x` and `x̂`, unless they are the same.
    pub(super) cross: Option<CrossMoment<'a, T>>,
    /// Whether all are of the same samples.
    pub(super) same_samples: bool,
}

impl<'a, T: Scalar> DataMoments<'a, T> {
    /// The identity, for the error of the weight itself.
    pub(super) fn identity(inputs: &'a dyn SecondMoment<T>) -> Self {
        Self { inputs, original: identity(inputs.features()), cross: None, same_samples: true }
    }
}

/// `E‖W x − C x̂‖²` for every rank from 1 of the nested factors `up` and `down` of `C`, and
/// `E‖W x‖²`. In units of the scaled weight and of the scaled second moment of `x̂`.
pub(super) fn squared_errors<T: Scalar>(
    weight: MatRef<'_, T>,
    factors: (MatRef<'_, T>, MatRef<'_, T>),
    moments: &DataMoments<'_, T>,
    par: Par,
) -> Result<SquaredErrors> {
    match errors_in_native(weight, factors, moments, par)? {
        Some(errors) => Ok(errors),
        None => errors_in_double(weight, factors, moments, par),
    }
}

/// In the precision of the data; `None` if that is `f64`, or if rounding could be seen in the
/// errors.
fn errors_in_native<T: Scalar>(
    weight: MatRef<'_, T>,
    (up, down): (MatRef<'_, T>, MatRef<'_, T>),
    moments: &DataMoments<'_, T>,
    par: Par,
) -> Result<Option<SquaredErrors>> {
    let DataMoments { inputs, original, .. } = moments;
    let scale = power_of_two(-even_exponent(linalg::max_abs(weight)));
    let unit = power_of_two(original.exponent() - inputs.exponent());
    let ordinary = |matrix| NATIVE_EXPONENTS.contains(&even_exponent(linalg::max_abs(matrix)));
    if T::EPSILON == f64::EPSILON || ![weight, up, down].into_iter().all(ordinary) {
        return Ok(None);
    }
    let terms = term_size(&linalg::squared_column_norms(weight), &**original, (1.0, 0.0)) * scale * scale * unit;
    let samples = inputs.samples_kept().is_some() || original.samples_kept().is_some();
    let found = if samples {
        terms_of_samples(weight, (up, down), moments, (scale, unit), par)?
    } else {
        terms_of_matrices(weight, (up, down), moments, (scale, unit), par)?
    };
    let Some((total, cross, gram)) = found else { return Ok(None) };
    let overlap = linalg::product(up.transpose(), up, par)?;
    let captured = captured_by_rank(&cross, &gram, &overlap);
    let noise = (ROUNDING * T::EPSILON + original.rounding()) * terms.max(total);
    let errors = SquaredErrors::left_of(total, &captured, noise);
    // Terms can cancel in products with a second moment; rounding is then in proportion to them.
    let least = LEAST_LEFT_OUT * if samples { total } else { terms.max(total) };
    let visible = errors.by_rank.last().is_some_and(|&last| last >= least);
    Ok(visible.then_some(errors))
}

/// `E‖W x‖²`, and the cross terms and latent second moment that [`captured_by_rank`] reads.
type ErrorTerms<T> = (f64, Vec<f64>, Mat<T>);

/// From the outputs of kept samples; `None` unless all moments are of the same ones.
fn terms_of_samples<T: Scalar>(
    weight: MatRef<'_, T>,
    (up, down): (MatRef<'_, T>, MatRef<'_, T>),
    moments: &DataMoments<'_, T>,
    (scale, unit): (f64, f64),
    par: Par,
) -> Result<Option<ErrorTerms<T>>> {
    if !moments.same_samples {
        return Ok(None);
    }
    let Some(outputs) = moments.original.outputs(weight, scale * unit.sqrt(), par)? else { return Ok(None) };
    let Some(latent) = moments.inputs.outputs(down, scale, par)? else { return Ok(None) };
    let kept = linalg::product(up.transpose(), outputs.as_ref(), par)?;
    let total = linalg::squared_norm(outputs.as_ref());
    let cross = rows_times_columns(kept.as_ref(), latent.transpose());
    Ok(Some((total, cross, linalg::product(latent.as_ref(), latent.transpose(), par)?)))
}

/// From second moments whose entries are known.
fn terms_of_matrices<T: Scalar>(
    weight: MatRef<'_, T>,
    (up, down): (MatRef<'_, T>, MatRef<'_, T>),
    moments: &DataMoments<'_, T>,
    (scale, unit): (f64, f64),
    par: Par,
) -> Result<Option<ErrorTerms<T>>> {
    let product = |a: MatRef<'_, T>, b: MatRef<'_, T>| linalg::product(a, b, par);
    let (weight, down) = (linalg::converted::<T, T>(weight, scale)?, linalg::converted::<T, T>(down, scale)?);
    let original = moments.original.native(par)?;
    let weighted = product(weight.as_ref(), original.as_ref())?;
    let total = rows_times_columns(weighted.as_ref(), weight.transpose()).iter().sum::<f64>() * unit;
    let projected = product(up.transpose(), weight.as_ref())?;
    let (cross, latent);
    match &moments.cross {
        None => {
            latent = product(down.as_ref(), original.as_ref())?;
            cross = rows_times_columns(projected.as_ref(), latent.transpose());
        }
        Some(moment) => {
            let Some(matrix) = moment.native()? else { return Ok(None) };
            let projected = product(projected.as_ref(), matrix.as_ref())?;
            cross = rows_times_columns(projected.as_ref(), down.transpose());
            latent = product(down.as_ref(), moments.inputs.native(par)?.as_ref())?;
        }
    }
    Ok(Some((total, cross, product(latent.as_ref(), down.transpose())?)))
}

fn errors_in_double<T: Scalar>(
    weight: MatRef<'_, T>,
    (up, down): (MatRef<'_, T>, MatRef<'_, T>),
    moments: &DataMoments<'_, T>,
    par: Par,
) -> Result<SquaredErrors> {
    let &DataMoments { inputs, ref original, ref cross, .. } = moments;
    let scale = power_of_two(-even_exponent(linalg::max_abs(weight)));
    let unit = power_of_two(original.exponent() - inputs.exponent());
    let weight = linalg::widened(weight, scale)?;
    let (up, down) = (linalg::widened(up, 1.0)?, linalg::widened(down, scale)?);
    let total = original.energy(weight.as_ref(), par)? * unit;
    let weighted = inputs.multiply(down.transpose(), par)?;
    let projected = linalg::product(up.transpose(), weight.as_ref(), par)?;
    let cross = match cross {
        None => rows_times_columns(projected.as_ref(), weighted.as_ref()),
        Some(cross) => {
            rows_times_columns(cross.left_multiply(projected.as_ref(), par)?.as_ref(), down.as_ref().transpose())
        }
    };
    let gram = linalg::product(down.as_ref(), weighted.as_ref(), par)?;
    let overlap = linalg::product(up.transpose(), up.as_ref(), par)?;
    let captured = captured_by_rank(&cross, &gram, &overlap);
    // Rounding is in proportion to the terms that add up to the total, though they may cancel.
    let level = solver::noise_level(weight.nrows().max(weight.ncols()));
    let terms = term_size(&linalg::squared_column_norms(weight.as_ref()), &**original, (1.0, 0.0)) * unit;
    let noise = (level + original.rounding()) * terms;
    Ok(SquaredErrors::left_of(total, &captured, noise.max(level * total)))
}

/// `Σ_j a_ij b_ji` for every `i`.
fn rows_times_columns<T: Scalar>(a: MatRef<'_, T>, b: MatRef<'_, T>) -> Vec<f64> {
    let mut sums = vec![0.0; a.nrows()];
    linalg::add_row_products(&mut sums, a, b.transpose());
    sums
}

/// The decrease of `E‖W x − C x̂‖²` by each rank one term `u d` of `C`.
///
/// `cross` is `E (uᵀW x)(d x̂)`, `gram` the second moment of the `d x̂` and `overlap` that of the
/// `u`. The function reads the lower triangles of both matrices.
pub(super) fn captured_by_rank<T: Scalar>(cross: &[f64], gram: &Mat<T>, overlap: &Mat<T>) -> Vec<f64> {
    let term = |i: usize, j: usize| overlap[(i, j)].to_f64() * gram[(i, j)].to_f64();
    let captured = |(rank, cross): (usize, &f64)| {
        let others: f64 = (0..rank).map(|other| term(rank, other)).sum();
        2.0 * (cross - others) - term(rank, rank)
    };
    cross.iter().enumerate().map(captured).collect()
}

/// A layer that replaces another: a weight as one matrix or as two factors, and a bias.
pub(super) struct Replacement<'a, T> {
    left: MatRef<'a, T>,
    right: Option<MatRef<'a, T>>,
    bias: Option<ColRef<'a, T>>,
}

impl<'a, T: Scalar> From<&'a Linear<T>> for Replacement<'a, T> {
    fn from(layer: &'a Linear<T>) -> Self {
        Self { left: layer.weight(), right: None, bias: layer.bias() }
    }
}

impl<'a, T: Scalar> From<&'a LowRankLinear<T>> for Replacement<'a, T> {
    fn from(layer: &'a LowRankLinear<T>) -> Self {
        Self { left: layer.up(), right: Some(layer.down()), bias: layer.bias() }
    }
}

/// Computes `E‖(W x + b) − (C x + b̂)‖² = tr((W − C) Σ (W − C)ᵀ) + ‖(W − C) μ + b − b̂‖²`, and the
/// variance of the original outputs.
pub(super) fn output_error<'a, T: Scalar>(
    layer: &Linear<T>,
    replacement: impl Into<Replacement<'a, T>>,
    stats: &ActivationStats<T>,
) -> Result<OutputError> {
    let replacement = replacement.into();
    replacement.require_shape_of(layer)?;
    stats.require_features(layer.in_features())?;
    stats.require_samples()?;
    let centred = second_moment(stats, true)?;
    let spread = Distribution { moment: &*centred, mean: &stats.mean_or_zero() };
    replacement.error(layer, &spread, &spread, |weight, low| Ok(weight - low))
}

/// Computes `E‖(W x + b) − (C x̂ + b̂)‖²` for the original inputs `x` and those of the compressed
/// network, and the variance of the original outputs.
pub(super) fn paired_error<T: Scalar>(
    layer: &Linear<T>,
    replacement: &LowRankLinear<T>,
    stats: &PairedStats<T>,
) -> Result<OutputError> {
    let (replacement, n) = (Replacement::from(replacement), layer.in_features());
    replacement.require_shape_of(layer)?;
    stats.require_features(n)?;
    let (joint, original) = (stats.joint_moment(true)?, stats.original_moment(true)?);
    let (mean, mut both_means) = stats.means();
    both_means.extend(&mean);
    let both = Distribution { moment: &*joint, mean: &both_means };
    // The residual is one matrix on the inputs `x̂` and `x`.
    replacement.error(layer, &both, &Distribution { moment: &*original, mean: &mean }, |weight, low| {
        let mut residual = linalg::zeros(weight.nrows(), 2 * n)?;
        faer::zip!(residual.as_mut().get_mut(.., ..n), low).for_each(|faer::unzip!(to, low)| *to = -low);
        residual.as_mut().get_mut(.., n..).copy_from(weight);
        Ok(residual)
    })
}

/// The covariance of some inputs, and their mean.
struct Distribution<'a, T> {
    moment: &'a dyn SecondMoment<T>,
    mean: &'a [f64],
}

impl<T: Scalar> Distribution<'_, T> {
    /// The energy of the factor's outputs about their mean.
    fn variance(&self, factor: &Mat<f64>, par: Par) -> Result<f64> {
        Ok(self.moment.energy(factor.as_ref(), par)?.max(0.0) * power_of_two(self.moment.exponent()))
    }
}

impl<T: Scalar> Replacement<'_, T> {
    /// Refuses a layer of another shape.
    fn require_shape_of(&self, layer: &Linear<T>) -> Result<()> {
        let columns = self.right.unwrap_or(self.left).ncols();
        for (what, expected, found) in [
            ("outputs in the layer (as its replacement has)", self.left.nrows(), layer.out_features()),
            ("inputs in the layer (as its replacement has)", columns, layer.in_features()),
        ] {
            if expected != found {
                return Err(Error::shape(what, expected, found));
            }
        }
        Ok(())
    }

    /// The mean square of the residual, a matrix on `inputs` that `residual` makes of the scaled
    /// weights of the layer and of its replacement, and the variance of the outputs for `original`.
    fn error(
        &self,
        layer: &Linear<T>,
        inputs: &Distribution<'_, T>,
        original: &Distribution<'_, T>,
        residual: impl FnOnce(MatRef<'_, f64>, MatRef<'_, f64>) -> Result<Mat<f64>>,
    ) -> Result<OutputError> {
        let &Self { left, right, bias } = self;
        let par = linalg::threads(0);
        let scale = power_of_two(-even_exponent(linalg::max_abs(layer.weight())));
        let weight = linalg::widened(layer.weight(), scale)?;
        let low = match right {
            None => linalg::widened(left, scale)?,
            Some(right) => {
                let (up, down) = (linalg::widened(left, 1.0)?, linalg::widened(right, scale)?);
                linalg::product(up.as_ref(), down.as_ref(), par)?
            }
        };
        let residual = residual(weight.as_ref(), low.as_ref())?;
        let entry = |bias: Option<ColRef<'_, T>>, i: usize| bias.map_or(0.0, |bias| bias[i].to_f64() * scale);
        let shift = times(residual.as_ref(), inputs.mean);
        let shift = shift.iter().enumerate().map(|(i, shift)| shift + entry(layer.bias(), i) - entry(bias, i));
        let squared = inputs.variance(&residual, par)? + shift.map(|x| x * x).sum::<f64>();
        Ok(OutputError { squared, total: original.variance(&weight, par)? })
    }
}

/// Returns the error of a replacement's outputs relative to the variation of the original outputs:
/// the root of `Σ wᵢ ‖yᵢ − ŷᵢ‖² / Σ wᵢ ‖yᵢ − ȳ‖²`.
///
/// `ȳ` is the mean of the original outputs. Every relative error of this crate has this
/// denominator, so that methods can be compared. The error exceeds 1 if the constant output `ȳ`
/// would be better than the replacement.
///
/// # Errors
///
/// Layers or statistics of different shapes; no samples; original outputs that do not vary, if the
/// replacement's outputs differ from them.
///
/// # Cost
///
/// `O(p·m·n)` for `p` samples in sample form, `O(m·n²)` in covariance form.
///
/// ```
/// use dalr::{ActivationStats, Linear, relative_output_error};
/// use faer::mat;
///
/// # fn main() -> dalr::Result<()> {
/// let layer = Linear::new(mat![[1.0, 1.0]], None)?;
/// let blind_to_the_second = Linear::new(mat![[1.0, 0.0]], None)?;
/// let mut stats = ActivationStats::new(2);
/// stats.update(mat![[3.0, 0.0], [-3.0, 0.0], [0.0, 4.0], [0.0, -4.0]].as_ref())?;
/// let error = relative_output_error(&layer, &blind_to_the_second, &stats)?;
/// assert!((error - 0.8).abs() < 1e-12);
/// # Ok(())
/// # }
/// ```
pub fn relative_output_error<T: Scalar>(
    layer: &Linear<T>,
    replacement: &Linear<T>,
    stats: &ActivationStats<T>,
) -> Result<f64> {
    during("relative_output_error", || output_error(layer, replacement, stats)?.relative())
}
