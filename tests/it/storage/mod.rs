//! Files: round trips of statistics, their layout, damaged files, model files.

mod forged;
mod layers;
mod models;

use std::fs;
use std::path::PathBuf;

use crate::common::file::{crc32, numbers, range, take_apart};
use crate::common::gaussian;
use dalr::{ActivationStats, Dalr, Error, Linear, LowRankCompressor, Rank, Scalar};
use faer::Mat;
use rand::SeedableRng;
use rand::rngs::StdRng;

/// A temporary folder for one test, which is removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("dalr-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn files(&self) -> Vec<String> {
        let names = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn inputs<T: Scalar>(seed: u64, rows: usize, features: usize) -> Mat<T> {
    let mut rng = StdRng::seed_from_u64(seed);
    // Some zeros, as after a ReLU, and one input that is never active.
    let values = gaussian(&mut rng, rows, features);
    Mat::from_fn(rows, features, |i, j| T::from_f64(if j == 1 { 0.0 } else { (values[(i, j)] + 0.3).max(0.0) }))
}

/// Returns statistics in every state: empty, samples, several segments of samples, scatter, several
/// block columns, products in `f32`, samples in the buffer, only samples in the buffer, mixed.
fn states<T: Scalar>() -> Vec<(&'static str, ActivationStats<T>)> {
    let fed = |features, rows| {
        let mut stats = ActivationStats::new(features);
        stats.update(inputs(rows as u64, rows, features).as_ref()).unwrap();
        stats
    };
    let mut weighted = ActivationStats::new(5);
    weighted.update_weighted(inputs(3, 4, 5).as_ref(), &[1e-90, 0.0, 3.7, 1e80]).unwrap();
    let mut merged = fed(7, 40);
    merged.merge(&fed(7, 3)).unwrap();
    merged.update_weighted(inputs(4, 2, 7).as_ref(), &[0.1, 0.7]).unwrap();
    let gathering = |mut stats: ActivationStats<T>, rows| {
        let weights: Vec<f64> = (0..rows).map(|row| [1.0, 0.25, 3.0, 0.0][row % 4]).collect();
        stats.update_weighted(inputs(6, rows, stats.features()).as_ref(), &weights).unwrap();
        assert!(format!("{stats:?}").contains("covariance"));
        stats
    };
    // The limit allows the scatter and its buffer, and little more.
    let room = 64 * 64 * 8 + 64 / size_of::<T>() * (64 * size_of::<T>() + 8);
    let all_gathered = gathering(ActivationStats::new(64).with_memory_limit(room), 7);
    let mut both = gathering(fed(64, 300), 5);
    both.merge(&gathering(fed(64, 400), 6)).unwrap();
    let mut pieces = ActivationStats::new(9000);
    pieces.update(inputs(5, 600, 9000).as_ref()).unwrap();
    vec![
        ("of no inputs", ActivationStats::new(0)),
        ("empty", ActivationStats::new(3).with_memory_limit(12345).with_threads(3)),
        ("one sample", fed(6, 1)),
        ("samples", fed(6, 9)),
        ("weighted", weighted),
        ("segments", pieces),
        ("scatter", fed(6, 100).with_memory_limit(usize::MAX)),
        ("blocks", fed(300, 1300).with_threads(1)),
        ("merged", merged),
        ("gathering", gathering(fed(300, 1300), 11)),
        ("products", gathering(fed(520, 2200), 40)),
        ("all gathered", all_gathered),
        ("gathering merged", both),
    ]
}

fn bytes<T: Scalar>(stats: &ActivationStats<T>) -> Vec<u8> {
    stats.to_safetensors().unwrap()
}

fn behaves_the_same<T: Scalar>(name: &str, stats: &ActivationStats<T>, loaded: &ActivationStats<T>) {
    assert_eq!(format!("{stats:?}"), format!("{loaded:?}"));
    assert!(bytes(stats) == bytes(loaded), "{name}");
    let features = stats.features();
    let mut grown = [stats.clone(), loaded.clone()];
    let batch = inputs(77, 5, features);
    let outcomes = grown.each_mut().map(|stats| {
        let weights = [0.3, 0.0, 2.0, 1.0, 1.0];
        // The last batch has more samples than the buffer.
        let many = stats.update(inputs(79, if features < 1000 { 200 } else { 1 }, features).as_ref());
        (stats.update_weighted(batch.as_ref(), &weights), many, stats.update(batch.as_ref()))
    });
    assert_eq!(outcomes[0], outcomes[1], "{name}");
    assert!(bytes(&grown[0]) == bytes(&grown[1]), "{name}");
    for into in [false, true] {
        let [here, there] = [stats, loaded].map(|stats| {
            let (mut target, source) = if into { (grown[0].clone(), stats) } else { (stats.clone(), &grown[0]) };
            (target.merge(source), bytes(&target))
        });
        assert!(here == there, "{name}");
    }
    if (1..1000).contains(&features) && stats.samples() > 0 {
        let layer = Linear::new(inputs(78, 4, features), None).unwrap();
        for correct in [true, false] {
            let [here, there] = [stats, loaded].map(|stats| {
                let dalr = Dalr::new().with_bias_correction(correct);
                let compressed = dalr.compress(&layer, stats, Rank::Fixed(2)).unwrap();
                (compressed.layer().clone(), compressed.report().clone())
            });
            assert!(here == there, "{name}");
        }
        assert_eq!(stats.covariance().unwrap(), loaded.covariance().unwrap());
    }
}

fn round_trips<T: Scalar>(folder: &Folder) {
    for (name, stats) in states::<T>() {
        let path = folder.0.join(name);
        stats.save(&path).unwrap();
        assert!(fs::read(&path).unwrap() == bytes(&stats), "{name}");
        let loaded = ActivationStats::<T>::load(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        behaves_the_same(name, &stats, &loaded);
    }
}

#[test]
fn what_comes_back_behaves_bit_for_bit_the_same() {
    let folder = Folder::new("round-trips");
    round_trips::<f32>(&folder);
    round_trips::<f64>(&folder);
    assert!(folder.files().iter().all(|name| !name.ends_with(".partial")), "{:?}", folder.files());
}

#[test]
fn settings_come_back() {
    let stats = ActivationStats::<f32>::new(10).with_memory_limit(700).with_threads(3);
    let mut loaded = ActivationStats::<f32>::from_safetensors(&bytes(&stats)).unwrap();
    let refused = loaded.update(Mat::zeros(30, 10).as_ref());
    assert!(matches!(refused, Err(Error::Memory { available, .. }) if available.contains("700")));
    assert!(take_apart(&bytes(&loaded)).0.contains("\"memory_limit\":\"700\",\"threads\":\"3\""));
}

/// Reads a file as documented, without the library's code.
#[test]
fn the_file_is_what_the_documentation_says() {
    let mut narrow = ActivationStats::<f32>::new(300);
    narrow.update_weighted(inputs(1, 3, 300).as_ref(), &[0.5, 2.0, 1.25]).unwrap();
    let mut wide = ActivationStats::<f32>::new(300);
    wide.update(inputs(2, 1300, 300).as_ref()).unwrap();
    let mut gathering = wide.clone();
    gathering.update_weighted(inputs(3, 5, 300).as_ref(), &[1.5, 0.0, 30.0, 1.0, 0.25]).unwrap();
    let mut products = ActivationStats::<f32>::new(520);
    products.update(inputs(4, 2200, 520).as_ref()).unwrap();
    products.update(inputs(5, 3, 520).as_ref()).unwrap();
    let (double, single) = ("2.220446049250313e-16", "1.1920928955078125e-7");
    for (stats, form, kept, precision) in [
        (narrow, "samples", 3, ""),
        (wide, "scatter", 0, double),
        (gathering, "scatter", 4, double),
        (products, "scatter", 3, single),
    ] {
        let n = stats.features();
        let bytes = bytes(&stats);
        assert_eq!(crc32(&bytes[..bytes.len() - 4]).to_le_bytes(), bytes[bytes.len() - 4..]);
        let (text, data) = take_apart(&bytes);
        assert_eq!(text.len() % 8, 0);
        let header: serde_json::Value = serde_json::from_str(&text).unwrap();
        let about = &header["__metadata__"];
        for (key, value) in [
            ("kind", "dalr.ActivationStats"),
            ("version", "1"),
            ("precision", "f32"),
            ("form", form),
            ("features", &n.to_string()),
            ("sample_count", &stats.samples().to_string()),
            ("memory_limit", "none"),
            ("threads", "0"),
            ("block_width", "256"),
        ] {
            assert_eq!(about[key].as_str(), Some(value), "{key}");
        }
        if form == "scatter" {
            assert_eq!(about["gathered"].as_str(), Some(&*kept.to_string()));
            assert_eq!(about["scatter_precision"].as_str(), Some(precision));
        }
        assert_eq!(about.as_object().unwrap().len(), if form == "scatter" { 14 } else { 11 });
        let decimal = |key: &str| about[key].as_str().unwrap().parse::<f64>().unwrap();
        let total = decimal("total_weight");
        assert_eq!(total, stats.total_weight());
        assert_eq!(total * total / decimal("weight_squares"), stats.effective_samples());

        // Names, types and shapes; one tensor after the other.
        let mut expected: Vec<(&str, &str, Vec<usize>)> =
            ["mean", "origin", "offset", "minimum", "maximum", "absolute", "active"]
                .map(|name| (name, "F64", vec![n]))
                .into();
        expected.push(("weights", "F64", vec![kept]));
        if form == "scatter" {
            let entries = (0..n).step_by(256).map(|start| (n - start) * 256.min(n - start)).sum();
            expected.extend([("scatter_offset", "F64", vec![n]), ("scatter", "F64", vec![entries])]);
        }
        expected.extend([("samples", "F32", vec![kept, n]), ("checksum", "U32", vec![1])]);
        assert_eq!(header.as_object().unwrap().len(), expected.len() + 1);
        let mut end = 0;
        for (name, dtype, shape) in &expected {
            assert_eq!(header[name]["dtype"].as_str(), Some(*dtype), "{name}");
            assert_eq!(header[name]["shape"], serde_json::json!(shape), "{name}");
            assert_eq!(range(&text, name).start, end, "{name}");
            end = range(&text, name).end;
        }
        assert_eq!(end, data.len() + 4);

        let array = |name: &str| numbers(&text, &data, name);
        let (mean, origin, offset) = (array("mean"), array("origin"), array("offset"));
        assert!(stats.mean().unwrap().iter().eq(&mean));
        assert!(stats.maximum().unwrap().iter().eq(&array("maximum")));
        assert!(stats.minimum().unwrap().iter().eq(&array("minimum")));
        assert!(stats.activation_rates().unwrap().iter().copied().eq(array("active").iter().map(|sum| sum / total)));
        assert!(stats.mean_absolute().unwrap().iter().copied().eq(array("absolute").iter().map(|sum| sum / total)));
        let mut scatter = Mat::<f64>::zeros(n, n);
        let mut add = |weight: f64, d: &[f64]| scatter += Mat::from_fn(n, n, |a, b| weight * d[a] * d[b]);
        let samples = data[range(&text, "samples")].chunks_exact(4);
        let samples: Vec<f32> = samples.map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect();
        for (row, weight) in samples.chunks(n).zip(array("weights")) {
            add(weight, &(0..n).map(|j| f64::from(row[j]) - origin[j] - offset[j]).collect::<Vec<_>>());
        }
        if form == "scatter" {
            let distance: Vec<f64> = array("scatter_offset").iter().zip(&offset).map(|(own, all)| own - all).collect();
            add(decimal("scatter_weight"), &distance);
            let flat = array("scatter");
            let mut start = 0;
            for s in (0..n).step_by(256) {
                let w = 256.min(n - s);
                for (row, column) in (s..n).flat_map(|row| (s..s + w).map(move |column| (row, column))) {
                    let entry = flat[start + (column - s) * (n - s) + (row - s)];
                    scatter[(row, column)] += entry;
                    if row >= s + w {
                        scatter[(column, row)] += entry;
                    }
                }
                start += w * (n - s);
            }
        }
        let difference = scatter * faer::Scale(1.0 / total) - stats.covariance().unwrap();
        assert!(difference.norm_max() <= 1e-14 * stats.covariance().unwrap().norm_max());

        // Any reader of safetensors can read the file.
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.tensor("mean").unwrap().data(), &data[range(&text, "mean")]);
    }
}

#[test]
fn files_that_cannot_be_had_are_errors_and_leave_nothing() {
    let folder = Folder::new("refused");
    let stats = ActivationStats::<f32>::new(3);
    let missing = folder.0.join("no/such/file");
    let not_found = |result: Result<(), Error>| {
        assert!(matches!(result, Err(Error::Io { ref path, ref source, .. })
                if source.kind() == std::io::ErrorKind::NotFound && path.ends_with("file")));
    };
    not_found(stats.save(&missing));
    not_found(ActivationStats::<f32>::load(&missing).map(|_| ()));
    assert!(matches!(ActivationStats::<f32>::load(&folder.0), Err(Error::Format { .. })));
    let taken = folder.0.join("taken");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("keep"), "me").unwrap();
    assert!(matches!(stats.save(&taken), Err(Error::Io { .. })));
    assert!(matches!(stats.save(""), Err(Error::Io { .. })));
    assert!(matches!(stats.save("/"), Err(Error::Io { .. })));
    assert_eq!(folder.files(), ["taken"]);
    // The file is damaged on disk, and the error names it.
    let path = folder.0.join("damaged");
    stats.save(&path).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes.pop();
    fs::write(&path, bytes).unwrap();
    assert!(ActivationStats::<f32>::load(&path).unwrap_err().to_string().contains("damaged"));
}

#[test]
fn many_may_save_to_one_path_at_once() {
    let folder = Folder::new("at-once");
    let path = folder.0.join("stats");
    ActivationStats::<f64>::new(1).save(&path).unwrap();
    std::thread::scope(|scope| {
        for writer in 1..=4 {
            let path = &path;
            scope.spawn(move || {
                let mut stats = ActivationStats::<f64>::new(writer);
                for round in 0..25 {
                    stats.update(inputs(round, 4, writer).as_ref()).unwrap();
                    stats.save(path).unwrap();
                }
            });
        }
        for _ in 0..200 {
            ActivationStats::<f64>::load(&path).unwrap();
        }
    });
    assert_eq!(ActivationStats::<f64>::load(&path).unwrap().samples(), 100);
    assert_eq!(folder.files(), ["stats"]);
}

/// Temporary files of this path are removed. Those of other paths, and files with similar names,
/// stay.
#[test]
fn leftovers_are_removed_and_nothing_else() {
    let folder = Folder::new("leftovers");
    for name in [
        ".a.12-3f.partial",
        ".a.b.12-3.partial",
        ".b.12-3.partial",
        ".a.12-3.part",
        ".a.notes.partial",
        "a.12-3.partial",
    ] {
        fs::write(folder.0.join(name), "left").unwrap();
    }
    let busy = fs::File::create(folder.0.join(".a.7-7.partial")).unwrap();
    busy.lock().unwrap();
    ActivationStats::<f32>::new(3).save(folder.0.join("a")).unwrap();
    let mut files = folder.files();
    files.sort();
    let expected = [
        ".a.12-3.part",
        ".a.7-7.partial",
        ".a.b.12-3.partial",
        ".a.notes.partial",
        ".b.12-3.partial",
        "a",
        "a.12-3.partial",
    ];
    assert_eq!(files, expected);
}

#[cfg(unix)]
#[test]
fn a_link_is_followed() {
    let folder = Folder::new("link");
    let (real, link) = (folder.0.join("real"), folder.0.join("link"));
    ActivationStats::<f32>::new(3).save(&real).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    ActivationStats::<f32>::new(4).save(&link).unwrap();
    assert!(link.is_symlink());
    assert_eq!(ActivationStats::<f32>::load(&real).unwrap().features(), 4);
}

/// A stream contains the bytes of a file. Several statistics can follow each other in one stream. A
/// stream that ends early is an error.
#[test]
fn streams_hold_what_files_do_one_after_the_other() {
    let states = states::<f32>();
    let mut stream = Vec::new();
    for (name, stats) in &states {
        let before = stream.len();
        stats.write_safetensors(&mut stream).unwrap();
        assert!(stream[before..] == bytes(stats), "{name}");
        assert_eq!((stream.len() - before) as u64, stats.safetensors_length().unwrap(), "{name}");
    }
    let mut source = stream.as_slice();
    for (name, stats) in &states {
        let received = ActivationStats::read_safetensors(stats.safetensors_length().unwrap(), &mut source).unwrap();
        behaves_the_same(name, stats, &received);
    }
    assert!(source.is_empty());

    let (_, stats) = &states[7];
    let (length, whole) = (stats.safetensors_length().unwrap(), bytes(stats));
    let read = |length, source: &[u8]| ActivationStats::<f32>::read_safetensors(length, source).map(|_| ());
    assert_eq!(read(length, &whole), Ok(()));
    assert!(matches!(read(length, &whole[..whole.len() - 1]), Err(Error::Io { .. })));
    for wrong in [length - 1, length + 1, 7] {
        assert!(matches!(read(wrong, &whole), Err(Error::Format { .. })), "{wrong}");
    }

    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("no more room"))
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let error = stats.write_safetensors(Full).unwrap_err().to_string();
    assert!(error.contains("write_safetensors") && error.contains("no more room"), "{error}");
}
