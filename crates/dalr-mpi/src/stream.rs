//! Streams of bytes from one rank to another, without a copy of the data to send.

use std::io::{self, Read, Write};

use crate::ranks::Ranks;

/// Bytes of a message: enough for the network's full speed, and few compared with the statistics.
const MESSAGE: usize = 4 << 20;

/// Sends the bytes that are written to it to another rank's [`Receiver`].
pub struct Sender<'a> {
    ranks: &'a Ranks,
    to: usize,
    waiting: Vec<u8>,
}

impl<'a> Sender<'a> {
    /// Opens a stream to a rank.
    pub fn new(ranks: &'a Ranks, to: usize) -> Self {
        Self { ranks, to, waiting: Vec::with_capacity(MESSAGE) }
    }

    fn pass_on(&mut self) {
        if !self.waiting.is_empty() {
            self.ranks.send(&self.waiting, self.to);
            self.waiting.clear();
        }
    }
}

impl Write for Sender<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(MESSAGE - self.waiting.len());
        self.waiting.extend_from_slice(&bytes[..count]);
        if self.waiting.len() == MESSAGE {
            self.pass_on();
        }
        Ok(count)
    }

    /// Sends the last message. Call this only at the end, because the receiver expects all other
    /// messages to be full.
    fn flush(&mut self) -> io::Result<()> {
        self.pass_on();
        Ok(())
    }
}

/// A stream of known length from another rank's [`Sender`].
pub struct Receiver<'a> {
    ranks: &'a Ranks,
    from: usize,
    left: u64,
    message: Vec<u8>,
    taken: usize,
}

impl<'a> Receiver<'a> {
    /// Opens a stream of `length` bytes from a rank.
    pub fn new(ranks: &'a Ranks, from: usize, length: u64) -> Self {
        Self { ranks, from, left: length, message: Vec::new(), taken: 0 }
    }

    /// Receives and discards the rest, because the sender waits until all bytes are received.
    pub fn drain(&mut self) {
        while self.left > 0 {
            self.next();
        }
    }

    fn next(&mut self) {
        let count = self.left.min(MESSAGE as u64);
        self.message.resize(count as usize, 0);
        self.ranks.receive(&mut self.message, self.from);
        self.left -= count;
        self.taken = 0;
    }
}

impl Read for Receiver<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.message.len() && self.left > 0 {
            self.next();
        }
        let rest = &self.message[self.taken..];
        let count = rest.len().min(bytes.len());
        bytes[..count].copy_from_slice(&rest[..count]);
        self.taken += count;
        Ok(count)
    }
}
