//! A layer and its inputs as numbers. It is compressed in either precision and with either form of
//! the statistics, and compared with plain computations in `f64`. The outputs are multiplied out,
//! and the Jacobi oracle gives the best possible error.

use dalr::{ActivationStats, Compressed, Dalr, Linear, LowRankCompressor, Rank, Report, Ridge, Scalar};
use faer::{Col, Mat, MatRef};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::{cast, gaussian, jacobi, weight_of};

/// A layer and its inputs. The samples are few enough for the sample form, and enough for a
/// covariance.
#[derive(Clone)]
pub struct Case {
    pub weight: Mat<f64>,
    pub bias: Option<Col<f64>>,
    pub inputs: Mat<f64>,
}

pub const SHAPE: (usize, usize, usize) = (24, 40, 60);

/// A shape with enough inputs for products in single precision, and enough samples for the
/// covariance form.
pub const WIDE: (usize, usize, usize) = (24, 512, 1700);

/// A compressed layer in `f64`, whatever its precision was.
pub struct Outcome {
    pub layer: Linear<f64>,
    pub down: Mat<f64>,
    pub up: Mat<f64>,
    pub report: Report,
    /// `‖Y − Ŷ‖` over all samples.
    pub measured: f64,
    /// Bound on the rounding of the factors, the bias and the measurement in it.
    pub rounding: f64,
}

impl Case {
    /// Creates a Gaussian weight and inputs.
    pub fn random(seed: u64, (outputs, inputs, samples): (usize, usize, usize)) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let weight = gaussian(&mut rng, outputs, inputs);
        let bias = Some(gaussian(&mut rng, outputs, 1).col(0).to_owned());
        Self { weight, bias, inputs: gaussian(&mut rng, samples, inputs) }
    }

    pub fn map_inputs(mut self, change: impl Fn(f64, usize, usize) -> f64) -> Self {
        let inputs = &self.inputs;
        self.inputs = Mat::from_fn(inputs.nrows(), inputs.ncols(), |i, j| change(inputs[(i, j)], i, j));
        self
    }

    pub fn bare(&self) -> Self {
        Self { bias: None, ..self.clone() }
    }

    /// Returns the case with its numbers rounded to a scalar type.
    pub fn rounded<T: Scalar>(&self) -> Self {
        let round = |matrix: MatRef<'_, f64>| {
            Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| T::from_f64(matrix[(i, j)]).to_f64())
        };
        Self {
            weight: round(self.weight.as_ref()),
            bias: self.bias.as_ref().map(|bias| round(bias.as_mat()).col(0).to_owned()),
            inputs: round(self.inputs.as_ref()),
        }
    }

    pub fn layer<T: Scalar>(&self) -> Linear<T> {
        let bias = self.bias.as_ref().map(|bias| bias.iter().map(|&b| T::from_f64(b)).collect());
        Linear::new(cast(self.weight.as_ref()), bias).unwrap()
    }

    pub fn samples(&self) -> usize {
        self.inputs.nrows()
    }

    /// Returns the inputs, minus their mean if the bias is corrected.
    pub fn seen(&self) -> Mat<f64> {
        let mean = if self.bias.is_some() { mean(&self.inputs) } else { vec![0.0; self.inputs.ncols()] };
        Mat::from_fn(self.samples(), self.inputs.ncols(), |i, j| self.inputs[(i, j)] - mean[j])
    }

    /// Returns the squared singular values of the outputs, descending: the energy that each
    /// dimension of the best layer captures.
    pub fn energies(&self) -> Vec<f64> {
        let outputs = self.seen() * self.weight.transpose();
        jacobi::svd(outputs.as_ref()).values.iter().map(|value| value * value).collect()
    }

    /// Returns the squared sum of the original outputs about their mean.
    pub fn variance(&self) -> f64 {
        let mean = mean(&self.inputs);
        let centred = Mat::from_fn(self.samples(), self.inputs.ncols(), |i, j| self.inputs[(i, j)] - mean[j]);
        (centred * self.weight.transpose()).squared_norm_l2()
    }

    /// Returns `‖Y − Ŷ‖` over all samples, by running both layers.
    pub fn measured(&self, layer: &Linear<f64>) -> f64 {
        let run = |layer: &Linear<f64>| {
            let outputs = &self.inputs * layer.weight().transpose();
            let bias = |j| layer.bias().map_or(0.0, |bias| bias[j]);
            Mat::from_fn(outputs.nrows(), outputs.ncols(), |i, j| outputs[(i, j)] + bias(j))
        };
        (run(&self.layer()) - run(layer)).norm_l2()
    }

    /// Returns `√(Σ_j ‖W_j‖² ‖X_j‖²)`, the size of the terms of an output before they cancel.
    pub fn terms(&self, inputs: &Mat<f64>) -> f64 {
        let norms = self.weight.col_iter().zip(inputs.col_iter());
        norms.map(|(w, x)| w.squared_norm_l2() * x.squared_norm_l2()).sum::<f64>().sqrt()
    }

    pub fn outcome<T: Scalar>(&self, compressed: &Compressed<T>) -> Outcome {
        let low = compressed.layer();
        let bias: Option<Col<f64>> = low.bias().map(|bias| bias.iter().map(|b| b.to_f64()).collect());
        let constant = bias.as_ref().map_or(0.0, |bias| bias.norm_l2()) * (self.samples() as f64).sqrt();
        let layer = Linear::new(weight_of(low), bias).unwrap();
        let stored = T::EPSILON * (self.terms(&self.seen()) + constant);
        Outcome {
            measured: self.measured(&layer),
            layer,
            down: wide(low.down()),
            up: wide(low.up()),
            report: compressed.report().clone(),
            rounding: 10.0 * (stored + f64::EPSILON * self.terms(&self.inputs)),
        }
    }

    /// Compresses without a ridge, in both precisions and with both forms of the statistics. Checks
    /// that the reported error equals the measured one, and is the smallest possible one for this
    /// rank.
    #[track_caller]
    pub fn check(&self, rank: usize) -> Vec<Outcome> {
        let wide = self.inputs.ncols() >= WIDE.1;
        let forms: &[Form] = if wide { &[Form::Collapsed] } else { &[Form::Samples, Form::Collapsed] };
        let narrow = forms.iter().map(|&form| self.check_form::<f32>(rank, form, wide));
        let double = forms.iter().map(|&form| self.check_form::<f64>(rank, form, false));
        narrow.chain(double).collect()
    }

    #[track_caller]
    pub fn check_form<T: Scalar>(&self, rank: usize, form: Form, narrow_products: bool) -> Outcome {
        let case = self.rounded::<T>();
        let stats = form.of::<T>(&case.inputs);
        let method = Dalr::new().with_ridge(Ridge::None);
        let compressed = method.compress(&case.layer(), &stats, Rank::Fixed(rank)).unwrap();
        let outcome = case.outcome(&compressed);
        let energies = case.energies();
        let least = energies.iter().skip(rank).sum::<f64>();
        // The rounding of energies and squared errors is that of the terms that add up to them.
        let precision = if narrow_products { f64::from(f32::EPSILON) } else { f64::EPSILON };
        let known = 10.0 * precision * case.terms(&case.seen()).powi(2);
        let reported = outcome.report.relative_error().unwrap() * case.variance().sqrt();
        let at_most = |one: f64, other: f64, what: &str| {
            let bound = (other * other + known).sqrt() + outcome.rounding;
            assert!(one <= bound, "{form:?}, {} bytes, rank {rank}, {what}: {one:e} > {bound:e}", size_of::<T>());
        };
        at_most(outcome.measured, least.sqrt(), "not the best there is");
        at_most(outcome.measured, reported, "worse than reported");
        at_most(reported, outcome.measured, "better than reported");
        outcome
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    Samples,
    Collapsed,
}

impl Form {
    pub fn of<T: Scalar>(self, inputs: &Mat<f64>) -> ActivationStats<T> {
        let batch = cast::<T>(inputs.as_ref());
        let attempt = |stats: ActivationStats<T>| {
            let mut stats = stats;
            let updated = stats.update(batch.as_ref());
            let collapsed = format!("{stats:?}").contains("covariance");
            updated.ok().map(|()| stats).filter(|_| collapsed == (self == Self::Collapsed))
        };
        let empty = || ActivationStats::new(inputs.ncols());
        // A memory limit with room for a scatter and no samples forces the covariance form
        // immediately.
        let row = inputs.ncols() * size_of::<T>();
        let mut limits = (0..200).map(|more| 8 * inputs.ncols().pow(2) + more * row);
        let limited = |limit| attempt(empty().with_memory_limit(limit));
        attempt(empty()).or_else(|| limits.find_map(limited)).unwrap_or_else(|| panic!("no way to {self:?}"))
    }
}

pub const FORMS: [Form; 2] = [Form::Samples, Form::Collapsed];

pub fn wide<T: Scalar>(matrix: MatRef<'_, T>) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| matrix[(i, j)].to_f64())
}

pub fn mean(rows: &Mat<f64>) -> Vec<f64> {
    // The first row is subtracted, because a large mean would cost accuracy.
    let about = |j: usize| rows.col(j).iter().map(|x| x - rows[(0, j)]).sum::<f64>() / rows.nrows() as f64;
    (0..rows.ncols()).map(|j| rows[(0, j)] + about(j)).collect()
}
