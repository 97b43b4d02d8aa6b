//! Activation statistics in files and streams. The format is described in
//! [`interop::safetensors`](super).

mod header;
mod paired;

use std::io::{self, Read, Write};
use std::path::Path;

use self::header::{Kind, LONGEST, Layout, precision};
use super::{format_error, io_error, positioned_read, replace_file};
use crate::covariance::{Piece, PieceMut, zeros};
use crate::error::during;
use crate::linalg;
use crate::{ActivationStats, Error, Result, Scalar};

/// Number of entries that are converted at a time.
const CHUNK: usize = 4096;

impl<T: Scalar> ActivationStats<T> {
    /// Saves these statistics to a file, [atomically](super::replace_file): a crash leaves the old
    /// file or the new one. When this returns, the new file is on the disk.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; the old file is then unchanged.
    ///
    /// # Cost
    ///
    /// The bytes of the samples or of the scatter are checksummed and written once, without a copy
    /// in memory.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        during("ActivationStats::save", || self.save_as(Kind::Activations, path.as_ref()))
    }

    /// Loads statistics that [`save`](Self::save) wrote.
    ///
    /// Checks the header against the file's length before it allocates anything. Then checks the
    /// checksum, and that all numbers are finite, variances not negative and weights positive.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Format`] for a file that is damaged, of a later version, of another
    /// dtype than `T`, or not of statistics; [`Error::Memory`]. Allocates at most the length of the
    /// file and some kilobytes.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        during("ActivationStats::load", || Self::load_as(Kind::Activations, path.as_ref()))
    }

    /// Returns the bytes that [`save`](Self::save) would write.
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
        during("ActivationStats::to_safetensors", || self.to_bytes(Kind::Activations))
    }

    /// Reads statistics from the bytes that [`to_safetensors`](Self::to_safetensors) returned, or
    /// from the bytes of a file.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self> {
        during("ActivationStats::from_safetensors", || {
            Self::read(Kind::Activations, Path::new("the bytes"), bytes.len() as u64, bytes)
        })
    }

    /// Returns the number of bytes that [`write_safetensors`](Self::write_safetensors) writes.
    /// [`read_safetensors`](Self::read_safetensors) takes this number as an argument.
    ///
    /// # Errors
    ///
    /// [`Error::Overflow`] if the number exceeds the address space.
    pub fn safetensors_length(&self) -> Result<u64> {
        during("ActivationStats::safetensors_length", || Ok(self.layout(Kind::Activations)?.length))
    }

    /// Writes the bytes of [`save`](Self::save) to a stream, a few kilobytes at a time and without
    /// a copy in memory. Buffer the stream if small writes are slow. For files use
    /// [`save`](Self::save), which is atomic.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] with the stream's message; part of the bytes may have been written.
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
            let layout = self.layout(Kind::Activations)?;
            self.write(&layout, &mut target).map_err(|error| io_error(Path::new("the stream"), error))
        })
    }

    /// Reads statistics from the next `length` bytes of a stream, which
    /// [`write_safetensors`](Self::write_safetensors) wrote. Does not read the rest of the stream.
    /// Applies the checks of [`load`](Self::load).
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load); some of the bytes may then be unread. Allocates at most `length`
    /// bytes and some kilobytes.
    pub fn read_safetensors(length: u64, source: impl Read) -> Result<Self> {
        during("ActivationStats::read_safetensors", || {
            Self::read(Kind::Activations, Path::new("the stream"), length, source.take(length))
        })
    }

    fn save_as(&self, kind: Kind, path: &Path) -> Result<()> {
        let layout = self.layout(kind)?;
        replace_file(path, |mut file| self.write(&layout, &mut file).map_err(|error| io_error(path, error)))
    }

    fn load_as(kind: Kind, path: &Path) -> Result<Self> {
        let (file, length) = positioned_read::open(path)?;
        Self::read(kind, path, length, file)
    }

    fn to_bytes(&self, kind: Kind) -> Result<Vec<u8>> {
        let layout = self.layout(kind)?;
        let needed = usize::try_from(layout.length).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(needed).map_err(|_| linalg::out_of_memory(needed))?;
        self.write(&layout, &mut bytes).map_err(|error| io_error(Path::new("memory"), error))?;
        Ok(bytes)
    }

    fn layout(&self, kind: Kind) -> Result<Layout> {
        let overflow = Error::overflow("the length of the file");
        Layout::of::<T>(kind, &self.head()).ok_or(overflow)
    }

    fn write(&self, layout: &Layout, target: &mut impl Write) -> io::Result<()> {
        let mut target = Summed { stream: target, sum: crc32fast::Hasher::new() };
        target.stream_all(&layout.header)?;
        let mut means = self.means().peekable();
        while means.peek().is_some() {
            target.numbers(&means.by_ref().take(CHUNK).collect::<Vec<f64>>())?;
        }
        self.for_each_array(|piece| match piece {
            Piece::Double(numbers) => target.numbers(numbers),
            Piece::Native(numbers) => target.numbers(numbers),
        })?;
        let sum = target.sum.clone().finalize();
        target.stream_all(&sum.to_le_bytes())
    }

    fn read(kind: Kind, path: &Path, length: u64, mut source: impl Read) -> Result<Self> {
        let io = |error| io_error(path, error);
        let mut source = Summed { stream: &mut source, sum: crc32fast::Hasher::new() };
        let mut header = [0_u8; 8];
        if length < header.len() as u64 {
            return Err(format_error(path, "at least 8 bytes", length.to_string()));
        }
        source.fill_all(&mut header).map_err(io)?;
        let header = u64::from_le_bytes(header);
        let most = LONGEST.min(length - 8);
        if header > most {
            return Err(format_error(path, format!("a header of at most {most} bytes"), format!("one of {header}")));
        }
        let mut text = vec![0_u8; header as usize];
        source.fill_all(&mut text).map_err(io)?;
        let head = Layout::parse::<T>(kind, path, &text, length)?;
        drop(text);

        let mut mean = Vec::new();
        let stats = Self::from_parts(&head, |piece| {
            // `mean` comes before all other arrays.
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
            return Err(format_error(path, format!("the checksum {sum:08x} of the bytes"), format!("{stored:08x}")));
        }
        if source.stream.read(&mut [0]).map_err(io)? != 0 {
            return Err(format_error(path, format!("{length} bytes"), "more"));
        }
        if !mean.iter().map(|m| m.to_bits()).eq(stats.means().map(f64::to_bits)) {
            return Err(format_error(path, "a mean that is origin plus offset", "another"));
        }
        drop(mean);
        stats.validate_parts(&path.display().to_string())?;
        Ok(stats)
    }
}

/// A stream, and the checksum of the bytes that were read or written.
struct Summed<'a, S> {
    stream: &'a mut S,
    sum: crc32fast::Hasher,
}

impl<S: Write> Summed<'_, S> {
    fn stream_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.stream.write_all(bytes)
    }

    fn numbers<N: Scalar>(&mut self, numbers: &[N]) -> io::Result<()> {
        let dtype = precision::<N>();
        let mut bytes = Vec::with_capacity(CHUNK * dtype.width());
        for numbers in numbers.chunks(CHUNK) {
            bytes.clear();
            // Neither conversion rounds.
            numbers.iter().for_each(|number| _ = dtype.encode(number.to_f64(), &mut bytes));
            self.stream_all(&bytes)?;
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

    fn read_numbers<N: Scalar>(&mut self, numbers: &mut [N]) -> io::Result<()> {
        let dtype = precision::<N>();
        let mut bytes = Vec::with_capacity(CHUNK * dtype.width());
        for numbers in numbers.chunks_mut(CHUNK) {
            bytes.resize(numbers.len() * dtype.width(), 0);
            self.fill_all(&mut bytes)?;
            let mut numbers = numbers.iter_mut();
            dtype.decode(&bytes, |number| {
                numbers.by_ref().take(1).for_each(|to| *to = N::from_f64(number));
            });
        }
        Ok(())
    }
}
