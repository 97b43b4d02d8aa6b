//! Selects hidden units: a Cholesky factorization whose pivots are chosen by the error of the
//! outputs.
//!
//! The residual `R` starts as the regularized second moment `M` of the units (`h × h`), and `T` as
//! the outputs' moment with the units (`m × h`). Each step selects the unit `p` with the largest
//! gain `‖T_p‖² / R_pp`, and then removes from the others what `p` explains:
//!
//! ```text
//! l = R_p / √R_pp,   y = T_p / √R_pp,   R := R − l lᵀ,   T := T − y lᵀ
//! ```
//!
//! `R` and `T` are updated once for each panel of up to [`PANEL`] steps, by products of matrices.
//! Within a panel, a step computes only the column of `R` and the numbers `Tᵀ y`, with which it
//! updates the diagonal of `R` and the norms `‖T_j‖²`. The norms are computed anew for each panel,
//! because they lose digits by cancellation.
//!
//! If a unit has several inputs `J` of the layer, the unit with the largest gain
//! `tr(T_J R_JJ⁻¹ T_Jᵀ)` is selected, and a panel has the steps of its inputs.

use faer::{Mat, MatRef};

use crate::Result;
use crate::linalg::{self, Par};

/// Largest number of steps between two updates of `R` and `T`.
const PANEL: usize = 64;

/// Number of columns of `Tᵀ T` that are computed at a time. One column alone would take as long,
/// because it reads all of `T`, too.
const FETCH: usize = 32;

/// `R` and `T` shrink to the inputs that are not selected when this fraction of them is left.
const COMPACT: f64 = 0.875;

/// The selected units.
#[derive(Clone)]
pub(super) struct UnitOrder {
    /// The units, in the order of the selection.
    pub(super) units: Vec<usize>,
    /// The inputs of these units, in the same order, without those that do not vary or that the
    /// inputs before explain: `s` of them.
    pub(super) inputs: Vec<usize>,
    /// The number of these inputs that the first 0, 1, … units have.
    pub(super) ends: Vec<usize>,
    pub(super) inputs_per_unit: usize,
}

/// The selected units, and the factors of the moments.
pub(super) struct Selection {
    pub(super) order: UnitOrder,
    /// `L`, `h × s`: its rows for the selected inputs, in their order, are the lower triangular
    /// Cholesky factor of `M` for these inputs. The other rows are `M_{:P} L_P⁻ᵀ`.
    pub(super) factor: Mat<f64>,
    /// `Y = T_P L_P⁻ᵀ`, `m × s`. The squared norm of a column is the gain of that step.
    pub(super) outputs: Mat<f64>,
    /// `M` above the diagonal; other entries are arbitrary.
    pub(super) moment: Mat<f64>,
}

/// The limits of a selection.
#[derive(Clone, Copy)]
pub(super) struct SelectionLimits {
    /// Number of inputs of each unit.
    pub(super) inputs_per_unit: usize,
    /// Largest number of selected units.
    pub(super) units: usize,
    /// An input is not selected if the inputs before explain it up to this multiple of `M_jj`.
    pub(super) tolerance: f64,
}

/// The rows of the factor `L` for these inputs, the first selected ones: lower triangular.
pub(super) fn triangle(factor: MatRef<'_, f64>, selected: &[usize]) -> Result<Mat<f64>> {
    let mut triangle = linalg::zeros(selected.len(), selected.len())?;
    for (row, &unit) in selected.iter().enumerate() {
        triangle.as_mut().row_mut(row).subcols_mut(0, row + 1).copy_from(factor.row(unit).subcols(0, row + 1));
    }
    Ok(triangle)
}

/// The inputs that are not selected, as of the last update.
pub(super) struct Remaining {
    /// The number of each input in the layer, ascending.
    pub(super) inputs: Vec<usize>,
    /// `R`, lower triangle. Only the leading rows and columns, one for each input, are used. The
    /// upper triangle of the whole matrix keeps `M`.
    pub(super) residual: Mat<f64>,
    /// `T`. Only the leading columns are used.
    pub(super) outputs: Mat<f64>,
    /// An input is no candidate if `R_jj` is at most this.
    pub(super) least: Vec<f64>,
    pub(super) selected: Vec<bool>,
}

/// The steps since the last update; `n` is the number of remaining inputs.
struct Panel {
    /// The selected inputs, as indices into [`Remaining::inputs`].
    pivots: Vec<usize>,
    /// The vectors `l`, `n × steps`.
    factor: Mat<f64>,
    /// The vectors `y`, `m × steps`.
    outputs: Mat<f64>,
    /// The diagonal of `R` after these steps.
    diagonal: Vec<f64>,
    /// `‖T_j‖²` after these steps.
    norms: Vec<f64>,
}

/// Selects units that vary.
///
/// `moment` is `M`, of which the lower triangle is read and overwritten, and `outputs` is `T`. The
/// selection ends early if no candidate is left.
pub(super) fn select_units(
    moment: Mat<f64>,
    outputs: Mat<f64>,
    varies: &[bool],
    limits: SelectionLimits,
    par: Par,
) -> Result<Selection> {
    let (rows, size) = outputs.shape();
    let most = limits.units * limits.inputs_per_unit;
    let inputs_per_unit = limits.inputs_per_unit;
    let order = UnitOrder { units: Vec::new(), inputs: Vec::new(), ends: vec![0], inputs_per_unit };
    let mut selection = Selection {
        order,
        factor: linalg::zeros(size, most)?,
        outputs: linalg::zeros(rows, most)?,
        moment: Mat::new(),
    };
    let mut remaining = Remaining {
        inputs: (0..size).collect(),
        least: (0..size).map(|input| limits.tolerance * moment[(input, input)]).collect(),
        residual: moment,
        outputs,
        // An input that does not vary has no column in `L`, as if it were selected.
        selected: varies.iter().map(|varies| !varies).collect(),
    };
    remaining.compact();
    while selection.order.units.len() < limits.units {
        let given = match inputs_per_unit {
            1 => None,
            count => match remaining.best_unit(count, par)? {
                Some(inputs) => Some(inputs),
                None => break,
            },
        };
        let steps = given.as_ref().map_or(PANEL.min(limits.units - selection.order.units.len()), Vec::len);
        let panel = remaining.panel(steps, given.as_deref(), par)?;
        if panel.pivots.is_empty() {
            break;
        }
        selection.append(&panel, &remaining.inputs);
        if selection.order.units.len() < limits.units {
            remaining.update(&panel, par);
            remaining.compact();
        }
    }
    let steps = selection.order.inputs.len();
    if steps < most {
        selection.factor.truncate(size, steps);
        selection.outputs.truncate(rows, steps);
    }
    selection.moment = remaining.residual;
    Ok(selection)
}

impl Selection {
    fn append(&mut self, panel: &Panel, inputs: &[usize]) {
        let (start, steps) = (self.order.inputs.len(), panel.pivots.len());
        for step in 0..steps {
            for (row, &input) in inputs.iter().enumerate() {
                self.factor[(input, start + step)] = panel.factor[(row, step)];
            }
        }
        self.outputs.as_mut().subcols_mut(start, steps).copy_from(panel.outputs.subcols(0, steps));
        panel.pivots.iter().filter_map(|&pivot| inputs.get(pivot)).for_each(|&input| self.order.push(input));
    }
}

impl UnitOrder {
    fn push(&mut self, input: usize) {
        let unit = input / self.inputs_per_unit;
        if self.units.last() == Some(&unit) {
            self.ends.pop();
        } else {
            self.units.push(unit);
        }
        self.inputs.push(input);
        self.ends.push(self.inputs.len());
    }

    /// The selected inputs of the first units of the order.
    pub(super) fn inputs_of(&self, units: usize) -> &[usize] {
        let end = self.ends.get(units).or(self.ends.last()).copied().unwrap_or_default();
        self.inputs.get(..end).unwrap_or_default()
    }

    /// The first `count` units of the order, filled up by others of the `all` units if these are
    /// too few, ascending.
    pub(super) fn kept(&self, count: usize, all: usize) -> Vec<usize> {
        let mut kept: Vec<usize> = self.units.iter().copied().take(count).collect();
        let others = (0..all).filter(|unit| !self.units.contains(unit));
        kept.extend(others.take(count - kept.len()));
        kept.sort_unstable();
        kept
    }
}

impl Remaining {
    pub(super) fn outputs(&self) -> MatRef<'_, f64> {
        self.outputs.subcols(0, self.inputs.len())
    }

    /// Selects up to `steps` inputs, without changing `R` and `T`: the best ones, or those that are
    /// `given`, without those that the inputs before explain.
    fn panel(&mut self, steps: usize, given: Option<&[usize]>, par: Par) -> Result<Panel> {
        let (rows, count) = (self.outputs.nrows(), self.inputs.len());
        let mut panel = Panel {
            pivots: Vec::with_capacity(steps),
            factor: linalg::zeros(count, steps)?,
            outputs: linalg::zeros(rows, steps)?,
            diagonal: (0..count).map(|input| self.residual[(input, input)]).collect(),
            norms: linalg::squared_column_norms(self.outputs()),
        };
        // `Tᵀ y` of each step, for the `T` of the start. Inputs that are given need no norms.
        let mut applied = linalg::zeros(count, if given.is_none() { steps } else { 0 })?;
        let mut products = Products::new(count, applied.ncols())?;
        let mut next = given.map(|inputs| inputs.iter().copied());
        for step in 0..steps {
            let pivot = match &mut next {
                None => self.best(&panel),
                Some(next) => next
                    .find(|&input| panel.diagonal.get(input).is_some_and(|square| self.is_candidate(input, *square))),
            };
            let Some(pivot) = pivot else { break };
            let column = match given {
                None => match products.column(pivot, self, &panel, par)? {
                    None => break,
                    column => column,
                },
                Some(_) => None,
            };
            let root = panel.diagonal.get(pivot).map_or(0.0, |square| square.sqrt());
            // The entries of the pivot in the earlier steps of this panel.
            let earlier = Mat::from_fn(step, 1, |index, _| panel.factor[(pivot, index)]);
            let reduced = |of: MatRef<'_, f64>, steps: MatRef<'_, f64>| -> Result<Mat<f64>> {
                let mut column = linalg::widened(of, 1.0)?;
                linalg::add_product(column.as_mut(), -1.0, steps, earlier.as_ref(), par);
                column *= faer::Scale(1.0 / root);
                Ok(column)
            };
            let y = reduced(self.outputs.subcols(pivot, 1), panel.outputs.subcols(0, step))?;
            let mut l = reduced(self.residual_column(pivot)?.as_ref(), panel.factor.subcols(0, step))?;
            for (input, _) in self.selected.iter().enumerate().filter(|(_, selected)| **selected) {
                l[(input, 0)] = 0.0;
            }
            if let Some(column) = column {
                let mut change = reduced(column, applied.subcols(0, step))?;
                applied.as_mut().subcols_mut(step, 1).copy_from(&change);
                // `Tᵀ y` for the `T` before this step.
                let overlap = linalg::product(panel.outputs.subcols(0, step).transpose(), y.as_ref(), par)?;
                linalg::add_product(change.as_mut(), -1.0, panel.factor.subcols(0, step), overlap.as_ref(), par);
                let gain = linalg::squared_norm(y.as_ref());
                let numbers = panel.norms.iter_mut().zip(l.col(0).iter().zip(change.col(0).iter()));
                numbers.for_each(|(norm, (l, change))| *norm += l * (l * gain - 2.0 * change));
            }
            panel.diagonal.iter_mut().zip(l.col(0).iter()).for_each(|(square, l)| *square -= l * l);
            panel.factor.as_mut().subcols_mut(step, 1).copy_from(&l);
            panel.outputs.as_mut().subcols_mut(step, 1).copy_from(&y);
            panel.pivots.push(pivot);
            if let Some(selected) = self.selected.get_mut(pivot) {
                *selected = true;
            }
        }
        // Inputs that the others of their unit explain are no candidates any more.
        for &input in given.into_iter().flatten() {
            if let Some(selected) = self.selected.get_mut(input) {
                *selected = true;
            }
        }
        Ok(panel)
    }

    /// Whether an input whose `R_jj` is `square` can be selected.
    pub(super) fn is_candidate(&self, input: usize, square: f64) -> bool {
        self.selected.get(input) == Some(&false) && self.least.get(input).is_some_and(|least| square > *least)
    }

    /// The gain of every candidate, with its index.
    fn gains<'a>(&'a self, panel: &'a Panel) -> impl Iterator<Item = (usize, f64)> + 'a {
        let numbers = panel.norms.iter().zip(&panel.diagonal).zip(self.selected.iter().zip(&self.least)).enumerate();
        let candidates = numbers.filter(|(_, ((_, square), (selected, least)))| !**selected && square > least);
        candidates.map(|(input, ((norm, square), _))| (input, norm.max(0.0) / square))
    }

    /// The candidate with the largest gain, the first of several.
    fn best(&self, panel: &Panel) -> Option<usize> {
        let first = self.gains(panel).next()?;
        Some(self.gains(panel).fold(first, |best, other| if other.1 > best.1 { other } else { best }).0)
    }

    /// A column of `R` as of the last update, from its lower triangle.
    fn residual_column(&self, input: usize) -> Result<Mat<f64>> {
        let count = self.inputs.len();
        let mut column = linalg::zeros(count, 1)?;
        let right = self.residual.row(input).subcols(0, input).transpose();
        column.as_mut().subrows_mut(0, input).copy_from(right.as_mat());
        let below = self.residual.subcols(input, 1).subrows(input, count - input);
        column.as_mut().subrows_mut(input, count - input).copy_from(below);
        Ok(column)
    }

    /// Applies the steps of the panel to `R` and `T`.
    fn update(&mut self, panel: &Panel, par: Par) {
        let (count, steps) = (self.inputs.len(), panel.pivots.len());
        let factor = panel.factor.subcols(0, steps);
        let residual = self.residual.as_mut().submatrix_mut(0, 0, count, count);
        linalg::add_symmetric_product(residual, -1.0, factor, factor.transpose(), par);
        let outputs = self.outputs.as_mut().subcols_mut(0, count);
        linalg::add_product(outputs, -1.0, panel.outputs.subcols(0, steps), factor.transpose(), par);
    }

    /// Removes selected inputs from `R` and `T` if there are many.
    fn compact(&mut self) {
        let count = self.inputs.len();
        let kept: Vec<usize> =
            self.selected.iter().enumerate().filter_map(|(unit, selected)| (!selected).then_some(unit)).collect();
        if kept.len() as f64 > COMPACT * count as f64 {
            return;
        }
        // Every entry moves towards the start, so none is overwritten before it is read.
        for (column, &from) in kept.iter().enumerate() {
            for (row, &from_row) in kept.iter().enumerate().skip(column) {
                self.residual[(row, column)] = self.residual[(from_row, from)];
            }
            for row in 0..self.outputs.nrows() {
                self.outputs[(row, column)] = self.outputs[(row, from)];
            }
        }
        self.inputs = kept.iter().filter_map(|&unit| self.inputs.get(unit).copied()).collect();
        self.least = kept.iter().filter_map(|&unit| self.least.get(unit).copied()).collect();
        self.selected = vec![false; kept.len()];
    }
}

/// Columns of `Tᵀ T` for the `T` of the start of a panel.
struct Products {
    columns: Mat<f64>,
    /// The column of each input.
    places: Vec<Option<usize>>,
    used: usize,
}

impl Products {
    /// Reserves columns for four times as many inputs as the panel has steps. A panel that needs
    /// more ends early.
    fn new(count: usize, steps: usize) -> Result<Self> {
        let capacity = (4 * steps.next_multiple_of(FETCH)).min(count.next_multiple_of(FETCH));
        Ok(Self { columns: linalg::zeros(count, capacity)?, places: vec![None; count], used: 0 })
    }

    /// The column of this input. If it is not there, it is computed together with those of the
    /// candidates that have the largest gains; `None` if there is no room for them.
    fn column(
        &mut self,
        input: usize,
        remaining: &Remaining,
        panel: &Panel,
        par: Par,
    ) -> Result<Option<MatRef<'_, f64>>> {
        if self.places.get(input).copied().flatten().is_none() {
            let mut missing: Vec<(usize, f64)> =
                remaining.gains(panel).filter(|&(input, _)| self.places.get(input) == Some(&None)).collect();
            missing.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            missing.truncate(FETCH);
            if self.used + missing.len() > self.columns.ncols() {
                return Ok(None);
            }
            let outputs = remaining.outputs();
            let mut gathered = linalg::zeros(outputs.nrows(), missing.len())?;
            for (column, &(input, _)) in missing.iter().enumerate() {
                gathered.as_mut().col_mut(column).copy_from(outputs.col(input));
                if let Some(place) = self.places.get_mut(input) {
                    *place = Some(self.used + column);
                }
            }
            let target = self.columns.as_mut().subcols_mut(self.used, missing.len());
            linalg::set_product(target, outputs.transpose(), gathered.as_ref(), par);
            self.used += missing.len();
        }
        Ok(self.places.get(input).copied().flatten().map(|place| self.columns.subcols(place, 1)))
    }
}
