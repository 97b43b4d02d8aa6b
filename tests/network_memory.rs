//! The estimate that a memory limit goes by is above what decomposing takes. It has its own
//! process, since all allocations are counted.

mod common;

use common::gaussian;
use dalr::network::Network;
use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Scalar, TruncatedSvd};
use peak_alloc::PeakAlloc;
use rand::SeedableRng;
use rand::rngs::StdRng;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

fn measure<T: Scalar>((m, n): (usize, usize), samples: usize, rank: Option<usize>, counts: bool) {
    let mut rng = StdRng::seed_from_u64(1);
    let layer = Linear::<T>::new(common::cast(gaussian(&mut rng, m, n).as_ref()), None).unwrap();
    let mut stats = ActivationStats::<T>::new(n);
    stats.update(common::cast(gaussian(&mut rng, samples, n).as_ref()).as_ref()).unwrap();
    let methods: [&dyn LowRankCompressor<T>; 2] = [&Dalr::new(), &TruncatedSvd::new()];
    for (method, name) in methods.into_iter().zip(["dalr", "svd"]) {
        let network = || Network::new().with_layer("fc", &layer, &stats);
        let network = rank.map_or(network(), |rank| network().with_max_rank("fc", rank));
        let estimate = network.memory("fc").unwrap();
        let rank = rank.unwrap_or((m * n - 1) / (m + n));
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        drop(method.solve(&layer, (&stats).into(), rank).unwrap());
        let taken = MEMORY.peak_usage() - before;
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

/// On one thread: the matrix library reserves, for every thread that multiplies, twice the
/// processor's last cache, once and for good. That is done before anything is measured.
#[test]
fn estimates_are_from_above() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
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
