//! Compresses one layer, from random numbers to the report: `cargo run --release --example
//! quickstart`.

use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Rank};
use faer::{Col, Mat};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn main() -> dalr::Result<()> {
    // A layer with 256 inputs and 128 outputs. Its inputs vary in 20 directions, with some noise.
    let mut random = StdRng::seed_from_u64(0);
    let mut matrix = |rows, columns| Mat::from_fn(rows, columns, |_, _| random.random_range(-1.0..1.0_f32));
    let layer = Linear::new(matrix(128, 256), Some(Col::zeros(128)))?; // out × in
    let directions = matrix(20, 256);
    let mut inputs = |samples| matrix(samples, 20) * &directions + matrix(samples, 256); // samples × in

    // Calibrate on batches of the layer's inputs.
    let (mut stats, mut held_out) = (ActivationStats::new(256), ActivationStats::new(256));
    for _ in 0..10 {
        stats.update(inputs(100).as_ref())?;
    }
    held_out.update(inputs(500).as_ref())?;

    // Compress: 128 × 256 becomes 128 × 24 and 24 × 256.
    let compressed = Dalr::new().compress(&layer, &stats, Rank::Fixed(24))?;
    println!("{}", compressed.report());
    println!("error on held-out data: {:.3}", compressed.evaluate(&layer, &held_out)?);

    let outputs = compressed.layer().forward(inputs(1).as_ref())?; // 1 × 128
    assert_eq!(outputs.ncols(), layer.out_features());
    Ok(())
}
