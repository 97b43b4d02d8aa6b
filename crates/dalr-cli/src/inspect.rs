//! `dalr inspect`: the layers of a model, their sizes, and the error at some fractions of their
//! parameters.

use dalr::interop::safetensors::ModelFile;
use dalr::{ActivationStats, Dalr, Decomposition, Linear, LowRankCompressor, Rank, Scalar, TruncatedSvd};
use serde_json::json;

use crate::args::InspectArgs;
use crate::calibration::{Calibration, Statistics};
use crate::error::{Error, Result};
use crate::files::save;
use crate::interrupt;
use crate::layer::Layer;
use crate::progress::{Progress, Verbosity};
use crate::report::{copied, passed, percent, pretty, table};
use crate::selection::{Selection, select};
use crate::solve::{groups, read};

/// The fractions of a layer's parameters at which its error is listed.
const FRACTIONS: [f64; 4] = [0.75, 0.5, 0.25, 0.1];

/// A rank and its relative error; `None` for a fraction that allows no rank.
pub type Point = Option<(usize, f64)>;

/// The content of the report.
pub struct Inspection {
    pub selection: Selection,
    pub points: Vec<[Point; FRACTIONS.len()]>,
    /// How often each layer runs for one sample of the model, if that was seen.
    pub calls: Option<Vec<u64>>,
}

pub fn run(args: &InspectArgs, verbosity: Verbosity) -> Result<()> {
    args.validate()?;
    crate::prepare(args.source.threads)?;
    let inspection = match args.source.is_onnx() {
        true => crate::onnx::inspect(args, verbosity)?,
        false => safetensors(args, verbosity)?,
    };
    let error = if args.source.calibration.is_empty() { "weight error" } else { "predicted output error" };
    if let Some(path) = &args.json {
        save(path, &inspection.json(error)?)?;
    }
    if verbosity == Verbosity::Quiet {
        return Ok(());
    }
    crate::print(inspection.text(error, verbosity == Verbosity::Verbose).as_bytes())
}

fn safetensors(args: &InspectArgs, verbosity: Verbosity) -> Result<Inspection> {
    let model = ModelFile::open(&args.source.model)?;
    let calibration = Calibration::open(&args.source.calibration)?;
    let selection = select(&args.source, &model, &calibration)?;
    let mut progress = Progress::new(&selection.layers, verbosity);
    selection.notes.iter().for_each(|note| progress.note(note));
    let points = measure(&model, &calibration, &selection.layers, &mut progress);
    progress.end();
    Ok(Inspection { selection, points: points?, calls: None })
}

impl Inspection {
    fn json(&self, error: &str) -> Result<String> {
        let point = |(fraction, point): (&f64, &Point)| {
            let (rank, error) = (point.map(|(rank, _)| rank), point.map(|(_, error)| error));
            json!({"fraction": fraction, "rank": rank, "relative_error": error})
        };
        let layer = |(index, (layer, points)): (usize, (&Layer, &[Point; FRACTIONS.len()]))| {
            json!({
                "name": layer.name,
                "out_features": layer.out_features,
                "in_features": layer.in_features,
                "dtype": format!("{:?}", layer.dtype),
                "parameters": layer.parameters(),
                "multiply_adds": self.multiply_adds(index),
                "break_even_rank": layer.break_even(),
                "points": FRACTIONS.iter().zip(points).map(point).collect::<Vec<_>>(),
            })
        };
        pretty(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "error": error,
            "layers": self.selection.layers.iter().zip(&self.points).enumerate().map(layer).collect::<Vec<_>>(),
            "passed_through": passed(&self.selection.passed),
            "notes": self.selection.notes,
        }))
    }

    /// Returns the multiply–adds of a layer for one sample of the model.
    fn multiply_adds(&self, index: usize) -> Option<u64> {
        let layer = self.selection.layers.get(index)?;
        let weights = (layer.out_features as u64).saturating_mul(layer.in_features as u64);
        Some(weights.saturating_mul(*self.calls.as_ref()?.get(index)?))
    }

    fn text(&self, error: &str, verbose: bool) -> String {
        let Self { selection, points, .. } = self;
        let layers = &selection.layers;
        let mut headings: Vec<String> = ["layer", "out × in", "dtype", "parameters"].map(Into::into).into();
        if self.calls.is_some() {
            headings.push("multiply–adds".into());
        }
        headings.push("break-even rank".into());
        headings.extend(FRACTIONS.map(|fraction| format!("at {:.0} %", 100.0 * fraction)));
        let mut rows = vec![headings];
        for (index, (layer, points)) in layers.iter().zip(points).enumerate() {
            let mut row = vec![
                layer.name.clone(),
                format!("{} × {}", layer.out_features, layer.in_features),
                format!("{:?}", layer.dtype),
                layer.parameters().to_string(),
            ];
            row.extend(self.multiply_adds(index).map(|count| count.to_string()));
            row.push(format!("{:.1}", layer.break_even()));
            row.extend(points.map(|point| point.map_or("–".into(), |(_, error)| percent(error))));
            rows.push(row);
        }
        let parameters: usize = layers.iter().map(Layer::parameters).sum();
        table(&rows).join("\n")
            + &format!(
                "\nat P %: {error} when a layer keeps P % of its weight's parameters (–: no rank is that small)\n"
            )
            + &copied(selection, verbose)
            + &format!("layers: {}, with {parameters} parameters\n", layers.len())
    }
}

/// Returns the points of every layer. Layers with a shared input follow each other, so that its
/// statistics are computed once.
fn measure(
    model: &ModelFile,
    calibration: &Calibration,
    layers: &[Layer],
    progress: &mut Progress,
) -> Result<Vec<[Point; FRACTIONS.len()]>> {
    let mut measured = vec![[None; FRACTIONS.len()]; layers.len()];
    for group in groups(layers) {
        let Some(&first) = group.first() else { continue };
        let (statistics, _) = calibration.statistics(&layers[first])?;
        for index in group {
            interrupt::check()?;
            let layer = &layers[index];
            progress.begin(layer);
            let samples;
            (measured[index], samples) = match &statistics {
                Statistics::Single(stats) => (points_of(model, layer, stats)?, stats.samples()),
                Statistics::Double(stats) => (points_of(model, layer, stats)?, stats.samples()),
            };
            progress.solved(layer, samples);
        }
    }
    Ok(measured)
}

fn points_of<T: Scalar>(
    model: &ModelFile,
    layer: &Layer,
    stats: &ActivationStats<T>,
) -> Result<[Point; FRACTIONS.len()]> {
    let stats = Some(stats).filter(|stats| stats.samples() > 0);
    Ok(points(layer, &[decompose(layer, &read::<T>(model, layer)?, stats)?]))
}

/// Decomposes a layer, or its weight if there are no statistics.
pub fn decompose<T: Scalar>(
    layer: &Layer,
    original: &Linear<T>,
    stats: Option<&ActivationStats<T>>,
) -> Result<Decomposition<T>> {
    let solved = match stats {
        Some(stats) => Dalr::new().solve(original, stats.into(), layer.useful_rank()),
        None => TruncatedSvd::new().solve(original, dalr::Calibration::none(), layer.useful_rank()),
    };
    solved.map_err(Error::layer(&layer.name))
}

/// Returns the errors of a layer of this shape, given the decompositions of its groups.
pub fn points<T: Scalar>(layer: &Layer, groups: &[Decomposition<T>]) -> [Point; FRACTIONS.len()] {
    let total: f64 = groups.iter().map(Decomposition::total_energy).sum();
    // The error of the weight, which needs no samples; with several groups, that of their energies.
    let by_energy = |rank: usize| {
        let kept: f64 = groups.iter().flat_map(|group| group.energies().iter().take(rank)).sum();
        if total > 0.0 { (1.0 - kept / total).max(0.0).sqrt() } else { 0.0 }
    };
    let error = |rank: usize| match groups {
        [only] => only.relative_error(rank).unwrap_or_else(|| by_energy(rank)),
        _ => by_energy(rank),
    };
    let solved = groups.iter().map(Decomposition::max_rank).min().unwrap_or(0);
    FRACTIONS.map(|fraction| {
        let rank = Rank::within(fraction, (layer.out_features, layer.in_features));
        (1..=solved).contains(&rank).then(|| (rank, error(rank)))
    })
}
