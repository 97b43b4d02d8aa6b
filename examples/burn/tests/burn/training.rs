//! A compressed layer can be trained and recorded like every module.

use crate::common::{close, decaying, factors, inputs, values};
use burn::module::Module;
use burn::nn::LinearConfig;
use burn::optim::{GradientsParams, SgdConfig};
use burn::store::ModuleRecord;
use burn::tensor::{DType, Device, Tensor};
use dalr::{ActivationStats, Dalr, Rank};
use dalr_burn::{LowRankLinear, LowRankLinearConfig, PivotedLinear, PivotedLinearConfig, compress, observe};

/// Returns a layer on a device, the same layer compressed to rank 2, and a batch.
fn compressed(device: &Device) -> (burn::nn::Linear, LowRankLinear, Tensor<2>) {
    let (original, batch) = (decaying(6, 8, true, device), inputs(40, 6, 5, device));
    let mut stats = ActivationStats::<f32>::new(6);
    observe(&mut stats, &batch).unwrap();
    let (low, _) = compress(&original, &stats, &Dalr::new(), Rank::Fixed(2)).unwrap();
    (original, low, batch)
}

/// Trains a layer of three parameters, and checks that the loss decreases.
fn train<M: Module>(mut layer: M, batch: &Tensor<2>, forward: impl Fn(&M, Tensor<2>) -> Tensor<2>) -> M {
    // The targets differ from the outputs of the original layer, so that there is much to learn.
    let target = batch.clone().repeat_dim(1, 2).slice([0..40, 0..8]);
    let mut optimizer = SgdConfig::new().init();
    let mut losses = Vec::new();
    for _ in 0..20 {
        let loss = (forward(&layer, batch.clone()) - target.clone()).powf_scalar(2.0).mean();
        losses.push(loss.clone().into_scalar::<f32>());
        let gradients = GradientsParams::from_grads(loss.backward(), &layer);
        assert_eq!(gradients.len(), 3);
        layer = optimizer.step(0.1, layer, gradients);
    }
    assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "{losses:?}");
    layer
}

#[test]
fn training_changes_both_factors_and_lowers_the_loss() {
    let device = Device::default().autodiff();
    let (_, layer, batch) = compressed(&device);
    let trained = train(layer.clone(), &batch, |layer, batch| layer.forward(batch));
    for (after, before) in [(&trained.down, &layer.down), (&trained.up, &layer.up)] {
        assert_ne!(values(&after.weight.val()), values(&before.weight.val()));
    }
    // The trained factors can be converted back to dalr.
    assert_eq!(trained.to_dalr::<f32>().unwrap().rank(), 2);
    assert_ne!(values(&trained.up.bias.unwrap().val()), values(&layer.up.bias.unwrap().val()));
}

#[test]
fn training_changes_a_pivoted_layer_and_lowers_the_loss() {
    let device = Device::default().autodiff();
    let (_, layer, batch) = compressed(&device);
    let before = layer.to_dalr::<f32>().unwrap().to_pivoted().unwrap();
    let layer = PivotedLinear::new(&before, &device, DType::F32).unwrap();
    let trained = train(layer, &batch, |layer, batch| layer.forward(batch));
    let after = trained.to_dalr::<f32>().unwrap();
    assert_ne!(after.pivot_rows(), before.pivot_rows());
    assert_ne!(after.coefficients(), before.coefficients());
    assert_ne!(after.bias(), before.bias());
    assert_eq!(after.pivots(), before.pivots());
}

#[test]
fn gradients_of_a_compressed_layer_do_not_reach_the_original() {
    let device = Device::default().autodiff();
    let (original, low, batch) = compressed(&device);
    let loss = low.forward(batch).sum();
    let gradients = GradientsParams::from_grads(loss.backward(), &original);
    assert_eq!(gradients.len(), 0);
}

#[test]
fn records_are_written_and_read() {
    let device = Device::default();
    let (_, layer, batch) = compressed(&device);
    let expected = layer.forward(batch.clone());
    let config = LowRankLinearConfig::new(6, 2, 8);

    let bytes = layer.clone().into_record().into_bytes().unwrap();
    let loaded = config.init(&device).load_record(ModuleRecord::from_bytes(bytes).unwrap());
    assert_eq!(values(&loaded.forward(batch.clone())), values(&expected));

    let path = std::env::temp_dir().join(format!("dalr-burn-{}.bpk", std::process::id()));
    layer.save_file(&path).unwrap();
    let loaded = config.init(&device).try_load_file(&path);
    let other_rank = LowRankLinearConfig::new(6, 3, 8).init(&device).try_load_file(&path);
    // burn reads a tensor of a file at its first use, so the file must exist until then.
    close(&loaded.unwrap().forward(batch), &expected, 0.0);
    assert!(other_rank.is_err());
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn records_of_pivoted_layers_hold_the_pivots() {
    let device = Device::default();
    let batch = inputs(40, 6, 5, &device);
    let layer = factors((8, 2, 6), true).to_pivoted().unwrap();
    assert_ne!(layer.pivots(), [0, 1], "these are the pivots without a record");
    let module = PivotedLinear::new(&layer, &device, DType::F32).unwrap();
    let expected = module.forward(batch.clone());
    let config = PivotedLinearConfig::new(6, 2, 8);

    let bytes = module.clone().into_record().into_bytes().unwrap();
    let loaded = config.init(&device).load_record(ModuleRecord::from_bytes(bytes).unwrap());
    assert_eq!(values(&loaded.forward(batch.clone())), values(&expected));
    assert_eq!(loaded.to_dalr::<f32>().unwrap(), layer);

    let path = std::env::temp_dir().join(format!("dalr-burn-{}-pivoted.bpk", std::process::id()));
    module.save_file(&path).unwrap();
    let loaded = config.init(&device).try_load_file(&path);
    let other_rank = PivotedLinearConfig::new(6, 3, 8).init(&device).try_load_file(&path);
    close(&loaded.unwrap().forward(batch), &expected, 0.0);
    assert!(other_rank.is_err());
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_layer_without_a_bias_has_none_in_its_record() {
    let device = Device::default();
    let layer = LowRankLinearConfig::new(6, 2, 8).with_bias(false).init(&device);
    assert_eq!(layer.clone().into_record().len(), 2);
    assert_eq!(layer.num_params(), 2 * (6 + 8));
    assert_eq!(LinearConfig::new(6, 8).init(&device).num_params(), 6 * 8 + 8);
    let layer = PivotedLinearConfig::new(6, 2, 8).with_bias(false).init(&device);
    assert_eq!((layer.clone().into_record().len(), layer.num_params()), (3, 2 * (6 + 8 - 2)));
    let layer = PivotedLinearConfig::new(6, 8, 8).init(&device);
    assert_eq!((layer.num_params(), layer.to_dalr::<f32>().unwrap().rank()), (8 * 6 + 8, 8));
}
