//! The element types of tensors.

use core::fmt;

/// The element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names say it")]
pub enum ElementType {
    F16,
    Bf16,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    Bool,
    Text,
    /// Any other: complex numbers, and numbers of 8 bits or fewer.
    Other(i32),
}

/// How the entries of a tensor are stored when they are not bytes in a row.
pub(crate) struct Typed {
    /// The field of the tensor that has them.
    pub field: u32,
    /// How many numbers of that field an entry takes, as a fraction.
    pub numbers: (u64, u64),
}

impl ElementType {
    pub(crate) fn from_code(code: i32) -> Self {
        match code {
            1 => Self::F32,
            2 => Self::U8,
            3 => Self::I8,
            4 => Self::U16,
            5 => Self::I16,
            6 => Self::I32,
            7 => Self::I64,
            8 => Self::Text,
            9 => Self::Bool,
            10 => Self::F16,
            11 => Self::F64,
            12 => Self::U32,
            13 => Self::U64,
            16 => Self::Bf16,
            other => Self::Other(other),
        }
    }

    pub(crate) fn code(self) -> i32 {
        match self {
            Self::F32 => 1,
            Self::U8 => 2,
            Self::I8 => 3,
            Self::U16 => 4,
            Self::I16 => 5,
            Self::I32 => 6,
            Self::I64 => 7,
            Self::Text => 8,
            Self::Bool => 9,
            Self::F16 => 10,
            Self::F64 => 11,
            Self::U32 => 12,
            Self::U64 => 13,
            Self::Bf16 => 16,
            Self::Other(code) => code,
        }
    }

    /// Whether the elements are numbers that weights may have: `F16`, `Bf16`, `F32` or `F64`.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32 | Self::F64)
    }

    /// Bits of one entry; `None` for texts and unknown types.
    pub(crate) fn bits(self) -> Option<u64> {
        Some(match self {
            Self::I8 | Self::U8 | Self::Bool => 8,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 16,
            Self::F32 | Self::I32 | Self::U32 => 32,
            Self::F64 | Self::I64 | Self::U64 => 64,
            Self::Other(14) => 64,
            Self::Other(15) => 128,
            Self::Other(17..=20 | 24) => 8,
            Self::Other(21..=23) => 4,
            Self::Other(25 | 26) => 2,
            Self::Text | Self::Other(_) => return None,
        })
    }

    /// The field of a tensor for entries of this type; `None` for unknown types.
    pub(crate) fn typed(self) -> Option<Typed> {
        let (field, numbers) = match self {
            Self::F32 => (4, (1, 1)),
            Self::Other(14) => (4, (2, 1)),
            Self::I64 => (7, (1, 1)),
            Self::Text => (6, (1, 1)),
            Self::F64 => (10, (1, 1)),
            Self::Other(15) => (10, (2, 1)),
            Self::U32 | Self::U64 => (11, (1, 1)),
            // Numbers below 8 bits are stored as bytes, several in each.
            Self::Other(21..=23) => (5, (1, 2)),
            Self::Other(25 | 26) => (5, (1, 4)),
            Self::I8 | Self::I16 | Self::I32 | Self::U8 | Self::U16 | Self::Bool => (5, (1, 1)),
            Self::F16 | Self::Bf16 | Self::Other(17..=20 | 24) => (5, (1, 1)),
            Self::Other(_) => return None,
        };
        Some(Typed { field, numbers })
    }
}

/// As Rust writes the types: `f32`, `i64`.
impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(code) => write!(f, "element type {code}"),
            known => f.write_str(&format!("{known:?}").to_lowercase()),
        }
    }
}
