//! A metric on a layer's outputs: which of their errors matter to the network.

use faer::{Mat, MatRef};

use crate::covariance::second_moment;
use crate::error::during;
use crate::linalg::{self, Par, even_exponent, power_of_two};
use crate::{ActivationStats, Error, Linear, Result, Scalar};

/// A positive definite metric `G` on a layer's outputs: an error `e` of the outputs counts
/// `eᵀ G e` instead of `eᵀ e`.
///
/// The layers behind this one do not see all errors alike. With the gradients `g` of what matters
/// (the network's output, or its loss), `gᵀ e` is the change that the error `e` makes, and
/// `G = E[g gᵀ]` weighs errors accordingly.
///
/// Every metric has a floor: `G + r · (tr G / m) · I` is used, with `r = 10⁻³` by default. The
/// floor keeps errors small that the calibration data happen not to see.
///
/// ```
/// use dalr::compress::OutputMetric;
/// use dalr::{ActivationStats, Calibration, Dalr, Linear, LowRankCompressor, Rank};
/// use faer::Mat;
///
/// # fn main() -> dalr::Result<()> {
/// # let layer = Linear::new(Mat::from_fn(8, 6, |i, j| ((i * 5 + j * 3) % 7) as f64), None)?;
/// # let inputs = Mat::from_fn(50, 6, |i, j| ((i * 11 + j * 7) % 13) as f64);
/// # let gradients = Mat::from_fn(50, 8, |i, j| ((i * 7 + j * 5) % 11) as f64 - 5.0);
/// let (mut stats, mut output_gradients) = (ActivationStats::new(6), ActivationStats::new(8));
/// stats.update(inputs.as_ref())?;
/// output_gradients.update(gradients.as_ref())?;
/// let metric = OutputMetric::from_gradients(&output_gradients)?;
/// let calibration = Calibration::from(&stats).with_output_metric(&metric);
/// let compressed = Dalr::new().compress(&layer, calibration, Rank::Fixed(3))?;
/// println!("{:?} in the metric", compressed.report().metric_error);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct OutputMetric {
    matrix: Metric,
    root: MetricRoot,
}

#[derive(Clone, Debug)]
enum Metric {
    Diagonal(Vec<f64>),
    Full(Mat<f64>),
}

const DEFAULT_FLOOR: f64 = 1e-3;

impl OutputMetric {
    /// A metric from a symmetric positive semidefinite matrix, outputs × outputs.
    ///
    /// # Errors
    ///
    /// A matrix that is empty, not square, not finite, zero, not symmetric or indefinite beyond
    /// rounding.
    pub fn new(matrix: MatRef<'_, f64>) -> Result<Self> {
        during("OutputMetric::new", || {
            let size = matrix.nrows();
            if matrix.ncols() != size {
                return Err(Error::shape("columns in the output metric (one per row)", size, matrix.ncols()));
            }
            linalg::require_finite("the output metric", matrix)?;
            let rounding = 64.0 * f64::EPSILON * size as f64 * linalg::max_abs(matrix);
            let asymmetry = (matrix - matrix.transpose()).norm_max();
            if asymmetry > rounding {
                let expected = format!("to be at most {rounding:e} (use `(G + Gᵀ) / 2` to make it symmetric)");
                return Err(Error::out_of_range(
                    "the difference of the output metric `G` and its transpose",
                    expected,
                    asymmetry,
                ));
            }
            Self::from_parts(Metric::Full(linalg::widened(matrix, 1.0)?))
        })
    }

    /// The metric `E[g gᵀ]` from statistics of the gradients `g` with respect to the outputs, one
    /// row for each sample.
    ///
    /// Any gradients serve that say what matters: those of the loss, or of `vᵀ z` for the network's
    /// output `z` and random vectors `v` with identity covariance. One or two vectors for each of
    /// some hundred samples are enough.
    ///
    /// # Errors
    ///
    /// [`Error::NoSamples`], gradients that are all zero, or [`Error::Memory`].
    pub fn from_gradients<T: Scalar>(gradients: &ActivationStats<T>) -> Result<Self> {
        during("OutputMetric::from_gradients", || Self::from_parts(Metric::Full(uncentred(gradients)?)))
    }

    /// The metric of the outputs `y` that the next layer reads as `W₂ φ(y)`, without gradients:
    /// `(W₂ᵀ G₂ W₂) ∘ E[d dᵀ]` with the slopes `d = φ'(y)` on the calibration data.
    ///
    /// `behind` is the metric `G₂` of the next layer's outputs, the identity if it is `None`; so
    /// metrics chain backwards through a network. [`ActivationFunction::slopes`] computes `d`.
    ///
    /// # Errors
    ///
    /// Slopes of another width than the next layer has inputs; a metric of another size than it has
    /// outputs; no samples; a metric of zero (all slopes are zero); [`Error::Memory`].
    pub fn from_next_layer<T: Scalar>(
        next: &Linear<T>,
        slopes: &ActivationStats<T>,
        behind: Option<&Self>,
    ) -> Result<Self> {
        during("OutputMetric::from_next_layer", || {
            slopes.require_features(next.in_features())?;
            if let Some(behind) = behind {
                behind.require_size(next.out_features())?;
            }
            let par = linalg::threads(0);
            let weight = linalg::widened(next.weight(), power_of_two(-even_exponent(linalg::max_abs(next.weight()))))?;
            let weighted = match behind.map(|behind| &behind.matrix) {
                None => linalg::widened(weight.as_ref(), 1.0)?,
                Some(Metric::Full(matrix)) => linalg::product(matrix.as_ref(), weight.as_ref(), par)?,
                Some(Metric::Diagonal(weights)) => scaled_rows(weight.as_ref(), weights, |weight| weight)?,
            };
            let mut matrix = uncentred(slopes)?;
            let seen = linalg::product(weight.transpose(), weighted.as_ref(), par)?;
            faer::zip!(&mut matrix, &seen).for_each(|faer::unzip!(entry, seen)| *entry *= seen);
            linalg::mirror_lower(&mut matrix);
            Self::from_parts(Metric::Full(matrix))
        })
    }

    /// A metric that weighs each output on its own.
    ///
    /// # Errors
    ///
    /// No weights; weights that are negative, not finite or all zero.
    pub fn diagonal(weights: &[f64]) -> Result<Self> {
        during("OutputMetric::diagonal", || Self::from_parts(Metric::Diagonal(weights.to_vec())))
    }

    /// The metric of several layers' outputs together, which are stacked on top of each other: an
    /// error counts as the sum of those of its parts. Every part keeps its floor.
    ///
    /// [`SharedInput::decompose`](crate::network::SharedInput::decompose) takes such a metric.
    ///
    /// # Errors
    ///
    /// No metrics; [`Error::Memory`].
    ///
    /// ```
    /// use dalr::compress::OutputMetric;
    /// # fn main() -> dalr::Result<()> {
    /// let (query, key) = (OutputMetric::diagonal(&[1.0, 2.0])?, OutputMetric::new(faer::mat![[3.0]].as_ref())?);
    /// assert_eq!(OutputMetric::block_diagonal(&[&query, &key])?.outputs(), 3);
    /// # Ok(())
    /// # }
    /// ```
    pub fn block_diagonal(metrics: &[&Self]) -> Result<Self> {
        during("OutputMetric::block_diagonal", || {
            let Some(exponent) = metrics.iter().map(|metric| metric.root.exponent).max() else {
                return Err(Error::empty("the list of output metrics"));
            };
            let matrix = stacked(metrics.iter().map(|metric| (&metric.matrix, 1.0)))?;
            // `L` of each part, for the largest of the exponents. The exponents are even.
            let scale = |metric: &Self| power_of_two((metric.root.exponent - exponent) / 2);
            let factor = stacked(metrics.iter().map(|metric| (&metric.root.factor, scale(metric))))?;
            Ok(Self { matrix, root: MetricRoot { factor, exponent } })
        })
    }

    /// Returns the metric `D^½ G D^½` for the diagonal matrix `D` of these weights, floor included.
    pub(crate) fn weighted(&self, weights: &[f64]) -> Result<Self> {
        let roots: Vec<f64> = weights.iter().map(|weight| weight.sqrt()).collect();
        let scaled = |metric: &Metric| -> Result<Metric> {
            Ok(match metric {
                Metric::Diagonal(entries) => {
                    Metric::Diagonal(entries.iter().zip(weights).map(|(entry, weight)| entry * weight).collect())
                }
                Metric::Full(matrix) => {
                    let rows = scaled_rows(matrix.as_ref(), &roots, |root| root)?;
                    Metric::Full(scaled_rows(rows.transpose(), &roots, |root| root)?)
                }
            })
        };
        let factor = match &self.root.factor {
            Metric::Diagonal(entries) => {
                Metric::Diagonal(entries.iter().zip(&roots).map(|(entry, root)| entry * root).collect())
            }
            Metric::Full(root) => Metric::Full(scaled_rows(root.as_ref(), &roots, |root| root)?),
        };
        Ok(Self { matrix: scaled(&self.matrix)?, root: MetricRoot { factor, exponent: self.root.exponent } })
    }

    /// Returns whether errors of these outputs count apart from those of all others.
    pub(crate) fn is_block(&self, outputs: core::ops::Range<usize>) -> bool {
        match &self.matrix {
            Metric::Diagonal(_) => true,
            Metric::Full(matrix) => (0..matrix.nrows()).all(|row| {
                let mut others =
                    (0..matrix.ncols()).filter(|column| outputs.contains(column) != outputs.contains(&row));
                others.all(|column| matrix[(row, column)] == 0.0)
            }),
        }
    }

    /// Returns `Lᵀ · matrix`, up to a power of two, for outputs × any columns.
    pub(crate) fn transformed<T: Scalar>(&self, matrix: MatRef<'_, T>) -> Result<Mat<T>> {
        self.root.transform(matrix, linalg::threads(0))
    }

    /// Sets the floor, relative to the mean of the metric's diagonal; 10⁻³ by default.
    ///
    /// # Errors
    ///
    /// A ratio that is negative or not finite; a metric that is not positive definite without a
    /// floor.
    pub fn with_floor(mut self, ratio: f64) -> Result<Self> {
        during("OutputMetric::with_floor", || {
            if !(ratio >= 0.0 && ratio.is_finite()) {
                return Err(Error::out_of_range("the floor", "to be finite and not negative".into(), ratio));
            }
            self.root = self.matrix.root(ratio, linalg::threads(0))?;
            Ok(self)
        })
    }

    /// Number of outputs that the metric weighs.
    pub fn outputs(&self) -> usize {
        match &self.matrix {
            Metric::Diagonal(weights) => weights.len(),
            Metric::Full(matrix) => matrix.nrows(),
        }
    }

    /// The number of outputs, the metric, and its root up to a power of two. A diagonal is given by
    /// its entries.
    #[cfg(feature = "serde")]
    pub(crate) fn to_stored(&self) -> (usize, [Vec<f64>; 2], i32) {
        let numbers = |matrix: &Metric| match matrix {
            Metric::Diagonal(entries) => entries.clone(),
            Metric::Full(matrix) => matrix.row_iter().flat_map(|row| row.iter().copied()).collect(),
        };
        (self.outputs(), [numbers(&self.matrix), numbers(&self.root.factor)], self.root.exponent)
    }

    /// The metric that [`to_stored`](Self::to_stored) gave the parts of.
    #[cfg(feature = "serde")]
    pub(crate) fn from_stored(outputs: usize, parts: [Vec<f64>; 2], exponent: i32) -> Result<Self> {
        let metric = |numbers: Vec<f64>| {
            let what = "numbers in the output metric";
            match numbers.len() {
                0 => Err(Error::empty("the output metric")),
                count if count == outputs => Ok(Metric::Diagonal(numbers)),
                count if Some(count) == outputs.checked_mul(outputs) => {
                    Ok(Metric::Full(MatRef::from_row_major_slice(&numbers, outputs, outputs).to_owned()))
                }
                count => Err(Error::shape(what, outputs.saturating_mul(outputs), count)),
            }
        };
        if let Some((index, &number)) = parts.iter().flatten().enumerate().find(|(_, number)| !number.is_finite()) {
            return Err(Error::non_finite("the output metric", (index, 0), number));
        }
        let [matrix, factor] = parts.map(metric);
        let (matrix, factor) = (matrix?, factor?);
        if let Some(&least) = factor.diagonal().iter().find(|&&root| root <= 0.0) {
            return Err(Error::out_of_range("a root of the output metric", "to be positive".into(), least));
        }
        Ok(Self { matrix, root: MetricRoot { factor, exponent } })
    }

    fn from_parts(matrix: Metric) -> Result<Self> {
        let weights = matrix.diagonal();
        if weights.is_empty() {
            return Err(Error::empty("the output metric"));
        }
        for (index, &weight) in weights.iter().enumerate() {
            if !weight.is_finite() {
                return Err(Error::non_finite("the output metric", (index, index), weight));
            }
            if weight < 0.0 {
                return Err(Error::out_of_range("a weight of the output metric", "to be at least 0".into(), weight));
            }
        }
        if weights.iter().all(|&weight| weight == 0.0) {
            let expected = "to be positive: no error would count".into();
            return Err(Error::out_of_range("the trace of the output metric", expected, 0.0));
        }
        let root = matrix.root(DEFAULT_FLOOR, linalg::threads(0))?;
        Ok(Self { matrix, root })
    }

    pub(super) fn require_size(&self, expected: usize) -> Result<()> {
        if self.outputs() == expected {
            return Ok(());
        }
        Err(Error::shape("outputs in the metric (as the layer has)", expected, self.outputs()))
    }

    pub(super) fn root(&self) -> &MetricRoot {
        &self.root
    }
}

impl Metric {
    fn diagonal(&self) -> Vec<f64> {
        match self {
            Self::Diagonal(weights) => weights.clone(),
            Self::Full(matrix) => matrix.diagonal().column_vector().iter().copied().collect(),
        }
    }

    /// `L` with `L Lᵀ = G`, divided by a power of two. The floor is relative to the mean of the
    /// diagonal.
    fn root(&self, floor: f64, par: Par) -> Result<MetricRoot> {
        let weights = self.diagonal();
        // Each is divided first, so that the sum does not overflow.
        let mean: f64 = weights.iter().map(|weight| weight / weights.len() as f64).sum();
        let exponent = even_exponent(mean);
        let scale = power_of_two(-exponent);
        let added = floor * mean * scale;
        let indefinite = |least: f64| {
            let expected = "to be positive: the metric is indefinite, or singular without a floor".into();
            Error::out_of_range("the least eigenvalue of the output metric", expected, least)
        };
        let factor = match self {
            Self::Diagonal(weights) => {
                let roots: Vec<f64> = weights.iter().map(|weight| (weight * scale + added).sqrt()).collect();
                if roots.contains(&0.0) {
                    return Err(indefinite(0.0));
                }
                Self::Diagonal(roots)
            }
            Self::Full(matrix) => {
                let mut lifted = linalg::widened(matrix.as_ref(), scale)?;
                for index in 0..lifted.nrows() {
                    lifted[(index, index)] += added;
                }
                let mut root = linalg::cholesky(lifted, par)?.ok_or_else(|| indefinite(-added))?;
                for column in 0..root.ncols() {
                    root.as_mut().col_mut(column).get_mut(..column).fill(0.0);
                }
                Self::Full(root)
            }
        };
        Ok(MetricRoot { factor, exponent })
    }
}

/// Returns matrices, each times a factor, as blocks on the diagonal.
fn stacked<'a>(parts: impl Iterator<Item = (&'a Metric, f64)> + Clone) -> Result<Metric> {
    let size = |part: &Metric| part.diagonal().len();
    if parts.clone().all(|(part, _)| matches!(part, Metric::Diagonal(_))) {
        let all = parts.flat_map(|(part, factor)| part.diagonal().into_iter().map(move |entry| entry * factor));
        return Ok(Metric::Diagonal(all.collect()));
    }
    let total = parts.clone().map(|(part, _)| size(part)).sum();
    let mut matrix = linalg::zeros(total, total)?;
    let mut start = 0;
    for (part, factor) in parts {
        let count = size(part);
        let mut block = matrix.as_mut().submatrix_mut(start, start, count, count);
        match part {
            Metric::Diagonal(entries) => {
                let diagonal = block.diagonal_mut().column_vector_mut();
                diagonal.iter_mut().zip(entries).for_each(|(to, entry)| *to = entry * factor);
            }
            Metric::Full(full) => {
                block.copy_from(full);
                block *= faer::Scale(factor);
            }
        }
        start += count;
    }
    Ok(Metric::Full(matrix))
}

/// `L`, lower triangular, with `L Lᵀ = G / 2^exponent`, floor included.
#[derive(Clone, Debug)]
pub(super) struct MetricRoot {
    factor: Metric,
    pub(super) exponent: i32,
}

impl MetricRoot {
    /// `Lᵀ · matrix`.
    pub(super) fn transform<T: Scalar>(&self, matrix: MatRef<'_, T>, par: Par) -> Result<Mat<T>> {
        match &self.factor {
            Metric::Diagonal(roots) => scaled_rows(matrix, roots, |root| root),
            Metric::Full(root) => {
                let root = native_lower(root.as_ref())?;
                let mut result = linalg::zeros(matrix.nrows(), matrix.ncols())?;
                let triangle = linalg::BlockStructure::TriangularLower;
                let target = result.as_mut().transpose_mut();
                linalg::set_triangular_product(target, matrix.transpose(), root.as_ref(), triangle, par);
                Ok(result)
            }
        }
    }

    /// `L · matrix`.
    pub(super) fn multiply<T: Scalar>(&self, matrix: MatRef<'_, T>, par: Par) -> Result<Mat<T>> {
        match &self.factor {
            Metric::Diagonal(roots) => scaled_rows(matrix, roots, |root| root),
            Metric::Full(root) => linalg::product(native_lower(root.as_ref())?.as_ref(), matrix, par),
        }
    }

    /// `L⁻ᵀ · matrix`.
    pub(super) fn solve_transposed(&self, mut matrix: Mat<f64>, par: Par) -> Result<Mat<f64>> {
        match &self.factor {
            Metric::Diagonal(roots) => scaled_rows(matrix.as_ref(), roots, f64::recip),
            Metric::Full(root) => {
                linalg::solve_upper_triangular(root.transpose(), matrix.as_mut(), par);
                Ok(matrix)
            }
        }
    }
}

/// The lower triangle in the precision of the data, zero above.
fn native_lower<T: Scalar>(triangle: MatRef<'_, f64>) -> Result<Mat<T>> {
    let mut native = linalg::zeros::<T>(triangle.nrows(), triangle.ncols())?;
    for (index, (to, from)) in native.as_mut().col_iter_mut().zip(triangle.col_iter()).enumerate() {
        let entries = to.iter_mut().zip(from.iter()).skip(index);
        entries.for_each(|(to, from)| *to = T::from_f64(*from));
    }
    Ok(native)
}

/// Row `i` of the matrix times `of(weights[i])`.
fn scaled_rows<T: Scalar>(matrix: MatRef<'_, T>, weights: &[f64], of: impl Fn(f64) -> f64) -> Result<Mat<T>> {
    let mut result = linalg::zeros(matrix.nrows(), matrix.ncols())?;
    for (to, from) in result.as_mut().col_iter_mut().zip(matrix.col_iter()) {
        for ((to, from), &weight) in to.iter_mut().zip(from.iter()).zip(weights) {
            *to = T::from_f64(from.to_f64() * of(weight));
        }
    }
    Ok(result)
}

/// The second moment about zero.
fn uncentred<T: Scalar>(stats: &ActivationStats<T>) -> Result<Mat<f64>> {
    stats.require_samples()?;
    second_moment(stats, false)?.unscaled(linalg::threads(0))
}

/// An activation function, for [`OutputMetric::from_next_layer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum ActivationFunction {
    /// `y`.
    Identity,
    /// `max(y, 0)`.
    Relu,
    /// `y Φ(y)`, with the normal distribution's `Φ` (not its tanh approximation).
    Gelu,
    /// `y / (1 + e⁻ʸ)`.
    Silu,
    /// `tanh y`.
    Tanh,
}

impl ActivationFunction {
    /// The slope `φ'(y)` for every entry of `outputs`, the layer's outputs before the activation.
    ///
    /// # Errors
    ///
    /// [`Error::Memory`].
    pub fn slopes<T: Scalar>(self, outputs: MatRef<'_, T>) -> Result<Mat<T>> {
        let mut slopes = linalg::converted::<T, T>(outputs, 1.0)?;
        for column in slopes.as_mut().col_iter_mut() {
            column.iter_mut().for_each(|entry| *entry = T::from_f64(self.slope(entry.to_f64())));
        }
        Ok(slopes)
    }

    fn slope(self, y: f64) -> f64 {
        match self {
            Self::Identity => 1.0,
            Self::Relu => f64::from(y > 0.0),
            Self::Gelu => normal_distribution(y) + y * (-y * y / 2.0).exp() / (2.0 * core::f64::consts::PI).sqrt(),
            Self::Silu => {
                let gate = 1.0 / (1.0 + (-y).exp());
                gate * (1.0 + y * (1.0 - gate))
            }
            Self::Tanh => 1.0 - y.tanh().powi(2),
        }
    }
}

/// `Φ(y)`, with an error below 10⁻⁷ (Abramowitz and Stegun, 7.1.26).
fn normal_distribution(y: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.327_591_1 * y.abs() / core::f64::consts::SQRT_2);
    let polynomial =
        t * (0.254_829_592 + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    let tail = 0.5 * polynomial * (-y * y / 2.0).exp();
    if y < 0.0 { tail } else { 1.0 - tail }
}
