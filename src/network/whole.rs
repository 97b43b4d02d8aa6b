//! The layers of a network with their statistics: decomposed, or compressed within a budget, in one call.

use core::fmt;
use core::ops::ControlFlow;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::allocator::Allocator;
use super::budget::Strategy;
use super::memory;
use super::parallel::{self, Task};
use super::plan::{Choice, Plan};
use super::profile::{self, LayerProfile};
use super::progress::Progress;
use super::shared::SharedInput;
use crate::error::during;
use crate::{ActivationStats, Decomposition, Error, Linear, LowRankCompressor, LowRankLinear, Result, Scalar};

/// The layers of a network, with their names and the statistics of their inputs.
///
/// [`compress`](Self::compress) decomposes all layers, allocates a budget and returns the compressed layers with the plan. For
/// networks whose decompositions exceed the memory, [`decompose`](Self::decompose) hands each one over as it is finished.
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
#[derive(Debug)]
pub struct Network<'a, T> {
    layers: Vec<Layer<'a, T>>,
    max_ranks: BTreeMap<String, usize>,
    shared: Vec<Vec<String>>,
    memory_limit: Option<usize>,
}

struct Layer<'a, T> {
    name: String,
    shape: (usize, usize),
    samples: u64,
    source: Source<'a, T>,
}

impl<T> fmt::Debug for Layer<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} × {}, {} samples", self.name, self.shape.0, self.shape.1, self.samples)
    }
}

/// A layer and its statistics, loaded when they are needed.
type Load<'a, T> = dyn Fn() -> Result<(Linear<T>, Arc<ActivationStats<T>>)> + Send + Sync + 'a;

enum Source<'a, T> {
    Here(&'a Linear<T>, &'a ActivationStats<T>),
    Elsewhere(Box<Load<'a, T>>),
}

/// A layer and its statistics in memory.
enum Loaded<'a, T> {
    Borrowed(&'a Linear<T>, &'a ActivationStats<T>),
    Owned(Linear<T>, Arc<ActivationStats<T>>),
}

impl<T> Loaded<'_, T> {
    fn linear(&self) -> &Linear<T> {
        match self {
            Self::Borrowed(linear, _) => linear,
            Self::Owned(linear, _) => linear,
        }
    }

    fn stats(&self) -> &ActivationStats<T> {
        match self {
            Self::Borrowed(_, stats) => stats,
            Self::Owned(_, stats) => stats,
        }
    }
}

impl<'a, T: Scalar> Layer<'a, T> {
    fn load(&self) -> Result<Loaded<'a, T>> {
        let load = match &self.source {
            Source::Here(linear, stats) => return Ok(Loaded::Borrowed(linear, stats)),
            Source::Elsewhere(load) => load,
        };
        let (linear, stats) = load()?;
        let found = (linear.out_features(), linear.in_features());
        if found != self.shape {
            let shape = |(m, n): (usize, usize)| format!("a {m} × {n} weight");
            let (expected, found) = (shape(self.shape), shape(found));
            return Err(Error::layers(expected, found));
        }
        Ok(Loaded::Owned(linear, stats))
    }
}

impl<T> Default for Network<'_, T> {
    fn default() -> Self {
        let (layers, max_ranks, shared) = (Vec::new(), BTreeMap::new(), Vec::new());
        Self { layers, max_ranks, shared, memory_limit: None }
    }
}

impl<'a, T: Scalar> Network<'a, T> {
    /// Creates a network without layers and without a memory limit.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a layer with the statistics of its inputs.
    #[must_use]
    pub fn with_layer(mut self, name: impl Into<String>, layer: &'a Linear<T>, stats: &'a ActivationStats<T>) -> Self {
        let shape = (layer.out_features(), layer.in_features());
        let (samples, source) = (stats.samples(), Source::Here(layer, stats));
        self.layers.push(Layer { name: name.into(), shape, samples, source });
        self
    }

    /// Adds an out × in layer that `load` reads when its turn comes, on the thread that decomposes it. Its statistics have
    /// this many samples. Layers that share their statistics can share the [`Arc`].
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
        let source = Source::Elsewhere(Box::new(load));
        self.layers.push(Layer { name: name.into(), shape, samples, source });
        self
    }

    /// Sets the rank up to which a layer is decomposed. The default is the largest rank that saves parameters.
    #[must_use]
    pub fn with_max_rank(mut self, layer: impl Into<String>, rank: usize) -> Self {
        self.max_ranks.insert(layer.into(), rank);
        self
    }

    /// States that these layers read the same input, so that [`compress`](Self::compress) may give them one `down`. They must
    /// have the same statistics.
    #[must_use]
    pub fn with_shared_input<N: Into<String>>(mut self, layers: impl IntoIterator<Item = N>) -> Self {
        self.shared.push(layers.into_iter().map(Into::into).collect());
        self
    }

    /// Limits the memory of the layers that are decomposed together and of their results, by [estimate](Self::memory). Layers
    /// and statistics that are in memory anyway do not count, nor do results that the caller keeps.
    #[must_use]
    pub fn with_memory_limit(mut self, bytes: usize) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// An upper estimate of the bytes that the decomposition of a layer takes, its result included, and the layer and its
    /// statistics if they are loaded for it. `None` for a name that no layer has.
    pub fn memory(&self, layer: &str) -> Option<usize> {
        self.layers.iter().find(|other| other.name == layer).map(|layer| self.estimate(layer))
    }

    fn estimate(&self, layer: &Layer<'a, T>) -> usize {
        let samples = usize::try_from(layer.samples).unwrap_or(usize::MAX);
        let solving = memory::decomposition(layer.shape, samples, self.max_rank(layer), size_of::<T>());
        match layer.source {
            Source::Here(..) => solving,
            Source::Elsewhere(_) => solving.saturating_add(memory::loaded(layer.shape, samples, size_of::<T>())),
        }
    }

    fn max_rank(&self, layer: &Layer<'a, T>) -> usize {
        self.max_ranks.get(&layer.name).copied().unwrap_or_else(|| saving_rank(layer.shape))
    }

    /// Decomposes all layers in parallel as far as memory allows, and hands each decomposition over with the name of its layer
    /// when it is finished: on the caller's thread, in no particular order.
    ///
    /// Several layers run at a time with one thread each, or one layer with parallel kernels. The first is chosen if at least
    /// as many layers as threads are left, and the memory limit allows that many together. Without the `rayon` feature and inside
    /// a rayon worker, the layers run one after the other. Rayon's own pool is used; a method with a number of threads of its
    /// own keeps to that.
    ///
    /// If `progress` cancels, the layers that have begun are finished and handed over.
    ///
    /// # Errors
    ///
    /// Two layers of the same name, a rank for a name that no layer has, or a layer that exceeds the memory limit by itself,
    /// before anything begins. [`Error::InLayer`] for the first layer that fails, after those that had begun are handed over.
    /// An error of `deliver`.
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
    pub fn decompose<C>(
        &self,
        method: &C,
        deliver: impl FnMut(&str, Decomposition<T>) -> Result<()>,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<()>
    where
        C: LowRankCompressor<T> + Sync + ?Sized,
    {
        during("Network::decompose", || {
            self.decompose_some(&self.layers.iter().collect::<Vec<_>>(), method, deliver, progress)
        })
    }

    fn decompose_some<C>(
        &self,
        layers: &[&Layer<'a, T>],
        method: &C,
        mut deliver: impl FnMut(&str, Decomposition<T>) -> Result<()>,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<()>
    where
        C: LowRankCompressor<T> + Sync + ?Sized,
    {
        let index = profile::index(self.layers.iter().map(|layer| layer.name.as_str()))?;
        if let Some(name) = self.max_ranks.keys().find(|name| !index.contains_key(name.as_str())) {
            let expected = "ranks for layers of the network".into();
            return Err(Error::layers(expected, format!("one for `{name}`")));
        }
        let limit = self.memory_limit.unwrap_or(usize::MAX);
        let mut tasks = Vec::with_capacity(layers.len());
        for &layer in layers {
            let (name, memory) = (layer.name.as_str(), self.estimate(layer));
            if memory > limit {
                let available = format!("the limit of {limit} bytes");
                let source = Error::memory(memory, available);
                return Err(Error::InLayer { layer: name.into(), source: Box::new(source) });
            }
            tasks.push(Task { item: layer, name, memory });
        }
        let work = |layer: &Layer<'a, T>| {
            let loaded = layer.load()?;
            method.solve(loaded.linear(), loaded.stats().into(), self.max_rank(layer))
        };
        let deliver = |layer: &Layer<'a, T>, decomposition| deliver(&layer.name, decomposition);
        parallel::for_each(&tasks, limit, work, deliver, progress)
    }

    /// Compresses the network: decomposes the layers, allocates the budget, and returns the plan with the compressed layers by
    /// name. Layers that stay original are not among them.
    ///
    /// `allocator` is a [`Budget`](super::Budget) or an [`Allocator`]. All decompositions are kept until the plan is made; each
    /// takes at most the memory of its layer, and the factors of a shared input as much again. Layers with a shared `down`
    /// each have a copy of it; the plan counts its parameters once.
    ///
    /// # Errors
    ///
    /// As [`decompose`](Self::decompose), [`Allocator::allocate_shared`] and [`SharedInput::decompose`]; a shared input of a
    /// layer that does not exist.
    pub fn compress<C>(
        &self,
        method: &C,
        allocator: impl Into<Allocator>,
    ) -> Result<(Plan, BTreeMap<String, LowRankLinear<T>>)>
    where
        C: LowRankCompressor<T> + Sync + ?Sized,
    {
        during("Network::compress", || {
            let allocator: Allocator = allocator.into();
            let layers: Vec<&Layer<'a, T>> =
                self.layers.iter().filter(|layer| !allocator.leaves(&layer.name)).collect();
            let mut decompositions = BTreeMap::new();
            let keep = |name: &str, decomposition| {
                decompositions.insert(name.to_owned(), decomposition);
                Ok(())
            };
            self.decompose_some(&layers, method, keep, &mut Progress::ignore)?;
            let profile = |layer: &Layer<'a, T>| match decompositions.get(&layer.name) {
                Some(decomposition) => Ok(LayerProfile::new(&layer.name, decomposition)),
                None => LayerProfile::original(&layer.name, layer.shape, layer.load()?.linear().bias().is_some()),
            };
            let profiles = self.layers.iter().map(profile).collect::<Result<Vec<_>>>()?;
            let (mut groups, mut stacked) = (Vec::new(), Vec::new());
            // A group with a layer that stays original cannot share its `down`.
            for names in self.shared.iter().filter(|names| !names.iter().any(|name| allocator.leaves(name))) {
                let (shared, decomposition) = self.decompose_shared(names, &profiles, allocator.strategy(), method)?;
                groups.push(shared);
                stacked.push(decomposition);
            }
            let plan = allocator.allocate_shared(&profiles, &groups)?;
            let mut compressed = BTreeMap::new();
            let mut ranks = BTreeMap::new();
            for layer in &plan.layers {
                match (layer.choice, decompositions.get(&layer.name)) {
                    (Choice::Rank(rank), Some(decomposition)) => {
                        compressed.insert(layer.name.clone(), decomposition.truncate(rank)?.into_layer());
                    }
                    (Choice::Shared { group, rank }, _) => drop(ranks.insert(group, rank)),
                    _ => {}
                }
            }
            for (group, (shared, decomposition)) in groups.iter().zip(&stacked).enumerate() {
                if let Some(&rank) = ranks.get(&group) {
                    let layer =
                        |name| self.layers.iter().find(|layer| layer.name == name).ok_or_else(|| not_shared(name));
                    let loaded = shared.names().map(|name| layer(name)?.load()).collect::<Result<Vec<_>>>()?;
                    let originals: Vec<&Linear<T>> = loaded.iter().map(Loaded::linear).collect();
                    let layers = shared.split(decomposition.truncate(rank)?.layer(), &originals)?;
                    compressed.extend(shared.names().map(str::to_owned).zip(layers));
                }
            }
            Ok((plan, compressed))
        })
    }

    /// Decomposes the layers of a shared input together, up to the largest rank that saves parameters.
    fn decompose_shared<C>(
        &self,
        names: &[String],
        profiles: &[LayerProfile],
        strategy: &Strategy,
        method: &C,
    ) -> Result<(SharedInput, Decomposition<T>)>
    where
        C: LowRankCompressor<T> + ?Sized,
    {
        let mut loaded = Vec::with_capacity(names.len());
        for name in names {
            let layer = self.layers.iter().zip(profiles).find(|(layer, _)| layer.name == *name);
            let (layer, profile) = layer.ok_or_else(|| not_shared(name))?;
            loaded.push((profile, layer.load()?));
        }
        let members: Vec<_> = loaded.iter().map(|(profile, loaded)| (*profile, loaded.linear())).collect();
        let Some(stats) = loaded.first().map(|(_, loaded)| loaded.stats()) else {
            return Err(Error::empty("a shared input"));
        };
        let sensitivities = match strategy {
            Strategy::Sensitivity(sensitivities) => Some(sensitivities),
            _ => None,
        };
        let outputs = members.iter().map(|(profile, _)| profile.out_features()).sum();
        SharedInput::decompose(&members, sensitivities, method, stats, saving_rank((outputs, stats.features())))
    }
}

fn not_shared(name: &str) -> Error {
    let expected = "shared inputs of layers of the network".into();
    Error::layers(expected, format!("one of `{name}`"))
}

/// The largest rank that saves parameters, at least 1.
fn saving_rank((m, n): (usize, usize)) -> usize {
    (m.saturating_mul(n).saturating_sub(1) / m.saturating_add(n).max(1)).clamp(1, m.min(n).max(1))
}
