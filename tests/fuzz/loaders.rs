//! Passes random bytes and damaged files to all loaders. The result is an error or a valid object.

use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Rank};
use faer::Mat;
use rand::Rng;
use rand::rngs::StdRng;

use super::{fuzz, pick};

#[cfg(feature = "safetensors")]
#[test]
fn statistics_files() {
    let good: Vec<Vec<u8>> = [(0, 3, 0), (1, 3, 0), (7, 5, 0), (60, 5, 0), (3, 70, 0), (60, 12, 2)]
        .map(|(rows, features, gathered)| {
            let mut stats = ActivationStats::<f32>::new(features);
            for rows in [rows, gathered].into_iter().filter(|&rows| rows > 0) {
                let batch = Mat::from_fn(rows, features, |i, j| ((i * 7 + j * 3) % 11) as f32 - 4.0);
                stats.update(batch.as_ref()).unwrap();
            }
            stats.to_safetensors().unwrap()
        })
        .into();
    fuzz("statistics_files", &[], |rng| {
        let mut bytes = good[rng.random_range(0..good.len())].clone();
        for _ in 0..rng.random_range(1..4) {
            bytes = mutated(rng, &bytes, &good);
        }
        // The checksum is corrected, so that the other checks are tested, too.
        if rng.random_ratio(3, 4) && bytes.len() >= 4 {
            let end = bytes.len() - 4;
            let sum = crate::common::file::crc32(&bytes[..end]);
            bytes[end..].copy_from_slice(&sum.to_le_bytes());
        }
        if let Ok(stats) = ActivationStats::<f32>::from_safetensors(&bytes) {
            // Equal states give equal files.
            assert!(stats.to_safetensors().unwrap() == bytes);
            is_sound(stats);
        }
        let _ = ActivationStats::<f64>::from_safetensors(&bytes);
    });
}

/// Checks that loaded statistics can be used: every result is finite, or an error.
#[cfg(feature = "safetensors")]
fn is_sound(mut stats: ActivationStats<f32>) {
    let features = stats.features();
    if stats.samples() > 0 {
        assert!(stats.mean().unwrap().iter().all(|x| x.is_finite()));
        let covariance = stats.covariance().unwrap();
        assert!((0..features).all(|j| covariance[(j, j)] >= 0.0 && covariance[(j, j)].is_finite()));
        assert!((0.0..=1.0).contains(&stats.fraction_gathering(0.5).unwrap()));
        let layer = Linear::new(Mat::from_fn(3, features, |i, j| ((i * 5 + j) % 7) as f32), None).unwrap();
        if let Ok(compressed) = Dalr::new().compress(&layer, &stats, Rank::Fixed(1)) {
            let error = compressed.report().relative_error().unwrap();
            // Infinite if the loaded statistics do not vary.
            assert!(error >= 0.0, "{error}");
        }
    }
    let copy = stats.clone();
    let _ = stats.merge(&copy);
    let _ = stats.update(Mat::zeros(3, features).as_ref());
}

#[cfg(feature = "safetensors")]
fn mutated(rng: &mut StdRng, bytes: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = rng.random_range(0..bytes.len().max(1));
    let header = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length) as usize).min(bytes.len());
    match rng.random_range(0..9) {
        0 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << rng.random_range(0..8)),
        1 => bytes.truncate(at),
        2 => bytes.extend((0..rng.random_range(0..40)).map(|_| rng.random::<u8>())),
        3 => bytes = (0..rng.random_range(0..200)).map(|_| rng.random()).collect(),
        4 => {
            let other = &others[rng.random_range(0..others.len())];
            bytes.truncate(at);
            bytes.extend(&other[at.min(other.len())..]);
        }
        5 => {
            let number = pick(rng, &super::SPECIAL);
            // Most changes are aligned with the numbers of the file.
            let start = 8 + header + at / 8 * 8;
            if let Some(place) = bytes.get_mut(start..start + 8) {
                place.copy_from_slice(&number.to_le_bytes());
            }
        }
        6 => {
            // A small change of a number gives a state that could be valid.
            let start = 8 + header + at / 8 * 8;
            if let Some(place) = bytes.get_mut(start..start + 8) {
                place[0] ^= rng.random::<u8>();
            }
        }
        _ => {
            // Another number, word or bracket in the header, with the matching length.
            let text = String::from_utf8_lossy(&bytes[bytes.len().min(8)..bytes.len().min(8 + header)]).into_owned();
            let text = mutated_text(rng, text.trim_end());
            let text = format!("{text:<0$}", text.len().next_multiple_of(8));
            let rest = bytes.split_off(bytes.len().min(8 + header));
            bytes = (text.len() as u64).to_le_bytes().to_vec();
            bytes.extend(text.as_bytes());
            bytes.extend(rest);
        }
    }
    bytes
}

/// Returns the text with one digit sequence, word or bracket replaced.
fn mutated_text(rng: &mut StdRng, text: &str) -> String {
    let kind = |c: char| {
        if c.is_ascii_digit() {
            0
        } else if c.is_alphabetic() {
            1
        } else {
            2
        }
    };
    let mut tokens: Vec<String> = Vec::new();
    for c in text.chars() {
        match tokens.last_mut() {
            Some(last) if kind(c) < 2 && last.chars().next_back().is_some_and(|l| kind(l) == kind(c)) => last.push(c),
            _ => tokens.push(c.into()),
        }
    }
    if tokens.is_empty() {
        return text.into();
    }
    let hostile = [
        "0",
        "1",
        "2",
        "3",
        "5",
        "256",
        "-1",
        "1e308",
        "1e999",
        "NaN",
        "null",
        "true",
        "18446744073709551615",
        "18446744073709551616",
        "9223372036854775807",
        "4294967296",
        "",
        "\"",
        "{",
        "}",
        "[",
        "]",
        ",",
        "\\u0000",
        "é",
        "{\"a\":[[[",
    ];
    let at = rng.random_range(0..tokens.len());
    match rng.random_range(0..4) {
        0 => drop(tokens.remove(at)),
        1 => tokens.insert(at, tokens[rng.random_range(0..tokens.len())].clone()),
        _ => tokens[at] = pick(rng, &hostile).into(),
    }
    tokens.concat()
}

/// Configuration that was edited by hand is an error when it is read or used, or it works.
#[cfg(feature = "serde")]
#[test]
fn configuration() {
    use dalr::{ActivationPruning, Report, Ridge, TruncatedSvd};

    let layer = Linear::new(Mat::from_fn(6, 5, |i, j| ((i * 5 + j * 3) % 7) as f64), None).unwrap();
    let mut stats = ActivationStats::new(5);
    stats.update(Mat::from_fn(9, 5, |i, j| ((i * 7 + j * 5) % 11) as f64).as_ref()).unwrap();
    let report = Dalr::new().compress(&layer, &stats, Rank::Fixed(3)).unwrap().report().clone();
    let dalr = Dalr::new().with_ridge(Ridge::Relative(0.5)).with_bias_correction(true).with_threads(1);
    let good = [
        serde_json::to_string(&dalr).unwrap(),
        serde_json::to_string(&TruncatedSvd::new()).unwrap(),
        serde_json::to_string(&Rank::Energy(0.5)).unwrap(),
        serde_json::to_string(&Rank::Fixed(3)).unwrap(),
        serde_json::to_string(&ActivationPruning::mean()).unwrap(),
        serde_json::to_string(&report).unwrap(),
    ];
    fuzz("configuration", &[], |rng| {
        let mut text = good[rng.random_range(0..good.len())].clone();
        for _ in 0..rng.random_range(0..3) {
            text = mutated_text(rng, &text);
        }
        let finite = |layer: &dalr::LowRankLinear<f64>| {
            assert!(layer.up().norm_max().is_finite() && layer.down().norm_max().is_finite());
        };
        if let Ok(method) = serde_json::from_str::<Dalr>(&text) {
            let _ = method.compress(&layer, &stats, Rank::Fixed(2)).map(|compressed| finite(compressed.layer()));
        }
        if let Ok(method) = serde_json::from_str::<TruncatedSvd>(&text) {
            let _ = method.compress(&layer, &stats, Rank::Fixed(2)).map(|compressed| finite(compressed.layer()));
        }
        if let Ok(rank) = serde_json::from_str::<Rank>(&text) {
            let _ = Dalr::new().compress(&layer, &stats, rank).map(|compressed| finite(compressed.layer()));
            let _ = ActivationPruning::max().inputs(&layer, &stats, rank);
        }
        if let Ok(method) = serde_json::from_str::<ActivationPruning>(&text) {
            method.inputs(&layer, &stats, 2).unwrap();
        }
        if let Ok(report) = serde_json::from_str::<Report>(&text) {
            assert!(!report.to_string().is_empty());
        }
    });
}
