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

use faer::{Mat, MatRef};

use crate::Result;
use crate::linalg::{self, Par};

/// Largest number of steps between two updates of `R` and `T`.
const PANEL: usize = 64;

/// Number of columns of `Tᵀ T` that are computed at a time. One column alone would take as long,
/// because it reads all of `T`, too.
const FETCH: usize = 32;

/// `R` and `T` shrink to the units that are not selected when this fraction of them is left.
const COMPACT: f64 = 0.875;

/// The selected units, and the factors of the moments.
pub(super) struct Selection {
    /// The selected units, in the order of the selection: `s` of them.
    pub(super) order: Vec<usize>,
    /// `L`, `h × s`: its rows for the selected units, in their order, are the lower triangular
    /// Cholesky factor of `M` for these units. The other rows are `M_{:P} L_P⁻ᵀ`.
    pub(super) factor: Mat<f64>,
    /// `Y = T_P L_P⁻ᵀ`, `m × s`. The squared norm of a column is the gain of that step.
    pub(super) outputs: Mat<f64>,
    /// `M` above the diagonal; other entries are arbitrary.
    pub(super) moment: Mat<f64>,
}

/// The rows of the factor `L` for these units, the first selected ones: lower triangular.
pub(super) fn triangle(factor: MatRef<'_, f64>, selected: &[usize]) -> Result<Mat<f64>> {
    let mut triangle = linalg::zeros(selected.len(), selected.len())?;
    for (row, &unit) in selected.iter().enumerate() {
        triangle.as_mut().row_mut(row).subcols_mut(0, row + 1).copy_from(factor.row(unit).subcols(0, row + 1));
    }
    Ok(triangle)
}

/// The units that are not selected, as of the last update.
struct Remaining {
    /// The number of each unit in the layer, ascending.
    units: Vec<usize>,
    /// `R`, lower triangle. Only the leading rows and columns, one for each unit, are used. The
    /// upper triangle of the whole matrix keeps `M`.
    residual: Mat<f64>,
    /// `T`. Only the leading columns are used.
    outputs: Mat<f64>,
    /// A unit is no candidate if `R_jj` is at most this.
    least: Vec<f64>,
    selected: Vec<bool>,
}

/// The steps since the last update; `n` is the number of remaining units.
struct Panel {
    /// The selected units, as indices into [`Remaining::units`].
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

/// Selects up to `most` of the units that vary.
///
/// `moment` is `M`, of which the lower triangle is read and overwritten, and `outputs` is `T`. A
/// unit is no candidate any more if the selected units explain it up to `tolerance · M_jj`. The
/// selection ends early if no candidate is left.
pub(super) fn select_units(
    moment: Mat<f64>,
    outputs: Mat<f64>,
    varies: &[bool],
    (most, tolerance): (usize, f64),
    par: Par,
) -> Result<Selection> {
    let (rows, size) = outputs.shape();
    let mut selection = Selection {
        order: Vec::with_capacity(most),
        factor: linalg::zeros(size, most)?,
        outputs: linalg::zeros(rows, most)?,
        moment: Mat::new(),
    };
    let mut remaining = Remaining {
        units: (0..size).collect(),
        least: (0..size).map(|unit| tolerance * moment[(unit, unit)]).collect(),
        residual: moment,
        outputs,
        // A unit that does not vary has no column in `L`, as if it were selected.
        selected: varies.iter().map(|varies| !varies).collect(),
    };
    remaining.compact();
    while selection.order.len() < most {
        let panel = remaining.panel(PANEL.min(most - selection.order.len()), par)?;
        if panel.pivots.is_empty() {
            break;
        }
        selection.append(&panel, &remaining.units);
        if selection.order.len() < most {
            remaining.update(&panel, par);
            remaining.compact();
        }
    }
    let steps = selection.order.len();
    if steps < most {
        selection.factor.truncate(size, steps);
        selection.outputs.truncate(rows, steps);
    }
    selection.moment = remaining.residual;
    Ok(selection)
}

impl Selection {
    fn append(&mut self, panel: &Panel, units: &[usize]) {
        let (start, steps) = (self.order.len(), panel.pivots.len());
        for step in 0..steps {
            for (row, &unit) in units.iter().enumerate() {
                self.factor[(unit, start + step)] = panel.factor[(row, step)];
            }
        }
        self.outputs.as_mut().subcols_mut(start, steps).copy_from(panel.outputs.subcols(0, steps));
        self.order.extend(panel.pivots.iter().filter_map(|&pivot| units.get(pivot)));
    }
}

impl Remaining {
    fn outputs(&self) -> MatRef<'_, f64> {
        self.outputs.subcols(0, self.units.len())
    }

    /// Selects up to `steps` units, without changing `R` and `T`.
    fn panel(&mut self, steps: usize, par: Par) -> Result<Panel> {
        let (rows, count) = (self.outputs.nrows(), self.units.len());
        let mut panel = Panel {
            pivots: Vec::with_capacity(steps),
            factor: linalg::zeros(count, steps)?,
            outputs: linalg::zeros(rows, steps)?,
            diagonal: (0..count).map(|unit| self.residual[(unit, unit)]).collect(),
            norms: linalg::squared_column_norms(self.outputs()),
        };
        // `Tᵀ y` of each step, for the `T` of the start.
        let mut applied = linalg::zeros(count, steps)?;
        let mut products = Products::new(count, steps)?;
        for step in 0..steps {
            let Some(pivot) = self.best(&panel) else { break };
            let Some(column) = products.column(pivot, self, &panel, par)? else { break };
            let root = panel.diagonal.get(pivot).map_or(0.0, |square| square.sqrt());
            // What the earlier steps of this panel have removed from the column of the pivot.
            let earlier = Mat::from_fn(step, 1, |index, _| panel.factor[(pivot, index)]);
            let reduced = |of: MatRef<'_, f64>, steps: MatRef<'_, f64>| -> Result<Mat<f64>> {
                let mut column = linalg::widened(of, 1.0)?;
                linalg::add_product(column.as_mut(), -1.0, steps, earlier.as_ref(), par);
                column *= faer::Scale(1.0 / root);
                Ok(column)
            };
            let y = reduced(self.outputs.subcols(pivot, 1), panel.outputs.subcols(0, step))?;
            let mut change = reduced(column, applied.subcols(0, step))?;
            let mut l = reduced(self.residual_column(pivot)?.as_ref(), panel.factor.subcols(0, step))?;
            for (unit, _) in self.selected.iter().enumerate().filter(|(_, selected)| **selected) {
                l[(unit, 0)] = 0.0;
            }
            applied.as_mut().subcols_mut(step, 1).copy_from(&change);
            // `Tᵀ y` for the `T` before this step.
            let overlap = linalg::product(panel.outputs.subcols(0, step).transpose(), y.as_ref(), par)?;
            linalg::add_product(change.as_mut(), -1.0, panel.factor.subcols(0, step), overlap.as_ref(), par);
            let gain = linalg::squared_norm(y.as_ref());
            let numbers =
                panel.diagonal.iter_mut().zip(&mut panel.norms).zip(l.col(0).iter().zip(change.col(0).iter()));
            for ((square, norm), (l, change)) in numbers {
                *square -= l * l;
                *norm += l * (l * gain - 2.0 * change);
            }
            panel.factor.as_mut().subcols_mut(step, 1).copy_from(&l);
            panel.outputs.as_mut().subcols_mut(step, 1).copy_from(&y);
            panel.pivots.push(pivot);
            if let Some(selected) = self.selected.get_mut(pivot) {
                *selected = true;
            }
        }
        Ok(panel)
    }

    /// The gain of every candidate, with its index.
    fn gains<'a>(&'a self, panel: &'a Panel) -> impl Iterator<Item = (usize, f64)> + 'a {
        let numbers = panel.norms.iter().zip(&panel.diagonal).zip(self.selected.iter().zip(&self.least)).enumerate();
        let candidates = numbers.filter(|(_, ((_, square), (selected, least)))| !**selected && square > least);
        candidates.map(|(unit, ((norm, square), _))| (unit, norm.max(0.0) / square))
    }

    /// The candidate with the largest gain, the first of several.
    fn best(&self, panel: &Panel) -> Option<usize> {
        let first = self.gains(panel).next()?;
        Some(self.gains(panel).fold(first, |best, other| if other.1 > best.1 { other } else { best }).0)
    }

    /// A column of `R` as of the last update, from its lower triangle.
    fn residual_column(&self, unit: usize) -> Result<Mat<f64>> {
        let count = self.units.len();
        let mut column = linalg::zeros(count, 1)?;
        column.as_mut().subrows_mut(0, unit).copy_from(self.residual.row(unit).subcols(0, unit).transpose().as_mat());
        let below = self.residual.subcols(unit, 1).subrows(unit, count - unit);
        column.as_mut().subrows_mut(unit, count - unit).copy_from(below);
        Ok(column)
    }

    /// Applies the steps of the panel to `R` and `T`.
    fn update(&mut self, panel: &Panel, par: Par) {
        let (count, steps) = (self.units.len(), panel.pivots.len());
        let factor = panel.factor.subcols(0, steps);
        let residual = self.residual.as_mut().submatrix_mut(0, 0, count, count);
        linalg::add_symmetric_product(residual, -1.0, factor, factor.transpose(), par);
        let outputs = self.outputs.as_mut().subcols_mut(0, count);
        linalg::add_product(outputs, -1.0, panel.outputs.subcols(0, steps), factor.transpose(), par);
    }

    /// Removes selected units from `R` and `T` if there are many.
    fn compact(&mut self) {
        let count = self.units.len();
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
        self.units = kept.iter().filter_map(|&unit| self.units.get(unit).copied()).collect();
        self.least = kept.iter().filter_map(|&unit| self.least.get(unit).copied()).collect();
        self.selected = vec![false; kept.len()];
    }
}

/// Columns of `Tᵀ T` for the `T` of the start of a panel.
struct Products {
    columns: Mat<f64>,
    /// The column of each unit.
    places: Vec<Option<usize>>,
    used: usize,
}

impl Products {
    /// Reserves columns for four times as many units as the panel has steps. A panel that needs
    /// more ends early.
    fn new(count: usize, steps: usize) -> Result<Self> {
        let capacity = (4 * steps.next_multiple_of(FETCH)).min(count.next_multiple_of(FETCH));
        Ok(Self { columns: linalg::zeros(count, capacity)?, places: vec![None; count], used: 0 })
    }

    /// The column of this unit. If it is not there, it is computed together with those of the
    /// candidates that have the largest gains; `None` if there is no room for them.
    fn column(
        &mut self,
        unit: usize,
        remaining: &Remaining,
        panel: &Panel,
        par: Par,
    ) -> Result<Option<MatRef<'_, f64>>> {
        if self.places.get(unit).copied().flatten().is_none() {
            let mut missing: Vec<(usize, f64)> =
                remaining.gains(panel).filter(|&(unit, _)| self.places.get(unit) == Some(&None)).collect();
            missing.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            missing.truncate(FETCH);
            if self.used + missing.len() > self.columns.ncols() {
                return Ok(None);
            }
            let outputs = remaining.outputs();
            let mut gathered = linalg::zeros(outputs.nrows(), missing.len())?;
            for (column, &(unit, _)) in missing.iter().enumerate() {
                gathered.as_mut().col_mut(column).copy_from(outputs.col(unit));
                if let Some(place) = self.places.get_mut(unit) {
                    *place = Some(self.used + column);
                }
            }
            let target = self.columns.as_mut().subcols_mut(self.used, missing.len());
            linalg::set_product(target, outputs.transpose(), gathered.as_ref(), par);
            self.used += missing.len();
        }
        Ok(self.places.get(unit).copied().flatten().map(|place| self.columns.subcols(place, 1)))
    }
}
