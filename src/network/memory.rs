//! Upper estimates of the memory that a layer takes.

/// Number of samples that statistics keep: until these take twice the memory of their second moment, `2 n` in `f32`.
fn kept(inputs: usize, samples: usize, scalar: usize) -> usize {
    samples.min(inputs.saturating_mul(8 / scalar.max(1)))
}

/// Bytes of a layer and its statistics.
pub(super) fn loaded((m, n): (usize, usize), samples: usize, scalar: usize) -> usize {
    let (inputs, outputs, kept) = (n as f64, m as f64, kept(n, samples, scalar) as f64);
    // The samples, or the packed second moment and a quarter more for small batches. `Vec` may reserve twice the need.
    let moment = if kept < samples as f64 { 5.0 * inputs * inputs } else { 0.0 };
    let stats = 2.0 * (kept * inputs * scalar as f64).max(moment);
    bytes((outputs * inputs + outputs) * scalar as f64 + stats + 64.0 * inputs)
}

/// Bytes that the decomposition of a layer up to a rank takes, the result included.
///
/// All in `f64`: the weight, as it is and as `Q R`; the matrix to diagonalize, its eigenvectors, and as much again each for
/// their check and for the workspace; the samples centred, their outputs and their Gram matrix, or the second moment; the
/// factors.
pub(super) fn decomposition((m, n): (usize, usize), samples: usize, rank: usize, scalar: usize) -> usize {
    let (outputs, inputs) = (m as f64, n as f64);
    let (small, kept, rank) = (outputs.min(inputs), kept(n, samples, scalar) as f64, rank as f64);
    let moment = if kept < samples as f64 {
        3.0 * inputs * inputs
    } else {
        kept * (2.5 * inputs + 2.0 * outputs) + 2.0 * kept.min(inputs).powi(2)
    };
    let numbers = 3.0 * outputs * inputs + 8.0 * small * small + moment + 4.0 * rank * (outputs + inputs);
    bytes(8.0 * numbers + 1e6)
}

fn bytes(count: f64) -> usize {
    // The conversion saturates.
    count as usize
}
