//! Decomposes the layers of a network, or compresses them within a budget, in one call.

use core::cmp::Reverse;
use core::fmt;
use core::ops::ControlFlow;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::allocator::Allocator;
use super::budget::Strategy;
use super::layer_profile::{self, LayerProfile};
use super::plan::{Choice, Plan};
use super::progress::{Progress, Tracker};
use super::sensitivities::Sensitivities;
use super::shared_input::SharedInput;
use crate::compress::{HiddenUnitSelection, OutputMetric};
use crate::error::during;
use crate::factors::Form;
use crate::solver::LEAST_BASIS;
use crate::{
    ActivationStats, Calibration, Decomposition, Error, Linear, LowRankCompressor, LowRankLinear, Result, Scalar,
    linalg,
};

/// The layers of a network, with their names and the statistics of their inputs.
///
/// [`compress`](Self::compress) decomposes all layers, allocates a budget and returns the
/// compressed layers with the plan. For networks whose decompositions exceed the memory,
/// [`decompose`](Self::decompose) passes each one to a function as soon as it is finished.
/// [`compress_sequentially`](Self::compress_sequentially) fits each layer to the inputs that the
/// compressed network gives it.
///
/// ```
/// use dalr::network::{Allocator, Budget, Network, Sensitivities, Strategy};
/// use dalr::{ActivationStats, Dalr, Linear};
/// use faer::Mat;
///
/// # fn main() -> dalr::Result<()> {
/// # let weight = |m: usize| Mat::from_fn(m, 20, |i, j| ((i * 5 + j * j * 3) % 17) as f64 + (i * j % 3) as f64);
/// # let (query, key, output) = (Linear::new(weight(20), None)?, Linear::new(weight(24), None)?, Linear::new(weight(30), None)?);
/// # let mut inputs = ActivationStats::new(20);
/// # inputs.update(Mat::from_fn(50, 20, |i, j| ((i * i * 11 + j * 7 + i * j) % 13) as f64).as_ref())?;
/// let network = Network::new()
///     .with_layer("query", &query, &inputs)
///     .with_layer("key", &key, &inputs)
///     .with_layer("output", &output, &inputs)
///     .with_shared_input(["query", "key"]); // may get one `down`
/// let sensitivities = Sensitivities::new([("query", 0.2), ("key", 0.2), ("output", 1.5)])?;
/// let allocator =
///     Allocator::new(Budget::MultiplyAddFraction(0.5)).with_strategy(Strategy::Sensitivity(sensitivities));
/// let (plan, layers) = network.compress(&Dalr::new(), allocator)?;
/// println!("{plan}");
/// let output = layers.get("output"); // `None` for a layer that stays original
/// # let _ = output;
/// assert!(plan.multiply_adds_after() as f64 <= 0.5 * plan.multiply_adds_before() as f64);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct Network<'a, T> {
    pub(super) layers: Vec<Layer<'a, T>>,
    max_ranks: BTreeMap<String, usize>,
    pub(super) shared: Vec<Vec<String>>,
    pub(super) units: Vec<KeptUnits>,
    memory_limit: Option<usize>,
}

/// The number of hidden units that are kept between some layers.
#[derive(Debug)]
pub(super) struct KeptUnits {
    /// The names of the layers before the units, and of the layer behind them.
    pub(super) layers: Vec<String>,
    pub(super) kept: usize,
    pub(super) options: HiddenUnitSelection,
}

pub(super) struct Layer<'a, T> {
    pub(super) name: String,
    pub(super) shape: (usize, usize),
    samples: u64,
    source: Source<'a, T>,
}

/// A layer and its data, or a function that reads them just before they are used.
enum Source<'a, T> {
    Memory(&'a Linear<T>, Calibration<'a, T>),
    Lazy(Box<Load<'a, T>>),
}

type Load<'a, T> = dyn Fn() -> Result<(Linear<T>, Arc<ActivationStats<T>>)> + Send + Sync + 'a;

impl<T: Scalar> Layer<'_, T> {
    /// Calls `body` with the layer and its data.
    pub(super) fn load<R>(&self, body: impl FnOnce(&Linear<T>, Calibration<'_, T>) -> Result<R>) -> Result<R> {
        match &self.source {
            Source::Memory(linear, calibration) => body(linear, *calibration),
            Source::Lazy(load) => {
                let (linear, stats) = load()?;
                let found = (linear.out_features(), linear.in_features());
                if found != self.shape {
                    let weight = |(m, n): (usize, usize)| format!("a {m} × {n} weight");
                    return Err(Error::layers(weight(self.shape), weight(found)));
                }
                body(&linear, (&*stats).into())
            }
        }
    }
}

impl<T> fmt::Debug for Layer<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} × {}, {} samples", self.name, self.shape.0, self.shape.1, self.samples)
    }
}

impl<'a, T: Scalar> Network<'a, T> {
    /// Creates a network without layers and without a memory limit.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a layer with its calibration data, usually the statistics of its inputs.
    #[must_use]
    pub fn with_layer(
        mut self,
        name: impl Into<String>,
        layer: &'a Linear<T>,
        calibration: impl Into<Calibration<'a, T>>,
    ) -> Self {
        let (name, shape) = (name.into(), (layer.out_features(), layer.in_features()));
        let calibration = calibration.into();
        let source = Source::Memory(layer, calibration);
        self.layers.push(Layer { name, shape, samples: calibration.samples(), source });
        self
    }

    /// Adds an out × in layer that `load` reads just before it is decomposed, on the same thread.
    /// Its statistics have this many samples. Layers with a shared input can share the [`Arc`].
    ///
    /// ```
    /// use std::sync::Arc;
    /// use dalr::network::Network;
    /// use dalr::{ActivationStats, Linear};
    /// let stats = Arc::new(ActivationStats::<f32>::new(300));
    /// let network = Network::new().with_lazy_layer("fc1", (200, 300), stats.samples(), move || {
    ///     let layer = Linear::new(faer::Mat::zeros(200, 300), None)?; // or read from a file
    ///     Ok((layer, stats.clone()))
    /// });
    /// assert!(network.memory("fc1").is_some_and(|bytes| bytes > 200 * 300 * 8));
    /// ```
    #[must_use]
    pub fn with_lazy_layer(
        mut self,
        name: impl Into<String>,
        shape: (usize, usize),
        samples: u64,
        load: impl Fn() -> Result<(Linear<T>, Arc<ActivationStats<T>>)> + Send + Sync + 'a,
    ) -> Self {
        self.layers.push(Layer { name: name.into(), shape, samples, source: Source::Lazy(Box::new(load)) });
        self
    }

    /// Sets the rank up to which a layer is decomposed. The default is the largest rank that saves
    /// parameters.
    #[must_use]
    pub fn with_max_rank(mut self, layer: impl Into<String>, rank: usize) -> Self {
        self.max_ranks.insert(layer.into(), rank);
        self
    }

    /// States that these layers have a shared input, so that [`compress`](Self::compress) may give
    /// them one `down`. They must have the same statistics. In
    /// [`compress_sequentially`](Self::compress_sequentially), those that follow one another share
    /// one run of the network.
    #[must_use]
    pub fn with_shared_input<N: Into<String>>(mut self, layers: impl IntoIterator<Item = N>) -> Self {
        self.shared.push(layers.into_iter().map(Into::into).collect());
        self
    }

    /// Keeps this many of the hidden units between two layers in
    /// [`compress_sequentially`](Self::compress_sequentially). The units are chosen when the second
    /// layer is compressed; the first one stays original until then.
    ///
    /// `layers` are the names of the first and of the second layer. If the units are gated, they are
    /// those of `up`, of the gate and of the second layer, as
    /// [`UnitProfile::names`](super::UnitProfile::names) returns them. The options decide all but the
    /// largest number of units.
    #[must_use]
    pub fn with_hidden_units<N: Into<String>>(
        mut self,
        layers: impl IntoIterator<Item = N>,
        kept: usize,
        options: HiddenUnitSelection,
    ) -> Self {
        let layers = layers.into_iter().map(Into::into).collect();
        self.units.push(KeptUnits { layers, kept, options: options.with_max_units(kept) });
        self
    }

    /// Limits the [estimated memory](Self::memory) of the layers that are decomposed together, and
    /// of their results until these are passed on. Layers and statistics that the caller holds do
    /// not count. Results that the caller keeps do not count either.
    #[must_use]
    pub fn with_memory_limit(mut self, bytes: usize) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// Returns an upper estimate of the bytes that the decomposition of a layer takes, its result
    /// included. For a lazy layer, this includes the layer and its statistics. `None` for a name
    /// that no layer has.
    pub fn memory(&self, layer: &str) -> Option<usize> {
        self.layers.iter().find(|other| other.name == layer).map(|layer| self.estimate(layer, Form::Factors))
    }

    /// Returns the position of each layer by its name, or an error if a name occurs twice.
    pub(super) fn index(&self) -> Result<BTreeMap<&str, usize>> {
        layer_profile::index(self.layers.iter().map(|layer| layer.name.as_str()))
    }

    fn estimate(&self, layer: &Layer<'a, T>, form: Form) -> usize {
        let (m, n) = (layer.shape.0 as f64, layer.shape.1 as f64);
        let (small, scalar, rank) = (m.min(n), size_of::<T>() as f64, self.max_rank(layer, form) as f64);
        // Statistics keep samples until these take twice the memory of the scatter, which is `2 n`
        // samples in `f32`.
        let samples = layer.samples as f64;
        let kept = samples.min(n * (8.0 / scalar));
        // Sample form: the centred samples, their outputs and their Gram matrix. Covariance form:
        // the second moment.
        let moment = match kept < samples {
            true => 3.0 * n * n,
            false => kept * (2.5 * n + 2.0 * m) + 2.0 * kept.min(n).powi(2),
        };
        // All in `f64`: the weight and its `Q R`; the matrix to diagonalize and its eigenvectors,
        // the same again for their check, and the same again for the workspace; the factors.
        // The basis of block Lanczos, of vectors of outputs, and the operator projected on it.
        let basis = m.min(LEAST_BASIS as f64);
        let iteration = basis * (m + basis);
        let solving = 8.0 * (3.0 * m * n + 8.0 * small * small + moment + iteration + 4.0 * rank * (m + n)) + 1e6;
        // Sample form: the samples. Covariance form: the scatter and a buffer of a quarter of its
        // size. `Vec` may reserve twice as much.
        let stats = 2.0 * (kept * n * scalar).max(if kept < samples { 5.0 * n * n } else { 0.0 });
        let is_lazy = matches!(layer.source, Source::Lazy(_));
        let loading = if is_lazy { (m * n + m) * scalar + stats + 64.0 * n } else { 0.0 };
        // The conversion saturates, so it cannot overflow.
        (solving + loading) as usize
    }

    fn max_rank(&self, layer: &Layer<'a, T>, form: Form) -> usize {
        self.max_ranks.get(&layer.name).copied().unwrap_or_else(|| saving_rank(layer.shape, form))
    }

    /// Decomposes all layers, in parallel as far as memory allows. Passes each finished
    /// decomposition with the name of its layer to `deliver`, on the caller's thread, in no
    /// particular order.
    ///
    /// Either several layers run at a time with one thread each, or one layer runs with parallel
    /// kernels. Several layers run together if at least as many layers as threads are left, and the
    /// memory limit allows so many. Without the `rayon` feature and inside a rayon worker, the
    /// layers run one after the other. The threads are those of rayon's pool. A method with its own
    /// number of threads uses that number.
    ///
    /// If `progress` cancels, the layers under way are finished and delivered.
    ///
    /// # Errors
    ///
    /// Before the first layer: two layers of the same name, a rank for a name that no layer has, or
    /// a layer that alone exceeds the memory limit. Later: [`Error::InLayer`] for the first layer
    /// that fails, after the layers under way are delivered; an error of `deliver`.
    ///
    /// ```
    /// use dalr::network::{LayerProfile, Network, Progress};
    /// # use dalr::{ActivationStats, Dalr, Linear};
    /// # use faer::Mat;
    /// # fn main() -> dalr::Result<()> {
    /// # let mut stats = ActivationStats::new(20);
    /// # stats.update(Mat::from_fn(50, 20, |i, j| ((i * 11 + j * 7) % 13) as f64).as_ref())?;
    /// # let fc1 = Linear::new(Mat::from_fn(24, 20, |i, j| ((i * 5 + j * 3) % 17) as f64), None)?;
    /// # let fc2 = Linear::new(Mat::from_fn(30, 20, |i, j| ((i * 3 + j * 5) % 17) as f64), None)?;
    /// let network = Network::new().with_layer("fc1", &fc1, &stats).with_layer("fc2", &fc2, &stats);
    /// let mut profiles = Vec::new();
    /// let keep = |name: &str, decomposition| {
    ///     profiles.push(LayerProfile::new(name, &decomposition)); // the decomposition itself is dropped
    ///     Ok(())
    /// };
    /// network.with_memory_limit(1 << 30).decompose(&Dalr::new(), keep, &mut Progress::ignore)?;
    /// assert_eq!(profiles.len(), 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn decompose(
        &self,
        method: &(impl LowRankCompressor<T> + Sync + ?Sized),
        deliver: impl FnMut(&str, Decomposition<T>) -> Result<()>,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<()> {
        during("Network::decompose", || self.decompose_some(self.layers.iter().collect(), method, deliver, progress))
    }

    fn decompose_some(
        &self,
        mut layers: Vec<&Layer<'a, T>>,
        method: &(impl LowRankCompressor<T> + Sync + ?Sized),
        mut deliver: impl FnMut(&str, Decomposition<T>) -> Result<()>,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<()> {
        layer_profile::require_known(&self.index()?, self.max_ranks.keys(), "ranks")?;
        let (limit, form) = (self.memory_limit.unwrap_or(usize::MAX), method.form());
        if let Some(layer) = layers.iter().find(|layer| self.estimate(layer, form) > limit) {
            let available = format!("the limit of {limit} bytes");
            return Err(Error::memory(self.estimate(layer, form), available).in_layer(&layer.name));
        }
        // The largest layers come first, so that no thread waits long at the end, and layers of the
        // same size run together.
        layers.sort_by_key(|layer| Reverse(self.estimate(layer, form)));
        let solve = |layer: &&Layer<'a, T>| {
            let decomposition =
                layer.load(|linear, calibration| method.solve(linear, calibration, self.max_rank(layer, form)));
            decomposition.map(|decomposition| decomposition.with_form(form))
        };
        let mut tracker = Tracker::new(progress, Some(layers.len()));
        let mut waiting = &layers[..];
        while !waiting.is_empty() && !tracker.cancelled {
            let (batch, rest) = waiting.split_at(self.batch_size(waiting, form, limit));
            let begun = batch.iter().take_while(|layer| tracker.begin(Some(&layer.name))).count();
            let (batch, mut outcome) = (batch.split_at(begun).0, Ok(()));
            for (layer, result) in batch.iter().zip(solve_all(batch, &solve)) {
                let name = &layer.name;
                match result.map_err(|error| error.in_layer(name)).and_then(|result| deliver(name, result)) {
                    Ok(()) => tracker.finish(Some(name), None),
                    Err(error) => outcome = outcome.and(Err(error)),
                }
            }
            outcome?;
            waiting = rest;
        }
        Ok(())
    }

    /// Compresses the network: decomposes the layers, allocates the budget, and returns the plan
    /// and the compressed layers by name. Original layers are not returned.
    ///
    /// `allocator` is a [`Budget`](super::Budget) or an [`Allocator`]. All decompositions are in
    /// memory until the plan is made. Each takes at most the memory of its layer, and the factors
    /// of a group with a shared input take the same again. Layers with a shared `down` each have a
    /// copy of it; the plan counts its parameters once.
    ///
    /// # Errors
    ///
    /// As [`decompose`](Self::decompose), [`Allocator::allocate_shared`] and
    /// [`SharedInput::decompose`]; a shared input of a layer that does not exist.
    pub fn compress(
        &self,
        method: &(impl LowRankCompressor<T> + Sync + ?Sized),
        allocator: impl Into<Allocator>,
    ) -> Result<(Plan, BTreeMap<String, LowRankLinear<T>>)> {
        during("Network::compress", || {
            let allocator: Allocator = allocator.into();
            layer_profile::require_known(&self.index()?, self.shared.iter().flatten(), "shared inputs")?;
            let layers: Vec<_> = self.layers.iter().filter(|layer| !allocator.leaves(&layer.name)).collect();
            let mut decompositions = BTreeMap::new();
            let keep = |name: &str, decomposition| {
                decompositions.insert(name.to_owned(), decomposition);
                Ok(())
            };
            self.decompose_some(layers, method, keep, &mut Progress::ignore)?;
            let profile = |layer: &Layer<'a, T>| match decompositions.get(&layer.name) {
                Some(decomposition) => Ok(LayerProfile::new(&layer.name, decomposition)),
                None => {
                    layer.load(|linear, _| LayerProfile::original(&layer.name, layer.shape, linear.bias().is_some()))
                }
            };
            let profiles = self.layers.iter().map(profile).collect::<Result<Vec<_>>>()?;
            let energy = |profile: &LayerProfile| Ok((profile.name().to_owned(), profile.metric_energy()?));
            let decomposed = || profiles.iter().filter(|profile| profile.max_rank() > 0);
            let sensitivities = match &allocator.strategy {
                Strategy::Sensitivity(sensitivities) => Some(sensitivities.clone()),
                Strategy::OutputMetric => {
                    Some(Sensitivities::new(decomposed().map(energy).collect::<Result<Vec<_>>>()?)?)
                }
                Strategy::Uniform | Strategy::Energy => None,
            };
            let (mut groups, mut stacked) = (Vec::new(), Vec::new());
            // A group with a layer that stays original cannot have one `down`.
            for names in self.shared.iter().filter(|names| !names.iter().any(|name| allocator.leaves(name))) {
                let group = self.layers.iter().zip(&profiles).filter(|(layer, _)| names.contains(&layer.name));
                let group: Vec<(&Layer<'a, T>, &LayerProfile)> = group.collect();
                let (first, _) = group.first().ok_or_else(|| Error::empty("the list of layers with a shared input"))?;
                let weights = group.iter().map(|(layer, _)| layer.load(|linear, _| Ok(linear.clone())));
                let weights: Vec<Linear<T>> = weights.collect::<Result<_>>()?;
                let members: Vec<_> = group.iter().map(|(_, profile)| *profile).zip(&weights).collect();
                let outputs = group.iter().map(|(layer, _)| layer.shape.0).sum();
                let rank = saving_rank((outputs, first.shape.1), Form::Factors);
                let metrics = group.iter().map(|(layer, _)| layer.load(|_, data| Ok(data.output_metric().cloned())));
                let metrics: Option<Vec<OutputMetric>> = metrics.collect::<Result<_>>()?;
                let metrics = metrics.map(|all| OutputMetric::block_diagonal(&Vec::from_iter(&all))).transpose()?;
                let (shared, joint) = first.load(|_, calibration| {
                    let calibration = calibration.with_metric(metrics.as_ref());
                    SharedInput::decompose(&members, sensitivities.as_ref(), method, calibration, rank)
                })?;
                groups.push(shared);
                stacked.push(joint);
            }
            let plan = allocator.allocate_shared(&profiles, &groups)?;
            let mut compressed = BTreeMap::new();
            for layer in &plan.layers {
                match (layer.choice, decompositions.remove(&layer.name)) {
                    (Choice::Rank(rank), Some(decomposition)) => {
                        compressed.insert(layer.name.clone(), decomposition.truncate(rank)?.into_layer());
                    }
                    (Choice::Shared { group, rank }, _) if !compressed.contains_key(&layer.name) => {
                        let layers = groups[group].split(stacked[group].truncate(rank)?.layer())?;
                        compressed.extend(groups[group].names().map(str::to_owned).zip(layers));
                    }
                    _ => {}
                }
            }
            Ok((plan, compressed))
        })
    }

    /// Returns the number of layers to decompose next, in parallel if more than one.
    fn batch_size(&self, waiting: &[&Layer<'a, T>], form: Form, mut free: usize) -> usize {
        let threads = linalg::threads(0).degree();
        let fits = |layer: &&&Layer<'a, T>| {
            let rest = free.checked_sub(self.estimate(layer, form));
            free = rest.unwrap_or(free);
            rest.is_some()
        };
        let count = waiting.iter().take(2 * threads).take_while(fits).count();
        if threads == 1 || count < threads { 1 } else { count }
    }
}

/// Returns the largest rank that saves parameters, at least 1.
fn saving_rank(shape: (usize, usize), form: Form) -> usize {
    (form.break_even(shape).ceil() as usize).saturating_sub(1).max(1)
}

fn solve_all<E: Sync, R: Send>(batch: &[E], solve: &(impl Fn(&E) -> R + Sync)) -> Vec<R> {
    #[cfg(feature = "rayon")]
    if batch.len() > 1 {
        use rayon::prelude::*;
        return batch.par_iter().with_max_len(1).map(solve).collect();
    }
    batch.iter().map(solve).collect()
}
