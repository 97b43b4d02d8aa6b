//! Loading a file takes at most as much memory as the length of the file, whatever its header
//! states.

use dalr::{ActivationStats, Scalar};
use faer::Mat;

use crate::common::file::{put_together, take_apart};
use crate::{alone, peak};

/// Additional memory for the header, error messages and the rounding of columns to cache lines.
const SLACK: usize = 200_000;

fn good<T: Scalar>(rows: usize, features: usize) {
    let mut stats = ActivationStats::<T>::new(features);
    stats.update(Mat::from_fn(rows, features, |i, j| T::from_f64(((i * 7 + j * 3) % 19) as f64)).as_ref()).unwrap();
    // In covariance form, these samples stay in the buffer.
    stats.update(Mat::from_fn(7, features, |i, j| T::from_f64(((i * 5 + j * 3) % 11) as f64)).as_ref()).unwrap();
    let path = std::env::temp_dir().join(format!("dalr-memory-{}", std::process::id()));
    let (saved, needed) = peak(|| stats.save(&path));
    saved.unwrap();
    assert!(needed < SLACK, "saving took {needed} bytes");
    let length = std::fs::metadata(&path).unwrap().len() as usize;
    let (loaded, needed) = peak(|| ActivationStats::<T>::load(&path));
    assert_eq!(loaded.unwrap().samples(), rows as u64 + 7);
    assert!(needed > length / 2 && needed < length + SLACK, "{needed} bytes for a file of {length}");
    let mut bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let (written, needed) = peak(|| stats.write_safetensors(std::io::sink()));
    written.unwrap();
    assert!(needed < SLACK, "writing to a stream took {needed} bytes");
    let (read, needed) = peak(|| ActivationStats::<T>::read_safetensors(length as u64, bytes.as_slice()));
    assert_eq!(read.unwrap().samples(), rows as u64 + 7);
    assert!(needed < length + SLACK, "{needed} bytes for a stream of {length}");
    // A changed bit in the data is only detected at the end; one in the length of the header
    // immediately.
    for (index, most) in [(length / 2, length + SLACK), (6, SLACK), (0, SLACK)] {
        bytes[index] ^= 1;
        let (result, needed) = peak(|| ActivationStats::<T>::from_safetensors(&bytes).map(|_| ()));
        assert!(result.is_err() && needed < most, "{needed} bytes for a damaged file of {length}");
        bytes[index] ^= 1;
    }
}

#[test]
fn no_more_than_the_file_is_long() {
    alone(files);
}

fn files() {
    good::<f32>(3, 100_000);
    good::<f32>(9_000, 250);
    good::<f64>(2_000, 2_000);
    good::<f64>(4_000, 900);
    good::<f32>(3_000, 600);

    let mut stats = ActivationStats::<f32>::new(3);
    stats.update(Mat::from_fn(4, 3, |i, j| (i * j) as f32).as_ref()).unwrap();
    let (header, data) = take_apart(&stats.to_safetensors().unwrap());
    let mut hostile = Vec::new();
    for count in ["1000000000", "1000000000000", "9223372036854775807", "18446744073709551615"] {
        for (from, to) in [
            ("\"sample_count\":\"4\"", format!("\"sample_count\":\"{count}\"")),
            ("\"features\":\"3\"", format!("\"features\":\"{count}\"")),
            ("[4,3]", format!("[{count},3]")),
            ("[0,24]", format!("[0,{count}]")),
        ] {
            assert!(header.contains(from));
            hostile.push(put_together(&header.replace(from, &to), &data));
        }
        // The header is consistent, except for the file's length.
        let wide = header
            .replace("\"features\":\"3\"", &format!("\"features\":\"{count}\""))
            .replace("[3]", &format!("[{count}]"));
        hostile.push(put_together(&wide, &data));
    }
    // The header is valid, but the file is truncated.
    for (rows, features) in [(2000, 2000), (5000, 500)] {
        let mut stats = ActivationStats::<f32>::new(features);
        stats.update(Mat::from_fn(rows, features, |i, j| (i * j) as f32).as_ref()).unwrap();
        let (header, data) = take_apart(&stats.to_safetensors().unwrap());
        hostile.push(put_together(&header, &data[..1000]));
    }
    for filling in ["[", "{\"a\":", "0,", "\"a\":[0],", " "] {
        hostile.push(put_together(&filling.repeat(4000 / filling.len()), &data));
        hostile.push(put_together(&format!("{{\"a\":{{\"shape\":[{}", filling.repeat(3900 / filling.len())), &data));
        hostile.push(put_together(&filling.repeat(10_000_000 / filling.len()), &data));
    }
    for length in [4096_u64, 1 << 20, 1 << 40, u64::MAX] {
        let mut bytes = put_together(&header, &data);
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        hostile.push(bytes);
    }
    for bytes in hostile {
        let (result, needed) = peak(|| ActivationStats::<f32>::from_safetensors(&bytes).map(|_| ()));
        let error = result.unwrap_err();
        assert!(needed < SLACK, "{needed} bytes to find out: {error}");
    }
}
