//! Comparisons of layers up to a tolerance, for tests: `AbsDiffEq`, `RelativeEq` and `UlpsEq` of
//! the crate `approx`.
//!
//! [`Linear`] and [`LowRankLinear`] compare entry by entry, as matrices of nalgebra and ndarray do.
//! Layers of different shapes are not equal, nor is a layer with a bias equal to one without.
//!
//! ```
//! use approx::{assert_abs_diff_eq, assert_relative_eq};
//! use dalr::{Linear, LowRankLinear};
//! use faer::{col, mat};
//!
//! # fn main() -> dalr::Result<()> {
//! let layer = Linear::new(mat![[1.0, 2.0]], Some(col![3.0]))?;
//! let other = Linear::new(mat![[1.0, 2.0 + 1e-9]], Some(col![3.0]))?;
//! assert_relative_eq!(layer, other, max_relative = 1e-8);
//! approx::assert_relative_ne!(layer, Linear::new(mat![[1.0, 2.0]], None)?);
//!
//! // Different factors of the same layer: compare their products.
//! let here = LowRankLinear::new(mat![[1.0, 2.0]], mat![[3.0], [4.0]], None)?;
//! let there = LowRankLinear::new(mat![[-1.0, -2.0]], mat![[-3.0], [-4.0]], None)?;
//! approx::assert_abs_diff_ne!(here, there, epsilon = 1e-12);
//! assert_abs_diff_eq!(here.to_linear()?, there.to_linear()?, epsilon = 1e-12);
//! # Ok(())
//! # }
//! ```
//!
//! Choose a tolerance relative to the size of the weight: rounding in a factor is `ε` times its
//! norm, not `ε` times each entry.

use ::approx::{AbsDiffEq, RelativeEq, UlpsEq};
use faer::{ColRef, MatRef};

use crate::{Linear, LowRankLinear, Scalar};

/// Returns whether two lists of matrices have the same shapes and close entries.
fn close<T, const N: usize>(
    matrices: [(MatRef<'_, T>, MatRef<'_, T>); N],
    biases: (Option<ColRef<'_, T>>, Option<ColRef<'_, T>>),
    close: impl Fn(&T, &T) -> bool,
) -> bool {
    let same = |a: MatRef<'_, T>, b: MatRef<'_, T>| {
        let mut columns = a.col_iter().zip(b.col_iter());
        a.shape() == b.shape() && columns.all(|(a, b)| a.iter().zip(b.iter()).all(|(a, b)| close(a, b)))
    };
    let biases_agree = match biases {
        (Some(a), Some(b)) => same(a.as_mat(), b.as_mat()),
        (None, None) => true,
        _ => false,
    };
    biases_agree && matrices.into_iter().all(|(a, b)| same(a, b))
}

macro_rules! compared {
    ($layer:ident, $($matrix:ident),+) => {
        impl<T: Scalar + AbsDiffEq<Epsilon = T>> AbsDiffEq for $layer<T> {
            type Epsilon = T;

            fn default_epsilon() -> T {
                T::default_epsilon()
            }

            fn abs_diff_eq(&self, other: &Self, epsilon: T) -> bool {
                let matrices = [$((self.$matrix(), other.$matrix())),+];
                close(matrices, (self.bias(), other.bias()), |a, b| a.abs_diff_eq(b, epsilon))
            }
        }

        impl<T: Scalar + RelativeEq<Epsilon = T>> RelativeEq for $layer<T> {
            fn default_max_relative() -> T {
                T::default_max_relative()
            }

            fn relative_eq(&self, other: &Self, epsilon: T, max_relative: T) -> bool {
                let matrices = [$((self.$matrix(), other.$matrix())),+];
                close(matrices, (self.bias(), other.bias()), |a, b| a.relative_eq(b, epsilon, max_relative))
            }
        }

        impl<T: Scalar + UlpsEq<Epsilon = T>> UlpsEq for $layer<T> {
            fn default_max_ulps() -> u32 {
                T::default_max_ulps()
            }

            fn ulps_eq(&self, other: &Self, epsilon: T, max_ulps: u32) -> bool {
                let matrices = [$((self.$matrix(), other.$matrix())),+];
                close(matrices, (self.bias(), other.bias()), |a, b| a.ulps_eq(b, epsilon, max_ulps))
            }
        }
    };
}

compared!(Linear, weight);
compared!(LowRankLinear, down, up);
