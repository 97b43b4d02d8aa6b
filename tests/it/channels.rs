//! Channels of convolutions as hidden units: the selection against plain loops and exhaustive
//! search, the refit against least squares, and predicted errors by running the convolutions.

use dalr::compress::{HiddenUnitSelection, HiddenUnits, OutputMetric};
use dalr::convolution::{Conv2d, ConvOptions, PatchStats};
use dalr::covariance::PairedStats;
use dalr::{Calibration, Error, Linear, Ridge, Scalar};
use faer::linalg::solvers::{PartialPivLu, Solve};
use faer::{Col, Mat};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::common::{cast, gaussian, stats};
use crate::hidden_units::{centred, columns, lambda, least_squares, relu};

/// Channels that several inputs of the second layer read, one row per sample.
struct Channels {
    first: Linear<f64>,
    second: Linear<f64>,
    inputs: Mat<f64>,
    /// Inputs of each channel.
    each: usize,
}

impl Channels {
    fn random(seed: u64, (count, each, outputs, samples): (usize, usize, usize, usize)) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let size = count * each;
        let mixing = gaussian(&mut rng, 2 * size / 3, size);
        let inputs = relu(&(gaussian(&mut rng, samples, 2 * size / 3) * mixing));
        let bias = gaussian(&mut rng, outputs, 1).col(0).to_owned();
        let second = Linear::new(gaussian(&mut rng, outputs, size), Some(bias)).unwrap();
        let first = Linear::new(gaussian(&mut rng, count, 4), None).unwrap();
        Self { first, second, inputs, each }
    }

    fn solve<'a>(&self, ridge: Ridge, calibration: impl Into<Calibration<'a, f64>>) -> HiddenUnits<f64> {
        let options = HiddenUnitSelection::new().with_ridge(ridge).with_inputs_per_unit(self.each);
        options.solve(&self.first, &self.second, calibration).unwrap()
    }

    /// The regularized covariance.
    fn moment(&self, ratio: f64) -> Mat<f64> {
        let inputs = centred(&self.inputs);
        let mut moment = inputs.transpose() * &inputs * faer::Scale(1.0 / inputs.nrows() as f64);
        let lambda = lambda(ratio, &inputs);
        moment.as_mut().diagonal_mut().column_vector_mut().iter_mut().for_each(|x| *x += lambda);
        moment
    }
}

fn inputs_of(channels: &[usize], each: usize) -> Vec<usize> {
    channels.iter().flat_map(|channel| channel * each..(channel + 1) * each).collect()
}

fn block(matrix: &Mat<f64>, rows: &[usize], columns: &[usize]) -> Mat<f64> {
    Mat::from_fn(rows.len(), columns.len(), |i, j| matrix[(rows[i], columns[j])])
}

/// The decrease of the regularized squared error by these inputs, `tr(T_P M_PP⁻¹ T_Pᵀ)`.
fn gain(moment: &Mat<f64>, outputs: &Mat<f64>, inputs: &[usize]) -> f64 {
    let all: Vec<usize> = (0..outputs.nrows()).collect();
    let part = block(outputs, &all, inputs);
    let solved = PartialPivLu::new(block(moment, inputs, inputs).as_ref()).solve(part.transpose());
    part.row_iter().zip(solved.col_iter()).map(|(a, b)| a * b).sum()
}

/// The greedy selection by the gain of all channels so far, computed anew for every candidate.
fn plain_selection(moment: &Mat<f64>, outputs: &Mat<f64>, each: usize, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = Vec::new();
    for _ in 0..count {
        let with = |channel: usize| {
            let channels: Vec<usize> = order.iter().copied().chain([channel]).collect();
            gain(moment, outputs, &inputs_of(&channels, each))
        };
        let open = (0..moment.nrows() / each).filter(|channel| !order.contains(channel));
        let best = open.max_by(|&a, &b| with(a).total_cmp(&with(b))).unwrap();
        order.push(best);
    }
    order
}

#[test]
fn the_selection_is_that_of_plain_loops() {
    for (seed, (count, each, outputs), ratio) in
        [(1, (14, 9, 5), 0.01), (2, (40, 3, 20), 0.0), (3, (6, 25, 8), 0.3), (4, (3, 70, 4), 0.1)]
    {
        let case = Channels::random(seed, (count, each, outputs, 3 * count * each));
        let moment = case.moment(ratio);
        let products = case.second.weight() * &moment;
        let expected = plain_selection(&moment, &products, each, count - 1);
        let found = case.solve(Ridge::Relative(ratio), &stats(case.inputs.as_ref()));
        assert_eq!(&found.order()[..count - 1], expected, "{count} × {each}");
        for threads in [1, 2] {
            let options = HiddenUnitSelection::new().with_ridge(Ridge::Relative(ratio)).with_threads(threads);
            let options = options.with_inputs_per_unit(each).with_max_units(2);
            let few = options.solve(&case.first, &case.second, &stats(case.inputs.as_ref())).unwrap();
            assert_eq!(few.order(), &expected[..2]);
            assert!(few.select(3).is_err() && few.relative_error(3).is_none());
        }
    }
}

#[test]
fn channels_of_one_input_are_units() {
    let case = Channels::random(5, (90, 1, 7, 200));
    let stats = stats(case.inputs.as_ref());
    let (one, plain) =
        (case.solve(Ridge::Shrinkage, &stats), HiddenUnits::new(&case.first, &case.second, &stats).unwrap());
    assert_eq!(one.order(), plain.order());
    assert_eq!(one.select(40).unwrap(), plain.select(40).unwrap());
}

#[test]
fn few_channels_are_nearly_the_best_ones() {
    let mut ratios = Vec::new();
    for seed in 0..40 {
        let case = Channels::random(seed, (8, 4, 5, 200));
        let moment = case.moment(0.0);
        let products = case.second.weight() * &moment;
        let total: f64 = products.col_iter().zip(case.second.weight().col_iter()).map(|(a, b)| a.transpose() * b).sum();
        let found = case.solve(Ridge::None, &stats(case.inputs.as_ref()));
        let least = |channels: &[usize]| total - gain(&moment, &products, &inputs_of(channels, 4));
        let pairs = (0..8).flat_map(|a| (0..a).map(move |b| [b, a]));
        let best = [
            (0..8).map(|channel| least(&[channel])).fold(f64::INFINITY, f64::min),
            pairs.map(|pair| least(&pair)).fold(f64::INFINITY, f64::min),
        ];
        let one = least(&found.select(1).unwrap().kept);
        assert!(one <= best[0] * (1.0 + 1e-9), "{seed}: {one} {}", best[0]);
        ratios.push(least(&found.select(2).unwrap().kept) / best[1]);
    }
    ratios.sort_by(f64::total_cmp);
    println!("two channels: median {:.4}, 95 % {:.4}", ratios[20], ratios[38]);
    assert!(ratios[0] > 1.0 - 1e-9 && ratios[20] <= 1.05 && ratios[38] <= 1.2);
}

#[test]
fn the_refit_is_least_squares() {
    for (seed, ratio, is_paired) in [(1, 0.0, false), (2, 0.1, false), (3, 0.1, true), (4, 2.0, true)] {
        let case = Channels::random(seed, (7, 4, 5, 90));
        let noise = gaussian(&mut StdRng::seed_from_u64(seed + 9), 90, 28);
        let seen = if is_paired { relu(&(&case.inputs + noise * faer::Scale(0.3))) } else { case.inputs.clone() };
        let (plain, mut paired) = (stats(case.inputs.as_ref()), PairedStats::new(28));
        paired.update(case.inputs.as_ref(), seen.as_ref()).unwrap();
        let metric = OutputMetric::diagonal(&[1.0, 3.0, 0.5, 1.0, 2.0]).unwrap();
        let calibration = if is_paired { Calibration::from(&paired) } else { Calibration::from(&plain) };
        for calibration in [calibration, calibration.with_output_metric(&metric)] {
            let units = case.solve(Ridge::Relative(ratio), calibration);
            let (x, y) = (centred(&case.inputs), centred(&seen));
            for k in [1, 3, 6] {
                let smaller = units.select(k).unwrap();
                let inputs = inputs_of(&smaller.kept, 4);
                let expected = least_squares(case.second.weight(), (&x, &y), &inputs, lambda(ratio, &y));
                let difference = (smaller.second.weight() - &expected).norm_max();
                assert!(difference < 1e-8 * expected.norm_max(), "{seed}, {k}: {difference:e}");
                let original = case.second.forward(case.inputs.as_ref()).unwrap();
                let error = &original - smaller.second.forward(columns(&seen, &inputs).as_ref()).unwrap();
                let measured = error.norm_l2() / centred(&original).norm_l2();
                let predicted = smaller.relative_error.unwrap();
                assert!((predicted - measured).abs() < 1e-7, "{seed}, {k}: {predicted} {measured}");
            }
        }
    }
}

#[test]
fn channels_without_information_cost_nothing() {
    let base = Channels::random(8, (5, 4, 3, 120));
    // The channels, a channel with the sum of the first two, a dead one and a constant one; and a
    // pixel of the first channel that is always zero.
    let value = |i: usize, j: usize| match (j / 4, j % 4) {
        (0, 2) => 0.0,
        (channel @ 0..5, pixel) => base.inputs[(i, channel * 4 + pixel)],
        (5, 2) => base.inputs[(i, 4 + 2)],
        (5, pixel) => base.inputs[(i, pixel)] + base.inputs[(i, 4 + pixel)],
        (6, _) => 0.0,
        _ => 3.5,
    };
    let inputs = Mat::from_fn(120, 32, value);
    let mut rng = StdRng::seed_from_u64(9);
    let second = Linear::new(gaussian(&mut rng, 3, 32), Some(Col::zeros(3))).unwrap();
    let first = Linear::new(gaussian(&mut rng, 8, 2), None).unwrap();
    let options = HiddenUnitSelection::new().with_inputs_per_unit(4).with_ridge(Ridge::None);
    let found = options.solve(&first, &second, &stats(inputs.as_ref())).unwrap();
    // Of the first, the second and their sum, two suffice.
    assert_eq!(found.order().len(), 5, "{:?}", found.order());
    assert!(found.order().iter().all(|&channel| channel < 6));
    let original = second.forward(inputs.as_ref()).unwrap();
    for k in 5..=8 {
        let smaller = found.select(k).unwrap();
        assert_eq!(smaller.kept.len(), k);
        let outputs = smaller.second.forward(columns(&inputs, &inputs_of(&smaller.kept, 4)).as_ref()).unwrap();
        assert!((&outputs - &original).norm_max() < 1e-6 * original.norm_max(), "{k}");
        assert!(smaller.relative_error.unwrap() < 1e-6);
    }
    let all = found.select(8).unwrap();
    assert_eq!((&all.first, &all.second, all.relative_error), (&first, &second, Some(0.0)));
}

const SIZE: (usize, usize) = (9, 8);

/// A convolution of 3 to 8 channels, and images of the [`SIZE`].
fn convolution<T: Scalar>() -> (Conv2d<T>, Mat<T>) {
    let mut rng = StdRng::seed_from_u64(21);
    let weight = cast(gaussian(&mut rng, 8, 3 * 9).as_ref());
    let conv = Conv2d::new(weight, Some(Col::from_fn(8, |i| T::from_f64(i as f64 / 8.0))), (3, 3), ConvOptions::new());
    let noise = gaussian(&mut rng, 25, 3 * 72);
    let images = Mat::from_fn(25, 3 * 72, |i, j| T::from_f64(noise[(i, j)] + noise[(i, j / 2)] + noise[(i, j / 5)]));
    (conv.unwrap(), images)
}

/// The maximum over squares of 2 × 2 of maps of this size.
fn pooled(maps: &Mat<f64>, channels: usize, (height, width): (usize, usize)) -> Mat<f64> {
    let (rows, columns) = (height / 2, width / 2);
    Mat::from_fn(maps.nrows(), channels * rows * columns, |image, at| {
        let (channel, row, column) = (at / (rows * columns), at / columns % rows, at % columns);
        let pixel = |y: usize, x: usize| maps[(image, (channel * height + 2 * row + y) * width + 2 * column + x)];
        pixel(0, 0).max(pixel(0, 1)).max(pixel(1, 0)).max(pixel(1, 1))
    })
}

#[test]
fn smaller_convolutions_have_the_predicted_error() {
    let (first, images) = convolution::<f64>();
    let mut rng = StdRng::seed_from_u64(22);
    let options = ConvOptions::new().with_padding((1, 1)).with_stride((2, 1));
    let bias = Some(gaussian(&mut rng, 5, 1).col(0).to_owned());
    let second = Conv2d::new(gaussian(&mut rng, 5, 8 * 6), bias, (2, 3), options).unwrap();
    let between = first.output_size(SIZE).unwrap();
    let run = |first: &Conv2d<f64>, second: &Conv2d<f64>| {
        let maps = relu(&first.forward(images.as_ref(), SIZE).unwrap());
        second.forward(maps.as_ref(), between).unwrap()
    };
    let mut inputs = PatchStats::new(&second, 1.0).unwrap();
    inputs.update(relu(&first.forward(images.as_ref(), SIZE).unwrap()).as_ref(), between).unwrap();

    let original = run(&first, &second);
    let positions = second.positions(between).unwrap();
    // One row per position.
    let by_position =
        |maps: &Mat<f64>| Mat::from_fn(25 * positions, 5, |i, j| maps[(i / positions, j * positions + i % positions)]);
    let selection = HiddenUnitSelection::new().with_inputs_per_unit(6);
    let units = selection.solve(first.as_linear().unwrap(), second.as_linear().unwrap(), &inputs.groups()[0]).unwrap();
    for k in [2, 5, 8] {
        let chosen = units.select(k).unwrap();
        let (a, b) = (first.with_layers(vec![chosen.first]), second.with_layers(vec![chosen.second]));
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_eq!((a.out_channels(), b.in_channels(), b.options()), (k, k, options));
        let error = by_position(&(&original - run(&a, &b))).norm_l2() / centred(&by_position(&original)).norm_l2();
        let predicted = chosen.relative_error.unwrap();
        assert!((error - predicted).abs() < 1e-7, "{k}: {predicted} {error}");
    }
}

#[test]
fn a_convolution_before_a_pool_and_a_linear_layer_loses_channels() {
    let (first, images) = convolution::<f64>();
    let mut rng = StdRng::seed_from_u64(23);
    let size = first.output_size(SIZE).unwrap();
    let second = Linear::new(gaussian(&mut rng, 6, 8 * 9), Some(Col::zeros(6))).unwrap();
    let features = |conv: &Conv2d<f64>| {
        let maps = relu(&conv.forward(images.as_ref(), SIZE).unwrap());
        pooled(&maps, conv.out_channels(), size)
    };
    let hidden = stats(features(&first).as_ref());
    let selection = HiddenUnitSelection::new().with_inputs_per_unit(3 * 3);
    let units = selection.solve(first.as_linear().unwrap(), &second, &hidden).unwrap();
    let original = second.forward(features(&first).as_ref()).unwrap();
    let mut errors = Vec::new();
    for k in [1, 4, 7] {
        let chosen = units.select(k).unwrap();
        let smaller = first.with_layers(vec![chosen.first]).unwrap();
        let outputs = chosen.second.forward(features(&smaller).as_ref()).unwrap();
        let error = (&original - outputs).norm_l2() / centred(&original).norm_l2();
        assert!((error - chosen.relative_error.unwrap()).abs() < 1e-7, "{k}");
        errors.push(error);
    }
    assert!(errors.is_sorted_by(|a, b| a > b), "{errors:?}");
}

#[test]
fn bad_input_is_refused() {
    let case = Channels::random(3, (6, 4, 3, 60));
    let hidden = stats(case.inputs.as_ref());
    let refused = |options: HiddenUnitSelection, first: &Linear<f64>| {
        options.solve(first, &case.second, &hidden).unwrap_err().to_string()
    };
    for each in [0, 5] {
        let message = refused(HiddenUnitSelection::new().with_inputs_per_unit(each), &case.first);
        let expected = "expected the number of inputs of each unit to divide the inputs of the second layer, 24";
        assert_eq!(message, format!("HiddenUnitSelection::solve: {expected}, got {each}"));
    }
    let other = Linear::new(Mat::<f64>::ones(5, 4), None).unwrap();
    assert_eq!(
        refused(HiddenUnitSelection::new().with_inputs_per_unit(4), &other),
        "HiddenUnitSelection::solve: expected 6 outputs of the first layer (one per unit that the second reads), got 5"
    );
    let most = HiddenUnitSelection::new().with_inputs_per_unit(4).with_max_units(7);
    assert!(refused(most, &case.first).contains("number of hidden units to be from 1 to 6, got 7"));
    let units = case.solve(Ridge::Shrinkage, &hidden);
    assert!(matches!(units.select(7), Err(Error::OutOfRange { .. })));
}
