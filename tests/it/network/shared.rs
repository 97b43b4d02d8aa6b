//! Layers with a shared input: the allocator chooses one `down` or separate factors, with the
//! smaller loss within the same budget.

use dalr::compress::OutputMetric;
use dalr::factors::Form;
use dalr::network::{Allocator, Budget, Choice, LayerProfile, Network, Plan, Sensitivities, SharedInput, Strategy};
use dalr::{
    ActivationStats, Calibration, Dalr, Decomposition, Error, Linear, LowRankCompressor, LowRankLinear, Ridge, Scalar,
    TruncatedSvd,
};
use faer::{Col, Mat};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::choices;
use crate::common::{Spectrum, gaussian, with_spectrum};

/// A group with a shared input, and its decomposition.
type Joint = (SharedInput, Decomposition<f64>);

const NAMES: [&str; 3] = ["query", "key", "value"];

struct Group {
    layers: Vec<Linear<f64>>,
    stats: ActivationStats<f64>,
    inputs: Mat<f64>,
}

/// Returns three layers of different scale, with the same row space or separate ones.
fn group(alike: bool, bias: bool) -> Group {
    let mut rng = StdRng::seed_from_u64(7);
    let (inputs, rank, samples) = (32, 8, 200);
    let data = with_spectrum(&mut rng, samples, inputs, Spectrum::Arithmetic);
    let offset = gaussian(&mut rng, 1, inputs);
    let data = Mat::from_fn(samples, inputs, |i, j| data[(i, j)] + 0.1 * offset[(0, j)]);
    let common = gaussian(&mut rng, rank, inputs);
    let layers = (0..3_usize).map(|index| {
        let own = gaussian(&mut rng, rank, inputs);
        let down = if alike { &common } else { &own };
        let outputs = 24 + 8 * index;
        let noise = gaussian(&mut rng, outputs, inputs);
        let weight = gaussian(&mut rng, outputs, rank) * down + noise * faer::Scale(0.05);
        let weight = weight * faer::Scale(100_f64.powi(index as i32 - 1));
        let bias = bias.then(|| Col::from_fn(outputs, |i| i as f64));
        Linear::new(weight, bias).unwrap()
    });
    let layers = layers.collect();
    Group { layers, stats: crate::common::stats(data.as_ref()), inputs: data }
}

/// Returns the profiles of the layers, each decomposed for all ranks.
fn profiles<T: Scalar>(
    method: &dyn LowRankCompressor<T>,
    layers: &[Linear<T>],
    stats: &ActivationStats<T>,
) -> Vec<LayerProfile> {
    let profile = |(name, layer): (&str, &Linear<T>)| {
        let full = layer.out_features().min(layer.in_features());
        LayerProfile::new(name, &method.solve(layer, stats.into(), full).unwrap())
    };
    NAMES.into_iter().zip(layers).map(profile).collect()
}

impl Group {
    fn profiles(&self, method: &dyn LowRankCompressor<f64>) -> Vec<LayerProfile> {
        profiles(method, &self.layers, &self.stats)
    }

    fn joint(&self, method: &dyn LowRankCompressor<f64>, profiles: &[LayerProfile]) -> Joint {
        let members: Vec<_> = profiles.iter().zip(&self.layers).collect();
        SharedInput::decompose(&members, None, method, &self.stats, 32).unwrap()
    }

    fn weighted(
        &self,
        method: &dyn LowRankCompressor<f64>,
        profiles: &[LayerProfile],
        weights: [(&str, f64); 3],
    ) -> SharedInput {
        let members: Vec<_> = profiles.iter().zip(&self.layers).collect();
        let sensitivities = Sensitivities::new(weights).unwrap();
        SharedInput::decompose(&members, Some(&sensitivities), method, &self.stats, 32).unwrap().0
    }

    fn split(&self, joint: &Joint, rank: usize) -> Vec<LowRankLinear<f64>> {
        joint.0.split(joint.1.truncate(rank).unwrap().layer()).unwrap()
    }

    /// Returns the squared error of a layer of the group, divided by the energy of its outputs,
    /// both measured by running it. They are centred if the layers have a bias.
    fn measured(&self, index: usize, low: &LowRankLinear<f64>) -> f64 {
        let layer = &self.layers[index];
        let (error, total) = crate::common::run_both(layer, low, self.inputs.as_ref(), layer.bias().is_some());
        error / total
    }
}

fn shared(plan: &Plan) -> Option<usize> {
    let ranks = choices(plan).into_iter().map(|choice| match choice {
        Choice::Shared { group: 0, rank } => Some(rank),
        Choice::Shared { .. } => panic!("{choice:?}"),
        _ => None,
    });
    let ranks: Vec<Option<usize>> = ranks.collect();
    assert!(ranks.iter().all(|rank| *rank == ranks[0]), "{ranks:?}");
    ranks[0]
}

#[test]
fn predicted_losses_are_those_of_the_layers_that_come_out() {
    for bias in [false, true] {
        let group = group(true, bias);
        let method = Dalr::new().with_ridge(Ridge::None);
        let joint = group.joint(&method, &group.profiles(&method));
        for rank in [1, 4, 8, 20, 32] {
            let layers = group.split(&joint, rank);
            let apart: usize = layers.iter().map(LowRankLinear::parameters).sum();
            // Each layer has a copy of `down`, which counts once.
            assert_eq!((apart - 2 * rank * 32) as u64, joint.0.parameters(rank));
            for (index, layer) in layers.iter().enumerate() {
                assert_eq!(layer.down(), layers[0].down());
                let (predicted, measured) = (joint.0.loss(index, rank).unwrap(), group.measured(index, layer));
                let rounding = 1e3 * f64::EPSILON;
                assert!((predicted - measured).abs() <= rounding, "{bias}, rank {rank}: {predicted:e} {measured:e}");
            }
        }
        assert_eq!((joint.0.max_rank(), joint.0.loss(0, 33), joint.0.loss(3, 1)), (32, None, None));
        assert!(joint.0.names().eq(NAMES));
    }
}

#[test]
fn one_down_wins_where_layers_look_at_the_same_and_loses_where_they_do_not() {
    for (alike, strategy) in
        [true, false].into_iter().flat_map(|alike| [(alike, Strategy::Energy), (alike, Strategy::Uniform)])
    {
        let group = group(alike, true);
        let method = Dalr::new();
        let profiles = group.profiles(&method);
        let (joint, _) = group.joint(&method, &profiles);
        for budget in [Budget::ParameterFraction(0.45), Budget::MultiplyAddFraction(0.45), Budget::TotalError(0.3)] {
            let allocator = Allocator::new(budget).with_strategy(strategy.clone());
            let apart = allocator.allocate(&profiles).unwrap();
            let plan = allocator.allocate_shared(&profiles, std::slice::from_ref(&joint)).unwrap();
            assert_eq!(shared(&plan).is_some(), alike, "{strategy}, {budget}: {plan}");
            assert!(plan.objective <= apart.objective && plan.lower_bound <= plan.objective);
            assert_eq!(plan.objective < apart.objective, alike);
            match budget {
                Budget::TotalError(error) => assert!(plan.total_error().unwrap() <= error * (1.0 + 1e-12)),
                _ => assert!(plan.parameters_after() as f64 <= 0.48 * plan.parameters_before() as f64),
            }
            if let Some(rank) = shared(&plan) {
                assert_eq!(plan.parameters_after(), joint.parameters(rank));
                let loss = |index| joint.loss(index, rank).unwrap();
                assert_eq!(plan.layers[1].relative_error, Some(loss(1).sqrt()));
                assert!(plan.to_string().contains(&format!("{rank} (shared, group 0)")), "{plan}");
            }
        }
        // The fewest parameters within an error of each layer: one `down` of rank 8, or three
        // factors of rank 8.
        let plan =
            Allocator::new(Budget::LayerError(0.35)).allocate_shared(&profiles, std::slice::from_ref(&joint)).unwrap();
        assert_eq!(shared(&plan).is_some(), alike);
        assert!(plan.layers.iter().all(|layer| layer.relative_error.unwrap() <= 0.35));
        // With one rank for all layers, each layer has its own factors.
        let plan = Allocator::new(Budget::Rank(6)).allocate_shared(&profiles, std::slice::from_ref(&joint)).unwrap();
        assert_eq!(choices(&plan), [Choice::Rank(6); 3]);
        // If one layer stays original, its group cannot have one `down`.
        let allocator = Allocator::new(Budget::ParameterFraction(0.7)).with_untouched("key");
        let plan = allocator.allocate_shared(&profiles, std::slice::from_ref(&joint)).unwrap();
        assert_eq!(plan.choice("key"), Some(Choice::Original));
    }
}

#[test]
fn the_joint_factors_lose_least_of_the_weighted_sum() {
    // The loss is not only that of the layer with 100 times larger outputs, and it is larger for
    // the layer with the smaller sensitivity.
    let group = group(false, false);
    let method = Dalr::new().with_ridge(Ridge::None);
    let profiles = group.profiles(&method);
    let weights = [("query", 1.0), ("key", 0.05), ("value", 1.0)];
    let weighted = group.weighted(&method, &profiles, weights);
    let (even, _) = group.joint(&method, &profiles);
    let loss = |joint: &SharedInput, index| joint.loss(index, 12).unwrap();
    let sum = |joint: &SharedInput, weights: [f64; 3]| -> f64 {
        weights.iter().enumerate().map(|(index, weight)| weight * loss(joint, index)).sum()
    };
    assert!(sum(&weighted, weights.map(|(_, weight)| weight)) < sum(&even, weights.map(|(_, weight)| weight)));
    assert!(sum(&weighted, [1.0; 3]) > sum(&even, [1.0; 3]));
    assert!(loss(&weighted, 1) > loss(&even, 1) && loss(&weighted, 0) < loss(&even, 0));
    // With equal sensitivities, all layers have similar losses.
    let losses = [0, 1, 2].map(|index| loss(&even, index));
    assert!(losses.iter().all(|loss| *loss < 3.0 * losses[0] && 3.0 * loss > losses[0]), "{losses:?}");
}

#[test]
fn biases_that_are_kept_are_kept_exactly() {
    let group = group(true, true);
    let method = TruncatedSvd::new();
    let joint = group.joint(&method, &group.profiles(&method));
    for (compressed, layer) in group.split(&joint, 5).iter().zip(&group.layers) {
        assert_eq!(compressed.bias(), layer.bias());
    }
}

#[test]
fn weights_count_in_any_unit() {
    let group = group(false, false);
    let method = Dalr::new().with_ridge(Ridge::None);
    let profiles = group.profiles(&method);
    let losses = |unit: f64| {
        let weights = [("query", unit), ("key", 0.05 * unit), ("value", 0.5 * unit)];
        let shared = group.weighted(&method, &profiles, weights);
        [0, 1, 2].map(|index| shared.loss(index, 12).unwrap())
    };
    let expected = losses(1.0);
    for unit in [1e-9, 1e9] {
        for (loss, expected) in losses(unit).into_iter().zip(expected) {
            assert!((loss - expected).abs() <= 1e-9 * expected, "{loss} at {unit}, {expected} at 1");
        }
    }
}

/// Returns the group in single precision, weights and inputs times powers of two.
fn single(group: &Group, weight: i32, input: i32) -> (Vec<Linear<f32>>, ActivationStats<f32>) {
    let scaled = |matrix: faer::MatRef<'_, f64>, power: i32| {
        crate::common::cast::<f32>((matrix * faer::Scale(2_f64.powi(power))).as_ref())
    };
    let layers = group.layers.iter().map(|layer| Linear::new(scaled(layer.weight(), weight), None).unwrap());
    (layers.collect(), crate::common::stats(scaled(group.inputs.as_ref(), input).as_ref()))
}

#[test]
fn groups_may_be_of_any_size() {
    let group = group(false, false);
    let method = Dalr::new();
    let losses = |weight: i32, input: i32| {
        let (layers, stats) = single(&group, weight, input);
        let profiles = profiles(&method, &layers, &stats);
        let members: Vec<_> = profiles.iter().zip(&layers).collect();
        let (shared, _) = SharedInput::decompose(&members, None, &method, &stats, 24).unwrap();
        // Profiles of layers with twice the weight are those of other layers, at any scale.
        let double = |layer: &Linear<f32>| Linear::new(layer.weight() * faer::Scale(2.0_f32), None).unwrap();
        let twice: Vec<Linear<f32>> = layers.iter().map(double).collect();
        let members: Vec<_> = profiles.iter().zip(&twice).collect();
        let refused = SharedInput::decompose(&members, None, &method, &stats, 24);
        assert!(matches!(refused, Err(Error::Layers { .. })), "{weight}, {input}");
        [0, 1, 2].map(|index| shared.loss(index, 12).unwrap())
    };
    let expected = losses(0, 0);
    for (weight, input) in [(-50, -50), (50, 50), (-20, 0), (20, 0)] {
        for (loss, expected) in losses(weight, input).into_iter().zip(expected) {
            assert!((loss - expected).abs() <= 1e-4 * expected, "{loss} at {weight} and {input}, not {expected}");
        }
    }
}

#[test]
fn a_member_without_outputs_loses_nothing_and_costs_the_others_nothing() {
    let group = group(false, false);
    let method = Dalr::new().with_ridge(Ridge::None);
    let mut rng = StdRng::seed_from_u64(8);
    // Beyond rank 4, only rounding is left, and the directions are arbitrary.
    for outputs in [8, 32] {
        let weight = gaussian(&mut rng, outputs, 4) * gaussian(&mut rng, 4, 32);
        let layers = [weight, Mat::zeros(outputs, 32)].map(|weight| Linear::new(weight, None).unwrap());
        let profiles = profiles(&method, &layers, &group.stats);
        let largest = 32.min(2 * outputs);
        let joint = |order: [usize; 2]| {
            let members = order.map(|index| (&profiles[index], &layers[index]));
            SharedInput::decompose(&members, None, &method, &group.stats, largest).unwrap().0
        };
        for (order, some, none) in [([0, 1], 0, 1), ([1, 0], 1, 0)] {
            let joint = joint(order);
            for rank in 1..=largest {
                let alone = profiles[0].loss(rank).unwrap_or(0.0);
                assert!((joint.loss(some, rank).unwrap() - alone).abs() <= 1e-12, "{outputs}, {order:?}, {rank}");
                assert_eq!(joint.loss(none, rank), Some(0.0), "{outputs}, {order:?}, {rank}");
            }
        }
        assert_eq!(joint([1, 1]).loss(1, 4), Some(0.0));
    }
}

#[test]
fn factors_and_biases_of_members_that_overflow_are_refused() {
    let group = group(false, false);
    let method = Dalr::new();
    // The second layer is so much larger than the first that its `up` overflows. In the other case
    // only its corrected bias overflows, which also contains the mean of the inputs.
    for (powers, mean, bias) in [([-66, 66], 0.0, false), ([0, 100], 2_f32.powi(40), true)] {
        let spread = if bias { 2_f32.powi(34) } else { 1.0 };
        let inputs = Mat::from_fn(200, 32, |i, j| mean + spread * group.inputs[(i, j)] as f32);
        let stats = crate::common::stats(inputs.as_ref());
        let layers = powers.map(|power| {
            let weight = Mat::from_fn(24, 32, |i, j| group.layers[1].weight()[(i, j)] as f32 * 2_f32.powi(power));
            Linear::new(weight, bias.then(|| Col::zeros(24))).unwrap()
        });
        let profiles = profiles(&method, &layers, &stats);
        let members: Vec<_> = profiles.iter().zip(&layers).collect();
        let joint = SharedInput::decompose(&members, None, &method, &stats, 24);
        let error = joint.and_then(|(_, decomposition)| decomposition.truncate(2)).unwrap_err();
        let message = "overflows: use smaller numbers, or a larger type such as `f64`";
        assert!(matches!(error, Error::Overflow { .. }) && error.to_string().contains(message), "{powers:?}: {error}");
    }
}

#[test]
fn refusals() {
    let group = group(true, true);
    let method = Dalr::new();
    let profiles = group.profiles(&method);
    let pair = |index: usize| (&profiles[index], &group.layers[index]);
    let refused = |members: &[(&LayerProfile, &Linear<f64>)]| {
        SharedInput::decompose(members, None, &method, &group.stats, 4).unwrap_err()
    };
    assert!(matches!(refused(&[]), Error::Layers { .. }));
    assert!(matches!(refused(&[pair(0)]), Error::Layers { .. }));
    assert!(matches!(refused(&[pair(0), (&profiles[1], &group.layers[2])]), Error::Layers { .. }));
    let dense = LayerProfile::original("key", (32, 32), true).unwrap();
    assert!(matches!(refused(&[pair(0), (&dense, &group.layers[1])]), Error::Layers { .. }));
    let bare = Linear::new(group.layers[1].weight().to_owned(), None).unwrap();
    assert!(matches!(refused(&[pair(0), (&profiles[1], &bare)]), Error::Layers { .. }));
    let narrow = Linear::new(Mat::from_fn(24, 30, |i, j| (i + j) as f64), Some(Col::zeros(24))).unwrap();
    let profile =
        LayerProfile::new("narrow", &TruncatedSvd::new().decompose(&narrow, &ActivationStats::new(30), 24).unwrap());
    let Error::InLayer { layer, source } = refused(&[pair(0), (&profile, &narrow)]) else { panic!() };
    assert!(layer == "narrow" && matches!(*source, Error::Shape { expected: 32, found: 30, .. }));

    let members = [pair(0), pair(1), pair(2)];
    let partial = Sensitivities::new([("query", 1.0), ("key", 1.0)]).unwrap();
    let partial = SharedInput::decompose(&members, Some(&partial), &method, &group.stats, 4);
    assert!(matches!(partial, Err(Error::Layers { .. })));
    // Profiles of another method have losses that cannot be compared.
    assert!(matches!(
        SharedInput::decompose(&members, None, &TruncatedSvd::new(), &group.stats, 4),
        Err(Error::Layers { .. })
    ));

    let joint = group.joint(&method, &profiles);
    let alone = method.decompose(&group.layers[0], &group.stats, 4).unwrap().truncate(4).unwrap().into_layer();
    let down = Mat::from_fn(4, 30, |i, j| (i + j) as f64);
    let thin = LowRankLinear::new(down, joint.1.truncate(4).unwrap().layer().up().to_owned(), None).unwrap();
    for layer in [&alone, &thin] {
        assert!(matches!(joint.0.split(layer), Err(Error::Shape { .. })));
    }
    let (joint, _) = joint;
    let allocator = Allocator::new(Budget::ParameterFraction(0.5));
    let twice = allocator.allocate_shared(&profiles, &[joint.clone(), joint.clone()]).unwrap_err();
    assert!(matches!(twice, Error::Layers { .. }));
    let absent = allocator.allocate_shared(&profiles[..2], std::slice::from_ref(&joint)).unwrap_err();
    assert!(matches!(absent, Error::Layers { .. }));
    let by_errors: Vec<_> = profiles.iter().map(|profile| profile.clone().with_data_errors().unwrap()).collect();
    assert!(matches!(allocator.allocate_shared(&by_errors, std::slice::from_ref(&joint)), Err(Error::Layers { .. })));
    // The error states the difference, first that of the shape.
    let stats = crate::common::stats(group.inputs.subcols(0, 30));
    let query = LayerProfile::new("query", &method.decompose(&narrow, &stats, 24).unwrap()).with_data_errors().unwrap();
    for (query, found) in [(by_errors[0].clone(), "losses by errors on the data"), (query, "another shape")] {
        let layers = [query, profiles[1].clone(), profiles[2].clone()];
        let error = allocator.allocate_shared(&layers, std::slice::from_ref(&joint)).unwrap_err();
        let expected = "`query` of the shape, and with the losses by energy, that its group has";
        assert_eq!(error.to_string(), format!("Allocator::allocate: expected {expected}, got {found}"));
    }
}

/// A metric for each layer of the group, without a floor, and the matrices.
fn metrics(group: &Group) -> (Vec<OutputMetric>, Vec<Mat<f64>>) {
    let mut rng = StdRng::seed_from_u64(31);
    let matrices: Vec<Mat<f64>> = group
        .layers
        .iter()
        .map(|layer| {
            let root = gaussian(&mut rng, layer.out_features(), 2 * layer.out_features());
            &root * root.transpose()
        })
        .collect();
    let metric = |matrix: &Mat<f64>| OutputMetric::new(matrix.as_ref()).unwrap().with_floor(0.0).unwrap();
    (matrices.iter().map(metric).collect(), matrices)
}

/// Returns the mean squared error of a layer in the metric `matrix`, or of the original outputs
/// themselves without a replacement.
fn in_metric(group: &Group, index: usize, low: Option<&LowRankLinear<f64>>, matrix: &Mat<f64>) -> f64 {
    let outputs = &group.inputs * group.layers[index].weight().transpose();
    let error = match low {
        Some(low) => outputs - &group.inputs * low.to_linear().unwrap().weight().transpose(),
        None => outputs,
    };
    let weighed = &error * matrix;
    let sum: f64 = weighed.col_iter().zip(error.col_iter()).map(|(a, b)| a.transpose() * b).sum();
    sum / group.inputs.nrows() as f64
}

#[test]
fn layers_with_output_metrics_can_share_an_input() {
    let group = group(true, false);
    let method = Dalr::new().with_ridge(Ridge::None);
    let (metrics, matrices) = metrics(&group);
    let profile = |index: usize| {
        let calibration = Calibration::from(&group.stats).with_output_metric(&metrics[index]);
        let full = group.layers[index].out_features().min(32);
        LayerProfile::new(NAMES[index], &method.decompose(&group.layers[index], calibration, full).unwrap())
    };
    let profiles: Vec<LayerProfile> = (0..3).map(profile).collect();
    let members: Vec<_> = profiles.iter().zip(&group.layers).collect();
    let all = OutputMetric::block_diagonal(&Vec::from_iter(&metrics)).unwrap();
    let calibration = Calibration::from(&group.stats).with_output_metric(&all);
    let weights = Sensitivities::new([("query", 0.3), ("key", 2.0), ("value", 1.0)]).unwrap();
    let solve = |calibration, weights| SharedInput::decompose(&members, weights, &method, calibration, 32);
    for weights in [None, Some(&weights)] {
        let joint = solve(calibration, weights).unwrap();
        for rank in [1, 5, 8, 20] {
            for (index, layer) in group.split(&joint, rank).iter().enumerate() {
                let matrix = &matrices[index];
                let measured = in_metric(&group, index, Some(layer), matrix) / in_metric(&group, index, None, matrix);
                let predicted = joint.0.loss(index, rank).unwrap();
                assert!((predicted - measured).abs() < 1e-10, "{index}, rank {rank}: {predicted:e} {measured:e}");
            }
        }
    }
    // Without the metric, with that of other layers, or with one that couples layers.
    let plain = Calibration::from(&group.stats);
    assert!(matches!(solve(plain, None), Err(Error::Layers { .. })));
    let few = OutputMetric::block_diagonal(&[&metrics[0], &metrics[1]]).unwrap();
    assert!(matches!(solve(plain.with_output_metric(&few), None), Err(Error::Shape { expected: 96, found: 56, .. })));
    let coupled = Mat::from_fn(96, 96, |i, j| if i == j { 2.0 } else { 1.0 / 96.0 });
    let coupled = OutputMetric::new(coupled.as_ref()).unwrap();
    let refused = solve(plain.with_output_metric(&coupled), None).unwrap_err().to_string();
    assert!(refused.contains("a metric with a block for each layer, got one that couples `query`"), "{refused}");

    // The same in one call: the objective is what the layers that come out lose.
    for strategy in [Strategy::OutputMetric, Strategy::Sensitivity(weights)] {
        let network = NAMES.into_iter().zip(&group.layers).zip(&metrics).fold(
            Network::new().with_shared_input(NAMES),
            |network, ((name, layer), metric)| {
                network.with_layer(name, layer, Calibration::from(&group.stats).with_output_metric(metric))
            },
        );
        let allocator = Allocator::new(Budget::ParameterFraction(0.4)).with_strategy(strategy.clone());
        let (plan, layers) = network.compress(&method, allocator).unwrap();
        // In absolute losses, the layer with the largest outputs gets nearly everything.
        assert_eq!(shared(&plan).is_some(), strategy != Strategy::OutputMetric, "{plan}");
        let lost = |(index, name): (usize, &str)| {
            let matrix = &matrices[index];
            let absolute = in_metric(&group, index, Some(&layers[name]), matrix);
            match &strategy {
                Strategy::Sensitivity(weights) => {
                    weights.get(name).unwrap() * absolute / in_metric(&group, index, None, matrix)
                }
                _ => absolute,
            }
        };
        let lost: f64 = NAMES.into_iter().enumerate().map(lost).sum();
        assert!((lost - plan.objective).abs() < 1e-8 * lost, "{lost:e}, {:e}", plan.objective);
    }
}

#[test]
fn blocks_of_metrics_may_have_any_kind_and_scale() {
    let full = OutputMetric::new(faer::mat![[3e8, 1e8], [1e8, 2e8]].as_ref()).unwrap();
    let diagonal = OutputMetric::diagonal(&[1e-6, 3e-6, 2e-6]).unwrap();
    let all = OutputMetric::block_diagonal(&[&full, &diagonal]).unwrap();
    // A layer whose parts read different inputs: each part is compressed as on its own.
    let mut rng = StdRng::seed_from_u64(5);
    let weight = Mat::from_fn(5, 4, |i, j| {
        let part = (i < 2) == (j < 2);
        if part { gaussian(&mut rng, 1, 1)[(0, 0)] * if i < 2 { 1.0 } else { 1e7 } } else { 0.0 }
    });
    let inputs = gaussian(&mut rng, 60, 4);
    let method = Dalr::new().with_ridge(Ridge::None);
    let solve = |rows: std::ops::Range<usize>, columns: std::ops::Range<usize>, metric: &OutputMetric| {
        let part = weight.as_ref().submatrix(rows.start, columns.start, rows.len(), columns.len());
        let layer = Linear::new(part.to_owned(), None).unwrap();
        let stats = crate::common::stats(inputs.subcols(columns.start, columns.len()));
        let calibration = Calibration::from(&stats).with_output_metric(metric);
        method.decompose(&layer, calibration, rows.len().min(columns.len())).unwrap().total_energy()
    };
    let (one, other) = (solve(0..2, 0..2, &full), solve(2..5, 2..4, &diagonal));
    let sum = solve(0..5, 0..4, &all);
    assert!((sum - one - other).abs() < 1e-12 * sum, "{sum} {one} {other}");
    assert!(one > 1e-6 * sum && other > 1e-6 * sum);
    assert!(matches!(OutputMetric::block_diagonal(&[]), Err(Error::Empty { .. })));
}

#[test]
fn a_group_in_pivoted_storage_counts_one_stacked_layer() {
    let group = group(true, true);
    let method = Dalr::new();
    let profiles = group.profiles(&method);
    let (shared_input, decomposition) = group.joint(&method, &profiles);
    let pivoted = shared_input.clone().with_form(Form::Pivoted);
    for rank in [1, 8, 20] {
        let stacked = decomposition.truncate(rank).unwrap().into_layer().to_pivoted().unwrap();
        assert_eq!(pivoted.parameters(rank) as usize, stacked.parameters());
        assert!(pivoted.parameters(rank) < shared_input.parameters(rank));
    }
    let plan = Allocator::new(Budget::ParameterFraction(0.35)).with_strategy(Strategy::Energy);
    let plan = plan.allocate_shared(&profiles, std::slice::from_ref(&pivoted)).unwrap();
    assert_eq!(plan.parameters_after(), pivoted.parameters(shared(&plan).unwrap()));
}
