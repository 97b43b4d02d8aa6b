//! Extracts or resizes adapters from files and prints the times, for `benches/peers/lora.py`.
//!
//! `lora_matrices extract BASE.f32 TUNED.f32 OUT IN RANK RUNS FACTORS.f32`
//! `lora_matrices resize DOWN.f32 UP.f32 OUT IN RANK-BEFORE RANK RUNS FACTORS.f32`
//!
//! Reads `f32` numbers in row-major order. Writes `up`, `down` and the root of every eigenvalue.
//! Every run starts from matrices in memory and ends with the adapter.

use std::error::Error;
use std::io::Write;
use std::time::Instant;

use dalr::adapter::Adapter;
use dalr::{Calibration, Decomposition, Rank};
use faer::{Mat, MatRef};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<usize>().map_err(|error| format!("{text}: {error}"));
    match arguments[..] {
        ["extract", base, tuned, m, n, rank, runs, factors] => {
            let (m, n, rank) = (number(m)?, number(n)?, number(rank)?);
            let (base, tuned) = (read(base, m, n)?, read(tuned, m, n)?);
            let (seconds, (adapter, decomposition)) = timed(number(runs)?, || {
                let decomposition = Adapter::extract(base.as_ref(), tuned.as_ref(), Calibration::none(), rank)?;
                Ok((Adapter::truncated(&decomposition, rank)?, decomposition))
            })?;
            write(&seconds, &adapter, &decomposition, factors)
        }
        ["resize", down, up, m, n, before, rank, runs, factors] => {
            let (m, n, before, rank) = (number(m)?, number(n)?, number(before)?, number(rank)?);
            let adapter = Adapter::new(read(down, before, n)?, read(up, m, before)?, 1.0)?;
            let (seconds, resized) = timed(number(runs)?, || adapter.resize(Rank::Fixed(rank)))?;
            write(&seconds, &resized, &adapter.decompose(Calibration::none())?, factors)
        }
        _ => Err(
            "expected extract BASE TUNED OUT IN RANK RUNS FACTORS, or resize DOWN UP OUT IN BEFORE RANK RUNS FACTORS"
                .into(),
        ),
    }
}

/// Returns the seconds of every run, and the result of the last one.
fn timed<R>(runs: usize, solve: impl Fn() -> dalr::Result<R>) -> Result<(Vec<f64>, R)> {
    let mut seconds = Vec::new();
    let mut result = None;
    for _ in 0..runs {
        let since = Instant::now();
        let found = solve()?;
        seconds.push(since.elapsed().as_secs_f64());
        result = Some(found);
    }
    Ok((seconds, result.ok_or("expected at least one run")?))
}

fn write(seconds: &[f64], adapter: &Adapter<f32>, decomposition: &Decomposition<f32>, path: &str) -> Result<()> {
    println!("{}", seconds.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    let mut numbers: Vec<f32> = row_major(adapter.up());
    numbers.extend(row_major(adapter.down()));
    numbers.extend(decomposition.energies().iter().map(|energy| energy.sqrt() as f32));
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    std::fs::File::create(path)?.write_all(&bytes)?;
    Ok(())
}

fn row_major(matrix: MatRef<'_, f32>) -> Vec<f32> {
    matrix.row_iter().flat_map(|row| row.iter().copied().collect::<Vec<_>>()).collect()
}

fn read(path: &str, rows: usize, columns: usize) -> Result<Mat<f32>> {
    let bytes = std::fs::read(path)?;
    let numbers: Vec<f32> =
        bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect();
    if numbers.len() != rows * columns {
        return Err(format!("{path}: expected {rows} × {columns} numbers, got {}", numbers.len()).into());
    }
    Ok(MatRef::from_row_major_slice(&numbers, rows, columns).to_owned())
}
