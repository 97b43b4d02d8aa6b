//! Uniform allocation: every layer keeps the same fraction of its cost.

use super::bisect::neighbours;
use super::blocks::{Block, Entry, Goal, Selected};
use super::candidates::{Candidate, Cost};

/// The most expensive candidate of each layer that costs at most this fraction of the original layer, or else the cheapest.
fn at_fraction(blocks: &[Block<'_>], cost: Cost, fraction: f64) -> Vec<Selected> {
    let choose = |entry: &Entry<'_>| {
        let original = Candidate::original(entry.layer);
        let affordable = fraction * original.cost(cost);
        let count = entry.candidates.partition_point(|candidate| candidate.cost(cost) <= affordable);
        entry.candidates.get(count.saturating_sub(1)).copied().unwrap_or(original)
    };
    let each = |block: &Block<'_>| block.entries.iter().map(choose).collect();
    blocks.iter().map(each).map(Selected::Each).collect()
}

/// The best common fraction that reaches the goal, or the smallest limit that can be reached.
///
/// A block whose layers share an input takes the best joint candidate that is better without needing more.
pub(super) fn allocate(blocks: &[Block<'_>], goal: Goal) -> Result<Vec<Selected>, f64> {
    let (cost, good, bad) = match goal {
        Goal::Loss { cost, .. } => (cost, 0.0_f64, 1.0_f64),
        Goal::Parameters { .. } => (Cost::Parameters, 1.0_f64, 0.0_f64),
    };
    let used = |fraction: f64| -> f64 {
        let selected = at_fraction(blocks, cost, fraction);
        blocks.iter().zip(&selected).map(|(block, selected)| block.measure(goal, selected).0).sum()
    };
    let fraction = if used(bad) <= goal.limit() {
        bad
    } else {
        let least = used(good);
        if least > goal.limit() {
            return Err(least);
        }
        neighbours(good, bad, |fraction| used(fraction) <= goal.limit()).0
    };
    let mut selected = at_fraction(blocks, cost, fraction);
    for (block, selected) in blocks.iter().zip(&mut selected) {
        let (used, value) = block.measure(goal, selected);
        let joint = block.joint.iter().flat_map(|joint| &joint.candidates);
        let measured = joint.map(|candidate| (goal.measure(candidate, 1.0), candidate));
        let better = measured.filter(|((limited, minimized), _)| *limited <= used && *minimized < value);
        if let Some((_, best)) = better.min_by(|(one, _), (other, _)| one.1.total_cmp(&other.1)) {
            *selected = Selected::Joint(*best);
        }
    }
    Ok(selected)
}
