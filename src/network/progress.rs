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
