//! A small BERT with random weights, from its folder to the compressed file and back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use dalr_minilm::bert::{Bert, Config, Tensors};
use dalr_minilm::compress::{Layers, calibrate, compressed_tensors, with_compressed};
use dalr_minilm::encoder::{Encoder, load};
use dalr_minilm::evaluation::{cosine, embeddings, time};
use dalr_minilm::metrics::metrics;
use dalr_minilm::options::{Allocation, Kinds, Method, Options, Storage};
use dalr_minilm::sequential::recalibrate;
use dalr_minilm::texts;
use rand::{Rng, SeedableRng, rngs::StdRng};

mod oracle;

const WIDTH: usize = 48;
const HIDDEN: usize = 96;
const BLOCKS: usize = 2;

const WORDS: [&str; 24] = [
    "a", "bird", "that", "flies", "over", "the", "sea", "and", "lives", "in", "cold", "water", "of", "small",
    "islands", "with", "grey", "feathers", "or", "long", "wings", "which", "sings", "loudly",
];

/// A model's folder, removed at the end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn folder(name: &str) -> Folder {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    Folder(path)
}

/// Adds a tensor with a name, a shape, a width of the distribution and a mean.
type Add<'a> = dyn FnMut(String, &[usize], f32, f32) + 'a;

fn write_model(path: &Path) {
    let mut random = StdRng::seed_from_u64(5);
    let mut tensors = Tensors::new();
    let mut add = |name: String, shape: &[usize], scale: f32, shift: f32| {
        let numbers: Vec<f32> =
            (0..shape.iter().product()).map(|_| shift + scale * (random.random::<f32>() - 0.5)).collect();
        tensors.insert(name, Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap());
    };
    let norm = |add: &mut Add<'_>, name: String| {
        add(format!("{name}.weight"), &[WIDTH], 0.4, 1.0);
        add(format!("{name}.bias"), &[WIDTH], 0.4, 0.0);
    };
    for (table, rows) in [("word", 4 + WORDS.len()), ("position", 20), ("token_type", 2)] {
        add(format!("embeddings.{table}_embeddings.weight"), &[rows, WIDTH], 2.0, 0.0);
    }
    norm(&mut add, "embeddings.LayerNorm".into());
    for block in 0..BLOCKS {
        let name = format!("encoder.layer.{block}");
        for (layer, outputs, inputs) in [
            ("attention.self.query", WIDTH, WIDTH),
            ("attention.self.key", WIDTH, WIDTH),
            ("attention.self.value", WIDTH, WIDTH),
            ("attention.output.dense", WIDTH, WIDTH),
            ("intermediate.dense", HIDDEN, WIDTH),
            ("output.dense", WIDTH, HIDDEN),
        ] {
            add(format!("{name}.{layer}.weight"), &[outputs, inputs], 0.6, 0.0);
            add(format!("{name}.{layer}.bias"), &[outputs], 0.4, 0.1);
        }
        norm(&mut add, format!("{name}.attention.output.LayerNorm"));
        norm(&mut add, format!("{name}.output.LayerNorm"));
    }
    candle_core::safetensors::save(&tensors, path.join("model.safetensors")).unwrap();
    let config = serde_json::json!({
        "hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": 4, "max_position_embeddings": 20,
        "layer_norm_eps": 1e-12, "hidden_act": "gelu", "model_type": "bert",
    });
    std::fs::write(path.join("config.json"), config.to_string()).unwrap();
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"];
    let vocabulary: BTreeMap<&str, usize> =
        special.iter().chain(&WORDS).enumerate().map(|(number, word)| (*word, number)).collect();
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "added_tokens": [], "decoder": null,
        "padding": { "strategy": { "Fixed": 20 }, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]" },
        "normalizer": { "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": { "type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2] },
        "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocabulary },
    });
    std::fs::write(path.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

fn write_texts(path: &Path, count: usize) -> PathBuf {
    let mut random = StdRng::seed_from_u64(9);
    let text = |_| {
        let words = random.random_range(2..12);
        (0..words).map(|_| WORDS[random.random_range(0..WORDS.len())]).collect::<Vec<_>>().join(" ")
    };
    let lines: Vec<String> = (0..count).map(text).collect();
    let path = path.join("texts.txt");
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

struct Tiny {
    _folder: Folder,
    path: PathBuf,
    config: Config,
    tensors: Tensors,
    encoder: Encoder,
    texts: Vec<String>,
}

fn tiny(name: &str) -> Tiny {
    let folder = folder(name);
    let path = folder.0.clone();
    write_model(&path);
    let texts = texts::read(&write_texts(&path, 300)).unwrap();
    let (config, tensors) = load(&path).unwrap();
    let encoder = Encoder::load(&path, &config).unwrap();
    Tiny { _folder: folder, path, config, tensors, encoder, texts }
}

fn options(method: Method, allocation: Allocation) -> Options {
    let arguments = ["dalr-minilm", "model", "texts", "--rank-multiple", "1"];
    Options { method, allocation, ..clap::Parser::parse_from(arguments) }
}

fn ids(text: &str) -> Vec<usize> {
    let words = text.split(' ').map(|word| 4 + WORDS.iter().position(|known| *known == word).unwrap());
    [2].into_iter().chain(words).chain([3]).collect()
}

#[test]
fn embeddings_equal_a_plain_computation_with_any_padding() {
    let tiny = tiny("plain");
    let model = Bert::new(&tiny.tensors, &tiny.config).unwrap();
    let texts = &tiny.texts[..12];
    let together = embeddings(&model, &tiny.encoder.batches(texts, 12).unwrap()).unwrap();
    let alone = embeddings(&model, &tiny.encoder.batches(texts, 1).unwrap()).unwrap();
    let (together, alone) = (together.to_vec2::<f32>().unwrap(), alone.to_vec2::<f32>().unwrap());
    for (text, (padded, alone)) in texts.iter().zip(together.iter().zip(&alone)) {
        let expected = oracle::embedding(&tiny.tensors, BLOCKS, 4, &ids(text));
        for ((padded, alone), expected) in padded.iter().zip(alone).zip(&expected) {
            assert!((f64::from(*padded) - expected).abs() < 1e-5, "{padded} {expected}");
            assert!((f64::from(*alone) - expected).abs() < 1e-5, "{alone} {expected}");
        }
    }
}

#[test]
fn calibration_counts_every_token_once_and_no_padding() {
    let tiny = tiny("calibration");
    let texts = &tiny.texts[..50];
    let stats = calibrate(&tiny.tensors, &tiny.config, &tiny.encoder.batches(texts, 16).unwrap()).unwrap();
    assert_eq!(stats.len(), 4 * BLOCKS);
    let tokens: usize = texts.iter().map(|text| text.split(' ').count() + 2).sum();
    assert!(stats.values().all(|stats| stats.samples() == tokens as u64));
    let one_by_one = calibrate(&tiny.tensors, &tiny.config, &tiny.encoder.batches(texts, 1).unwrap()).unwrap();
    for (name, stats) in &stats {
        let (mean, other) = (stats.mean().unwrap(), one_by_one[name].mean().unwrap());
        assert!((&mean - &other).norm_max() < 1e-5, "{name}");
    }
}

#[test]
fn a_model_is_compressed_saved_and_loaded() {
    let tiny = tiny("whole");
    let (calibration, held_out) = texts::split(&tiny.texts, 200, 100, 1).unwrap();
    let calibration = tiny.encoder.batches(calibration, 64).unwrap();
    let held_out = tiny.encoder.batches(held_out, 64).unwrap();
    let stats = calibrate(&tiny.tensors, &tiny.config, &calibration).unwrap();
    let original = embeddings(&Bert::new(&tiny.tensors, &tiny.config).unwrap(), &held_out).unwrap();
    let parameters = |tensors: &Tensors| tensors.values().map(Tensor::elem_count).sum::<usize>();
    let run = |keep, method, allocation| {
        let (data, options) = ((&stats, &BTreeMap::new()), options(method, allocation));
        let layers = Layers::decompose(&tiny.tensors, &tiny.config, data, &options).unwrap();
        let plan = layers.allocate(&tiny.tensors, &tiny.config, &calibration, keep, &options).unwrap();
        let compressed = layers.compressed(&plan).unwrap();
        let model = with_compressed(&tiny.tensors, &tiny.config, &compressed).unwrap();
        let quality = cosine(&original, &embeddings(&model, &held_out).unwrap()).unwrap();
        (quality, compressed, model, plan)
    };

    let (svd, ..) = run(0.6, Method::Svd, Allocation::Uniform);
    let (corrected, ..) = run(0.6, Method::SvdBc, Allocation::Uniform);
    let (uniform, ..) = run(0.6, Method::Dalr, Allocation::Uniform);
    let (small, ..) = run(0.3, Method::Dalr, Allocation::Uniform);
    let (measured, compressed, model, plan) = run(0.6, Method::Dalr, Allocation::Sensitivity);
    assert!(svd < corrected && corrected < uniform, "{svd} {corrected} {uniform}");
    assert!(small < uniform && uniform < measured, "{small} {uniform} {measured}");

    let tensors = compressed_tensors(&tiny.tensors, &compressed).unwrap();
    let (before, after) = plan.parameters;
    let saved = before - after;
    assert_eq!(parameters(&tiny.tensors) - parameters(&tensors), saved as usize);
    assert!(after as f64 <= 0.6 * before as f64);

    // The saved model loads as the same network, and cannot be compressed again.
    candle_core::safetensors::save(&tensors, tiny.path.join("model.safetensors")).unwrap();
    let (config, loaded) = load(&tiny.path).unwrap();
    let again = Bert::new(&loaded, &config).unwrap();
    let (one, other) = (embeddings(&model, &held_out).unwrap(), embeddings(&again, &held_out).unwrap());
    assert_eq!(one.to_vec2::<f32>().unwrap(), other.to_vec2::<f32>().unwrap());
    let options = options(Method::Dalr, Allocation::Uniform);
    let error = Layers::decompose(&loaded, &config, (&stats, &BTreeMap::new()), &options).err().unwrap().to_string();
    assert!(error.contains("compressed already"), "{error}");

    let times = time(&model, &again, &held_out, 3).unwrap();
    assert_eq!(times.iter().map(|time| time.texts).collect::<Vec<_>>(), [64, 36]);
    assert!(times.iter().all(|time| time.before > 0.0 && time.after > 0.0 && time.speedup > 0.0));
}

#[test]
fn metric_pivots_and_recalibration_each_bring_the_embeddings_closer() {
    let tiny = tiny("steps");
    let (calibration, held_out) = texts::split(&tiny.texts, 200, 100, 1).unwrap();
    let calibration = tiny.encoder.batches(calibration, 64).unwrap();
    let held_out = tiny.encoder.batches(held_out, 64).unwrap();
    let stats = calibrate(&tiny.tensors, &tiny.config, &calibration).unwrap();
    let metrics = metrics(&tiny.tensors, &tiny.config, &calibration).unwrap();
    assert_eq!(metrics.len(), 6 * BLOCKS);
    let original = embeddings(&Bert::new(&tiny.tensors, &tiny.config).unwrap(), &held_out).unwrap();
    let none = BTreeMap::new();
    let run = |metrics, storage, sequential: bool| {
        let options = Options { storage, ..options(Method::Dalr, Allocation::Sensitivity) };
        let layers = Layers::decompose(&tiny.tensors, &tiny.config, (&stats, metrics), &options).unwrap();
        let plan = layers.allocate(&tiny.tensors, &tiny.config, &calibration, 0.4, &options).unwrap();
        assert!(plan.parameters.1 as f64 <= 0.4 * plan.parameters.0 as f64, "{:?}", plan.parameters);
        let compressed = match sequential {
            true => recalibrate(&tiny.tensors, &tiny.config, &calibration, (&plan, metrics), Method::Dalr),
            false => layers.compressed(&plan),
        };
        let model = with_compressed(&tiny.tensors, &tiny.config, &compressed.unwrap()).unwrap();
        cosine(&original, &embeddings(&model, &held_out).unwrap()).unwrap()
    };
    let (plain, metric) = (run(&none, Storage::Factors, false), run(&metrics, Storage::Factors, false));
    let both = run(&metrics, Storage::Pivoted, false);
    let (sequential, all) = (run(&none, Storage::Factors, true), run(&metrics, Storage::Pivoted, true));
    println!("plain {plain:.4}, sequential {sequential:.4}, metric {metric:.4}, pivoted {both:.4}, all {all:.4}");
    assert!(plain < metric && metric < both && both < all && plain < sequential);
}

/// The compressed model has the original tensors in other shapes, so that any code which takes the
/// sizes of the layers from the file runs it: here the plain computation.
#[test]
fn hidden_units_leave_ordinary_layers() {
    let tiny = tiny("units");
    let (calibration, held_out) = texts::split(&tiny.texts, 200, 100, 1).unwrap();
    let batches = tiny.encoder.batches(calibration, 64).unwrap();
    let judged = tiny.encoder.batches(held_out, 64).unwrap();
    let stats = calibrate(&tiny.tensors, &tiny.config, &batches).unwrap();
    let metrics = metrics(&tiny.tensors, &tiny.config, &batches).unwrap();
    let original = embeddings(&Bert::new(&tiny.tensors, &tiny.config).unwrap(), &judged).unwrap();
    let run = |kinds, keep, sequential: bool| {
        let options = Options { kinds, storage: Storage::Pivoted, ..options(Method::Dalr, Allocation::Sensitivity) };
        let layers = Layers::decompose(&tiny.tensors, &tiny.config, (&stats, &metrics), &options).unwrap();
        let plan = layers.allocate(&tiny.tensors, &tiny.config, &batches, keep, &options).unwrap();
        assert!(plan.parameters.1 as f64 <= keep * plan.parameters.0 as f64, "{:?}", plan.parameters);
        let compressed = match sequential {
            true => recalibrate(&tiny.tensors, &tiny.config, &batches, (&plan, &metrics), Method::Dalr),
            false => layers.compressed(&plan),
        };
        let compressed = compressed.unwrap();
        let model = with_compressed(&tiny.tensors, &tiny.config, &compressed).unwrap();
        let found = embeddings(&model, &judged).unwrap();
        (cosine(&original, &found).unwrap(), compressed, plan, found)
    };
    let (low_rank, ..) = run(Kinds::LowRank, 0.5, false);
    for sequential in [false, true] {
        let (all, compressed, plan, _) = run(Kinds::All, 0.5, sequential);
        assert_eq!(compressed.len(), plan.ranks.len() + 2 * plan.units.len());
        let (units, compressed, plan, found) = run(Kinds::HiddenUnits, 0.7, sequential);
        println!("low rank {low_rank:.4}, all kinds {all:.4}, hidden units only {units:.4}, {:?}", plan.units);
        assert!(all > low_rank && plan.ranks.is_empty() && plan.units.len() == BLOCKS);
        let tensors = compressed_tensors(&tiny.tensors, &compressed).unwrap();
        assert!(tensors.keys().all(|name| tiny.tensors.contains_key(name)));
        assert_eq!(tensors.len(), tiny.tensors.len());
        let parameters = |tensors: &Tensors| tensors.values().map(Tensor::elem_count).sum::<usize>();
        assert_eq!(parameters(&tiny.tensors) - parameters(&tensors), (plan.parameters.0 - plan.parameters.1) as usize);
        let found = found.to_vec2::<f32>().unwrap();
        for (text, found) in held_out.iter().zip(&found).take(10) {
            let expected = oracle::embedding(&tensors, BLOCKS, 4, &ids(text));
            for (found, expected) in found.iter().zip(&expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} {expected}");
            }
        }
    }
}

#[test]
fn differentiable_forms_compute_the_same() {
    let tiny = tiny("forms");
    let batches = tiny.encoder.batches(&tiny.texts[..20], 20).unwrap();
    let model = || Bert::new(&tiny.tensors, &tiny.config).unwrap();
    let (one, other) = (embeddings(&model(), &batches), embeddings(&model().differentiable(), &batches));
    let off = (one.unwrap() - other.unwrap()).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(off < 1e-6, "{off}");
}

#[test]
fn pivoted_ranks_fill_the_budget() {
    for (shape, fraction) in [((384, 384), 0.4), ((1536, 384), 0.8), ((384, 1536), 0.3), ((7, 30), 0.6)] {
        let (m, n) = (shape.0 as f64, shape.1 as f64);
        let exact = ((m + n) - ((m + n).powi(2) - 4.0 * fraction * m * n).sqrt()) / 2.0;
        assert_eq!(Storage::Pivoted.form().rank_within(fraction, shape), exact as usize);
        let factors = fraction * m * n / (m + n);
        assert_eq!(Storage::Factors.form().rank_within(fraction, shape), factors as usize);
    }
}

#[test]
fn draws_share_the_texts_held_out_only() {
    let texts: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    let [one, two, three] = [1, 2, 3].map(|draw| texts::split(&texts, 20, 30, draw).unwrap());
    assert!(one.1 == two.1 && two.1 == three.1);
    let mut all: Vec<_> = [one.0, two.0, three.0, one.1].concat();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 90);
    assert!(texts::split(&texts, 20, 30, 4).is_err());
}

#[test]
fn errors_name_the_missing_or_unknown_part() {
    let tiny = tiny("missing");
    let model = |tensors: &Tensors, config: &Config| Bert::new(tensors, config).err().unwrap().to_string();
    let mut tensors = tiny.tensors.clone();
    tensors.remove("encoder.layer.1.output.dense.bias");
    assert_eq!(model(&tensors, &tiny.config), "the model has no tensor `encoder.layer.1.output.dense.bias`");
    let relu = Config { hidden_act: "relu".into(), ..tiny.config.clone() };
    assert!(model(&tiny.tensors, &relu).contains("`relu`"));
    let heads = Config { num_attention_heads: 5, ..tiny.config.clone() };
    assert!(model(&tiny.tensors, &heads).contains("5 heads"));
    assert!(texts::split(&tiny.texts, 300, 1, 1).unwrap_err().to_string().contains("got 300 in all"));
    assert!(texts::split(&tiny.texts, 0, 1, 1).is_err());
    assert!(load(&tiny.path.join("elsewhere")).unwrap_err().to_string().contains("config.json"));
    // A weight of NaN.
    let mut broken = tiny.tensors.clone();
    let nan = Tensor::full(f32::NAN, (WIDTH, WIDTH), &Device::Cpu).unwrap();
    broken.insert("encoder.layer.0.attention.self.key.weight".into(), nan);
    let batches = tiny.encoder.batches(&tiny.texts[..5], 5).unwrap();
    let error = calibrate(&broken, &tiny.config, &batches).unwrap_err().to_string();
    assert!(error.contains("attention.output.dense"), "{error}");
    let whole = tiny.tensors.clone();
    let stats = calibrate(&whole, &tiny.config, &batches).unwrap();
    let data = (&stats, &BTreeMap::new());
    let options = options(Method::Dalr, Allocation::Uniform);
    let error = Layers::decompose(&broken, &tiny.config, data, &options).err().unwrap();
    assert!(format!("{error:#}").contains("attention.self.key"), "{error:#}");
    assert_eq!(whole.values().next().unwrap().dtype(), DType::F32);
}

#[test]
fn definitions_are_read_from_wordnet_and_texts_from_lines() {
    let folder = folder("wordnet");
    let path = folder.0.join("data.noun");
    let lines = "  1 This software and database is being provided to you  \n00001740 03 n 01 entity 0 003 | that which is perceived  \n\nplain\n";
    std::fs::write(&path, lines).unwrap();
    let mut texts = texts::read(&path).unwrap();
    texts.sort();
    assert_eq!(texts, ["plain", "that which is perceived"]);
}
