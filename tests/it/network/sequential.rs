//! Sequential recalibration: never worse than one shot, the same after an interruption, and with
//! errors that name the layer.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::path::Path;

use crate::common::gaussian;
use crate::lenet_network::{Data, Layer, accuracy, activations};
use dalr::compress::{HiddenUnitSelection, HiddenUnits, OutputMetric};
use dalr::covariance::PairedStats;
use dalr::network::{CompressedLayer, Network, Progress};
use dalr::{ActivationStats, Calibration, Dalr, Linear, LowRankCompressor, Rank};
use faer::Mat;
use rand::{SeedableRng, rngs::StdRng};

type Compressed = BTreeMap<String, CompressedLayer<f64>>;

const NAMES: [&str; 5] = ["first", "gate", "up", "down", "head"];

/// `head(relu(down(gate(h) ∘ tanh(up(h)))))` with `h = relu(first(x))`.
struct Small {
    layers: BTreeMap<&'static str, Linear<f64>>,
    inputs: Mat<f64>,
}

impl Small {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let shapes = [(24, 20), (18, 24), (18, 24), (22, 18), (6, 22)];
        let mut layer = |(m, n): (usize, usize)| {
            let weight = gaussian(&mut random, m, n) * faer::Scale(1.0 / (n as f64).sqrt());
            Linear::new(weight, Some(gaussian(&mut random, m, 1).col(0) * faer::Scale(0.3))).unwrap()
        };
        let layers = NAMES.into_iter().zip(shapes.map(&mut layer)).collect();
        let mixing = Mat::from_fn(20, 20, |i, j| if i == j { 0.85_f64.powi(i as i32) } else { 0.0 });
        let inputs = gaussian(&mut random, 800, 20) * mixing * gaussian(&mut random, 20, 20);
        Self { layers, inputs }
    }

    /// The inputs of each layer, and the outputs as those of `end`.
    fn run(&self, compressed: &Compressed, rows: (usize, usize)) -> BTreeMap<&'static str, Mat<f64>> {
        let forward = |name: &str, inputs: &Mat<f64>| match compressed.get(name) {
            Some(layer) => layer.forward(inputs.as_ref()).unwrap(),
            None => self.layers[name].forward(inputs.as_ref()).unwrap(),
        };
        let relu = |matrix: Mat<f64>| Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| matrix[(i, j)].max(0.0));
        let inputs = self.inputs.get(rows.0..rows.1, ..).to_owned();
        let hidden = relu(forward("first", &inputs));
        let (gate, up) = (forward("gate", &hidden), forward("up", &hidden));
        let product = Mat::from_fn(gate.nrows(), gate.ncols(), |i, j| gate[(i, j)] * up[(i, j)].tanh());
        let down = relu(forward("down", &product));
        let end = forward("head", &down);
        [("first", inputs), ("gate", hidden), ("down", product), ("head", down), ("end", end)].into()
    }

    /// The squared error of the network's outputs on other inputs than those for calibration.
    fn error(&self, compressed: &Compressed) -> f64 {
        let outputs = |compressed: &Compressed| self.run(compressed, HELD_OUT).remove("end").unwrap();
        let (original, found) = (outputs(&Compressed::new()), outputs(compressed));
        (&original - found).squared_norm_l2() / original.squared_norm_l2()
    }

    fn sequential(&self) -> Network<'_, f64> {
        self.with_metric("", Calibration::none())
    }

    /// The network, with the output metric of this calibration data for one layer.
    fn with_metric<'a>(&'a self, layer: &str, metric: Calibration<'a, f64>) -> Network<'a, f64> {
        let calibration = |name: &str| if name == layer { metric } else { Calibration::none() };
        let network = NAMES
            .iter()
            .fold(Network::new(), |network, name| network.with_layer(*name, &self.layers[name], calibration(name)));
        network.with_shared_input(["gate", "up"])
    }

    fn feed(&self, group: &str, compressed: &Compressed, stats: &mut PairedStats<f64>) -> dalr::Result<()> {
        let original = &self.run(&Compressed::new(), CALIBRATION)[group];
        stats.update(original.as_ref(), self.run(compressed, CALIBRATION)[group].as_ref())
    }

    fn compress(&self, ranks: &BTreeMap<String, usize>) -> Compressed {
        let (mut layers, feed) =
            (Compressed::new(), |group: &str, layers: &_, stats: &mut _| self.feed(group, layers, stats));
        let reports = self
            .sequential()
            .compress_sequentially(&Dalr::new(), ranks, &mut layers, feed, &mut Progress::ignore)
            .unwrap();
        assert!(reports.keys().eq(ranks.keys()) && layers.keys().eq(ranks.keys()));
        assert!(reports.values().all(|report| report.samples == 600 && report.relative_error.is_some()));
        layers
    }

    fn one_shot(&self, ranks: &BTreeMap<String, usize>) -> Compressed {
        let inputs = self.run(&Compressed::new(), CALIBRATION);
        let compress = |(name, &rank): (&String, &usize)| {
            let layer = &self.layers[name.as_str()];
            let mut stats = ActivationStats::new(layer.in_features());
            let input = if name == "up" { "gate" } else { name.as_str() };
            stats.update(inputs[input].as_ref()).unwrap();
            let compressed = Dalr::new().compress(layer, &stats, Rank::Fixed(rank)).unwrap();
            (name.clone(), CompressedLayer::LowRank(compressed.into_layer()))
        };
        ranks.iter().map(compress).collect()
    }
}

const CALIBRATION: (usize, usize) = (0, 600);
const HELD_OUT: (usize, usize) = (600, 800);

/// `head` stays original.
fn ranks(rank: usize) -> BTreeMap<String, usize> {
    NAMES[..4].iter().map(|name| ((*name).to_owned(), rank)).collect()
}

#[test]
fn the_network_is_no_worse_than_compressed_in_one_shot() {
    let mut better = 0;
    for seed in 0..6 {
        let small = Small::new(seed);
        for rank in [3, 5, 8] {
            let (one, sequential) = (small.one_shot(&ranks(rank)), small.compress(&ranks(rank)));
            // The first layer sees the original inputs in both.
            let (one, sequential) = (small.error(&one), small.error(&sequential));
            println!("seed {seed}, rank {rank}: one shot {one:.4}, sequential {sequential:.4}");
            assert!(sequential < 1.1 * one, "seed {seed}, rank {rank}: {sequential} against {one}");
            better += usize::from(sequential < one);
        }
    }
    assert!(better >= 14, "{better} of 18");
}

#[test]
fn an_interrupted_run_continues_to_the_same_bits() {
    let small = Small::new(1);
    let ranks = ranks(5);
    let whole = small.compress(&ranks);
    // Before and after each layer, also between two of one group.
    for stop in 0..8 {
        let (mut layers, mut events) = (Compressed::new(), 0);
        let mut run = |layers: &mut Compressed, stop: usize| {
            let mut seen = Vec::new();
            let mut progress = |progress: &Progress| {
                assert_eq!(progress.total, Some(4));
                seen.push((progress.layer.clone().unwrap(), progress.finished, progress.done));
                events += 1;
                if seen.len() > stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let feed = |group: &str, layers: &Compressed, stats: &mut _| small.feed(group, layers, stats);
            let reports =
                small.sequential().compress_sequentially(&Dalr::new(), &ranks, layers, feed, &mut progress).unwrap();
            assert_eq!(reports.len(), seen.iter().filter(|(_, finished, _)| *finished).count());
            seen
        };
        let first = run(&mut layers, stop);
        // A cancelled beginning compresses nothing, a cancelled end keeps its layer.
        assert_eq!((first.len(), layers.len()), (stop + 1, stop.div_ceil(2)));
        let second = run(&mut layers, usize::MAX);
        assert_eq!(layers, whole, "stopped after {stop} events");
        let finished = first.iter().chain(&second).filter(|(_, finished, _)| *finished);
        let expected = NAMES[..4].iter().zip(1..);
        for ((name, _, done), (expected, count)) in finished.zip(expected) {
            assert_eq!((name.as_str(), *done), (*expected, count));
        }
    }
    // Nothing is left to do, and nothing is fed.
    let mut layers = whole.clone();
    let feed = |_: &str, _: &Compressed, _: &mut PairedStats<f64>| -> Result<(), Infallible> { panic!("fed") };
    let reports = small
        .sequential()
        .compress_sequentially(&Dalr::new(), &ranks, &mut layers, feed, &mut Progress::ignore)
        .unwrap();
    assert!(reports.is_empty() && layers == whole);
}

#[test]
fn each_group_is_fed_once_and_layers_without_a_rank_never() {
    let small = Small::new(2);
    let mut fed = Vec::new();
    let feed = |group: &str, layers: &Compressed, stats: &mut PairedStats<f64>| {
        fed.push((group.to_owned(), layers.len()));
        small.feed(group, layers, stats)
    };
    let ranks = [("first".to_owned(), 4), ("up".to_owned(), 5), ("down".to_owned(), 6)].into();
    small
        .sequential()
        .compress_sequentially(&Dalr::new(), &ranks, &mut Compressed::new(), feed, &mut Progress::ignore)
        .unwrap();
    let expected = [("first", 0), ("gate", 1), ("down", 2)].map(|(group, count)| (group.to_owned(), count));
    assert_eq!(fed, expected);
}

/// Layers share a run only if they follow one another.
#[test]
fn shared_inputs_that_overlap_or_are_apart_change_nothing() {
    let small = Small::new(2);
    let whole = small.compress(&ranks(4));
    for more in [["up", "down"], ["first", "down"]] {
        let (mut layers, mut fed) = (Compressed::new(), Vec::new());
        let feed = |group: &str, layers: &Compressed, stats: &mut PairedStats<f64>| {
            fed.push(group.to_owned());
            small.feed(group, layers, stats)
        };
        let network = small.sequential().with_shared_input(more);
        network.compress_sequentially(&Dalr::new(), &ranks(4), &mut layers, feed, &mut Progress::ignore).unwrap();
        assert_eq!(layers, whole);
        assert_eq!(fed, ["first", "gate", "down"]);
    }
}

#[test]
fn a_metric_changes_its_own_layer_only() {
    let small = Small::new(3);
    let ranks = [("first".to_owned(), 4), ("gate".to_owned(), 4), ("up".to_owned(), 4)].into();
    let metric = OutputMetric::diagonal(&(1..=18).map(f64::from).collect::<Vec<_>>()).unwrap();
    let run = |network: Network<'_, f64>| {
        let (mut layers, feed) =
            (Compressed::new(), |group: &str, layers: &_, stats: &mut _| small.feed(group, layers, stats));
        let reports =
            network.compress_sequentially(&Dalr::new(), &ranks, &mut layers, feed, &mut Progress::ignore).unwrap();
        (layers, reports)
    };
    let (plain, _) = run(small.sequential());
    let (weighted, reports) = run(small.with_metric("up", Calibration::none().with_output_metric(&metric)));
    assert!(plain["first"] == weighted["first"] && plain["gate"] == weighted["gate"] && plain["up"] != weighted["up"]);
    assert!(reports["up"].metric_error.is_some() && reports["gate"].metric_error.is_none());
}

#[test]
fn errors_name_the_layer() {
    let small = Small::new(4);
    let all = ranks(4);
    let run = |network: &Network<'_, f64>, ranks: &BTreeMap<String, usize>, layers: &mut Compressed| {
        let feed = |group: &str, layers: &Compressed, stats: &mut _| small.feed(group, layers, stats);
        network
            .compress_sequentially(&Dalr::new(), ranks, layers, feed, &mut Progress::ignore)
            .map_err(|error| error.to_string())
    };
    let fails = |network: &Network<'_, f64>, ranks: &BTreeMap<String, usize>, message: &str| {
        let mut layers = Compressed::new();
        let error = run(network, ranks, &mut layers).unwrap_err();
        assert!(error.contains(message) && error.contains("Network::compress_sequentially"), "{error}");
        assert!(layers.is_empty());
    };
    let extra = |name: &str, rank| all.clone().into_iter().chain([(name.to_owned(), rank)]).collect();
    fails(&small.sequential(), &extra("other", 3), "ranks for layers of the network, got some for `other`");
    let first = &small.layers["first"];
    fails(&small.sequential().with_layer("first", first, Calibration::none()), &all, "`first` twice");
    fails(&small.sequential().with_shared_input(["other"]), &all, "some for `other`");
    fails(&small.sequential().with_shared_input(["down", "head"]), &all, "layer `head`");
    let metric = OutputMetric::diagonal(&[1.0; 3]).unwrap();
    // What was finished before stays.
    let mut layers = Compressed::new();
    let network = small.with_metric("up", Calibration::none().with_output_metric(&metric));
    let error = run(&network, &all, &mut layers).unwrap_err();
    assert!(error.starts_with("layer `up`: ") && error.contains("18 outputs in the metric"), "{error}");
    assert_eq!(layers.len(), 2);
    let error = run(&small.sequential(), &extra("head", 7), &mut layers).unwrap_err();
    assert!(error.starts_with("layer `head`: ") && error.contains("a rank from 1 to 6"), "{error}");
    assert_eq!(layers.len(), 4);

    // The function of the caller.
    let mut layers = Compressed::new();
    let nothing = |_: &str, _: &Compressed, _: &mut PairedStats<f64>| Ok::<_, Infallible>(());
    let error = small
        .sequential()
        .compress_sequentially(&Dalr::new(), &all, &mut layers, nothing, &mut Progress::ignore)
        .unwrap_err();
    assert!(
        error.to_string().starts_with("layer `first`: Network::compress_sequentially: expected statistics"),
        "{error}"
    );
    let refuse = |_: &str, _: &Compressed, _: &mut PairedStats<f64>| Err("no data");
    let error = small
        .sequential()
        .compress_sequentially(&Dalr::new(), &all, &mut layers, refuse, &mut Progress::ignore)
        .unwrap_err();
    assert!(error.to_string().contains("the inputs of `first`") && error.to_string().contains("no data"), "{error}");
}

#[test]
fn layers_of_another_run_are_compressed_again() {
    let small = Small::new(5);
    let (whole, other) = (small.compress(&ranks(5)), small.compress(&ranks(4)));
    let without = |name: &str| {
        let mut layers = whole.clone();
        layers.remove(name);
        layers
    };
    let with = |name: &str, layer: &CompressedLayer<f64>| {
        let mut layers = whole.clone();
        layers.insert(name.to_owned(), layer.clone());
        layers
    };
    // The layers left, and the number of those that are kept: up to the first that differs.
    for (left, kept) in [
        (other.clone(), 0),
        (without("gate"), 1),
        (without("down"), 3),
        (with("up", &other["up"]), 2),
        (with("gate", &whole["down"]), 1),
        (with("head", &whole["first"]), 4),
    ] {
        let mut layers = left;
        let feed = |group: &str, layers: &Compressed, stats: &mut _| small.feed(group, layers, stats);
        let reports = small
            .sequential()
            .compress_sequentially(&Dalr::new(), &ranks(5), &mut layers, feed, &mut Progress::ignore)
            .unwrap();
        assert!(reports.len() == 4 - kept && layers == whole, "{kept}");
    }
}

/// `first` gets a rank, `gate` and `up` fewer outputs, `down` fewer inputs, and `head` another rank.
fn with_units<'a>(network: Network<'a, f64>, kept: usize) -> (Network<'a, f64>, BTreeMap<String, usize>) {
    let network = network.with_hidden_units(["up", "gate", "down"], kept, HiddenUnitSelection::new());
    (network, [("first".to_owned(), 8), ("head".to_owned(), 4)].into())
}

#[test]
fn hidden_units_are_chosen_and_refitted_for_the_compressed_network() {
    let mut better = 0;
    for seed in 0..6 {
        let small = Small::new(seed);
        let metric = OutputMetric::diagonal(&(1..=22).map(f64::from).collect::<Vec<_>>()).unwrap();
        let (network, ranks) =
            with_units(small.with_metric("down", Calibration::none().with_output_metric(&metric)), 9);
        let (mut layers, mut fed) = (Compressed::new(), Vec::new());
        let feed = |group: &str, layers: &Compressed, stats: &mut _| {
            fed.push(group.to_owned());
            small.feed(group, layers, stats)
        };
        let reports =
            network.compress_sequentially(&Dalr::new(), &ranks, &mut layers, feed, &mut Progress::ignore).unwrap();
        assert!(fed == ["first", "down", "head"] && reports.keys().eq(ranks.keys()));
        assert!(layers.keys().eq(["down", "first", "gate", "head", "up"]));

        // The same as when the steps are made one by one.
        let before: Compressed = [("first".to_owned(), layers["first"].clone())].into();
        let mut stats = PairedStats::new(18);
        small.feed("down", &before, &mut stats).unwrap();
        let [gate, up, down] = ["gate", "up", "down"].map(|name| &small.layers[name]);
        let calibration = Calibration::from(&stats).with_output_metric(&metric);
        let units = HiddenUnitSelection::new().with_max_units(9).solve_gated(gate, up, down, calibration).unwrap();
        let selected = units.select(9).unwrap();
        let expected = [("gate", selected.gate.unwrap()), ("up", selected.first), ("down", selected.second)];
        for (name, layer) in expected {
            assert_eq!(layers[name], CompressedLayer::Smaller(layer));
        }

        let mut one_shot = small.one_shot(&ranks);
        let mut hidden = ActivationStats::new(18);
        hidden.update(small.run(&Compressed::new(), CALIBRATION)["down"].as_ref()).unwrap();
        let selected = HiddenUnits::gated(gate, up, down, &hidden).unwrap().select(9).unwrap();
        let parts = [("gate", selected.gate.unwrap()), ("up", selected.first), ("down", selected.second)];
        one_shot.extend(parts.map(|(name, layer)| (name.to_owned(), CompressedLayer::Smaller(layer))));
        let (one, sequential) = (small.error(&one_shot), small.error(&layers));
        println!("seed {seed}: one shot {one:.4}, sequential {sequential:.4}");
        assert!(sequential < 1.1 * one, "seed {seed}: {sequential} against {one}");
        better += usize::from(sequential < one);
    }
    assert!(better >= 5, "{better} of 6");
}

#[test]
fn an_interrupted_run_with_hidden_units_continues_to_the_same_bits() {
    let small = Small::new(1);
    let run = |layers: &mut Compressed, events: usize| {
        let (network, ranks) = with_units(small.sequential(), 9);
        let mut left = events;
        let mut progress = |progress: &Progress| {
            assert_eq!(progress.total, Some(3));
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let feed = |group: &str, layers: &Compressed, stats: &mut _| small.feed(group, layers, stats);
        network.compress_sequentially(&Dalr::new(), &ranks, layers, feed, &mut progress).unwrap();
        events - left
    };
    let mut whole = Compressed::new();
    assert_eq!(run(&mut whole, 100), 6);
    for stop in 1..=6 {
        let mut layers = Compressed::new();
        run(&mut layers, stop);
        assert_eq!(layers.len(), [0, 0, 1, 1, 4, 4, 5][stop]);
        run(&mut layers, 100);
        assert_eq!(layers, whole, "stopped after {stop} events");
    }
    // Layers around other hidden units, or without the layer behind them, are compressed again.
    let mut other = Compressed::new();
    let (network, ranks) = with_units(small.sequential(), 10);
    let feed = |group: &str, layers: &Compressed, stats: &mut _| small.feed(group, layers, stats);
    network.compress_sequentially(&Dalr::new(), &ranks, &mut other, feed, &mut Progress::ignore).unwrap();
    for missing in ["down", "up"] {
        let mut layers = whole.clone();
        layers.remove(missing);
        assert_eq!(run(&mut layers, 100), 4);
        assert_eq!(layers, whole);
    }
    assert_eq!(run(&mut other, 100), 4);
    assert_eq!(other, whole);
}

#[test]
fn hidden_units_that_do_not_fit_are_errors() {
    let small = Small::new(4);
    let fails = |network: Network<'_, f64>, message: &str| {
        let feed = |group: &str, layers: &Compressed, stats: &mut _| small.feed(group, layers, stats);
        let ranks = [("first".to_owned(), 4)].into();
        let error = network
            .compress_sequentially(&Dalr::new(), &ranks, &mut Compressed::new(), feed, &mut Progress::ignore)
            .unwrap_err()
            .to_string();
        let from = ["Network::compress_sequentially", "layer `head`: HiddenUnitSelection::solve: expected"];
        assert!(error.contains(message) && from.iter().any(|from| error.contains(from)), "{error}");
    };
    let units = |names: &[&str], kept| {
        small.sequential().with_hidden_units(names.iter().copied(), kept, HiddenUnitSelection::new())
    };
    fails(units(&["down", "tail"], 3), "hidden units for layers of the network, got some for `tail`");
    fails(units(&["down"], 3), "between a first layer, a gate or none, and a second layer, got some between `down`");
    fails(units(&["first", "gate", "up", "down"], 3), "a first layer, a gate or none, and a second layer");
    fails(units(&["head", "down"], 3), "in the order of execution, got some between `head`, `down`");
    fails(units(&["first", "gate"], 3), "hidden units that one layer reads, got a shared input of `gate`");
    let twice = units(&["gate", "up", "down"], 3).with_hidden_units(["down", "head"], 3, HiddenUnitSelection::new());
    fails(twice, "a rank or hidden units on one side, got some between `down`, `head`");
    fails(units(&["down", "head"], 0), "to be from 1 to 22, got 0");
    fails(units(&["down", "head"], 23), "to be from 1 to 22, got 23");
    fails(units(&["gate", "head"], 3), "outputs of the first layer");
}

/// LeNet on optical digits: fc1 and fc2 compressed, on images that neither saw.
#[test]
fn a_real_network_gains() {
    let data = Data::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("data/lenet_digits.safetensors")).unwrap();
    let train = data.target.features(data.train.images.as_ref()).unwrap();
    let test = data.target.features(data.test.images.as_ref()).unwrap();
    let original = activations(&data.target.layers(), train.as_ref()).unwrap();
    let with = |layers: &BTreeMap<String, CompressedLayer<f32>>| {
        let mut all = data.target.layers();
        for (name, layer) in ["fc1", "fc2"].iter().zip(&mut all) {
            match layers.get(*name) {
                Some(CompressedLayer::LowRank(compressed)) => *layer = Layer::LowRank(compressed.clone()),
                Some(CompressedLayer::Smaller(smaller)) => *layer = Layer::Original(smaller.clone()),
                None => {}
            }
        }
        all
    };
    let judge = |layers: &BTreeMap<String, CompressedLayer<f32>>| {
        let [.., expected] = activations(&data.target.layers(), test.as_ref()).unwrap();
        let [.., outputs] = activations(&with(layers), test.as_ref()).unwrap();
        let error = (&outputs - &expected).squared_norm_l2() / expected.squared_norm_l2();
        (accuracy(outputs.as_ref(), &data.test.labels), error)
    };
    let position = |name: &str| usize::from(name == "fc2");
    let feed = |group: &str, layers: &BTreeMap<_, _>, stats: &mut PairedStats<f32>| {
        let compressed = activations(&with(layers), train.as_ref())?;
        stats.update(original[position(group)].as_ref(), compressed[position(group)].as_ref())
    };
    for rank in [4, 6, 8] {
        let ranks: BTreeMap<String, usize> = [("fc1".to_owned(), rank), ("fc2".to_owned(), rank)].into();
        let one_shot = ranks.iter().map(|(name, &rank)| {
            let mut stats = ActivationStats::new(original[position(name)].ncols());
            stats.update(original[position(name)].as_ref()).unwrap();
            let layer = &data.target.linear[position(name)];
            let compressed = Dalr::new().compress(layer, &stats, Rank::Fixed(rank)).unwrap();
            (name.clone(), CompressedLayer::LowRank(compressed.into_layer()))
        });
        let one_shot: BTreeMap<_, _> = one_shot.collect();
        let mut layers = BTreeMap::new();
        let network = ["fc1", "fc2"].into_iter().zip(&data.target.linear);
        let network =
            network.fold(Network::new(), |all, (name, layer)| all.with_layer(name, layer, Calibration::none()));
        network.compress_sequentially(&Dalr::new(), &ranks, &mut layers, feed, &mut Progress::ignore).unwrap();
        let (one, sequential) = (judge(&one_shot), judge(&layers));
        println!("rank {rank}: one shot {one:.4?}, sequential {sequential:.4?} (accuracy, error of the logits)");
        assert!(sequential.1 < one.1 && sequential.0 > one.0 - 0.01, "rank {rank}: {one:?} {sequential:?}");
    }
}
