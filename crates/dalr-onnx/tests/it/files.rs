//! Models in files, with external data.

use std::fs;
use std::path::{Path, PathBuf};

use dalr_onnx::{Error, Model};

use super::build::{Builder, bytes, int, tensor};
use super::{Form, replacement, same_outputs};

/// A folder that is removed at the end of the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("dalr-onnx-{}-{name}", std::process::id()));
        fs::create_dir_all(path.join("inside")).unwrap();
        Self(path)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An initializer whose data is elsewhere.
fn external(name: &str, dims: &[usize], keys: &[(&str, &str)]) -> Vec<u8> {
    let dims: Vec<u8> = dims.iter().flat_map(|&dim| int(1, dim as i64)).collect();
    let entry = |(key, value): &(&str, &str)| bytes(13, [bytes(1, key), bytes(2, value)].concat());
    let entries: Vec<u8> = keys.iter().flat_map(entry).collect();
    bytes(5, [dims, int(2, 1), bytes(8, name), entries, int(14, 1)].concat())
}

fn model(weight: Vec<u8>) -> Builder {
    let mut builder = Builder::new().input("x", &["4", "5"]).bias("b", &[6]);
    builder.graph.extend(weight);
    let builder = builder.node("MatMul", "x w", "p", &[]).node("Add", "p b", "y", &[]).output("y", &["4", "6"]);
    builder.weight("v", &[6, 5]).node("MatMul", "y v", "z", &[]).output("z", &["4", "5"])
}

/// The bytes of a 5 × 6 weight of rank 2.
fn weight() -> Vec<u8> {
    Builder::new().low_rank(&[5, 6]).iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn external_data_in_and_out() {
    let folder = Folder::new("external");
    let (source, target) = (folder.at("inside"), folder.at("out"));
    fs::create_dir_all(&target).unwrap();
    fs::write(source.join("weights.bin"), [vec![9; 100], weight()].concat()).unwrap();
    let keys = [("location", "weights.bin"), ("offset", "100"), ("length", "120")];
    let original = model(external("w", &[5, 6], &keys)).build();
    fs::write(source.join("model.onnx"), &original).unwrap();
    let mut model = Model::open(source.join("model.onnx")).unwrap();
    // In one piece, the data is in the model.
    let whole = model.to_bytes().unwrap();
    assert!(super::forms::contains(&whole, &weight()));
    let whole_again = Model::from_bytes(whole.clone(), None).unwrap();
    assert_eq!(whole_again.linear_layers::<f32>("MatMul of p").unwrap(), model.linear_layers("MatMul of p").unwrap());
    // Saved, it is beside the model again.
    model.save(target.join("copy.onnx")).unwrap();
    assert_eq!(names(&target), ["copy.onnx", "copy.onnx.data"]);
    let copy = Model::open(target.join("copy.onnx")).unwrap();
    assert_eq!(copy.to_bytes().unwrap(), whole);
    // Factors are where the weight was; those of a weight inside of the model are inside.
    for layer in ["MatMul of p", "MatMul of z"] {
        model.replace(layer, &replacement(&model, layer, Form::Factors, 2)).unwrap();
    }
    model.save(target.join("copy.onnx")).unwrap();
    // The file of the old model is gone.
    assert_eq!(names(&target), ["copy.onnx", "copy.onnx.1.data"]);
    let saved = Model::open(target.join("copy.onnx")).unwrap();
    same_outputs(&whole, &saved.to_bytes().unwrap(), 1e-5, "saved");
    let data = fs::metadata(target.join("copy.onnx.1.data")).unwrap().len();
    // Of 5 × 6 in rank 2: 40 bytes, 48 bytes at the next multiple of 64, and the bias.
    assert!((64 + 48..=64 + 64 + 24).contains(&data), "{data}");
    // A model over itself: its data stays as long as it needs it.
    saved.save(target.join("copy.onnx")).unwrap();
    assert_eq!(saved.to_bytes().unwrap(), Model::open(target.join("copy.onnx")).unwrap().to_bytes().unwrap());
    if let Some(folder) = std::env::var_os("DALR_ONNX_MODELS").map(PathBuf::from) {
        super::keep("external", &whole);
        saved.save(folder.join("external.saved.onnx")).unwrap();
    }
}

#[test]
fn files_are_replaced_as_a_whole() {
    let folder = Folder::new("plain");
    let path = folder.at("inside/model.onnx");
    let original = model(bytes(5, tensor("w", &[5, 6], &Builder::new().low_rank(&[5, 6]), super::build::Storage::F32)));
    fs::write(&path, original.build()).unwrap();
    let mut model = Model::open(&path).unwrap();
    model.save(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), original.build());
    model.replace("MatMul of p", &replacement(&model, "MatMul of p", Form::Factors, 2)).unwrap();
    model.save(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), model.to_bytes().unwrap());
    assert_eq!(names(&folder.at("inside")), ["model.onnx"]);
    assert!(matches!(model.save(folder.at("nowhere/model.onnx")), Err(Error::Dalr(_) | Error::Io { .. })));
    assert!(matches!(Model::open(folder.at("nothing.onnx")), Err(Error::Io { .. })));
    assert!(Model::open(folder.at("inside")).unwrap_err().to_string().contains("is no file"));
}

#[test]
fn external_data_that_is_not_in_the_folder() {
    let folder = Folder::new("outside");
    let source = folder.at("inside");
    fs::write(folder.at("secret.bin"), weight()).unwrap();
    fs::write(source.join("weights.bin"), weight()).unwrap();
    let secret = folder.at("secret.bin");
    let refused = |keys: &[(&str, &str)]| {
        fs::write(source.join("model.onnx"), model(external("w", &[5, 6], keys)).build()).unwrap();
        Model::open(source.join("model.onnx")).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(refused(&[("location", "weights.bin")]), Ok(()));
    assert_eq!(refused(&[("location", "./weights.bin")]), Ok(()));
    let not_inside = "not inside of the model's folder";
    let absolute = secret.to_str().unwrap();
    let mut cases = vec![
        (vec![("location", "../secret.bin")], not_inside),
        (vec![("location", "weights.bin/../../secret.bin")], not_inside),
        (vec![("location", absolute)], not_inside),
        (vec![("location", "")], not_inside),
        (vec![("offset", "0")], not_inside),
        (vec![("location", "missing.bin")], "cannot access"),
        (vec![("location", ".")], "no file"),
        (vec![("location", "weights.bin"), ("offset", "1")], "has 119 bytes of external data"),
        (vec![("location", "weights.bin"), ("offset", "1"), ("length", "120")], "120 bytes of external data at 1"),
        (vec![("location", "weights.bin"), ("offset", "18446744073709551615"), ("length", "120")], "in a file of 120"),
        (vec![("location", "weights.bin"), ("offset", "-1")], "has the offset `-1`"),
        (vec![("location", "weights.bin"), ("length", "4")], "has 4 bytes of external data"),
    ];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&secret, source.join("link.bin")).unwrap();
        std::os::unix::fs::symlink(folder.0.as_path(), source.join("up")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", source.join("zero.bin")).unwrap();
        std::os::unix::fs::symlink("weights.bin", source.join("good.bin")).unwrap();
        cases.push((vec![("location", "link.bin")], "a link out of the model's folder"));
        cases.push((vec![("location", "up/secret.bin")], "a link out of the model's folder"));
        cases.push((vec![("location", "zero.bin")], "a link out of the model's folder"));
        assert_eq!(refused(&[("location", "good.bin")]), Ok(()));
    }
    for (keys, expected) in cases {
        let message = refused(&keys).expect_err("the model is refused");
        assert!(message.contains(expected), "{keys:?}: {message}");
    }
    // Two tensors may have the same data, but not parts of each other's.
    let two = |offset: &str| {
        let keys = [("location", "weights.bin"), ("offset", offset), ("length", "60")];
        let other = external("other", &[15], &keys);
        refused_pair(&source, [external("w", &[5, 6], &[("location", "weights.bin")]), other].concat())
    };
    assert!(two("60").unwrap_err().contains("overlaps"));
    let same = external("other", &[5, 6], &[("location", "weights.bin")]);
    assert_eq!(refused_pair(&source, [external("w", &[5, 6], &[("location", "weights.bin")]), same].concat()), Ok(()));
    let in_memory = Model::from_bytes(model(external("w", &[5, 6], &[("location", "weights.bin")])).build(), None);
    assert!(in_memory.unwrap_err().to_string().contains("was not read from a file"));
}

fn refused_pair(folder: &Path, weights: Vec<u8>) -> Result<(), String> {
    fs::write(folder.join("model.onnx"), model(weights).build()).unwrap();
    Model::open(folder.join("model.onnx")).map(|_| ()).map_err(|error| error.to_string())
}
