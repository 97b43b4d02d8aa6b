//! For any layer, data and setting, the result is an error, or a layer with the error in its
//! report, which is no larger than that of truncated SVD.

use dalr::compress::OutputMetric;
use dalr::covariance::PairedStats;
use dalr::{
    ActivationPruning, ActivationStats, Calibration, Compressed, Dalr, Linear, LowRankCompressor, Rank, Ridge, Scalar,
    Solver, TruncatedSvd,
};
use faer::{Col, Mat, MatRef};
use rand::Rng;
use rand::rngs::StdRng;

use super::{SPECIAL, fuzz, magnitude, pick};
use crate::common::gaussian;

#[test]
fn compressors() {
    let failed = [
        // A strong ridge on statistics in covariance form, twice.
        457,
        1795408773424001293,
        // Residuals that were rescaled into the basis.
        1795410148475005486,
        // Outputs whose squares underflow; factors that do.
        1795427766321002422,
        1795428361532267293,
        // A ridge so large that rounding in single precision hides the data.
        1795428739823116709,
        // Original outputs whose squared variation underflows.
        1795681907193060445,
        // A regression that is tiny in single precision.
        1795686919727005610,
        1795686989226003019,
    ];
    fuzz("compressors", &failed, |rng| if rng.random() { case::<f32>(rng) } else { case::<f64>(rng) });
}

/// A layer and its inputs, rounded to `T`.
struct Data {
    weight: Mat<f64>,
    bias: Option<Vec<f64>>,
    inputs: Mat<f64>,
    weights: Vec<f64>,
}

impl Data {
    fn new<T: Scalar>(rng: &mut StdRng) -> Self {
        let most = if rng.random_ratio(1, 30) { 50 } else { 13 };
        let (m, n) = (rng.random_range(1..most), rng.random_range(1..most));
        let samples = rng.random_range(1..=4 * n);
        let weight = structured(rng, m, n) * faer::Scale(scale::<T>(rng));
        let mean = gaussian(rng, 1, n) * faer::Scale(pick(rng, &[0.0, 1.0, 1e3, 1e6]));
        let relu = rng.random_ratio(1, 3);
        let spread = structured(rng, samples, n);
        let size = scale::<T>(rng);
        let entry = |i: usize, j: usize| {
            let x = (spread[(i, j)] + mean[(0, j)]) * size;
            if relu { x.max(0.0) } else { x }
        };
        let inputs = Mat::from_fn(samples, n, entry);
        let bias = rng.random::<bool>().then(|| {
            let size = weight.norm_max() * inputs.norm_max() * pick(rng, &[0.0, 1.0, 1.0, 100.0]);
            (0..m).map(|_| rng.random_range(-1.0..1.0) * size).collect()
        });
        let weighted = rng.random_ratio(1, 3);
        let weights = (0..samples).map(|_| if weighted { magnitude(rng, -2.0..2.0) } else { 1.0 }).collect();
        let mut data = Self { weight, bias, inputs, weights };
        data.sprinkle(rng);
        let narrow = |x: f64| T::from_f64(x).to_f64();
        data.weight = Mat::from_fn(m, n, |i, j| narrow(data.weight[(i, j)]));
        data.inputs = Mat::from_fn(samples, n, |i, j| narrow(data.inputs[(i, j)]));
        data.bias.iter_mut().flatten().for_each(|b| *b = narrow(*b));
        data
    }

    /// Replaces some numbers by special ones, in a quarter of all cases.
    fn sprinkle(&mut self, rng: &mut StdRng) {
        if !rng.random_ratio(1, 4) {
            return;
        }
        let number = pick(rng, &SPECIAL);
        for _ in 0..rng.random_range(1..4) {
            match (rng.random_range(0..5), &mut self.bias) {
                (0 | 1, _) => {
                    let (i, j) = (rng.random_range(0..self.weight.nrows()), rng.random_range(0..self.weight.ncols()));
                    self.weight[(i, j)] = number;
                }
                (2 | 3, _) => {
                    let (i, j) = (rng.random_range(0..self.inputs.nrows()), rng.random_range(0..self.inputs.ncols()));
                    self.inputs[(i, j)] = number;
                }
                (_, Some(bias)) => {
                    let i = rng.random_range(0..bias.len());
                    bias[i] = number;
                }
                _ => {}
            }
        }
    }
}

fn scale<T>(rng: &mut StdRng) -> f64 {
    match rng.random_range(0..4) {
        0 | 1 => 1.0,
        2 => magnitude(rng, -5.0..5.0),
        _ if size_of::<T>() == 4 => magnitude(rng, -45.0..38.0),
        _ => magnitude(rng, -320.0..300.0),
    }
}

fn structured(rng: &mut StdRng, rows: usize, columns: usize) -> Mat<f64> {
    let noise = gaussian(rng, rows, columns);
    match rng.random_range(0..8) {
        0 => gaussian(rng, rows, 1) * gaussian(rng, 1, columns),
        1 => Mat::zeros(rows, columns),
        2 => Mat::identity(rows, columns),
        3 => Mat::from_fn(rows, columns, |i, j| noise[(i, j / 2)]),
        4 => Mat::from_fn(rows, columns, |i, j| noise[(i, j)] * 10_f64.powi(-(j as i32))),
        5 => Mat::full(rows, columns, 0.1),
        _ => noise,
    }
}

fn strength(rng: &mut StdRng) -> f64 {
    if rng.random_ratio(1, 8) { pick(rng, &SPECIAL) } else { magnitude(rng, -8.0..8.0) }
}

/// A method, as a list of settings.
#[derive(Clone, Copy, Debug)]
struct Method {
    ridge: Option<Ridge>,
    correct: Option<bool>,
    solver: Solver,
    multiple: usize,
}

impl Method {
    fn new(rng: &mut StdRng) -> Self {
        let ridge = match rng.random_range(0..8) {
            0 => None,
            1 | 2 => Some(Ridge::None),
            3 | 4 => Some(Ridge::Shrinkage),
            5 => Some(Ridge::Relative(strength(rng))),
            6 => Some(Ridge::Paper(strength(rng))),
            _ => Some(Ridge::Exact(strength(rng))),
        };
        let multiple = if rng.random_ratio(1, 8) { rng.random_range(0..5) } else { 1 };
        let solver = pick(rng, &[Solver::Auto, Solver::DenseEigen, Solver::BlockLanczos]);
        Self { ridge, correct: pick(rng, &[None, Some(true), Some(false)]), solver, multiple }
    }

    fn compressor<T: Scalar>(&self) -> Box<dyn LowRankCompressor<T>> {
        match (self.ridge, self.correct) {
            (None, correct) => Box::new(
                TruncatedSvd::new()
                    .with_bias_correction(correct.unwrap_or(false))
                    .with_solver(self.solver)
                    .with_rank_multiple(self.multiple),
            ),
            (Some(ridge), correct) => {
                let dalr = Dalr::new().with_ridge(ridge).with_solver(self.solver).with_rank_multiple(self.multiple);
                Box::new(correct.map_or(dalr.clone(), |correct| dalr.with_bias_correction(correct)))
            }
        }
    }

    fn corrects(&self, has_bias: bool) -> bool {
        let automatic = has_bias && matches!(self.ridge, Some(Ridge::None | Ridge::Shrinkage | Ridge::Relative(_)));
        self.correct.unwrap_or(automatic)
    }
}

fn rank(rng: &mut StdRng, full: usize) -> Rank {
    let fraction = if rng.random_ratio(1, 8) { pick(rng, &SPECIAL) } else { rng.random_range(0.0..1.0) };
    match rng.random_range(0..8) {
        0 => Rank::ParameterRatio(fraction),
        1 => Rank::Energy(fraction),
        2 => Rank::RelativeError(fraction),
        3 => Rank::Fixed(pick(rng, &[0, full, full + 1, usize::MAX])),
        _ => Rank::Fixed(rng.random_range(1..=full)),
    }
}

fn case<T: Scalar>(rng: &mut StdRng) {
    let data = Data::new::<T>(rng);
    let (m, n) = data.weight.shape();
    let cast = |matrix: &Mat<f64>| Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| T::from_f64(matrix[(i, j)]));
    let bias: Option<Col<T>> = data.bias.as_ref().map(|bias| bias.iter().map(|&b| T::from_f64(b)).collect());
    let finite = data.weight.is_all_finite() && data.bias.iter().flatten().all(|b| b.is_finite());
    let layer = Linear::new(cast(&data.weight), bias);
    assert_eq!(layer.is_ok(), finite);
    let mut stats = ActivationStats::<T>::new(n);
    let fed = stats.update_weighted(cast(&data.inputs).as_ref(), &data.weights);
    assert!(fed.is_err() || data.inputs.is_all_finite());
    let Ok(layer) = layer else { return };

    let method = Method::new(rng);
    let rank = rank(rng, m.min(n));
    let compressed = match rank {
        Rank::Fixed(rank) if rng.random() => {
            let solved = method.compressor().solve(&layer, (&stats).into(), rank);
            solved.and_then(|solved| {
                assert!(solved.energies().iter().all(|energy| energy.is_finite()));
                assert!(solved.energies().is_sorted_by(|a, b| a >= b), "{:?}", solved.energies());
                solved.truncate(rng.random_range(1..=rank))
            })
        }
        _ => method.compressor().compress_with(&layer, (&stats).into(), rank),
    };
    prune(rng, &layer, &stats, rank);
    regress(rng, &data, &layer, &method, rank);
    let Ok(compressed) = compressed else { return };

    let low = compressed.layer();
    let kept = low.rank();
    assert!((1..=m.min(n)).contains(&kept) && compressed.report().rank() == kept);
    assert_eq!((low.up().shape(), low.down().shape()), ((m, kept), (kept, n)));
    assert!(low.up().is_all_finite() && low.down().is_all_finite());
    assert!(low.bias().is_none_or(|bias| bias.is_all_finite()));
    let corrects = method.corrects(data.bias.is_some());
    assert_eq!(low.bias().is_some(), data.bias.is_some() || corrects);
    let Some(error) = compressed.report().relative_error() else {
        assert!(fed.is_err() && method.ridge.is_none());
        return;
    };
    assert!(error >= 0.0, "{error}");
    let Some(measured) = Measured::new(&data, &compressed, corrects) else { return };
    let context =
        || format!("{method:?} on {m} × {n}, {} samples, rank {kept}: {error:e}, {measured:?}", data.weights.len());

    if error.is_infinite() {
        // The original outputs do not vary.
        assert!(measured.total.powi(2) <= measured.rounding, "{}", context());
        return;
    }
    let (predicted, found) = (error * measured.total, measured.error);
    // The denominator is rounded as well.
    let slack = measured.rounding * (1.0 + error * error) + 2.0 * found * measured.storage + measured.storage.powi(2);
    assert!((predicted * predicted - found * found).abs() <= slack, "{}", context());

    let anchor = match (method.ridge, compressed.report().shrinkage) {
        (Some(Ridge::None), _) => 0.0,
        (Some(Ridge::Relative(ratio)), _) => ratio,
        (Some(Ridge::Shrinkage), Some(rho)) => rho / (1.0 - rho).max(2_f64.powi(-36)),
        _ => return,
    };
    let svd = TruncatedSvd::new().with_bias_correction(corrects);
    let Ok(svd) = svd.compress(&layer, &stats, Rank::Fixed(kept)) else { return };
    let Some(plain) = Measured::new(&data, &svd, corrects) else { return };
    let storage = measured.storage + plain.storage;
    let slack = measured.rounding + measured.norms * (1.0 + anchor) + 2.0 * plain.error * storage + storage.powi(2);
    assert!(found * found <= plain.error * plain.error + slack, "above {plain:?}: {}", context());
}

/// Errors recomputed from the factors, in units of the largest weight times the largest input.
#[derive(Debug)]
struct Measured {
    error: f64,
    /// The original outputs about their mean.
    total: f64,
    /// Bound on the rounding of a squared error in `f64`: `ε` times the terms that cancel.
    rounding: f64,
    /// `ε` times the product of the norms. A ridge can hide data below this size.
    norms: f64,
    /// Bound on the change of an error by storing the factors and the bias in `T`.
    storage: f64,
}

impl Measured {
    /// Measures a compressed layer; returns `None` if the units are out of range.
    fn new<T: Scalar>(data: &Data, compressed: &Compressed<T>, corrects: bool) -> Option<Self> {
        let (low, (m, n), samples) = (compressed.layer(), data.weight.shape(), data.weights.len());
        let unit =
            |size: f64| if size > 0.0 { 2_f64.powi((size.log2().floor() as i32).clamp(-1000, 1000)) } else { 1.0 };
        let (weight_unit, input_unit) = (unit(data.weight.norm_max()), unit(data.inputs.norm_max()));
        if !(1e-290..1e290).contains(&(weight_unit * input_unit)) {
            return None;
        }
        let weight = Mat::from_fn(m, n, |i, j| data.weight[(i, j)] / weight_unit);
        let inputs = Mat::from_fn(samples, n, |i, j| data.inputs[(i, j)] / input_unit);
        let wide = |part: MatRef<'_, T>, unit: f64| {
            Mat::from_fn(part.nrows(), part.ncols(), |i, j| part[(i, j)].to_f64() / unit)
        };
        let (up, down) = (wide(low.up(), 1.0), wide(low.down(), weight_unit));
        let difference = &weight - &up * &down;
        let bias = |i: usize| data.bias.as_ref().map_or(0.0, |bias| bias[i]) / weight_unit / input_unit;
        let low_bias = |i: usize| low.bias().map_or(0.0, |bias| bias[i].to_f64()) / weight_unit / input_unit;
        let share: Vec<f64> = data.weights.iter().map(|w| w / data.weights.iter().sum::<f64>()).collect();
        let mean: Vec<f64> = (0..n).map(|j| (0..samples).map(|i| share[i] * inputs[(i, j)]).sum()).collect();
        let centre = |j: usize| if corrects { mean[j] } else { 0.0 };

        let (mut error, mut total, mut terms, mut size) = (0.0, 0.0, 0.0, 0.0);
        for i in 0..samples {
            for o in 0..m {
                let sum = |term: &dyn Fn(usize) -> f64| (0..n).map(term).sum::<f64>();
                let lost = sum(&|j| difference[(o, j)] * inputs[(i, j)]) + bias(o) - low_bias(o);
                error += share[i] * lost * lost;
                total += share[i] * sum(&|j| weight[(o, j)] * (inputs[(i, j)] - mean[j])).powi(2);
                terms += share[i] * sum(&|j| (weight[(o, j)] * (inputs[(i, j)] - centre(j))).powi(2));
                let through = |j: usize| (0..low.rank()).map(|k| (up[(o, k)] * down[(k, j)]).abs()).sum::<f64>();
                let all = sum(&|j| (weight[(o, j)].abs() + through(j)) * inputs[(i, j)].abs());
                size += share[i] * (all + bias(o).abs() + low_bias(o).abs()).powi(2);
            }
        }
        let size = size.sqrt();
        let dimension = (m + n + low.rank()) as f64;
        // For subnormal numbers of `T`, the rounding error is absolute.
        let (epsilon, quantum) = if size_of::<T>() == 4 {
            (f64::from(f32::EPSILON), 2_f64.powi(-149))
        } else {
            (f64::EPSILON, 2_f64.powi(-1074))
        };
        let absolute = quantum / weight_unit.min(1.0) + quantum / (weight_unit * input_unit);
        let storage = 32.0 * dimension * (epsilon * size + absolute * (1.0 + down.norm_max()));
        // Inputs whose spread is some `ε` of their mean count as constant.
        let constant = 2_f64.powi(-84) * size * size;
        let spread: f64 =
            (0..samples).map(|i| share[i] * (0..n).map(|j| (inputs[(i, j)] - centre(j)).powi(2)).sum::<f64>()).sum();
        let norms = 100.0 * dimension * f64::EPSILON * weight.squared_norm_l2() * spread;
        let uncentred = if corrects { 0.0 } else { norms };
        let rounding = 100.0 * dimension * f64::EPSILON * terms + uncentred + constant;
        // Squares of tiny inputs are rounded to multiples of the smallest positive number.
        let grain = 64.0 * n as f64 * (f64::from_bits(1) / input_unit / input_unit) * weight.squared_norm_l2();
        // So are the squares of outputs that are tiny in these units.
        let below = (4 * m * samples) as f64 * f64::from_bits(1);
        let rounding = rounding + grain + below;
        // A bias can be too large for these units.
        (rounding.is_finite() && storage.is_finite()).then_some(())?;
        Some(Self { error: error.sqrt(), total: total.sqrt(), rounding, norms, storage })
    }
}

/// Other inputs, an output metric or both: an error, or a finite layer whose predicted error is the
/// one that is found.
fn regress<T: Scalar>(rng: &mut StdRng, data: &Data, layer: &Linear<T>, method: &Method, rank: Rank) {
    let (samples, n) = data.inputs.shape();
    let cast = |matrix: &Mat<f64>| Mat::from_fn(samples, n, |i, j| T::from_f64(matrix[(i, j)]));
    let noise = gaussian(rng, samples, n) * faer::Scale(data.inputs.norm_max() * pick(rng, &[0.0, 1e-6, 0.1, 1.0]));
    let (original, compressed) = (cast(&data.inputs), cast(&(&data.inputs + noise)));
    let mut paired = PairedStats::<T>::new(n);
    if paired.update_weighted(original.as_ref(), compressed.as_ref(), &data.weights).is_err() {
        assert_eq!(paired.samples(), 0);
        return;
    }
    let m = layer.out_features();
    let metric = match rng.random_range(0..4) {
        0 => None,
        1 => OutputMetric::diagonal(&(0..m).map(|_| magnitude(rng, -3.0..3.0)).collect::<Vec<_>>()).ok(),
        2 => OutputMetric::diagonal(&vec![pick(rng, &SPECIAL); m]).ok(),
        _ => {
            let root = structured(rng, m, m) * faer::Scale(scale::<f64>(rng));
            OutputMetric::new((&root * root.transpose()).as_ref()).ok()
        }
    };
    let mut calibration = Calibration::from(&paired);
    if let Some(metric) = &metric {
        calibration = calibration.with_output_metric(metric);
    }
    let Ok(compressed) = method.compressor().compress_with(layer, calibration, rank) else { return };
    let low = compressed.layer();
    assert!(low.up().is_all_finite() && low.down().is_all_finite());
    assert!(low.bias().is_none_or(|bias| bias.is_all_finite()));
    let (Some(error), in_metric) = (compressed.report().relative_error, compressed.report().metric_error) else {
        panic!("there are samples");
    };
    assert!(error >= 0.0 && in_metric.is_none_or(|error| error >= 0.0), "{error} {in_metric:?}");
    assert_eq!(in_metric.is_some(), metric.is_some());
}

/// Checks that pruning keeps the inputs or outputs that it reports, or returns an error.
fn prune<T: Scalar>(rng: &mut StdRng, layer: &Linear<T>, stats: &ActivationStats<T>, rank: Rank) {
    let method = if rng.random() { ActivationPruning::mean() } else { ActivationPruning::max() };
    if let Ok(pruned) = method.inputs(layer, stats, rank) {
        assert!(pruned.kept().is_sorted() && pruned.kept().iter().all(|&kept| kept < layer.in_features()));
        assert_eq!(pruned.weight().shape(), (layer.out_features(), pruned.kept().len()));
        assert!(pruned.weight().is_all_finite());
    }
}
