//! Estimates the time of each part on many machines from measurements on this one.

use crate::measure::Measured;

/// Measured rates of one core, in multiply–adds or bytes per second.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Updates of statistics, `inputs²` multiply–adds for each sample.
    pub calibration: f64,
    /// Bytes of statistics through a sender, a receiver and a merge, without the network.
    pub merging: f64,
    /// Products with a block of vectors, in `f64`.
    pub products: f64,
    /// The part of the solve that every rank repeats: orthogonalisation and small decompositions.
    pub repeated: f64,
}

/// Machines and their network.
#[derive(Clone, Copy, Debug)]
pub struct Cluster {
    /// Number of machines, or of ranks.
    pub ranks: usize,
    /// Cores of each, as fast as the measured one.
    pub cores: f64,
    /// Number of ranks that share a core; 1 if each has its own.
    pub crowding: f64,
    /// Bytes per second into and out of each machine.
    pub bandwidth: f64,
    /// Seconds until a message arrives.
    pub latency: f64,
}

/// A solve over samples on all ranks.
#[derive(Clone, Copy, Debug)]
pub struct Solve {
    /// The smaller of inputs and outputs.
    pub dimension: f64,
    /// Samples on all ranks.
    pub samples: f64,
    /// Products with a block.
    pub steps: f64,
    /// Number of vectors multiplied.
    pub vectors: f64,
}

/// Time of a solve, by its parts.
#[derive(Clone, Copy, Debug)]
pub struct SolveTime {
    /// Products with samples, divided among the ranks.
    pub products: f64,
    /// Sums over all ranks.
    pub sums: f64,
    /// The part that every rank repeats.
    pub repeated: f64,
}

impl SolveTime {
    /// Returns the sum of all parts.
    pub fn total(&self) -> f64 {
        self.products + self.sums + self.repeated
    }
}

/// Returns the bytes of the lower block triangle of a scatter.
pub fn scatter_bytes(features: f64) -> f64 {
    4.0 * features * (features + 256.0)
}

/// Returns the number of rounds of a binomial tree, and of a sum by halving and doubling.
fn rounds(ranks: usize) -> f64 {
    f64::from(ranks.next_power_of_two().trailing_zeros())
}

impl Rates {
    /// Computes the rates from a job with one rank. The rate of merging comes from a job with two
    /// ranks.
    pub fn of(one: &Measured, two: &Measured) -> Self {
        let n = one.sizes.features as f64;
        let vectors = vectors_of(one);
        let repeated = (one.solve_seconds - one.outputs_seconds - one.product_seconds - one.sum_seconds).max(1e-9);
        Self {
            calibration: one.sizes.samples as f64 * n * n / one.calibrate_seconds,
            merging: two.statistics_bytes as f64 / two.reduce_seconds,
            products: 2.0 * n * one.sizes.solve_samples as f64 * vectors / one.product_seconds,
            repeated: repeated_macs(n, vectors) / repeated,
        }
    }
}

/// Returns the number of vectors that were multiplied. It follows from the bytes that were summed
/// over the ranks: 8 for each entry of a vector, plus some sums over the inputs.
pub fn vectors_of(measured: &Measured) -> f64 {
    let numbers = measured.solve_summed.first().copied().unwrap_or(0) as f64 / 8.0;
    (numbers / measured.sizes.features as f64 - 2.0).max(1.0).floor()
}

/// Returns the multiply–adds of orthogonalising a basis of `vectors` vectors twice.
fn repeated_macs(dimension: f64, vectors: f64) -> f64 {
    4.0 * dimension * vectors * vectors
}

/// Returns the seconds to update the statistics of all ranks with samples.
pub fn calibration(rates: &Rates, cluster: &Cluster, features: f64, samples: f64) -> f64 {
    samples * features * features * cluster.crowding / (rates.calibration * cluster.cores * cluster.ranks as f64)
}

/// Returns the seconds of a tree reduction. In every round, a scatter passes through the sender,
/// the network and the receiver. The pairs of a round work in parallel unless they share cores.
pub fn reduction(rates: &Rates, cluster: &Cluster, bytes: f64) -> f64 {
    let round = |pairs: f64| {
        let turns = if cluster.crowding > 1.0 || cluster.ranks as f64 > pairs * 2.0 {
            pairs.min(cluster.crowding)
        } else {
            1.0
        };
        bytes * (turns.max(1.0) / rates.merging + 1.0 / cluster.bandwidth) + cluster.latency
    };
    let mut left = cluster.ranks;
    let mut seconds = 0.0;
    while left > 1 {
        seconds += round((left / 2) as f64);
        left = left.div_ceil(2);
    }
    seconds
}

/// Returns the seconds of the iteration over samples on all ranks.
pub fn solve(rates: &Rates, cluster: &Cluster, problem: &Solve) -> SolveTime {
    let Solve { dimension, samples, steps, vectors } = *problem;
    let ranks = cluster.ranks as f64;
    let own = 2.0 * dimension * samples / ranks * vectors;
    // Halving and doubling sends each byte twice, except a rank's own part.
    let bytes = 2.0 * (ranks - 1.0) / ranks * 8.0 * dimension * vectors;
    // The agreement before each sum is one more message in each direction.
    let messages = 4.0 * rounds(cluster.ranks) * steps;
    SolveTime {
        products: own * cluster.crowding / (rates.products * cluster.cores),
        sums: bytes / cluster.bandwidth + messages * cluster.latency,
        repeated: repeated_macs(dimension, vectors) * cluster.crowding / (rates.repeated * cluster.cores),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Rates = Rates { calibration: 1e11, merging: 1e9, products: 1e10, repeated: 1e10 };

    fn cluster(ranks: usize) -> Cluster {
        Cluster { ranks, cores: 1.0, crowding: 1.0, bandwidth: 1e9, latency: 1e-5 }
    }

    #[test]
    fn one_rank_sends_nothing() {
        let problem = Solve { dimension: 1e3, samples: 1e4, steps: 20.0, vectors: 300.0 };
        assert_eq!(reduction(&RATES, &cluster(1), 1e9), 0.0);
        assert_eq!(solve(&RATES, &cluster(1), &problem).sums, 0.0);
    }

    #[test]
    fn calibration_is_divided_and_rounds_grow_with_the_logarithm() {
        let seconds = |ranks| calibration(&RATES, &cluster(ranks), 1e4, 1e6);
        assert!((seconds(1) / seconds(64) - 64.0).abs() < 1e-9);
        for (ranks, rounds) in [(2, 1.0), (3, 2.0), (8, 3.0), (512, 9.0)] {
            let expected = rounds * (2.0 + 1e-5);
            assert!((reduction(&RATES, &cluster(ranks), 1e9) / expected - 1.0).abs() < 1e-12, "{ranks}");
        }
    }

    /// The sums and the repeated part do not become faster, so more machines stop helping at some
    /// point.
    #[test]
    fn a_solve_stops_scaling() {
        let problem = Solve { dimension: 1e4, samples: 1e6, steps: 50.0, vectors: 1000.0 };
        let times: Vec<_> = (0..12).map(|power| solve(&RATES, &cluster(1 << power), &problem)).collect();
        assert!(times[0].products / times[11].products > 2000.0);
        assert!(times.windows(2).all(|pair| pair[0].sums < pair[1].sums && pair[0].repeated == pair[1].repeated));
        assert!(times[0].total() / times[3].total() > 7.0 && times[10].total() / times[11].total() < 1.25);
    }
}
