//! The estimate for a memory limit is above the memory that a decomposition takes.

use dalr::network::Network;
use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Scalar, TruncatedSvd};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::common::{cast, gaussian};
use crate::{alone, peak};

fn measure<T: Scalar>((m, n): (usize, usize), samples: usize, rank: Option<usize>, counts: bool) {
    let mut rng = StdRng::seed_from_u64(1);
    let layer = Linear::<T>::new(cast(gaussian(&mut rng, m, n).as_ref()), None).unwrap();
    let mut stats = ActivationStats::<T>::new(n);
    stats.update(cast(gaussian(&mut rng, samples, n).as_ref()).as_ref()).unwrap();
    let methods: [&dyn LowRankCompressor<T>; 2] = [&Dalr::new(), &TruncatedSvd::new()];
    for (method, name) in methods.into_iter().zip(["dalr", "svd"]) {
        let network = || Network::new().with_layer("fc", &layer, &stats);
        let network = rank.map_or(network(), |rank| network().with_max_rank("fc", rank));
        let estimate = network.memory("fc").unwrap();
        let rank = rank.unwrap_or((m * n - 1) / (m + n));
        let (decomposition, taken) = peak(|| method.solve(&layer, (&stats).into(), rank));
        decomposition.unwrap();
        if !counts {
            continue;
        }
        let fraction = taken as f64 / estimate as f64;
        println!(
            "{m} × {n}, {samples} samples, rank {rank}, {} bytes, {name}: {taken} of {}, {fraction:.2}",
            size_of::<T>(),
            estimate
        );
        assert!(taken <= estimate, "{m} × {n}, {samples} samples, rank {rank}, {name}: {fraction}");
    }
}

/// The matrix library reserves twice the processor's last cache for each thread that multiplies. It
/// keeps that memory, so the first round, which reserves it, is not measured.
#[test]
fn estimates_are_from_above() {
    alone(|| {
        for counts in [false, true] {
            let sizes: &[usize] = if counts { &[150, 700, 2500] } else { &[150] };
            for &samples in sizes {
                for shape in [(300, 300), (200, 600), (600, 200), (40, 900), (900, 40)] {
                    for rank in [None, Some(8)] {
                        measure::<f32>(shape, samples, rank, counts);
                        measure::<f64>(shape, samples, rank, counts);
                    }
                }
            }
        }
    });
}
