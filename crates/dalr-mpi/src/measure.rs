//! Measures time, bytes sent and memory of each part on this machine.

use std::fs;
use std::time::Instant;

use clap::Args;
use dalr::{ActivationStats, Solver};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::model::{Model, Shape};
use crate::ranks::Ranks;
use crate::reduce::reduce;
use crate::shard::Shard;
use crate::solve::{Options, solve};

/// The size of the measured problem, for all ranks together.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
pub struct Sizes {
    /// Inputs, and outputs, of the layer that is calibrated and solved.
    #[arg(long, default_value_t = 2048)]
    pub features: usize,
    /// Samples whose statistics are computed.
    #[arg(long, default_value_t = 32768)]
    pub samples: usize,
    /// Inputs of the statistics that are merged.
    #[arg(long, default_value_t = 4096)]
    pub merged_features: usize,
    /// Samples of the distributed solve.
    #[arg(long, default_value_t = 8192)]
    pub solve_samples: usize,
    /// Rank of the solve.
    #[arg(long, default_value_t = 64)]
    pub rank: usize,
}

/// The measurements. Times are those of the slowest rank; lists are by rank.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// The size of the problem.
    pub sizes: Sizes,
    /// Number of ranks.
    pub ranks: usize,
    /// Updating statistics with samples, without the time to generate them.
    pub calibrate_seconds: f64,
    /// Merging the statistics along the tree.
    pub reduce_seconds: f64,
    /// Bytes of one rank's statistics.
    pub statistics_bytes: u64,
    /// Bytes that each rank sent to merge them.
    pub reduce_sent: Vec<u64>,
    /// Bytes on the loopback interface meanwhile; 0 if the ranks do not use it.
    pub reduce_wire: u64,
    /// Peak memory of each rank while it merged, minus its memory before it had statistics.
    pub reduce_memory: Vec<u64>,
    /// The distributed solve.
    pub solve_seconds: f64,
    /// Of these, reading samples and computing their outputs.
    pub outputs_seconds: f64,
    /// Of these, products with a rank's samples.
    pub product_seconds: f64,
    /// Of these, sums over the ranks, waiting included.
    pub sum_seconds: f64,
    /// Products of the operator with a block.
    pub steps: usize,
    /// Bytes that each rank contributed to sums.
    pub solve_summed: Vec<u64>,
    /// Bytes on the loopback interface meanwhile.
    pub solve_wire: u64,
    /// Peak memory of each process.
    pub peak_memory: Vec<u64>,
    /// The relative error, the same for any number of ranks.
    pub relative_error: f64,
}

/// Measures all parts one after the other. Rank 0 prints the result as one line of JSON.
pub fn measure(ranks: &Ranks, sizes: &Sizes) -> Result<()> {
    let (rank, size) = (ranks.rank(), ranks.size());
    let seconds = |own: f64| ranks.max((own * 1e9) as u64) as f64 / 1e9;
    let rows = 512;

    let shape = Shape { name: "layer0".into(), outputs: sizes.features, inputs: sizes.features };
    let shard = Shard::generated(1, rows, sizes.samples / rows, rank, size);
    let calibrated = || -> Result<f64> {
        // The limit allows a scatter but no sample form, so that the covariance form is measured,
        // as for large data.
        let mut stats = limited(sizes.features);
        let mut time = 0.0;
        for index in 0..shard.batches() {
            let inputs = shard.open(index)?.inputs(&shape)?;
            let start = Instant::now();
            stats.update(inputs.as_ref())?;
            time += start.elapsed().as_secs_f64();
        }
        Ok(time)
    };
    let calibrate_seconds = seconds(ranks.agree("measuring calibration", calibrated())?);

    let mut most = reset_peak();
    let before = status("VmRSS");
    let wide = Shape { name: "wide".into(), outputs: 1, inputs: sizes.merged_features };
    let made = || -> Result<ActivationStats<f32>> {
        let mut stats = limited(wide.inputs);
        // Samples beyond the limit, and then enough for a product, so that the scatter is filled.
        for rows in [128, waiting(wide.inputs)] {
            let shard = Shard::generated(2, rows, size, rank, size);
            stats.update(shard.open(0)?.inputs(&wide)?.as_ref())?;
        }
        Ok(stats)
    };
    let stats = ranks.agree("measuring the reduction", made())?;
    let statistics_bytes = stats.safetensors_length()?;
    most = most.max(reset_peak());
    let (sent, wire) = (ranks.traffic().0, loopback());
    ranks.agree("starting the reduction", Ok(()))?;
    let start = Instant::now();
    let merged = reduce(ranks, stats, 0)?;
    let reduce_seconds = seconds(start.elapsed().as_secs_f64());
    let reduce_wire = loopback() - wire;
    let reduce_sent = ranks.gather(ranks.traffic().0 - sent);
    let reduce_memory = ranks.gather(status("VmHWM").saturating_sub(before));
    drop(merged);

    let shard = Shard::generated(3, rows, sizes.solve_samples / rows, rank, size);
    let model = Model::Generated { shapes: vec![shape.clone()], seed: 1 };
    let layer = ranks.agree("measuring the solve", model.layer(&shape))?;
    let options =
        Options { rank: sizes.rank, ridge: 0.0, correct_bias: true, solver: Solver::BlockLanczos, threads: 1 };
    let inputs = (0..shard.batches()).map(|index| shard.open(index)?.inputs(&shape)).collect::<Result<Vec<_>>>();
    let inputs = ranks.agree("measuring the solve", inputs)?;
    let (summed, wire) = (ranks.traffic().1, loopback());
    ranks.agree("starting the solve", Ok(()))?;
    let start = Instant::now();
    let solved = solve(ranks, &layer, inputs.into_iter().map(Ok), &options)?;
    let solve_seconds = seconds(start.elapsed().as_secs_f64());
    let solve_wire = loopback() - wire;
    let solve_summed = ranks.gather(ranks.traffic().1 - summed);

    let measured = Measured {
        sizes: sizes.clone(),
        ranks: size,
        calibrate_seconds,
        reduce_seconds,
        statistics_bytes,
        reduce_sent,
        reduce_wire,
        reduce_memory,
        solve_seconds,
        outputs_seconds: seconds(solved.seconds.outputs),
        product_seconds: seconds(solved.seconds.own),
        sum_seconds: seconds(solved.seconds.sums),
        steps: solved.steps,
        solve_summed,
        solve_wire,
        peak_memory: ranks.gather(most.max(status("VmHWM"))),
        relative_error: solved.decomposition.relative_error(sizes.rank).unwrap_or_default(),
    };
    if rank == 0 {
        println!("{}", serde_json::to_string(&measured).unwrap_or_default());
    }
    Ok(())
}

/// Statistics with a memory limit that allows a scatter and 256 samples.
fn limited(features: usize) -> ActivationStats<f32> {
    let scatter: usize =
        (0..features).step_by(256).map(|start| (features - start) * 256.min(features - start) * 8).sum();
    let sample = 4 * features + 8;
    ActivationStats::new(features).with_threads(1).with_memory_limit(scatter + (waiting(features) + 256) * sample)
}

/// Returns the number of samples that the library collects for one product.
fn waiting(features: usize) -> usize {
    (features / 4).clamp(1, 512.max((1 << 22) / features))
}

/// Returns the memory of this process in bytes, from Linux: `VmRSS` for the current, `VmHWM` for
/// the peak since the last reset. 0 on other systems.
pub fn status(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// Returns the peak memory so far, and resets it to the current memory.
pub fn reset_peak() -> u64 {
    let most = status("VmHWM");
    // If the system does not allow it, later measurements are too large, not too small.
    let _ = fs::write("/proc/self/clear_refs", "5");
    most
}

/// Returns the bytes on the loopback interface since the machine started; 0 if unknown.
fn loopback() -> u64 {
    let text = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let counters = text.lines().find_map(|line| line.trim().strip_prefix("lo:"));
    counters.and_then(|counters| counters.split_whitespace().nth(8)?.parse().ok()).unwrap_or(0)
}
