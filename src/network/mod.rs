//! Whole networks: one budget for many layers.
//!
//! [`Network`] compresses the layers of a network within a [`Budget`] in one call. Its parts can
//! also be used separately:
//!
//! | task | use |
//! |---|---|
//! | allocate a budget to layers without their matrices | [`LayerProfile`], [`Allocator`], [`Plan`] |
//! | compress every layer to the same fraction | [`Strategy::Uniform`] |
//! | allocate by the effect of each layer on the network | [`Sensitivities::measure`], [`Strategy::Sensitivity`] |
//! | compress step by step within a drop of accuracy, as the paper does in section 5.3 | [`JointSearch`] |
//! | one `down` for several layers with a shared input | [`SharedInput`] |
//! | fewer hidden units, or channels, between two layers | [`UnitProfile`], [`Allocator::allocate_joint`] |
//! | convolutions under the same budget | [`LayerProfile::of_groups`], [`Cost`] |
//! | compress each layer for the inputs that the layers compressed before it produce | [`Network::compress_sequentially`] |
//! | decompose many layers in parallel within a memory limit | [`Network::decompose`] |
//!
//! The explained energy ([`Strategy::Energy`]) measures the error of a layer's *own* outputs, but
//! not the effect on the network. Allocation by it is often worse than uniform allocation, and the
//! plan warns of it.
//!
//! ```
//! use dalr::network::{Budget, Network};
//! use dalr::{ActivationStats, Dalr, Linear};
//! use faer::Mat;
//!
//! # fn main() -> dalr::Result<()> {
//! # let weight = |m: usize, n: usize| Mat::from_fn(m, n, |i, j| ((i * 5 + j * j * 3) % 17) as f64);
//! let fc1 = Linear::new(weight(24, 20), None)?;
//! let fc2 = Linear::new(weight(30, 24), None)?;
//! let (mut inputs1, mut inputs2) = (ActivationStats::new(20), ActivationStats::new(24));
//! # let batch = |n: usize| Mat::from_fn(50, n, |i, j| ((i * 11 + j * 7) % 13) as f64);
//! inputs1.update(batch(20).as_ref())?; // the inputs of each layer on calibration data
//! inputs2.update(batch(24).as_ref())?;
//!
//! let network = Network::new().with_layer("fc1", &fc1, &inputs1).with_layer("fc2", &fc2, &inputs2);
//! let (plan, layers) = network.compress(&Dalr::new(), Budget::ParameterFraction(0.4))?;
//! println!("{plan}");
//! for (name, layer) in &layers {
//!     println!("{name}: rank {}, {} parameters", layer.rank(), layer.parameters());
//! }
//! assert!(plan.parameters_after() as f64 <= 0.4 * plan.parameters_before() as f64);
//! # Ok(())
//! # }
//! ```

#[allow(
    clippy::indexing_slicing,
    reason = "every index is a position in the list of layers or groups, or 0 in a block"
)]
mod allocator;
mod budget;
#[allow(clippy::indexing_slicing, reason = "every index is a group's position in the list that the plan was made from")]
mod compress_network;
mod compressed_layer;
mod cost;
mod evaluation;
mod group_candidates;
mod joint_search;
#[allow(clippy::indexing_slicing, reason = "every index is a position in the items of its own class")]
mod knapsack;
mod layer_profile;
mod plan;
mod progress;
mod sensitivities;
mod sequential;
mod shared_input;
mod unit_profile;

pub use self::allocator::Allocator;
pub use self::budget::{Budget, Strategy};
pub use self::compress_network::Network;
pub use self::compressed_layer::CompressedLayer;
pub use self::cost::Cost;
pub use self::evaluation::Evaluation;
pub use self::joint_search::JointSearch;
pub use self::layer_profile::LayerProfile;
pub use self::plan::{Choice, LayerPlan, OriginalReason, Plan};
pub use self::progress::Progress;
pub use self::sensitivities::Sensitivities;
pub use self::shared_input::SharedInput;
pub use self::unit_profile::UnitProfile;
