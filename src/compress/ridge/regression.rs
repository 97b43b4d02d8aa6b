//! The ridge regression of the outputs on the inputs: for paired inputs, and for `Ridge::Paper` and
//! `Ridge::Exact`.

use faer::{Mat, MatRef};

use crate::covariance::{CrossMoment, SecondMoment};
use crate::linalg::{self, Par, even_exponent, power_of_two};
use crate::solver::noise_level;
use crate::{Error, Result, Scalar};

/// The quantity that the ridge keeps small.
#[derive(Clone, Copy, PartialEq)]
pub(in crate::compress) enum Penalty {
    /// `λ‖W − C‖²`.
    Change,
    /// `λ‖C‖²`, as in the paper.
    Size,
}

/// Computes `R = W S (S + λI)⁻¹`, outputs × inputs: the minimiser of `‖W X − R X‖² + λ‖R‖²`, for
/// `S = X Xᵀ`.
///
/// With fewer samples than inputs it is `W X (XᵀX + λI)⁻¹ Xᵀ`, and no inputs × inputs matrix is
/// formed. If `λ` is zero or below rounding, the inverse becomes the pseudo-inverse, its limit.
///
/// With paired inputs, [`Penalty::Change`] needs fewer samples than inputs; [`PairedRegression`]
/// solves the other cases.
pub(in crate::compress) fn ridge_regression<T: Scalar>(
    weight: MatRef<'_, f64>,
    moment: &dyn SecondMoment<T>,
    cross: Option<&CrossMoment<'_, T>>,
    (penalty, lambda): (Penalty, f64),
    par: Par,
) -> Result<Mat<f64>> {
    let product = |a: MatRef<'_, f64>, b: MatRef<'_, f64>| linalg::product(a, b, par);
    if moment.trace() == 0.0 {
        return match penalty {
            Penalty::Change => linalg::widened(weight, 1.0),
            Penalty::Size => linalg::zeros(weight.nrows(), weight.ncols()),
        };
    }
    let definite = penalty == Penalty::Change;
    let mut regression = if let Some(root) = moment.root(par)? {
        let mut gram = linalg::gram(root.as_ref(), par)?;
        linalg::mirror_lower(&mut gram);
        let mut inputs = match cross {
            Some(cross) => cross.root(par)?.ok_or_else(Error::no_samples)?,
            None => linalg::widened(root.as_ref(), 1.0)?,
        };
        if definite {
            inputs -= &root;
        }
        let outputs = product(inputs.transpose(), weight.transpose())?;
        let solution = solve_shifted(gram, lambda, outputs, (0.0, definite, par))?;
        product(solution.transpose(), root.transpose())?
    } else {
        let dense = moment.scaled(par)?;
        let outputs = match cross {
            Some(cross) => cross.left_multiply(weight, par)?.transpose().to_owned(),
            None => moment.multiply(weight.transpose(), par)?,
        };
        solve_shifted(dense, lambda, outputs, (rounding(moment), definite, par))?.transpose().to_owned()
    };
    if definite {
        regression += weight;
    }
    Ok(regression)
}

/// The regression `R = W (K + λI) M⁻¹` of paired inputs, with `M = S + λI = L Lᵀ`, as a change of
/// the weight: `R = W + E L⁻¹`.
///
/// The problem is then to approximate `B = R L = W L + E`, without a second moment. The matrices
/// are those of `W / 2^exponent`.
pub(in crate::compress) struct PairedRegression<T> {
    pub(in crate::compress) exponent: i32,
    /// `L`. Entries above the diagonal are arbitrary.
    root: Mat<f64>,
    /// `E`.
    change: Mat<T>,
    /// `B`.
    pub(in crate::compress) whitened: Mat<T>,
}

impl<T: Scalar> PairedRegression<T> {
    /// Factorizes `M` and computes `E` and `B`.
    pub(in crate::compress) fn new(
        weight: MatRef<'_, T>,
        moment: &dyn SecondMoment<T>,
        cross: &CrossMoment<'_, T>,
        lambda: f64,
        par: Par,
    ) -> Result<Self> {
        let exponent = even_exponent(linalg::max_abs(weight));
        let weight = linalg::converted::<T, T>(weight, power_of_two(-exponent))?;
        let mut dense = moment.scaled(par)?;
        let noise = (noise_level(moment.features()) + rounding(moment)) * moment.trace();
        let change = cross.change(weight.as_ref(), dense.as_ref(), par)?;
        dense.as_mut().diagonal_mut().column_vector_mut().iter_mut().for_each(|square| *square += lambda);
        let root = if lambda > noise { linalg::cholesky(dense, par)? } else { None };
        let root = root.ok_or_else(|| paired_needs_ridge(noise, lambda))?;
        // E Lᵀ = W (K − S)
        let mut transposed = linalg::widened(change.transpose(), 1.0)?;
        drop(change);
        linalg::solve_lower_triangular(root.as_ref(), transposed.as_mut(), par);
        let change = linalg::converted::<f64, T>(transposed.transpose(), 1.0)?;
        let native = linalg::converted::<f64, T>(root.as_ref(), 1.0)?;
        let triangle = linalg::BlockStructure::TriangularLower;
        let mut whitened = linalg::triangular_product(weight.as_ref(), native.as_ref(), triangle, par)?;
        whitened += &change;
        Ok(Self { exponent, root, change, whitened })
    }

    /// Returns `columnsᵀ R`, given the weight.
    pub(in crate::compress) fn project(
        &self,
        weight: MatRef<'_, T>,
        columns: MatRef<'_, T>,
        par: Par,
    ) -> Result<Mat<T>> {
        let change = linalg::product(columns.transpose(), self.change.as_ref(), par)?;
        let mut transposed = linalg::widened(change.transpose(), power_of_two(self.exponent))?;
        linalg::solve_upper_triangular(self.root.transpose(), transposed.as_mut(), par);
        let mut projected = linalg::widened(linalg::product(columns.transpose(), weight, par)?.as_ref(), 1.0)?;
        projected += transposed.transpose();
        linalg::rounded("the factor `down`", projected.as_ref())
    }
}

/// The rounding of single precision in a direction of the second moment, relative to the trace.
/// Rounding errors form a random symmetric matrix, whose norm grows with the root of its size.
fn rounding<T: Scalar>(moment: &dyn SecondMoment<T>) -> f64 {
    2.0 * moment.rounding() / (moment.features() as f64).sqrt()
}

/// Returns `(A + λI)⁻¹ B` for a positive semidefinite `A`. If `λ` is below rounding, returns
/// `(A + λI)⁺ B` with the pseudo-inverse, or an error if the result must be `definite`. The bound
/// is the rounding of `f64`, or `rounding` times the trace if that is larger.
fn solve_shifted(
    matrix: Mat<f64>,
    lambda: f64,
    right: Mat<f64>,
    (rounding, definite, par): (f64, bool, Par),
) -> Result<Mat<f64>> {
    let dimension = matrix.nrows();
    let trace: f64 = (0..dimension).map(|i| matrix[(i, i)]).sum();
    let noise = (noise_level(dimension) + rounding) * trace;
    if lambda > noise {
        let mut shifted = matrix.clone();
        for i in 0..dimension {
            shifted[(i, i)] += lambda;
        }
        if let Some(solution) = linalg::cholesky_solve(shifted, right.clone(), par)? {
            return Ok(solution);
        }
    }
    if definite {
        return Err(paired_needs_ridge(noise, lambda));
    }
    // Singular pairs of a semidefinite matrix are its eigenpairs, so the second algorithm can
    // replace the first.
    for algorithm in [linalg::symmetric_eigen, linalg::left_singular] {
        let Some((values, vectors)) = algorithm(matrix.as_ref(), par)? else { continue };
        let mut coordinates = linalg::product(vectors.transpose(), right.as_ref(), par)?;
        for mut column in coordinates.as_mut().col_iter_mut() {
            for (index, value) in values.iter().enumerate() {
                column[index] = if *value > noise { column[index] / (value + lambda) } else { 0.0 };
            }
        }
        return linalg::product(vectors.as_ref(), coordinates.as_ref(), par);
    }
    Err(Error::no_convergence(dimension, "divide and conquer, singular value decomposition".into()))
}

/// The error for paired inputs and a ridge that is rounding.
pub(in crate::compress) fn paired_needs_ridge(noise: f64, lambda: f64) -> Error {
    let expected = format!("more than {noise:e}, as paired inputs need: use `Ridge::Relative(0.1)`");
    Error::out_of_range("the ridge over the mean variance", expected, lambda)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ActivationStats;
    use crate::covariance::second_moment;
    use crate::linalg::SplitMix64;

    /// Solves `(A + λI) X = B` for ridges below, among and above the eigenvalues, and with the
    /// pseudo-inverse for `λ = 0`.
    #[test]
    fn a_ridge_of_any_size_is_added() -> Result<()> {
        let n = 6;
        let root = Mat::from_fn(n, n, |i, j| ((i * 7 + j * 5) % 11) as f64 / 11.0 + f64::from(i == j));
        let matrix = &root * root.transpose();
        let right = Mat::from_fn(n, 2, |i, j| (i + 2 * j) as f64 - 2.5);
        for lambda in [1e-3, 0.02, 1.0, 1e3] {
            let solution = solve_shifted(matrix.clone(), lambda, right.clone(), (0.0, false, Par::Seq))?;
            let left = &matrix * &solution + &solution * faer::Scale(lambda);
            assert!((left - &right).norm_max() < 1e-11, "{lambda}");
        }
        // Matrix and right side have rank 2. The pseudo-inverse ignores directions orthogonal to
        // both.
        let root = root.subcols(0, 2).to_owned();
        let (matrix, right) = (&root * root.transpose(), &root * Mat::from_fn(2, 1, |i, _| 1.0 - 3.0 * i as f64));
        for (lambda, rounding) in [(0.0, 0.0), (1e-9, 1e-8)] {
            let solution = solve_shifted(matrix.clone(), lambda, right.clone(), (rounding, false, Par::Seq))?;
            assert!((&matrix * &solution - &right).norm_max() < 1e-7, "{lambda}");
            let within = linalg::orthonormalized(root.clone(), Par::Seq)?;
            let outside = &solution - &within * (within.transpose() * &solution);
            assert!(outside.norm_max() < 1e-9 * solution.norm_max(), "{lambda}");
        }
        Ok(())
    }

    /// Rounding in a large matrix is not inverted: the solution has no part outside of its range.
    #[test]
    fn the_pseudo_inverse_knows_how_large_rounding_is() -> Result<()> {
        let v = Mat::from_fn(20, 1, |i, _| ((i * 7 + 3) % 11) as f64 - 4.5);
        let matrix = &v * v.transpose() * faer::Scale(1e8);
        let other = Mat::from_fn(20, 1, |i, _| ((i * 5 + 1) % 7) as f64 - 3.0);
        let inside = v.as_ref() * faer::Scale((v.transpose() * &other)[(0, 0)] / v.squared_norm_l2());
        let expected = inside * faer::Scale(1e-8 / v.squared_norm_l2());
        let solution = solve_shifted(matrix, 0.0, other, (0.0, false, Par::Seq))?;
        assert!((solution - &expected).norm_max() < 1e-9 * expected.norm_max());
        Ok(())
    }

    /// Eigenvalues up to 0.045 count as rounding, in a matrix with a trace of about 1.
    #[test]
    fn a_ridge_beside_rounding_is_added_to_what_stands_out() -> Result<()> {
        let solve = |small: f64, lambda: f64| -> Result<[f64; 2]> {
            let matrix = faer::mat![[1.0, 0.0], [0.0, small]];
            let solution = solve_shifted(matrix, lambda, Mat::ones(2, 1), (0.045 / (1.0 + small), false, Par::Seq))?;
            Ok([solution[(0, 0)], solution[(1, 0)]])
        };
        for (small, lambda, expected) in [
            // A ridge above that bound: every direction is used.
            (0.01, 0.06, 1.0 / 0.07),
            (0.05, 0.06, 1.0 / 0.11),
            // A ridge below that bound: directions whose eigenvalues are rounding are not used.
            (0.05, 0.04, 1.0 / 0.09),
            (0.01, 0.04, 0.0),
        ] {
            let found = solve(small, lambda)?;
            assert!(
                (found[0] - 1.0 / (1.0 + lambda)).abs() < 1e-14 && (found[1] - expected).abs() < 1e-12,
                "{found:?}"
            );
        }
        Ok(())
    }

    /// Rounding in a scatter of single precision hides directions of some 10⁻⁴ of the mean
    /// variance, and none of 10⁻³.
    #[test]
    fn what_single_precision_resolves_is_regressed_on() -> Result<()> {
        let (inputs, small) = (512, 7);
        let mut random = SplitMix64::new();
        let mut samples = Mat::from_fn(1600, inputs, |_, _| random.next().signum() as f32);
        samples.col_mut(small).iter_mut().for_each(|x| *x *= 1e-3_f32.sqrt());
        let mut stats = ActivationStats::new(inputs);
        stats.update(samples.as_ref())?;
        let moment = second_moment(&stats, false)?;
        assert!(moment.rounding() > 0.0);
        let weight = Mat::from_fn(3, inputs, |_, _| random.next());
        let regressed = ridge_regression(weight.as_ref(), &*moment, None, (Penalty::Size, 0.0), Par::Seq)?;
        let lost = (regressed.col(small) - weight.col(small)).norm_l2();
        assert!(lost < 0.02 * weight.col(small).norm_l2(), "{lost}");
        Ok(())
    }
}
