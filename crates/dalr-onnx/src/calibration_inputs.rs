//! A model's inputs on data of the target domain: `.npz`, `.npy` and `.safetensors` files, and
//! folders of them.
//!
//! A file has an entry for each input of the model, with the input's name. A `.npy` file is the one
//! input of a model that has no other. The first axis of an entry counts samples. The entries of a
//! file have the same number of samples; files may differ in all dimensions that the model leaves
//! open.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use zip::ZipArchive;

use crate::error::{Error, Result};
use crate::graph::{Dimension, ValueInfo};
use crate::npy::Header;
use crate::tensor::{Data, Tensor};

/// The number of entries of all inputs up to which samples run together, if the model allows it:
/// larger batches are no faster, and take more memory.
const TOGETHER: usize = 1 << 20;
const MOST_TOGETHER: usize = 32;

/// Samples of all inputs of a model, in files. One file at a time is in memory.
#[derive(Clone, Debug)]
pub struct Inputs {
    expected: Vec<ValueInfo>,
    files: Vec<Source>,
}

/// Some samples that run together: a tensor for each input of the model, with its name.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The number of samples.
    pub samples: usize,
    /// The inputs, in the model's order.
    pub inputs: Vec<(String, Tensor)>,
}

#[derive(Clone, Debug)]
struct Source {
    path: PathBuf,
    samples: Range<usize>,
    /// The largest number of samples that run together, and the number that samples must be a
    /// multiple of.
    together: usize,
    step: usize,
}

impl Inputs {
    /// Opens files, and all files of these kinds in folders, in the order of their names. Reads
    /// their headers and checks them against the inputs of a model.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, of another kind, or damaged; an input without an entry; an entry
    /// of another shape or type than the input; entries of different numbers of samples.
    pub fn open(paths: &[PathBuf], expected: &[ValueInfo]) -> Result<Self> {
        let mut inputs = Self { expected: expected.to_vec(), files: Vec::new() };
        let mut seen = BTreeSet::new();
        for path in Self::files_of(paths)? {
            if !seen.insert(path.canonicalize().map_err(Error::io(&path))?) {
                return Err(Error::data(&path, "every file once", "the same file twice"));
            }
            inputs.files.push(inputs.source(path)?);
        }
        Ok(inputs)
    }

    /// Returns these files, and all files of these kinds in folders, in the order in which
    /// [`open`](Self::open) reads them.
    ///
    /// # Errors
    ///
    /// A file of another kind; a folder that cannot be read.
    pub fn files_of(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
        let files: Vec<Vec<PathBuf>> = paths.iter().map(|path| files(path)).collect::<Result<_>>()?;
        Ok(files.into_iter().flatten().collect())
    }

    /// Returns the number of samples.
    pub fn samples(&self) -> usize {
        self.files.iter().map(|file| file.samples.len()).sum()
    }

    /// Returns the first samples and the last ones, of which there are at least `last`. A model
    /// whose batches have a fixed size does not divide them.
    #[must_use]
    pub fn split(mut self, last: usize) -> (Self, Self) {
        let mut rest = Self { expected: self.expected.clone(), files: Vec::new() };
        let mut missing = last;
        while let Some(file) = self.files.last_mut().filter(|_| missing > 0) {
            let taken = missing.next_multiple_of(file.step).min(file.samples.len());
            let mut part = file.clone();
            part.samples.start = file.samples.end - taken;
            file.samples.end = part.samples.start;
            if file.samples.is_empty() {
                self.files.pop();
            }
            rest.files.insert(0, part);
            missing = missing.saturating_sub(taken);
        }
        (self, rest)
    }

    /// Returns about `count` samples: the first ones of each file, as many as its part of all.
    #[must_use]
    pub fn thinned(&self, count: usize) -> Self {
        let (total, mut files, mut seen) = (self.samples().max(1), Vec::new(), 0);
        for file in &self.files {
            let before = seen * count / total;
            seen += file.samples.len();
            let taken = (seen * count / total - before).next_multiple_of(file.step).min(file.samples.len());
            if taken > 0 {
                let mut part = file.clone();
                part.samples.end = part.samples.start + taken;
                files.push(part);
            }
        }
        Self { expected: self.expected.clone(), files }
    }

    /// Calls `run` with all samples, batch by batch.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or that has changed; numbers that are not finite; errors of
    /// `run`.
    pub fn for_each<E: From<Error>>(&self, mut run: impl FnMut(Batch) -> Result<(), E>) -> Result<(), E> {
        for file in &self.files {
            let whole = self.load(&file.path)?;
            let found = self.source(file.path.clone())?.samples.len();
            if found < file.samples.end {
                return Err(Error::data(&file.path, format!("{} samples, as before", file.samples.end), found).into());
            }
            let mut start = file.samples.start;
            while start < file.samples.end {
                let end = (start + file.together).min(file.samples.end);
                let part = |(name, tensor): &(String, Tensor)| match tensor.shape.is_empty() {
                    true => (name.clone(), tensor.clone()),
                    false => (name.clone(), tensor.rows(start, end)),
                };
                run(Batch { samples: end - start, inputs: whole.iter().map(part).collect() })?;
                start = end;
            }
        }
        Ok(())
    }

    /// Reads the headers of a file.
    fn source(&self, path: PathBuf) -> Result<Source> {
        let headers = self.headers(&path)?;
        let (mut samples, mut step, mut entries) = (None, 1, 0);
        for (input, (shape, is_integer)) in self.expected.iter().zip(headers) {
            let name = &input.name;
            let element = input.element.ok_or_else(|| {
                Error::data(&path, format!("a model whose input `{name}` is a tensor of a known type"), "another input")
            })?;
            if is_integer == element.is_float() {
                let expected = format!("`{name}` of type {element}");
                let found = if is_integer { "integers" } else { "floating-point numbers" };
                return Err(Error::data(&path, expected, found));
            }
            let open = sizes(input, shape.len());
            let fits = |(axis, (open, found)): (usize, (&Option<usize>, &usize))| match open {
                None => *found > 0,
                Some(size) if axis == 0 => *size > 0 && *found > 0 && found.is_multiple_of(*size),
                Some(size) => size == found,
            };
            if open.len() != shape.len() || !open.iter().zip(&shape).enumerate().all(fits) {
                let sizes = open.iter().map(|size| size.map_or("any".into(), |size| size.to_string()));
                let expected = format!("`{name}` of shape [{}]", sizes.collect::<Vec<_>>().join(", "));
                return Err(Error::data(&path, expected, format!("{shape:?}")));
            }
            let Some(&count) = shape.first() else { continue };
            step = step.max(open.first().copied().flatten().unwrap_or(1));
            entries += shape.iter().skip(1).product::<usize>();
            if *samples.get_or_insert(count) != count {
                let expected = format!("as many samples in `{name}` as in the other entries");
                return Err(Error::data(&path, expected, format!("{count} and {}", samples.unwrap_or(0))));
            }
        }
        let samples = samples.unwrap_or(1);
        // A fixed batch runs as it is.
        let fixed = self.expected.iter().any(|input| matches!(sizes(input, 1).first(), Some(Some(_))));
        let together = if fixed { step } else { (TOGETHER / entries.max(1)).clamp(1, MOST_TOGETHER) };
        Ok(Source { path, samples: 0..samples, together, step })
    }

    /// Returns shape and kind of the entry of each input.
    fn headers(&self, path: &Path) -> Result<Vec<(Vec<usize>, bool)>> {
        match Kind::of(path)? {
            Kind::Npy => {
                self.only_input(path)?;
                let mut reader = BufReader::new(File::open(path).map_err(Error::io(path))?);
                let header = Header::read(&mut reader).map_err(damaged(path))?;
                Ok(vec![(header.shape.clone(), header.is_integer())])
            }
            Kind::Npz => {
                let mut archive = archive(path)?;
                let read = |input: &ValueInfo| {
                    let mut entry = entry(&mut archive, path, &input.name)?;
                    let header = Header::read(&mut entry).map_err(damaged(path))?;
                    Ok((header.shape.clone(), header.is_integer()))
                };
                self.expected.iter().map(read).collect()
            }
            Kind::Safetensors => {
                let tensors = self.load(path)?;
                Ok(tensors
                    .into_iter()
                    .map(|(_, tensor)| {
                        let is_integer = matches!(tensor.data, Data::Integer(_));
                        (tensor.shape, is_integer)
                    })
                    .collect())
            }
        }
    }

    /// Reads all entries of a file.
    fn load(&self, path: &Path) -> Result<Vec<(String, Tensor)>> {
        let named = |tensors: Vec<Tensor>| -> Result<Vec<(String, Tensor)>> {
            for (input, tensor) in self.expected.iter().zip(&tensors) {
                if let Some(place) = tensor.as_floats().and_then(|data| data.iter().position(|x| !x.is_finite())) {
                    let expected = format!("finite numbers in `{}`", input.name);
                    return Err(Error::data(path, expected, format!("NaN or infinity at position {place}")));
                }
            }
            Ok(self.expected.iter().map(|input| input.name.clone()).zip(tensors).collect())
        };
        match Kind::of(path)? {
            Kind::Npy => {
                self.only_input(path)?;
                let mut reader = BufReader::new(File::open(path).map_err(Error::io(path))?);
                let header = Header::read(&mut reader).map_err(damaged(path))?;
                named(vec![header.numbers(reader).map_err(damaged(path))?])
            }
            Kind::Npz => {
                let mut archive = archive(path)?;
                let read = |input: &ValueInfo| {
                    let mut entry = entry(&mut archive, path, &input.name)?;
                    let header = Header::read(&mut entry).map_err(damaged(path))?;
                    header.numbers(entry).map_err(damaged(path))
                };
                named(self.expected.iter().map(read).collect::<Result<_>>()?)
            }
            Kind::Safetensors => {
                let bytes = std::fs::read(path).map_err(Error::io(path))?;
                let tensors = SafeTensors::deserialize(&bytes).map_err(|error| damaged(path)(error.to_string()))?;
                let read = |input: &ValueInfo| {
                    let view = tensors.tensor(&input.name).map_err(|_| missing(path, &input.name, tensors.names()))?;
                    let data = numbers(view.dtype(), view.data()).ok_or_else(|| {
                        Error::data(path, format!("`{}` of plain numbers", input.name), format!("{:?}", view.dtype()))
                    })?;
                    Ok(Tensor { shape: view.shape().to_vec(), data })
                };
                named(self.expected.iter().map(read).collect::<Result<_>>()?)
            }
        }
    }

    fn only_input(&self, path: &Path) -> Result<()> {
        match self.expected.len() {
            1 => Ok(()),
            count => Err(Error::data(path, format!("an .npz file with entries for {count} inputs"), "one .npy array")),
        }
    }
}

/// Returns the sizes of an input's dimensions, `None` for those that the model leaves open; all of
/// them, if the model does not even state their number.
fn sizes(input: &ValueInfo, dimensions: usize) -> Vec<Option<usize>> {
    let size = |dimension: &Dimension| match dimension {
        Dimension::Fixed(size) => Some(*size),
        _ => None,
    };
    input.shape.as_ref().map_or(vec![None; dimensions], |shape| shape.iter().map(size).collect())
}

#[derive(Clone, Copy)]
enum Kind {
    Npy,
    Npz,
    Safetensors,
}

impl Kind {
    fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("npy") => Ok(Self::Npy),
            Some("npz") => Ok(Self::Npz),
            Some("safetensors") => Ok(Self::Safetensors),
            _ => Err(Error::data(path, "a file .npz, .npy or .safetensors, or a folder of them", "another name")),
        }
    }
}

/// Returns the file, or the files of a folder by name.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        Kind::of(path)?;
        return Ok(vec![path.into()]);
    }
    let entries = std::fs::read_dir(path).map_err(Error::io(path))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = paths.collect::<std::io::Result<Vec<_>>>().map_err(Error::io(path))?;
    paths.retain(|path| path.is_file() && Kind::of(path).is_ok());
    paths.sort();
    if paths.is_empty() {
        return Err(Error::data(path, "files .npz, .npy or .safetensors in the folder", "none"));
    }
    Ok(paths)
}

fn damaged(path: &Path) -> impl Fn(String) -> Error + '_ {
    |found| Error::data(path, "numbers of a plain type", found)
}

fn archive(path: &Path) -> Result<ZipArchive<BufReader<File>>> {
    let file = BufReader::new(File::open(path).map_err(Error::io(path))?);
    ZipArchive::new(file).map_err(|error| Error::data(path, "an archive of arrays", error.to_string()))
}

fn entry<'a>(
    archive: &'a mut ZipArchive<BufReader<File>>,
    path: &Path,
    name: &str,
) -> Result<zip::read::ZipFile<'a, BufReader<File>>> {
    let file = format!("{name}.npy");
    if archive.index_for_name(&file).is_none() {
        let names: Vec<String> =
            archive.file_names().flatten().map(|name| name.trim_end_matches(".npy").into()).collect();
        return Err(missing(path, name, names));
    }
    archive.by_name(&file).map_err(|error| Error::data(path, format!("the entry `{name}`"), error.to_string()))
}

/// Returns the error for an input that a file has no entry for.
fn missing<S: AsRef<str>>(path: &Path, name: &str, there: impl IntoIterator<Item = S>) -> Error {
    let mut there: Vec<String> = there.into_iter().map(|name| format!("`{}`", name.as_ref())).collect();
    there.sort();
    there.truncate(8);
    let found = if there.is_empty() { "no entries".into() } else { format!("only {}", there.join(", ")) };
    Error::data(path, format!("an entry for the model's input `{name}`"), found)
}

/// Returns the numbers of a tensor; `None` for a type that is not of plain numbers.
fn numbers(dtype: Dtype, bytes: &[u8]) -> Option<Data> {
    let floats = |width, one: fn(&[u8]) -> f32| Data::Float(bytes.chunks_exact(width).map(one).collect());
    let integers = |width, one: fn(&[u8]) -> i64| Data::Integer(bytes.chunks_exact(width).map(one).collect());
    fn of<const N: usize>(bytes: &[u8]) -> [u8; N] {
        bytes.try_into().unwrap_or([0; N])
    }
    Some(match dtype {
        Dtype::F64 => floats(8, |bytes| f64::from_le_bytes(of(bytes)) as f32),
        Dtype::F32 => floats(4, |bytes| f32::from_le_bytes(of(bytes))),
        Dtype::F16 => floats(2, |bytes| half::f16::from_le_bytes(of(bytes)).to_f32()),
        Dtype::BF16 => floats(2, |bytes| half::bf16::from_le_bytes(of(bytes)).to_f32()),
        Dtype::I64 => integers(8, |bytes| i64::from_le_bytes(of(bytes))),
        Dtype::I32 => integers(4, |bytes| i32::from_le_bytes(of(bytes)).into()),
        Dtype::I16 => integers(2, |bytes| i16::from_le_bytes(of(bytes)).into()),
        Dtype::I8 => integers(1, |bytes| i8::from_le_bytes(of(bytes)).into()),
        Dtype::U32 => integers(4, |bytes| u32::from_le_bytes(of(bytes)).into()),
        Dtype::U16 => integers(2, |bytes| u16::from_le_bytes(of(bytes)).into()),
        Dtype::U8 | Dtype::BOOL => integers(1, |bytes| u8::from_le_bytes(of(bytes)).into()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use safetensors::tensor::{TensorView, serialize_to_file};

    use super::*;
    use crate::element::ElementType;

    fn input(name: &str, element: ElementType, shape: &[Option<usize>]) -> ValueInfo {
        let dimension = |size: &Option<usize>| size.map_or(Dimension::Unknown, Dimension::Fixed);
        ValueInfo { name: name.into(), element: Some(element), shape: Some(shape.iter().map(dimension).collect()) }
    }

    /// A folder that is removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("dalr-onnx-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        /// Writes `ids`, samples × length, which count up from `first`, and `x`, samples × 2.
        fn write(&self, name: &str, first: i64, samples: usize, length: usize, x: f32) {
            let ids: Vec<u8> = (first..).take(samples * length).flat_map(i64::to_le_bytes).collect();
            let x: Vec<u8> = vec![x; 2 * samples].into_iter().flat_map(f32::to_le_bytes).collect();
            let ids = TensorView::new(Dtype::I64, vec![samples, length], &ids).unwrap();
            let x = TensorView::new(Dtype::F32, vec![samples, 2], &x).unwrap();
            serialize_to_file([("ids", ids), ("x", x)], None, &self.0.join(name)).unwrap();
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn expected(batch: Option<usize>) -> [ValueInfo; 2] {
        [input("ids", ElementType::I64, &[batch, None]), input("x", ElementType::F32, &[batch, Some(2)])]
    }

    /// Returns the first number of each sample.
    fn firsts(inputs: &Inputs) -> Vec<i64> {
        let mut firsts = Vec::new();
        inputs
            .for_each(|batch| {
                let Data::Integer(ids) = &batch.inputs[0].1.data else { return Ok(()) };
                let length = batch.inputs[0].1.shape[1];
                assert_eq!(batch.inputs[1].1.shape, [batch.samples, 2]);
                firsts.extend(ids.chunks_exact(length).map(|row| row[0]));
                Ok::<_, Error>(())
            })
            .unwrap();
        firsts
    }

    #[test]
    fn every_sample_is_in_one_part() {
        let folder = Folder::new("parts");
        folder.write("a.safetensors", 0, 40, 1, 0.0);
        folder.write("b.safetensors", 1000, 10, 3, 0.0);
        let all = Inputs::open(std::slice::from_ref(&folder.0), &expected(None)).unwrap();
        let whole = firsts(&all);
        let mut numbers: Vec<i64> = (0..40).collect();
        numbers.extend((0..10).map(|sample| 1000 + 3 * sample));
        assert_eq!((all.samples(), &whole), (50, &numbers));
        for last in [0, 1, 10, 17, 50] {
            let (first, rest) = all.clone().split(last);
            assert_eq!(rest.samples(), last);
            assert_eq!([firsts(&first), firsts(&rest)].concat(), numbers);
        }
        let few = all.thinned(10);
        assert_eq!((few.samples(), firsts(&few)), (10, vec![0, 1, 2, 3, 4, 5, 6, 7, 1000, 1003]));
        // Batches of a fixed size stay whole.
        let (first, rest) = Inputs::open(std::slice::from_ref(&folder.0), &expected(Some(5))).unwrap().split(7);
        assert_eq!((first.samples(), rest.samples()), (40, 10));
    }

    #[test]
    fn wrong_data_is_refused() {
        let folder = Folder::new("wrong");
        folder.write("a.safetensors", 0, 4, 3, f32::NAN);
        let open = |expected: &[ValueInfo]| Inputs::open(std::slice::from_ref(&folder.0), expected);
        let nan = open(&expected(None)).unwrap_err().to_string();
        assert!(nan.contains("finite numbers in `x`") && nan.contains("position 0"), "{nan}");
        folder.write("a.safetensors", 0, 4, 3, 0.0);
        for (expected, message) in [
            (expected(Some(3)), "`ids` of shape [3, any], got [4, 3]"),
            ([input("ids", ElementType::F32, &[None, None]), expected(None)[1].clone()], "`ids` of type"),
            ([input("mask", ElementType::I64, &[None, None]), expected(None)[1].clone()], "only `ids`, `x`"),
            ([input("ids", ElementType::I64, &[None]), expected(None)[1].clone()], "`ids` of shape [any], got [4, 3]"),
        ] {
            let error = open(&expected).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        std::fs::write(folder.0.join("a.safetensors"), [0xff; 100]).unwrap();
        assert!(open(&expected(None)).is_err());
        let path = folder.0.join("array.npy");
        std::fs::write(&path, b"no array").unwrap();
        assert!(
            Inputs::open(std::slice::from_ref(&path), &expected(None))
                .unwrap_err()
                .to_string()
                .contains("entries for 2 inputs")
        );
        assert!(Inputs::open(&[path.clone(), path], &expected(None)[1..]).is_err());
        let text = folder.0.join("data.csv");
        assert!(Inputs::open(&[text], &expected(None)).unwrap_err().to_string().contains(".npz"));
    }
}
