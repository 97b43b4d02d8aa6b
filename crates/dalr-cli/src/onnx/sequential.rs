//! Sequential recalibration: each layer is compressed for the inputs that the layers compressed
//! before it produce.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;

use dalr::covariance::PairedStats;
use dalr::network::{CompressedLayer, Network};
use dalr::{Calibration, Linear, LowRankLinear};
use dalr_onnx::{Model, Session};

use super::solve::Work;
use super::statistics::{Reader, Source};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::progress::Progress;
use crate::solve::compressor;

/// The file of a layer of a sequential run, in the folder of the unfinished run, has the number of
/// its file in the first pass plus this one.
const SECOND: usize = 50_000;

/// The layers compressed so far, by name.
type Compressed = BTreeMap<String, CompressedLayer<f32>>;

/// A group of a layer, as a layer of its own.
struct Piece {
    name: String,
    /// The index of the entry.
    entry: usize,
    group: usize,
    /// The file of its factors in the folder of the unfinished run.
    file: PathBuf,
    linear: Linear<f32>,
}

impl Work<'_> {
    /// Returns a model, in which hidden units may be left out, with these layers compressed one
    /// after the other. Finished layers are kept on disk, so that a resumed run continues behind
    /// them.
    pub fn sequentially(
        &self,
        start: Model,
        ranks: &BTreeMap<String, usize>,
        progress: &mut Progress,
    ) -> Result<Model> {
        // Every group of a convolution is a layer of its own.
        let mut layers: Vec<Piece> = Vec::new();
        let mut all_ranks = BTreeMap::new();
        for (index, entry) in self.entries.iter().enumerate() {
            let Some(&rank) = ranks.get(&entry.layer.name) else { continue };
            for (group, linear) in entry.linears()?.into_iter().enumerate() {
                let name = entry.piece(group).name;
                let file = self.unfinished.layer(SECOND + entry.file + group);
                all_ranks.insert(name.clone(), rank);
                layers.push(Piece { name, entry: index, group, file, linear });
            }
        }
        let mut network = Network::new();
        for Piece { name, linear, .. } in &layers {
            network = network.with_layer(name.clone(), linear, Calibration::none());
        }
        for input in self.shared_inputs(&layers) {
            network = network.with_shared_input(input);
        }
        let mut compressed = BTreeMap::new();
        for Piece { name, file, .. } in &layers {
            if file.exists() {
                let layer = LowRankLinear::<f32>::load(file, "layer")?;
                compressed.insert(name.clone(), CompressedLayer::LowRank(layer));
            }
        }
        let before = self.run.session(self.run.model, &Source::values_of(&Source::of(self.entries)))?;
        let saved = |compressed: &Compressed| -> Result<()> {
            for Piece { name, file, .. } in &layers {
                if let Some(CompressedLayer::LowRank(factors)) = compressed.get(name).filter(|_| !file.exists()) {
                    factors.save(file, "layer")?;
                }
            }
            Ok(())
        };
        let feed = |first: &str, compressed: &Compressed, stats: &mut PairedStats<f32>| {
            saved(compressed)?;
            let layer = layers.iter().find(|layer| layer.name == first);
            let layer = layer.ok_or_else(|| Error::Refused(format!("no layer {first}")))?;
            let after = self.with_compressed(start.clone(), &layers, compressed)?;
            self.feed(layer, &before, &after, stats)
        };
        let total = layers.len();
        let mut tell = |event: &dalr::network::Progress| {
            let name = event.layer.as_deref().unwrap_or("");
            progress.stage(&format!("sequential: {} of {total} layers: {name}", event.done));
            if interrupt::check().is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let result =
            network.compress_sequentially(&*compressor::<f32>(self.args), &all_ranks, &mut compressed, feed, &mut tell);
        saved(&compressed)?;
        interrupt::check()?;
        result.map_err(|error| Error::Refused(error.to_string()))?;
        self.with_compressed(start.clone(), &layers, &compressed)
    }

    /// Adds the inputs of a layer in the original and in a partly compressed model.
    fn feed(&self, layer: &Piece, before: &Session, compressed: &Model, stats: &mut PairedStats<f32>) -> Result<()> {
        let entry = &self.entries[layer.entry];
        let reader = Reader::new(entry);
        let values: Vec<String> = entry.values().into_iter().map(String::from).collect();
        let after = self.run.session(compressed, &values)?;
        let all = self.run.calibration.samples();
        self.run.calibration.for_each(|batch| {
            interrupt::check()?;
            let (x, y) = (before.values(&batch.inputs, &values)?, after.values(&batch.inputs, &values)?);
            for (x, y) in x.iter().zip(&y) {
                let step = reader.step(reader.count(x)? * all / batch.samples.max(1));
                reader.for_each_pair(layer.group, step, (x, y), |x, y| stats.update(x, y))?;
            }
            Ok::<_, Error>(())
        })
    }

    /// Returns a model with the layers all of whose groups are compressed.
    fn with_compressed(&self, mut model: Model, layers: &[Piece], compressed: &Compressed) -> Result<Model> {
        for (index, entry) in self.entries.iter().enumerate() {
            let groups = layers.iter().filter(|layer| layer.entry == index);
            let factors = groups.map(|layer| match compressed.get(&layer.name) {
                Some(CompressedLayer::LowRank(factors)) => Some(factors.clone()),
                _ => None,
            });
            let factors: Option<Vec<_>> = factors.collect();
            if let Some(factors) = factors.filter(|factors| !factors.is_empty()) {
                self.replace(&mut model, entry, factors)?;
            }
        }
        Ok(model)
    }

    /// Returns the names of linear layers that read the same values.
    fn shared_inputs(&self, layers: &[Piece]) -> Vec<Vec<String>> {
        let mut inputs: BTreeMap<(Vec<&str>, bool), Vec<String>> = BTreeMap::new();
        for layer in layers {
            let entry = &self.entries[layer.entry];
            if entry.convolution().is_none() {
                inputs.entry((entry.values(), entry.reads_rows())).or_default().push(layer.name.clone());
            }
        }
        inputs.into_values().filter(|names| names.len() > 1).collect()
    }
}
