//! Progress bars. Nothing is drawn unless the output is a terminal.

use std::ops::ControlFlow;

use dalr::network::Progress;
use indicatif::{ProgressBar, ProgressStyle};

/// Returns a bar of this many steps.
pub fn bar(title: &'static str, steps: usize) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64).with_message(title);
    match ProgressStyle::with_template("{msg:12} {bar:40} {pos}/{len} {eta}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Returns a callback that moves a bar along with a long operation of the library.
pub fn follow(bar: &ProgressBar) -> impl FnMut(&Progress) -> ControlFlow<()> + '_ {
    |progress| {
        if let Some(total) = progress.total {
            bar.set_length(total as u64);
        }
        bar.set_position(progress.done as u64);
        ControlFlow::Continue(())
    }
}
