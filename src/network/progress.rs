//! Progress of long operations, and the way to cancel them.

use core::fmt;
use core::ops::ControlFlow;

/// The beginning or the end of one item of a long operation.
///
/// Long operations call a function `FnMut(&Progress) -> ControlFlow<()>` before and after each
/// item, on the thread that started them. [`ControlFlow::Break`] cancels the operation: it finishes
/// the items under way and returns what it has.
///
/// ```
/// use dalr::network::Progress;
/// use std::ops::ControlFlow;
///
/// let mut stop_after_three = |progress: &Progress| {
///     println!("{progress}");
///     if progress.done < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
/// };
/// let callback: &mut dyn FnMut(&Progress) -> ControlFlow<()> = &mut stop_after_three;
/// # let _ = callback;
/// let ignore: &mut dyn FnMut(&Progress) -> ControlFlow<()> = &mut Progress::ignore;
/// # let _ = ignore;
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Progress {
    /// The layer of the item; `None` for the original network.
    pub layer: Option<String>,
    /// Whether the item is finished; otherwise it is about to begin.
    pub finished: bool,
    /// Number of items finished so far.
    pub done: usize,
    /// Number of all items, if it is known.
    pub total: Option<usize>,
    /// The value that the caller's function returned for the item, once it is finished.
    pub value: Option<f64>,
}

impl Progress {
    /// Ignores progress and never cancels. Pass `&mut Progress::ignore` to an operation.
    pub fn ignore(&self) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// The caller's function, and the number of items so far.
pub(super) struct Tracker<'a> {
    progress: &'a mut dyn FnMut(&Progress) -> ControlFlow<()>,
    total: Option<usize>,
    pub(super) done: usize,
    pub(super) cancelled: bool,
}

impl<'a> Tracker<'a> {
    pub(super) fn new(progress: &'a mut dyn FnMut(&Progress) -> ControlFlow<()>, total: Option<usize>) -> Self {
        Self { progress, total, done: 0, cancelled: false }
    }

    /// Reports that an item is about to begin. Returns false if the caller has cancelled.
    pub(super) fn begin(&mut self, layer: Option<&str>) -> bool {
        if !self.cancelled {
            self.report(layer, false, None);
        }
        !self.cancelled
    }

    /// Reports that an item is finished.
    pub(super) fn finish(&mut self, layer: Option<&str>, value: Option<f64>) {
        self.done += 1;
        self.report(layer, true, value);
    }

    fn report(&mut self, layer: Option<&str>, finished: bool, value: Option<f64>) {
        let layer = layer.map(str::to_owned);
        let event = Progress { layer, finished, done: self.done, total: self.total, value };
        self.cancelled |= (self.progress)(&event).is_break();
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.done)?;
        if let Some(total) = self.total {
            write!(f, "/{total}")?;
        }
        write!(f, ": {}", self.layer.as_deref().unwrap_or("the original network"))?;
        if let Some(value) = self.value {
            write!(f, ", {value}")?;
        }
        write!(f, "{}", if self.finished { "" } else { " …" })
    }
}
