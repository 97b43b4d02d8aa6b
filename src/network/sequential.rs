//! Sequential recalibration: each layer is compressed for the inputs that the layers compressed
//! before it produce.

use core::ops::ControlFlow;
use std::collections::BTreeMap;

use super::compress_network::{Layer, Network};
use super::evaluation::AnyError;
use super::layer_profile;
use super::progress::{Progress, Tracker};
use crate::covariance::PairedStats;
use crate::error::during;
use crate::{Calibration, Error, LowRankCompressor, LowRankLinear, Rank, Report, Result, Scalar};

impl<'a, T: Scalar> Network<'a, T> {
    /// Compresses the layers that have a rank for the inputs that they get in the compressed
    /// network, one after the other. The others stay original. Returns the reports of the layers
    /// that this call compressed.
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
    /// [`Plan`](super::Plan::ranks) whose layers do not share a `down`.
    ///
    /// # Errors
    ///
    /// Two layers of the same name; ranks or shared inputs of a name that no layer has; a shared
    /// input of layers with different numbers of inputs. An error of `feed`, as the source of an
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
    /// use dalr::network::{Network, Progress};
    /// use dalr::{Calibration, Dalr, Linear, LowRankLinear};
    /// use faer::Mat;
    ///
    /// # fn main() -> dalr::Result<()> {
    /// # let weight = |m: usize, n: usize| Mat::from_fn(m, n, |i, j| ((i * 5 + j * j * 3) % 17) as f64 / 17.0);
    /// # let inputs = Mat::from_fn(50, 20, |i, j| ((i * i * 11 + j * 7 + i * j) % 13) as f64);
    /// let fc1 = Linear::new(weight(24, 20), None)?;
    /// let fc2 = Linear::new(weight(30, 24), None)?;
    /// // Runs the original and the compressed network up to the layer `group`, and adds its inputs.
    /// let feed = |group: &str, layers: &BTreeMap<String, LowRankLinear<f64>>, stats: &mut PairedStats<f64>| {
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
    /// assert_eq!((layers["fc1"].rank(), layers["fc2"].rank(), reports.len()), (6, 8, 2));
    /// # Ok(())
    /// # }
    /// ```
    pub fn compress_sequentially<E: Into<AnyError>>(
        &self,
        method: &(impl LowRankCompressor<T> + ?Sized),
        ranks: &BTreeMap<String, usize>,
        compressed: &mut BTreeMap<String, LowRankLinear<T>>,
        mut feed: impl FnMut(&str, &BTreeMap<String, LowRankLinear<T>>, &mut PairedStats<T>) -> Result<(), E>,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<BTreeMap<String, Report>> {
        during("Network::compress_sequentially", || {
            layer_profile::require_known(&self.index()?, ranks.keys(), "ranks")?;
            let groups = self.groups()?;
            self.keep_prefix(ranks, compressed);
            let mut reports = BTreeMap::new();
            let mut tracker = Tracker::new(progress, Some(ranks.len()));
            tracker.done = compressed.len();
            for group in groups {
                let Some(first) = group.first().map(|layer| layer.name.as_str()) else { continue };
                let mut fed: Option<PairedStats<T>> = None;
                for layer in group {
                    let name = &layer.name;
                    let Some(&rank) = ranks.get(name).filter(|_| !compressed.contains_key(name)) else { continue };
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
                        let metric = calibration.output_metric();
                        let paired = Calibration::from(&*stats);
                        let paired = metric.map_or(paired, |metric| paired.with_output_metric(metric));
                        method.compress_with(linear, paired, Rank::Fixed(rank))
                    };
                    let result = layer.load(compress).map_err(|error| error.in_layer(name))?;
                    reports.insert(name.clone(), result.report().clone());
                    compressed.insert(name.clone(), result.into_layer());
                    tracker.finish(Some(name), None);
                }
            }
            Ok(reports)
        })
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

    /// Keeps the layers of an earlier run up to the first that is missing or has another rank or
    /// shape: those behind it were compressed for other inputs.
    fn keep_prefix(&self, ranks: &BTreeMap<String, usize>, compressed: &mut BTreeMap<String, LowRankLinear<T>>) {
        let mut earlier = core::mem::take(compressed);
        for Layer { name, shape, .. } in self.layers.iter().filter(|layer| ranks.contains_key(&layer.name)) {
            let same = |layer: &LowRankLinear<T>| {
                (layer.out_features(), layer.in_features()) == *shape && ranks.get(name) == Some(&layer.rank())
            };
            let Some(layer) = earlier.remove(name).filter(same) else { return };
            compressed.insert(name.clone(), layer);
        }
    }
}
