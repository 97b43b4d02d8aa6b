//! The multiple-choice knapsack: minimizes a sum under a limit on another sum, with one item from
//! each class.
//!
//! Lagrangian relaxation gives a lower bound and a choice within the limit. A beam search then goes
//! through the items that the bound does not exclude. It finds the optimum unless there are too
//! many of them. In the allocation, a class is a layer or a group, and its items are the
//! candidates.

use super::plan::Choice;

/// The largest number of partial choices that the beam search keeps for all classes together.
const BEAM: usize = 200_000;

/// The largest number of searches. Each uses the smaller gap that the previous one found.
const SEARCHES: usize = 6;

/// The search ends at this gap, relative to the value, because rounding hides smaller ones.
const ROUNDING: f64 = 1e-13;

/// A candidate of one layer, or of all layers of a group together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Item {
    /// The limited quantity.
    pub(super) cost: f64,
    /// The minimized quantity.
    pub(super) value: f64,
    /// The position of the layer in the network; for a group, that of its first layer.
    pub(super) layer: usize,
    pub(super) choice: Choice,
}

/// Items of which one must be chosen. There is at least one.
pub(super) type Class = Vec<Item>;

/// Alternatives of which one must be chosen, with one item from each of its classes.
pub(super) type Block = Vec<Vec<Class>>;

impl Item {
    /// Returns `value + multiplier · cost`; the cost for an infinite multiplier.
    fn weighted(&self, multiplier: f64) -> f64 {
        if multiplier.is_finite() { self.value + multiplier * self.cost } else { self.cost }
    }
}

/// Sorts by ascending cost, and keeps only elements whose value is smaller than all values before.
/// The values may be infinite: one element is always kept.
fn remove_dominated<E>(all: &mut Vec<E>, measure: impl Fn(&E) -> (f64, f64)) {
    all.sort_by(|a, b| {
        let (a, b) = (measure(a), measure(b));
        a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
    });
    let mut least: Option<f64> = None;
    all.retain(|element| {
        let value = measure(element).1;
        let keep = least.is_none_or(|least| value.total_cmp(&least).is_lt());
        least = if keep { Some(value) } else { least };
        keep
    });
}

/// Returns the position of the item with the smallest weighted sum. If there are several, returns
/// that with the smallest cost.
fn relaxed(class: &Class, multiplier: f64) -> usize {
    let sums = class.iter().map(|item| item.weighted(multiplier)).enumerate();
    sums.fold((0, f64::INFINITY), |best, sum| if sum.1 < best.1 { sum } else { best }).0
}

/// Returns the smallest weighted sum of one item from each class.
fn least(classes: &[Class], multiplier: f64) -> f64 {
    classes.iter().map(|class| class[relaxed(class, multiplier)].weighted(multiplier)).sum()
}

/// Returns the smallest weighted sum of a block's alternatives.
fn least_of(block: &Block, multiplier: f64) -> f64 {
    block.iter().map(|classes| least(classes, multiplier)).fold(f64::INFINITY, f64::min)
}

/// The classes of the chosen alternatives, each with the position of its chosen item.
type Picks<'a> = Vec<(&'a Class, usize)>;

/// Returns the sums of cost and value.
fn sums(picks: &Picks<'_>) -> (f64, f64) {
    let items = picks.iter().map(|(class, item)| class[*item]);
    items.fold((0.0, 0.0), |(cost, value), item| (cost + item.cost, value + item.value))
}

/// Returns the choice with the smallest weighted sum.
fn minimize(blocks: &[Block], multiplier: f64) -> Picks<'_> {
    let compare = |a: &&Vec<Class>, b: &&Vec<Class>| least(a, multiplier).total_cmp(&least(b, multiplier));
    let best = blocks.iter().filter_map(|block| block.iter().min_by(compare));
    best.flatten().map(|class| (class, relaxed(class, multiplier))).collect()
}

/// Solves the relaxed problem. Returns a choice within the limit, the multiplier, and a lower bound
/// on the value of every choice within the limit. If even the smallest possible cost exceeds the
/// limit, returns that cost as the error.
fn relax(blocks: &[Block], limit: f64) -> Result<(Picks<'_>, f64, f64), f64> {
    let free = minimize(blocks, 0.0);
    let (cost, least_value) = sums(&free);
    if cost <= limit {
        return Ok((free, 0.0, least_value));
    }
    let (least, _) = sums(&minimize(blocks, f64::INFINITY));
    if least > limit {
        return Err(least);
    }
    let (good, bad) = neighbours(f64::INFINITY, 0.0, |multiplier| sums(&minimize(blocks, multiplier)).0 <= limit);
    let bound = |multiplier| {
        let (cost, value) = sums(&minimize(blocks, multiplier));
        value + multiplier * (cost - limit)
    };
    // The bound at an infinite multiplier is NaN, which `max` ignores.
    let bound = least_value.max(bound(good)).max(bound(bad));
    Ok((minimize(blocks, good), if good.is_finite() { good } else { bad }, bound))
}

/// Returns the two adjacent floating-point numbers between `good` and `bad` at which `is_good`
/// changes. Both must be at least 0.
///
/// The bisection runs over the bits, exponent first, so about sixty evaluations suffice at any
/// magnitude.
pub(super) fn neighbours(mut good: f64, mut bad: f64, mut is_good: impl FnMut(f64) -> bool) -> (f64, f64) {
    loop {
        let middle = f64::from_bits(good.to_bits().midpoint(bad.to_bits()));
        if middle <= good.min(bad) || middle >= good.max(bad) {
            return (good, bad);
        }
        *if is_good(middle) { &mut good } else { &mut bad } = middle;
    }
}

/// Replaces items by better ones while the limit allows: by the next one or by the best within the
/// limit, those with the largest decrease of the value for their cost first.
fn fill(mut picks: Picks<'_>, limit: f64) -> Picks<'_> {
    let mut cost = sums(&picks).0;
    loop {
        let upgrades = picks.iter().enumerate().flat_map(|(position, &(class, item))| {
            let now = class[item];
            let best = class.partition_point(|other| cost - now.cost + other.cost <= limit).saturating_sub(1);
            let better = [item + 1, best].into_iter().filter(move |&other| item < other && other <= best);
            better.map(move |other| {
                let (value, more) = (now.value - class[other].value, class[other].cost - now.cost);
                (value / more, position, other)
            })
        });
        let Some((_, position, item)) = upgrades.max_by(|a, b| a.0.total_cmp(&b.0)) else { return picks };
        picks[position].1 = item;
        cost = sums(&picks).0;
    }
}

/// A choice for the first classes.
#[derive(Clone, Copy, Default)]
struct Partial<'a> {
    cost: f64,
    value: f64,
    /// The difference of the weighted sum to its minimum for these classes.
    extra: f64,
    pick: Option<(&'a Class, usize)>,
    /// The number of the newest item in the list of kept ones, from 1; 0 if there is none.
    newest: usize,
}

/// Keeps the partial choices that no other dominates, and at most `width` of them, spread over the
/// range of costs.
fn thin(mut all: Vec<Partial<'_>>, width: usize) -> Vec<Partial<'_>> {
    remove_dominated(&mut all, |partial| (partial.cost, partial.value));
    let chunks = all.chunks(all.len().div_ceil(width).max(1));
    chunks.filter_map(|chunk| chunk.iter().min_by(|a, b| a.extra.total_cmp(&b.extra))).copied().collect()
}

/// Searches for a choice within the limit that is better than `value`.
///
/// An item can be part of such a choice only if it raises the relaxed minimum by less than the gap.
/// The search goes through the classes and keeps the partial choices that satisfy this. It is exact
/// unless it has to drop some of them.
fn search(blocks: &[Block], multiplier: f64, limit: f64, value: f64) -> Option<Picks<'_>> {
    let minimum = blocks.iter().map(|block| least_of(block, multiplier)).sum::<f64>();
    let rounding = ROUNDING * (minimum.abs() + value.abs());
    let gap = value - (minimum - multiplier * limit);
    if gap <= rounding {
        return None;
    }
    let room = gap + rounding;
    let mut ahead = blocks.iter().map(|block| least_of(block, f64::INFINITY)).sum::<f64>();
    let classes = blocks.iter().flatten().map(Vec::len).sum::<usize>();
    let width = (BEAM / classes.max(1)).clamp(64, 4096);
    // The items of all partial choices, each with the number of the item before.
    let mut kept: Vec<(usize, Option<(&Class, usize)>)> = Vec::new();
    let mut states = vec![Partial::default()];
    for block in blocks {
        ahead -= least_of(block, f64::INFINITY);
        // The tolerance allows for rounding in the differences of sums.
        let most = limit - ahead + rounding.max(ROUNDING * limit);
        let mut after = Vec::new();
        for classes in block {
            let penalty = least(classes, multiplier) - least_of(block, multiplier);
            let mut partials = states.clone();
            partials.iter_mut().for_each(|partial| partial.extra += penalty);
            for class in classes {
                let best = class[relaxed(class, multiplier)];
                let extra = |item: &Item| (item.value - best.value) + multiplier * (item.cost - best.cost);
                let all = class.iter().enumerate().map(|(position, item)| (position, item, extra(item)));
                let open: Vec<(usize, &Item, f64)> = all.filter(|(.., extra)| *extra < room).collect();
                let mut next = Vec::new();
                for partial in &partials {
                    next.extend(open.iter().filter_map(|&(position, item, extra)| {
                        let (cost, value) = (partial.cost + item.cost, partial.value + item.value);
                        let (extra, pick) = (partial.extra + extra, Some((class, position)));
                        let good = cost <= most && extra < room;
                        good.then_some(Partial { cost, value, extra, pick, newest: partial.newest })
                    }));
                }
                partials = thin(next, width);
                for partial in &mut partials {
                    kept.push((partial.newest, partial.pick));
                    partial.newest = kept.len();
                }
            }
            after.extend(partials);
        }
        states = thin(after, width);
    }
    let good = states.iter().filter(|state| state.cost <= limit && state.value < value);
    let best = good.min_by(|a, b| a.value.total_cmp(&b.value))?;
    let before = |number: usize| kept.get(number.wrapping_sub(1));
    let path = core::iter::successors(before(best.newest), |(number, _)| before(*number));
    let mut picks: Picks<'_> = path.filter_map(|(_, pick)| *pick).collect();
    picks.reverse();
    Some(picks)
}

/// Returns the chosen items of all blocks, in their order, and a lower bound on the value. If even
/// the smallest possible cost exceeds the limit, returns that cost as the error.
pub(super) fn solve(mut blocks: Vec<Block>, limit: f64) -> Result<(Vec<Item>, f64), f64> {
    for class in blocks.iter_mut().flatten().flatten() {
        remove_dominated(class, |item| (item.cost, item.value));
    }
    let (within, multiplier, bound) = relax(&blocks, limit)?;
    let mut picks = fill(within, limit);
    // The choice at multiplier 0 is optimal. Otherwise, each better choice makes the next search
    // smaller.
    for _ in 0..if multiplier > 0.0 { SEARCHES } else { 0 } {
        let Some(better) = search(&blocks, multiplier, limit, sums(&picks).1) else { break };
        picks = fill(better, limit);
    }
    Ok((picks.into_iter().map(|(class, item)| class[item]).collect(), bound))
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    type Options = Vec<((f64, f64), usize)>;

    /// Returns blocks of items whose choices contain the option, and the alternative as the layer.
    fn blocks(options: &[Vec<Vec<Options>>]) -> Vec<Block> {
        let classes = |(layer, classes): (usize, &Vec<Options>)| {
            let item = |&((cost, value), tag)| Item { cost, value, layer, choice: Choice::Rank(tag) };
            classes.iter().map(|options| options.iter().map(item).collect()).collect()
        };
        options.iter().map(|block| block.iter().enumerate().map(classes).collect()).collect()
    }

    /// Returns the cost and value of all choices, one by one.
    fn all(options: &[Vec<Vec<Options>>]) -> Vec<(f64, f64)> {
        let product = |sums: Vec<(f64, f64)>, options: &Options| {
            let more = |sum: &(f64, f64)| {
                let sum = *sum;
                options.iter().map(move |((cost, value), _)| (sum.0 + cost, sum.1 + value))
            };
            sums.iter().flat_map(more).collect::<Vec<_>>()
        };
        options.iter().fold(vec![(0.0, 0.0)], |sums, block| {
            block.iter().flat_map(|classes| classes.iter().fold(sums.clone(), product)).collect()
        })
    }

    #[track_caller]
    fn check(options: &[Vec<Vec<Options>>], limit: f64) {
        let best = all(options).into_iter().filter(|(cost, _)| *cost <= limit).map(|(_, value)| value);
        let best = best.fold(f64::INFINITY, f64::min);
        match solve(blocks(options), limit) {
            Ok((chosen, bound)) => {
                let (mut cost, mut value) = (0.0, 0.0);
                let mut chosen = chosen.into_iter().peekable();
                for block in options {
                    let alternative = chosen.peek().unwrap().layer;
                    for options in &block[alternative] {
                        let chosen = chosen.next().filter(|item| item.layer == alternative).unwrap();
                        let item = options.iter().find(|(_, tag)| Choice::Rank(*tag) == chosen.choice).unwrap().0;
                        (cost, value) = (cost + item.0, value + item.1);
                    }
                }
                assert_eq!(chosen.next(), None);
                assert!(
                    cost <= limit * (1.0 + 1e-12) && value <= best * (1.0 + 1e-12),
                    "{value} where there is {best}"
                );
                assert!(bound <= best * (1.0 + 1e-12), "a bound of {bound} where there is {best}");
            }
            Err(least) => {
                let cheapest = all(options).into_iter().map(|(cost, _)| cost).fold(f64::INFINITY, f64::min);
                assert!(best.is_infinite() && (least - cheapest).abs() <= 1e-12 * cheapest, "{least} {cheapest}");
            }
        }
    }

    #[test]
    fn no_choice_is_better_and_none_is_below_the_bound() {
        let mut rng = StdRng::seed_from_u64(31);
        for round in 0..600 {
            let mut class = |round: i32| -> Options {
                let size = rng.random_range(2..6);
                let (mut cost, mut value) = (rng.random_range(0.0..5.0_f64), rng.random_range(1.0..9.0));
                let options = (0..size).map(|tag| {
                    let option = ((cost, value), tag);
                    // Whole numbers often give equal sums.
                    let step: f64 = if round % 2 == 0 { 1.0 } else { 0.01 };
                    cost += (rng.random_range(0.0..4.0_f64) / step).round() * step;
                    value *= rng.random_range(0.3..1.0);
                    option
                });
                options.collect()
            };
            let mut options = Vec::new();
            for block in 0..4 {
                let each: Vec<Options> = (0..if block == 0 { 2 } else { 1 }).map(|_| class(round)).collect();
                let joint = (block == 0 || (block == 1 && round % 3 == 0)).then(|| vec![class(round)]);
                options.push(std::iter::once(each).chain(joint).collect());
            }
            check(&options, f64::from(round % 40));
        }
    }

    #[test]
    fn costs_may_be_concave() {
        // Pivoted factors of rank k have k (m + n − k) parameters: the hull skips most ranks.
        let mut rng = StdRng::seed_from_u64(32);
        for round in 0..100 {
            let mut class = |size: usize| {
                let power = rng.random_range(0.3..2.0);
                let energies: Vec<f64> = (1..=size).map(|i| (i as f64).powf(-power)).collect();
                let option = |rank: usize| {
                    let cost = (rank * (2 * size - rank)) as f64;
                    ((cost, energies[rank..].iter().sum::<f64>() / energies.iter().sum::<f64>()), rank)
                };
                (1..=size).map(option).collect::<Options>()
            };
            let options = [20, 24, 32].map(|size| vec![vec![class(size)]]);
            check(&options, 2000.0 * (f64::from(round) + 5.0) / 110.0);
        }
    }

    #[test]
    fn items_of_infinite_value_can_be_chosen() {
        let infinite = f64::INFINITY;
        let options = vec![((1.0, infinite), 0), ((2.0, infinite), 1), ((3.0, 1.0), 2)];
        for (limit, tag) in [(1.0, 0), (2.5, 0), (3.0, 2), (infinite, 2)] {
            let (chosen, _) = solve(blocks(&[vec![vec![options.clone()]]]), limit).unwrap();
            assert_eq!(chosen[0].choice, Choice::Rank(tag), "{limit}");
        }
        let (chosen, _) = solve(blocks(&[vec![vec![options[..1].to_vec()]]]), infinite).unwrap();
        assert_eq!(chosen[0].choice, Choice::Rank(0));
    }

    #[test]
    fn extreme_magnitudes_neither_fail_nor_exceed_the_limit() {
        for scale in [1e-150, 1e-20, 1.0, 1e20, 1e150] {
            for unit in [1e-150, 1.0, 1e150] {
                let class = |offset: f64| -> Options {
                    vec![((scale, 3.0 * unit), 0), ((2.0 * scale, unit * offset), 1), ((3.0 * scale, 0.0), 2)]
                };
                let options = [vec![vec![class(1.0)]], vec![vec![class(2.0)]]];
                for limit in [2.0, 3.0, 4.5, 6.0] {
                    check(&options, limit * scale);
                }
            }
        }
    }
}
