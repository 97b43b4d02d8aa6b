//! The same for every layer: the same share of its cost, the same bound on its error, the same rank.

use super::bisect::neighbours;
use super::candidates::{Candidate, Cost};

/// By layer, the most expensive candidate that costs at most this share of the dense layer, or else the cheapest.
fn at_share(layers: &[Vec<Candidate>], cost: Cost, share: f64) -> Vec<Candidate> {
    let pick = |candidates: &Vec<Candidate>| {
        let affordable = share * candidates.last()?.cost(cost);
        let count = candidates.partition_point(|candidate| candidate.cost(cost) <= affordable);
        candidates.get(count.saturating_sub(1)).copied()
    };
    layers.iter().filter_map(pick).collect()
}

/// The largest share that all layers can keep while `allowed` holds of the sum, or (`ascending`) the smallest from which on it does.
/// The first must hold of share 0, the second of share 1.
fn bisect(
    layers: &[Vec<Candidate>],
    cost: Cost,
    ascending: bool,
    allowed: impl Fn(&[Candidate]) -> bool,
) -> Vec<Candidate> {
    let (good, bad) = if ascending { (1.0_f64, 0.0_f64) } else { (0.0_f64, 1.0_f64) };
    let best = at_share(layers, cost, if ascending { bad } else { 1.0 });
    if allowed(&best) {
        return best;
    }
    let (good, _) = neighbours(good, bad, |share| allowed(&at_share(layers, cost, share)));
    at_share(layers, cost, good)
}

/// The largest common share whose cost is within the limit; the cheapest candidates must be.
pub(super) fn within_cost(layers: &[Vec<Candidate>], cost: Cost, limit: f64) -> Vec<Candidate> {
    bisect(layers, cost, false, |picks| picks.iter().map(|pick| pick.cost(cost)).sum::<f64>() <= limit)
}

/// The smallest common share whose loss in all is within the limit; that of the dense layers is.
pub(super) fn within_loss(layers: &[Vec<Candidate>], limit: f64) -> Vec<Candidate> {
    bisect(layers, Cost::Parameters, true, |picks| picks.iter().map(|pick| pick.loss).sum::<f64>() <= limit)
}
