//! The multiple-choice knapsack: minimizes a sum under a limit on another sum, with one item from
//! each class.
//!
//! Lagrangian relaxation gives a lower bound and a choice within the limit. A beam search then goes
//! through the items that the bound does not exclude. It finds the optimum unless there are too
//! many of them. In the allocation, a class is a layer or a group, and its items are the
//! candidates.

/// The largest number of partial choices that the beam search keeps for all classes together.
const BEAM: usize = 200_000;

/// The largest number of searches. Each uses the smaller gap that the previous one found.
const SEARCHES: usize = 6;

/// The search ends at this gap, relative to the value, because rounding hides smaller ones.
const ROUNDING: f64 = 1e-13;

/// An item of a class: one candidate of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Item<T> {
    /// The limited quantity.
    cost: f64,
    /// The minimized quantity.
    value: f64,
    tag: T,
}

/// Items of which one must be chosen.
#[derive(Clone, Debug)]
pub(super) struct Class<T> {
    /// By ascending cost and descending value.
    items: Vec<Item<T>>,
    /// The items on the lower convex hull.
    hull: Vec<usize>,
    /// The decrease of the value for each unit of cost between neighbours on the hull, descending.
    slopes: Vec<f64>,
}

/// Alternatives of which one must be chosen, with one item from each of its classes.
pub(super) type Block<T> = Vec<Vec<Class<T>>>;

/// The classes of the chosen alternatives, each with the position of its chosen item.
type Picks<'a, T> = Vec<(&'a Class<T>, usize)>;

impl<T: Copy> Class<T> {
    /// Creates a class of those options, pairs of cost and value, that no other option dominates.
    /// There must be at least one.
    pub(super) fn new(options: impl Iterator<Item = ((f64, f64), T)>) -> Self {
        let mut items: Vec<Item<T>> = options.map(|((cost, value), tag)| Item { cost, value, tag }).collect();
        remove_dominated(&mut items, |item| (item.cost, item.value));
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

    /// Returns the item that minimizes `value + multiplier · cost`. If there are several, returns
    /// the one with the smallest cost.
    fn relaxed(&self, multiplier: f64) -> usize {
        self.hull[self.slopes.partition_point(|&slope| slope > multiplier)]
    }

    /// Returns better items up to this cost: the next one, the next on the hull, and the best.
    fn upgrades(&self, item: usize, cost: f64) -> impl Iterator<Item = usize> {
        let best = self.items.partition_point(|item| item.cost <= cost).saturating_sub(1);
        let on_hull = self.hull.get(self.hull.partition_point(|&vertex| vertex <= item)).copied();
        [Some(item + 1), on_hull, Some(best)].into_iter().flatten().filter(move |&other| item < other && other <= best)
    }

    /// Returns the minimum of `value + multiplier · cost`; an infinite multiplier minimizes the
    /// cost.
    fn minimum(&self, multiplier: f64) -> f64 {
        let item = &self.items[self.relaxed(multiplier)];
        if multiplier.is_finite() { item.value + multiplier * item.cost } else { item.cost }
    }
}

/// Sorts by ascending cost, and keeps only elements whose value is smaller than all values before.
fn remove_dominated<E>(all: &mut Vec<E>, measure: impl Fn(&E) -> (f64, f64)) {
    all.sort_by(|a, b| {
        let (a, b) = (measure(a), measure(b));
        a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
    });
    let mut least = f64::INFINITY;
    all.retain(|element| {
        let value = measure(element).1;
        let keep = value < least;
        least = least.min(value);
        keep
    });
}

/// Returns the sums of cost and value.
fn sums<T>(picks: &Picks<'_, T>) -> (f64, f64) {
    let items = picks.iter().map(|(class, item)| &class.items[*item]);
    items.fold((0.0, 0.0), |(cost, value), item| (cost + item.cost, value + item.value))
}

/// Returns the minimum of `Σ value + multiplier · Σ cost` over the classes of an alternative.
fn weighted<T: Copy>(classes: &[Class<T>], multiplier: f64) -> f64 {
    classes.iter().map(|class| class.minimum(multiplier)).sum()
}

/// Returns the minimum over all alternatives of a block.
fn least<T: Copy>(block: &[Vec<Class<T>>], multiplier: f64) -> f64 {
    block.iter().map(|classes| weighted(classes, multiplier)).fold(f64::INFINITY, f64::min)
}

/// Returns the minimizer of `Σ value + multiplier · Σ cost`.
fn minimize<'a, T: Copy>(blocks: &[&'a [Vec<Class<T>>]], multiplier: f64) -> Picks<'a, T> {
    let best = |block: &&'a [Vec<Class<T>>]| {
        let all = block.iter().map(|classes| (weighted(classes, multiplier), classes));
        all.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, classes)| classes)
    };
    blocks.iter().filter_map(best).flatten().map(|class| (class, class.relaxed(multiplier))).collect()
}

/// The solution of the relaxed problem.
struct Relaxation<'a, T> {
    within: Picks<'a, T>,
    multiplier: f64,
    /// A lower bound on the value of every choice within the limit.
    bound: f64,
}

/// Solves the relaxed problem. If even the smallest possible cost exceeds the limit, returns that
/// cost as the error.
fn relax<'a, T: Copy>(blocks: &[&'a [Vec<Class<T>>]], limit: f64) -> Result<Relaxation<'a, T>, f64> {
    let free = minimize(blocks, 0.0);
    let (cost, least_value) = sums(&free);
    if cost <= limit {
        return Ok(Relaxation { within: free, multiplier: 0.0, bound: least_value });
    }
    let (least, _) = sums(&minimize(blocks, f64::INFINITY));
    if least > limit {
        return Err(least);
    }
    let (good, bad) = neighbours(f64::INFINITY, 0.0, |multiplier| sums(&minimize(blocks, multiplier)).0 <= limit);
    let within = minimize(blocks, good);
    let bound = |picks: &Picks<'a, T>, multiplier: f64| {
        let (cost, value) = sums(picks);
        value + multiplier * (cost - limit)
    };
    // The bound at an infinite multiplier is NaN, which `max` ignores.
    let bound = least_value.max(bound(&within, good)).max(bound(&minimize(blocks, bad), bad));
    Ok(Relaxation { within, multiplier: if good.is_finite() { good } else { bad }, bound })
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

/// Replaces items by better ones while the limit allows, those with the largest decrease of the
/// value for their cost first.
fn fill<'a, T: Copy>(mut picks: Picks<'a, T>, limit: f64) -> Picks<'a, T> {
    let mut cost = sums(&picks).0;
    loop {
        let upgrades = picks.iter().enumerate().flat_map(|(position, &(class, item))| {
            let now = &class.items[item];
            class.upgrades(item, now.cost + (limit - cost)).map(move |upgrade| {
                let other = &class.items[upgrade];
                let ratio = (now.value - other.value) / (other.cost - now.cost);
                (ratio, position, upgrade, cost - now.cost + other.cost)
            })
        });
        let best = upgrades.filter(|(.., more)| *more <= limit).max_by(|a, b| a.0.total_cmp(&b.0));
        let Some((_, position, upgrade, more)) = best else { return picks };
        (picks[position].1, cost) = (upgrade, more);
    }
}

/// A choice for the first classes.
#[derive(Clone, Copy)]
struct Partial {
    cost: f64,
    value: f64,
    /// The difference of `value + multiplier · cost` to its minimum for these classes.
    extra: f64,
    /// The position of the item of the class before in the list of [`Node`]s.
    parent: usize,
    /// The item of the newest class.
    item: usize,
}

/// The newest item of a partial choice, and the position of the item before it (0 if there is
/// none).
struct Node<'a, T> {
    parent: usize,
    pick: (&'a Class<T>, usize),
}

/// Keeps the partial choices that no other dominates, and at most `width` of them, spread over the
/// range of costs.
fn thin(mut all: Vec<Partial>, width: usize) -> Vec<Partial> {
    remove_dominated(&mut all, |partial| (partial.cost, partial.value));
    let chunks = all.chunks(all.len().div_ceil(width).max(1));
    chunks.filter_map(|chunk| chunk.iter().min_by(|a, b| a.extra.total_cmp(&b.extra))).copied().collect()
}

/// Searches for a choice within the limit that is better than `value`.
///
/// An item can be part of such a choice only if it raises the relaxed minimum by less than the gap.
/// The search goes through the classes and keeps the partial choices that satisfy this. It is exact
/// unless it has to drop some of them.
fn search<'a, T: Copy>(
    blocks: &[&'a [Vec<Class<T>>]],
    multiplier: f64,
    limit: f64,
    value: f64,
) -> Option<Picks<'a, T>> {
    let minimum = blocks.iter().map(|block| least(block, multiplier)).sum::<f64>();
    let rounding = ROUNDING * (minimum.abs() + value.abs());
    let gap = value - (minimum - multiplier * limit);
    if gap <= rounding {
        return None;
    }
    let room = gap + rounding;
    let mut ahead = blocks.iter().map(|block| least(block, f64::INFINITY)).sum::<f64>();
    let classes = blocks.iter().flat_map(|block| block.iter()).map(Vec::len).sum::<usize>();
    let width = (BEAM / classes.max(1)).clamp(64, 4096);
    // The position 0 means that there is no item before.
    let mut nodes: Vec<Node<'a, T>> = Vec::new();
    let mut states = vec![Partial { cost: 0.0, value: 0.0, extra: 0.0, parent: 0, item: 0 }];
    for block in blocks {
        ahead -= least(block, f64::INFINITY);
        // The tolerance allows for rounding in the differences of sums.
        let most = limit - ahead + rounding.max(ROUNDING * limit);
        let mut after = Vec::new();
        for classes in *block {
            let penalty = weighted(classes, multiplier) - least(block, multiplier);
            let start = states.iter().map(|state| Partial { extra: state.extra + penalty, ..*state });
            let mut partials: Vec<Partial> = start.collect();
            for class in classes {
                let best = &class.items[class.relaxed(multiplier)];
                let extra = |item: &Item<T>| (item.value - best.value) + multiplier * (item.cost - best.cost);
                let all = class.items.iter().enumerate().map(|(index, item)| (index, item, extra(item)));
                let open: Vec<(usize, &Item<T>, f64)> = all.filter(|(_, _, extra)| *extra < room).collect();
                let mut next = Vec::new();
                for partial in &partials {
                    next.extend(open.iter().filter_map(|&(index, item, extra)| {
                        let (cost, extra) = (partial.cost + item.cost, partial.extra + extra);
                        let (value, parent) = (partial.value + item.value, partial.parent);
                        (cost <= most && extra < room).then_some(Partial { cost, value, extra, parent, item: index })
                    }));
                }
                partials = thin(next, width);
                for partial in &mut partials {
                    nodes.push(Node { parent: partial.parent, pick: (class, partial.item) });
                    partial.parent = nodes.len();
                }
            }
            after.extend(partials);
        }
        states = thin(after, width);
    }
    let good = states.iter().filter(|state| state.cost <= limit && state.value < value);
    let best = good.min_by(|a, b| a.value.total_cmp(&b.value))?;
    let newest = nodes.get(best.parent.wrapping_sub(1));
    let mut picks: Picks<'a, T> =
        core::iter::successors(newest, |node| nodes.get(node.parent.wrapping_sub(1))).map(|node| node.pick).collect();
    picks.reverse();
    Some(picks)
}

/// Returns a lower bound on the value of every choice within the limit. If even the smallest
/// possible cost exceeds the limit, returns that cost as the error.
pub(super) fn lower_bound<T: Copy>(blocks: &[Block<T>], limit: f64) -> Result<f64, f64> {
    relax(&blocks.iter().map(Vec::as_slice).collect::<Vec<_>>(), limit).map(|relaxation| relaxation.bound)
}

/// Returns the chosen options of all blocks, in their order, and a lower bound on the value. If
/// even the smallest possible cost exceeds the limit, returns that cost as the error.
pub(super) fn solve<T: Copy>(blocks: &[Block<T>], limit: f64) -> Result<(Vec<T>, f64), f64> {
    let improve = |blocks: &[&[Vec<Class<T>>]]| {
        let Relaxation { within, multiplier, bound } = relax(blocks, limit)?;
        let mut picks = fill(within, limit);
        // The choice at multiplier 0 is optimal. Otherwise, each better choice makes the next
        // search smaller.
        for _ in 0..if multiplier > 0.0 { SEARCHES } else { 0 } {
            let Some(better) = search(blocks, multiplier, limit, sums(&picks).1) else { break };
            picks = fill(better, limit);
        }
        let tags = picks.iter().map(|(class, item)| class.items[*item].tag).collect();
        Result::<_, f64>::Ok((sums(&picks).1, tags, bound))
    };
    let all = improve(&blocks.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
    // The search is not exact for large problems, but more alternatives must not make the result
    // worse.
    let several = blocks.iter().any(|block| block.len() > 1);
    let first = several.then(|| improve(&blocks.iter().map(|block| &block[..1]).collect::<Vec<_>>()));
    match first {
        Some(Ok(first)) if first.0 < all.0 => Ok((first.1, all.2)),
        _ => Ok((all.1, all.2)),
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    type Options = Vec<((f64, f64), usize)>;

    /// Returns blocks whose tags contain the alternative and the option.
    fn blocks(options: &[Vec<Vec<Options>>]) -> Vec<Block<(usize, usize)>> {
        let classes = |(alternative, classes): (usize, &Vec<Options>)| {
            let tagged = |options: &Options| {
                Class::new(options.iter().map(move |&(measure, tag)| (measure, (alternative, tag))))
            };
            classes.iter().map(tagged).collect()
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
        match solve(&blocks(options), limit) {
            Ok((chosen, bound)) => {
                let (mut cost, mut value) = (0.0, 0.0);
                let mut chosen = chosen.into_iter().peekable();
                for block in options {
                    let alternative = chosen.peek().unwrap().0;
                    for options in &block[alternative] {
                        let (_, tag) = chosen.next().filter(|tag| tag.0 == alternative).unwrap();
                        let item = options.iter().find(|(_, other)| *other == tag).unwrap().0;
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
