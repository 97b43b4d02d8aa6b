//! Sensitivities and the joint search: what is asked, in which order, what is kept when something goes wrong.

mod common;

use std::cell::RefCell;
use std::error::Error as _;
use std::ops::ControlFlow;

use dalr::Error;
use dalr::network::{
    Allocator, Budget, Choice, Completion, Event, JointSearch, LayerProfile, Observer, Plan, Probe, Probes, SearchPath,
    SearchState, Stage, Step, Stop,
};

/// Energies of `ratioⁱ`, complete.
fn profile(name: &str, shape: (usize, usize), ratio: f64) -> LayerProfile {
    let energies: Vec<f64> = (0..shape.0.min(shape.1)).map(|i| ratio.powi(i as i32)).collect();
    LayerProfile::from_energies(name, shape, false, &energies, energies.iter().sum()).unwrap()
}

fn layers() -> Vec<LayerProfile> {
    vec![profile("fc6", (20, 20), 0.8), profile("fc7", (20, 20), 0.9), profile("head", (2, 2), 0.5)]
}

fn uniform(layers: &[LayerProfile]) -> Plan {
    Allocator::new(Budget::ParameterShare(0.6)).allocate(layers).unwrap()
}

/// What a user's own code may fail with.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("no device for {0}")]
struct NoDevice(String);

#[test]
fn a_network_that_is_linear_in_its_layers_losses_is_measured_exactly() {
    let layers = layers();
    let plan = uniform(&layers);
    let asked = RefCell::new(Vec::new());
    let evaluate = |probe: Probe<'_>| match probe {
        Probe::Original => {
            asked.borrow_mut().push(String::new());
            Ok::<f64, Error>(0.25)
        }
        Probe::Layer { name, rank } => {
            asked.borrow_mut().push(name.into());
            let layer = layers.iter().find(|layer| layer.name() == name).unwrap();
            assert_eq!(plan.choice(name), Some(Choice::Rank(rank)));
            Ok(0.25 + if name == "fc6" { 3.0 } else { -0.5 } * layer.loss(rank).unwrap())
        }
        _ => unreachable!(),
    };
    let mut probes = Probes::new();
    assert!(matches!(probes.sensitivities(), Err(Error::Empty { .. })));
    assert_eq!(probes.measure(&layers, &plan, evaluate, &mut ()), Ok(Completion::Finished));
    // The third cannot be made smaller: nothing to ask.
    assert_eq!(asked.take(), ["", "fc6", "fc7"]);
    let sensitivities = probes.sensitivities().unwrap();
    assert!((sensitivities.get("fc6").unwrap() - 3.0).abs() < 1e-13);
    assert!(sensitivities.iter().map(|(name, _)| name).eq(["fc6", "fc7"]));
    assert!(sensitivities.iter().all(|(name, weight)| sensitivities.get(name) == Some(weight)));
    // Better when compressed: noise, not a reason to pay for it.
    assert_eq!((sensitivities.get("fc7"), sensitivities.get("head")), (Some(0.0), None));
    assert!((sensitivities.with_floor(0.1).unwrap().get("fc7").unwrap() - 0.15).abs() < 1e-14);

    // Nothing is asked twice, but for a layer that is no longer the same.
    assert_eq!(probes.measure(&layers, &plan, evaluate, &mut ()), Ok(Completion::Finished));
    assert_eq!(asked.take(), [""; 0]);
    let mut changed = layers.clone();
    changed[1] = profile("fc7", (20, 20), 0.95);
    let elsewhere = |probe: Probe<'_>| {
        asked.borrow_mut().push(format!("{probe:?}"));
        Ok::<f64, Error>(1.0)
    };
    assert_eq!(probes.measure(&changed, &plan, elsewhere, &mut ()), Ok(Completion::Finished));
    assert_eq!(asked.take(), [format!("{:?}", Probe::Layer { name: "fc7", rank: 5 })]);
}

#[test]
fn a_layer_that_the_plan_leaves_dense_is_measured_where_it_could_be_compressed() {
    let layers = layers();
    let plan = Allocator::new(Budget::ParameterShare(1.0)).allocate(&layers).unwrap();
    let mut asked = Vec::new();
    let evaluate = |probe: Probe<'_>| {
        asked.push(format!("{probe:?}"));
        Ok::<f64, Error>(1.0)
    };
    assert_eq!(Probes::new().measure(&layers, &plan, evaluate, &mut ()), Ok(Completion::Finished));
    // 9 · 40 is below 400, 10 · 40 is not.
    let expected = [Probe::Original, Probe::Layer { name: "fc6", rank: 9 }, Probe::Layer { name: "fc7", rank: 9 }];
    assert_eq!(asked, expected.map(|probe| format!("{probe:?}")));
}

#[test]
fn errors_of_the_callback_keep_the_probes_and_are_passed_on() {
    let layers = layers();
    let plan = uniform(&layers);
    let mut probes = Probes::new();
    let failing = |probe: Probe<'_>| match probe {
        Probe::Layer { name: "fc7", .. } => Err(NoDevice("fc7".into())),
        _ => Ok(0.5),
    };
    let error = probes.measure(&layers, &plan, failing, &mut ()).unwrap_err();
    assert_eq!(error.to_string(), "Probes::measure: expected a value for layer `fc7`, got an error: no device for fc7");
    assert_eq!(error.source().and_then(|source| source.downcast_ref()), Some(&NoDevice("fc7".into())));
    assert_eq!(error.clone(), error);
    assert_eq!(probes.len(), 1);
    // Values that are no values are refused, and not kept.
    let error = probes.measure(&layers, &plan, |_| Ok::<f64, Error>(f64::NAN), &mut ()).unwrap_err();
    assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
    assert_eq!(probes.len(), 1);
    // What was measured is not measured again; a message will do for an error.
    let mut asked = 0;
    let rest = |_: Probe<'_>| {
        asked += 1;
        if asked > 1 { Err("asked for too much") } else { Ok(0.75) }
    };
    assert_eq!(probes.measure(&layers, &plan, rest, &mut ()), Ok(Completion::Finished));
    assert_eq!(probes.len(), 2);
}

#[test]
fn observers_see_every_probe_and_can_stop_between_them() {
    let layers = layers();
    let plan = uniform(&layers);
    let mut probes = Probes::new();
    let mut seen = Vec::new();
    let mut once = |event: &Event<'_>| {
        assert_eq!((event.stage(), event.total()), (Stage::Sensitivity, Some(3)));
        seen.push((event.layer().to_owned(), event.is_finished(), event.done(), event.value()));
        // After the second probe.
        if event.done() < 2 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let value = |_: Probe<'_>| Ok::<f64, Error>(0.5);
    assert_eq!(probes.measure(&layers, &plan, value, &mut once), Ok(Completion::Cancelled));
    let event = |layer: &str, finished: bool, done| (layer.to_owned(), finished, done, finished.then_some(0.5));
    let expected = [event("", false, 0), event("", true, 1), event("fc6", false, 1), event("fc6", true, 2)];
    assert_eq!(seen, expected);
    assert_eq!(probes.len(), 1);
    // Before a probe: the function is not called.
    let mut never = |_: &Event<'_>| ControlFlow::Break(());
    let refuse = |_: Probe<'_>| -> Result<f64, Error> { unreachable!() };
    assert_eq!(probes.measure(&layers, &plan, refuse, &mut never), Ok(Completion::Cancelled));
    // To ask to stop after the last is to ask for nothing.
    let mut late =
        |event: &Event<'_>| if event.is_finished() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    assert_eq!(probes.measure(&layers, &plan, value, &mut late), Ok(Completion::Finished));
    let mut lines = Vec::new();
    let mut print = |event: &Event<'_>| {
        lines.push(event.to_string());
        ControlFlow::Continue(())
    };
    let _ = Probes::new().measure(&layers, &plan, value, &mut print);
    assert_eq!(
        lines[..3],
        [
            "sensitivity 0/3: the network as it was …",
            "sensitivity 1/3: the network as it was, 0.5",
            "sensitivity 1/3: fc6 …"
        ]
    );
}

/// Accuracy in thousandths, so that the path can be worked out by hand: each layer costs so many for every rank it lost.
fn accuracy(each: [u32; 2]) -> impl Fn(&[Choice]) -> Result<f64, NoDevice> {
    move |choices| {
        let lost = |choice: &Choice| match choice {
            Choice::Rank(rank) => 12 - *rank as u32,
            _ => 0,
        };
        let drop: u32 = choices.iter().zip(each).map(|(choice, each)| each * lost(choice)).sum();
        Ok(f64::from(900 - drop) / 1000.0)
    }
}

fn two() -> [LayerProfile; 2] {
    // The first saves 40 parameters with every rank, the second 50.
    [profile("fc6", (20, 20), 0.8), profile("fc7", (30, 20), 0.9)]
}

fn steps(path: &SearchPath) -> Vec<(&str, usize)> {
    let rank = |choice| match choice {
        Choice::Rank(rank) => rank,
        _ => 0,
    };
    path.steps().iter().map(|step| (step.layer(), rank(step.choice()))).collect()
}

#[test]
fn the_path_of_two_layers_is_the_one_worked_out_by_hand() {
    // fc6 saves parameters from rank 9 on, fc7 from rank 11 on (11 · 50 < 600). Each rank that fc6 is below 10 costs one thousandth, each that fc7
    // is below 12 three.
    let value = |choices: &[Choice]| -> Result<f64, NoDevice> {
        let lost = |choice: &Choice, full: i32| if let Choice::Rank(rank) = choice { full - *rank as i32 } else { 0 };
        let drop = lost(&choices[0], 10) + 3 * lost(&choices[1], 12);
        Ok(f64::from(900 - drop) / 1000.0)
    };
    let mut state = SearchState::new();
    let search = JointSearch::new(0.010).with_step(Step::Ranks(2));
    let path = search.run(&two(), &mut state, value, &mut ()).unwrap();
    // Thousandths lost in all with the one or the other compressed further: 1 or 3; 3 or 1 + 3; 5 or 3 + 3; 7 or 5 + 3; 9 or 7 + 3. Then fc6 is at
    // its end, and fc7 would make it 9 + 3.
    assert_eq!(steps(&path), [("fc6", 9), ("fc6", 7), ("fc6", 5), ("fc6", 3), ("fc6", 1)]);
    let accuracies: Vec<f64> = path.steps().iter().map(|step| step.accuracy()).collect();
    assert_eq!(accuracies, [0.899, 0.897, 0.895, 0.893, 0.891]);
    assert_eq!(path.steps()[4].parameters(), 40 + 600);
    assert_eq!((path.stop(), path.original(), path.accuracy()), (Stop::Drop, 0.9, 0.891));
    assert_eq!(path.choices(), [Choice::Rank(1), Choice::Dense]);
    // The original; two for each of five steps; one that was too much, for there was only one layer left.
    assert_eq!(state.len(), 1 + 5 * 2 + 1);
}

#[test]
fn layers_take_turns_when_each_step_hurts_more_than_the_last() {
    // Squares: the better option is the layer that was compressed less; equals go to the one that leaves fewer parameters.
    let value = |choices: &[Choice]| -> Result<f64, NoDevice> {
        let lost = |choice: &Choice| if let Choice::Rank(rank) = choice { (10 - *rank.min(&10)) as i32 } else { 0 };
        Ok(f64::from(1000 - choices.iter().map(|choice| lost(choice).pow(2)).sum::<i32>()) / 1000.0)
    };
    let layers = [profile("fc6", (20, 20), 0.8), profile("fc7", (20, 20), 0.9), profile("fc8", (22, 20), 0.9)];
    let mut state = SearchState::new();
    let search = JointSearch::new(0.012).with_step(Step::Ranks(1));
    let path = search.run(&layers, &mut state, value, &mut ()).unwrap();
    // fc8 goes to rank 10 for nothing; then all to 9 at one thousandth each, fc8 first since it saves 42 parameters and the others 40; then all to 8
    // at three more each, 6, 9, 12 in all. One more step would make it 12 + 5.
    let expected = [("fc8", 10), ("fc8", 9), ("fc6", 9), ("fc7", 9), ("fc8", 8), ("fc6", 8), ("fc7", 8)];
    assert_eq!(steps(&path), expected);
    assert_eq!((path.stop(), path.accuracy()), (Stop::Drop, 0.988));
    let parameters: Vec<u64> = path.steps().iter().map(|step| step.parameters()).collect();
    assert!(parameters.is_sorted_by(|a, b| a > b), "{parameters:?}");
}

#[test]
fn a_drop_that_nothing_exceeds_ends_at_the_smallest_ranks() {
    let search = JointSearch::new(0.5).with_step(Step::Share(0.5)).with_min_rank(2);
    let path = search.run(&two(), &mut SearchState::new(), accuracy([1, 1]), &mut ()).unwrap();
    assert_eq!(path.stop(), Stop::Exhausted);
    assert_eq!(path.choices(), [Choice::Rank(2), Choice::Rank(2)]);
    // 9, 4, 2 and 11, 5, 2.
    assert_eq!(path.steps().len(), 6);
    let search = JointSearch::new(0.5).with_rank_multiple(4);
    let path = search.run(&two(), &mut SearchState::new(), accuracy([1, 1]), &mut ()).unwrap();
    assert_eq!(path.choices(), [Choice::Rank(4), Choice::Rank(4)]);
}

#[test]
fn evaluations_survive_errors_cancelling_and_storage() {
    let layers = two();
    let search = JointSearch::new(0.010).with_step(Step::Ranks(1));
    let mut reference = SearchState::new();
    let whole = search.run(&layers, &mut reference, accuracy([1, 2]), &mut ()).unwrap();

    let mut state = SearchState::new();
    let (mut calls, good) = (0, accuracy([1, 2]));
    let failing = |choices: &[Choice]| {
        calls += 1;
        if calls > 4 { Err(NoDevice("the fifth".into())) } else { good(choices) }
    };
    let error = search.run(&layers, &mut state, failing, &mut ()).unwrap_err();
    assert_eq!(error.source().and_then(|source| source.downcast_ref()), Some(&NoDevice("the fifth".into())));
    assert!(matches!(&error, Error::Callback { subject, .. } if subject == "`fc7` at rank 10"), "{error:?}");
    assert_eq!(state.len(), 4);

    let mut later = |event: &Event<'_>| {
        assert_eq!((event.stage(), event.total()), (Stage::Search, None));
        if event.done() < 6 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let part = search.run(&layers, &mut state, accuracy([1, 2]), &mut later).unwrap();
    assert_eq!((part.stop(), state.len()), (Stop::Cancelled, 6));
    assert_eq!(part.steps(), &whole.steps()[..part.steps().len()]);
    let early = &mut |_: &Event<'_>| ControlFlow::Break(());
    let none = search.run(&layers, &mut SearchState::new(), accuracy([1, 2]), early as &mut dyn Observer).unwrap();
    assert!(none.original().is_nan() && none.choices().is_empty() && none.stop() == Stop::Cancelled);

    #[cfg(feature = "serde")]
    {
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<SearchState>(&text).unwrap(), state);
        state = serde_json::from_str(&text).unwrap();
    }
    let mut more = 0;
    let counted = |choices: &[Choice]| {
        more += 1;
        good(choices)
    };
    assert_eq!(search.run(&layers, &mut state, counted, &mut ()).unwrap(), whole);
    assert_eq!((more + 6, &state), (reference.len(), &reference));
    let refuse = |_: &[Choice]| -> Result<f64, NoDevice> { unreachable!() };
    assert_eq!(search.run(&layers, &mut state, refuse, &mut ()).unwrap(), whole);

    let others = [layers[0].clone(), profile("fc7", (31, 20), 0.9)];
    let error = search.run(&others, &mut state, accuracy([1, 2]), &mut ()).unwrap_err();
    assert!(matches!(error, Error::Layers { .. }), "{error}");
}

#[test]
fn refusals() {
    let layers = two();
    let refused = |search: JointSearch| search.run(&layers, &mut SearchState::new(), accuracy([1, 1]), &mut ());
    for search in [
        JointSearch::new(-0.01),
        JointSearch::new(f64::NAN),
        JointSearch::new(0.01).with_step(Step::Ranks(0)),
        JointSearch::new(0.01).with_step(Step::Share(1.0)),
        JointSearch::new(0.01).with_step(Step::Share(f64::NAN)),
        JointSearch::new(0.01).with_rank_multiple(0),
        JointSearch::new(0.01).with_min_rank(0),
    ] {
        assert!(matches!(refused(search.clone()), Err(Error::OutOfRange { .. })), "{search:?}");
    }
    let twice = [layers[0].clone(), layers[0].clone()];
    let search = JointSearch::new(0.01);
    assert!(matches!(
        search.run(&twice, &mut SearchState::new(), accuracy([1, 1]), &mut ()),
        Err(Error::Layers { operation: "JointSearch::run", .. })
    ));
    assert!(matches!(search.run(&[], &mut SearchState::new(), accuracy([1, 1]), &mut ()), Err(Error::Empty { .. })));
}
