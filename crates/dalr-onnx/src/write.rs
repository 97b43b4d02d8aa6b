//! Writes a model: all bytes of its file but those of replaced layers.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use dalr::interop::safetensors::replace_file;

use crate::model::{Added, LARGEST, Model};
use crate::stored_tensor::{Content, Stored};
use crate::wire::{Edit, Edited, Output, Piece, fields, head, put_bytes, put_integer};
use crate::{Error, Result};

/// Tensors in a data file start at multiples of this many bytes, so that all element types can be
/// read in place.
const ALIGNMENT: u64 = 64;

/// Fields of the messages.
mod field {
    pub const MODEL_GRAPH: u32 = 7;
    pub const GRAPH_INITIALIZER: u32 = 5;
    pub const GRAPH_INPUT: u32 = 11;
    pub const GRAPH_OUTPUT: u32 = 12;
    pub const TENSOR_RAW: u32 = 9;
    pub const TENSOR_EXTERNAL: u32 = 13;
    pub const TENSOR_LOCATION: u32 = 14;
}

/// The file beside a model that has tensors.
struct DataFile {
    name: String,
    pieces: Vec<Piece>,
    length: u64,
}

impl DataFile {
    /// Adds a tensor, and returns the fields that say where it is.
    fn add(&mut self, piece: Piece) -> Vec<u8> {
        let start = self.length.next_multiple_of(ALIGNMENT);
        self.pieces.push(Piece::bytes(vec![0; (start - self.length) as usize]));
        let length = piece.len();
        self.length = start + length;
        self.pieces.push(piece);
        let mut entries = Vec::new();
        for (key, value) in
            [("location", self.name.clone()), ("offset", start.to_string()), ("length", length.to_string())]
        {
            let mut entry = Vec::new();
            put_bytes(&mut entry, 1, key.as_bytes());
            put_bytes(&mut entry, 2, value.as_bytes());
            put_bytes(&mut entries, field::TENSOR_EXTERNAL, &entry);
        }
        entries
    }
}

impl Model {
    /// Returns the model in one piece, external data included: an engine can run it. Without
    /// replaced layers and external data, these are the bytes that were read.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if external data cannot be read.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.bytes_with_outputs(&[])
    }

    /// Returns the model with further values of its main graph as outputs, as
    /// [`to_bytes`](Self::to_bytes). Their types are not stated.
    ///
    /// # Errors
    ///
    /// As [`to_bytes`](Self::to_bytes).
    pub fn bytes_with_outputs(&self, values: &[&str]) -> Result<Vec<u8>> {
        let edits = self.graph_edits(None, false, values)?;
        let mut bytes = Vec::new();
        let length = usize::try_from(self.length(&edits)?).unwrap_or(usize::MAX);
        let reserved = bytes.try_reserve_exact(length);
        reserved.map_err(|_| Error::Unsupported(format!("no memory for a model of {length} bytes")))?;
        self.write(&edits, &mut Output { target: &mut bytes, path: Path::new("memory") })?;
        Ok(bytes)
    }

    /// Writes the model to a file, atomically: a crash leaves the old file or the new one.
    ///
    /// Tensors that were external are so again, and so are those in their place, in the file
    /// `NAME.data` beside the model, which is written first. If there is one already, the name is
    /// `NAME.1.data`, or the next number; the old one is removed when the new model is in place.
    /// New tensors are also external if the model would have more than 2 GiB otherwise.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.save_within(path.as_ref(), LARGEST)
    }

    /// Writes the model to a file of at most `largest` bytes.
    fn save_within(&self, path: &Path, largest: u64) -> Result<()> {
        let inside = self.graph_edits(None, false, &[])?;
        let is_large = self.length(&inside)? > largest;
        let has_external = self.graph.external.iter().any(|tensor| !self.is_left_out(tensor));
        if !is_large && !has_external && self.edits.added.iter().all(|tensor| !tensor.external) {
            return self.write_file(path, &inside);
        }
        let (name, older) = data_file_name(path)?;
        let mut data = DataFile { name, pieces: Vec::new(), length: 0 };
        let edits = self.graph_edits(Some(&mut data), is_large, &[])?;
        let data_path = path.with_file_name(&data.name);
        replace_file(&data_path, |file| {
            let mut output = Output { target: file, path: &data_path };
            data.pieces.iter().try_for_each(|piece| piece.write(&mut output))
        })?;
        self.write_file(path, &edits)?;
        let used: HashSet<PathBuf> = self.graph.external.iter().filter_map(|tensor| external_path(tensor)).collect();
        for path in older.iter().filter(|path| path.canonicalize().is_ok_and(|path| !used.contains(&path))) {
            fs::remove_file(path).map_err(Error::io(path))?;
        }
        Ok(())
    }

    fn write_file(&self, path: &Path, edits: &[Edit]) -> Result<()> {
        replace_file(path, |file| self.write(edits, &mut Output { target: file, path }))
    }

    fn edited<'a>(&'a self, edits: &'a [Edit]) -> Edited<'a> {
        Edited { file: &self.file, message: self.graph.message.clone(), edits }
    }

    fn length(&self, edits: &[Edit]) -> Result<u64> {
        let graph = self.edited(edits).len()?;
        let others = self.file.len() - self.graph_field.len();
        Ok((others + head(field::MODEL_GRAPH, graph).len()) as u64 + graph)
    }

    fn write(&self, edits: &[Edit], output: &mut Output<'_>) -> Result<()> {
        if edits.is_empty() {
            return output.put(&self.file);
        }
        let (before, rest) = self.file.split_at_checked(self.graph_field.start).unwrap_or_default();
        let (_, after) = rest.split_at_checked(self.graph_field.len()).unwrap_or_default();
        let graph = self.edited(edits);
        output.put(before)?;
        output.put(&head(field::MODEL_GRAPH, graph.len()?))?;
        graph.write(output)?;
        output.put(after)
    }

    /// Whether the tensor is in a part of the graph that is not written.
    fn is_left_out(&self, tensor: &Stored) -> bool {
        let nodes = self.edits.nodes.keys().filter_map(|&id| self.graph.nodes.get(id)).map(|node| &node.whole);
        nodes.chain(self.edits.left_out.values()).any(|range| range.contains(&tensor.message.start))
    }

    /// Returns the edits of the graph. External tensors go to the data file, if there is one, and
    /// into the model otherwise; new tensors too, if `all_new` or if they replace external ones.
    fn graph_edits(&self, mut data: Option<&mut DataFile>, all_new: bool, outputs: &[&str]) -> Result<Vec<Edit>> {
        let mut edits = Vec::new();
        for (&id, fields) in &self.edits.nodes {
            if let Some(node) = self.graph.nodes.get(id) {
                edits.push(Edit { range: node.whole.clone(), by: vec![Piece::bytes(fields.clone())] });
            }
        }
        edits.extend(self.edits.left_out.values().map(|range| Edit { range: range.clone(), by: Vec::new() }));
        for tensor in self.graph.external.iter().filter(|tensor| !self.is_left_out(tensor)) {
            let Content::External(external) = &tensor.content else { continue };
            let piece = Piece::External(external.clone());
            let mut by = match data.as_deref_mut() {
                Some(data) => vec![Piece::bytes(data.add(piece))],
                None => vec![Piece::bytes(head(field::TENSOR_RAW, piece.len())), piece],
            };
            for part in fields(&self.file, tensor.message.clone()) {
                let part = part?;
                match part.number {
                    field::TENSOR_EXTERNAL => edits.push(Edit { range: part.whole, by: core::mem::take(&mut by) }),
                    field::TENSOR_LOCATION if data.is_none() => edits.push(Edit { range: part.whole, by: Vec::new() }),
                    _ => {}
                }
            }
        }
        edits.sort_by_key(|edit| edit.range.start);
        let mut end = Vec::new();
        for tensor in &self.edits.added {
            let data = data.as_deref_mut().filter(|_| all_new || tensor.external);
            end.extend(self.initializer(tensor, data));
        }
        let names = self.graph.outputs.iter().map(|output| output.name.as_str());
        let mut names: HashSet<&str> = names.collect();
        for value in outputs.iter().filter(|value| names.insert(value)) {
            let mut info = Vec::new();
            put_bytes(&mut info, 1, value.as_bytes());
            end.push(Piece::bytes(message(field::GRAPH_OUTPUT, &info)));
        }
        if !end.is_empty() {
            let position = self.graph.message.end;
            edits.push(Edit { range: position..position, by: end });
        }
        Ok(edits)
    }

    /// Returns the fields of the graph for a new tensor.
    fn initializer(&self, tensor: &Added, data: Option<&mut DataFile>) -> Vec<Piece> {
        let mut header = tensor.header.clone();
        let content = Piece::Bytes(tensor.data.clone());
        let mut pieces = match data {
            Some(data) => {
                header.extend(data.add(content));
                put_integer(&mut header, field::TENSOR_LOCATION, 1);
                vec![Piece::bytes(message(field::GRAPH_INITIALIZER, &header))]
            }
            None => {
                header.extend(head(field::TENSOR_RAW, content.len()));
                let mut start = head(field::GRAPH_INITIALIZER, header.len() as u64 + content.len());
                start.extend(header);
                vec![Piece::bytes(start), content]
            }
        };
        // Before version 4, every initializer is an input, too.
        if self.ir_version < 4 {
            pieces.push(Piece::bytes(message(field::GRAPH_INPUT, &tensor_info(tensor))));
        }
        pieces
    }
}

fn message(field: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_bytes(&mut bytes, field, content);
    bytes
}

/// Returns name, type and shape of a value.
fn tensor_info(tensor: &Added) -> Vec<u8> {
    let (mut shape, mut of_tensor, mut info) = (Vec::new(), Vec::new(), Vec::new());
    for &dim in &tensor.dims {
        let mut size = Vec::new();
        put_integer(&mut size, 1, dim as i64);
        put_bytes(&mut shape, 1, &size);
    }
    put_integer(&mut of_tensor, 1, i64::from(tensor.code));
    put_bytes(&mut of_tensor, 2, &shape);
    put_bytes(&mut info, 1, tensor.name.as_bytes());
    put_bytes(&mut info, 2, &message(1, &of_tensor));
    info
}

fn external_path(tensor: &Stored) -> Option<PathBuf> {
    match &tensor.content {
        Content::External(external) => Some(external.path.clone()),
        _ => None,
    }
}

/// Returns a name that no file has, and the files with such names that there are.
fn data_file_name(path: &Path) -> Result<(String, Vec<PathBuf>)> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| Error::Unsupported(format!("{} is no name of a model", path.display())))?;
    let mut older = Vec::new();
    loop {
        let number = older.len();
        let data = if number == 0 { format!("{name}.data") } else { format!("{name}.{number}.data") };
        let data_path = path.with_file_name(&data);
        match fs::symlink_metadata(&data_path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((data, older)),
            Err(error) => return Err(Error::io(&data_path)(error)),
            Ok(_) => older.push(data_path),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use dalr::LowRankLinear;
    use dalr::faer::Mat;

    use crate::build::Builder;
    use crate::{Model, Replacement};

    /// A model that replacements make larger than a file can be: the new tensors are outside.
    #[test]
    fn a_file_that_would_be_too_large() {
        let builder = Builder::new().input("x", &["4", "5"]).weight("w", &[5, 6]);
        let builder = builder.node("MatMul", "x w", "y", &[]).output("y", &["4", "6"]).output("w", &["5", "6"]);
        let original = builder.build();
        let mut model = Model::from_bytes(original.clone(), None).unwrap();
        let factors = LowRankLinear::<f32>::new(Mat::full(3, 5, 1.5), Mat::full(6, 3, 2.5), None).unwrap();
        model.replace("MatMul of y", &Replacement::Factors(vec![factors])).unwrap();
        let whole = model.to_bytes().unwrap();
        let folder = std::env::temp_dir().join(format!("dalr-onnx-{}-large", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("model.onnx");
        model.save_within(&path, whole.len() as u64).unwrap();
        assert_eq!(fs::read(&path).unwrap(), whole);
        model.save_within(&path, whole.len() as u64 - 1).unwrap();
        let data = fs::metadata(folder.join("model.onnx.data")).unwrap().len();
        assert!(data >= (3 * 5 + 6 * 3) * 4, "{data}");
        let saved = Model::open(&path).unwrap();
        let layers = |model: &Model| -> Vec<_> {
            model.layers().iter().map(|layer| model.linear_layers::<f32>(&layer.name).unwrap()).collect()
        };
        assert_eq!(layers(&saved), layers(&Model::from_bytes(whole, None).unwrap()));
        fs::remove_dir_all(folder).unwrap();
    }
}
