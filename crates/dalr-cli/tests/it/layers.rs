//! The output for each layer is the result of the library, in every dtype.

use std::collections::HashMap;

use dalr::faer::{Col, MatRef};
use dalr::{ActivationStats, Dalr, Decomposition, Linear, LowRankCompressor, Scalar, TruncatedSvd};
use safetensors::tensor::Dtype;

use crate::harness::{Folder, Tensor, Tensors, layer, random};

const TYPES: [Dtype; 4] = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16];

/// Layers of every dtype, with and without bias, samples of every type with several leading axes,
/// and all kinds of other tensors.
fn everything(folder: &Folder) -> (Tensors, Tensors) {
    let (mut model, mut calibration) = (Tensors::default(), Tensors::default());
    for (index, dtype) in TYPES.into_iter().enumerate() {
        for bias in [true, false] {
            let name = format!("block.{index}.{}", if bias { "full" } else { "bare" });
            let (out, inputs) = (20 + index, 30 - index);
            model = layer(model, &name, dtype, [out, inputs], bias);
            let samples = random(7 + index as u64, 90, inputs, 0.8);
            let shape =
                [vec![90, inputs], vec![9, 10, inputs], vec![3, 3, 10, inputs], vec![1, 90, inputs]][index].clone();
            let samples = Tensor::of(TYPES[3 - index], &shape, &samples);
            calibration = calibration.with(&format!("{name}.input"), samples);
        }
    }
    model = model
        .with("embedding.weight", Tensor::of(Dtype::F32, &[50, 8], &random(1, 50, 8, 1.0)))
        .with("norm.weight", Tensor::of(Dtype::F32, &[11], &random(2, 1, 11, 1.0)))
        .with("conv.weight", Tensor::of(Dtype::F16, &[4, 3, 2], &random(3, 4, 6, 1.0)))
        .with("positions", Tensor::of(Dtype::I64, &[1, 7], &[1.0, -2.0, 3.0, 4.0, 5.0, 6.0, 7.0]))
        .with("mask", Tensor { dtype: Dtype::BOOL, shape: vec![3], data: vec![1, 0, 1] })
        .with("small", Tensor { dtype: Dtype::F8_E4M3, shape: vec![5], data: vec![1, 2, 3, 4, 255] })
        .with("scalar", Tensor::of(Dtype::F64, &[], &[f64::NAN]))
        .with("nothing.weight", Tensor::of(Dtype::F32, &[0, 8], &[]));
    model.metadata = HashMap::from([("format".into(), "pt".into()), ("note".into(), "“\u{1F980}” \\ \"".into())]);
    model.write(&folder.path("model.safetensors"));
    calibration.write(&folder.path("calibration.safetensors"));
    (model, calibration)
}

/// Returns the result of the library from the numbers in the files.
fn solve<T: Scalar>(
    model: &Tensors,
    calibration: &Tensors,
    name: &str,
    method: &dyn LowRankCompressor<T>,
) -> Decomposition<T> {
    let numbers = |tensor: &Tensor| -> Vec<T> { tensor.numbers().into_iter().map(T::from_f64).collect() };
    let weight = &model.tensors[&format!("{name}.weight")];
    let (out, inputs) = (weight.shape[0], weight.shape[1]);
    let bias = model.tensors.get(&format!("{name}.bias")).map(|bias| numbers(bias).into_iter().collect::<Col<T>>());
    let original = Linear::new(MatRef::from_row_major_slice(&numbers(weight), out, inputs).to_owned(), bias).unwrap();
    let samples = numbers(&calibration.tensors[&format!("{name}.input")]);
    let mut stats = ActivationStats::new(inputs);
    stats.update(MatRef::from_row_major_slice(&samples, samples.len() / inputs, inputs)).unwrap();
    let useful = (out * inputs).div_ceil(out + inputs) - 1;
    method.solve(&original, (&stats).into(), useful).unwrap()
}

/// Compares the factors of a layer with the library's, rounded to the weight's type, and its bias
/// within a rounding of those.
fn check<T: Scalar>(
    model: &Tensors,
    calibration: &Tensors,
    out: &Tensors,
    name: &str,
    method: &dyn LowRankCompressor<T>,
) {
    let original = &model.tensors[&format!("{name}.weight")];
    let part = |part: &str| out.tensors.get(&format!("{name}.{part}"));
    let (down, up) = (part("0.weight").unwrap(), part("1.weight").unwrap());
    let rank = down.shape[0];
    assert_eq!((down.shape[1], up.shape.clone()), (original.shape[1], vec![original.shape[0], rank]), "{name}");
    let compressed = solve(model, calibration, name, method).truncate(rank).unwrap();
    let rows = |matrix: MatRef<'_, T>| -> Vec<f64> {
        matrix.row_iter().flat_map(|row| row.iter().map(|x| x.to_f64()).collect::<Vec<f64>>()).collect()
    };
    let low = compressed.layer();
    // The bits are compared without printing all numbers.
    assert!(down == &Tensor::of(original.dtype, &down.shape, &rows(low.down())), "{name}.0.weight");
    assert!(up == &Tensor::of(original.dtype, &up.shape, &rows(low.up())), "{name}.1.weight");
    for gone in ["weight", "bias"] {
        assert_eq!(part(gone), None, "{name}.{gone}");
    }
    assert_eq!(part("1.bias").is_some(), low.bias().is_some(), "{name}");
    let (Some(found), Some(expected)) = (part("1.bias"), low.bias()) else { return };
    assert_eq!((found.dtype, &found.shape), (original.dtype, &vec![original.shape[0]]), "{name}");
    // Rounding of factors and bias to the weight's dtype: its epsilon times the size of the terms.
    let epsilon = match original.dtype {
        Dtype::F16 => f64::from(half::f16::EPSILON),
        Dtype::BF16 => f64::from(half::bf16::EPSILON),
        Dtype::F32 => f64::from(f32::EPSILON),
        _ => f64::EPSILON,
    };
    let size = low.down().norm_l2().to_f64() * (original.shape[1] as f64).sqrt() + expected.norm_l2().to_f64();
    for (found, expected) in found.numbers().iter().zip(expected.iter()) {
        assert!((found - expected.to_f64()).abs() <= 2.0 * epsilon * size, "{name}: {found} {}", expected.to_f64());
    }
}

fn check_all(
    model: &Tensors,
    calibration: &Tensors,
    out: &Tensors,
    single: &dyn LowRankCompressor<f32>,
    double: &dyn LowRankCompressor<f64>,
) {
    for (index, dtype) in TYPES.into_iter().enumerate() {
        for kind in ["full", "bare"] {
            let name = format!("block.{index}.{kind}");
            match dtype {
                Dtype::F64 => check(model, calibration, out, &name, double),
                _ => check(model, calibration, out, &name, single),
            }
        }
    }
}

#[test]
fn layers_of_every_type_are_what_the_library_gives() {
    let folder = Folder::new();
    let (model, calibration) = everything(&folder);
    let out = folder.compress(&["--keep", "0.5"]);
    check_all(&model, &calibration, &out, &Dalr::new(), &Dalr::new());
    // The result has at most half of the layers' parameters, and not much less.
    let count = |tensors: &Tensors| -> usize {
        let layers = tensors.tensors.iter().filter(|(name, _)| name.starts_with("block."));
        layers.map(|(_, tensor)| tensor.shape.iter().product::<usize>()).sum()
    };
    let fraction = count(&out) as f64 / count(&model) as f64;
    assert!((0.42..=0.5).contains(&fraction), "{fraction}");
}

#[test]
fn every_method_is_the_library_s() {
    let folder = Folder::new();
    let (model, calibration) = everything(&folder);
    type Case = (&'static [&'static str], Box<dyn LowRankCompressor<f32>>, Box<dyn LowRankCompressor<f64>>);
    let methods: [Case; 4] = [
        (&["dalr-paper"], Box::new(Dalr::paper(1000.0)), Box::new(Dalr::paper(1000.0))),
        (&["dalr-paper", "--lambda", "3"], Box::new(Dalr::paper(3.0)), Box::new(Dalr::paper(3.0))),
        (&["svd"], Box::new(TruncatedSvd::new()), Box::new(TruncatedSvd::new())),
        (
            &["svd+bc"],
            Box::new(TruncatedSvd::new().with_bias_correction(true)),
            Box::new(TruncatedSvd::new().with_bias_correction(true)),
        ),
    ];
    for (options, single, double) in methods {
        let mut all = vec!["--rank", "6", "--force", "--method"];
        all.extend(options);
        let out = folder.compress(&all);
        assert_eq!(out.tensors["block.0.full.0.weight"].shape[0], 6);
        assert_eq!(out.metadata["dalr.method"], options[0]);
        // This solve stops at another rank, so the products agree up to rounding, not the factors.
        for (index, name) in ["block.0.full", "block.1.full", "block.1.bare"].into_iter().enumerate() {
            let expected = match index {
                0 => product(
                    &solve(&model, &calibration, name, &*double).truncate(6).unwrap().layer().to_linear().unwrap(),
                ),
                _ => product(
                    &solve(&model, &calibration, name, &*single).truncate(6).unwrap().layer().to_linear().unwrap(),
                ),
            };
            let found = multiply(&out.tensors[&format!("{name}.1.weight")], &out.tensors[&format!("{name}.0.weight")]);
            let norm = expected.iter().map(|x| x * x).sum::<f64>().sqrt();
            let distance = found.iter().zip(&expected).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
            let epsilon = if index == 0 { f64::EPSILON } else { f64::from(f32::EPSILON) };
            assert!(distance <= 100.0 * epsilon * norm, "{options:?} {name}: {distance:e} of {norm:e}");
        }
    }
}

fn product<T: Scalar>(original: &Linear<T>) -> Vec<f64> {
    original.weight().row_iter().flat_map(|row| row.iter().map(|x| x.to_f64()).collect::<Vec<f64>>()).collect()
}

fn multiply(up: &Tensor, down: &Tensor) -> Vec<f64> {
    let (rank, inputs) = (down.shape[0], down.shape[1]);
    let (up, down) = (up.numbers(), down.numbers());
    let row = |row: &[f64]| -> Vec<f64> {
        (0..inputs).map(|j| (0..rank).map(|k| row[k] * down[k * inputs + j]).sum()).collect()
    };
    up.chunks_exact(rank).flat_map(row).collect()
}

#[test]
fn what_is_no_layer_stays_to_the_byte_and_metadata_are_kept() {
    let folder = Folder::new();
    let (model, _) = everything(&folder);
    let out = folder.compress(&["--keep", "0.4"]);
    let others = model.tensors.iter().filter(|(name, _)| !name.starts_with("block."));
    let mut count = 0;
    for (name, tensor) in others {
        assert_eq!(out.tensors.get(name), Some(tensor), "{name}");
        count += 1;
    }
    assert_eq!(count, 8);
    let in_layers = out.tensors.keys().filter(|name| name.starts_with("block.")).count();
    assert_eq!(out.tensors.len(), count + in_layers);
    for (key, value) in &model.metadata {
        assert_eq!(out.metadata.get(key), Some(value), "{key}");
    }
    assert_eq!(out.metadata["dalr.method"], "dalr");
    assert_eq!(out.metadata["dalr.version"], env!("CARGO_PKG_VERSION"));
    let ranks: HashMap<String, usize> = serde_json::from_str(&out.metadata["dalr.ranks"]).unwrap();
    assert_eq!(ranks.len(), 8);
    for (name, rank) in ranks {
        assert_eq!(out.tensors[&format!("{name}.0.weight")].shape[0], rank, "{name}");
    }
}

#[test]
fn every_tensor_is_aligned_to_its_type() {
    let folder = Folder::new();
    everything(&folder);
    folder.compress(&["--keep", "0.4"]);
    let bytes = std::fs::read(folder.path("out.safetensors")).unwrap();
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header % 8, 0);
    for (name, info) in metadata.tensors() {
        let width = info.dtype.bitsize() / 8;
        assert_eq!(info.data_offsets.0 % width, 0, "{name}");
    }
}
