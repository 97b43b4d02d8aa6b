//! A compressed layer can be trained and recorded like every module.

use crate::common::{close, decaying, inputs, values};
use burn::module::Module;
use burn::nn::LinearConfig;
use burn::optim::{GradientsParams, SgdConfig};
use burn::store::ModuleRecord;
use burn::tensor::{Device, Tensor};
use dalr::{ActivationStats, Dalr, Rank};
use dalr_burn::{LowRankLinear, LowRankLinearConfig, compress, observe};

/// Returns a layer on a device, the same layer compressed to rank 2, and a batch.
fn compressed(device: &Device) -> (burn::nn::Linear, LowRankLinear, Tensor<2>) {
    let (original, batch) = (decaying(6, 8, true, device), inputs(40, 6, 5, device));
    let mut stats = ActivationStats::<f32>::new(6);
    observe(&mut stats, &batch).unwrap();
    let (low, _) = compress(&original, &stats, &Dalr::new(), Rank::Fixed(2)).unwrap();
    (original, low, batch)
}

#[test]
fn training_changes_both_factors_and_lowers_the_loss() {
    let device = Device::default().autodiff();
    let (_, mut layer, batch) = compressed(&device);
    // The targets differ from the outputs of the original layer, so that there is much to learn.
    let target = batch.clone().repeat_dim(1, 2).slice([0..40, 0..8]);
    let [down, up] = [&layer.down, &layer.up].map(|factor| values(&factor.weight.val()));
    let bias = values(&layer.up.bias.as_ref().unwrap().val());
    let mut optimizer = SgdConfig::new().init();
    let mut losses = Vec::new();
    for _ in 0..20 {
        let loss = (layer.forward(batch.clone()) - target.clone()).powf_scalar(2.0).mean();
        losses.push(loss.clone().into_scalar::<f32>());
        let gradients = GradientsParams::from_grads(loss.backward(), &layer);
        assert_eq!(gradients.len(), 3);
        layer = optimizer.step(0.1, layer, gradients);
    }
    assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "{losses:?}");
    assert_ne!(values(&layer.down.weight.val()), down);
    assert_ne!(values(&layer.up.weight.val()), up);
    assert_ne!(values(&layer.up.bias.as_ref().unwrap().val()), bias);
    // The trained factors can be converted back to dalr.
    let trained = layer.to_dalr::<f32>().unwrap();
    assert_eq!(trained.rank(), 2);
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
fn a_layer_without_a_bias_has_none_in_its_record() {
    let device = Device::default();
    let layer = LowRankLinearConfig::new(6, 2, 8).with_bias(false).init(&device);
    assert_eq!(layer.clone().into_record().len(), 2);
    assert_eq!(layer.num_params(), 2 * (6 + 8));
    assert_eq!(LinearConfig::new(6, 8).init(&device).num_params(), 6 * 8 + 8);
}
