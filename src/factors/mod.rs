//! Compressed layers: two low-rank factors, or a weight with inputs or outputs dropped.

mod low_rank;
mod pruned;

pub use self::low_rank::LowRankLinear;
pub use self::pruned::PrunedLinear;
pub(crate) use self::pruned::Side;
