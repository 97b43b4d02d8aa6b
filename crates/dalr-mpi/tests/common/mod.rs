//! Starts and ends jobs of several ranks over the loopback interface.
#![allow(dead_code, reason = "each test program uses some of it")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dalr::{ActivationStats, Linear};
use dalr_mpi::model::{Model, Shape};
use dalr_mpi::shard::Shard;
use faer::Mat;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

/// A job that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(90);

/// A temporary folder, removed at the end of a test.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("dalr-mpi-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The result of a job.
pub struct Ended {
    pub success: bool,
    pub out: String,
    pub err: String,
}

/// A job that is running.
pub struct Job {
    mpirun: Child,
    out: Option<std::thread::JoinHandle<String>>,
    err: Option<std::thread::JoinHandle<String>>,
    started: Instant,
}

fn listen(stream: Option<impl Read + Send + 'static>) -> Option<std::thread::JoinHandle<String>> {
    let mut stream = stream?;
    Some(std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }))
}

/// Starts a job in parts, each a number of ranks and their arguments.
pub fn start(parts: &[(usize, Vec<String>)]) -> Job {
    start_program(env!("CARGO_BIN_EXE_dalr-mpi"), parts)
}

/// [`start`] for another program of this package.
pub fn start_program(program: &str, parts: &[(usize, Vec<String>)]) -> Job {
    let mut command = Command::new("mpirun");
    command.args(["--oversubscribe", "--mca", "pml", "ob1", "--mca", "btl", "tcp,self"]);
    command.args(["--mca", "btl_tcp_if_include", "lo", "--mca", "orte_base_help_aggregate", "0"]);
    for (index, (ranks, arguments)) in parts.iter().enumerate() {
        if index > 0 {
            command.arg(":");
        }
        command.args(["-n", &ranks.to_string(), program]).args(arguments);
    }
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    // Returns freed memory to the system at once, so that memory in use can be measured.
    command.env("MALLOC_MMAP_THRESHOLD_", "262144");
    let mut mpirun = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (out, err) = (listen(mpirun.stdout.take()), listen(mpirun.stderr.take()));
    Job { mpirun, out, err, started: Instant::now() }
}

impl Job {
    /// Ids of the ranks' processes.
    pub fn ranks(&self) -> Vec<u32> {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let own = |id: &u32| {
            let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            // `id (name) state parent …`
            let Some((name, rest)) = stat.rsplit_once(')') else { return false };
            let parent = rest.split_whitespace().nth(1).and_then(|id| id.parse().ok());
            name.contains("dalr-mpi") && parent == Some(self.mpirun.id())
        };
        ids.filter(own).collect()
    }

    pub fn running(&mut self) -> bool {
        self.mpirun.try_wait().unwrap().is_none()
    }

    /// Waits for the end, and panics if the job hangs.
    pub fn end(mut self) -> Ended {
        while self.running() {
            if self.started.elapsed() > PATIENCE {
                self.ranks().into_iter().for_each(kill);
                let _ = self.mpirun.kill();
                let _ = self.mpirun.wait();
                let text = |listener: Option<std::thread::JoinHandle<String>>| listener.unwrap().join().unwrap();
                panic!("the job hangs\n{}{}", text(self.out.take()), text(self.err.take()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let success = self.mpirun.wait().unwrap().success();
        Ended { success, out: self.out.take().unwrap().join().unwrap(), err: self.err.take().unwrap().join().unwrap() }
    }
}

/// SIGKILL.
pub fn kill(process: u32) {
    let _ = Command::new("kill").args(["-9", &process.to_string()]).stderr(Stdio::null()).status();
}

/// Runs a job to its end.
pub fn run(ranks: usize, arguments: &[&str]) -> Ended {
    start(&[(ranks, words(arguments))]).end()
}

/// Runs a job that must succeed, and returns its output.
pub fn succeed(ranks: usize, arguments: &[&str]) -> String {
    let ended = run(ranks, arguments);
    assert!(ended.success, "{arguments:?}\n{}{}", ended.out, ended.err);
    ended.out
}

pub fn words(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|word| word.to_string()).collect()
}

/// Checks that all ranks of a job stopped with one message, which contains these parts.
pub fn stopped_with(ended: &Ended, ranks: usize, message: &[&str]) {
    assert!(!ended.success, "{}", ended.out);
    for rank in 0..ranks {
        let start = format!("rank {rank} of {ranks} stops: ");
        let line = ended.err.lines().find(|line| line.contains(&start));
        let line = line.unwrap_or_else(|| panic!("nothing from rank {rank}\n{}", ended.err));
        for part in message {
            assert!(line.contains(part), "expected `{part}` in: {line}");
        }
    }
}

/// Returns the layers that `--generate` makes for these sizes.
pub fn generated(sizes: &[(usize, usize)], seed: u64) -> Model {
    let shape = |(index, &(outputs, inputs)): (usize, &(usize, usize))| Shape {
        name: format!("layer{index}"),
        outputs,
        inputs,
    };
    Model::Generated { shapes: sizes.iter().enumerate().map(shape).collect(), seed }
}

/// Returns statistics of a layer from all batches, in one process.
pub fn alone(shard: &Shard, shape: &Shape) -> ActivationStats<f32> {
    let mut stats = ActivationStats::new(shape.inputs).with_threads(1);
    for index in 0..shard.batches() {
        stats.update(shard.open(index).unwrap().inputs(shape).unwrap().as_ref()).unwrap();
    }
    stats
}

/// Returns the largest entry of a difference, relative to the largest entry.
pub fn distance(a: faer::MatRef<'_, f64>, b: faer::MatRef<'_, f64>) -> f64 {
    assert_eq!(a.shape(), b.shape());
    (a - b).norm_max() / b.norm_max().max(f64::MIN_POSITIVE)
}

/// Returns a tensor of a file as a matrix.
pub fn tensor(file: &SafeTensors<'_>, name: &str) -> Mat<f64> {
    let view = file.tensor(name).unwrap();
    let columns = *view.shape().last().unwrap();
    let numbers: Vec<f32> = view.data().chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect();
    Mat::from_fn(numbers.len() / columns, columns, |i, j| f64::from(numbers[i * columns + j]))
}

/// Writes matrices as `F32`, one row after the other.
pub fn save(path: &Path, tensors: &[(&str, Mat<f32>)]) {
    let bytes: BTreeMap<&str, (Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, matrix)| {
            let rows = matrix.row_iter().flat_map(|row| row.iter().copied().collect::<Vec<_>>());
            (*name, (vec![matrix.nrows(), matrix.ncols()], rows.flat_map(f32::to_le_bytes).collect()))
        })
        .collect();
    let views = bytes.iter().map(|(name, (shape, bytes))| {
        let shape = if name.ends_with(".bias") { vec![shape[0]] } else { shape.clone() };
        (*name, TensorView::new(Dtype::F32, shape, bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Returns a layer as tensors of a file.
pub fn tensors_of<'a>(names: &'a [String; 2], layer: &Linear<f32>) -> [(&'a str, Mat<f32>); 2] {
    let weight = layer.weight().to_owned();
    let bias = layer.bias().unwrap();
    [(names[0].as_str(), weight), (names[1].as_str(), Mat::from_fn(bias.nrows(), 1, |i, _| bias[i]))]
}
