//! Assigns layers to ranks.

use crate::model::Shape;

/// Returns the estimated cost of compressing a layer, in multiply–adds: products of the smaller
/// side of its weight with the covariance, and an eigendecomposition. Only ratios matter.
pub fn cost(shape: &Shape) -> f64 {
    let (side, inputs) = (shape.outputs.min(shape.inputs) as f64, shape.inputs as f64);
    side * inputs * inputs + 6.0 * side.powi(3)
}

/// Returns the rank for each layer, given their costs: longest processing time first, each layer to
/// the rank with the least load so far. The time is at most 4/3 of the best schedule's (Graham
/// 1969). Every rank computes the same schedule.
///
/// ```
/// // Both ranks have a load of 10: 7 + 2 + 1 and 5 + 5.
/// assert_eq!(dalr_mpi::schedule::assign(&[5.0, 1.0, 7.0, 2.0, 5.0], 2), [1, 0, 0, 0, 1]);
/// ```
pub fn assign(costs: &[f64], ranks: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..costs.len()).collect();
    order.sort_by(|&a, &b| costs[b].total_cmp(&costs[a]).then(a.cmp(&b)));
    let mut loads = vec![0.0_f64; ranks];
    let mut assigned = vec![0; costs.len()];
    for index in order {
        let least = (0..ranks).min_by(|&a, &b| loads[a].total_cmp(&loads[b])).unwrap_or(0);
        loads[least] += costs[index];
        assigned[index] = least;
    }
    assigned
}

#[cfg(test)]
mod tests {
    use super::{assign, cost};
    use crate::model::Shape;

    fn longest(costs: &[f64], assigned: &[usize], ranks: usize) -> f64 {
        let load = |rank| costs.iter().zip(assigned).filter(|(_, to)| **to == rank).map(|(cost, _)| cost).sum();
        (0..ranks).map(load).fold(0.0, f64::max)
    }

    /// The best schedule is found by trying all of them.
    #[test]
    fn no_schedule_exceeds_grahams_bound() {
        let (jobs, ranks) = (7, 3);
        let mut largest_ratio = 1.0_f64;
        for seed in 0..60 {
            let costs: Vec<f64> = (0..jobs).map(|i| f64::from(crate::random::uniform(seed, i)).abs() + 0.05).collect();
            let schedules = (0..3_usize.pow(jobs as u32)).map(|code| {
                let assigned: Vec<usize> = (0..jobs as u32).map(|job| code / 3_usize.pow(job) % 3).collect();
                longest(&costs, &assigned, ranks)
            });
            let best = schedules.fold(f64::INFINITY, f64::min);
            let ratio = longest(&costs, &assign(&costs, ranks), ranks) / best;
            assert!(ratio <= 4.0 / 3.0 - 1.0 / 9.0 + 1e-12, "{ratio}");
            largest_ratio = largest_ratio.max(ratio);
        }
        // Some schedules are not the best, so the bound was tested.
        assert!(largest_ratio > 1.0);
    }

    #[test]
    fn larger_layers_cost_more() {
        let cost = |outputs, inputs| cost(&Shape { name: String::new(), outputs, inputs });
        assert!(cost(512, 512) < cost(1024, 1024));
        assert!(cost(256, 512) < cost(512, 512));
        assert!(cost(512, 512) < cost(512, 1024));
    }
}
