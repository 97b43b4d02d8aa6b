//! Sequential recalibration: each layer is compressed for the inputs that the layers compressed
//! before it produce.

use core::ops::ControlFlow;
use std::collections::{BTreeMap, BTreeSet};

use super::evaluation::AnyError;
use super::layer_profile;
use super::progress::Progress;
use crate::compress::OutputMetric;
use crate::covariance::PairedStats;
use crate::error::during;
use crate::{Calibration, Error, Linear, LowRankCompressor, LowRankLinear, Rank, Report, Result, Scalar};

/// The layers of a network in the order of execution, to be compressed one after the other.
///
/// [`Network`](super::Network) compresses every layer for the inputs that the *original* network
/// gives it. In the compressed network these inputs differ, since the layers before have errors of
/// their own. Sequential recalibration compresses each layer so that its outputs for the new inputs
/// are closest to the original outputs for the original inputs. It needs a run of both networks for
/// every group of layers with a shared input, and pays most when little of the network is kept.
/// Compare both ways on held-out data.
///
/// ```
/// use std::collections::BTreeMap;
/// use dalr::covariance::PairedStats;
/// use dalr::network::{Progress, SequentialCompression};
/// use dalr::{Dalr, Linear, LowRankLinear};
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
/// let reports = SequentialCompression::new().with_layer("fc1", &fc1).with_layer("fc2", &fc2).run(
///     &Dalr::new(),
///     &ranks,
///     &mut layers,
///     feed,
///     &mut Progress::ignore,
/// )?;
/// assert_eq!((layers["fc1"].rank(), layers["fc2"].rank(), reports.len()), (6, 8, 2));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct SequentialCompression<'a, T> {
    layers: Vec<(String, &'a Linear<T>)>,
    shared: Vec<Vec<String>>,
    metrics: BTreeMap<String, &'a OutputMetric>,
}

/// Layers with a shared input.
type Group<'b, 'a, T> = Vec<(&'b str, &'a Linear<T>)>;

impl<'a, T: Scalar> SequentialCompression<'a, T> {
    /// Creates a network without layers.
    pub fn new() -> Self {
        Self { layers: Vec::new(), shared: Vec::new(), metrics: BTreeMap::new() }
    }

    /// Adds the original layer that runs next.
    #[must_use]
    pub fn with_layer(mut self, name: impl Into<String>, layer: &'a Linear<T>) -> Self {
        self.layers.push((name.into(), layer));
        self
    }

    /// States that these layers, which follow one another, read the same input: query, key and
    /// value. They then share one run of the network.
    #[must_use]
    pub fn with_shared_input<N: Into<String>>(mut self, layers: impl IntoIterator<Item = N>) -> Self {
        self.shared.push(layers.into_iter().map(Into::into).collect());
        self
    }

    /// Sets the metric on the outputs of a layer; by default all errors of its outputs count alike.
    #[must_use]
    pub fn with_output_metric(mut self, layer: impl Into<String>, metric: &'a OutputMetric) -> Self {
        self.metrics.insert(layer.into(), metric);
        self
    }

    /// Compresses the layers that have a rank, in order; the others stay original. Returns the
    /// reports of the layers that this call compressed.
    ///
    /// `feed` gets the name of the first layer of a group, the layers compressed so far, and empty
    /// statistics. It runs the original network and the one with these layers on the same samples,
    /// and adds the inputs of the group in both. For a group that no compressed layer precedes,
    /// both inputs are the same.
    ///
    /// Each finished layer is added to `compressed`. After an error, or after `progress` has
    /// cancelled, the layers finished before are in there; pass them in again to continue. The
    /// result has the same bits as that of an uninterrupted run if `feed` repeats its inputs.
    ///
    /// Methods whose regularization is not set choose it for paired inputs themselves, as
    /// [`Dalr::new`](crate::Dalr::new) does. The ranks may come from a
    /// [`Plan`](super::Plan::ranks) whose layers do not share a `down`.
    ///
    /// # Errors
    ///
    /// Two layers of the same name; ranks, metrics, shared inputs or compressed layers of a name
    /// that no layer has; shared inputs that overlap, or of layers that do not follow one another
    /// or differ in their inputs; a compressed layer of another shape or rank than it should have,
    /// or behind one that is not compressed yet. An error of `feed`, as the source of an
    /// [`Error::Callback`]. [`Error::InLayer`] for a layer that cannot be compressed, for example
    /// because `feed` has added no samples.
    ///
    /// # Cost
    ///
    /// A call of `feed` for each group, and its statistics: `2 n` inputs for a layer of `n`. The
    /// groups run one after the other, each layer with parallel kernels.
    pub fn run<E: Into<AnyError>>(
        &self,
        method: &(impl LowRankCompressor<T> + ?Sized),
        ranks: &BTreeMap<String, usize>,
        compressed: &mut BTreeMap<String, LowRankLinear<T>>,
        mut feed: impl FnMut(&str, &BTreeMap<String, LowRankLinear<T>>, &mut PairedStats<T>) -> Result<(), E>,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<BTreeMap<String, Report>> {
        during("SequentialCompression::run", || {
            let groups = self.groups(ranks)?;
            self.require_prefix(&groups, ranks, compressed)?;
            let mut reports = BTreeMap::new();
            let (total, mut done) = (Some(ranks.len()), compressed.len());
            for group in &groups {
                let Some((first, layer)) = group.first() else { continue };
                let mut fed: Option<PairedStats<T>> = None;
                for (name, linear) in group {
                    let Some(&rank) = ranks.get(*name).filter(|_| !compressed.contains_key(*name)) else { continue };
                    let event = |finished, done| {
                        let layer = Some((*name).to_owned());
                        Progress { layer, finished, done, total, value: None }
                    };
                    if progress(&event(false, done)).is_break() {
                        return Ok(reports);
                    }
                    let stats = match fed.take() {
                        Some(stats) => stats,
                        None => {
                            let mut stats = PairedStats::new(layer.in_features());
                            let failed = |error| Error::callback(format!("the inputs of `{first}`"), error);
                            feed(first, compressed, &mut stats).map_err(failed)?;
                            stats
                        }
                    };
                    let (layer, report) =
                        self.compress(method, name, linear, &stats, rank).map_err(|error| error.in_layer(name))?;
                    fed = Some(stats);
                    compressed.insert((*name).to_owned(), layer);
                    reports.insert((*name).to_owned(), report);
                    done += 1;
                    if progress(&event(true, done)).is_break() {
                        return Ok(reports);
                    }
                }
            }
            Ok(reports)
        })
    }

    fn compress(
        &self,
        method: &(impl LowRankCompressor<T> + ?Sized),
        name: &str,
        layer: &Linear<T>,
        stats: &PairedStats<T>,
        rank: usize,
    ) -> Result<(LowRankLinear<T>, Report)> {
        // A method may do without data, but a function that adds none is a mistake.
        if stats.samples() == 0 {
            return Err(Error::no_samples());
        }
        let mut calibration = Calibration::from(stats);
        if let Some(metric) = self.metrics.get(name) {
            calibration = calibration.with_output_metric(metric);
        }
        let compressed = method.compress_with(layer, calibration, Rank::Fixed(rank))?;
        let report = compressed.report().clone();
        Ok((compressed.into_layer(), report))
    }

    /// The layers in order, those with a shared input together.
    fn groups(&self, ranks: &BTreeMap<String, usize>) -> Result<Vec<Group<'_, 'a, T>>> {
        let index = layer_profile::index(self.layers.iter().map(|(name, _)| name.as_str()))?;
        layer_profile::require_known(&index, ranks.keys(), "ranks")?;
        layer_profile::require_known(&index, self.metrics.keys(), "output metrics")?;
        let mut grouped = BTreeSet::new();
        for names in &self.shared {
            layer_profile::require_known(&index, names.iter(), "shared inputs")?;
            if let Some(name) = names.iter().find(|name| !grouped.insert(name.as_str())) {
                let expected = "each layer in one shared input at most".into();
                return Err(Error::layers(expected, format!("`{name}` again")));
            }
        }
        let (mut groups, mut rest) = (Vec::new(), self.layers.as_slice());
        while let Some((first, layer)) = rest.first() {
            let names = self.shared.iter().find(|names| names.contains(first));
            let count = names.map_or(1, Vec::len);
            let (group, behind) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            for (name, other) in group {
                if names.is_some_and(|names| !names.contains(name)) {
                    let expected = format!("the layers with the input of `{first}` one after the other");
                    return Err(Error::layers(expected, format!("`{name}` between them")));
                }
                if other.in_features() != layer.in_features() {
                    let (expected, found) = (layer.in_features(), other.in_features());
                    return Err(Error::shape("inputs, as the first layer has", expected, found).in_layer(name));
                }
            }
            groups.push(group.iter().map(|(name, layer)| (name.as_str(), *layer)).collect());
            rest = behind;
        }
        Ok(groups)
    }

    /// Refuses layers that an earlier run of other ranks, or in another order, has left.
    fn require_prefix(
        &self,
        groups: &[Group<'_, 'a, T>],
        ranks: &BTreeMap<String, usize>,
        compressed: &BTreeMap<String, LowRankLinear<T>>,
    ) -> Result<()> {
        if let Some(name) = compressed.keys().find(|name| !ranks.contains_key(*name)) {
            return Err(Error::layers("compressed layers with a rank".into(), format!("`{name}` without one")));
        }
        let mut missing = None;
        for (name, original) in groups.iter().flatten() {
            match (ranks.get(*name), compressed.get(*name)) {
                (Some(_), None) => missing = missing.or(Some(name)),
                (Some(&rank), Some(layer)) => {
                    if let Some(missing) = missing {
                        let expected =
                            format!("`{missing}` in the compressed layers, because `{name}` is there and comes later");
                        let found = format!("none: remove `{name}` and all later layers, or start with no layers");
                        return Err(Error::layers(expected, found));
                    }
                    let shape = |(m, n, rank)| format!("{m} × {n} of rank {rank}");
                    let expected = (original.out_features(), original.in_features(), rank);
                    let found = (layer.out_features(), layer.in_features(), layer.rank());
                    if expected != found {
                        let error = Error::layers(
                            format!("the compressed layer of the earlier run to be {}", shape(expected)),
                            shape(found) + ": remove it and all later layers to compress them again",
                        );
                        return Err(error.in_layer(name));
                    }
                }
                (None, _) => {}
            }
        }
        Ok(())
    }
}
