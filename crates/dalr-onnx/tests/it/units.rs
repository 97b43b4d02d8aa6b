//! Pairs of layers around hidden units.

use dalr::compress::HiddenUnits;
use dalr::faer::MatRef;
use dalr::{ActivationStats, Linear};
use dalr_onnx::{LayerKind, Model, UnitPair};

use super::build::{Builder, Value};
use super::run::run;
use super::{inputs, keep, same_outputs};

fn pairs(builder: &Builder) -> Vec<UnitPair> {
    Model::from_bytes(builder.build(), None).unwrap().unit_pairs().to_vec()
}

/// Replaces the only pair of the model by layers with a unit less. One unit of the model does not
/// vary, so that the outputs stay.
#[track_caller]
fn check(name: &str, builder: &Builder) -> Model {
    let bytes = builder.build();
    let mut model = Model::from_bytes(bytes.clone(), None).unwrap();
    let [pair] = model.unit_pairs() else { panic!("{name}: {:?}", model.unit_pairs()) };
    let pair = pair.clone();
    let hidden = hidden(&model, &pair);
    let linear = |layer: &str| model.linear_layers::<f64>(layer).unwrap().remove(0);
    let (first, second) = (linear(&pair.first), linear(&pair.second));
    let mut stats = ActivationStats::new(second.in_features());
    stats.update(hidden.as_ref()).unwrap();
    let options = dalr::compress::HiddenUnitSelection::new().with_inputs_per_unit(pair.inputs_per_unit);
    let units = match &pair.gate {
        None => options.solve(&first, &second, &stats),
        Some(gate) => options.solve_gated(&linear(gate), &first, &second, &stats),
    };
    let units: HiddenUnits<f64> = units.unwrap();
    let kept = pair.units - 1;
    model.replace_units(&pair.second, &units.select(kept).unwrap()).unwrap();
    let changed = model.to_bytes().unwrap();
    keep(name, &bytes);
    keep(&format!("{name}.units"), &changed);
    same_outputs(&bytes, &changed, 1e-5, name);
    let again = Model::from_bytes(changed, None).unwrap();
    let [found] = again.unit_pairs() else { panic!("{name}: {:?}", again.unit_pairs()) };
    assert_eq!((found.units, found.gate.is_some()), (kept, pair.gate.is_some()), "{name}");
    assert!(model.replace_units(&pair.second, &units.select(kept).unwrap()).is_err());
    again
}

/// The inputs of the second layer, samples × inputs.
fn hidden(model: &Model, pair: &UnitPair) -> dalr::faer::Mat<f64> {
    let bytes = model.bytes_with_outputs(&[&pair.hidden]).unwrap();
    let outputs = run(&bytes, &inputs(model));
    let (_, array) = outputs.into_iter().find(|(name, _)| *name == pair.hidden).unwrap();
    match &model.layer(&pair.second).unwrap().kind {
        LayerKind::Convolution(_) => {
            let size = (array.dims[2], array.dims[3]);
            let conv = model.conv2d::<f64>(&pair.second, size).unwrap();
            let columns = array.data.len() / array.dims[0];
            let images = MatRef::from_row_major_slice(&array.data, array.dims[0], columns);
            conv.unfold(images, size, 0).unwrap()
        }
        _ => {
            let columns = pair.units;
            MatRef::from_row_major_slice(&array.data, array.data.len() / columns, columns).to_owned()
        }
    }
}

/// A bias that keeps the last of the hidden units from ever being positive.
fn bias(builder: Builder, name: &str, units: usize) -> Builder {
    let mut numbers = super::build::numbers(units, 7);
    *numbers.last_mut().unwrap() = -1000.0;
    builder.tensor(name, &[units], &numbers)
}

fn perceptron() -> Builder {
    let builder = Builder::new().input("x", &["batch", "8", "4"]).weight("w", &[4, 6]).weight("v", &[6, 3]);
    bias(builder, "b", 6).bias("c", &[3])
}

#[test]
fn linear_layers_around_an_activation() {
    let first = perceptron().node("MatMul", "x w", "p", &[]).node("Add", "p b", "h", &[]);
    let first = first.info("h", &["batch", "8", "6"]).info("a", &["batch", "8", "6"]);
    let second = |builder: Builder| {
        builder.node("MatMul", "a v", "q", &[]).node("Add", "c q", "y", &[]).output("y", &["batch", "8", "3"])
    };
    let relu = second(first.clone().node("Relu", "h", "a", &[]));
    assert_eq!(pairs(&relu)[0].units, 6);
    let smaller = check("units_relu", &relu).to_bytes().unwrap();
    // The types of values of another size are gone.
    let graph = super::run::Message::new(&smaller).messages(7).pop().unwrap();
    assert_eq!(graph.messages(13).len(), 0);
    let sigmoid = first.clone().node("Sigmoid", "h", "s", &[]).node("Mul", "h s", "a", &[]);
    check("units_silu", &second(sigmoid));
    // Nothing else may read the units, and the nodes between must not mix them.
    let read = second(first.clone().node("Relu", "h", "a", &[])).node("Tanh", "h", "z", &[]).output("z", &[]);
    assert!(pairs(&read).is_empty());
    let output = second(first.clone().node("Relu", "h", "a", &[])).output("a", &[]);
    assert!(pairs(&output).is_empty());
    assert!(pairs(&second(first.clone().node("Softmax", "h", "a", &[]))).is_empty());
    let residual = first.clone().input("r", &["batch", "8", "6"]).node("Add", "h r", "a", &[]);
    assert!(pairs(&second(residual)).is_empty());
    let scaled = first.bias("s", &[6]).node("Mul", "h s", "a", &[]);
    assert!(pairs(&second(scaled)).is_empty());
}

#[test]
fn gemms_and_gated_units() {
    let builder = Builder::new().input("x", &["batch", "4"]).weight("w", &[6, 4]).weight("v", &[3, 6]);
    let transposed = [("transB", Value::Int(1))];
    let gemm = bias(builder, "b", 6).bias("c", &[3]).node("Gemm", "x w b", "h", &transposed);
    let gemm = gemm.node("Relu", "h", "a", &[]).node("Gemm", "a v c", "y", &transposed).output("y", &["batch", "3"]);
    check("units_gemm", &gemm);
    let builder = perceptron().weight("g", &[4, 6]).node("MatMul", "x g", "r", &[]).node("Add", "r b", "k", &[]);
    let gated = builder.node("Relu", "k", "s", &[]).node("MatMul", "x w", "u", &[]).node("Mul", "s u", "a", &[]);
    let gated = gated.node("MatMul", "a v", "y", &[]).output("y", &["batch", "8", "3"]);
    assert!(pairs(&gated)[0].gate.is_some());
    check("units_gated", &gated);
}

#[test]
fn convolutions() {
    let builder =
        Builder::new().input("x", &["2", "3", "8", "8"]).weight("w", &[5, 3, 3, 3]).weight("v", &[4, 5, 2, 2]);
    let builder = bias(builder, "b", 5).node("Conv", "x w b", "h", &[]).node("Relu", "h", "a", &[]);
    let builder = builder.node("Conv", "a v", "y", &[]).output("y", &["2", "4", "5", "5"]);
    assert_eq!((pairs(&builder)[0].units, pairs(&builder)[0].inputs_per_unit), (5, 4));
    check("units_conv", &builder);
    let groups = [("group", Value::Int(5))];
    let depthwise =
        Builder::new().input("x", &["2", "3", "8", "8"]).weight("w", &[5, 3, 3, 3]).weight("d", &[5, 1, 3, 3]);
    let depthwise =
        depthwise.weight("v", &[4, 5, 1, 1]).node("Conv", "x w", "h", &[]).node("Conv", "h d", "a", &groups);
    assert!(pairs(&depthwise.node("Conv", "a v", "y", &[]).output("y", &[])).is_empty());
}

#[test]
fn layers_of_other_shapes_are_refused() {
    let model = perceptron().node("MatMul", "x w", "p", &[]).node("Add", "p b", "h", &[]).node("Relu", "h", "a", &[]);
    let model = model.node("MatMul", "a v", "y", &[]).output("y", &["batch", "8", "3"]).build();
    let mut model = Model::from_bytes(model, None).unwrap();
    let linear = |m, n| Linear::new(dalr::faer::Mat::<f64>::zeros(m, n), None).unwrap();
    let mut stats = ActivationStats::new(5);
    stats.update(dalr::faer::Mat::<f64>::identity(5, 5).as_ref()).unwrap();
    let other = HiddenUnits::new(&linear(5, 4), &linear(2, 5), &stats).unwrap().select(3).unwrap();
    let before = model.to_bytes().unwrap();
    let second = model.unit_pairs()[0].second.clone();
    let message = model.replace_units(&second, &other).unwrap_err().to_string();
    assert!(message.contains("expected a weight of 3 × 3"), "{message}");
    assert_eq!(model.to_bytes().unwrap(), before);
    assert!(model.replace_units("p", &other).is_err());
}
