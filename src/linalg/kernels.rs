//! faer's generic routines, compiled only here, for `f32` and for `f64`.

use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::evd::{self, ComputeEigenvectors};
use faer::linalg::householder;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::qr::no_pivoting::factor as qr;
use faer::{Accum, Conj, Mat, MatMut, MatRef, Par, Spec};

use super::memory::{out_of_memory, zeros};
use crate::Result;

/// Returns workspace for one of faer's routines.
pub(super) fn workspace(need: StackReq) -> Result<MemBuffer> {
    MemBuffer::try_new(need).map_err(|_| out_of_memory(need.size_bytes()))
}

/// The routines for one [`Scalar`](crate::Scalar) type.
///
/// The implementations are not generic. They are therefore compiled once with this library, not in
/// every crate that uses it.
pub trait Kernels: Sized {
    /// Computes `target = lhs · rhs · alpha`, or adds the product to `target`.
    fn matmul(
        target: MatMut<'_, Self>,
        accum: Accum,
        lhs: MatRef<'_, Self>,
        rhs: MatRef<'_, Self>,
        alpha: Self,
        par: Par,
    );

    /// As [`matmul`](Self::matmul), for parts of `target` and of `rhs`.
    fn triangular_matmul(
        target: (MatMut<'_, Self>, BlockStructure),
        accum: Accum,
        lhs: MatRef<'_, Self>,
        rhs: (MatRef<'_, Self>, BlockStructure),
        alpha: Self,
        par: Par,
    );

    /// Returns `Q` and `R` of the thin QR factorization of a tall matrix.
    fn thin_qr(matrix: Mat<Self>, par: Par) -> Result<(Mat<Self>, Mat<Self>)>;

    /// Returns the eigenvalues, ascending, of a finite symmetric matrix, whose lower triangle it
    /// reads, and fills `vectors` with the eigenvectors if there are any. `None` if the iteration
    /// does not converge.
    fn symmetric_eigen(
        matrix: MatRef<'_, Self>,
        vectors: Option<MatMut<'_, Self>>,
        par: Par,
    ) -> Result<Option<Vec<Self>>>;
}

macro_rules! compile_kernels {
    ($scalar:ty) => {
        impl Kernels for $scalar {
            #[inline(never)]
            fn matmul(
                target: MatMut<'_, Self>,
                accum: Accum,
                lhs: MatRef<'_, Self>,
                rhs: MatRef<'_, Self>,
                alpha: Self,
                par: Par,
            ) {
                faer::linalg::matmul::matmul(target, accum, lhs, rhs, alpha, par);
            }

            #[inline(never)]
            fn triangular_matmul(
                (target, target_part): (MatMut<'_, Self>, BlockStructure),
                accum: Accum,
                lhs: MatRef<'_, Self>,
                (rhs, rhs_part): (MatRef<'_, Self>, BlockStructure),
                alpha: Self,
                par: Par,
            ) {
                let whole = BlockStructure::Rectangular;
                triangular::matmul(target, target_part, accum, lhs, whole, rhs, rhs_part, alpha, par);
            }

            #[inline(never)]
            fn thin_qr(mut matrix: Mat<Self>, par: Par) -> Result<(Mat<Self>, Mat<Self>)> {
                let (rows, columns) = matrix.shape();
                let block = qr::recommended_block_size::<Self>(rows, columns);
                let mut reflectors = zeros(block, columns)?;
                let params = Spec::default();
                let mut buffer = workspace(StackReq::any_of(&[
                    qr::qr_in_place_scratch::<Self>(rows, columns, block, par, params),
                    householder::apply_block_householder_sequence_on_the_left_in_place_scratch::<Self>(
                        rows, block, columns,
                    ),
                ]))?;
                let stack = MemStack::new(&mut buffer);
                qr::qr_in_place(matrix.as_mut(), reflectors.as_mut(), par, stack, params);
                let mut triangle = zeros(columns, columns)?;
                for column in 0..columns {
                    for row in 0..=column {
                        triangle[(row, column)] = matrix[(row, column)];
                    }
                }
                let mut basis = zeros(rows, columns)?;
                basis.as_mut().diagonal_mut().column_vector_mut().fill(1.0);
                householder::apply_block_householder_sequence_on_the_left_in_place_with_conj(
                    matrix.as_ref(),
                    reflectors.as_ref(),
                    Conj::No,
                    basis.as_mut(),
                    par,
                    MemStack::new(&mut buffer),
                );
                Ok((basis, triangle))
            }

            #[inline(never)]
            fn symmetric_eigen(
                matrix: MatRef<'_, Self>,
                vectors: Option<MatMut<'_, Self>>,
                par: Par,
            ) -> Result<Option<Vec<Self>>> {
                let dimension = matrix.nrows();
                let params = Spec::default();
                let compute = if vectors.is_some() { ComputeEigenvectors::Yes } else { ComputeEigenvectors::No };
                let mut buffer = workspace(evd::self_adjoint_evd_scratch::<Self>(dimension, compute, par, params))?;
                let mut values = faer::diag::Diag::<Self>::zeros(dimension);
                let stack = MemStack::new(&mut buffer);
                let converged = evd::self_adjoint_evd(matrix, values.as_mut(), vectors, par, stack, params);
                Ok(converged.is_ok().then(|| values.column_vector().iter().copied().collect()))
            }
        }
    };
}

compile_kernels!(f32);
compile_kernels!(f64);
