//! The spectra and scales with which LAPACK tests its drivers.

use faer::Mat;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// The distribution of the numbers in a spectrum. The largest is 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Family {
    Zero,
    Identity,
    /// Geometric down to `1e-16`, in a diagonal matrix.
    GradedDiagonal,
    Geometric,
    Arithmetic,
    OneLarge,
    OneSmall,
    Clustered,
    /// Logarithms uniform between those of `1e-16` and 1.
    RandomLog,
    /// Four values, zero among them.
    RepeatedWithZeros,
    RankDeficient,
}

pub const FAMILIES: [Family; 11] = [
    Family::Zero,
    Family::Identity,
    Family::GradedDiagonal,
    Family::Geometric,
    Family::Arithmetic,
    Family::OneLarge,
    Family::OneSmall,
    Family::Clustered,
    Family::RandomLog,
    Family::RepeatedWithZeros,
    Family::RankDeficient,
];

pub const SIZES: [usize; 7] = [1, 2, 3, 7, 33, 65, 130];

impl Family {
    /// Returns the numbers, descending.
    pub fn values(self, count: usize) -> Vec<f64> {
        let mut rng = StdRng::seed_from_u64(count as u64);
        let share = |i: usize| i as f64 / count as f64;
        let mut value = |i: usize| match self {
            Self::Zero => 0.0,
            Self::Identity => 1.0,
            Self::GradedDiagonal => 1e-16_f64.powf(share(i)),
            Self::Geometric => 1e-10_f64.powf(share(i)),
            Self::Arithmetic => 1.0 - share(i),
            Self::OneLarge if i == 0 => 1.0,
            Self::OneLarge => 1e-8,
            Self::OneSmall if i > 0 && i + 1 == count => 1e-8,
            Self::OneSmall => 1.0,
            Self::Clustered if 2 * i < count => 1.0,
            Self::Clustered => 0.1,
            Self::RandomLog if i == 0 => 1.0,
            Self::RandomLog => 1e-16_f64.powf(rng.random_range(0.0..1.0)),
            Self::RepeatedWithZeros => [1.0, 0.5, 0.1, 0.0][4 * i / count],
            Self::RankDeficient if 3 * i < count => 1.0 - share(i),
            Self::RankDeficient => 0.0,
        };
        let mut values: Vec<f64> = (0..count).map(&mut value).collect();
        values.sort_by(|a, b| b.total_cmp(a));
        values
    }

    /// Returns a random orthogonal matrix, or the identity for a diagonal matrix.
    pub fn rotation(self, dimension: usize) -> Mat<f64> {
        if self == Self::GradedDiagonal {
            return Mat::identity(dimension, dimension);
        }
        super::orthogonal(&mut StdRng::seed_from_u64(1 + dimension as u64), dimension, dimension)
    }
}

/// The largest ratio of a family, which is printed and checked at the end.
pub struct Worst {
    what: String,
    ratio: f64,
    at: String,
}

impl Worst {
    pub fn of(what: impl Into<String>) -> Self {
        Self { what: what.into(), ratio: 0.0, at: String::new() }
    }

    pub fn take(&mut self, ratio: f64, at: impl Into<String>) {
        // A NaN counts as the largest ratio, also after later ratios.
        if !(ratio <= self.ratio || self.ratio.is_nan()) {
            (self.ratio, self.at) = (ratio, at.into());
        }
    }

    /// Prints the ratio, and checks that it is below 35, the bound in LAPACK's own tests.
    #[track_caller]
    pub fn check(self) {
        println!("{:<60} {:9.4}  {}", self.what, self.ratio, self.at);
        assert!(self.ratio < 35.0, "{}, {}: {}", self.what, self.at, self.ratio);
    }
}

/// Returns `‖I − VᵀV‖ / (n ε)` for `n × k` vectors.
pub fn orthogonality(vectors: faer::MatRef<'_, f64>, epsilon: f64) -> f64 {
    let identity = Mat::<f64>::identity(vectors.ncols(), vectors.ncols());
    (vectors.transpose() * vectors - identity).norm_l2() / (vectors.nrows() as f64 * epsilon)
}
