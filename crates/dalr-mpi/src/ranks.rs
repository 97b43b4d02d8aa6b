//! The ranks of a job: sums over all of them, messages, and agreements to go on or to stop.

use core::cell::Cell;
use core::hash::Hasher;
use std::hash::DefaultHasher;

use mpi::collective::SystemOperation;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Destination, Root, Source};

use crate::error::{Failure, Result};

/// Numbers that are summed at a time, so that the second buffer of the sum stays small.
const PIECE: usize = 1 << 20;

/// All ranks, as one of them sees them.
pub struct Ranks {
    world: SimpleCommunicator,
    rank: usize,
    size: usize,
    sent: Cell<u64>,
    reduced: Cell<u64>,
}

impl Ranks {
    /// Creates the ranks of a communicator, which nothing else may use meanwhile.
    pub fn new(world: SimpleCommunicator) -> Self {
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        Self { world, rank, size, sent: Cell::new(0), reduced: Cell::new(0) }
    }

    /// This rank, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Returns the number of ranks.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Returns the bytes that this rank has sent to others, and bytes that it has contributed to
    /// sums over all ranks.
    pub fn traffic(&self) -> (u64, u64) {
        (self.sent.get(), self.reduced.get())
    }

    /// Replaces arrays of the same length by their sum over all ranks.
    pub fn sum(&self, values: &mut [f64]) {
        let mut sums = vec![0.0; values.len().min(PIECE)];
        for piece in values.chunks_mut(PIECE) {
            let sums = &mut sums[..piece.len()];
            self.world.all_reduce_into(&*piece, sums, SystemOperation::sum());
            piece.copy_from_slice(sums);
        }
        self.reduced.set(self.reduced.get() + size_of_val(values) as u64);
    }

    /// Returns the largest of the ranks' values.
    pub fn max(&self, value: u64) -> u64 {
        let mut largest = 0;
        self.world.all_reduce_into(&value, &mut largest, SystemOperation::max());
        largest
    }

    /// Returns every rank's value, in their order.
    pub fn gather(&self, value: u64) -> Vec<u64> {
        let mut values = vec![0; self.size];
        self.world.all_gather_into(&value, &mut values[..]);
        values
    }

    /// Sends bytes to another rank, which must [`receive`](Self::receive) as many.
    pub fn send(&self, bytes: &[u8], to: usize) {
        self.sent.set(self.sent.get() + bytes.len() as u64);
        self.world.process_at_rank(to as i32).send(bytes);
    }

    /// Receives bytes from another rank.
    pub fn receive(&self, bytes: &mut [u8], from: usize) {
        self.world.process_at_rank(from as i32).receive_into(bytes);
    }

    /// Copies one rank's bytes to all.
    pub fn broadcast(&self, bytes: &mut Vec<u8>, from: usize) {
        let root = self.world.process_at_rank(from as i32);
        let mut length = bytes.len() as u64;
        root.broadcast_into(&mut length);
        bytes.resize(length as usize, 0);
        for piece in bytes.chunks_mut(PIECE) {
            root.broadcast_into(piece);
        }
    }

    /// Returns the value if no rank failed, and the failure of the first rank that failed
    /// otherwise.
    ///
    /// All ranks must call this at the same point of the program, which `step` names, and before
    /// anything that waits for other ranks. A failure that was agreed on passes through: all ranks
    /// have it.
    pub fn agree<T>(&self, step: &str, result: Result<T>) -> Result<T> {
        self.agree_on(step, 0, result)
    }

    /// As [`agree`](Self::agree); also fails if the ranks are not at the same step, or have
    /// different `state`s. The sums that follow would otherwise block, or combine unrelated
    /// numbers.
    pub fn agree_on<T>(&self, step: &str, state: u64, result: Result<T>) -> Result<T> {
        if let Err(Failure::Agreed { .. }) = result {
            return result;
        }
        let mut hasher = DefaultHasher::new();
        hasher.write(step.as_bytes());
        hasher.write_u64(state);
        let place = hasher.finish();
        let failing = if result.is_err() { self.rank } else { self.size } as u64;
        // The minimum and, through the complement, the maximum. They are equal if all places are.
        let mut least = [0; 3];
        self.world.all_reduce_into(&[failing, place, !place], &mut least, SystemOperation::min());
        let [first, low, high] = least;
        if first < self.size as u64 {
            let first = first as usize;
            let mut message = match &result {
                Err(failure) if self.rank == first => failure.to_string().into_bytes(),
                _ => Vec::new(),
            };
            self.broadcast(&mut message, first);
            return Err(Failure::Agreed { rank: first, message: String::from_utf8_lossy(&message).into_owned() });
        }
        if low != !high {
            let message = format!(
                "expected the same numbers on all ranks, got different ones at `{step}`: \
                 use processors of the same kind on all machines"
            );
            return Err(Failure::Agreed { rank: self.rank, message });
        }
        result
    }

    /// Fails unless `own` is the same on this rank as on rank 0. `what` names it in the message.
    pub fn same(&self, what: &str, own: &str) -> Result<()> {
        let mut first = own.as_bytes().to_vec();
        self.broadcast(&mut first, 0);
        let first = String::from_utf8_lossy(&first);
        let result = if first == own {
            Ok(())
        } else {
            Err(Failure::Refused(format!("expected the {what} of rank 0, `{first}`, got `{own}`")))
        };
        self.agree(what, result)
    }

    /// Ends the job at once on all ranks, for failures that cannot be agreed on.
    pub fn abort(&self) -> ! {
        self.world.abort(3)
    }
}
