//! Sensitivities and the joint search: their evaluations, the order of these, and the state after
//! an error.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::error::Error as _;
use std::ops::ControlFlow;

use dalr::compress::HiddenUnitSelection;
use dalr::network::{
    Allocator, Budget, Choice, Evaluation, JointSearch, LayerProfile, Plan, Progress, Sensitivities, UnitProfile,
};
use dalr::{Error, Linear, Ridge};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::common::{gaussian, stats};

type Ranks = BTreeMap<String, usize>;

/// Returns a layer with all eigenvalues `ratioⁱ`.
fn profile(name: &str, shape: (usize, usize), ratio: f64) -> LayerProfile {
    let energies: Vec<f64> = (0..shape.0.min(shape.1)).map(|i| ratio.powi(i as i32)).collect();
    LayerProfile::from_energies(name, shape, false, &energies, energies.iter().sum()).unwrap()
}

fn layers() -> Vec<LayerProfile> {
    vec![profile("fc6", (20, 20), 0.8), profile("fc7", (20, 20), 0.9), profile("head", (2, 2), 0.5)]
}

fn uniform(layers: &[LayerProfile]) -> Plan {
    Allocator::new(Budget::ParameterFraction(0.6)).allocate(layers).unwrap()
}

/// Units between the first two layers, three of which explain the others, and units behind them.
fn units() -> [UnitProfile; 2] {
    let mut rng = StdRng::seed_from_u64(1);
    let layer = Linear::new(gaussian(&mut rng, 20, 20), None).unwrap();
    let mut solved = |latent: usize| {
        let hidden = stats((gaussian(&mut rng, 90, latent) * gaussian(&mut rng, latent, 20)).as_ref());
        HiddenUnitSelection::new().with_ridge(Ridge::None).solve(&layer, &layer, &hidden).unwrap()
    };
    [UnitProfile::new("fc6", "fc7", &solved(3)), UnitProfile::new("fc7", "fc8", &solved(20))]
}

#[test]
fn units_are_measured_with_units() {
    let (units, square) = (units(), |name| profile(name, (20, 20), 0.9));
    let plan = uniform(&[square("fc6"), square("fc7"), square("fc8")]);
    let asked = RefCell::new(Vec::new());
    let evaluate = |pair: usize, kept: usize| {
        asked.borrow_mut().push((pair, kept));
        Ok::<f64, Error>(0.25 + [3.0, -1.0][pair] * units[pair].loss(kept).unwrap())
    };
    let mut sensitivities = Sensitivities::new([("fc6", 1.0), ("fc7", 1.0), ("fc8", 1.0)]).unwrap();
    let mut names = Vec::new();
    let mut progress = |event: &Progress| {
        names.push(event.layer.clone().unwrap());
        if event.finished { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    // After a cancelled run, the next one continues.
    assert!(!sensitivities.measure_units(&units, &plan, 0.25, evaluate, &mut progress).unwrap());
    assert_eq!(names, ["fc6 + fc7"; 2]);
    assert!((sensitivities.get("fc6 + fc7").unwrap() - 3.0).abs() < 1e-13);
    assert!(sensitivities.measure_units(&units, &plan, 0.25, evaluate, &mut Progress::ignore).unwrap());
    assert_eq!(sensitivities.get("fc7 + fc8"), Some(0.0));
    // The plan keeps 60 % of the parameters, so 12 units. Three units of the first pair lose nothing
    // but rounding, so it is measured with two.
    assert_eq!(asked.take(), [(0, 2), (1, 12)]);
    assert!(sensitivities.measure_units(&units, &plan, 0.25, evaluate, &mut Progress::ignore).unwrap());
    assert_eq!(asked.take(), []);
}

#[test]
fn measurements_of_units_that_fail_are_not_kept() {
    let (units, square) = (units(), |name| profile(name, (20, 20), 0.9));
    let plan = uniform(&[square("fc6"), square("fc7"), square("fc8")]);
    let measure = |sensitivities: &mut Sensitivities, second: Result<f64, NoDevice>| {
        let evaluate = |pair: usize, _: usize| if pair == 0 { Ok(0.5) } else { second.clone() };
        sensitivities.measure_units(&units, &plan, 0.0, evaluate, &mut Progress::ignore)
    };
    let mut sensitivities = Sensitivities::new([("fc6", 1.0)]).unwrap();
    let error = measure(&mut sensitivities, Err(NoDevice("fc8".into()))).unwrap_err();
    assert_eq!(error.source().and_then(|source| source.downcast_ref()), Some(&NoDevice("fc8".into())));
    let message = "Sensitivities::measure_units: expected a value for `fc7 + fc8` with 12 units, got an error";
    assert!(error.to_string().starts_with(message), "{error}");
    let error = measure(&mut sensitivities, Ok(f64::NAN)).unwrap_err();
    assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
    assert!(sensitivities.iter().map(|(name, _)| name).eq(["fc6", "fc6 + fc7"]));
    // The plan is one of other layers.
    let other = uniform(&[square("fc6"), square("fc8")]);
    let value = |_: usize, _: usize| Ok::<f64, Error>(1.0);
    let error = sensitivities.measure_units(&units, &other, 0.0, value, &mut Progress::ignore).unwrap_err();
    assert!(error.to_string().contains("a plan with the layer `fc7`"), "{error}");
}

/// An error of the caller's own code.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("no device for {0}")]
struct NoDevice(String);

fn measure<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    layers: &[LayerProfile],
    evaluations: &mut Vec<Evaluation>,
    evaluate: impl FnMut(&Ranks) -> Result<f64, E>,
) -> dalr::Result<Option<Sensitivities>> {
    Sensitivities::measure(layers, &uniform(layers), evaluations, evaluate, &mut Progress::ignore)
}

#[test]
fn a_network_that_is_linear_in_its_layers_losses_is_measured_exactly() {
    let layers = layers();
    let plan = uniform(&layers);
    let asked = RefCell::new(Vec::new());
    let evaluate = |ranks: &Ranks| {
        asked.borrow_mut().push(ranks.keys().cloned().collect::<String>());
        let mut value = 0.25;
        for (name, &rank) in ranks {
            let layer = layers.iter().find(|layer| layer.name() == name).unwrap();
            assert_eq!(plan.choice(name), Some(Choice::Rank(rank)));
            value += if name == "fc6" { 3.0 } else { -0.5 } * layer.loss(rank).unwrap();
        }
        Ok::<f64, Error>(value)
    };
    let mut evaluations = Vec::new();
    let sensitivities = measure(&layers, &mut evaluations, evaluate).unwrap().unwrap();
    // No rank makes the third layer smaller, so it is not evaluated.
    assert_eq!(asked.take(), ["", "fc6", "fc7"]);
    assert!((sensitivities.get("fc6").unwrap() - 3.0).abs() < 1e-13);
    assert!(sensitivities.iter().map(|(name, _)| name).eq(["fc6", "fc7"]));
    assert!(sensitivities.iter().all(|(name, weight)| sensitivities.get(name) == Some(weight)));
    // fc7 seems better when it is compressed, so its sensitivity is 0.
    assert_eq!((sensitivities.get("fc7"), sensitivities.get("head")), (Some(0.0), None));
    assert!((sensitivities.with_floor(0.1).unwrap().get("fc7").unwrap() - 0.15).abs() < 1e-14);

    // No evaluation is repeated, except for a layer that has changed.
    measure(&layers, &mut evaluations, evaluate).unwrap().unwrap();
    assert_eq!(asked.take(), [""; 0]);
    let mut changed = layers.clone();
    changed[1] = profile("fc7", (20, 20), 0.95);
    let elsewhere = |ranks: &Ranks| {
        asked.borrow_mut().push(format!("{ranks:?}"));
        Ok::<f64, Error>(1.0)
    };
    measure(&changed, &mut evaluations, elsewhere).unwrap().unwrap();
    assert_eq!(asked.take(), [r#"{"fc7": 5}"#]);
    // No layer can be measured.
    let plan = Plan::of_ranks(&layers, &Ranks::new()).unwrap();
    let none = Sensitivities::measure(&layers[2..], &plan, &mut evaluations, evaluate, &mut Progress::ignore);
    assert!(matches!(none, Err(Error::Empty { .. })), "{none:?}");
}

#[test]
fn a_layer_that_the_plan_leaves_original_is_measured_where_it_could_be_compressed() {
    let layers = layers();
    let plan = Allocator::new(Budget::ParameterFraction(1.0)).allocate(&layers).unwrap();
    let mut asked = Vec::new();
    let evaluate = |ranks: &Ranks| {
        asked.push(format!("{ranks:?}"));
        Ok::<f64, Error>(1.0)
    };
    Sensitivities::measure(&layers, &plan, &mut Vec::new(), evaluate, &mut Progress::ignore).unwrap().unwrap();
    // Rank 9 has 9 · 40 parameters, fewer than 400; rank 10 does not.
    assert_eq!(asked, ["{}", r#"{"fc6": 9}"#, r#"{"fc7": 9}"#]);
}

#[test]
fn errors_of_the_callback_keep_the_evaluations_and_are_passed_on() {
    let layers = layers();
    let mut evaluations = Vec::new();
    let failing = |ranks: &Ranks| if ranks.contains_key("fc7") { Err(NoDevice("fc7".into())) } else { Ok(0.5) };
    let error = measure(&layers, &mut evaluations, failing).unwrap_err();
    let message = "Sensitivities::measure: expected a value for `fc7` at rank 5, got an error: no device for fc7";
    assert_eq!(error.to_string(), message);
    assert_eq!(error.source().and_then(|source| source.downcast_ref()), Some(&NoDevice("fc7".into())));
    assert_eq!(error.clone(), error);
    assert_eq!(evaluations.len(), 2);
    // Values that are not finite are errors, and are not kept.
    let error = measure(&layers, &mut evaluations, |_| Ok::<f64, Error>(f64::NAN)).unwrap_err();
    assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
    assert_eq!(evaluations.len(), 2);
    // No evaluation is repeated. A text can be an error.
    let mut asked = 0;
    let rest = |_: &Ranks| {
        asked += 1;
        if asked > 1 { Err("asked for too much") } else { Ok(0.75) }
    };
    measure(&layers, &mut evaluations, rest).unwrap().unwrap();
    assert_eq!(evaluations.len(), 3);
}

#[test]
fn progress_reports_every_evaluation_and_can_cancel_between_them() {
    let layers = layers();
    let plan = uniform(&layers);
    let value = |_: &Ranks| Ok::<f64, Error>(0.5);
    let run = |evaluations: &mut Vec<Evaluation>, progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>| {
        Sensitivities::measure(&layers, &plan, evaluations, value, progress).unwrap()
    };
    let mut evaluations = Vec::new();
    let mut seen = Vec::new();
    let mut once = |progress: &Progress| {
        assert_eq!(progress.total, Some(3));
        seen.push((progress.layer.clone(), progress.finished, progress.done, progress.value));
        // Cancels after the second evaluation.
        if progress.done < 2 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    assert_eq!(run(&mut evaluations, &mut once), None);
    let event =
        |layer: Option<&str>, finished: bool, done| (layer.map(str::to_owned), finished, done, finished.then_some(0.5));
    let fc6 = Some("fc6");
    assert_eq!(seen, [event(None, false, 0), event(None, true, 1), event(fc6, false, 1), event(fc6, true, 2)]);
    assert_eq!(evaluations.len(), 2);
    // If the caller cancels before an evaluation, the function is not called.
    assert_eq!(run(&mut evaluations, &mut |_| ControlFlow::Break(())), None);
    assert_eq!(evaluations.len(), 2);
    // Cancelling after the last evaluation has no effect.
    let mut late =
        |progress: &Progress| if progress.finished { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    assert!(run(&mut evaluations, &mut late).is_some());
    let mut lines = Vec::new();
    let mut print = |progress: &Progress| {
        lines.push(progress.to_string());
        ControlFlow::Continue(())
    };
    run(&mut Vec::new(), &mut print);
    assert_eq!(lines[..3], ["0/3: the original network …", "1/3: the original network, 0.5", "1/3: fc6 …"]);
}

/// Returns the accuracy in thousandths. Each layer lowers it by `each` for every rank below 12.
fn accuracy(each: [usize; 2]) -> impl Fn(&Ranks) -> Result<f64, NoDevice> {
    move |ranks| {
        let lost = |(name, each): (&str, usize)| ranks.get(name).map_or(0, |rank| each * (12 - rank));
        let drop: usize = ["fc6", "fc7"].into_iter().zip(each).map(lost).sum();
        Ok((900.0 - drop as f64) / 1000.0)
    }
}

fn two() -> [LayerProfile; 2] {
    // Each rank of the first layer has 40 parameters, each of the second 50.
    [profile("fc6", (20, 20), 0.8), profile("fc7", (30, 20), 0.9)]
}

fn steps(path: &[Evaluation]) -> Vec<(&str, usize)> {
    path[1..].iter().filter_map(|step| step.layer.as_deref().map(|name| (name, step.ranks[name]))).collect()
}

fn run(
    search: &JointSearch,
    layers: &[LayerProfile],
    value: impl Fn(&Ranks) -> Result<f64, NoDevice>,
) -> (Vec<Evaluation>, usize) {
    let mut evaluations = Vec::new();
    let path = search.run(layers, &mut evaluations, value, &mut Progress::ignore).unwrap();
    (path, evaluations.len())
}

#[test]
fn the_path_of_two_layers_is_the_one_worked_out_by_hand() {
    // fc6 saves parameters from rank 9 on, fc7 from rank 11 on (11 · 50 < 600). Each rank that fc6
    // is below 10 costs one thousandth, each that fc7 is below 12 three.
    let value = |ranks: &Ranks| {
        let lost = |name: &str, full: usize| ranks.get(name).map_or(0, |rank| full - rank);
        Ok((900.0 - (lost("fc6", 10) + 3 * lost("fc7", 12)) as f64) / 1000.0)
    };
    let (path, evaluations) = run(&JointSearch::new(0.010).with_step_ranks(2), &two(), value);
    // Thousandths lost in all with the one or the other compressed further: 1 or 3; 3 or 1 + 3; 5
    // or 3 + 3; 7 or 5 + 3; 9 or 7 + 3. Then fc6 is at its end, and fc7 would make it 9 + 3.
    assert_eq!(steps(&path), [("fc6", 9), ("fc6", 7), ("fc6", 5), ("fc6", 3), ("fc6", 1)]);
    assert_eq!(path.iter().map(|step| step.value).collect::<Vec<_>>(), [0.9, 0.899, 0.897, 0.895, 0.893, 0.891]);
    assert_eq!((path[0].layer.as_ref(), path[0].parameters), (None, 400 + 600));
    assert_eq!(path[5].parameters, 40 + 600);
    assert_eq!(path[5].ranks, [("fc6".to_owned(), 1)].into());
    // The original; two for each of five steps; one that was too much, for there was only one layer
    // left.
    assert_eq!(evaluations, 1 + 5 * 2 + 1);
}

#[test]
fn layers_take_turns_when_each_step_hurts_more_than_the_last() {
    // The loss is quadratic, so the better candidate is the layer that was compressed less. If two
    // are equal, the one with fewer parameters is kept.
    let value = |ranks: &Ranks| {
        let lost = |rank: &usize| (10 - rank.min(&10)).pow(2);
        Ok((1000.0 - ranks.values().map(lost).sum::<usize>() as f64) / 1000.0)
    };
    let layers = [profile("fc6", (20, 20), 0.8), profile("fc7", (20, 20), 0.9), profile("fc8", (22, 20), 0.9)];
    let (path, _) = run(&JointSearch::new(0.012).with_step_ranks(1), &layers, value);
    // fc8 goes to rank 10 for nothing; then all to 9 at one thousandth each, fc8 first since it
    // saves 42 parameters and the others 40; then all to 8 at three more each, 6, 9, 12 in all. One
    // more step would make it 12 + 5.
    let expected = [("fc8", 10), ("fc8", 9), ("fc6", 9), ("fc7", 9), ("fc8", 8), ("fc6", 8), ("fc7", 8)];
    assert_eq!(steps(&path), expected);
    assert_eq!(path[7].value, 0.988);
    assert!(path.is_sorted_by(|a, b| a.parameters > b.parameters), "{path:?}");
}

#[test]
fn a_drop_that_nothing_exceeds_ends_at_the_smallest_ranks() {
    let search = JointSearch::new(0.5).with_step_fraction(0.5).with_min_rank(2);
    let (path, _) = run(&search, &two(), accuracy([1, 1]));
    // 9, 4, 2 and 11, 5, 2.
    assert_eq!((path.len(), path[6].ranks.values().copied().collect::<Vec<_>>()), (1 + 6, vec![2, 2]));
    let (path, _) = run(&JointSearch::new(0.5).with_rank_multiple(4), &two(), accuracy([1, 1]));
    assert_eq!(path.last().unwrap().ranks.values().copied().collect::<Vec<_>>(), [4, 4]);
}

#[test]
fn evaluations_survive_errors_cancelling_and_storage() {
    let layers = two();
    let search = JointSearch::new(0.010).with_step_ranks(1);
    let mut reference = Vec::new();
    let whole = search.run(&layers, &mut reference, accuracy([1, 2]), &mut Progress::ignore).unwrap();

    let mut state = Vec::new();
    let (mut calls, good) = (0, accuracy([1, 2]));
    let failing = |ranks: &Ranks| {
        calls += 1;
        if calls > 4 { Err(NoDevice("the fifth".into())) } else { good(ranks) }
    };
    let error = search.run(&layers, &mut state, failing, &mut Progress::ignore).unwrap_err();
    assert_eq!(error.source().and_then(|source| source.downcast_ref()), Some(&NoDevice("the fifth".into())));
    assert!(matches!(&error, Error::Callback { subject, .. } if subject == "`fc7` at rank 10"), "{error:?}");
    assert_eq!(state.len(), 4);

    let mut later = |progress: &Progress| {
        assert_eq!(progress.total, None);
        if progress.done < 6 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let part = search.run(&layers, &mut state, accuracy([1, 2]), &mut later).unwrap();
    assert_eq!(state.len(), 6);
    assert_eq!(part, whole[..part.len()]);
    let mut early = |_: &Progress| ControlFlow::Break(());
    assert_eq!(search.run(&layers, &mut Vec::new(), accuracy([1, 2]), &mut early).unwrap(), []);

    #[cfg(feature = "serde")]
    {
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Evaluation>>(&text).unwrap(), state);
        state = serde_json::from_str(&text).unwrap();
    }
    let mut more = 0;
    let counted = |ranks: &Ranks| {
        more += 1;
        good(ranks)
    };
    assert_eq!(search.run(&layers, &mut state, counted, &mut Progress::ignore).unwrap(), whole);
    assert_eq!((more + 6, &state), (reference.len(), &reference));
    let refuse = |_: &Ranks| -> Result<f64, NoDevice> { unreachable!() };
    assert_eq!(search.run(&layers, &mut state, refuse, &mut Progress::ignore).unwrap(), whole);

    // Evaluations of a layer that has changed are repeated.
    let others = [layers[0].clone(), profile("fc7", (30, 20), 0.95)];
    search.run(&others, &mut state, accuracy([1, 2]), &mut Progress::ignore).unwrap();
    assert!(state.len() > reference.len());
}

#[test]
fn refusals() {
    let layers = two();
    let refused = |search: &JointSearch, layers: &[LayerProfile]| {
        search.run(layers, &mut Vec::new(), accuracy([1, 1]), &mut Progress::ignore).unwrap_err()
    };
    for search in [
        JointSearch::new(-0.01),
        JointSearch::new(f64::NAN),
        JointSearch::new(0.01).with_step_ranks(0),
        JointSearch::new(0.01).with_step_fraction(1.0),
        JointSearch::new(0.01).with_step_fraction(f64::NAN),
        JointSearch::new(0.01).with_rank_multiple(0),
        JointSearch::new(0.01).with_min_rank(0),
    ] {
        assert!(matches!(refused(&search, &layers), Error::OutOfRange { .. }), "{search:?}");
    }
    let search = JointSearch::new(0.01);
    let twice = refused(&search, &[layers[0].clone(), layers[0].clone()]);
    assert!(matches!(twice, Error::Layers { operation: "JointSearch::run", .. }));
    assert!(matches!(refused(&search, &[]), Error::Empty { .. }));
    let layers = [layers[0].clone(), layers[0].clone()];
    let plan = uniform(&two());
    let measured = Sensitivities::measure(&layers, &plan, &mut Vec::new(), accuracy([1, 1]), &mut Progress::ignore);
    assert!(matches!(measured, Err(Error::Layers { .. })));
}
