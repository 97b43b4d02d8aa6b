//! A solved layer on disk: its factors at the largest rank of use, from which every smaller one is cut.
//!
//! The first `k` rows of `down` and columns of `up` are the factors of rank `k`, and `output_mean − up · waist_mean` is the corrected
//! bias: what `Decomposition::truncate` does, without the matrices in memory. Factors are in the weight's own type, so that no layer takes
//! more disk than its weight.

use std::collections::BTreeMap;
use std::path::Path;

use dalr::network::LayerProfile;
use dalr::{Decomposition, Scalar};
use faer::MatRef;
use safetensors::tensor::Dtype;

use crate::atomic;
use crate::container::{self, Entry};
use crate::error::{Error, Result};
use crate::numbers;
use crate::selection::Layer;
use crate::source::{CHUNK, Source, Tensor};

/// What a layer's file is made of.
pub struct Solved<'a, T> {
    pub layer: &'a Layer,
    pub decomposition: &'a Decomposition<T>,
    /// `b + W μ` and `μ`, if the bias is corrected.
    pub means: Option<(Vec<f64>, Vec<f64>)>,
    /// What this was computed from.
    pub fingerprint: String,
}

enum Content {
    Numbers(Vec<f64>),
    Down,
    Up,
}

impl<T: Scalar> Solved<'_, T> {
    /// Writes the file, whole or not at all, and returns the profile in it.
    pub fn save(&self, path: &Path) -> Result<LayerProfile> {
        let Layer { name, out_features, in_features, dtype, .. } = self.layer;
        let profile = LayerProfile::new(name.clone(), self.decomposition);
        let text = serde_json::to_string(&profile).map_err(Error::layer(name))?;
        // What could not be read back later is an error now.
        serde_json::from_str::<LayerProfile>(&text).map_err(Error::layer(name))?;
        let rank = self.decomposition.max_rank();
        let compressed = self.decomposition.truncate(rank).map_err(Error::layer(name))?;
        let (down, up) = (compressed.layer().down(), compressed.layer().up());
        let entry = |name: &str, dtype, shape, content| Entry { name: name.into(), dtype, shape, content };
        let mut entries = vec![
            entry("down", *dtype, vec![rank, *in_features], Content::Down),
            entry("up", *dtype, vec![*out_features, rank], Content::Up),
        ];
        if let Some((output_mean, mean)) = &self.means {
            let mut waist_mean = Vec::with_capacity(rank);
            // The factor as stored: its rounding is corrected for as well.
            self.write_rows(down, |row| waist_mean.push(dot(row, mean)), |_| Ok(()))?;
            entries.push(entry("output_mean", Dtype::F64, vec![*out_features], Content::Numbers(output_mean.clone())));
            entries.push(entry("waist_mean", Dtype::F64, vec![rank], Content::Numbers(waist_mean)));
        }
        container::sort(&mut entries);
        let metadata =
            BTreeMap::from([("fingerprint".to_string(), self.fingerprint.clone()), ("profile".to_string(), text)]);
        atomic::replace(path, |writer| {
            let mut write = |bytes: &[u8]| writer.write_all(bytes).map_err(Error::io("cannot write", path));
            write(&container::header(&metadata, &entries))?;
            for entry in &entries {
                match &entry.content {
                    Content::Numbers(numbers) => {
                        write(&numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>())?;
                    }
                    Content::Down => self.write_rows(down, |_| (), &mut write)?,
                    Content::Up => self.write_rows(up, |_| (), &mut write)?,
                }
            }
            Ok(())
        })?;
        Ok(profile)
    }

    /// Writes a matrix row by row in the weight's type, and visits each row as it was rounded.
    fn write_rows(
        &self,
        matrix: MatRef<'_, T>,
        mut visit: impl FnMut(&[f64]),
        mut write: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let (mut rounded, mut bytes) = (Vec::new(), Vec::new());
        for row in matrix.row_iter() {
            rounded.clear();
            bytes.clear();
            rounded.extend(row.iter().map(|x| numbers::encode(self.layer.dtype, x.to_f64(), &mut bytes)));
            require_finite(self.layer, &rounded)?;
            visit(&rounded);
            write(&bytes)?;
        }
        Ok(())
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Refuses numbers that the weight's type cannot hold.
fn require_finite(layer: &Layer, numbers: &[f64]) -> Result<()> {
    if numbers.iter().all(|number| number.is_finite()) {
        return Ok(());
    }
    let message = format!("a factor or the bias overflows {:?}, the weight's type: exclude the layer", layer.dtype);
    Err(Error::Layer { layer: layer.name.clone(), message })
}

/// A layer's file, opened to cut a rank from it.
pub struct Factors {
    source: Source,
    profile: LayerProfile,
}

impl Factors {
    /// `None` if there is no such file yet.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let source = Source::open(path)?;
        let text = source.metadata().get("profile").map_or("", String::as_str);
        let profile = serde_json::from_str(text)
            .map_err(|error| Error::format(path, "the profile of a layer", error.to_string()))?;
        Ok(Some(Self { source, profile }))
    }

    pub fn profile(&self) -> &LayerProfile {
        &self.profile
    }

    pub fn fingerprint(&self) -> &str {
        self.source.metadata().get("fingerprint").map_or("", String::as_str)
    }

    /// The first factor of this rank, rank × in, as bytes of the weight's type.
    pub fn down(&self, rank: usize, write: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let down = self.tensor("down")?;
        let length = rank * down.shape[1] * numbers::width(down.dtype);
        self.source.visit_part(down, length as u64, CHUNK, write)
    }

    /// The second factor of this rank, out × rank, likewise.
    pub fn up(&self, rank: usize, mut write: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let up = self.tensor("up")?;
        let (width, columns) = (numbers::width(up.dtype), up.shape[1]);
        let mut kept = Vec::new();
        let rows = (CHUNK / (columns * width)).max(1);
        self.source.visit(up, rows * columns * width, |bytes| {
            kept.clear();
            bytes.chunks_exact(columns * width).for_each(|row| kept.extend(&row[..rank * width]));
            write(&kept)
        })
    }

    /// Whether the method gives the layer a bias of its own.
    pub fn has_bias(&self) -> bool {
        self.source.tensors().contains_key("output_mean")
    }

    /// The corrected bias of this rank in the weight's type; `None` if the method keeps the bias as it is.
    pub fn bias(&self, layer: &Layer, rank: usize) -> Result<Option<Vec<u8>>> {
        if !self.has_bias() {
            return Ok(None);
        }
        let list = |name| numbers::list(&self.source, self.tensor(name)?, &mut crc32fast::Hasher::new());
        let (output_mean, waist_mean) = (list("output_mean")?, list("waist_mean")?);
        let mut low = Vec::with_capacity(output_mean.len());
        self.up(rank, |bytes| {
            let mut row = Vec::with_capacity(rank);
            numbers::decode(layer.dtype, bytes, |number| {
                row.push(number);
                if row.len() == rank {
                    low.push(dot(&row, &waist_mean));
                    row.clear();
                }
            });
            Ok(())
        })?;
        let corrected: Vec<f64> = output_mean.iter().zip(&low).map(|(dense, low)| dense - low).collect();
        bias_bytes(layer, &corrected).map(Some)
    }

    fn tensor(&self, name: &str) -> Result<&Tensor> {
        let path = self.source.files().next().unwrap_or(Path::new(""));
        self.source.tensors().get(name).ok_or_else(|| Error::format(path, format!("a tensor `{name}`"), "none"))
    }
}

/// A bias in the weight's type.
pub fn bias_bytes(layer: &Layer, bias: &[f64]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let rounded: Vec<f64> = bias.iter().map(|&number| numbers::encode(layer.dtype, number, &mut bytes)).collect();
    require_finite(layer, &rounded)?;
    Ok(bytes)
}
