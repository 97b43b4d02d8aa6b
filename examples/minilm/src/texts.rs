//! Texts for calibration and evaluation.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
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

/// Returns `calibration` texts and `held_out` others. Another draw, from 1, has other texts for
/// calibration and the same ones held out.
pub fn split(texts: &[String], calibration: usize, held_out: usize, draw: usize) -> Result<(&[String], &[String])> {
    ensure!(
        calibration > 0 && held_out > 0 && draw > 0,
        "expected at least one text for calibration, one held out and a draw from 1, got {calibration}, {held_out} and {draw}"
    );
    // The list holds the calibration texts of draw 1, then the held-out texts, then the calibration
    // texts of the other draws.
    let begin = if draw == 1 { 0 } else { (draw - 1).saturating_mul(calibration).saturating_add(held_out) };
    let wanted = begin.saturating_add(calibration).max(calibration.saturating_add(held_out));
    let parts = texts.get(begin..wanted.min(texts.len())).and_then(|rest| rest.get(..calibration));
    let judged = texts.get(calibration..).and_then(|rest| rest.get(..held_out));
    match (parts, judged) {
        (Some(parts), Some(judged)) => Ok((parts, judged)),
        _ => bail!(
            "expected {calibration} texts for calibration and {held_out} held out, {wanted} for draw {draw}, got {} in all",
            texts.len()
        ),
    }
}

/// Sorts texts by length: batches of texts of similar length have little padding.
pub fn by_length(texts: &[String]) -> Vec<String> {
    let mut texts = texts.to_vec();
    texts.sort_by_key(String::len);
    texts
}
