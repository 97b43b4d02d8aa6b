//! Many layers at once: the results are those of single layers, within the memory limit, also after
//! errors and cancelling.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dalr::network::{Network, Progress};
use dalr::{ActivationStats, Calibration, Dalr, Decomposition, Error, Linear, LowRankCompressor, TruncatedSvd};

use crate::common::{Problem, Recipe, Spectrum};

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

fn network(layers: &[(Linear<f64>, ActivationStats<f64>)]) -> Network<'_, f64> {
    let names = (0..).map(|index| format!("layer{index}"));
    let mut network = Network::new();
    for (name, (layer, stats)) in names.zip(layers) {
        network = network.with_layer(name, layer, stats);
    }
    network
}

fn most_memory(network: &Network<'_, f64>, count: usize) -> usize {
    (0..count).map(|index| network.memory(&format!("layer{index}")).unwrap()).max().unwrap()
}

#[test]
fn every_layer_comes_out_once_as_it_would_alone() {
    let layers = at_hand(&problems());
    let most = most_memory(&network(&layers), 8);
    // The limit allows all layers, some, or one at a time.
    for limit in [usize::MAX, 3 * most, most] {
        let mut found = BTreeMap::new();
        let deliver = |name: &str, decomposition: Decomposition<f64>| {
            assert!(found.insert(name.to_owned(), decomposition).is_none(), "{name} twice");
            Ok(())
        };
        let mut begun = 0;
        let mut finished = Vec::new();
        let mut progress = |progress: &Progress| {
            assert!(progress.layer.is_some() && progress.total == Some(8) && progress.value.is_none());
            begun += usize::from(!progress.finished);
            finished.extend(progress.finished.then_some(progress.done));
            ControlFlow::Continue(())
        };
        network(&layers).with_memory_limit(limit).decompose(&Dalr::new(), deliver, &mut progress).unwrap();
        assert_eq!((begun, finished), (8, (1..=8).collect()));
        for (index, (layer, stats)) in layers.iter().enumerate() {
            let (m, n) = (layer.out_features(), layer.in_features());
            // The largest rank that saves parameters.
            let rank = (1..).take_while(|rank| rank * (m + n) < m * n).last().unwrap_or(1);
            let alone = Dalr::new().with_threads(1).decompose(layer, stats, rank).unwrap();
            let found = &found[&format!("layer{index}")];
            assert_eq!(found.energies(), alone.energies());
            assert_eq!(found.truncate(rank).unwrap().layer(), alone.truncate(rank).unwrap().layer());
        }
    }
}

/// Counts the layers that run at the same time, and those in a rayon worker, whose kernels use one
/// thread.
struct Busy<'a> {
    now: &'a AtomicUsize,
    most: &'a AtomicUsize,
    in_workers: &'a AtomicUsize,
}

impl LowRankCompressor<f64> for Busy<'_> {
    fn solve(
        &self,
        layer: &Linear<f64>,
        calibration: Calibration<'_, f64>,
        max_rank: usize,
    ) -> dalr::Result<Decomposition<f64>> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        self.in_workers.fetch_add(usize::from(rayon::current_thread_index().is_some()), Ordering::SeqCst);
        std::thread::sleep(std::time::Duration::from_millis(30));
        let result = TruncatedSvd::new().solve(layer, calibration, max_rank);
        self.now.fetch_sub(1, Ordering::SeqCst);
        result
    }
}

/// Decomposes eight equal layers with memory for `room` of them. Returns the largest number that
/// ran at the same time, and the number of layers that ran in a worker.
fn most_at_once(room: usize) -> (usize, usize) {
    let problem = problems().swap_remove(0);
    let layers: Vec<_> = (0..8).map(|_| (problem.layer::<f64>(), problem.stats())).collect();
    let network = network(&layers);
    let (now, most, in_workers) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let limit = room * most_memory(&network, 8);
    let busy = Busy { now: &now, most: &most, in_workers: &in_workers };
    network.with_memory_limit(limit).decompose(&busy, |_, _| Ok(()), &mut Progress::ignore).unwrap();
    (most.load(Ordering::SeqCst), in_workers.load(Ordering::SeqCst))
}

#[test]
fn as_many_at_once_as_there_are_threads_and_is_memory() {
    let threads = if cfg!(feature = "rayon") { rayon::current_num_threads() } else { 1 };
    // With one layer at a time, the kernels use all threads, so the layer does not run in a worker.
    assert_eq!(most_at_once(1), if threads > 1 { (1, 0) } else { most_at_once(8) });
    assert!(most_at_once(8).0 <= threads);
    if (2..=8).contains(&threads) {
        let (most, in_workers) = most_at_once(8);
        assert!(most > 1 && in_workers == 8, "{most} in parallel on {threads} threads, {in_workers} in workers");
        assert_eq!(most_at_once(threads - 1), (1, 0), "layers in parallel are worth it with all threads busy");
    }
    // Inside a worker, the layers run one after the other: waiting for other threads could
    // deadlock.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(pool.install(|| most_at_once(8)).0, 1);
}

#[test]
fn lazy_layers_are_loaded_one_by_one_and_may_share_statistics() {
    let problem = problems().swap_remove(3);
    let stats = Arc::new(problem.stats::<f32>());
    let loads = AtomicUsize::new(0);
    let load = || {
        loads.fetch_add(1, Ordering::SeqCst);
        Ok((problem.layer::<f32>(), stats.clone()))
    };
    let network = Network::new()
        .with_lazy_layer("query", (30, 31), stats.samples(), load)
        .with_lazy_layer("key", (30, 31), stats.samples(), load)
        .with_max_rank("key", 3);
    let layer = problem.layer::<f32>();
    let here = Network::new().with_layer("query", &layer, &*stats);
    assert!(network.memory("query") > here.memory("query").map(|bytes| bytes + 30 * 31 * 4));
    assert_eq!(network.memory("value"), None);
    let mut ranks = BTreeMap::new();
    let deliver = |name: &str, decomposition: Decomposition<f32>| {
        ranks.insert(name.to_owned(), decomposition.max_rank());
        Ok(())
    };
    network.decompose(&Dalr::new(), deliver, &mut Progress::ignore).unwrap();
    assert_eq!((ranks["query"], ranks["key"], loads.load(Ordering::SeqCst)), (15, 3, 2));
}

#[test]
fn errors_name_the_layer_and_finished_layers_are_handed_over() {
    let problems = problems();
    let layers = at_hand(&problems);
    let empty = ActivationStats::new(20);
    let broken = network(&layers[1..]).with_layer("broken", &layers[0].0, &empty);
    let mut done = 0;
    let deliver = |_: &str, _| {
        done += 1;
        Ok(())
    };
    let error = broken.decompose(&Dalr::new(), deliver, &mut Progress::ignore).unwrap_err();
    let source = Error::NoSamples { operation: "Dalr::solve" };
    assert_eq!(error, Error::InLayer { layer: "broken".into(), source: Box::new(source) });
    assert!(done < 8);

    // An error of the caller's function is returned unchanged.
    let full = || Error::Overflow { operation: "mine", what: "the disk" };
    let error = network(&layers).decompose(&Dalr::new(), |_, _| Err(full()), &mut Progress::ignore);
    assert_eq!(error, Err(full()));

    // These errors come before the first layer:
    let refused = |network: Network<'_, f64>| {
        let never = |_: &str, _| -> dalr::Result<()> { unreachable!() };
        network.decompose(&Dalr::new(), never, &mut Progress::ignore).unwrap_err()
    };
    let twice = refused(network(&layers).with_layer("layer3", &layers[3].0, &layers[3].1));
    assert_eq!(twice.to_string(), "Network::decompose: expected layers of different names, got `layer3` twice");
    let error = refused(network(&layers).with_max_rank("layer9", 4));
    assert!(matches!(error, Error::Layers { .. }), "{error}");
    let Error::InLayer { source, .. } = refused(network(&layers).with_memory_limit(1000)) else { panic!() };
    assert!(matches!(*source, Error::Memory { .. }));
    let wrong = || Ok((problems[0].layer::<f64>(), Arc::new(problems[0].stats())));
    let error = refused(Network::new().with_lazy_layer("wrong", (3, 4), 10, wrong));
    assert!(error.to_string().ends_with("expected a 3 × 4 weight, got a 12 × 20 weight"), "{error}");
    let none = Network::<f64>::new();
    assert_eq!(none.decompose(&Dalr::new(), |_, _| unreachable!(), &mut Progress::ignore), Ok(()));
}

#[test]
fn cancelling_hands_over_the_layers_that_had_begun() {
    let layers = at_hand(&problems());
    for after in 0..8 {
        let (mut begun, mut done) = (0, 0);
        let mut progress = |progress: &Progress| {
            if progress.done < after {
                begun += usize::from(!progress.finished);
                return ControlFlow::Continue(());
            }
            ControlFlow::Break(())
        };
        let deliver = |_: &str, _| {
            done += 1;
            Ok(())
        };
        network(&layers).decompose(&Dalr::new(), deliver, &mut progress).unwrap();
        assert!(done == begun && done >= after && (after > 0 || done == 0), "{done} of {begun} after {after}");
    }
}

/// A method that panics.
struct Panics;

impl LowRankCompressor<f64> for Panics {
    fn solve(&self, _: &Linear<f64>, _: Calibration<'_, f64>, _: usize) -> dalr::Result<Decomposition<f64>> {
        panic!("a method of the caller");
    }
}

#[test]
fn a_method_that_panics_does_not_leave_others_waiting() {
    let layers = at_hand(&problems());
    let network = network(&layers);
    let run = || network.decompose(&Panics, |_, _| Ok(()), &mut Progress::ignore);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
}
