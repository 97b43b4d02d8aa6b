//! The paper's joint search (§5.3, Table 10) and measured sensitivities on a real network: LeNet on optical digits, fc1 and fc2.

#[path = "../examples/lenet_digits/network.rs"]
#[allow(dead_code)]
mod network;

use std::path::Path;

use dalr::network::{
    Allocator, Budget, Choice, Completion, JointSearch, LayerProfile, NetworkReport, Probe, Probes, SearchPath,
    SearchState, Stop, Strategy,
};
use dalr::{ActivationStats, Dalr, Decomposition, LowRankCompressor, TruncatedSvd};
use faer::{Mat, MatRef};
use network::{Data, Layer, accuracy, activations};

const NAMES: [&str; 2] = ["fc1", "fc2"];

/// The network, and what its first two dense layers become at any rank.
struct Lenet {
    data: Data,
    decompositions: Vec<Decomposition<f32>>,
    profiles: Vec<LayerProfile>,
    features: Mat<f32>,
}

impl Lenet {
    fn new(method: &dyn LowRankCompressor<f32>) -> Self {
        let data = Data::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("data/lenet_digits.safetensors")).unwrap();
        let train = data.target.features(data.train.images.as_ref()).unwrap();
        let inputs = activations(&data.target.layers(), train.as_ref()).unwrap();
        let decompose = |index: usize| {
            let mut stats = ActivationStats::<f32>::new(inputs[index].ncols());
            stats.update(inputs[index].as_ref()).unwrap();
            let layer = &data.target.dense[index];
            method.decompose(layer, &stats, layer.out_features().min(layer.in_features())).unwrap()
        };
        let decompositions: Vec<_> = (0..2).map(decompose).collect();
        let profile = |(name, decomposition): (&&str, &Decomposition<f32>)| LayerProfile::new(*name, decomposition);
        let profiles = NAMES.iter().zip(&decompositions).map(profile).collect();
        let features = data.target.features(data.test.images.as_ref()).unwrap();
        Self { data, decompositions, profiles, features }
    }

    /// Accuracy on these test images, from one to before another.
    fn accuracy(&self, choices: &[Choice], images: (usize, usize)) -> dalr::Result<f64> {
        let mut layers = self.data.target.layers();
        for (index, choice) in choices.iter().enumerate() {
            if let Choice::Rank(rank) = choice {
                layers[index] = Layer::LowRank(self.decompositions[index].truncate(*rank)?.into_layer());
            }
        }
        let features: MatRef<'_, f32> = self.features.subrows(images.0, images.1 - images.0);
        let [.., outputs] = activations(&layers, features)?;
        Ok(accuracy(outputs.as_ref(), &self.data.test.labels[images.0..images.1]))
    }

    fn search(&self) -> (SearchPath, NetworkReport, usize) {
        let mut state = SearchState::new();
        let evaluate = |choices: &[Choice]| self.accuracy(choices, VALIDATION);
        let path = JointSearch::new(0.01).run(&self.profiles, &mut state, evaluate, &mut ()).unwrap();
        let report = NetworkReport::of_choices(&self.profiles, path.choices()).unwrap();
        (path, report, state.len())
    }
}

/// Half of the test images to search with, the other half to test on.
const VALIDATION: (usize, usize) = (0, 400);
const TEST: (usize, usize) = (400, 797);

#[test]
fn the_search_compresses_both_layers_within_one_per_cent_and_further_with_dalr() {
    let share = |report: &NetworkReport| report.parameters_after as f64 / report.parameters_before as f64;
    let mut shares = Vec::new();
    for (name, lenet) in [("dalr", Lenet::new(&Dalr::new())), ("svd", Lenet::new(&TruncatedSvd::new()))] {
        let (path, report, evaluations) = lenet.search();
        let test = lenet.accuracy(path.choices(), TEST).unwrap();
        println!(
            "{name}: {:?}, {:.1} % of the parameters, accuracy {:.4} → {:.4} (held out {test:.4}), {evaluations} evaluations",
            path.choices(),
            100.0 * share(&report),
            path.original(),
            path.accuracy()
        );
        // It stops because both options lose too much, and not before both layers have been compressed.
        assert_eq!(path.stop(), Stop::Drop);
        assert!(path.accuracy() >= path.original() - 0.01 - 1e-12);
        assert!(path.choices().iter().all(|choice| matches!(choice, Choice::Rank(_))));
        assert!(path.steps().iter().all(|step| step.accuracy() >= path.original() - 0.01 - 1e-12));
        assert!(path.steps().is_sorted_by(|a, b| a.parameters() > b.parameters()));
        // At most two for each step, one of them being kept, and the two that were too much.
        assert!(evaluations <= 1 + 2 * path.steps().len() + 2);
        // The rule speaks of the images searched with. On others more is lost: dozens of networks were compared on 400 images.
        assert!(test >= lenet.accuracy(&[Choice::Dense; 2], TEST).unwrap() - 0.05);
        shares.push(share(&report));
    }
    assert!(shares[0] < 0.2 && shares[0] < 0.8 * shares[1], "{shares:?}");
}

#[test]
fn sensitivities_of_a_real_network_share_a_budget() {
    let lenet = Lenet::new(&Dalr::new());
    let budget = Budget::ParameterShare(0.1);
    let uniform = Allocator::new(budget).allocate(&lenet.profiles).unwrap();
    let mut probes = Probes::new();
    // The cross-entropy would be smoother; errors in a hundred will do.
    let evaluate = |probe: Probe<'_>| {
        let choices = NAMES.map(|name| match probe {
            Probe::Layer { name: other, rank } if name == other => Choice::Rank(rank),
            _ => Choice::Dense,
        });
        lenet.accuracy(&choices, VALIDATION).map(|accuracy| 1.0 - accuracy)
    };
    assert_eq!(probes.measure(&lenet.profiles, &uniform, evaluate, &mut ()), Ok(Completion::Finished));
    let strategy = Strategy::Sensitivity(probes.sensitivities().unwrap().with_floor(0.1).unwrap());
    let plan = Allocator::new(budget).with_strategy(strategy).allocate(&lenet.profiles).unwrap();
    let accuracies = [&uniform, &plan].map(|plan| lenet.accuracy(&plan.choices(), TEST).unwrap());
    println!(
        "uniform {:?} {:.4}, by sensitivity {:?} {:.4}",
        uniform.choices(),
        accuracies[0],
        plan.choices(),
        accuracies[1]
    );
    assert!(plan.report().parameters_after as f64 <= 0.1 * plan.report().parameters_before as f64);
    assert!(accuracies[1] >= accuracies[0] - 0.01, "{accuracies:?}");
}
