//! The statistics of the layers' inputs, gathered while the model runs.

use dalr::ActivationStats;
use dalr::convolution::{Conv2d, ConvOptions, PatchStats};
use dalr::faer::{Mat, MatRef};
use dalr_onnx::{Convolution, Engine, Inputs, Model, Session, Tensor};

use super::entry::Entry;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::progress::Progress;

/// The number of patches of a convolution for each of its inputs, and the fewest: more of them
/// change the result little, and take time.
const PATCHES_PER_INPUT: usize = 6;
const FEWEST_PATCHES: usize = 8192;

/// The inputs of one or several layers that read them in the same way.
pub struct Source<'a> {
    /// The names of the values; several if layers share a weight.
    pub values: Vec<&'a str>,
    /// The layers, by their index in the list of entries.
    pub entries: Vec<usize>,
    reader: Reader<'a>,
    stats: Vec<ActivationStats<f32>>,
    /// Statistics of patches, by the padding that the size of the images needs.
    patches: Vec<(ConvOptions, PatchStats<f32>)>,
    samples: usize,
    rows: u64,
}

/// How a layer reads a value.
#[derive(Clone, Copy, PartialEq)]
pub struct Reader<'a> {
    name: &'a str,
    features: usize,
    outputs: usize,
    rows: bool,
    convolution: Option<&'a Convolution>,
}

impl<'a> Reader<'a> {
    pub fn new(entry: &Entry<'a>) -> Self {
        Self {
            name: &entry.users[0].name,
            features: entry.layer.in_features,
            outputs: entry.layer.out_features,
            rows: entry.reads_rows(),
            convolution: entry.convolution(),
        }
    }

    /// Returns whether another layer has the same inputs for the same values.
    fn is_like(&self, other: &Self) -> bool {
        // Kernels of one position each read the same patches, however many groups there are.
        (self.features, self.rows, self.convolution) == (other.features, other.rows, other.convolution)
    }

    /// Returns the window of a convolution for images of this size, without its weight.
    fn window(&self, convolution: &Convolution, size: (usize, usize)) -> Result<Conv2d<f32>> {
        let weight = Mat::zeros(self.outputs, self.features);
        Conv2d::new(weight, None, convolution.kernel, convolution.options(size)).map_err(Error::layer(self.name))
    }

    fn wrong(&self, tensor: &Tensor) -> Error {
        let message =
            format!("expected an input of {} features, got a value of shape {:?}", self.features, tensor.shape);
        Error::Layer { layer: self.name.into(), message }
    }

    fn failed(&self) -> impl FnOnce(dalr::Error) -> Error {
        Error::layer(self.name)
    }

    fn numbers<'t>(&self, tensor: &'t Tensor) -> Result<&'t [f32]> {
        tensor.as_floats().ok_or_else(|| self.wrong(tensor))
    }

    /// Returns the number of images, and their height and width. A series is an image of height 1.
    fn images(&self, tensor: &Tensor, convolution: &Convolution) -> Result<(usize, (usize, usize))> {
        let channels = self.features / (convolution.kernel.0 * convolution.kernel.1).max(1) * convolution.groups;
        match tensor.shape[..] {
            [images, found, height, width] if found == channels && images > 0 => Ok((images, (height, width))),
            [images, found, width] if found == channels && images > 0 => Ok((images, (1, width))),
            _ => Err(self.wrong(tensor)),
        }
    }

    /// Returns rows and columns of each matrix of a linear layer's value.
    fn matrix(&self, tensor: &Tensor) -> Result<(usize, usize)> {
        let columns = tensor.shape.last().copied().unwrap_or(0);
        let rows = match tensor.shape[..] {
            [.., rows, _] if !self.rows => rows,
            _ => tensor.len() / columns.max(1),
        };
        let features = if self.rows { columns } else { rows };
        if features == self.features && columns > 0 { Ok((rows, columns)) } else { Err(self.wrong(tensor)) }
    }

    /// Calls `visit` with the inputs of the layer in two values of the same shape, one input a row.
    /// Of the patches of a convolution, every `step`th is taken.
    pub fn for_each_pair(
        &self,
        group: usize,
        step: usize,
        (one, other): (&Tensor, &Tensor),
        mut visit: impl FnMut(MatRef<'_, f32>, MatRef<'_, f32>) -> dalr::Result<()>,
    ) -> Result<()> {
        if one.shape != other.shape {
            return Err(self.wrong(other));
        }
        if let Some(convolution) = self.convolution {
            let (images, size) = self.images(one, convolution)?;
            let window = self.window(convolution, size)?;
            let unfold = |numbers: &[f32]| {
                let images = MatRef::from_row_major_slice(numbers, images, numbers.len() / images);
                let all = window.unfold(images, size, group).map_err(self.failed())?;
                Ok::<_, Error>(Mat::from_fn(all.nrows().div_ceil(step), all.ncols(), |row, column| {
                    all[(row * step, column)]
                }))
            };
            let (x, y) = (unfold(self.numbers(one)?)?, unfold(self.numbers(other)?)?);
            return visit(x.as_ref(), y.as_ref()).map_err(self.failed());
        }
        let mut pairs = self.matrices(one)?.zip(self.matrices(other)?);
        pairs.try_for_each(|(x, y)| visit(x, y)).map_err(self.failed())
    }

    /// Returns the inputs of a linear layer in a value, one input a row.
    fn matrices<'t>(&self, tensor: &'t Tensor) -> Result<impl Iterator<Item = MatRef<'t, f32>> + use<'t>> {
        let (rows, columns) = self.matrix(tensor)?;
        let reads_rows = self.rows;
        Ok(self.numbers(tensor)?.chunks_exact((rows * columns).max(1)).map(move |numbers| {
            let matrix = MatRef::from_row_major_slice(numbers, rows, columns);
            if reads_rows { matrix } else { matrix.transpose() }
        }))
    }

    /// Returns the number of inputs of the layer in a value.
    pub fn count(&self, tensor: &Tensor) -> Result<usize> {
        match self.convolution {
            None => self.matrix(tensor).map(|_| tensor.len() / self.features),
            Some(convolution) => {
                let (images, size) = self.images(tensor, convolution)?;
                Ok(images * self.window(convolution, size)?.positions(size).map_err(self.failed())?)
            }
        }
    }

    /// Returns the number of patches of which one is taken, for about as many as are useful.
    pub fn step(&self, all: usize) -> usize {
        let wanted = (PATCHES_PER_INPUT * self.features).max(FEWEST_PATCHES);
        if self.convolution.is_some() { (all / wanted).max(1) } else { 1 }
    }
}

impl<'a> Source<'a> {
    /// Returns the inputs of these layers, in the order of their first layers.
    pub fn of(entries: &[Entry<'a>]) -> Vec<Self> {
        let mut sources: Vec<Self> = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let reader = Reader::new(entry);
            let values = entry.values();
            match sources.iter_mut().find(|source| source.values == values && source.reader.is_like(&reader)) {
                Some(source) => source.entries.push(index),
                None => sources.push(Self {
                    values,
                    entries: vec![index],
                    reader,
                    stats: Vec::new(),
                    patches: Vec::new(),
                    samples: 0,
                    rows: 0,
                }),
            }
        }
        sources
    }

    /// Returns an upper estimate of the bytes of the statistics while they are updated.
    pub fn memory(&self) -> u64 {
        let groups = self.reader.convolution.map_or(1, |convolution| convolution.groups) as u64;
        // A scatter and its buffer, 5 n² bytes, twice: memory may be reserved twice, and an update
        // of patches keeps a copy.
        10 * groups * (self.reader.features as u64).pow(2)
    }

    /// Returns the statistics of each group of the layers.
    pub fn groups(&self) -> &[ActivationStats<f32>] {
        &self.stats
    }

    /// Returns how often the layers run for one sample of the model, on average.
    pub fn calls(&self) -> u64 {
        (self.rows as f64 / self.samples.max(1) as f64).round().max(1.0) as u64
    }

    /// Returns the names of all values of some sources.
    pub fn values_of(sources: &[Self]) -> Vec<String> {
        let mut values: Vec<String> =
            sources.iter().flat_map(|source| &source.values).map(|value| value.to_string()).collect();
        values.sort();
        values.dedup();
        values
    }

    /// Adds a value of a run of some samples, of all that there are.
    fn update(&mut self, tensor: &Tensor, all: usize) -> Result<()> {
        let reader = self.reader;
        self.rows += reader.count(tensor)? as u64;
        let Some(convolution) = reader.convolution else {
            if self.stats.is_empty() {
                self.stats.push(ActivationStats::new(reader.features));
            }
            for matrix in reader.matrices(tensor)? {
                self.stats.iter_mut().try_for_each(|stats| stats.update(matrix)).map_err(reader.failed())?;
            }
            return Ok(());
        };
        let numbers = reader.numbers(tensor)?;
        let (images, size) = reader.images(tensor, convolution)?;
        let options = convolution.options(size);
        let known = self.patches.iter().position(|(known, _)| *known == options);
        let place = match known {
            Some(place) => place,
            None => {
                let window = reader.window(convolution, size)?;
                let positions = window.positions(size).map_err(reader.failed())?;
                let fraction = 1.0 / reader.step(all.saturating_mul(positions)) as f64;
                let stats = PatchStats::new(&window, fraction).map_err(reader.failed())?;
                self.patches.push((options, stats));
                self.patches.len() - 1
            }
        };
        let images = MatRef::from_row_major_slice(numbers, images, numbers.len() / images);
        self.patches[place].1.update(images, size).map_err(reader.failed())
    }

    /// Adds up the statistics of images of all sizes.
    fn finish(&mut self) -> Result<()> {
        for (_, patches) in self.patches.drain(..) {
            if self.stats.is_empty() {
                self.stats = patches.groups().to_vec();
                continue;
            }
            for (stats, more) in self.stats.iter_mut().zip(patches.groups()) {
                stats.merge(more).map_err(self.reader.failed())?;
            }
        }
        Ok(())
    }
}

/// A model and the inputs that it runs on.
pub struct Run<'a> {
    pub model: &'a Model,
    pub calibration: &'a Inputs,
    pub engine: Engine,
    pub threads: usize,
    /// The bytes that statistics may take together.
    pub memory: u64,
}

impl Run<'_> {
    /// Loads a model that gives these values.
    pub fn session(&self, model: &Model, values: &[String]) -> Result<Session> {
        Ok(self.engine.load_for_values(model, self.threads, values)?)
    }

    /// Calls `solve` with every source and its statistics. The model runs over all inputs once for
    /// as many sources as the memory holds.
    pub fn for_each_source<'a>(
        &self,
        mut sources: Vec<Source<'a>>,
        progress: &mut Progress,
        mut solve: impl FnMut(&Source<'a>, &mut Progress) -> Result<()>,
    ) -> Result<()> {
        if sources.is_empty() {
            return Ok(());
        }
        if let Some(source) = sources.iter().find(|source| source.memory() > self.memory) {
            let (name, needed) = (source.reader.name, source.memory());
            let message = format!("--memory {}: the statistics of layer {name} alone take {needed} bytes", self.memory);
            return Err(Error::Refused(message));
        }
        let session = self.session(self.model, &Source::values_of(&sources))?;
        while !sources.is_empty() {
            let mut free = self.memory;
            let fits = |source: &&Source<'_>| {
                let rest = free.checked_sub(source.memory());
                free = rest.unwrap_or(free);
                rest.is_some()
            };
            let count = sources.iter().take_while(fits).count();
            progress.stage(&format!("running the model on {} samples for {count} values", self.calibration.samples()));
            let rest = sources.split_off(count);
            gather(&session, self.calibration, &mut sources)?;
            // Each source is freed when its layers are solved.
            sources.drain(..).try_for_each(|source| solve(&source, progress))?;
            sources = rest;
        }
        Ok(())
    }
}

/// Runs the model over the inputs once, and adds the values that it gives to the sources.
pub fn gather(session: &Session, inputs: &Inputs, sources: &mut [Source<'_>]) -> Result<()> {
    let values = Source::values_of(sources);
    let all = inputs.samples();
    inputs.for_each(|batch| {
        interrupt::check()?;
        let tensors = session.values(&batch.inputs, &values)?;
        for source in sources.iter_mut() {
            source.samples += batch.samples;
            for (value, tensor) in values.iter().zip(&tensors) {
                if source.values.contains(&value.as_str()) {
                    source.update(tensor, all)?;
                }
            }
        }
        Ok::<_, Error>(())
    })?;
    sources.iter_mut().try_for_each(Source::finish)
}
