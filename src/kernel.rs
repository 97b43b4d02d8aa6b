//! Matrix products and factorisations with explicit threads: the one door to faer's low-level calls.

use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::cholesky::llt;
use faer::linalg::evd::{self, ComputeEigenvectors, SelfAdjointEvdParams};
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular;
pub(crate) use faer::linalg::matmul::triangular::BlockStructure;
use faer::linalg::qr::no_pivoting::factor as qr;
use faer::linalg::svd::{self, ComputeSvdVectors};
use faer::linalg::{householder, triangular_inverse, triangular_solve};
use faer::{Accum, Auto, Conj, Mat, MatMut, MatRef, Par, Spec};

use crate::{Error, Result, Scalar};

/// Multiply–adds below which waking threads costs more than it saves.
#[cfg(feature = "rayon")]
const PARALLEL_THRESHOLD: f64 = 4e6;

/// How many threads an operation of `work` multiply–adds gets; `threads = 0` means "choose".
///
/// On its own this chooses one thread inside a rayon worker, where the caller has parallelised already,
/// and the size of rayon's pool elsewhere. Nothing process-wide is read from faer or set.
#[cfg(feature = "rayon")]
pub(crate) fn parallelism(threads: usize, work: f64) -> Par {
    let nested = threads == 0 && rayon::current_thread_index().is_some();
    if threads == 1 || nested || work < PARALLEL_THRESHOLD {
        return Par::Seq;
    }
    let pool = rayon::current_num_threads();
    match if threads == 0 { pool } else { threads.min(pool) } {
        1 => Par::Seq,
        count => Par::rayon(count),
    }
}

/// Without the `rayon` feature everything runs on the caller's thread.
#[cfg(not(feature = "rayon"))]
pub(crate) fn parallelism(_threads: usize, _work: f64) -> Par {
    Par::Seq
}

/// Calls `fill` with every column of `target` and its index, on several threads if there is enough to do.
pub(crate) fn for_each_column<T: Scalar>(
    target: MatMut<'_, T>,
    threads: usize,
    fill: impl Fn(usize, faer::ColMut<'_, T>) + Sync,
) {
    #[cfg(feature = "rayon")]
    if let Par::Rayon(parts) = parallelism(threads, work(target.nrows(), target.ncols(), 1)) {
        use rayon::prelude::*;
        let parts = parts.get().min(target.ncols().max(1));
        let (each, more) = (target.ncols() / parts, target.ncols() % parts);
        target.par_col_partition_mut(parts).enumerate().for_each(|(part, columns)| {
            let start = part * each + part.min(more);
            columns.col_iter_mut().enumerate().for_each(|(index, column)| fill(start + index, column));
        });
        return;
    }
    let _ = threads;
    target.col_iter_mut().enumerate().for_each(|(index, column)| fill(index, column));
}

/// Calls `visit` with every part, on several threads if there is enough to do.
pub(crate) fn for_each_part<P: Send>(parts: Vec<P>, work: f64, threads: usize, visit: impl Fn(P) + Sync + Send) {
    #[cfg(feature = "rayon")]
    if let Par::Rayon(count) = parallelism(threads, work) {
        use rayon::prelude::*;
        let each = parts.len().div_ceil(count.get());
        parts.into_par_iter().with_min_len(each).for_each(visit);
        return;
    }
    let _ = (work, threads);
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

/// Multiply–adds of a product of an `a × b` with a `b × c` matrix.
pub(crate) fn work(a: usize, b: usize, c: usize) -> f64 {
    a as f64 * b as f64 * c as f64
}

/// What an allocation of `needed` bytes that did not succeed is answered with.
pub(crate) fn out_of_memory(operation: &'static str, needed: usize) -> Error {
    Error::Memory { operation, needed, available: "this machine's memory".into() }
}

/// A zero matrix, or an error where `Mat::zeros` would abort the process.
pub(crate) fn zeros<T: Scalar>(operation: &'static str, rows: usize, columns: usize) -> Result<Mat<T>> {
    let needed = rows.saturating_mul(columns).saturating_mul(size_of::<T>());
    let mut matrix = Mat::new();
    matrix.try_reserve(rows, columns).map_err(|_| out_of_memory(operation, needed))?;
    matrix.resize_with(rows, columns, |_, _| T::default());
    Ok(matrix)
}

/// A copy of `source` in `f64`, times `factor`.
pub(crate) fn widened<T: Scalar>(operation: &'static str, source: MatRef<'_, T>, factor: f64) -> Result<Mat<f64>> {
    let mut copy = zeros(operation, source.nrows(), source.ncols())?;
    for (to, from) in copy.as_mut().col_iter_mut().zip(source.col_iter()) {
        for (to, from) in to.iter_mut().zip(from.iter()) {
            *to = from.to_f64() * factor;
        }
    }
    Ok(copy)
}

/// A copy of `source` rounded to `T`, or an error when an entry leaves the range of `T`.
pub(crate) fn rounded<T: Scalar>(
    operation: &'static str,
    what: &'static str,
    source: MatRef<'_, f64>,
) -> Result<Mat<T>> {
    let mut copy = zeros(operation, source.nrows(), source.ncols())?;
    for (to, from) in copy.as_mut().col_iter_mut().zip(source.col_iter()) {
        for (to, &from) in to.iter_mut().zip(from.iter()) {
            *to = T::from_f64(from);
        }
    }
    match first_non_finite(copy.as_ref()) {
        Some(_) => Err(Error::Overflow { operation, what }),
        None => Ok(copy),
    }
}

/// The first row and column, in this order, that holds a NaN or an infinity.
pub(crate) fn first_non_finite<T: Scalar>(matrix: MatRef<'_, T>) -> Option<(usize, usize)> {
    // Without a way out, so that it vectorises.
    let mut all_finite = true;
    for_each_row(if is_row_major(matrix) { matrix } else { matrix.transpose() }, |_, row| {
        all_finite &= row.iter().fold(true, |finite, x| finite & x.to_f64().is_finite());
    });
    if all_finite {
        return None;
    }
    (0..matrix.nrows())
        .flat_map(|row| (0..matrix.ncols()).map(move |column| (row, column)))
        .find(|&at| !matrix[at].to_f64().is_finite())
}

/// `matrix` unchanged if all its entries are finite, else an error that says which is not.
pub(crate) fn require_finite<T: Scalar>(
    operation: &'static str,
    what: &'static str,
    matrix: MatRef<'_, T>,
) -> Result<()> {
    match first_non_finite(matrix) {
        None => Ok(()),
        Some((row, column)) => {
            Err(Error::NonFinite { operation, what, row, column, value: matrix[(row, column)].to_f64() })
        }
    }
}

/// Accumulators side by side, so that a fold vectorises.
const LANES: usize = 16;

fn fold<T: Scalar>(lanes: &mut [f64; LANES], entries: &[T], step: impl Fn(f64, f64) -> f64) {
    let (chunks, rest) = entries.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = step(*lane, x.to_f64());
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = step(*lane, x.to_f64());
    }
}

/// Folds all entries, in an order that depends on nothing but the shape and layout of the matrix.
fn fold_all<T: Scalar>(matrix: MatRef<'_, T>, step: impl Fn(f64, f64) -> f64 + Copy) -> [f64; LANES] {
    let mut lanes = [0.0; LANES];
    for_each_row(if is_row_major(matrix) { matrix } else { matrix.transpose() }, |_, row| fold(&mut lanes, row, step));
    lanes
}

/// The largest magnitude of a matrix's entries.
pub(crate) fn max_abs<T: Scalar>(matrix: MatRef<'_, T>) -> f64 {
    let larger = |max: f64, x: f64| if x.abs() > max { x.abs() } else { max };
    fold_all(matrix, larger).into_iter().fold(0.0, larger)
}

/// The sum of the squares of a matrix's entries.
pub(crate) fn squared_norm<T: Scalar>(matrix: MatRef<'_, T>) -> f64 {
    fold_all(matrix, |sum, x| sum + x * x).into_iter().sum()
}

/// The sum of the squares of each column.
pub(crate) fn squared_column_norms<T: Scalar>(matrix: MatRef<'_, T>) -> Vec<f64> {
    let mut sums = Vec::with_capacity(matrix.ncols());
    for_each_row(matrix.transpose(), |_, column| {
        let mut lanes = [0.0; LANES];
        fold(&mut lanes, column, |sum, x| sum + x * x);
        sums.push(lanes.iter().sum());
    });
    sums
}

fn is_row_major<T: Scalar>(matrix: MatRef<'_, T>) -> bool {
    matrix.col_stride().unsigned_abs() < matrix.row_stride().unsigned_abs()
}

/// `lhs · rhs`.
pub(crate) fn product<T: Scalar>(
    operation: &'static str,
    lhs: MatRef<'_, T>,
    rhs: MatRef<'_, T>,
    threads: usize,
) -> Result<Mat<T>> {
    let mut result = zeros(operation, lhs.nrows(), rhs.ncols())?;
    set_product(result.as_mut(), lhs, rhs, threads);
    Ok(result)
}

/// `target += alpha · lhs · rhs`.
pub(crate) fn add_product<T: Scalar>(
    target: MatMut<'_, T>,
    alpha: T,
    lhs: MatRef<'_, T>,
    rhs: MatRef<'_, T>,
    threads: usize,
) {
    let par = parallelism(threads, work(lhs.nrows(), lhs.ncols(), rhs.ncols()));
    matmul(target, Accum::Add, lhs, rhs, alpha, par);
}

/// `target = lhs · rhs`.
pub(crate) fn set_product<T: Scalar>(target: MatMut<'_, T>, lhs: MatRef<'_, T>, rhs: MatRef<'_, T>, threads: usize) {
    let par = parallelism(threads, work(lhs.nrows(), lhs.ncols(), rhs.ncols()));
    matmul(target, Accum::Replace, lhs, rhs, T::from_f64(1.0), par);
}

/// The lower triangle of `target += alpha · lhs · rhs`, of which the upper one is known by symmetry.
pub(crate) fn add_symmetric_product<T: Scalar>(
    target: MatMut<'_, T>,
    alpha: T,
    lhs: MatRef<'_, T>,
    rhs: MatRef<'_, T>,
    threads: usize,
) {
    let par = parallelism(threads, work(lhs.nrows(), lhs.ncols(), rhs.ncols()) / 2.0);
    triangular::matmul(
        target,
        BlockStructure::TriangularLower,
        Accum::Add,
        lhs,
        BlockStructure::Rectangular,
        rhs,
        BlockStructure::Rectangular,
        alpha,
        par,
    );
}

/// `block -= Q Qᵀ block` for a basis `Q`.
pub(crate) fn project_out<T: Scalar>(
    operation: &'static str,
    block: MatMut<'_, T>,
    basis: MatRef<'_, T>,
    threads: usize,
) -> Result<()> {
    if basis.ncols() == 0 {
        return Ok(());
    }
    let share = product(operation, basis.transpose(), block.as_ref(), threads)?;
    add_product(block, T::from_f64(-1.0), basis, share.as_ref(), threads);
    Ok(())
}

/// The lower triangle of `matrixᵀ · matrix`.
pub(crate) fn gram<T: Scalar>(operation: &'static str, matrix: MatRef<'_, T>, threads: usize) -> Result<Mat<T>> {
    let mut gram = zeros(operation, matrix.ncols(), matrix.ncols())?;
    add_symmetric_product(gram.as_mut(), T::from_f64(1.0), matrix.transpose(), matrix, threads);
    Ok(gram)
}

/// Copies the strictly lower triangle onto the upper one.
pub(crate) fn mirror_lower<T: Scalar>(matrix: &mut Mat<T>) {
    for column in 0..matrix.ncols() {
        for row in 0..column {
            matrix[(row, column)] = matrix[(column, row)];
        }
    }
}

fn scratch(operation: &'static str, need: StackReq) -> Result<MemBuffer> {
    MemBuffer::try_new(need).map_err(|_| out_of_memory(operation, need.size_bytes()))
}

/// `Q` and `R` of the thin QR factorisation of a tall matrix.
pub(crate) fn thin_qr<T: Scalar>(
    operation: &'static str,
    mut matrix: Mat<T>,
    threads: usize,
) -> Result<(Mat<T>, Mat<T>)> {
    let (rows, columns) = matrix.shape();
    let par = parallelism(threads, work(rows, columns, columns));
    let block = qr::recommended_block_size::<T>(rows, columns);
    let mut householder = zeros(operation, block, columns)?;
    let params = Spec::default();
    let mut buffer = scratch(
        operation,
        StackReq::any_of(&[
            qr::qr_in_place_scratch::<T>(rows, columns, block, par, params),
            householder::apply_block_householder_sequence_on_the_left_in_place_scratch::<T>(rows, block, columns),
        ]),
    )?;
    qr::qr_in_place(matrix.as_mut(), householder.as_mut(), par, MemStack::new(&mut buffer), params);
    let mut triangle = zeros(operation, columns, columns)?;
    for column in 0..columns {
        for row in 0..=column {
            triangle[(row, column)] = matrix[(row, column)];
        }
    }
    let mut basis = zeros(operation, rows, columns)?;
    basis.as_mut().diagonal_mut().column_vector_mut().fill(T::from_f64(1.0));
    householder::apply_block_householder_sequence_on_the_left_in_place_with_conj(
        matrix.as_ref(),
        householder.as_ref(),
        Conj::No,
        basis.as_mut(),
        par,
        MemStack::new(&mut buffer),
    );
    Ok((basis, triangle))
}

/// Which of faer's algorithms diagonalises the tridiagonal form.
#[derive(Clone, Copy)]
pub(crate) enum Tridiagonal {
    DivideAndConquer,
    QrIteration,
}

/// Eigenvalues and the eigenvectors, one per column, that belong to them.
pub(crate) type Pairs<T> = (Vec<f64>, Mat<T>);

/// Eigenvalues, ascending, and eigenvectors of a symmetric matrix, of which the lower triangle
/// is read. `None` if faer's iteration gave up, or the matrix is not finite: that iteration would spin on NaN
/// for some `30 d²` rounds.
pub(crate) fn symmetric_eigen<T: Scalar>(
    operation: &'static str,
    matrix: MatRef<'_, T>,
    algorithm: Tridiagonal,
    threads: usize,
) -> Result<Option<Pairs<T>>> {
    if first_non_finite(matrix).is_some() {
        return Ok(None);
    }
    let dimension = matrix.nrows();
    let par = parallelism(threads, work(dimension, dimension, dimension));
    let mut params = <SelfAdjointEvdParams as Auto<T>>::auto();
    if let Tridiagonal::QrIteration = algorithm {
        params.recursion_threshold = usize::MAX;
    }
    let params = params.into();
    let mut buffer =
        scratch(operation, evd::self_adjoint_evd_scratch::<T>(dimension, ComputeEigenvectors::Yes, par, params))?;
    let mut values = faer::diag::Diag::<T>::zeros(dimension);
    let mut vectors = zeros(operation, dimension, dimension)?;
    let outcome =
        evd::self_adjoint_evd(matrix, values.as_mut(), Some(vectors.as_mut()), par, MemStack::new(&mut buffer), params);
    Ok(outcome.ok().map(|()| (values.column_vector().iter().map(|value| value.to_f64()).collect(), vectors)))
}

/// Singular values, descending, and left singular vectors of a square matrix. `None` if faer's
/// iteration gave up, or the matrix is not finite.
pub(crate) fn left_singular(
    operation: &'static str,
    matrix: MatRef<'_, f64>,
    threads: usize,
) -> Result<Option<Pairs<f64>>> {
    if first_non_finite(matrix).is_some() {
        return Ok(None);
    }
    let dimension = matrix.nrows();
    let par = parallelism(threads, work(dimension, dimension, dimension));
    let params = Spec::default();
    let mut buffer = scratch(
        operation,
        svd::svd_scratch::<f64>(dimension, dimension, ComputeSvdVectors::Thin, ComputeSvdVectors::No, par, params),
    )?;
    let mut values = faer::diag::Diag::<f64>::zeros(dimension);
    let mut vectors = zeros(operation, dimension, dimension)?;
    let outcome =
        svd::svd(matrix, values.as_mut(), Some(vectors.as_mut()), None, par, MemStack::new(&mut buffer), params);
    Ok(outcome.ok().map(|()| (values.column_vector().iter().copied().collect(), vectors)))
}

/// The lower Cholesky factor of a symmetric matrix of which the lower triangle is read; what is above the diagonal is not to be used.
/// `None` if the matrix is not numerically positive definite.
pub(crate) fn cholesky(operation: &'static str, mut matrix: Mat<f64>, threads: usize) -> Result<Option<Mat<f64>>> {
    let dimension = matrix.nrows();
    let par = parallelism(threads, work(dimension, dimension, dimension));
    let params = Spec::default();
    let mut buffer = scratch(operation, llt::factor::cholesky_in_place_scratch::<f64>(dimension, par, params))?;
    let factored =
        llt::factor::cholesky_in_place(matrix.as_mut(), Default::default(), par, MemStack::new(&mut buffer), params);
    Ok(factored.is_ok().then_some(matrix))
}

/// `matrix⁻¹ · right` by Cholesky; of `matrix` the lower triangle is read. `None` if it is not numerically positive definite.
pub(crate) fn cholesky_solve(
    operation: &'static str,
    matrix: Mat<f64>,
    mut right: Mat<f64>,
    threads: usize,
) -> Result<Option<Mat<f64>>> {
    let Some(root) = cholesky(operation, matrix, threads)? else { return Ok(None) };
    let par = parallelism(threads, work(root.nrows(), root.nrows(), right.ncols()));
    triangular_solve::solve_lower_triangular_in_place(root.as_ref(), right.as_mut(), par);
    triangular_solve::solve_upper_triangular_in_place(root.transpose(), right.as_mut(), par);
    Ok(first_non_finite(right.as_ref()).is_none().then_some(right))
}

/// `lhs · rhs` for a square `rhs` of which only one triangle counts.
pub(crate) fn triangular_product<T: Scalar>(
    operation: &'static str,
    lhs: MatRef<'_, T>,
    rhs: MatRef<'_, T>,
    triangle: BlockStructure,
    threads: usize,
) -> Result<Mat<T>> {
    let mut result = zeros(operation, lhs.nrows(), rhs.ncols())?;
    triangular::matmul(
        result.as_mut(),
        BlockStructure::Rectangular,
        Accum::Replace,
        lhs,
        BlockStructure::Rectangular,
        rhs,
        triangle,
        T::from_f64(1.0),
        parallelism(threads, work(lhs.nrows(), lhs.ncols(), rhs.ncols()) / 2.0),
    );
    Ok(result)
}

/// An orthonormal basis of the span of some columns, and of every number of the first of them, and how far each column reaches out of the span of
/// those before it (the diagonal of `R`). By the Cholesky factor of their Gram matrix in `f64`, where the columns are clearly independent, which loses
/// some digits of orthogonality; by QR otherwise.
pub(crate) fn orthonormal_columns<T: Scalar>(
    operation: &'static str,
    columns: Mat<T>,
    threads: usize,
) -> Result<(Mat<T>, Vec<f64>)> {
    /// Sine of the angle between a unit column and those before it from which on they are clearly independent.
    const CLEARLY: f64 = 1e-3;
    let count = columns.ncols();
    let lengths: Vec<f64> = squared_column_norms(columns.as_ref()).into_iter().map(f64::sqrt).collect();
    if lengths.iter().all(|length| length.is_normal()) {
        let mut unit = widened(operation, columns.as_ref(), 1.0)?;
        for (column, length) in unit.as_mut().col_iter_mut().zip(&lengths) {
            column.iter_mut().for_each(|entry| *entry /= length);
        }
        let root = cholesky(operation, gram(operation, unit.as_ref(), threads)?, threads)?;
        if let Some(root) = root.filter(|root| (0..count).all(|i| root[(i, i)] > CLEARLY)) {
            let basis = times_inverse(operation, unit.as_ref(), root.as_ref(), threads)?;
            let basis = rounded(operation, "an orthonormal basis", basis.as_ref())?;
            let lengths = lengths.iter().enumerate().map(|(i, length)| length * root[(i, i)]).collect();
            return Ok((basis, lengths));
        }
    }
    let (basis, triangle) = thin_qr(operation, columns, threads)?;
    Ok((basis, (0..count).map(|i| triangle[(i, i)].to_f64().abs()).collect()))
}

/// `columns · R⁻¹` for a well-conditioned `R = Lᵀ`: its inverse is then as good as solving, and a product is much faster.
fn times_inverse(
    operation: &'static str,
    columns: MatRef<'_, f64>,
    root: MatRef<'_, f64>,
    threads: usize,
) -> Result<Mat<f64>> {
    let count = root.nrows();
    let mut inverse = zeros(operation, count, count)?;
    let par = parallelism(threads, work(count, count, count) / 3.0);
    triangular_inverse::invert_lower_triangular(inverse.as_mut(), root, par);
    triangular_product(operation, columns, inverse.transpose(), BlockStructure::TriangularUpper, threads)
}

/// An orthonormal basis of the span of independent columns, and of every number of the first of them. Exact to rounding for columns that are
/// nearly orthonormal already, by the Cholesky factor of their Gram matrix; by QR otherwise.
pub(crate) fn orthonormalized(operation: &'static str, columns: Mat<f64>, threads: usize) -> Result<Mat<f64>> {
    /// Departure from the identity up to which the Gram matrix loses nothing.
    const NEARLY: f64 = 0.1;
    let count = columns.ncols();
    let gram = gram(operation, columns.as_ref(), threads)?;
    let departure = (0..count).flat_map(|j| (j..count).map(move |i| (i, j))).fold(0.0_f64, |sum, (i, j)| {
        let expected = if i == j { 1.0 } else { 0.0 };
        sum + (gram[(i, j)] - expected).powi(2)
    });
    if departure < NEARLY * NEARLY
        && let Some(root) = cholesky(operation, gram, threads)?
    {
        return times_inverse(operation, columns.as_ref(), root.as_ref(), threads);
    }
    Ok(thin_qr(operation, columns, threads)?.0)
}

#[cfg(test)]
mod tests;
