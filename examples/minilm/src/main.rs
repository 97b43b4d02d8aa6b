//! The order of things, and what is printed.

use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use dalr_minilm::bert::Bert;
use dalr_minilm::compress::{Layers, calibrate, replaced, with_layers};
use dalr_minilm::encoder::{Encoder, load};
use dalr_minilm::judge::{Time, cosine, embeddings, time};
use dalr_minilm::options::Options;
use dalr_minilm::texts;

/// Texts in a batch, where it is not what is measured.
const BATCH: usize = 64;

/// From here on a network counts as faster: less is noise.
const FASTER: f64 = 1.05;

fn main() -> Result<()> {
    let options = Options::parse();
    let (config, tensors) = load(&options.model)?;
    let encoder = Encoder::load(&options.model, &config)?;
    let texts = texts::read(&options.texts)?;
    let (calibration, held_out) = texts::split(&texts, options.calibration, options.held_out)?;

    let started = Instant::now();
    let padded_little = |texts: &[String]| encoder.batches(&texts::by_length(texts), BATCH);
    let calibration = padded_little(calibration)?;
    let seen = calibrate(&tensors, &config, &calibration)?;
    let samples = seen.values().map(|stats| stats.samples()).max().unwrap_or(0);
    println!("calibrated on {} texts, {samples} tokens: {:.1} s", options.calibration, started.elapsed().as_secs_f64());

    let started = Instant::now();
    let layers = Layers::decompose(&tensors, &config, &seen, options.method)?;
    println!("decomposed {} layers for every rank: {:.1} s", config.layers().count(), started.elapsed().as_secs_f64());
    let started = Instant::now();
    let probes = padded_little(texts.get(..options.probes.clamp(1, options.calibration)).unwrap_or(&texts))?;
    let plan = layers.plan(&tensors, &config, &probes, &options)?;
    let compressed = layers.compressed(&plan)?;
    println!("shared the budget: {:.1} s", started.elapsed().as_secs_f64());
    let report = plan.report();
    if options.layers {
        println!("\n{report}\n");
    }

    let (before, after) = (Bert::new(&tensors, &config)?, with_layers(&tensors, &config, &compressed)?);
    let batches = padded_little(held_out)?;
    let similarity = cosine(&embeddings(&before, &batches)?, &embeddings(&after, &batches)?)?;
    let (old, new) = (report.parameters_before(), report.parameters_after());
    println!("\nparameters of the layers {old} -> {new} ({:.1} %)", 100.0 * new as f64 / old as f64);
    println!("mean cosine of {} embeddings to the original ones {similarity:.3}", options.held_out);

    let sized = options.batch_sizes.iter().map(|&size| {
        let texts = held_out.get(..size).with_context(|| format!("not enough texts for a batch of {size}"))?;
        encoder.batches(texts, size)
    });
    let sized: Vec<_> = sized.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    let times = time(&before, &after, &sized, options.passes)?;
    print_times(&times, old as f64 / new as f64);

    if let Some(path) = &options.out {
        candle_core::safetensors::save(&replaced(&tensors, &compressed), path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("wrote {}", path.display());
    }
    Ok(())
}

fn print_times(times: &[Time], fewer: f64) {
    println!("\nforward pass, median   texts  tokens     before      after  speed-up");
    for Time { texts, tokens, before, after, speedup } in times {
        let (before, after) = (before * 1e3, after * 1e3);
        println!("{:>27}  {tokens:>6}  {before:>6.1} ms  {after:>6.1} ms  {speedup:>7.2}x", texts);
    }
    let slower: Vec<String> =
        times.iter().filter(|time| time.speedup < FASTER).map(|time| time.texts.to_string()).collect();
    if !slower.is_empty() {
        println!(
            "no faster with {} texts: the layers have {fewer:.1} times fewer multiply-adds, but each became two products, thinner and slower \
             for their size, and attention, norms and activations take as long as before",
            slower.join(", ")
        );
    }
}
