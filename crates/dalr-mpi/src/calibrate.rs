//! Updates a rank's statistics with its shard, batch by batch, with checkpoints.

use dalr::ActivationStats;

use crate::checkpoint::{Checkpoints, State};
use crate::error::{Failure, Result};
use crate::model::Shape;
use crate::ranks::Ranks;
use crate::shard::Shard;

/// Updates the statistics of all layers with the batches that are not in a checkpoint yet. Saves a
/// checkpoint after each `every` batches.
///
/// After each `every` batches, all MPI ranks (processes) exchange whether to continue. If one of
/// them fails, the others thus stop long before the end of their shards.
pub fn calibrate(
    ranks: &Ranks,
    shard: &Shard,
    layers: &[Shape],
    checkpoints: Option<&Checkpoints>,
    every: usize,
    threads: usize,
) -> Result<Vec<ActivationStats<f32>>> {
    let found = checkpoints.map_or(Ok(None), |checkpoints| checkpoints.load(layers.len()));
    let found = found.and_then(|found| match found {
        Some(state) if state.batches > shard.batches() => {
            let (expected, found) = (shard.batches(), state.batches);
            let message = format!("expected a checkpoint of at most {expected} batches, got one of {found}");
            Err(Failure::Refused(message))
        }
        found => Ok(found),
    });
    let found = ranks.agree("reading the checkpoints", found)?;
    let fresh = || layers.iter().map(|shape| ActivationStats::new(shape.inputs)).collect();
    let State { mut batches, stats } = found.unwrap_or_else(|| State { batches: 0, stats: fresh() });
    let mut stats: Vec<ActivationStats<f32>> = stats.into_iter().map(|stats| stats.with_threads(threads)).collect();

    let rounds = (shard.batches() - batches).div_ceil(every);
    for _ in 0..ranks.max(rounds as u64) {
        let end = (batches + every).min(shard.batches());
        let mut round = || {
            for index in batches..end {
                let batch = shard.open(index)?;
                for (shape, stats) in layers.iter().zip(&mut stats) {
                    let inputs = batch.inputs(shape)?;
                    stats
                        .update(inputs.as_ref())
                        .map_err(|error| Failure::Refused(format!("batch {index}, layer `{}`: {error}", shape.name)))?;
                }
            }
            match checkpoints {
                Some(checkpoints) if end > batches => checkpoints.save(end, &stats),
                _ => Ok(()),
            }
        };
        let result = round();
        ranks.agree("reading the shards", result)?;
        batches = end;
    }
    Ok(stats)
}
