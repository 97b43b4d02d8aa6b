//! SIGINT: the first ends the program at the next safe point, the second at once. Either leaves what is finished.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Listens for SIGINT (Ctrl-C) from here on. Other signals end the program as a kill does, which loses nothing either.
pub fn listen() -> Result<()> {
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            // Files appear by renaming alone, so that there is nothing to tidy up that a kill would not leave as well.
            std::process::exit(130);
        }
        eprintln!("\ninterrupted: ending after the layer at hand (once more to end at once)");
    })
    .map_err(|error| Error::Refused(format!("cannot listen for SIGINT: {error}")))
}

/// An error once the program was interrupted: to be asked wherever it may end.
pub fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}
