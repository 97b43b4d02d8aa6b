//! Merges the statistics of all ranks along a binomial tree.

use std::io::{Read, Write};

use dalr::covariance::PairedStats;
use dalr::{ActivationStats, Scalar};

use crate::error::{Failure, Result};
use crate::ranks::Ranks;
use crate::stream::{Receiver, Sender};

/// Statistics that ranks send to each other and merge.
pub trait Statistics: Sized {
    /// The bytes that [`write`](Self::write) writes.
    fn length(&self) -> dalr::Result<u64>;
    /// Writes the statistics to a stream.
    fn write(&self, target: impl Write) -> dalr::Result<()>;
    /// Reads statistics of this length from a stream.
    fn read(length: u64, source: impl Read) -> dalr::Result<Self>;
    /// Adds the statistics of other samples.
    fn merge(&mut self, other: &Self) -> dalr::Result<()>;
}

macro_rules! statistics {
    ($name:ident) => {
        impl<T: Scalar> Statistics for $name<T> {
            fn length(&self) -> dalr::Result<u64> {
                self.safetensors_length()
            }

            fn write(&self, target: impl Write) -> dalr::Result<()> {
                self.write_safetensors(target)
            }

            fn read(length: u64, source: impl Read) -> dalr::Result<Self> {
                Self::read_safetensors(length, source)
            }

            fn merge(&mut self, other: &Self) -> dalr::Result<()> {
                self.merge(other)
            }
        }
    };
}

statistics!(ActivationStats);
statistics!(PairedStats);

/// Merges every rank's statistics into those of `root`, where they are returned.
///
/// In each of `⌈log₂ ranks⌉` rounds half of the remaining ranks send their statistics to another
/// one. The bytes go straight from the scatter of the sender into a second scatter of the receiver,
/// some megabytes at a time. So no rank holds more than two scatters. Samples arrive in the order
/// of the ranks, from `root` on, and stay in sample form as long as in one process. An error on one
/// rank is returned on all ranks.
pub fn reduce<S: Statistics>(ranks: &Ranks, stats: S, root: usize) -> Result<Option<S>> {
    let size = ranks.size();
    let place = (ranks.rank() + size - root) % size;
    let rank_at = |place: usize| (place + root) % size;
    let mut own = Some(stats);
    let mut step = 1;
    while step < size {
        let result = if place % (2 * step) == step {
            own.take().map_or(Ok(()), |stats| send(ranks, &stats, rank_at(place - step)))
        } else if place.is_multiple_of(2 * step) && place + step < size {
            receive::<S>(ranks, rank_at(place + step)).and_then(|others| match (&mut own, others) {
                (Some(own), Some(others)) => Ok(own.merge(&others)?),
                _ => Ok(()),
            })
        } else {
            Ok(())
        };
        ranks.agree("merging statistics", result)?;
        step *= 2;
    }
    Ok(own)
}

/// Sends statistics to a rank that calls [`receive`].
fn send<S: Statistics>(ranks: &Ranks, stats: &S, to: usize) -> Result<()> {
    let length = stats.length();
    // Nothing follows a length of zero.
    ranks.send(&length.clone().unwrap_or(0).to_le_bytes(), to);
    length?;
    let mut stream = Sender::new(ranks, to);
    stats.write(&mut stream)?;
    stream.flush().map_err(|error| Failure::Refused(format!("sending statistics to rank {to}: {error}")))
}

/// Receives statistics from a rank; `None` if the sender failed, which reports the error itself.
fn receive<S: Statistics>(ranks: &Ranks, from: usize) -> Result<Option<S>> {
    let mut length = [0; 8];
    ranks.receive(&mut length, from);
    let length = u64::from_le_bytes(length);
    if length == 0 {
        return Ok(None);
    }
    let mut stream = Receiver::new(ranks, from, length);
    let stats = S::read(length, &mut stream);
    stream.drain();
    Ok(Some(stats?))
}
