//! The first pass: gathers the statistics of the layers' inputs in as many runs of the model as the
//! memory needs, decomposes every layer once, and keeps the factors on disk.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry::Vacant;

use dalr::factors::Form;
use dalr::faer::{Col, Mat, MatRef};
use dalr::network::{Choice, LayerProfile, Plan};
use dalr::{ActivationStats, Decomposition, Linear, LowRankLinear};
use dalr_onnx::{Model, Replacement};

use super::entry::Entry;
use super::statistics::{Run, Source};
use super::units::{Units, pairs};
use crate::args::{CompressArgs, Method, Storage};
use crate::error::{Error, Result};
use crate::factors::{Factors, Solved};
use crate::interrupt;
use crate::layer::Layer;
use crate::progress::Progress;
use crate::solve::{compressor, target_means};
use crate::unfinished_run::UnfinishedRun;

/// What the passes work with.
#[derive(Clone, Copy)]
pub struct Work<'a> {
    pub args: &'a CompressArgs,
    pub run: &'a Run<'a>,
    pub entries: &'a [Entry<'a>],
    pub unfinished: &'a UnfinishedRun,
}

impl<'a> Work<'a> {
    /// Returns the profile of every layer, solved now or by the run that is resumed, and the hidden
    /// units that can be left out.
    pub fn profiles(&self, progress: &mut Progress) -> Result<(Vec<LayerProfile>, Vec<Units>)> {
        let (mut profiles, mut units) = (BTreeMap::new(), Vec::new());
        // The other methods are compared with `dalr` as they are.
        let pairs = if self.args.method == Method::Dalr { pairs(self.run.model, self.entries) } else { Vec::new() };
        for (index, entry) in self.entries.iter().enumerate() {
            // A layer is finished when the file of its last group is there.
            if let Some(factors) = Factors::open(&self.file(entry, entry.groups() - 1))? {
                progress.resumed(&entry.layer);
                profiles.insert(index, factors.into_profile());
            }
        }
        let mut sources = Source::of(self.entries);
        let is_second = |index: &usize| pairs.iter().any(|(second, _)| second == index);
        sources.retain(|source| source.entries.iter().any(|index| !profiles.contains_key(index) || is_second(index)));
        self.run.for_each_source(sources, progress, |source, progress| {
            for &index in &source.entries {
                if let Vacant(place) = profiles.entry(index) {
                    interrupt::check()?;
                    place.insert(self.solve(&self.entries[index], source, progress)?);
                }
                for (_, pair) in pairs.iter().filter(|(second, _)| *second == index) {
                    interrupt::check()?;
                    progress.stage(&format!("hidden units between {} and {}", pair.first, pair.second));
                    units.push(Units::solve(self.run.model, pair, &source.groups()[0])?);
                }
            }
            Ok(())
        })?;
        Ok((profiles.into_values().collect(), units))
    }

    fn file(&self, entry: &Entry<'_>, group: usize) -> std::path::PathBuf {
        self.unfinished.layer(entry.file + group)
    }

    fn solve(&self, entry: &Entry<'_>, source: &Source<'_>, progress: &mut Progress) -> Result<LayerProfile> {
        let layer = &entry.layer;
        progress.begin(layer);
        let linears = entry.linears()?;
        let compressor = compressor::<f32>(self.args);
        let form = self.form(entry);
        let useful = entry.useful_rank(form);
        let max_rank = self.args.budget.rank.map_or(useful, |rank| rank.clamp(1, useful));
        let solve = |(linear, stats): (&Linear<f32>, &ActivationStats<f32>)| {
            compressor.solve(linear, stats.into(), max_rank).map_err(Error::layer(&layer.name))
        };
        let solved: Vec<Decomposition<f32>> = linears.iter().zip(source.groups()).map(solve).collect::<Result<_>>()?;
        let profile = LayerProfile::of_groups(layer.name.clone(), &solved).map_err(Error::layer(&layer.name))?;
        let profile = profile.with_form(form).with_calls(source.calls());
        for (group, (decomposition, linear)) in solved.iter().zip(&linears).enumerate() {
            let (piece, stats) = (entry.piece(group), &source.groups()[group]);
            let means = target_means(self.args.method, &piece, linear, stats, || {
                Ok(linear.bias().into_iter().flat_map(|bias| bias.iter().map(|&x| f64::from(x))).collect())
            })?;
            let fingerprint = layer.name.clone();
            let solved = Solved { layer: &piece, decomposition, profile: &profile, means, fingerprint, shared: None };
            solved.save(&self.file(entry, group))?;
        }
        let samples = source.groups().first().map_or(0, ActivationStats::samples);
        progress.solved(layer, samples);
        Ok(profile)
    }

    /// Returns the form of storage of a layer.
    fn form(&self, entry: &Entry<'_>) -> Form {
        let can_be = entry.users.iter().all(|user| user.can_be_pivoted);
        if self.args.storage == Storage::Pivoted && can_be { Form::Pivoted } else { Form::Factors }
    }

    /// Returns the factors of a layer, one pair for each group.
    pub fn factors(&self, entry: &Entry<'_>, rank: usize) -> Result<Vec<LowRankLinear<f32>>> {
        (0..entry.groups()).map(|group| self.group_factors(entry, group, rank)).collect()
    }

    fn group_factors(&self, entry: &Entry<'_>, group: usize, rank: usize) -> Result<LowRankLinear<f32>> {
        let (piece, path) = (entry.piece(group), self.file(entry, group));
        let missing = || Error::format(&path, "the factors of a layer", "no such file: run again with --resume");
        let factors = Factors::open(&path)?.ok_or_else(missing)?;
        let rows = 0..piece.out_features;
        let (mut down, mut up) = (Vec::new(), Vec::new());
        factors.down(rank, |bytes| decode(&piece, bytes, &mut down))?;
        factors.up(rank, rows.clone(), |bytes| decode(&piece, bytes, &mut up))?;
        let bias = match factors.bias(&piece, rank, rows)? {
            Some(bias) => Some(bias.into_iter().map(|x| x as f32).collect::<Col<f32>>()),
            None => entry.linears()?[group].bias().map(|bias| bias.to_owned()),
        };
        let matrix = |numbers: &[f32], rows, columns| -> Mat<f32> {
            MatRef::from_row_major_slice(numbers, rows, columns).to_owned()
        };
        let (down, up) = (matrix(&down, rank, piece.in_features), matrix(&up, piece.out_features, rank));
        LowRankLinear::new(down, up, bias).map_err(Error::layer(&piece.name))
    }

    /// Returns the model with the hidden units of a plan.
    pub fn with_units(&self, plan: &Plan, units: &[Units]) -> Result<Model> {
        let mut model = self.run.model.clone();
        for layer in &plan.layers {
            if let Choice::HiddenUnits { pair, kept } = layer.choice
                && units[pair].pair.second == layer.name
            {
                units[pair].apply(&mut model, kept)?;
            }
        }
        Ok(model)
    }

    /// Returns a model with the layers that have a rank replaced by the factors of the first pass.
    pub fn with_ranks(&self, mut model: Model, ranks: &BTreeMap<String, usize>) -> Result<Model> {
        for entry in self.entries {
            if let Some(&rank) = ranks.get(&entry.layer.name) {
                self.replace(&mut model, entry, self.factors(entry, rank)?)?;
            }
        }
        Ok(model)
    }

    /// Replaces the layers of an entry by factors, one pair for each group.
    pub fn replace(&self, model: &mut Model, entry: &Entry<'_>, factors: Vec<LowRankLinear<f32>>) -> Result<()> {
        let original = biases(&entry.linears()?);
        for user in &entry.users {
            let mut factors = factors.clone();
            if user.name != entry.users[0].name {
                // The layers have one weight, and each has its own bias.
                let own = biases(&self.run.model.linear_layers::<f32>(&user.name)?);
                factors = shifted(factors, &original, &own)?;
            }
            let replacement = match self.form(entry) {
                Form::Pivoted => {
                    let pivoted = factors.iter().map(LowRankLinear::to_pivoted).collect::<dalr::Result<_>>();
                    Replacement::Pivoted(pivoted.map_err(Error::layer(&user.name))?)
                }
                _ => Replacement::Factors(factors),
            };
            model.replace(&user.name, &replacement)?;
        }
        Ok(())
    }
}

/// Adds `to − from` to the biases of all groups.
fn shifted(factors: Vec<LowRankLinear<f32>>, from: &[f32], to: &[f32]) -> Result<Vec<LowRankLinear<f32>>> {
    let mut start = 0;
    let shift = |factors: LowRankLinear<f32>| {
        let rows = start..start + factors.out_features();
        start = rows.end;
        let bias = factors.bias().map(|bias| {
            let change = rows.clone().map(|row| to.get(row).unwrap_or(&0.0) - from.get(row).unwrap_or(&0.0));
            bias.iter().zip(change).map(|(bias, change)| bias + change).collect()
        });
        LowRankLinear::new(factors.down().to_owned(), factors.up().to_owned(), bias)
    };
    let shifted = factors.into_iter().map(shift).collect::<dalr::Result<_>>();
    shifted.map_err(|error| Error::Refused(error.to_string()))
}

/// Returns the biases of all groups, one after the other.
fn biases(groups: &[Linear<f32>]) -> Vec<f32> {
    groups.iter().filter_map(Linear::bias).flat_map(|bias| bias.iter().copied()).collect()
}

fn decode(layer: &Layer, bytes: &[u8], numbers: &mut Vec<f32>) -> Result<()> {
    layer.dtype.decode(bytes, |number| numbers.push(number as f32));
    Ok(())
}
