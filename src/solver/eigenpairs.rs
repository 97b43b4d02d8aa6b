//! The result of a solver.

use faer::Mat;

/// The largest eigenvalues of an operator, their eigenvectors, and the algorithm that found them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Eigenpairs {
    /// Eigenvalues, descending; none is negative.
    pub values: Vec<f64>,
    /// Orthonormal eigenvectors, one per column, each with its largest entry positive.
    pub vectors: Mat<f64>,
    /// Name of the algorithm that found them.
    pub solver: &'static str,
    /// Whether the chosen algorithm failed, and this is the result of its fallback.
    pub fallback: bool,
    /// Number of blocks of vectors to which the operator was applied; 0 for dense algorithms.
    pub steps: usize,
    /// Dimension of the subspace that contains the vectors; the operator's dimension for dense
    /// algorithms.
    pub basis_size: usize,
    /// Largest `‖H v − λ v‖` of the pairs, relative to the largest eigenvalue.
    ///
    /// For block Lanczos it is a bound, which is computed from the basis and holds in exact
    /// arithmetic.
    pub residual: f64,
    /// Eigenvalues up to this size can be rounding noise.
    pub noise: f64,
}

impl Eigenpairs {
    /// Returns the number of eigenvalues above the rounding [`noise`](Self::noise).
    pub fn numerical_rank(&self) -> usize {
        self.values.iter().take_while(|&&value| value > self.noise).count()
    }

    /// Replaces the vectors, and fixes their signs.
    pub(crate) fn with_vectors(mut self, mut vectors: Mat<f64>) -> Self {
        fix_signs(&mut vectors);
        self.vectors = vectors;
        self
    }
}

impl core::fmt::Display for Eigenpairs {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.steps {
            0 => f.write_str(self.solver),
            steps => write!(f, "{} ({steps} steps, basis {})", self.solver, self.basis_size),
        }
    }
}

/// Returns a residual relative to the largest eigenvalue. If that is zero, returns 0: an accepted
/// residual is then noise.
pub(super) fn relative(residual: f64, largest: f64) -> f64 {
    if largest > 0.0 { residual / largest } else { 0.0 }
}

/// Returns the rounding noise in eigenvalues computed in `f64`, relative to the largest one.
pub(crate) fn noise_level(dimension: usize) -> f64 {
    4.0 * dimension as f64 * f64::EPSILON
}

/// Makes the largest entry of every column positive; of equal entries, the first decides.
pub(crate) fn fix_signs(vectors: &mut Mat<f64>) {
    for column in vectors.as_mut().col_iter_mut() {
        let mut largest = 0.0_f64;
        for &entry in column.as_ref().iter() {
            if entry.abs() > largest.abs() {
                largest = entry;
            }
        }
        if largest < 0.0 {
            column.iter_mut().for_each(|entry| *entry = -*entry);
        }
    }
}
