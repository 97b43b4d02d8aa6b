//! A process that is killed at any moment loses nothing that it has saved.
#![cfg(feature = "safetensors")]

#[path = "it/common/mod.rs"]
mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::gaussian;
use dalr::ActivationStats;
use faer::Mat;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// The variable that passes the path to the process under test.
const PATH: &str = "DALR_CRASH_TEST_PATH";

const FEATURES: usize = 160;
const ROWS: usize = 8;
const KILLS: usize = 60;

/// Computes the next state from the previous one. The first 80 steps are in sample form. Then there
/// is a scatter of 200 kilobytes, with a product in every fifth step.
fn step(stats: &mut ActivationStats<f32>) {
    let mut rng = StdRng::seed_from_u64(stats.samples());
    let batch = gaussian(&mut rng, ROWS, FEATURES);
    stats.update(Mat::from_fn(ROWS, FEATURES, |i, j| batch[(i, j)] as f32).as_ref()).unwrap();
}

/// Continues from the saved state. Saves after every step and prints a line, until it is killed.
fn save_for_ever(path: &Path) {
    let mut stats = ActivationStats::load(path).expect("what is there loads");
    let mut out = std::io::stdout();
    loop {
        step(&mut stats);
        stats.save(path).expect("saving works");
        writeln!(out, "saved {}", stats.samples()).and_then(|()| out.flush()).expect("somebody listens");
    }
}

#[test]
fn killed_at_any_moment_nothing_saved_is_lost() {
    if let Some(path) = std::env::var_os(PATH) {
        return save_for_ever(path.as_ref());
    }
    let folder = std::env::temp_dir().join(format!("dalr-crash-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("stats.safetensors");
    let mut expected = ActivationStats::<f32>::new(FEATURES).with_threads(1);
    expected.save(&path).unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let (mut caught_writing, mut most_files) = (0, 0);
    for kill in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed_at_any_moment_nothing_saved_is_lost", "--nocapture"])
            .env(PATH, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let saved =
            |line: Option<Result<String, _>>| -> Option<u64> { line?.ok()?.strip_prefix("saved ")?.parse().ok() };
        let mut acknowledged = loop {
            let line = lines.next().expect("a line before it ends");
            if let Some(samples) = saved(Some(line)) {
                break samples;
            }
        };
        std::thread::sleep(Duration::from_micros(rng.random_range(0..15_000)));
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success());
        acknowledged = lines.filter_map(|line| saved(Some(line))).last().unwrap_or(acknowledged);

        let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        caught_writing += usize::from(files.len() > 1);
        most_files = most_files.max(files.len());
        let loaded = ActivationStats::<f32>::load(&path).unwrap_or_else(|error| panic!("kill {kill}: {error}"));
        assert!(loaded.samples() >= acknowledged, "kill {kill}: {} of {acknowledged}", loaded.samples());
        while expected.samples() < loaded.samples() {
            step(&mut expected);
        }
        // The bits after many interruptions are those of a run without interruptions.
        assert!(loaded.to_safetensors().unwrap() == expected.to_safetensors().unwrap(), "kill {kill}");
    }
    println!("{KILLS} kills, {caught_writing} of them in the midst of writing, {} samples", expected.samples());
    assert!(caught_writing > 0, "no kill came at an interesting moment");
    // The next save removes the temporary file that a kill leaves.
    assert!(most_files <= 2, "{most_files} files");
    expected.save(&path).unwrap();
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    std::fs::remove_dir_all(&folder).unwrap();
}
