//! Many layers at once: the same as one after the other, within memory, in any order of failing and stopping.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Problem, Recipe, Spectrum};
use dalr::network::{Completion, Decomposer, Event, Job, Stage};
use dalr::{ActivationStats, Dalr, Decomposition, Error, Linear, LowRankCompressor, TruncatedSvd};

fn problems() -> Vec<Problem> {
    let shapes = [(12, 20), (40, 16), (9, 9), (30, 31), (25, 8), (16, 16), (22, 13), (7, 40)];
    let recipe = |(seed, (out_features, in_features))| Recipe {
        seed,
        out_features,
        in_features,
        samples: 60,
        weight: Spectrum::Geometric,
        data: Spectrum::Arithmetic,
        mean: 1.0,
        scale: 1.0,
    };
    (0..).zip(shapes).map(|at| recipe(at).cook()).collect()
}

fn at_hand(problems: &[Problem]) -> Vec<(Linear<f64>, ActivationStats<f64>)> {
    problems.iter().map(|problem| (problem.layer(), problem.stats())).collect()
}

fn jobs(layers: &[(Linear<f64>, ActivationStats<f64>)]) -> Vec<Job<'_, f64>> {
    layers.iter().enumerate().map(|(index, (layer, stats))| Job::new(format!("layer{index}"), layer, stats)).collect()
}

#[test]
fn every_layer_comes_out_once_as_it_would_alone() {
    let layers = at_hand(&problems());
    let most = jobs(&layers).iter().map(Job::memory).max().unwrap();
    // Room for all, for some, for one at a time.
    for limit in [usize::MAX, 3 * most, most] {
        let mut found: Vec<Option<Decomposition<f64>>> = vec![None; layers.len()];
        let deliver = |index: usize, decomposition| {
            assert!(found[index].replace(decomposition).is_none(), "{index} twice");
            Ok(())
        };
        let mut begun = 0;
        let mut finished = Vec::new();
        let mut observer = |event: &Event<'_>| {
            assert_eq!((event.stage(), event.total()), (Stage::Decomposition, Some(8)));
            begun += usize::from(!event.is_finished());
            finished.extend(event.is_finished().then_some(event.done()));
            ControlFlow::Continue(())
        };
        let decomposer = Decomposer::new().with_memory_limit(limit);
        let done = decomposer.decompose(&Dalr::new(), &jobs(&layers), deliver, &mut observer);
        assert_eq!(done, Ok(Completion::Finished));
        assert_eq!((begun, finished), (8, (1..=8).collect()));
        for ((layer, stats), found) in layers.iter().zip(found) {
            let (m, n) = (layer.out_features(), layer.in_features());
            // The largest rank that saves anything.
            let rank = (1..).take_while(|rank| rank * (m + n) < m * n).last().unwrap_or(1);
            let alone = Dalr::new().with_threads(1).decompose(layer, stats, rank).unwrap();
            let found = found.unwrap();
            assert_eq!(found.energies(), alone.energies());
            assert_eq!(found.truncate(rank).unwrap().layer(), alone.truncate(rank).unwrap().layer());
        }
    }
}

/// Counts how many are under way at once, and how many in a worker, where kernels are sequential.
struct Busy<'a> {
    now: &'a AtomicUsize,
    most: &'a AtomicUsize,
    in_workers: &'a AtomicUsize,
}

impl LowRankCompressor<f64> for Busy<'_> {
    fn decompose(
        &self,
        layer: &Linear<f64>,
        stats: &ActivationStats<f64>,
        max_rank: usize,
    ) -> dalr::Result<Decomposition<f64>> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        self.in_workers.fetch_add(usize::from(rayon::current_thread_index().is_some()), Ordering::SeqCst);
        std::thread::sleep(std::time::Duration::from_millis(30));
        let result = TruncatedSvd::new().decompose(layer, stats, max_rank);
        self.now.fetch_sub(1, Ordering::SeqCst);
        result
    }
}

/// The most that were under way at once, of eight equal layers with memory for `room` of them, and how many of the eight in a worker.
fn most_at_once(room: usize) -> (usize, usize) {
    let problem = problems().swap_remove(0);
    let layers: Vec<_> = (0..8).map(|_| (problem.layer::<f64>(), problem.stats())).collect();
    let jobs = jobs(&layers);
    let (now, most, in_workers) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let limit = room * jobs[0].memory();
    let decomposer = Decomposer::new().with_memory_limit(limit);
    let busy = Busy { now: &now, most: &most, in_workers: &in_workers };
    let done = decomposer.decompose(&busy, &jobs, |_, _| Ok(()), &mut ());
    assert_eq!(done, Ok(Completion::Finished));
    (most.load(Ordering::SeqCst), in_workers.load(Ordering::SeqCst))
}

#[test]
fn as_many_at_once_as_there_are_threads_and_is_memory() {
    let threads = if cfg!(feature = "rayon") { rayon::current_num_threads() } else { 1 };
    // One at a time leaves the threads to the kernels: not in a worker.
    assert_eq!(most_at_once(1), if threads > 1 { (1, 0) } else { most_at_once(8) });
    assert!(most_at_once(8).0 <= threads);
    if (2..=8).contains(&threads) {
        let (most, in_workers) = most_at_once(8);
        assert!(most > 1 && in_workers == 8, "{most} in parallel on {threads} threads, {in_workers} in workers");
        assert_eq!(most_at_once(threads - 1), (1, 0), "layers in parallel are worth it with all threads busy");
    }
    // Inside a worker all threads have work already; and to wait there for others would be to wait forever.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(pool.install(|| most_at_once(8)).0, 1);
}

#[test]
fn lazy_layers_are_loaded_one_by_one_and_may_share_statistics() {
    let problem = problems().swap_remove(3);
    let stats = Arc::new(problem.stats::<f32>());
    let loads = AtomicUsize::new(0);
    let job = |name: &str| {
        Job::lazy(name, 30, 31, stats.samples(), || {
            loads.fetch_add(1, Ordering::SeqCst);
            Ok((problem.layer::<f32>(), stats.clone()))
        })
    };
    let jobs = [job("query"), job("key").with_max_rank(3)];
    let layer = problem.layer::<f32>();
    assert!(jobs[0].memory() > Job::new("query", &layer, &stats).memory() + 30 * 31 * 4);
    let mut ranks = [0; 2];
    let deliver = |index: usize, decomposition: Decomposition<f32>| {
        ranks[index] = decomposition.max_rank();
        Ok(())
    };
    assert_eq!(Decomposer::new().decompose(&Dalr::new(), &jobs, deliver, &mut ()), Ok(Completion::Finished));
    assert_eq!((ranks, loads.load(Ordering::SeqCst)), ([15, 3], 2));
}

#[test]
fn what_fails_is_named_and_what_is_done_is_handed_over() {
    let problems = problems();
    let layers = at_hand(&problems);
    let empty = ActivationStats::new(20);
    let mut broken = jobs(&layers);
    broken[0] = Job::new("broken", &layers[0].0, &empty);
    let mut done = 0;
    let deliver = |_, _| {
        done += 1;
        Ok(())
    };
    let error = Decomposer::new().decompose(&Dalr::new(), &broken, deliver, &mut ()).unwrap_err();
    let source = Error::NoSamples { operation: "Dalr::decompose" };
    assert_eq!(error, Error::InLayer { layer: "broken".into(), source: Box::new(source) });
    assert!(done < 8);

    // What the caller's function fails with comes back as it is.
    let full = || Error::Overflow { operation: "mine", what: "the disk" };
    let error = Decomposer::new().decompose(&Dalr::new(), &jobs(&layers), |_, _| Err(full()), &mut ());
    assert_eq!(error, Err(full()));

    // Before anything begins:
    let mut twice = jobs(&layers);
    twice.push(Job::new("layer3", &layers[3].0, &layers[3].1));
    let never = |_: usize, _: Decomposition<f64>| -> dalr::Result<()> { unreachable!() };
    let error = Decomposer::new().decompose(&Dalr::new(), &twice, never, &mut ()).unwrap_err();
    assert_eq!(error.to_string(), "Decomposer::decompose: expected layers of different names, got `layer3` twice");
    let small = Decomposer::new().with_memory_limit(1000);
    let Error::InLayer { source, .. } = small.decompose(&Dalr::new(), &jobs(&layers), never, &mut ()).unwrap_err()
    else {
        panic!()
    };
    assert!(matches!(*source, Error::Memory { .. }));
    let wrong = [Job::lazy("wrong", 3, 4, 10, || Ok((problems[0].layer::<f64>(), Arc::new(problems[0].stats()))))];
    let error = Decomposer::new().decompose(&Dalr::new(), &wrong, never, &mut ()).unwrap_err();
    assert!(error.to_string().ends_with("expected a 3 × 4 weight, got a 12 × 20 weight"), "{error}");
    assert_eq!(Decomposer::new().decompose(&Dalr::new(), &[], never, &mut ()), Ok(Completion::Finished));
}

#[test]
fn stopping_leaves_what_is_done() {
    let layers = at_hand(&problems());
    for after in 0..8 {
        let mut done = 0;
        let mut observer = |event: &Event<'_>| {
            if event.done() < after { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let deliver = |_, _| {
            done += 1;
            Ok(())
        };
        let completion = Decomposer::new().decompose(&Dalr::new(), &jobs(&layers), deliver, &mut observer);
        // Those that had begun are finished.
        assert_eq!(completion == Ok(Completion::Finished), done == 8, "after {after}: {completion:?}, {done} done");
        assert!(done >= after && (after > 0 || done == 0), "{done} after {after}");
    }
}

/// Gives up in the worst way.
struct Panics;

impl LowRankCompressor<f64> for Panics {
    fn decompose(&self, _: &Linear<f64>, _: &ActivationStats<f64>, _: usize) -> dalr::Result<Decomposition<f64>> {
        panic!("a method of the caller's own");
    }
}

#[test]
fn a_method_that_panics_does_not_leave_others_waiting() {
    let layers = at_hand(&problems());
    let jobs = jobs(&layers);
    let run = || Decomposer::new().decompose(&Panics, &jobs, |_, _| Ok(()), &mut ());
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
}
