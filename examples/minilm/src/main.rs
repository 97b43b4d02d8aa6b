//! The program: calibrates, compresses, compares and prints.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use dalr_minilm::bert::Bert;
use dalr_minilm::compress::{Compressed, Layers, calibrate, compressed_tensors, with_compressed};
use dalr_minilm::encoder::{Encoder, load};
use dalr_minilm::evaluation::{Time, cosine, embeddings, time};
use dalr_minilm::metrics::metrics;
use dalr_minilm::options::Options;
use dalr_minilm::sequential::recalibrate;
use dalr_minilm::texts;

/// Number of texts in a batch, except for the measurements of time.
const BATCH: usize = 64;

/// Texts in a batch for gradients, whose intermediate results are all kept in memory.
const GRADIENT_BATCH: usize = 16;

/// A smaller speed-up counts as noise.
const FASTER: f64 = 1.05;

fn main() -> Result<()> {
    let options = Options::parse();
    let (config, tensors) = load(&options.model)?;
    let encoder = Encoder::load(&options.model, &config)?;
    let texts = texts::read(&options.texts)?;
    let (calibration, held_out) = texts::split(&texts, options.calibration, options.held_out, options.draw)?;
    let batches = |texts: &[String], size| encoder.batches(&texts::by_length(texts), size);
    let first = |count: usize| calibration.get(..count.max(1)).unwrap_or(calibration);
    let calibration_batches = batches(calibration, BATCH)?;
    let sensitivity_batches = batches(first(options.sensitivity_texts), BATCH)?;

    let mut clock = Clock(Instant::now());
    let stats = calibrate(&tensors, &config, &calibration_batches)?;
    let samples = stats.values().map(|stats| stats.samples()).max().unwrap_or(0);
    clock.print(&format!("calibrated on {} texts, {samples} tokens", options.calibration));
    let metrics = match options.metric {
        true => metrics(&tensors, &config, &batches(first(options.metric_texts), GRADIENT_BATCH)?)?,
        false => BTreeMap::new(),
    };
    if options.metric {
        clock.print(&format!("gathered gradients on {} texts", first(options.metric_texts).len()));
    }
    let layers = Layers::decompose(&tensors, &config, (&stats, &metrics), &options)?;
    clock.print(&format!("decomposed {} layers for every rank", config.layers().count()));

    let before = Bert::new(&tensors, &config)?;
    let held_out_batches = batches(held_out, BATCH)?;
    let original = embeddings(&before, &held_out_batches)?;
    let sized = options.batch_sizes.iter().map(|&size| {
        let texts = held_out.get(..size).with_context(|| format!("not enough texts for a batch of {size}"))?;
        encoder.batches(texts, size)
    });
    let sized: Vec<_> = sized.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    for &keep in &options.keep {
        clock.restart();
        let allocated = layers.allocate(&tensors, &config, &sensitivity_batches, keep, &options)?;
        clock.print("allocated the budget");
        if options.layers {
            println!("\n{}\n", allocated.listing);
        }
        let (old, new) = allocated.parameters;
        println!("\nparameters of the layers {old} -> {new} ({:.1} %)", 100.0 * new as f64 / old as f64);
        let compare = |compressed: &Compressed, how: &str| -> Result<_> {
            let after = with_compressed(&tensors, &config, compressed)?;
            let similarity = cosine(&original, &embeddings(&after, &held_out_batches)?)?;
            println!("mean cosine of {} embeddings to the original ones{how} {similarity:.4}", options.held_out);
            Ok(after)
        };
        let mut compressed = layers.compressed(&allocated)?;
        let mut after = compare(&compressed, "")?;
        if options.sequential {
            clock.restart();
            compressed = recalibrate(&tensors, &config, &calibration_batches, (&allocated, &metrics), options.method)?;
            clock.print(&format!("compressed {} layers one after the other", compressed.len()));
            after = compare(&compressed, ", sequential")?;
        }
        if options.passes > 0 {
            print_times(&time(&before, &after, &sized, options.passes)?, old as f64 / new as f64);
        }

        if let Some(path) = &options.out {
            candle_core::safetensors::save(&compressed_tensors(&tensors, &compressed)?, path)
                .with_context(|| format!("cannot write {}", path.display()))?;
            println!("wrote {}", path.display());
        }
    }
    if let Some(bytes) = peak_memory() {
        println!("\npeak memory {:.2} GB", bytes as f64 / 1e9);
    }
    Ok(())
}

/// Measures the time of each step.
struct Clock(Instant);

impl Clock {
    fn restart(&mut self) {
        self.0 = Instant::now();
    }

    fn print(&mut self, step: &str) {
        println!("{step}: {:.1} s", self.0.elapsed().as_secs_f64());
        self.restart();
    }
}

/// Returns the largest resident memory so far, on Linux.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
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
