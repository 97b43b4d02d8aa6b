//! Layers and batches are converted without rounding in both directions, or are errors.

use crate::common::{close, decaying, factors, inputs, values};
use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, Tensor, TensorData};
use dalr::{ActivationStats, Dalr, LowRankCompressor, Rank, Ridge};
use dalr_burn::{Error, LowRankLinear, PivotedLinear, compress, observe, to_burn, to_dalr};
use faer::MatRef;

#[test]
fn weights_arrive_as_out_times_in() {
    let device = Device::default();
    let weight = Tensor::<2>::from_data([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], &device); // 2 inputs, 3 outputs
    let bias = Tensor::<1>::from_data([7.0, 8.0, 9.0], &device);
    let layer = Linear { weight: Param::from_tensor(weight), bias: Some(Param::from_tensor(bias)) };
    let converted = to_dalr::<f32>(&layer).unwrap();
    assert_eq!(converted.weight(), faer::mat![[1.0_f32, 4.0], [2.0, 5.0], [3.0, 6.0]]);
    assert_eq!(converted.bias().unwrap(), faer::col![7.0_f32, 8.0, 9.0]);
    let back = to_burn(&converted, &device, DType::F32).unwrap();
    assert_eq!(back.weight.val().to_data(), layer.weight.val().to_data());
    assert_eq!(back.bias.unwrap().val().to_data(), layer.bias.unwrap().val().to_data());
}

#[test]
fn burn_and_dalr_compute_the_same_outputs() {
    let device = Device::default();
    for bias in [true, false] {
        let original = decaying(12, 16, bias, &device);
        let batch = inputs(60, 12, 1, &device);
        let mut stats = ActivationStats::<f32>::new(12);
        observe(&mut stats, &batch).unwrap();

        // At full rank the outputs are the original ones.
        let exact = Dalr::new().with_ridge(Ridge::None);
        let (full, _) = compress(&original, &stats, &exact, Rank::Fixed(12)).unwrap();
        close(&full.forward(batch.clone()), &original.forward(batch.clone()), 1e-4);

        // At a lower rank burn computes the same outputs as dalr, and the report is dalr's.
        let (low, report) = compress(&original, &stats, &exact, Rank::Fixed(3)).unwrap();
        let expected = exact.compress(&to_dalr(&original).unwrap(), &stats, Rank::Fixed(3)).unwrap();
        let rows = values(&batch);
        let outputs = expected.layer().forward(MatRef::from_row_major_slice(&rows, 60, 12)).unwrap();
        let found = values(&low.forward(batch.clone()));
        for row in 0..60 {
            for column in 0..16 {
                assert!((found[row * 16 + column] - outputs[(row, column)]).abs() < 1e-4);
            }
        }
        assert_eq!(report.to_string(), expected.report().to_string());
        assert_eq!(low.up.bias.is_some(), bias);
        assert!(low.down.bias.is_none());
        let back = low.to_dalr::<f32>().unwrap();
        assert_eq!((back.down(), back.up()), (expected.layer().down(), expected.layer().up()));
    }
}

#[test]
fn pivoted_layers_compute_the_same_outputs() {
    let device = Device::default();
    let batch = inputs(60, 12, 1, &device);
    // Some outputs are pivots, or all of them.
    for (outputs, rank, bias) in [(16, 3, true), (7, 7, false)] {
        let layer = factors((outputs, rank, 12), bias).to_pivoted().unwrap();
        assert_eq!(layer.order().is_sorted(), rank == outputs, "the order of the outputs decides nothing");
        let module = PivotedLinear::new(&layer, &device, DType::F32).unwrap();
        assert_eq!((module.coefficients.is_some(), module.bias.is_some()), (rank == 3, bias));
        assert_eq!(module.num_params(), layer.parameters());
        let rows = values(&batch);
        let expected = layer.forward(MatRef::from_row_major_slice(&rows, 60, 12)).unwrap();
        let expected: Vec<f32> = expected.row_iter().flat_map(|row| row.iter().copied().collect::<Vec<_>>()).collect();
        let expected = Tensor::<2>::from_data(TensorData::new(expected, [60, outputs]), &device);
        close(&module.forward(batch.clone()), &expected, 1e-6);
        // Inputs with other numbers of axes.
        let cube = module.forward(batch.clone().reshape([3, 20, 12]));
        close(&cube.reshape([60, outputs]), &expected, 1e-6);
        let row = module.forward(batch.clone().slice([0..1, 0..12]).reshape([12]));
        close(&row.reshape([1, outputs]), &expected.slice([0..1, 0..outputs]), 1e-6);
        assert_eq!(module.to_dalr::<f32>().unwrap(), layer);
    }
}

#[test]
fn all_axes_but_the_last_are_samples() {
    let device = Device::default();
    let flat = inputs(24, 5, 2, &device);
    let mut one = ActivationStats::<f32>::new(5);
    observe(&mut one, &flat).unwrap();
    let mut other = ActivationStats::<f32>::new(5);
    observe(&mut other, &flat.clone().reshape([2, 3, 4, 5])).unwrap();
    assert_eq!((one.samples(), other.samples()), (24, 24));
    let original = decaying(5, 7, true, &device);
    let [a, b] = [&one, &other].map(|stats| compress(&original, stats, &Dalr::new(), Rank::Fixed(2)).unwrap().0);
    assert_eq!(values(&a.down.weight.val()), values(&b.down.weight.val()));
    // A view that is not contiguous has the same numbers in another memory order.
    let mut turned = ActivationStats::<f32>::new(5);
    observe(&mut turned, &flat.clone().transpose().reshape([5, 4, 6]).permute([2, 1, 0])).unwrap();
    assert_eq!(turned.samples(), 24);
    observe(&mut turned, &flat.clone().slice([0..1, 0..5]).reshape([5])).unwrap();
    assert_eq!(turned.samples(), 25);
    // Inputs with three axes give outputs with three axes.
    let outputs = a.forward(flat.clone().reshape([2, 12, 5]));
    assert_eq!(outputs.dims(), [2, 12, 7]);
    close(&outputs.reshape([24, 7]), &a.forward(flat), 1e-6);
}

#[test]
fn numbers_of_16_and_64_bits() {
    let device = Device::default();
    let original = decaying(8, 10, true, &device);
    let batch = inputs(50, 8, 3, &device);
    for (dtype, rounding) in [(DType::F16, 2e-3), (DType::BF16, 2e-2)] {
        let half = to_burn(&to_dalr::<f32>(&original).unwrap(), &device, dtype).unwrap();
        assert_eq!(half.weight.val().dtype(), dtype);
        // They are read exactly: burn itself converts them to the same f32.
        let read = to_dalr::<f32>(&half).unwrap();
        let again = to_burn(&read, &device, DType::F32).unwrap();
        assert_eq!(values(&again.weight.val()), values(&half.weight.val()));
        let mut stats = ActivationStats::<f32>::new(8);
        observe(&mut stats, &batch.clone().cast(dtype)).unwrap();
        let (low, _) = compress(&half, &stats, &Dalr::new(), Rank::Fixed(3)).unwrap();
        assert_eq!((low.down.weight.val().dtype(), low.up.weight.val().dtype()), (dtype, dtype));
        let exact = LowRankLinear::new(
            Dalr::new().compress(&read, &stats, Rank::Fixed(3)).unwrap().layer(),
            &device,
            DType::F32,
        );
        let wide = exact.unwrap();
        close(&low.down.weight.val().cast(DType::F32), &wide.down.weight.val(), rounding);
        close(&low.up.weight.val().cast(DType::F32), &wide.up.weight.val(), rounding);
    }
    // f64 is not rounded to f32 silently.
    let double = to_burn(&to_dalr::<f64>(&original).unwrap(), &device, DType::F64).unwrap();
    assert_eq!(to_dalr::<f64>(&double).unwrap(), to_dalr::<f64>(&original).unwrap());
    let error = to_dalr::<f32>(&double).unwrap_err();
    assert!(matches!(error, Error::Type { found: DType::F64, into: "f32" }), "{error}");
}

#[test]
fn wrong_sizes_and_types_are_refused() {
    let device = Device::default();
    let mut stats = ActivationStats::<f32>::new(6);
    observe(&mut stats, &inputs(20, 6, 4, &device)).unwrap();
    let before = stats.samples();
    let shape = |error: Error| assert!(matches!(error, Error::Dalr(dalr::Error::Shape { .. })), "{error}");

    // Batches: another number of inputs, a NaN, a dtype that f32 cannot represent. None of them is
    // added.
    shape(observe(&mut stats, &inputs(20, 7, 4, &device)).unwrap_err());
    let nan = inputs(3, 6, 4, &device) / 0.0 * 0.0;
    assert!(matches!(observe(&mut stats, &nan), Err(Error::Dalr(dalr::Error::NonFinite { .. }))));
    let wide = inputs(3, 6, 4, &device).cast(DType::F64);
    assert!(matches!(observe(&mut stats, &wide), Err(Error::Type { .. })));
    assert_eq!(stats.samples(), before);

    // Layers: another number of inputs than in the statistics, a bias of another length, a weight
    // that is not finite.
    shape(compress(&decaying(5, 4, true, &device), &stats, &Dalr::new(), Rank::Fixed(2)).unwrap_err());
    let mut layer = decaying(6, 4, true, &device);
    layer.bias = Some(Param::from_tensor(Tensor::zeros([5], &device)));
    shape(compress(&layer, &stats, &Dalr::new(), Rank::Fixed(2)).unwrap_err());
    let mut layer = decaying(6, 4, true, &device);
    layer.weight = layer.weight.map(|weight| weight / 0.0);
    assert!(matches!(to_dalr::<f32>(&layer), Err(Error::Dalr(dalr::Error::NonFinite { .. }))));

    // Factors: an integer dtype, numbers beyond the range of f16, parts that do not fit together.
    let large = dalr::Linear::new(faer::mat![[1e6_f32]], None).unwrap();
    assert!(matches!(to_burn(&large, &device, DType::F16), Err(Error::Dalr(dalr::Error::Overflow { .. }))));
    let larger = dalr::Linear::new(faer::mat![[1e60_f64]], None).unwrap();
    assert!(matches!(to_burn(&larger, &device, DType::F32), Err(Error::Dalr(dalr::Error::Overflow { .. }))));
    assert!(matches!(to_burn(&large, &device, DType::I32), Err(Error::Type { .. })));
    let (mut low, _) = compress(&decaying(6, 8, true, &device), &stats, &Dalr::new(), Rank::Fixed(2)).unwrap();
    let up = core::mem::replace(&mut low.up, LinearConfig::new(3, 8).init(&device));
    shape(low.to_dalr::<f32>().unwrap_err());
    low.up = up;
    low.down = LinearConfig::new(6, 2).init(&device);
    shape(low.to_dalr::<f32>().unwrap_err());

    // Pivoted layers, in the same way.
    let layer = factors((8, 2, 6), true).to_pivoted().unwrap();
    assert!(matches!(PivotedLinear::new(&layer, &device, DType::I32), Err(Error::Type { .. })));
    let pivoted = PivotedLinear::new(&layer, &device, DType::F32).unwrap();
    // Coefficients that are missing, of more outputs, of another rank, and with a bias.
    let others = [(2, 7, false), (3, 6, false), (2, 6, true)]
        .map(|(rank, outputs, bias)| Some(LinearConfig::new(rank, outputs).with_bias(bias).init(&device)));
    for coefficients in others.into_iter().chain([None]) {
        let mut other = pivoted.clone();
        other.bias = None;
        other.coefficients = coefficients;
        shape(other.to_dalr::<f32>().unwrap_err());
    }
    let mut other = pivoted;
    other.pivot_rows = LinearConfig::new(6, 2).init(&device);
    shape(other.to_dalr::<f32>().unwrap_err());
}
