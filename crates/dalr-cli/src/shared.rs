//! Layers that read the same input, solved together for one `down`.

use std::collections::BTreeMap;

use dalr::network::{LayerProfile, SharedInput};
use dalr::{ActivationStats, Linear, Scalar};

use crate::calibration::Statistics;
use crate::error::{Error, Result};
use crate::factors::{Factors, Solved};
use crate::layer::Layer;
use crate::progress::Progress;
use crate::solve::{Pass, compressor, read, target_means};

/// A group of layers with a shared input, solved together.
pub struct SharedGroup {
    pub input: SharedInput,
    /// The indices of the layers.
    pub layers: Vec<usize>,
    /// The index of the file of the stacked layer in the folder of the unfinished run.
    pub file: usize,
}

impl Pass<'_> {
    /// Returns whether the layers of a group can have one `down`.
    pub fn can_share(&self, group: &[usize], progress: &Progress) -> bool {
        let layers = || group.iter().map(|&index| &self.layers[index]);
        if !self.args.share_down || group.len() < 2 {
            return false;
        }
        let kind = |layer: &Layer| (layer.dtype, layer.has_bias);
        let alike = layers().all(|layer| kind(layer) == kind(&self.layers[group[0]]));
        if !alike {
            let names: Vec<&str> = layers().map(|layer| layer.name.as_str()).collect();
            progress.note(&format!("{} cannot have one `down`: they differ in dtype or bias", names.join(", ")));
        }
        alike
    }

    /// Returns a group, solved together now or by the run that is resumed. `gathered` has the
    /// statistics of the input if they were needed before.
    pub fn share(
        &self,
        (group, file): (&[usize], usize),
        profiles: &BTreeMap<usize, LayerProfile>,
        input_sum: u32,
        gathered: &mut Option<(Statistics, u32)>,
    ) -> Result<SharedGroup> {
        let path = self.unfinished.layer(file);
        let fingerprint = self.group_fingerprint(group, input_sum)?;
        let known = Factors::open(&path)?.filter(|factors| factors.fingerprint() == fingerprint);
        let input = match known.map(|factors| factors.shared()).transpose()?.flatten() {
            Some(input) => input,
            None => {
                let (statistics, _) = match gathered {
                    Some(gathered) => gathered,
                    none => none.insert(self.calibration.statistics(&self.layers[group[0]])?),
                };
                match statistics {
                    Statistics::Single(stats) => self.solve_group((group, file), profiles, stats, fingerprint)?,
                    Statistics::Double(stats) => self.solve_group((group, file), profiles, stats, fingerprint)?,
                }
            }
        };
        Ok(SharedGroup { input, layers: group.to_vec(), file })
    }

    fn solve_group<T: Scalar>(
        &self,
        (group, file): (&[usize], usize),
        profiles: &BTreeMap<usize, LayerProfile>,
        stats: &ActivationStats<T>,
        fingerprint: String,
    ) -> Result<SharedInput> {
        let layers: Vec<&Layer> = group.iter().map(|&index| &self.layers[index]).collect();
        let name = layers.iter().map(|layer| layer.name.as_str()).collect::<Vec<_>>().join(", ");
        let stacked =
            Layer { name, out_features: layers.iter().map(|layer| layer.out_features).sum(), ..layers[0].clone() };
        let weights: Vec<Linear<T>> = layers.iter().map(|layer| read(self.model, layer)).collect::<Result<_>>()?;
        let members: Vec<_> = group.iter().filter_map(|index| profiles.get(index)).zip(&weights).collect();
        let compressor = compressor::<T>(self.args);
        let solved = SharedInput::decompose(&members, self.sensitivities, &*compressor, stats, stacked.useful_rank());
        let (input, decomposition) = solved.map_err(Error::layer(&stacked.name))?;
        let mut means: Option<(Vec<f64>, Vec<f64>)> = None;
        for (layer, weight) in layers.iter().zip(&weights) {
            if let Some((output, mean)) = target_means(self.args.method, layer, weight, stats, || self.bias(layer))? {
                means.get_or_insert_with(|| (Vec::new(), mean)).0.extend(output);
            }
        }
        let profile = LayerProfile::new(stacked.name.clone(), &decomposition);
        let solved = Solved {
            layer: &stacked,
            decomposition: &decomposition,
            profile: &profile,
            means,
            fingerprint,
            shared: Some(&input),
        };
        solved.save(&self.unfinished.layer(file))?;
        Ok(input)
    }

    /// Returns a text that identifies the data from which the factors of a group are computed.
    /// Unlike those of a single layer, they depend on the sensitivities.
    fn group_fingerprint(&self, group: &[usize], input_sum: u32) -> Result<String> {
        let mut parts = Vec::new();
        for &index in group {
            let layer = &self.layers[index];
            let weight = self.sensitivities.and_then(|all| all.get(&layer.name));
            parts.push(format!("{} {weight:?}", self.fingerprint(layer, input_sum)?));
        }
        Ok(parts.join(" "))
    }
}
