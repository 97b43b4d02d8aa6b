//! Which rank solves which layer.

/// A dense eigendecomposition of this dimension, in multiply–adds of a large product.
fn dense(dimension: f64) -> f64 {
    6.0 * dimension.powi(3) + 4000.0 * dimension.powi(2)
}

/// Multiply–adds of compressing a layer of `m` outputs and `n` inputs to rank `k` from its scatter, by the cost model of
/// `docs/mathematics.md` ("Choice"): forming the matrix and a dense solution of the smaller side, or block Lanczos if that is less.
pub fn cost(m: usize, n: usize, k: usize) -> f64 {
    let side = m.min(n);
    let (m, n, k, d) = (m as f64, n as f64, k as f64, side as f64);
    // With `m > n` the work moves to the inputs' side: a QR decomposition.
    let triangle = if m > n { 2.0 * m * n * n } else { 0.0 };
    let forming = d * n * n + d * d * n / 2.0;
    let block = (k / 4.0).clamp(8.0, 64.0);
    let basis = 3.0 * k + 2.0 * block + 48.0;
    let applying = 2.0 * d * n + n * n;
    let lanczos = (1.0 + 32.0 / block) * (basis * applying + 4.0 * d * basis * basis) + 3.0 * dense(basis);
    let iterated = if side >= 256 && basis < d { lanczos } else { f64::INFINITY };
    triangle + iterated.min(forming + dense(d))
}

/// The rank for each piece of work: longest processing time first, each to the rank that has least so far. At most 4/3 of the time of the
/// best schedule that there is (Graham 1969). Every rank comes to the same schedule.
///
/// ```
/// // 7 + 2 + 1, 5 + 5: as even as can be.
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

    fn longest(costs: &[f64], assigned: &[usize], ranks: usize) -> f64 {
        let load = |rank| costs.iter().zip(assigned).filter(|(_, to)| **to == rank).map(|(cost, _)| cost).sum();
        (0..ranks).map(load).fold(0.0, f64::max)
    }

    /// Against all schedules tried one by one.
    #[test]
    fn no_schedule_is_worse_than_grahams_bound() {
        let (jobs, ranks) = (7, 3);
        let mut largest_ratio = 1.0_f64;
        for seed in 0..60 {
            let costs: Vec<f64> = (0..jobs).map(|i| f64::from(crate::shard::uniform(seed, i)).abs() + 0.05).collect();
            let schedules = (0..3_usize.pow(jobs as u32)).map(|code| {
                let assigned: Vec<usize> = (0..jobs as u32).map(|job| code / 3_usize.pow(job) % 3).collect();
                longest(&costs, &assigned, ranks)
            });
            let best = schedules.fold(f64::INFINITY, f64::min);
            let ratio = longest(&costs, &assign(&costs, ranks), ranks) / best;
            assert!(ratio <= 4.0 / 3.0 - 1.0 / 9.0 + 1e-12, "{ratio}");
            largest_ratio = largest_ratio.max(ratio);
        }
        // It is not the best one every time, so the bound was put to the test.
        assert!(largest_ratio > 1.0);
    }

    #[test]
    fn larger_layers_cost_more() {
        assert!(cost(512, 512, 64) < cost(1024, 512, 64));
        assert!(cost(512, 512, 64) < cost(512, 1024, 64));
        assert!(cost(4096, 4096, 64) < cost(4096, 4096, 512));
        // Block Lanczos is what makes a small rank cheap.
        assert!(cost(4096, 4096, 64) < cost(4096, 4096, 2000) / 3.0);
    }
}
