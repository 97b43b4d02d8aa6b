//! The knapsack against all there is to pick from.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// Picks of every item of every class, joint ones included: the least value within the limit, and the least price.
fn brute_force(blocks: &[(Vec<Vec<Item>>, Vec<Item>)], limit: f64) -> (f64, f64) {
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

#[test]
fn never_below_the_bound_and_never_beaten_by_all_there_is() {
    let mut infeasible = 0;
    let mut joined = 0;
    for seed in 0..3000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut all: Vec<(Vec<Vec<Item>>, Vec<Item>)> = Vec::new();
        for _ in 0..rng.random_range(1..5) {
            let members: Vec<_> =
                (0..if all.len() < 2 && rng.random_bool(0.4) { 2 } else { 1 }).map(|_| items(&mut rng, 0)).collect();
            let joint = if members.len() > 1 { items(&mut rng, 1) } else { Vec::new() };
            all.push((members, joint));
        }
        let dearest = all.iter().flat_map(|(members, _)| members).map(|items| items.last().unwrap().price).sum::<f64>();
        let limit = (rng.random_range(0.05..1.1) * dearest).floor();
        let class = |items: &Vec<Item>| Class::new(items.clone());
        let block = |(members, joint): &(Vec<Vec<Item>>, Vec<Item>)| Block {
            members: members.iter().filter_map(class).collect(),
            joint: class(joint),
        };
        let blocks: Vec<Block> = all.iter().map(block).collect();
        let (best, least) = brute_force(&all, limit);
        let solution = match solve(&blocks, limit) {
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
    }
    assert!(infeasible > 20 && joined > 50, "{infeasible} infeasible, {joined} joint");
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
    let item = |price: f64, value: f64| Item { price, value, tag: 0 };
    let members = vec![Class::new(vec![item(5.0, 1.0), item(10.0, 0.0)]).unwrap()];
    let blocks = [Block { members, joint: Class::new(vec![Item { price: 1.0, value: 1e12, tag: 7 }]) }];
    let solution = solve(&blocks, 3.0).unwrap();
    assert_eq!(solution.picked, [Picked::Joint(7)]);
    // Half of the way from one to the other: the line from (1, 10¹²) to (5, 1) at a price of 3.
    assert!((lower_bound(&blocks, 3.0) / 0.5e12 - 1.0).abs() < 1e-9);
    assert!(lower_bound(&blocks, 3.0) == solution.bound);
}

/// Two classes worked out by hand: items of the first but one are vertices, those of the second are all.
fn by_hand() -> [Class; 2] {
    let class = |items: &[(f64, f64)]| {
        let item = |(tag, &(price, value)): (usize, &(f64, f64))| Item { price, value, tag };
        Class::new(items.iter().enumerate().map(item).collect()).unwrap()
    };
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
