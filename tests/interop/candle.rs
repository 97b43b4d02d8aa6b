//! Tensors and layers of candle.

use std::collections::HashMap;

use candle_core::{DType, Device, IndexOp, Tensor, Var, WithDType};
use candle_nn::{Activation, Conv2dConfig, Module, Optimizer, SGD, VarBuilder, VarMap, seq};
use dalr::convolution::{Conv2d, ConvOptions, PatchStats};
use dalr::interop::candle::{
    LowRankConv2d, LowRankLinear, PivotedLinear, Recorder, samples, to_candle_conv2d, to_candle_linear, to_tensor,
    update, update_patches, update_weighted,
};
use dalr::{ActivationStats, Dalr, Error, Linear, LowRankCompressor, Rank, Scalar};
use faer::{Col, Mat, MatRef};

const CPU: Device = Device::Cpu;

/// Returns small whole numbers, which every dtype represents exactly.
fn entry(i: usize, j: usize) -> f64 {
    ((i * 11 + j * j * 7 + i * j) % 13) as f64 - 4.0
}

fn tensor(shape: impl Into<candle_core::Shape>, dtype: DType) -> Tensor {
    let shape = shape.into();
    let width = *shape.dims().last().unwrap();
    let numbers = (0..shape.elem_count()).map(|i| entry(i / width, i % width)).collect::<Vec<f64>>();
    Tensor::from_vec(numbers, shape, &CPU).unwrap().to_dtype(dtype).unwrap()
}

fn compressed<T: Scalar>(layer: &Linear<T>, stats: &ActivationStats<T>) -> dalr::LowRankLinear<T> {
    Dalr::new().compress(layer, stats, Rank::Fixed(3)).unwrap().into_layer()
}

fn example<T: Scalar>() -> dalr::LowRankLinear<T> {
    let number = |i, j| T::from_f64(entry(i, j));
    let bias = Some(Col::from_fn(5, |i| number(i, 1)));
    dalr::LowRankLinear::new(Mat::from_fn(3, 6, number), Mat::from_fn(5, 3, number), bias).unwrap()
}

#[test]
fn batches_of_every_type_and_layout_are_read_as_they_are() {
    fn check<T: Scalar + WithDType>(types: &[DType]) {
        let expected = Mat::from_fn(24, 6, |i, j| <T as Scalar>::from_f64(entry(i, j)));
        let mut stats = ActivationStats::<T>::new(6);
        stats.update(expected.as_ref()).unwrap();
        let layer = Linear::new(Mat::from_fn(9, 6, |i, j| <T as Scalar>::from_f64(entry(j, i + 3))), None).unwrap();
        let reference = compressed(&layer, &stats);
        for &dtype in types {
            let whole = tensor((4, 6, 6), dtype);
            let turned = whole.transpose(0, 1).unwrap().contiguous().unwrap().transpose(0, 1).unwrap();
            assert!(!turned.is_contiguous());
            let wide = Tensor::cat(&[&tensor((4, 6, 2), dtype), &whole, &tensor((4, 6, 1), dtype)], 2).unwrap();
            let inputs_first = whole.reshape((24, 6)).unwrap().t().unwrap().contiguous().unwrap().t().unwrap();
            let padded = Tensor::cat(&[&tensor((1, 6, 6), dtype), &whole], 0).unwrap();
            let layouts = [
                whole.clone(),
                whole.reshape((24, 6)).unwrap(),
                whole.reshape((2, 2, 3, 2, 6)).unwrap(),
                turned,
                wide.narrow(2, 2, 6).unwrap(),
                inputs_first,
                padded.i(1..).unwrap(), // contiguous, but not from the start
                Var::from_tensor(&whole).unwrap().into_inner(),
            ];
            for batch in layouts {
                let mut stats = ActivationStats::<T>::new(6);
                update(&mut stats, &batch).unwrap();
                assert_eq!(compressed(&layer, &stats), reference, "{dtype:?}, {:?}", batch.layout());
                assert_eq!(samples::<T>(&batch).unwrap(), expected);
            }
            let repeated = tensor((1, 6), dtype).broadcast_as((3, 6)).unwrap();
            assert_eq!(samples::<T>(&repeated).unwrap(), Mat::from_fn(3, 6, |_, j| expected[(0, j)]));
            let single = samples::<T>(&whole.i((1, 2)).unwrap()).unwrap();
            assert_eq!(single, expected.subrows(8, 1));
        }
    }
    check::<f32>(&[DType::F32, DType::F16, DType::BF16]);
    check::<f64>(&[DType::F64, DType::F32, DType::F16, DType::BF16]);
}

#[test]
fn weights_are_read_from_masks_and_numbers_of_any_type() {
    let batch = tensor((2, 3, 6), DType::F32);
    let kept = Mat::from_fn(4, 6, |i, j| entry([0, 1, 3, 4][i], j) as f32);
    let mut expected = ActivationStats::<f32>::new(6);
    expected.update(kept.as_ref()).unwrap();
    for dtype in [DType::U8, DType::U32, DType::I64, DType::F16, DType::F32, DType::F64] {
        let mask = Tensor::new(&[[1_u8, 1, 0], [1, 1, 0]], &CPU).unwrap().to_dtype(dtype).unwrap();
        let mut stats = ActivationStats::<f32>::new(6);
        update_weighted(&mut stats, &batch, &mask).unwrap();
        assert_eq!(stats.samples(), 4);
        assert_eq!(stats.covariance().unwrap(), expected.covariance().unwrap(), "{dtype:?}");
    }
    let mut stats = ActivationStats::<f32>::new(6);
    let fractions = Tensor::new(&[[0.5, 0.25, 0.0], [1.0, 0.0, 0.0]], &CPU).unwrap();
    update_weighted(&mut stats, &batch, &fractions).unwrap();
    assert_eq!((stats.samples(), stats.total_weight()), (3, 1.75));

    let before = stats.clone();
    let mut refused = |weights: Tensor| update_weighted(&mut stats, &batch, &weights).unwrap_err();
    let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &CPU).unwrap();
    assert!(matches!(refused(ones(&[6])), Error::Shape { expected: 2, found: 1, .. }));
    assert!(matches!(refused(ones(&[3, 2])), Error::Shape { expected: 2, found: 3, .. }));
    assert!(matches!(refused(ones(&[2, 4])), Error::Shape { expected: 3, found: 4, .. }));
    assert!(matches!(refused(ones(&[2, 3]).neg().unwrap()), Error::OutOfRange { .. }));
    assert!(matches!(refused(ones(&[2, 3]).to_dtype(DType::I32).unwrap()), Error::NumberType { .. }));
    assert_eq!(stats.covariance().unwrap(), before.covariance().unwrap());
}

#[test]
fn what_does_not_fit_is_an_error() {
    let mut stats = ActivationStats::<f32>::new(6);
    let mut refused = |batch: Tensor| update(&mut stats, &batch).unwrap_err();
    assert!(matches!(refused(tensor((2, 6, 5), DType::F32)), Error::Shape { expected: 6, found: 5, .. }));
    for empty in [(2, 0, 6), (0, 3, 6)] {
        assert!(matches!(refused(Tensor::zeros(empty, DType::F32, &CPU).unwrap()), Error::Empty { .. }));
    }
    let no_inputs = Tensor::zeros((2, 3, 0), DType::F32, &CPU).unwrap();
    assert!(matches!(refused(no_inputs), Error::Shape { expected: 6, found: 0, .. }));
    let infinite = Tensor::full(f32::INFINITY, (1, 6), &CPU).unwrap();
    let broken = Tensor::cat(&[&tensor((4, 6), DType::F32), &infinite], 0).unwrap();
    assert!(matches!(refused(broken), Error::NonFinite { row: 4, column: 0, .. }));
    let too_large = Tensor::full(half::f16::INFINITY, (1, 6), &CPU).unwrap();
    assert!(matches!(refused(too_large), Error::NonFinite { row: 0, .. }));
    for dtype in [DType::F64, DType::U8, DType::U32, DType::I64, DType::F8E4M3] {
        let error = refused(tensor((2, 6), DType::F32).abs().unwrap().to_dtype(dtype).unwrap());
        let Error::NumberType { found, .. } = &error else { panic!("{error}") };
        assert_eq!(*found, format!("{dtype:?}"));
        assert!(error.to_string().starts_with("interop::candle::update: expected dtype F32, F16 or BF16"));
    }
    let scalar = Tensor::new(1_f32, &CPU).unwrap();
    assert!(matches!(refused(scalar), Error::Shape { expected: 1, found: 0, .. }));
    assert_eq!(stats.samples(), 0);

    let linear = |weight: Tensor, bias: Option<Tensor>| {
        Linear::<f32>::try_from(&candle_nn::Linear::new(weight, bias)).unwrap_err()
    };
    let weight = tensor((9, 6), DType::F32);
    assert!(matches!(linear(tensor((2, 3, 4), DType::F32), None), Error::Shape { expected: 2, found: 3, .. }));
    assert!(matches!(linear(tensor(8, DType::F32), None), Error::Shape { expected: 2, found: 1, .. }));
    let column = tensor((9, 1), DType::F32);
    assert!(matches!(linear(weight.clone(), Some(column)), Error::Shape { expected: 1, found: 2, .. }));
    let short = tensor(8, DType::F32);
    assert!(matches!(linear(weight.clone(), Some(short)), Error::Shape { expected: 9, found: 8, .. }));
    assert!(matches!(linear(weight.to_dtype(DType::F64).unwrap(), None), Error::NumberType { .. }));
}

#[test]
fn layers_go_to_candle_and_back() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let weight = tensor((9, 6), dtype);
        let strided = weight.t().unwrap().contiguous().unwrap().t().unwrap();
        let layer = Linear::<f32>::try_from(&candle_nn::Linear::new(strided, Some(tensor(9, dtype)))).unwrap();
        assert_eq!(layer.weight(), Mat::from_fn(9, 6, |i, j| entry(i, j) as f32));
        assert_eq!(layer.bias().unwrap(), Col::from_fn(9, |j| entry(0, j) as f32));
        let back = to_candle_linear(&layer, dtype, &CPU).unwrap();
        assert_eq!(back.weight().dtype(), dtype);
        let inputs = tensor((2, 3, 6), dtype);
        let outputs = samples::<f32>(&back.forward(&inputs).unwrap()).unwrap();
        assert_eq!(outputs, layer.forward(samples(&inputs).unwrap().as_ref()).unwrap());
        assert_eq!(Linear::try_from(&back), Ok(layer));
    }
    let bare = Linear::new(Mat::<f64>::ones(2, 3), None).unwrap();
    assert!(to_candle_linear(&bare, DType::F64, &CPU).unwrap().bias().is_none());
}

#[test]
fn numbers_are_rounded_once_and_never_to_infinity() {
    // A little more than half-way between 1 and the next 16-bit number. Rounding to `f32` first
    // would lose it.
    let number = 1.0 + 2_f64.powi(-11) + 2_f64.powi(-40);
    let rounded = to_tensor(faer::mat![[number]].as_ref(), DType::F16, &CPU).unwrap();
    assert_eq!(samples::<f64>(&rounded).unwrap()[(0, 0)], 1.0 + 2_f64.powi(-10));
    let matrix = Mat::from_fn(3, 2, entry);
    for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
        let copy = to_tensor(matrix.as_ref(), dtype, &CPU).unwrap();
        assert_eq!((copy.dtype(), copy.dims()), (dtype, &[3, 2][..]));
        assert_eq!(samples::<f64>(&copy).unwrap(), matrix);
    }
    for (largest, dtype) in [(1e5, DType::F16), (1e39, DType::F32), (1e39, DType::BF16)] {
        let error = to_tensor(faer::mat![[0.0, largest]].as_ref(), dtype, &CPU).unwrap_err();
        assert!(matches!(error, Error::Overflow { .. }), "{error}");
    }
    assert!(matches!(to_tensor(matrix.as_ref(), DType::U32, &CPU), Err(Error::NumberType { .. })));
}

#[test]
fn the_module_does_what_the_layer_does() {
    fn check<T: Scalar + WithDType>() {
        let layer = example::<T>();
        let module = LowRankLinear::new(&layer, T::DTYPE, &CPU).unwrap();
        assert_eq!((module.rank(), module.variables().len()), (3, 0));
        assert!(module.down().bias().is_none());
        for shape in [vec![4, 6], vec![2, 3, 6], vec![2, 2, 3, 6]] {
            let inputs = tensor(shape.as_slice(), T::DTYPE);
            let outputs = module.forward(&inputs).unwrap();
            assert_eq!(outputs.dims().split_last(), Some((&5, &shape[..shape.len() - 1])));
            let expected = layer.forward(samples::<T>(&inputs).unwrap().as_ref()).unwrap();
            assert_eq!(samples::<T>(&outputs).unwrap(), expected);
        }
        assert!(module.forward(&tensor((4, 7), T::DTYPE)).is_err());
        assert_eq!(dalr::LowRankLinear::try_from(&module), Ok(layer));
    }
    check::<f32>();
    check::<f64>();
    let half = LowRankLinear::new(&example::<f64>(), DType::BF16, &CPU).unwrap();
    assert_eq!(dalr::LowRankLinear::try_from(&half), Ok(example::<f32>()));
    let too_large = dalr::LowRankLinear::new(Mat::full(1, 1, 1e5), Mat::ones(1, 1), None).unwrap();
    assert!(matches!(LowRankLinear::new(&too_large, DType::F16, &CPU), Err(Error::Overflow { .. })));
}

#[test]
fn factors_train_when_asked() {
    let layer = example::<f32>();
    let constant = LowRankLinear::new(&layer, DType::F32, &CPU).unwrap();
    let module = constant.trainable().unwrap();
    assert_eq!(module.variables().len(), 3);
    let inputs = tensor((10, 6), DType::F32);
    let loss = |module: &LowRankLinear| module.forward(&inputs).unwrap().sqr().unwrap().mean_all().unwrap();
    assert!(loss(&constant).backward().unwrap().get(constant.down().weight()).is_none());

    let before = loss(&module).to_scalar::<f32>().unwrap();
    let mut optimizer = SGD::new(module.variables().to_vec(), 1e-6).unwrap();
    optimizer.backward_step(&loss(&module)).unwrap();
    assert!(loss(&module).to_scalar::<f32>().unwrap() < before);
    let trained = dalr::LowRankLinear::<f32>::try_from(&module).unwrap();
    assert_ne!(trained.down(), layer.down());
    assert_ne!(trained.up(), layer.up());
    assert_ne!(trained.bias(), layer.bias());
    // Training changes neither the original module nor a copy of the trained one.
    assert_eq!(dalr::LowRankLinear::try_from(&constant), Ok(layer));
    let copy = module.trainable().unwrap();
    optimizer.backward_step(&loss(&module)).unwrap();
    assert_eq!(dalr::LowRankLinear::try_from(&copy), Ok(trained));

    let bare = dalr::LowRankLinear::new(Mat::<f32>::ones(1, 6), Mat::ones(5, 1), None).unwrap();
    let bare = LowRankLinear::new(&bare, DType::F32, &CPU).unwrap().trainable().unwrap();
    assert_eq!(bare.variables().len(), 2);
    let spoilt = bare.variables()[1].set(&Tensor::full(f32::NAN, (5, 1), &CPU).unwrap());
    spoilt.unwrap();
    assert!(matches!(dalr::LowRankLinear::<f32>::try_from(&bare), Err(Error::NonFinite { .. })));
}

#[test]
fn modules_are_saved_and_loaded_under_the_names_of_files() {
    let layer = example::<f32>();
    let module = LowRankLinear::new(&layer, DType::F32, &CPU).unwrap();
    let tensors: HashMap<String, Tensor> = module.tensors("encoder.dense").into_iter().collect();
    let mut names: Vec<&str> = tensors.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["encoder.dense.0.weight", "encoder.dense.1.bias", "encoder.dense.1.weight"]);

    let builder = VarBuilder::from_tensors(tensors.clone(), DType::F32, &CPU).pp("encoder").pp("dense");
    let loaded = LowRankLinear::load(6, 3, 5, true, builder.clone()).unwrap();
    assert_eq!(dalr::LowRankLinear::try_from(&loaded), Ok(layer.clone()));
    assert!(LowRankLinear::load(6, 2, 5, true, builder.clone()).is_err());
    let bare = LowRankLinear::load(6, 3, 5, false, builder).unwrap();
    assert_eq!(dalr::LowRankLinear::<f32>::try_from(&bare).unwrap().bias(), None);

    // In a model under training, the model's own map holds the variables.
    let variables = VarMap::new();
    let builder = VarBuilder::from_varmap(&variables, DType::F32, &CPU);
    let training = LowRankLinear::load(6, 3, 5, true, builder.pp("dense")).unwrap();
    for (name, value) in module.tensors("dense") {
        variables.data().lock().unwrap()[&name].set(&value).unwrap();
    }
    assert_eq!(dalr::LowRankLinear::try_from(&training), Ok(layer));
    let loss = training.forward(&tensor((4, 6), DType::F32)).unwrap().sqr().unwrap().mean_all().unwrap();
    let gradients = loss.backward().unwrap();
    assert!(variables.all_vars().iter().all(|variable| gradients.get(variable).is_some()));
}

/// Returns the two layers of a perceptron.
fn perceptron() -> (candle_nn::Linear, candle_nn::Linear) {
    let first = candle_nn::Linear::new(tensor((8, 6), DType::F32), Some(tensor(8, DType::F32)));
    (first, candle_nn::Linear::new(tensor((5, 8), DType::F32), None))
}

fn same(one: &ActivationStats<f32>, other: &ActivationStats<f32>) -> bool {
    one.samples() == other.samples() && one.covariance() == other.covariance() && one.mean() == other.mean()
}

fn stats_of(samples: MatRef<'_, f32>) -> ActivationStats<f32> {
    let mut stats = ActivationStats::new(samples.ncols());
    stats.update(samples).unwrap();
    stats
}

#[test]
fn a_recorder_sees_what_layers_read() {
    let (first, second) = perceptron();
    let recorder = Recorder::<f32>::new();
    let plain = seq().add(first.clone()).add(Activation::Relu).add(second.clone());
    let model = seq()
        .add(recorder.watch("first", first.clone()).unwrap())
        .add(Activation::Relu)
        .add(recorder.clone().watch("second", second).unwrap());
    let again = recorder.watch("first", first.clone()).unwrap_err();
    assert_eq!(again.to_string(), "Recorder::watch: expected a name that is not watched yet, got `first` again");
    assert!(recorder.take().is_empty());

    let batch = tensor((2, 5, 6), DType::F32);
    let hidden = first.forward(&batch).unwrap().relu().unwrap();
    let outputs = model.forward(&batch).unwrap();
    assert_eq!(samples::<f32>(&outputs).unwrap(), samples::<f32>(&plain.forward(&batch).unwrap()).unwrap());
    recorder.pause(true);
    model.forward(&batch).unwrap();
    recorder.pause(false);
    let seen = recorder.take();
    assert_eq!(seen.keys().collect::<Vec<_>>(), ["first", "second"]);
    assert!(same(&seen["first"], &stats_of(samples(&batch).unwrap().as_ref())));
    assert!(same(&seen["second"], &stats_of(samples(&hidden).unwrap().as_ref())));

    // Batches accumulate; `take` resets the recorder.
    model.forward(&batch).unwrap();
    model.forward(&batch).unwrap();
    assert_eq!(recorder.take()["second"].samples(), 20);

    let mask = Tensor::new(&[[1_u32, 1, 0, 0, 0], [1, 1, 1, 1, 1]], &CPU).unwrap();
    let one = Tensor::new(&[[1_u32, 0, 0, 0, 0], [0, 0, 0, 0, 0]], &CPU).unwrap();
    recorder.weighted(&mask, || {
        recorder.weighted(&one, || model.forward(&batch)).unwrap();
        model.forward(&batch).unwrap();
    });
    assert_eq!(recorder.take()["first"].samples(), 1 + 7);
    let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        recorder.weighted(&mask, || panic!("the model's own"));
    }));
    assert!(stopped.is_err());
    model.forward(&batch).unwrap();
    assert_eq!(recorder.take()["first"].samples(), 10);
}

#[test]
fn a_batch_that_cannot_be_recorded_stops_the_forward_pass() {
    let recorder = Recorder::<f32>::new();
    let model = recorder.watch("dense", Activation::Relu).unwrap();
    let broken = Tensor::full(f32::NAN, (1, 6), &CPU).unwrap();
    let error = model.forward(&broken).unwrap_err().to_string();
    assert!(error.contains("layer `dense`: ActivationStats::update"), "{error}");
    // The number of inputs of the rejected batch does not apply to later ones.
    model.forward(&tensor((2, 4), DType::F32)).unwrap();
    assert!(model.forward(&tensor((2, 6), DType::F32)).is_err());
    assert!(model.forward(&tensor((2, 4), DType::F64)).is_err());
    let mask = Tensor::ones(3, DType::F32, &CPU).unwrap();
    assert!(recorder.weighted(&mask, || model.forward(&tensor((2, 4), DType::F32))).is_err());
    let seen = recorder.take();
    assert_eq!((seen["dense"].samples(), seen["dense"].features()), (2, 4));

    let small = Recorder::<f32>::new().with_memory_limit(100);
    let model = small.watch("dense", Activation::Relu).unwrap();
    let error = model.forward(&tensor((20, 4), DType::F32)).unwrap_err().to_string();
    assert!(error.contains("bytes"), "{error}");
    // A model in double precision.
    let double = Recorder::<f64>::new();
    double.watch("dense", Activation::Relu).unwrap().forward(&tensor((2, 4), DType::F64)).unwrap();
    assert_eq!(double.take()["dense"].samples(), 2);
}

#[test]
fn pivoted_layers_compute_the_same_and_come_back() {
    fn check<T: Scalar + WithDType>(dtype: DType, tolerance: f64) {
        // Full rank too, without coefficients.
        for (out, rank) in [(7, 3), (3, 3), (2, 1)] {
            for bias in [true, false] {
                let number = |i, j| <T as Scalar>::from_f64(entry(i, j));
                let bias = bias.then(|| Col::from_fn(out, |i| number(i, 1)));
                let factors =
                    dalr::LowRankLinear::new(Mat::from_fn(rank, 6, number), Mat::from_fn(out, rank, number), bias);
                let layer = factors.unwrap().to_pivoted().unwrap();
                let module = PivotedLinear::new(&layer, dtype, &CPU).unwrap();
                assert_eq!((module.rank(), module.pivots()), (rank, layer.pivots()));
                assert_eq!(dalr::factors::PivotedLinear::try_from(&module), Ok(layer.clone()));
                let batch = tensor((2, 5, 6), dtype);
                let outputs = module.forward(&batch).unwrap();
                assert_eq!(outputs.dims(), [2, 5, out]);
                let expected = layer.forward(samples::<T>(&batch).unwrap().as_ref()).unwrap();
                let difference = samples::<T>(&outputs).unwrap() - expected;
                assert!(Scalar::to_f64(difference.norm_max()) < tolerance);
            }
        }
    }
    check::<f32>(DType::F32, 1e-3);
    check::<f64>(DType::F64, 1e-11);
}

#[cfg(feature = "safetensors")]
#[test]
fn pivoted_layers_are_loaded_from_files_and_pass_gradients() {
    let path = std::env::temp_dir().join(format!("dalr-candle-pivoted-{}.safetensors", std::process::id()));
    let layer = example::<f32>().to_pivoted().unwrap();
    layer.save(&path, "fc").unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let builder = || VarBuilder::from_buffered_safetensors(bytes.clone(), DType::F32, &CPU).unwrap().pp("fc");
    let module = PivotedLinear::load(6, 3, 5, true, builder()).unwrap();
    assert_eq!(dalr::factors::PivotedLinear::try_from(&module), Ok(layer));
    for (rank, out) in [(2, 5), (3, 3), (3, 6), (5, 3)] {
        assert!(PivotedLinear::load(6, rank, out, true, builder()).is_err(), "{rank}, {out}");
    }
    // The gradient of the sum of the outputs is the sum of the rows of the weight.
    let inputs = Var::from_tensor(&tensor((4, 6), DType::F32)).unwrap();
    let gradients = module.forward(&inputs).unwrap().sum_all().unwrap().backward().unwrap();
    let gradient = gradients.get(&inputs).unwrap().to_vec2::<f32>().unwrap();
    let weight = dalr::factors::PivotedLinear::<f32>::try_from(&module).unwrap().to_linear().unwrap();
    for (j, entry) in gradient[3].iter().enumerate() {
        let expected: f32 = weight.weight().col(j).iter().sum();
        assert!((entry - expected).abs() < 1e-3 * expected.abs().max(1.0));
    }
}

#[test]
fn convolutions_give_the_outputs_of_candle() {
    let image = |count: usize| tensor((2, count, 7, 6), DType::F32).affine(0.1, 0.05).unwrap();
    for (padding, stride, dilation, groups) in [(0, 1, 1, 1), (1, 2, 1, 1), (2, 1, 2, 2), (1, 1, 1, 4)] {
        let config = Conv2dConfig { padding, stride, dilation, groups, ..Default::default() };
        let weight = tensor((8, 4 / groups, 3, 3), DType::F32).affine(0.1, 0.0).unwrap();
        for bias in [None, Some(Tensor::arange(0_f32, 8.0, &CPU).unwrap())] {
            let original = candle_nn::Conv2d::new(weight.clone(), bias, config);
            let conv = Conv2d::<f32>::try_from(&original).unwrap();
            let expected = original.forward(&image(4)).unwrap();
            let flat = |images: &Tensor| samples::<f32>(&images.flatten_from(1).unwrap()).unwrap();
            let outputs = conv.forward(flat(&image(4)).as_ref(), (7, 6)).unwrap();
            assert!((outputs - flat(&expected)).norm_max() < 1e-5, "{config:?}");
            let back = to_candle_conv2d(&conv, DType::F32, &CPU).unwrap();
            assert_eq!(flat(&back.forward(&image(4)).unwrap()), flat(&expected));

            let mut inputs = PatchStats::new(&conv, 1.0).unwrap();
            update_patches(&mut inputs, &image(4)).unwrap();
            let (smaller, _) = conv.compress(&Dalr::new(), &inputs, Rank::Fixed(2)).unwrap();
            let module = LowRankConv2d::new(&smaller, DType::F32, &CPU).unwrap();
            let expected = smaller.forward(flat(&image(4)).as_ref(), (7, 6)).unwrap();
            assert!((flat(&module.forward(&image(4)).unwrap()) - expected).norm_max() < 1e-5);
            assert_eq!(dalr::convolution::LowRankConv2d::try_from(&module), Ok(smaller));
        }
    }
    let uneven = Conv2d::new(Mat::<f32>::ones(2, 4), None, (2, 2), ConvOptions::new().with_padding((1, 0))).unwrap();
    assert!(matches!(to_candle_conv2d(&uneven, DType::F32, &CPU), Err(Error::Layers { .. })));
    let mut inputs = PatchStats::new(&uneven, 1.0).unwrap();
    let refused = update_patches(&mut inputs, &tensor((2, 7, 6), DType::F32)).unwrap_err();
    assert!(matches!(refused, Error::Shape { expected: 4, found: 3, .. }));
}
