//! Properties of all layers and data, tested on random ones.

use crate::common::{Problem, Recipe, SPECTRA, cast, gaussian, orthogonal, run_both, stats, weight_of};
use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Rank, Report, Ridge, TruncatedSvd};
use faer::{Mat, MatRef, Scale};
use proptest::prelude::*;
use proptest::sample::select;
use rand::SeedableRng;
use rand::rngs::StdRng;

fn recipes() -> impl Strategy<Value = Recipe> {
    let shape = (1..14_usize, 1..14_usize, 1..40_usize);
    let mean = select(vec![0.0, 1.0, 100.0]);
    let scale = select(vec![1.0, 1e-6, 1e6]);
    (any::<u64>(), shape, select(SPECTRA.to_vec()), select(SPECTRA.to_vec()), mean, scale).prop_map(
        |(seed, (out_features, in_features, samples), weight, data, mean, scale)| Recipe {
            seed,
            out_features,
            in_features,
            samples,
            weight,
            data,
            mean,
            scale,
        },
    )
}

/// Ridges with which DALR is never worse than truncated SVD on the calibration data.
fn anchored() -> impl Strategy<Value = Ridge> {
    prop_oneof![
        Just(Ridge::None),
        Just(Ridge::Shrinkage),
        (-8.0..8.0_f64).prop_map(|exponent| Ridge::Relative(10_f64.powf(exponent))),
    ]
}

/// Returns the rounding in a squared error: a multiple of `ε` times the norms that were multiplied.
/// `anchor` is the ratio of the ridge to the data in the regularized problem.
fn slack(problem: &Problem, anchor: f64) -> f64 {
    let norms = problem.inputs.squared_norm_l2() * problem.weight.squared_norm_l2();
    100.0 * f64::EPSILON * norms * (1.0 + anchor)
}

/// Returns `λ`, divided by the mean second moment of an input. With `ρ = 1`, a factor `2⁻³⁶` of the
/// data remains.
fn anchor_of(ridge: Ridge, report: &Report) -> f64 {
    match (ridge, report.shrinkage) {
        (Ridge::Relative(ratio), _) => ratio,
        (_, Some(rho)) => rho / (1.0 - rho).max(2_f64.powi(-36)),
        _ => 0.0,
    }
}

fn largest(matrix: MatRef<'_, f64>) -> f64 {
    matrix.norm_max()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn dalr_is_never_worse_than_svd(recipe in recipes(), ridge in anchored(), correct in any::<bool>()) {
        let problem = recipe.cook();
        let (layer, stats) = (problem.layer::<f64>(), problem.stats());
        let dalr = Dalr::new().with_ridge(ridge).with_bias_correction(correct);
        let svd = TruncatedSvd::new().with_bias_correction(correct);
        let dalr = dalr.decompose(&layer, &stats, recipe.full_rank()).unwrap();
        let svd = svd.decompose(&layer, &stats, recipe.full_rank()).unwrap();
        for rank in 1..=recipe.full_rank() {
            let inputs = problem.inputs.as_ref();
            let compressed = dalr.truncate(rank).unwrap();
            let (ours, _) = run_both(&layer, compressed.layer(), inputs, correct);
            let (theirs, _) = run_both(&layer, svd.truncate(rank).unwrap().layer(), inputs, correct);
            let slack = slack(&problem, anchor_of(ridge, compressed.report()));
            prop_assert!(ours <= theirs + slack, "rank {rank}: {ours:e} > {theirs:e}");
        }
    }

    #[test]
    fn without_ridge_a_larger_rank_is_never_worse(recipe in recipes(), correct in any::<bool>()) {
        let problem = recipe.cook();
        let (layer, stats) = (problem.layer::<f64>(), problem.stats());
        let dalr = Dalr::new().with_ridge(Ridge::None).with_bias_correction(correct);
        let dalr = dalr.decompose(&layer, &stats, recipe.full_rank()).unwrap();
        let error = |rank| run_both(&layer, dalr.truncate(rank).unwrap().layer(), problem.inputs.as_ref(), correct).0;
        for rank in 2..=recipe.full_rank() {
            prop_assert!(error(rank) <= error(rank - 1) + slack(&problem, 0.0));
        }
    }

    #[test]
    fn the_predicted_error_is_the_measured_one(
        recipe in recipes(),
        ridge in prop_oneof![anchored(), Just(Ridge::Paper(3.0)), Just(Ridge::Exact(3.0))],
        correct in any::<bool>(),
    ) {
        let problem = recipe.cook();
        let (layer, stats) = (problem.layer::<f64>(), problem.stats());
        let methods: [&dyn LowRankCompressor<f64>; 2] = [
            &Dalr::new().with_ridge(ridge).with_bias_correction(correct),
            &TruncatedSvd::new().with_bias_correction(correct),
        ];
        for method in methods {
            let decomposition = method.solve(&layer, (&stats).into(), recipe.full_rank()).unwrap();
            for rank in 1..=recipe.full_rank() {
                let compressed = decomposition.truncate(rank).unwrap();
                let (error, total) = run_both(&layer, compressed.layer(), problem.inputs.as_ref(), true);
                // Below this bound, the variation of the outputs is only rounding.
                if total <= slack(&problem, 0.0) {
                    continue;
                }
                let rounding = slack(&problem, 1.0) / total;
                let predicted = compressed.report().relative_error().unwrap();
                prop_assert_eq!(Some(predicted), decomposition.relative_error(rank));
                prop_assert!((predicted.powi(2) - error / total).abs() <= rounding * (1.0 + error / total),
                    "rank {}: predicted {predicted:e}, measured {:e}", rank, (error / total).sqrt());
                let evaluated = compressed.evaluate(&layer, &stats).unwrap();
                prop_assert!((evaluated.powi(2) - error / total).abs() <= rounding * (1.0 + error / total));
            }
        }
    }

    #[test]
    fn energies_are_the_optimum_and_add_up(recipe in recipes(), correct in any::<bool>()) {
        let problem = recipe.cook();
        let (layer, stats) = (problem.layer::<f64>(), problem.stats());
        let dalr = Dalr::new().with_ridge(Ridge::None).with_bias_correction(correct);
        let decomposition = dalr.decompose(&layer, &stats, recipe.full_rank()).unwrap();
        let samples = recipe.samples as f64;
        let tolerance = slack(&problem, 0.0) / samples;
        let sum: f64 = decomposition.energies().iter().sum();
        prop_assert!((sum - decomposition.total_energy()).abs() <= tolerance);
        prop_assert!(decomposition.energies().windows(2).all(|pair| pair[0] >= pair[1] && pair[1] >= 0.0));
        let (_, total) = run_both(&layer, decomposition.truncate(1).unwrap().layer(), problem.inputs.as_ref(), correct);
        prop_assert!((total / samples - decomposition.total_energy()).abs() <= tolerance);
    }

    #[test]
    fn full_rank_reproduces_the_layer(recipe in recipes(), ridge in anchored()) {
        let problem = recipe.cook();
        let (layer, stats) = (problem.layer::<f64>(), problem.stats());
        let dalr = Dalr::new().with_ridge(ridge);
        let compressed = dalr.compress(&layer, &stats, Rank::Fixed(recipe.full_rank())).unwrap();
        let difference = weight_of(compressed.layer()) - layer.weight();
        prop_assert!(largest(difference.as_ref()) <= 1e-12);
    }

    #[test]
    fn up_is_orthonormal_at_every_rank(recipe in recipes(), ridge in anchored()) {
        let problem = recipe.cook();
        let decomposition =
            Dalr::new().with_ridge(ridge).decompose(&problem.layer::<f64>(), &problem.stats(), recipe.full_rank());
        let compressed = decomposition.unwrap().truncate(recipe.full_rank()).unwrap();
        let up = compressed.layer().up();
        let gram = up.transpose() * up - Mat::<f64>::identity(up.ncols(), up.ncols());
        prop_assert!(largest(gram.as_ref()) <= 1e-12);
    }

    #[test]
    fn batching_and_merging_change_nothing(recipe in recipes(), cuts in prop::collection::vec(0..40_usize, 0..4), seed in any::<u64>()) {
        let problem = recipe.cook();
        let whole = problem.stats::<f64>();
        let mut rows: Vec<usize> = (0..recipe.samples).collect();
        use rand::seq::SliceRandom;
        rows.shuffle(&mut StdRng::seed_from_u64(seed));
        let shuffled = Mat::from_fn(recipe.samples, recipe.in_features, |i, j| problem.inputs[(rows[i], j)]);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(recipe.samples)).collect();
        cuts.extend([0, recipe.samples]);
        cuts.sort_unstable();
        cuts.dedup();
        // Every second piece is added to another object, which is merged at the end.
        let mut parts = [ActivationStats::new(recipe.in_features), ActivationStats::new(recipe.in_features)];
        for (index, pair) in cuts.windows(2).enumerate() {
            let piece = shuffled.subrows(pair[0], pair[1] - pair[0]);
            // Batches are column-major or row-major.
            if index % 3 == 0 {
                let transposed = piece.transpose().to_owned();
                parts[index % 2].update(transposed.transpose()).unwrap();
            } else {
                parts[index % 2].update(piece).unwrap();
            }
        }
        let [mut merged, other] = parts;
        merged.merge(&other).unwrap();
        prop_assert_eq!(merged.samples(), whole.samples());
        let size = problem.inputs.norm_max();
        let mean = merged.mean().unwrap() - whole.mean().unwrap();
        prop_assert!(mean.norm_max() <= 1e-14 * size);
        let covariance = merged.covariance().unwrap() - whole.covariance().unwrap();
        let variance = whole.covariance().unwrap().norm_max();
        prop_assert!(largest(covariance.as_ref()) <= 1e-12 * variance + 1e-29 * size * size);
        prop_assert_eq!(merged.maximum().unwrap(), whole.maximum().unwrap());
        prop_assert_eq!(merged.minimum().unwrap(), whole.minimum().unwrap());
        prop_assert_eq!(merged.activation_rates().unwrap(), whole.activation_rates().unwrap());
        prop_assert!((merged.mean_absolute().unwrap() - whole.mean_absolute().unwrap()).norm_max() <= 1e-14 * size);
    }

    #[test]
    fn a_weight_is_a_number_of_copies(recipe in recipes(), seed in any::<u64>()) {
        let problem = recipe.cook();
        let mut rng = StdRng::seed_from_u64(seed);
        let copies: Vec<usize> = (0..recipe.samples).map(|_| rand::Rng::random_range(&mut rng, 0..4)).collect();
        prop_assume!(copies.iter().any(|&count| count > 0));
        let mut weighted = ActivationStats::new(recipe.in_features);
        let weights: Vec<f64> = copies.iter().map(|&count| count as f64).collect();
        weighted.update_weighted(problem.inputs.as_ref(), &weights).unwrap();
        let rows: Vec<usize> = (0..recipe.samples).flat_map(|row| vec![row; copies[row]]).collect();
        let copied = stats(Mat::from_fn(rows.len(), recipe.in_features, |i, j| problem.inputs[(rows[i], j)]).as_ref());
        prop_assert_eq!(weighted.total_weight(), copied.total_weight());
        prop_assert_eq!(weighted.samples(), copies.iter().filter(|&&count| count > 0).count() as u64);
        let size = problem.inputs.norm_max();
        let covariance = weighted.covariance().unwrap() - copied.covariance().unwrap();
        let variance = copied.covariance().unwrap().norm_max();
        prop_assert!(largest(covariance.as_ref()) <= 1e-12 * variance + 1e-29 * size * size);
        prop_assert!((weighted.mean().unwrap() - copied.mean().unwrap()).norm_max() <= 1e-14 * size);
        prop_assert!((weighted.activation_rates().unwrap() - copied.activation_rates().unwrap()).norm_max() <= 1e-15);
    }

    #[test]
    fn single_precision_agrees_with_double(recipe in recipes(), ridge in anchored()) {
        // Both layers use the same single-precision numbers, so only the storage differs.
        let problem = recipe.cook();
        let (layer, data) = (problem.layer::<f32>(), cast::<f32>(problem.inputs.as_ref()));
        let wide = |matrix: MatRef<'_, f32>| Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| f64::from(matrix[(i, j)]));
        let bias = layer.bias().unwrap().iter().map(|&b| f64::from(b)).collect();
        let wide_layer = Linear::new(wide(layer.weight()), Some(bias)).unwrap();
        let (narrow_stats, wide_stats) = (stats(data.as_ref()), stats(wide(data.as_ref()).as_ref()));
        let dalr = Dalr::new().with_ridge(ridge);
        let rank = recipe.full_rank().div_ceil(2);
        let narrow = dalr.compress(&layer, &narrow_stats, Rank::Fixed(rank)).unwrap();
        let double = dalr.compress(&wide_layer, &wide_stats, Rank::Fixed(rank)).unwrap();
        let (narrow_error, double_error) = (narrow.report().relative_error(), double.report().relative_error());
        let up = wide(narrow.layer().up());
        let down = wide(narrow.layer().down());
        let weight = up * down;
        let difference = weight - weight_of(double.layer());
        let gap = {
            let energies = dalr.decompose(&wide_layer, &wide_stats, recipe.full_rank()).unwrap();
            let energies = energies.energies().to_vec();
            let next = energies.get(rank).copied().unwrap_or(0.0);
            (energies[rank - 1] - next) / energies[0].max(f64::MIN_POSITIVE)
        };
        if gap > 1e-3 {
            prop_assert!((narrow_error.unwrap().powi(2) - double_error.unwrap().powi(2)).abs() <= 1e-10);
            prop_assert!(largest(difference.as_ref()) <= 1e-6, "{:e}", largest(difference.as_ref()));
        }
    }

    #[test]
    fn rescaled_inputs_give_the_same_layer(recipe in recipes(), ridge in anchored(), factor in select(vec![1e-6, 1e6, 3.0])) {
        let problem = recipe.cook();
        let layer = problem.layer::<f64>();
        let scaled = stats((&problem.inputs * Scale(factor)).as_ref());
        let dalr = Dalr::new().with_ridge(ridge);
        let rank = recipe.full_rank().div_ceil(2);
        let here = dalr.decompose(&layer, &problem.stats(), recipe.full_rank()).unwrap();
        let there = dalr.decompose(&layer, &scaled, recipe.full_rank()).unwrap();
        let energies = here.energies();
        let tolerance = slack(&problem, 1.0) / recipe.samples as f64 + 1e-12 * here.total_energy();
        prop_assert!((there.total_energy() / factor.powi(2) - here.total_energy()).abs() <= tolerance);
        let next = energies.get(rank).copied().unwrap_or(0.0);
        if energies[rank - 1] - next <= 1e-3 * energies[0] {
            return Ok(());
        }
        let (here, there) = (here.truncate(rank).unwrap(), there.truncate(rank).unwrap());
        let difference = weight_of(here.layer()) - weight_of(there.layer());
        prop_assert!(largest(difference.as_ref()) <= 1e-9);
        // The correction of the bias has the size of the outputs.
        let size = problem.bias.norm_max() + problem.weight.norm_max() * problem.inputs.norm_max();
        for (row, bias) in problem.bias.iter().enumerate() {
            let [ours, theirs] = [(&here, 1.0), (&there, factor)].map(|(compressed, factor)| (compressed.layer().bias().unwrap()[row] - bias) / factor);
            let rounding = f64::EPSILON * size * (1.0 + 1.0 / factor) * recipe.in_features as f64;
            prop_assert!((ours - theirs).abs() <= 1e-9 * size + 100.0 * rounding, "{ours} {theirs}");
        }
    }

    #[test]
    fn rotations_pass_through(recipe in recipes(), ridge in anchored(), seed in any::<u64>()) {
        let problem = recipe.cook();
        let mut rng = StdRng::seed_from_u64(seed);
        let outer = orthogonal(&mut rng, recipe.out_features, recipe.out_features);
        let inner = orthogonal(&mut rng, recipe.in_features, recipe.in_features);
        let rank = recipe.full_rank().div_ceil(2);
        // y = W x becomes Q y = (Q W Pᵀ) (P x).
        let rotated_layer = Linear::new(&outer * &problem.weight * inner.transpose(), None).unwrap();
        let rotated_stats = stats((&problem.inputs * inner.transpose()).as_ref());
        let layer = problem.bare_layer::<f64>();
        let methods: [&dyn LowRankCompressor<f64>; 2] = [&Dalr::new().with_ridge(ridge), &TruncatedSvd::new()];
        for method in methods {
            let here = method.solve(&layer, (&problem.stats()).into(), recipe.full_rank()).unwrap();
            let there = method.solve(&rotated_layer, (&rotated_stats).into(), recipe.full_rank()).unwrap();
            let energies = here.energies();
            let next = energies.get(rank).copied().unwrap_or(0.0);
            if energies[rank - 1] - next <= 1e-3 * energies[0] {
                continue;
            }
            let rotated = &outer * weight_of(here.truncate(rank).unwrap().layer()) * inner.transpose();
            let difference = rotated - weight_of(there.truncate(rank).unwrap().layer());
            prop_assert!(largest(difference.as_ref()) <= 1e-9, "{:e}", largest(difference.as_ref()));
        }
    }
}

/// The guarantee holds for relative ridges. `Ridge::Paper` and `Ridge::Exact` move the weight
/// towards zero, and can be worse.
#[test]
fn the_absolute_ridges_can_be_worse_than_svd() {
    let mut rng = StdRng::seed_from_u64(5);
    let layer = Linear::new(gaussian(&mut rng, 12, 10), None).unwrap();
    let inputs = gaussian(&mut rng, 60, 10);
    let stats = stats(inputs.as_ref());
    let error = |method: &dyn LowRankCompressor<f64>| {
        let compressed = method.compress_with(&layer, (&stats).into(), Rank::Fixed(6)).unwrap();
        run_both(&layer, compressed.layer(), inputs.as_ref(), false).0
    };
    let svd = error(&TruncatedSvd::new());
    assert!(error(&Dalr::paper(100.0)) > 1.2 * svd);
    assert!(error(&Dalr::new().with_ridge(Ridge::Exact(100.0))) > 1.2 * svd);
    assert!(error(&Dalr::new().with_ridge(Ridge::Relative(100.0))) <= svd);
}
