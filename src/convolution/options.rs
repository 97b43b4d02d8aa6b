//! Stride, padding, dilation and groups of a convolution.

/// Stride, padding, dilation and groups of a convolution. Pairs are vertical, horizontal.
///
/// ```
/// use dalr::convolution::ConvOptions;
/// // A convolution in one dimension: all vertical numbers stay as they are.
/// let options = ConvOptions::new().with_stride((1, 2)).with_padding((0, 1));
/// assert_eq!(options.padding(), [0, 1, 0, 1]);
/// assert_eq!(options.dilation(), (1, 1));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ConvOptions {
    stride: (usize, usize),
    padding: [usize; 4],
    dilation: (usize, usize),
    groups: usize,
}

impl Default for ConvOptions {
    fn default() -> Self {
        Self { stride: (1, 1), padding: [0; 4], dilation: (1, 1), groups: 1 }
    }
}

impl ConvOptions {
    /// Creates options without padding, with stride, dilation and groups of 1.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the distance between the positions of the kernel.
    #[must_use]
    pub fn with_stride(mut self, stride: (usize, usize)) -> Self {
        self.stride = stride;
        self
    }

    /// Sets the number of rows of zeros above and below each image, and of columns left and right.
    #[must_use]
    pub fn with_padding(self, (rows, columns): (usize, usize)) -> Self {
        self.with_padding_of_sides([rows, columns, rows, columns])
    }

    /// Sets the number of zeros above, left of, below and right of each image: the order of ONNX's
    /// `pads`.
    #[must_use]
    pub fn with_padding_of_sides(mut self, padding: [usize; 4]) -> Self {
        self.padding = padding;
        self
    }

    /// Sets the distance between the entries of the kernel.
    #[must_use]
    pub fn with_dilation(mut self, dilation: (usize, usize)) -> Self {
        self.dilation = dilation;
        self
    }

    /// Sets the number of groups: the outputs of a group read the inputs of that group only.
    #[must_use]
    pub fn with_groups(mut self, groups: usize) -> Self {
        self.groups = groups;
        self
    }

    /// Returns the distance between the positions of the kernel.
    pub fn stride(&self) -> (usize, usize) {
        self.stride
    }

    /// Returns the number of zeros above, left of, below and right of each image.
    pub fn padding(&self) -> [usize; 4] {
        self.padding
    }

    /// Returns the distance between the entries of the kernel.
    pub fn dilation(&self) -> (usize, usize) {
        self.dilation
    }

    /// Returns the number of groups.
    pub fn groups(&self) -> usize {
        self.groups
    }
}
