//! The ranks of a job: how they add up numbers, and how they stop together.

use core::cell::Cell;
use core::hash::Hasher;
use std::hash::DefaultHasher;

use mpi::collective::SystemOperation;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Destination, Root, Source};

use crate::error::{Failure, Result};

/// Numbers that are added up at a time: the sum's second buffer stays small.
const PIECE: usize = 1 << 20;

/// All ranks, seen from one of them.
pub struct Ranks {
    world: SimpleCommunicator,
    rank: usize,
    size: usize,
    sent: Cell<u64>,
    reduced: Cell<u64>,
}

impl Ranks {
    /// The ranks of a communicator, which nothing else may use at the same time.
    pub fn new(world: SimpleCommunicator) -> Self {
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        Self { world, rank, size, sent: Cell::new(0), reduced: Cell::new(0) }
    }

    /// This rank, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Bytes that this rank sent to another one, and bytes that it gave into sums over all ranks, so far.
    pub fn traffic(&self) -> (u64, u64) {
        (self.sent.get(), self.reduced.get())
    }

    /// Adds up arrays of the same length over all ranks; every rank has the sum then.
    pub fn sum(&self, values: &mut [f64]) {
        let mut sums = vec![0.0; values.len().min(PIECE)];
        for piece in values.chunks_mut(PIECE) {
            let sums = &mut sums[..piece.len()];
            self.world.all_reduce_into(&*piece, sums, SystemOperation::sum());
            piece.copy_from_slice(sums);
        }
        self.reduced.set(self.reduced.get() + size_of_val(values) as u64);
    }

    /// The largest of the ranks' values.
    pub fn max(&self, value: u64) -> u64 {
        let mut largest = 0;
        self.world.all_reduce_into(&value, &mut largest, SystemOperation::max());
        largest
    }

    /// Every rank's value, in their order.
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

    /// One rank's bytes, for all.
    pub fn broadcast(&self, bytes: &mut Vec<u8>, from: usize) {
        let root = self.world.process_at_rank(from as i32);
        let mut length = bytes.len() as u64;
        root.broadcast_into(&mut length);
        bytes.resize(length as usize, 0);
        for piece in bytes.chunks_mut(PIECE) {
            root.broadcast_into(piece);
        }
    }

    /// The value, if no rank failed; else, on all of them, what the first that failed said.
    ///
    /// Every rank must come here at the same point of the program, which `step` names: before whatever waits for the other ranks. A
    /// failure that has been agreed upon passes through, since all ranks have it.
    pub fn agree<T>(&self, step: &str, result: Result<T>) -> Result<T> {
        self.agree_on(step, 0, result)
    }

    /// As [`agree`](Self::agree), and a failure if the ranks are not at the same step or have come to different `states`. Both sides of a
    /// sum would then wait for ever, or mix up numbers that do not belong together.
    pub fn agree_on<T>(&self, step: &str, state: u64, result: Result<T>) -> Result<T> {
        if let Err(Failure::Agreed { .. }) = result {
            return result;
        }
        let mut hasher = DefaultHasher::new();
        hasher.write(step.as_bytes());
        hasher.write_u64(state);
        let place = hasher.finish();
        let failing = if result.is_err() { self.rank } else { self.size } as u64;
        // The least of all and, by its complement, the largest: equal where all are.
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
                "expected all ranks to have come to the same numbers at the same step, got different ones at `{step}`: \
                 is every machine's processor of the same kind?"
            );
            return Err(Failure::Agreed { rank: self.rank, message });
        }
        result
    }

    /// Refuses ranks that were started with something else than the first: `what` says what it is.
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

    /// Ends the job at once, on all ranks: for what cannot be agreed upon any more.
    pub fn abort(&self) -> ! {
        self.world.abort(3)
    }
}
