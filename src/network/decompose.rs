//! Many layers decomposed, several at a time, within a memory limit.

use std::sync::Arc;

use super::allocator::names_of;
use super::memory;
use super::observer::{Completion, Event, Observer, Stage};
use crate::{ActivationStats, Decomposition, Error, Linear, LowRankCompressor, Result, Scalar};

/// A layer to decompose: at hand, or to be loaded when its turn comes. For an example see [`Decomposer`].
pub struct Job<'a, T> {
    name: String,
    shape: (usize, usize),
    samples: u64,
    max_rank: usize,
    source: Source<'a, T>,
}

/// A layer and its statistics, loaded.
type Loaded<T> = (Linear<T>, Arc<ActivationStats<T>>);

enum Source<'a, T> {
    Here(&'a Linear<T>, &'a ActivationStats<T>),
    Elsewhere(Box<dyn Fn() -> Result<Loaded<T>> + Send + Sync + 'a>),
}

impl<'a, T: Scalar> Job<'a, T> {
    /// A layer that is in memory, to be decomposed up to the largest rank that saves parameters.
    ///
    /// For an example see [`Decomposer`].
    pub fn new(name: impl Into<String>, layer: &'a Linear<T>, stats: &'a ActivationStats<T>) -> Self {
        let shape = (layer.out_features(), layer.in_features());
        let (max_rank, source) = (paying(shape), Source::Here(layer, stats));
        Self { name: name.into(), shape, samples: stats.samples(), max_rank, source }
    }

    /// A layer of this shape that `load` fetches, with statistics of this many samples, on the thread that decomposes it. Statistics that several
    /// layers share can be shared by the [`Arc`].
    ///
    /// ```
    /// use std::sync::Arc;
    /// use dalr::network::Job;
    /// use dalr::{ActivationStats, Linear};
    /// let stats = Arc::new(ActivationStats::<f32>::new(300));
    /// let job = Job::lazy("fc1", 200, 300, stats.samples(), move || {
    ///     let layer = Linear::new(faer::Mat::zeros(200, 300), None)?; // or read from a file
    ///     Ok((layer, stats.clone()))
    /// });
    /// assert!(job.memory() > 200 * 300 * 8);
    /// ```
    pub fn lazy(
        name: impl Into<String>,
        out_features: usize,
        in_features: usize,
        samples: u64,
        load: impl Fn() -> Result<(Linear<T>, Arc<ActivationStats<T>>)> + Send + Sync + 'a,
    ) -> Self {
        let shape = (out_features, in_features);
        Self { name: name.into(), shape, samples, max_rank: paying(shape), source: Source::Elsewhere(Box::new(load)) }
    }

    /// Sets the rank up to which the layer is decomposed, in place of the largest that saves parameters.
    ///
    /// For an example see [`Decomposer`].
    #[must_use]
    pub fn with_max_rank(mut self, rank: usize) -> Self {
        self.max_rank = rank;
        self
    }

    /// Estimate from above of the bytes that decomposing this layer takes, its result included, and the layer and its statistics if they are to
    /// be loaded.
    ///
    /// For an example see [`lazy`](Self::lazy).
    pub fn memory(&self) -> usize {
        let samples = usize::try_from(self.samples).unwrap_or(usize::MAX);
        let solving = memory::decomposition(self.shape, samples, self.max_rank, size_of::<T>());
        match self.source {
            Source::Here(..) => solving,
            Source::Elsewhere(_) => solving.saturating_add(memory::loaded(self.shape, samples, size_of::<T>())),
        }
    }

    fn run(&self, method: &(impl LowRankCompressor<T> + ?Sized)) -> Result<Decomposition<T>> {
        let outcome = match &self.source {
            Source::Here(layer, stats) => method.solve(layer, (&**stats).into(), self.max_rank),
            Source::Elsewhere(load) => load().and_then(|(layer, stats)| {
                let found = (layer.out_features(), layer.in_features());
                if found != self.shape {
                    let shape = |(m, n): (usize, usize)| format!("a {m} × {n} weight");
                    let (expected, found) = (shape(self.shape), shape(found));
                    return Err(Error::layers(expected, found));
                }
                method.solve(&layer, (&*stats).into(), self.max_rank)
            }),
        };
        outcome.map_err(|source| Error::InLayer { layer: self.name.clone(), source: Box::new(source) })
    }
}

impl<T> core::fmt::Debug for Job<'_, T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Job")
            .field("name", &self.name)
            .field("shape", &self.shape)
            .field("samples", &self.samples)
            .field("max_rank", &self.max_rank)
            .finish_non_exhaustive()
    }
}

/// The largest rank that saves parameters, or 1.
fn paying((m, n): (usize, usize)) -> usize {
    (m.saturating_mul(n).saturating_sub(1) / m.saturating_add(n).max(1)).clamp(1, m.min(n).max(1))
}

/// Decomposes many layers, in parallel as far as memory allows.
///
/// Either several layers at a time, each on one thread, or one after the other with parallel kernels: the first where there are at least as many layers as
/// threads and the memory limit lets so many run together, the second for layers too large for that. Without the
/// `rayon` feature, and inside a rayon worker, one after the other on the caller's thread. Rayon's pool is used, no other; a method that was told its number
/// of threads keeps to that.
///
/// ```
/// use dalr::network::{Completion, Decomposer, Job, LayerProfile};
/// use dalr::{ActivationStats, Dalr, Linear};
/// use faer::Mat;
///
/// # fn main() -> dalr::Result<()> {
/// let mut stats = ActivationStats::new(20);
/// stats.update(Mat::from_fn(50, 20, |i, j| ((i * 11 + j * 7) % 13) as f64).as_ref())?;
/// let fc1 = Linear::new(Mat::from_fn(24, 20, |i, j| ((i * 5 + j * 3) % 17) as f64), None)?;
/// let fc2 = Linear::new(Mat::from_fn(30, 20, |i, j| ((i * 3 + j * 5) % 17) as f64), None)?;
/// let jobs = [Job::new("fc1", &fc1, &stats), Job::new("fc2", &fc2, &stats).with_max_rank(8)];
/// let mut profiles = vec![None, None];
/// let done = Decomposer::new().with_memory_limit(1 << 30).decompose(
///     &Dalr::new(),
///     &jobs,
///     |index, decomposition| {
///         // As each is done, in no particular order; keep what is needed of it.
///         profiles[index] = Some(LayerProfile::new(["fc1", "fc2"][index], &decomposition));
///         Ok(())
///     },
///     &mut (),
/// )?;
/// assert_eq!(done, Completion::Finished);
/// assert_eq!(profiles[1].as_ref().map(|profile| profile.max_rank()), Some(8));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Decomposer {
    memory_limit: Option<usize>,
}

/// What is handed over as it is done, and who is told.
struct Delivery<'a, T, F> {
    jobs: &'a [Job<'a, T>],
    deliver: F,
    observer: &'a mut dyn Observer,
    done: usize,
    cancelled: bool,
}

/// Index and memory of a layer, and what came of it.
#[cfg(feature = "rayon")]
type Message<T> = (usize, usize, Option<Result<Decomposition<T>>>);

/// Is sent whatever happens, lest the receiver wait for a thread that panicked.
#[cfg(feature = "rayon")]
struct Outcome<T: Scalar> {
    sender: std::sync::mpsc::Sender<Message<T>>,
    index: usize,
    memory: usize,
    result: Option<Result<Decomposition<T>>>,
}

#[cfg(feature = "rayon")]
impl<T: Scalar> Drop for Outcome<T> {
    fn drop(&mut self) {
        // Nobody is there to receive only if that thread panicked itself.
        let _ = self.sender.send((self.index, self.memory, self.result.take()));
    }
}

impl Decomposer {
    /// A decomposer without a memory limit. For an example see [`Decomposer`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the layers that are being decomposed, and those waiting to be handed over, take at most this many bytes by
    /// [estimate](Job::memory); layers and statistics that are in memory anyway do not count.
    ///
    /// For an example see [`Decomposer`].
    #[must_use]
    pub fn with_memory_limit(mut self, bytes: usize) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// Decomposes all layers and hands each over, with its index, when it is done; on the caller's thread, in no particular order.
    ///
    /// # Errors
    ///
    /// Two jobs of the same name, or one that exceeds the limit by itself, before anything is done. [`Error::InLayer`] for the first layer that
    /// fails: those that had begun are finished and handed over, no others are begun. What `deliver` fails with.
    ///
    /// For an example see [`Decomposer`].
    pub fn decompose<T, C>(
        &self,
        method: &C,
        jobs: &[Job<'_, T>],
        deliver: impl FnMut(usize, Decomposition<T>) -> Result<()>,
        observer: &mut dyn Observer,
    ) -> Result<Completion>
    where
        T: Scalar,
        C: LowRankCompressor<T> + Sync + ?Sized,
    {
        names_of(jobs.iter().map(|job| job.name.as_str()))?;
        let limit = self.memory_limit.unwrap_or(usize::MAX);
        if let Some(job) = jobs.iter().find(|job| job.memory() > limit) {
            let available = format!("the limit of {limit} bytes");
            let source = Error::memory(job.memory(), available);
            return Err(Error::InLayer { layer: job.name.clone(), source: Box::new(source) });
        }
        // The largest first: with the small ones last, no thread waits long at the end.
        let mut order: Vec<(usize, &Job<'_, T>)> = jobs.iter().enumerate().collect();
        order.sort_by_key(|(index, job)| (core::cmp::Reverse(job.memory()), *index));
        let together = together(&order, limit);
        let (alone, parallel) = order.split_at(order.len() - together);
        let mut delivery = Delivery { jobs, deliver, observer, done: 0, cancelled: false };
        for &(index, job) in alone {
            if !delivery.begin(index) {
                break;
            }
            delivery.finish(index, job.run(method)?)?;
        }
        #[cfg(feature = "rayon")]
        delivery.run_together(method, parallel, limit)?;
        debug_assert!(cfg!(feature = "rayon") || parallel.is_empty());
        Ok(if delivery.done < jobs.len() { Completion::Cancelled } else { Completion::Finished })
    }
}

/// How many of the smallest layers, the last in this order, are worth a thread each.
#[cfg(feature = "rayon")]
fn together<T: Scalar>(order: &[(usize, &Job<'_, T>)], limit: usize) -> usize {
    let threads = rayon::current_num_threads();
    if threads < 2 || rayon::current_thread_index().is_some() {
        return 0;
    }
    let fits = |start: &usize| {
        let mut first = order.iter().skip(*start).take(threads);
        let sum = first.try_fold(0_usize, |sum, (_, job)| sum.checked_add(job.memory()));
        order.len() - start >= threads && sum.is_some_and(|sum| sum <= limit)
    };
    (0..order.len()).find(fits).map_or(0, |start| order.len() - start)
}

#[cfg(not(feature = "rayon"))]
fn together<T>(_order: &[(usize, &Job<'_, T>)], _limit: usize) -> usize {
    0
}

impl<T: Scalar, F: FnMut(usize, Decomposition<T>) -> Result<()>> Delivery<'_, T, F> {
    /// Tells the observer, and whether it asks to stop.
    fn tell(&mut self, index: usize, finished: bool) -> bool {
        let layer = self.jobs.get(index).map_or("", |job| job.name.as_str());
        let (done, total) = (self.done, Some(self.jobs.len()));
        let event = Event { stage: Stage::Decomposition, layer, finished, done, total, value: None };
        self.observer.observe(&event).is_break()
    }

    /// Whether the layer may begin.
    fn begin(&mut self, index: usize) -> bool {
        self.cancelled = self.cancelled || self.tell(index, false);
        !self.cancelled
    }

    fn finish(&mut self, index: usize, decomposition: Decomposition<T>) -> Result<()> {
        (self.deliver)(index, decomposition)?;
        self.done += 1;
        self.cancelled |= self.tell(index, true);
        Ok(())
    }

    /// Starts layers from this thread as memory comes free, so that no worker ever waits.
    #[cfg(feature = "rayon")]
    fn run_together<C>(&mut self, method: &C, jobs: &[(usize, &Job<'_, T>)], limit: usize) -> Result<()>
    where
        C: LowRankCompressor<T> + Sync + ?Sized,
    {
        let threads = rayon::current_num_threads();
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut outcome = Ok(());
        rayon::in_place_scope(|scope| {
            let mut waiting = jobs.iter().copied().peekable();
            let (mut taken, mut running) = (0_usize, 0_usize);
            loop {
                while let Some(&(index, job)) = waiting.peek()
                    && outcome.is_ok()
                    && running < threads
                    && job.memory() <= limit - taken
                {
                    if !self.begin(index) {
                        break;
                    }
                    waiting.next();
                    (taken, running) = (taken + job.memory(), running + 1);
                    let outcome = Outcome { sender: sender.clone(), index, memory: job.memory(), result: None };
                    scope.spawn(move |_| {
                        let mut outcome = outcome;
                        outcome.result = Some(job.run(method));
                    });
                }
                if running == 0 {
                    break;
                }
                let Ok((index, memory, result)) = receiver.recv() else { break };
                running -= 1;
                // No result: the method panicked, and the scope passes that on.
                let delivered = match result {
                    Some(result) => result.and_then(|decomposition| self.finish(index, decomposition)),
                    None => {
                        self.cancelled = true;
                        Ok(())
                    }
                };
                taken -= memory;
                if outcome.is_ok() {
                    outcome = delivered;
                }
            }
        });
        outcome
    }
}
