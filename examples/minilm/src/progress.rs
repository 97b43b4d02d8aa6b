//! Bars for what takes a while; nothing is drawn where no one looks.

use std::ops::ControlFlow;

use dalr::network::Event;
use indicatif::{ProgressBar, ProgressStyle};

/// A bar of so many steps.
pub fn bar(what: &'static str, steps: usize) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64).with_message(what);
    match ProgressStyle::with_template("{msg:12} {bar:40} {pos}/{len} {eta}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Moves a bar along with a long operation of the library.
pub fn follow(bar: &ProgressBar) -> impl FnMut(&Event<'_>) -> ControlFlow<()> + '_ {
    |event| {
        if let Some(total) = event.total() {
            bar.set_length(total as u64);
        }
        bar.set_position(event.done() as u64);
        ControlFlow::Continue(())
    }
}
