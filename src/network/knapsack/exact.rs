//! Branch and bound in what the relaxation leaves open: exact for small problems, a better try for large ones.

use super::{Class, price_of, value_of};

/// Branches to look at; small problems need fewer.
const NODES: usize = 200_000;

/// Items that are open; with more the nodes would not get far.
const ITEMS: usize = 50_000;

/// Classes to decide about, each a level of recursion.
const LEVELS: usize = 1000;

/// An item that may be part of better picks.
#[derive(Clone, Copy)]
struct Open {
    /// What it adds to the relaxed bound: `value + λ price`, less the least of its class.
    extra: f64,
    price: f64,
    index: usize,
}

struct Search {
    /// Of each class, by ascending `extra`.
    open: Vec<Vec<Open>>,
    /// The least price of all classes from each on.
    least_price: Vec<f64>,
    lambda: f64,
    limit: f64,
    /// By how much the best picks known are above the relaxed bound.
    room: f64,
    path: Vec<usize>,
    best: Option<Vec<usize>>,
    nodes: usize,
}

impl Search {
    /// Picks are above the bound by their extras and by `λ` for each unit of money not spent: the extras alone rule branches out.
    fn descend(&mut self, depth: usize, extra: f64, price: f64) {
        if depth == self.open.len() {
            let above = extra + self.lambda * (self.limit - price);
            if above < self.room {
                self.room = above;
                self.best = Some(self.path.clone());
            }
            return;
        }
        for position in 0..self.open[depth].len() {
            let item = self.open[depth][position];
            if self.nodes == 0 || extra + item.extra >= self.room {
                return;
            }
            self.nodes -= 1;
            if price + item.price + self.least_price[depth + 1] <= self.limit {
                self.path[depth] = item.index;
                self.descend(depth + 1, extra + item.extra, price + item.price);
            }
        }
    }
}

/// Picks of less value, if there are any and the search finds them in time. `lambda` is the multiplier of the best bound.
pub(super) fn improve(classes: &[&Class], picks: Vec<usize>, lambda: f64, limit: f64) -> Vec<usize> {
    let relaxed = |class: &Class, index: usize| class.item(index).value + lambda * class.item(index).price;
    let least: Vec<f64> = classes.iter().map(|class| relaxed(class, class.at(lambda))).collect();
    let extras: f64 =
        classes.iter().zip(&picks).zip(&least).map(|((class, &pick), least)| relaxed(class, pick) - least).sum();
    let room = extras + lambda * (limit - price_of(classes, &picks));
    let mut open: Vec<(usize, Vec<Open>)> = Vec::new();
    let mut better = picks.clone();
    let mut fixed_price = 0.0;
    for (number, (class, least)) in classes.iter().zip(&least).enumerate() {
        let item =
            |index| Open { extra: (relaxed(class, index) - least).max(0.0), price: class.item(index).price, index };
        let items: Vec<Open> = (0..class.len()).map(item).filter(|item| item.extra < room).collect();
        match items[..] {
            // Nothing open in a class: the picks are as good as the bound.
            [] => return picks,
            // The one that the relaxation picks, without any extra.
            [only] => {
                fixed_price += only.price;
                better[number] = only.index;
            }
            _ => open.push((number, items)),
        }
    }
    if open.len() > LEVELS || open.iter().map(|(_, items)| items.len()).sum::<usize>() > ITEMS {
        return picks;
    }
    open.iter_mut().for_each(|(_, items)| items.sort_by(|a, b| a.extra.total_cmp(&b.extra)));
    // Decide first where there is most to lose by a wrong choice.
    let second = |items: &[Open]| items.get(1).map_or(f64::INFINITY, |item| item.extra);
    open.sort_by(|a, b| second(&b.1).total_cmp(&second(&a.1)));
    let mut least_price = vec![0.0; open.len() + 1];
    for (depth, (_, items)) in open.iter().enumerate().rev() {
        least_price[depth] = least_price[depth + 1] + items.iter().map(|item| item.price).fold(f64::INFINITY, f64::min);
    }
    let (order, open): (Vec<usize>, Vec<Vec<Open>>) = open.into_iter().unzip();
    let path = vec![0; open.len()];
    let mut search = Search { open, least_price, lambda, limit, room, path, best: None, nodes: NODES };
    search.descend(0, 0.0, fixed_price);
    let Some(found) = search.best else { return picks };
    for (class, index) in order.into_iter().zip(found) {
        better[class] = index;
    }
    // Prices were summed up in another order.
    let improves = price_of(classes, &better) <= limit && value_of(classes, &better) < value_of(classes, &picks);
    if improves { better } else { picks }
}

#[cfg(test)]
mod tests {
    use super::super::tests::class;
    use super::*;

    fn improved(classes: &[Class], picks: &[usize], lambda: f64, limit: f64) -> Vec<usize> {
        improve(&classes.iter().collect::<Vec<_>>(), picks.to_vec(), lambda, limit)
    }

    #[test]
    fn so_many_classes_and_no_more_are_searched() {
        // All can be bought, and all but two are.
        for (count, found) in [(LEVELS, 1), (LEVELS + 1, 0)] {
            let classes: Vec<Class> = (0..count).map(|_| class(&[(0.0, 2.0), (1.0, 0.0)])).collect();
            let mut picks = vec![1; count];
            picks[..2].fill(0);
            let better = improved(&classes, &picks, 1.0, count as f64);
            assert_eq!(better[..2], [found; 2], "{count}");
            assert!(better[2..].iter().all(|pick| *pick == 1));
        }
    }

    #[test]
    fn so_many_items_and_no_more_are_searched() {
        for (count, found) in [(ITEMS, ITEMS - 1), (ITEMS + 1, 0)] {
            let items: Vec<_> = (0..count).map(|price| (price as f64, (count - price) as f64)).collect();
            assert_eq!(improved(&[class(&items)], &[0], 1.0, count as f64), [found]);
        }
    }

    #[test]
    fn classes_with_one_open_item_cost_money_but_no_level() {
        // One for 3 or two for 2 and 2: with 4 to spend beside what the others cost, the two are better.
        let mut classes: Vec<Class> = (0..LEVELS).map(|_| class(&[(1.0, 5.0), (50.0, 4.0)])).collect();
        classes.push(class(&[(0.0, 10.0), (3.0, 0.0)]));
        classes.extend([0; 2].map(|_| class(&[(0.0, 6.0), (2.0, 0.0)])));
        let mut picks = vec![0; LEVELS + 3];
        picks[LEVELS] = 1;
        let better = improved(&classes, &picks, 3.0, LEVELS as f64 + 4.0);
        assert_eq!(better[LEVELS..], [0, 1, 1]);
        assert!(better[..LEVELS].iter().all(|pick| *pick == 0));
    }

    #[test]
    fn money_is_kept_for_the_classes_to_come() {
        // The last class takes 100 of 101, so that only one of the others can be bought: best the last, which is a little better. There are more ways
        // to find out too late than there are branches to look at.
        let mut classes: Vec<Class> = (0..20).map(|_| class(&[(0.0, 1.0), (1.0, 0.0)])).collect();
        classes[19] = class(&[(0.0, 1.0625), (1.0, 0.0)]);
        classes.push(class(&[(100.0, 1.0), (101.0, 0.875)]));
        let mut picks = vec![0; 21];
        picks[0] = 1;
        let mut best = vec![0; 21];
        best[19] = 1;
        assert_eq!(improved(&classes, &picks, 0.5, 101.0), best);
    }

    #[test]
    fn what_extras_rule_out_is_not_searched() {
        // Two too dear: two that save 1 each lose 2 more than the bound, the one that saves 2 loses 1.5. It comes first in the search, and is given up
        // last: there is time to follow every other one to the end, but not to begin with every other pair as well.
        let mut classes: Vec<Class> = (0..500).map(|_| class(&[(0.0, 3.0), (1.0, 1.0)])).collect();
        classes[7] = class(&[(0.0, 4.5), (2.0, 1.0)]);
        let mut picks = vec![1; 500];
        picks[..2].fill(0);
        let mut best = vec![1; 500];
        best[7] = 0;
        assert_eq!(improved(&classes, &picks, 1.0, 499.0), best);
    }

    #[test]
    fn the_search_gives_up_where_nothing_rules_branches_out() {
        // One unit of money is always left over, whatever is bought: 2⁶⁰ ways that are as good as the bound by their extras.
        let classes: Vec<Class> = (0..60).map(|_| class(&[(0.0, 2.0), (2.0, 0.0)])).collect();
        let picks: Vec<usize> = (0..60).map(|index| usize::from(index < 30)).collect();
        assert_eq!(improved(&classes, &picks, 1.0, 61.0), picks);
    }

    #[test]
    fn improvements_that_only_another_order_of_summing_affords_are_refused() {
        // 0.3 + 0.2 + 0.1 is 0.6 and 0.1 + 0.2 + 0.3 is more. The search begins with the last, of which most is lost.
        let prices = [0.1, 0.2, 0.3];
        let classes = prices.map(|price| class(&[(0.0, 100.0 * price), (price, 0.0)]));
        assert!(prices.iter().sum::<f64>() > 0.6 && prices.iter().rev().sum::<f64>() <= 0.6);
        assert_eq!(improved(&classes, &[0, 1, 1], 1.0, 0.6), [0, 1, 1]);
        assert_eq!(improved(&classes, &[0, 1, 1], 1.0, 0.6_f64.next_up()), [1, 1, 1]);
    }
}
