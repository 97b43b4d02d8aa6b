//! The second moment `S` of a layer's inputs as an operator: what the compressors see of the statistics.

use faer::{Mat, MatRef};

use super::samples::Centre;
use super::{ActivationStats, Form, Samples};
use crate::linalg::{self, Par, SplitMix64, even_exponent, power_of_two};
use crate::{Result, Scalar};

/// Variances this far below the squared mean of their input are rounding noise of a constant: `(2⁻⁴⁴)²`.
const NEGLIGIBLE: f64 = 1.0 / (1_u128 << 88) as f64;

/// Rounding errors in a sum of products in single precision: a random walk of about a thousand steps, at the most, whose ends average out.
/// No bound: products that are all equal (inputs of two values, say) round to one side. It decides what counts as noise and no more.
const NARROW_ROUNDING: f64 = 16.0;

/// Multiply–adds from which on `tr S²` of samples is estimated, a fraction of a second.
const LARGE: f64 = 1e10;

/// Inputs up to which directions that dominate are eigenvectors: milliseconds.
const FEW: usize = 64;

/// Random vectors of which that estimate is the mean.
const VECTORS: usize = 32;

/// `S` divided by a power of two, `2^exponent`, which brings its mean diagonal entry near 1 and keeps
/// everything computed from it clear of overflow and underflow.
pub(crate) struct Moment<'a, T> {
    source: Source<'a, T>,
    features: usize,
    exponent: i32,
    /// Of the divided `S`.
    trace: f64,
    /// Of the divided `S`.
    diagonal: Vec<f64>,
}

enum Source<'a, T> {
    /// `S = I`: every direction of the input counts the same.
    Identity,
    Data {
        stats: &'a ActivationStats<T>,
        /// Where samples are measured from.
        centre: OwnedCentre,
        /// Inputs × any number; what `S` holds besides the scatter, in units of the divided `S`.
        completion: Option<Mat<f64>>,
    },
}

/// What intensities of shrinkage want to know of the spectrum of `S`, beside its trace.
pub(crate) struct Spread {
    /// `tr S²`.
    pub(crate) trace_of_square: f64,
    /// The share of `tr S` outside of some directions.
    pub(crate) outside: f64,
}

struct OwnedCentre {
    origin: Vec<f64>,
    offset: Vec<f64>,
}

impl OwnedCentre {
    fn get(&self) -> Centre<'_> {
        Centre { origin: &self.origin, offset: &self.offset }
    }
}

impl<'a, T: Scalar> Moment<'a, T> {
    /// `S = I`.
    pub(crate) fn identity(features: usize) -> Self {
        let diagonal = vec![1.0; features];
        Self { source: Source::Identity, features, exponent: 0, trace: features as f64, diagonal }
    }

    /// The covariance, or the uncentred second moment, of at least one sample.
    pub(crate) fn of(stats: &'a ActivationStats<T>, centred: bool) -> Result<Self> {
        let features = stats.features;
        let channels = &stats.channels;
        let zeros = || vec![0.0; features];
        let mean: Vec<f64> = stats.mean_or_zero();
        let centre = if centred {
            OwnedCentre { origin: channels.origin.clone(), offset: channels.offset.clone() }
        } else {
            OwnedCentre { origin: zeros(), offset: zeros() }
        };
        let mut squares = zeros();
        let mut completion = None;
        match &stats.form {
            Form::Samples(samples) => mean_squares(samples, &centre.get(), stats.weight, &mut squares),
            Form::Scatter(collapsed) => {
                completion = collapsed.completion(&channels.origin, &centre.get(), centred)?;
                for (square, sum) in squares.iter_mut().zip(collapsed.scatter.diagonal()) {
                    *square = sum / stats.weight;
                }
                if let Some(columns) = &completion {
                    for column in columns.col_iter() {
                        squares.iter_mut().zip(column.iter()).for_each(|(square, x)| *square += x * x / stats.weight);
                    }
                }
            }
        }
        let varying = squares.iter().zip(&mean).filter(|&(square, m)| *square > NEGLIGIBLE * m * m);
        let trace: f64 = varying.map(|(square, _)| square).sum();
        let exponent = even_exponent(trace / features.max(1) as f64);
        let trace = trace * power_of_two(-exponent);
        let root = power_of_two(-exponent / 2) / stats.weight.sqrt();
        if let Some(columns) = &mut completion {
            *columns *= faer::Scale(root);
        }
        squares.iter_mut().for_each(|square| *square *= power_of_two(-exponent));
        Ok(Self { source: Source::Data { stats, centre, completion }, features, exponent, trace, diagonal: squares })
    }

    pub(crate) fn features(&self) -> usize {
        self.features
    }

    /// `S` itself is `2^exponent` times what the other methods speak of.
    pub(crate) fn exponent(&self) -> i32 {
        self.exponent
    }

    /// `tr S`; exactly zero when `S` is zero or nothing but rounding noise.
    pub(crate) fn trace(&self) -> f64 {
        self.trace
    }

    /// How finely entries of `S` can differ where their squares underflow: nothing to speak of for all but the tiniest inputs.
    pub(crate) fn quantum(&self) -> f64 {
        64.0 * self.features as f64 * f64::from_bits(1) * power_of_two(-self.exponent)
    }

    /// Rounding in an entry of `S`, relative to `√(S_ii S_jj)`, where it comes from products in single precision; zero where all is `f64`.
    pub(crate) fn rounding(&self) -> f64 {
        match &self.source {
            Source::Data { stats: ActivationStats { form: Form::Scatter(collapsed), .. }, .. }
                if collapsed.scatter.precision > f64::EPSILON =>
            {
                NARROW_ROUNDING * collapsed.scatter.precision
            }
            _ => 0.0,
        }
    }

    /// The diagonal of `S`.
    pub(crate) fn diagonal(&self) -> &[f64] {
        &self.diagonal
    }

    /// What turns the scatter into the divided `S`.
    fn factor(&self, stats: &ActivationStats<T>) -> f64 {
        power_of_two(-self.exponent) / stats.weight
    }

    /// What turns a centred sample into a column of a root of the divided `S`.
    fn sample_factor(&self, stats: &ActivationStats<T>) -> f64 {
        power_of_two(-self.exponent / 2) / stats.weight.sqrt()
    }

    /// Visits the samples as `features × count` columns of which the sum of outer products is `S`.
    fn for_each_sample_block<O: Scalar>(&self, par: Par, visit: impl FnMut(MatRef<'_, O>) -> Result<()>) -> Result<()> {
        let Source::Data { stats, centre, .. } = &self.source else { return Ok(()) };
        let Form::Samples(samples) = &stats.form else { return Ok(()) };
        samples.for_each_centred(&centre.get(), self.sample_factor(stats), par, visit)
    }

    /// `left · S · leftᵀ`, for `rows × features`.
    pub(crate) fn congruence(&self, left: MatRef<'_, f64>, par: Par) -> Result<Mat<f64>> {
        let mut result = linalg::zeros(left.nrows(), left.nrows())?;
        match &self.source {
            _ if self.trace == 0.0 => {}
            Source::Identity => {
                linalg::add_symmetric_product(result.as_mut(), 1.0, left, left.transpose(), par);
            }
            Source::Data { stats, completion, .. } => match &stats.form {
                Form::Samples(_) => self.for_each_sample_block(par, |columns: MatRef<'_, f64>| {
                    let outputs = linalg::product(left, columns, par)?;
                    let outputs = outputs.as_ref();
                    linalg::add_symmetric_product(result.as_mut(), 1.0, outputs, outputs.transpose(), par);
                    Ok(())
                })?,
                Form::Scatter(collapsed) => {
                    let applied = collapsed.scatter.multiply(left.transpose(), self.factor(stats), par)?;
                    linalg::add_symmetric_product(result.as_mut(), 1.0, left, applied.as_ref(), par);
                    if let Some(columns) = completion {
                        let output = linalg::product(left, columns.as_ref(), par)?;
                        let output = output.as_ref();
                        linalg::add_symmetric_product(result.as_mut(), 1.0, output, output.transpose(), par);
                    }
                }
            },
        }
        linalg::mirror_lower(&mut result);
        Ok(result)
    }

    /// `S · right`, for `features × columns`.
    pub(crate) fn multiply(&self, right: MatRef<'_, f64>, par: Par) -> Result<Mat<f64>> {
        let mut result = linalg::zeros(self.features, right.ncols())?;
        match &self.source {
            _ if self.trace == 0.0 => {}
            Source::Identity => result.copy_from(right),
            Source::Data { stats, completion, .. } => match &stats.form {
                Form::Samples(_) => self.for_each_sample_block(par, |columns: MatRef<'_, f64>| {
                    let outputs = linalg::product(columns.transpose(), right, par)?;
                    linalg::add_product(result.as_mut(), 1.0, columns, outputs.as_ref(), par);
                    Ok(())
                })?,
                Form::Scatter(collapsed) => {
                    result = collapsed.scatter.multiply(right, self.factor(stats), par)?;
                    if let Some(columns) = completion {
                        let share = linalg::product(columns.transpose(), right, par)?;
                        linalg::add_product(result.as_mut(), 1.0, columns.as_ref(), share.as_ref(), par);
                    }
                }
            },
        }
        Ok(result)
    }

    /// `aᵢ S bᵢᵀ` for every pair of rows of two `rows × features` matrices, which may be the same.
    pub(crate) fn row_forms(&self, a: MatRef<'_, f64>, b: MatRef<'_, f64>, par: Par) -> Result<Vec<f64>> {
        let strides = |matrix: MatRef<'_, f64>| (matrix.row_stride(), matrix.col_stride());
        let same = a.as_ptr() == b.as_ptr() && strides(a) == strides(b);
        let mut forms = vec![0.0; a.nrows()];
        let mut add = |left: MatRef<'_, f64>, right: MatRef<'_, f64>| {
            for (left, right) in left.col_iter().zip(right.col_iter()) {
                let terms = left.iter().zip(right.iter());
                forms.iter_mut().zip(terms).for_each(|(sum, (l, r))| *sum += l * r);
            }
        };
        match &self.source {
            _ if self.trace == 0.0 => {}
            Source::Identity => add(a, b),
            Source::Data { stats, .. } => match &stats.form {
                Form::Samples(_) => self.for_each_sample_block(par, |columns: MatRef<'_, f64>| {
                    let left = linalg::product(a, columns, par)?;
                    if same {
                        add(left.as_ref(), left.as_ref());
                    } else {
                        add(left.as_ref(), linalg::product(b, columns, par)?.as_ref());
                    }
                    Ok(())
                })?,
                Form::Scatter(_) => add(a, self.multiply(b.transpose(), par)?.transpose()),
            },
        }
        Ok(forms)
    }

    /// `tr S²`.
    pub(crate) fn trace_of_square(&self, par: Par) -> Result<f64> {
        Ok(match &self.source {
            _ if self.trace == 0.0 => 0.0,
            Source::Identity => self.features as f64,
            Source::Data { stats, completion, .. } => match &stats.form {
                // tr (X Xᵀ)² = ‖Xᵀ X‖²
                Form::Samples(_) => self.gram_squared_norm(par)?,
                Form::Scatter(collapsed) => {
                    let centred = collapsed.scatter.squared_norm(self.factor(stats));
                    match completion {
                        None => centred,
                        // ‖Σ + CCᵀ‖² = ‖Σ‖² + 2 tr CᵀΣC + ‖CᵀC‖²
                        Some(columns) => {
                            let columns = columns.as_ref();
                            let applied = collapsed.scatter.multiply(columns, self.factor(stats), par)?;
                            let terms = applied.col_iter().zip(columns.col_iter());
                            let cross: f64 =
                                terms.map(|(a, c)| a.iter().zip(c.iter()).map(|(a, c)| a * c).sum::<f64>()).sum();
                            let gram = linalg::product(columns.transpose(), columns, par)?;
                            centred + 2.0 * cross + linalg::squared_norm(gram.as_ref())
                        }
                    }
                }
            },
        })
    }

    /// `tr S²`, and the share of `tr S` outside of as many of the first eigenvectors as asked for; all of it where `S` is zero. Of more than 64 inputs a
    /// randomised range finder takes their place (Halko, Martinsson and Tropp 2011, algorithm 4.1), outside of which lies somewhat more.
    /// Of many samples `tr S²` is estimated, to some per cent: `‖S‖² = ‖S Q‖² + ‖S (I − Q Qᵀ)‖²`, the second from random signs (Hutchinson 1989).
    pub(crate) fn spread(&self, directions: usize, par: Par) -> Result<Spread> {
        if self.trace == 0.0 {
            return Ok(Spread { trace_of_square: 0.0, outside: 1.0 });
        }
        let gram = self.samples_kept().map_or(0.0, |samples| self.features as f64 * (samples as f64).powi(2));
        self.spread_by(directions, gram < LARGE, par)
    }

    /// `features × count`; `None` where there are too many inputs for that to be cheap, or the iteration gave up.
    fn first_eigenvectors(&self, count: usize, par: Par) -> Result<Option<Mat<f64>>> {
        if self.features > FEW {
            return Ok(None);
        }
        let dense = self.scaled(par)?;
        let pairs = linalg::symmetric_eigen(dense.as_ref(), par)?;
        Ok(pairs.map(|(_, vectors)| vectors.subcols(self.features - count, count).to_owned()))
    }

    pub(super) fn spread_by(&self, directions: usize, exact: bool, par: Par) -> Result<Spread> {
        let mut random = SplitMix64::new();
        let mut fill = |columns: usize, of: fn(f64) -> f64| -> Result<Mat<f64>> {
            let mut block = linalg::zeros(self.features, columns)?;
            block.col_iter_mut().for_each(|column| column.iter_mut().for_each(|entry| *entry = of(random.next())));
            Ok(block)
        };
        let count = directions.min(self.features);
        let basis = match self.first_eigenvectors(count, par)? {
            Some(basis) => basis,
            None => {
                let probes = fill(count, |x| x)?;
                let range = self.multiply(probes.as_ref(), par)?;
                linalg::orthonormal_columns(range, par)?.0
            }
        };
        let mut block = fill(if exact { count } else { count + VECTORS }, f64::signum)?;
        block.as_mut().subcols_mut(0, count).copy_from(&basis);
        linalg::project_out(block.as_mut().get_mut(.., count..), basis.as_ref(), par)?;
        let applied = self.multiply(block.as_ref(), par)?;
        let (within, beyond) = applied.as_ref().split_at_col(count);
        let pairs = basis.col_iter().zip(within.col_iter());
        let inside: f64 = pairs.map(|(q, s)| q.iter().zip(s.iter()).map(|(q, s)| q * s).sum::<f64>()).sum();
        let trace_of_square = if exact {
            self.trace_of_square(par)?
        } else {
            linalg::squared_norm(within) + linalg::squared_norm(beyond) / VECTORS as f64
        };
        Ok(Spread { trace_of_square, outside: (1.0 - inside / self.trace).clamp(0.0, 1.0) })
    }

    /// `‖Xᵀ X‖²` for the samples as columns, segment by segment.
    fn gram_squared_norm(&self, par: Par) -> Result<f64> {
        let (mut sum, mut index) = (0.0, 0);
        self.for_each_sample_block(par, |columns: MatRef<'_, f64>| {
            let mut other_index = 0;
            self.for_each_sample_block(par, |others: MatRef<'_, f64>| {
                if other_index <= index {
                    let gram = linalg::product(columns.transpose(), others, par)?;
                    let count = if other_index == index { 1.0 } else { 2.0 };
                    sum += count * linalg::squared_norm(gram.as_ref());
                }
                other_index += 1;
                Ok(())
            })?;
            index += 1;
            Ok(())
        })?;
        Ok(sum)
    }

    /// The outputs `factor · W X` of the samples behind `S`, outputs × samples, in the precision of the samples; `None` unless samples
    /// are kept. `S` is the product of `X` with its transpose.
    pub(crate) fn outputs(&self, weight: MatRef<'_, T>, factor: f64, par: Par) -> Result<Option<Mat<T>>> {
        let Source::Data { stats, centre, .. } = &self.source else { return Ok(None) };
        let Form::Samples(samples) = &stats.form else { return Ok(None) };
        let mut outputs = linalg::zeros(weight.nrows(), samples.len())?;
        let root = self.sample_factor(stats) * factor;
        let mut start = 0;
        samples.for_each_centred(&centre.get(), root, par, |columns: MatRef<'_, T>| {
            let target = outputs.as_mut().subcols_mut(start, columns.ncols());
            linalg::add_product(target, T::from_f64(1.0), weight, columns, par);
            start += columns.ncols();
            Ok(())
        })?;
        Ok(Some(outputs))
    }

    /// Multiply–adds of applying `S` to one vector.
    pub(crate) fn macs(&self) -> f64 {
        let features = self.features as f64;
        match (&self.source, self.samples_kept()) {
            (Source::Identity, _) => 0.0,
            (_, Some(samples)) => 2.0 * features * samples as f64,
            (_, None) => features * features,
        }
    }

    /// Number of samples behind `S` while they are kept.
    pub(crate) fn samples_kept(&self) -> Option<usize> {
        match &self.source {
            Source::Data { stats: ActivationStats { form: Form::Samples(samples), .. }, .. } => Some(samples.len()),
            _ => None,
        }
    }

    /// `features × samples` of which `S` is the product with its transpose; `None` unless samples are kept
    /// and are fewer than the inputs.
    pub(crate) fn root(&self, par: Par) -> Result<Option<Mat<f64>>> {
        let Source::Data { stats, centre, .. } = &self.source else { return Ok(None) };
        let Form::Samples(samples) = &stats.form else { return Ok(None) };
        if samples.len() >= self.features {
            return Ok(None);
        }
        let mut root = linalg::zeros(self.features, samples.len())?;
        samples.fill_centred(root.as_mut(), &centre.get(), self.sample_factor(stats), par);
        Ok(Some(root))
    }

    /// A lower triangular root `L` with `L Lᵀ = κ S + λ I + D`, and the diagonal of `λ I + D`: what lifts the matrix out of rounding. What is above
    /// the diagonal of `L` is not to be used. `None` where that is not enough.
    pub(crate) fn root_of(&self, (keep, ridge): (f64, f64), par: Par) -> Result<Option<(Mat<f64>, Vec<f64>)>> {
        let size = self.features as f64;
        let mut dense = self.scaled(par)?;
        dense *= faer::Scale(keep);
        // The norm of a random symmetric matrix grows with the root of its size. Without such rounding there is nothing to try again.
        let (least, most) = (4.0 * f64::EPSILON * size, self.rounding() / 8.0 * size.sqrt());
        for lift in core::iter::once(least).chain((most > least).then_some(most)) {
            let mut lifted = linalg::widened(dense.as_ref(), 1.0)?;
            let mut added = vec![0.0; self.features];
            let mut dead = Vec::new();
            for (index, added) in added.iter_mut().enumerate() {
                let diagonal = lifted[(index, index)];
                *added = ridge + lift * diagonal;
                lifted[(index, index)] = diagonal + *added;
                if diagonal + *added <= 0.0 {
                    // An input that never varies: any number will do, and is taken out again.
                    lifted[(index, index)] = 1.0;
                    dead.push(index);
                }
            }
            if let Some(mut root) = linalg::cholesky(lifted, par)? {
                dead.iter().for_each(|&index| root[(index, index)] = 0.0);
                return Ok(linalg::first_non_finite(root.as_ref()).is_none().then_some((root, added)));
            }
        }
        Ok(None)
    }

    /// The divided `S`, formed.
    pub(crate) fn scaled(&self, par: Par) -> Result<Mat<f64>> {
        let mut dense = linalg::zeros(self.features, self.features)?;
        match &self.source {
            _ if self.trace == 0.0 => {}
            Source::Identity => dense.as_mut().diagonal_mut().column_vector_mut().fill(1.0),
            Source::Data { stats, completion, .. } => match &stats.form {
                Form::Samples(_) => self.for_each_sample_block(par, |columns: MatRef<'_, f64>| {
                    linalg::add_symmetric_product(dense.as_mut(), 1.0, columns, columns.transpose(), par);
                    Ok(())
                })?,
                Form::Scatter(collapsed) => {
                    dense = collapsed.scatter.dense(self.factor(stats))?;
                    if let Some(columns) = completion {
                        let columns = columns.as_ref();
                        linalg::add_symmetric_product(dense.as_mut(), 1.0, columns, columns.transpose(), par);
                    }
                }
            },
        }
        linalg::mirror_lower(&mut dense);
        Ok(dense)
    }

    /// `S`, formed.
    pub(super) fn dense(&self, par: Par) -> Result<Mat<f64>> {
        let mut dense = self.scaled(par)?;
        dense *= faer::Scale(power_of_two(self.exponent));
        Ok(dense)
    }
}

/// Adds `(1/w) Σ wᵢ (xᵢ − centre)²`, input by input.
fn mean_squares<T: Scalar>(samples: &Samples<T>, centre: &Centre<'_>, total: f64, squares: &mut [f64]) {
    for (rows, weights) in samples.segments() {
        linalg::for_each_row(rows, |index, row| {
            let weight = weights[index] / total;
            let centre = centre.origin.iter().zip(centre.offset);
            for ((sum, x), (origin, offset)) in squares.iter_mut().zip(row).zip(centre) {
                let distance = x.to_f64() - origin - offset;
                *sum += weight * distance * distance;
            }
        });
    }
}

#[cfg(test)]
mod tests;
