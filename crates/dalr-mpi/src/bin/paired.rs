//! Compresses one layer for paired inputs and an output metric whose samples are spread over the
//! ranks, and compares it with the layer that one process finds from all samples.
//!
//! Prints the largest difference of the two weights, relative to the largest entry.

use std::process::ExitCode;

use dalr::compress::OutputMetric;
use dalr::covariance::PairedStats;
use dalr::{ActivationStats, Calibration, Dalr, Linear, LowRankCompressor, Rank};
use dalr_mpi::error::Result;
use dalr_mpi::random::uniform;
use dalr_mpi::ranks::Ranks;
use dalr_mpi::reduce::reduce;
use faer::Mat;

const SHAPE: (usize, usize) = (24, 40);
const BATCHES: usize = 12;
const ROWS: usize = 30;

fn noise(seed: u64, rows: usize, columns: usize) -> Mat<f64> {
    Mat::from_fn(rows, columns, |i, j| f64::from(uniform(seed, (i * columns + j) as u64)))
}

/// The statistics of some batches.
fn gather(batches: impl Iterator<Item = usize>) -> Result<(PairedStats<f64>, ActivationStats<f64>)> {
    let (outputs, inputs) = SHAPE;
    let (mut paired, mut gradients) = (PairedStats::new(inputs), ActivationStats::new(outputs));
    for batch in batches {
        let original = noise(3 * batch as u64 + 1, ROWS, inputs);
        let compressed = &original + noise(3 * batch as u64 + 2, ROWS, inputs) * faer::Scale(0.2);
        paired.update(original.as_ref(), compressed.as_ref())?;
        gradients.update(noise(3 * batch as u64 + 3, ROWS, outputs).as_ref())?;
    }
    Ok((paired, gradients))
}

fn weight(paired: &PairedStats<f64>, gradients: &ActivationStats<f64>) -> Result<Mat<f64>> {
    let layer = Linear::new(noise(1 << 40, SHAPE.0, SHAPE.1), None)?;
    let metric = OutputMetric::from_gradients(gradients)?;
    let calibration = Calibration::from(paired).with_output_metric(&metric);
    let compressed = Dalr::new().compress(&layer, calibration, Rank::Fixed(8))?;
    Ok(compressed.layer().up() * compressed.layer().down())
}

fn run(ranks: &Ranks) -> Result<()> {
    let own = (0..BATCHES).filter(|batch| batch % ranks.size() == ranks.rank());
    let (paired, gradients) = gather(own)?;
    let merged = (reduce(ranks, paired, 0)?, reduce(ranks, gradients, 0)?);
    if let (Some(paired), Some(gradients)) = merged {
        let (all_paired, all_gradients) = gather(0..BATCHES)?;
        let expected = weight(&all_paired, &all_gradients)?;
        let difference = weight(&paired, &gradients)? - &expected;
        println!("{:e}", difference.norm_max() / expected.norm_max());
    }
    Ok(())
}

fn main() -> ExitCode {
    let Some(universe) = mpi::initialize() else {
        eprintln!("MPI cannot be started");
        return ExitCode::FAILURE;
    };
    let ranks = Ranks::new(universe.world());
    let result = run(&ranks);
    match ranks.agree("the end", result) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("rank {}: {failure}", ranks.rank());
            ExitCode::FAILURE
        }
    }
}
