//! Decomposes many layers, several at a time, within a memory limit.

use core::cmp::Reverse;
use core::ops::ControlFlow;

use super::progress::Progress;
use crate::{Error, Result};

/// One of many independent computations.
pub(super) struct Task<'a, I> {
    pub(super) item: I,
    pub(super) name: &'a str,
    /// Upper estimate of its memory in bytes, its result included.
    pub(super) memory: usize,
}

/// Runs all tasks and delivers each result on the caller's thread, in no particular order.
///
/// Large tasks run one after the other, so that their kernels can use all threads. The rest, of which as many as there are
/// threads fit into memory together, run in parallel with one thread each. After an error, or when
/// `progress` cancels, no further tasks begin, and those under way are delivered.
pub(super) fn for_each<I: Copy + Sync, R: Send>(
    tasks: &[Task<'_, I>],
    limit: usize,
    work: impl Fn(I) -> Result<R> + Sync,
    mut deliver: impl FnMut(I, R) -> Result<()>,
    progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<()> {
    let mut waiting: Vec<&Task<'_, I>> = tasks.iter().collect();
    // The largest first: then no thread waits long at the end, and tasks of the same size run together.
    waiting.sort_by_key(|task| Reverse(task.memory));
    let mut waiting = &waiting[..];
    let total = Some(tasks.len());
    let mut done = 0;
    while !waiting.is_empty() {
        let (batch, rest) = waiting.split_at(batch(waiting, limit));
        let event = |layer: &str, finished, done| Progress {
            layer: Some(layer.to_owned()),
            finished,
            done,
            total,
            value: None,
        };
        let begun = batch.iter().take_while(|task| progress(&event(task.name, false, done)).is_continue()).count();
        let mut outcome = Ok(());
        let mut cancelled = begun < batch.len();
        let begun = batch.split_at(begun).0;
        for (task, result) in begun.iter().zip(run(begun, &work)) {
            let result = result.map_err(|source| Error::InLayer { layer: task.name.into(), source: Box::new(source) });
            match result.and_then(|result| deliver(task.item, result)) {
                Ok(()) => {
                    done += 1;
                    cancelled |= progress(&event(task.name, true, done)).is_break();
                }
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome?;
        if cancelled {
            break;
        }
        waiting = rest;
    }
    Ok(())
}

/// How many tasks run next, in parallel if more than one.
#[cfg(feature = "rayon")]
fn batch<I>(waiting: &[&Task<'_, I>], limit: usize) -> usize {
    let threads = rayon::current_num_threads();
    // Inside a worker, the other threads have work already.
    if threads < 2 || rayon::current_thread_index().is_some() {
        return 1;
    }
    let mut free = limit;
    let fits = |task: &&&Task<'_, I>| {
        let rest = free.checked_sub(task.memory);
        free = rest.unwrap_or(free);
        rest.is_some()
    };
    let count = waiting.iter().take(2 * threads).take_while(fits).count();
    if count < threads { 1 } else { count }
}

#[cfg(feature = "rayon")]
fn run<I: Copy + Sync, R: Send>(tasks: &[&Task<'_, I>], work: &(impl Fn(I) -> Result<R> + Sync)) -> Vec<Result<R>> {
    use rayon::prelude::*;
    match tasks {
        [task] => vec![work(task.item)],
        _ => tasks.par_iter().with_max_len(1).map(|task| work(task.item)).collect(),
    }
}

#[cfg(not(feature = "rayon"))]
fn batch<I>(_waiting: &[&Task<'_, I>], _limit: usize) -> usize {
    1
}

#[cfg(not(feature = "rayon"))]
fn run<I: Copy + Sync, R: Send>(tasks: &[&Task<'_, I>], work: &(impl Fn(I) -> Result<R> + Sync)) -> Vec<Result<R>> {
    tasks.iter().map(|task| work(task.item)).collect()
}
