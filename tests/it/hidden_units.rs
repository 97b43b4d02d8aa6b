//! Hidden units: the refit against least squares by nalgebra, predicted errors against measured
//! ones, and the selection against plain loops.

use dalr::compress::{HiddenUnitSelection, HiddenUnits, OutputMetric, SelectedUnits};
use dalr::covariance::PairedStats;
use dalr::{ActivationStats, Calibration, Error, Linear, Ridge, Scalar, relative_output_error};
use faer::{Col, Mat, MatRef};
use nalgebra::DMatrix;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::common::{cast, gaussian, stats};

/// Two layers, and the hidden units between them: one row per sample, after a ReLU.
pub struct Hidden {
    pub first: Linear<f64>,
    pub second: Linear<f64>,
    pub units: Mat<f64>,
}

pub fn relu(matrix: &Mat<f64>) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| matrix[(i, j)].max(0.0))
}

impl Hidden {
    /// Creates `size` ReLU units of inputs with fewer dimensions.
    pub fn random(seed: u64, (size, outputs, samples): (usize, usize, usize)) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let dimensions = (2 * size).div_ceil(3);
        let bias = |rng: &mut StdRng, count| Some(gaussian(rng, count, 1).col(0).to_owned());
        let weight = gaussian(&mut rng, size, dimensions);
        let first = Linear::new(weight, bias(&mut rng, size)).unwrap();
        let second = Linear::new(gaussian(&mut rng, outputs, size), bias(&mut rng, outputs)).unwrap();
        let inputs = gaussian(&mut rng, samples, dimensions);
        let units = relu(&first.forward(inputs.as_ref()).unwrap());
        Self { first, second, units }
    }

    pub fn without_bias(self) -> Self {
        Self { second: Linear::new(self.second.weight().to_owned(), None).unwrap(), ..self }
    }

    pub fn stats(&self) -> ActivationStats<f64> {
        stats(self.units.as_ref())
    }

    /// The units as a partly compressed network might have them.
    fn compressed(&self, seed: u64) -> Mat<f64> {
        let noise = gaussian(&mut StdRng::seed_from_u64(seed), self.units.nrows(), self.units.ncols());
        relu(&(&self.units + noise * faer::Scale(0.3)))
    }

    fn paired(&self, compressed: &Mat<f64>) -> PairedStats<f64> {
        let mut paired = PairedStats::new(self.units.ncols());
        paired.update(self.units.as_ref(), compressed.as_ref()).unwrap();
        paired
    }

    /// Returns the squared error of the second layer's outputs and of the original outputs about
    /// their mean, in the metric with this diagonal, by running the layers on all samples.
    fn measured(&self, smaller: &SelectedUnits<f64>, units: &Mat<f64>, metric: &[f64]) -> f64 {
        let kept = columns(units, &smaller.kept);
        let original = self.second.forward(self.units.as_ref()).unwrap();
        let difference = &original - smaller.second.forward(kept.as_ref()).unwrap();
        let weighed = |matrix: &Mat<f64>| -> f64 {
            let norms = matrix.col_iter().zip(metric);
            norms.map(|(column, weight)| weight * column.squared_norm_l2()).sum()
        };
        (weighed(&difference) / weighed(&centred(&original))).sqrt()
    }
}

pub fn columns(matrix: &Mat<f64>, kept: &[usize]) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), kept.len(), |i, j| matrix[(i, kept[j])])
}

pub fn centred(matrix: &Mat<f64>) -> Mat<f64> {
    let mean: Vec<f64> = matrix.col_iter().map(|column| column.sum() / matrix.nrows() as f64).collect();
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| matrix[(i, j)] - mean[j])
}

fn with_ridge(ridge: Ridge) -> HiddenUnitSelection {
    HiddenUnitSelection::new().with_ridge(ridge)
}

const RIDGES: [Ridge; 6] = [
    Ridge::None,
    Ridge::Shrinkage,
    Ridge::Relative(1e-6),
    Ridge::Relative(0.1),
    Ridge::Relative(10.0),
    Ridge::Relative(1e6),
];

/// The minimiser of the mean `‖W x − C x̂_P‖² + λ‖W − C‖²`, outputs × kept, by a QR factorization
/// of the samples with rows for the ridge below them. `x` and `x̂` are samples in rows.
pub fn least_squares(
    weight: MatRef<'_, f64>,
    (x, compressed): (&Mat<f64>, &Mat<f64>),
    kept: &[usize],
    lambda: f64,
) -> Mat<f64> {
    let (samples, k, m) = (x.nrows(), kept.len(), weight.nrows());
    let root = (samples as f64).sqrt();
    let outputs = x * weight.transpose();
    let ridge = lambda.sqrt();
    let left = DMatrix::from_fn(samples + k, k, |i, j| match i.checked_sub(samples) {
        None => compressed[(i, kept[j])] / root,
        Some(row) => {
            if row == j {
                ridge
            } else {
                0.0
            }
        }
    });
    let right = DMatrix::from_fn(samples + k, m, |i, j| match i.checked_sub(samples) {
        None => outputs[(i, j)] / root,
        Some(row) => ridge * weight[(j, kept[row])],
    });
    let qr = left.qr();
    let solution = qr.r().solve_upper_triangular(&(qr.q().transpose() * right)).unwrap();
    Mat::from_fn(m, k, |i, j| solution[(j, i)])
}

/// `λ` of a relative ridge, for samples in rows that are centred already.
pub fn lambda(ratio: f64, units: &Mat<f64>) -> f64 {
    ratio * units.squared_norm_l2() / (units.nrows() * units.ncols()) as f64
}

#[test]
fn all_units_kept_change_nothing() {
    fn check<T: Scalar>(case: &Hidden) {
        let layer = |layer: &Linear<f64>| {
            let bias = layer.bias().map(|bias| bias.iter().map(|&b| T::from_f64(b)).collect());
            Linear::<T>::new(cast(layer.weight()), bias).unwrap()
        };
        let (first, second) = (layer(&case.first), layer(&case.second));
        let hidden = stats(cast::<T>(case.units.as_ref()).as_ref());
        let metric = OutputMetric::diagonal(&[1.0, 2.0, 0.5, 4.0, 1.0]).unwrap();
        for ridge in RIDGES {
            for calibration in [Calibration::from(&hidden), Calibration::from(&hidden).with_output_metric(&metric)] {
                let units = with_ridge(ridge).solve(&first, &second, calibration).unwrap();
                let all = units.select(12).unwrap();
                assert_eq!(all.kept, (0..12).collect::<Vec<_>>());
                assert_eq!((&all.first, &all.second), (&first, &second), "{ridge:?}");
                assert_eq!(all.relative_error, Some(0.0));
            }
        }
    }
    for seed in 0..3 {
        let mut case = Hidden::random(seed, (12, 5, 60));
        // A unit that is always zero, and one that repeats another.
        case.units.col_mut(3).fill(0.0);
        let copy = case.units.col(1).to_owned();
        case.units.col_mut(7).copy_from(&copy);
        check::<f64>(&case);
        check::<f32>(&case);
        check::<f64>(&case.without_bias());
    }
}

#[test]
fn paired_units_that_are_equal_change_nothing_but_rounding() {
    let case = Hidden::random(1, (12, 5, 60));
    let paired = case.paired(&case.units);
    for ridge in [Ridge::Relative(1e-6), Ridge::Relative(0.1), Ridge::Relative(10.0)] {
        let all = with_ridge(ridge).solve(&case.first, &case.second, &paired).unwrap().select(12).unwrap();
        assert!((all.second.weight() - case.second.weight()).norm_max() < 1e-9, "{ridge:?}");
        let some = with_ridge(ridge).solve(&case.first, &case.second, &paired).unwrap().select(5).unwrap();
        let plain = with_ridge(ridge).solve(&case.first, &case.second, &case.stats()).unwrap().select(5).unwrap();
        assert_eq!(some.kept, plain.kept);
        assert!((some.second.weight() - plain.second.weight()).norm_max() < 1e-9, "{ridge:?}");
    }
}

#[test]
fn the_refit_is_least_squares() {
    for seed in 0..4 {
        for bias in [true, false] {
            let case = Hidden::random(seed, (14, 6, 80));
            let case = if bias { case } else { case.without_bias() };
            let compressed = case.compressed(seed);
            let paired = case.paired(&compressed);
            let about = |units: &Mat<f64>| if bias { centred(units) } else { units.clone() };
            for (ratio, is_paired) in [(0.0, false), (0.1, false), (0.1, true), (3.0, true)] {
                let seen = if is_paired { &compressed } else { &case.units };
                let stats = case.stats();
                let calibration = if is_paired { Calibration::from(&paired) } else { Calibration::from(&stats) };
                let units = with_ridge(Ridge::Relative(ratio)).solve(&case.first, &case.second, calibration).unwrap();
                let (x, y) = (about(&case.units), about(seen));
                for k in [1, 4, 9, 13] {
                    let smaller = units.select(k).unwrap();
                    let weight = case.second.weight();
                    let expected = least_squares(weight, (&x, &y), &smaller.kept, lambda(ratio, &y));
                    let difference = (smaller.second.weight() - &expected).norm_max();
                    assert!(difference < 1e-9 * expected.norm_max(), "{seed}, {bias}, {ratio}, {k}: {difference:e}");
                    // The rows of the first layer are those of the kept units.
                    for (row, &unit) in smaller.kept.iter().enumerate() {
                        assert_eq!(smaller.first.weight().row(row), case.first.weight().row(unit));
                    }
                    assert!(smaller.kept.is_sorted() && smaller.kept.len() == k);
                    let Some(found) = smaller.second.bias() else {
                        assert!(!bias);
                        continue;
                    };
                    // The outputs have the original mean.
                    let mean = |outputs: Mat<f64>| (Mat::<f64>::ones(1, outputs.nrows()) * outputs).row(0).to_owned();
                    let original = mean(case.second.forward(case.units.as_ref()).unwrap());
                    let new = mean(smaller.second.forward(columns(seen, &smaller.kept).as_ref()).unwrap());
                    assert!((original - new).norm_max() < 1e-9 * case.units.nrows() as f64, "{found:?}");
                }
            }
        }
    }
}

#[test]
fn no_small_change_of_the_refit_is_better() {
    let case = Hidden::random(9, (10, 4, 50));
    let smaller = with_ridge(Ridge::None).solve(&case.first, &case.second, &case.stats()).unwrap().select(4).unwrap();
    let ones = [1.0; 4];
    let best = case.measured(&smaller, &case.units, &ones);
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..50 {
        let mut changed = smaller.clone();
        let weight = smaller.second.weight() + gaussian(&mut rng, 4, 4) * faer::Scale(1e-3);
        let bias: Col<f64> = smaller.second.bias().unwrap() + gaussian(&mut rng, 4, 1).col(0) * faer::Scale(1e-3);
        changed.second = Linear::new(weight, Some(bias)).unwrap();
        assert!(case.measured(&changed, &case.units, &ones) > best);
    }
}

#[test]
fn predicted_errors_are_measured_ones() {
    let weights = [1.0, 0.2, 3.0, 0.5, 2.0];
    let metric = OutputMetric::diagonal(&weights).unwrap().with_floor(0.0).unwrap();
    for seed in 0..3 {
        for bias in [true, false] {
            let case = Hidden::random(seed, (12, 5, 70));
            let case = if bias { case } else { case.without_bias() };
            let compressed = case.compressed(seed);
            let (stats, paired) = (case.stats(), case.paired(&compressed));
            let both = Calibration::from(&paired).with_original(&stats);
            for (calibration, seen) in [
                (Calibration::from(&stats), &case.units),
                (Calibration::from(&paired), &compressed),
                (both, &compressed),
            ] {
                for ridge in RIDGES.into_iter().filter(|&ridge| ridge != Ridge::None || calibration.paired().is_none())
                {
                    let options = with_ridge(ridge);
                    let weighed = calibration.with_output_metric(&metric);
                    let units = options.solve(&case.first, &case.second, weighed).unwrap();
                    let plain = options.solve(&case.first, &case.second, calibration).unwrap();
                    for k in 1..=12 {
                        let smaller = units.select(k).unwrap();
                        let close = |predicted: Option<f64>, measured: f64| {
                            let predicted = predicted.unwrap();
                            assert!((predicted - measured).abs() < 1e-6, "{ridge:?}, {k}: {predicted} {measured}");
                        };
                        close(smaller.relative_error, case.measured(&smaller, seen, &[1.0; 5]));
                        close(smaller.metric_error, case.measured(&smaller, seen, &weights));
                        assert_eq!(units.metric_error(k), smaller.metric_error);
                        close(plain.relative_error(k), case.measured(&plain.select(k).unwrap(), seen, &[1.0; 5]));
                    }
                    assert_eq!(plain.metric_error(3), None);
                }
            }
        }
    }
}

/// The greedy selection as plain loops, for the regularized moment `M` and `T`.
fn plain_selection(mut residual: Mat<f64>, mut outputs: Mat<f64>, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = Vec::new();
    for _ in 0..count {
        let gain = |unit: usize| outputs.col(unit).squared_norm_l2() / residual[(unit, unit)];
        let open = (0..residual.nrows()).filter(|unit| !order.contains(unit));
        let best = open.max_by(|&a, &b| gain(a).total_cmp(&gain(b))).unwrap();
        let (column, moved) = (residual.col(best).to_owned(), outputs.col(best).to_owned());
        let pivot = column[best];
        residual -= column.as_mat() * column.transpose().as_mat() * faer::Scale(1.0 / pivot);
        outputs -= moved.as_mat() * column.transpose().as_mat() * faer::Scale(1.0 / pivot);
        order.push(best);
    }
    order
}

/// More units than the panels and the fetched columns of the code hold.
#[test]
fn the_selection_is_that_of_plain_loops() {
    for (size, outputs, samples, ratio) in [(300, 40, 500, 0.01), (150, 200, 400, 0.0), (100, 3, 250, 1.0)] {
        let case = Hidden::random(size as u64, (size, outputs, samples));
        let units = centred(&case.units);
        let mut moment = units.transpose() * &units * faer::Scale(1.0 / samples as f64);
        let lambda = lambda(ratio, &units);
        moment.as_mut().diagonal_mut().column_vector_mut().iter_mut().for_each(|x| *x += lambda);
        let expected = plain_selection(moment.clone(), case.second.weight() * &moment, size - 1);
        let options = with_ridge(Ridge::Relative(ratio));
        for threads in [1, 2] {
            let options = options.clone().with_threads(threads);
            let found = options.solve(&case.first, &case.second, &case.stats()).unwrap();
            assert_eq!(found.order().len(), size);
            assert_eq!(&found.order()[..size - 1], expected);
            // Fewer units are the first ones of the same order.
            let few = options.with_max_units(70).solve(&case.first, &case.second, &case.stats()).unwrap();
            assert_eq!(few.order(), &expected[..70]);
            assert_eq!((few.relative_error(70).is_some(), few.relative_error(71)), (true, None));
            assert!(few.select(71).is_err());
            assert_eq!(few.select(33).unwrap().kept, found.select(33).unwrap().kept);
        }
    }
}

#[test]
fn the_metric_chooses_the_units() {
    let case = Hidden::random(5, (30, 6, 100));
    let root = gaussian(&mut StdRng::seed_from_u64(2), 6, 9);
    let matrix = &root * root.transpose();
    let metric = OutputMetric::new(matrix.as_ref()).unwrap().with_floor(0.0).unwrap();
    let units = centred(&case.units);
    let moment = units.transpose() * &units * faer::Scale(1.0 / 100.0);
    let factor = matrix.llt(faer::Side::Lower).unwrap().L().transpose() * case.second.weight();
    let expected = plain_selection(moment.clone(), factor * &moment, 12);
    let stats = case.stats();
    let weighed = Calibration::from(&stats).with_output_metric(&metric);
    let found = with_ridge(Ridge::None).solve(&case.first, &case.second, weighed).unwrap();
    assert_eq!(&found.order()[..12], expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Units that are always zero, constant, or copies of others are selected last.
    #[test]
    fn units_without_information_cost_nothing(seed in 0_u64..1000, distinct in 2_usize..20, bare: bool) {
        let mut rng = StdRng::seed_from_u64(seed);
        let base = Hidden::random(seed, (distinct, 4, 3 * distinct + 20));
        let size = 2 * distinct + 3;
        // The distinct units, a copy of each at another scale, two dead ones and a constant.
        let constant = if bare { 0.0 } else { 7.3 };
        let units = Mat::from_fn(base.units.nrows(), size, |i, j| match j {
            j if j < distinct => base.units[(i, j)],
            j if j < 2 * distinct => 3.0 * base.units[(i, j - distinct)],
            j if j == 2 * distinct => constant,
            _ => 0.0,
        });
        let first = Linear::new(gaussian(&mut rng, size, 3), None).unwrap();
        let bias = (!bare).then(|| gaussian(&mut rng, 4, 1).col(0).to_owned());
        let second = Linear::new(gaussian(&mut rng, 4, size), bias).unwrap();
        let found = with_ridge(Ridge::None).solve(&first, &second, &stats(units.as_ref())).unwrap();
        let informative = (0..distinct).filter(|&j| base.units.col(j).norm_max() > 0.0).count();
        prop_assert_eq!(found.order().len(), informative);
        prop_assert!(found.order().iter().all(|&unit| unit < 2 * distinct));
        for k in informative.max(1)..=size {
            prop_assert!(found.relative_error(k).unwrap() < 1e-6);
            let smaller = found.select(k).unwrap();
            prop_assert_eq!(smaller.kept.len(), k);
            let spread = Mat::from_fn(4, size, |i, j| {
                smaller.kept.binary_search(&j).map_or(0.0, |place| smaller.second.weight()[(i, place)])
            });
            let replacement = Linear::new(spread, smaller.second.bias().map(|bias| bias.to_owned())).unwrap();
            let error = relative_output_error(&second, &replacement, &stats(units.as_ref())).unwrap();
            prop_assert!(error < 1e-7, "{}: {}", k, error);
        }
    }
}

#[test]
fn units_that_never_vary_leave_the_mean() {
    let first = Linear::new(Mat::<f64>::ones(3, 2), None).unwrap();
    let second = Linear::new(faer::mat![[1.0, 2.0, 3.0]], Some(faer::col![0.5])).unwrap();
    let hidden = stats(Mat::from_fn(20, 3, |_, j| j as f64 + 0.1).as_ref());
    let found = HiddenUnits::new(&first, &second, &hidden).unwrap();
    assert_eq!((found.order().len(), found.relative_error(1)), (0, Some(0.0)));
    let smaller = found.select(1).unwrap();
    let outputs = smaller.second.forward(faer::mat![[0.1]].as_ref()).unwrap();
    assert!((outputs[(0, 0)] - (0.5 + 0.1 + 2.2 + 6.3)).abs() < 1e-12);
}

#[test]
fn a_gate_loses_the_same_rows() {
    let mut rng = StdRng::seed_from_u64(4);
    let (gate, up) = (gaussian(&mut rng, 16, 6), gaussian(&mut rng, 16, 6));
    let second = Linear::new(gaussian(&mut rng, 5, 16), None).unwrap();
    let inputs = gaussian(&mut rng, 90, 6);
    let product = |gate: &Linear<f64>, up: &Linear<f64>| {
        let (gated, linear) = (gate.forward(inputs.as_ref()).unwrap(), up.forward(inputs.as_ref()).unwrap());
        Mat::from_fn(90, gated.ncols(), |i, j| gated[(i, j)].max(0.0) * linear[(i, j)])
    };
    let (gate, up) = (Linear::new(gate, None).unwrap(), Linear::new(up, None).unwrap());
    let hidden = product(&gate, &up);
    let units = HiddenUnits::gated(&gate, &up, &second, &stats(hidden.as_ref())).unwrap();
    let smaller = units.select(11).unwrap();
    let outputs = second.forward(hidden.as_ref()).unwrap();
    let kept = product(smaller.gate.as_ref().unwrap(), &smaller.first);
    let error = (&outputs - smaller.second.forward(kept.as_ref()).unwrap()).norm_l2() / centred(&outputs).norm_l2();
    assert!((error - smaller.relative_error.unwrap()).abs() < 1e-9);
    let plain = HiddenUnits::new(&up, &second, &stats(hidden.as_ref())).unwrap().select(11).unwrap();
    assert_eq!((plain.kept, plain.second, plain.gate), (smaller.kept, smaller.second, None));
}

#[test]
fn single_precision_is_as_good_as_its_numbers() {
    let case = Hidden::random(6, (40, 8, 120));
    let layer = |layer: &Linear<f64>| {
        let bias = layer.bias().map(|bias| bias.iter().map(|&b| b as f32).collect());
        Linear::new(cast::<f32>(layer.weight()), bias).unwrap()
    };
    let narrow = stats(cast::<f32>(case.units.as_ref()).as_ref());
    let found = HiddenUnits::new(&layer(&case.first), &layer(&case.second), &narrow).unwrap();
    let wide = HiddenUnits::new(&case.first, &case.second, &case.stats()).unwrap();
    for k in [1, 10, 30] {
        let (a, b) = (found.select(k).unwrap(), wide.select(k).unwrap());
        assert_eq!(a.kept, b.kept);
        let difference = (cast::<f64>(b.second.weight()) - widened(a.second.weight())).norm_max();
        assert!(difference < 1e-4 * b.second.weight().norm_max(), "{difference}");
        assert!((a.relative_error.unwrap() - b.relative_error.unwrap()).abs() < 1e-5);
    }
}

fn widened(matrix: MatRef<'_, f32>) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| f64::from(matrix[(i, j)]))
}

#[test]
fn a_bias_is_corrected_as_by_dalr() {
    let case = Hidden::random(7, (10, 4, 60));
    let keeps = HiddenUnitSelection::new().with_bias_correction(false);
    let kept = keeps.solve(&case.first, &case.second, &case.stats()).unwrap().select(4).unwrap();
    assert_eq!(kept.second.bias(), case.second.bias());
    let case = case.without_bias();
    let bare = HiddenUnits::new(&case.first, &case.second, &case.stats()).unwrap().select(4).unwrap();
    assert!(bare.second.bias().is_none());
    let adds = HiddenUnitSelection::new().with_bias_correction(true);
    let added = adds.solve(&case.first, &case.second, &case.stats()).unwrap().select(4).unwrap();
    assert!(added.second.bias().is_some() && added.relative_error < bare.relative_error);
}

#[test]
fn bad_input_is_refused() {
    let (case, other) = (Hidden::random(1, (8, 3, 40)), Hidden::random(1, (9, 3, 40)));
    let (first, second, hidden) = (&case.first, &case.second, &case.stats());
    let refused = |result: Result<HiddenUnits<f64>, Error>, message: &str| {
        assert_eq!(result.unwrap_err().to_string(), message);
    };
    let outputs = "outputs of the first layer (one per input of the second)";
    refused(HiddenUnits::new(&other.first, second, hidden), &format!("HiddenUnits::new: expected 8 {outputs}, got 9"));
    refused(
        HiddenUnits::new(first, second, &other.stats()),
        "HiddenUnits::new: expected 8 inputs in the statistics (as the layer has), got 9",
    );
    let none = "expected statistics of at least one sample with a positive weight, got none";
    refused(HiddenUnits::new(first, second, &ActivationStats::new(8)), &format!("HiddenUnits::new: {none}"));
    refused(HiddenUnits::new(first, second, Calibration::none()), &format!("HiddenUnits::new: {none}"));
    refused(HiddenUnits::new(first, second, &PairedStats::new(8)), &format!("HiddenUnits::new: {none}"));
    let metric = OutputMetric::diagonal(&[1.0, 1.0]).unwrap();
    refused(
        HiddenUnits::new(first, second, Calibration::from(hidden).with_output_metric(&metric)),
        "HiddenUnits::new: expected 3 outputs in the metric (as the layer has), got 2",
    );
    refused(
        HiddenUnits::gated(&other.first, first, second, hidden),
        "HiddenUnits::gated: expected 8 outputs of the gate (as `up` has), got 9",
    );
    let count = "expected the number of hidden units to be from 1 to 8";
    for k in [0, 9] {
        let options = HiddenUnitSelection::new().with_max_units(k);
        refused(options.solve(first, second, hidden), &format!("HiddenUnitSelection::solve: {count}, got {k}"));
        let units = HiddenUnits::new(first, second, hidden).unwrap();
        assert_eq!(units.select(k).unwrap_err().to_string(), format!("HiddenUnits::select: {count}, got {k}"));
        assert_eq!(units.relative_error(k), None);
    }
    refused(
        with_ridge(Ridge::Paper(10.0)).solve(first, second, hidden),
        "HiddenUnitSelection::solve: expected none, shrinkage or relative:0.1 as the ridge of hidden units, \
         got `paper:10`",
    );
    refused(
        with_ridge(Ridge::Relative(-1.0)).solve(first, second, hidden),
        "HiddenUnitSelection::solve: expected the ridge to be finite and not negative, got -1",
    );
    let paired = case.paired(&case.compressed(1));
    let error = with_ridge(Ridge::None).solve(first, second, &paired).unwrap_err().to_string();
    assert!(error.contains("as paired inputs need: use `Ridge::Relative(0.1)`, got 0"), "{error}");
}
