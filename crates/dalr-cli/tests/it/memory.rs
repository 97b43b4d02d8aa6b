//! A model and samples that are several times as large as the memory limit.

use std::io::Write;
use std::process::Command;

use safetensors::tensor::Dtype;

use crate::harness::{Folder, Tensors, layer, random, said, stack};

const SIZE: usize = 384;
const LAYERS: usize = 3;
/// Bytes of the copied table, and samples of each layer.
const TABLE: usize = 256 << 20;
const SAMPLES: usize = 20_000;
/// Kilobytes of data that the process may use in addition to those for a tiny model. A tiny model
/// mainly takes the address space that matrix products reserve: twice the cache of the machine,
/// from 64 MB to a gigabyte. Code and the kernel's cache of files do not count.
const ROOM: usize = 32 << 10;

/// Writes the files piece by piece, so that the test runs on small machines.
fn write(folder: &Folder) {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    let mut add = |name: String, shape: Vec<usize>| {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]});
        header.insert(name, entry);
    };
    let mut model = Tensors::default();
    for index in 0..LAYERS {
        model = layer(model, &format!("l{index}"), Dtype::F32, [SIZE, SIZE], true);
    }
    for (name, tensor) in &model.tensors {
        add(name.clone(), tensor.shape.clone());
    }
    add("table".into(), vec![TABLE / 4]);
    let create = |name: &str, header: &serde_json::Map<String, serde_json::Value>| {
        let text = serde_json::to_vec(header).unwrap();
        let mut file = std::fs::File::create(folder.path(name)).unwrap();
        file.write_all(&(text.len() as u64).to_le_bytes()).unwrap();
        file.write_all(&text).unwrap();
        file
    };
    let mut file = create("model.safetensors", &header);
    model.tensors.values().for_each(|tensor| file.write_all(&tensor.data).unwrap());
    // A hole in the file takes no space on the disk.
    let length = file.metadata().unwrap().len() + TABLE as u64;
    file.set_len(length).unwrap();

    let mut header = serde_json::Map::new();
    let bytes = 4 * SAMPLES * SIZE;
    for index in 0..LAYERS {
        let entry = serde_json::json!(
            {"dtype": "F32", "shape": [20, SAMPLES / 20, SIZE], "data_offsets": [index * bytes, (index + 1) * bytes]}
        );
        header.insert(format!("l{index}.input"), entry);
    }
    let mut file = create("calibration.safetensors", &header);
    let piece = random(1, SAMPLES / 20, SIZE, 0.99);
    let piece: Vec<u8> = piece.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect();
    (0..20 * LAYERS).for_each(|_| file.write_all(&piece).unwrap());
}

/// Runs with at most so many kilobytes of data.
fn limited(folder: &Folder, kilobytes: usize) -> std::process::Output {
    let inner = folder.command(&["--keep", "0.5", "--force"]);
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -d {kilobytes}; exec \"$0\" \"$@\"")]);
    command.arg(inner.get_program()).args(inner.get_args()).current_dir(folder.path("")).output().unwrap()
}

/// Returns the smallest limit at which a tiny model can be compressed, up to a megabyte.
fn tiny() -> usize {
    let folder = Folder::new();
    stack(&folder, 1, 12);
    let (mut least, mut most) = (0_usize, 1 << 30);
    while most - least > 1 << 10 {
        let middle = least.midpoint(most);
        *(if limited(&folder, middle).status.success() { &mut most } else { &mut least }) = middle;
    }
    most
}

#[test]
fn a_model_larger_than_the_memory_is_compressed() {
    let folder = Folder::new();
    write(&folder);
    let size = |name: &str| std::fs::metadata(folder.path(name)).unwrap().len();
    assert!(size("model.safetensors") > 8 * 1024 * ROOM as u64);
    assert!(size("calibration.safetensors") > 2 * 1024 * ROOM as u64);
    let tiny = tiny();
    let output = limited(&folder, tiny + ROOM);
    assert!(output.status.success(), "{tiny} kB: {}", said(&output));
    assert!(size("out.safetensors") > TABLE as u64);
    // The limit has an effect: that of the tiny model is too small.
    assert!(!limited(&folder, tiny).status.success(), "{tiny} kB");
}
