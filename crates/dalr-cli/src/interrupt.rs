//! SIGINT (Ctrl-C): the first one stops the program at the next safe point, the second one at once.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Starts to listen for SIGINT. Other signals kill the program, which loses no finished layer.
pub fn listen() -> Result<()> {
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            // Files get their final name when they are complete, so no partial file remains under
            // it.
            std::process::exit(130);
        }
        eprintln!("\ninterrupted: stopping after the current layer (press Ctrl-C again to stop at once)");
    })
    .map_err(|error| Error::Refused(format!("cannot listen for SIGINT: {error}")))
}

/// Returns an error if the program was interrupted. Call it at every point at which the program may
/// stop.
pub fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}
