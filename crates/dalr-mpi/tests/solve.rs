//! A solve over samples on all ranks is that of one process.

mod common;

use common::{Folder, alone, distance, generated, succeed, tensor};
use dalr::{Dalr, LowRankCompressor, Ridge, Solver};
use dalr_mpi::measure::Measured;
use dalr_mpi::shard::Shard;
use faer::Mat;
use safetensors::SafeTensors;

struct Case {
    size: (usize, usize),
    /// Batches, and samples of each.
    data: (usize, usize),
    rank: usize,
    ridge: f64,
    keep_bias: bool,
    solver: &'static str,
    ranks: usize,
}

const CASE: Case =
    Case { size: (48, 64), data: (8, 50), rank: 12, ridge: 0.0, keep_bias: false, solver: "dense", ranks: 4 };

/// Returns the number after a word on a line.
fn number(line: &str, word: &str) -> f64 {
    let rest = line.split(word).nth(1).unwrap_or_else(|| panic!("no `{word}` in: {line}"));
    rest.split([',', ' ']).find(|text| !text.is_empty()).unwrap().parse().unwrap()
}

fn compare(name: &str, case: &Case) {
    let folder = Folder::new(name);
    let &Case { size: (m, n), data: (batches, rows), rank, ridge, keep_bias, solver, ranks } = case;
    let out = folder.text("factors.safetensors");
    let (generate, seed) = (format!("{m}x{n}"), 3);
    let texts = [seed.to_string(), batches.to_string(), rows.to_string(), rank.to_string(), ridge.to_string()];
    let [seed_text, batches_text, rows_text, rank_text, ridge_text] = texts.each_ref().map(String::as_str);
    let mut arguments = vec!["solve", "--generate", &generate, "--seed", seed_text, "--batches", batches_text];
    arguments
        .extend(["--rows", rows_text, "--rank", rank_text, "--ridge", ridge_text, "--solver", solver, "--out", &out]);
    if keep_bias {
        arguments.push("--keep-bias");
    }
    let line = succeed(ranks, &arguments);
    assert!(solver != "lanczos" || line.contains("block Lanczos"), "{line}");

    let model = generated(&[(m, n)], seed);
    let shape = &model.shapes()[0];
    let layer = model.layer(shape).unwrap();
    let stats = alone(&Shard::generated(seed, rows, batches, 0, 1), shape);
    let compressor = Dalr::new()
        .with_ridge(if ridge > 0.0 { Ridge::Relative(ridge) } else { Ridge::None })
        .with_bias_correction(!keep_bias)
        .with_solver(Solver::DenseEigen)
        .with_threads(1);
    let single = compressor.decompose(&layer, &stats, rank).unwrap();
    let (energy, total): (f64, f64) = (single.energies().iter().sum(), single.total_energy());
    // Every energy is a sum over samples and inputs. The iteration stops at 10⁻¹² of the energy
    // left out.
    let rounding = 64.0 * n as f64 * f64::EPSILON;
    assert!((number(&line, "energy") / energy - 1.0).abs() < rounding, "{line} against {energy:e}");
    assert!((number(&line, " of ") / total - 1.0).abs() < rounding, "{line} against {total:e}");
    let error = single.relative_error(rank).unwrap();
    // The squared error is a difference of energies, with their rounding, and is printed with six
    // digits.
    let found = number(&line, "relative error");
    assert!((found * found - error * error).abs() < 1e-6 * error * error + rounding, "{line} against {error:e}");

    let expected = single.truncate(rank).unwrap().into_layer();
    let bytes = std::fs::read(folder.path("factors.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (down, up) = (tensor(&file, "layer0.0.weight"), tensor(&file, "layer0.1.weight"));
    let wide =
        |matrix: faer::MatRef<'_, f32>| Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| f64::from(matrix[(i, j)]));
    // Factors are stored in single precision. The error of Lanczos in a direction is the root of
    // its error in energy.
    let rounding = if solver == "dense" { 16.0 * f64::from(f32::EPSILON) } else { 1e-5 };
    let product = wide(expected.up()) * wide(expected.down());
    assert!(distance((&up * &down).as_ref(), product.as_ref()) < rounding * (rank as f64).sqrt());
    assert!(distance(up.as_ref(), wide(expected.up()).as_ref()) < 100.0 * rounding, "vectors and their signs");
    let bias = tensor(&file, "layer0.1.bias");
    let bias = Mat::from_fn(m, 1, |i, _| bias[(0, i)]);
    let expected = expected.bias().unwrap();
    assert!(distance(bias.as_ref(), wide(expected.as_mat()).as_ref()) < rounding * n as f64);
}

#[test]
fn as_one_process() {
    compare("plain", &CASE);
    compare("ridge", &Case { ridge: 0.3, ..CASE });
    compare("kept", &Case { keep_bias: true, ..CASE });
    compare("tall", &Case { size: (90, 40), ridge: 0.1, ..CASE });
    // About their mean, 20 samples vary in 19 directions; the weight determines the others.
    compare("few", &Case { data: (5, 4), rank: 30, ..CASE });
    compare("some have none", &Case { data: (2, 100), ..CASE });
    compare("three", &Case { ranks: 3, ..CASE });
}

#[test]
fn block_lanczos_as_one_process() {
    compare("lanczos", &Case { size: (320, 400), rank: 10, data: (8, 200), solver: "lanczos", ..CASE });
    compare(
        "lanczos-ridge",
        &Case { size: (400, 320), rank: 10, data: (8, 200), ridge: 0.2, solver: "lanczos", ..CASE },
    );
}

/// The ranks sum blocks of at most 64 vectors, and a few vectors over the inputs, for any number of
/// samples.
#[test]
fn sums_do_not_grow_with_the_samples() {
    let measure = |samples: &str| -> Measured {
        let sizes = ["--features", "512", "--samples", "2048", "--merged-features", "256", "--rank", "16"];
        let line = succeed(4, &[&["measure", "--solve-samples", samples][..], &sizes].concat());
        serde_json::from_str(line.trim()).unwrap()
    };
    for measured in [measure("2048"), measure("8192")] {
        let inputs = 512;
        // Blocks of 8 for rank 16, and 16 with the verification block, twice if that block returns.
        let most = measured.steps as u64 * 8 * inputs * 32;
        let least = measured.steps as u64 * 8 * inputs * 8;
        for summed in measured.solve_summed {
            assert!((least..=most).contains(&summed), "{summed} bytes in {} steps", measured.steps);
        }
    }
}
