//! Statistics and solves of single layers stay within the documented memory.

use dalr::convolution::{Conv2d, ConvOptions, PatchStats};
use dalr::{
    ActivationPruning, ActivationStats, Dalr, Linear, LowRankCompressor, Rank, Ridge, Scalar, Solver, TruncatedSvd,
    relative_output_error, select_ridge,
};
use faer::{Col, Mat};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::common::{cast, gaussian};
use crate::{MEMORY, peak};

/// Runs a test alone, after the matrix library has allocated its buffers.
fn alone(run: impl FnOnce() + Send) {
    crate::alone(|| {
        check_shape::<f32>(64, 48, 40, 1e9);
        check_shape::<f64>(64, 48, 40, 1e9);
        run();
    });
}

/// Checks the memory for a layer with few outputs or few inputs, and a few samples.
fn check_shape<T: Scalar>(m: usize, n: usize, samples: usize, most: f64) {
    let mut rng = StdRng::seed_from_u64(1);
    let weight = cast::<T>(gaussian(&mut rng, m, n).as_ref());
    let inputs = cast::<T>(gaussian(&mut rng, samples, n).as_ref());
    let layer = Linear::new(weight, Some(Col::zeros(m))).unwrap();
    let mut stats = ActivationStats::new(n);
    stats.update(inputs.as_ref()).unwrap();
    let rank = m.min(n) / 2;
    // The numbers are `f64`, whatever `T` is. A square matrix of the larger side would take a
    // thousand times as much.
    let involved = 8 * (m * n + samples * n + samples * m);
    let mut worst = 0.0_f64;
    let mut check = |what: &str, run: &dyn Fn()| {
        let ((), peak) = peak(run);
        worst = worst.max(peak as f64 / involved as f64);
        assert!(peak as f64 <= most * involved as f64, "{m} × {n}, {what}: {peak} bytes, {involved} involved");
    };
    let ridges = [Ridge::None, Ridge::Shrinkage, Ridge::Relative(0.1), Ridge::Paper(1.0), Ridge::Exact(1.0)];
    for ridge in ridges {
        check(&format!("{ridge:?}"), &|| {
            let decomposition = Dalr::new().with_ridge(ridge).decompose(&layer, &stats, rank).unwrap();
            decomposition.truncate(rank).unwrap().evaluate(&layer, &stats).unwrap();
        });
    }
    for correct in [false, true] {
        check("svd", &|| {
            let method = TruncatedSvd::new().with_bias_correction(correct).with_solver(Solver::DenseEigen);
            method.compress(&layer, &stats, Rank::Fixed(rank)).unwrap();
        });
    }
    check("pruning", &|| {
        ActivationPruning::mean().inputs(&layer, &stats, rank).unwrap();
    });
    check("select_ridge", &|| {
        select_ridge(&layer, &stats, &stats, Rank::Fixed(rank), &ridges).unwrap();
    });
    check("relative_output_error", &|| {
        relative_output_error(&layer, &layer, &stats).unwrap();
    });
    println!("{m} × {n}, {samples} samples of {} bytes: {worst:.1} times what is involved", size_of::<T>());
}

#[test]
fn memory_depends_on_the_short_side_of_a_weight() {
    // A square matrix of the larger side would have 3.2 · 10⁹ numbers, or 26 GB.
    alone(|| {
        for (m, n) in [(8, 57_000), (57_000, 8)] {
            check_shape::<f32>(m, n, 12, 4.0);
            check_shape::<f64>(m, n, 12, 4.0);
        }
    });
}

/// Checks that statistics take the documented memory for any number of samples, also during
/// updates.
fn check_growth<T: Scalar>(features: usize, batch: usize) {
    let mut rng = StdRng::seed_from_u64(2);
    let inputs: Mat<T> = cast(gaussian(&mut rng, batch, features).as_ref());
    // The scatter consists of blocks of 256 columns of the lower triangle: slightly more than half
    // of the square matrix.
    let scatter = 4 * features * (features + 256);
    let before = MEMORY.current_usage();
    let mut stats = ActivationStats::<T>::new(features);
    let held = || MEMORY.current_usage() - before;
    let mut bounded = None;
    MEMORY.reset_peak_usage();
    for _ in 0..8 * features / batch {
        stats.update(inputs.as_ref()).unwrap();
        if format!("{stats:?}").contains("covariance") {
            // The bound covers the scatter, a buffer of a quarter of its size, and some vectors.
            let bound = 5 * scatter / 4 + 100 * features;
            assert!(held() <= bound, "{} > {bound}", held());
            assert!(held() <= *bounded.get_or_insert(held()) + 4 * features * batch);
        }
    }
    let (peak, held) = (MEMORY.peak_usage() - before, held());
    println!("{features} inputs of {} bytes: {held} held, {peak} at the peak, {scatter} for a scatter", size_of::<T>());
    assert!(bounded.is_some());
    // The peak contains a buffer for samples of twice the scatter's memory, which can be twice too
    // large, its copy while it grows, and the scatter that replaces it.
    assert!(peak <= 8 * scatter, "{peak} > 8 · {scatter}");
}

#[test]
fn statistics_stop_growing() {
    alone(|| {
        check_growth::<f32>(512, 100);
        check_growth::<f32>(700, 300);
        check_growth::<f64>(300, 50);
    });
}

/// The limit holds for the memory that is really allocated.
#[test]
fn memory_limits_hold() {
    alone(|| {
        let mut rng = StdRng::seed_from_u64(3);
        let inputs = gaussian(&mut rng, 20, 200);
        let limit = 500_000;
        let before = MEMORY.current_usage();
        let mut stats = ActivationStats::new(200).with_memory_limit(limit);
        for _ in 0..60 {
            stats.update(inputs.as_ref()).unwrap();
            let held = MEMORY.current_usage() - before;
            // There are six numbers for each input, in addition to samples and scatter.
            assert!(held <= limit + 100 * 200, "{held} > {limit}");
        }
        // The memory is rejected before it is allocated.
        let wide = Mat::<f32>::zeros(2, 100_000);
        let mut stats = ActivationStats::new(100_000).with_memory_limit(limit);
        let (outcome, peak) = peak(|| stats.update(wide.as_ref()));
        // Only the error message is allocated.
        assert!(matches!(outcome, Err(dalr::Error::Memory { .. })) && peak < 1000, "{peak}: {outcome:?}");
    });
}

#[test]
fn convolutions_unfold_their_images_in_blocks() {
    alone(|| {
        // The images take 2 MB, and their patches 49 MB.
        let mut rng = StdRng::seed_from_u64(3);
        let weight: Mat<f32> = cast(gaussian(&mut rng, 8, 8 * 25).as_ref());
        let conv = Conv2d::new(weight, None, (5, 5), ConvOptions::new()).unwrap();
        let images: Mat<f32> = cast(gaussian(&mut rng, 4, 8 * 128 * 128).as_ref());
        let (image, block) = (4 * 8 * 128 * 128, 4 << 18);
        for fraction in [0.3, 1.0] {
            let mut inputs = PatchStats::new(&conv, fraction).unwrap();
            inputs.update(images.as_ref(), (128, 128)).unwrap();
            let ((), peak) = peak(|| inputs.update(images.as_ref(), (128, 128)).unwrap());
            // A block and its products, one image, the positions, and a second copy of statistics
            // of 200 inputs.
            let most = 4 * block + image + 8 * 4 * 124 * 124 + 3 * 10 * 200 * 200;
            assert!(peak < most, "{fraction}: {peak} bytes, expected {most}");
        }
        let (outputs, peak) = peak(|| conv.forward(images.as_ref(), (128, 128)).unwrap());
        let result = 4 * outputs.nrows() * outputs.ncols();
        // The matrix library packs the factors of a product.
        assert!(peak < result + 8 * block + image, "{peak} bytes, {result} in the result");
    });
}
