//! Candidates for several layers together: one `down` for a shared input, or fewer hidden units.
//!
//! A layer may be in several such sets, but only one of them can be chosen for it: a convolution
//! can lose output channels or input channels, for example. The blocks of the knapsack have an
//! alternative for every way to choose sets without a common layer.

use std::collections::BTreeSet;

use super::knapsack::{Block, Class};
use crate::{Error, Result};

/// Largest number of ways to choose sets among layers that are connected by them. A chain of 16
/// layers has 1597.
const MOST: usize = 4096;

/// The candidates of several layers together.
pub(super) struct Joint {
    /// The positions of the layers.
    pub(super) layers: BTreeSet<usize>,
    pub(super) candidates: Class,
}

/// Returns the blocks of the knapsack for the candidates of each layer and those of several layers.
/// The first alternative of a block has none of the latter.
///
/// Rounding depends on the order of sums. The blocks are in the order of their first layers, so
/// that the result does not depend on the order of the sets.
pub(super) fn blocks(classes: &[Class], joints: &[Joint]) -> Result<Vec<Block>> {
    let joints: Vec<&Joint> = joints.iter().filter(|joint| !joint.candidates.is_empty()).collect();
    let mut components: Vec<BTreeSet<usize>> = (0..classes.len()).map(|layer| [layer].into()).collect();
    for joint in &joints {
        let connected: BTreeSet<usize> =
            components.extract_if(.., |component| !component.is_disjoint(&joint.layers)).flatten().collect();
        components.push(connected);
    }
    components.sort_by_key(|component| component.first().copied());
    let block = |component: &BTreeSet<usize>| {
        let within: Vec<&Joint> = joints.iter().copied().filter(|joint| joint.layers.is_subset(component)).collect();
        let mut ways: Vec<Vec<&Joint>> = vec![Vec::new()];
        for joint in within {
            let compatible = |way: &&Vec<&Joint>| way.iter().all(|other| other.layers.is_disjoint(&joint.layers));
            let more: Vec<Vec<&Joint>> =
                ways.iter().filter(compatible).map(|way| way.iter().copied().chain([joint]).collect()).collect();
            ways.extend(more);
            if ways.len() > MOST {
                let expected =
                    format!("at most {MOST} ways to combine hidden units and shared inputs of connected layers");
                return Err(Error::layers(expected, format!("more among {} layers", component.len())));
            }
        }
        let alternative = |way: Vec<&Joint>| {
            let single = component.iter().filter(|layer| !way.iter().any(|joint| joint.layers.contains(layer)));
            let single = single.filter_map(|&layer| classes.get(layer).cloned());
            single.chain(way.iter().map(|joint| joint.candidates.clone())).collect()
        };
        Ok(ways.into_iter().map(alternative).collect())
    };
    components.iter().map(block).collect()
}
