//! The operator that every method diagonalises: `F (κ S + λ I) Fᵀ` on the output side.

use core::cell::OnceCell;

use faer::{Mat, MatMut, MatRef};

use crate::covariance::SecondMoment;
use crate::linalg::{self, Par};
use crate::solver::{self, PsdOperator};
use crate::{Result, Scalar};

/// `F (κ S + λ I) Fᵀ` for a factor `F` of shape outputs × inputs and the second moment `S` of the inputs.
pub(crate) struct OutputOperator<'a, T> {
    factor: MatRef<'a, f64>,
    moment: &'a dyn SecondMoment<T>,
    /// `κ`, what shrinkage leaves of `S`.
    keep: f64,
    /// `λ`, in units of the divided `S`.
    ridge: f64,
    par: Par,
    data_trace: OnceCell<f64>,
}

impl<'a, T: Scalar> OutputOperator<'a, T> {
    pub(crate) fn new(
        factor: MatRef<'a, f64>,
        moment: &'a dyn SecondMoment<T>,
        (keep, ridge): (f64, f64),
        par: Par,
    ) -> Self {
        debug_assert_eq!(factor.ncols(), moment.features());
        Self { factor, moment, keep, ridge, par, data_trace: OnceCell::new() }
    }

    /// `tr F S Fᵀ`, the part of the trace that speaks of the data.
    pub(crate) fn data_trace(&self) -> Result<f64> {
        if let Some(&trace) = self.data_trace.get() {
            return Ok(trace);
        }
        let forms = self.moment.row_forms(self.factor, self.factor, self.par)?;
        Ok(*self.data_trace.get_or_init(|| forms.iter().sum()))
    }
}

impl<T: Scalar> PsdOperator<f64> for OutputOperator<'_, T> {
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

    /// Entry by entry, rounding in `F S Fᵀ` is bounded by that of `|F| |S| |F|ᵀ`, which dwarfs the product where the
    /// weight is blind to the directions that vary most.
    fn noise(&self) -> f64 {
        let level = solver::noise_level(self.factor.nrows().max(self.factor.ncols())) + self.moment.rounding();
        level * term_size(&linalg::squared_column_norms(self.factor), self.moment, (self.keep, self.ridge))
            + self.moment.quantum() * linalg::squared_norm(self.factor)
    }

    fn work(&self) -> f64 {
        2.0 * linalg::macs(self.factor.nrows(), self.factor.ncols(), 1) + self.moment.macs()
    }

    fn assembly_work(&self) -> f64 {
        let dimension = self.factor.nrows() as f64;
        let inputs = self.moment.samples_kept().unwrap_or(self.factor.ncols()) as f64;
        let ridge = if self.ridge > 0.0 { self.factor.ncols() as f64 } else { 0.0 };
        dimension * (self.factor.ncols() as f64 * inputs + dimension * (inputs + ridge) / 2.0)
    }

    fn assemble(&self) -> Result<Mat<f64>> {
        let mut matrix = self.moment.congruence(self.factor, self.par)?;
        let trace = (0..matrix.nrows()).map(|i| matrix[(i, i)]).sum();
        // Already known, to rounding, if the trace was asked for first.
        let _ = self.data_trace.set(trace);
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

/// `Σ_j ‖F_j‖² (κ S_jj + λ)`, given the squared norms of `F`'s columns: the size of the terms that add up to
/// `tr F (κ S + λ I) Fᵀ`, however they cancel.
pub(crate) fn term_size<T: Scalar>(norms: &[f64], moment: &dyn SecondMoment<T>, (keep, ridge): (f64, f64)) -> f64 {
    let weights = moment.diagonal().iter().map(|variance| keep * variance + ridge);
    norms.iter().zip(weights).map(|(norm, weight)| norm * weight).sum()
}

/// `κ Z Zᵀ + λ W Wᵀ` for the outputs `Z` of the samples, outputs × samples, in the precision of the data: the same
/// operator where samples are kept, with one matrix to multiply by instead of two.
pub(crate) struct GramOperator<'a, T> {
    outputs: MatRef<'a, T>,
    weight: MatRef<'a, T>,
    keep: f64,
    ridge: f64,
    noise: f64,
    trace: f64,
    par: Par,
}

impl<'a, T: Scalar> GramOperator<'a, T> {
    /// `noise` is the size of rounding in the operator's eigenvalues.
    pub(crate) fn new(
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

    /// Adds `factor · M Mᵀ · block` to `result`.
    fn add(&self, mut result: MatMut<'_, T>, factor: f64, matrix: MatRef<'_, T>, block: MatRef<'_, T>) -> Result<()> {
        let share = linalg::product(matrix.transpose(), block, self.par)?;
        linalg::add_product(result.as_mut(), T::from_f64(factor), matrix, share.as_ref(), self.par);
        Ok(())
    }
}

impl<T: Scalar> PsdOperator<T> for GramOperator<'_, T> {
    fn dimension(&self) -> usize {
        self.outputs.nrows()
    }

    fn apply(&self, block: MatRef<'_, T>, mut result: MatMut<'_, T>) -> Result<()> {
        result.fill(T::default());
        self.add(result.as_mut(), self.keep, self.outputs, block)?;
        if self.ridge > 0.0 {
            self.add(result, self.ridge, self.weight, block)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ActivationStats;

    /// Applying the operator and forming it are two implementations of one thing.
    #[test]
    fn applying_equals_assembling() -> Result<()> {
        let entry = |i: usize, j: usize| ((i * 29 + j * 53) % 31) as f64 / 31.0 - 0.3;
        let factor = Mat::from_fn(7, 12, entry);
        for samples in [5, 40] {
            let mut stats = ActivationStats::<f64>::new(12);
            stats.update(Mat::from_fn(samples, 12, |i, j| entry(j, i) + 2.0).as_ref())?;
            for centred in [true, false] {
                let moment = Moment::of(&stats, centred)?;
                let operator = OutputOperator::new(factor.as_ref(), &moment, (0.7, 0.2), 1);
                let assembled = operator.assemble()?;
                let mut applied = Mat::zeros(7, 7);
                operator.apply(Mat::identity(7, 7).as_ref(), applied.as_mut())?;
                assert!((&assembled - &applied).norm_max() < 1e-13 * assembled.norm_max());
                let fresh = OutputOperator::new(factor.as_ref(), &moment, (0.7, 0.2), 1);
                let trace: f64 = (0..7).map(|i| assembled[(i, i)]).sum();
                assert!((fresh.trace()? / trace - 1.0).abs() < 1e-13);
            }
        }
        Ok(())
    }

    #[test]
    fn the_outputs_of_samples_make_the_same_operator_applied_and_formed() -> Result<()> {
        let entry = |i: usize, j: usize| ((i * 29 + j * 53) % 31) as f64 / 31.0 - 0.3;
        let (outputs, weight) = (Mat::from_fn(5, 8, entry), Mat::from_fn(5, 6, |i, j| entry(j, i + 3)));
        for ridge in [0.0, 0.2] {
            let operator = GramOperator::new(outputs.as_ref(), weight.as_ref(), (0.7, ridge), 1e-3, 1);
            let expected =
                &outputs * outputs.transpose() * faer::Scale(0.7) + &weight * weight.transpose() * faer::Scale(ridge);
            let mut applied = Mat::zeros(5, 5);
            operator.apply(Mat::identity(5, 5).as_ref(), applied.as_mut())?;
            assert!((&applied - &expected).norm_max() < 1e-14);
            assert!((operator.assemble()? - &expected).norm_max() < 1e-14);
            let trace: f64 = (0..5).map(|i| expected[(i, i)]).sum();
            assert!((operator.trace()? - trace).abs() < 1e-14);
            assert_eq!(operator.noise(), 1e-3);
        }
        Ok(())
    }

    /// Statistics of so many samples and inputs in single precision.
    fn stats(samples: usize, inputs: usize) -> ActivationStats<f32> {
        let mut stats = ActivationStats::new(inputs);
        stats.update(Mat::from_fn(samples, inputs, |i, j| ((i * 29 + j * 53) % 31) as f32 - 9.0).as_ref()).unwrap();
        stats
    }

    #[test]
    fn noise_is_rounding_in_every_term_however_they_cancel() -> Result<()> {
        // Products of so many inputs are formed in single precision once they are formed.
        let inputs = 512;
        let factor = Mat::from_fn(7, inputs, |i, j| ((i * 29 + j * 53) % 31) as f64 / 31.0 - 0.3);
        for samples in [5, 1600] {
            let stats = stats(samples, inputs);
            let moment = Moment::of(&stats, true)?;
            assert_eq!(moment.rounding() > 0.0, samples == 1600);
            let term = |j: usize| factor.col(j).squared_norm_l2() * (0.7 * moment.diagonal()[j] + 0.2);
            let terms: f64 = (0..inputs).map(term).sum();
            let expected = (4.0 * inputs as f64 * f64::EPSILON + moment.rounding()) * terms;
            let noise = OutputOperator::new(factor.as_ref(), &moment, (0.7, 0.2), 1).noise();
            assert!((noise / expected - 1.0).abs() < 1e-12, "{noise:e} {expected:e}");
        }
        // Where there are no terms, what underflow takes away in tiny data.
        let mut tiny = ActivationStats::<f64>::new(3);
        tiny.update(Mat::from_fn(4, 3, |i, j| 1e-155 * ((i * 5 + j * 3) % 7) as f64).as_ref())?;
        let moment = Moment::of(&tiny, true)?;
        let factor = Mat::from_fn(2, 3, |i, j| (i + j) as f64 + 2.0);
        let noise = OutputOperator::new(factor.as_ref(), &moment, (0.0, 0.0), 1).noise();
        let expected = moment.quantum() * factor.squared_norm_l2();
        assert!(expected > 1e-30 && (noise / expected - 1.0).abs() < 1e-12, "{noise:e} {expected:e}");
        Ok(())
    }

    #[test]
    fn prices_are_numbers_of_multiply_adds() -> Result<()> {
        let factor = Mat::<f64>::zeros(7, 12);
        // Kept, a sample is multiplied by twice; a scatter once, with 144 entries; `S = I` not at all.
        let (kept, collapsed) = (stats(5, 12), stats(400, 12));
        let prices = |moment: &Moment<'_, f32>, ridge: f64| {
            let operator = OutputOperator::new(factor.as_ref(), moment, (1.0, ridge), 1);
            (operator.work(), operator.assembly_work())
        };
        let (kept, collapsed) = (Moment::of(&kept, true)?, Moment::of(&collapsed, true)?);
        assert_eq!(prices(&kept, 0.0), (2.0 * 84.0 + 120.0, 7.0 * (12.0 * 5.0 + 7.0 * 5.0 / 2.0)));
        assert_eq!(prices(&kept, 1.0), (2.0 * 84.0 + 120.0, 7.0 * (12.0 * 5.0 + 7.0 * 17.0 / 2.0)));
        assert_eq!(prices(&collapsed, 0.0), (2.0 * 84.0 + 144.0, 7.0 * (12.0 * 12.0 + 7.0 * 12.0 / 2.0)));
        assert_eq!(prices(&collapsed, 1.0), (2.0 * 84.0 + 144.0, 7.0 * (12.0 * 12.0 + 7.0 * 24.0 / 2.0)));
        assert_eq!(prices(&Moment::identity(12), 0.0).0, 2.0 * 84.0);
        Ok(())
    }
}
