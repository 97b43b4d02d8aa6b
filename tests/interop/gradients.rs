//! Gradients of candle's autograd, against finite differences.

use candle_core::{D, DType, Device, Tensor};
use candle_nn::ops::{layer_norm_slow, softmax, softmax_last_dim};
use candle_nn::{Activation, LayerNorm, Linear, Module};
use dalr::ActivationStats;
use dalr::interop::candle::Recorder;
use faer::Mat;

const CPU: Device = Device::Cpu;

fn wave(rows: usize, columns: usize, step: f64) -> Tensor {
    let numbers = (0..rows * columns).map(|i| (i as f64 * step + step).sin()).collect::<Vec<f64>>();
    Tensor::from_vec(numbers, (rows, columns), &CPU).unwrap()
}

/// Attention over its own outputs, a residual connection and a norm, between two layers.
struct Model {
    layers: [Box<dyn Module>; 2],
    fused: bool,
}

const WIDTH: usize = 5;

fn linear(which: usize, outputs: usize) -> Linear {
    let step = [0.7, 1.3][which];
    Linear::new(wave(outputs, WIDTH, step), Some(wave(1, outputs, 0.4).squeeze(0).unwrap()))
}

impl Model {
    fn new(outputs: usize, mut wrap: impl FnMut(usize, Linear) -> Box<dyn Module>) -> Self {
        Self { layers: [wrap(0, linear(0, WIDTH)), wrap(1, linear(1, outputs))], fused: false }
    }

    /// Outputs of shape texts × outputs, for inputs of shape texts × tokens × width.
    fn forward(&self, inputs: &Tensor) -> candle_core::Result<Tensor> {
        let first = self.layers[0].forward(inputs)?;
        let scores = (first.matmul(&first.t()?)? * 0.3)?;
        let attention = if self.fused { softmax_last_dim(&scores)? } else { softmax(&scores, D::Minus1)? };
        let mixed = (attention.matmul(inputs)? + inputs.gelu_erf()?)?;
        let (scale, shift) = (wave(1, WIDTH, 0.9).squeeze(0)?, wave(1, WIDTH, 0.2).squeeze(0)?);
        let normal = layer_norm_slow(&mixed, &scale, &shift, 1e-5)?;
        self.layers[1].forward(&normal)?.tanh()?.sum(1)
    }
}

/// Adds a fixed tensor to the outputs of a layer.
struct Shifted(Linear, Option<Tensor>);

impl Module for Shifted {
    fn forward(&self, inputs: &Tensor) -> candle_core::Result<Tensor> {
        let outputs = self.0.forward(inputs)?;
        self.1.as_ref().map_or(Ok(outputs.clone()), |shift| outputs + shift)
    }
}

fn second_moment(stats: &ActivationStats<f64>) -> Mat<f64> {
    let mean = stats.mean().unwrap();
    stats.covariance().unwrap() + &mean * mean.transpose()
}

const TEXTS: usize = 3;
const TOKENS: usize = 4;

fn inputs() -> Tensor {
    wave(TEXTS * TOKENS, WIDTH, 0.37).reshape((TEXTS, TOKENS, WIDTH)).unwrap()
}

/// `E[Jᵀ J]` with respect to the outputs of a layer, by finite differences.
fn expected(layer: usize, outputs: usize) -> Mat<f64> {
    let width = [WIDTH, outputs][layer];
    let step = 1e-5;
    let run = |text: usize, token: usize, entry: usize, step: f64| {
        let mut shift = vec![0.0; TEXTS * TOKENS * width];
        shift[(text * TOKENS + token) * width + entry] = step;
        let shift = Tensor::from_vec(shift, (TEXTS, TOKENS, width), &CPU).unwrap();
        let wrap = |at, linear| Box::new(Shifted(linear, (at == layer).then(|| shift.clone()))) as Box<dyn Module>;
        Model::new(outputs, wrap).forward(&inputs()).unwrap().to_vec2::<f64>().unwrap()
    };
    let mut moment = Mat::zeros(width, width);
    for (text, token) in (0..TEXTS).flat_map(|text| (0..TOKENS).map(move |token| (text, token))) {
        let slope = |output: usize, entry: usize| {
            let [above, below] = [step, -step].map(|step| run(text, token, entry, step)[text][output]);
            (above - below) / (2.0 * step)
        };
        let jacobian = Mat::from_fn(outputs, width, slope);
        moment += jacobian.transpose() * &jacobian * faer::Scale(1.0 / (TEXTS * TOKENS) as f64);
    }
    moment
}

fn watched(recorder: &Recorder<f64>, outputs: usize) -> Model {
    Model::new(outputs, |at, linear| Box::new(recorder.watch_gradients(["first", "second"][at], linear).unwrap()))
}

#[test]
fn gradients_are_finite_differences() {
    // The gradients of one output are exact, those of two an average over probes.
    for (outputs, probes, tolerance) in [(1, 2, 1e-7), (2, 1000, 0.1)] {
        let recorder = Recorder::<f64>::new();
        let model = watched(&recorder, outputs);
        recorder.gradients(probes, || model.forward(&inputs())).unwrap();
        let found = recorder.take();
        for (layer, name) in ["first", "second"].into_iter().enumerate() {
            assert_eq!(found[name].samples(), (probes * TEXTS * TOKENS) as u64);
            let (found, expected) = (second_moment(&found[name]), expected(layer, outputs));
            let off = (&found - &expected).norm_l2() / expected.norm_l2();
            println!("{outputs} outputs, `{name}`: {off:e}");
            assert!(off < tolerance, "{outputs} outputs, `{name}`: {off}, {found:?} {expected:?}");
        }
    }
}

#[test]
fn a_layer_without_a_gradient_is_named() {
    let recorder = Recorder::<f64>::new();
    let mut model = watched(&recorder, 2);
    model.fused = true;
    let error = recorder.gradients(1, || model.forward(&inputs())).unwrap_err().to_string();
    assert!(
        error.starts_with("layer `first`: Recorder::gradients: expected a gradient") && error.contains("softmax"),
        "{error}"
    );
    assert!(recorder.take().is_empty());
    model.fused = false;
    recorder.gradients(1, || model.forward(&inputs())).unwrap();
    assert_eq!(recorder.take().len(), 2);

    // candle's layer norm cuts gradients too. It computes in single precision only.
    let ones = Tensor::ones(WIDTH, DType::F32, &CPU).unwrap();
    let norm = LayerNorm::new(ones.clone(), ones, 1e-5);
    let recorder = Recorder::<f32>::new();
    let layer = recorder.watch_gradients("dense", Activation::Relu).unwrap();
    let batch = inputs().to_dtype(DType::F32).unwrap();
    let error = recorder.gradients(1, || norm.forward(&layer.forward(&batch)?)).unwrap_err();
    assert!(error.to_string().starts_with("layer `dense`: "), "{error}");
}

#[test]
fn gradients_are_recorded_on_demand_with_weights_and_the_same_every_time() {
    let run = |weights: Option<&Tensor>| {
        let recorder = Recorder::<f64>::new();
        let model = watched(&recorder, 2);
        let batch = inputs();
        // Without `gradients`, and paused, the layers run as usual.
        let plain = Model::new(2, |_, linear| Box::new(linear)).forward(&batch).unwrap();
        let same = |outputs: Tensor| assert_eq!(outputs.to_vec2::<f64>().unwrap(), plain.to_vec2::<f64>().unwrap());
        same(model.forward(&batch).unwrap());
        recorder.pause(true);
        assert!(recorder.gradients(1, || model.forward(&batch)).is_err());
        recorder.pause(false);
        assert!(recorder.take().is_empty());
        let gradients = || recorder.gradients(3, || model.forward(&batch).inspect(|outputs| same(outputs.clone())));
        match weights {
            Some(weights) => recorder.weighted(weights, gradients).unwrap(),
            None => gradients().unwrap(),
        }
        recorder.take()["first"].clone()
    };
    assert_eq!(second_moment(&run(None)), second_moment(&run(None)));
    let mask = Tensor::new(&[[1_u32, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], &CPU).unwrap();
    assert_eq!(run(Some(&mask)).samples(), 3 * 7);

    let recorder = Recorder::<f64>::new();
    let layer = recorder.watch_gradients("dense", Activation::Relu).unwrap();
    let again = recorder.watch("dense", Activation::Relu).unwrap_err();
    assert_eq!(again.to_string(), "Recorder::watch: expected a name that is not watched yet, got `dense` again");
    let error = |probes, run: &dyn Fn() -> candle_core::Result<Tensor>| {
        recorder.gradients(probes, run).unwrap_err().to_string()
    };
    assert!(error(0, &|| layer.forward(&inputs())).contains("the number of probes to be at least 1, got 0"));
    assert!(error(1, &|| Ok(inputs())).contains("a model that runs none"));
    assert!(error(1, &|| candle_core::bail!("the model's own")).contains("the model's own"));
    // A failed run leaves nothing behind.
    let _ = error(1, &|| layer.forward(&inputs()).and_then(|_| candle_core::bail!("later")));
    recorder.gradients(1, || layer.forward(&inputs())).unwrap();
    assert_eq!(recorder.take()["dense"].samples(), 12);
}
