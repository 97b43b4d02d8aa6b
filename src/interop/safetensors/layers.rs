//! Compressed layers in model files.

use std::collections::BTreeMap;
use std::path::Path;

use faer::{Col, ColRef, Mat, MatRef};
use serde_json::{Map, Value, json};

use super::{Dtype, ModelFile, ModelWriter, TensorWriter, format_error};
use crate::error::during;
use crate::factors::PivotedLinear;
use crate::{Error, LowRankLinear, Result, Scalar, linalg};

/// The key of the metadata with the ranks of the compressed layers, as JSON.
const RANKS: &str = "dalr.ranks";

/// The metadata with the layers whose `down` is stored with the name of another layer.
const SHARED: &str = "dalr.shared";

/// A compressed layer that [`save_layers`] writes, in either form.
#[derive(Clone, Copy, Debug)]
pub enum StoredLayer<'a, T> {
    /// Two factors.
    Factors(&'a LowRankLinear<T>),
    /// Pivoted storage.
    Pivoted(&'a PivotedLinear<T>),
}

impl<'a, T> From<&'a LowRankLinear<T>> for StoredLayer<'a, T> {
    fn from(layer: &'a LowRankLinear<T>) -> Self {
        Self::Factors(layer)
    }
}

impl<'a, T> From<&'a PivotedLinear<T>> for StoredLayer<'a, T> {
    fn from(layer: &'a PivotedLinear<T>) -> Self {
        Self::Pivoted(layer)
    }
}

/// Writes many compressed layers, each under its name, into one file, as [`replace_file`] does.
///
/// The tensors of a layer are those of its `save`. The metadata are kept, and `dalr.ranks` gets the
/// rank of every layer, which `load_compressed.py` needs. A rank that is there already stays,
/// unless a layer of this name is written.
///
/// # Errors
///
/// [`Error::Io`]; [`Error::Format`] for a name that occurs twice; [`Error::Text`] if the metadata
/// have a `dalr.ranks` that is not a JSON object.
///
/// [`replace_file`]: super::replace_file
///
/// ```
/// use std::collections::BTreeMap;
/// use dalr::LowRankLinear;
/// use dalr::factors::PivotedLinear;
/// use dalr::interop::safetensors::save_layers;
/// use faer::mat;
///
/// # fn main() -> dalr::Result<()> {
/// # let path = std::env::temp_dir().join(format!("dalr-{}-layers.safetensors", std::process::id()));
/// let query = LowRankLinear::new(mat![[1.0_f32, 2.0, 3.0]], mat![[1.0], [4.0]], None)?;
/// let head = query.to_pivoted()?;
/// let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
/// save_layers(&path, [("query", (&query).into()), ("head", (&head).into())], metadata)?;
/// assert_eq!(LowRankLinear::load(&path, "query")?, query);
/// assert_eq!(PivotedLinear::load(&path, "head")?, head);
/// # std::fs::remove_file(&path).unwrap();
/// # Ok(())
/// # }
/// ```
pub fn save_layers<'a, T: Scalar, N: Into<String>>(
    path: impl AsRef<Path>,
    layers: impl IntoIterator<Item = (N, StoredLayer<'a, T>)>,
    metadata: BTreeMap<String, String>,
) -> Result<()> {
    during("interop::safetensors::save_layers", || {
        let layers = layers.into_iter().map(|(name, layer)| (name.into(), layer)).collect::<Vec<_>>();
        write(path.as_ref(), &layers, metadata)
    })
}

/// The content of a tensor.
enum Content<'a, T> {
    Matrix(MatRef<'a, T>),
    Bias(ColRef<'a, T>),
    Indices(&'a [usize]),
}

impl<T: Scalar> Content<'_, T> {
    fn write(&self, target: &mut TensorWriter<'_>) -> Result<()> {
        match self {
            Self::Matrix(matrix) => target.matrix(*matrix),
            Self::Bias(bias) => target.numbers(bias.iter().copied()),
            Self::Indices(indices) => {
                let bytes: Vec<u8> = indices.iter().flat_map(|&index| (index as u64).to_le_bytes()).collect();
                target.bytes(&bytes)
            }
        }
    }
}

fn write<T: Scalar>(
    path: &Path,
    layers: &[(String, StoredLayer<'_, T>)],
    mut metadata: BTreeMap<String, String>,
) -> Result<()> {
    let mut ranks = match metadata.get(RANKS) {
        None => Map::new(),
        Some(text) => serde_json::from_str(text)
            .map_err(|_| Error::text("a JSON object of ranks in the metadata `dalr.ranks`", text.clone()))?,
    };
    ranks.extend(layers.iter().map(|(name, layer)| match layer {
        StoredLayer::Factors(layer) => (name.clone(), json!(layer.rank())),
        StoredLayer::Pivoted(layer) => (name.clone(), json!(layer.rank())),
    }));
    metadata.insert(RANKS.into(), Value::Object(ranks).to_string());
    let mut writer = ModelWriter::new().with_metadata(metadata);
    for (name, layer) in layers {
        let (matrices, bias) = match layer {
            StoredLayer::Factors(layer) => ([layer.down(), layer.up()], layer.bias()),
            StoredLayer::Pivoted(layer) => {
                let pivots = layer.pivots();
                writer.add(format!("{name}.pivots"), Dtype::I64, &[pivots.len()], Content::Indices(pivots))?;
                ([layer.pivot_rows(), layer.coefficients()], layer.bias())
            }
        };
        let dtype = if T::EPSILON == f64::EPSILON { Dtype::F64 } else { Dtype::F32 };
        for (index, matrix) in matrices.into_iter().enumerate() {
            let shape = [matrix.nrows(), matrix.ncols()];
            writer.add(format!("{name}.{index}.weight"), dtype, &shape, Content::Matrix(matrix))?;
        }
        if let Some(bias) = bias {
            writer.add(format!("{name}.1.bias"), dtype, &[bias.nrows()], Content::Bias(bias))?;
        }
    }
    writer.write(path, |content, target| content.write(target))
}

impl<T: Scalar> LowRankLinear<T> {
    /// Writes the layer to a safetensors file, as
    /// [`replace_file`](crate::interop::safetensors::replace_file) does: `NAME.0.weight` is `down`,
    /// `NAME.1.weight` is `up`, and `NAME.1.bias` is the bias if there is one. PyTorch's
    /// `Sequential(Linear(in, rank, bias=False), Linear(rank, out))` has these names.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    ///
    /// ```
    /// use dalr::LowRankLinear;
    /// # fn main() -> dalr::Result<()> {
    /// # let path = std::env::temp_dir().join(format!("dalr-{}-factors.safetensors", std::process::id()));
    /// let layer = LowRankLinear::new(faer::mat![[1.0, 2.0]], faer::mat![[3.0], [4.0]], None)?;
    /// layer.save(&path, "fc1")?;
    /// assert_eq!(LowRankLinear::load(&path, "fc1")?, layer);
    /// # std::fs::remove_file(&path).unwrap();
    /// # Ok(())
    /// # }
    /// ```
    #[cfg_attr(docsrs, doc(cfg(feature = "safetensors")))]
    pub fn save(&self, path: impl AsRef<Path>, name: &str) -> Result<()> {
        during("LowRankLinear::save", || write(path.as_ref(), &[(name.into(), self.into())], BTreeMap::new()))
    }

    /// Reads the layer of this name from a file or from the shards of an index, converted to `T`.
    ///
    /// Reads what [`save`](Self::save), [`save_layers`] and the program `dalr` write, in any dtype
    /// of [`FloatDtype`](crate::interop::safetensors::FloatDtype); a `down` that the layer shares
    /// with others is read under the name in the metadata `dalr.shared`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Format`] for a damaged file, a file without this layer, or one that
    /// has it in pivoted storage; [`Error::NumberType`] for other dtypes; the errors of
    /// [`new`](Self::new).
    #[cfg_attr(docsrs, doc(cfg(feature = "safetensors")))]
    pub fn load(path: impl AsRef<Path>, name: &str) -> Result<Self> {
        during("LowRankLinear::load", || {
            let file = ModelFile::open(path)?;
            if file.tensor(&format!("{name}.pivots")).is_some() {
                let expected = format!("`{name}` as two factors");
                return Err(format_error(file.path(), expected, "pivoted storage"));
            }
            let (down, up) = (matrix(&file, &down_of(&file, name)?, 0)?, matrix(&file, name, 1)?);
            Self::new(down, up, bias(&file, name)?)
        })
    }
}

impl<T: Scalar> PivotedLinear<T> {
    /// Writes the layer to a safetensors file, as
    /// [`replace_file`](crate::interop::safetensors::replace_file) does: `NAME.pivots` (I64) holds
    /// the pivots, `NAME.0.weight` the pivot rows, `NAME.1.weight` the coefficients, and
    /// `NAME.1.bias` the bias of all outputs, if there is one.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    #[cfg_attr(docsrs, doc(cfg(feature = "safetensors")))]
    pub fn save(&self, path: impl AsRef<Path>, name: &str) -> Result<()> {
        during("PivotedLinear::save", || write(path.as_ref(), &[(name.into(), self.into())], BTreeMap::new()))
    }

    /// Reads the layer of this name from a file or from the shards of an index, converted to `T`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Format`] for a damaged file, a file without this layer, or pivots of
    /// another shape; [`Error::NumberType`] for other dtypes; the errors of [`new`](Self::new).
    #[cfg_attr(docsrs, doc(cfg(feature = "safetensors")))]
    pub fn load(path: impl AsRef<Path>, name: &str) -> Result<Self> {
        during("PivotedLinear::load", || {
            let file = ModelFile::open(path)?;
            let pivots = pivots(&file, name)?;
            let coefficients = match file.tensor(&format!("{name}.1.weight")).map(|tensor| &tensor.shape[..]) {
                // A layer of full rank.
                Some(&[0, columns]) if columns == pivots.len() => linalg::zeros(0, columns)?,
                _ => matrix(&file, name, 1)?,
            };
            Self::new(matrix(&file, name, 0)?, coefficients, pivots, bias(&file, name)?)
        })
    }
}

/// The name of the layer with which the `down` of this layer is stored: its own, or that of the
/// first layer that shares it.
fn down_of(file: &ModelFile, name: &str) -> Result<String> {
    let Some(text) = file.metadata().get(SHARED) else { return Ok(name.into()) };
    let expected = "a JSON object of names in the metadata `dalr.shared`";
    let mut shared: BTreeMap<String, String> =
        serde_json::from_str(text).map_err(|_| format_error(file.path(), expected, text.clone()))?;
    Ok(shared.remove(name).unwrap_or_else(|| name.into()))
}

/// The weight `NAME.index.weight`, which has two axes.
fn matrix<T: Scalar>(file: &ModelFile, name: &str, index: usize) -> Result<Mat<T>> {
    let name = format!("{name}.{index}.weight");
    match file.tensor(&name).map(|tensor| &tensor.shape[..]) {
        Some([_, _]) | None => file.matrix(&name),
        Some(shape) => Err(format_error(file.path(), format!("two axes in `{name}`"), format!("the shape {shape:?}"))),
    }
}

fn bias<T: Scalar>(file: &ModelFile, name: &str) -> Result<Option<Col<T>>> {
    let name = format!("{name}.1.bias");
    file.tensor(&name).map(|_| file.vector(&name)).transpose()
}

fn pivots(file: &ModelFile, name: &str) -> Result<Vec<usize>> {
    let name = format!("{name}.pivots");
    match file.tensor(&name) {
        Some(tensor) if tensor.dtype != Dtype::I64 => {
            return Err(Error::number_type("the pivots", "I64", format!("{:?}", tensor.dtype)));
        }
        Some(tensor) if tensor.shape.len() != 1 => {
            let found = format!("the shape {:?}", tensor.shape);
            return Err(format_error(file.path(), format!("one axis in `{name}`"), found));
        }
        _ => {}
    }
    let mut pivots = Vec::new();
    file.visit(&name, .., super::PIECE, |bytes| {
        for &bytes in bytes.as_chunks().0 {
            let number = i64::from_le_bytes(bytes);
            let pivot = usize::try_from(number);
            let refuse = |_| format_error(file.path(), format!("indices from 0 in `{name}`"), number.to_string());
            pivots.push(pivot.map_err(refuse)?);
        }
        Ok::<_, Error>(())
    })?;
    Ok(pivots)
}
