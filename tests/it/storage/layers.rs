//! Compressed layers in files: both forms come back, and damaged files are refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use dalr::factors::PivotedLinear;
use dalr::interop::safetensors::{Dtype, ModelFile, ModelWriter, save_layers};
use dalr::{Error, LowRankLinear, Scalar};
use faer::{Col, Mat};
use safetensors::tensor::{SafeTensors, TensorView, serialize_to_file};

use super::Folder;

fn factors<T: Scalar>(out: usize, rank: usize, bias: bool) -> LowRankLinear<T> {
    let entry = |i: usize, j: usize| T::from_f64(((i * 7 + j * j * 3) % 11) as f64 / 3.0 - 1.0);
    let bias = bias.then(|| Col::from_fn(out, |i| entry(i, 1)));
    LowRankLinear::new(Mat::from_fn(rank, 5, entry), Mat::from_fn(out, rank, entry), bias).unwrap()
}

fn round_trips<T: Scalar>(folder: &Folder) {
    for (out, rank) in [(1, 1), (7, 3), (4, 4), (3, 5)] {
        for bias in [false, true] {
            let path = folder.0.join("layer.safetensors");
            let layer = factors::<T>(out, rank, bias);
            layer.save(&path, "a.b").unwrap();
            assert_eq!(LowRankLinear::load(&path, "a.b").unwrap(), layer);
            let pivoted = layer.to_pivoted().unwrap();
            pivoted.save(&path, "").unwrap();
            assert_eq!(PivotedLinear::load(&path, "").unwrap(), pivoted);
        }
    }
}

#[test]
fn layers_come_back_as_they_were() {
    let folder = Folder::new("layers");
    round_trips::<f32>(&folder);
    round_trips::<f64>(&folder);
    assert_eq!(folder.files(), ["layer.safetensors"]);
    // In another precision, rounded once.
    let path = folder.0.join("layer.safetensors");
    let layer = factors::<f64>(6, 2, true);
    layer.save(&path, "fc").unwrap();
    let narrow = LowRankLinear::<f32>::load(&path, "fc").unwrap();
    assert_eq!(narrow.up()[(1, 1)], layer.up()[(1, 1)] as f32);
}

#[test]
fn many_layers_of_both_forms_share_a_file() {
    let folder = Folder::new("many-layers");
    let path = folder.0.join("model.safetensors");
    let (first, second) = (factors::<f32>(6, 2, true), factors::<f32>(8, 3, false));
    let pivoted = second.to_pivoted().unwrap();
    let metadata = BTreeMap::from([
        ("note".to_owned(), "kept".to_owned()),
        ("dalr.ranks".to_owned(), r#"{"old": 4, "first": 9}"#.to_owned()),
    ]);
    let layers = || [("first", (&first).into()), ("second", (&pivoted).into())];
    save_layers(&path, layers(), metadata.clone()).unwrap();
    assert_eq!(LowRankLinear::load(&path, "first").unwrap(), first);
    assert_eq!(PivotedLinear::load(&path, "second").unwrap(), pivoted);
    let file = ModelFile::open(&path).unwrap();
    assert_eq!(file.metadata()["note"], "kept");
    let ranks: serde_json::Value = serde_json::from_str(&file.metadata()["dalr.ranks"]).unwrap();
    assert_eq!(ranks, serde_json::json!({"old": 4, "first": 2, "second": 3}));
    // The format's own reader finds what the documentation names.
    let bytes = fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = tensors.names();
    names.sort();
    let expected =
        ["first.0.weight", "first.1.bias", "first.1.weight", "second.0.weight", "second.1.weight", "second.pivots"];
    assert_eq!(names, expected);
    let pivots = tensors.tensor("second.pivots").unwrap();
    let indices: Vec<usize> =
        pivots.data().chunks(8).map(|x| i64::from_le_bytes(x.try_into().unwrap()) as usize).collect();
    assert_eq!((pivots.dtype(), &indices[..]), (Dtype::I64, pivoted.pivots()));
    assert_eq!(tensors.tensor("second.1.weight").unwrap().shape(), [5, 3]);

    // A failure leaves the old file.
    let twice = [("a", (&first).into()), ("a", (&pivoted).into())];
    let error = save_layers(&path, twice, BTreeMap::new()).unwrap_err().to_string();
    assert!(error.contains("every name once"), "{error}");
    let wrong = BTreeMap::from([("dalr.ranks".to_owned(), "[1]".to_owned())]);
    let error = save_layers(&path, layers(), wrong).unwrap_err().to_string();
    let expected =
        "interop::safetensors::save_layers: expected a JSON object of ranks in the metadata `dalr.ranks`, got `[1]`";
    assert_eq!(error, expected);
    assert_eq!(fs::read(&path).unwrap(), bytes);
    let nowhere = folder.0.join("no folder").join("file");
    assert!(matches!(first.save(&nowhere, "a"), Err(Error::Io { .. })));
    assert!(matches!(pivoted.save(&nowhere, "a"), Err(Error::Io { .. })));
}

/// A tensor of a hostile file: name, dtype, shape and bytes.
type Part = (&'static str, Dtype, Vec<usize>, Vec<u8>);

fn floats(count: usize) -> Vec<u8> {
    (0..count).flat_map(|i| (i as f32).to_le_bytes()).collect()
}

fn indices(indices: &[i64]) -> Vec<u8> {
    indices.iter().flat_map(|index| index.to_le_bytes()).collect()
}

/// The error of loading the layer `fc` in pivoted storage from these tensors.
fn refused(path: &Path, parts: &[Part]) -> String {
    let views: Vec<(String, TensorView<'_>)> = parts
        .iter()
        .map(|part| {
            let view = TensorView::new(part.1, part.2.clone(), &part.3).unwrap();
            (part.0.to_owned(), view)
        })
        .collect();
    serialize_to_file(views, None, path).unwrap();
    PivotedLinear::<f32>::load(path, "fc").unwrap_err().to_string()
}

#[test]
fn hostile_layers_are_refused() {
    let folder = Folder::new("hostile-layers");
    let path = folder.0.join("hostile.safetensors");
    let pivots = |numbers: &[i64]| ("fc.pivots", Dtype::I64, vec![numbers.len()], indices(numbers));
    let cases: Vec<(Vec<Part>, &str)> = {
        let rows = || ("fc.0.weight", Dtype::F32, vec![2, 3], floats(6));
        let coefficients = || ("fc.1.weight", Dtype::F32, vec![2, 2], floats(4));
        let bias = |count: usize| ("fc.1.bias", Dtype::F32, vec![count], floats(count));
        vec![
            (vec![rows(), coefficients()], "expected a tensor `fc.pivots`"),
            (vec![pivots(&[0, 1]), coefficients()], "expected a tensor `fc.0.weight`"),
            (vec![pivots(&[0, 1]), rows()], "expected a tensor `fc.1.weight`"),
            (vec![pivots(&[0, -1]), rows(), coefficients()], "indices from 0 in `fc.pivots`"),
            (vec![pivots(&[0, i64::MIN]), rows(), coefficients()], "indices from 0"),
            (vec![pivots(&[0, i64::MAX]), rows(), coefficients()], "a pivot above the one before it, 0, and below 4"),
            (vec![pivots(&[1, 0]), rows(), coefficients()], "a pivot above the one before it"),
            (vec![pivots(&[1]), rows(), coefficients()], "expected 2 pivots"),
            (vec![pivots(&[]), rows(), coefficients()], "expected 2 pivots"),
            (vec![("fc.pivots", Dtype::I32, vec![2], vec![0; 8]), rows(), coefficients()], "dtype I64 in the pivots"),
            (
                vec![("fc.pivots", Dtype::I64, vec![1, 2], indices(&[0, 1])), rows(), coefficients()],
                "one axis in `fc.pivots`",
            ),
            (
                vec![pivots(&[0, 1]), ("fc.0.weight", Dtype::F32, vec![1, 2, 3], floats(6)), coefficients()],
                "two axes in `fc.0.weight`",
            ),
            (
                vec![pivots(&[0, 1]), ("fc.0.weight", Dtype::I64, vec![2, 3], vec![0; 48]), coefficients()],
                "expected dtype",
            ),
            (vec![pivots(&[0, 1]), ("fc.0.weight", Dtype::F32, vec![2, 0], vec![]), coefficients()], "the tensor"),
            (vec![pivots(&[0, 1]), rows(), ("fc.1.weight", Dtype::F32, vec![0, 1 << 60], vec![])], "the tensor"),
            (vec![pivots(&[0, 1]), rows(), ("fc.1.weight", Dtype::F32, vec![1 << 40, 0], vec![])], "the tensor"),
            (vec![pivots(&[0, 1]), rows(), ("fc.1.weight", Dtype::F32, vec![4], floats(4))], "two axes"),
            (
                vec![pivots(&[0, 1]), rows(), ("fc.1.weight", Dtype::F32, vec![4, 1], floats(4))],
                "2 columns in the coefficients",
            ),
            (vec![pivots(&[0, 1]), rows(), coefficients(), bias(3)], "4 entries in the bias"),
            (vec![pivots(&[0, 1]), rows(), coefficients(), bias(0)], "4 entries in the bias"),
            (
                vec![pivots(&[0, 1]), rows(), ("fc.1.weight", Dtype::F32, vec![2, 2], vec![0xff; 16])],
                "finite numbers in the coefficients",
            ),
        ]
    };
    for (parts, expected) in &cases {
        let error = refused(&path, parts);
        assert!(error.contains(expected), "expected `{expected}`, got `{error}`");
    }
    // Numbers beyond the range of the precision that is asked for.
    let mut writer = ModelWriter::new();
    writer.add("fc.0.weight", Dtype::F64, &[1, 1], 1e300).unwrap();
    writer.add("fc.1.weight", Dtype::F64, &[1, 1], 1.0).unwrap();
    writer.write(&path, |number, out| out.numbers([*number])).unwrap();
    assert!(LowRankLinear::<f64>::load(&path, "fc").is_ok());
    let error = LowRankLinear::<f32>::load(&path, "fc").unwrap_err().to_string();
    assert!(error.contains("finite numbers in the factor `down`"), "{error}");
    // Coefficients are not a factor: a layer in pivoted storage is not taken for another one.
    factors::<f32>(6, 3, false).to_pivoted().unwrap().save(&path, "fc").unwrap();
    let error = LowRankLinear::<f32>::load(&path, "fc").unwrap_err().to_string();
    assert!(error.starts_with("LowRankLinear::load: expected `fc` as two factors in "), "{error}");
    assert!(PivotedLinear::<f32>::load(&path, "other").is_err());
    // Any truncation.
    let bytes = fs::read(&path).unwrap();
    for length in 0..bytes.len() {
        fs::write(&path, &bytes[..length]).unwrap();
        assert!(PivotedLinear::<f32>::load(&path, "fc").is_err(), "{length}");
    }
}
