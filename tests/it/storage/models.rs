//! Model files: written as a stream, read tensor by tensor, replaced atomically.

use std::collections::BTreeMap;
use std::fs;

use dalr::Error;
use dalr::interop::safetensors::{Dtype, FloatDtype, ModelFile, ModelWriter, replace_file};
use faer::{Mat, mat};
use safetensors::tensor::{SafeTensors, TensorView, serialize_to_file};

use super::Folder;

const FLOATS: [Dtype; 4] = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16];

#[test]
fn numbers_of_every_dtype_come_back_rounded_once() {
    let folder = Folder::new("model-dtypes");
    let path = folder.0.join("m.safetensors");
    let matrix = Mat::from_fn(37, 5, |i, j| (i as f64 - 7.3) / (j as f64 + 1.1));
    let mut writer = ModelWriter::new().with_metadata(BTreeMap::from([("note".into(), "“a\"\\".into())]));
    for dtype in FLOATS {
        writer.add(format!("{dtype:?}"), dtype, &[37, 5], ()).unwrap();
    }
    writer.write(&path, |(), out| out.matrix(matrix.as_ref())).unwrap();
    let model = ModelFile::open(&path).unwrap();
    assert_eq!(model.metadata()["note"], "“a\"\\");
    assert_eq!((model.path(), model.files().collect::<Vec<_>>()), (path.as_path(), vec![path.as_path()]));
    for dtype in FLOATS {
        let name = format!("{dtype:?}");
        let float = FloatDtype::of(dtype).unwrap();
        assert_eq!((Dtype::from(float), float.width()), (dtype, dtype.bitsize() / 8));
        let rounded = Mat::from_fn(37, 5, |i, j| float.encode(matrix[(i, j)], &mut Vec::new()));
        assert_eq!(model.matrix::<f64>(&name).unwrap(), rounded);
        let info = model.tensor(&name).unwrap();
        assert_eq!((info.dtype, &info.shape[..], info.bytes), (dtype, &[37, 5][..], 185 * float.width() as u64));
        let row_major: Vec<f64> = rounded.row_iter().flat_map(|row| row.iter().copied().collect::<Vec<_>>()).collect();
        assert!(model.vector::<f64>(&name).unwrap().iter().eq(&row_major));
    }
    // The reader of the `safetensors` crate reads the same tensors, and every tensor is aligned.
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.len(), 4);
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    for (name, info) in metadata.tensors() {
        assert_eq!(info.data_offsets.0 % (info.dtype.bitsize() / 8), 0, "{name}");
    }
}

#[test]
fn any_tensor_is_copied_and_visited_in_pieces() {
    let folder = Folder::new("model-copies");
    let path = folder.0.join("m.safetensors");
    let data: Vec<u8> = (0..=200).collect();
    let view = TensorView::new(Dtype::U8, vec![201], &data).unwrap();
    let scalar = TensorView::new(Dtype::F32, vec![], &[0, 0, 128, 63]).unwrap();
    let empty = TensorView::new(Dtype::F16, vec![0, 1 << 40], &[]).unwrap();
    serialize_to_file([("bytes", view), ("scalar", scalar), ("empty", empty)], None, &path).unwrap();
    let model = ModelFile::open(&path).unwrap();
    assert_eq!(model.tensors().map(|(name, _)| name).collect::<Vec<_>>(), ["bytes", "empty", "scalar"]);
    let visit = |range: core::ops::Range<u64>, piece| {
        let mut pieces = Vec::new();
        let collect = |bytes: &[u8]| {
            pieces.push(bytes.to_vec());
            Ok::<_, Error>(())
        };
        model.visit("bytes", range, piece, collect).unwrap();
        pieces
    };
    assert_eq!(visit(0..1000, 100).iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 1]);
    assert_eq!(visit(0..1000, 0).concat(), data);
    assert_eq!(visit(20..31, 7), [&data[20..27], &data[27..31]]);
    assert!(visit(300..400, 7).is_empty());
    assert_eq!(model.matrix::<f32>("scalar").unwrap(), mat![[1.0_f32]]);
    assert!(matches!(model.matrix::<f32>("empty"), Err(Error::Empty { .. })));
    assert!(matches!(model.matrix::<f32>("bytes"), Err(Error::NumberType { .. })));
    assert!(matches!(model.vector::<f32>("none"), Err(Error::Format { .. })));

    let copied = folder.0.join("copied.safetensors");
    let mut writer = ModelWriter::new();
    for (name, tensor) in model.tensors() {
        writer.add(name, tensor.dtype, &tensor.shape, name).unwrap();
    }
    assert_eq!(writer.data_bytes(), 205);
    writer.write(&copied, |name, out| model.copy(name, out)).unwrap();
    let copy = ModelFile::open(&copied).unwrap();
    for (name, tensor) in model.tensors() {
        assert_eq!((copy.tensor(name), copy.checksum(name)), (Some(tensor), model.checksum(name)), "{name}");
    }
    assert_ne!(copy.checksum("bytes").unwrap(), copy.checksum("scalar").unwrap());
}

#[test]
fn shards_are_one_model() {
    let folder = Folder::new("model-shards");
    let write = |name: &str, tensors: &[&str]| {
        let views = tensors.iter().map(|name| (*name, TensorView::new(Dtype::F32, vec![1], &[0, 0, 128, 63]).unwrap()));
        serialize_to_file(views, None, &folder.0.join(name)).unwrap();
    };
    write("a.safetensors", &["x", "y"]);
    write("b.safetensors", &["z"]);
    let index = folder.0.join("model.safetensors.index.json");
    let open = |text: &str| {
        fs::write(&index, text).unwrap();
        ModelFile::open(&index)
    };
    let map = r#"{"weight_map": {"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}"#;
    let model = open(map).unwrap();
    assert_eq!(model.files().count(), 2);
    assert_eq!(model.tensors().map(|(name, _)| name).collect::<Vec<_>>(), ["x", "y", "z"]);
    for (text, message) in [
        ("", "expected a `weight_map`"),
        ("[]", "got none"),
        (r#"{"weight_map": {}}"#, "an empty one"),
        (r#"{"weight_map": {"x": 3}}"#, "got 3"),
        (r#"{"weight_map": {"x": "../a.safetensors"}}"#, "`../a.safetensors`"),
        (r#"{"weight_map": {"x": "c.safetensors"}}"#, "c.safetensors"),
    ] {
        let error = open(text).unwrap_err().to_string();
        assert!(error.contains(message), "{text}: {error}");
    }
    write("b.safetensors", &["z", "x"]);
    assert!(open(map).unwrap_err().to_string().contains("`x` a second time"));
}

#[test]
fn a_failure_leaves_the_old_file() {
    let folder = Folder::new("model-failures");
    let path = folder.0.join("m.safetensors");
    fs::write(&path, "old").unwrap();
    let mut writer = ModelWriter::new();
    writer.add("x", Dtype::F16, &[2], ()).unwrap();
    assert!(matches!(writer.add("x", Dtype::F16, &[2], ()), Err(Error::Format { .. })));
    assert!(matches!(writer.add("y", Dtype::F64, &[usize::MAX, 2], ()), Err(Error::Overflow { .. })));
    let fails = |numbers: &[f64], message: &str| {
        let error = writer.write(&path, |(), out| out.numbers(numbers.iter().copied())).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(folder.files(), ["m.safetensors"]);
    };
    fails(&[1.0], "4 bytes of `x`");
    fails(&[1.0; 3], "4 bytes of `x`");
    fails(&[1.0, 1e6], "numbers of `x` within the range of F16");
    let failed: Result<(), Error> = replace_file(&path, |file| {
        file.write_all(b"new").unwrap();
        Err(Error::Empty { operation: "test", what: "nothing" })
    });
    assert!(matches!(failed, Err(Error::Empty { .. })));
    assert_eq!((fs::read(&path).unwrap(), folder.files()), (b"old".to_vec(), vec!["m.safetensors".into()]));
    // NaN and infinities of the caller are written unchanged.
    writer.write(&path, |(), out| out.numbers([f64::NAN, f64::NEG_INFINITY])).unwrap();
    let read = ModelFile::open(&path).unwrap().vector::<f32>("x").unwrap();
    assert!(read[0].is_nan() && read[1] == f32::NEG_INFINITY);
}

/// Opening and reading a damaged file gives an error or numbers, and takes no more memory than the
/// file's length.
#[test]
fn damaged_files_are_errors() {
    let folder = Folder::new("model-damage");
    let path = folder.0.join("m.safetensors");
    let mut writer = ModelWriter::new();
    writer.add("x", Dtype::F32, &[2, 3], ()).unwrap();
    writer.write(&path, |(), out| out.numbers([1.0; 6])).unwrap();
    let good = fs::read(&path).unwrap();
    let open = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        ModelFile::open(&path)
    };
    for length in 0..good.len() {
        assert!(matches!(open(&good[..length]), Err(Error::Format { .. })), "cut to {length}");
    }
    assert!(open(&[&good[..], &[0]].concat()).is_err());
    for index in 0..good.len() - 24 {
        for mask in [1, 4, 32, 128] {
            let mut bad = good.clone();
            bad[index] ^= mask;
            if let Ok(model) = open(&bad) {
                let names: Vec<String> = model.tensors().map(|(name, _)| name.into()).collect();
                names.iter().for_each(|name| drop(model.matrix::<f32>(name)));
            }
        }
    }
    assert!(matches!(ModelFile::open(&folder.0), Err(Error::Format { .. })));
    let missing = ModelFile::open(folder.0.join("none"));
    assert!(matches!(missing, Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound));
}
