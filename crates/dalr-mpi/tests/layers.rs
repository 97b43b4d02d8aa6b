//! Tests the compression of many layers from files to one file. The result must equal that of a
//! single process. The costs must determine which MPI rank solves a layer.

mod common;

use std::fs;

use common::{Folder, alone, distance, generated, save, succeed, tensor, tensors_of};
use dalr::{Dalr, LowRankCompressor, Rank};
use dalr_mpi::schedule::{assign, cost};
use dalr_mpi::shard::Shard;
use faer::Mat;
use safetensors::SafeTensors;

#[test]
fn as_one_process_and_assigned_by_cost() {
    let folder = Folder::new("layers");
    let sizes = [(64, 48), (20, 30), (96, 96), (33, 70), (50, 40), (1, 9)];
    let (model, keep, ranks) = (generated(&sizes, 9), 0.4, 4);
    let shapes = model.shapes();
    let all = Shard::generated(9, 60, 7, 0, 1);
    let layers: Vec<_> = shapes.iter().map(|shape| model.layer(shape).unwrap()).collect();

    let names: Vec<[String; 2]> =
        shapes.iter().map(|shape| ["weight", "bias"].map(|part| format!("{}.{part}", shape.name))).collect();
    let mut tensors: Vec<(&str, Mat<f32>)> =
        names.iter().zip(&layers).flat_map(|(names, layer)| tensors_of(names, layer)).collect();
    tensors.push(("embedding.weight", Mat::from_fn(5, 3, |i, j| (i * 3 + j) as f32)));
    save(&folder.path("model.safetensors"), &tensors);
    fs::create_dir(folder.path("shards")).unwrap();
    for index in 0..all.batches() {
        let names: Vec<String> = shapes.iter().map(|shape| format!("{}.input", shape.name)).collect();
        let batch = all.open(index).unwrap();
        let inputs: Vec<_> =
            names.iter().zip(&shapes).map(|(name, shape)| (name.as_str(), batch.inputs(shape).unwrap())).collect();
        save(&folder.path("shards").join(format!("{index:03}.safetensors")), &inputs);
    }

    let paths = ["model.safetensors", "shards", "out.safetensors"].map(|name| folder.text(name));
    let [model_path, shards, out] = paths.each_ref().map(String::as_str);
    let arguments = ["compress", "--model", model_path, "--shards", shards, "--keep", "0.4", "--out", out];
    let lines = succeed(ranks, &arguments);

    let kept: Vec<_> = shapes.iter().filter(|shape| shape.rank(keep) > 0).collect();
    assert_eq!(kept.len(), 5);
    assert!(lines.contains("layer5: unchanged"), "{lines}");
    let costs: Vec<f64> = kept.iter().map(|shape| cost(shape)).collect();
    for (shape, rank) in kept.iter().zip(assign(&costs, ranks)) {
        assert!(lines.contains(&format!("{}, on rank {rank}: ", shape.name)), "{lines}");
    }
    // Five layers on four ranks: every rank has one.
    assert!((0..ranks).all(|rank| lines.contains(&format!(", on rank {rank}: "))), "{lines}");

    let bytes = fs::read(folder.path("out.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for (shape, layer) in shapes.iter().zip(&layers).filter(|(shape, _)| shape.rank(keep) > 0) {
        let stats = alone(&all, shape);
        let rank = Rank::Fixed(shape.rank(keep));
        let expected = Dalr::new().with_threads(1).compress(layer, &stats, rank).unwrap();
        let part = |part: &str| tensor(&file, &format!("{}.{part}", shape.name));
        let wide = |matrix: faer::MatRef<'_, f32>| {
            Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| f64::from(matrix[(i, j)]))
        };
        let expected = expected.layer();
        let product = wide(expected.up()) * wide(expected.down());
        let rounding = 32.0 * f64::from(f32::EPSILON);
        assert!(
            distance((part("1.weight") * part("0.weight")).as_ref(), product.as_ref()) < rounding,
            "{}",
            shape.name
        );
        let bias = wide(expected.bias().unwrap().as_mat());
        assert!(distance(part("1.bias").as_ref(), bias.transpose()) < rounding * 8.0, "{}", shape.name);
        assert!(file.tensor(&format!("{}.weight", shape.name)).is_err());
    }
    // All other tensors are unchanged.
    let before = fs::read(folder.path("model.safetensors")).unwrap();
    let before = SafeTensors::deserialize(&before).unwrap();
    for name in ["embedding.weight", "layer5.weight", "layer5.bias"] {
        assert_eq!(file.tensor(name).unwrap(), before.tensor(name).unwrap(), "{name}");
    }
    assert_eq!(file.len(), 5 * 3 + 3);
}
