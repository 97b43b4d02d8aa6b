//! A solved layer on disk: its factors at the largest useful rank, which contain those of every
//! smaller rank.
//!
//! The first `k` rows of `down` and the first `k` columns of `up` are the factors of rank `k`. The
//! corrected bias of rank `k` is `output_mean − up · latent_mean`. This gives the result of
//! `Decomposition::truncate` without the matrices in memory. The factors have the weight's dtype,
//! so that a file is at most as large as the weight.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use dalr::faer::MatRef;
use dalr::interop::safetensors::{Dtype, ModelFile, ModelWriter, TensorInfo};
use dalr::network::{LayerProfile, SharedInput};
use dalr::{Decomposition, Scalar};

use crate::error::{Error, Result};
use crate::layer::Layer;

/// Number of bytes that are read at a time.
const PIECE: usize = 1 << 20;

/// The content of a layer's file.
pub struct Solved<'a, T> {
    pub layer: &'a Layer,
    pub decomposition: &'a Decomposition<T>,
    /// The profile of the layer that this is, or is a part of.
    pub profile: &'a LayerProfile,
    /// `b + W μ` and `μ`, if the bias is corrected.
    pub means: Option<(Vec<f64>, Vec<f64>)>,
    /// Identifies the data from which the factors were computed.
    pub fingerprint: String,
    /// The group, if the layer is that of several stacked ones.
    pub shared: Option<&'a SharedInput>,
}

enum Content<'a, T> {
    Numbers(&'a [f64]),
    Factor(MatRef<'a, T>),
}

impl<T: Scalar> Solved<'_, T> {
    /// Writes the file atomically.
    pub fn save(&self, path: &Path) -> Result<()> {
        let Layer { name, out_features, in_features, dtype, .. } = self.layer;
        let text = serde_json::to_string(self.profile).map_err(Error::layer(name))?;
        // A profile that a resumed run could not read must be an error now.
        serde_json::from_str::<LayerProfile>(&text).map_err(Error::layer(name))?;
        let rank = self.decomposition.max_rank();
        let compressed = self.decomposition.truncate(rank).map_err(Error::layer(name))?;
        let (down, up) = (compressed.layer().down(), compressed.layer().up());
        let fingerprint = self.fingerprint.clone();
        let mut metadata = BTreeMap::from([("fingerprint".to_string(), fingerprint), ("profile".to_string(), text)]);
        if let Some(shared) = self.shared {
            metadata.insert("shared".into(), serde_json::to_string(shared).map_err(Error::layer(name))?);
        }
        let mut writer = ModelWriter::new().with_metadata(metadata);
        writer.add("down", (*dtype).into(), &[rank, *in_features], Content::Factor(down))?;
        writer.add("up", (*dtype).into(), &[*out_features, rank], Content::Factor(up))?;
        let mut latent_mean = Vec::with_capacity(rank);
        if let Some((output_mean, mean)) = &self.means {
            // The factor is the rounded one of the file, so that the bias corrects its rounding,
            // too.
            self.rounded_rows(down, |row, _| {
                latent_mean.push(dot(row, mean));
                Ok(())
            })?;
            writer.add("output_mean", Dtype::F64, &[*out_features], Content::Numbers(output_mean))?;
            writer.add("latent_mean", Dtype::F64, &[rank], Content::Numbers(&latent_mean))?;
        }
        writer.write(path, |content, target| match content {
            Content::Numbers(numbers) => Ok(target.numbers(numbers.iter().copied())?),
            Content::Factor(factor) => self.rounded_rows(*factor, |_, bytes| Ok(target.bytes(bytes)?)),
        })
    }

    /// Visits a factor row by row, rounded to the weight's dtype, as numbers and as bytes.
    fn rounded_rows(&self, matrix: MatRef<'_, T>, mut visit: impl FnMut(&[f64], &[u8]) -> Result<()>) -> Result<()> {
        let (mut rounded, mut bytes) = (Vec::new(), Vec::new());
        for row in matrix.row_iter() {
            rounded.clear();
            bytes.clear();
            rounded.extend(row.iter().map(|x| self.layer.dtype.encode(x.to_f64(), &mut bytes)));
            require_finite(self.layer, &rounded)?;
            visit(&rounded, &bytes)?;
        }
        Ok(())
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Returns an error for numbers that overflow the weight's dtype.
fn require_finite(layer: &Layer, numbers: &[f64]) -> Result<()> {
    if numbers.iter().all(|number| number.is_finite()) {
        return Ok(());
    }
    let message = format!("a factor or the bias overflows {:?}, the weight's dtype: exclude the layer", layer.dtype);
    Err(Error::Layer { layer: layer.name.clone(), message })
}

/// A layer's file, opened to read the factors of one rank.
pub struct Factors {
    file: ModelFile,
    profile: LayerProfile,
}

impl Factors {
    /// Opens a layer's file; returns `None` if it does not exist yet.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let file = ModelFile::open(path)?;
        let text = file.metadata().get("profile").map_or("", String::as_str);
        let profile = serde_json::from_str(text).map_err(|error| {
            let found = format!("damage ({error}): run with --force and without --resume to start again");
            Error::format(path, "the profile of a layer in the metadata", found)
        })?;
        Ok(Some(Self { file, profile }))
    }

    /// Returns the group of a stacked layer.
    pub fn shared(&self) -> Result<Option<SharedInput>> {
        let Some(text) = self.file.metadata().get("shared") else { return Ok(None) };
        let shared = serde_json::from_str(text);
        shared
            .map(Some)
            .map_err(|error| Error::format(self.file.path(), "a group of layers in the metadata", error.to_string()))
    }

    pub fn into_profile(self) -> LayerProfile {
        self.profile
    }

    pub fn fingerprint(&self) -> &str {
        self.file.metadata().get("fingerprint").map_or("", String::as_str)
    }

    /// Returns the first factor of this rank, rank × in, as bytes of the weight's dtype.
    pub fn down(&self, rank: usize, write: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let (_, row) = self.rows("down")?;
        self.file.visit("down", ..(rank * row) as u64, PIECE, write)
    }

    /// Returns rows of the second factor of this rank, out × rank, as bytes of the weight's dtype.
    pub fn up(&self, rank: usize, rows: Range<usize>, mut write: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let (columns, row) = self.rows("up")?;
        let kept = row / columns * rank;
        let mut bytes = Vec::new();
        let range = (rows.start * row) as u64..(rows.end * row) as u64;
        self.file.visit("up", range, (PIECE / row).max(1) * row, |rows| {
            bytes.clear();
            rows.chunks_exact(row).for_each(|row| bytes.extend(&row[..kept]));
            write(&bytes)
        })
    }

    /// Returns whether the method changes or adds a bias.
    pub fn has_bias(&self) -> bool {
        self.file.tensor("output_mean").is_some()
    }

    /// Returns the corrected bias of these outputs at this rank; `None` if the method keeps the
    /// bias.
    pub fn bias(&self, layer: &Layer, rank: usize, rows: Range<usize>) -> Result<Option<Vec<f64>>> {
        if !self.has_bias() {
            return Ok(None);
        }
        let (output_mean, latent_mean) = (self.file.vector::<f64>("output_mean")?, self.file.vector("latent_mean")?);
        let latent_mean: Vec<f64> = latent_mean.iter().copied().collect();
        let mut output_mean = output_mean.iter().skip(rows.start);
        let mut corrected = Vec::new();
        self.up(rank, rows, |bytes| {
            let mut row = Vec::with_capacity(rank);
            layer.dtype.decode(bytes, |number| {
                row.push(number);
                if row.len() == rank {
                    corrected.extend(output_mean.next().map(|mean| mean - dot(&row, &latent_mean)));
                    row.clear();
                }
            });
            Ok(())
        })?;
        Ok(Some(corrected))
    }

    /// Returns the columns of a factor, and the bytes of one of its rows.
    fn rows(&self, name: &str) -> Result<(usize, usize)> {
        let refuse = || {
            let found = "none: run with --force and without --resume to start again";
            Error::format(self.file.path(), format!("a matrix `{name}`"), found)
        };
        let TensorInfo { shape, bytes, .. } = self.file.tensor(name).ok_or_else(refuse)?;
        match shape[..] {
            [rows, columns] if rows > 0 && columns > 0 => Ok((columns, (bytes / rows as u64) as usize)),
            _ => Err(refuse()),
        }
    }
}

/// Returns a bias as bytes of the weight's dtype.
pub fn write_bias(layer: &Layer, bias: &[f64]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let rounded: Vec<f64> = bias.iter().map(|&number| layer.dtype.encode(number, &mut bytes)).collect();
    require_finite(layer, &rounded)?;
    Ok(bytes)
}
