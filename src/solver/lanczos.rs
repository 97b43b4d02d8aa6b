//! Block Lanczos with full reorthogonalisation: a few hundred products find what a dense solver finds in `O(d³)`.

use faer::{Mat, MatMut, MatRef};

use super::{Eigenpairs, PsdOperator, fix_signs, relative};
use crate::linalg::SplitMix64;
use crate::linalg::{self, Par, Tridiagonal, even_exponent, power_of_two};
use crate::{Error, Result, Scalar};

const NAME: &str = "block Lanczos";

/// Loss of captured energy, relative to the energy that is left uncaptured, at which the iteration may stop:
/// for `f64` and for `f32`.
const TOLERANCE: (f64, f64) = (1e-12, 5e-5);

/// Random directions that must bring nothing new before a result is accepted, and how often they are
/// multiplied: a Krylov space is blind to a multiplicity above its block size, whatever its residual.
const PROBE_WIDTH: usize = 16;
const PROBE_STEPS: usize = 3;

/// Products per dimension of the result after which the dense path must be the better one.
const PRODUCTS_PER_PAIR: usize = 40;

/// How many times more than what the first products suggest a trace may be. The tolerance is relative to the trace: one that is far too
/// large would let anything pass. For an operator of rank one, the estimate is `χ²` distributed with as many degrees of
/// freedom as the block has vectors, 8 at least: it is this far off in one of 10¹¹ cases.
const TRACE_DOUBT: f64 = 1000.0;

/// Operators are divided by a power of two, since the squares of what they compute must stay in range; for `f32`, where squares are
/// formed in `f64`, products themselves must.
const EXPONENT: (i32, i32) = (1000, 120);

/// A residual of this share of the operator's size holds its digits when it is rescaled.
const CLEAR: f64 = 1e-3;

/// How the iteration is laid out for a problem.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Vectors multiplied at once.
    pub(super) block: usize,
    /// Vectors kept before the basis is restarted from its best part.
    pub(super) basis: usize,
}

impl Layout {
    /// Blocks wide enough for the products to run at full speed, narrow enough for the polynomial degree
    /// to grow; a basis in which most problems converge without a restart.
    pub(super) fn new(dimension: usize, count: usize) -> Self {
        let block = (count / 4).next_multiple_of(8).clamp(8, 64).min(dimension);
        let basis = count.saturating_mul(5).saturating_add(4 * block + PROBE_WIDTH * PROBE_STEPS).min(dimension);
        Self { block, basis }
    }

    /// The basis in which a spectrum that decays is expected to settle.
    pub(super) fn expected_basis(&self, count: usize) -> usize {
        count.saturating_mul(3).saturating_add(2 * self.block + PROBE_WIDTH * PROBE_STEPS)
    }
}

/// The leading eigenpairs, or `None` if they did not settle within the bound on products.
pub(super) fn top_eigenpairs<T: Scalar>(
    operator: &dyn PsdOperator<T>,
    count: usize,
    layout: Layout,
    par: Par,
) -> Result<Option<Eigenpairs>> {
    let dimension = operator.dimension();
    let (trace, noise) = (operator.trace()?, operator.noise());
    if !(trace.is_finite() && trace >= -(noise * dimension as f64)) {
        return Err(Error::invalid_operator(format!("a trace of {trace}")));
    }
    let narrow = T::EPSILON > f64::EPSILON;
    let (relative, limit) = if narrow { (TOLERANCE.1, EXPONENT.1) } else { (TOLERANCE.0, EXPONENT.0) };
    let exponent = even_exponent((trace / dimension as f64).max(noise)).clamp(-limit, limit);
    let trace = trace.max(0.0) * power_of_two(-exponent);
    let may_restart = layout.basis < dimension;
    let reserve = layout.block + PROBE_WIDTH * PROBE_STEPS;
    let bound = PRODUCTS_PER_PAIR.saturating_mul(count.saturating_add(layout.block));

    let size = Size { exponent, trace, noise: noise * power_of_two(-exponent) };
    let mut space = Space::<T>::new(dimension, layout.basis, size, par)?;
    let mut next = space.random_block(layout.block)?;
    let mut check_at = 5 * count / 2 + layout.block;
    let mut accepted = None;
    let mut probes_left = 0;
    while next.ncols() > 0 && space.products <= bound {
        space.extend(operator, next.as_ref())?;
        let complete = space.size == dimension;
        if probes_left > 1 && !complete {
            probes_left -= 1;
            next = space.next_block(PROBE_WIDTH)?;
            continue;
        }
        let full = may_restart && space.size + reserve + space.pending() > layout.basis;
        let due = probes_left == 1 || complete || full || space.size >= check_at;
        if !due || space.size < count {
            next = space.next_block(layout.block)?;
            continue;
        }
        let Some(ritz) = space.ritz()? else { return Ok(None) };
        ritz.require_positive(T::EPSILON * dimension as f64, &space.unit)?;
        let captured = ritz.captured(count);
        let allowed = space.unit.allowed(relative, captured, T::EPSILON);
        // What random directions brought in besides loosens the bound a little.
        let slack = if probes_left == 1 { 4.0 } else { 1.0 };
        let settled = ritz.possible_loss(count, &space.residual_norms(&ritz, count)?) <= slack * allowed;
        // Only what was accepted before, and then tested, is confirmed.
        let confirmed = accepted.is_some_and(|before: f64| captured - before <= allowed);
        if complete || (settled && confirmed) {
            return space.finish(&ritz, count).map(Some);
        }
        let testing = settled && probes_left == 0;
        if !testing {
            space.take_back()?;
        }
        if full {
            space.restart(&ritz, count + layout.block)?;
        }
        // Settled ones are put to the test with random directions, unless they have just failed it.
        if testing {
            accepted = Some(captured);
            probes_left = PROBE_STEPS;
            space.set_aside();
            next = space.random_block(PROBE_WIDTH)?;
        } else {
            accepted = None;
            probes_left = 0;
            check_at = space.size + (count / 4).max(layout.block);
            next = space.next_block(layout.block)?;
        }
    }
    Ok(None)
}

/// How large the operator is, by its own account.
struct Size {
    /// Everything the iteration computes is divided by two to this power, an even number.
    exponent: i32,
    /// So divided.
    trace: f64,
    /// So divided.
    noise: f64,
}

impl Size {
    /// The loss of captured energy at which the iteration may stop: a share of what is left, and what rounding hides.
    fn allowed(&self, relative: f64, captured: f64, epsilon: f64) -> f64 {
        relative * (self.trace - captured).max(0.0) + 8.0 * epsilon * self.trace + self.noise
    }
}

/// An orthonormal basis, the operator projected on it, and what the last product left outside of it.
struct Space<T> {
    basis: Mat<T>,
    size: usize,
    projected: Mat<f64>,
    /// What is to enter the basis next, and what waits while random directions are tried.
    residual: Option<Residual<T>>,
    aside: Option<Residual<T>>,
    products: usize,
    steps: usize,
    unit: Size,
    random: SplitMix64,
    par: Par,
}

/// Directions outside of the basis `Q` that the operator leads to: `H Q = Q (QᵀHQ) + directions · coupling`.
struct Residual<T> {
    directions: Mat<T>,
    /// One column for each of the first columns of the basis; zero for later ones.
    coupling: Mat<f64>,
}

/// Eigenpairs of the projected operator, in descending order.
struct Ritz {
    values: Vec<f64>,
    vectors: Mat<f64>,
}

impl<T: Scalar> Space<T> {
    fn new(dimension: usize, capacity: usize, unit: Size, par: Par) -> Result<Self> {
        Ok(Self {
            basis: linalg::zeros(dimension, capacity)?,
            size: 0,
            projected: linalg::zeros(capacity, capacity)?,
            residual: None,
            aside: None,
            products: 0,
            steps: 0,
            unit,
            random: SplitMix64::new(),
            par,
        })
    }

    fn dimension(&self) -> usize {
        self.basis.nrows()
    }

    fn basis(&self) -> MatRef<'_, T> {
        self.basis.as_ref().subcols(0, self.size)
    }

    /// The size of the operator, as far as it has been seen.
    fn scale(&self) -> f64 {
        (0..self.size).map(|i| self.projected[(i, i)].abs()).fold(0.0, f64::max)
    }

    /// Multiplies a block that is orthonormal to the basis, and takes it in.
    fn extend(&mut self, operator: &dyn PsdOperator<T>, block: MatRef<'_, T>) -> Result<()> {
        let range = self.size..self.size + block.ncols();
        self.basis.as_mut().subcols_mut(range.start, range.len()).copy_from(block);
        self.size = range.end;
        let mut product = self.multiply(operator, block)?;
        let coordinates = linalg::product(self.basis().transpose(), product.as_ref(), self.par)?;
        for (column, at) in range.clone().enumerate() {
            for row in 0..self.size {
                let entry = coordinates[(row, column)].to_f64();
                self.projected[(row, at)] = entry;
                self.projected[(at, row)] = entry;
            }
        }
        self.require_symmetric(coordinates.as_ref().subrows(range.start, range.len()))?;
        if self.steps == 0 {
            self.require_trace()?;
        }
        // Within the block both triangles were computed; their mean is symmetric.
        for column in 0..range.len() {
            for row in 0..column {
                let (upper, lower) =
                    (coordinates[(range.start + row, column)], coordinates[(range.start + column, row)]);
                let mean = (upper.to_f64() + lower.to_f64()) / 2.0;
                self.projected[(range.start + row, range.start + column)] = mean;
                self.projected[(range.start + column, range.start + row)] = mean;
            }
        }
        // Out of the basis twice; the first time's coordinates are known.
        linalg::add_product(product.as_mut(), T::from_f64(-1.0), self.basis(), coordinates.as_ref(), self.par);
        self.project_out_once(product.as_mut())?;
        let (start, width) = (range.start, range.len());
        let coupling = Mat::from_fn(width, range.end, |row, column| f64::from(u8::from(start + row == column)));
        self.residual = Some(Residual { directions: product, coupling });
        self.products += width;
        self.steps += 1;
        Ok(())
    }

    /// The operator, divided, times a block of unit vectors.
    fn multiply(&self, operator: &dyn PsdOperator<T>, block: MatRef<'_, T>) -> Result<Mat<T>> {
        let mut product = linalg::zeros(self.dimension(), block.ncols())?;
        if self.unit.exponent == 0 {
            operator.apply(block, product.as_mut())?;
        } else {
            // Half before and half after, lest either be out of range.
            let half = T::from_f64(power_of_two(-self.unit.exponent / 2));
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
        // No product of a unit vector is longer than the largest eigenvalue, and none of these exceeds their sum.
        let (largest, size) = (linalg::max_abs(product.as_ref()), &self.unit);
        if largest > 2.0 * size.trace + self.dimension() as f64 * size.noise {
            return Err(size.contradicted(format!("a product with an entry of {:e}", size.restored(largest))));
        }
        Ok(product)
    }

    fn require_trace(&self) -> Result<()> {
        let (share, dimension) = (self.size as f64 / self.dimension() as f64, self.dimension() as f64);
        let estimate = (0..self.size).map(|i| self.projected[(i, i)]).sum::<f64>().max(0.0) / share;
        if self.unit.trace > TRACE_DOUBT * estimate + dimension * self.unit.noise {
            return Err(self.unit.contradicted(format!("products that suggest {:e}", self.unit.restored(estimate))));
        }
        Ok(())
    }

    fn require_symmetric(&self, square: MatRef<'_, T>) -> Result<()> {
        let scale = self.scale().max(linalg::max_abs(square));
        let bound = 100.0 * self.dimension() as f64 * T::EPSILON * scale + self.unit.noise;
        for column in 0..square.ncols() {
            for row in 0..column {
                let difference = (square[(row, column)].to_f64() - square[(column, row)].to_f64()).abs();
                if difference > bound {
                    let difference = self.unit.restored(difference);
                    let found = format!("products that differ by {difference:e} from those of its transpose");
                    return Err(Error::invalid_operator(found));
                }
            }
        }
        Ok(())
    }

    /// `block -= Q Qᵀ block`.
    fn project_out_once(&self, block: MatMut<'_, T>) -> Result<()> {
        linalg::project_out(block, self.basis(), self.par)
    }

    /// The same twice, which makes a block of any size orthogonal to the basis as far as rounding allows.
    fn project_out(&self, mut block: MatMut<'_, T>) -> Result<()> {
        self.project_out_once(block.as_mut())?;
        self.project_out_once(block)
    }

    /// The directions in which the basis must grow, filled up to `width` with random ones.
    fn next_block(&mut self, width: usize) -> Result<Mat<T>> {
        match self.residual.take() {
            Some(Residual { directions, .. }) => {
                let width = width.max(directions.ncols());
                let room = self.basis.ncols() - self.size;
                if width > room && self.basis.ncols() < self.dimension() {
                    // Directions would be lost: an empty block ends the iteration.
                    return linalg::zeros(self.dimension(), 0);
                }
                self.orthonormal(directions, width)
            }
            None => self.random_block(width),
        }
    }

    fn random_block(&mut self, width: usize) -> Result<Mat<T>> {
        let none = linalg::zeros(self.dimension(), 0)?;
        self.orthonormal(none, width)
    }

    /// Number of directions that are yet to enter the basis.
    fn pending(&self) -> usize {
        self.residual.iter().chain(&self.aside).map(|residual| residual.directions.ncols()).sum()
    }

    fn set_aside(&mut self) {
        self.aside = self.residual.take();
    }

    /// Lets what was set aside enter the basis next, beside what the random directions led to.
    fn take_back(&mut self) -> Result<()> {
        let Some(mut aside) = self.aside.take() else { return Ok(()) };
        self.project_out(aside.directions.as_mut())?;
        let Some(residual) = self.residual.take() else {
            self.residual = Some(aside);
            return Ok(());
        };
        let (first, second) = (aside.directions.ncols(), residual.directions.ncols());
        let mut directions = linalg::zeros(self.dimension(), first + second)?;
        directions.as_mut().subcols_mut(0, first).copy_from(&aside.directions);
        directions.as_mut().subcols_mut(first, second).copy_from(&residual.directions);
        let mut coupling = linalg::zeros(first + second, residual.coupling.ncols())?;
        coupling.as_mut().submatrix_mut(0, 0, first, aside.coupling.ncols()).copy_from(&aside.coupling);
        coupling.as_mut().subrows_mut(first, second).copy_from(&residual.coupling);
        self.residual = Some(Residual { directions, coupling });
        Ok(())
    }

    /// An orthonormal block, orthogonal to the basis, that holds the span of `block`; columns that are
    /// dependent, or nothing but rounding, give way to random ones, and so do missing ones.
    fn orthonormal(&mut self, block: Mat<T>, width: usize) -> Result<Mat<T>> {
        let dimension = self.dimension();
        let room = self.basis.ncols() - self.size;
        let width = width.min(room);
        // What is dropped here is out of the loss bound, so it must be rounding beyond doubt.
        let mut floor = 0.01 * T::EPSILON * self.scale();
        let mut columns = linalg::zeros(dimension, width)?;
        let given = block.ncols().min(width);
        columns.as_mut().subcols_mut(0, given).copy_from(block.as_ref().subcols(0, given));
        let mut weak: Vec<usize> = (given..width).collect();
        // Random columns are independent; a third round has never been seen.
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
                // Rescaling residuals has rescaled what they had left of the basis: little, or nearly all of one that was almost nothing.
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

    fn ritz(&self) -> Result<Option<Ritz>> {
        let projected = self.projected.as_ref().submatrix(0, 0, self.size, self.size);
        // In the precision of the products, which is all that there is.
        let projected = linalg::rounded::<T>("the projected operator", projected)?;
        for algorithm in [Tridiagonal::DivideAndConquer, Tridiagonal::QrIteration] {
            let pairs = linalg::symmetric_eigen(projected.as_ref(), algorithm, self.par)?;
            let finite = |(values, _): &(Vec<f64>, Mat<T>)| values.iter().all(|value| value.is_finite());
            if let Some((values, vectors)) = pairs.filter(finite) {
                let vectors = linalg::widened(vectors.as_ref().reverse_cols(), 1.0)?;
                return Ok(Some(Ritz { values: values.into_iter().rev().collect(), vectors }));
            }
        }
        Ok(None)
    }

    /// Bounds on `‖H x − θ x‖` of the leading Ritz pairs: what is outside of the basis, seen through their coordinates.
    fn residual_norms(&self, ritz: &Ritz, count: usize) -> Result<Vec<f64>> {
        let mut norms = vec![0.0; count];
        for residual in self.residual.iter().chain(&self.aside) {
            let directions = linalg::widened(residual.directions.as_ref(), 1.0)?;
            let directions = directions.as_ref();
            let gram = linalg::product(directions.transpose(), directions, self.par)?;
            let coordinates = ritz.vectors.as_ref().submatrix(0, 0, residual.coupling.ncols(), count);
            let coordinates = linalg::product(residual.coupling.as_ref(), coordinates, self.par)?;
            let weighted = linalg::product(gram.as_ref(), coordinates.as_ref(), self.par)?;
            for (column, norm) in norms.iter_mut().enumerate() {
                let terms = coordinates.col(column).iter().zip(weighted.col(column).iter());
                *norm += terms.map(|(a, b)| a * b).sum::<f64>().max(0.0).sqrt();
            }
        }
        Ok(norms)
    }

    /// Keeps the leading Ritz vectors as the basis; what is outside of it stays, coupled to them.
    fn restart(&mut self, ritz: &Ritz, keep: usize) -> Result<()> {
        let coordinates = ritz.vectors.as_ref().subcols(0, keep);
        for residual in self.residual.iter_mut().chain(&mut self.aside) {
            let coordinates = coordinates.subrows(0, residual.coupling.ncols());
            residual.coupling = linalg::product(residual.coupling.as_ref(), coordinates, self.par)?;
        }
        let coordinates = linalg::rounded::<T>("the Ritz vectors", coordinates)?;
        let kept = linalg::product(self.basis(), coordinates.as_ref(), self.par)?;
        self.basis.as_mut().subcols_mut(0, keep).copy_from(kept);
        self.projected.fill(0.0);
        for (index, value) in ritz.values.iter().take(keep).enumerate() {
            self.projected[(index, index)] = *value;
        }
        self.size = keep;
        Ok(())
    }

    fn finish(&self, ritz: &Ritz, count: usize) -> Result<Eigenpairs> {
        let residual = self.residual_norms(ritz, count)?.into_iter().fold(0.0, f64::max);
        let coordinates = ritz.vectors.as_ref().subcols(0, count);
        let coordinates = linalg::rounded::<T>("the Ritz vectors", coordinates)?;
        let vectors = linalg::product(self.basis(), coordinates.as_ref(), self.par)?;
        // Orthonormal to `T`'s rounding so far; to that of `f64` from here on.
        let wide = linalg::widened(vectors.as_ref(), 1.0)?;
        let mut vectors = linalg::orthonormalized(wide, self.par)?;
        fix_signs(&mut vectors);
        let largest = ritz.values.first().copied().unwrap_or(0.0).max(0.0);
        Ok(Eigenpairs {
            values: ritz.values.iter().take(count).map(|value| self.unit.restored(value.max(0.0))).collect(),
            vectors,
            solver: NAME,
            fallback: false,
            steps: self.steps,
            basis_size: self.size,
            residual: relative(residual, largest),
            noise: self.unit.restored(self.unit.noise.max(T::EPSILON * (self.dimension() as f64).sqrt() * largest)),
        })
    }
}

impl Size {
    /// A number of the divided operator in the operator's own units.
    fn restored(&self, value: f64) -> f64 {
        value * power_of_two(self.exponent)
    }

    fn contradicted(&self, found: String) -> Error {
        let found = format!("a trace of {:e} but {found}", self.restored(self.trace));
        Error::invalid_operator(found)
    }
}

impl Ritz {
    fn captured(&self, count: usize) -> f64 {
        self.values.iter().take(count).map(|value| value.max(0.0)).sum()
    }

    /// A bound on the energy that the leading `count` Ritz vectors miss: each at most its residual, and at most its
    /// residual squared over the distance to the first Ritz value that is left out.
    fn possible_loss(&self, count: usize, residuals: &[f64]) -> f64 {
        let outside = self.values.get(count).copied().unwrap_or(0.0);
        let loss = |(value, residual): (&f64, &f64)| {
            residual * residual / residual.max(value - outside).max(f64::MIN_POSITIVE)
        };
        self.values.iter().zip(residuals).map(loss).sum()
    }

    fn require_positive(&self, rounding: f64, unit: &Size) -> Result<()> {
        let (Some(largest), Some(&lowest)) = (self.values.first(), self.values.last()) else { return Ok(()) };
        if lowest < -(100.0 * rounding * largest.abs() + unit.noise) {
            let found = format!("a negative eigenvalue, {:e}", unit.restored(lowest));
            return Err(Error::invalid_operator(found));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
