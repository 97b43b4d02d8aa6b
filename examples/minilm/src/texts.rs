//! Texts to calibrate on and to judge by.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

/// The texts of a file in an order that looks random and is the same every time, one of a line.
///
/// Of a line of WordNet's `data.noun` the definition, which follows `| `; lines that begin with two spaces, its licence, are left out.
pub fn read(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the texts in {}", path.display()))?;
    let lines = text.lines().filter(|line| !line.starts_with("  "));
    let texts = lines.map(|line| line.split_once("| ").map_or(line, |(_, definition)| definition).trim());
    let mut texts: Vec<String> = texts.filter(|text| !text.is_empty()).map(str::to_owned).collect();
    texts.shuffle(&mut StdRng::seed_from_u64(1));
    Ok(texts)
}

/// The first `calibration` texts, and as many as `held_out` others.
pub fn split(texts: &[String], calibration: usize, held_out: usize) -> Result<(&[String], &[String])> {
    ensure!(calibration > 0 && held_out > 0, "texts to calibrate on and texts to judge by are needed, both");
    let wanted = calibration.saturating_add(held_out);
    ensure!(texts.len() >= wanted, "{} texts are not enough for {calibration} and {held_out} others", texts.len());
    let (first, rest) = texts.split_at(calibration);
    Ok((first, rest.get(..held_out).unwrap_or(rest)))
}

/// The same texts, the shortest first: a batch of texts that are alike is mostly text, and little padding.
pub fn by_length(texts: &[String]) -> Vec<String> {
    let mut texts = texts.to_vec();
    texts.sort_by_key(String::len);
    texts
}
