//! Statistics on disk: what comes back, how it is laid out, and that nothing else is let in.
#![cfg(feature = "safetensors")]

mod common;

use std::fs;
use std::path::PathBuf;

use common::file::{crc32, numbers, put_together, range, set, take_apart};
use common::gaussian;
use dalr::{ActivationStats, Dalr, Error, Linear, LowRankCompressor, Rank, Scalar};
use faer::Mat;
use rand::SeedableRng;
use rand::rngs::StdRng;

/// A folder of its own for each test, gone with it.
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

/// Statistics in every state that there is: empty, samples, several segments of them, scatter, several block columns of it, products in
/// `f32`, samples gathered for the next one, all of them gathered, mixed.
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
        assert!(format!("{stats:?}").contains("scatter"));
        stats
    };
    // There is room for the scatter and what is gathered, and for little more.
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
        // The last one is more than is ever gathered.
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

/// Reads a file as its documentation says, with nothing of the library.
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

        // Any reader of the format can read it.
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.tensor("mean").unwrap().data(), &data[range(&text, "mean")]);
    }
}

/// Samples; a scatter; a scatter and two samples that wait.
const FORMS: [&str; 3] = ["samples", "scatter", "gathering"];

fn small(form: &str) -> Vec<u8> {
    // Samples wait for products of three, of this many inputs.
    let features = if form == "gathering" { 12 } else { 3 };
    let mut stats = ActivationStats::<f32>::new(features);
    stats.update(inputs(8, if form == "samples" { 4 } else { 60 }, features).as_ref()).unwrap();
    if form == "gathering" {
        stats.update(inputs(9, 2, features).as_ref()).unwrap();
    }
    let bytes = bytes(&stats);
    let header = take_apart(&bytes).0;
    assert!(header.contains(&format!("\"form\":\"{}\"", if form == "samples" { form } else { "scatter" })));
    assert_eq!(header.contains("\"gathered\":\"2\""), form == "gathering");
    bytes
}

fn load(bytes: &[u8]) -> Result<ActivationStats<f32>, Error> {
    ActivationStats::from_safetensors(bytes)
}

#[test]
fn damage_is_an_error_wherever_it_is() {
    for form in FORMS {
        let good = small(form);
        assert!(load(&good).is_ok());
        for length in 0..good.len() {
            assert!(matches!(load(&good[..length]), Err(Error::Format { .. })), "cut to {length}");
        }
        for index in 0..good.len() {
            for mask in [1, 2, 4, 8, 16, 32, 64, 128, 255, 0x20 ^ b'\n'] {
                let mut bad = good.clone();
                bad[index] ^= mask;
                assert!(matches!(load(&bad), Err(Error::Format { .. })), "byte {index} ^ {mask:#x}");
            }
        }
        for more in [1, 4, 8, 4096] {
            let mut bad = good.clone();
            bad.resize(good.len() + more, 0);
            assert!(matches!(load(&bad), Err(Error::Format { .. })), "{more} more");
        }
        let twice = [good.clone(), good.clone()].concat();
        assert!(load(&twice).is_err());
    }
}

#[track_caller]
fn refused(header: &str, data: &[u8], message: &str) {
    let error = load(&put_together(header, data)).expect_err(message);
    assert!(matches!(error, Error::Format { .. } | Error::Overflow { .. }), "{error:?}");
    assert!(error.to_string().contains(message), "expected `{message}`, got `{error}`");
}

/// A header with something else in it, padded as headers are.
fn replaced(header: &str, from: &str, to: &str) -> String {
    assert!(header.contains(from), "{from}");
    let header = header.replacen(from, to, 1);
    let header = header.trim_end();
    format!("{header:<0$}", header.len().next_multiple_of(8))
}

/// Headers that lie, with a checksum that is right.
#[test]
fn hostile_headers() {
    let (header, data) = take_apart(&small("samples"));
    let replaced = |from: &str, to: &str| replaced(&header, from, to);
    let lie = |from: &str, to: &str, message: &str| refused(&replaced(from, to), &data, message);
    assert!(load(&put_together(&header, &data)).is_ok());

    lie("\"version\":\"1\"", "\"version\":\"2\"", "expected a version from 1 to 1, which this release reads, in");
    lie("\"version\":\"1\"", "\"version\":\"0\"", "expected a version from 1");
    lie("\"version\":\"1\"", "\"version\":\"one\"", "a number for version");
    lie("\"version\":\"1\"", "\"version\":\"+1\"", "other spelling");
    lie("\"version\":\"1\",", "", "a field `version`");
    lie("\"version\":\"1\"", "\"version\":\"1\",\"version\":\"1\"", "repeated");
    lie("\"version\":\"1\"", "\"noise\":\"1\",\"version\":\"1\"", "unknown");
    lie("dalr.ActivationStats", "another", "kind `dalr.ActivationStats`");
    lie("\"precision\":\"f32\"", "\"precision\":\"f64\"", "precision `f32`");
    lie("\"form\":\"samples\"", "\"form\":\"scatter\"", "a field `scatter_weight`");
    lie("\"form\":\"samples\"", "\"form\":\"both\"", "form `samples` or `scatter`");
    lie("\"block_width\":\"256\"", "\"block_width\":\"128\"", "other spelling");
    let huge = usize::MAX.to_string();
    for count in ["NaN", "-1", "1e3", "4.0", "", "inf", "18446744073709551616"] {
        lie("\"sample_count\":\"4\"", &format!("\"sample_count\":\"{count}\""), "a number for sample_count");
        lie("\"features\":\"3\"", &format!("\"features\":\"{count}\""), "a number for features");
    }
    for huge in [huge.as_str(), "9223372036854775807", "1152921504606846976"] {
        lie("\"sample_count\":\"4\"", &format!("\"sample_count\":\"{huge}\""), "expected");
        lie("\"features\":\"3\"", &format!("\"features\":\"{huge}\""), "expected");
    }
    lie("\"sample_count\":\"4\"", "\"sample_count\":\"0\"", "expected a tensor `mean`");
    lie("\"features\":\"3\"", "\"features\":\"0\"", "expected a tensor `mean`");
    for weight in ["NaN", "inf", "-inf", "-4e0", "0e0", "1e300", "1e-300"] {
        let total = replaced("\"total_weight\":\"4e0\"", &format!("\"total_weight\":\"{weight}\""));
        let expected = "a total weight that as many samples can have";
        refused(&total, &data, expected);
        let squares = replaced("\"weight_squares\":\"4e0\"", &format!("\"weight_squares\":\"{weight}\""));
        refused(&squares, &data, "squares of weights that fit their sum");
    }
    lie("\"total_weight\":\"4e0\"", "\"total_weight\":\"4.1e0\"", "expected squares");
    lie("\"threads\":\"0\"", "\"threads\":\"many\"", "a number for threads");

    lie("\"F32\"", "\"F64\"", "header in the safetensors format");
    lie("\"F32\"", "\"I32\"", "a tensor `samples` of type F32 and shape [4, 3]");
    lie("\"F32\"", "\"F33\"", "header in the safetensors format");
    lie("[4,3]", "[3,4]", "a tensor `samples`");
    lie("[4,3]", &format!("[{huge},{huge}]"), "header in the safetensors format");
    lie("[4,3]", "[1e3,3]", "header in the safetensors format");
    lie("[4,3]", "[-4,-3]", "header in the safetensors format");
    lie("\"origin\"", "\"mean\"", "header in the safetensors format");
    lie("\"origin\"", "\"origins\"", "a tensor `origin`");
    // Overlapping, swapped, with a hole, past the end, backwards.
    lie("[24,48]", "[0,24]", "header in the safetensors format");
    lie("[24,48]", "[20,44]", "header in the safetensors format");
    lie("[24,48]", "[32,56]", "header in the safetensors format");
    lie("[24,48]", &format!("[24,{huge}]"), "header in the safetensors format");
    lie("[24,48]", "[48,24]", "header in the safetensors format");
    let swapped =
        header.replace("\"origin\"", "\"tmp\"").replace("\"offset\"", "\"origin\"").replace("\"tmp\"", "\"offset\"");
    refused(&swapped, &data, "reordered");

    refused("", &data, "header in the safetensors format");
    refused("{}", &data, "a field `kind`");
    refused("{}", &[], "a field `kind`");
    refused("[]", &data, "header in the safetensors format");
    refused(&"[".repeat(4000), &data, "header in the safetensors format");
    refused(&"{\"a\":".repeat(800), &data, "header in the safetensors format");
    refused(&" ".repeat(4097), &data, "a header of at most 4096 bytes");
    refused(&format!("{header} "), &data, "other spelling");
    refused(&header, &data[4..], "bytes");
    for length in [u64::MAX, u64::MAX - 8, 1 << 63, data.len() as u64 + 1000, 100_000_000] {
        let mut bytes = put_together(&header, &data);
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        assert!(load(&bytes).unwrap_err().to_string().contains("a header of at most"));
    }
    // Not UTF-8.
    let mut bytes = put_together(&header, &data);
    bytes[20] = 0xff;
    assert!(matches!(load(&bytes), Err(Error::Format { .. })));
}

/// Numbers that no samples lead to, in a file that is otherwise right.
#[test]
fn impossible_numbers() {
    for (form, lies) in [
        (
            "samples",
            &[
                ("minimum", -1.0, "a minimum that is the samples'"),
                ("maximum", 1e3, "a maximum that is the samples'"),
                ("absolute", 1e-3, "a mean magnitude"),
                ("active", 1e-3, "an activation rate"),
                ("weights", -1.0, "weights of samples"),
                ("weights", f64::NAN, "weights of samples"),
                ("weights", 0.0, "weights of samples"),
                ("weights", 3.0, "a total weight that is the sum"),
            ][..],
        ),
        (
            "gathering",
            &[
                ("scatter_offset", f64::NAN, "a mean of the scatter between minimum and maximum"),
                ("scatter_offset", 1e3, "a mean of the scatter between minimum and maximum"),
                ("scatter_offset", -1e3, "a mean of the scatter between minimum and maximum"),
                ("scatter_offset", 0.0, "a mean that is the samples'"),
                ("weights", -1.0, "weights of samples"),
                ("weights", 0.0, "weights of samples"),
                ("weights", f64::NAN, "a weight of the scatter that fits the squares"),
                ("weights", 3.0, "a weight of the scatter that fits the squares"),
            ][..],
        ),
        (
            "scatter",
            &[
                ("scatter", -1e-9, "variances that are not negative"),
                ("scatter", f64::NAN, "variances that are not negative"),
                ("scatter", f64::INFINITY, "variances that fit the extremes"),
                ("scatter", 1e9, "variances that fit the extremes"),
                ("scatter", 0.0, "covariances that fit the variances"),
            ][..],
        ),
    ] {
        let (header, good) = take_apart(&small(form));
        let lie = |name: &str, index: usize, value: f64, message: &str| {
            let mut data = good.clone();
            set(&header, &mut data, name, index, value);
            // The mean goes along, lest it give the lie away.
            if name == "origin" || name == "offset" {
                let sum = numbers(&header, &data, "origin")[index] + numbers(&header, &data, "offset")[index];
                set(&header, &mut data, "mean", index, sum);
            }
            refused(&header, &data, message);
        };
        for (name, value, message) in lies {
            lie(name, 0, *value, message);
        }
        lie("mean", 2, 0.5, "a mean that is origin plus offset");
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300, -1e300] {
            lie("origin", 0, value, "an origin between minimum and maximum");
            lie("offset", 0, value, "a mean between minimum and maximum");
            lie("absolute", 0, value, "a mean magnitude");
            lie("active", 0, value, "an activation rate");
            lie("minimum", 0, value, if value == -1e300 { "expected" } else { "imum" });
            lie("maximum", 0, value, if value == 1e300 { "expected" } else { "imum" });
        }
        lie("active", 1, 1.0, "an activation rate");
        if form != "samples" {
            lie("scatter", 1, 1e3, "covariances that fit the variances");
            lie("scatter", 1, f64::NAN, "covariances that fit the variances");
            let entries = numbers(&header, &good, "scatter");
            lie("scatter", 2, entries[2] + 0.05 * entries[0], "a symmetric scatter");
        }
        if form != "scatter" {
            let mut data = good.clone();
            let start = range(&header, "samples").start;
            for bad in [f32::NAN, f32::INFINITY, 1e30] {
                data[start..start + 4].copy_from_slice(&bad.to_le_bytes());
                refused(&header, &data, if bad == 1e30 { "imum that is the samples'" } else { "finite samples" });
            }
        }
    }
}

/// What the collapsed form says of itself beside its numbers.
#[test]
fn impossible_scatters() {
    let lie = |form: &str, lies: &[(&str, &str)], message: &str| {
        let (header, data) = take_apart(&small(form));
        let header = lies.iter().fold(header, |header, (from, to)| replaced(&header, from, to));
        refused(&header, &data, message);
    };
    let weight = "a weight of the scatter that as many samples can have";
    for number in ["NaN", "inf", "-6e1", "0e0", "1e300"] {
        lie("scatter", &[("\"scatter_weight\":\"6e1\"", &format!("\"scatter_weight\":\"{number}\""))], weight);
    }
    let squares = "a weight of the scatter that fits the squares of the weights";
    lie("gathering", &[("\"scatter_weight\":\"6e1\"", "\"scatter_weight\":\"6.3e1\"")], squares);
    lie("gathering", &[("\"scatter_weight\":\"6e1\"", "\"scatter_weight\":\"7e0\"")], squares);
    let sum = "a total weight that is the sum of the weights";
    lie("gathering", &[("\"scatter_weight\":\"6e1\"", "\"scatter_weight\":\"5e1\"")], sum);
    let precision = "products in the precision of the samples or in `f64`";
    for number in ["NaN", "inf", "0e0", "-2.220446049250313e-16", "1e-7", "2.22e-16"] {
        let number = format!("\"scatter_precision\":\"{number}\"");
        lie("gathering", &[("\"scatter_precision\":\"2.220446049250313e-16\"", &number)], precision);
    }
    let single = ("\"scatter_precision\":\"2.220446049250313e-16\"", "\"scatter_precision\":\"1.1920928955078125e-7\"");
    let mut double = ActivationStats::<f64>::new(3);
    double.update(inputs(1, 40, 3).as_ref()).unwrap();
    let (header, data) = take_apart(&bytes(&double));
    let file = put_together(&replaced(&header, single.0, single.1), &data);
    assert!(ActivationStats::<f64>::from_safetensors(&file).unwrap_err().to_string().contains(precision));

    for number in ["-1", "1.0", "", "NaN"] {
        lie("scatter", &[("\"gathered\":\"0\"", &format!("\"gathered\":\"{number}\""))], "a number for gathered");
    }
    lie("scatter", &[("\"gathered\":\"0\"", "\"gathered\":\"1\"")], "a tensor `weights` of type F64 and shape [1]");
    // As many as would have been multiplied; more than there are.
    let mut stats = ActivationStats::<f32>::new(12).with_memory_limit(12 * 12 * 8 + 3 * 56);
    stats.update(inputs(8, 2, 12).as_ref()).unwrap();
    let good = bytes(&stats);
    let (header, data) = take_apart(&good);
    assert!(header.contains("\"scatter_weight\":\"0e0\",\"scatter_precision\":\"0e0\",\"gathered\":\"2\""));
    assert!(load(&good).is_ok());
    let fewer = replaced(&header, "\"sample_count\":\"2\"", "\"sample_count\":\"1\"");
    let fewer = replaced(&fewer, "\"total_weight\":\"2e0\"", "\"total_weight\":\"1e0\"");
    refused(
        &replaced(&fewer, "\"weight_squares\":\"2e0\"", "\"weight_squares\":\"1e0\""),
        &data,
        "no more gathered samples than there are",
    );
    // An empty scatter that is not empty.
    let empty = |name: &str, value: f64, message: &str| {
        let mut data = data.clone();
        set(&header, &mut data, name, 0, value);
        refused(&header, &data, message);
    };
    empty("scatter_offset", 1e-300, "no mean of an empty scatter");
    empty("scatter", 5e-324, "variances that fit the extremes");
    empty("absolute", 1e-3, "a mean magnitude");
    refused(&replaced(&header, "\"scatter_precision\":\"0e0\"", single.1), &data, "no products in an empty scatter");
    refused(&replaced(&header, "\"scatter_weight\":\"0e0\"", "\"scatter_weight\":\"1e0\""), &data, weight);
}

/// Samples as many as are multiplied at once do not wait.
#[test]
fn too_many_gathered_samples() {
    let (header, data) = take_apart(&small("gathering"));
    let (weights, samples) = (range(&header, "weights"), range(&header, "samples"));
    let mut more = data[..weights.end].to_vec();
    more.extend(1_f64.to_le_bytes());
    more.extend(&data[weights.end..]);
    more.extend(&data[samples.start..samples.start + 48]);
    let mut header = replaced(&header, "\"gathered\":\"2\"", "\"gathered\":\"3\"");
    for (from, to) in [("\"shape\":[2]", "\"shape\":[3]"), ("[2,12]", "[3,12]")] {
        header = replaced(&header, from, to);
    }
    // All that lies behind the weights moves.
    let mut offsets: Vec<usize> =
        ["weights", "scatter_offset", "scatter", "samples"].map(|n| range(&header, n).end).into();
    offsets.push(range(&header, "checksum").end);
    for (index, end) in offsets.iter().enumerate().rev() {
        let moved = end + if index < 3 { 8 } else { 56 };
        header = header
            .replace(&format!(",{end}]"), &format!(",{moved}]"))
            .replace(&format!("[{end},"), &format!("[{moved},"));
    }
    refused(&replaced(&header, "{", "{"), &more, "fewer gathered samples than make a product");
}

#[test]
fn precisions_are_not_mixed_up() {
    let stats = ActivationStats::<f64>::new(3);
    let error = load(&bytes(&stats)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "ActivationStats::from_safetensors: expected precision `f32` in the bytes, got `f64`"
    );
}

#[test]
fn files_that_cannot_be_had_are_errors_and_leave_nothing() {
    let folder = Folder::new("refused");
    let stats = ActivationStats::<f32>::new(3);
    let missing = folder.0.join("no/such/file");
    let not_found = |result: Result<(), Error>| {
        assert!(
            matches!(result, Err(Error::Io { kind: std::io::ErrorKind::NotFound, ref path, .. }) if path.ends_with("file"))
        );
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
    // Damaged on disk, named in the error.
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

/// Leftovers of this path go, those of others and what only looks like one stay.
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
