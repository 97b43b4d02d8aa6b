//! Block Lanczos with full reorthogonalisation. It needs a few hundred products with the operator
//! instead of the `O(d³)` operations of a dense algorithm.
//!
//! `krylov_basis` grows a basis by products with the operator. `ritz_pairs` extracts eigenpairs and
//! their residuals from it. `convergence` decides when to stop. This file contains the iteration.

mod convergence;
mod krylov_basis;
mod ritz_pairs;

use self::convergence::{EnergyHistory, VERIFICATION_STEPS, VERIFICATION_WIDTH, allowed_loss};
use self::krylov_basis::{Magnitude, Space};
use self::ritz_pairs::{explained, require_positive};
use super::{Eigenpairs, PsdOperator};
use crate::linalg::{Par, even_exponent, power_of_two};
use crate::{Error, Result, Scalar};

const NAME: &str = "block Lanczos";

/// The iteration stops without a result after this many products per requested pair and per vector
/// of a block.
const PRODUCTS_PER_PAIR: usize = 40;

/// Largest exponents of the power of two by which an operator is divided, for `f64` and for `f32`.
/// The squares of results must stay in the range of `f64`, and results in the range of `f32`.
const EXPONENT: (i32, i32) = (1000, 120);

/// A basis has room for this many vectors, which take little memory. Few pairs with close
/// eigenvalues need them.
pub(crate) const LEAST_BASIS: usize = 512;

/// Numbers of vectors in the iteration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Widths {
    /// Vectors multiplied at once.
    pub(super) block: usize,
    /// Largest number of vectors in the basis. A full basis is restarted from its leading Ritz
    /// vectors.
    pub(super) basis: usize,
}

impl Widths {
    /// Chooses the sizes for `count` eigenpairs. Wide blocks make products fast; narrow blocks
    /// allow more iterations in a basis of the same size. The basis is so large that most problems
    /// converge without a restart.
    pub(super) fn new(dimension: usize, count: usize) -> Self {
        let block = (count / 4).next_multiple_of(8).clamp(16, 64).min(dimension);
        let verification = VERIFICATION_WIDTH * VERIFICATION_STEPS;
        let basis = count.saturating_mul(5).saturating_add(4 * block + verification).max(LEAST_BASIS).min(dimension);
        Self { block, basis }
    }

    /// Returns the size of the basis in which the iteration converges if the eigenvalues decay.
    pub(super) fn expected_basis(&self, count: usize) -> usize {
        count.saturating_mul(3).saturating_add(2 * self.block + VERIFICATION_WIDTH * VERIFICATION_STEPS)
    }
}

/// Returns the leading eigenpairs, or `None` if they did not converge within the bound on products.
pub(super) fn top_eigenpairs<T: Scalar>(
    operator: &dyn PsdOperator<T>,
    count: usize,
    widths: Widths,
    par: Par,
) -> Result<Option<Eigenpairs>> {
    let dimension = operator.dimension();
    let (trace, noise) = (operator.trace()?, operator.noise());
    if !(trace.is_finite() && trace >= -(noise * dimension as f64)) {
        return Err(Error::invalid_operator(format!("a trace of {trace}")));
    }
    let single = T::EPSILON > f64::EPSILON;
    let limit = if single { EXPONENT.1 } else { EXPONENT.0 };
    let exponent = even_exponent((trace / dimension as f64).max(noise)).clamp(-limit, limit);
    let trace = trace.max(0.0) * power_of_two(-exponent);
    let may_restart = widths.basis < dimension;
    let reserve = widths.block + VERIFICATION_WIDTH * VERIFICATION_STEPS;
    let bound = PRODUCTS_PER_PAIR.saturating_mul(count.saturating_add(widths.block));

    let magnitude = Magnitude { exponent, trace, noise: noise * power_of_two(-exponent) };
    let mut space = Space::<T>::new(dimension, widths.basis, magnitude, par)?;
    let mut next = space.random_block(widths.block)?;
    let mut check_at = 2 * count;
    let mut history = EnergyHistory::new();
    // The explained energy before the verification, and the number of products until its end.
    let mut accepted = None;
    let mut verifying = 0;
    while next.ncols() > 0 && space.products <= bound {
        space.extend(operator, next.as_ref())?;
        let complete = space.size == dimension;
        if verifying > 1 && !complete {
            verifying -= 1;
            next = space.next_block(VERIFICATION_WIDTH)?;
            continue;
        }
        let full = may_restart && space.size + reserve + space.pending() > widths.basis;
        let due = verifying == 1 || complete || full || space.size >= check_at;
        if !due || space.size < count {
            next = space.next_block(widths.block)?;
            continue;
        }
        let Some(values) = space.ritz_values()? else { return Ok(None) };
        require_positive(&values, T::EPSILON * dimension as f64, &space.magnitude)?;
        let captured = explained(&values, count);
        let allowed = allowed_loss::<T>(&space.magnitude, captured);
        let verified = accepted.is_some_and(|before: f64| captured - before <= allowed);
        if complete || verified {
            return space.finish(count);
        }
        // After a failed verification, the iteration continues before the next one. A basis that is
        // full too early leaves a gain of fewer products.
        if verifying > 0 || space.size < check_at {
            history = EnergyHistory::new();
        }
        history.add(captured);
        let verify = history.remaining() <= allowed;
        if !verify {
            space.restore_deferred()?;
        }
        if full && !space.restart(count + widths.block)? {
            return Ok(None);
        }
        if verify {
            accepted = Some(captured);
            verifying = VERIFICATION_STEPS;
            space.defer_residual();
            next = space.random_block(VERIFICATION_WIDTH)?;
        } else {
            accepted = None;
            verifying = 0;
            check_at = space.size + (count / 4).max(widths.block);
            next = space.next_block(widths.block)?;
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
