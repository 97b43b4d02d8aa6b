//! Parallelism: the number of threads of an operation, and loops over the parts of a matrix.

pub(crate) use faer::Par;
use faer::{MatMut, MatRef};

use crate::Scalar;

/// Below this number of multiply–adds, starting threads takes longer than they save.
pub(super) const PARALLEL_THRESHOLD: f64 = 4e6;

/// Returns the parallelism of a public operation whose caller requested this many threads.
///
/// 0 means one thread inside a rayon worker, where the caller has parallelised already, and the
/// size of rayon's pool elsewhere. faer's process-wide setting is neither read nor changed.
#[cfg(feature = "rayon")]
pub(crate) fn threads(requested: usize) -> Par {
    let nested = requested == 0 && rayon::current_thread_index().is_some();
    if requested == 1 || nested {
        return Par::Seq;
    }
    let pool = rayon::current_num_threads();
    match if requested == 0 { pool } else { requested.min(pool) } {
        1 => Par::Seq,
        count => Par::rayon(count),
    }
}

/// Without the feature `rayon`, everything runs on the caller's thread.
#[cfg(not(feature = "rayon"))]
pub(crate) fn threads(_requested: usize) -> Par {
    Par::Seq
}

/// Returns `par`, or one thread for an operation of too few multiply–adds.
pub(crate) fn threads_for(par: Par, macs: f64) -> Par {
    if macs < PARALLEL_THRESHOLD { Par::Seq } else { par }
}

/// Returns the multiply–adds of the product of an `a × b` with a `b × c` matrix.
pub(crate) fn macs(a: usize, b: usize, c: usize) -> f64 {
    a as f64 * b as f64 * c as f64
}

/// Calls `fill` with every column of `target` and its index, in parallel if the operation is large
/// enough.
pub(crate) fn for_each_column<T: Scalar>(
    target: MatMut<'_, T>,
    par: Par,
    fill: impl Fn(usize, faer::ColMut<'_, T>) + Sync,
) {
    #[cfg(feature = "rayon")]
    if let Par::Rayon(parts) = threads_for(par, macs(target.nrows(), target.ncols(), 1)) {
        use rayon::prelude::*;
        let parts = parts.get().min(target.ncols().max(1));
        let (each, more) = (target.ncols() / parts, target.ncols() % parts);
        target.par_col_partition_mut(parts).enumerate().for_each(|(part, columns)| {
            let start = part * each + part.min(more);
            let numbered = columns.col_iter_mut().enumerate();
            numbered.for_each(|(index, column)| fill(start + index, column));
        });
        return;
    }
    let _ = par;
    target.col_iter_mut().enumerate().for_each(|(index, column)| fill(index, column));
}

/// Calls `visit` with every part, in parallel if the operation is large enough.
pub(crate) fn for_each_part<P: Send>(parts: Vec<P>, macs: f64, par: Par, visit: impl Fn(P) + Sync + Send) {
    #[cfg(feature = "rayon")]
    if let Par::Rayon(count) = threads_for(par, macs) {
        use rayon::prelude::*;
        let each = parts.len().div_ceil(count.get());
        parts.into_par_iter().with_min_len(each).for_each(visit);
        return;
    }
    let _ = (macs, par);
    parts.into_iter().for_each(visit);
}

/// Calls `visit` with every row of a matrix and its index, as a slice whatever the memory layout.
pub(crate) fn for_each_row<T: Scalar>(matrix: MatRef<'_, T>, mut visit: impl FnMut(usize, &[T])) {
    if let Some(rows) = matrix.try_as_row_major() {
        for (index, row) in rows.row_iter().enumerate() {
            visit(index, row.as_slice());
        }
    } else {
        let mut copy = vec![T::default(); matrix.ncols()];
        for (index, row) in matrix.row_iter().enumerate() {
            copy.iter_mut().zip(row.iter()).for_each(|(to, from)| *to = *from);
            visit(index, &copy);
        }
    }
}
