//! Block Lanczos with full reorthogonalisation: a few hundred products with the operator find what
//! a dense algorithm finds in `O(d³)`.
//!
//! `krylov_basis` grows a basis by products with the operator. `ritz_pairs` extracts eigenpairs and
//! their residuals from it. `convergence` tells when to stop. This file holds the iteration.

mod convergence;
mod krylov_basis;
mod ritz_pairs;

use self::convergence::{VERIFICATION_STEPS, VERIFICATION_WIDTH, allowed_loss, possible_loss};
use self::krylov_basis::{Magnitude, Space};
use super::{Eigenpairs, PsdOperator};
use crate::linalg::{Par, even_exponent, power_of_two};
use crate::{Error, Result, Scalar};

const NAME: &str = "block Lanczos";

/// Products per wanted pair, or vector of a block, after which the iteration gives up.
const PRODUCTS_PER_PAIR: usize = 40;

/// Operators are divided by a power of two up to these exponents, since the squares of results must
/// stay in range. For `f32`, whose squares are formed in `f64`, results must stay in range.
const EXPONENT: (i32, i32) = (1000, 120);

/// Numbers of vectors in the iteration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Widths {
    /// Vectors multiplied at once.
    pub(super) block: usize,
    /// Vectors kept before the basis is restarted from its best part.
    pub(super) basis: usize,
}

impl Widths {
    /// Blocks wide enough for fast products, and narrow enough for the polynomial degree to grow; a
    /// basis in which most problems converge without a restart.
    pub(super) fn new(dimension: usize, count: usize) -> Self {
        let block = (count / 4).next_multiple_of(8).clamp(8, 64).min(dimension);
        let verification = VERIFICATION_WIDTH * VERIFICATION_STEPS;
        let basis = count.saturating_mul(5).saturating_add(4 * block + verification).min(dimension);
        Self { block, basis }
    }

    /// The basis in which the iteration converges if the eigenvalues decay.
    pub(super) fn expected_basis(&self, count: usize) -> usize {
        count.saturating_mul(3).saturating_add(2 * self.block + VERIFICATION_WIDTH * VERIFICATION_STEPS)
    }
}

/// The leading eigenpairs, or `None` if they did not converge within the bound on products.
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
    let mut check_at = 5 * count / 2 + widths.block;
    // The energy before the verification, and the products that are left of it.
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
        let Some(ritz) = space.ritz()? else { return Ok(None) };
        ritz.require_positive(T::EPSILON * dimension as f64, &space.magnitude)?;
        let captured = ritz.captured(count);
        let allowed = allowed_loss::<T>(&space.magnitude, captured);
        // The verification block has residuals of its own, which loosen the bound.
        let slack = if verifying == 1 { 4.0 } else { 1.0 };
        let converged = possible_loss(&ritz, count, &space.residual_norms(&ritz, count)?) <= slack * allowed;
        let verified = accepted.is_some_and(|before: f64| captured - before <= allowed);
        if complete || (converged && verified) {
            return space.finish(&ritz, count).map(Some);
        }
        // A result that has just failed the verification is improved first.
        let verify = converged && verifying == 0;
        if !verify {
            space.restore_deferred()?;
        }
        if full {
            space.restart(&ritz, count + widths.block)?;
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
