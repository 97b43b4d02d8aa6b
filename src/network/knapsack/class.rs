//! The items of one class that are worth a look, and their lower convex hull.

/// Something to pick.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Item {
    pub(crate) price: f64,
    pub(crate) value: f64,
    /// What the caller knows it by.
    pub(crate) tag: usize,
}

/// Items by ascending price and strictly descending value: no other is worth its price.
pub(crate) struct Class {
    items: Vec<Item>,
    /// The vertices of the lower convex hull.
    hull: Vec<usize>,
    /// What a unit of money buys between each vertex and the next; never ascending.
    slopes: Vec<f64>,
}

impl Class {
    /// `None` without an item that has a price and a value.
    pub(crate) fn new(mut items: Vec<Item>) -> Option<Self> {
        items.retain(|item| item.price.is_finite() && item.value.is_finite());
        let order = |a: &Item, b: &Item| a.price.total_cmp(&b.price).then(a.value.total_cmp(&b.value));
        if !items.is_sorted_by(|a, b| order(a, b).is_le()) {
            items.sort_by(order);
        }
        let mut least = f64::INFINITY;
        items.retain(|item| {
            let better = item.value < least;
            least = least.min(item.value);
            better
        });
        if items.is_empty() {
            return None;
        }
        let slope =
            |from: usize, to: usize| (items[from].value - items[to].value) / (items[to].price - items[from].price);
        let mut hull: Vec<usize> = Vec::new();
        for next in 0..items.len() {
            while let [.., before, last] = hull[..]
                && slope(before, last) <= slope(last, next)
            {
                hull.pop();
            }
            hull.push(next);
        }
        let mut slopes: Vec<f64> = hull.windows(2).map(|pair| slope(pair[0], pair[1])).collect();
        let mut least = f64::INFINITY;
        for slope in &mut slopes {
            least = slope.min(least);
            *slope = least;
        }
        Some(Self { items, hull, slopes })
    }

    pub(super) fn item(&self, index: usize) -> Item {
        self.items[index]
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// The item that minimises `value + λ price`, the cheapest of several.
    pub(super) fn at(&self, lambda: f64) -> usize {
        self.hull[self.slopes.partition_point(|&slope| slope > lambda)]
    }

    /// The vertex of the hull that follows an item, and what a unit of money buys on the way there.
    pub(super) fn next_vertex(&self, index: usize) -> Option<(usize, f64)> {
        let next = *self.hull.get(self.hull.partition_point(|&vertex| vertex <= index))?;
        Some((next, self.efficiency(index, next)))
    }

    /// The vertex of the hull before an item, and what a unit of money saved costs on the way there.
    pub(super) fn previous_vertex(&self, index: usize) -> Option<(usize, f64)> {
        let previous = self.hull[self.hull.partition_point(|&vertex| vertex < index).checked_sub(1)?];
        Some((previous, self.efficiency(previous, index)))
    }

    fn efficiency(&self, from: usize, to: usize) -> f64 {
        (self.items[from].value - self.items[to].value) / (self.items[to].price - self.items[from].price)
    }

    /// The best item that costs at most this much; the first if none does.
    pub(super) fn affordable(&self, price: f64) -> usize {
        self.items.partition_point(|item| item.price <= price).saturating_sub(1)
    }

    /// The largest slope: above it everything is too expensive.
    pub(super) fn steepest(&self) -> f64 {
        self.slopes.first().copied().unwrap_or(0.0)
    }
}
