//! `dalr inspect`: the layers of a model, their sizes, and the error at some fractions of their
//! parameters.

use dalr::interop::safetensors::ModelFile;
use dalr::{ActivationStats, Dalr, LowRankCompressor, Rank, Scalar, TruncatedSvd};
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
type Point = Option<(usize, f64)>;

/// The content of the report.
struct Inspection<'a> {
    selection: &'a Selection,
    points: Vec<[Point; FRACTIONS.len()]>,
    /// The meaning of the errors.
    error: &'static str,
}

pub fn run(args: &InspectArgs, verbosity: Verbosity) -> Result<()> {
    args.validate()?;
    crate::prepare(args.source.threads)?;
    let model = ModelFile::open(&args.source.model)?;
    let calibration = Calibration::open(&args.source.calibration)?;
    let selection = select(&args.source, &model, &calibration)?;
    let mut progress = Progress::new(&selection.layers, verbosity);
    selection.notes.iter().for_each(|note| progress.note(note));
    let points = measure(&model, &calibration, &selection.layers, &mut progress);
    progress.end();
    let error = if args.source.calibration.is_empty() { "weight error" } else { "predicted output error" };
    let inspection = Inspection { selection: &selection, points: points?, error };
    if let Some(path) = &args.json {
        save(path, &inspection.json()?)?;
    }
    if verbosity == Verbosity::Quiet {
        return Ok(());
    }
    crate::print(inspection.text(verbosity == Verbosity::Verbose).as_bytes())
}

impl Inspection<'_> {
    fn json(&self) -> Result<String> {
        let point = |(fraction, point): (&f64, &Point)| {
            let (rank, error) = (point.map(|(rank, _)| rank), point.map(|(_, error)| error));
            json!({"fraction": fraction, "rank": rank, "relative_error": error})
        };
        let layer = |(layer, points): (&Layer, &[Point; FRACTIONS.len()])| {
            json!({
                "name": layer.name,
                "out_features": layer.out_features,
                "in_features": layer.in_features,
                "dtype": format!("{:?}", layer.dtype),
                "parameters": layer.parameters(),
                "break_even_rank": layer.break_even(),
                "points": FRACTIONS.iter().zip(points).map(point).collect::<Vec<_>>(),
            })
        };
        pretty(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "error": self.error,
            "layers": self.selection.layers.iter().zip(&self.points).map(layer).collect::<Vec<_>>(),
            "passed_through": passed(&self.selection.passed),
            "notes": self.selection.notes,
        }))
    }

    fn text(&self, verbose: bool) -> String {
        let Self { selection: Selection { layers, passed, .. }, points, error } = self;
        let mut headings: Vec<String> =
            ["layer", "out × in", "dtype", "parameters", "break-even rank"].map(Into::into).into();
        headings.extend(FRACTIONS.map(|fraction| format!("at {:.0} %", 100.0 * fraction)));
        let mut rows = vec![headings];
        for (layer, points) in layers.iter().zip(points) {
            let mut row = vec![
                layer.name.clone(),
                format!("{} × {}", layer.out_features, layer.in_features),
                format!("{:?}", layer.dtype),
                layer.parameters().to_string(),
                format!("{:.1}", layer.break_even()),
            ];
            row.extend(points.map(|point| point.map_or("–".into(), |(_, error)| percent(error))));
            rows.push(row);
        }
        let parameters: usize = layers.iter().map(Layer::parameters).sum();
        table(&rows).join("\n")
            + &format!(
                "\nat P %: {error} when a layer keeps P % of its weight's parameters (–: no rank is that small)\n"
            )
            + &copied(passed, verbose)
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
                Statistics::Single(stats) => (points(model, layer, stats)?, stats.samples()),
                Statistics::Double(stats) => (points(model, layer, stats)?, stats.samples()),
            };
            progress.solved(layer, samples);
        }
    }
    Ok(measured)
}

fn points<T: Scalar>(model: &ModelFile, layer: &Layer, stats: &ActivationStats<T>) -> Result<[Point; FRACTIONS.len()]> {
    let original = read::<T>(model, layer)?;
    let compressor: Box<dyn LowRankCompressor<T>> =
        if stats.samples() == 0 { Box::new(TruncatedSvd::new()) } else { Box::new(Dalr::new()) };
    let solved = compressor.solve(&original, stats.into(), layer.useful_rank()).map_err(Error::layer(&layer.name))?;
    let total = solved.total_energy();
    // The error of the weight, which needs no samples.
    let of_weight = |rank: usize| {
        let kept: f64 = solved.energies().iter().take(rank).sum();
        if total > 0.0 { (1.0 - kept / total).max(0.0).sqrt() } else { 0.0 }
    };
    Ok(FRACTIONS.map(|fraction| {
        let rank = Rank::within(fraction, (layer.out_features, layer.in_features));
        (1..=solved.max_rank())
            .contains(&rank)
            .then(|| (rank, solved.relative_error(rank).unwrap_or_else(|| of_weight(rank))))
    }))
}
