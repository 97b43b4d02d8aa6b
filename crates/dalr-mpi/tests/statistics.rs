//! Statistics merged over ranks equal those of one process.

mod common;

use common::{Folder, alone, distance, generated, start_program, succeed};
use dalr::ActivationStats;
use dalr_mpi::estimate::scatter_bytes;
use dalr_mpi::measure::Measured;
use dalr_mpi::shard::Shard;

/// Returns the form of the statistics, from their debug output.
fn form(stats: &ActivationStats<f32>) -> &'static str {
    if format!("{stats:?}").contains("\"covariance\"") { "scatter" } else { "samples" }
}

/// Compares statistics merged over ranks with those of one process, and returns their forms.
fn compare(name: &str, ranks: usize, batches: usize, rows: usize) -> Vec<&'static str> {
    let folder = Folder::new(name);
    let sizes = [(3, 96), (3, 300), (3, 520)];
    let (batches_text, rows_text) = (batches.to_string(), rows.to_string());
    let out = folder.text("merged");
    let generate = ["--generate", "3x96,3x300,3x520", "--seed", "5", "--batches", &batches_text, "--rows", &rows_text];
    succeed(ranks, &[&["calibrate", "--out", &out][..], &generate].concat());
    let all = Shard::generated(5, rows, batches, 0, 1);
    let forms = generated(&sizes, 5).shapes().into_iter().map(|shape| {
        let merged =
            ActivationStats::<f32>::load(folder.path("merged").join(format!("{}.input.safetensors", shape.name)));
        let (merged, single) = (merged.unwrap(), alone(&all, &shape));
        assert_eq!(form(&merged), form(&single));
        assert_eq!((merged.samples(), merged.total_weight()), (single.samples(), single.total_weight()));
        assert_eq!(merged.maximum().unwrap(), single.maximum().unwrap());
        assert_eq!(merged.minimum().unwrap(), single.minimum().unwrap());
        assert_eq!(merged.activation_rates().unwrap(), single.activation_rates().unwrap());
        let [mean, expected] = [&merged, &single].map(|stats| stats.mean().unwrap());
        let steps = (rows * batches) as f64;
        let rounding = steps * f64::EPSILON;
        assert!(distance(mean.as_mat(), expected.as_mat()) < rounding);
        // From 512 inputs on, the scatter is a sum of products in single precision.
        let narrow = shape.inputs >= 512 && form(&single) == "scatter";
        let rounding = if narrow { 32.0 * f64::from(f32::EPSILON) } else { rounding };
        let [covariance, expected] = [&merged, &single].map(|stats| stats.covariance().unwrap());
        let off = distance(covariance.as_ref(), expected.as_ref());
        assert!(off < rounding, "{} inputs: {off:e}", shape.inputs);
        form(&merged)
    });
    forms.collect()
}

#[test]
fn in_every_form_as_one_process() {
    // Sample form on the ranks and in one process; only on the ranks; in none.
    assert_eq!(compare("samples", 4, 12, 12), ["samples", "samples", "samples"]);
    assert_eq!(compare("both", 4, 12, 110), ["scatter", "scatter", "samples"]);
    assert_eq!(compare("scatters", 4, 8, 1000), ["scatter", "scatter", "scatter"]);
    // The tree is not full, or some ranks have no samples, among them the root.
    assert_eq!(compare("three", 3, 12, 110), ["scatter", "scatter", "samples"]);
    assert_eq!(compare("empty", 4, 2, 50), ["samples", "samples", "samples"]);
    assert_eq!(compare("one", 1, 3, 50), ["samples", "samples", "samples"]);
}

/// A receiver holds two scatters, its own and the one that arrives, with a buffer of up to a
/// quarter of a scatter each, and messages. A third scatter in any form, as bytes to send for
/// example, would exceed the limits.
#[test]
fn no_rank_holds_more_than_two_scatters() {
    let line = succeed(
        4,
        &[
            "measure",
            "--features",
            "256",
            "--samples",
            "2048",
            "--solve-samples",
            "2048",
            "--rank",
            "8",
            "--merged-features",
            "6144",
        ],
    );
    let measured: Measured = serde_json::from_str(line.trim()).unwrap();
    let scatter = scatter_bytes(6144.0);
    for (rank, &memory) in measured.reduce_memory.iter().enumerate() {
        let scatters = memory as f64 / scatter;
        let most = if rank % 2 == 0 { 2.45 } else { 1.45 };
        // Much less would mean that memory was measured at the wrong time.
        assert!((most - 0.5..most).contains(&scatters), "rank {rank} held {scatters:.2} scatters");
    }
    // Three of four ranks sent their statistics once.
    let sent: Vec<f64> =
        measured.reduce_sent.iter().map(|&bytes| bytes as f64 / measured.statistics_bytes as f64).collect();
    assert!(sent[0] == 0.0 && sent[1..].iter().all(|sent| (0.99..1.2).contains(sent)), "{sent:?}");
}

/// Paired inputs and gradients, merged over ranks, give the layer that one process finds.
#[test]
fn paired_inputs_and_gradients_give_the_same_layer() {
    for ranks in [1, 3, 4] {
        let ended = start_program(env!("CARGO_BIN_EXE_paired"), &[(ranks, Vec::new())]).end();
        assert!(ended.success, "{ranks} ranks: {}{}", ended.out, ended.err);
        let difference: f64 = ended.out.trim().parse().unwrap();
        assert!(difference < 1e-10, "{ranks} ranks: {difference:e}");
    }
}
