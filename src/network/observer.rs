//! Progress, and the way to stop.

use core::fmt;
use core::ops::ControlFlow;

/// Is told what begins and what is done, and may ask to stop. The library itself prints nothing.
///
/// A closure `FnMut(&Event) -> ControlFlow<()>` is one; so is `()`, which never asks to stop. What is done when it asks is kept and
/// returned: the operation ends with [`Completion::Cancelled`], not with an error.
///
/// ```
/// use std::ops::ControlFlow;
/// use dalr::network::{Event, Observer};
///
/// let mut seen = 0;
/// let mut stop_at_three = |event: &Event<'_>| {
///     seen += 1;
///     println!("{event}");
///     if event.done() < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
/// };
/// let _: &mut dyn Observer = &mut stop_at_three;
/// ```
pub trait Observer {
    /// Called on the thread that started the operation, before and after each item. [`ControlFlow::Break`] stops it.
    fn observe(&mut self, event: &Event<'_>) -> ControlFlow<()>;
}

impl Observer for () {
    fn observe(&mut self, _event: &Event<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

impl<F: FnMut(&Event<'_>) -> ControlFlow<()>> Observer for F {
    fn observe(&mut self, event: &Event<'_>) -> ControlFlow<()> {
        self(event)
    }
}

/// What is going on.
///
/// For an example see [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// [`Decomposer::decompose`](super::Decomposer::decompose).
    Decomposition,
    /// [`Probes::measure`](super::Probes::measure).
    Sensitivity,
    /// [`JointSearch::run`](super::JointSearch::run).
    Search,
}

/// Something began or is done.
///
/// ```
/// use std::ops::ControlFlow;
/// use dalr::network::{Event, Stage};
/// // A progress bar of one's own.
/// let bar = |event: &Event<'_>| {
///     if event.stage() == Stage::Decomposition && event.is_finished() {
///         print!("\r{} of {:?}: {} {:?}", event.done(), event.total(), event.layer(), event.value());
///     }
///     ControlFlow::Continue::<()>(())
/// };
/// # let _ = bar;
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event<'a> {
    pub(super) stage: Stage,
    pub(super) layer: &'a str,
    pub(super) finished: bool,
    pub(super) done: usize,
    pub(super) total: Option<usize>,
    pub(super) value: Option<f64>,
}

impl Event<'_> {
    /// What is going on. For an example see [`Event`].
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// The layer it is about; empty for the network as it was. For an example see [`Event`].
    pub fn layer(&self) -> &str {
        self.layer
    }

    /// Whether the item is done, or about to begin. For an example see [`Event`].
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Items done so far. For an example see [`Event`].
    pub fn done(&self) -> usize {
        self.done
    }

    /// Items in all, where that is known. For an example see [`Event`].
    pub fn total(&self) -> Option<usize> {
        self.total
    }

    /// What the user's function returned for the item. For an example see [`Event`].
    pub fn value(&self) -> Option<f64> {
        self.value
    }
}

impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.stage {
            Stage::Decomposition => write!(f, "decomposition ")?,
            Stage::Sensitivity => write!(f, "sensitivity ")?,
            Stage::Search => write!(f, "search ")?,
        }
        write!(f, "{}", self.done)?;
        if let Some(total) = self.total {
            write!(f, "/{total}")?;
        }
        write!(f, ": {}", if self.layer.is_empty() { "the network as it was" } else { self.layer })?;
        if let Some(value) = self.value {
            write!(f, ", {value}")?;
        }
        write!(f, "{}", if self.finished { "" } else { " …" })
    }
}

/// How an operation that can be stopped came to its end.
///
/// For an example see [`Decomposer`](super::Decomposer).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[must_use]
pub enum Completion {
    /// Everything is done.
    Finished,
    /// The observer asked to stop; what was done until then is kept.
    Cancelled,
}
