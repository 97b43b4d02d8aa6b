//! Faults: killed processes, damaged checkpoints, and ranks with different arguments. A job resumes
//! after a kill; otherwise all ranks stop and report the reason.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use common::{Folder, generated, kill, run, save, start, stopped_with, succeed, tensors_of, words};
use dalr_mpi::random::uniform;
use dalr_mpi::shard::Shard;
use faer::Mat;

/// Returns the number of batches in the checkpoint of each rank; `None` without a checkpoint.
fn progress(folder: &Path, ranks: usize) -> Vec<Option<usize>> {
    let of = |rank| {
        let entries = fs::read_dir(folder.join(format!("rank-{rank}"))).ok()?.flatten();
        let batches = entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("batches-")?.parse().ok());
        batches.max()
    };
    (0..ranks).map(of).collect()
}

/// Returns the only checkpoint of a rank.
fn checkpoint(folder: &Path, rank: usize) -> PathBuf {
    let batches = progress(folder, rank + 1)[rank].unwrap();
    folder.join(format!("rank-{rank}/batches-{batches}"))
}

#[test]
fn a_job_killed_at_random_continues_to_the_same_result() {
    let folder = Folder::new("killed");
    let [out, expected, checkpoints] =
        ["out.safetensors", "expected.safetensors", "checkpoints"].map(|name| folder.text(name));
    let (ranks, batches) = (4, 480);
    let data = ["--generate", "40x200,30x60", "--batches", "480", "--rows", "40", "--keep", "0.4"];
    succeed(ranks, &[&["compress", "--out", &expected][..], &data].concat());

    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
    println!("seed {seed}");
    let random = |index: u64| f64::from(uniform(seed, index) + 1.0) / 2.0;
    let arguments =
        words(&[&["compress", "--out", &out, "--checkpoints", &checkpoints, "--every", "2"][..], &data].concat());
    let (mut in_between, mut before) = (0, vec![None; ranks]);
    for round in 0..4 {
        let mut job = start(&[(ranks, arguments.clone())]);
        // After the first progress, the kill comes within about half of the remaining time.
        let further = |now: &[Option<usize>]| now.iter().zip(&before).any(|(now, before)| now > before);
        while job.running() && !further(&progress(&folder.path("checkpoints"), ranks)) {
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis((300.0 * random(2 * round)) as u64));
        let processes = job.ranks();
        if let Some(&process) = processes.get((random(2 * round + 1) * processes.len() as f64) as usize) {
            kill(process);
        }
        let ended = job.end();
        let after = progress(&folder.path("checkpoints"), ranks);
        println!("round {round}: {before:?} to {after:?}");
        assert!(after.iter().zip(&before).all(|(after, before)| after >= before), "a checkpoint was lost");
        in_between +=
            usize::from(!ended.success && after.iter().any(|done| done.is_some_and(|done| done < batches / ranks)));
        before = after;
    }
    assert!(in_between > 0, "no kill came between the first and the last checkpoint");
    let resumed = succeed(ranks, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(resumed.contains("layer0, on rank"), "{resumed}");
    assert!(fs::read(&out).unwrap() == fs::read(&expected).unwrap(), "another result after kills");
    // One checkpoint for each rank, and the lock.
    for rank in 0..ranks {
        let files = fs::read_dir(folder.path("checkpoints").join(format!("rank-{rank}"))).unwrap().count();
        assert_eq!((files, progress(&folder.path("checkpoints"), ranks)[rank]), (2, Some(batches / ranks)));
    }
}

#[test]
fn checkpoints_that_do_not_fit_stop_all_ranks() {
    let folder = Folder::new("unfit");
    let [out, checkpoints] = ["out.safetensors", "checkpoints"].map(|name| folder.text(name));
    let ranks = 4;
    let job = |ranks, sizes: &str, seed: &str, batches: &str| {
        let data = ["--generate", sizes, "--batches", batches, "--seed", seed, "--rows", "20", "--keep", "0.4"];
        run(ranks, &[&["compress", "--out", &out, "--checkpoints", &checkpoints, "--every", "2"][..], &data].concat())
    };
    assert!(job(ranks, "40x50", "1", "16").success);

    stopped_with(&job(ranks, "40x50", "2", "16"), ranks, &["rank 0: ", "another model", "from seed 1", "from seed 2"]);
    stopped_with(&job(ranks, "40x50", "1", "20"), ranks, &["another shard", "batches 0 to 4", "batches 0 to 5"]);
    stopped_with(&job(2, "40x50", "1", "16"), 2, &["another rank", "`0 of 2`", "`0 of 4`"]);

    let folder = folder.path("checkpoints");
    let statistics = checkpoint(&folder, 2).join("00000.safetensors");
    let good = fs::read(&statistics).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 4;
    fs::write(&statistics, &bad).unwrap();
    stopped_with(&job(ranks, "40x50", "1", "16"), ranks, &["rank 2: ", "00000.safetensors", "checksum"]);
    fs::write(&statistics, &good[..good.len() - 1]).unwrap();
    stopped_with(&job(ranks, "40x50", "1", "16"), ranks, &["rank 2: ", "00000.safetensors", "bytes"]);
    fs::remove_file(&statistics).unwrap();
    stopped_with(&job(ranks, "40x50", "1", "16"), ranks, &["rank 2: ", "00000.safetensors", "No such file"]);
    fs::write(&statistics, &good).unwrap();

    let identity = checkpoint(&folder, 3).join("identity.json");
    let text = fs::read(&identity).unwrap();
    fs::write(&identity, &text[..20]).unwrap();
    stopped_with(&job(ranks, "40x50", "1", "16"), ranks, &["rank 3: ", "identity.json", "damage"]);
    fs::write(&identity, &text).unwrap();
    // A renamed folder is refused.
    let renamed = folder.join("rank-1/batches-9");
    fs::rename(checkpoint(&folder, 1), &renamed).unwrap();
    stopped_with(&job(ranks, "40x50", "1", "16"), ranks, &["rank 1: ", "another batches", "`9`", "`4`"]);
    fs::rename(renamed, folder.join("rank-1/batches-4")).unwrap();
    assert!(job(ranks, "40x50", "1", "16").success);
}

#[test]
fn ranks_that_contradict_each_other_stop() {
    let folder = Folder::new("contradict");
    let ranks = 4;
    let out = folder.text("out.safetensors");
    let part = |rank: &str, keep: &str| {
        let data = ["compress", "--generate", "40x50", "--batches", "8", "--rows", "20", "--out", &out];
        (rank.parse().unwrap(), words(&[&data[..], &["--keep", keep]].concat()))
    };
    let ended = start(&[part("3", "0.4"), part("1", "0.5")]).end();
    stopped_with(&ended, ranks, &["rank 3: ", "fraction to keep", "`0.4`", "`0.5`"]);

    for keep in ["0", "1.5", "NaN"] {
        stopped_with(&start(&[part("2", keep)]).end(), 2, &["rank 0: ", "--keep in (0, 1]", keep]);
    }

    // Each rank has its own disk. Rank 1 has the same layers with other numbers; a later batch of
    // rank 3 contains a NaN.
    let names = ["layer0.weight".to_string(), "layer0.bias".to_string()];
    for rank in 0..ranks {
        fs::create_dir(folder.path(&format!("shards-{rank}"))).unwrap();
        for batch in 0..3 {
            let model = generated(&[(20, 30)], if rank == 1 { 8 } else { 7 });
            let shape = model.shapes().remove(0);
            save(
                &folder.path(&format!("model-{rank}.safetensors")),
                &tensors_of(&names, &model.layer(&shape).unwrap()),
            );
            let inputs = Shard::generated(7, 25, 12, rank, ranks).open(batch).unwrap().inputs(&shape).unwrap();
            save(&folder.path(&format!("shards-{rank}/{batch}.safetensors")), &[("layer0.input", inputs)]);
        }
    }
    let [shards, models] = ["shards-{rank}", "model-{rank}.safetensors"].map(|name| folder.text(name));
    let with = |model: &str, command: &[&str]| {
        run(ranks, &[command, &["--model", model, "--shards", &shards, "--out", &out]].concat())
    };
    let compress = ["compress", "--keep", "0.4", "--every", "1"];
    stopped_with(&with(&models, &compress), ranks, &["rank 1: ", "the model of rank 0", "checksum"]);
    let model = folder.text("model-0.safetensors");
    let ended = with(&model, &compress);
    assert!(ended.success, "{}", ended.err);

    let bad = Mat::from_fn(25, 30, |i, j| if (i, j) == (7, 3) { f32::NAN } else { 1.0 });
    save(&folder.path("shards-3/1.safetensors"), &[("layer0.input", bad)]);
    let solve = ["solve", "--rank", "5"];
    for command in [&compress[..], &solve[..]] {
        stopped_with(&with(&model, command), ranks, &["rank 3: ", "finite numbers", "row 7, column 3"]);
    }
    save(&folder.path("shards-3/1.safetensors"), &[("layer0.input", Mat::from_fn(25, 31, |_, _| 1.0))]);
    for command in [&compress[..], &solve[..]] {
        stopped_with(&with(&model, command), ranks, &["rank 3: ", "last axis of 30", "31"]);
    }
    stopped_with(&with(&model, &["solve", "--rank", "21"]), ranks, &["a rank from 1 to 20", "21"]);
}
