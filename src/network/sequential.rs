//! Sequential recalibration: each layer is compressed for the inputs that the layers compressed
//! before it produce.

use core::ops::ControlFlow;
use std::collections::{BTreeMap, BTreeSet};

use super::compress_network::{KeptUnits, Layer, Network};
use super::compressed_layer::CompressedLayer;
use super::evaluation::AnyError;
use super::layer_profile;
use super::progress::{Progress, Tracker};
use crate::covariance::PairedStats;
use crate::error::during;
use crate::{Calibration, Error, Linear, LowRankCompressor, Rank, Report, Result, Scalar};

impl<'a, T: Scalar> Network<'a, T> {
    /// Compresses the layers that have a rank or fewer [hidden units](Self::with_hidden_units) for
    /// the inputs that they get in the compressed network, one after the other. The others stay
    /// original. Returns the reports of the layers that this call compressed to a rank.
    ///
    /// [`compress`](Self::compress) fits every layer to the inputs that the *original* network
    /// gives it. In the compressed network these inputs differ, since the layers before have errors
    /// of their own. This method compresses each layer so that its outputs for the new inputs are
    /// closest to the original outputs for the original inputs. It needs a run of both networks for
    /// every group of layers with a shared input, and pays most when little of the network is kept.
    /// Compare both ways on held-out data.
    ///
    /// The layers must have been added in the order of execution. Of their calibration data, only
    /// the output metrics are used, so [`Calibration::none()`] suffices.
    ///
    /// `feed` gets the name of the first layer of a group, the layers compressed so far, and empty
    /// statistics. It runs the original network and the one with these layers on the same samples,
    /// and adds the inputs of the group in both. For a group that no compressed layer precedes,
    /// both inputs are the same.
    ///
    /// Each finished layer is added to `compressed`. After an error, or after `progress` has
    /// cancelled, the layers finished before are in there; pass them in again to continue. Layers
    /// behind one that is missing, or that has another rank or shape, are compressed again. The
    /// result has the same bits as that of an uninterrupted run if `feed` repeats its inputs.
    ///
    /// Methods whose regularization is not set choose it for paired inputs themselves, as
    /// [`Dalr::new`](crate::Dalr::new) does. The ranks may come from a
    /// [`Plan`](super::Plan::ranks) whose layers do not share a `down`, and the numbers of hidden
    /// units from [`Plan::hidden_units`](super::Plan::hidden_units).
    ///
    /// # Errors
    ///
    /// Two layers of the same name; ranks, hidden units or shared inputs of a name that no layer
    /// has; a shared input of layers with different numbers of inputs; hidden units that do not lie
    /// before their second layer, or that several layers read; a layer with a rank and hidden units,
    /// or with hidden units on both sides. An error of `feed`, as the source of an
    /// [`Error::Callback`]. [`Error::InLayer`] for a layer that cannot be compressed, for example
    /// because `feed` has added no samples.
    ///
    /// # Cost
    ///
    /// A call of `feed` for each group of layers that follow one another and have a shared input,
    /// and its statistics: `2 n` inputs for a layer of `n`. The groups run one after the other, each
    /// layer with parallel kernels.
    ///
    /// ```
    /// use std::collections::BTreeMap;
    /// use dalr::covariance::PairedStats;
    /// use dalr::network::{CompressedLayer, Network, Progress};
    /// use dalr::{Calibration, Dalr, Linear};
    /// use faer::Mat;
    ///
    /// # fn main() -> dalr::Result<()> {
    /// # let weight = |m: usize, n: usize| Mat::from_fn(m, n, |i, j| ((i * 5 + j * j * 3) % 17) as f64 / 17.0);
    /// # let inputs = Mat::from_fn(50, 20, |i, j| ((i * i * 11 + j * 7 + i * j) % 13) as f64);
    /// let fc1 = Linear::new(weight(24, 20), None)?;
    /// let fc2 = Linear::new(weight(30, 24), None)?;
    /// // Runs the original and the compressed network up to the layer `group`, and adds its inputs.
    /// let feed = |group: &str, layers: &BTreeMap<String, CompressedLayer<f64>>, stats: &mut PairedStats<f64>| {
    ///     match (group, layers.get("fc1")) {
    ///         ("fc2", Some(compressed)) => {
    ///             let (original, compressed) = (fc1.forward(inputs.as_ref())?, compressed.forward(inputs.as_ref())?);
    ///             stats.update(original.as_ref(), compressed.as_ref())
    ///         }
    ///         _ => stats.update(inputs.as_ref(), inputs.as_ref()),
    ///     }
    /// };
    /// let ranks = [("fc1".to_owned(), 6), ("fc2".to_owned(), 8)].into(); // or `plan.ranks()`
    /// let mut layers = BTreeMap::new(); // or the layers that an interrupted run has left
    /// let reports = Network::new()
    ///     .with_layer("fc1", &fc1, Calibration::none())
    ///     .with_layer("fc2", &fc2, Calibration::none())
    ///     .compress_sequentially(&Dalr::new(), &ranks, &mut layers, feed, &mut Progress::ignore)?;
    /// assert_eq!((layers["fc1"].rank(), layers["fc2"].rank(), reports.len()), (Some(6), Some(8), 2));
    /// # Ok(())
    /// # }
    /// ```
    pub fn compress_sequentially<E: Into<AnyError>>(
        &self,
        method: &(impl LowRankCompressor<T> + ?Sized),
        ranks: &BTreeMap<String, usize>,
        compressed: &mut BTreeMap<String, CompressedLayer<T>>,
        mut feed: impl FnMut(&str, &BTreeMap<String, CompressedLayer<T>>, &mut PairedStats<T>) -> Result<(), E>,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<BTreeMap<String, Report>> {
        during("Network::compress_sequentially", || {
            let steps = self.steps(ranks)?;
            let groups = self.groups()?;
            let mut reports = BTreeMap::new();
            let mut tracker = Tracker::new(progress, Some(steps.len()));
            tracker.done = self.keep_prefix(&steps, compressed);
            for group in groups {
                let Some(first) = group.first().map(|layer| layer.name.as_str()) else { continue };
                let mut fed: Option<PairedStats<T>> = None;
                for layer in group {
                    let name = &layer.name;
                    let step = steps.get(name.as_str()).filter(|_| !compressed.contains_key(name));
                    let Some(step) = step else { continue };
                    if !tracker.begin(Some(name)) {
                        return Ok(reports);
                    }
                    let stats = match &mut fed {
                        Some(stats) => stats,
                        none => {
                            let stats = none.insert(PairedStats::new(layer.shape.1));
                            let failed = |error| Error::callback(format!("the inputs of `{first}`"), error);
                            feed(first, compressed, stats).map_err(failed)?;
                            stats
                        }
                    };
                    let compress = |linear: &_, calibration: Calibration<'_, T>| {
                        // A method may do without data, but a function that adds none is a mistake.
                        if stats.samples() == 0 {
                            return Err(Error::no_samples());
                        }
                        let paired = Calibration::from(&*stats).with_metric(calibration.output_metric());
                        match step {
                            Step::Rank(rank) => {
                                let result = method.compress_with(linear, paired, Rank::Fixed(*rank))?;
                                reports.insert(name.clone(), result.report().clone());
                                Ok(vec![(name.clone(), CompressedLayer::LowRank(result.into_layer()))])
                            }
                            Step::Units { before, units } => keep_units(before, units, linear, paired),
                        }
                    };
                    compressed.extend(layer.load(compress).map_err(|error| error.in_layer(name))?);
                    tracker.finish(Some(name), None);
                }
            }
            Ok(reports)
        })
    }

    /// Returns the steps by the name of the layer whose inputs they need.
    fn steps(&self, ranks: &BTreeMap<String, usize>) -> Result<BTreeMap<&str, Step<'_, 'a, T>>> {
        let index = self.index()?;
        layer_profile::require_known(&index, ranks.keys(), "ranks")?;
        let mut steps = BTreeMap::new();
        let mut taken: BTreeSet<&str> = BTreeSet::new();
        for (name, &rank) in ranks {
            if let Some((&name, _)) = index.get_key_value(name.as_str()) {
                taken.insert(name);
                steps.insert(name, Step::Rank(rank));
            }
        }
        for units in &self.units {
            layer_profile::require_known(&index, units.layers.iter(), "hidden units")?;
            let positions: Vec<usize> =
                units.layers.iter().filter_map(|name| index.get(name.as_str()).copied()).collect();
            let between = || format!("some between {}", names(&units.layers));
            let (Some((&last, firsts)), 2..=3) = (positions.split_last(), positions.len()) else {
                let expected = "hidden units between a first layer, a gate or none, and a second layer".into();
                return Err(Error::layers(expected, between()));
            };
            if firsts.iter().any(|&first| first >= last) {
                let expected = "hidden units behind their first layers in the order of execution".into();
                return Err(Error::layers(expected, between()));
            }
            let name = self.layers.get(last).map_or("", |layer| layer.name.as_str());
            let alone = |shared: &Vec<String>| {
                shared.iter().all(|other| other == name) || !shared.iter().any(|other| other == name)
            };
            let before: Vec<&Layer<'a, T>> = firsts.iter().filter_map(|&first| self.layers.get(first)).collect();
            if !self.shared.iter().all(alone) {
                let expected = "hidden units that one layer reads".into();
                return Err(Error::layers(expected, format!("a shared input of `{name}`")));
            }
            let new = units.layers.iter().all(|name| taken.insert(name));
            if !new {
                let expected = "for each layer a rank or hidden units on one side".into();
                return Err(Error::layers(expected, between()));
            }
            steps.insert(name, Step::Units { before, units });
        }
        Ok(steps)
    }

    /// Returns the layers in order, in groups of those that follow one another and have a shared
    /// input.
    fn groups(&self) -> Result<Vec<&[Layer<'a, T>]>> {
        layer_profile::require_known(&self.index()?, self.shared.iter().flatten(), "shared inputs")?;
        let input = |layer: &Layer<'a, T>| self.shared.iter().position(|names| names.contains(&layer.name));
        let together = |one: &Layer<'a, T>, next: &Layer<'a, T>| input(one).is_some() && input(one) == input(next);
        for pair in self.layers.windows(2) {
            if let [one, next] = pair
                && together(one, next)
                && one.shape.1 != next.shape.1
            {
                let error = Error::shape("inputs, as the first layer has", one.shape.1, next.shape.1);
                return Err(error.in_layer(&next.name));
            }
        }
        Ok(self.layers.chunk_by(together).collect())
    }

    /// Keeps the layers of an earlier run up to the first step whose layers are missing or have
    /// another rank or shape: those behind it were compressed for other inputs. Returns the number
    /// of steps kept.
    fn keep_prefix(
        &self,
        steps: &BTreeMap<&str, Step<'_, 'a, T>>,
        compressed: &mut BTreeMap<String, CompressedLayer<T>>,
    ) -> usize {
        let mut earlier = core::mem::take(compressed);
        let in_order = self.layers.iter().filter_map(|layer| Some((layer, steps.get(layer.name.as_str())?)));
        let mut done = 0;
        for (layer, step) in in_order {
            let shape =
                |name: &str| earlier.get(name).map(|layer| (layer.out_features(), layer.in_features(), layer.rank()));
            let (m, n) = layer.shape;
            let names: Vec<&String> = match step {
                Step::Rank(rank) if shape(&layer.name) == Some((m, n, Some(*rank))) => vec![&layer.name],
                Step::Units { before, units } => {
                    // The second layer may have several inputs for each unit.
                    let each = before.first().map_or(1, |first| n / first.shape.0.max(1));
                    let same = |first: &&Layer<'a, T>| shape(&first.name) == Some((units.kept, first.shape.1, None));
                    let behind = shape(&layer.name) == Some((m, units.kept.saturating_mul(each), None));
                    if !behind || !before.iter().all(same) {
                        return done;
                    }
                    units.layers.iter().collect()
                }
                Step::Rank(_) => return done,
            };
            compressed.extend(names.into_iter().filter_map(|name| earlier.remove_entry(name)));
            done += 1;
        }
        done
    }
}

/// One or several layers that are compressed together.
enum Step<'n, 'a, T> {
    /// One layer, to this rank.
    Rank(usize),
    /// The layers before hidden units, and the one behind them.
    Units { before: Vec<&'n Layer<'a, T>>, units: &'n KeptUnits },
}

/// Returns the layers around hidden units, the first ones with the kept rows only, and the second
/// one refitted.
fn keep_units<T: Scalar>(
    before: &[&Layer<'_, T>],
    units: &KeptUnits,
    second: &Linear<T>,
    paired: Calibration<'_, T>,
) -> Result<Vec<(String, CompressedLayer<T>)>> {
    let load = |layer: &&Layer<'_, T>| layer.load(|linear, _| Ok(linear.clone()));
    let firsts = before.iter().map(load).collect::<Result<Vec<Linear<T>>>>()?;
    let solved = match &firsts[..] {
        [first] => units.options.solve(first, second, paired)?,
        [up, gate] => units.options.solve_gated(gate, up, second, paired)?,
        _ => return Err(Error::empty("the list of layers before hidden units")),
    };
    let selected = solved.select(units.kept)?;
    let layers = [selected.first].into_iter().chain(selected.gate).chain([selected.second]);
    Ok(units.layers.iter().cloned().zip(layers.map(CompressedLayer::Smaller)).collect())
}

fn names(layers: &[String]) -> String {
    let quoted: Vec<String> = layers.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}
