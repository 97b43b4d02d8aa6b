//! LoRA adapters, compared with a Jacobi SVD of the whole update.

use dalr::adapter::Adapter;
use dalr::compress::OutputMetric;
use dalr::network::{Allocator, Budget, Choice, LayerProfile, OriginalReason, Plan, Sensitivities, Strategy};
use dalr::{Calibration, Dalr, Decomposition, Error, Linear, LowRankCompressor, Rank, Scalar, TruncatedSvd};
use faer::{Mat, MatRef};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::common::jacobi::svd;
use crate::common::{SPECTRA, Spectrum, cast, gaussian, stats, with_spectrum};

/// The update in `f64`, by a product of its factors.
fn update<T: Scalar>(adapter: &Adapter<T>) -> Mat<f64> {
    let wide = |m: MatRef<'_, T>| Mat::from_fn(m.nrows(), m.ncols(), |i, j| m[(i, j)].to_f64());
    wide(adapter.up()) * wide(adapter.down()) * faer::Scale(adapter.scale())
}

/// An adapter whose update has these singular values, and other factors than an SVD has.
fn adapter<T: Scalar>(seed: u64, (m, n): (usize, usize), rank: usize, spectrum: Spectrum, scale: f64) -> Adapter<T> {
    let mut rng = StdRng::seed_from_u64(seed);
    let down = with_spectrum(&mut rng, rank, n, spectrum);
    let mixed = gaussian(&mut rng, m, rank);
    Adapter::new(cast(down.as_ref()), cast(mixed.as_ref()), scale).unwrap()
}

fn tail(values: &[f64], rank: usize) -> f64 {
    values.iter().skip(rank).map(|value| value * value).sum::<f64>().sqrt()
}

fn blind<T: Scalar>(adapter: &Adapter<T>) -> Decomposition<T> {
    adapter.decompose(Calibration::none()).unwrap()
}

/// Compares all ranks of `adapter` with the singular values of its update.
fn check_ranks<T: Scalar>(adapter: &Adapter<T>, context: &str) {
    let whole = update(adapter);
    let oracle = svd(whole.as_ref()).values;
    let (norm, tolerance) = (whole.norm_l2(), 40.0 * T::EPSILON * whole.nrows().max(whole.ncols()) as f64);
    let decomposition = blind(adapter);
    let full = adapter.rank().min(whole.nrows()).min(whole.ncols());
    assert_eq!(decomposition.max_rank(), full, "{context}");
    for rank in 1..=full {
        let found = decomposition.energies()[rank - 1].sqrt();
        let value = oracle[rank - 1];
        // Values are roots of eigenvalues, so small ones have fewer digits.
        let allowed = tolerance * norm + (f64::EPSILON * whole.ncols() as f64).sqrt() * norm;
        assert!((found - value).abs() <= allowed, "{context}, value {rank}: {found} {value}");
        let cut = Adapter::truncated(&decomposition, rank).unwrap();
        assert_eq!((cut.rank(), cut.scale()), (rank, 1.0), "{context}");
        let error = (&whole - update(&cut)).norm_l2();
        assert!(error <= tail(&oracle, rank) + tolerance * norm, "{context}, rank {rank}: {error}");
        // Predicted errors are roots of differences, too.
        let predicted = decomposition.relative_error(rank).unwrap() * norm;
        assert!((predicted - error).abs() <= allowed, "{context}, rank {rank}: {predicted} {error}");
        // One solve for each rank gives the same.
        let alone = update(&adapter.resize(Rank::Fixed(rank)).unwrap());
        assert!((alone - update(&cut)).norm_l2() <= tolerance * norm, "{context}, rank {rank}");
    }
    assert!((adapter.norm().unwrap() - norm).abs() <= tolerance * norm, "{context}");
}

#[test]
fn every_rank_is_as_good_as_an_svd_of_the_whole_update() {
    for (seed, spectrum) in SPECTRA.into_iter().enumerate() {
        for (shape, rank) in [((30, 20), 8), ((20, 30), 8), ((9, 40), 12), ((40, 9), 12), ((6, 7), 15), ((1, 5), 1)] {
            let context = format!("{spectrum:?}, {shape:?}, rank {rank}");
            check_ranks(&adapter::<f64>(seed as u64, shape, rank, spectrum, 0.5), &context);
            check_ranks(&adapter::<f32>(seed as u64, shape, rank, spectrum, -2.0), &context);
        }
    }
}

#[test]
fn rules_for_the_rank_give_the_smallest_rank_that_satisfies_them() {
    let adapter = adapter::<f64>(5, (30, 20), 8, Spectrum::Arithmetic, 1.0);
    let oracle = svd(update(&adapter).as_ref()).values;
    let all = tail(&oracle, 0);
    for goal in [0.9, 0.5, 0.2, 0.01] {
        let rank = adapter.resize(Rank::RelativeError(goal)).unwrap().rank();
        assert!(tail(&oracle, rank) <= goal * all && (rank == 1 || tail(&oracle, rank - 1) > goal * all), "{goal}");
        let rank = adapter.resize(Rank::Energy(1.0 - goal * goal)).unwrap().rank();
        assert!(tail(&oracle, rank) <= goal * all && (rank == 1 || tail(&oracle, rank - 1) > goal * all), "{goal}");
    }
    assert_eq!(adapter.resize(Rank::Energy(1.0)).unwrap().rank(), 8);
    // 0.4 · 30 · 20 parameters allow 4 · (30 + 20); all of them more than the adapter has.
    assert_eq!(adapter.resize(Rank::ParameterRatio(0.4)).unwrap().rank(), 4);
    assert_eq!(adapter.resize(Rank::ParameterRatio(1.0)).unwrap().rank(), 8);
    // Half of the singular values of this one are zero.
    let deficient = self::adapter::<f64>(5, (30, 20), 8, Spectrum::Deficient, 1.0);
    assert_eq!(deficient.resize(Rank::Energy(1.0)).unwrap().rank(), 4);
    for rank in [0, 9, 25] {
        assert!(matches!(adapter.resize(Rank::Fixed(rank)), Err(Error::Rank { .. })), "{rank}");
    }
    let error = adapter.resize(Rank::Fixed(9)).unwrap_err().to_string();
    assert!(error.contains('8') && error.contains('9'), "{error}");
}

#[test]
fn merging_is_the_weighted_sum() {
    let shape = (18, 25);
    let first = adapter::<f64>(1, shape, 5, Spectrum::Arithmetic, 0.25);
    let second = adapter::<f64>(2, shape, 3, Spectrum::Geometric, -3.0);
    let parts = [(&first, 0.7), (&second, -0.2)];
    let sum = update(&first) * faer::Scale(0.7) - update(&second) * faer::Scale(0.2);
    let stacked = Adapter::stack(&parts).unwrap();
    assert_eq!(stacked.rank(), 8);
    assert!((update(&stacked) - &sum).norm_l2() < 1e-14 * sum.norm_l2());
    check_ranks(&stacked, "stacked");
    for rank in [Rank::Fixed(8), Rank::Energy(1.0)] {
        let merged = Adapter::merge(&parts, rank).unwrap();
        assert_eq!(merged.rank(), 8);
        assert!((update(&merged) - &sum).norm_l2() < 1e-13 * sum.norm_l2());
    }
    // An adapter minus itself: no rank is needed, and nothing is left but rounding.
    let nothing = Adapter::merge(&[(&first, 1.0), (&first, -1.0)], Rank::Fixed(1)).unwrap();
    assert!(update(&nothing).norm_l2() < 1e-14 * update(&first).norm_l2());
    assert!(Adapter::stack(&[(&first, 1.0), (&first, -1.0)]).unwrap().norm().unwrap() < 1e-13 * first.norm().unwrap());

    assert!(matches!(Adapter::<f64>::merge(&[], Rank::Fixed(1)), Err(Error::Empty { .. })));
    let other = adapter(1, (18, 24), 5, Spectrum::Flat, 1.0);
    assert!(matches!(Adapter::stack(&[(&first, 1.0), (&other, 1.0)]), Err(Error::Shape { .. })));
    assert!(matches!(Adapter::stack(&[(&first, f64::NAN)]), Err(Error::OutOfRange { .. })));
}

#[test]
fn more_rank_than_the_weight_can_have_is_reduced_without_loss() {
    let adapter = adapter::<f64>(7, (6, 9), 20, Spectrum::Arithmetic, 1.0);
    let whole = update(&adapter);
    let reduced = adapter.resize(Rank::Fixed(6)).unwrap();
    assert!((update(&reduced) - &whole).norm_l2() < 1e-13 * whole.norm_l2());
    assert!(adapter.resize(Rank::Fixed(7)).is_err());
}

/// Two weights that differ by a decaying update.
fn weights<T: Scalar>(seed: u64, (m, n): (usize, usize)) -> (Mat<T>, Mat<T>) {
    let mut rng = StdRng::seed_from_u64(seed);
    let base = gaussian(&mut rng, m, n);
    let difference = with_spectrum(&mut rng, m, n, Spectrum::Geometric);
    (cast(base.as_ref()), cast((base + difference).as_ref()))
}

fn widened<T: Scalar>(matrix: &Mat<T>) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| matrix[(i, j)].to_f64())
}

#[test]
fn extraction_without_data_is_the_svd_of_the_difference() {
    fn check<T: Scalar>(tolerance: f64) {
        let (base, tuned) = weights::<T>(3, (25, 18));
        let difference = widened(&tuned) - widened(&base);
        let oracle = svd(difference.as_ref()).values;
        let decomposition = Adapter::extract(base.as_ref(), tuned.as_ref(), Calibration::none(), 18).unwrap();
        for rank in 1..=18 {
            let cut = Adapter::truncated(&decomposition, rank).unwrap();
            let error = (&difference - update(&cut)).norm_l2();
            assert!((error - tail(&oracle, rank)).abs() < tolerance * difference.norm_l2(), "rank {rank}");
            let predicted = decomposition.relative_error(rank).unwrap();
            assert!((predicted - error / difference.norm_l2()).abs() < 1e2 * tolerance, "rank {rank}");
        }
    }
    check::<f64>(1e-13);
    check::<f32>(1e-6);
}

#[test]
fn with_data_the_outputs_change_least() {
    let (base, tuned) = weights::<f64>(3, (25, 18));
    let mut rng = StdRng::seed_from_u64(9);
    let inputs = with_spectrum(&mut rng, 200, 18, Spectrum::Geometric);
    let inputs = stats(inputs.as_ref());
    let layer = Linear::new(&tuned - &base, None).unwrap();
    let aware = Adapter::extract(base.as_ref(), tuned.as_ref(), &inputs, 18).unwrap();
    let blind = Adapter::extract(base.as_ref(), tuned.as_ref(), Calibration::none(), 18).unwrap();
    let reference = Dalr::new().decompose(&layer, &inputs, 18).unwrap();
    for rank in [1, 3, 8, 18] {
        let measured = |decomposition: &Decomposition<f64>| {
            decomposition.truncate(rank).unwrap().evaluate(&layer, &inputs).unwrap()
        };
        let error = measured(&aware);
        assert!((error - measured(&reference)).abs() < 1e-12, "rank {rank}");
        assert!((error - aware.relative_error(rank).unwrap()).abs() < 1e-7, "rank {rank}");
        // The optimum for these samples, from an SVD of the outputs.
        assert!(error <= measured(&blind) + 1e-12 && (rank == 18 || error < 0.95 * measured(&blind)), "rank {rank}");
        let cut = Adapter::truncated(&aware, rank).unwrap();
        assert!((update(&cut) - widened_product(&aware, rank)).norm_l2() < 1e-14 * layer.weight().norm_l2());
    }
}

fn widened_product(decomposition: &Decomposition<f64>, rank: usize) -> Mat<f64> {
    crate::common::weight_of(decomposition.truncate(rank).unwrap().layer())
}

#[test]
fn resizing_with_data_is_extraction_with_data() {
    let mut rng = StdRng::seed_from_u64(12);
    let inputs = stats(with_spectrum(&mut rng, 90, 20, Spectrum::Geometric).as_ref());
    let adapter = adapter::<f64>(4, (30, 20), 8, Spectrum::Arithmetic, 0.5);
    let layer = Linear::new(update(&adapter), None).unwrap();
    let size = layer.weight().norm_l2();
    let through_core = adapter.decompose(&inputs).unwrap();
    let whole = Dalr::new().decompose(&layer, &inputs, 8).unwrap();
    let plain = blind(&adapter);
    for rank in 1..8 {
        assert!(
            (widened_product(&through_core, rank) - widened_product(&whole, rank)).norm_l2() < 1e-9 * size,
            "{rank}"
        );
        let (found, expected) = (through_core.relative_error(rank).unwrap(), whole.relative_error(rank).unwrap());
        assert!((found - expected).abs() < 1e-9, "rank {rank}: {found} {expected}");
        let of_plain = plain.truncate(rank).unwrap().evaluate(&layer, &inputs).unwrap();
        assert!(found < 0.9 * of_plain, "rank {rank}: {found} {of_plain}");
    }

    // The metric has as many rows as there are outputs, so the update itself is solved.
    let gradients = with_spectrum(&mut rng, 60, 30, Spectrum::Geometric);
    let metric = OutputMetric::new((gradients.transpose() * &gradients).as_ref()).unwrap();
    let calibration = Calibration::from(&inputs).with_output_metric(&metric);
    let in_metric = adapter.decompose(calibration).unwrap();
    let whole = Dalr::new().decompose(&layer, calibration, 8).unwrap();
    assert!((widened_product(&in_metric, 3) - widened_product(&whole, 3)).norm_l2() < 1e-9 * size);
    assert!((in_metric.metric_error(3).unwrap() - whole.metric_error(3).unwrap()).abs() < 1e-9);
}

#[test]
fn factors_are_balanced_without_rounding() {
    let mut rng = StdRng::seed_from_u64(2);
    // An update as small as that of a short fine-tuning.
    let difference = with_spectrum(&mut rng, 40, 30, Spectrum::Geometric) * faer::Scale(1e-6);
    let difference: Mat<f32> = cast(difference.as_ref());
    let zero = Mat::zeros(40, 30);
    let decomposition = Adapter::extract(zero.as_ref(), difference.as_ref(), Calibration::none(), 20).unwrap();
    let adapter = Adapter::truncated(&decomposition, 20).unwrap();
    let layer = decomposition.truncate(20).unwrap().into_layer();
    for rank in 0..20 {
        let (column, row) = (adapter.up().col(rank).norm_l2(), adapter.down().row(rank).norm_l2());
        assert!((0.49..2.05).contains(&(column / row)), "{rank}: {column} {row}");
        let factor = adapter.up()[(0, rank)] / layer.up()[(0, rank)];
        assert_eq!(factor.log2().fract(), 0.0, "a power of two");
        for (balanced, plain) in adapter.down().row(rank).iter().zip(layer.down().row(rank).iter()) {
            assert_eq!(balanced * factor, *plain);
        }
    }
}

#[test]
fn numbers_near_the_ends_of_the_range_are_scaled() {
    let reference = adapter::<f64>(8, (12, 10), 4, Spectrum::Arithmetic, 1.0);
    let values = svd(update(&reference).as_ref()).values;
    for (size, scale) in [(1e140, 1e-200), (1e-150, 1e100), (1e150, 1e-200)] {
        let scaled = |matrix: MatRef<'_, f64>| matrix * faer::Scale(size);
        let adapter = Adapter::new(scaled(reference.down()), scaled(reference.up()), scale).unwrap();
        let expected = size * scale * size;
        let decomposition = blind(&adapter);
        let smaller = Adapter::truncated(&decomposition, 2).unwrap();
        assert!((smaller.norm().unwrap() / expected / values[0].hypot(values[1]) - 1.0).abs() < 1e-12, "{size}");
        assert!((decomposition.relative_error(2).unwrap() - tail(&values, 2) / tail(&values, 0)).abs() < 1e-7);
    }
    let big = Adapter::new(Mat::full(1, 2, 1e200), Mat::full(2, 1, 1e200), 1.0).unwrap();
    assert!(matches!(big.resize(Rank::Fixed(1)), Err(Error::Overflow { .. })));
    let zero = Adapter::new(Mat::<f32>::zeros(2, 5), Mat::zeros(4, 2), 1.0).unwrap();
    assert_eq!(zero.norm().unwrap(), 0.0);
    assert_eq!(zero.resize(Rank::Energy(0.9)).unwrap().rank(), 1);
}

#[test]
fn bad_input_is_refused() {
    let zeros = |m, n| Mat::<f64>::zeros(m, n);
    let error = Adapter::new(zeros(3, 5), zeros(4, 2), 1.0).unwrap_err();
    assert!(matches!(error, Error::Shape { .. }) && error.to_string().starts_with("Adapter::new: "), "{error}");
    assert!(matches!(Adapter::new(zeros(0, 5), zeros(4, 0), 1.0), Err(Error::Empty { .. })));
    for scale in [f64::NAN, f64::INFINITY] {
        assert!(matches!(Adapter::new(zeros(2, 5), zeros(4, 2), scale), Err(Error::OutOfRange { .. })));
    }
    let mut nan = zeros(4, 5);
    nan[(2, 3)] = f64::NAN;
    let (base, none) = (zeros(4, 5), Calibration::none());
    let error = Adapter::extract(base.as_ref(), nan.as_ref(), none, 2).unwrap_err().to_string();
    assert!(error.contains("the tuned weight") && error.contains('2') && error.contains('3'), "{error}");
    let error = Adapter::extract(nan.as_ref(), base.as_ref(), none, 2).unwrap_err().to_string();
    assert!(error.contains("the base weight"), "{error}");
    for shape in [(4, 6), (3, 5)] {
        let error = Adapter::extract(base.as_ref(), zeros(shape.0, shape.1).as_ref(), none, 2).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
    }
    for rank in [0, 5] {
        let ones = Mat::full(4, 5, 1.0);
        assert!(matches!(Adapter::extract(base.as_ref(), ones.as_ref(), none, rank), Err(Error::Rank { .. })));
    }
    let other = stats(Mat::<f64>::identity(6, 6).as_ref());
    assert!(matches!(Adapter::extract(base.as_ref(), base.as_ref(), &other, 2), Err(Error::Shape { .. })));
    let huge = (Mat::full(2, 2, f64::MAX), Mat::full(2, 2, f64::MIN));
    assert!(matches!(Adapter::extract(huge.0.as_ref(), huge.1.as_ref(), none, 1), Err(Error::Overflow { .. })));
    let biased = Linear::new(Mat::full(4, 5, 1.0), Some(faer::Col::zeros(4))).unwrap();
    let biased = TruncatedSvd::new().decompose(&biased, none, 2).unwrap();
    assert!(matches!(Adapter::truncated(&biased, 1), Err(Error::Layers { .. })));
}

#[test]
fn equal_weights_give_an_update_of_zero() {
    let (base, _) = weights::<f32>(1, (6, 7));
    let decomposition = Adapter::extract(base.as_ref(), base.as_ref(), Calibration::none(), 6).unwrap();
    assert_eq!(decomposition.total_energy(), 0.0);
    assert_eq!(decomposition.relative_error(1), Some(0.0));
    assert_eq!(Adapter::truncated(&decomposition, 1).unwrap().norm().unwrap(), 0.0);
}

/// Adapters of layers of different shapes and sizes.
fn three() -> [(&'static str, Adapter<f64>); 3] {
    [
        ("query", adapter(1, (12, 9), 5, Spectrum::Arithmetic, 1.0)),
        ("value", adapter(2, (20, 30), 4, Spectrum::Geometric, 0.7)),
        ("small", adapter(3, (8, 6), 6, Spectrum::Flat, 0.05)),
    ]
}

fn profiles(adapters: &[(&'static str, Adapter<f64>)]) -> Vec<LayerProfile> {
    adapters.iter().map(|(name, adapter)| LayerProfile::new(*name, &blind(adapter))).collect()
}

fn allocate(adapters: &[(&'static str, Adapter<f64>)], budget: Budget) -> Plan {
    let energies = adapters.iter().map(|(name, adapter)| (*name, blind(adapter).total_energy()));
    let strategy = Strategy::Sensitivity(Sensitivities::new(energies).unwrap());
    Allocator::new(budget).with_strategy(strategy).allocate(&profiles(adapters)).unwrap()
}

/// The rank of each layer, 0 for none.
fn ranks(plan: &Plan) -> Vec<usize> {
    let rank = |choice| if let Choice::Rank(rank) = choice { rank } else { 0 };
    plan.layers.iter().map(|layer| rank(layer.choice)).collect()
}

#[test]
fn one_budget_goes_where_it_reduces_the_error_of_all_updates_most() {
    let adapters = three();
    let values: Vec<Vec<f64>> = adapters.iter().map(|(_, adapter)| svd(update(adapter).as_ref()).values).collect();
    let squared =
        |ranks: &[usize]| values.iter().zip(ranks).map(|(values, &rank)| tail(values, rank).powi(2)).sum::<f64>();
    let parameters = |ranks: &[usize]| -> usize {
        adapters
            .iter()
            .zip(ranks)
            .map(|((_, adapter), rank)| rank * (adapter.in_features() + adapter.out_features()))
            .sum()
    };
    let mut all = Vec::new();
    for a in 0..=5 {
        for b in 0..=4 {
            all.extend((0..=6).map(|c| [a, b, c]));
        }
    }
    for limit in [0, 20, 21, 60, 100, 150, 389, 1000] {
        let found = ranks(&allocate(&adapters, Budget::Parameters(limit as u64)));
        assert!(parameters(&found) <= limit, "{limit}: {found:?}");
        let best = all.iter().filter(|ranks| parameters(*ranks) <= limit).map(|ranks| squared(ranks));
        let best = best.fold(f64::INFINITY, f64::min);
        assert!(squared(&found) <= best * (1.0 + 1e-9) + 1e-12, "{limit}: {found:?}");
    }
    for limit in [0, 1, 2, 7, 15, 40] {
        let found = ranks(&allocate(&adapters, Budget::TotalRank(limit as u64)));
        assert!(found.iter().sum::<usize>() <= limit, "{limit}: {found:?}");
        let best = all.iter().filter(|ranks| ranks.iter().sum::<usize>() <= limit).map(|ranks| squared(ranks));
        let best = best.fold(f64::INFINITY, f64::min);
        assert!(squared(&found) <= best * (1.0 + 1e-9) + 1e-12, "{limit}: {found:?}");
    }
    for error in [0.5, 0.1, 0.01] {
        let plan = allocate(&adapters, Budget::TotalError(error));
        let found = ranks(&plan);
        let limit = error * error * squared(&[0, 0, 0]) * (1.0 + 1e-12);
        assert!(squared(&found) <= limit, "{error}: {found:?}");
        let best = all.iter().filter(|ranks| squared(*ranks) <= limit).map(|ranks| parameters(ranks)).min();
        assert_eq!(Some(parameters(&found)), best, "{error}: {found:?}");
        assert!((plan.total_error().unwrap() - (squared(&found) / squared(&[0, 0, 0])).sqrt()).abs() < 1e-7);
    }
}

#[test]
fn a_plan_says_which_adapters_are_left_out_and_what_that_costs() {
    let adapters = three();
    let profiles = profiles(&adapters);
    let plan = allocate(&adapters, Budget::TotalRank(2));
    assert_eq!(plan.choice("small"), Some(Choice::Original));
    let small = &plan.layers[2];
    assert_eq!(small.reason, Some(OriginalReason::LeftOut));
    assert_eq!((small.loss, small.relative_error, small.parameters_after), (1.0, Some(1.0), 0));
    assert_eq!((small.parameters_before, plan.parameters_before()), (6 * 14, 5 * 21 + 4 * 50 + 6 * 14));
    // Every layer within an error: none is left out.
    let plan = allocate(&adapters, Budget::LayerError(0.5));
    assert!(plan.layers.iter().all(|layer| layer.relative_error.unwrap() <= 0.5 && layer.choice != Choice::Original));
    // One rank for all; an adapter of a smaller rank keeps all of it.
    assert_eq!(ranks(&allocate(&adapters, Budget::Rank(5))), [5, 4, 5]);
    assert_eq!(ranks(&allocate(&adapters, Budget::Rank(2))), [2, 2, 2]);
    // Uniform allocation keeps the same fraction of every rank.
    let plan = Allocator::new(Budget::ParameterFraction(0.5)).allocate(&profiles).unwrap();
    assert_eq!(ranks(&plan), [2, 2, 3]);
    let untouched = Allocator::new(Budget::TotalRank(15)).with_untouched("value").allocate(&profiles).unwrap();
    assert_eq!(untouched.layers[1].reason, Some(OriginalReason::Untouched));
}

#[test]
fn the_sum_of_ranks_limits_layers_too() {
    let layer = |name: &str, energies: &[f64]| {
        LayerProfile::from_energies(name, (9, 9), false, energies, 0.1 + energies.iter().sum::<f64>()).unwrap()
    };
    let profiles = [layer("steep", &[9.0, 1.0, 0.1, 0.01]), layer("flat", &[3.0; 4])];
    let allocator = |rank| Allocator::new(Budget::TotalRank(rank)).with_strategy(Strategy::Energy);
    assert_eq!(ranks(&allocator(6).allocate(&profiles).unwrap()), [2, 4]);
    assert_eq!(ranks(&allocator(2).allocate(&profiles).unwrap()), [1, 1]);
    // An original layer has rank 9.
    assert!(allocator(18).allocate(&profiles).unwrap().layers.iter().all(|layer| layer.choice == Choice::Original));
    let error = allocator(1).allocate(&profiles).unwrap_err().to_string();
    assert!(error.contains("the sum of all ranks") && error.contains("at least 2"), "{error}");
}
