//! Few samples of real activations, drawn at random. On held-out data, the error of the default is
//! at most 1 % above that of truncated SVD with a corrected bias from the same samples.
//! `docs/small_samples.md` has more layers.

#[path = "../../benches/small_samples/trial.rs"]
#[allow(dead_code)]
pub mod trial;

use std::path::{Path, PathBuf};

use crate::lenet_network::{Data, Layer, activations};
use dalr::{ActivationStats, Linear, relative_output_error};
use faer::{Col, Mat};
use safetensors::SafeTensors;
use trial::{Draw, Errors, Site, compare, median_and_worst, ranks, selected};

/// Largest ratio of the default's error to that of truncated SVD.
const BOUND: f64 = 1.01;

fn data(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(file)
}

pub fn stats(inputs: &Mat<f32>) -> ActivationStats<f32> {
    let mut stats = ActivationStats::new(inputs.ncols());
    stats.update(inputs.as_ref()).unwrap();
    stats
}

/// Returns fc1, fc2 and fc3, with the images of the fine-tuning to calibrate, and the other images
/// to test.
pub fn lenet() -> Vec<Site> {
    let data = Data::load(&data("lenet_digits.safetensors")).unwrap();
    let layers: [Layer; 3] = data.target.layers();
    let inputs = |images: &Mat<f32>| {
        let features = data.target.features(images.as_ref()).unwrap();
        activations(&layers, features.as_ref()).unwrap()
    };
    let (calibration, held_out) = (inputs(&data.train.images), inputs(&data.test.images));
    let sites = ["fc1", "fc2", "fc3"].iter().zip(&data.target.linear).zip(calibration).zip(held_out);
    sites
        .map(|(((name, layer), calibration), held_out)| Site {
            layers: vec![((*name).into(), layer.clone())],
            calibration,
            held_out: stats(&held_out),
        })
        .collect()
}

/// Returns a layer of all-MiniLM-L6-v2, and its inputs on definitions of nouns.
pub fn minilm() -> Site {
    let bytes = std::fs::read(data("minilm_value.safetensors")).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let rows: usize = metadata.metadata().as_ref().unwrap()["calibration"].parse().unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        let numbers = tensors.tensor(name).unwrap().data().as_chunks().0;
        numbers.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    };
    let small = |name: &str, step: &dyn Fn(usize, usize) -> f32| {
        let tensor = tensors.tensor(name).unwrap();
        let (numbers, columns) = (tensor.data(), tensor.shape()[1]);
        let entry = |i: usize, j: usize| f32::from(numbers[i * columns + j].cast_signed()) * step(i, j);
        Mat::from_fn(tensor.shape()[0], columns, entry)
    };
    let (weight_steps, input_steps) = (floats("weight.steps"), floats("inputs.steps"));
    let weight = small("weight", &|i, _| weight_steps[i]);
    let inputs = small("inputs", &|_, j| input_steps[j]);
    let bias: Col<f32> = floats("bias").into_iter().collect();
    Site {
        layers: vec![("value".into(), Linear::new(weight, Some(bias)).unwrap())],
        calibration: inputs.subrows(0, rows).to_owned(),
        held_out: stats(&inputs.subrows(rows, inputs.nrows() - rows).to_owned()),
    }
}

/// Returns all ratios of a site at each count: every layer, seed and rank.
fn ratios(site: &Site, counts: &[usize], seeds: u64) -> Vec<Vec<f64>> {
    let at = |&count: &usize| {
        let mut ratios = Vec::new();
        for seed in 0..seeds {
            let (drawn, _) = site.draw(Draw::Random, count, seed).unwrap();
            for (_, layer) in &site.layers {
                ratios.extend(compare(layer, &drawn, &site.held_out).unwrap().iter().map(Errors::ratio));
            }
        }
        let (median, worst) = median_and_worst(ratios.clone()).unwrap();
        println!("{}, {count} samples: median {median:.4}, worst {worst:.4}", site.layers[0].0);
        ratios
    };
    counts.iter().map(at).collect()
}

fn medians(ratios: &[Vec<f64>]) -> Vec<f64> {
    ratios.iter().map(|ratios| median_and_worst(ratios.clone()).unwrap().0).collect()
}

#[test]
fn lenet_never_loses_to_truncated_svd() {
    for site in lenet() {
        let ratios = ratios(&site, &[8, 32, 128, 512, 1000], 10);
        let beyond: Vec<f64> = ratios.iter().flatten().copied().filter(|&ratio| ratio > BOUND).collect();
        // The ten outputs have similar singular values. At rank 1 the error is about nine tenths in
        // any case, and the order of the methods is chance.
        let lucky = if site.layers[0].0 == "fc3" { 1 } else { 0 };
        assert!(beyond.len() <= lucky && beyond.iter().all(|&ratio| ratio < 1.03), "{}: {beyond:?}", site.layers[0].0);
        // With eight samples, the default is truncated SVD. With more samples it is better, and its
        // advantage grows with their number.
        let medians = medians(&ratios);
        assert!((medians[0] - 1.0).abs() < 1e-3 && medians.is_sorted_by(|few, many| many < few), "{medians:?}");
    }
}

#[test]
fn a_transformer_never_loses_to_truncated_svd() {
    let site = minilm();
    assert_eq!((site.calibration.shape(), site.held_out.samples()), ((220, 384), 200));
    let ratios = ratios(&site, &[8, 16, 32, 64, 128, 220], 6);
    assert!(ratios.iter().flatten().all(|&ratio| ratio <= BOUND), "{ratios:?}");
    assert!(medians(&ratios)[5] < 0.95, "{ratios:?}");
}

#[test]
fn a_ridge_chosen_on_other_samples_does_as_well() {
    for site in lenet().iter().take(2) {
        let (_, layer) = &site.layers[0];
        let rank = ranks(layer)[1];
        for count in [32, 128] {
            let ratios = (0..5).map(|seed| {
                let (drawn, others) = site.draw(Draw::Random, count, seed).unwrap();
                let default = compare(layer, &drawn, &site.held_out).unwrap()[1].default;
                selected(layer, &drawn, &others.unwrap(), &site.held_out, rank).unwrap() / default
            });
            let (median, worst) = median_and_worst(ratios.collect()).unwrap();
            println!(
                "{}, {count} samples: chosen over default, median {median:.4}, worst {worst:.4}",
                site.layers[0].0
            );
            assert!(median < 1.02 && worst < 1.1, "{median} {worst}");
        }
    }
}

/// Without a ridge, the bound does not hold for the same samples.
#[test]
fn without_a_ridge_the_bound_does_not_hold() {
    use dalr::{Dalr, LowRankCompressor, Rank, Ridge, TruncatedSvd};
    let site = minilm();
    let (_, layer) = &site.layers[0];
    let (drawn, _) = site.draw(Draw::Random, 32, 0).unwrap();
    let error = |method: &dyn LowRankCompressor<f32>| {
        let low = method.compress_with(layer, (&drawn).into(), Rank::Fixed(ranks(layer)[0])).unwrap();
        relative_output_error(layer, &low.layer().to_linear().unwrap(), &site.held_out).unwrap()
    };
    let bare = error(&Dalr::new().with_ridge(Ridge::None));
    let svd = error(&TruncatedSvd::new().with_bias_correction(true));
    assert!(bare > BOUND * svd, "{bare} {svd}");
}
