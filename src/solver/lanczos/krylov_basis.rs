//! The basis of the iteration, and the operator projected on it.

use faer::{Mat, MatMut, MatRef};

use super::super::PsdOperator;
use super::NAME;
use crate::linalg::{self, Par, SplitMix64, power_of_two};
use crate::{Error, Result, Scalar};

/// Largest accepted ratio of the stated trace to the trace that the first products suggest.
///
/// The tolerance is relative to the trace, so with a trace that is far too large any result would
/// be accepted. For an operator of rank one, the estimate is `χ²` distributed. Its degrees of
/// freedom are the vectors in the block, at least 8. The estimate is wrong by this factor in one of
/// 10¹¹ cases.
const TRACE_DOUBT: f64 = 1000.0;

/// A residual above this fraction of the operator's size stays accurate when it is rescaled.
const CLEAR: f64 = 1e-3;

/// The size of the operator, as the operator states it.
pub(super) struct Magnitude {
    /// The iteration divides all its numbers by two to this power, which is even.
    pub(super) exponent: i32,
    /// The trace, divided by that power of two.
    pub(super) trace: f64,
    /// The noise, divided by that power of two.
    pub(super) noise: f64,
}

impl Magnitude {
    /// Converts a number of the divided operator to the operator's own units.
    pub(super) fn restored(&self, value: f64) -> f64 {
        value * power_of_two(self.exponent)
    }

    fn contradicted(&self, found: String) -> Error {
        let found = format!("a trace of {:e} but {found}", self.restored(self.trace));
        Error::invalid_operator(found)
    }
}

/// An orthonormal basis, the operator projected on it, and the directions to add to the basis.
pub(super) struct Space<T> {
    pub(super) basis: Mat<T>,
    pub(super) size: usize,
    pub(super) projected: Mat<f64>,
    /// Directions that enter the basis next.
    pub(super) residual: Option<Residual<T>>,
    /// Directions that are added after a verification.
    pub(super) deferred: Option<Residual<T>>,
    pub(super) products: usize,
    pub(super) steps: usize,
    pub(super) magnitude: Magnitude,
    random: SplitMix64,
    pub(super) par: Par,
}

/// The parts of products that lie outside of the basis `Q`:
/// `H Q = Q (QᵀHQ) + directions · coupling`.
pub(super) struct Residual<T> {
    pub(super) directions: Mat<T>,
    /// One column for each of the first columns of the basis; zero for later ones.
    pub(super) coupling: Mat<f64>,
}

impl<T: Scalar> Space<T> {
    pub(super) fn new(dimension: usize, capacity: usize, magnitude: Magnitude, par: Par) -> Result<Self> {
        Ok(Self {
            basis: linalg::zeros(dimension, capacity)?,
            size: 0,
            projected: linalg::zeros(capacity, capacity)?,
            residual: None,
            deferred: None,
            products: 0,
            steps: 0,
            magnitude,
            random: SplitMix64::new(),
            par,
        })
    }

    pub(super) fn dimension(&self) -> usize {
        self.basis.nrows()
    }

    pub(super) fn basis(&self) -> MatRef<'_, T> {
        self.basis.as_ref().subcols(0, self.size)
    }

    /// Returns the largest entry on the diagonal of the projected operator.
    fn scale(&self) -> f64 {
        (0..self.size).map(|i| self.projected[(i, i)].abs()).fold(0.0, f64::max)
    }

    /// Adds an orthonormal block, orthogonal to the basis, and its products.
    pub(super) fn extend(&mut self, operator: &dyn PsdOperator<T>, block: MatRef<'_, T>) -> Result<()> {
        let range = self.size..self.size + block.ncols();
        self.basis.as_mut().subcols_mut(range.start, range.len()).copy_from(block);
        self.size = range.end;
        let mut product = self.multiply(operator, block)?;
        // The transpose, because this order makes no copy of the basis.
        let coordinates = linalg::product(product.transpose(), self.basis(), self.par)?;
        let coordinates = coordinates.transpose();
        for (column, at) in range.clone().enumerate() {
            for row in 0..self.size {
                let entry = coordinates[(row, column)].to_f64();
                self.projected[(row, at)] = entry;
                self.projected[(at, row)] = entry;
            }
        }
        self.require_symmetric(coordinates.subrows(range.start, range.len()))?;
        if self.steps == 0 {
            self.require_trace()?;
        }
        // Products give both triangles within the block. Their mean is symmetric.
        for column in 0..range.len() {
            for row in 0..column {
                let (upper, lower) =
                    (coordinates[(range.start + row, column)], coordinates[(range.start + column, row)]);
                let mean = (upper.to_f64() + lower.to_f64()) / 2.0;
                self.projected[(range.start + row, range.start + column)] = mean;
                self.projected[(range.start + column, range.start + row)] = mean;
            }
        }
        // The basis is projected out twice. For the first time, the coordinates are already known; the
        // second time, the columns have unit length unless almost nothing is left of one.
        linalg::add_product(product.as_mut(), T::from_f64(-1.0), self.basis(), coordinates, self.par);
        let least = (CLEAR * self.scale()).powi(2);
        if linalg::squared_column_norms(product.as_ref()).into_iter().any(|square| square <= least) {
            self.project_out_once(product.as_mut())?;
        }
        let (start, width) = (range.start, range.len());
        let coupling = Mat::from_fn(width, range.end, |row, column| f64::from(u8::from(start + row == column)));
        self.residual = Some(Residual { directions: product, coupling });
        self.products += width;
        self.steps += 1;
        Ok(())
    }

    /// Returns the product of the divided operator with a block of unit vectors.
    fn multiply(&self, operator: &dyn PsdOperator<T>, block: MatRef<'_, T>) -> Result<Mat<T>> {
        let mut product = linalg::zeros(self.dimension(), block.ncols())?;
        if self.magnitude.exponent == 0 {
            operator.apply(block, product.as_mut())?;
        } else {
            // Half of the scaling is applied before the product and half after it, so that both
            // stay in the range of `T`.
            let half = T::from_f64(power_of_two(-self.magnitude.exponent / 2));
            let mut divided = linalg::zeros(block.nrows(), block.ncols())?;
            divided.copy_from(block);
            divided *= faer::Scale(half);
            operator.apply(divided.as_ref(), product.as_mut())?;
            product *= faer::Scale(half);
        }
        if let Some((row, column)) = linalg::first_non_finite(product.as_ref()) {
            let found = format!("{} at row {row} of a product", product[(row, column)]);
            return Err(Error::invalid_operator(found));
        }
        // The product with a unit vector is at most as long as the largest eigenvalue, which is at
        // most the trace.
        let (largest, size) = (linalg::max_abs(product.as_ref()), &self.magnitude);
        if largest > 2.0 * size.trace + self.dimension() as f64 * size.noise {
            return Err(size.contradicted(format!("a product with an entry of {:e}", size.restored(largest))));
        }
        Ok(product)
    }

    pub(super) fn require_trace(&self) -> Result<()> {
        let dimension = self.dimension() as f64;
        let seen = self.size as f64 / dimension;
        let estimate = (0..self.size).map(|i| self.projected[(i, i)]).sum::<f64>().max(0.0) / seen;
        if self.magnitude.trace > TRACE_DOUBT * estimate + dimension * self.magnitude.noise {
            return Err(self
                .magnitude
                .contradicted(format!("products that suggest {:e}", self.magnitude.restored(estimate))));
        }
        Ok(())
    }

    pub(super) fn require_symmetric(&self, square: MatRef<'_, T>) -> Result<()> {
        let scale = self.scale().max(linalg::max_abs(square));
        let bound = 100.0 * self.dimension() as f64 * T::EPSILON * scale + self.magnitude.noise;
        for column in 0..square.ncols() {
            for row in 0..column {
                let difference = (square[(row, column)].to_f64() - square[(column, row)].to_f64()).abs();
                if difference > bound {
                    let difference = self.magnitude.restored(difference);
                    let found = format!("products that differ by {difference:e} from those of its transpose");
                    return Err(Error::invalid_operator(found));
                }
            }
        }
        Ok(())
    }

    /// Subtracts `Q Qᵀ block` from `block`.
    pub(super) fn project_out_once(&self, block: MatMut<'_, T>) -> Result<()> {
        linalg::project_out(block, self.basis(), self.par)
    }

    /// Subtracts `Q Qᵀ block` from `block` twice, which makes a block of any size orthogonal to the
    /// basis up to rounding.
    fn project_out(&self, mut block: MatMut<'_, T>) -> Result<()> {
        self.project_out_once(block.as_mut())?;
        self.project_out_once(block)
    }

    /// Returns the directions to add to the basis, filled up to `width` with random ones.
    pub(super) fn next_block(&mut self, width: usize) -> Result<Mat<T>> {
        match self.residual.take() {
            Some(Residual { directions, .. }) => {
                let width = width.max(directions.ncols());
                let room = self.basis.ncols() - self.size;
                if width > room && self.basis.ncols() < self.dimension() {
                    // A smaller block would lose directions. An empty block ends the iteration.
                    return linalg::zeros(self.dimension(), 0);
                }
                self.orthonormal(directions, width)
            }
            None => self.random_block(width),
        }
    }

    pub(super) fn random_block(&mut self, width: usize) -> Result<Mat<T>> {
        let none = linalg::zeros(self.dimension(), 0)?;
        self.orthonormal(none, width)
    }

    /// Returns the number of directions that are not yet in the basis.
    pub(super) fn pending(&self) -> usize {
        self.residual.iter().chain(&self.deferred).map(|residual| residual.directions.ncols()).sum()
    }

    pub(super) fn defer_residual(&mut self) {
        self.deferred = self.residual.take();
    }

    /// Moves the deferred directions to those that enter the basis next.
    pub(super) fn restore_deferred(&mut self) -> Result<()> {
        let Some(mut deferred) = self.deferred.take() else { return Ok(()) };
        self.project_out(deferred.directions.as_mut())?;
        let Some(residual) = self.residual.take() else {
            self.residual = Some(deferred);
            return Ok(());
        };
        let (first, second) = (deferred.directions.ncols(), residual.directions.ncols());
        let mut directions = linalg::zeros(self.dimension(), first + second)?;
        directions.as_mut().subcols_mut(0, first).copy_from(&deferred.directions);
        directions.as_mut().subcols_mut(first, second).copy_from(&residual.directions);
        let mut coupling = linalg::zeros(first + second, residual.coupling.ncols())?;
        coupling.as_mut().submatrix_mut(0, 0, first, deferred.coupling.ncols()).copy_from(&deferred.coupling);
        coupling.as_mut().subrows_mut(first, second).copy_from(&residual.coupling);
        self.residual = Some(Residual { directions, coupling });
        Ok(())
    }

    /// Returns an orthonormal block, orthogonal to the basis, that contains the span of `block`.
    ///
    /// Random columns replace columns that are dependent or only rounding, and fill the block up to
    /// `width`.
    pub(super) fn orthonormal(&mut self, block: Mat<T>, width: usize) -> Result<Mat<T>> {
        let dimension = self.dimension();
        let room = self.basis.ncols() - self.size;
        let width = width.min(room);
        // The bound on the loss ignores the columns that are dropped here, so they must be
        // rounding.
        let mut floor = 0.01 * T::EPSILON * self.scale();
        let mut columns = linalg::zeros(dimension, width)?;
        let given = block.ncols().min(width);
        columns.as_mut().subcols_mut(0, given).copy_from(block.as_ref().subcols(0, given));
        let mut weak: Vec<usize> = (given..width).collect();
        // Random columns are independent of the others, so two passes are enough in practice.
        for _ in 0..4 {
            for &column in &weak {
                for row in 0..dimension {
                    columns[(row, column)] = T::from_f64(self.random.next());
                }
            }
            if !weak.is_empty() {
                self.project_out(columns.as_mut())?;
            }
            let (orthonormal, lengths) = linalg::orthonormal_columns(columns, self.par)?;
            columns = orthonormal;
            weak = lengths.iter().enumerate().filter(|&(_, &length)| length <= floor).map(|(index, _)| index).collect();
            if weak.is_empty() {
                // Rescaling a residual also rescales its part inside the basis. That part is large
                // if the residual was almost zero.
                if lengths.iter().all(|&length| length > CLEAR * self.scale()) {
                    self.project_out_once(columns.as_mut())?;
                } else {
                    self.project_out(columns.as_mut())?;
                }
                let orthonormal = linalg::orthonormal_columns(columns, self.par)?;
                return Ok(orthonormal.0);
            }
            floor = T::EPSILON;
        }
        Err(Error::no_convergence(dimension, format!("{NAME}, orthogonalisation")))
    }
}
