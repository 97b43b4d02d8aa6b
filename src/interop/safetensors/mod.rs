//! Activation statistics on disk, as [safetensors](https://github.com/huggingface/safetensors) files.
//!
//! [`ActivationStats::save`] and [`ActivationStats::load`] for files, [`ActivationStats::to_safetensors`] and
//! [`ActivationStats::from_safetensors`] for bytes, [`ActivationStats::write_safetensors`] and [`ActivationStats::read_safetensors`] for streams: to
//! other machines, say. What was loaded behaves bit for bit as what was saved, settings included.
//!
//! ```
//! use dalr::ActivationStats;
//!
//! # fn main() -> dalr::Result<()> {
//! # let path = std::env::temp_dir().join(format!("dalr-{}-fc7.safetensors", std::process::id()));
//! let mut stats = ActivationStats::<f32>::new(2);
//! stats.update(faer::mat![[1.0, 0.0], [3.0, 4.0]].as_ref())?;
//! stats.save(&path)?;
//!
//! let mut resumed = ActivationStats::<f32>::load(&path)?;
//! resumed.update(faer::mat![[5.0, 6.0]].as_ref())?;
//! assert_eq!(resumed.samples(), 3);
//! # std::fs::remove_file(&path).unwrap();
//! # Ok(())
//! # }
//! ```
//!
//! # Format, version 1
//!
//! A safetensors file, little endian, with these tensors in this order, without gaps, for `n` inputs (`n = 0` in the
//! arrays over the inputs as long as there are no samples):
//!
//! | tensor | type | shape | what it is |
//! |---|---|---|---|
//! | `mean` | F64 | `[n]` | mean of each input, `origin + offset` rounded |
//! | `origin` | F64 | `[n]` | a sample, from which the others are measured |
//! | `offset` | F64 | `[n]` | mean less origin |
//! | `minimum`, `maximum` | F64 | `[n]` | extremes |
//! | `absolute` | F64 | `[n]` | `Σ wᵢ abs(xᵢ)` |
//! | `active` | F64 | `[n]` | `Σ wᵢ [xᵢ ≠ 0]` |
//! | `weights` | F64 | `[p]` | weights of the samples that are kept as they are |
//! | `scatter_offset` | F64 | `[n]` | mean `μ` of what is in the scatter, less origin; form `scatter` only |
//! | `scatter` | F64 | `[entries]` | `Σ wᵢ (xᵢ − μ)(xᵢ − μ)ᵀ`, see below; form `scatter` only |
//! | `samples` | F32 or F64 | `[p, n]` | the samples that are kept as they are, one per row |
//! | `checksum` | U32 | `[1]` | CRC-32 (that of zlib) of all bytes of the file before these four |
//!
//! and these fields in `__metadata__`, in this order: `kind` (`dalr.ActivationStats`), `version`, `precision` (`f32` or `f64`), `form` (`samples` or
//! `scatter`), `features` (`n`), `sample_count`, `total_weight` (`Σ wᵢ`), `weight_squares` (`Σ wᵢ²`), `memory_limit` (bytes, or
//! `none`), `threads`, `block_width` (256); and in the form `scatter` also `scatter_weight` (`Σ wᵢ` of what is in the scatter), `scatter_precision` (0 for an empty
//! scatter; else the distance from 1 to the next number, `2⁻²³` or `2⁻⁵²`, in the precision in which the least precise products in it were made)
//! and `gathered` (`p`). In the form `samples` all samples are kept, `p` is `sample_count`; in the form `scatter` only those are that wait for the next product.
//!
//! The scatter is kept in blocks of 256 columns, the last one narrower. The block that starts at column `s` and is `w` wide holds the
//! rows from `s` on: `w · (n − s)` numbers, one column after the other. In Python:
//!
//! ```python
//! import zlib, numpy as np
//! from safetensors import safe_open
//!
//! raw = open(path, "rb").read()
//! with safe_open(path, "np") as file:
//!     about = file.metadata()
//!     tensors = {name: file.get_tensor(name) for name in file.keys()}
//! assert about["version"] == "1" and zlib.crc32(raw[:-4]) == tensors["checksum"][0]
//! n, total = int(about["features"]), float(about["total_weight"])
//! centred = tensors["samples"] - tensors["origin"] - tensors["offset"]
//! scatter = (centred.T * tensors["weights"]) @ centred
//! if about["form"] == "scatter":
//!     distance = tensors["scatter_offset"] - tensors["offset"]
//!     scatter += float(about["scatter_weight"]) * np.outer(distance, distance)
//!     collapsed, start = np.empty((n, n)), 0
//!     for s in range(0, n, 256):
//!         w = min(256, n - s)
//!         block = tensors["scatter"][start : start + w * (n - s)].reshape(w, n - s)
//!         collapsed[s : s + w, s:], collapsed[s:, s : s + w] = block, block.T
//!         start += block.size
//!     scatter += collapsed
//! covariance = scatter / total
//! ```
//!
//! Versions only ever add: a release reads all versions up to its own and refuses later ones by name.

mod header;
mod replace;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use self::header::Layout;
use crate::covariance::{Piece, PieceMut, zeros};
use crate::error::during;
use crate::linalg;
use crate::{ActivationStats, Error, Result, Scalar};

/// Numbers that are converted at a time.
const CHUNK: usize = 4096;

/// Who asks for what, for error messages.
struct Origin<'a> {
    path: &'a str,
}

impl Origin<'_> {
    fn refuse(&self, expected: &str, found: String) -> Error {
        Error::format(self.path.into(), expected.into(), found)
    }

    fn io(&self, error: &io::Error) -> Error {
        let (kind, message) = (error.kind(), error.to_string());
        Error::io(self.path.into(), kind, message)
    }
}

impl<T: Scalar> ActivationStats<T> {
    /// Saves these statistics to a file, in the place of what is there.
    ///
    /// The file is written under a temporary name in the same folder, synced to the disk and then renamed: a crash, a kill or a power
    /// failure at any point leaves the old file or the new one, whole. When this returns the new one is on the disk. What a kill leaves
    /// behind (`.<name>.<numbers>.partial`) is removed by the next save to the same path.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; the old file is then as it was (if the new one could not be moved into its place).
    ///
    /// # Cost
    ///
    /// The bytes of samples or scatter once through a checksum and to the disk, and two waits for the disk; no copy in memory.
    ///
    /// For an example see [`interop::safetensors`](crate::interop::safetensors).
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        during("ActivationStats::save", || {
            let path = path.as_ref();
            let layout = self.layout()?;
            let shown = path.display().to_string();
            replace::replace(path, |file| self.write(&layout, file))
                .map_err(|error| Origin { operation, path: &shown }.io(&error))
        })
    }

    /// Loads statistics that [`save`](Self::save) wrote.
    ///
    /// Nothing in the file is trusted: its header must be right to the byte and fit the file's length before anything is allocated,
    /// the checksum must agree, and the numbers must be ones that samples can have led to.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Format`] for a file that is damaged, of a later version, of another precision than `T`, or something else
    /// altogether; [`Error::Memory`]. Takes no more memory than the file is long, and some kilobytes.
    ///
    /// For an example see [`interop::safetensors`](crate::interop::safetensors).
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let shown = path.display().to_string();
        let origin = Origin { operation: "ActivationStats::load", path: &shown };
        let io = |error: io::Error| origin.io(&error);
        // Asked for before the file is opened: opening a pipe waits.
        if !fs::metadata(path).map_err(io)?.is_file() {
            return Err(origin.refuse("statistics in a regular file", "something else".into()));
        }
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        Self::read(&origin, length, file)
    }

    /// The bytes that [`save`](Self::save) would write, for other places than files.
    ///
    /// # Errors
    ///
    /// [`Error::Memory`].
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let mut stats = dalr::ActivationStats::<f64>::new(2);
    /// stats.update(faer::mat![[1.0, 2.0], [3.0, 4.0]].as_ref())?;
    /// let bytes = stats.to_safetensors()?;
    /// let copy = dalr::ActivationStats::<f64>::from_safetensors(&bytes)?;
    /// assert_eq!(copy.mean()?, stats.mean()?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn to_safetensors(&self) -> Result<Vec<u8>> {
        during("ActivationStats::to_safetensors", || {
            let layout = self.layout()?;
            let needed = usize::try_from(layout.length).unwrap_or(usize::MAX);
            let mut bytes = Vec::new();
            bytes.try_reserve_exact(needed).map_err(|_| linalg::out_of_memory(needed))?;
            self.write(&layout, &mut bytes).map_err(|error| Origin { operation, path: "memory" }.io(&error))?;
            Ok(bytes)
        })
    }

    /// Statistics from the bytes that [`to_safetensors`](Self::to_safetensors) gave, or that a file of [`save`](Self::save) holds.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    ///
    /// For an example see [`to_safetensors`](Self::to_safetensors).
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self> {
        let origin = Origin { operation: "ActivationStats::from_safetensors", path: "the bytes" };
        Self::read(&origin, bytes.len() as u64, bytes)
    }

    /// Number of bytes that [`write_safetensors`](Self::write_safetensors) writes, which a reader is to be told beforehand.
    ///
    /// # Errors
    ///
    /// [`Error::Overflow`] for more than can be addressed.
    ///
    /// For an example see [`write_safetensors`](Self::write_safetensors).
    pub fn safetensors_length(&self) -> Result<u64> {
        Ok(self.layout("ActivationStats::safetensors_length")?.length)
    }

    /// Writes the bytes that [`save`](Self::save) would write to a stream, a few kilobytes at a time: what is to go elsewhere (over a network, into a
    /// container) never exists a second time in memory. Buffer the stream if small writes are slow. For files take [`save`](Self::save), which is safe against crashes.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] with what the stream said; part of the bytes may have been written.
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// use dalr::ActivationStats;
    /// let (mut first, mut second) = (ActivationStats::<f32>::new(2), ActivationStats::<f32>::new(2));
    /// first.update(faer::mat![[1.0, 2.0], [3.0, 4.0]].as_ref())?;
    /// second.update(faer::mat![[5.0, 6.0]].as_ref())?;
    ///
    /// let mut stream = Vec::new(); // a socket, say
    /// first.write_safetensors(&mut stream)?;
    /// second.write_safetensors(&mut stream)?;
    ///
    /// let mut source = stream.as_slice();
    /// let mut received = ActivationStats::<f32>::read_safetensors(first.safetensors_length()?, &mut source)?;
    /// received.merge(&ActivationStats::read_safetensors(second.safetensors_length()?, &mut source)?)?;
    /// assert_eq!((received.samples(), received.mean()?[0]), (3, 3.0));
    /// # Ok(())
    /// # }
    /// ```
    pub fn write_safetensors(&self, mut target: impl Write) -> Result<()> {
        during("ActivationStats::write_safetensors", || {
            let layout = self.layout()?;
            self.write(&layout, &mut target).map_err(|error| Origin { operation, path: "the stream" }.io(&error))
        })
    }

    /// Statistics from the next `length` bytes of a stream, which [`write_safetensors`](Self::write_safetensors) wrote; what comes after them is left for
    /// others. They are read straight to where they stay, and trusted as little as those of [`load`](Self::load).
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load); some of the bytes may then not have been read. Takes no more memory than `length`, and some kilobytes.
    ///
    /// For an example see [`write_safetensors`](Self::write_safetensors).
    pub fn read_safetensors(length: u64, source: impl Read) -> Result<Self> {
        let origin = Origin { operation: "ActivationStats::read_safetensors", path: "the stream" };
        Self::read(&origin, length, source.take(length))
    }

    fn layout(&self) -> Result<Layout> {
        let overflow = Error::overflow("the length of the file");
        Layout::of::<T>(&self.head()).ok_or(overflow)
    }

    #[allow(clippy::indexing_slicing, reason = "as many numbers as were put there")]
    fn write(&self, layout: &Layout, target: &mut impl Write) -> io::Result<()> {
        let mut target = Summed { stream: target, sum: crc32fast::Hasher::new() };
        target.stream_all(&(layout.text.len() as u64).to_le_bytes())?;
        target.stream_all(layout.text.as_bytes())?;
        let mut mean = self.means();
        let mut chunk = [0.0; CHUNK];
        loop {
            let mut count = 0;
            chunk.iter_mut().zip(&mut mean).for_each(|(to, from)| {
                *to = from;
                count += 1;
            });
            if count == 0 {
                break;
            }
            target.numbers(&chunk[..count])?;
        }
        self.for_each_array(|piece| match piece {
            Piece::Double(numbers) => target.numbers(numbers),
            Piece::Native(numbers) => target.numbers(numbers),
        })?;
        let sum = target.sum.clone().finalize();
        target.stream_all(&sum.to_le_bytes())
    }

    fn read(origin: &Origin<'_>, length: u64, mut source: impl Read) -> Result<Self> {
        let io = |error: io::Error| origin.io(&error);
        let mut source = Summed { stream: &mut source, sum: crc32fast::Hasher::new() };
        let mut header = [0_u8; 8];
        if length < header.len() as u64 {
            return Err(origin.refuse("at least 8 bytes", length.to_string()));
        }
        source.fill_all(&mut header).map_err(io)?;
        let header = u64::from_le_bytes(header);
        header::require_length(origin, header, length)?;
        let mut text = vec![0_u8; header as usize];
        source.fill_all(&mut text).map_err(io)?;
        let head = Layout::parse::<T>(origin, &text, length)?;
        drop(text);

        let operation = origin.operation;
        let mut mean = Vec::new();
        let stats = Self::from_parts(&head, |piece| {
            // The first of all arrays; as long as each of those over the inputs.
            if mean.is_empty() && head.channels() > 0 {
                mean = zeros(head.channels())?;
                source.read_numbers::<f64>(&mut mean).map_err(io)?;
            }
            match piece {
                PieceMut::Double(numbers) => source.read_numbers(numbers).map_err(io),
                PieceMut::Native(numbers) => source.read_numbers(numbers).map_err(io),
            }
        })?;
        let sum = source.sum.clone().finalize();
        let mut stored = [0_u8; 4];
        source.fill_all(&mut stored).map_err(io)?;
        if stored != sum.to_le_bytes() {
            let stored = u32::from_le_bytes(stored);
            return Err(origin.refuse(&format!("the checksum {sum:08x} of what was read"), format!("{stored:08x}")));
        }
        if source.stream.read(&mut [0]).map_err(io)? != 0 {
            return Err(origin.refuse(&format!("{length} bytes"), "more".into()));
        }
        if !mean.iter().map(|m| m.to_bits()).eq(stats.means().map(f64::to_bits)) {
            return Err(origin.refuse("a mean that is origin plus offset", "another".into()));
        }
        drop(mean);
        stats.validate_parts(origin.path)?;
        Ok(stats)
    }
}

/// A stream and the checksum of what went through it.
struct Summed<'a, S> {
    stream: &'a mut S,
    sum: crc32fast::Hasher,
}

impl<S: Write> Summed<'_, S> {
    fn stream_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.stream.write_all(bytes)
    }

    #[allow(clippy::indexing_slicing, reason = "no chunk is longer than the room for one")]
    fn numbers<N: Scalar>(&mut self, numbers: &[N]) -> io::Result<()> {
        let mut bytes = [0; CHUNK * size_of::<f64>()];
        for numbers in numbers.chunks(CHUNK) {
            let bytes = &mut bytes[..size_of_val(numbers)];
            for (to, from) in bytes.chunks_exact_mut(size_of::<N>()).zip(numbers) {
                // Widening and narrowing back are exact.
                match to.len() {
                    4 => to.copy_from_slice(&(from.to_f64() as f32).to_le_bytes()),
                    _ => to.copy_from_slice(&from.to_f64().to_le_bytes()),
                }
            }
            self.stream_all(bytes)?;
        }
        Ok(())
    }
}

impl<S: Read> Summed<'_, S> {
    fn fill_all(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.stream.read_exact(bytes)?;
        self.sum.update(bytes);
        Ok(())
    }

    #[allow(clippy::indexing_slicing, reason = "no chunk is longer than the room for one")]
    fn read_numbers<N: Scalar>(&mut self, numbers: &mut [N]) -> io::Result<()> {
        let mut bytes = [0; CHUNK * size_of::<f64>()];
        for numbers in numbers.chunks_mut(CHUNK) {
            let bytes = &mut bytes[..size_of_val(numbers)];
            self.fill_all(bytes)?;
            for (to, from) in numbers.iter_mut().zip(bytes.chunks_exact(size_of::<N>())) {
                *to = N::from_f64(match *from {
                    [a, b, c, d] => f64::from(f32::from_le_bytes([a, b, c, d])),
                    [a, b, c, d, e, f, g, h] => f64::from_le_bytes([a, b, c, d, e, f, g, h]),
                    _ => f64::NAN,
                });
            }
        }
        Ok(())
    }
}
