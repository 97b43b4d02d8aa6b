//! Forms in which a compressed layer is stored, and the ranks that fit a budget in the form with
//! pivots.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use dalr::network::{LayerProfile, Sensitivities};

/// Forms in which a compressed layer is stored. They compute the same outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Storage {
    /// Two factors: `k (m + n)` numbers.
    Factors,
    /// `k` rows of the product, and the coefficients of the other rows: `k (m + n − k)` numbers.
    Pivoted,
}

/// The budget is divided into this many units.
const UNITS: u64 = 50_000;

impl Storage {
    /// Numbers in an out × in layer of this rank, without its bias.
    pub fn numbers(self, (m, n): (usize, usize), rank: usize) -> u64 {
        let width = match self {
            Self::Factors => m + n,
            Self::Pivoted => m + n - rank.min(m.min(n)),
        };
        rank as u64 * width as u64
    }

    /// The largest rank, a multiple of `multiple`, that keeps this fraction of an out × in layer.
    /// `None` if there is none.
    pub fn rank(self, (m, n): (usize, usize), fraction: f64, multiple: usize) -> Option<usize> {
        let limit = fraction * m as f64 * n as f64;
        let ranks = (1..m.min(n)).rev().filter(|rank| rank.is_multiple_of(multiple));
        ranks.into_iter().find(|&rank| self.numbers((m, n), rank) as f64 <= limit)
    }

    /// Parameters of all layers, biases included, if those of these names have these ranks.
    pub fn parameters(self, layers: &[LayerProfile], ranks: &BTreeMap<String, usize>) -> u64 {
        layers.iter().map(|layer| self.layer_parameters(layer, ranks.get(layer.name()).copied())).sum()
    }

    fn layer_parameters(self, layer: &LayerProfile, rank: Option<usize>) -> u64 {
        let shape = (layer.out_features(), layer.in_features());
        let original = shape.0 as u64 * shape.1 as u64;
        let bias = layer.parameters() - original;
        bias + rank.map_or(original, |rank| self.numbers(shape, rank))
    }

    /// The ranks within a fraction of all parameters whose weighted losses have the least sum.
    ///
    /// The library's allocator counts two factors, whose cost is linear in the rank. With pivots it
    /// is concave, so that ranks between the vertices of its hull matter. This is an exact search
    /// over budgets in units of 1/50 000.
    pub fn allocate(
        self,
        layers: &[LayerProfile],
        sensitivities: &Sensitivities,
        fraction: f64,
        multiple: usize,
    ) -> Result<BTreeMap<String, usize>> {
        ensure!(fraction > 0.0 && fraction <= 1.0, "expected a fraction in (0, 1], got {fraction}");
        let budget = (self.parameters(layers, &BTreeMap::new()) as f64 * fraction) as u64;
        let unit = budget.div_ceil(UNITS).max(1);
        let units = (budget / unit) as usize;
        // The least loss of the layers so far within each number of units, and the ranks chosen.
        let mut least = vec![0.0; units + 1];
        let mut chosen = Vec::with_capacity(layers.len());
        for layer in layers {
            let weight = sensitivities.get(layer.name()).unwrap_or(0.0);
            let candidate = |rank: Option<usize>| {
                let loss = rank.map_or(Some(0.0), |rank| layer.loss(rank))?;
                Some((self.layer_parameters(layer, rank).div_ceil(unit) as usize, weight * loss, rank))
            };
            let ranks = (1..=layer.max_rank()).filter(|rank| rank.is_multiple_of(multiple)).map(Some);
            let candidates: Vec<_> = ranks.chain([None]).filter_map(candidate).collect();
            let mut next = vec![(f64::INFINITY, None); units + 1];
            for (cost, loss, rank) in candidates {
                for (&before, after) in least.iter().zip(next.iter_mut().skip(cost)) {
                    if before + loss < after.0 {
                        *after = (before + loss, Some((rank, cost)));
                    }
                }
            }
            least = next.iter().map(|(loss, _)| *loss).collect();
            chosen.push(next);
        }
        let (mut rest, mut ranks) = (units, BTreeMap::new());
        for (layer, table) in layers.iter().zip(&chosen).rev() {
            let choice = table.get(rest).and_then(|(_, choice)| *choice);
            let (rank, cost) = choice.with_context(|| format!("{fraction} of the parameters is too little"))?;
            rest -= cost;
            if let Some(rank) = rank {
                ranks.insert(layer.name().to_owned(), rank);
            }
        }
        Ok(ranks)
    }
}
