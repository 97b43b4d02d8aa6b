//! Low-rank adapters (LoRA): extracted from two checkpoints, resized, merged.

use core::fmt;

use faer::{Mat, MatRef};

use crate::compress::{Basis, Dalr, TruncatedSvd};
use crate::error::{during, require};
use crate::factors::Form;
use crate::linalg::{self, Par, even_exponent, power_of_two};
use crate::{Calibration, Decomposition, Error, Linear, LowRankCompressor, LowRankLinear, Rank, Result, Scalar};

/// A low-rank adapter (LoRA): the update `ΔW = scale · up · down` of a layer's weight.
///
/// `down` is rank × in (LoRA's A) and `up` is out × rank (LoRA's B). In files, `scale` is
/// `alpha / rank`. The weight of a convolution is out × (in · kernel height · kernel width).
///
/// An update is one more weight to approximate by two factors, so everything returns a
/// [`Decomposition`]: all ranks from one solve, with a predicted error for each. With samples of
/// the layer's inputs, the outputs `ΔW x` change least, as with [`Dalr`]. Without samples, `ΔW`
/// itself changes least ([`TruncatedSvd`]), and
/// [`relative_error`](Decomposition::relative_error) is `‖ΔW − C‖ / ‖ΔW‖`.
///
/// ```
/// use dalr::adapter::Adapter;
/// use dalr::{ActivationStats, Calibration, Rank};
/// use faer::Mat;
///
/// # fn main() -> dalr::Result<()> {
/// let base = Mat::from_fn(8, 6, |i, j| ((i * 5 + j * 3) % 7) as f32);
/// let tuned = Mat::from_fn(8, 6, |i, j| base[(i, j)] + 0.1 * ((i * i + 2 * j) % 5) as f32);
/// let mut inputs = ActivationStats::new(6);
/// inputs.update(Mat::from_fn(50, 6, |i, j| ((i * 11 + j * 7) % 13) as f32).as_ref())?;
///
/// // Extract: one solve, then any rank.
/// let decomposition = Adapter::extract(base.as_ref(), tuned.as_ref(), &inputs, 4)?;
/// let style = Adapter::truncated(&decomposition, decomposition.rank_for(Rank::RelativeError(0.2), 1)?)?;
///
/// // Merge a weighted sum, and resize.
/// let other = Adapter::new(Mat::from_fn(2, 6, |i, j| (i + j) as f32), Mat::from_fn(8, 2, |i, j| (i * j) as f32), 0.5)?;
/// let merged = Adapter::merge(&[(&style, 1.0), (&other, 0.3)], Rank::Energy(0.9))?;
/// assert!(merged.rank() <= style.rank() + other.rank());
/// let resized = merged.resize(Rank::Fixed(1))?;
/// assert_eq!((resized.rank(), resized.parameters()), (1, 8 + 6));
/// # Ok(())
/// # }
/// ```
///
/// Allocate one budget to the adapters of many layers with a
/// [`LayerProfile`](crate::network::LayerProfile) of each decomposition. The layers can then have
/// any rank from 1, or no adapter. The sensitivity of a layer is its
/// [`total_energy`](Decomposition::total_energy) if all errors of the updates count alike.
///
/// ```
/// use dalr::adapter::Adapter;
/// use dalr::network::{Allocator, Budget, LayerProfile, Sensitivities, Strategy};
/// use dalr::Calibration;
/// # use faer::Mat;
///
/// # fn main() -> dalr::Result<()> {
/// # let adapter = |size: f64| Adapter::new(
/// #     Mat::from_fn(3, 9, |i, j| ((i * 5 + j * j) % 7) as f64),
/// #     Mat::from_fn(6, 3, |i, j| ((i * i + j * 3) % 5) as f64),
/// #     size,
/// # );
/// # let adapters = [("query", adapter(1.0)?), ("value", adapter(0.01)?)];
/// let (mut profiles, mut energies) = (Vec::new(), Vec::new());
/// for (name, adapter) in &adapters {
///     let decomposition = adapter.decompose(Calibration::none())?;
///     profiles.push(LayerProfile::new(*name, &decomposition));
///     energies.push((*name, decomposition.total_energy()));
/// }
/// let strategy = Strategy::Sensitivity(Sensitivities::new(energies)?);
/// let plan = Allocator::new(Budget::TotalRank(3)).with_strategy(strategy).allocate(&profiles)?;
/// assert_eq!(plan.ranks(), [("query".to_owned(), 3)].into()); // the other one is too small to matter
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq)]
pub struct Adapter<T> {
    down: Mat<T>,
    up: Mat<T>,
    scale: f64,
}

impl<T: Scalar> Adapter<T> {
    /// Creates an adapter from `down`, rank × in, `up`, out × rank, and a scale.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::Shape`] or [`Error::NonFinite`], as [`LowRankLinear::new`];
    /// [`Error::OutOfRange`] for a scale that is not finite.
    ///
    /// ```
    /// use dalr::adapter::Adapter;
    /// use faer::Mat;
    /// // alpha = 8 and rank 4
    /// let adapter = Adapter::new(Mat::<f32>::zeros(4, 10), Mat::zeros(20, 4), 8.0 / 4.0);
    /// assert!(adapter.is_ok_and(|adapter| adapter.rank() == 4));
    /// ```
    pub fn new(down: Mat<T>, up: Mat<T>, scale: f64) -> Result<Self> {
        during("Adapter::new", || {
            require(scale.is_finite(), "the scale", "to be finite", scale)?;
            let (down, up) = LowRankLinear::checked(down, up, None)?.into_factors();
            Ok(Self { down, up, scale })
        })
    }

    /// Decomposes the difference `tuned − base` of two weights, both out × in, for every rank up to
    /// `max_rank`. [`truncated`](Self::truncated) makes adapters of the result.
    ///
    /// Other methods than the two of this type solve it as well: pass the difference to them as a
    /// [`Linear`] without bias.
    ///
    /// # Errors
    ///
    /// Weights of different shapes, or that are not finite; a difference that overflows `T`; the
    /// errors of [`LowRankCompressor::solve`].
    ///
    /// # Cost
    ///
    /// As a solve: `O(m n k)` per pass over the difference, and a few passes.
    pub fn extract<'a>(
        base: MatRef<'_, T>,
        tuned: MatRef<'_, T>,
        calibration: impl Into<Calibration<'a, T>>,
        max_rank: usize,
    ) -> Result<Decomposition<T>> {
        during("Adapter::extract", || {
            for (what, expected, found) in [
                ("rows in the tuned weight (as in the base weight)", base.nrows(), tuned.nrows()),
                ("columns in the tuned weight (as in the base weight)", base.ncols(), tuned.ncols()),
            ] {
                if expected != found {
                    return Err(Error::shape(what, expected, found));
                }
            }
            let mut difference = linalg::zeros(base.nrows(), base.ncols())?;
            let columns = tuned.col_iter().zip(base.col_iter());
            for (to, (tuned, base)) in difference.as_mut().col_iter_mut().zip(columns) {
                let entries = to.iter_mut().zip(tuned.iter().zip(base.iter()));
                entries.for_each(|(to, (tuned, base))| *to = T::from_f64(tuned.to_f64() - base.to_f64()));
            }
            if linalg::first_non_finite(difference.as_ref()).is_some() {
                linalg::require_finite("the base weight", base)?;
                linalg::require_finite("the tuned weight", tuned)?;
                return Err(Error::overflow("the difference of the weights"));
            }
            let full_rank = base.nrows().min(base.ncols());
            let solution = solve(&Linear::new(difference, None)?, calibration.into(), max_rank)?;
            solution.of_adapter([None, None], full_rank, max_rank)
        })
    }

    /// Returns the adapter of this rank, with a scale of 1. Cost: a copy of its factors.
    ///
    /// A power of two for each rank balances the two factors, without rounding: their columns and
    /// rows have norms within a factor of two of each other. In half precision, neither factor then
    /// leaves the range of normal numbers before the other one.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`] unless `1 ≤ rank ≤ max_rank`; a decomposition of a layer with a bias.
    pub fn truncated(decomposition: &Decomposition<T>, rank: usize) -> Result<Self> {
        during("Adapter::truncated", || {
            let layer = decomposition.truncate(rank)?.into_layer();
            if layer.bias().is_some() {
                let expected = "the decomposition of an update, without a bias".into();
                return Err(Error::layers(expected, "one with a bias".into()));
            }
            let (mut down, mut up) = layer.into_factors();
            let norms = linalg::squared_column_norms(up.as_ref());
            let norms = norms.into_iter().zip(linalg::squared_column_norms(down.transpose()));
            let parts = up.as_mut().col_iter_mut().zip(down.as_mut().row_iter_mut()).zip(norms);
            for ((column, row), (of_column, of_row)) in parts {
                let exponent = (of_row / of_column).log2() / 4.0;
                if exponent.is_finite() {
                    let exponent = exponent.round() as i32;
                    let scale = |exponent| T::from_f64(power_of_two(exponent));
                    let (grow, shrink) = (scale(exponent), scale(-exponent));
                    column.iter_mut().for_each(|entry| *entry *= grow);
                    row.iter_mut().for_each(|entry| *entry *= shrink);
                }
            }
            Ok(Self { down, up, scale: 1.0 })
        })
    }

    /// Decomposes the update for every rank up to this adapter's, without forming it.
    ///
    /// With `up = Q R`, the core `R · down` has as few rows as the adapter's rank, and the same
    /// problem; without samples, its columns become as few in the same way. The result is exact: no
    /// iteration stops early. Only with an output metric, or if the rank is not below the number of
    /// outputs, the update is formed.
    ///
    /// # Errors
    ///
    /// As [`LowRankCompressor::solve`]; [`Error::Overflow`] for an update that overflows `T`.
    ///
    /// # Cost
    ///
    /// `O((m + n) r²)` without samples, in `f64`.
    pub fn decompose<'a>(&self, calibration: impl Into<Calibration<'a, T>>) -> Result<Decomposition<T>> {
        let calibration = calibration.into();
        during("Adapter::decompose", || self.solved(calibration, self.full_rank()))
    }

    /// Returns the closest adapter of the rank that this rule gives, with a scale of 1. For every
    /// rank of one solve, or to take the layer's inputs into account, use
    /// [`decompose`](Self::decompose).
    ///
    /// # Errors
    ///
    /// A rank above this adapter's; parameters of the rule out of range.
    pub fn resize(&self, rank: Rank) -> Result<Self> {
        during("Adapter::resize", || {
            let shape = (self.out_features(), self.in_features());
            let bound = rank.bound(shape, 1, Form::Factors)?.min(self.full_rank());
            let decomposition = self.solved(Calibration::none(), bound)?;
            Self::truncated(&decomposition, decomposition.rank_for(rank, 1)?)
        })
    }

    /// Returns the weighted sum of the updates of several adapters, without approximation. Its rank
    /// is the sum of all ranks, its scale is 1.
    ///
    /// # Errors
    ///
    /// No adapters, or adapters of different shapes; weights that are not finite; entries that
    /// overflow `T`.
    pub fn stack(adapters: &[(&Self, f64)]) -> Result<Self> {
        during("Adapter::stack", || {
            let (first, _) = adapters.first().ok_or_else(|| Error::empty("the list of adapters"))?;
            let (m, n) = (first.out_features(), first.in_features());
            let rank = adapters.iter().map(|(adapter, _)| adapter.rank()).sum();
            let (mut down, mut up) = (linalg::zeros(rank, n)?, linalg::zeros(m, rank)?);
            let mut start = 0;
            for (adapter, weight) in adapters {
                for (what, expected, found) in [
                    ("outputs of an adapter (as of the first)", m, adapter.out_features()),
                    ("inputs of an adapter (as of the first)", n, adapter.in_features()),
                ] {
                    if expected != found {
                        return Err(Error::shape(what, expected, found));
                    }
                }
                require(weight.is_finite(), "the weight of an adapter", "to be finite", *weight)?;
                let rank = adapter.rank();
                let scaled = linalg::converted::<T, T>(adapter.up(), weight * adapter.scale)?;
                if linalg::first_non_finite(scaled.as_ref()).is_some() {
                    return Err(Error::overflow("the factor `up`"));
                }
                up.as_mut().subcols_mut(start, rank).copy_from(scaled);
                down.as_mut().subrows_mut(start, rank).copy_from(adapter.down());
                start += rank;
            }
            Ok(Self { down, up, scale: 1.0 })
        })
    }

    /// Returns the [`stack`](Self::stack) of the adapters, resized. `Rank::Energy(1.0)` gives the
    /// smallest rank that loses nothing.
    ///
    /// # Errors
    ///
    /// As [`stack`](Self::stack) and [`resize`](Self::resize).
    ///
    /// # Cost
    ///
    /// `O((m + n) r²)` for the sum `r` of all ranks.
    pub fn merge(adapters: &[(&Self, f64)], rank: Rank) -> Result<Self> {
        during("Adapter::merge", || Self::stack(adapters)?.resize(rank))
    }

    /// Returns the Frobenius norm of the update, without forming it. Cost: `O((m + n) r²)`.
    ///
    /// # Errors
    ///
    /// [`Error::Overflow`] for an update that overflows `T`; [`Error::Memory`].
    ///
    /// ```
    /// use dalr::adapter::Adapter;
    /// # fn main() -> dalr::Result<()> {
    /// let adapter = Adapter::new(faer::mat![[3.0, 4.0]], faer::mat![[1.0], [0.0]], 2.0)?;
    /// assert!((adapter.norm()? - 10.0).abs() < 1e-12);
    /// # Ok(())
    /// # }
    /// ```
    pub fn norm(&self) -> Result<f64> {
        during("Adapter::norm", || {
            let (_, core) = self.core((true, true), linalg::threads(0))?;
            let scale = power_of_two(even_exponent(linalg::max_abs(core.as_ref())));
            let core = linalg::widened(core.as_ref(), 1.0 / scale)?;
            Ok(linalg::squared_norm(core.as_ref()).sqrt() * scale)
        })
    }

    /// Returns the update as a layer without a bias. Cost: `O(m n r)`.
    ///
    /// # Errors
    ///
    /// [`Error::Overflow`] if an entry overflows `T`.
    pub fn to_linear(&self) -> Result<Linear<T>> {
        during("Adapter::to_linear", || Linear::new(self.core((false, false), linalg::threads(0))?.1, None))
    }

    /// Returns the first factor, rank × in.
    pub fn down(&self) -> MatRef<'_, T> {
        self.down.as_ref()
    }

    /// Returns the second factor, out × rank.
    pub fn up(&self) -> MatRef<'_, T> {
        self.up.as_ref()
    }

    /// Returns the number that multiplies the product of the factors.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Returns the rank: the number of rows of `down` and of columns of `up`.
    pub fn rank(&self) -> usize {
        self.down.nrows()
    }

    /// Returns the number of inputs.
    pub fn in_features(&self) -> usize {
        self.down.ncols()
    }

    /// Returns the number of outputs.
    pub fn out_features(&self) -> usize {
        self.up.nrows()
    }

    /// Returns the number of parameters, `r (m + n)`.
    pub fn parameters(&self) -> usize {
        self.rank() * (self.in_features() + self.out_features())
    }

    /// The largest rank that the update can have.
    fn full_rank(&self) -> usize {
        self.rank().min(self.in_features()).min(self.out_features())
    }

    /// Decomposes the update for every rank, and returns the result up to `max_rank`.
    fn solved(&self, calibration: Calibration<'_, T>, max_rank: usize) -> Result<Decomposition<T>> {
        let sides = (calibration.output_metric().is_none(), calibration.samples() == 0);
        let (bases, core) = self.core(sides, linalg::threads(0))?;
        let full_rank = self.full_rank();
        let solution = solve(&Linear::new(core, None)?, calibration, full_rank)?;
        solution.of_adapter(bases.each_ref().map(Option::as_ref), full_rank, max_rank)
    }

    /// Returns orthonormal bases of the update's outputs and inputs, and the update in them.
    ///
    /// A side gets a basis if `sides` asks for it and the adapter's rank is below the number of
    /// outputs, or of inputs.
    fn core(&self, sides: (bool, bool), par: Par) -> Result<([Option<Basis>; 2], Mat<T>)> {
        // Entries near 1, so that no product overflows or underflows.
        let exponent = |factor: MatRef<'_, T>| even_exponent(linalg::max_abs(factor));
        let exponents = (exponent(self.up()), exponent(self.down()));
        let in_basis = |factor: MatRef<'_, T>, exponent: i32, wanted: bool| {
            let factor = linalg::widened(factor, power_of_two(-exponent))?;
            if wanted && factor.ncols() < factor.nrows() {
                let (basis, triangle) = Basis::new::<T>(factor, par)?;
                return Ok((Some(basis), triangle));
            }
            Ok((None, factor))
        };
        let (outputs, left) = in_basis(self.up(), exponents.0, sides.0)?;
        let (inputs, right) = in_basis(self.down().transpose(), exponents.1, sides.1)?;
        let mut core = linalg::product(left.as_ref(), right.transpose(), par)?;
        core *= faer::Scale(power_of_two(exponents.0 + exponents.1) * self.scale);
        Ok(([outputs, inputs], linalg::rounded("the update", core.as_ref())?))
    }
}

/// Minimizes the change of the outputs with samples, that of the weight without.
fn solve<T: Scalar>(update: &Linear<T>, calibration: Calibration<'_, T>, max_rank: usize) -> Result<Decomposition<T>> {
    if calibration.samples() > 0 {
        Dalr::new().solve(update, calibration, max_rank)
    } else {
        TruncatedSvd::new().solve(update, calibration, max_rank)
    }
}

impl<T> fmt::Debug for Adapter<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Adapter")
            .field("out_features", &self.up.nrows())
            .field("rank", &self.down.nrows())
            .field("in_features", &self.down.ncols())
            .field("scale", &self.scale)
            .finish()
    }
}
