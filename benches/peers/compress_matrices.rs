//! Compresses one layer from files and prints the time of each step, for
//! `benches/peers/compare.py`.
//!
//! `compress_matrices WEIGHT.f32 INPUTS.f32 OUT IN SAMPLES RANK THREADS FACTORS.f32 [METHOD]` reads
//! `f32` numbers in row-major order, the inputs in batches, and writes `up` and then `down` in the
//! same order. METHOD is `dalr-plain` (no regularization, bias kept; the default), `dalr`, `svd`,
//! or `statistics`, which stops after the statistics.

use std::error::Error;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::time::Instant;

use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Rank, Ridge, TruncatedSvd};
use faer::{Mat, MatRef};

const BATCH: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [weight, inputs, m, n, p, rank, threads, factors, rest @ ..] = arguments.as_slice() else {
        return Err("expected WEIGHT INPUTS OUT IN SAMPLES RANK THREADS FACTORS [METHOD]".into());
    };
    let [m, n, p, rank, threads] =
        [m, n, p, rank, threads].map(|number| number.parse::<usize>().map_err(|error| format!("{number}: {error}")));
    let (m, n, p, rank, threads) = (m?, n?, p?, rank?, threads?);
    let method: Box<dyn LowRankCompressor<f32>> = match rest.first().map(String::as_str) {
        None | Some("dalr-plain") => {
            Box::new(Dalr::new().with_ridge(Ridge::None).with_bias_correction(false).with_threads(threads))
        }
        Some("dalr") => Box::new(Dalr::new().with_bias_correction(true).with_threads(threads)),
        Some("svd") => Box::new(TruncatedSvd::new().with_threads(threads)),
        Some("statistics") => Box::new(TruncatedSvd::new()),
        Some(other) => return Err(format!("unknown method {other}").into()),
    };

    let mut numbers = vec![0.0_f32; m * n];
    read(&mut BufReader::with_capacity(1 << 20, File::open(weight)?), &mut numbers)?;
    let layer = Linear::new(MatRef::from_row_major_slice(&numbers, m, n).to_owned(), None)?;
    drop(numbers);

    let started = Instant::now();
    let mut stats = ActivationStats::<f32>::new(n).with_threads(threads);
    let mut file = BufReader::with_capacity(1 << 20, File::open(inputs)?);
    let mut batch = vec![0.0_f32; BATCH.min(p) * n];
    let (mut reading, mut remaining) = (0.0, p);
    while remaining > 0 {
        let rows = remaining.min(BATCH);
        let since = Instant::now();
        read(&mut file, &mut batch[..rows * n])?;
        reading += since.elapsed().as_secs_f64();
        stats.update(MatRef::from_row_major_slice(&batch[..rows * n], rows, n))?;
        remaining -= rows;
    }
    drop(batch);
    let gathered = started.elapsed().as_secs_f64() - reading;
    if rest.first().is_some_and(|method| method == "statistics") {
        println!("statistics {gathered:.3} s, compression 0.000 s, reading {reading:.3} s");
        File::create(factors)?;
        return Ok(());
    }
    let since = Instant::now();
    let compressed = method.compress_with(&layer, (&stats).into(), Rank::Fixed(rank))?;
    let solved = since.elapsed().as_secs_f64();

    let low = compressed.layer();
    let mut out = BufWriter::new(File::create(factors)?);
    write(&mut out, low.up())?;
    write(&mut out, low.down())?;
    out.flush()?;
    println!("statistics {gathered:.3} s, compression {solved:.3} s, reading {reading:.3} s");
    println!("{}", compressed.report());
    Ok(())
}

fn read(file: &mut impl Read, numbers: &mut [f32]) -> std::io::Result<()> {
    let mut bytes = vec![0; 1 << 20];
    for piece in numbers.chunks_mut(bytes.len() / 4) {
        let bytes = &mut bytes[..piece.len() * 4];
        file.read_exact(bytes)?;
        for (number, bytes) in piece.iter_mut().zip(bytes.chunks_exact(4)) {
            *number = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
    }
    Ok(())
}

fn write(file: &mut impl Write, matrix: MatRef<'_, f32>) -> std::io::Result<()> {
    let transposed: Mat<f32> = matrix.transpose().to_owned();
    for column in transposed.col_iter() {
        let bytes: Vec<u8> = column.iter().flat_map(|x| x.to_le_bytes()).collect();
        file.write_all(&bytes)?;
    }
    Ok(())
}
