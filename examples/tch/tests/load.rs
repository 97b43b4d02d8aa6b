//! tch loads files of compressed layers, and the network computes nearly the original outputs.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use dalr::{ActivationStats, Dalr, LowRankCompressor, Rank};
use faer::{Col, Mat, MatRef};
use safetensors::{Dtype, tensor::TensorView};
use tch::nn::{self, Module};
use tch::{Device, Kind, Tensor};

/// A temporary folder, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("dalr-tch-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// Two layers, each original or compressed.
struct Network {
    variables: nn::VarStore,
    first: nn::Sequential,
    second: nn::Sequential,
}

impl Network {
    fn new(ranks: &std::collections::BTreeMap<String, i64>) -> Self {
        let variables = nn::VarStore::new(Device::Cpu);
        let block = &variables.root() / "block";
        let rank = |name: &str| ranks.get(name).copied();
        let first = dalr_tch::linear(&block / "first", 40, 60, Default::default(), rank("block.first"));
        let bare = nn::LinearConfig { bias: false, ..Default::default() };
        let second = dalr_tch::linear(&block / "second", 60, 50, bare, rank("block.second"));
        Self { variables, first, second }
    }

    fn forward(&self, inputs: &Tensor) -> Tensor {
        self.second.forward(&self.first.forward(inputs).relu())
    }
}

/// Creates an original network whose weights have decaying singular values, and a batch.
fn original(folder: &Folder) -> (Network, Tensor) {
    tch::manual_seed(1);
    let network = Network::new(&Default::default());
    tch::no_grad(|| {
        for (name, mut weight) in network.variables.variables() {
            if name.ends_with("weight") {
                let (left, values, right) = weight.svd(true, true);
                let decay = Tensor::from(0.7).pow(&Tensor::arange(values.size()[0], (Kind::Float, Device::Cpu)));
                weight.copy_(&(left * decay).matmul(&right.tr()));
            }
        }
    });
    let inputs = Tensor::randn([300, 40], (Kind::Float, Device::Cpu)) + 0.5;
    network.variables.save(folder.path("model.safetensors")).unwrap();
    (network, inputs)
}

/// Returns the relative error of outputs: the denominator is the expected outputs about their mean.
fn relative_error(found: &Tensor, expected: &Tensor) -> f64 {
    let spread = expected - expected.mean_dim([0_i64].as_slice(), true, Kind::Float);
    f64::try_from((found - expected).norm() / spread.norm()).unwrap()
}

fn load(path: &Path) -> Network {
    let mut network = Network::new(&dalr_tch::ranks(path).unwrap());
    network.variables.load(path).unwrap();
    network
}

#[test]
fn a_file_of_the_program() {
    let Some(program) = std::env::var_os("DALR_PROGRAM") else {
        eprintln!("skipped: DALR_PROGRAM does not name the program");
        return;
    };
    let folder = Folder::new("program");
    let (network, inputs) = original(&folder);
    let hidden = network.first.forward(&inputs).relu();
    let read = [("block.first.input", inputs.shallow_clone()), ("block.second.input", hidden)];
    Tensor::write_safetensors(&read, folder.path("activations.safetensors")).unwrap();
    let out = folder.path("out.safetensors");
    let mut command = Command::new(program);
    command
        .arg("compress")
        .arg(folder.path("model.safetensors"))
        .arg("--calibration")
        .arg(folder.path("activations.safetensors"));
    let output = command.arg("--out").arg(&out).args(["--keep", "0.5"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let compressed = load(&out);
    let ranks = dalr_tch::ranks(&out).unwrap();
    assert!(ranks.contains_key("block.first") && ranks.contains_key("block.second"), "{ranks:?}");
    assert_eq!(compressed.variables.variables()["block.first.0.weight"].size(), [ranks["block.first"], 40]);
    assert_eq!(compressed.variables.len(), 5);
    let error = relative_error(&compressed.forward(&inputs), &network.forward(&inputs));
    assert!(error > 0.0 && error < 0.1, "{error}");
}

#[test]
fn factors_of_the_library() {
    let folder = Folder::new("library");
    let (network, inputs) = original(&folder);
    let variables = network.variables.variables();
    let numbers = |tensor: &Tensor| Vec::<f32>::try_from(tensor.detach().flatten(0, -1)).unwrap();
    let weight = numbers(&variables["block.first.weight"]);
    let bias: Col<f32> = numbers(&variables["block.first.bias"]).into_iter().collect();
    let layer = dalr::Linear::new(MatRef::from_row_major_slice(&weight, 60, 40).to_owned(), Some(bias)).unwrap();
    let mut stats = ActivationStats::new(40);
    stats.update(MatRef::from_row_major_slice(&numbers(&inputs), 300, 40)).unwrap();
    let compressed = Dalr::new().compress(&layer, &stats, Rank::Fixed(8)).unwrap();

    let bytes = |matrix: MatRef<'_, f32>| -> Vec<u8> {
        matrix
            .row_iter()
            .flat_map(|row| row.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>())
            .collect()
    };
    let low = compressed.layer();
    let bias = Mat::from_fn(60, 1, |row, _| low.bias().unwrap()[row]);
    let second = numbers(&variables["block.second.weight"]);
    let second = MatRef::from_row_major_slice(&second, 50, 60);
    let parts = [
        ("block.first.0.weight", vec![8, 40], bytes(low.down())),
        ("block.first.1.weight", vec![60, 8], bytes(low.up())),
        ("block.first.1.bias", vec![60], bytes(bias.as_ref())),
        ("block.second.weight", vec![50, 60], bytes(second)),
    ];
    let views =
        parts.iter().map(|(name, shape, data)| (*name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
    let metadata = HashMap::from([("dalr.ranks".to_string(), r#"{"block.first": 8}"#.to_string())]);
    let out = folder.path("out.safetensors");
    safetensors::serialize_to_file(views, Some(metadata), &out).unwrap();

    let loaded = load(&out);
    let rows = numbers(&inputs);
    let expected = low.forward(MatRef::from_row_major_slice(&rows, 300, 40)).unwrap();
    let found = numbers(&loaded.first.forward(&inputs));
    for (row, found) in found.chunks(60).enumerate() {
        for (column, found) in found.iter().enumerate() {
            assert!((found - expected[(row, column)]).abs() < 1e-4);
        }
    }
    let error = relative_error(&loaded.forward(&inputs), &network.forward(&inputs));
    assert!(error > 0.0 && error < 0.1, "{error}");
}

#[test]
fn files_without_ranks_are_refused() {
    let folder = Folder::new("refused");
    let (_, _) = original(&folder);
    let model = folder.path("model.safetensors");
    assert!(matches!(dalr_tch::ranks(&model), Err(dalr_tch::Error::Ranks(_))));
    let bytes = std::fs::read(&model).unwrap();
    for length in [0, 5, 8, 20] {
        let path = folder.path("short.safetensors");
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert!(matches!(dalr_tch::ranks(&path), Err(dalr_tch::Error::Header(_))), "{length} bytes");
    }
    std::fs::write(folder.path("huge.safetensors"), u64::MAX.to_le_bytes()).unwrap();
    assert!(matches!(dalr_tch::ranks(folder.path("huge.safetensors")), Err(dalr_tch::Error::Header(_))));
    assert!(matches!(dalr_tch::ranks(folder.path("none.safetensors")), Err(dalr_tch::Error::Io(_))));
}
