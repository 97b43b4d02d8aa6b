//! Dense linear algebra: products, factorizations, norms, scaling, threads and random numbers.
//!
//! Only this module calls faer's low-level routines. `kernels` compiles them once for `f32` and
//! once for `f64`, so that programs which use this crate do not compile them again.

mod factorizations;
mod kernels;
mod memory;
mod norms;
mod products;
mod random;
mod scaling;
mod threads;

pub(crate) use self::factorizations::{
    Pairs, cholesky, cholesky_solve, left_singular, orthonormal_columns, orthonormalized, pivot_columns, root_of_gram,
    solve, solve_lower_triangular, solve_upper_triangular, symmetric_eigen, symmetric_eigenvalues, thin_qr,
};
pub(crate) use self::kernels::Kernels;
pub(crate) use self::memory::{converted, out_of_memory, rounded, widened, zeros};
pub(crate) use self::norms::{first_non_finite, max_abs, require_finite, squared_column_norms, squared_norm};
#[cfg(feature = "safetensors")]
pub(crate) use self::products::copy_in_tiles;
pub(crate) use self::products::{
    BlockStructure, add_gram_product, add_product, add_row_products, add_symmetric_product, gram, mirror_lower,
    product, project_out, set_product, set_triangular_product, triangular_product,
};
pub(crate) use self::random::SplitMix64;
pub(crate) use self::scaling::{even_exponent, power_of_two};
pub(crate) use self::threads::{Par, for_each_column, for_each_part, for_each_row, macs, threads};

#[cfg(test)]
mod tests;
