//! What a layer of a model is.

use dalr::convolution::ConvOptions;
use dalr::network::Cost;

use crate::element::ElementType;
use crate::graph::{Graph, Node};

/// A layer `y = W x + b` of the model, whatever nodes express it.
///
/// `W` is outputs × inputs as everywhere in `dalr`. A convolution is a linear layer of patches; one
/// of several groups has a layer for each group, and `W` has the rows of all groups.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Layer {
    /// The name of the node, or that of its output if the node has no name of its own.
    pub name: String,
    /// The operator of the node: `MatMul`, `Gemm` or `Conv`.
    pub operator: String,
    /// The value that the layer reads.
    pub input: String,
    /// The value that has the result, with the bias added.
    pub output: String,
    /// How the layer reads its input.
    pub kind: LayerKind,
    /// Number of columns of `W`: inputs of each group.
    pub inputs: usize,
    /// Number of rows of `W`: outputs of all groups.
    pub outputs: usize,
    /// Whether there is a bias.
    pub has_bias: bool,
    /// The element type of weight and activations.
    pub element: ElementType,
    /// Other layers with the same weight. Replaced by equal factors, they share these too.
    pub shared_with: Vec<String>,
    /// Whether nodes that are no layers read the weight, too: it then stays in the model.
    pub weight_stays: bool,
    /// Whether pivoted storage can be written at the model's opset.
    pub can_be_pivoted: bool,
    pub(crate) parts: Parts,
}

/// How a layer reads its input and writes its output.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum LayerKind {
    /// A product of matrices: every vector along an axis of the input is one sample.
    Linear {
        /// The axis of the inputs.
        input_axis: Axis,
        /// The axis of the outputs.
        output_axis: Axis,
    },
    /// A convolution in one or two dimensions; the channels are axis 1.
    Convolution(Convolution),
}

/// One of the last two axes of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// The last one.
    Last,
    /// The one before the last.
    SecondToLast,
}

/// Kernel, stride, dilation, padding and groups of a convolution. Pairs are vertical, horizontal; a
/// convolution in one dimension has vertical ones of 1, and no vertical padding.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Convolution {
    /// Dimensions of the images, 1 or 2.
    pub dimensions: usize,
    /// Height and width of the kernel.
    pub kernel: (usize, usize),
    /// Distance between the positions of the kernel.
    pub stride: (usize, usize),
    /// Distance between the entries of the kernel.
    pub dilation: (usize, usize),
    /// Number of groups.
    pub groups: usize,
    /// How many zeros surround the images.
    pub padding: Padding,
}

/// The zeros around the images of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// Above, left, below and right.
    Sides([usize; 4]),
    /// As many as make the output as large as the input divided by the stride; an odd one is below
    /// or right.
    SameUpper,
    /// The same, and an odd one is above or left.
    SameLower,
}

impl Convolution {
    /// Returns the options of the library's convolution for images of this height and width.
    pub fn options(&self, size: (usize, usize)) -> ConvOptions {
        let along = |size: usize, kernel: usize, stride: usize, dilation: usize| {
            let extent = (kernel - 1).saturating_mul(dilation).saturating_add(1);
            let last = (size.div_ceil(stride).saturating_sub(1)).saturating_mul(stride);
            last.saturating_add(extent).saturating_sub(size)
        };
        let options = ConvOptions::new().with_stride(self.stride).with_dilation(self.dilation);
        let options = options.with_groups(self.groups);
        let rows = along(size.0, self.kernel.0, self.stride.0, self.dilation.0);
        let columns = along(size.1, self.kernel.1, self.stride.1, self.dilation.1);
        options.with_padding_of_sides(match self.padding {
            Padding::Sides(sides) => sides,
            Padding::SameUpper => [rows / 2, columns / 2, rows - rows / 2, columns - columns / 2],
            Padding::SameLower => [rows - rows / 2, columns - columns / 2, rows / 2, columns / 2],
        })
    }
}

impl Layer {
    /// Number of groups; 1 for a linear layer.
    pub fn groups(&self) -> usize {
        match &self.kind {
            LayerKind::Linear { .. } => 1,
            LayerKind::Convolution(convolution) => convolution.groups,
        }
    }

    /// Returns parameters and multiply–adds of the layer if it runs this often for one sample of
    /// the network: at so many positions, or for so many vectors.
    pub fn cost(&self, calls: u64) -> Cost {
        let groups = self.groups();
        let group = Cost::of_linear((self.outputs / groups.max(1), self.inputs), self.has_bias);
        group.in_groups(groups as u64).at_positions(calls)
    }

    pub(crate) fn node<'a>(&self, graph: &'a Graph) -> Option<&'a Node> {
        self.parts.nodes.first().and_then(|&id| graph.nodes.get(id))
    }
}

/// A node that stays as it is, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeftAlone {
    /// The name of the node, or that of its output.
    pub name: String,
    /// The operator.
    pub operator: String,
    /// Why it stays.
    pub reason: String,
}

/// The nodes and values that a layer is made of.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    /// The node with the weight, then those whose work the layer includes.
    pub nodes: Vec<usize>,
    pub form: Form,
    pub weight: String,
    /// Factors of the weight and of the bias.
    pub alpha: f64,
    pub beta: f64,
    pub bias: Option<String>,
    pub steps: Vec<Step>,
}

/// Work on the outputs after the product.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Adds this value.
    Add(String),
    /// Normalises with this scale, shift, mean and variance.
    Normalize { values: [String; 4], epsilon: f64 },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Form {
    /// `x Wᵀ`. The weight is stored inputs × outputs; `flipped` if outputs × inputs.
    Right {
        gemm: bool,
        input_transposed: bool,
        flipped: bool,
    },
    /// `W x`. The weight is stored outputs × inputs; `flipped` if inputs × outputs.
    Left {
        gemm: bool,
        input_transposed: bool,
        flipped: bool,
        rank: usize,
    },
    Convolution {
        dimensions: usize,
    },
}

impl Parts {
    /// Number of axes after that of the outputs.
    pub(crate) fn trailing(&self) -> usize {
        match self.form {
            Form::Left { rank, .. } => usize::from(rank > 1),
            Form::Right { .. } => 0,
            Form::Convolution { dimensions } => dimensions,
        }
    }
}
