//! The paper's joint search (§5.3, Table 10) and measured sensitivities on a real network: LeNet on
//! optical digits, fc1 and fc2.

use std::collections::BTreeMap;
use std::path::Path;

use crate::lenet_network::{Data, Layer, accuracy, activations};
use dalr::network::{
    Allocator, Budget, Evaluation, JointSearch, LayerProfile, Plan, Progress, Sensitivities, Strategy,
};
use dalr::{ActivationStats, Dalr, Decomposition, LowRankCompressor, TruncatedSvd};
use faer::{Mat, MatRef};

const NAMES: [&str; 2] = ["fc1", "fc2"];

/// The network, and the decompositions of its first two fully connected layers.
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
            let layer = &data.target.linear[index];
            method.solve(layer, (&stats).into(), layer.out_features().min(layer.in_features())).unwrap()
        };
        let decompositions: Vec<_> = (0..2).map(decompose).collect();
        let profile = |(name, decomposition): (&&str, &Decomposition<f32>)| LayerProfile::new(*name, decomposition);
        let profiles = NAMES.iter().zip(&decompositions).map(profile).collect();
        let features = data.target.features(data.test.images.as_ref()).unwrap();
        Self { data, decompositions, profiles, features }
    }

    /// Returns the accuracy on a range of test images.
    fn accuracy(&self, ranks: &BTreeMap<String, usize>, images: (usize, usize)) -> dalr::Result<f64> {
        let mut layers = self.data.target.layers();
        for (index, name) in NAMES.into_iter().enumerate() {
            if let Some(rank) = ranks.get(name) {
                layers[index] = Layer::LowRank(self.decompositions[index].truncate(*rank)?.into_layer());
            }
        }
        let features: MatRef<'_, f32> = self.features.subrows(images.0, images.1 - images.0);
        let [.., outputs] = activations(&layers, features)?;
        Ok(accuracy(outputs.as_ref(), &self.data.test.labels[images.0..images.1]))
    }

    fn search(&self) -> (Vec<Evaluation>, Plan, usize) {
        let mut evaluations = Vec::new();
        let evaluate = |ranks: &BTreeMap<String, usize>| self.accuracy(ranks, VALIDATION);
        let search = JointSearch::new(0.01);
        let path = search.run(&self.profiles, &mut evaluations, evaluate, &mut Progress::ignore).unwrap();
        let plan = Plan::of_ranks(&self.profiles, &path.last().unwrap().ranks).unwrap();
        (path, plan, evaluations.len())
    }
}

/// Half of the test images are used by the search, the other half by the test.
const VALIDATION: (usize, usize) = (0, 400);
const TEST: (usize, usize) = (400, 797);

#[test]
fn the_search_compresses_both_layers_within_one_per_cent_and_further_with_dalr() {
    let mut fractions = Vec::new();
    for (name, lenet) in [("dalr", Lenet::new(&Dalr::new())), ("svd", Lenet::new(&TruncatedSvd::new()))] {
        let (path, plan, evaluations) = lenet.search();
        let (original, last) = (&path[0], path.last().unwrap());
        let fraction = plan.parameters_after() as f64 / plan.parameters_before() as f64;
        let test = lenet.accuracy(&last.ranks, TEST).unwrap();
        println!(
            "{name}: {:?}, {:.1} % of the parameters, accuracy {:.4} → {:.4} (held out {test:.4}), {evaluations} evaluations",
            last.ranks,
            100.0 * fraction,
            original.value,
            last.value
        );
        // The search ends because both candidates lose too much accuracy, after both layers were
        // compressed.
        assert!(last.ranks.len() == 2 && last.ranks.values().all(|rank| *rank > 1));
        assert!(path.iter().all(|step| step.value >= original.value - 0.01 - 1e-12));
        assert!(path.is_sorted_by(|a, b| a.parameters > b.parameters));
        assert_eq!(last.parameters, plan.parameters_after());
        // There are at most two evaluations for each step, and two for the last one, which is not
        // kept.
        assert!(evaluations <= 1 + 2 * (path.len() - 1) + 2);
        // The limit holds on the images of the search. On others the accuracy drops further,
        // because the search compared dozens of networks on 400 images.
        assert!(test >= lenet.accuracy(&BTreeMap::new(), TEST).unwrap() - 0.05);
        fractions.push(fraction);
    }
    assert!(fractions[0] < 0.2 && fractions[0] < 0.8 * fractions[1], "{fractions:?}");
}

#[test]
fn sensitivities_of_a_real_network_allocate_a_budget() {
    let lenet = Lenet::new(&Dalr::new());
    let budget = Budget::ParameterFraction(0.1);
    let uniform = Allocator::new(budget).allocate(&lenet.profiles).unwrap();
    // The loss is the fraction of errors. The cross-entropy would be smoother, but is not needed.
    let evaluate = |ranks: &BTreeMap<String, usize>| lenet.accuracy(ranks, VALIDATION).map(|accuracy| 1.0 - accuracy);
    let measured = Sensitivities::measure(&lenet.profiles, &uniform, &mut Vec::new(), evaluate, &mut Progress::ignore);
    let strategy = Strategy::Sensitivity(measured.unwrap().unwrap().with_floor(0.1).unwrap());
    let plan = Allocator::new(budget).with_strategy(strategy).allocate(&lenet.profiles).unwrap();
    let accuracies = [&uniform, &plan].map(|plan| lenet.accuracy(&plan.ranks(), TEST).unwrap());
    println!(
        "uniform {:?} {:.4}, by sensitivity {:?} {:.4}",
        uniform.ranks(),
        accuracies[0],
        plan.ranks(),
        accuracies[1]
    );
    assert!(plan.parameters_after() as f64 <= 0.1 * plan.parameters_before() as f64);
    assert!(accuracies[1] >= accuracies[0] - 0.01, "{accuracies:?}");
}
