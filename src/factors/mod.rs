//! Compressed layers: two low-rank factors, or a weight with inputs or outputs dropped.

mod form;
mod low_rank;
mod pivot_selection;
mod pivoted;
mod pruned;

pub use self::form::Form;
pub use self::low_rank::LowRankLinear;
pub use self::pivoted::PivotedLinear;
#[cfg(feature = "candle")]
pub(crate) use self::pivoted::{order, require_pivots};
pub use self::pruned::PrunedLinear;
pub(crate) use self::pruned::Side;
