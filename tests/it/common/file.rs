//! Parses and writes files of statistics without the library's code.

use serde_json::Value;

/// Returns the CRC-32 that zlib defines, computed bit by bit.
pub fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc)))
}

/// Returns the header and the data of a file, without the checksum.
pub fn take_apart(bytes: &[u8]) -> (String, Vec<u8>) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = core::str::from_utf8(&bytes[8..8 + length]).unwrap();
    (header.into(), bytes[8 + length..bytes.len() - 4].to_vec())
}

/// Returns a file of this header and these data, with the right checksum.
pub fn put_together(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes.extend(crc32(&bytes).to_le_bytes());
    bytes
}

/// Returns the position of a tensor in the data.
pub fn range(header: &str, name: &str) -> core::ops::Range<usize> {
    let header: Value = serde_json::from_str(header).unwrap();
    let offset = |end: usize| header[name]["data_offsets"][end].as_u64().unwrap() as usize;
    offset(0)..offset(1)
}

/// Returns the numbers of a tensor in `f64`.
pub fn numbers(header: &str, data: &[u8], name: &str) -> Vec<f64> {
    data[range(header, name)].chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// Overwrites one number of a tensor in `f64`.
pub fn set(header: &str, data: &mut [u8], name: &str, index: usize, value: f64) {
    let start = range(header, name).start + 8 * index;
    data[start..start + 8].copy_from_slice(&value.to_le_bytes());
}
