//! The program: calibrates, compresses, compares and prints.

use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use dalr_minilm::bert::Bert;
use dalr_minilm::compress::{Layers, calibrate, compressed_tensors, with_compressed};
use dalr_minilm::encoder::{Encoder, load};
use dalr_minilm::evaluation::{Time, cosine, embeddings, time};
use dalr_minilm::options::Options;
use dalr_minilm::texts;

/// Number of texts in a batch, except for the measurements of time.
const BATCH: usize = 64;

/// A smaller speed-up counts as noise.
const FASTER: f64 = 1.05;

fn main() -> Result<()> {
    let options = Options::parse();
    let (config, tensors) = load(&options.model)?;
    let encoder = Encoder::load(&options.model, &config)?;
    let texts = texts::read(&options.texts)?;
    let (calibration, held_out) = texts::split(&texts, options.calibration, options.held_out)?;

    let started = Instant::now();
    let batches = |texts: &[String]| encoder.batches(&texts::by_length(texts), BATCH);
    let calibration = batches(calibration)?;
    let stats = calibrate(&tensors, &config, &calibration)?;
    let samples = stats.values().map(|stats| stats.samples()).max().unwrap_or(0);
    println!("calibrated on {} texts, {samples} tokens: {:.1} s", options.calibration, started.elapsed().as_secs_f64());

    let started = Instant::now();
    let layers = Layers::decompose(&tensors, &config, &stats, options.method)?;
    println!("decomposed {} layers for every rank: {:.1} s", config.layers().count(), started.elapsed().as_secs_f64());
    let started = Instant::now();
    let count = options.sensitivity_texts.clamp(1, options.calibration);
    let sensitivity_batches = batches(texts.get(..count).unwrap_or(&texts))?;
    let plan = layers.plan(&tensors, &config, &sensitivity_batches, &options)?;
    let compressed = layers.compressed(&plan.ranks())?;
    println!("allocated the budget: {:.1} s", started.elapsed().as_secs_f64());
    if options.layers {
        println!("\n{plan}\n");
    }

    let (before, after) = (Bert::new(&tensors, &config)?, with_compressed(&tensors, &config, &compressed)?);
    let held_out_batches = batches(held_out)?;
    let similarity = cosine(&embeddings(&before, &held_out_batches)?, &embeddings(&after, &held_out_batches)?)?;
    let (old, new) = (plan.parameters_before(), plan.parameters_after());
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
        candle_core::safetensors::save(&compressed_tensors(&tensors, &compressed), path)
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
            "no faster with {} texts: the layers have {fewer:.1} times fewer parameters, but two small products run at a lower \
             rate than one large product, and attention, norms and activations take as long as before",
            slower.join(", ")
        );
    }
}
