//! The error type of the crate.

use std::sync::Arc;

/// The error type of this crate. The message names the operation, the argument, its value and the
/// allowed values.
///
/// A method that fails does not change its object; exceptions are documented.
///
/// ```
/// use dalr::{ActivationStats, Error};
/// use faer::Mat;
///
/// let mut stats = ActivationStats::<f32>::new(3);
/// let batch = Mat::<f32>::zeros(10, 4);
/// let error = stats.update(batch.as_ref()).unwrap_err();
/// assert!(matches!(error, Error::Shape { expected: 3, found: 4, .. }));
/// assert_eq!(
///     error.to_string(),
///     "ActivationStats::update: expected 3 columns in the batch (one per input), got 4"
/// );
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument has no elements.
    #[error("{operation}: {what} must not be empty")]
    Empty {
        /// The operation that failed.
        operation: &'static str,
        /// The empty argument.
        what: &'static str,
    },

    /// A dimension does not match the others.
    #[error("{operation}: expected {expected} {what}, got {found}")]
    Shape {
        /// The operation that failed.
        operation: &'static str,
        /// The rows, columns or entries that were counted.
        what: &'static str,
        /// The required number.
        expected: usize,
        /// The number found.
        found: usize,
    },

    /// A NaN or an infinity.
    #[error(
        "{operation}: expected finite numbers in {what}, got {value} at row {row}, column {column} (counted from 0)"
    )]
    NonFinite {
        /// The operation that failed.
        operation: &'static str,
        /// The matrix or vector.
        what: &'static str,
        /// The first row with such a value, from 0.
        row: usize,
        /// The column in that row, from 0.
        column: usize,
        /// The value found there.
        value: f64,
    },

    /// A number is out of its range.
    #[error("{operation}: expected {parameter} {expected}, got {found}")]
    OutOfRange {
        /// The operation that failed.
        operation: &'static str,
        /// The parameter.
        parameter: &'static str,
        /// The allowed range.
        expected: String,
        /// Its value.
        found: f64,
    },

    /// The layer cannot have the requested rank.
    #[error("{operation}: expected {expected}, got {found}")]
    Rank {
        /// The operation that failed.
        operation: &'static str,
        /// The possible ranks.
        expected: String,
        /// The rank that was requested or computed.
        found: String,
    },

    /// A method that needs samples was given none.
    #[error("{operation}: expected statistics of at least one sample with a positive weight, got none")]
    NoSamples {
        /// The operation that failed.
        operation: &'static str,
    },

    /// A number is too large for its type.
    #[error("{operation}: {what} {}", overflow(what))]
    Overflow {
        /// The operation that failed.
        operation: &'static str,
        /// The quantity that overflows.
        what: &'static str,
    },

    /// A buffer would exceed a memory limit or the available memory.
    #[error("{operation}: needs {needed} bytes, which exceeds {available}")]
    Memory {
        /// The operation that failed.
        operation: &'static str,
        /// Bytes needed.
        needed: usize,
        /// The limit: one that was set, or the machine's memory.
        available: String,
    },

    /// Neither the solver nor its fallback converged.
    #[error("{operation}: no algorithm converged for an eigenproblem of dimension {dimension}; tried {attempts}")]
    NoConvergence {
        /// The operation that failed.
        operation: &'static str,
        /// Dimension of the eigenproblem.
        dimension: usize,
        /// The algorithms tried, in order.
        attempts: String,
    },

    /// An operator violates the contract of [`PsdOperator`](crate::solver::PsdOperator).
    #[error("{operation}: expected a symmetric positive semidefinite operator, got {found}")]
    InvalidOperator {
        /// The operation that failed.
        operation: &'static str,
        /// The violation.
        found: String,
    },

    /// A file could not be read or written.
    #[error("{operation}: cannot access {path}: {source}")]
    Io {
        /// The operation that failed.
        operation: &'static str,
        /// The file or folder.
        path: String,
        /// The error of the operating system.
        source: Arc<std::io::Error>,
    },

    /// A file, or bytes in its format, are damaged or hold something else.
    #[error("{operation}: expected {expected} in {path}, got {found}")]
    Format {
        /// The operation that failed.
        operation: &'static str,
        /// The file, or another source of the bytes.
        path: String,
        /// The expected content.
        expected: String,
        /// The content found.
        found: String,
    },

    /// A text cannot be parsed.
    #[error("{operation}: expected {expected}, got `{found}`")]
    Text {
        /// The operation that failed.
        operation: &'static str,
        /// The texts that can be parsed.
        expected: &'static str,
        /// The text.
        found: String,
    },

    /// Numbers have a dtype that cannot be read or written, or that would lose digits.
    #[error("{operation}: expected dtype {expected} in {what}, got {found}")]
    NumberType {
        /// The operation that failed.
        operation: &'static str,
        /// The tensor or batch.
        what: &'static str,
        /// The supported dtypes.
        expected: &'static str,
        /// The dtype found.
        found: String,
    },

    /// Names of layers do not match: a name occurs twice, no layer has it, or a layer lacks a
    /// value.
    #[error("{operation}: expected {expected}, got {found}")]
    Layers {
        /// The operation that failed.
        operation: &'static str,
        /// The requirement.
        expected: String,
        /// The violation.
        found: String,
    },

    /// One layer of a network failed.
    #[error("layer `{layer}`: {source}")]
    InLayer {
        /// The name of the layer.
        layer: String,
        /// The error in this layer.
        source: Box<Error>,
    },

    /// Another library failed; its own error is the [`source`](std::error::Error::source).
    #[error("{operation}: {library} failed: {source}")]
    Library {
        /// The operation that called it.
        operation: &'static str,
        /// The library.
        library: &'static str,
        /// The error it returned.
        source: Arc<Box<dyn std::error::Error + Send + Sync>>,
    },

    /// A function passed by the caller failed; its own error is the
    /// [`source`](std::error::Error::source).
    #[error("{operation}: expected a value for {subject}, got an error: {source}")]
    Callback {
        /// The operation that called it.
        operation: &'static str,
        /// The purpose of the call.
        subject: String,
        /// The error it returned.
        source: Arc<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl Error {
    /// Names the operation that failed, unless an inner function has named it.
    pub(crate) fn during(mut self, name: &'static str) -> Self {
        match &mut self {
            Self::Empty { operation, .. }
            | Self::Shape { operation, .. }
            | Self::NonFinite { operation, .. }
            | Self::OutOfRange { operation, .. }
            | Self::Rank { operation, .. }
            | Self::NoSamples { operation }
            | Self::Overflow { operation, .. }
            | Self::Memory { operation, .. }
            | Self::NoConvergence { operation, .. }
            | Self::InvalidOperator { operation, .. }
            | Self::Io { operation, .. }
            | Self::Format { operation, .. }
            | Self::Text { operation, .. }
            | Self::NumberType { operation, .. }
            | Self::Layers { operation, .. }
            | Self::Library { operation, .. }
            | Self::Callback { operation, .. } => {
                if operation.is_empty() {
                    *operation = name;
                }
            }
            Self::InLayer { source, .. } => {
                let inner = core::mem::replace(source.as_mut(), Self::NoSamples { operation: name });
                **source = inner.during(name);
            }
        }
        self
    }

    pub(crate) fn in_layer(self, layer: &str) -> Self {
        Self::InLayer { layer: layer.into(), source: Box::new(self) }
    }

    pub(crate) fn empty(what: &'static str) -> Self {
        Self::Empty { operation: UNNAMED, what }
    }

    pub(crate) fn shape(what: &'static str, expected: usize, found: usize) -> Self {
        Self::Shape { operation: UNNAMED, what, expected, found }
    }

    pub(crate) fn out_of_range(parameter: &'static str, expected: String, found: f64) -> Self {
        Self::OutOfRange { operation: UNNAMED, parameter, expected, found }
    }

    pub(crate) fn rank(expected: String, found: String) -> Self {
        Self::Rank { operation: UNNAMED, expected, found }
    }

    pub(crate) fn no_samples() -> Self {
        Self::NoSamples { operation: UNNAMED }
    }

    pub(crate) fn overflow(what: &'static str) -> Self {
        Self::Overflow { operation: UNNAMED, what }
    }

    pub(crate) fn memory(needed: usize, available: String) -> Self {
        Self::Memory { operation: UNNAMED, needed, available }
    }

    pub(crate) fn no_convergence(dimension: usize, attempts: String) -> Self {
        Self::NoConvergence { operation: UNNAMED, dimension, attempts }
    }

    pub(crate) fn invalid_operator(found: String) -> Self {
        Self::InvalidOperator { operation: UNNAMED, found }
    }

    pub(crate) fn text(expected: &'static str, found: String) -> Self {
        Self::Text { operation: UNNAMED, expected, found }
    }

    pub(crate) fn layers(expected: String, found: String) -> Self {
        Self::Layers { operation: UNNAMED, expected, found }
    }

    pub(crate) fn callback(subject: String, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Callback { operation: UNNAMED, subject, source: Arc::new(source.into()) }
    }

    #[cfg(feature = "candle")]
    pub(crate) fn library(library: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Library { operation: UNNAMED, library, source: Arc::new(source.into()) }
    }

    #[cfg(any(feature = "candle", feature = "safetensors"))]
    pub(crate) fn number_type(what: &'static str, expected: &'static str, found: String) -> Self {
        Self::NumberType { operation: UNNAMED, what, expected, found }
    }

    #[cfg(feature = "safetensors")]
    pub(crate) fn format(path: String, expected: String, found: String) -> Self {
        Self::Format { operation: UNNAMED, path, expected, found }
    }

    #[cfg(feature = "safetensors")]
    pub(crate) fn io(path: String, source: std::io::Error) -> Self {
        Self::Io { operation: UNNAMED, path, source: Arc::new(source) }
    }

    pub(crate) fn non_finite(what: &'static str, (row, column): (usize, usize), value: f64) -> Self {
        Self::NonFinite { operation: UNNAMED, what, row, column, value }
    }
}

/// Explains an overflow: numbers can be rescaled, counts cannot.
fn overflow(what: &str) -> &'static str {
    if what.starts_with("the number of") || what.starts_with("the length of") {
        return "exceeds the range of 64-bit counts: split the data";
    }
    "overflows: use smaller numbers, or a larger type such as `f64`"
}

/// Placeholder for the operation of an error. [`during`] replaces it by the name of the public
/// function.
const UNNAMED: &str = "";

/// Runs the body of a public function, and names that function in the error it returns.
pub(crate) fn during<R>(operation: &'static str, body: impl FnOnce() -> Result<R>) -> Result<R> {
    body().map_err(|error| error.during(operation))
}

/// Returns [`Error::OutOfRange`] unless the number is good.
pub(crate) fn require(good: bool, parameter: &'static str, expected: impl Into<String>, found: f64) -> Result<()> {
    if good { Ok(()) } else { Err(Error::out_of_range(parameter, expected.into(), found)) }
}

/// Errors are equal if their messages are equal.
impl PartialEq for Error {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

/// A `Result` with this crate's [`Error`].
///
/// ```
/// fn parameters() -> dalr::Result<usize> {
///     Ok(dalr::Linear::new(faer::mat![[1.0, 2.0]], None)?.parameters())
/// }
/// assert_eq!(parameters(), Ok(2));
/// ```
pub type Result<T, E = Error> = core::result::Result<T, E>;
