//! The multiple-choice knapsack: of every class one item, the least value in all within a limit on the price in all.
//!
//! Lagrangian relaxation: for a price of money `λ` every class takes the item that minimises `value + λ price`, a vertex of its lower
//! convex hull, and `Σ min (value + λ price) − λ limit` is a bound from below. The largest such bound is found by bisection on `λ`, whose last
//! feasible picks are then repaired. A block may also offer items that replace those of all its classes together.

use std::collections::BTreeSet;

use super::bisect::neighbours;

mod class;
mod exact;
mod repair;

pub(super) use self::class::{Class, Item};

/// Classes that can be picked from each on its own, or all by one joint item.
pub(super) struct Block {
    pub(super) members: Vec<Class>,
    pub(super) joint: Option<Class>,
}

/// The tags of the items picked, block by block.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Picked {
    Each(Vec<usize>),
    Joint(usize),
}

#[derive(Clone, Debug)]
pub(super) struct Solution {
    pub(super) picked: Vec<Picked>,
    pub(super) bound: f64,
}

/// How many times blocks a solution may be sought again with other blocks joint.
const WAYS: usize = 100_000;

impl Block {
    /// Price and value of the best picks at this `λ`, and whether they are joint; the cheaper of two that are as good.
    fn at(&self, lambda: f64) -> (f64, f64, bool) {
        let (mut price, mut value) = (0.0, 0.0);
        for class in &self.members {
            let item = class.item(class.at(lambda));
            (price, value) = (price + item.price, value + item.value);
        }
        if let Some(class) = &self.joint {
            let item = class.item(class.at(lambda));
            let (joint, each) = (item.value + lambda * item.price, value + lambda * price);
            // Where λ is so large that values are lost to rounding, prices decide, and values only between equal ones.
            if (joint, item.price, item.value) < (each, price, value) {
                return (item.price, item.value, true);
            }
        }
        (price, value, false)
    }

    fn least_price(&self) -> f64 {
        let each = self.members.iter().map(|class| class.item(0).price).sum::<f64>();
        self.joint.as_ref().map_or(each, |class| class.item(0).price.min(each))
    }
}

/// Price in all and the bound from below at this `λ`.
fn relaxed(blocks: &[Block], lambda: f64, limit: f64) -> (f64, f64) {
    let (mut price, mut value) = (0.0, 0.0);
    for block in blocks {
        let (its_price, its_value, _) = block.at(lambda);
        (price, value) = (price + its_price, value + its_value);
    }
    (price, value + lambda * (price - limit))
}

/// The `λ` on either side of which the picks turn from too expensive to affordable, and the best bound met. Both are the same where
/// even the best picks are affordable.
struct Multipliers {
    above: f64,
    below: f64,
    bound: f64,
}

fn multipliers(blocks: &[Block], limit: f64) -> Multipliers {
    let (price, bound) = relaxed(blocks, 0.0, limit);
    if price <= limit {
        return Multipliers { above: 0.0, below: 0.0, bound };
    }
    let mut best = bound;
    // Not from the steepest slope: a joint item can be cheaper than all others there, and yet not taken.
    let (above, below) = neighbours(f64::MAX, 0.0, |lambda| {
        let (price, bound) = relaxed(blocks, lambda, limit);
        best = best.max(bound);
        price <= limit
    });
    Multipliers { above, below, bound: best }
}

/// The bound alone, for picks that were made otherwise.
pub(super) fn lower_bound(blocks: &[Block], limit: f64) -> f64 {
    multipliers(blocks, limit).bound
}

/// The picks of (nearly) least value, or the least price that any picks have if that is above the limit.
pub(super) fn solve(blocks: &[Block], limit: f64) -> Result<Solution, f64> {
    let least = blocks.iter().map(Block::least_price).sum::<f64>();
    if least > limit {
        return Err(least);
    }
    let Multipliers { above, below, bound } = multipliers(blocks, limit);
    let modes = |lambda: f64| blocks.iter().map(|block| block.at(lambda).2).collect::<Vec<bool>>();
    let groups: Vec<usize> = (0..blocks.len()).filter(|&block| blocks[block].joint.is_some()).collect();
    let mut best: Option<(Vec<bool>, Vec<usize>, f64)> = None;
    let mut tried = BTreeSet::new();
    let mut consider = |way: Vec<bool>, best: &mut Option<(Vec<bool>, Vec<usize>, f64)>| {
        if !tried.insert(way.clone()) {
            return;
        }
        let known = best.as_ref().map_or(f64::INFINITY, |&(_, _, value)| value);
        if let Some((picks, value)) = within(&classes(blocks, &way), limit, known)
            && value < known
        {
            *best = Some((way, picks, value));
        }
    };
    let cheaper = |block: &Block| block.joint.as_ref().is_some_and(|joint| joint.item(0).price <= block.least_price());
    for way in [modes(above), modes(below), vec![false; blocks.len()], blocks.iter().map(cheaper).collect()] {
        consider(way, &mut best);
    }
    if blocks.len() <= WAYS >> groups.len().min(31) {
        for set in 0..1_usize << groups.len() {
            let mut way = vec![false; blocks.len()];
            groups.iter().enumerate().for_each(|(bit, &group)| way[group] = set >> bit & 1 == 1);
            consider(way, &mut best);
        }
    } else if groups.len().saturating_mul(blocks.len()) <= WAYS {
        for &group in &groups {
            if let Some((way, ..)) = &best {
                let mut way = way.clone();
                way[group] = !way[group];
                consider(way, &mut best);
            }
        }
    }
    let Some((way, picks, _)) = best else { return Err(least) };
    let chosen = classes(blocks, &way);
    let mut tags = chosen.iter().zip(&picks).map(|(class, &pick)| class.item(pick).tag);
    let picked = blocks
        .iter()
        .zip(&way)
        .map(|(block, &joint)| match joint {
            true => Picked::Joint(tags.next().unwrap_or(0)),
            false => Picked::Each(tags.by_ref().take(block.members.len()).collect()),
        })
        .collect();
    Ok(Solution { picked, bound })
}

/// The classes to pick from when these blocks are joint.
fn classes<'a>(blocks: &'a [Block], joint: &[bool]) -> Vec<&'a Class> {
    let mut chosen = Vec::new();
    for (block, joint) in blocks.iter().zip(joint) {
        match &block.joint {
            Some(class) if *joint => chosen.push(class),
            _ => chosen.extend(&block.members),
        }
    }
    chosen
}

/// One item of each class, and their value; `None` if nothing is affordable, or if the bound says that what is known is as good.
fn within(classes: &[&Class], limit: f64, known: f64) -> Option<(Vec<usize>, f64)> {
    let price = |lambda: f64| classes.iter().map(|class| class.item(class.at(lambda)).price).sum::<f64>();
    let picks = |lambda: f64| classes.iter().map(|class| class.at(lambda)).collect::<Vec<usize>>();
    let bound = |lambda: f64| value_of(classes, &picks(lambda)) + lambda * (price(lambda) - limit);
    if classes.iter().map(|class| class.item(0).price).sum::<f64>() > limit {
        return None;
    }
    if price(0.0) <= limit {
        let picks = picks(0.0);
        let value = value_of(classes, &picks);
        return Some((picks, value));
    }
    let steepest = classes.iter().map(|class| class.steepest()).fold(0.0, f64::max);
    let (above, below) = neighbours(steepest, 0.0, |lambda| price(lambda) <= limit);
    if bound(above).max(bound(below)) >= known {
        return None;
    }
    let mut best = repair::fill(classes, picks(above), limit);
    let other = repair::cut(classes, picks(below), limit).map(|picks| repair::fill(classes, picks, limit));
    if let Some(other) = other
        && value_of(classes, &other) < value_of(classes, &best)
    {
        best = other;
    }
    best = repair::trade(classes, best, limit);
    best = exact::improve(classes, best, above, limit);
    let value = value_of(classes, &best);
    Some((best, value))
}

fn value_of(classes: &[&Class], picks: &[usize]) -> f64 {
    classes.iter().zip(picks).map(|(class, &pick)| class.item(pick).value).sum()
}

fn price_of(classes: &[&Class], picks: &[usize]) -> f64 {
    classes.iter().zip(picks).map(|(class, &pick)| class.item(pick).price).sum()
}

#[cfg(test)]
mod tests;
