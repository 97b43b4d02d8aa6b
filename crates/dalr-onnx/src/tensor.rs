//! The tensors that go into a model and come out of it.

/// A tensor in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Its dimensions; none for a single number.
    pub shape: Vec<usize>,
    /// Its entries.
    pub data: Data,
}

/// The entries of a [`Tensor`].
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Numbers of every floating-point type.
    Float(Vec<f32>),
    /// Integers of every width; 0 and 1 for booleans.
    Integer(Vec<i64>),
}

impl Tensor {
    /// Creates a tensor of floating-point numbers.
    pub fn floats(shape: &[usize], data: Vec<f32>) -> Self {
        Self { shape: shape.to_vec(), data: Data::Float(data) }
    }

    /// Creates a tensor of integers.
    pub fn integers(shape: &[usize], data: Vec<i64>) -> Self {
        Self { shape: shape.to_vec(), data: Data::Integer(data) }
    }

    /// Returns the numbers; `None` for integers.
    pub fn as_floats(&self) -> Option<&[f32]> {
        match &self.data {
            Data::Float(data) => Some(data),
            Data::Integer(_) => None,
        }
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        match &self.data {
            Data::Float(data) => data.len(),
            Data::Integer(data) => data.len(),
        }
    }

    /// Returns whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the part from `start` to `end` of the first axis; nothing of a range that is not
    /// within it.
    #[must_use]
    pub fn rows(&self, start: usize, end: usize) -> Self {
        let row: usize = self.shape.iter().skip(1).product();
        let range = start * row..end * row;
        let data = match &self.data {
            Data::Float(data) => Data::Float(data.get(range).unwrap_or_default().to_vec()),
            Data::Integer(data) => Data::Integer(data.get(range).unwrap_or_default().to_vec()),
        };
        let mut shape = self.shape.clone();
        if let Some(first) = shape.first_mut() {
            *first = end - start;
        }
        Self { shape, data }
    }
}
