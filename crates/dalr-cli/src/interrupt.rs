//! SIGINT (Ctrl-C): the first one ends the program at the next safe point, the second one at once.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Listens for SIGINT from here on. Other signals end the program like a kill, which loses no
/// finished layer.
pub fn listen() -> Result<()> {
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            // Files only appear by renaming, so that there is no half-written file under a final
            // name.
            std::process::exit(130);
        }
        eprintln!("\ninterrupted: stopping after the current layer (press Ctrl-C again to stop at once)");
    })
    .map_err(|error| Error::Refused(format!("cannot listen for SIGINT: {error}")))
}

/// Returns an error once the program was interrupted. Called wherever the program may stop.
pub fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}
