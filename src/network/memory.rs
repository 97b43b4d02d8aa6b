//! How much memory a layer takes, from above.

/// Statistics keep samples until these take twice their scatter: `2 n` of them in `f32`.
fn kept(inputs: usize, samples: usize, scalar: usize) -> usize {
    samples.min(inputs.saturating_mul(8 / scalar.max(1)))
}

/// Bytes of a layer and its statistics.
pub(super) fn loaded((m, n): (usize, usize), samples: usize, scalar: usize) -> usize {
    let (wide, high, kept) = (n as f64, m as f64, kept(n, samples, scalar) as f64);
    // Samples, or the packed scatter and a quarter more for small batches; what `Vec` reserves ahead of need.
    let stats = 2.0 * (kept * wide * scalar as f64).max(if kept < samples as f64 { 5.0 * wide * wide } else { 0.0 });
    bytes((high * wide + high) * scalar as f64 + stats + 64.0 * wide)
}

/// Bytes that decomposing a layer up to a rank takes, the result included.
///
/// In `f64`: the weight, widened and as `Q R`; the matrix to diagonalise, its eigenvectors, as much again for either's check and for the
/// workspace; samples twice more, centred, their outputs and their products with each other, or the scatter; the factors.
pub(super) fn decomposition((m, n): (usize, usize), samples: usize, rank: usize, scalar: usize) -> usize {
    let (high, wide) = (m as f64, n as f64);
    let (small, kept, rank) = (high.min(wide), kept(n, samples, scalar) as f64, rank as f64);
    let moment = match kept < samples as f64 {
        true => 3.0 * wide * wide,
        false => kept * (2.5 * wide + 2.0 * high) + 2.0 * kept.min(wide).powi(2),
    };
    let numbers = 3.0 * high * wide + 8.0 * small * small + moment + 4.0 * rank * (high + wide);
    bytes(8.0 * numbers + 1e6)
}

fn bytes(count: f64) -> usize {
    // Saturates.
    count as usize
}
