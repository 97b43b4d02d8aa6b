//! The paper's joint compression of several layers, step by step (§5.3, Table 10).

use std::collections::BTreeMap;

use super::allocator::names;
use super::candidates::{Candidate, Limits, candidates};
use super::observer::{Event, Observer, Stage};
use super::plan::Choice;
use super::probes::evaluated;
use super::profile::LayerProfile;
use crate::{Error, Result};

/// By how much each step compresses a layer further. For an example see [`JointSearch`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Step {
    /// By this many ranks.
    Ranks(usize),
    /// By this share of the rank it has, in (0, 1), and at least by one rank.
    Share(f64),
}

/// Compresses layers step by step for as long as the network stays good enough: the paper's search.
///
/// From the network as it was, each step tries every layer a little more compressed than it is, evaluates each of these networks, and keeps
/// the best; of equals the one with the fewest parameters. It stops when every one of them is worse than the original by more than `max_drop`. A layer's
/// first step takes it to the largest rank that saves parameters.
///
/// That takes an evaluation for every layer in every step, and needs to know nothing but what the evaluations tell: for a few layers, or patience.
/// [`Probes`](super::Probes) need one for each layer in all.
///
/// ```
/// use dalr::network::{Choice, JointSearch, LayerProfile, SearchPath, SearchState, SearchStep, Step, Stop};
/// use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor};
/// use faer::Mat;
///
/// # fn main() -> dalr::Result<()> {
/// # let mut stats = ActivationStats::new(20);
/// # stats.update(Mat::from_fn(50, 20, |i, j| ((i * 11 + j * 7) % 13) as f64).as_ref())?;
/// # let mut profiles = Vec::new();
/// # for (name, m) in [("fc6", 20), ("fc7", 20)] {
/// #     let layer = Linear::new(Mat::from_fn(m, 20, |i, j| ((i * 5 + j * j * 3) % 17) as f64), None)?;
/// #     profiles.push(LayerProfile::new(name, &Dalr::new().decompose(&layer, &stats, 20)?));
/// # }
/// # fn accuracy_of(choices: &[Choice]) -> std::io::Result<f64> {
/// #     let lost = |choice: &Choice| if let Choice::Rank(rank) = choice { 10 - rank } else { 0 };
/// #     Ok(0.9 - 0.002 * choices.iter().map(lost).sum::<usize>() as f64)
/// # }
/// let mut evaluations = SearchState::new(); // kept, whatever happens
/// let search = JointSearch::new(0.01).with_step(Step::Ranks(2));
/// let path: SearchPath = search.run(&profiles, &mut evaluations, accuracy_of, &mut ())?;
/// for step in path.steps() as &[SearchStep] {
///     println!("{} to {:?}: {} with {} parameters", step.layer(), step.choice(), step.accuracy(), step.parameters());
/// }
/// assert!(path.accuracy() >= path.original() - 0.01);
/// assert_eq!((path.stop(), path.choices().len()), (Stop::Drop, 2));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct JointSearch {
    max_drop: f64,
    step: Step,
    limits: Limits,
}

impl JointSearch {
    /// A search that may lose this much accuracy, in the units in which it is evaluated: 0.01 for the paper's 1 % of an accuracy in [0, 1]. Steps of a
    /// tenth of the rank.
    ///
    /// For an example see [`JointSearch`].
    pub fn new(max_drop: f64) -> Self {
        Self { max_drop, step: Step::Share(0.1), limits: Limits::NONE }
    }

    /// Sets how large the steps are. For an example see [`JointSearch`].
    #[must_use]
    pub fn with_step(mut self, step: Step) -> Self {
        self.step = step;
        self
    }

    /// Makes every rank a multiple of this number, 1 by default.
    ///
    /// ```
    /// let search = dalr::network::JointSearch::new(0.01).with_rank_multiple(8).with_min_rank(16);
    /// # let _ = search;
    /// ```
    #[must_use]
    pub fn with_rank_multiple(mut self, multiple: usize) -> Self {
        self.limits.multiple = multiple;
        self
    }

    /// Sets the smallest rank, 1 by default. For an example see [`with_rank_multiple`](Self::with_rank_multiple).
    #[must_use]
    pub fn with_min_rank(mut self, rank: usize) -> Self {
        self.limits.min_rank = rank;
        self
    }

    /// Searches. `evaluate` returns the accuracy, or whatever else is the better the larger, of the network with these choices, one per layer.
    ///
    /// # Errors
    ///
    /// No layers, two of the same name, a state of other layers, parameters out of range, an accuracy that is not finite; what `evaluate` fails
    /// with, as the source of an [`Error::Callback`]. All evaluations are kept in `state`, and another run with it repeats none.
    ///
    /// For an example see [`JointSearch`].
    pub fn run<E>(
        &self,
        layers: &[LayerProfile],
        state: &mut SearchState,
        mut evaluate: impl FnMut(&[Choice]) -> Result<f64, E>,
        observer: &mut dyn Observer,
    ) -> Result<SearchPath>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.validate(layers)?;
        state.belong_to(layers)?;
        let all: Vec<Vec<Candidate>> = layers.iter().map(|layer| candidates(layer, self.limits)).collect();
        let mut now: Vec<Candidate> = layers.iter().map(Candidate::dense).collect();
        let mut value = |layer: &str, picks: &[Candidate], observer: &mut dyn Observer| {
            let choices: Vec<Choice> = picks.iter().map(choice).collect();
            if let Some(&value) = state.values.get(&choices) {
                return Result::Ok(Some(value));
            }
            let done = state.values.len();
            let mut event = Event { stage: Stage::Search, layer, finished: false, done, total: None, value: None };
            if observer.observe(&event).is_break() {
                return Ok(None);
            }
            let subject = describe(layers, &choices);
            let value = evaluated(&subject, evaluate(&choices))?;
            state.values.insert(choices, value);
            (event.finished, event.done, event.value) = (true, done + 1, Some(value));
            Ok(observer.observe(&event).is_continue().then_some(value))
        };
        let Some(original) = value("", &now, observer)? else {
            return Ok(SearchPath { original: None, steps: Vec::new(), stop: Stop::Cancelled, choices: Vec::new() });
        };
        // A drop of just what is allowed must not be lost to rounding.
        let least = original - self.max_drop - 4.0 * f64::EPSILON * (original.abs() + self.max_drop);
        let mut steps = Vec::new();
        let stop = 'search: loop {
            let mut best: Option<(f64, f64, usize, Candidate)> = None;
            let mut options = 0;
            for (index, (layer, candidates)) in layers.iter().zip(&all).enumerate() {
                let Some(&current) = now.get(index) else { continue };
                let Some(next) = self.next(candidates, current) else { continue };
                options += 1;
                let mut picks = now.clone();
                picks.iter_mut().skip(index).take(1).for_each(|pick| *pick = next);
                let Some(accuracy) = value(layer.name(), &picks, observer)? else { break 'search Stop::Cancelled };
                let parameters = picks.iter().map(|pick| pick.parameters).sum::<f64>();
                let better = |&(so_far, cost, ..): &(f64, f64, usize, Candidate)| {
                    accuracy > so_far || (accuracy == so_far && parameters < cost)
                };
                if accuracy >= least && best.as_ref().is_none_or(better) {
                    best = Some((accuracy, parameters, index, next));
                }
            }
            let Some((accuracy, parameters, index, next)) = best else {
                break if options > 0 { Stop::Drop } else { Stop::Exhausted };
            };
            now.iter_mut().skip(index).take(1).for_each(|pick| *pick = next);
            let layer = layers.get(index).map_or("", LayerProfile::name).into();
            steps.push(SearchStep { layer, choice: choice(&next), accuracy, parameters: parameters as u64 });
        };
        Ok(SearchPath { original: Some(original), steps, stop, choices: now.iter().map(choice).collect() })
    }

    fn validate(&self, layers: &[LayerProfile]) -> Result<()> {
        let refuse = |parameter, expected: &str, found| Err(Error::out_of_range(parameter, expected.into(), found));
        match self.step {
            _ if !(self.max_drop >= 0.0 && self.max_drop.is_finite()) => {
                refuse("the largest drop", "finite and at least 0", self.max_drop)
            }
            Step::Ranks(0) => refuse("the step", "of at least 1 rank", 0.0),
            Step::Share(share) if !(share > 0.0 && share < 1.0) => refuse("the step", "in (0, 1)", share),
            _ => Ok(()),
        }?;
        self.limits.validate()?;
        if layers.is_empty() {
            return Err(Error::empty("the layers"));
        }
        names(layers).map(drop)
    }

    /// What a layer becomes a step further on: the largest rank at least a step below the one it has.
    fn next(&self, candidates: &[Candidate], current: Candidate) -> Option<Candidate> {
        let largest = match (current.rank, self.step) {
            (0, _) => usize::MAX,
            (rank, Step::Ranks(step)) => rank.saturating_sub(step),
            // At least one rank less: the share is below 1.
            (rank, Step::Share(share)) => ((rank as f64 * (1.0 - share)).floor() as usize).min(rank - 1),
        };
        let smaller = candidates.iter().rev().find(|next| next.rank > 0 && next.rank <= largest);
        // The last step may be a short one.
        let smallest =
            candidates.first().filter(|first| first.rank > 0 && (current.rank == 0 || first.rank < current.rank));
        smaller.or(smallest).copied()
    }
}

fn choice(candidate: &Candidate) -> Choice {
    match candidate.rank {
        0 => Choice::Dense,
        rank => Choice::Rank(rank),
    }
}

fn describe(layers: &[LayerProfile], choices: &[Choice]) -> String {
    let compressed = layers.iter().zip(choices).filter_map(|(layer, choice)| match choice {
        Choice::Rank(rank) => Some(format!("`{}` at rank {rank}", layer.name())),
        _ => None,
    });
    let compressed: Vec<String> = compressed.collect();
    if compressed.is_empty() { "the network as it was".into() } else { compressed.join(", ") }
}

/// Every evaluation of a search, so that none is made twice; with the `serde` feature it survives the process.
///
/// ```
/// let state = dalr::network::SearchState::new();
/// assert!(state.is_empty() && state.len() == 0);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(from = "StoredState", into = "StoredState"))]
pub struct SearchState {
    /// Names and shapes.
    layers: Vec<(String, usize, usize)>,
    values: BTreeMap<Vec<Choice>, f64>,
}

/// In JSON, keys are text: a list instead.
#[cfg(feature = "serde")]
#[derive(serde::Serialize, serde::Deserialize)]
struct StoredState {
    layers: Vec<(String, usize, usize)>,
    evaluations: Vec<(Vec<Choice>, f64)>,
}

#[cfg(feature = "serde")]
impl From<StoredState> for SearchState {
    fn from(stored: StoredState) -> Self {
        Self { layers: stored.layers, values: stored.evaluations.into_iter().collect() }
    }
}

#[cfg(feature = "serde")]
impl From<SearchState> for StoredState {
    fn from(state: SearchState) -> Self {
        Self { layers: state.layers, evaluations: state.values.into_iter().collect() }
    }
}

impl SearchState {
    /// No evaluations yet. For an example see [`JointSearch`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of evaluations. For an example see [`SearchState`].
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether nothing was evaluated yet. For an example see [`SearchState`].
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Takes the layers on, or refuses others than it has.
    fn belong_to(&mut self, layers: &[LayerProfile]) -> Result<()> {
        let describe = |layer: &LayerProfile| (layer.name().to_owned(), layer.out_features(), layer.in_features());
        let layers: Vec<_> = layers.iter().map(describe).collect();
        if self.values.is_empty() {
            self.layers.clone_from(&layers);
        }
        if self.layers != layers {
            let other =
                self.layers.iter().chain(&layers).find(|layer| !layers.contains(layer) || !self.layers.contains(layer));
            let found = other
                .map_or("another order".into(), |(name, m, n)| format!("`{name}` of {m} × {n} in one of them only"));
            let expected = "evaluations of the same layers, in the same order".into();
            return Err(Error::layers(expected, found));
        }
        Ok(())
    }
}

/// Why a search ended. For an example see [`JointSearch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Stop {
    /// Every further step loses more than is allowed.
    Drop,
    /// There is no further step.
    Exhausted,
    /// The observer asked to stop.
    Cancelled,
}

/// The way that a search went. For an example see [`JointSearch`].
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SearchPath {
    original: Option<f64>,
    steps: Vec<SearchStep>,
    stop: Stop,
    choices: Vec<Choice>,
}

/// A step that was kept. For an example see [`JointSearch`].
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SearchStep {
    layer: String,
    choice: Choice,
    accuracy: f64,
    parameters: u64,
}

impl SearchPath {
    /// Accuracy of the network as it was; NaN if the search was stopped before that was known. For an example see [`JointSearch`].
    pub fn original(&self) -> f64 {
        self.original.unwrap_or(f64::NAN)
    }

    /// Accuracy at the end of the path. For an example see [`JointSearch`].
    pub fn accuracy(&self) -> f64 {
        self.steps.last().map_or(self.original(), |step| step.accuracy)
    }

    /// The steps, in order. For an example see [`JointSearch`].
    pub fn steps(&self) -> &[SearchStep] {
        &self.steps
    }

    /// Why it ended. For an example see [`JointSearch`].
    pub fn stop(&self) -> Stop {
        self.stop
    }

    /// What becomes of each layer at the end of the path; empty if the search was stopped before its first evaluation. For an example see
    /// [`JointSearch`].
    pub fn choices(&self) -> &[Choice] {
        &self.choices
    }
}

impl SearchStep {
    /// The layer compressed further. For an example see [`JointSearch`].
    pub fn layer(&self) -> &str {
        &self.layer
    }

    /// What it was compressed to. For an example see [`JointSearch`].
    pub fn choice(&self) -> Choice {
        self.choice
    }

    /// Accuracy of the network after it. For an example see [`JointSearch`].
    pub fn accuracy(&self) -> f64 {
        self.accuracy
    }

    /// Parameters of all layers after it. For an example see [`JointSearch`].
    pub fn parameters(&self) -> u64 {
        self.parameters
    }
}
