//! Convolutions: agreement with PyTorch (`tests/it/golden/make_convolutions.py`), statistics of
//! patches, and compressed convolutions by running both.

use dalr::convolution::{Conv2d, ConvOptions, LowRankConv2d, PatchStats};
use dalr::{Calibration, Dalr, Error, Linear, LowRankCompressor, LowRankLinear, Rank, Ridge, Scalar, TruncatedSvd};
use faer::{Col, Mat, MatRef};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Deserialize;

use crate::common::{cast, gaussian, stats};

#[derive(Deserialize)]
struct Golden {
    name: String,
    images: Vec<f64>,
    /// Images, channels, height and width.
    shape: [usize; 4],
    weight: Vec<f64>,
    bias: Option<Vec<f64>>,
    out: usize,
    kernel: (usize, usize),
    stride: (usize, usize),
    padding: [usize; 4],
    dilation: (usize, usize),
    groups: usize,
    outputs: Vec<f64>,
    output_size: (usize, usize),
}

fn rows<T: Scalar>(numbers: &[f64], rows: usize) -> Mat<T> {
    cast(MatRef::from_row_major_slice(numbers, rows, numbers.len() / rows))
}

#[test]
fn outputs_agree_with_pytorch() {
    fn check<T: Scalar>(case: &Golden) {
        let options = ConvOptions::new()
            .with_stride(case.stride)
            .with_padding_of_sides(case.padding)
            .with_dilation(case.dilation)
            .with_groups(case.groups);
        let bias = case.bias.as_ref().map(|bias| bias.iter().map(|&b| T::from_f64(b)).collect());
        let conv = Conv2d::<T>::new(rows(&case.weight, case.out), bias, case.kernel, options).unwrap();
        let [count, channels, height, width] = case.shape;
        let name = &case.name;
        assert_eq!((conv.in_channels(), conv.out_channels()), (channels, case.out), "{name}");
        assert_eq!(conv.output_size((height, width)).unwrap(), case.output_size, "{name}");
        let expected: Mat<T> = rows(&case.outputs, count);
        // Both memory layouts of a batch.
        let images: Mat<T> = rows(&case.images, count);
        let by_row: Vec<T> = case.images.iter().map(|&x| T::from_f64(x)).collect();
        let by_row = MatRef::from_row_major_slice(&by_row, count, channels * height * width);
        for images in [images.as_ref(), by_row] {
            let outputs = conv.forward(images, (height, width)).unwrap();
            assert_eq!(outputs.shape(), expected.shape(), "{name}");
            let difference = (&outputs - &expected).norm_max().to_f64();
            assert!(difference <= 1e-5, "{name}: {difference}");
        }
        let macs = case.weight.len() * case.output_size.0 * case.output_size.1;
        assert_eq!(conv.multiply_adds((height, width)).unwrap(), macs, "{name}");
        assert_eq!(conv.parameters(), case.weight.len() + case.bias.as_ref().map_or(0, Vec::len), "{name}");
        assert_eq!(conv.weight().unwrap(), rows::<T>(&case.weight, case.out), "{name}");
    }
    let cases: Vec<Golden> = serde_json::from_str(include_str!("golden/convolutions.json")).unwrap();
    assert_eq!(cases.len(), 12);
    for case in &cases {
        check::<f32>(case);
        check::<f64>(case);
    }
}

/// A random convolution of 4 to 6 channels in two groups, and images of 7 × 6 pixels.
fn example(seed: u64, count: usize) -> (Conv2d<f64>, Mat<f64>) {
    let mut rng = StdRng::seed_from_u64(seed);
    let options = ConvOptions::new().with_padding_of_sides([1, 0, 0, 2]).with_stride((2, 1)).with_groups(2);
    let (weight, bias) = (gaussian(&mut rng, 6, 2 * 6), gaussian(&mut rng, 6, 1));
    let conv = Conv2d::new(weight, Some(bias.col(0).to_owned()), (3, 2), options).unwrap();
    // Neighbouring pixels resemble each other, and means are not zero.
    let noise = gaussian(&mut rng, count, 4 * 42);
    let images = Mat::from_fn(count, 4 * 42, |i, j| 0.5 + noise[(i, j)] + noise[(i, j / 2)] + noise[(i, j / 6)]);
    (conv, images)
}

const SIZE: (usize, usize) = (7, 6);

/// The patches of one group of the [`example`], by plain loops over padded images.
fn patches(images: &Mat<f64>, group: usize) -> Mat<f64> {
    let pixel = |image: usize, channel: usize, row: isize, column: isize| match (row, column) {
        (0..7, 0..6) => images[(image, (channel * 7 + row as usize) * 6 + column as usize)],
        _ => 0.0,
    };
    // Heights 1 + 7 + 0 and widths 0 + 6 + 2 give 3 × 7 positions.
    Mat::from_fn(images.nrows() * 21, 12, |row, entry| {
        let (image, y, x) = (row / 21, row % 21 / 7, row % 7);
        let (channel, i, j) = (entry / 6, entry / 2 % 3, entry % 2);
        pixel(image, 2 * group + channel, (2 * y + i) as isize - 1, (x + j) as isize)
    })
}

#[test]
fn patches_are_those_under_the_kernel() {
    let (conv, images) = example(1, 3);
    let mut all = PatchStats::new(&conv, 1.0).unwrap();
    all.update(images.as_ref(), SIZE).unwrap();
    for group in 0..2 {
        let expected = patches(&images, group);
        assert_eq!(conv.unfold(images.as_ref(), SIZE, group).unwrap(), expected);
        let (found, expected) = (&all.groups()[group], stats(expected.as_ref()));
        assert_eq!((found.samples(), found.covariance().unwrap()), (63, expected.covariance().unwrap()));
        let outputs = conv.forward(images.as_ref(), SIZE).unwrap();
        let linear = conv.layers()[group].forward(patches(&images, group).as_ref()).unwrap();
        for (image, position, channel) in [(0, 0, 0), (1, 20, 2), (2, 9, 1)] {
            let output = outputs[(image, (3 * group + channel) * 21 + position)];
            assert!((output - linear[(image * 21 + position, channel)]).abs() < 1e-12);
        }
    }
}

#[test]
fn blocks_do_not_show() {
    // A patch of 2304 entries: a block holds 113 of them, and two images have 200 positions.
    let mut rng = StdRng::seed_from_u64(2);
    let conv = Conv2d::new(gaussian(&mut rng, 3, 2304), None, (12, 12), ConvOptions::new()).unwrap();
    let images = gaussian(&mut rng, 2, 16 * 21 * 21);
    let outputs = conv.forward(images.as_ref(), (21, 21)).unwrap();
    let unfolded = conv.unfold(images.as_ref(), (21, 21), 0).unwrap();
    let linear = conv.as_linear().unwrap().forward(unfolded.as_ref()).unwrap();
    let expected = Mat::from_fn(2, 300, |i, j| linear[(i * 100 + j % 100, j / 100)]);
    assert!((&outputs - &expected).norm_max() < 1e-11);
    let mut all = PatchStats::new(&conv, 1.0).unwrap();
    all.update(images.as_ref(), (21, 21)).unwrap();
    let expected = stats(unfolded.as_ref());
    assert_eq!(all.groups()[0].samples(), 200);
    assert!((all.groups()[0].covariance().unwrap() - expected.covariance().unwrap()).norm_max() < 1e-12);
}

/// Statistics of a `1 × 1` kernel on images whose pixels are the numbers of their positions.
fn drawn(fraction: f64, seed: u64, images: usize) -> PatchStats<f64> {
    let conv = Conv2d::new(Mat::from_fn(1, 1, |_, _| 1.0), None, (1, 1), ConvOptions::new()).unwrap();
    let mut stats = PatchStats::new(&conv, fraction).unwrap().with_seed(seed);
    stats.update(Mat::from_fn(images, 16, |_, position| position as f64).as_ref(), (2, 8)).unwrap();
    stats
}

#[test]
fn positions_are_drawn_evenly_and_without_repetition() {
    // 15.8 positions are 16: all, so none twice. A fraction below one position is one.
    let all = drawn(0.99, 3, 1);
    assert_eq!(all.groups()[0].samples(), 16);
    assert_eq!(all.groups()[0].mean().unwrap()[0], 7.5);
    assert!((all.groups()[0].covariance().unwrap()[(0, 0)] - 255.0 / 12.0).abs() < 1e-12);
    assert_eq!(drawn(1e-9, 3, 5).groups()[0].samples(), 5);
    let mut counts = [0; 16];
    for seed in 0..3200 {
        counts[drawn(0.01, seed, 1).groups()[0].mean().unwrap()[0] as usize] += 1;
    }
    // 200 each, with a standard deviation of 14.
    assert!(counts.iter().all(|count| (140..=260).contains(count)), "{counts:?}");
    let half = drawn(0.5, 4, 2000);
    assert_eq!(half.groups()[0].samples(), 16000);
    // Drawing half of 16 numbers without repetition: the mean's standard deviation is 0.026.
    assert!((half.groups()[0].mean().unwrap()[0] - 7.5).abs() < 0.13);
}

#[test]
fn positions_depend_on_the_seed_and_not_on_the_batches() {
    let (conv, images) = example(5, 20);
    let collect = |batches: &[usize], seed: u64| {
        let mut stats = PatchStats::new(&conv, 0.3).unwrap().with_seed(seed);
        let mut start = 0;
        for &count in batches {
            stats.update(images.subrows(start, count), SIZE).unwrap();
            start += count;
        }
        stats.groups().iter().map(|stats| stats.covariance().unwrap()).collect::<Vec<_>>()
    };
    let [whole, parts, other] = [collect(&[20], 7), collect(&[1, 12, 7], 7), collect(&[20], 8)];
    for group in 0..2 {
        assert!((&whole[group] - &parts[group]).norm_max() < 1e-12);
        assert!((&whole[group] - &other[group]).norm_max() > 1e-3);
    }

    let mut first = PatchStats::new(&conv, 0.3).unwrap();
    let mut second = PatchStats::new(&conv, 1.0).unwrap();
    first.update(images.subrows(0, 8), SIZE).unwrap();
    second.update(images.subrows(8, 12), SIZE).unwrap();
    let samples = first.groups()[0].samples() + second.groups()[0].samples();
    first.merge(&second).unwrap();
    assert_eq!(first.groups()[0].samples(), samples);
}

/// Returns the squared error of the outputs relative to the original ones about their mean over all
/// positions, one number per group.
fn measured(conv: &Conv2d<f64>, smaller: &LowRankConv2d<f64>, images: &Mat<f64>) -> Vec<f64> {
    let original = conv.forward(images.as_ref(), SIZE).unwrap();
    let outputs = smaller.forward(images.as_ref(), SIZE).unwrap();
    let positions = 21;
    let group = |group: usize| {
        let (mut error, mut total) = (0.0, 0.0);
        for channel in 3 * group..3 * group + 3 {
            let map = original.subcols(channel * positions, positions);
            let mean = map.sum() / (map.nrows() * positions) as f64;
            error += (map - outputs.subcols(channel * positions, positions)).squared_norm_l2();
            total += map.col_iter().flat_map(|c| c.iter()).map(|x| (x - mean).powi(2)).sum::<f64>();
        }
        f64::sqrt(error / total)
    };
    (0..2).map(group).collect()
}

#[test]
fn reports_predict_the_errors_of_both_convolutions_together() {
    let (conv, images) = example(9, 30);
    let mut inputs = PatchStats::new(&conv, 1.0).unwrap();
    inputs.update(images.as_ref(), SIZE).unwrap();
    for rank in 1..=3 {
        for method in [Dalr::new(), Dalr::new().with_ridge(Ridge::None)] {
            let (smaller, reports) = conv.compress(&method, &inputs, Rank::Fixed(rank)).unwrap();
            for (report, measured) in reports.iter().zip(measured(&conv, &smaller, &images)) {
                let predicted = report.relative_error.unwrap();
                assert!((predicted - measured).abs() < 1e-6, "{rank}: {predicted}, {measured}");
            }
            assert_eq!((smaller.rank(), smaller.down().kernel(), smaller.up().kernel()), (rank, (3, 2), (1, 1)));
            assert_eq!(smaller.parameters(), 2 * rank * (12 + 3) + 6);
            assert_eq!(smaller.multiply_adds(SIZE).unwrap(), 21 * 2 * rank * (12 + 3));
            let outputs = smaller.forward(images.as_ref(), SIZE).unwrap();
            let one = smaller.to_conv2d().unwrap().forward(images.as_ref(), SIZE).unwrap();
            assert!((&outputs - &one).norm_max() < 1e-12);
        }
    }
    // Rank 3 is full.
    let (full, _) = conv.compress(&TruncatedSvd::new(), &inputs, Rank::Fixed(3)).unwrap();
    let difference = full.to_conv2d().unwrap().weight().unwrap() - conv.weight().unwrap();
    assert!(difference.norm_max() < 1e-12);
}

#[test]
fn a_convolution_of_one_by_one_is_a_linear_layer() {
    let mut rng = StdRng::seed_from_u64(12);
    let layer = Linear::new(gaussian(&mut rng, 5, 8), Some(Col::from_fn(5, |i| i as f64))).unwrap();
    let bias = layer.bias().map(|bias| bias.to_owned());
    let conv = Conv2d::new(layer.weight().to_owned(), bias, (1, 1), ConvOptions::new()).unwrap();
    let images = gaussian(&mut rng, 6, 8 * 12);
    // One pixel per row.
    let pixels = Mat::from_fn(72, 8, |row, channel| images[(row / 12, channel * 12 + row % 12)]);
    let mut inputs = PatchStats::new(&conv, 1.0).unwrap();
    inputs.update(images.as_ref(), (3, 4)).unwrap();
    let (smaller, reports) = conv.compress(&Dalr::new(), &inputs, Rank::Fixed(3)).unwrap();
    let expected = Dalr::new().compress(&layer, &stats(pixels.as_ref()), Rank::Fixed(3)).unwrap();
    assert_eq!(reports[0].parameters_after, expected.report().parameters_after);
    let weight = smaller.to_conv2d().unwrap().weight().unwrap();
    assert!((weight - expected.layer().to_linear().unwrap().weight()).norm_max() < 1e-10);
}

#[test]
fn bad_input_is_an_error_that_names_value_and_bound() {
    let weight = |rows: usize, columns: usize| Mat::<f64>::from_fn(rows, columns, |i, j| (i + 2 * j) as f64);
    let new = |shape: (usize, usize), kernel, options| Conv2d::new(weight(shape.0, shape.1), None, kernel, options);
    let text = |error: Error| error.to_string();
    let plain = ConvOptions::new();
    assert_eq!(
        text(new((4, 10), (2, 2), plain).unwrap_err()),
        "Conv2d::new: expected the columns of the weight to be a multiple of the kernel's height · width, 4, got 10"
    );
    assert_eq!(
        text(new((4, 8), (2, 2), plain.with_groups(3)).unwrap_err()),
        "Conv2d::new: expected the output channels to be a multiple of the groups, 3, got 4"
    );
    for (kernel, options, what) in [
        ((0, 2), plain, "height of the kernel"),
        ((2, 2), plain.with_stride((1, 0)), "horizontal stride"),
        ((2, 2), plain.with_dilation((0, 1)), "vertical dilation"),
        ((2, 2), plain.with_groups(0), "number of groups"),
    ] {
        assert!(text(new((4, 8), kernel, options).unwrap_err()).contains(what));
    }
    assert!(matches!(new((0, 8), (2, 2), plain), Err(Error::Empty { .. })));
    assert!(matches!(Conv2d::new(weight(4, 8), Some(Col::zeros(3)), (2, 2), plain), Err(Error::Shape { .. })));

    let dilated = new((4, 2 * 9), (3, 3), plain.with_dilation((2, 2)).with_padding((1, 0))).unwrap();
    let images = weight(3, 2 * 12);
    assert_eq!(
        text(dilated.forward(images.as_ref(), (3, 4)).unwrap_err()),
        "Conv2d::forward: expected the width of the images to be at least 5 for this kernel, got 4"
    );
    assert!(dilated.forward(weight(3, 2 * 15).as_ref(), (3, 5)).is_ok());
    assert!(text(dilated.multiply_adds((2, 5)).unwrap_err()).contains("height of the images to be at least 3"));
    let conv = new((4, 8), (2, 2), plain).unwrap();
    let refused = conv.forward(images.as_ref(), (3, 5)).unwrap_err();
    assert!(matches!(refused, Error::Shape { expected: 30, found: 24, .. }), "{refused}");
    assert!(matches!(conv.forward(weight(0, 24).as_ref(), (3, 4)), Err(Error::Empty { .. })));
    let huge = ConvOptions::new().with_padding((usize::MAX, usize::MAX));
    let huge = new((4, 8), (2, 2), huge).unwrap();
    assert!(matches!(huge.forward(images.as_ref(), (3, 4)), Err(Error::Overflow { .. })));
    for fraction in [1e-12, 1.0] {
        let mut inputs = PatchStats::new(&huge, fraction).unwrap();
        assert!(matches!(inputs.update(images.as_ref(), (3, 4)), Err(Error::Overflow { .. })));
    }

    // Depthwise: one output channel in each group.
    for (rows, columns, groups) in [(3, 4, 3), (2, 8, 2)] {
        let depthwise = new((rows, columns), (2, 2), plain.with_groups(groups)).unwrap();
        let refused = text(PatchStats::new(&depthwise, 0.5).unwrap_err());
        assert!(refused.contains("depthwise") && refused.contains("rank 1 already has more parameters"), "{refused}");
    }
    // Two outputs of each input channel can share a kernel: 9 + 2 parameters instead of 18.
    let shared = new((6, 9), (3, 3), plain.with_groups(3)).unwrap();
    assert!(PatchStats::new(&shared, 0.5).is_ok());
    for fraction in [0.0, -0.1, 1.01, f64::NAN] {
        assert!(matches!(PatchStats::new(&conv, fraction), Err(Error::OutOfRange { .. })));
    }

    // A failed update changes nothing, not even the positions of the next.
    let mut inputs = PatchStats::new(&conv, 0.5).unwrap();
    let mut undisturbed = inputs.clone();
    let mut broken = images.clone();
    broken[(2, 7)] = f64::NAN;
    assert!(matches!(inputs.update(broken.as_ref(), (3, 4)), Err(Error::NonFinite { row: 2, column: 7, .. })));
    broken.row_mut(2).fill(1e200);
    assert!(inputs.update(broken.as_ref(), (3, 4)).is_err());
    for stats in [&mut inputs, &mut undisturbed] {
        stats.update(images.as_ref(), (3, 4)).unwrap();
    }
    assert_eq!(inputs.groups()[0].covariance().unwrap(), undisturbed.groups()[0].covariance().unwrap());

    let other = PatchStats::new(&new((4, 8), (2, 2), plain.with_stride((2, 2))).unwrap(), 0.5).unwrap();
    assert!(matches!(inputs.merge(&other), Err(Error::Layers { .. })));
    assert!(matches!(conv.compress(&Dalr::new(), &other, Rank::Fixed(1)), Err(Error::Layers { .. })));

    let pair = |rank: usize, bias: bool| {
        let bias = bias.then(|| Col::zeros(4));
        LowRankLinear::new(weight(rank, 8), weight(4, rank), bias).unwrap()
    };
    assert!(matches!(conv.low_rank(vec![]), Err(Error::Shape { expected: 1, found: 0, .. })));
    let grouped = new((8, 8), (2, 2), plain.with_groups(2)).unwrap();
    assert!(matches!(grouped.as_linear(), Err(Error::Layers { .. })));
    for (a, b) in [(pair(1, true), pair(2, true)), (pair(1, true), pair(1, false))] {
        assert!(matches!(grouped.low_rank(vec![a, b]), Err(Error::Layers { .. })));
    }
    let other_shape = LowRankLinear::new(weight(1, 6), weight(4, 1), None).unwrap();
    assert!(matches!(conv.low_rank(vec![other_shape]), Err(Error::Shape { expected: 8, found: 6, .. })));
    let wide = Linear::new(weight(4, 10), None).unwrap();
    assert!(matches!(conv.with_layers(vec![wide]), Err(Error::OutOfRange { .. })));
    assert!(LowRankConv2d::new(conv.clone(), conv.clone()).is_err());
}

#[test]
fn the_compressor_may_be_any_method() {
    let (conv, images) = example(15, 10);
    let mut inputs = PatchStats::new(&conv, 0.6).unwrap();
    inputs.update(images.as_ref(), SIZE).unwrap();
    let methods: [&dyn LowRankCompressor<f64>; 3] = [&Dalr::new(), &Dalr::paper(1.0), &TruncatedSvd::new()];
    for method in methods {
        let (smaller, reports) = conv.compress(method, &inputs, Rank::Fixed(2)).unwrap();
        for (group, report) in reports.iter().enumerate() {
            let calibration: Calibration<'_, f64> = (&inputs.groups()[group]).into();
            let alone = method.compress_with(&conv.layers()[group], calibration, Rank::Fixed(2)).unwrap();
            assert_eq!(report, alone.report());
            assert_eq!(smaller.down().layers()[group].weight(), alone.layer().down());
        }
    }
}
