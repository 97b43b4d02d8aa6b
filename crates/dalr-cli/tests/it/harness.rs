//! Runs the program, and makes and reads its files without its code.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

use half::{bf16, f16};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, StandardNormal};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

/// Returns the path of the program.
pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_dalr"))
}

/// A temporary folder for one test, which is removed at its end.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("dalr-cli-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Returns the command on `model`, `calibration` and `out`.safetensors, with one thread and all
    /// messages, in this folder.
    pub fn command(&self, options: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.current_dir(&self.0).args([
            "compress",
            "model.safetensors",
            "--calibration",
            "calibration.safetensors",
        ]);
        command.args(["-o", "out.safetensors", "--threads", "1", "-v"]).args(options);
        command
    }

    pub fn run(&self, options: &[&str]) -> Output {
        self.command(options).output().unwrap()
    }

    /// Runs and reads the output.
    pub fn compress(&self, options: &[&str]) -> Tensors {
        let output = self.run(options);
        assert!(output.status.success(), "{options:?}: {}", said(&output));
        Tensors::read(&self.path("out.safetensors"))
    }

    /// Runs the program, and checks that it fails with this message and leaves no output.
    pub fn refuses(&self, options: &[&str], expected: &str) {
        let output = self.run(options);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{options:?}: {:?} {}", output.status, said(&output));
        assert!(said(&output).contains(expected), "{options:?}: expected `{expected}`, got {}", said(&output));
        let left = self.names();
        assert!(!left.iter().any(|name| name == "out.safetensors" || name.ends_with(".partial")), "{left:?}");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Returns the standard error of the program.
pub fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

impl Tensor {
    /// Creates a tensor from numbers, rounded to `dtype`.
    pub fn of(dtype: Dtype, shape: &[usize], numbers: &[f64]) -> Self {
        assert_eq!(numbers.len(), shape.iter().product::<usize>());
        let data = numbers.iter().flat_map(|&number| match dtype {
            Dtype::F64 => number.to_le_bytes().to_vec(),
            Dtype::F32 => (number as f32).to_le_bytes().to_vec(),
            Dtype::F16 => f16::from_f64(number).to_le_bytes().to_vec(),
            Dtype::BF16 => bf16::from_f64(number).to_le_bytes().to_vec(),
            Dtype::I64 => (number as i64).to_le_bytes().to_vec(),
            other => panic!("{other:?}"),
        });
        Self { dtype, shape: shape.to_vec(), data: data.collect() }
    }

    pub fn numbers(&self) -> Vec<f64> {
        let each = |bytes: &[u8]| match self.dtype {
            Dtype::F64 => f64::from_le_bytes(bytes.try_into().unwrap()),
            Dtype::F32 => f32::from_le_bytes(bytes.try_into().unwrap()).into(),
            Dtype::F16 => f16::from_le_bytes(bytes.try_into().unwrap()).into(),
            Dtype::BF16 => bf16::from_le_bytes(bytes.try_into().unwrap()).into(),
            other => panic!("{other:?}"),
        };
        self.data.chunks_exact(self.dtype.bitsize() / 8).map(each).collect()
    }
}

/// A file's tensors and metadata.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tensors {
    pub tensors: BTreeMap<String, Tensor>,
    pub metadata: HashMap<String, String>,
}

impl Tensors {
    pub fn with(mut self, name: &str, tensor: Tensor) -> Self {
        self.tensors.insert(name.into(), tensor);
        self
    }

    pub fn write(&self, path: &Path) {
        let views = self
            .tensors
            .iter()
            .map(|(name, tensor)| (name, TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.data).unwrap()));
        let metadata = (!self.metadata.is_empty()).then(|| self.metadata.clone());
        safetensors::serialize_to_file(views, metadata, path).unwrap();
    }

    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = |view: &TensorView<'_>| Tensor {
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            data: view.data().to_vec(),
        };
        let tensors = file.iter().map(|(name, view)| (name.to_string(), tensor(&view))).collect();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        Self { tensors, metadata: metadata.metadata().clone().unwrap_or_default() }
    }
}

/// Returns Gaussian numbers about a mean of 1. Column `j` is multiplied by `decay` to the power of
/// `j`.
pub fn random(seed: u64, rows: usize, columns: usize, decay: f64) -> Vec<f64> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut number = |j: usize| -> f64 {
        let normal: f64 = StandardNormal.sample(&mut rng);
        (normal + 1.0) * decay.powi(j as i32)
    };
    (0..rows * columns).map(|index| number(index % columns)).collect()
}

/// Returns a layer's tensors, for a model.
pub fn layer(model: Tensors, name: &str, dtype: Dtype, shape: [usize; 2], bias: bool) -> Tensors {
    let seed = name.bytes().map(u64::from).sum();
    let weight = Tensor::of(dtype, &shape, &random(seed, shape[0], shape[1], 1.0));
    let model = model.with(&format!("{name}.weight"), weight);
    if !bias {
        return model;
    }
    model.with(&format!("{name}.bias"), Tensor::of(dtype, &shape[..1], &random(seed + 1, 1, shape[0], 1.0)))
}

/// Returns a model of `count` layers of `size` × `size`, and samples for each.
pub fn stack(folder: &Folder, count: usize, size: usize) -> (Tensors, Tensors) {
    let (mut model, mut calibration) = (Tensors::default(), Tensors::default());
    for index in 0..count {
        let name = format!("layer.{index}");
        model = layer(model, &name, Dtype::F32, [size, size], true);
        let samples = random(100 + index as u64, 2 * size, size, 0.97);
        let samples = Tensor::of(Dtype::F32, &[2, size, size], &samples);
        calibration = calibration.with(&format!("{name}.input"), samples);
    }
    model.write(&folder.path("model.safetensors"));
    calibration.write(&folder.path("calibration.safetensors"));
    (model, calibration)
}
