//! Compresses many layers at once. Each is solved on one rank, and rank 0 gathers the results.

use std::io::{Read, Write};

use dalr::{ActivationStats, Dalr, LowRankCompressor, LowRankLinear, Rank};
use faer::{Col, Mat};
use serde::{Deserialize, Serialize};

use crate::error::{Failure, Result};
use crate::model::{Model, Shape};
use crate::ranks::Ranks;
use crate::reduce::reduce;
use crate::schedule::{assign, cost};
use crate::stream::{Receiver, Sender};

/// A compressed layer.
pub struct Compressed {
    /// The name and size of the original layer.
    pub shape: Shape,
    /// Its factors.
    pub layer: LowRankLinear<f32>,
    /// The library's report.
    pub report: String,
    /// The MPI rank that solved it.
    pub solved_by: usize,
}

/// The message before the numbers of a layer.
#[derive(Serialize, Deserialize)]
struct Head {
    rank: usize,
    bias: bool,
    report: String,
}

/// Compresses all layers to a fraction of their weights' parameters. Returns the results on MPI
/// rank 0, in the order of the layers, and nothing on the other MPI ranks. Leaves out a layer if
/// even a compressed layer of rank 1 has too many parameters.
///
/// A layer's statistics are merged on the MPI rank that solves it, which [`assign`] chooses by
/// cost.
pub fn compress(
    ranks: &Ranks,
    model: &Model,
    layers: &[Shape],
    stats: Vec<ActivationStats<f32>>,
    keep: f64,
    threads: usize,
) -> Result<Vec<Compressed>> {
    let kept: Vec<_> = layers.iter().zip(stats).filter(|(shape, _)| shape.rank(keep) > 0).collect();
    let costs: Vec<f64> = kept.iter().map(|(shape, _)| cost(shape)).collect();
    let owners = assign(&costs, ranks.size());

    let mut own = Vec::new();
    let mut shapes = Vec::new();
    for ((shape, stats), &owner) in kept.into_iter().zip(&owners) {
        let merged = reduce(ranks, stats, owner)?;
        own.extend(merged.map(|stats| (shape, stats)));
        shapes.push(shape);
    }
    let solved = own.into_iter().map(|(shape, stats)| {
        let layer = model.layer(shape)?;
        let compressor = Dalr::new().with_threads(threads);
        let compressed = compressor.compress(&layer, &stats, Rank::ParameterRatio(keep));
        let compressed = compressed.map_err(|error| Failure::Refused(format!("layer `{}`: {error}", shape.name)))?;
        let report = compressed.report().to_string();
        let (shape, layer) = (shape.clone(), compressed.into_layer());
        Ok(Compressed { shape, layer, report, solved_by: ranks.rank() })
    });
    let solved = ranks.agree("solving the layers", solved.collect::<Result<Vec<_>>>())?;

    let mut solved = solved.into_iter();
    let mut gathered = Vec::new();
    // Every layer is received, even after an error, because its sender waits until then.
    for (shape, owner) in shapes.into_iter().zip(owners) {
        let result = match (ranks.rank(), owner) {
            (0, 0) => Ok(solved.next()),
            (0, owner) => receive(ranks, shape, owner).map(Some),
            (rank, owner) if rank == owner => solved.next().map_or(Ok(()), |layer| send(ranks, &layer)).map(|()| None),
            _ => Ok(None),
        };
        gathered.push(result);
    }
    let gathered: Result<Vec<_>> = gathered.into_iter().collect();
    Ok(ranks.agree("gathering the layers", gathered)?.into_iter().flatten().collect())
}

fn send(ranks: &Ranks, compressed: &Compressed) -> Result<()> {
    let layer = &compressed.layer;
    let (rank, bias) = (layer.rank(), layer.bias().is_some());
    let head = Head { rank, bias, report: compressed.report.clone() };
    // The fields are plain numbers and texts, so this cannot fail.
    let head = serde_json::to_vec(&head).unwrap_or_default();
    ranks.send(&(head.len() as u64).to_le_bytes(), 0);
    ranks.send(&head, 0);
    let mut stream = Sender::new(ranks, 0);
    let columns = layer.down().col_iter().chain(layer.up().col_iter()).chain(layer.bias());
    columns
        .flat_map(|column| column.iter().copied())
        .try_for_each(|x| stream.write_all(&x.to_le_bytes()))
        .and_then(|()| stream.flush())
        .map_err(|error| Failure::Refused(format!("sending layer `{}`: {error}", compressed.shape.name)))
}

fn receive(ranks: &Ranks, shape: &Shape, from: usize) -> Result<Compressed> {
    let refuse = |why: String| Failure::Refused(format!("layer `{}` from rank {from}: {why}", shape.name));
    let mut length = [0; 8];
    ranks.receive(&mut length, from);
    let mut head = vec![0; u64::from_le_bytes(length) as usize];
    ranks.receive(&mut head, from);
    let Head { rank, bias, report } = serde_json::from_slice(&head).map_err(|error| refuse(error.to_string()))?;
    let (m, n) = (shape.outputs, shape.inputs);
    let count = rank * (m + n) + if bias { m } else { 0 };
    let mut stream = Receiver::new(ranks, from, 4 * count as u64);
    let mut numbers = Vec::with_capacity(count);
    let mut bytes = [0; 4];
    for _ in 0..count {
        stream.read_exact(&mut bytes).map_err(|error| refuse(error.to_string()))?;
        numbers.push(f32::from_le_bytes(bytes));
    }
    let (down, rest) = numbers.split_at(rank * n);
    let (up, rest) = rest.split_at(rank * m);
    let down = Mat::from_fn(rank, n, |i, j| down[j * rank + i]);
    let up = Mat::from_fn(m, rank, |i, j| up[j * m + i]);
    let bias = bias.then(|| rest.iter().copied().collect::<Col<f32>>());
    let layer = LowRankLinear::new(down, up, bias).map_err(|error| refuse(error.to_string()))?;
    Ok(Compressed { shape: shape.clone(), layer, report, solved_by: from })
}
