//! Minimizes a sum under a limit on another sum, with one option from each class: the multiple-choice knapsack.
//!
//! Lagrangian relaxation gives a lower bound and a choice within the limit. A beam search then looks at the options that the
//! bound leaves open, which finds the optimum unless there are too many of them.

use super::bisect::neighbours;

/// The largest number of partial choices that the beam search keeps for all classes together.
const BEAM: usize = 200_000;

/// The largest number of searches, each within the gap that the last one left.
const SEARCHES: usize = 6;

/// The search ends at this gap relative to the value: rounding hides anything smaller.
const ROUNDING: f64 = 1e-13;

/// An option of a class.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Item<T> {
    /// The limited quantity.
    cost: f64,
    /// The minimized quantity.
    value: f64,
    tag: T,
}

/// Options of which one must be chosen.
#[derive(Clone, Debug)]
pub(super) struct Class<T> {
    /// By ascending cost and descending value.
    items: Vec<Item<T>>,
    /// The items on the lower convex hull.
    hull: Vec<usize>,
    /// The value saved for each unit of cost between neighbours of the hull, descending.
    slopes: Vec<f64>,
}

/// Alternatives of which one must be chosen, with one option from each of its classes.
pub(super) type Block<T> = Vec<Vec<Class<T>>>;

/// The chosen alternative of each block, and the option chosen from each of its classes.
type Chosen<T> = Vec<(usize, Vec<T>)>;

impl<T: Copy> Class<T> {
    /// Keeps the options, pairs of cost and value, that no other option dominates. There must be one at least.
    pub(super) fn new(options: Vec<((f64, f64), T)>) -> Self {
        let mut all: Vec<Item<T>> = options.into_iter().map(|((cost, value), tag)| Item { cost, value, tag }).collect();
        all.sort_by(|a, b| a.cost.total_cmp(&b.cost).then(a.value.total_cmp(&b.value)));
        let mut items: Vec<Item<T>> = Vec::with_capacity(all.len());
        for item in all {
            if items.last().is_none_or(|last| item.value < last.value) {
                items.push(item);
            }
        }
        let slope = |a: usize, b: usize| (items[a].value - items[b].value) / (items[b].cost - items[a].cost);
        let mut hull: Vec<usize> = Vec::new();
        for next in 0..items.len() {
            while let [.., before, last] = hull[..]
                && slope(last, next) >= slope(before, last)
            {
                hull.pop();
            }
            hull.push(next);
        }
        let slopes = hull.windows(2).map(|pair| slope(pair[0], pair[1])).collect();
        Self { items, hull, slopes }
    }

    /// The item that minimizes `value + multiplier · cost`; the cheapest of several.
    fn relaxed(&self, multiplier: f64) -> usize {
        self.hull[self.slopes.partition_point(|&slope| slope > multiplier)]
    }

    /// Better items up to this cost: the next one, the next on the hull, and the best.
    fn upgrades(&self, item: usize, cost: f64) -> impl Iterator<Item = usize> {
        let best = self.items.partition_point(|item| item.cost <= cost).saturating_sub(1);
        let on_hull = self.hull.get(self.hull.partition_point(|&vertex| vertex <= item)).copied();
        [Some(item + 1), on_hull, Some(best)].into_iter().flatten().filter(move |&other| item < other && other <= best)
    }
}

/// The chosen alternative of a block, and the item chosen from each of its classes.
#[derive(Clone, Debug)]
struct Pick {
    alternative: usize,
    items: Vec<usize>,
}

/// Pairs every class of the chosen alternatives with the item chosen from it.
fn pairs<'a, T>(blocks: &'a [&[Vec<Class<T>>]], picks: &'a [Pick]) -> impl Iterator<Item = (&'a Class<T>, usize)> {
    let of_block = |(block, pick): (&&'a [Vec<Class<T>>], &'a Pick)| {
        block[pick.alternative].iter().zip(pick.items.iter().copied())
    };
    blocks.iter().zip(picks).flat_map(of_block)
}

/// The sums of cost and value.
fn sums<T: Copy>(blocks: &[&[Vec<Class<T>>]], picks: &[Pick]) -> (f64, f64) {
    let items = pairs(blocks, picks).map(|(class, item)| &class.items[item]);
    items.fold((0.0, 0.0), |(cost, value), item| (cost + item.cost, value + item.value))
}

/// The minimum of `Σ value + multiplier · Σ cost` over the classes of an alternative.
fn weighted<T: Copy>(classes: &[Class<T>], multiplier: f64) -> f64 {
    let weigh = |class: &Class<T>| {
        let item = &class.items[class.relaxed(multiplier)];
        // An infinite multiplier minimizes the cost.
        if multiplier.is_finite() { item.value + multiplier * item.cost } else { item.cost }
    };
    classes.iter().map(weigh).sum()
}

/// The minimizer of `Σ value + multiplier · Σ cost`.
fn minimize<T: Copy>(blocks: &[&[Vec<Class<T>>]], multiplier: f64) -> Vec<Pick> {
    let pick = |block: &&[Vec<Class<T>>]| {
        let all = block.iter().map(|classes| weighted(classes, multiplier)).enumerate();
        let alternative = all.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(index, _)| index);
        let items = block[alternative].iter().map(|class| class.relaxed(multiplier)).collect();
        Pick { alternative, items }
    };
    blocks.iter().map(pick).collect()
}

/// The solution of the relaxed problem.
struct Relaxation {
    /// The minimizer within the limit.
    within: Vec<Pick>,
    /// The minimizer at the next smaller multiplier, which exceeds the limit unless the multiplier is 0.
    above: Vec<Pick>,
    multiplier: f64,
    bound: f64,
}

/// Solves the relaxed problem, or returns the least cost there is if that exceeds the limit.
fn relax<T: Copy>(blocks: &[&[Vec<Class<T>>]], limit: f64) -> Result<Relaxation, f64> {
    let free = minimize(blocks, 0.0);
    let (cost, least_value) = sums(blocks, &free);
    if cost <= limit {
        return Ok(Relaxation { within: free.clone(), above: free, multiplier: 0.0, bound: least_value });
    }
    let (least, _) = sums(blocks, &minimize(blocks, f64::INFINITY));
    if least > limit {
        return Err(least);
    }
    let (good, bad) =
        neighbours(f64::INFINITY, 0.0, |multiplier| sums(blocks, &minimize(blocks, multiplier)).0 <= limit);
    let (within, above) = (minimize(blocks, good), minimize(blocks, bad));
    let bound = |picks: &[Pick], multiplier: f64| {
        let (cost, value) = sums(blocks, picks);
        value + multiplier * (cost - limit)
    };
    // `max` ignores a bound that is not a number, as it is at an infinite multiplier.
    let bound = least_value.max(bound(&within, good)).max(bound(&above, bad));
    let multiplier = if good.is_finite() { good } else { bad };
    Ok(Relaxation { within, above, multiplier, bound })
}

/// Takes the steps to the minimizer above the limit that do not exceed it.
fn approach<T: Copy>(blocks: &[&[Vec<Class<T>>]], relaxation: &Relaxation, limit: f64) -> Vec<Pick> {
    let mut picks = relaxation.within.clone();
    let mut cost = sums(blocks, &picks).0;
    let above = blocks.iter().zip(&mut picks).zip(&relaxation.above);
    for ((block, pick), above) in above.filter(|((_, pick), above)| pick.alternative == above.alternative) {
        for ((class, item), &above) in block[pick.alternative].iter().zip(&mut pick.items).zip(&above.items) {
            let more = cost - class.items[*item].cost + class.items[above].cost;
            if more <= limit {
                (*item, cost) = (above, more);
            }
        }
    }
    picks
}

/// Spends the rest of the limit on the upgrades that save most for their cost.
fn fill<T: Copy>(blocks: &[&[Vec<Class<T>>]], mut picks: Vec<Pick>, limit: f64) -> Vec<Pick> {
    let mut cost = sums(blocks, &picks).0;
    loop {
        let slack = limit - cost;
        let mut best: Option<(f64, &mut usize, usize, f64)> = None;
        for (block, pick) in blocks.iter().zip(&mut picks) {
            for (class, item) in block[pick.alternative].iter().zip(&mut pick.items) {
                let now = &class.items[*item];
                let found = class.upgrades(*item, now.cost + slack).map(|upgrade| {
                    let other = &class.items[upgrade];
                    ((now.value - other.value) / (other.cost - now.cost), upgrade, cost - now.cost + other.cost)
                });
                let found = found.filter(|(.., more)| *more <= limit).max_by(|a, b| a.0.total_cmp(&b.0));
                if let Some((ratio, upgrade, more)) = found
                    && best.as_ref().is_none_or(|best| ratio > best.0)
                {
                    best = Some((ratio, item, upgrade, more));
                }
            }
        }
        let Some((_, item, upgrade, more)) = best else { return picks };
        (*item, cost) = (upgrade, more);
    }
}

/// A choice for the first classes.
#[derive(Clone, Copy)]
struct Partial {
    cost: f64,
    value: f64,
    /// The amount by which `value + multiplier · cost` exceeds the minimum for these classes.
    extra: f64,
    /// The node of the last class but the newest one.
    parent: usize,
    /// The item of the newest class.
    item: usize,
}

/// An item in a chain of choices, newest first.
struct Node {
    parent: usize,
    alternative: usize,
    item: usize,
}

/// Keeps the partial choices that no other dominates, and at most `width` of them, spread over the range of costs.
fn thin(mut all: Vec<Partial>, width: usize) -> Vec<Partial> {
    all.sort_unstable_by(|a, b| a.cost.total_cmp(&b.cost).then(a.value.total_cmp(&b.value)));
    let mut least = f64::INFINITY;
    all.retain(|partial| {
        let keep = partial.value < least;
        least = least.min(partial.value);
        keep
    });
    let [first, .., last] = all[..] else { return all };
    if all.len() <= width {
        return all;
    }
    let bucket = |partial: &Partial| ((partial.cost - first.cost) / (last.cost - first.cost) * width as f64) as usize;
    let mut kept: Vec<Partial> = Vec::with_capacity(width + 1);
    for partial in all {
        match kept.last_mut().filter(|last| bucket(last) == bucket(&partial)) {
            Some(last) if partial.extra < last.extra => *last = partial,
            Some(_) => {}
            None => kept.push(partial),
        }
    }
    kept
}

/// Searches for a choice within the limit that is better than `value`.
///
/// An item can be part of such a choice only if it raises the relaxed minimum by less than the gap. The search goes through
/// the classes and keeps the partial choices that satisfy this; it is exact unless it has to drop some.
fn search<T: Copy>(blocks: &[&[Vec<Class<T>>]], multiplier: f64, limit: f64, value: f64) -> Option<Vec<Pick>> {
    let least = |block: &[Vec<Class<T>>]| {
        block.iter().map(|classes| weighted(classes, multiplier)).fold(f64::INFINITY, f64::min)
    };
    let minimum = blocks.iter().map(|block| least(block)).sum::<f64>();
    let rounding = ROUNDING * (minimum.abs() + value.abs());
    let gap = value - (minimum - multiplier * limit);
    if gap <= rounding {
        return None;
    }
    let room = gap + rounding;
    let cheapest = |block: &&[Vec<Class<T>>]| {
        let costs = block.iter().map(|classes| classes.iter().map(|class| class.items[0].cost).sum::<f64>());
        costs.fold(f64::INFINITY, f64::min)
    };
    let mut ahead = blocks.iter().map(cheapest).sum::<f64>();
    let classes = blocks.iter().flat_map(|block| block.iter()).map(Vec::len).sum::<usize>();
    let width = (BEAM / classes.max(1)).clamp(64, 4096);
    let mut nodes = vec![Node { parent: 0, alternative: 0, item: 0 }];
    let mut states = vec![Partial { cost: 0.0, value: 0.0, extra: 0.0, parent: 0, item: 0 }];
    for block in blocks {
        ahead -= cheapest(block);
        // Differences of sums are rounded.
        let most = limit - ahead + rounding.max(ROUNDING * limit);
        let mut after = Vec::new();
        for (alternative, classes) in block.iter().enumerate() {
            let penalty = weighted(classes, multiplier) - least(block);
            let mut partials: Vec<Partial> =
                states.iter().map(|state| Partial { extra: state.extra + penalty, ..*state }).collect();
            for class in classes {
                let best = &class.items[class.relaxed(multiplier)];
                let extra = |item: &Item<T>| (item.value - best.value) + multiplier * (item.cost - best.cost);
                let open: Vec<(usize, &Item<T>, f64)> = class
                    .items
                    .iter()
                    .enumerate()
                    .map(|(index, item)| (index, item, extra(item)))
                    .filter(|(_, _, extra)| *extra < room)
                    .collect();
                let mut next = Vec::new();
                for partial in &partials {
                    next.extend(open.iter().filter_map(|&(index, item, extra)| {
                        let (cost, extra) = (partial.cost + item.cost, partial.extra + extra);
                        let value = partial.value + item.value;
                        let parent = partial.parent;
                        (cost <= most && extra < room).then_some(Partial { cost, value, extra, parent, item: index })
                    }));
                }
                partials = thin(next, width);
                for partial in &mut partials {
                    nodes.push(Node { parent: partial.parent, alternative, item: partial.item });
                    partial.parent = nodes.len() - 1;
                }
            }
            after.extend(partials);
        }
        states = thin(after, width);
    }
    let good = states.iter().filter(|state| state.cost <= limit && state.value < value);
    let best = good.min_by(|a, b| a.value.total_cmp(&b.value))?;
    let mut node = &nodes[best.parent];
    let mut picks = Vec::with_capacity(blocks.len());
    for block in blocks.iter().rev() {
        let alternative = node.alternative;
        let mut items = Vec::with_capacity(block[alternative].len());
        for _ in &block[alternative] {
            items.push(node.item);
            node = &nodes[node.parent];
        }
        items.reverse();
        picks.push(Pick { alternative, items });
    }
    picks.reverse();
    Some(picks)
}

/// A lower bound on the value of every choice within the limit; `None` without such a choice.
pub(super) fn lower_bound<T: Copy>(blocks: &[Block<T>], limit: f64) -> Option<f64> {
    let blocks: Vec<&[Vec<Class<T>>]> = blocks.iter().map(Vec::as_slice).collect();
    relax(&blocks, limit).ok().map(|relaxation| relaxation.bound)
}

/// Returns the chosen options of each block, with the chosen alternative, and a lower bound on the value; or else the least
/// cost there is, which exceeds the limit.
pub(super) fn solve<T: Copy>(blocks: &[Block<T>], limit: f64) -> Result<(Chosen<T>, f64), f64> {
    let all: Vec<&[Vec<Class<T>>]> = blocks.iter().map(Vec::as_slice).collect();
    let first: Vec<&[Vec<Class<T>>]> = blocks.iter().map(|block| &block[..1]).collect();
    let relaxation = relax(&all, limit)?;
    let mut best: Option<(f64, Vec<Pick>)> = None;
    let mut improve = |blocks: &[&[Vec<Class<T>>]], relaxation: &Relaxation| {
        let mut picks = fill(blocks, approach(blocks, relaxation, limit), limit);
        // A better choice narrows the next search.
        for _ in 0..SEARCHES {
            let value = sums(blocks, &picks).1;
            let Some(better) = search(blocks, relaxation.multiplier, limit, value) else { break };
            picks = fill(blocks, better, limit);
        }
        let value = sums(blocks, &picks).1;
        if best.as_ref().is_none_or(|(least, _)| value < *least) {
            best = Some((value, picks));
        }
    };
    improve(&all, &relaxation);
    // The search is not exact for large problems. More alternatives must not make the result worse.
    if blocks.iter().any(|block| block.len() > 1)
        && let Ok(relaxation) = relax(&first, limit)
    {
        improve(&first, &relaxation);
    }
    let picks = best.map(|(_, picks)| picks).unwrap_or_default();
    let tags = |(block, pick): (&Block<T>, &Pick)| {
        let items = block[pick.alternative].iter().zip(&pick.items).map(|(class, &item)| class.items[item].tag);
        (pick.alternative, items.collect())
    };
    Ok((blocks.iter().zip(&picks).map(tags).collect(), relaxation.bound))
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    type Options = Vec<((f64, f64), usize)>;

    fn blocks(options: &[Vec<Vec<Options>>]) -> Vec<Block<usize>> {
        let classes = |classes: &Vec<Options>| classes.iter().map(|options| Class::new(options.clone())).collect();
        options.iter().map(|block| block.iter().map(classes).collect()).collect()
    }

    /// Cost and value of all choices, one by one.
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
        match solve(&blocks(options), limit) {
            Ok((chosen, bound)) => {
                let (mut cost, mut value) = (0.0, 0.0);
                for (block, (alternative, tags)) in options.iter().zip(chosen) {
                    for (options, tag) in block[alternative].iter().zip(tags) {
                        let item = options.iter().find(|(_, other)| *other == tag).unwrap().0;
                        (cost, value) = (cost + item.0, value + item.1);
                    }
                }
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
                    // Whole numbers make ties.
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
