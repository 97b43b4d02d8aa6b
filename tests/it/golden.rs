//! Agreement with NumPy on the formulas of the papers (`tests/it/golden/make.py`).

use approx::assert_relative_eq;
use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Rank, Ridge, TruncatedSvd};
use faer::{Col, Mat};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Case {
    rank: usize,
    lambda: f64,
    shrinkage: f64,
    energies: Vec<f64>,
    weight: Vec<Vec<f64>>,
    bias: Vec<f64>,
    inputs: Vec<Vec<f64>>,
    results: BTreeMap<String, Expected>,
}

#[derive(Deserialize)]
struct Expected {
    weight: Vec<Vec<f64>>,
    bias: Vec<f64>,
}

fn matrix(rows: &[Vec<f64>]) -> Mat<f64> {
    Mat::from_fn(rows.len(), rows[0].len(), |i, j| rows[i][j])
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("golden/golden.json")).unwrap()
}

/// Returns the layer, its statistics, and the same statistics in covariance form.
fn set_up(case: &Case) -> (Linear<f64>, ActivationStats<f64>, ActivationStats<f64>) {
    let bias: Col<f64> = case.bias.iter().copied().collect();
    let inputs = matrix(&case.inputs);
    let mut stats = ActivationStats::new(inputs.ncols());
    stats.update(inputs.as_ref()).unwrap();
    // With many copies, the samples are too large for the sample form.
    let mut collapsed = ActivationStats::new(inputs.ncols());
    for _ in 0..20 {
        collapsed.update_weighted(inputs.as_ref(), &vec![0.05; inputs.nrows()]).unwrap();
    }
    assert!(format!("{collapsed:?}").contains("covariance"));
    (Linear::new(matrix(&case.weight), Some(bias)).unwrap(), stats, collapsed)
}

#[test]
fn layers_agree_with_numpy() {
    for case in cases() {
        let (layer, stats, collapsed) = set_up(&case);
        let methods: [(&str, &dyn LowRankCompressor<f64>); 6] = [
            ("svd", &TruncatedSvd::new()),
            ("svd+bc", &TruncatedSvd::new().with_bias_correction(true)),
            ("dalr-paper", &Dalr::paper(case.lambda)),
            ("dalr-exact", &Dalr::new().with_ridge(Ridge::Exact(case.lambda))),
            ("dalr-uncentred", &Dalr::new().with_ridge(Ridge::None).with_bias_correction(false)),
            ("dalr-centred", &Dalr::new().with_ridge(Ridge::None)),
        ];
        assert_eq!(case.results.len(), methods.len() + 1);
        for (name, method) in methods {
            for stats in [&stats, &collapsed] {
                let compressed = method.compress_with(&layer, stats.into(), Rank::Fixed(case.rank)).unwrap();
                check(name, &case, compressed.layer());
            }
        }
        // Shrinkage depends on the number of samples, which is larger in the covariance form here.
        let compressed = Dalr::new().compress(&layer, &stats, Rank::Fixed(case.rank)).unwrap();
        check("dalr", &case, compressed.layer());
        let decomposition = Dalr::new().decompose(&layer, &stats, case.energies.len()).unwrap();
        assert_relative_eq!(compressed.report().shrinkage.unwrap(), case.shrinkage, max_relative = 1e-12);
        for (ours, numpy) in decomposition.energies().iter().zip(&case.energies) {
            assert_relative_eq!(ours, numpy, epsilon = 1e-12 * case.energies[0]);
        }
    }
}

fn check(name: &str, case: &Case, layer: &dalr::LowRankLinear<f64>) {
    let expected = &case.results[name];
    let weight = layer.up() * layer.down();
    let difference = weight - matrix(&expected.weight);
    assert!(difference.norm_max() < 1e-9, "{name}: {:e}", difference.norm_max());
    for (ours, numpy) in layer.bias().unwrap().iter().zip(&expected.bias) {
        assert_relative_eq!(ours, numpy, epsilon = 1e-9);
    }
}
