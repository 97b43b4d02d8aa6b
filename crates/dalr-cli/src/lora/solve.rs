//! Approximates the updates of all modules, one at a time, and chooses their ranks.

use std::collections::BTreeMap;

use dalr::adapter::Adapter;
use dalr::faer::{Mat, MatRef};
use dalr::interop::safetensors::FloatDtype;
use dalr::network::LayerProfile;
use dalr::{ActivationStats, Decomposition, Scalar};

use super::args::CommonArgs;
use super::module::Module;
use super::rule::Rule;
use crate::calibration::Calibration;
use crate::error::{Error, Result};
use crate::files::json_map;
use crate::interrupt;
use crate::layer::Layer;
use crate::progress::Progress;
use crate::solve::groups;

/// A module with its adapter.
pub struct Solved<T> {
    pub module: Module,
    /// The adapter that is written, or, before a budget is allocated, one of the largest rank that
    /// the module can get.
    pub adapter: Adapter<T>,
    pub profile: LayerProfile,
    /// The squared norm of the update, or the mean square of its outputs on the calibration data.
    pub energy: f64,
    pub full_rank: usize,
    /// The number of calibration samples; 0 if the error is that of the weight.
    pub samples: u64,
    /// The error by rounding the factors to the dtype of the file, relative to the adapter.
    pub rounding: f64,
    pub remarks: Vec<String>,
}

/// A tensor or a module that is not in the adapter.
#[derive(Clone, Debug)]
pub struct LeftOut {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: String,
    pub reason: String,
    /// Whether it differs between the checkpoints.
    pub changed: bool,
}

impl LeftOut {
    pub fn new(module: &Module, dtype: FloatDtype, reason: &str, changed: bool) -> Self {
        let (name, shape) = (module.name.clone(), module.shape.clone());
        Self { name, shape, dtype: format!("{dtype:?}"), reason: reason.into(), changed }
    }
}

/// The inputs of the modules.
pub struct Inputs {
    calibration: Calibration,
    pub layers: Vec<Layer>,
    pub notes: Vec<String>,
}

impl Inputs {
    /// Finds the data of every module.
    pub fn open(args: &CommonArgs, modules: &[Module], rule: Rule, dtype: FloatDtype) -> Result<Self> {
        let calibration = Calibration::open(&args.calibration)?;
        let expected = "a JSON object {\"module\": \"tensor\", …}";
        let names =
            args.inputs.as_deref().map_or(Ok(BTreeMap::<String, String>::new()), |path| json_map(path, expected))?;
        if let (Some(name), Some(path)) =
            (names.keys().find(|name| !modules.iter().any(|module| module.name == **name)), &args.inputs)
        {
            return Err(Error::format(path, "names of modules of the adapter", format!("`{name}`")));
        }
        let layer = |module: &Module| {
            let input = names.get(&module.name).cloned().unwrap_or_else(|| format!("{}.input", module.name));
            module.layer(input, dtype)
        };
        let layers: Vec<Layer> = modules.iter().map(layer).collect();
        let inputs = Self { calibration, layers, notes: Vec::new() };
        inputs.check(args, rule)
    }

    fn check(mut self, args: &CommonArgs, rule: Rule) -> Result<Self> {
        let (with, without): (Vec<&Layer>, Vec<&Layer>) =
            self.layers.iter().partition(|layer| self.calibration.holds(&layer.input));
        for layer in &with {
            self.calibration.check(&layer.input, layer.in_features).map_err(Error::layer(&layer.name))?;
        }
        if let (false, Some(layer)) = (args.calibration.is_empty(), without.first()) {
            if with.is_empty() {
                let message = format!("--calibration: no module has data: expected tensors such as `{}`", layer.input);
                return Err(Error::Refused(message));
            }
            if matches!(rule, Rule::Together { .. }) {
                let message = "no calibration data, so that its error cannot be compared with that of the others";
                return Err(Error::Layer { layer: layer.name.clone(), message: message.into() });
            }
        }
        for name in self.calibration.names() {
            let short = name.strip_suffix(".input").unwrap_or(name);
            if !with.iter().any(|layer| layer.input == name || layer.input == format!("{short}.input")) {
                self.notes.push(format!("no module reads `{name}` of the calibration data"));
            }
        }
        Ok(self)
    }

    /// Solves all modules, those that share an input one after the other. `decompose` gets the index
    /// of a module and statistics of its inputs, and returns the largest rank of its update, too. It
    /// returns `None` for a module without an update.
    pub fn solve<T: Scalar>(
        &self,
        modules: &[Module],
        rule: Rule,
        progress: &mut Progress,
        mut decompose: impl FnMut(usize, Option<&ActivationStats<T>>) -> Result<Option<(Decomposition<T>, usize)>>,
    ) -> Result<Vec<Solved<T>>> {
        let mut solved = BTreeMap::new();
        for group in groups(&self.layers) {
            let mut stats = None;
            for index in group {
                interrupt::check()?;
                let (module, layer) = (&modules[index], &self.layers[index]);
                if stats.is_none() && self.calibration.holds(&layer.input) {
                    stats = Some(self.calibration.gather::<T>(&layer.input, layer.in_features)?.0);
                }
                progress.begin(layer);
                let samples = stats.as_ref().map_or(0, ActivationStats::samples);
                if let Some((decomposition, full_rank)) = decompose(index, stats.as_ref())? {
                    let error = Error::layer::<dalr::Error>(&module.name);
                    let mut module = solve_module(module, (&decomposition, full_rank), rule, samples).map_err(error)?;
                    if samples == 0 && self.calibration.names().next().is_some() {
                        module.remarks.push("no calibration data: error of the weight".into());
                    }
                    solved.insert(index, module);
                }
                progress.solved(layer, samples);
            }
        }
        Ok(solved.into_values().collect())
    }
}

fn solve_module<T: Scalar>(
    module: &Module,
    (decomposition, full_rank): (&Decomposition<T>, usize),
    rule: Rule,
    samples: u64,
) -> Result<Solved<T>, dalr::Error> {
    let (rank, remark) = rule.choose(decomposition, full_rank)?;
    Ok(Solved {
        adapter: Adapter::truncated(decomposition, rank)?,
        energy: decomposition.total_energy(),
        module: module.clone(),
        rounding: 0.0,
        remarks: Vec::from_iter(remark),
        profile: LayerProfile::new(&*module.name, decomposition),
        full_rank,
        samples,
    })
}

/// Allocates the budget, if there is one, and rounds the adapters to the dtype of the file. Returns
/// the adapters, the modules that get none, and the sum of the energies of these.
pub fn finish<T: Scalar>(
    solved: Vec<Solved<T>>,
    rule: Rule,
    dtype: FloatDtype,
) -> Result<(Vec<Solved<T>>, Vec<LeftOut>, f64)> {
    let profiles: Vec<LayerProfile> = solved.iter().map(|solved| solved.profile.clone()).collect();
    let energies: Vec<f64> = solved.iter().map(|solved| solved.energy).collect();
    let ranks = if solved.is_empty() { None } else { rule.allocate(&profiles, &energies)? };
    let (mut finished, mut left_out, mut lost) = (Vec::new(), Vec::new(), 0.0);
    for mut module in solved {
        if let Some(ranks) = &ranks {
            let Some(&rank) = ranks.get(&module.module.name) else {
                left_out.push(LeftOut::new(&module.module, dtype, "its change is too small for the budget", true));
                lost += module.energy;
                continue;
            };
            let (down, up) = (module.adapter.down().subrows(0, rank), module.adapter.up().subcols(0, rank));
            module.adapter = Adapter::new(down.to_owned(), up.to_owned(), 1.0)?;
        }
        let report = module.profile.report(module.adapter.rank());
        module.remarks.extend(report.iter().flat_map(|report| report.warnings.iter().map(ToString::to_string)));
        module.rounding = rounding(&module.adapter, dtype).map_err(|error| match error {
            dalr::Error::NonFinite { .. } => Error::layer(&module.module.name)(format!(
                "its factors are beyond the range of {dtype:?}: choose another --dtype"
            )),
            other => Error::layer(&module.module.name)(other),
        })?;
        finished.push(module);
    }
    if finished.is_empty() {
        return Err(Error::Refused("the budget is too small for any module".into()));
    }
    Ok((finished, left_out, lost))
}

/// Returns the error of an adapter whose factors are rounded to a dtype, relative to its norm.
fn rounding<T: Scalar>(adapter: &Adapter<T>, dtype: FloatDtype) -> Result<f64, dalr::Error> {
    let wide = |factor: MatRef<'_, T>| Mat::from_fn(factor.nrows(), factor.ncols(), |i, j| factor[(i, j)].to_f64());
    let mut bytes = Vec::new();
    let mut round = |factor: &Mat<f64>| {
        Mat::from_fn(factor.nrows(), factor.ncols(), |i, j| {
            bytes.clear();
            dtype.encode(factor[(i, j)], &mut bytes)
        })
    };
    let (down, up) = (wide(adapter.down()), wide(adapter.up()));
    let rounded = (round(&down), round(&up));
    if rounded == (down.clone(), up.clone()) {
        return Ok(0.0);
    }
    let (exact, rounded) = (Adapter::new(down, up, 1.0)?, Adapter::new(rounded.0, rounded.1, 1.0)?);
    Ok(Adapter::stack(&[(&exact, 1.0), (&rounded, -1.0)])?.norm()? / exact.norm()?.max(f64::MIN_POSITIVE))
}
