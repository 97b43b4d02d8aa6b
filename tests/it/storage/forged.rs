//! Damaged files, false headers and numbers that are not finite are errors.

use dalr::{ActivationStats, Error};

use super::{bytes, inputs};
use crate::common::file::{numbers, put_together, range, set, take_apart};

/// The sample form; the covariance form; the covariance form with two samples in its buffer.
const FORMS: [&str; 3] = ["samples", "scatter", "gathering"];

fn small(form: &str) -> Vec<u8> {
    // With 12 inputs, the buffer holds up to three samples.
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

/// Returns a header with `from` replaced by `to`, padded as headers are.
fn replaced(header: &str, from: &str, to: &str) -> String {
    assert!(header.contains(from), "{from}");
    let header = header.replacen(from, to, 1);
    let header = header.trim_end();
    format!("{header:<0$}", header.len().next_multiple_of(8))
}

/// False headers with a correct checksum.
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
    lie("\"precision\":\"f32\"", "\"precision\":\"f64\"", "dtype `f32`");
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
    for weight in ["NaN", "inf", "-inf", "-4e0", "0e0"] {
        let total = replaced("\"total_weight\":\"4e0\"", &format!("\"total_weight\":\"{weight}\""));
        refused(&total, &data, "a finite positive total weight");
        let squares = replaced("\"weight_squares\":\"4e0\"", &format!("\"weight_squares\":\"{weight}\""));
        refused(&squares, &data, "a finite positive sum of squared weights");
    }
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
    // The ranges overlap, are swapped, leave a gap, exceed the end, or are reversed.
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

/// NaN, infinities, and numbers of the wrong sign, in an otherwise valid file.
#[test]
fn invalid_numbers() {
    let infinite = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    for form in FORMS {
        let (header, good) = take_apart(&small(form));
        let lie = |name: &str, index: usize, value: f64, message: &str| {
            let mut data = good.clone();
            set(&header, &mut data, name, index, value);
            // The mean is changed together with the origin or the offset, because a contradiction
            // would be another error.
            if name == "origin" || name == "offset" {
                let sum = numbers(&header, &data, "origin")[index] + numbers(&header, &data, "offset")[index];
                set(&header, &mut data, "mean", index, sum);
            }
            refused(&header, &data, message);
        };
        lie("mean", 2, 0.5, "a mean that is origin plus offset");
        for value in infinite {
            for name in ["origin", "offset", "minimum", "maximum"] {
                lie(name, 0, value, "finite means and extremes");
            }
            for name in ["absolute", "active"] {
                lie(name, 2, value, "finite sums of magnitudes and activations that are not negative");
            }
        }
        for name in ["absolute", "active"] {
            lie(name, 0, -1.0, "finite sums of magnitudes and activations that are not negative");
        }
        if form != "samples" {
            for value in infinite {
                lie("scatter", 1, value, "finite covariances");
                lie("scatter_offset", 0, value, "a finite mean of the scatter");
            }
            lie("scatter", 0, -1e-9, "variances that are not negative");
        }
        if form != "scatter" {
            for weight in [-1.0, 0.0, f64::NAN, f64::INFINITY, 1e101] {
                lie("weights", 1, weight, "weights of samples between 1e-100 and 1e100");
            }
            let mut data = good.clone();
            let start = range(&header, "samples").start;
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                data[start + 4..start + 8].copy_from_slice(&bad.to_le_bytes());
                refused(&header, &data, "finite samples");
            }
        }
    }
}

/// The numbers of the covariance form in the header.
#[test]
fn invalid_scatters() {
    let lie = |form: &str, from: &str, to: &str, message: &str| {
        let (header, data) = take_apart(&small(form));
        refused(&replaced(&header, from, to), &data, message);
    };
    for number in ["NaN", "inf", "-6e1", "6.1e1", "1e300"] {
        let number = format!("\"scatter_weight\":\"{number}\"");
        lie("scatter", "\"scatter_weight\":\"6e1\"", &number, "a weight of the scatter up to the total weight");
    }
    let precision = "products in the precision of the samples or in `f64`";
    for number in ["NaN", "inf", "-2.220446049250313e-16", "1e-7", "2.22e-16"] {
        let number = format!("\"scatter_precision\":\"{number}\"");
        lie("gathering", "\"scatter_precision\":\"2.220446049250313e-16\"", &number, precision);
    }
    let mut double = ActivationStats::<f64>::new(3);
    double.update(inputs(1, 40, 3).as_ref()).unwrap();
    let (header, data) = take_apart(&bytes(&double));
    let (own, single) = ("2.220446049250313e-16", "1.1920928955078125e-7");
    let file = put_together(&replaced(&header, own, single), &data);
    assert!(ActivationStats::<f64>::from_safetensors(&file).unwrap_err().to_string().contains(precision));

    for number in ["-1", "1.0", "", "NaN"] {
        lie("scatter", "\"gathered\":\"0\"", &format!("\"gathered\":\"{number}\""), "a number for gathered");
    }
    lie("scatter", "\"gathered\":\"0\"", "\"gathered\":\"1\"", "a tensor `weights` of type F64 and shape [1]");
    // The buffer has more samples than the statistics.
    let mut stats = ActivationStats::<f32>::new(12).with_memory_limit(12 * 12 * 8 + 3 * 56);
    stats.update(inputs(8, 2, 12).as_ref()).unwrap();
    let good = bytes(&stats);
    assert!(load(&good).is_ok());
    let (header, data) = take_apart(&good);
    let fewer = replaced(&header, "\"sample_count\":\"2\"", "\"sample_count\":\"1\"");
    refused(&fewer, &data, "no more waiting samples than there are");
}

/// The buffer never holds enough samples for a product.
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
    // All tensors after the weights move.
    let mut offsets: Vec<usize> =
        ["weights", "scatter_offset", "scatter", "samples"].map(|n| range(&header, n).end).into();
    offsets.push(range(&header, "checksum").end);
    for (index, end) in offsets.iter().enumerate().rev() {
        let moved = end + if index < 3 { 8 } else { 56 };
        header = header
            .replace(&format!(",{end}]"), &format!(",{moved}]"))
            .replace(&format!("[{end},"), &format!("[{moved},"));
    }
    refused(&replaced(&header, "{", "{"), &more, "fewer waiting samples than a product takes");
}

#[test]
fn precisions_are_not_mixed_up() {
    let stats = ActivationStats::<f64>::new(3);
    let error = load(&bytes(&stats)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "ActivationStats::from_safetensors: expected dtype `f32`, as in `ActivationStats<f32>`, in the bytes, got `f64`: load with that type"
    );
}
