//! Pivoted storage: the same weight as two factors, up to rounding, from bounded coefficients.

use crate::common::families::FAMILIES;
use crate::common::{cast, gaussian, orthogonal, weight_of};
use dalr::factors::{Form, PivotedLinear};
use dalr::{
    ActivationStats, Calibration, Dalr, Error, Linear, LowRankCompressor, LowRankLinear, Rank, Scalar, TruncatedSvd,
    Warning,
};
use faer::linalg::solvers::DenseSolveCore;
use faer::{Col, Mat, MatRef, col, mat};
use rand::SeedableRng;
use rand::rngs::StdRng;

fn wide<T: Scalar>(matrix: MatRef<'_, T>) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| matrix[(i, j)].to_f64())
}

/// The weight of the stored numbers, multiplied in `f64` by what the documentation says.
fn stored_weight<T: Scalar>(layer: &PivotedLinear<T>) -> Mat<f64> {
    let pivot_rows = wide(layer.pivot_rows());
    let others = wide(layer.coefficients()) * &pivot_rows;
    let mut others = others.row_iter();
    let mut weight = Mat::zeros(layer.out_features(), layer.in_features());
    for (output, mut row) in weight.row_iter_mut().enumerate() {
        match layer.pivots().iter().position(|&pivot| pivot == output) {
            Some(position) => row.copy_from(pivot_rows.row(position)),
            None => row.copy_from(others.next().unwrap()),
        }
    }
    weight
}

/// Checks that the stored numbers say the same as the factors, and returns the layer.
#[track_caller]
fn agrees<T: Scalar>(factors: &LowRankLinear<T>, at: &str) -> PivotedLinear<T> {
    let pivoted = factors.to_pivoted().unwrap_or_else(|error| panic!("{at}: {error}"));
    let expected = weight_of(factors);
    let (m, n, k) = (factors.out_features(), factors.in_features(), factors.rank().min(factors.out_features()));
    assert_eq!((pivoted.out_features(), pivoted.in_features(), pivoted.rank()), (m, n, k), "{at}");
    assert_eq!(pivoted.multiply_adds(), k * (m + n - k), "{at}");
    assert_eq!(pivoted.bias(), factors.bias(), "{at}");
    assert!(pivoted.pivots().is_sorted() && pivoted.pivots().len() == k, "{at}");
    let largest = wide(pivoted.coefficients()).norm_max();
    assert!(largest <= 2.0 * (1.0 + T::EPSILON), "{at}: a coefficient of {largest}");
    let bound = if T::EPSILON > f64::EPSILON { 1e-6 } else { 1e-13 };
    let error = (stored_weight(&pivoted) - &expected).norm_l2() / expected.norm_l2().max(f64::MIN_POSITIVE);
    assert!(error <= bound, "{at}: {error:e}");
    pivoted
}

const SHAPES: [(usize, usize); 9] =
    [(1, 1), (1, 9), (9, 1), (7, 7), (33, 65), (65, 33), (130, 130), (260, 40), (40, 260)];

fn families<T: Scalar>() {
    let mut rng = StdRng::seed_from_u64(1);
    for (m, n) in SHAPES {
        let full = m.min(n);
        for rank in [1, 2, full / 3, full / 2, full - 1, full] {
            if !(1..=full).contains(&rank) {
                continue;
            }
            for family in FAMILIES {
                let values = family.values(rank);
                let (left, right) = (orthogonal(&mut rng, m, rank), orthogonal(&mut rng, rank, n));
                let at = format!("{family:?}, {m} × {n}, rank {rank}");
                // As the compressors make them: the columns of `up` are orthonormal.
                let down = Mat::from_fn(rank, n, |i, j| values[i] * right[(i, j)]);
                agrees(&LowRankLinear::<T>::new(cast(down.as_ref()), cast(left.as_ref()), None).unwrap(), &at);
                // The other way round: columns of any length, and of zeros.
                let up = Mat::from_fn(m, rank, |i, j| values[j] * left[(i, j)]);
                agrees(&LowRankLinear::<T>::new(cast(right.as_ref()), cast(up.as_ref()), None).unwrap(), &at);
            }
        }
    }
}

#[test]
fn it_is_lossless_for_all_families_and_shapes() {
    families::<f32>();
    families::<f64>();
}

fn special<T: Scalar>() {
    let mut rng = StdRng::seed_from_u64(2);
    let (m, n, k) = (60, 50, 12);
    let (up, down) = (gaussian(&mut rng, m, k), gaussian(&mut rng, k, n));
    let layer =
        |up: &Mat<f64>, down: &Mat<f64>| LowRankLinear::<T>::new(cast(down.as_ref()), cast(up.as_ref()), None).unwrap();
    let rows = |pick: &dyn Fn(usize) -> usize| Mat::from_fn(m, k, |i, j| up[(pick(i), j)]);
    agrees(&layer(&rows(&|i| i / 2), &down), "duplicated rows");
    agrees(&layer(&rows(&|i| i % 5), &down), "five distinct rows");
    let sparse = Mat::from_fn(m, k, |i, j| if i % 4 == 0 { up[(i, j)] } else { 0.0 });
    agrees(&layer(&sparse, &down), "zero rows");
    let few = Mat::from_fn(m, k, |i, j| if i < 5 { up[(i, j)] } else { 0.0 });
    agrees(&layer(&few, &down), "fewer rows than the rank");
    let dependent = Mat::from_fn(m, k, |i, j| up[(i, j % 3)]);
    agrees(&layer(&dependent, &down), "dependent columns");
    let holes = Mat::from_fn(m, k, |i, j| if j % 3 == 1 { 0.0 } else { up[(i, j)] });
    agrees(&layer(&holes, &down), "zero columns");
    agrees(&layer(&Mat::zeros(m, k), &down), "no factor");
    // Factors whose lengths balance each other.
    let far: i32 = if T::EPSILON > f64::EPSILON { 30 } else { 280 };
    let power = |j: usize| 10_f64.powi(if j.is_multiple_of(2) { far } else { -far });
    let (long, short) =
        (Mat::from_fn(m, k, |i, j| up[(i, j)] * power(j)), Mat::from_fn(k, n, |i, j| down[(i, j)] / power(i)));
    agrees(&layer(&long, &short), "columns of any length");
    // A rank above the number of outputs, and of inputs.
    let (tall, flat) = (gaussian(&mut rng, 4, 9), gaussian(&mut rng, 9, 6));
    let full = agrees(&layer(&tall, &flat), "rank 9 of 4 × 6");
    assert_eq!((full.pivots(), full.coefficients().shape()), (&[0, 1, 2, 3][..], (0, 4)));
    agrees(&layer(&gaussian(&mut rng, 20, 9), &gaussian(&mut rng, 9, 6)), "rank 9 of 20 × 6");
}

#[test]
fn rows_and_columns_that_depend_on_each_other_are_ordinary() {
    special::<f32>();
    special::<f64>();
}

/// Rows that QR with column pivoting takes as they are, though a combination of them is very short:
/// the transpose of a Kahan matrix, with short rows around it.
fn around_a_kahan_matrix() -> Mat<f64> {
    let (size, others, cosine) = (30, 16384_usize, 0.35_f64);
    let sine = (1.0 - cosine * cosine).sqrt();
    let kahan = Mat::from_fn(size, size, |i, j| {
        let entry = if i < j { -cosine } else { f64::from(i == j) };
        0.2 * entry * sine.powi(i as i32) * 0.9999_f64.powi(j as i32)
    });
    let missing = Mat::<f64>::identity(size, size) - &kahan * kahan.transpose();
    let root = missing.llt(faer::Side::Lower).unwrap().L().to_owned();
    let sign = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
    let rest = Mat::from_fn(others, size, |i, j| sign(i, j) / (others as f64).sqrt()) * root.transpose();
    Mat::from_fn(size + others, size, |i, j| if i < size { kahan[(j, i)] } else { rest[(i - size, j)] })
}

#[test]
fn swaps_bound_the_coefficients_around_a_kahan_matrix() {
    let mut rng = StdRng::seed_from_u64(3);
    let up = around_a_kahan_matrix();
    let rank = up.ncols();
    // Without swaps: the coefficients of the rows of the Kahan matrix.
    let (own, others) = (up.subrows(0, rank), up.subrows(rank, up.nrows() - rank));
    let coefficients = others * own.partial_piv_lu().inverse();
    assert!(coefficients.norm_max() > 100.0, "{}", coefficients.norm_max());
    let down = gaussian(&mut rng, rank, 20);
    let mixed = &up * gaussian(&mut rng, rank, rank);
    for up in [&up, &mixed] {
        agrees(&LowRankLinear::<f64>::new(down.clone(), up.clone(), None).unwrap(), "Kahan, f64");
        agrees(&LowRankLinear::<f32>::new(cast(down.as_ref()), cast(up.as_ref()), None).unwrap(), "Kahan, f32");
    }
}

#[test]
fn a_forward_pass_in_f32_errs_as_little_as_that_of_two_factors() {
    let mut rng = StdRng::seed_from_u64(4);
    let mut worst: f64 = 0.0;
    for (m, n) in [(33, 65), (65, 33), (130, 130), (260, 40), (40, 260), (512, 512)] {
        let full = m.min(n);
        for rank in [full / 8, full / 2, full - 1] {
            for family in FAMILIES {
                if m == 512 && rank != 256 {
                    continue;
                }
                let values = family.values(rank);
                let (left, right) = (orthogonal(&mut rng, m, rank), orthogonal(&mut rng, rank, n));
                let down = Mat::from_fn(rank, n, |i, j| values[i] * right[(i, j)]);
                let bias = Some(Col::from_fn(m, |i| i as f32 * 1e-3));
                let factors = LowRankLinear::<f32>::new(cast(down.as_ref()), cast(left.as_ref()), bias).unwrap();
                let pivoted = factors.to_pivoted().unwrap();
                let inputs: Mat<f32> = cast(gaussian(&mut rng, 40, n).as_ref());
                let mut exact = wide(inputs.as_ref()) * weight_of(&factors).transpose();
                for (i, column) in exact.col_iter_mut().enumerate() {
                    column.iter_mut().for_each(|output| *output += f64::from(i as f32 * 1e-3));
                }
                let error = |outputs: Mat<f32>| (wide(outputs.as_ref()) - &exact).norm_l2();
                let theirs = error(factors.forward(inputs.as_ref()).unwrap());
                let ours = error(pivoted.forward(inputs.as_ref()).unwrap());
                let linear = error(pivoted.to_linear().unwrap().forward(inputs.as_ref()).unwrap());
                let at = format!("{family:?}, {m} × {n}, rank {rank}: {ours:e} against {theirs:e}");
                assert!(ours <= 4.0 * theirs, "{at}");
                assert!(linear <= 8.0 * theirs, "{at}, as one weight {linear:e}");
                worst = worst.max(ours / theirs.max(f64::MIN_POSITIVE));
            }
        }
    }
    println!("worst ratio of forward errors: {worst:.2}");
}

#[test]
fn a_layer_is_what_its_parts_say() {
    let (rows, coefficients) = (mat![[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]], mat![[1.0, 1.0], [2.0, -1.0]]);
    let bias = Some(col![0.5, 0.0, 0.0, -0.5]);
    let layer = PivotedLinear::new(rows.clone(), coefficients.clone(), vec![0, 2], bias.clone()).unwrap();
    assert_eq!((layer.rank(), layer.in_features(), layer.out_features()), (2, 3, 4));
    assert_eq!((layer.parameters(), layer.multiply_adds()), (10 + 4, 10));
    assert_eq!((layer.pivots(), layer.order()), (&[0, 2][..], vec![0, 2, 1, 3]));
    assert_eq!((layer.pivot_rows(), layer.coefficients()), (rows.as_ref(), coefficients.as_ref()));
    let weight = mat![[1.0, 2.0, 3.0], [1.0, 3.0, 3.0], [0.0, 1.0, 0.0], [2.0, 3.0, 6.0]];
    let linear = Linear::new(weight, bias).unwrap();
    assert_eq!(layer.to_linear().unwrap(), linear);
    assert_eq!(Linear::try_from(&layer).unwrap(), linear);
    let inputs = mat![[1.0, 1.0, 1.0], [0.0, 2.0, -1.0]];
    assert_eq!(layer.forward(inputs.as_ref()), linear.forward(inputs.as_ref()));
    assert_eq!(layer.to_string(), "3 → 2 → 4, pivoted");
    let text = "PivotedLinear { out_features: 4, rank: 2, in_features: 3, bias: true }";
    assert_eq!(format!("{layer:?}"), text);
    assert_eq!(layer.clone(), layer);
    // At full rank there are no coefficients. The inputs are row-major here, to test that layout.
    let full = PivotedLinear::new(rows.clone(), Mat::zeros(0, 2), vec![0, 1], None).unwrap();
    assert_eq!((full.parameters(), full.to_linear().unwrap().weight()), (6, rows.as_ref()));
    let turned = inputs.transpose().to_owned();
    assert_eq!(full.forward(turned.transpose()), Linear::new(rows, None).unwrap().forward(inputs.as_ref()));
}

#[test]
fn the_same_factors_give_the_same_bits() {
    let mut rng = StdRng::seed_from_u64(5);
    let factors = LowRankLinear::new(gaussian(&mut rng, 20, 50), gaussian(&mut rng, 70, 20), None).unwrap();
    assert_eq!(factors.to_pivoted().unwrap(), factors.to_pivoted().unwrap());
}

#[test]
fn bad_input_is_refused_with_a_reason() {
    let new = |rows: Mat<f64>, coefficients: Mat<f64>, pivots: &[usize], bias: Option<Col<f64>>| {
        PivotedLinear::new(rows, coefficients, pivots.into(), bias).unwrap_err().to_string()
    };
    let (rows, coefficients) = (Mat::<f64>::ones(2, 3), Mat::<f64>::ones(4, 2));
    let nan = |mut matrix: Mat<f64>| {
        matrix[(1, 0)] = f64::NAN;
        matrix
    };
    for (error, expected) in [
        (new(Mat::zeros(0, 3), Mat::zeros(4, 0), &[], None), "the pivot rows"),
        (new(Mat::zeros(2, 0), coefficients.clone(), &[0, 1], None), "the pivot rows"),
        (
            new(rows.clone(), Mat::ones(4, 3), &[0, 1], None),
            "expected 2 columns in the coefficients (one per pivot row), got 3",
        ),
        (new(rows.clone(), Mat::zeros(0, 0), &[0, 1], None), "expected 2 columns in the coefficients"),
        (new(rows.clone(), coefficients.clone(), &[0], None), "expected 2 pivots (one per pivot row), got 1"),
        (
            new(rows.clone(), coefficients.clone(), &[0, 6], None),
            "expected a pivot above the one before it, 0, and below 6, got 6",
        ),
        (new(rows.clone(), coefficients.clone(), &[6, 7], None), "expected a pivot from 0 to 5, got 6"),
        (
            new(rows.clone(), coefficients.clone(), &[3, 3], None),
            "expected a pivot above the one before it, 3, and below 6, got 3",
        ),
        (new(rows.clone(), coefficients.clone(), &[4, 1], None), "got 1"),
        (new(rows.clone(), coefficients.clone(), &[0, usize::MAX], None), "below 6"),
        (
            new(rows.clone(), coefficients.clone(), &[0, 1], Some(Col::zeros(4))),
            "expected 6 entries in the bias (one per output), got 4",
        ),
        (
            new(nan(rows.clone()), coefficients.clone(), &[0, 1], None),
            "finite numbers in the pivot rows, got NaN at row 1, column 0",
        ),
        (new(rows.clone(), nan(coefficients.clone()), &[0, 1], None), "finite numbers in the coefficients"),
    ] {
        assert!(error.starts_with("PivotedLinear::new: ") && error.contains(expected), "{error}");
    }
    let layer = PivotedLinear::new(rows, coefficients, vec![0, 1], None).unwrap();
    for (inputs, expected) in [
        (Mat::zeros(1, 2), "PivotedLinear::forward: expected 3 columns in the inputs"),
        (Mat::zeros(0, 3), "PivotedLinear::forward: "),
        (nan(Mat::zeros(2, 3)), "PivotedLinear::forward: expected finite numbers in the inputs"),
        (Mat::from_fn(1, 3, |_, _| f64::MAX), "PivotedLinear::forward: the result overflows"),
    ] {
        let error = layer.forward(inputs.as_ref()).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    let huge = PivotedLinear::new(mat![[f64::MAX]], mat![[2.0]], vec![0], None).unwrap();
    assert!(matches!(huge.to_linear(), Err(Error::Overflow { operation: "PivotedLinear::to_linear", .. })));
    let huge = LowRankLinear::new(mat![[1e30_f32]], mat![[1e30], [1.0]], None).unwrap();
    assert!(matches!(huge.to_pivoted(), Err(Error::Overflow { operation: "LowRankLinear::to_pivoted", .. })));
}

fn example() -> (Linear<f64>, ActivationStats<f64>) {
    let layer =
        Linear::new(Mat::from_fn(24, 16, |i, j| ((i * 5 + j * j * 3) % 17) as f64), Some(Col::zeros(24))).unwrap();
    let mut stats = ActivationStats::new(16);
    stats.update(Mat::from_fn(90, 16, |i, j| ((i * i * 11 + j * 7) % 13) as f64).as_ref()).unwrap();
    (layer, stats)
}

#[test]
fn a_ratio_buys_the_parameters_of_the_form() {
    let (layer, stats) = example();
    let (before, shape) = (24 * 16 + 24, (24, 16));
    for ratio in [0.12, 0.4, 0.7, 0.9, 0.99, 1.0] {
        let method = Dalr::new().with_form(Form::Pivoted);
        let compressed = method.compress(&layer, &stats, Rank::ParameterRatio(ratio)).unwrap();
        let rank = Form::Pivoted.rank_within(ratio, shape);
        let plain = Dalr::new().compress(&layer, &stats, Rank::Fixed(rank)).unwrap();
        // The form changes neither the solve nor the factors.
        assert_eq!((compressed.layer(), compressed.report().form), (plain.layer(), Form::Pivoted));
        let pivoted = compressed.to_pivoted().unwrap();
        let report = compressed.report();
        assert_eq!((report.rank, report.parameters_after), (rank, pivoted.parameters()));
        assert_eq!(report.multiply_adds_after, pivoted.multiply_adds());
        assert!(pivoted.multiply_adds() as f64 <= ratio * 384.0);
        let past = |report: &dalr::Report| report.warnings.iter().any(|w| matches!(w, Warning::PastBreakEven { .. }));
        assert_eq!(past(report), report.parameters_after >= before);
        assert_eq!(past(report), rank == 16);
        assert_eq!(past(plain.report()), rank as f64 >= Rank::break_even(24, 16));
        assert!(report.to_string().contains(&format!("16 → {rank} → 24, pivoted\n")));
        let inputs = Mat::from_fn(5, 16, |i, j| (i + j) as f64);
        let outputs = [compressed.layer().forward(inputs.as_ref()), pivoted.forward(inputs.as_ref())];
        let [factors, pivoted] = outputs.map(Result::unwrap);
        assert!((&factors - pivoted).norm_max() <= 1e-12 * factors.norm_max());
    }
    let svd = TruncatedSvd::new().with_form(Form::Pivoted).with_rank_multiple(4);
    let decomposition = svd.decompose(&layer, Calibration::none(), 16).unwrap();
    assert_eq!(decomposition.rank_for(Rank::ParameterRatio(0.9), 4), Ok(12));
    assert_eq!(decomposition.with_form(Form::Factors).rank_for(Rank::ParameterRatio(0.9), 4), Ok(8));
    let error = svd.compress(&layer, Calibration::none(), Rank::ParameterRatio(0.3)).unwrap_err().to_string();
    assert!(error.contains("at least 0.375000, for rank 4 of a 24 × 16 weight"), "{error}");
}
