//! Few samples of real activations: the Markdown table of `docs/small_samples.md`.
//!
//! `cargo bench --bench small_samples -- [--seeds N] [FOLDER...]`: the LeNet of this repository,
//! then every folder that `activations.py` has written; `run.sh` does all of it. Every number comes
//! from the public interface.

#[path = "../../examples/lenet_digits/network.rs"]
#[allow(dead_code)]
mod network;
#[allow(dead_code)]
mod trial;

use std::error::Error;
use std::path::{Path, PathBuf};

use dalr::{ActivationStats, Linear};
use faer::{Col, Mat, MatRef};
use network::{Data, Layer, activations};
use safetensors::{Dtype, SafeTensors};
use trial::{Draw, Site, compare, median_and_worst, selected};

type Fallible<T> = Result<T, Box<dyn Error>>;

const COUNTS: [usize; 5] = [8, 32, 128, 512, 2000];

/// The ratios for one number of samples and one way to draw them.
#[derive(Default)]
struct Cell {
    svd: Vec<f64>,
    ratios: Vec<f64>,
    /// Ratios with the ridge that `select_ridge` chooses on other samples.
    chosen: Vec<f64>,
    /// The largest ratio, and its layer.
    worst: (f64, String),
}

fn main() -> Fallible<()> {
    let mut seeds = 3;
    let mut folders: Vec<PathBuf> = Vec::new();
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    while let Some(argument) = arguments.next() {
        if argument == "--seeds" {
            seeds = arguments.next().ok_or("--seeds takes a number")?.parse()?;
        } else {
            folders.push(argument.into());
        }
    }
    println!("Held-out error of the default over that of truncated SVD with a corrected bias: median, and worst.\n");
    println!("| data | samples | SVD + bias | at random | consecutive | chosen, at random | chosen, consecutive |");
    println!("|---|---|---|---|---|---|---|");
    if folders.is_empty() {
        report("LeNet", lenet()?.into_iter().map(Ok), 10 * seeds)?;
    }
    for folder in &folders {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
        files.retain(|file| file.extension().is_some_and(|extension| extension == "safetensors"));
        files.sort();
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        report(&format!("MiniLM, {name}"), files.iter().map(|file| load(file)), seeds)?;
    }
    Ok(())
}

fn report(name: &str, sites: impl Iterator<Item = Fallible<Site>>, seeds: u64) -> Fallible<()> {
    let mut cells: Vec<[Cell; 2]> = COUNTS.map(|_| Default::default()).into();
    for site in sites {
        let site = site?;
        for (row, count) in cells.iter_mut().zip(COUNTS) {
            if count > site.calibration.nrows() {
                continue;
            }
            for (cell, draw) in row.iter_mut().zip([Draw::Random, Draw::Consecutive]) {
                for seed in 0..seeds {
                    cell.add(&site, draw, count, seed)?;
                }
            }
        }
    }
    let show = |numbers: &[f64]| match median_and_worst(numbers.to_vec()) {
        Some((median, worst)) => format!("{median:.3}, {worst:.3}"),
        None => "–".into(),
    };
    for ([random, consecutive], count) in cells.iter().zip(COUNTS) {
        if let Some((svd, _)) = median_and_worst(random.svd.clone()) {
            let [first, second] = [random, consecutive].map(|cell| show(&cell.ratios));
            let [third, fourth] = [random, consecutive].map(|cell| show(&cell.chosen));
            println!("| {name} | {count} | {svd:.3} | {first} | {second} | {third} | {fourth} |");
            for cell in [random, consecutive] {
                let beyond = cell.ratios.iter().filter(|&&ratio| ratio > 1.01).count();
                let (worst, at) = &cell.worst;
                eprintln!(
                    "{name}, {count} samples: {beyond} of {} above 1.01, worst {worst:.4}, {at}",
                    cell.ratios.len()
                );
            }
        }
    }
    Ok(())
}

impl Cell {
    fn add(&mut self, site: &Site, draw: Draw, count: usize, seed: u64) -> Fallible<()> {
        let (stats, others) = site.draw(draw, count, seed)?;
        for (index, (name, layer)) in site.layers.iter().enumerate() {
            let errors = compare(layer, &stats, &site.held_out)?;
            for error in &errors {
                self.svd.push(error.svd);
                self.ratios.push(error.ratio());
                if error.ratio() > self.worst.0 {
                    self.worst = (error.ratio(), format!("{draw:?}: {name}, rank {}, seed {seed}", error.rank));
                }
            }
            // Every candidate needs a solve, so only the middle rank of one layer and the first
            // draw are tried.
            if let (Some(others), 0, 0) = (&others, seed, index) {
                let middle = errors[errors.len() / 2];
                let error = selected(layer, &stats, others, &site.held_out, middle.rank)?;
                self.chosen.push(error / middle.svd);
            }
        }
        Ok(())
    }
}

/// Returns the three fully connected layers of the LeNet, with the images of the fine-tuning to
/// calibrate and the other images to test.
fn lenet() -> Fallible<Vec<Site>> {
    let data = Data::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("data/lenet_digits.safetensors"))?;
    let network = &data.target;
    let layers: [Layer; 3] = network.layers();
    let inputs = |images: MatRef<'_, f32>| Fallible::Ok(activations(&layers, network.features(images)?.as_ref())?);
    let (calibration, held_out) = (inputs(data.train.images.as_ref())?, inputs(data.test.images.as_ref())?);
    let sites = network.linear.iter().zip(calibration).zip(held_out).enumerate();
    sites
        .map(|(index, ((layer, calibration), held_out))| {
            let mut stats = ActivationStats::new(layer.in_features());
            stats.update(held_out.as_ref())?;
            Ok(Site { layers: vec![(format!("fc{}", index + 1), layer.clone())], calibration, held_out: stats })
        })
        .collect()
}

/// Reads a file of `activations.py`.
fn load(path: &Path) -> Fallible<Site> {
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut names: Vec<&str> = tensors.names().into_iter().filter_map(|name| name.strip_suffix(".weight")).collect();
    names.sort_unstable();
    let layers = names.iter().map(|name| {
        let weight = matrix(&tensors, &format!("{name}.weight"))?;
        let bias = matrix(&tensors, &format!("{name}.bias"))?;
        let bias: Col<f32> = bias.row(0).iter().copied().collect();
        let block = stem.split('.').next().unwrap_or_default();
        Ok((format!("{block}.{name}"), Linear::new(weight, Some(bias))?))
    });
    let layers = layers.collect::<Fallible<Vec<_>>>()?;
    let calibration = matrix(&tensors, "calibration")?;
    let mut held_out = ActivationStats::new(calibration.ncols());
    held_out.update(matrix(&tensors, "held_out")?.as_ref())?;
    Ok(Site { layers, calibration, held_out })
}

/// Returns a tensor of one or two axes, stored as `f32` or `f16`. A tensor of one axis becomes a
/// row.
fn matrix(tensors: &SafeTensors<'_>, name: &str) -> Fallible<Mat<f32>> {
    let tensor = tensors.tensor(name)?;
    let (rows, columns) = match *tensor.shape() {
        [columns] => (1, columns),
        [rows, columns] => (rows, columns),
        ref shape => return Err(format!("{name} has shape {shape:?}").into()),
    };
    let numbers: Vec<f32> = match tensor.dtype() {
        Dtype::F32 => tensor.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
        Dtype::F16 => tensor.data().as_chunks().0.iter().map(|&bytes| half(u16::from_le_bytes(bytes))).collect(),
        other => return Err(format!("{name} is stored as {other:?}").into()),
    };
    Ok(MatRef::from_row_major_slice(&numbers, rows, columns).to_owned())
}

/// Converts from IEEE 754 half precision: 1 bit for the sign, 5 for the exponent, 10 for the
/// fraction.
fn half(bits: u16) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    let magnitude = match exponent {
        0 => fraction * 2_f32.powi(-24),
        31 => return f32::NAN,
        _ => (1024.0 + fraction) * 2_f32.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}
