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
    let (mut fixed_extra, mut fixed_price) = (0.0, 0.0);
    for (number, (class, least)) in classes.iter().zip(&least).enumerate() {
        let item =
            |index| Open { extra: (relaxed(class, index) - least).max(0.0), price: class.item(index).price, index };
        let items: Vec<Open> = (0..class.len()).map(item).filter(|item| item.extra < room).collect();
        match items[..] {
            // Nothing open in a class: the picks are as good as the bound.
            [] => return picks,
            [only] => {
                (fixed_extra, fixed_price) = (fixed_extra + only.extra, fixed_price + only.price);
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
    search.descend(0, fixed_extra, fixed_price);
    let Some(found) = search.best else { return picks };
    for (class, index) in order.into_iter().zip(found) {
        better[class] = index;
    }
    // Prices were summed up in another order.
    let improves = price_of(classes, &better) <= limit && value_of(classes, &better) < value_of(classes, &picks);
    if improves { better } else { picks }
}
