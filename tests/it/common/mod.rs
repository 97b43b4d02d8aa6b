//! Generators and oracles that the integration tests share.
#![allow(dead_code)]

pub mod case;
pub mod families;
pub mod file;
pub mod jacobi;

use dalr::{ActivationStats, Linear, LowRankLinear, Scalar};
use faer::{Col, Mat, MatRef};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, StandardNormal};

pub fn gaussian(rng: &mut StdRng, rows: usize, columns: usize) -> Mat<f64> {
    Mat::from_fn(rows, columns, |_, _| StandardNormal.sample(rng))
}

/// Returns a random matrix with orthonormal columns (rows, if it is wide).
pub fn orthogonal(rng: &mut StdRng, rows: usize, columns: usize) -> Mat<f64> {
    if rows < columns {
        return orthogonal(rng, columns, rows).transpose().to_owned();
    }
    gaussian(rng, rows, columns).qr().compute_thin_Q()
}

/// The decay of singular values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spectrum {
    Flat,
    Arithmetic,
    Geometric,
    OneLarge,
    OneSmall,
    Clustered,
    Deficient,
}

pub const SPECTRA: [Spectrum; 7] = [
    Spectrum::Flat,
    Spectrum::Arithmetic,
    Spectrum::Geometric,
    Spectrum::OneLarge,
    Spectrum::OneSmall,
    Spectrum::Clustered,
    Spectrum::Deficient,
];

impl Spectrum {
    pub fn values(self, count: usize) -> Vec<f64> {
        let share = |i: usize| i as f64 / count as f64;
        let value = |i: usize| match self {
            Self::Flat => 1.0,
            Self::Arithmetic => 1.0 - share(i),
            Self::Geometric => 1e-4_f64.powf(share(i)),
            Self::OneLarge => {
                if i == 0 {
                    1.0
                } else {
                    1e-3
                }
            }
            Self::OneSmall => {
                if i + 1 == count {
                    1e-3
                } else {
                    1.0
                }
            }
            Self::Clustered => {
                if share(i) < 0.5 {
                    1.0
                } else {
                    0.1
                }
            }
            Self::Deficient => {
                if share(i) < 0.5 {
                    1.0 - share(i)
                } else {
                    0.0
                }
            }
        };
        (0..count).map(value).collect()
    }
}

/// Returns a random matrix with these singular values.
pub fn with_spectrum(rng: &mut StdRng, rows: usize, columns: usize, spectrum: Spectrum) -> Mat<f64> {
    let rank = rows.min(columns);
    let (left, right) = (orthogonal(rng, rows, rank), orthogonal(rng, rank, columns));
    let values = spectrum.values(rank);
    Mat::from_fn(rows, rank, |i, j| left[(i, j)] * values[j]) * right
}

/// A layer and inputs for it, one sample per row.
#[derive(Clone)]
pub struct Problem {
    pub weight: Mat<f64>,
    pub bias: Col<f64>,
    pub inputs: Mat<f64>,
}

/// The numbers that determine a problem; proptest shrinks them.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub seed: u64,
    pub out_features: usize,
    pub in_features: usize,
    pub samples: usize,
    pub weight: Spectrum,
    pub data: Spectrum,
    /// Length of the mean input, in units of the spread.
    pub mean: f64,
    /// Factor of all inputs.
    pub scale: f64,
}

impl Recipe {
    pub fn cook(&self) -> Problem {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let weight = with_spectrum(&mut rng, self.out_features, self.in_features, self.weight);
        let mean = gaussian(&mut rng, 1, self.in_features);
        let spread = with_spectrum(&mut rng, self.samples, self.in_features, self.data);
        let entry = |i, j| (spread[(i, j)] + self.mean * mean[(0, j)]) * self.scale;
        let inputs = Mat::from_fn(self.samples, self.in_features, entry);
        // The bias is as large as the outputs, so that rounding in the sum does not hide them.
        let size = weight.norm_max() * inputs.norm_max();
        let bias = gaussian(&mut rng, self.out_features, 1).col(0) * faer::Scale(size);
        Problem { weight, bias, inputs }
    }

    pub fn full_rank(&self) -> usize {
        self.out_features.min(self.in_features)
    }
}

pub fn cast<T: Scalar>(matrix: MatRef<'_, f64>) -> Mat<T> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| T::from_f64(matrix[(i, j)]))
}

impl Problem {
    pub fn layer<T: Scalar>(&self) -> Linear<T> {
        let bias = self.bias.iter().map(|&b| T::from_f64(b)).collect();
        Linear::new(cast(self.weight.as_ref()), Some(bias)).unwrap()
    }

    pub fn bare_layer<T: Scalar>(&self) -> Linear<T> {
        Linear::new(cast(self.weight.as_ref()), None).unwrap()
    }

    pub fn stats<T: Scalar>(&self) -> ActivationStats<T> {
        stats(cast(self.inputs.as_ref()).as_ref())
    }
}

pub fn stats<T: Scalar>(inputs: MatRef<'_, T>) -> ActivationStats<T> {
    let mut stats = ActivationStats::new(inputs.ncols());
    stats.update(inputs).unwrap();
    stats
}

/// Returns `up · down` in `f64`.
pub fn weight_of<T: Scalar>(layer: &LowRankLinear<T>) -> Mat<f64> {
    let wide = |m: MatRef<'_, T>| Mat::from_fn(m.nrows(), m.ncols(), |i, j| m[(i, j)].to_f64());
    wide(layer.up()) * wide(layer.down())
}

/// Runs both layers. Returns the sum of the squared differences of their outputs, and that of the
/// original outputs, minus their mean if `centred`, or without the bias.
pub fn run_both(layer: &Linear<f64>, low: &LowRankLinear<f64>, inputs: MatRef<'_, f64>, centred: bool) -> (f64, f64) {
    let (dense, compressed) = (layer.forward(inputs).unwrap(), low.forward(inputs).unwrap());
    let error = (&dense - compressed).squared_norm_l2();
    let total = if centred {
        let ones = Mat::<f64>::ones(1, dense.nrows());
        let mean = ones * &dense * faer::Scale(1.0 / dense.nrows() as f64);
        Mat::from_fn(dense.nrows(), dense.ncols(), |i, j| dense[(i, j)] - mean[(0, j)]).squared_norm_l2()
    } else {
        (inputs * layer.weight().transpose()).squared_norm_l2()
    };
    (error, total)
}
