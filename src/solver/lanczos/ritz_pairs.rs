//! Eigenpairs of the projected operator, and bounds on their errors.

use faer::Mat;

use super::super::eigenpairs::{Eigenpairs, fix_signs, relative};
use super::NAME;
use super::krylov_basis::{Magnitude, Space};
use crate::linalg;
use crate::{Error, Result, Scalar};

/// Eigenpairs of the projected operator, in descending order.
pub(super) struct Ritz {
    pub(super) values: Vec<f64>,
    pub(super) vectors: Mat<f64>,
}

/// Returns the energy that the leading `count` pairs explain.
pub(super) fn explained(values: &[f64], count: usize) -> f64 {
    values.iter().take(count).map(|value| value.max(0.0)).sum()
}

pub(super) fn require_positive(values: &[f64], rounding: f64, magnitude: &Magnitude) -> Result<()> {
    let (Some(largest), Some(&lowest)) = (values.first(), values.last()) else { return Ok(()) };
    if lowest < -(100.0 * rounding * largest.abs() + magnitude.noise) {
        let found = format!("a negative eigenvalue, {:e}", magnitude.restored(lowest));
        return Err(Error::invalid_operator(found));
    }
    Ok(())
}

impl<T: Scalar> Space<T> {
    /// Returns the operator projected on the basis, in the precision of the products.
    fn projected(&self) -> Result<Mat<T>> {
        let projected = self.projected.as_ref().submatrix(0, 0, self.size, self.size);
        linalg::rounded("the projected operator", projected)
    }

    /// Returns the eigenvalues of the projected operator, in descending order; `None` if they could
    /// not be computed.
    pub(super) fn ritz_values(&self) -> Result<Option<Vec<f64>>> {
        let values = linalg::symmetric_eigenvalues(self.projected()?.as_ref(), self.par)?;
        Ok(values.filter(|values| values.iter().all(|value| value.is_finite())).map(|mut values| {
            values.reverse();
            values
        }))
    }

    /// Returns the eigenpairs of the projected operator; `None` if they could not be computed.
    fn ritz(&self) -> Result<Option<Ritz>> {
        let Some((values, vectors)) = linalg::symmetric_eigen(self.projected()?.as_ref(), self.par)? else {
            return Ok(None);
        };
        if values.iter().any(|value| !value.is_finite()) {
            return Ok(None);
        }
        let vectors = linalg::widened(vectors.as_ref().reverse_cols(), 1.0)?;
        Ok(Some(Ritz { values: values.into_iter().rev().collect(), vectors }))
    }

    /// Returns bounds on `‖H x − θ x‖` of the leading Ritz pairs. They are the lengths of
    /// `directions · coupling` times the coordinates of the pairs.
    pub(super) fn residual_norms(&self, ritz: &Ritz, count: usize) -> Result<Vec<f64>> {
        let mut norms = vec![0.0; count];
        for residual in self.residual.iter().chain(&self.deferred) {
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

    /// Keeps the leading Ritz vectors as the basis, and the directions outside of it, coupled to
    /// them. Returns false if the Ritz vectors could not be computed.
    pub(super) fn restart(&mut self, keep: usize) -> Result<bool> {
        let Some(ritz) = self.ritz()? else { return Ok(false) };
        let coordinates = ritz.vectors.as_ref().subcols(0, keep);
        for residual in self.residual.iter_mut().chain(&mut self.deferred) {
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
        Ok(true)
    }

    /// Returns the leading pairs in the operator's own units; `None` if they could not be computed.
    pub(super) fn finish(&self, count: usize) -> Result<Option<Eigenpairs>> {
        let Some(ritz) = self.ritz()? else { return Ok(None) };
        let residual = self.residual_norms(&ritz, count)?.into_iter().fold(0.0, f64::max);
        let coordinates = ritz.vectors.as_ref().subcols(0, count);
        let coordinates = linalg::rounded::<T>("the Ritz vectors", coordinates)?;
        let vectors = linalg::product(self.basis(), coordinates.as_ref(), self.par)?;
        // So far, the vectors are orthonormal only to the rounding of `T`.
        let vectors = linalg::widened(vectors.as_ref(), 1.0)?;
        let mut vectors = linalg::orthonormalized(vectors, self.par)?;
        fix_signs(&mut vectors);
        let largest = ritz.values.first().copied().unwrap_or(0.0).max(0.0);
        Ok(Some(Eigenpairs {
            values: ritz.values.iter().take(count).map(|value| self.magnitude.restored(value.max(0.0))).collect(),
            vectors,
            solver: NAME,
            fallback: false,
            steps: self.steps,
            basis_size: self.size,
            residual: relative(residual, largest),
            noise: self
                .magnitude
                .restored(self.magnitude.noise.max(T::EPSILON * (self.dimension() as f64).sqrt() * largest)),
        }))
    }
}
