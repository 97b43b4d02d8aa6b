//! From picks of the relaxed problem to good picks of the real one: spend what is left, save what is missing, trade.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::{Class, price_of};

/// Looks at pairs of classes that trading may take.
const TRADES: usize = 1_000_000;

/// A step of a class, ordered by what a unit of money does on it.
struct Step {
    efficiency: f64,
    class: usize,
    to: usize,
}

impl PartialEq for Step {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Step {}

impl PartialOrd for Step {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Step {
    /// The largest first, of equal ones the first class.
    fn cmp(&self, other: &Self) -> Ordering {
        self.efficiency.total_cmp(&other.efficiency).then(other.class.cmp(&self.class))
    }
}

/// Spends what affordable picks leave of the limit.
pub(super) fn fill(classes: &[&Class], mut picks: Vec<usize>, limit: f64) -> Vec<usize> {
    let mut left = limit - price_of(classes, &picks);
    let step = |class: usize, from: usize| {
        classes[class].next_vertex(from).map(|(to, efficiency)| Step { efficiency, class, to })
    };
    let mut steps: BinaryHeap<Step> = (0..classes.len()).filter_map(|class| step(class, picks[class])).collect();
    while let Some(Step { class, to, .. }) = steps.pop() {
        let more = classes[class].item(to).price - classes[class].item(picks[class]).price;
        if more <= left {
            left -= more;
            picks[class] = to;
            steps.extend(step(class, to));
        }
    }
    while let Some((class, to)) = best_buy(classes, &picks, left, None).map(|(class, to, _)| (class, to)) {
        left -= classes[class].item(to).price - classes[class].item(picks[class]).price;
        picks[class] = to;
    }
    picks
}

/// The purchase that lowers the value most: class, item and by how much.
fn best_buy(classes: &[&Class], picks: &[usize], left: f64, except: Option<usize>) -> Option<(usize, usize, f64)> {
    let mut best: Option<(usize, usize, f64)> = None;
    for (class, (items, &pick)) in classes.iter().zip(picks).enumerate() {
        if except == Some(class) {
            continue;
        }
        let now = items.item(pick);
        let to = items.affordable(now.price + left);
        let gain = now.value - items.item(to).value;
        // Only an item further on gains anything.
        if gain > best.map_or(0.0, |(_, _, gain)| gain) {
            best = Some((class, to, gain));
        }
    }
    best
}

/// Sells one step of a class to buy more of another, as long as that lowers the value.
pub(super) fn trade(classes: &[&Class], mut picks: Vec<usize>, limit: f64) -> Vec<usize> {
    let mut left = limit - price_of(classes, &picks);
    let mut looks = TRADES;
    let mut improved = true;
    while improved {
        improved = false;
        for seller in 0..classes.len() {
            let now = classes[seller].item(picks[seller]);
            let below =
                [picks[seller].checked_sub(1), classes[seller].previous_vertex(picks[seller]).map(|(to, _)| to)];
            for to in below.into_iter().flatten() {
                if looks < classes.len() {
                    return picks;
                }
                looks -= classes.len();
                let sold = classes[seller].item(to);
                let purse = left + now.price - sold.price;
                let Some((buyer, item, gain)) = best_buy(classes, &picks, purse, Some(seller)) else { continue };
                // More than rounding, or the same trade would go back and forth.
                if gain > (sold.value - now.value) * (1.0 + 16.0 * f64::EPSILON) {
                    left = purse - (classes[buyer].item(item).price - classes[buyer].item(picks[buyer]).price);
                    picks[seller] = to;
                    picks[buyer] = item;
                    improved = true;
                    break;
                }
            }
        }
    }
    picks
}

/// Gives up, where that costs least, until picks are affordable.
pub(super) fn cut(classes: &[&Class], mut picks: Vec<usize>, limit: f64) -> Option<Vec<usize>> {
    let mut over = price_of(classes, &picks) - limit;
    let step = |class: usize, from: usize| {
        classes[class].previous_vertex(from).map(|(to, efficiency)| Step { efficiency: -efficiency, class, to })
    };
    let mut steps: BinaryHeap<Step> = (0..classes.len()).filter_map(|class| step(class, picks[class])).collect();
    while over > 0.0 {
        let Step { class, to, .. } = steps.pop()?;
        over -= classes[class].item(picks[class]).price - classes[class].item(to).price;
        picks[class] = to;
        steps.extend(step(class, to));
    }
    (price_of(classes, &picks) <= limit).then_some(picks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_as_equal_as_their_order_says() {
        let step = |efficiency: f64, class: usize, to: usize| Step { efficiency, class, to };
        for (other, order) in [
            (step(2.0, 3, 9), Ordering::Equal),
            (step(1.0, 3, 1), Ordering::Greater),
            (step(3.0, 3, 1), Ordering::Less),
            (step(2.0, 2, 1), Ordering::Less),
            (step(2.0, 4, 1), Ordering::Greater),
        ] {
            let one = step(2.0, 3, 1);
            assert_eq!((one.cmp(&other), one.partial_cmp(&other), one == other), (order, Some(order), order.is_eq()));
        }
    }
}
