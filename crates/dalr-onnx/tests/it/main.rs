//! Reads, rewrites and runs small models that are made here.
//!
//! With `DALR_ONNX_MODELS=FOLDER` the models before and after are also written there, for
//! `tests/check_models.py`.

mod build;
mod files;
mod forms;
mod hostile;
mod run;
mod units;
mod weights;

use std::collections::HashMap;
use std::path::PathBuf;

use dalr::{ActivationStats, Linear, LowRankCompressor, LowRankLinear, Rank, TruncatedSvd};
use dalr_onnx::{Dimension, Model, Replacement};

use self::run::{Array, run};

/// Accepts types that can be sent to and shared by threads, cloned and printed.
const fn plain<V: Send + Sync + Clone + core::fmt::Debug + 'static>() {}

const _: () = {
    plain::<Model>();
    plain::<dalr_onnx::Layer>();
    plain::<dalr_onnx::LeftAlone>();
    plain::<dalr_onnx::UnitPair>();
    plain::<dalr_onnx::ValueInfo>();
    plain::<dalr_onnx::Error>();
    plain::<Replacement<f32>>();
    plain::<Replacement<f64>>();
};

/// The two forms of compressed layers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Factors,
    Pivoted,
}

/// Factors of a layer of low rank that differ from it by rounding only.
fn factors(layer: &Linear<f64>, rank: usize) -> LowRankLinear<f64> {
    let no_data = ActivationStats::new(layer.in_features());
    TruncatedSvd::new().compress(layer, &no_data, Rank::Fixed(rank)).unwrap().into_layer()
}

fn replacement(model: &Model, layer: &str, form: Form, rank: usize) -> Replacement<f64> {
    let factors = model.linear_layers(layer).unwrap().iter().map(|layer| factors(layer, rank)).collect::<Vec<_>>();
    match form {
        Form::Factors => Replacement::Factors(factors),
        Form::Pivoted => Replacement::Pivoted(factors.iter().map(|layer| layer.to_pivoted().unwrap()).collect()),
    }
}

/// Inputs of the model: dimensions that are not fixed become 3.
fn inputs(model: &Model) -> HashMap<String, Array> {
    let array = |(at, input): (usize, &dalr_onnx::ValueInfo)| {
        let dims: Vec<usize> =
            input.shape.iter().flatten().map(|dim| if let Dimension::Fixed(n) = dim { *n } else { 3 }).collect();
        let count = dims.iter().product();
        (input.name.clone(), Array::new(&dims, build::numbers(count, 900 + at)))
    };
    model.inputs().iter().enumerate().map(array).collect()
}

/// Checks that two models have the same outputs, relative to the largest.
#[track_caller]
fn same_outputs(original: &[u8], changed: &[u8], tolerance: f64, what: &str) {
    let model = Model::from_bytes(original.to_vec(), None).unwrap();
    let inputs = inputs(&model);
    let (expected, found) = (run(original, &inputs), run(changed, &inputs));
    assert_eq!(expected.len(), found.len(), "{what}");
    for ((name, expected), (other, found)) in expected.iter().zip(&found) {
        assert_eq!((name, &expected.dims), (other, &found.dims), "{what}");
        let scale = expected.data.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
        assert!(scale > 0.0, "{what}: {name} is zero");
        for (a, b) in expected.data.iter().zip(&found.data) {
            assert!((a - b).abs() <= tolerance * scale, "{what}, {name}: {a} became {b}");
        }
    }
}

/// Writes a model for other programs to check.
fn keep(name: &str, bytes: &[u8]) {
    if let Some(folder) = std::env::var_os("DALR_ONNX_MODELS") {
        std::fs::write(PathBuf::from(folder).join(format!("{name}.onnx")), bytes).unwrap();
    }
}

/// Replaces every layer of a model by factors of rank 2, then by pivoted ones. All layers of the
/// model have that rank, so that the outputs stay. Returns the model with factors.
#[track_caller]
fn check(name: &str, bytes: &[u8]) -> Model {
    check_to(name, bytes, 1e-5)
}

#[track_caller]
fn check_to(name: &str, bytes: &[u8], tolerance: f64) -> Model {
    keep(name, bytes);
    let original = Model::from_bytes(bytes.to_vec(), None).unwrap();
    assert_eq!(original.to_bytes().unwrap(), bytes, "{name}");
    assert!(!original.layers().is_empty(), "{name}: {:?}", original.left_alone());
    let mut result = None;
    for form in [Form::Factors, Form::Pivoted] {
        let what = format!("{name}, {form:?}");
        let mut model = original.clone();
        for layer in original.layers().iter().filter(|layer| form == Form::Factors || layer.can_be_pivoted) {
            model.replace(&layer.name, &replacement(&model, &layer.name, form, 2)).unwrap();
        }
        let changed = model.to_bytes().unwrap();
        keep(&format!("{name}.{}", format!("{form:?}").to_lowercase()), &changed);
        same_outputs(bytes, &changed, tolerance, &what);
        // The result is valid, too, and has two layers for each of the old ones.
        let again = Model::from_bytes(changed, None).unwrap();
        if form == Form::Factors {
            assert_eq!(again.layers().len(), 2 * original.layers().len(), "{what}");
            result = Some(again);
        }
    }
    result.unwrap()
}
