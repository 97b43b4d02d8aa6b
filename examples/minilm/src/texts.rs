//! Texts for calibration and evaluation.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

/// Reads texts, one a line, and shuffles them in the same way every time.
///
/// From a line of WordNet's `data.noun` it takes the definition, which follows `| `. It skips lines
/// that begin with two spaces, which contain WordNet's licence.
pub fn read(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the texts in {}", path.display()))?;
    let lines = text.lines().filter(|line| !line.starts_with("  "));
    let texts = lines.map(|line| line.split_once("| ").map_or(line, |(_, definition)| definition).trim());
    let mut texts: Vec<String> = texts.filter(|text| !text.is_empty()).map(str::to_owned).collect();
    texts.shuffle(&mut StdRng::seed_from_u64(1));
    Ok(texts)
}

/// Returns the first `calibration` texts and the next `held_out` texts.
pub fn split(texts: &[String], calibration: usize, held_out: usize) -> Result<(&[String], &[String])> {
    ensure!(
        calibration > 0 && held_out > 0,
        "expected at least one text for calibration and one held out, got {calibration} and {held_out}"
    );
    let wanted = calibration.saturating_add(held_out);
    ensure!(
        texts.len() >= wanted,
        "expected {calibration} texts for calibration and {held_out} held out, got {} in all",
        texts.len()
    );
    let (first, rest) = texts.split_at(calibration);
    Ok((first, rest.get(..held_out).unwrap_or(rest)))
}

/// Sorts texts by length: batches of texts of similar length have little padding.
pub fn by_length(texts: &[String]) -> Vec<String> {
    let mut texts = texts.to_vec();
    texts.sort_by_key(String::len);
    texts
}
