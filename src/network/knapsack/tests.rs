//! The knapsack against all there is to pick from.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// The items of each member of a block, and those that replace all of them.
type Items = (Vec<Vec<Item>>, Vec<Item>);

/// Price and value of picks of every item of every class, joint ones included.
fn ways(blocks: &[Items]) -> Vec<(f64, f64)> {
    let mut ways: Vec<(f64, f64)> = vec![(0.0, 0.0)];
    for (members, joint) in blocks {
        let mut each: Vec<(f64, f64)> = vec![(0.0, 0.0)];
        for items in members {
            let more = each.iter().flat_map(|way| items.iter().map(|item| (way.0 + item.price, way.1 + item.value)));
            each = more.collect();
        }
        each.extend(joint.iter().map(|item| (item.price, item.value)));
        let more = ways.iter().flat_map(|way| each.iter().map(|more| (way.0 + more.0, way.1 + more.1)));
        ways = more.collect();
    }
    ways
}

/// The least value within the limit, and the least price.
fn brute_force(blocks: &[Items], limit: f64) -> (f64, f64) {
    let ways = ways(blocks);
    let affordable = ways.iter().filter(|way| way.0 <= limit).map(|way| way.1);
    (affordable.fold(f64::INFINITY, f64::min), ways.iter().map(|way| way.0).fold(f64::INFINITY, f64::min))
}

/// Convex or not, with a dense item or without, costs in whole numbers that differ from class to class.
fn items(rng: &mut StdRng, joint: usize) -> Vec<Item> {
    let (unit, convex) = (rng.random_range(1..20) as f64, rng.random_bool(0.6));
    let count = rng.random_range(1..7);
    let mut value = rng.random_range(0.5..2.0) * (1 + joint) as f64;
    let ratio = rng.random_range(0.2..1.0);
    let mut items: Vec<Item> = (1..=count)
        .map(|rank| {
            value *= if convex { ratio } else { rng.random_range(0.1..1.1) };
            Item { price: unit * (rank + joint) as f64, value, tag: rank }
        })
        .collect();
    if rng.random_bool(0.7) {
        items.push(Item { price: unit * (count + 1 + rng.random_range(0..6)) as f64, value: 0.0, tag: 0 });
    }
    items
}

/// Some blocks, of which some have a joint class, and a limit.
fn instance(rng: &mut StdRng) -> (Vec<Items>, f64) {
    let mut all: Vec<Items> = Vec::new();
    for _ in 0..rng.random_range(1..5) {
        let members: Vec<_> =
            (0..if all.len() < 2 && rng.random_bool(0.4) { 2 } else { 1 }).map(|_| items(rng, 0)).collect();
        let joint = if members.len() > 1 { items(rng, 1) } else { Vec::new() };
        all.push((members, joint));
    }
    let dearest = all.iter().flat_map(|(members, _)| members).map(|items| items.last().unwrap().price).sum::<f64>();
    let limit = (rng.random_range(0.05..1.1) * dearest).floor();
    (all, limit)
}

/// The blocks, their values times a factor.
fn scaled(all: &[Items], factor: f64) -> Vec<Block> {
    let class =
        |items: &Vec<Item>| Class::new(items.iter().map(|item| Item { value: item.value * factor, ..*item }).collect());
    all.iter()
        .map(|(members, joint)| Block { members: members.iter().filter_map(class).collect(), joint: class(joint) })
        .collect()
}

#[test]
fn never_below_the_bound_and_never_beaten_by_all_there_is() {
    let mut infeasible = 0;
    let mut joined = 0;
    for seed in 0..3000 {
        let (all, limit) = instance(&mut StdRng::seed_from_u64(seed));
        let (best, least) = brute_force(&all, limit);
        let solution = match solve(&scaled(&all, 1.0), limit) {
            Ok(solution) => solution,
            Err(found) => {
                assert!(best.is_infinite() && found == least, "seed {seed}: {found} for {least}");
                infeasible += 1;
                continue;
            }
        };
        let (mut price, mut value) = (0.0, 0.0);
        for ((members, joint), picked) in all.iter().zip(&solution.picked) {
            let find = |items: &Vec<Item>, tag: usize| *items.iter().find(|item| item.tag == tag).unwrap();
            let picks: Vec<Item> = match picked {
                Picked::Each(tags) => members.iter().zip(tags).map(|(items, &tag)| find(items, tag)).collect(),
                Picked::Joint(tag) => vec![find(joint, *tag)],
            };
            joined += usize::from(matches!(picked, Picked::Joint(_)));
            price += picks.iter().map(|item| item.price).sum::<f64>();
            value += picks.iter().map(|item| item.value).sum::<f64>();
        }
        let rounding = 64.0 * f64::EPSILON * (best + value + 10.0);
        assert!(price <= limit, "seed {seed}: {price} spent of {limit}");
        assert!(solution.bound <= best + rounding, "seed {seed}: a bound of {} above {best}", solution.bound);
        assert!(value >= best - rounding, "seed {seed}: {value} below all there is, {best}");
        assert!(value <= best + rounding, "seed {seed}: {value}, but there is {best}");
        // Values in another unit, by a power of two: all numbers are the same but for their exponents.
        let factor = if seed % 2 == 0 { 2_f64.powi(20) } else { 2_f64.powi(-20) };
        assert_eq!(solve(&scaled(&all, factor), limit).unwrap().picked, solution.picked, "seed {seed}");
    }
    assert!(infeasible > 20 && joined > 50, "{infeasible} infeasible, {joined} joint");
}

#[test]
fn the_bound_is_the_largest_that_any_multiplier_gives() {
    for seed in 0..150 {
        let (all, limit) = instance(&mut StdRng::seed_from_u64(seed));
        let blocks = scaled(&all, 1.0);
        if blocks.iter().map(Block::least_price).sum::<f64>() > limit {
            continue;
        }
        // It is linear between the multipliers at which two ways to pick from a block are as good: largest at one of them, or at none.
        let ways: Vec<Vec<(f64, f64)>> = all.iter().map(|block| ways(std::slice::from_ref(block))).collect();
        let equal = |a: &(f64, f64), b: &(f64, f64)| (a.1 - b.1) / (b.0 - a.0);
        let pairs = ways.iter().flat_map(|ways| ways.iter().flat_map(move |a| ways.iter().map(move |b| equal(a, b))));
        let at = |lambda: f64| {
            let least =
                |ways: &Vec<(f64, f64)>| ways.iter().map(|way| way.1 + lambda * way.0).fold(f64::INFINITY, f64::min);
            ways.iter().map(least).sum::<f64>() - lambda * limit
        };
        let largest = pairs.filter(|lambda| *lambda > 0.0 && lambda.is_finite()).map(at).fold(at(0.0), f64::max);
        let bound = lower_bound(&blocks, limit);
        assert!((bound - largest).abs() <= 1e-12 * (largest.abs() + 1.0), "seed {seed}: {bound} for {largest}");
    }
}

/// A class of items in the order of their tags.
pub(super) fn class(items: &[(f64, f64)]) -> Class {
    Class::new(items.iter().enumerate().map(|(tag, &(price, value))| Item { price, value, tag }).collect()).unwrap()
}

#[test]
fn a_block_takes_what_is_best_at_a_multiplier_and_the_cheaper_of_equals() {
    // At a multiplier of 1 the members cost 2 + 2 and lose 5 + 3.
    let members = || vec![class(&[(2.0, 5.0)]), class(&[(1.0, 7.0), (2.0, 3.0)])];
    let block = |joint: (f64, f64)| Block { members: members(), joint: Some(class(&[joint])) };
    for (joint, best) in [
        ((4.5, 7.25), (4.5, 7.25, true)),
        ((4.5, 7.75), (4.0, 8.0, false)),
        ((3.0, 9.0), (3.0, 9.0, true)),
        ((5.0, 7.0), (4.0, 8.0, false)),
        ((4.0, 8.0), (4.0, 8.0, false)),
    ] {
        assert_eq!(block(joint).at(1.0), best);
    }
    // At one that leaves nothing of values they cost 2 + 1 and lose 5 + 7: the cheaper, and the better of those that cost the same.
    for (joint, taken) in [((2.5, 99.0), true), ((3.5, 0.0), false), ((3.0, 11.0), true), ((3.0, 13.0), false)] {
        assert_eq!(block(joint).at(1e100).2, taken, "{joint:?}");
    }
    // 3 + 5 spent of 6, 9 + 6.5 lost.
    assert_eq!(relaxed(&[block((3.0, 9.0)), block((5.0, 6.5))], 1.0, 6.0), (8.0, 15.5 + 2.0));
}

#[test]
fn classes_are_hulls_of_what_is_worth_its_price() {
    let item = |price: f64, value: f64| Item { price, value, tag: 0 };
    let class = Class::new(vec![
        item(3.0, 1.0),
        item(1.0, 4.0),
        item(2.0, 4.0),
        item(2.5, 3.9),
        item(9.0, 0.0),
        item(7.0, 2.0),
    ]);
    let class = class.unwrap();
    // 4 at the price of 2 and 2 at the price of 7 are dominated; 3.9 at 2.5 lies above the line from (1, 4) to (3, 1).
    assert_eq!(class.len(), 4);
    assert_eq!(
        [2.0, 1.5, 1.0, 1.0 / 6.0, 0.1, 0.0].map(|lambda| class.item(class.at(lambda)).price),
        [1.0, 1.0, 3.0, 3.0, 9.0, 9.0]
    );
    assert_eq!(class.affordable(8.0), 2);
    assert!(Class::new(vec![item(f64::NAN, 1.0), item(1.0, f64::INFINITY)]).is_none());
}

#[test]
fn many_equal_classes_use_up_what_they_may() {
    // At the one λ that matters all classes go from one item to the next at once: the repair must take them one by one.
    let items: Vec<Item> =
        (1..=8).map(|rank| Item { price: f64::from(rank), value: 8.0 - f64::from(rank), tag: rank as usize }).collect();
    let blocks: Vec<Block> =
        (0..300).map(|_| Block { members: vec![Class::new(items.clone()).unwrap()], joint: None }).collect();
    let solution = solve(&blocks, 1001.0).unwrap();
    let ranks = solution.picked.iter().map(|picked| match picked {
        Picked::Each(tags) => tags[0],
        Picked::Joint(_) => unreachable!(),
    });
    assert_eq!(ranks.sum::<usize>(), 1001);
    assert!((solution.bound - (300.0 * 8.0 - 1001.0)).abs() <= 64.0 * f64::EPSILON * 2400.0);
}

#[test]
fn a_joint_item_that_only_a_steep_price_buys_is_found() {
    let members = vec![class(&[(5.0, 1.0), (10.0, 0.0)])];
    let blocks = [Block { members, joint: Class::new(vec![Item { price: 1.0, value: 1e12, tag: 7 }]) }];
    let solution = solve(&blocks, 3.0).unwrap();
    assert_eq!(solution.picked, [Picked::Joint(7)]);
    // Half of the way from one to the other: the line from (1, 10¹²) to (5, 1) at a price of 3.
    assert!((lower_bound(&blocks, 3.0) / 0.5e12 - 1.0).abs() < 1e-9);
    assert!(lower_bound(&blocks, 3.0) == solution.bound);
}

#[test]
fn of_more_groups_than_can_be_tried_in_all_ways_each_is_tried_once() {
    let block = |each: (f64, f64), joint: (f64, f64)| Block {
        members: vec![class(&[each]), class(&[each])],
        joint: Some(class(&[joint])),
    };
    for count in [31_u8, 70] {
        // The limit buys seven joint items, where at the one multiplier that matters all are bought or none.
        let blocks: Vec<Block> = (0..count).map(|_| block((1.0, 5.0), (5.0, 0.0))).collect();
        let limit = f64::from(2 * count + 7 * 3);
        let solution = solve(&blocks, limit).unwrap();
        let joint = solution.picked.iter().filter(|picked| matches!(picked, Picked::Joint(_))).count();
        assert_eq!(joint, 7);
        assert!((solution.bound - 10.0 * (f64::from(count) - 7.0)).abs() < 1e-10);
        // No multiplier is large enough to take the one way that is affordable, the cheapest.
        let blocks: Vec<Block> = (0..count).map(|_| block((1e-300, 0.0), (0.0, 1e10))).collect();
        assert_eq!(solve(&blocks, 0.0).unwrap().picked, vec![Picked::Joint(0); count.into()]);
    }
}

#[test]
fn cutting_down_is_tried_as_well_as_filling_up() {
    // Too many classes for the exact search, and at a multiplier of 10 all are bought or none. Filling up from none begins with the small ones, and
    // leaves 98, which with what one of them gives back does not buy the large one. Cutting down from all gives two of them up.
    let mut blocks: Vec<Block> =
        (0..1001).map(|_| Block { members: vec![class(&[(0.0, 10.0), (1.0, 0.0)])], joint: None }).collect();
    blocks.push(Block { members: vec![class(&[(0.0, 1000.0), (100.0, 0.0)])], joint: None });
    let solution = solve(&blocks, 1099.0).unwrap();
    assert_eq!(solution.picked[1001], Picked::Each(vec![1]));
    assert_eq!(solution.picked.iter().filter(|picked| **picked == Picked::Each(vec![0])).count(), 2);
    assert!((solution.bound - 20.0).abs() < 1e-9);
}

/// The least value within a limit, of classes whose prices are whole numbers, by dynamic programming over the money spent.
fn table(classes: &[Vec<Item>], limit: usize) -> f64 {
    let mut best = vec![0.0; limit + 1];
    for items in classes {
        let value = |money: usize| {
            let after = |item: &Item| money.checked_sub(item.price as usize).map(|left| best[left] + item.value);
            items.iter().filter_map(after).fold(f64::INFINITY, f64::min)
        };
        best = (0..=limit).map(value).collect();
    }
    best[limit]
}

#[test]
fn of_more_classes_than_can_be_enumerated_the_best_picks_are_found() {
    for seed in 0..40 {
        let mut rng = StdRng::seed_from_u64(seed);
        let classes: Vec<Vec<Item>> = (0..25).map(|_| items(&mut rng, 0)).collect();
        let dearest = classes.iter().map(|items| items.last().unwrap().price).sum::<f64>();
        let limit = (rng.random_range(0.3..0.9) * dearest).floor();
        let best = table(&classes, limit as usize);
        let all: Vec<_> = classes.iter().map(|items| (vec![items.clone()], Vec::new())).collect();
        let solution = solve(&scaled(&all, 1.0), limit).unwrap();
        let value = solution.picked.iter().zip(&classes).map(|(picked, items)| match picked {
            Picked::Each(tags) => items.iter().find(|item| item.tag == tags[0]).unwrap().value,
            Picked::Joint(_) => unreachable!(),
        });
        let value = value.sum::<f64>();
        assert!((value - best).abs() <= 1e-12 * (best + 1.0), "seed {seed}: {value}, but there is {best}");
    }
}

/// Two classes worked out by hand: items of the first but one are vertices, those of the second are all.
fn by_hand() -> [Class; 2] {
    [class(&[(1.0, 4.0), (2.5, 3.9), (3.0, 1.0), (9.0, 0.0)]), class(&[(2.0, 10.0), (4.0, 5.0), (6.0, 4.0)])]
}

#[test]
fn steps_lead_from_vertex_to_vertex() {
    let [class, _] = by_hand();
    let close = |found: Option<(usize, f64)>, expected: Option<(usize, f64)>| match (found, expected) {
        (Some(found), Some(expected)) => found.0 == expected.0 && (found.1 - expected.1).abs() < 1e-12,
        (found, expected) => found.is_none() && expected.is_none(),
    };
    let next = [Some((2, 1.5)), Some((2, 5.8)), Some((3, 1.0 / 6.0)), None];
    let previous = [None, Some((0, 0.1 / 1.5)), Some((0, 1.5)), Some((2, 1.0 / 6.0))];
    for index in 0..4 {
        assert!(close(class.next_vertex(index), next[index]), "{index}: {:?}", class.next_vertex(index));
        assert!(close(class.previous_vertex(index), previous[index]), "{index}: {:?}", class.previous_vertex(index));
    }
    assert_eq!([0.5, 1.0, 2.4, 2.5, 8.0, 9.0, 20.0].map(|price| class.affordable(price)), [0, 0, 0, 1, 2, 3, 3]);
    assert_eq!(class.steepest(), 1.5);
}

/// Each repair on its own: the exact search behind them would make up for a bad one.
#[test]
fn repairs_do_what_they_can_by_hand() {
    let [a, b] = by_hand();
    let classes = [&a, &b];
    // The steepest steps first; one that is too dear gives way to flatter ones, and at last to items between the vertices.
    for (limit, picks) in [(3.0, [0, 0]), (4.6, [1, 0]), (5.0, [0, 1]), (7.0, [2, 1]), (12.0, [2, 2]), (15.0, [3, 2])] {
        assert_eq!(repair::fill(&classes, vec![0, 0], limit), picks, "{limit}");
    }
    // The flattest steps first, no more of them than it takes.
    let cut = |limit| repair::cut(&classes, vec![3, 2], limit);
    for (limit, picks) in [(15.0, [3, 2]), (12.0, [2, 2]), (9.0, [2, 2]), (8.0, [2, 1]), (6.0, [0, 1]), (3.0, [0, 0])] {
        assert_eq!(cut(limit).as_deref(), Some(&picks[..]), "{limit}");
    }
    assert_eq!(cut(2.0), None);
    // 3 given up in one class buy 5 in the other; not the other way about, and not without the money.
    assert_eq!(repair::trade(&classes, vec![2, 0], 5.0), [0, 1]);
    assert_eq!(repair::trade(&classes, vec![0, 1], 5.0), [0, 1]);
    assert_eq!(repair::trade(&classes, vec![2, 0], 6.5), [1, 1]);
    assert_eq!(repair::trade(&classes, vec![3, 1], 14.0), [3, 1]);
    // One for another that is as good would go back and forth.
    let alike = [0; 3].map(|_| class(&[(0.0, 1.0), (1.0, 0.0)]));
    assert_eq!(repair::trade(&alike.each_ref(), vec![1, 0, 0], 1.0), [1, 0, 0]);
    // With 98 left, only two given up for 20 buy the 100; the 21 classes before the one that has them are looked at in vain.
    let mut many: Vec<Class> = (0..1000).map(|_| class(&[(0.0, 11.0), (1.0, 0.0)])).collect();
    many[20] = class(&[(0.0, 20.0), (2.0, 0.0)]);
    many.push(class(&[(0.0, 1000.0), (100.0, 0.0)]));
    let mut picks = vec![1; 1000];
    picks.push(0);
    let traded = repair::trade(&many.iter().collect::<Vec<_>>(), picks, 1001.0 + 98.0);
    assert_eq!((traded[20], traded[1000], traded.iter().sum::<usize>()), (0, 1, 1000));
}

#[test]
fn repairs_leave_nothing_to_buy_and_nothing_to_trade() {
    for seed in 0..500 {
        let mut rng = StdRng::seed_from_u64(seed);
        let factor = [2_f64.powi(-20), 1.0, 2_f64.powi(20)][seed as usize % 3];
        let all: Vec<_> = (0..rng.random_range(2..7)).map(|_| (vec![items(&mut rng, 0)], Vec::new())).collect();
        let blocks = scaled(&all, factor);
        let classes: Vec<&Class> = blocks.iter().flat_map(|block| &block.members).collect();
        let picks: Vec<usize> = classes.iter().map(|class| rng.random_range(0..class.len())).collect();
        // Prices are whole numbers: sums of them are exact.
        let limit = price_of(&classes, &picks) + f64::from(rng.random_range(0..60));
        let filled = repair::fill(&classes, picks.clone(), limit);
        let left = limit - price_of(&classes, &filled);
        assert!(left >= 0.0 && filled.iter().zip(&picks).all(|(after, before)| after >= before), "seed {seed}");
        for (class, &pick) in classes.iter().zip(&filled) {
            let more = (pick + 1..class.len()).map(|to| class.item(to).price - class.item(pick).price);
            assert!(more.into_iter().all(|more| more > left), "seed {seed}: {left} left");
        }
        for start in [picks, filled] {
            let traded = repair::trade(&classes, start.clone(), limit);
            let left = limit - price_of(&classes, &traded);
            assert!(left >= 0.0 && value_of(&classes, &traded) <= value_of(&classes, &start), "seed {seed}");
            for (seller, buyer) in (0..classes.len()).flat_map(|seller| (0..classes.len()).map(move |b| (seller, b))) {
                let now = classes[seller].item(traded[seller]);
                let vertex = classes[seller].previous_vertex(traded[seller]).map(|(to, _)| to);
                for to in [traded[seller].checked_sub(1), vertex].into_iter().flatten().filter(|_| seller != buyer) {
                    let sold = classes[seller].item(to);
                    let before = classes[buyer].item(traded[buyer]);
                    for after in (traded[buyer] + 1..classes[buyer].len()).map(|to| classes[buyer].item(to)) {
                        let affordable = after.price - before.price <= left + now.price - sold.price;
                        let gains = before.value - after.value > (sold.value - now.value) * (1.0 + 1e-9);
                        assert!(!(affordable && gains), "seed {seed}: {seller} for {buyer}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_exact_search_finds_what_repairs_leave() {
    let [a, b] = by_hand();
    let classes = [&a, &b];
    // At a multiplier of 2 both have their best items within 5.
    assert_eq!(exact::improve(&classes, vec![2, 0], 2.0, 5.0), [0, 1]);
    assert_eq!(exact::improve(&classes, vec![0, 1], 2.0, 5.0), [0, 1]);
    // Between the vertices: 6.5 buys the item that no multiplier does.
    assert_eq!(exact::improve(&classes, vec![0, 1], 1.5, 6.5), [1, 1]);
    assert_eq!(exact::improve(&classes, vec![2, 1], 0.5, 7.0), [2, 1]);
}
