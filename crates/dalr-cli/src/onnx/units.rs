//! Hidden units: pairs of layers between which some units can be left out.

use dalr::ActivationStats;
use dalr::compress::{HiddenUnitSelection, HiddenUnits};
use dalr::network::UnitProfile;
use dalr_onnx::{Model, UnitPair};

use super::entry::Entry;
use crate::error::{Error, Result};

/// The number of inputs of the second layer above which units are not selected: it takes minutes.
const MOST_INPUTS: usize = 4096;

/// The number of layers up to which every pair is a candidate. The allocator weighs chains of up to
/// 17 layers; in larger models a layer is in one pair only.
const MOST_IN_CHAIN: usize = 16;

/// Hidden units that can be left out.
pub struct Units {
    pub pair: UnitPair,
    pub profile: UnitProfile,
    solved: HiddenUnits<f32>,
}

/// Returns the pairs whose layers are all to be compressed, each with the entry of its second layer.
pub fn pairs(model: &Model, entries: &[Entry<'_>]) -> Vec<(usize, UnitPair)> {
    let mut taken = Vec::new();
    let mut pairs = Vec::new();
    for pair in model.unit_pairs() {
        let names: Vec<&String> = [&pair.first, &pair.second].into_iter().chain(&pair.gate).collect();
        let find =
            |name: &&String| entries.iter().position(|entry| entry.layer.name == **name && entry.users.len() == 1);
        let Some(places) = names.iter().map(find).collect::<Option<Vec<usize>>>() else { continue };
        let free = entries.len() <= MOST_IN_CHAIN || places.iter().all(|place| !taken.contains(place));
        if free && pair.units * pair.inputs_per_unit <= MOST_INPUTS {
            taken.extend(&places);
            pairs.push((places[1], pair.clone()));
        }
    }
    pairs
}

impl Units {
    /// Selects units by the statistics of what the second layer reads.
    pub fn solve(model: &Model, pair: &UnitPair, hidden: &ActivationStats<f32>) -> Result<Self> {
        let linear = |name: &str| -> Result<dalr::Linear<f32>> {
            let mut groups = model.linear_layers(name)?;
            groups.pop().ok_or_else(|| Error::Layer { layer: name.into(), message: "it has no weight".into() })
        };
        let (first, second) = (linear(&pair.first)?, linear(&pair.second)?);
        let options = HiddenUnitSelection::new().with_inputs_per_unit(pair.inputs_per_unit);
        let failed = Error::layer(&pair.second);
        let (solved, gate) = match &pair.gate {
            None => (options.solve(&first, &second, hidden).map_err(failed)?, None),
            Some(gate) => (options.solve_gated(&linear(gate)?, &first, &second, hidden).map_err(failed)?, Some(gate)),
        };
        let profile = UnitProfile::new(&pair.first, &pair.second, &solved);
        let profile = match gate {
            Some(gate) => profile.with_gate(gate),
            None => profile,
        };
        Ok(Self { pair: pair.clone(), profile, solved })
    }

    /// Leaves out all but this number of units.
    pub fn apply(&self, model: &mut Model, kept: usize) -> Result<()> {
        let smaller = self.solved.select(kept).map_err(Error::layer(&self.pair.second))?;
        Ok(model.replace_units(&self.pair.second, &smaller)?)
    }
}
