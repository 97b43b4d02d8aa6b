//! The regression on compressed inputs and in an output metric, against the same in plain numbers.

use dalr::compress::{ActivationFunction, OutputMetric};
use dalr::covariance::PairedStats;
use dalr::{
    ActivationStats, Calibration, Compressed, Dalr, Error, Linear, LowRankCompressor, Rank, Ridge, Scalar, TruncatedSvd,
};
use faer::linalg::solvers::Solve;
use faer::{Col, Mat, Side};

use crate::common::stats;

/// A layer and the inputs of the same samples in two networks.
struct Case {
    weight: Mat<f64>,
    bias: Option<Col<f64>>,
    original: Mat<f64>,
    compressed: Mat<f64>,
    weights: Vec<f64>,
    metric: Option<Mat<f64>>,
}

fn noise(seed: usize, rows: usize, columns: usize) -> Mat<f64> {
    let mut state = seed as u64 * 2_654_435_761 + 88_172_645_463_325_252;
    Mat::from_fn(rows, columns, |_, _| {
        let mut sum = 0.0;
        for _ in 0..4 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            sum += (state >> 11) as f64 / (1_u64 << 53) as f64 - 0.5;
        }
        sum * 1.7
    })
}

impl Case {
    fn new(seed: usize, (m, n): (usize, usize), samples: usize) -> Self {
        let decay = Mat::from_fn(n, n, |i, j| if i == j { 0.8_f64.powi(i as i32) } else { 0.0 });
        let original = noise(seed, samples, n) * noise(seed + 1, n, n) * decay;
        let compressed = &original * faer::Scale(0.9) + noise(seed + 2, samples, n) * faer::Scale(0.2);
        let shifted = |inputs: Mat<f64>, by: f64| Mat::from_fn(samples, n, |i, j| inputs[(i, j)] + by * (j % 3) as f64);
        Self {
            weight: noise(seed + 3, m, n),
            bias: Some(noise(seed + 4, m, 1).col(0).to_owned()),
            original: shifted(original, 1.0),
            compressed: shifted(compressed, 0.7),
            weights: (0..samples).map(|i| 0.5 + (i % 4) as f64).collect(),
            metric: None,
        }
    }

    fn with_metric(mut self, seed: usize) -> Self {
        let m = self.weight.nrows();
        let root = noise(seed, m, m + 2);
        let decay = Mat::from_fn(m, m, |i, j| if i == j { 0.7_f64.powi(i as i32) } else { 0.0 });
        self.metric = Some(&decay * &root * root.transpose() * &decay + Mat::<f64>::identity(m, m) * faer::Scale(1e-2));
        self
    }

    fn layer<T: Scalar>(&self) -> Linear<T> {
        let bias = self.bias.as_ref().map(|bias| bias.iter().map(|&b| T::from_f64(b)).collect());
        Linear::new(cast(&self.weight), bias).unwrap()
    }

    fn paired<T: Scalar>(&self) -> PairedStats<T> {
        let mut stats = PairedStats::new(self.weight.ncols());
        let half = self.weights.len() / 2;
        let (original, compressed) = (cast::<T>(&self.original), cast::<T>(&self.compressed));
        let rows = |matrix: &Mat<T>, from, to| matrix.get(from..to, ..).to_owned();
        for (from, to) in [(0, half), (half, self.weights.len())] {
            let batch = (rows(&original, from, to), rows(&compressed, from, to));
            stats.update_weighted(batch.0.as_ref(), batch.1.as_ref(), &self.weights[from..to]).unwrap();
        }
        stats
    }

    fn output_metric(&self, floor: f64) -> Option<OutputMetric> {
        self.metric.as_ref().map(|metric| OutputMetric::new(metric.as_ref()).unwrap().with_floor(floor).unwrap())
    }

    /// `G`, the weights over their sum, and the inputs less their means.
    fn plain(&self) -> (Mat<f64>, Vec<f64>, Mat<f64>, Mat<f64>) {
        let m = self.weight.nrows();
        let total: f64 = self.weights.iter().sum();
        let weights: Vec<f64> = self.weights.iter().map(|weight| weight / total).collect();
        let centred = |inputs: &Mat<f64>| {
            let mean: Vec<f64> = (0..inputs.ncols())
                .map(|j| inputs.col(j).iter().zip(&weights).map(|(x, weight)| x * weight).sum())
                .collect();
            Mat::from_fn(inputs.nrows(), inputs.ncols(), |i, j| {
                if self.bias.is_some() { inputs[(i, j)] - mean[j] } else { inputs[(i, j)] }
            })
        };
        let metric = self.metric.clone().unwrap_or_else(|| Mat::identity(m, m));
        (metric, weights.clone(), centred(&self.original), centred(&self.compressed))
    }

    /// `Σ wᵢ ‖Lᵀ(W xᵢ − C x̂ᵢ)‖² + λ‖Lᵀ(W − C)‖²` of centred inputs.
    fn objective(&self, low: &Mat<f64>, lambda: f64) -> f64 {
        let (metric, weights, original, compressed) = self.plain();
        let residual = original * self.weight.transpose() - compressed * low.transpose();
        let weighted = &residual * &metric;
        let data: f64 =
            (0..residual.nrows()).map(|i| weights[i] * (residual.row(i) * weighted.row(i).transpose())).sum();
        let change = &self.weight - low;
        data + lambda * (metric * &change * change.transpose()).diagonal().column_vector().sum()
    }

    /// The relative ridge's `λ`.
    fn lambda(&self, ratio: f64) -> f64 {
        let (_, weights, _, compressed) = self.plain();
        let squares: f64 =
            (0..compressed.nrows()).map(|i| weights[i] * compressed.row(i).transpose().squared_norm_l2()).sum();
        ratio * squares / self.weight.ncols() as f64
    }

    /// Improves `up · down` by solving for each factor in turn.
    fn alternate(&self, mut up: Mat<f64>, lambda: f64, rounds: usize) -> f64 {
        let (metric, weights, original, compressed) = self.plain();
        let n = self.weight.ncols();
        let weighted = |inputs: &Mat<f64>| Mat::from_fn(inputs.nrows(), n, |i, j| inputs[(i, j)] * weights[i]);
        let ridge = Mat::<f64>::identity(n, n) * faer::Scale(lambda);
        let moment = compressed.transpose() * weighted(&compressed) + &ridge;
        let target = &self.weight * (original.transpose() * weighted(&compressed) + &ridge);
        let solve = |matrix: &Mat<f64>, right: &Mat<f64>| matrix.llt(Side::Lower).unwrap().solve(right);
        let regression = solve(&moment, &target.transpose().to_owned()).transpose().to_owned();
        let mut down = Mat::zeros(up.ncols(), n);
        for _ in 0..rounds {
            let seen = up.transpose() * &metric;
            down = solve(&(&seen * &up), &(&seen * &regression));
            let gram = &down * &moment * down.transpose();
            up = solve(&gram, &(&down * target.transpose())).transpose().to_owned();
        }
        self.objective(&(up * down), lambda)
    }
}

fn cast<T: Scalar>(matrix: &Mat<f64>) -> Mat<T> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| T::from_f64(matrix[(i, j)]))
}

fn weight_of<T: Scalar>(compressed: &Compressed<T>) -> Mat<f64> {
    let wide =
        |matrix: faer::MatRef<'_, T>| Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| matrix[(i, j)].to_f64());
    wide(compressed.layer().up()) * wide(compressed.layer().down())
}

fn cases() -> impl Iterator<Item = Case> {
    (0..12).map(|seed| {
        let shape = [(6, 8), (9, 5), (7, 7)][seed % 3];
        let mut case = Case::new(100 * seed, shape, [60, 6, 300][seed / 3 % 3]);
        if seed % 4 < 2 {
            case = case.with_metric(seed);
        }
        if seed % 5 == 0 {
            case.bias = None;
        }
        case
    })
}

#[test]
fn alternating_least_squares_never_finds_a_better_layer() {
    for (seed, case) in cases().enumerate() {
        let (stats, metric) = (case.paired::<f64>(), case.output_metric(0.0));
        let mut calibration = Calibration::from(&stats);
        if let Some(metric) = &metric {
            calibration = calibration.with_output_metric(metric);
        }
        for ratio in [0.1, 1e-3] {
            let decomposition =
                Dalr::new().with_ridge(Ridge::Relative(ratio)).decompose(&case.layer(), calibration, 5).unwrap();
            for rank in [1, 2, 4, 5] {
                let lambda = case.lambda(ratio);
                let found = case.objective(&weight_of(&decomposition.truncate(rank).unwrap()), lambda);
                for start in 0..3 {
                    let up = noise(1000 + 10 * seed + start, case.weight.nrows(), rank);
                    let alternated = case.alternate(up, lambda, 300);
                    assert!(found <= alternated * (1.0 + 1e-10), "{seed}, rank {rank}: {found} {alternated}");
                }
            }
        }
    }
}

#[test]
fn predicted_errors_are_those_of_the_outputs_and_of_the_metric() {
    for (seed, case) in cases().enumerate() {
        let (stats, metric) = (case.paired::<f64>(), case.output_metric(0.0));
        let mut calibration = Calibration::from(&stats);
        if let Some(metric) = &metric {
            calibration = calibration.with_output_metric(metric);
        }
        let decomposition = Dalr::new().decompose(&case.layer(), calibration, 4).unwrap();
        for rank in 1..=4 {
            let compressed = decomposition.truncate(rank).unwrap();
            let low = weight_of(&compressed);
            let (metric, weights, original, _) = case.plain();
            let mean: Vec<f64> =
                (0..low.ncols()).map(|j| original.col(j).iter().zip(&weights).map(|(x, w)| x * w).sum()).collect();
            let centred = Mat::from_fn(original.nrows(), low.ncols(), |i, j| original[(i, j)] - mean[j]);
            let outputs = centred * case.weight.transpose();
            let variance = |metric: &Mat<f64>| -> f64 {
                let seen = &outputs * metric;
                (0..outputs.nrows()).map(|i| weights[i] * (outputs.row(i) * seen.row(i).transpose())).sum()
            };
            let plain = Case {
                metric: None,
                weight: case.weight.clone(),
                bias: case.bias.clone(),
                original: case.original.clone(),
                compressed: case.compressed.clone(),
                weights: case.weights.clone(),
            };
            let identity = Mat::identity(case.weight.nrows(), case.weight.nrows());
            let expected = (plain.objective(&low, 0.0) / variance(&identity)).sqrt();
            let found = compressed.report().relative_error.unwrap();
            assert!((found - expected).abs() < 1e-9 * (1.0 + expected), "{seed}, rank {rank}: {found} {expected}");
            let evaluated = compressed.evaluate(&case.layer(), &stats).unwrap();
            assert!((evaluated - expected).abs() < 1e-9 * (1.0 + expected), "{seed}, {rank}: {evaluated} {expected}");
            let in_metric = compressed.report().metric_error;
            assert_eq!(in_metric.is_some(), case.metric.is_some());
            if let Some(found) = in_metric {
                let expected = (case.objective(&low, 0.0) / variance(&metric)).sqrt();
                assert!((found - expected).abs() < 1e-9 * (1.0 + expected), "{seed}, rank {rank}: {found} {expected}");
            }
        }
    }
}

fn agree<T: Scalar>(tolerance: f64) {
    for (seed, mut case) in cases().enumerate() {
        case.metric = None;
        case.compressed = case.original.clone();
        let (layer, paired) = (case.layer::<T>(), case.paired::<T>());
        let mut alone = ActivationStats::<T>::new(case.weight.ncols());
        alone.update_weighted(cast::<T>(&case.original).as_ref(), &case.weights).unwrap();
        let one = OutputMetric::diagonal(&vec![3.0; case.weight.nrows()]).unwrap();
        let full = OutputMetric::new(Mat::<f64>::identity(case.weight.nrows(), case.weight.nrows()).as_ref()).unwrap();
        let dalr = Dalr::new().with_ridge(Ridge::Relative(0.1));
        let expected = dalr.decompose(&layer, &alone, 3).unwrap();
        for calibration in [
            Calibration::from(&paired),
            Calibration::from(&alone).with_output_metric(&one),
            Calibration::from(&alone).with_output_metric(&full),
            Calibration::from(&paired).with_output_metric(&full),
        ] {
            let found = dalr.decompose(&layer, calibration, 3).unwrap();
            for rank in 1..=3 {
                let [found, expected] = [&found, &expected].map(|decomposition| decomposition.truncate(rank).unwrap());
                let difference = (weight_of(&found) - weight_of(&expected)).norm_l2();
                assert!(difference < tolerance * case.weight.norm_l2(), "{seed}, rank {rank}: {difference:e}");
                let errors = [found.report(), expected.report()].map(|report| report.relative_error.unwrap());
                assert!((errors[0] - errors[1]).abs() < tolerance, "{seed}, rank {rank}: {errors:?}");
                let biases =
                    [&found, &expected].map(|compressed| compressed.layer().bias().map(|bias| bias.to_owned()));
                if let [Some(found), Some(expected)] = biases {
                    let difference = (found - expected).iter().fold(0.0_f64, |max, x| max.max(x.to_f64().abs()));
                    assert!(difference < 10.0 * tolerance, "{seed}, rank {rank}: {difference:e}");
                }
            }
        }
    }
}

#[test]
fn equal_inputs_and_an_identity_metric_change_nothing() {
    agree::<f64>(1e-12);
    agree::<f32>(1e-5);
}

#[test]
fn the_scale_of_inputs_and_of_the_metric_does_not_matter() {
    for (seed, case) in cases().enumerate().filter(|(_, case)| case.metric.is_some()) {
        let solve = |case: &Case| {
            let (stats, metric) = (case.paired::<f64>(), case.output_metric(1e-3).unwrap());
            let calibration = Calibration::from(&stats).with_output_metric(&metric);
            Dalr::new().compress(&case.layer(), calibration, Rank::Fixed(3)).unwrap()
        };
        let expected = solve(&case);
        for (inputs, metric) in [(1e6, 1.0), (1e-6, 1.0), (1.0, 1e6), (1.0, 1e-6), (1e6, 1e-6)] {
            let scaled = |matrix: &Mat<f64>, factor: f64| matrix * faer::Scale(factor);
            let found = solve(&Case {
                weight: case.weight.clone(),
                bias: case.bias.clone(),
                original: scaled(&case.original, inputs),
                compressed: scaled(&case.compressed, inputs),
                weights: case.weights.clone(),
                metric: case.metric.as_ref().map(|matrix| scaled(matrix, metric)),
            });
            let difference = (weight_of(&found) - weight_of(&expected)).norm_max();
            assert!(difference < 1e-10, "{seed}, {inputs:e}, {metric:e}: {difference:e}");
            let errors = [&found, &expected].map(|compressed| compressed.report().metric_error.unwrap());
            assert!((errors[0] / errors[1] - 1.0).abs() < 1e-9, "{errors:?}");
        }
    }
}

#[test]
fn the_bias_is_jointly_optimal() {
    for case in cases().filter(|case| case.bias.is_some()) {
        let stats = case.paired::<f64>();
        let compressed = Dalr::new().compress(&case.layer(), &stats, Rank::Fixed(3)).unwrap();
        let outputs = case.layer::<f64>().forward(case.original.as_ref()).unwrap();
        let found = compressed.layer().forward(case.compressed.as_ref()).unwrap();
        for j in 0..outputs.ncols() {
            let residual = outputs.col(j) - found.col(j);
            let mean: f64 = residual.iter().zip(&case.weights).map(|(x, weight)| x * weight).sum();
            assert!(mean.abs() < 1e-10, "the mean residual of output {j} is {mean:e}");
        }
    }
}

/// In the metric, with the same ridge, never worse than the SVD of `LᵀW`.
#[test]
fn in_the_metric_dalr_is_never_worse_than_svd() {
    for (seed, case) in cases().enumerate() {
        let case = case.with_metric(50 + seed);
        let (layer, metric) = (case.layer::<f64>(), case.output_metric(1e-3).unwrap());
        let stats = stats(case.original.as_ref());
        let calibration = Calibration::from(&stats).with_output_metric(&metric);
        let svd = TruncatedSvd::new().with_bias_correction(case.bias.is_some());
        for ridge in [Ridge::None, Ridge::Relative(0.1), Ridge::Relative(10.0)] {
            let dalr = Dalr::new().with_ridge(ridge);
            for rank in 1..5 {
                let [ours, theirs] = [
                    dalr.compress(&layer, calibration, Rank::Fixed(rank)).unwrap(),
                    svd.compress(&layer, calibration, Rank::Fixed(rank)).unwrap(),
                ]
                .map(|compressed| compressed.report().metric_error.unwrap());
                assert!(ours <= theirs * (1.0 + 1e-9), "{seed}, {ridge:?}, rank {rank}: {ours} {theirs}");
            }
        }
    }
}

#[test]
fn paired_statistics_may_come_in_parts_in_any_order_and_form() {
    let case = Case::new(7, (6, 5), 400);
    let whole = case.paired::<f64>();
    let (original, compressed) = (&case.original, &case.compressed);
    let part = |from: usize, to: usize| {
        let mut stats = PairedStats::<f64>::new(5);
        let rows = |matrix: &Mat<f64>| matrix.get(from..to, ..).to_owned();
        stats.update_weighted(rows(original).as_ref(), rows(compressed).as_ref(), &case.weights[from..to]).unwrap();
        stats
    };
    for cuts in [[0, 3, 200, 400], [0, 150, 151, 400]] {
        let mut parts: Vec<_> = cuts.windows(2).map(|cut| part(cut[0], cut[1])).collect();
        parts.reverse();
        let mut merged = PairedStats::new(5);
        parts.iter().for_each(|part| merged.merge(part).unwrap());
        assert_eq!((merged.samples(), merged.features()), (400, 5));
        let pairs = [
            (merged.covariance(), whole.covariance()),
            (merged.cross_covariance(), whole.cross_covariance()),
            (merged.original_covariance(), whole.original_covariance()),
        ];
        for (found, expected) in pairs {
            assert!((found.unwrap() - expected.unwrap()).norm_max() < 1e-12);
        }
        assert!((merged.original_mean().unwrap() - whole.original_mean().unwrap()).norm_max() < 1e-12);
        assert!((merged.compressed_mean().unwrap() - whole.compressed_mean().unwrap()).norm_max() < 1e-12);
    }
}

/// Without the covariance of the original inputs, the layers are the same bits, and errors are
/// predicted only with it from elsewhere. Few samples stay samples, many become a covariance.
#[test]
fn the_original_covariance_can_be_left_out() {
    for (features, samples) in [(5, 12), (7, 400), (300, 1300)] {
        let case = Case::new(3, (6, features), samples);
        let (full, layer) = (case.paired::<f64>(), case.layer::<f64>());
        let mut slim = PairedStats::new(features).without_original_covariance();
        slim.update_weighted(case.original.as_ref(), case.compressed.as_ref(), &case.weights).unwrap();
        // What is forgotten later is what was never kept.
        let forgotten = full.clone().without_original_covariance();
        let solve = |calibration| Dalr::new().compress(&layer, calibration, Rank::Fixed(2)).unwrap();
        let expected = solve(Calibration::from(&full));
        let mut activations = ActivationStats::new(features);
        activations.update_weighted(case.original.as_ref(), &case.weights).unwrap();
        for stats in [&slim, &forgotten] {
            let found = solve(Calibration::from(stats));
            assert!((weight_of(&found) - weight_of(&expected)).norm_max() < 1e-11, "{features}");
            assert_eq!(found.report().relative_error, None);
            assert!(found.evaluate(&layer, stats).is_err() && stats.original_covariance().is_err());
            assert!((stats.cross_covariance().unwrap() - full.cross_covariance().unwrap()).norm_max() < 1e-12);
            let found = solve(Calibration::from(stats).with_original(&activations));
            let errors = [&found, &expected].map(|compressed| compressed.report().relative_error.unwrap());
            assert!((errors[0] - errors[1]).abs() < 1e-9, "{features}: {errors:?}");
            // Whichever comes first, the result keeps what both keep.
            for (mut first, second) in [(full.clone(), stats), ((*stats).clone(), &full)] {
                first.merge(second).unwrap();
                assert_eq!(first.samples(), 2 * samples as u64);
                assert!((first.covariance().unwrap() - full.covariance().unwrap()).norm_max() < 1e-10);
                assert!(first.original_covariance().is_err());
            }
        }
        let mut nothing = PairedStats::new(features);
        nothing.merge(&full).unwrap();
        nothing.merge(&PairedStats::new(features).without_original_covariance()).unwrap();
        assert!(nothing.original_covariance().is_ok());
    }
}

#[cfg(feature = "safetensors")]
#[test]
fn statistics_without_the_original_covariance_are_stored_and_smaller() {
    let case = Case::new(4, (6, 300), 1300);
    let full = case.paired::<f64>();
    let slim = full.clone().without_original_covariance();
    let bytes = slim.to_safetensors().unwrap();
    assert!((bytes.len() as f64) < 0.8 * full.to_safetensors().unwrap().len() as f64);
    let loaded = PairedStats::<f64>::from_safetensors(&bytes).unwrap();
    assert!(loaded.original_covariance().is_err());
    assert_eq!(loaded.covariance().unwrap(), slim.covariance().unwrap());
    assert_eq!(loaded.to_safetensors().unwrap(), bytes);
}

#[cfg(feature = "safetensors")]
#[test]
fn paired_statistics_are_stored_bit_for_bit() {
    for samples in [3, 400] {
        let stats = Case::new(7, (6, 5), samples).paired::<f32>();
        let bytes = stats.to_safetensors().unwrap();
        let copy = PairedStats::<f32>::from_safetensors(&bytes).unwrap();
        assert_eq!(copy.cross_covariance().unwrap(), stats.cross_covariance().unwrap());
        assert_eq!((copy.features(), copy.samples()), (5, stats.samples()));
        assert_eq!(copy.to_safetensors().unwrap(), bytes);
        let mut stream = Vec::new();
        stats.write_safetensors(&mut stream).unwrap();
        assert_eq!((stream.len() as u64, &stream), (stats.safetensors_length().unwrap(), &bytes));
        let read = PairedStats::<f32>::read_safetensors(bytes.len() as u64, stream.as_slice()).unwrap();
        assert_eq!(read.original_covariance().unwrap(), stats.original_covariance().unwrap());
        // They are not those of one network.
        assert!(ActivationStats::<f32>::from_safetensors(&bytes).is_err());
        let one = crate::common::stats(noise(1, 4, 4).as_ref()).to_safetensors().unwrap();
        assert!(PairedStats::<f64>::from_safetensors(&one).is_err());
    }
}

#[test]
fn means_that_dwarf_the_deviations_cost_no_digits() {
    let mut case = Case::new(9, (4, 5), 300);
    case.weights.fill(1.0);
    let exact = case.paired::<f64>();
    for sign in [1.0, -1.0] {
        // Powers of two, so that the shifted inputs are rounded in known places only.
        let shift =
            |inputs: &Mat<f64>, by: f64| Mat::from_fn(300, 5, |i, j| (inputs[(i, j)] * 1024.0).round() / 1024.0 + by);
        let rounded = Case {
            original: shift(&case.original, 0.0),
            compressed: shift(&case.compressed, 0.0),
            weight: case.weight.clone(),
            bias: None,
            weights: case.weights.clone(),
            metric: None,
        };
        let expected = rounded.paired::<f64>();
        let shifted = Case {
            original: shift(&case.original, 1048576.0),
            compressed: shift(&case.compressed, sign * 4194304.0),
            ..rounded
        };
        let found = shifted.paired::<f64>();
        for (found, expected) in [
            (found.cross_covariance(), expected.cross_covariance()),
            (found.covariance(), expected.covariance()),
            (found.original_covariance(), expected.original_covariance()),
        ] {
            let (found, expected) = (found.unwrap(), expected.unwrap());
            assert!((found - &expected).norm_max() < 1e-12 * expected.norm_max());
        }
    }
    assert!(exact.samples() == 300);
}

#[test]
fn bad_pairs_and_metrics_are_refused() {
    let mut stats = PairedStats::<f64>::new(3);
    let ones = |rows, columns| Mat::<f64>::ones(rows, columns);
    for (original, compressed) in [((4, 3), (5, 3)), ((4, 2), (4, 3)), ((4, 3), (4, 4))] {
        let found = stats.update(ones(original.0, original.1).as_ref(), ones(compressed.0, compressed.1).as_ref());
        assert!(matches!(found, Err(Error::Shape { .. })), "{found:?}");
    }
    let mut bad = ones(4, 3);
    bad[(2, 1)] = f64::NAN;
    let message = stats.update(ones(4, 3).as_ref(), bad.as_ref()).unwrap_err().to_string();
    assert!(message.contains("PairedStats::update") && message.contains("compressed batch"), "{message}");
    assert_eq!(stats.samples(), 0);

    let metric = |matrix: Mat<f64>| OutputMetric::new(matrix.as_ref());
    assert!(metric(Mat::zeros(2, 2)).is_err());
    assert!(metric(faer::mat![[1.0, 2.0], [0.0, 1.0]]).is_err());
    assert!(metric(faer::mat![[1.0, 2.0], [2.0, 1.0]]).is_err());
    assert!(metric(Mat::ones(2, 3)).is_err());
    assert!(metric(faer::mat![[f64::INFINITY, 0.0], [0.0, 1.0]]).is_err());
    // Singular: only a floor makes it definite.
    let singular = metric(Mat::ones(2, 2)).unwrap();
    assert!(singular.with_floor(0.0).is_err());
    for weights in [vec![], vec![0.0, 0.0], vec![1.0, -1.0], vec![1.0, f64::NAN]] {
        assert!(OutputMetric::diagonal(&weights).is_err(), "{weights:?}");
    }

    let case = Case::new(3, (4, 6), 5);
    let (layer, paired) = (case.layer::<f64>(), case.paired::<f64>());
    let wrong = OutputMetric::diagonal(&[1.0; 5]).unwrap();
    assert!(
        Dalr::new().compress(&layer, Calibration::from(&paired).with_output_metric(&wrong), Rank::Fixed(1)).is_err()
    );
    // Five samples of six inputs do not determine the regression.
    let message =
        Dalr::new().with_ridge(Ridge::None).compress(&layer, &paired, Rank::Fixed(1)).unwrap_err().to_string();
    assert!(message.contains("Ridge::Relative"), "{message}");
}

/// Against differences of the next layer's outputs.
#[test]
fn the_metric_of_the_next_layer_is_that_of_its_outputs() {
    let (m, next) = (5, 3);
    let outputs = noise(1, 200, m);
    let second = noise(2, next, m);
    let layer = Linear::new(second.clone(), None).unwrap();
    let step = 1e-5;
    for (activation, f) in [
        (ActivationFunction::Identity, (|y| y) as fn(f64) -> f64),
        (ActivationFunction::Relu, |y| y.max(0.0)),
        (ActivationFunction::Silu, |y| y / (1.0 + (-y).exp())),
        (ActivationFunction::Tanh, f64::tanh),
        (ActivationFunction::Gelu, |y| {
            // Φ by the trapezoidal rule.
            let (start, steps) = (-12.0, 20_000);
            let width = (y - start) / f64::from(steps);
            let density = |x: f64| (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let inner: f64 = (1..steps).map(|i| density(start + width * f64::from(i))).sum();
            y * width * (inner + (density(start) + density(y)) / 2.0)
        }),
    ] {
        let slopes = activation.slopes(outputs.as_ref()).unwrap();
        for (i, j) in [(0, 0), (7, 3), (150, 4)] {
            let y = outputs[(i, j)];
            let difference = (f(y + step) - f(y - step)) / (2.0 * step);
            assert!((slopes[(i, j)] - difference).abs() < 1e-5, "{activation:?} at {y}");
        }
        let metric = OutputMetric::from_next_layer(&layer, &stats(slopes.as_ref()), None).unwrap();
        let behind = OutputMetric::new((second.transpose() * &second).as_ref()).unwrap();
        let chained = OutputMetric::from_next_layer(
            &Linear::new(Mat::<f64>::identity(m, m), None).unwrap(),
            &stats(slopes.as_ref()),
            Some(&behind),
        )
        .unwrap();
        // An error of the outputs along `e` changes those of the next layer by W₂ (d ∘ e).
        let error = noise(3, m, 1);
        let mean: f64 = (0..200)
            .map(|i| (&second * Mat::from_fn(m, 1, |j, _| slopes[(i, j)] * error[(j, 0)])).squared_norm_l2() / 200.0)
            .sum();
        for metric in [&metric, &chained] {
            let rank_one = Linear::new(error.clone(), None).unwrap();
            let found = TruncatedSvd::new()
                .decompose(&rank_one, Calibration::none().with_output_metric(metric), 1)
                .unwrap()
                .total_energy();
            let floor = found / mean - 1.0;
            assert!((0.0..0.02).contains(&floor), "{activation:?}: {found} {mean}");
        }
    }
}
