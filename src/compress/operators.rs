//! The operator `F (κ S + λ I) Fᵀ` that a problem diagonalises, in its forms.

use core::cell::OnceCell;

use faer::{Mat, MatMut, MatRef};

use super::problem::Problem;
use super::solver_choice::{LEAST_DATA, OperatorForm};
use crate::covariance::SecondMoment;
use crate::linalg::{self, BlockStructure, Par};
use crate::solver::{self, PsdOperator};
use crate::{Result, Scalar};

/// `F (κ S + λ I) Fᵀ` for a factor `F`, outputs × inputs: multiplies by `Fᵀ`, `S` and `F` in turn.
pub(super) struct FactoredOperator<'a, T> {
    factor: MatRef<'a, f64>,
    moment: &'a dyn SecondMoment<T>,
    /// `κ`.
    keep: f64,
    /// `λ`.
    ridge: f64,
    par: Par,
    data_trace: OnceCell<f64>,
}

impl<'a, T: Scalar> FactoredOperator<'a, T> {
    pub(super) fn new(
        factor: MatRef<'a, f64>,
        moment: &'a dyn SecondMoment<T>,
        (keep, ridge): (f64, f64),
        par: Par,
    ) -> Self {
        Self { factor, moment, keep, ridge, par, data_trace: OnceCell::new() }
    }

    /// Returns `tr F S Fᵀ`, the data's part of the trace.
    pub(super) fn data_trace(&self) -> Result<f64> {
        if let Some(&trace) = self.data_trace.get() {
            return Ok(trace);
        }
        let energy = self.moment.energy(self.factor, self.par)?;
        Ok(*self.data_trace.get_or_init(|| energy))
    }
}

impl<T: Scalar> PsdOperator<f64> for FactoredOperator<'_, T> {
    fn dimension(&self) -> usize {
        self.factor.nrows()
    }

    fn apply(&self, block: MatRef<'_, f64>, result: MatMut<'_, f64>) -> Result<()> {
        let back = linalg::product(self.factor.transpose(), block, self.par)?;
        let mut weighted = self.moment.multiply(back.as_ref(), self.par)?;
        faer::zip!(&mut weighted, &back).for_each(|faer::unzip!(weighted, back)| {
            *weighted = self.keep * *weighted + self.ridge * back;
        });
        linalg::set_product(result, self.factor, weighted.as_ref(), self.par);
        Ok(())
    }

    fn trace(&self) -> Result<f64> {
        Ok(self.keep * self.data_trace()? + self.ridge * linalg::squared_norm(self.factor))
    }

    /// Returns the rounding in an eigenvalue. That in an entry of `F S Fᵀ` is bounded by `ε` times
    /// that of `|F| |S| |F|ᵀ`. This is much larger than `ε F S Fᵀ` if the contributions of strongly
    /// varying inputs cancel.
    fn noise(&self) -> f64 {
        let level = solver::noise_level(self.factor.nrows().max(self.factor.ncols())) + self.moment.rounding();
        level * term_size(&linalg::squared_column_norms(self.factor), self.moment, (self.keep, self.ridge))
            + self.moment.quantum() * linalg::squared_norm(self.factor)
    }

    fn macs(&self) -> f64 {
        2.0 * linalg::macs(self.factor.nrows(), self.factor.ncols(), 1) + self.moment.macs()
    }

    fn assemble(&self) -> Result<Mat<f64>> {
        let mut matrix = self.moment.congruence(self.factor, self.par)?;
        // The trace costs nothing more now. If it was computed before, `set` fails, and keeps that
        // value.
        let _ = self.data_trace.set(matrix.diagonal().column_vector().sum());
        if self.keep != 1.0 {
            matrix *= faer::Scale(self.keep);
        }
        if self.ridge > 0.0 {
            let factor = self.factor;
            linalg::add_symmetric_product(matrix.as_mut(), self.ridge, factor, factor.transpose(), self.par);
            linalg::mirror_lower(&mut matrix);
        }
        Ok(matrix)
    }
}

/// Returns `Σ_j ‖F_j‖² (κ S_jj + λ)`, given the squared norms of `F`'s columns.
///
/// This is the size of the terms that add up to `tr F (κ S + λ I) Fᵀ`, whether or not they cancel.
pub(super) fn term_size<T: Scalar>(norms: &[f64], moment: &dyn SecondMoment<T>, (keep, ridge): (f64, f64)) -> f64 {
    let weights = moment.diagonal().iter().map(|variance| keep * variance + ridge);
    norms.iter().zip(weights).map(|(norm, weight)| norm * weight).sum()
}

/// `κ Z Zᵀ + λ W Wᵀ` for one matrix `Z` of outputs, in native precision.
pub(super) struct GramOperator<'a, T> {
    outputs: MatRef<'a, T>,
    weight: MatRef<'a, T>,
    keep: f64,
    ridge: f64,
    noise: f64,
    trace: f64,
    par: Par,
}

impl<'a, T: Scalar> GramOperator<'a, T> {
    /// Creates the operator. `noise` is the size of rounding in its eigenvalues.
    pub(super) fn new(
        outputs: MatRef<'a, T>,
        weight: MatRef<'a, T>,
        (keep, ridge): (f64, f64),
        noise: f64,
        par: Par,
    ) -> Self {
        let anchor = if ridge > 0.0 { ridge * linalg::squared_norm(weight) } else { 0.0 };
        let trace = keep * linalg::squared_norm(outputs) + anchor;
        Self { outputs, weight, keep, ridge, noise, trace, par }
    }
}

impl<T: Scalar> PsdOperator<T> for GramOperator<'_, T> {
    fn dimension(&self) -> usize {
        self.outputs.nrows()
    }

    fn apply(&self, block: MatRef<'_, T>, mut result: MatMut<'_, T>) -> Result<()> {
        result.fill(T::default());
        for (factor, part) in [(self.keep, self.outputs), (self.ridge, self.weight)] {
            if factor > 0.0 {
                linalg::add_gram_product(result.as_mut(), T::from_f64(factor), part, block, self.par)?;
            }
        }
        Ok(())
    }

    fn trace(&self) -> Result<f64> {
        Ok(self.trace)
    }

    fn noise(&self) -> f64 {
        self.noise
    }

    fn assemble(&self) -> Result<Mat<T>> {
        let dimension = self.dimension();
        let mut matrix = linalg::zeros(dimension, dimension)?;
        for (factor, part) in [(self.keep, self.outputs), (self.ridge, self.weight)] {
            if factor > 0.0 {
                let factor = T::from_f64(factor);
                linalg::add_symmetric_product(matrix.as_mut(), factor, part, part.transpose(), self.par);
            }
        }
        linalg::mirror_lower(&mut matrix);
        Ok(matrix)
    }
}

/// `Z` with `W (κ S + λ I) Wᵀ = keep · Z Zᵀ + ridge · W Wᵀ`, for the scaled weight on the left.
pub(super) struct Outputs<T> {
    pub(super) matrix: Mat<T>,
    pub(super) keep: f64,
    pub(super) ridge: f64,
    /// `tr W S Wᵀ` of the scaled weight.
    pub(super) energy: f64,
}

impl<T: Scalar> Outputs<T> {
    /// Forms `Z` from the samples, or from a Cholesky factor `L` of `κ S + λ I`, as `form` says.
    /// Returns `None` if samples are needed and the statistics are in covariance form, if there is
    /// no `L`, or if less than `LEAST_DATA` of `tr Z Zᵀ` comes from the data. `norms` are the
    /// squared norms of the weight's columns.
    pub(super) fn new(
        problem: &Problem<'_, T>,
        form: OperatorForm,
        moment: &dyn SecondMoment<T>,
        (keep, ridge): (f64, f64),
        norms: &[f64],
    ) -> Result<Option<Self>> {
        let (scale, par) = (problem.scale(), problem.par);
        if form == OperatorForm::Outputs {
            let outputs = moment.outputs(problem.weight, scale, par)?;
            return Ok(outputs.map(|matrix| {
                let energy = linalg::squared_norm(matrix.as_ref());
                Self { matrix, keep, ridge: ridge * scale * scale, energy }
            }));
        }
        let Some((root, added)) = moment.root_of((keep, ridge), par)? else { return Ok(None) };
        let mut native = linalg::zeros::<T>(root.nrows(), root.ncols())?;
        faer::zip!(&mut native, &root).for_each(|faer::unzip!(to, from)| *to = T::from_f64(from * scale));
        drop(root);
        let triangle = BlockStructure::TriangularLower;
        let matrix = linalg::triangular_product(problem.weight, native.as_ref(), triangle, par)?;
        let whole = linalg::squared_norm(matrix.as_ref());
        let added: f64 = norms.iter().zip(added).map(|(norm, added)| norm * scale * scale * added).sum();
        // The data's energy is the difference of two numbers. Rounding hides it if the ridge is
        // much larger.
        if whole - added < LEAST_DATA * whole {
            return Ok(None);
        }
        Ok(Some(Self { matrix, keep: 1.0, ridge: 0.0, energy: (whole - added) / keep }))
    }
}
