//! Whole networks: one budget, many layers.
//!
//! The rank of each layer of a network is seldom what one knows; a number of parameters is. This module shares such a budget among the
//! layers ([`Allocator`]) from light [`LayerProfile`]s, says by how much another sharing could be better ([`Plan::gap`]), and what became of
//! every layer ([`NetworkReport`]).
//!
//! | you have | take |
//! |---|---|
//! | nothing but the layers | [`Strategy::Uniform`]: every layer keeps the same share |
//! | a function that tells how good the network is | [`Probes`], then [`Strategy::Sensitivity`] |
//! | that function, patience and a drop of accuracy to stay within | [`JointSearch`], the paper's §5.3 |
//! | layers that read the same input | [`SharedInput`], one `down` for all of them where that is the better buy |
//! | many layers to decompose | [`Decomposer`], in parallel within a memory limit |
//!
//! Energies alone ([`Strategy::Energy`]) say what a layer loses of its *own* outputs, not what the network makes of it; shared by them a
//! budget often does worse than the same share for all. The plan warns of it.
//!
//! ```
//! use dalr::network::{Allocator, Budget, Choice, LayerProfile};
//! use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor};
//! use faer::Mat;
//!
//! # fn main() -> dalr::Result<()> {
//! # let mut stats = ActivationStats::new(20);
//! # stats.update(Mat::from_fn(50, 20, |i, j| ((i * 11 + j * 7) % 13) as f64).as_ref())?;
//! # let layers = [24, 30].map(|m| Linear::new(Mat::from_fn(m, 20, |i, j| ((i * 5 + j * j * 3) % 17) as f64), None));
//! let mut profiles = Vec::new();
//! for (index, layer) in layers.into_iter().enumerate() {
//!     let decomposition = Dalr::new().decompose(&layer?, &stats, 20)?;
//!     profiles.push(LayerProfile::new(format!("fc{index}"), &decomposition)); // the decomposition may go
//! }
//! let plan = Allocator::new(Budget::ParameterShare(0.4)).allocate(&profiles)?;
//! for (profile, choice) in profiles.iter().zip(plan.choices()) {
//!     match choice {
//!         Choice::Rank(rank) => println!("compress {} to rank {rank}", profile.name()),
//!         _ => println!("leave {} as it is", profile.name()),
//!     }
//! }
//! println!("{}", plan.report());
//! # Ok(())
//! # }
//! ```

mod allocator;
mod bisect;
mod budget;
mod candidates;
mod decompose;
#[allow(
    clippy::indexing_slicing,
    reason = "picks and hulls are indices into the items of their own class, made from its length and from nothing else"
)]
mod knapsack;
mod memory;
mod observer;
mod plan;
mod probes;
mod problem;
mod profile;
mod report;
mod search;
mod sensitivity;
mod shared;
mod shared_profile;
mod summary;
mod uniform;

pub use self::allocator::Allocator;
pub use self::budget::{Budget, Strategy};
pub use self::decompose::{Decomposer, Job};
pub use self::observer::{Completion, Event, Observer, Stage};
pub use self::plan::{Choice, Plan};
pub use self::probes::{Probe, Probes};
pub use self::profile::LayerProfile;
pub use self::report::{DenseReason, LayerReport, NetworkReport, NetworkWarning};
pub use self::search::{JointSearch, SearchPath, SearchState, SearchStep, Step, Stop};
pub use self::sensitivity::Sensitivities;
pub use self::shared::{SharedDecomposition, SharedInput, SharedLowRank, SharedMember};
pub use self::shared_profile::SharedProfile;
